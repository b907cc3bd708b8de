"""State that lives in envs: read through any wrappers, merged, shared out, put back, and given to replacements."""
# edge: real worker processes, a real kill

from __future__ import annotations

import os
import re
import signal
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.utils import RunningMeanStd

import aio_vecenv as av
from aio_vecenv.core.env_state import merge, read, restore
from curriculum import CurriculumEnv, DomainRandomisation, Level, LevelSet

pytestmark = [pytest.mark.asyncio, pytest.mark.alternate_loops]


class Far(gym.Env[Any, Any]):
    """Observations and rewards far from 0: those of env i are around 1000 (i + 1)."""

    def __init__(self, index: int) -> None:
        self.observation_space = spaces.Box(-1e6, 1e6, (2,), np.float64)
        self.action_space = spaces.Discrete(2)
        self.index = index
        self.seen: list[Any] = []

    def _look(self) -> Any:
        obs = self.np_random.normal(1000.0 * (self.index + 1), 3.0, 2)
        self.seen.append(obs)
        return obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: Any) -> Any:
        return self._look(), 5.0, False, False, {}


class Difficulty(gym.Wrapper[Any, Any, Any, Any]):
    """Somebody's own wrapper: counts its steps, and keeps the hardest level that it met."""

    def __init__(self, env: Any, hardest: int) -> None:
        super().__init__(env)
        self.steps, self.hardest = 0.0, hardest

    def step(self, action: Any) -> Any:
        self.steps += 1
        return super().step(action)

    def get_state(self) -> Any:
        return {"steps": self.steps, "hardest": self.hardest}

    def set_state(self, state: Any) -> None:
        self.steps, self.hardest = state["steps"], state["hardest"]

    @staticmethod
    def merge_states(states: list[Any]) -> Any:
        return {"steps": sum(s["steps"] for s in states), "hardest": max(s["hardest"] for s in states)}

    @staticmethod
    def split_state(state: Any, parts: int) -> Any:
        return {**state, "steps": state["steps"] / parts}


def make(index: int) -> Any:
    """Two normalisers, one of them inside and outside of other wrappers."""
    env: Any = gym.wrappers.NormalizeObservation(gym.wrappers.TimeLimit(Far(index), 7))
    env = gym.wrappers.NormalizeReward(gym.wrappers.RecordEpisodeStatistics(env))
    levels = LevelSet([Level("only", "0", data={})])
    env = CurriculumEnv(Difficulty(env, index), levels, strategy=DomainRandomisation(levels))
    return gym.wrappers.OrderEnforcing(env)


FACTORIES = [partial(make, index) for index in range(4)]
NAMES = {"NormalizeObservation", "NormalizeReward", "Difficulty"}


async def _play(envs: av.AsyncVecEnv, steps: int = 20) -> None:
    for _ in range(steps):
        await envs.step(np.zeros(envs.num_envs, np.int64))


def _rms(state: Any, name: str = "NormalizeObservation", attribute: str = "obs_rms") -> Any:
    return state[name]["running statistics"][attribute]


