"""How to test an env of your own with pytest-asyncio and `aio_vecenv.testing`.

`python -m pytest examples/test_my_env.py`. Inline, an env runs in the test's own thread: `pdb` works, a failure is an
ordinary traceback, and a test takes milliseconds. One test runs the same in worker processes; the last one takes a
worker away, by a script.
"""
# edge: real worker processes, at the end

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import pytest
import pytest_asyncio
from gymnasium.utils.env_checker import check_env

import aio_vecenv as av
from aio_vecenv.testing import ScriptedBackend, check_episodes

T = TypeVar("T")


class Thermostat(gym.Env[Any, Any]):
    """The env under test: keep a room at 20 °C; how cold it is outside can be broadcast."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-50, 50, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)  # off, on
        self.outside, self.room, self.t = 5.0, 20.0, 0

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.outside = float(payload["outside"])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.room, self.t = 18.0 + 4.0 * float(self.np_random.random()), 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.room += 0.1 * (self.outside - self.room) + 3.0 * float(action)
        self.t += 1
        return self._obs(), -abs(self.room - 20.0), bool(self.room < 0), self.t == 10, {}

    def _obs(self) -> Any:
        return np.array([self.room], np.float32)


@pytest_asyncio.fixture
async def rooms() -> AsyncIterator[av.AsyncVecEnv]:
    """Four of them, inline."""
    async with av.AsyncVecEnv(Thermostat, 4, backend="inline", check="finite") as envs:
        yield envs


def test_it_keeps_gymnasiums_contract() -> None:
    check_env(Thermostat(), skip_render_check=True)


@pytest.mark.asyncio
async def test_every_episode_is_reported_once_and_ends_as_it_should(rooms: av.AsyncVecEnv) -> None:
    events = rooms.events()
    await rooms.reset(seed=0)
    for _ in range(25):
        await rooms.step(rooms.action_space.sample())
    await rooms.aclose()
    seen = [event async for event in events]
    check_episodes(seen)
    ended = [event for event in seen if isinstance(event, av.Episode) and event.outcome != "aborted"]
    assert {event.length for event in ended} == {10}
    assert {event.outcome for event in ended} == {"truncated"}


@pytest.mark.asyncio
async def test_a_broadcast_reaches_the_next_episode(rooms: av.AsyncVecEnv) -> None:
    receipt = rooms.broadcast({"outside": -40.0})
    await rooms.reset(seed=0)
    assert await rooms.get_attr("outside") == (-40.0,) * 4
    batch = await rooms.step(np.zeros(4, np.int64))
    assert batch.versions.tolist() == [receipt.version] * 4


@pytest.mark.asyncio
async def test_worker_processes_give_the_same_trajectories() -> None:
    seen = []
    for backend, workers in (("inline", 1), ("process", 1), ("process", 2)):
        async with av.AsyncVecEnv(Thermostat, 4, num_workers=workers, backend=backend) as envs:  # type: ignore[arg-type]
            obs, _ = await envs.reset(seed=3)
            seen.append([obs] + [(await envs.step(np.arange(4) % 2)).obs for _ in range(25)])
    for other in seen[1:]:
        assert all((a == b).all() for a, b in zip(seen[0], other))


async def delivered(backend: ScriptedBackend, coroutine: Coroutine[Any, Any, T]) -> T:
    """What `coroutine` returns, while the scripted workers answer whatever they are asked."""
    task = asyncio.ensure_future(coroutine)
    while not task.done():
        for index in tuple(backend.workers):
            backend.deliver(index)
        await asyncio.sleep(0)
    return task.result()


@pytest.mark.asyncio
async def test_my_training_loop_survives_the_loss_of_a_worker() -> None:
    backend = ScriptedBackend()
    async with av.AsyncVecEnv(Thermostat, 4, num_workers=2, backend=backend) as envs:
        await delivered(backend, envs.reset(seed=0))
        envs.send(np.zeros(4, np.int64))
        backend.lose(1)
        batch = await delivered(backend, envs.recv())
        assert batch.first.tolist() == [False, False, True, True]  # not executed: nothing to learn from
        assert batch.truncations.tolist() == [False, False, True, True]
        batch = await delivered(backend, envs.step(np.zeros(4, np.int64)))
        assert not batch.first.any()
