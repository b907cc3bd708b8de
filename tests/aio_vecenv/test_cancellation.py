"""Cancelled at every await point of every public coroutine: usable afterwards, or cleanly closed. And closing."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest

from aio_vecenv import (
    AsyncVecEnv,
    BusyError,
    ClosedError,
    RestartBudget,
    Timeouts,
    WorkerTimeout,
    WrongLoopError,
)
from aio_vecenv.runtime import events as streams
from aio_vecenv.testing import FaultyEnv, ScriptedBackend, check_aligned, check_episodes, stamp_envs
from benchmarks.cancellation import OPERATIONS, cancel_after, settled

from .harness import alive, until

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


def pids(envs: AsyncVecEnv) -> list[int]:
    return [worker.pid for worker in envs.statistics().workers]


@both
@pytest.mark.asyncio
async def test_f19_cancelled_at_every_await_point(backend: Backend) -> None:
    """Each coroutine is driven to its k-th await, cancelled there, for every k until it ends by itself."""
    async with AsyncVecEnv(stamp_envs(4, 3), num_workers=2, backend=backend) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        for name, operation in OPERATIONS.items():
            for k in range(50):
                ended = await cancel_after(envs, operation, k)
                await settled(envs)
                if ended:
                    break
            else:
                raise AssertionError(f"{name} never ended by itself")
            assert k >= (0 if backend == "inline" else 1), name
    check_episodes([event async for event in stream])


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 8, 16, 24, 32, 40, 51])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f19_opening_cancelled_after_any_turn_of_the_loop(turns: int) -> None:
    """The leak check says whether anything is left."""
    task = asyncio.ensure_future(AsyncVecEnv.open(stamp_envs(2), num_workers=2))
    for _ in range(turns):
        if turns % 2:
            await asyncio.sleep(0)
        else:
            await asyncio.sleep(0.01)  # let the processes come along
        if task.done():
            break
    task.cancel()
    try:
        envs = await task
    except asyncio.CancelledError:
        return
    await envs.aclose()


@both
@pytest.mark.asyncio
async def test_f20_v01_a_timeout_then_going_on(backend: Backend) -> None:
    """V1: after a timeout the next call returns this step's results, not the previous one's."""
    async with AsyncVecEnv(stamp_envs(2, 99), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        if backend == "process":
            os.kill(pids(envs)[0], signal.SIGSTOP)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await envs.step(zeros(2))
            with pytest.raises(BusyError):
                envs.send(zeros(2))
            os.kill(pids(envs)[0], signal.SIGCONT)
            check_aligned(await envs.recv())
        else:
            await envs.step(zeros(2))
        for t in range(2, 7):
            batch = await envs.step(zeros(2))
            check_aligned(batch)
            assert batch.obs[:, 3].tolist() == [t, t]


@both
@pytest.mark.asyncio
async def test_a_cancelled_reset_leaves_envs_that_accept_only_reset(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        if backend == "inline":
            return
        task = asyncio.ensure_future(envs.reset(seed=2, env_ids=[0]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ValueError, match="accepts only reset"):
            envs.send(zeros(2))
        envs.send(zeros(1), [1])
        assert (await envs.recv()).env_ids.tolist() == [1]
        obs, _ = await envs.reset(seed=3, env_ids=[0])
        assert obs[0, 3] == 0
        assert (await envs.get_attr("seeds", env_ids=[0]))[0][-1] == 3
        check_aligned(await envs.step(zeros(2)))


@pytest.mark.asyncio
async def test_misuse_by_two_tasks_raises_at_once() -> None:
    script = ScriptedBackend()
    async with AsyncVecEnv(stamp_envs(2), num_workers=2, backend=script) as envs:
        script.automatic = True
        await envs.reset(seed=1)
        script.automatic = False
        envs.send(zeros(2))
        receiving = asyncio.ensure_future(envs.recv())
        await asyncio.sleep(0)
        for second in (envs.recv(), envs.reset(), envs.reset(env_ids=[0])):
            with pytest.raises(BusyError):
                await second
        script.automatic = True
        check_aligned(await receiving)
        script.automatic = False
        resetting = asyncio.ensure_future(envs.reset(env_ids=[0]))
        await asyncio.sleep(0)
        for second in (envs.recv(), envs.reset(), envs.reset(env_ids=[0])):
            with pytest.raises(BusyError):
                await second
        other = asyncio.ensure_future(envs.reset(env_ids=[1]))  # another env's
        await asyncio.sleep(0)
        script.automatic = True
        assert (await resetting)[0][:, 0].tolist() == [0]
        assert (await other)[0][:, 0].tolist() == [1]


# -- closing -----------------------------------------------------------------------------------------------------------


async def stepping(envs: AsyncVecEnv) -> None:
    while True:
        await envs.step(zeros(envs.num_envs))


SITUATIONS: dict[str, Callable[[AsyncVecEnv], Coroutine[Any, Any, None] | None]] = {
    "idle": lambda envs: None,
    "owed": lambda envs: envs.send(zeros(4)),
    "stepping": stepping,
    "receiving": lambda envs: receive(envs),
    "resetting": lambda envs: reset(envs),
    "calling": lambda envs: call(envs),
    "receipt": lambda envs: receipt(envs),
    "events": lambda envs: events(envs),
    "killed": lambda envs: os.kill(pids(envs)[0], signal.SIGKILL),
    "replacing": lambda envs: replacing(envs),
    "stopped": lambda envs: os.kill(pids(envs)[0], signal.SIGSTOP),
}


async def receive(envs: AsyncVecEnv) -> None:
    os.kill(pids(envs)[0], signal.SIGSTOP)
    envs.send(zeros(4))
    await envs.recv()


async def reset(envs: AsyncVecEnv) -> None:
    os.kill(pids(envs)[0], signal.SIGSTOP)
    await envs.reset()


async def call(envs: AsyncVecEnv) -> None:
    os.kill(pids(envs)[0], signal.SIGSTOP)
    await envs.call("echo", 1)


async def receipt(envs: AsyncVecEnv) -> None:
    os.kill(pids(envs)[0], signal.SIGSTOP)
    await envs.broadcast(1)


async def events(envs: AsyncVecEnv) -> None:
    async for _ in envs.events():
        pass
    raise ClosedError("the stream ended, as it should")


async def replacing(envs: AsyncVecEnv) -> None:
    os.kill(pids(envs)[0], signal.SIGKILL)
    await until(lambda: envs.statistics().restarts)
    raise ClosedError("a replacement is under way")


@pytest.mark.parametrize("how", ["four at once", "cancelled"])
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f21_v03_aclose_closes(situation: str, how: str) -> None:
    """Only a worker that is stuck is late, however little time there is; who is cancelled waits for none."""
    stuck = situation in ("stopped", "receiving", "resetting", "calling", "receipt")
    limits = Timeouts(close=0.2 if stuck and how != "cancelled" else 3600)
    envs = await AsyncVecEnv.open(stamp_envs(4), num_workers=2, timeouts=limits)
    await envs.reset(seed=1)
    stream = envs.events()
    left = pids(envs)
    busy = SITUATIONS[situation](envs)
    tasks = [asyncio.ensure_future(busy)] if busy is not None else []
    for _ in range(3):
        await asyncio.sleep(0)
    if situation == "replacing":
        await asyncio.wait(tasks)
    closers = [asyncio.ensure_future(envs.aclose()) for _ in range(4 if how == "four at once" else 1)]
    if how == "cancelled":
        await asyncio.sleep(0)
        closers[0].cancel()
    results = await asyncio.gather(*closers, return_exceptions=True)
    if how == "cancelled":
        assert [type(result) for result in results] == [asyncio.CancelledError]
    elif stuck:
        for result in results:  # the other worker may have been late as well, then it is a group
            late = result.exceptions if isinstance(result, ExceptionGroup) else [result]
            workers = [error.worker for error in late if isinstance(error, WorkerTimeout)]
            assert len(workers) == len(late)
            assert 0 in workers
    else:
        assert results == [None] * len(closers)
    assert envs.closed
    assert not any(alive(pid) for pid in left)
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, ClosedError)
    await envs.aclose()
    async for _ in stream:  # ends
        pass


@both
@pytest.mark.asyncio
async def test_aclose_in_a_cancelled_task(backend: Backend) -> None:
    opened = asyncio.Event()

    async def use() -> None:
        async with AsyncVecEnv(stamp_envs(2), num_workers=2, backend=backend) as envs:
            await envs.reset(seed=1)
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(use())
    await opened.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@both
@pytest.mark.asyncio
async def test_before_opening_after_closing_and_twice(backend: Backend) -> None:
    envs = AsyncVecEnv(stamp_envs(2), num_workers=2, backend=backend)
    assert envs.closed
    with pytest.raises(ClosedError):
        await envs.reset()
    with pytest.raises(ClosedError):
        envs.broadcast(1)
    await envs.aclose()  # nothing to close
    async with envs:
        assert not envs.closed
    for use in (lambda: envs.send(zeros(2)), lambda: envs.broadcast(1), envs.events, envs.statistics):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError, match="opened already"):
        await envs.__aenter__()


@pytest.mark.asyncio
async def test_f44_another_loop_or_thread() -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)

        def elsewhere() -> None:
            with pytest.raises(WrongLoopError, match="broadcast"):
                envs.send(zeros(2))
            with pytest.raises(WrongLoopError):
                asyncio.run(envs.recv())
            with pytest.raises(WrongLoopError):
                asyncio.run(envs.aclose())
            with pytest.raises(WrongLoopError):
                asyncio.run(envs.broadcast(1).wait())

        await asyncio.to_thread(elsewhere)
        check_aligned(await envs.step(zeros(2)))


def test_f44_the_same_loop_in_another_thread() -> None:
    loop = asyncio.new_event_loop()
    envs = AsyncVecEnv(stamp_envs(2), num_workers=2)
    loop.run_until_complete(envs.__aenter__())
    loop.run_until_complete(envs.reset(seed=1))

    def elsewhere() -> None:
        with pytest.raises(WrongLoopError):
            loop.run_until_complete(envs.step(zeros(2)))
        with pytest.raises(WrongLoopError):
            loop.run_until_complete(envs.recv())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    check_aligned(loop.run_until_complete(envs.step(zeros(2))))
    loop.run_until_complete(envs.aclose())
    loop.close()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many events a reader may be behind here."""
    assert streams.MAX_BEHIND == 65_536
    monkeypatch.setattr(streams, "MAX_BEHIND", 640)
    return 640


