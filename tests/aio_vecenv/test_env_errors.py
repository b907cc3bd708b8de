"""Envs that raise, or return what they should not: told by name, their neighbours untouched."""

from __future__ import annotations

import re
import threading
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aio_vecenv import (
    AsyncVecEnv,
    BadActions,
    EnvError,
    Episode,
    EpisodeStarted,
    RestartBudget,
    SpaceMismatch,
    WorkerLost,
)
from aio_vecenv.testing import (
    FaultyEnv,
    ScriptedBackend,
    StampEnv,
    check_aligned,
    check_episodes,
    stamp_envs,
)
from aio_vecenv.testing.faults import Unloadable

pytestmark = pytest.mark.alternate_loops

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


def faulty(fault: str, **kwargs: Any) -> list[Any]:
    """Four envs of which env 1 has the fault."""
    factories: list[Any] = stamp_envs(4, 9)
    factories[1] = partial(FaultyEnv, 1, fault, length=9, **kwargs)
    return factories


@pytest.mark.parametrize(
    ("fault", "type_name", "text"),
    [
        ("raise", "ValueError", "the env is broken"),
        ("raise two arguments", "TwoArguments", "one and two"),
        ("raise unpicklable", "HoldsALock", "an exception with a lock"),
        ("raise without text", "BadText", "__str__"),
        ("raise group", "ExceptionGroup", "several"),
        ("raise 10 MB", "ValueError", "xxx"),
        ("raise unicode", "UnicodeDecodeError", "can't decode"),
        ("unpicklable info", "TypeError", 'infos["a"]["b"]'),
    ],
)
@both
@pytest.mark.asyncio
async def test_f01_f04_f31_f32_v09_v12_an_env_raises(
    backend: Backend, fault: str, type_name: str, text: str
) -> None:
    async with AsyncVecEnv(faulty(fault), num_workers=2, backend=backend) as envs:
        stream = envs.events()
        await envs.reset(seed=5)
        pids = [worker.pid for worker in envs.statistics().workers]
        for _ in range(2):
            await envs.step(zeros(4))
        with pytest.raises(EnvError) as caught:
            await envs.step(zeros(4))
        error = caught.value
        assert (error.env_id, error.worker, error.type_name) == (1, 0, type_name)
        assert text in str(error)
        assert len(str(error)) < 70_000
        assert "episode 0, after 2 steps, seed 6" in str(error)
        notes = "".join(error.__notes__)
        if fault.startswith("raise"):
            assert f"{Path('aio_vecenv/testing/faults.py')}" in notes  # file and line of the env
        if fault in ("raise", "raise group"):
            assert type(error.__cause__).__name__ == type_name
        batch = await envs.recv()  # the healthy rows of that same step
        assert batch.env_ids.tolist() == [0, 2, 3]
        check_aligned(batch)
        assert batch.obs[:, 3].tolist() == [3, 3, 3]
        with pytest.raises(BadActions, match="env 1 raised"):
            envs.send(zeros(4))
        obs, _ = await envs.reset(env_ids=[1])
        assert obs[0, 3] == 0
        batch = await envs.step(zeros(4))
        check_aligned(batch)
        assert batch.obs[:, 3].tolist() == [4, 1, 4, 4]
        assert [worker.pid for worker in envs.statistics().workers] == pids
        events = [await anext(stream) for _ in range(stream.behind)]
        check_episodes(events, finished=False)
        assert [e.outcome for e in events if isinstance(e, Episode)] == ["aborted"]


@both
@pytest.mark.asyncio
async def test_an_info_that_cannot_be_unpickled_is_an_error_not_a_hang(backend: Backend) -> None:
    async with AsyncVecEnv(faulty("unloadable info"), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=5)
        await envs.step(zeros(4))
        await envs.step(zeros(4))
        with pytest.raises((EnvError, ExceptionGroup), match=r"unpickled|2 envs raised"):
            await envs.step(zeros(4))
        assert (await envs.recv()).env_ids.tolist() == [2, 3]  # of the other worker
        await envs.reset()
        check_aligned(await envs.step(zeros(4)))


