"""The driver: in place, in a thread, under a running loop, from other threads, and from IPython."""
# edge: threads, a real IPython

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

import aio_vecenv as av
from aio_vecenv.adapters.driver import Driver
from aio_vecenv.adapters.gymnasium import VectorEnv
from tests.adapters.envs import CountEnv, Heeding


async def _add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.sleep(0)
    return a + b


async def _plain(a: int) -> int:
    await asyncio.sleep(0)
    waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.001, waiter.set_result, a)
    return await waiter


async def _raise() -> None:
    raise KeyError("x")


@pytest.mark.parametrize("choice", ["auto", "thread"])
def test_coroutines_run_to_their_end(choice: Any) -> None:
    driver = Driver(choice)
    assert driver.threaded == (choice == "thread")
    assert driver.run(_add(1, 2)) == 3
    assert driver.quick(_plain(4)) == 4
    for run in (driver.run, driver.quick):
        with pytest.raises(KeyError):
            run(_raise())
    assert driver.call(lambda x: x + 1, 1) == 2
    begun = driver.start(_plain(6))
    assert driver.wait(begun, None) == 6
    waiting = driver.start(asyncio.sleep(1000))
    for _ in range(2):
        with pytest.raises(TimeoutError):
            driver.wait(waiting, 0.001)
    driver.drop(waiting)
    assert waiting.cancelled()
    driver.start(_raise())  # nobody asks for it: nothing is reported
    seen = driver.start(_raise())
    with pytest.raises(KeyError):
        driver.wait(seen, 1)
    driver.close(_add(0, 0))
    driver.close()
    calls: list[Callable[[Any], Any]] = [driver.run, driver.quick, driver.start]
    for call in calls:
        with pytest.raises(av.ClosedError):
            call(_plain(1))


def test_what_is_not_a_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="loop is 'uvloop'"):
        Driver("uvloop")  # type: ignore[arg-type]


def test_an_interrupt_cancels_and_leaves_the_loop_usable() -> None:
    driver = Driver()
    cancelled = []

    async def interrupted() -> None:
        asyncio.get_running_loop().call_soon(_interrupt)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(KeyboardInterrupt):
        driver.run(interrupted())
    with pytest.raises(KeyboardInterrupt):
        driver.quick(_wait_and_interrupt())
    assert cancelled == [True]
    assert driver.run(_add(1, 1)) == 2
    driver.close()


def _interrupt() -> None:
    raise KeyboardInterrupt


async def _wait_and_interrupt() -> None:
    asyncio.get_running_loop().call_soon(_interrupt)
    await asyncio.get_running_loop().create_future()


