"""The wrapper: stamps, levels, errors, updates; and alone, with a strategy of its own."""
# pure: one env in this process

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from curriculum import (
    CurriculumEnv,
    Directive,
    DirectiveError,
    DomainRandomisation,
    FinishedEpisode,
    Level,
    LevelError,
    LevelSet,
    Staged,
    StagePlan,
    StampError,
    ever_success,
    is_success,
    unclear_success,
)
from tests.curriculum.helpers import PLAN, ActionEnv, Flash, LevelEnv, level_set


def directive(stage: str, mix: float = 0.0) -> Directive:
    return Directive(PLAN.names, stage, (0.4, 0.25, 0.05), mix)


def make(**keywords: Any) -> CurriculumEnv:
    return CurriculumEnv(LevelEnv(), level_set(), **keywords)


def test_a_reset_draws_loads_and_stamps() -> None:
    env = make()
    env.on_broadcast(directive("middle"), 3)
    _, info = env.reset(seed=1, options={"mine": 1})
    number = int(info["task"]["level"][-1])
    assert info["task"] == {
        "stage": "middle",
        "level": f"middle-{number}",
        "generator": "default",
        "role": "current",
    }
    assert (info["curriculum_stage"], info["curriculum_level_id"]) == ("middle", f"middle-{number}")
    assert env.env.unwrapped.options == {"mine": 1, "level": {"i": number}}  # type: ignore[attr-defined]
    *_, terminated, _, last = env.step(0)
    assert terminated
    assert (last["curriculum_stage"], last["curriculum_level_id"]) == ("middle", f"middle-{number}")
    assert env.get_mixing_ratio("near") == 0.4


def test_load_puts_the_level_into_the_env() -> None:
    loaded: list[tuple[Any, Level]] = []
    env = make(load=lambda inner, level: loaded.append((inner, level)))
    env.on_broadcast(directive("far"), 1)
    _, info = env.reset(seed=0)
    assert loaded[0][0] is env.env
    assert loaded[0][1].id == info["task"]["level"]
    assert env.env.unwrapped.options is None


def test_c09_the_stamp_is_the_stage_that_was_sampled() -> None:
    levels = LevelSet([Level("near", "x", {"category": "far"}), *(Level(s, s) for s in ("middle", "far"))])
    env = CurriculumEnv(LevelEnv(), levels)
    env.on_broadcast(directive("middle", mix=1.0), 1)
    assert env.reset(seed=0)[1]["task"] == {
        "stage": "near",
        "level": "x",
        "generator": "default",
        "role": "previous",
    }


def test_c08_a_level_that_cannot_be_loaded_is_an_error_that_names_it_and_nothing_is_stamped() -> None:
    def load(env: gym.Env[Any, Any], level: Level) -> None:
        raise FileNotFoundError("no such map")

    env = make(load=load)
    env.on_broadcast(directive("near"), 1)
    with pytest.raises(FileNotFoundError, match="no such map") as caught:
        env.reset(seed=0)
    assert "while starting level 'near-" in caught.value.__notes__[0]
    assert env.task == {}
    few = CurriculumEnv(LevelEnv(), LevelSet([Level("near", "x")]))
    with pytest.raises(DirectiveError, match="stage 'middle', but there are levels only for near"):
        few.on_broadcast(directive("near"), 1)
    with pytest.raises(LevelError, match="unknown level 'y'"):
        few.levels.index("y")


def test_before_any_directive_a_reset_says_what_to_do() -> None:
    with pytest.raises(DirectiveError, match="make a Coordinator on the vec env before its first reset"):
        make().reset()


def test_an_unknown_stage_has_no_ratio() -> None:
    env = make()
    env.on_broadcast(directive("near"), 1)
    with pytest.raises(DirectiveError, match="unknown stage 'moon'"):
        env.get_mixing_ratio("moon")


class Gravity(LevelEnv):
    got: Any = None

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.got = (payload, version)


def test_what_is_not_a_directive_goes_to_the_env_inside() -> None:
    inner = Gravity()
    env = CurriculumEnv(gym.wrappers.TimeLimit(inner, 5), level_set())
    env.on_broadcast({"gravity": 3.7}, 4)
    assert inner.got == ({"gravity": 3.7}, 4)
    env.on_broadcast(directive("near"), 5)
    assert inner.got == ({"gravity": 3.7}, 4)
    make().on_broadcast("nobody wants it", 6)


def test_a_directive_is_stored_and_the_episode_that_runs_keeps_its_task() -> None:
    env = make()
    env.on_broadcast(directive("near"), 1)
    env.reset(seed=0)
    env.on_broadcast(directive("far"), 2)
    assert env.task["stage"] == "near"
    assert env.reset()[1]["task"]["stage"] == "far"


def test_c10_seeded_resets_repeat_their_draws() -> None:
    def tasks(env: CurriculumEnv, seed: int) -> list[str]:
        first = env.reset(seed=seed)[1]["task"]["level"]
        return [first] + [env.reset()[1]["task"]["level"] for _ in range(10)]

    one, other = make(), make()
    for env in (one, other):
        env.on_broadcast(directive("near"), 1)
    other.reset(seed=9)
    assert tasks(one, 5) == tasks(other, 5) != tasks(one, 6)