@both
@pytest.mark.asyncio
async def test_arguments_and_updates_that_cannot_be_unpickled(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=5)
        with pytest.raises(ExceptionGroup) as group:
            await envs.call("echo", Unloadable())
        assert "does not want to be unpickled" in str(group.value.exceptions[0])
        with pytest.raises(ExceptionGroup):
            await envs.reset(options={"a": Unloadable()})
        await envs.reset()
        await envs.broadcast(Unloadable(), apply="now")
        with pytest.raises(ExceptionGroup):
            await envs.step(zeros(2))
        await envs.broadcast("heals", apply="now")
        await envs.reset()
        check_aligned(await envs.step(zeros(2)))
        assert await envs.get_attr("payload") == ("heals", "heals")


@both
@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_several_envs_raise_at_once(backend: Backend) -> None:
    factories = [partial(FaultyEnv, i, "raise", at=0) for i in range(4)]
    async with AsyncVecEnv(factories, num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        with pytest.raises(ExceptionGroup) as caught:
            await envs.step(zeros(4))
        assert [getattr(error, "env_id", None) for error in caught.value.exceptions] == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="nothing owed"):
            await envs.recv()
        await envs.reset()
        check_aligned(await envs.step(zeros(4)))


@both
@pytest.mark.asyncio
async def test_many_envs_with_huge_messages_fit_one_reply(backend: Backend) -> None:
    factories = [partial(FaultyEnv, i, "raise 100 kB", at=0) for i in range(150)]
    async with AsyncVecEnv(factories, num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        with pytest.raises(ExceptionGroup) as caught:
            await envs.step(zeros(150))
        assert len(caught.value.exceptions) == 150
        await envs.reset()
        check_aligned(await envs.step(zeros(150)))


@both
@pytest.mark.asyncio
async def test_f02_an_env_raises_in_reset(backend: Backend) -> None:
    async with AsyncVecEnv(faulty("raise", op="reset", at=1), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=5)
        with pytest.raises(EnvError) as caught:
            await envs.reset(seed=5)
        assert (caught.value.env_id, caught.value.op) == (1, "reset")
        batch = await envs.recv()  # the healthy rows stay owed
        assert batch.env_ids.tolist() == [0, 2, 3]
        await envs.reset(env_ids=[1])
        check_aligned(await envs.step(zeros(4)))


@pytest.mark.parametrize("mode", list(AutoresetMode))
@both
@pytest.mark.asyncio
async def test_an_autoreset_raises(backend: Backend, mode: AutoresetMode) -> None:
    factories: list[Any] = stamp_envs(2, 2)
    factories[0] = partial(FaultyEnv, 0, "raise", op="reset", at=1, length=2)
    async with AsyncVecEnv(factories, num_workers=1, backend=backend, autoreset=mode) as envs:
        stream = envs.events()
        await envs.reset(seed=5)
        await envs.step(zeros(2))
        if mode is AutoresetMode.SAME_STEP:
            with pytest.raises(EnvError):
                await envs.step(zeros(2))
            assert (await envs.recv()).env_ids.tolist() == [1]
        else:
            await envs.step(zeros(2))
            with pytest.raises(EnvError):
                await (envs.reset() if mode is AutoresetMode.DISABLED else envs.step(zeros(2)))
            assert (await envs.recv()).env_ids.tolist() == [1]
        await envs.reset(env_ids=[0])
        await envs.step(zeros(2))
        events = [await anext(stream) for _ in range(stream.behind)]
        check_episodes(events, finished=False)
        ends = [e for e in events if isinstance(e, Episode) and e.env_id == 0]
        assert [(e.outcome, e.length, e.episode_return) for e in ends] == [("terminated", 2, 3.0)]


@both
@pytest.mark.asyncio
async def test_f01_on_env_error_reset(backend: Backend) -> None:
    async with AsyncVecEnv(faulty("raise"), num_workers=2, backend=backend, on_env_error="reset") as envs:
        stream = envs.events()
        await envs.reset(seed=5)
        for _ in range(2):
            await envs.step(zeros(4))
        batch = await envs.step(zeros(4))
        assert batch.first.tolist() == [False, True, False, False]
        assert batch.truncations.tolist() == [False, True, False, False]
        assert batch.terminations.tolist() == [False] * 4
        assert batch.rewards.tolist() == [3.0, 0.0, 3.0, 3.0]
        assert batch.obs[:, 3].tolist() == [3, 0, 3, 3]
        assert batch.infos["env_error"][1] == "ValueError: the env is broken"
        batch = await envs.step(zeros(4))  # no further autoreset follows
        assert batch.obs[:, 3].tolist() == [4, 1, 4, 4]
        assert not batch.first.any()
        assert envs.statistics().restarts == 0
        events = [await anext(stream) for _ in range(stream.behind)]
        check_episodes(events, finished=False)
        assert [(e.env_id, e.outcome) for e in events if isinstance(e, Episode)] == [(1, "aborted")]


@both
@pytest.mark.asyncio
async def test_on_env_error_reset_after_an_update_that_was_refused(backend: Backend) -> None:
    async with AsyncVecEnv(
        [partial(Refuses, 0), partial(StampEnv, 1)], num_workers=1, backend=backend, on_env_error="reset"
    ) as envs:
        await envs.reset(seed=5)
        envs.broadcast("refuse", apply="now")
        batch = await envs.step(zeros(2))
        assert batch.first.tolist() == [True, False]
        assert "refused" in batch.infos["env_error"][0]
        assert envs.statistics().restarts == 0
        check_aligned(await envs.step(zeros(2)))


class Refuses(StampEnv):
    """Does not like some updates."""

    def on_broadcast(self, payload: Any, version: int) -> None:
        if payload == "refuse":
            raise ValueError("refused")
        super().on_broadcast(payload, version)


@both
@pytest.mark.asyncio
async def test_f36_a_broadcast_handler_raises(backend: Backend) -> None:
    factories: list[Any] = [*stamp_envs(3, 9), partial(Refuses, 3, length=9)]
    async with AsyncVecEnv(factories, num_workers=2, backend=backend) as envs:
        await envs.reset(seed=5)
        receipt = await envs.broadcast("refuse", apply="now")
        assert receipt.taken == (0, 1)  # the worker has taken it; its env says what it thinks of it:
        with pytest.raises(EnvError, match="refused") as caught:
            await envs.step(zeros(4))
        assert (caught.value.env_id, caught.value.op) == (3, "on_broadcast")
        assert (await envs.recv()).infos["applied_version"].tolist() == [1, 1, 1]
        await envs.broadcast("welcome", apply="now")
        await envs.reset(env_ids=[3])
        assert (await envs.step(zeros(4))).infos["applied_version"].tolist() == [2, 2, 2, 2]


@both
@pytest.mark.asyncio
async def test_f02_an_env_that_fails_every_reset_meets_the_budget(backend: Backend) -> None:
    factories: list[Any] = stamp_envs(2, 1)
    factories[1] = partial(AlwaysFails, 1, length=1)
    async with AsyncVecEnv(
        factories, num_workers=2, backend=backend, on_env_error="reset", restart=RestartBudget(3, per_s=60)
    ) as envs:
        await envs.reset(seed=5)
        await envs.step(zeros(2))
        with pytest.raises(WorkerLost) as caught:
            await envs.step(zeros(2))
        assert len(caught.value.crashes) == 4  # restarts + 1
        assert all("no more resets" in crash for crash in caught.value.crashes)
        with pytest.raises(WorkerLost) as again:
            envs.send(zeros(2))
        assert again.value is caught.value


class AlwaysFails(StampEnv):
    """Resets once."""

    def reset(self, **kwargs: Any) -> Any:
        if self.episode >= 0:
            raise RuntimeError("no more resets")
        return super().reset(**kwargs)


# -- what is returned --------------------------------------------------------------------------------------------------


class Returns(StampEnv):
    """Returns whatever it is given, at its second step."""

    def __init__(self, what: Any, obs_space: Any = None) -> None:
        super().__init__(0, 99)
        self.what = what
        if obs_space is not None:
            self.observation_space = obs_space

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        super().step(action)
        good: Any = (self.observation_space.sample(), 0.0, False, False, {})
        return self.what(good) if self.t == 2 else good


box = spaces.Box(-1, 1, (3,), np.float32)
pair = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 255, (2,), np.uint8)})


