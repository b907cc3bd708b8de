"""`BackendContract`: the suite that every backend must pass; subclass it and say which."""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode

from ..backends.base import Backend
from ..core.batch import Episode
from ..errors import BadActions, BusyError, ClosedError, EnvError
from ..vec_env import AsyncVecEnv
from .envs import check_aligned, check_episodes, stamp_envs
from .faults import FaultyEnv

E = TypeVar("E", bound=BaseException)


@contextmanager
def _raising(kind: type[E]) -> Iterator[list[E]]:
    """The block must raise `kind`; the exception is in the list afterwards."""
    caught: list[E] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


class BackendContract:
    """What every backend must do. Subclass it in a test module, and say how to make the backend:

        class TestMine(BackendContract):
            def backend(self): return MyBackend()

    Each test runs in a loop of its own, made by `loop_factory` (None: asyncio's).
    """

    loop_factory: ClassVar[Callable[[], asyncio.AbstractEventLoop] | None] = None
    limit_s: ClassVar[float] = 30.0  # of one test

    def backend(self) -> Backend | Literal["process", "inline"]:
        """A new backend for one vec env."""
        raise NotImplementedError("say which backend this contract is for")

    def make(self, envs: Any, **kwargs: Any) -> AsyncVecEnv:
        """A vec env over that backend."""
        return AsyncVecEnv(envs, backend=self.backend(), **kwargs)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run one test."""

        async def bounded() -> None:
            async with asyncio.timeout(self.limit_s):
                await main

        with asyncio.Runner(loop_factory=type(self).loop_factory) as runner:
            runner.run(bounded())

    # each of these is one promise

    def test_rows_stay_with_their_envs(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(5, 3), num_workers=2) as envs:
                obs, _ = await envs.reset(seed=1)
                assert obs[:, 0].tolist() == [0, 1, 2, 3, 4]
                for _ in range(12):
                    check_aligned(await envs.step(np.zeros(5, np.int64)))

        self.run(main())

    def test_autoreset_modes(self) -> None:
        async def main(mode: AutoresetMode) -> None:
            async with self.make(stamp_envs(2, 2), num_workers=2, autoreset=mode) as envs:
                await envs.reset(seed=1)
                actions = np.zeros(2, np.int64)
                assert not (await envs.step(actions)).terminations.any()
                batch = await envs.step(actions)
                assert batch.terminations.all()
                if mode is AutoresetMode.SAME_STEP:
                    assert batch.obs[:, 3].tolist() == [0, 0]
                    assert batch.final_obs[:, 3].tolist() == [2, 2]
                    assert batch.rewards.tolist() == [2.0, 2.0]
                    assert not batch.first.any()
                else:
                    assert batch.obs[:, 3].tolist() == [2, 2]
                if mode is AutoresetMode.NEXT_STEP:
                    batch = await envs.step(actions)
                    assert batch.first.all()
                    assert batch.rewards.tolist() == [0.0, 0.0]
                if mode is AutoresetMode.DISABLED:
                    with _raising(BadActions):
                        envs.send(actions)
                    await envs.reset(env_ids=[0, 1])
                assert (await envs.step(actions)).obs[:, 3].tolist() == [1, 1]

        for mode in AutoresetMode:
            self.run(main(mode))

    def test_broadcast_reaches_the_next_reset(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(4, 3), num_workers=2) as envs:
                await envs.reset(seed=1)
                published = 0
                for t in range(20):
                    batch = await envs.step(np.zeros(4, np.int64))
                    assert (batch.versions[batch.first] >= published).all()
                    published = envs.broadcast({"t": t}).version
                receipt = envs.broadcast("last")
                await receipt
                assert receipt.pending == ()
                assert receipt.taken == (0, 1)

        self.run(main())

    def test_every_episode_is_reported_once(self) -> None:
        async def main() -> None:
            envs = self.make(stamp_envs(3, lambda env, episode: 1 + (env + episode) % 4), num_workers=2)
            async with envs:
                stream = envs.events()
                await envs.reset(seed=1)
                for t in range(25):
                    await envs.step(np.zeros(3, np.int64))
                    if t == 10:
                        await envs.reset(env_ids=[1])
            events = [event async for event in stream]
            check_episodes(events)
            assert len([event for event in events if isinstance(event, Episode)]) > 10

        self.run(main())

    def test_partial_sends_and_first_ready(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(4, 5), num_workers=2) as envs:
                await envs.reset(seed=1)
                envs.send(np.zeros(2, np.int64), [3, 0])
                with _raising(BusyError):
                    envs.send(np.zeros(1, np.int64), [3])
                seen: list[int] = []
                while len(seen) < 2:
                    batch = await envs.recv(min_envs=1)
                    check_aligned(batch)
                    assert (np.diff(batch.env_ids) > 0).all()
                    seen += batch.env_ids.tolist()
                assert sorted(seen) == [0, 3]

        self.run(main())

    def test_an_error_stays_with_its_env(self) -> None:
        async def main() -> None:
            factories: list[Any] = stamp_envs(4)
            factories[1] = partial(FaultyEnv, 1, "raise", at=1)
            async with self.make(factories, num_workers=2) as envs:
                await envs.reset(seed=1)
                await envs.step(np.zeros(4, np.int64))
                with _raising(EnvError) as caught:
                    await envs.step(np.zeros(4, np.int64))
                assert caught[0].env_id == 1
                assert "the env is broken" in str(caught[0])
                batch = await envs.recv()
                assert batch.env_ids.tolist() == [0, 2, 3]
                check_aligned(batch)
                await envs.reset(env_ids=[1])
                check_aligned(await envs.step(np.zeros(4, np.int64)))

        self.run(main())

    def test_calls_between_commands(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(3), num_workers=2) as envs:
                await envs.reset(seed=1)
                envs.send(np.zeros(3, np.int64))
                assert await envs.get_attr("env_index") == (0, 1, 2)
                assert await envs.call("echo", "x", env_ids=[2, 0]) == ("x", "x")
                await envs.set_attr("length", [7, 8, 9])
                assert await envs.get_attr("length") == (7, 8, 9)
                check_aligned(await envs.recv())

        self.run(main())

    def test_a_cancelled_recv_loses_nothing(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(2), num_workers=2) as envs:
                await envs.reset(seed=1)
                for _ in range(5):
                    envs.send(np.zeros(2, np.int64))
                    task = asyncio.ensure_future(envs.recv())
                    await asyncio.sleep(0)
                    task.cancel()
                    try:
                        batch = await task
                    except asyncio.CancelledError:
                        batch = await envs.recv()
                    check_aligned(batch)

        self.run(main())

    def test_closing_twice_and_use_after_close(self) -> None:
        async def main() -> None:
            envs = self.make(stamp_envs(2), num_workers=2)
            async with envs:
                await envs.reset(seed=1)
                envs.send(np.zeros(2, np.int64))
            await envs.aclose()
            with _raising(ClosedError):
                await envs.recv()

        self.run(main())