# ---- alone


@pytest.mark.parametrize(("mix_by", "share"), [("episodes", 0.73), ("steps", 0.40)])
def test_mix_by_steps_makes_the_ratio_the_share_of_steps(mix_by: Any, share: float) -> None:
    """Episodes of the previous stage are four times as long; the ratio is .40 all along."""
    levels = LevelSet([Level("near", "n", {"length": 40}), Level("middle", "m", {"length": 10})])
    staged = Staged(StagePlan(PLAN.stages[:2]), mix_by=mix_by)
    staged.set_stage("middle")
    env = CurriculumEnv(ActionEnv(), levels, strategy=staged)
    steps: Counter[str] = Counter()
    for episode in range(1500):
        stage = env.reset(seed=4 if episode == 0 else None)[1]["task"]["stage"]
        ended = False
        while not ended:
            ended = env.step(0)[2]
            steps[stage] += episode >= 100
    assert staged.mixing_ratio("middle") == 0.40
    assert steps["near"] / steps.total() == pytest.approx(share, abs=0.03)


def test_alone_it_tracks_itself_and_checks_every_ten_episodes() -> None:
    env = make(strategy=Staged(PLAN))
    seen: Counter[str] = Counter()
    stages = []
    for episode in range(60):
        _, info = env.reset(seed=0 if episode == 0 else None)
        stages.append(info["task"]["stage"])
        seen[info["task"]["role"]] += 1
        env.step(0)
    assert stages[:30] == ["near"] * 30
    assert "middle" in stages[30:]
    assert isinstance(env.strategy, Staged)
    assert env.strategy.total == 60
    assert env.get_mixing_ratio("near") == 0.05


def test_alone_an_episode_that_is_cut_short_is_aborted() -> None:
    strategy = Staged(PLAN)
    env = CurriculumEnv(LevelEnv(length=3), level_set(), strategy=strategy)
    env.reset(seed=0)
    env.step(0)
    env.reset()
    for _ in range(3):
        env.step(0)
    row = strategy.progress()[0]
    assert (row["aborted"], row["ended"], strategy.total) == (1, 1, 1)


def test_c01_c06_an_env_with_a_strategy_of_its_own_refuses_a_second_writer() -> None:
    with pytest.raises(DirectiveError, match="has a strategy of its own"):
        make(strategy=Staged(PLAN)).on_broadcast(directive("near"), 1)