def obs(value: Any) -> Any:
    return lambda good: (value, *good[1:])


def part(index: int, value: Any) -> Any:
    return lambda good: (*good[:index], value, *good[index + 1 :])


F11 = {
    "shape (1,)": (box, obs(np.zeros(1, np.float32))),
    "scalar": (box, obs(np.float32(0))),
    "shape (3, 1)": (box, obs(np.zeros((3, 1), np.float32))),
    "float64": (box, obs(np.array([1.9e300, 0, 0]))),
    "None": (box, obs(None)),
    "object dtype": (box, obs(np.array([None, 1, 2]))),
    "text": (box, obs("abc")),
    "dict for box": (box, obs({"a": 1})),
    "missing key": (pair, obs({"a": 1})),
    "list for dict": (pair, obs([1, 2])),
    "negative into uint8": (pair, obs({"a": 1, "b": np.array([-1, 0])})),
    "300 into uint8": (pair, obs({"a": 1, "b": np.array([300, 0])})),
    "float for discrete": (pair, obs({"a": 1.5, "b": np.zeros(2, np.uint8)})),
    "reward None": (box, part(1, None)),
    "reward NaN": (box, part(1, float("nan"))),
    "reward infinite": (box, part(1, float("-inf"))),
    "reward NaN as float64": (box, part(1, np.float64("nan"))),
    "reward infinite as float32": (box, part(1, np.float32("-inf"))),
    "reward beyond floats": (box, part(1, 10**400)),
    "reward array": (box, part(1, np.zeros(2))),
    "reward text": (box, part(1, "1.0")),
    "terminated None": (box, part(2, None)),
    "truncated text": (box, part(3, "no")),
    "terminated 2": (box, part(2, 2)),
    "info None": (box, part(4, None)),
    "four results": (box, lambda good: good[:4]),
}


