"""What every group of a worker promises, without a process: the same tests over single envs and over VectorEnvs."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aio_vecenv.core.framing import dumps
from aio_vecenv.core.layout import TERMINATED, TRUNCATED, Slab, SpaceTree, layout
from aio_vecenv.core.messages import (
    END_INFO,
    ERROR,
    FINAL_INFO,
    INFO,
    RESULT,
    TASK,
    Attachment,
    Note,
    Setup,
    decode_notes,
)
from aio_vecenv.core.options import Settings
from aio_vecenv.core.updates import Inbox
from aio_vecenv.worker.env_groups import build
from aio_vecenv.worker.main import make_envs
from aio_vecenv.worker.rows import Group

FIRST = 5  # the group's first row in the block
KINDS = ("single", "vector")
both = pytest.mark.parametrize("kind", KINDS)


class Scripted(gym.Env[Any, Any]):
    """Observation as its space says, of the steps since reset; ends, raises and errs where its script says."""

    action_space = spaces.Discrete(3)

    def __init__(self, index: int, space: gym.Space[Any], script: dict[int, Any]) -> None:
        self.index, self.observation_space, self.script, self.t = index, space, script, 0
        self.heard: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if "raise" in (options or {}):
            raise ValueError("no reset")
        self.t = 0
        return self.show(), {"task": f"task {self.index}", "seed": seed}

    def step(self, action: Any) -> Any:
        self.t += 1
        what = self.script.get(self.t)
        if isinstance(what, Exception):
            raise what
        reward = what if isinstance(what, float) else float(self.t)
        return self.show(), reward, what == "terminated", what == "truncated", {"t": self.t, "other": 1}

    def show(self) -> Any:
        if isinstance(self.observation_space, spaces.Discrete):
            return int(self.observation_space.start) + self.t
        return np.full(self.observation_space.shape or (), self.t, self.observation_space.dtype)

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.heard.append((payload, version))
        if payload == "refused":
            raise ValueError("not this one")


SPACES = [
    spaces.Box(0, 99, (2, 3), np.float32),
    spaces.Discrete(99),
    spaces.Discrete(99, dtype=np.int32),
    spaces.Box(0, 99, (), np.int16),
    spaces.MultiDiscrete([99, 99]),
]


class Hall:
    """A group of three envs over a block of its own."""

    def __init__(
        self,
        kind: str,
        script: dict[int, dict[int, Any]] | None = None,
        space: gym.Space[Any] = SPACES[0],
        left: Callable[[], int | None] = lambda: None,
        restart_seeds: list[int | None] | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        envs = [lambda i=i: Scripted(i, space, (script or {}).get(i, {})) for i in range(3)]
        factories: list[Any] = envs
        if kind == "vector":
            mode = self.settings.autoreset
            factories = [lambda: SyncVectorEnv(envs, autoreset_mode=mode)]
        setup = Setup(factories, list(range(len(factories))), self.settings, "auto")
        made, shown = make_envs(setup, {})
        self.trees = SpaceTree(shown.observation), SpaceTree(shown.action)
        final = self.settings.autoreset is AutoresetMode.SAME_STEP
        fields, size = layout(*self.trees, FIRST + 4, final_obs=final)
        block = np.zeros(size, np.uint8)
        self.slab = Slab(block, fields, *self.trees)
        self.inbox = Inbox(len(made))
        where = Attachment(FIRST, FIRST + 4, fields, size, restart_seeds)
        self.group: Group = build(made, shown, setup, where, block, self.inbox, self.catch_up, left)
        self.own = slice(FIRST, FIRST + 3)

    def catch_up(self, version: int) -> None:
        self.inbox.take(version, version, "topic", "payload", now=False)

    def reset(self, **options: Any) -> list[Note]:
        packed = dumps(options) if options else None
        return self.group.reset([0, 1, 2], [10, 11, 12], packed)

    def step(self) -> list[Note]:
        return self.group.step(None)

    def of(self, notes: list[Note], kind: int) -> dict[int, Any]:
        return {env_id: value for env_id, t, k, value in notes if k == kind and t == 0}


@pytest.mark.parametrize("space", SPACES, ids=str)
@both
def test_rows_are_written_exactly_and_no_other_row_is_touched(kind: str, space: gym.Space[Any]) -> None:
    hall = Hall(kind, space=space)
    hall.slab.obs[0][...] = 77  # type: ignore[index]
    hall.reset()
    for t in range(4):
        assert (hall.slab.obs[0][hall.own] == t).all()  # type: ignore[index]
        assert (hall.slab.obs[0][:FIRST] == 77).all()  # type: ignore[index]
        assert (hall.slab.obs[0][FIRST + 3 :] == 77).all()  # type: ignore[index]
        assert hall.slab.rewards.tolist() == [0.0] * FIRST + [float(t)] * 3 + [0.0]
        hall.step()


@both
def test_an_end_then_an_autoreset(kind: str) -> None:
    hall = Hall(kind, {1: {2: "terminated"}, 2: {2: "truncated"}})
    hall.reset()
    hall.step()
    hall.step()
    assert hall.slab.flags[hall.own].tolist() == [0, TERMINATED, TRUNCATED]
    notes = hall.step()
    assert hall.slab.flags[hall.own].tolist() == [0, 0, 0]
    assert hall.slab.rewards[hall.own].tolist() == [3.0, 0.0, 0.0]
    assert hall.slab.obs[0][hall.own, 0, 0].tolist() == [3, 0, 0]  # type: ignore[index]
    assert hall.of(notes, INFO)[FIRST + 1]["task"] == "task 1"


@both
def test_an_end_and_a_beginning_in_the_same_step(kind: str) -> None:
    hall = Hall(kind, {1: {2: "terminated"}}, autoreset=AutoresetMode.SAME_STEP)
    hall.reset()
    hall.step()
    notes = hall.step()
    assert hall.slab.flags[hall.own].tolist() == [0, TERMINATED, 0]
    assert hall.slab.obs[0][hall.own, 0, 0].tolist() == [2, 0, 2]  # type: ignore[index]
    assert hall.slab.final_obs[0][FIRST + 1].tolist() == [[2] * 3] * 2  # type: ignore[index]
    assert hall.of(notes, FINAL_INFO) == {FIRST + 1: {"t": 2, "other": 1}}
    assert hall.of(notes, INFO)[FIRST + 1]["task"] == "task 1"


@both
def test_infos_are_filtered_where_they_are_made(kind: str) -> None:
    script = {0: {2: "terminated"}}
    hall = Hall(kind, script, info=("t",))
    assert hall.of(hall.reset(), TASK) == {FIRST + i: f"task {i}" for i in range(3)}
    assert hall.of(hall.step(), INFO) == {FIRST + i: {"t": 1} for i in range(3)}
    assert hall.of(hall.step(), END_INFO) == {FIRST: {"t": 2, "other": 1}}
    hall = Hall(kind, script, info="episode")
    assert sorted(hall.of(hall.reset(), INFO)) == [FIRST, FIRST + 1, FIRST + 2]
    assert hall.step() == []
    assert list(hall.of(hall.step(), INFO)) == [FIRST]


@pytest.mark.parametrize("bad", [ValueError("broken"), float("nan")])
@both
def test_an_error_comes_first_and_is_all_that_is_said_of_its_envs(kind: str, bad: Any) -> None:
    hall = Hall(kind, {1: {2: bad}})
    hall.reset()
    hall.step()
    notes = hall.step()
    errors = hall.of(notes, ERROR)
    assert list(errors) == ([FIRST + 1] if kind == "single" else [FIRST, FIRST + 1, FIRST + 2])
    assert [note[2] for note in notes[: len(errors)]] == [ERROR] * len(errors)
    assert {env_id: report.task for env_id, report in errors.items()} == {
        env_id: f"task 'task {env_id - FIRST}'" for env_id in errors
    }
    assert errors.keys().isdisjoint(hall.of(notes, INFO))
    assert (hall.slab.rewards[list(errors)] == 0).all()
    hall.reset()
    hall.step()
    assert (hall.slab.obs[0][hall.own] == 1).all()  # type: ignore[index]


def test_a_vector_env_that_raises_where_it_autoresets_names_the_tasks_that_go_on() -> None:
    hall = Hall("vector", {0: {1: "terminated"}, 1: {2: ValueError("broken")}})
    hall.reset()
    hall.step()
    errors = hall.of(hall.step(), ERROR)  # env 0 was to begin its next episode, of a task that nobody knows
    assert [report.task for report in errors.values()] == ["", "task 'task 1'", "task 'task 2'"]


@both
def test_a_reset_that_raises(kind: str) -> None:
    hall = Hall(kind)
    hall.reset()
    errors = hall.of(hall.reset(**{"raise": True}), ERROR)
    # not the last one's task
    assert [(report.op, report.task) for report in errors.values()] == [("reset", "")] * 3
    assert not hall.of(hall.reset(), ERROR)


@both
def test_calls_answer_in_order_and_an_error_is_of_its_own(kind: str) -> None:
    hall = Hall(kind)
    hall.reset()
    envs = [0, 1, 2] if kind == "single" else [0]
    assert [n[0] for n in hall.group.call("get", "action_space", envs, dumps(None))] == list(range(len(envs)))
    (note, *_) = hall.group.call("call", "nothing", envs, dumps(((), {})))
    assert (note[2], note[3].type_name) == (ERROR, "AttributeError")
    (note, *_) = hall.group.call("apply", "f", envs, dumps(lambda env: 7))
    assert note[2:] == (RESULT, 7)


@both
def test_updates_are_heard_before_a_beginning(kind: str) -> None:
    hall = Hall(kind)
    hall.slab.mark(4)
    hall.reset()
    assert (hall.slab.versions[hall.own] == 4).all()


@both
def test_what_finds_no_memory_or_no_pickle_fails_its_own_env(kind: str) -> None:
    hall = Hall(kind, left=lambda: 6 << 20)
    hall.reset()
    notes = hall.step()
    notes[:] = [note if note[0] != FIRST + 1 else (*note[:3], {"big": bytes(4 << 20)}) for note in notes]
    notes[:] = [note if note[0] != FIRST + 2 else (*note[:3], {"f": Lock()}) for note in notes]
    got = [note for payload in hall.group.pack(notes) for note in decode_notes(payload)]
    errors = hall.of(got, ERROR)
    assert sorted(errors) == [FIRST + 1, FIRST + 2]
    assert "too large" in errors[FIRST + 1].message
    assert 'infos["f"] cannot be pickled' in errors[FIRST + 2].message
    assert list(hall.of(got, INFO)) == [FIRST]


@both
def test_a_command_that_cannot_be_understood_and_the_end(kind: str) -> None:
    hall = Hall(kind)
    hall.reset()
    refused = hall.of(hall.group.refuse([0, 2], "step", ValueError("what?")), ERROR)
    assert sorted(refused) == [FIRST, FIRST + 2]
    assert hall.group.close() == []
    assert hall.group.close() == []


def test_a_restarted_env_that_refuses_an_update_begins_with_its_own_seed() -> None:
    """The parent has announced the seed already: whatever makes the first row `first`, it is the one that is used."""
    hall = Hall("single", restart_seeds=[7, 8, 9], on_env_error="reset", info="all")
    hall.inbox.take(1, 1, "topic", "refused", now=True)
    seeds = {env_id: info["seed"] for env_id, info in hall.of(hall.step(), INFO).items() if "seed" in info}
    assert seeds == {FIRST: 7, FIRST + 1: 8, FIRST + 2: 9}