@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_statistics_of_all_envs_are_merged(backend: Any) -> None:
    """Mean and variance are those of all samples of all envs, as numpy has them."""
    async with av.AsyncVecEnv(FACTORIES, num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        await _play(envs)
        state = await envs.get_state()
        samples = np.concatenate(await envs.get_attr("seen"))
        assert state.keys() == NAMES
        assert state["Difficulty"]["hardest"] == 3
        rms = _rms(state)
        assert rms["count"] == pytest.approx(len(samples), abs=1e-3)
        # its count begins at 1e-4 samples of 0
        assert rms["mean"] == pytest.approx(samples.mean(0), rel=1e-5)
        assert rms["var"] == pytest.approx(samples.var(0), rel=1e-4)


async def test_what_was_merged_is_shared_out_and_counted_once() -> None:
    """Put back, merged again, and read again: the same; with more data, the statistics of all of it."""
    async with av.AsyncVecEnv(FACTORIES, num_workers=2, backend="inline") as envs:
        await envs.reset(seed=1)
        await _play(envs)
        state = await envs.get_state()
        first = np.concatenate(await envs.get_attr("seen"))
    async with av.AsyncVecEnv(FACTORIES[:2] * 3, num_workers=3, backend="inline") as envs:
        await envs.set_state(state)
        again = await envs.get_state()
        assert again["Difficulty"] == pytest.approx(state["Difficulty"])
        for part in ("mean", "var", "count"):
            assert _rms(again)[part] == pytest.approx(_rms(state)[part])
        await envs.reset(seed=2)
        await _play(envs)
        samples = np.concatenate([first, *await envs.get_attr("seen")])
        rms = _rms(await envs.get_state())
        assert rms["count"] == pytest.approx(len(samples), abs=1e-3)
        assert rms["mean"] == pytest.approx(samples.mean(0), rel=1e-5)
        assert rms["var"] == pytest.approx(samples.var(0), rel=1e-4)


async def test_a_frozen_state_stays_what_it_is() -> None:
    """Judging changes nothing: observations are normalised with what was learned before."""
    async with av.AsyncVecEnv(FACTORIES, num_workers=2) as envs:
        await envs.reset(seed=1)
        await _play(envs)
        state = await envs.get_state()
        await envs.set_state(state, frozen=True)
        obs, _ = await envs.reset(seed=5)
        await _play(envs)
        after = await envs.get_state()
        assert _rms(after)["mean"] == pytest.approx(_rms(state)["mean"])
        assert _rms(after)["count"] == pytest.approx(_rms(state)["count"])
        rms = _rms(state)
        seen = np.stack([one[21] for one in await envs.get_attr("seen")])
        expected = (seen - rms["mean"]) / np.sqrt(np.array(rms["var"]) + 1e-8)
        assert obs == pytest.approx(expected, rel=1e-3)


async def test_a_replacement_begins_with_the_newest_known_state() -> None:
    """And the row that tells of the loss says how new that is; frozen stays frozen."""
    async with av.AsyncVecEnv(FACTORIES, num_workers=2) as envs:
        await envs.reset(seed=1)
        await _play(envs)
        await envs.set_state(await envs.get_state(), frozen=True)
        worker = envs.statistics().workers[0]
        os.kill(worker.pid, signal.SIGKILL)
        batch = await envs.step(np.zeros(4, np.int64))
        assert re.search(r"; its envs have the state of \d+\.\d s before$", batch.infos["worker_lost"][0])
        assert np.abs(batch.obs).max() < 5  # normalised, from the first observation on
        await _play(envs)
        assert set(await envs.get_attr("update_running_mean")) == {False}


async def test_envs_without_a_state_have_none() -> None:
    """Nothing is asked for, nothing is kept, and nothing is put back where it does not belong."""
    async with av.AsyncVecEnv("CartPole-v1", 2, num_workers=1, backend="inline") as envs:
        assert await envs.get_state() == {}
        await envs.set_state({})
        with pytest.raises(LookupError, match="state of NormalizeReward, but no env has such a wrapper"):
            await envs.set_state({"NormalizeReward": {}})


async def test_a_state_of_another_shape_is_refused() -> None:
    async with av.AsyncVecEnv(FACTORIES[:1], backend="inline") as envs:
        state = await envs.get_state()
        _rms(state).update(mean=[1.0] * 3, var=[1.0] * 3)
        with pytest.raises(ValueError, match=r"env 0 .*its obs_rms has shape \(2,\), the state \(3,\)"):
            await envs.set_state(state)


def _vectorised(index: int) -> Any:
    env = SyncVectorEnv([partial(make, index)] * 2)
    return gym.wrappers.vector.NormalizeReward(gym.wrappers.vector.NormalizeObservation(env))


async def test_vector_envs_have_theirs_and_that_of_the_envs_inside() -> None:
    """Gymnasium's vector wrappers, and the wrappers of each env of a SyncVectorEnv."""
    async with av.AsyncVecEnv([partial(_vectorised, index) for index in range(2)], num_workers=2) as envs:
        await envs.reset(seed=1)
        await _play(envs)
        state = await envs.get_state()
        assert state.keys() == {
            "NormalizeObservation",
            "NormalizeReward",
            *(f"envs: {name}" for name in NAMES),
        }
        inner, outer = _rms(state, "envs: NormalizeObservation"), _rms(state)
        assert inner["count"] == pytest.approx(4 * 21, abs=1e-3)
        assert outer["count"] == pytest.approx(4 * 21, abs=1e-3)
        assert inner["mean"] == pytest.approx([1500, 1500], rel=0.01)
        await envs.set_state(state, frozen=True)
        again = await envs.get_state()
        assert _rms(again, "envs: NormalizeObservation")["count"] == pytest.approx(inner["count"])


async def test_the_same_wrapper_twice_and_other_libraries_statistics() -> None:
    """Counted from the inside, so that a wrapper more outside changes nothing."""

    class Own(gym.ObservationWrapper[Any, Any, Any]):
        def __init__(self, env: Any) -> None:
            super().__init__(env)
            self.statistics: Any = RunningMeanStd(shape=(2,))  # type: ignore[no-untyped-call]

        def observation(self, observation: Any) -> Any:
            self.statistics.update(observation[None])
            return observation

    def twice(more: bool) -> Any:
        env = Own(gym.wrappers.NormalizeObservation(gym.wrappers.NormalizeObservation(Far(0))))
        return gym.wrappers.TimeLimit(env, 5) if more else env

    async with av.AsyncVecEnv(partial(twice, False), backend="inline") as envs:
        await envs.reset(seed=1)
        state = await envs.get_state()
        assert state.keys() == {"NormalizeObservation", "NormalizeObservation 2", "Own"}
        assert _rms(state, "Own", "statistics")["count"] == pytest.approx(1, abs=1e-3)
    env = twice(True)
    av.restore_state(env, state, frozen=True)
    assert env.env.env.env.obs_rms.mean == pytest.approx(_rms(state)["mean"])
    with pytest.raises(LookupError, match="the env has no such wrapper"):
        av.restore_state(Far(0), state)


async def test_an_env_that_holds_on_to_what_is_around_it() -> None:
    """Whoever walks through wrappers comes to an end."""

    def make_loop() -> Any:
        env: Any = gym.wrappers.NormalizeObservation(Far(0))
        env.unwrapped.env = env
        return env

    async with av.AsyncVecEnv(make_loop, backend="inline") as envs:
        assert (await envs.get_state()).keys() == {"NormalizeObservation"}


async def test_what_cannot_be_carried_is_said() -> None:
    """A wrapper that gives and takes a state which nobody can merge."""

    class Half(gym.Wrapper[Any, Any, Any, Any]):
        def get_state(self) -> Any:
            return 1

        def set_state(self, state: Any) -> None:
            raise AssertionError("nobody asked")

    async with av.AsyncVecEnv(lambda: Half(Far(0)), 2, num_workers=1, backend="inline") as envs:
        with pytest.warns(UserWarning, match="Half: it has get_state and set_state, but no merge_states"):
            assert await envs.get_state() == {}
        assert await envs.get_state() == {}  # said once


async def test_shares_are_a_partition() -> None:
    """Whatever is merged from shares is what was shared out, for any number of envs."""
    envs = [make(index) for index in range(5)]
    for env in envs:
        env.reset(seed=3)
        env.step(0)
    found: dict[str, list[Any]] = {}
    for env in envs:
        for name, state in read(env)[0].items():
            found.setdefault(name, []).append(state)
    merged = merge(found, envs[0])
    for parts in (1, 3, 5):
        for env in envs[:parts]:
            assert restore(env, merged, parts=parts, frozen=False) == NAMES
        shares = {name: [read(env)[0][name] for env in envs[:parts]] for name in NAMES}
        again = merge(shares, envs[0])
        assert _rms(again)["count"] == pytest.approx(_rms(merged)["count"])
        assert again["Difficulty"] == merged["Difficulty"]


@pytest.mark.parametrize("count", [1, 3, 32])
async def test_many_envs_begin_with_the_samples_that_one_begins_with(count: int) -> None:
    """Gymnasium's statistics begin as if of 1e-4 samples of 0: far from 0, as many of them as envs would show."""
    rng = np.random.default_rng(0)
    envs: list[Any] = [gym.wrappers.NormalizeObservation(gym.make("CartPole-v1")) for _ in range(count)]
    one: Any = gym.wrappers.NormalizeObservation(gym.make("CartPole-v1"))
    merged: Any = None
    for _ in range(3):  # merged and shared out, again and again
        for env in envs:
            samples = rng.normal(1e4, 1.4, (100, 4))
            env.obs_rms.update(samples)
            one.obs_rms.update(samples)
        merged = merge(
            {"NormalizeObservation": [read(env)[0]["NormalizeObservation"] for env in envs]}, envs[0]
        )
        for env in envs:
            restore(env, merged, parts=count, frozen=False)
    rms = _rms(merged)
    assert rms["count"] == pytest.approx(one.obs_rms.count, rel=1e-9)
    assert rms["mean"] == pytest.approx(one.obs_rms.mean, rel=1e-9)
    assert rms["var"] == pytest.approx(one.obs_rms.var, rel=1e-3)