@pytest.mark.parametrize("case", F11)
@pytest.mark.asyncio
async def test_f11_what_does_not_fit_is_refused_by_name(case: str) -> None:
    space, what = F11[case]
    async with AsyncVecEnv([partial(Returns, what, space)], backend="inline") as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(1))
        with pytest.raises((SpaceMismatch, EnvError)) as caught:
            await envs.step(zeros(1))
        assert getattr(caught.value, "env_id", None) == 0
        if isinstance(caught.value, SpaceMismatch):
            assert caught.value.expected
            assert caught.value.got
        assert case != "reward beyond floats" or "the reward: expected a finite number" in str(caught.value)
        await envs.reset()
        await envs.step(zeros(1))


LOSSLESS = {
    "list of floats": (box, obs([0.5, 0.25, 0.0])),
    "float16": (box, obs(np.zeros(3, np.float16))),
    "not contiguous": (box, obs(np.zeros((3, 2), np.float32)[:, 0])),
    "read-only": (box, obs(np.broadcast_to(np.float32(1), (3,)))),
    "int64 that fits uint8": (pair, obs({"a": 2, "b": np.array([255, 0])})),
    "reward int": (box, part(1, 3)),
    "reward bool": (box, part(1, True)),
    "reward large": (box, part(1, -(10**300))),
    "reward float64": (box, part(1, np.float64(1.7e308))),
    "reward float32": (box, part(1, np.float32(0.1))),
    "reward int64": (box, part(1, np.int64(-7))),
    "reward 0-d": (box, part(1, np.array(2.0))),
    "done numpy bool": (box, part(2, np.bool_(False))),
    "NaN without check": (box, obs(np.full(3, np.nan, np.float32))),
}