@pytest.mark.asyncio
async def test_recv_waits_for_a_slow_reader_and_aclose_ends_that(few: int) -> None:
    envs = await AsyncVecEnv.open(stamp_envs(64, 1), num_workers=1, backend="inline", info=[])
    stream = envs.events()
    await envs.reset(seed=1)
    while stream.behind < few:
        await envs.step(zeros(64))
    envs.send(zeros(64))
    receiving = asyncio.ensure_future(envs.recv())
    await asyncio.sleep(0)
    assert not receiving.done()
    while stream.behind >= few:
        await anext(stream)
    check_aligned(await receiving)  # it went on
    while stream.behind < few:
        await envs.step(zeros(64))
    envs.send(zeros(64))
    receiving = asyncio.ensure_future(envs.recv())
    await asyncio.sleep(0)
    await envs.aclose()
    with pytest.raises(ClosedError):
        await receiving


@pytest.mark.asyncio
async def test_a_slow_reader_is_named_and_dropping_it_goes_on(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_WARN_AFTER_S", 0.01)
    async with AsyncVecEnv(stamp_envs(64, 1), num_workers=1, backend="inline", info=[]) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        while stream.behind < few:
            await envs.step(zeros(64))
        envs.send(zeros(64))
        receiving = asyncio.ensure_future(envs.recv())
        with pytest.warns(RuntimeWarning, match=r"events-1.* 6\d\d events behind") as caught:
            await until(lambda: len(caught))
        await stream.aclose()
        check_aligned(await receiving)


@pytest.mark.asyncio
async def test_f26_many_openings_keep_no_descriptor() -> None:
    async with AsyncVecEnv(stamp_envs(1)) as envs:
        await envs.reset(seed=1)
    gc.collect()  # what others have left closes now, not meanwhile
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        envs = await AsyncVecEnv.open(stamp_envs(1))
        batch = await envs.reset(seed=1)
        await envs.aclose()
        assert len(os.listdir("/proc/self/fd")) == before  # at once, `envs` and `batch` still held
    assert batch is not None


@pytest.mark.asyncio
async def test_v21_arrays_stay_readable_after_closing() -> None:
    envs = await AsyncVecEnv.open(stamp_envs(2), num_workers=1, copy=False)
    await envs.reset(seed=1)
    batch = await envs.step(zeros(2))
    await envs.aclose()
    assert batch.obs[:, 3].tolist() == [1, 1]  # elsewhere: a segmentation fault
    assert batch.rewards.tolist() == [1.0, 1.0]
    del batch, envs


@pytest.mark.asyncio
async def test_cancelled_calls_while_workers_are_lost() -> None:
    """Both at once: the reply that a cancelled call waited for never comes, and nobody misses it."""
    script = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(
        stamp_envs(4), num_workers=2, backend=script, restart=RestartBudget(1000, per_s=60)
    ) as envs:
        await envs.reset(seed=1)
        for lost, name in enumerate(("call", "reset", "step"), 1):
            script.automatic = False
            work: Any = {
                "call": partial(envs.call, "echo", 1),
                "reset": partial(envs.reset, env_ids=[0, 1]),
                "step": partial(envs.step, zeros(4)),
            }[name]
            task = asyncio.ensure_future(work())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            script.lose(0)
            script.automatic = True
            await until(lambda lost=lost: envs.statistics().restarts == lost)  # type: ignore[misc]
            await settled(envs)


@pytest.mark.asyncio
async def test_a_fault_while_closing() -> None:
    factories: list[Any] = stamp_envs(2)
    factories[0] = partial(FaultyEnv, 0, "sigkill", op="close")
    envs = await AsyncVecEnv.open(factories, num_workers=2)
    await envs.aclose()