def test_an_interrupted_step_is_still_pending() -> None:
    envs = VectorEnv([CountEnv] * 2, num_workers=1)
    envs.reset()
    envs._session.driver._loop.call_soon(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        envs.step([0, 0])
    assert envs.step_wait()[0].ravel().tolist() == [1, 1]
    envs._session.driver._loop.call_soon(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        envs.step([0, 0])
    envs.reset()
    assert envs.step([0, 0])[0].ravel().tolist() == [1, 1]
    envs.close()


def _use(envs: VectorEnv) -> None:
    envs.reset(seed=1)
    assert envs.step([0, 0])[0].ravel().tolist() == [2, 3]
    assert envs.get_attr("max_count") == (3, 3)
    receipt = envs.broadcast(2.0, apply="now")
    envs.wait_for(receipt, 20)
    assert not receipt.pending


@pytest.mark.parametrize("loop", ["auto", "thread"])
def test_from_a_thread_with_no_running_loop(loop: Any) -> None:
    envs = VectorEnv([Heeding] * 2, num_workers=1, loop=loop)
    assert envs._session.driver.threaded == (loop == "thread")
    _use(envs)
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            _use(envs)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not errors
    _use(envs)
    envs.close()


@pytest.mark.asyncio
async def test_under_a_running_loop_it_keeps_a_thread() -> None:
    envs = VectorEnv([Heeding] * 2, num_workers=1)
    assert envs._session.driver.threaded
    _use(envs)
    await asyncio.to_thread(_use, envs)
    envs.close()


def test_made_without_a_loop_and_used_under_one() -> None:
    envs = VectorEnv([Heeding] * 2, num_workers=1)
    envs.reset_async(seed=5)

    async def main() -> None:
        assert envs.reset_wait()[0].ravel().tolist() == [5, 6]
        _use(envs)

    assert not envs._session.driver.threaded
    asyncio.run(main())
    assert envs._session.driver.threaded
    _use(envs)
    envs.close()


def test_two_threads_share_one_env() -> None:
    envs = VectorEnv([CountEnv] * 2, num_workers=1)
    envs.set_attr("max_count", 10_000)
    envs.reset()
    seen: list[Any] = []

    def ask() -> None:
        for _ in range(20):
            seen.append(envs.get_attr("max_count"))  # noqa: PERF401 - one at a time

    thread = threading.Thread(target=ask)
    thread.start()
    for t in range(60):
        assert envs.step([0, 0])[0].ravel().tolist() == [t + 1, t + 1]
    thread.join()
    assert seen == [(10_000, 10_000)] * 20
    envs.close()


@pytest.mark.parametrize("loop", ["auto", "thread"])
def test_an_env_that_is_dropped_is_closed(loop: Any) -> None:
    envs = VectorEnv([CountEnv] * 2, num_workers=1, loop=loop)
    envs.reset()
    worker = psutil.Process(envs.on_loop(envs.native.statistics).workers[0].pid)
    del envs
    gc.collect()
    assert not worker.is_running()


@pytest.mark.parametrize("loop", ["auto", "thread"])
def test_before_step_is_awaited_and_what_runs_beside_ends_with_the_env(loop: Any) -> None:
    log: list[str] = []

    class Beside:
        def __init__(self, native: av.AsyncVecEnv) -> None:
            self.events = native.events()

        async def run(self) -> None:
            log.extend([type(event).__name__ async for event in self.events])
            log.append("end")

        async def settled(self) -> None:
            log.append("settled")

    envs = VectorEnv([CountEnv], loop=loop)
    beside = envs.beside(Beside)
    assert envs.before_step == beside.settled
    envs.reset()
    envs.step([0])
    envs.step_async([0])
    envs.step_wait()
    assert log == ["settled", "settled"]
    assert envs.on_loop(threading.get_ident) != threading.get_ident() or loop == "auto"
    envs.close()
    assert log[2:] == ["EpisodeStarted", "Episode", "end"]


def test_calls_from_inside_the_own_loop_are_refused() -> None:
    envs = VectorEnv([CountEnv], num_workers=1)
    envs.reset()

    async def inside() -> None:
        envs.get_attr("max_count")

    envs.before_step = inside
    with pytest.raises(av.WrongLoopError, match="native"):
        envs.step([0])
    envs.before_step = None
    envs.step([0])
    envs.close()


NOTEBOOK = """
import asyncio
import aio_vecenv as av
envs = av.make_vec("CartPole-v1", 4, num_workers=1)
print("plain cell", envs.reset(seed=1)[0].shape, envs._session.driver.threaded)
await asyncio.sleep(0); print("awaiting cell", envs.step([0, 1, 0, 1])[0].shape, envs._session.driver.threaded)
envs.close()
await asyncio.sleep(0); other = av.make_vec("CartPole-v1", 2); print("made", other._session.driver.threaded)
other.reset()[0].shape; other.close()
class Mine(__import__("gymnasium").Wrapper): pass
mine = av.make_vec("CartPole-v1", 2, wrappers=[Mine]); print("by value", mine.reset()[0].shape); mine.close()
async with av.AsyncVecEnv("CartPole-v1", 2) as native: print("native", (await native.reset())[0].shape)
"""


def test_from_ipython() -> None:
    pytest.importorskip("IPython")
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--simple-prompt", "--colors=NoColor", "--quick"],
        input=NOTEBOOK,
        capture_output=True,
        text=True,
        timeout=110,
    )
    said = done.stdout
    for line in (
        "plain cell (4, 4) False",
        "awaiting cell (4, 4) True",
        "made True",
        "by value (2, 4)",
        "native (2, 4)",
    ):
        assert line in said, said + done.stderr
    assert "Traceback" not in said
    assert np.shape(said) == ()