@pytest.mark.parametrize("case", LOSSLESS)
@pytest.mark.asyncio
async def test_f11_documented_lossless_casts(case: str) -> None:
    space, what = LOSSLESS[case]
    async with AsyncVecEnv([partial(Returns, what, space)], backend="inline") as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(1))
        batch = await envs.step(zeros(1))
        sent = what((space.sample(), 0.0, False, False, {}))
        got = batch.obs
        if isinstance(space, spaces.Dict):
            if "b" in case or "uint8" in case:
                assert got["b"][0].tolist() == [255, 0]
        elif case in ("list of floats", "float16", "not contiguous", "read-only", "NaN without check"):
            assert np.array_equal(got[0], np.asarray(sent[0], np.float32), equal_nan=True)
        if case.startswith("reward"):
            assert batch.rewards[0] == float(sent[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@both
@pytest.mark.asyncio
async def test_check_finite(backend: Backend, value: float) -> None:
    factory = partial(Returns, partial(put, value), box)
    async with AsyncVecEnv([factory], backend=backend, check="finite") as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(1))
        with pytest.raises(SpaceMismatch, match="finite"):
            await envs.step(zeros(1))
        await envs.reset()
        await envs.step(zeros(1))


@both
@pytest.mark.asyncio
async def test_check_finite_fails_the_env_that_gave_it_and_no_other(backend: Backend) -> None:
    """Also where all rows are looked at together, only some are stepped, or one is to be reset."""
    factories = [partial(Returns, partial(put, np.nan), box), *[partial(Returns, _good, box)] * 3]
    async with AsyncVecEnv(factories, num_workers=1, backend=backend, check="finite") as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(4))
        with pytest.raises(SpaceMismatch, match=r"env 0 .*finite") as caught:
            await envs.step(zeros(4))
        assert caught.value.env_id == 0
        batch = await envs.recv()
        assert batch.env_ids.tolist() == [1, 2, 3]
        assert np.isfinite(batch.obs).all()
        assert np.isfinite(envs.observations()).all()
        for _ in range(3):
            envs.send(zeros(2), [1, 3])
            assert (await envs.recv()).env_ids.tolist() == [1, 3]
        await envs.reset(env_ids=[0])
        assert np.isfinite((await envs.step(zeros(4))).obs).all()
    async with AsyncVecEnv(
        factories, num_workers=1, backend=backend, check="finite", on_env_error="reset"
    ) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(4))
        batch = await envs.step(zeros(4))
        assert batch.first.tolist() == [True, False, False, False]
        assert np.isfinite(batch.obs).all()


def _good(good: Any) -> Any:
    return good


def put(value: float, good: Any) -> Any:
    return (np.array([0, value, 0], np.float32), *good[1:])


# -- factories ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_f03_a_factory_raises(backend: Backend) -> None:
    with pytest.raises(EnvError) as caught:
        await AsyncVecEnv.open(faulty("raise", op="make"), num_workers=4, backend=backend)
    assert (caught.value.env_id, caught.value.op) == (1, "make")
    assert "the env is broken" in str(caught.value)
    assert "testing/faults.py" in "".join(caught.value.__notes__)


@both
@pytest.mark.asyncio
async def test_f32_factories_that_cannot_be_pickled_or_make_no_env(backend: Backend) -> None:
    lock = threading.Lock()
    if backend == "process":
        with pytest.raises(TypeError, match="cannot be pickled"):
            await AsyncVecEnv.open([lambda: (lock, StampEnv(0))[1]], backend=backend)
    with pytest.raises(EnvError, match=r"not a gymnasium\.Env"):
        await AsyncVecEnv.open([lambda: 3], backend=backend)