class Picky(gym.Env[Any, Any]):
    """Cannot be reset on some levels, nor under some seeds."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.seeds: list[int | None] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        assert options is not None
        if options["level"] == "bad" or len(set(self.seeds)) < 3:
            raise OSError("no map")
        return 0, {}


def test_a_reset_that_is_tried_again_draws_anew_and_the_next_info_says_what_failed() -> None:
    """The same level under the same seed would fail for ever; what a seed leads to stays reproducible."""
    levels = LevelSet([Level("a", f"{n}", "bad" if n % 2 else "good") for n in range(8)])

    def begin() -> tuple[list[int | None], dict[str, Any]]:
        env = CurriculumEnv(Picky(), levels)
        env.on_broadcast(Directive(stages=("a",), stage="a", ratios=(0.0,)), 1)
        for _ in range(100):
            with contextlib.suppress(OSError):
                _, info = env.reset(seed=11)
                return env.unwrapped.seeds, info  # type: ignore[attr-defined]
        raise AssertionError("never")

    seeds, info = begin()
    assert (seeds, info) == begin()
    assert seeds[0] == 11
    assert len(set(seeds)) == len(seeds) >= 3
    failed = info["failed_resets"]
    assert len(failed) == len(seeds) - 1
    assert {(stage, error) for stage, _, error in failed} == {("a", "OSError: no map")}
    env = CurriculumEnv(Picky(), levels)
    env.on_broadcast(Directive(stages=("a",), stage="a", ratios=(0.0,)), 1)
    env.unwrapped.seeds = [1, 2, 3]  # type: ignore[attr-defined]
    for seed in range(40):
        with contextlib.suppress(OSError):
            _, info = env.reset(seed=seed)
            _, again = env.reset(seed=seed)
            assert again["task"] == info["task"], "after one that did not fail a seed means what it meant"
            assert "failed_resets" not in again


def test_resets_that_fail_around_it_are_noted_by_what_was_drawn() -> None:
    """Each once, wherever it raised; never by the level of an episode that was played."""
    env = make()
    env.on_broadcast(directive("middle"), 1)
    assert env.on_failed_reset(OSError("x")) is None, "before the first"
    _, first = env.reset(seed=1)
    assert env.on_failed_reset(OSError("x")) == first["task"]
    assert env.on_failed_reset(OSError("before it was asked again")) is None
    _, second = env.reset(seed=1)
    assert env.on_failed_reset(KeyError("y")) == second["task"]
    _, third = env.reset()
    assert [(level, error) for _, level, error in third["failed_resets"]] == [
        (first["task"]["level"], "OSError: x"),
        (second["task"]["level"], "KeyError: 'y'"),
    ]
    env.step(0)
    assert env.on_failed_reset(OSError("of the next, not yet begun")) is None
    _, info = env.reset()
    assert "failed_resets" not in info


# ---- what an env says of success, and where it failed


def flashing(**options: Any) -> CurriculumEnv:
    return CurriculumEnv(Flash(**options), level_set(), strategy=DomainRandomisation(level_set()))


@pytest.mark.parametrize("key", ["success", "is_success"])
@pytest.mark.parametrize(
    ("at", "last", "ever"),
    [((4, 5), False, True), ((10,), True, True), ((), False, False), ((1,), False, True)],
)
def test_a10_an_episode_succeeds_at_its_last_step_or_at_any(
    key: str, at: tuple[int, ...], last: bool, ever: bool
) -> None:
    """Kind: success in the middle of an episode, read at its last step only."""
    env = CurriculumEnv(Flash(at, key=key), level_set())
    env.on_broadcast(Directive(PLAN.names, "near", (0.0,) * 3), 1)
    for _ in range(2):  # the episode before is forgotten
        _, info = env.reset()
        task = info["task"]
        for _ in range(10):
            *_, info = env.step(0)
        episode = FinishedEpisode(0, 0, 0, 10, 0.0, "terminated", 1, task, info)
        assert (is_success(episode), ever_success(episode)) == (last, ever)


@pytest.mark.parametrize(
    ("value", "success"),
    [
        (True, True), (0, False), (0.5, True), (math.nan, False), (np.True_, True), (np.float32(0), False),
        (np.array(True), True), (np.array([[0.0]]), False), (np.array([math.nan]), False), (Fraction(1, 2), True),
        (np.array([1, 0]), None), (np.array([]), None), ("no", None), (["x"], None), (object(), None), (1j, None),
        (np.array(["no"]), None), ({"a": 1}, None),
    ],
)  # fmt: skip
def test_what_is_neither_a_bool_nor_a_number_is_no_success_and_said_once(
    value: Any, success: bool | None
) -> None:
    """At an episode's last step or on the way, alone and under a coordinator: nothing raises."""
    env = CurriculumEnv(Says(value), level_set(), strategy=DomainRandomisation(level_set()))
    said: list[str] = []
    with contextlib.nullcontext() if success is not None else pytest.warns(RuntimeWarning) as told:
        for _ in range(2):
            _, info = env.reset()
            task = info["task"]
            *_, info = env.step(0)
            *_, info = env.step(0)
            episode = FinishedEpisode(3, 0, 0, 2, 0.0, "terminated", 1, task, info)
            assert (is_success(episode), ever_success(episode)) == (False, bool(success))
            last = replace(episode, final_info={"success": value})
            assert is_success(last) == bool(success)
            said += filter(None, map(unclear_success, (episode, last)))
    assert len(said) == (0 if success is not None else 4)
    assert all(
        re.match(r"env 3, stage '\w+', level '[^']+': success is .*neither a bool", text) for text in said
    )
    assert told is None or len(told) == 1


class Says(gym.Env[Any, Any]):
    """`length` steps, of which the first says `value`, and the others nothing."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def __init__(self, value: Any, length: int = 2) -> None:
        self.value, self.length = value, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.t = 0
        return 0, {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return 0, 0.0, self.t == self.length, False, {"success": self.value} if self.t == 1 else {}


@pytest.mark.parametrize("inner", [Flash(), Says(True, 9)])
def test_a10_a_wrapper_around_may_end_the_episode_first(inner: gym.Env[Any, Any]) -> None:
    """Also in a step whose own info is empty."""
    inside = CurriculumEnv(inner, level_set(), strategy=DomainRandomisation(level_set()))
    env = gym.wrappers.TimeLimit(inside, 7)
    env.reset()
    for _ in range(7):
        *_, truncated, info = env.step(0)
    assert truncated
    assert info["curriculum_success_ever"] is True


def test_a10_an_episode_of_another_stamp_does_not_tell_and_says_so() -> None:
    made = FinishedEpisode(3, 0, 0, 1, 0.0, "terminated", 1, {"stage": "near", "level": "l"}, {})
    with pytest.raises(
        StampError, match=r"env 3: whether it ever succeeded is not known .* wrap the env in Curr"
    ):
        ever_success(made)


@pytest.mark.parametrize("op", ["reset", "step"])
def test_an_info_that_is_none_is_named(op: str) -> None:
    env = flashing(**{op: None})
    message = rf"{op} of <Flash instance>: the info: expected a dict, got None"
    if op == "reset":
        with pytest.raises(TypeError, match=message):
            env.reset()
    else:
        env.reset()
        for _ in range(9):
            env.step(0)  # the runtime checks what it gets itself
        with pytest.raises(TypeError, match=message):
            env.step(0)


def test_b8_an_error_in_step_names_stage_and_level() -> None:
    env = flashing(raises=2)
    _, info = env.reset()
    env.step(0)
    with pytest.raises(RuntimeError) as caught:
        env.step(0)
    assert caught.value.__notes__ == [
        f"while playing level {info['task']['level']!r} of stage {info['task']['stage']!r} (default)"
    ]