@both
@pytest.mark.asyncio
async def test_an_env_raises_in_close(backend: Backend) -> None:
    envs = await AsyncVecEnv.open(faulty("raise", op="close"), num_workers=2, backend=backend)
    with pytest.raises(EnvError) as caught:
        await envs.aclose()
    assert (caught.value.env_id, caught.value.op) == (1, "close")
    await envs.aclose()  # closed all the same
    with pytest.raises(KeyError) as other:  # what the body raised comes first
        async with AsyncVecEnv(faulty("raise", op="close"), num_workers=2, backend=backend):
            raise KeyError("body")
    assert "the env is broken" in "".join(other.value.__notes__)


class _BadLevel(StampEnv):
    """Its second reset raises, once."""

    def reset(self, **options: Any) -> Any:
        result = super().reset(**options)
        if self.env_index == 0 and self.episode == 1:
            raise ValueError("bad level")
        return result


@pytest.mark.asyncio
async def test_the_watermark_waits_for_an_episode_whose_reset_is_tried_again() -> None:
    backend = ScriptedBackend(automatic=True)
    factories = [partial(_BadLevel, 0, 2), partial(_BadLevel, 1, 1)]
    async with AsyncVecEnv(
        factories, num_workers=2, backend=backend, autoreset=AutoresetMode.SAME_STEP, on_env_error="reset"
    ) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        await envs.step(zeros(2))
        backend.automatic = False
        envs.send(zeros(2))
        backend.deliver(0)  # ended, and its reset raised: a reset is sent again
        backend.deliver(1)
        seen = (await envs.recv(min_envs=1)).watermark
        for _ in range(3):
            envs.send(zeros(1), [1])
            backend.deliver(1)
            seen = max(seen, (await envs.recv(min_envs=1)).watermark)
        before = stream.behind
        backend.deliver(0)
        await envs.recv()
        events = [await anext(stream) for _ in range(stream.behind)][before:]
        begun = [event for event in events if isinstance(event, EpisodeStarted) and event.env_id == 0]
        assert begun
        assert begun[0].order >= seen
        backend.automatic = True


@both
@pytest.mark.asyncio
async def test_one_error_of_a_vector_env_counts_once(backend: Backend) -> None:
    """However many rows it takes with it."""

    def make() -> SyncVectorEnv:
        return SyncVectorEnv(
            [partial(FaultyEnv, i, "raise", at=1 if i == 0 else 10**9, length=50) for i in range(6)]
        )

    async with AsyncVecEnv([make], num_workers=1, on_env_error="reset", backend=backend) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(6))
        batch = await envs.step(zeros(6))
        assert batch.first.all()
        assert set(batch.infos["env_error"]) == {"ValueError: the env is broken"}
        assert envs.statistics().restarts == 0


@both
@pytest.mark.asyncio
async def test_one_error_in_the_first_reset_of_a_vector_env_counts_once(backend: Backend) -> None:
    def make() -> SyncVectorEnv:
        return SyncVectorEnv(
            [partial(FaultyEnv, i, "raise", op="reset", at=0 if i == 1 else 10**9) for i in range(6)]
        )

    async with AsyncVecEnv(
        [make], num_workers=1, on_env_error="reset", backend=backend, restart=RestartBudget(1, per_s=60)
    ) as envs:
        obs, _ = await envs.reset(seed=1)
        assert obs[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert await envs.apply(lambda env: [one.unwrapped.seeds[-1] for one in env.envs]) == (
            [1, 2, 3, 4, 5, 6],
        )
        check_aligned(await envs.step(zeros(6)))


@pytest.mark.parametrize("policy", ["raise", "reset"])
@both
@pytest.mark.asyncio
async def test_a_row_of_a_vector_env_that_fails_to_reset_leaves_the_others(
    backend: Backend, policy: Literal["raise", "reset"]
) -> None:
    def make() -> SyncVectorEnv:
        return SyncVectorEnv(
            [partial(FaultyEnv, i, "raise", op="reset", at=1 if i == 1 else 10**9) for i in range(3)]
        )

    async with AsyncVecEnv([make], num_workers=1, on_env_error=policy, backend=backend) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(3))
        if policy == "raise":
            with pytest.raises(EnvError, match=r"env 1 .*in reset"):
                await envs.reset(env_ids=[1])
        obs, _ = await envs.reset(env_ids=[1])
        assert obs[:, 3].tolist() == [0]
        batch = await envs.step(zeros(3))
        assert not batch.first.any()
        check_aligned(batch)
        assert batch.obs[:, 3].tolist() == [2, 1, 2]


class OddVec(gym.vector.VectorEnv[Any, Any, Any]):
    """Two rows that end at each step; what a step gives is as it should be, but for `odd`."""

    def __init__(self, odd: dict[str, Any]) -> None:
        self.num_envs = 2
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = self.observation_space = spaces.Box(-9, 9, (2,), np.float32)
        self.single_action_space = self.action_space = spaces.Discrete(2)
        self.odd = odd

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions: Any) -> Any:
        infos = {"final_obs": np.ones((2, 2), np.float32), "a": {"b": np.arange(2)}, "c": [None, "x"]}
        given = {
            "obs": np.zeros((2, 2), np.float32),
            "rewards": np.array([1, 2]),
            "terminations": [1, 1],
            "truncations": np.zeros(2, np.bool_),
        }
        return *(self.odd.get(name, value) for name, value in given.items()), {
            **infos,
            **self.odd.get("infos", {}),
        }


ODD: list[tuple[dict[str, Any], str]] = [
    ({"rewards": np.float64(1.0)}, r"the rewards: expected one per row, \(2,\), got float64 \(\)"),
    ({"rewards": np.array([1, 1j])}, "the rewards: expected finite numbers"),
    ({"rewards": np.array([1, np.nan])}, "the rewards: expected finite numbers"),
    ({"terminations": True}, "the terminations: expected one per row"),
    ({"truncations": np.array([0, 2])}, "the truncations: expected bools"),
    ({"infos": {"final_obs": np.ones((2, 1), np.float32)}}, "final_obs: expected float32"),
    ({"infos": {"final_obs": np.full((2, 2), 1e300)}}, "final_obs: expected float32"),
    ({"infos": {"final_obs": None}}, r'infos\["final_obs"\]: expected the last observation'),
    ({"infos": {"fps": 60}}, r'infos\["fps"\]: expected an array of 2 rows, got int'),
    ({"infos": {"name": "ab"}}, r'infos\["name"\]: expected an array of 2 rows, got str'),
    (
        {"infos": {"a": {"b": np.arange(3)}}},
        r'infos\["a"\]\["b"\]: expected an array of 2 rows, got ndarray of 3',
    ),
]


@both
@pytest.mark.asyncio
async def test_what_a_vector_env_gives_is_checked(backend: Backend) -> None:
    make = partial(OddVec, {})
    async with AsyncVecEnv([make], backend=backend, autoreset=AutoresetMode.SAME_STEP) as envs:
        for odd, what in ODD:
            await envs.set_attr("odd", odd)
            await envs.reset()
            with pytest.raises(ExceptionGroup) as caught:
                await envs.step(zeros(2))
            for error in caught.value.exceptions:
                assert isinstance(error, SpaceMismatch)
                assert re.search(what, str(error))
            await envs.set_attr("odd", {})
            await envs.reset()
            batch = await envs.step(zeros(2))
            assert batch.rewards.tolist() == [1, 2]
            assert batch.terminations.all()
            assert (batch.final_obs == 1).all()
            assert batch.infos["a"]["b"].tolist() == [0, 1]
            assert batch.infos["c"].tolist() == [None, "x"]


@both
@pytest.mark.asyncio
async def test_a_partial_reset_of_a_vector_env_leaves_the_other_rows_to_their_owner(backend: Backend) -> None:
    async with AsyncVecEnv(
        [partial(SyncVectorEnv, stamp_envs(3, 9))], num_workers=1, backend=backend, copy=False
    ) as envs:
        obs, _ = await envs.reset(seed=1)
        obs[:] = 77
        await envs.reset(env_ids=[1])
        assert obs[:, 3].tolist() == [77, 0, 77]


class _Wordy(gym.Env[Any, Any]):
    """Begins with much to say; its action 1 fails with much to say; 2 gives a nest that no pickle can hold."""

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return 0, {"map": bytes(200_000)}

    def step(self, action: Any) -> Any:
        if action == 1:
            raise RuntimeError("é" * 60_000)
        return 0, 1.0, False, False, {"deep": self.nest()} if action == 2 else {}

    def nest(self) -> list[Any]:
        deep: list[Any] = []
        for _ in range(5_000):
            deep = [deep]
        return deep


@both
@pytest.mark.asyncio
async def test_f31_long_reports_and_large_infos_of_many_envs_at_once(backend: Backend) -> None:
    async with AsyncVecEnv(_Wordy, 64, num_workers=1, backend=backend, on_env_error="reset") as envs:
        await envs.reset()
        batch = await envs.step(np.ones(64, np.int64))
        assert all(why.startswith("RuntimeError: éé") for why in batch.infos["env_error"])
        assert envs.statistics().restarts == 0


@both
@pytest.mark.asyncio
async def test_f32_a_nest_too_deep_to_be_pickled(backend: Backend) -> None:
    async with AsyncVecEnv(_Wordy, 2, num_workers=1, backend=backend) as envs:
        await envs.reset()
        with pytest.raises(EnvError, match=r'env 0 .*infos\["deep"\]\[0\].* cannot be pickled \(list\)'):
            await envs.step(np.array([2, 0]))
        assert (await envs.recv()).env_ids.tolist() == [1]
        with pytest.raises(EnvError, match=r"the result\[0\].* cannot be pickled"):
            await envs.call("nest", env_ids=[1])
        await envs.reset()
        await envs.step(np.zeros(2, np.int64))
        assert envs.statistics().restarts == 0


class _Graph(gym.Env[Any, Any]):
    """Shows its own buffer, and uses it again."""

    observation_space = spaces.Graph(spaces.Box(-9, 99, (1,)), None)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.nodes = np.zeros((2, 1), np.float32)
        self.t = 0

    def _look(self) -> Any:
        self.nodes[:] = self.t
        return spaces.GraphInstance(self.nodes, None, None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = 0
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self._look(), 1.0, self.t >= 2, False, {}


@both
@pytest.mark.asyncio
async def test_v06_the_last_graph_of_an_episode_is_not_that_of_the_next(backend: Backend) -> None:
    async with AsyncVecEnv([_Graph], autoreset=AutoresetMode.SAME_STEP, backend=backend) as envs:
        await envs.reset()
        await envs.step(zeros(1))
        batch = await envs.step(zeros(1))
        assert batch.final_obs[0].nodes.ravel().tolist() == [2, 2]
        assert batch.obs[0].nodes.ravel().tolist() == [0, 0]


class _Interrupted(StampEnv):
    def step(self, action: Any) -> Any:
        result = super().step(action)
        if self.t == 2 and self.episode == 0:
            raise KeyboardInterrupt
        return result


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_f44_after_an_interrupt_inside_an_env_of_this_thread_nothing_hangs() -> None:
    factories = [partial(_Interrupted, i, 50) for i in range(2)]
    async with AsyncVecEnv(factories, backend="inline", num_workers=1) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(2))
        envs.send(zeros(2))
        with pytest.raises(KeyboardInterrupt):
            envs._supervisor.run_pending()
        with pytest.raises(ExceptionGroup, match="a step or reset"):
            await envs.recv()
        obs, _ = await envs.reset(seed=2)
        assert obs[:, 3].tolist() == [0, 0]
        check_aligned(await envs.step(zeros(2)))


@both
@pytest.mark.asyncio
async def test_an_error_in_a_reset_names_the_seed_that_brought_it(backend: Backend) -> None:
    factories = [partial(FaultyEnv, 0, "raise", op="reset", at=1, length=9)]
    async with AsyncVecEnv(factories, backend=backend) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(1))
        with pytest.raises(EnvError, match=r"env 0 \(worker 0, with seed 99\) raised ValueError in reset"):
            await envs.reset(seed=99)
