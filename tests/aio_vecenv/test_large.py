"""What is large travels, through every door; only what finds no memory is refused, and then nothing has changed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest

from aio_vecenv import AsyncVecEnv, EnvError, WorkerLost
from aio_vecenv import memory as av_memory
from aio_vecenv.testing import StampEnv, check_aligned

from .envs import Large, Talker, large_envs
from .harness import Parent, kill, stop, until

pytestmark = pytest.mark.alternate_loops

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]
MiB = 1 << 20


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


# -- every door --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "workers", "size"), [(3, 2, 20 * MiB), (4, 1, 8 * MiB)])
@pytest.mark.asyncio
async def test_factories_that_close_over_large_tables(count: int, workers: int, size: int) -> None:
    """One table that all share, and one per env of a worker."""
    tables = [np.full(size, index, np.uint8) for index in range(count)]

    def factory(index: int) -> Callable[[], Any]:
        def make() -> Any:
            env = StampEnv(index)
            env.total = (len(tables[index]), int(tables[index][-1]))  # type: ignore[attr-defined]
            return env

        return make

    async with AsyncVecEnv([factory(index) for index in range(count)], num_workers=workers) as envs:
        assert await envs.get_attr("total") == tuple((size, index) for index in range(count))
        await envs.reset(seed=1)
        check_aligned(await envs.step(zeros(count)))


@both
@pytest.mark.asyncio
async def test_frames_of_many_envs_in_one_worker(backend: Backend) -> None:
    make: Any = lambda: gym.make("CartPole-v1", render_mode="rgb_array")  # noqa: E731
    pytest.importorskip("pygame")
    async with AsyncVecEnv(make, 24, num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        frames = await envs.render()
        assert len(frames) == 24
        assert sum(frame.nbytes for frame in frames) > 16 * MiB


@both
@pytest.mark.asyncio
async def test_infos_of_many_envs_in_one_worker(backend: Backend) -> None:
    async with AsyncVecEnv(large_envs(12, 3 * MiB), num_workers=1, backend=backend) as envs:
        _, infos = await envs.reset(seed=1)
        for _ in range(2):
            batch = await envs.step(zeros(12))
            check_aligned(batch)
            infos = batch.infos
            for env, large in enumerate(infos["large"]):
                assert large == bytes([env]) * (3 * MiB)


@both
@pytest.mark.asyncio
async def test_pickled_actions_and_observations(backend: Backend) -> None:
    """An observation and an info that are large together, too."""
    async with AsyncVecEnv([Talker] * 2, num_workers=1, backend=backend) as envs:
        await envs.reset()
        actions = ("x" * (9 * MiB), "y" * (9 * MiB))
        batch = await envs.step(actions)
        assert batch.obs == actions
        assert [len(big) for big in batch.infos["big"]] == [9 * MiB] * 2
        assert (await envs.step(("a", "b"))).obs == ("a", "b")


@both
@pytest.mark.asyncio
async def test_options_arguments_values_and_results(backend: Backend) -> None:
    async with AsyncVecEnv(large_envs(2), num_workers=1, backend=backend) as envs:
        table = np.arange(5 * MiB, dtype=np.float32)
        _, infos = await envs.reset(seed=1, options={"x": table})
        assert infos["options"][1].startswith("{'x': array")
        for echo in await envs.call("echo", table):
            assert (echo == table).all()
        await envs.set_attr("table", [bytes(17 * MiB), bytes(18 * MiB)])
        assert await envs.call("size") == (17 * MiB, 18 * MiB)
        check_aligned(await envs.step(zeros(2)))


@both
@pytest.mark.asyncio
async def test_updates_also_to_a_replacement(backend: Backend) -> None:
    async with AsyncVecEnv(large_envs(3), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        receipt = envs.broadcast(bytes(40 * MiB), apply="now")
        small = envs.broadcast("small", topic="other")
        await receipt
        await small
        assert receipt.pending == ()
        await envs.step(zeros(3))
        assert await envs.call("size") == (40 * MiB,) * 3
        if backend == "process":
            kill(envs.statistics().workers[1].pid)
            batch = await envs.step(zeros(3))
            assert batch.versions.tolist()[1:] == [2, 2]


# -- refused, with the numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["call", "set_attr", "reset", "broadcast", "send"])
@both
@pytest.mark.asyncio
async def test_f31_g11_what_finds_no_memory_is_refused_and_changes_nothing(
    backend: Backend, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncVecEnv([Talker] * 2, num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        monkeypatch.setattr(av_memory, "bytes_left", lambda: 20 * MiB)
        large = "x" * (17 * MiB)
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "call": lambda: envs.call("reset", options=large),
            "set_attr": lambda: envs.set_attr("marker", large),
            "reset": lambda: envs.reset(options={"x": large}),
            "broadcast": lambda: envs.broadcast(large).wait(),
            "send": lambda: envs.step((large, large)),
        }
        with pytest.raises(ValueError, match=r"\d+ bytes pickled.* and 20971520 bytes of memory are left"):
            await calls[what]()
        batch = await envs.step(("a", "b"))
        assert batch.obs == ("a", "b")
        assert not batch.first.any()
        assert envs.statistics().restarts == 0
        assert envs.statistics().version == 0


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_f31_one_env_says_more_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that env fails, and only that result."""
    monkeypatch.setattr("aio_vecenv.backends.inline.bytes_left", lambda: 10 * MiB)
    factories: list[Any] = [partial(Large, 0, 6 * MiB), partial(Large, 1, MiB)]
    async with AsyncVecEnv(factories, num_workers=1, backend="inline") as envs:
        with pytest.raises(EnvError, match=r'env 0.*infos\["large"\] is too large: 6\d+ bytes'):
            await envs.reset(seed=1)
        assert (await envs.recv()).env_ids.tolist() == [1]
        await envs.reset(env_ids=[1])
        with pytest.raises(EnvError, match=r"env 0.*the result is too large: 6\d+ bytes"):
            await envs.call("give", 6 * MiB, env_ids=[0])
        assert [len(given) for given in await envs.call("give", 2 * MiB)] == [2 * MiB] * 2


# -- in the midst of a transfer ----------------------------------------------------------------------------------------


def received(envs: AsyncVecEnv) -> int:
    return envs.statistics().bytes_received


async def until_more_than(size_bytes: int, envs: AsyncVecEnv) -> None:
    """Not a turn of the loop longer: the rest, of which a turn takes in 128 KiB, is still to come."""
    await until(lambda: received(envs) > size_bytes, pause_s=0)


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_worker_killed_in_the_midst_of_a_large_reply(tmp_path: Any) -> None:
    """Its part of a reply counts for nothing: all of the row is its replacement's."""
    async with AsyncVecEnv(large_envs(16, 2 * MiB, folder=tmp_path), num_workers=2) as envs:
        await envs.reset(seed=1)
        before = received(envs)
        envs.send(zeros(8), np.arange(8))
        await until_more_than(before, envs)
        receiving = asyncio.ensure_future(envs.recv())
        assert not receiving.done()
        os.kill(envs.statistics().workers[0].pid, signal.SIGKILL)
        batch = await receiving
        check_aligned(batch)
        assert batch.infos["life"].tolist() == [1] * 8
        assert batch.infos["_worker_lost"].all()
        envs.send(zeros(16))
        check_aligned(await envs.recv())


@pytest.mark.asyncio
async def test_a_worker_killed_in_the_midst_of_a_large_result() -> None:
    async with AsyncVecEnv(large_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)
        asking = asyncio.ensure_future(envs.call("give", 40 * MiB, env_ids=[0]))
        worker: Any = envs._supervisor.workers[0]
        await until(lambda: worker._decoder.mid_message, pause_s=0)
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerLost, match="during a call"):
            await asking
        check_aligned(await envs.step(zeros(2)))


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_worker_killed_in_the_midst_of_large_arguments_and_an_update() -> None:
    async with AsyncVecEnv(large_envs(2), num_workers=2) as envs:
        await envs.reset(seed=1)
        pid = envs.statistics().workers[0].pid
        stop(pid)
        asking = asyncio.ensure_future(envs.call("echo", bytes(20 * MiB)))
        receipt = envs.broadcast(bytes(20 * MiB))
        await until(lambda: receipt.pending == (0,))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLost, match="during a call"):
            await asking
        await receipt
        check_aligned(await envs.step(zeros(2)))
        await envs.reset()
        assert await envs.call("size") == (20 * MiB,) * 2


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_call_cancelled_in_the_midst_of_its_results() -> None:
    async with AsyncVecEnv(large_envs(16), num_workers=1) as envs:
        await envs.reset(seed=1)
        before = received(envs)
        asking = asyncio.ensure_future(envs.call("give", 2 * MiB))
        await until_more_than(before, envs)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        check_aligned(await envs.step(zeros(16)))
        assert await envs.call("give", 2) == tuple(bytes([env]) * 2 for env in range(16))


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_recv_and_a_reset_cancelled_in_the_midst_of_a_large_reply() -> None:
    async with AsyncVecEnv(large_envs(16, 2 * MiB), num_workers=1) as envs:
        await envs.reset(seed=1)
        for waiting in (envs.recv, envs.reset):
            before = received(envs)
            if waiting == envs.recv:
                envs.send(zeros(16))
            task: asyncio.Future[Any] = asyncio.ensure_future(waiting())
            await until_more_than(before, envs)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if waiting == envs.recv:
                batch = await envs.recv()  # nothing was lost
                check_aligned(batch)
                assert [len(large) for large in batch.infos["large"]] == [2 * MiB] * 16
        await envs.reset(seed=2)
        check_aligned(await envs.step(zeros(16)))


@pytest.mark.parametrize("what", ["reply", "result", "arguments", "update"])
@pytest.mark.asyncio
async def test_closed_in_the_midst_of_a_transfer(what: str) -> None:
    async with AsyncVecEnv(large_envs(16, 2 * MiB), num_workers=1) as envs:
        await envs.reset(seed=1)
        before = received(envs)
        if what == "reply":
            envs.send(zeros(16))
            await until_more_than(before, envs)
        elif what == "update":
            envs.broadcast(bytes(100 * MiB))
        else:
            name, value = ("give", 4 * MiB) if what == "result" else ("echo", bytes(8 * MiB))
            asking = asyncio.ensure_future(envs.call(name, value))
            if what == "result":
                await until_more_than(before, envs)
            else:
                await asyncio.sleep(0)
            asking.cancel()
    assert envs.closed


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_other_workers_are_heard_while_one_sends_much() -> None:
    async with AsyncVecEnv(large_envs(16), num_workers=2) as envs:
        mine, other = envs._assignment.rows
        await envs.reset(seed=1)
        before = received(envs)
        asking = asyncio.ensure_future(envs.call("give", 4 * MiB, env_ids=[*mine]))
        await until_more_than(before, envs)
        pid = envs.statistics().workers[0].pid
        stop(pid)
        for _ in range(3):
            envs.send(zeros(len(other)), np.array(other))
            check_aligned(await envs.recv())
        assert not asking.done()
        os.kill(pid, signal.SIGCONT)
        turns = 0  # of the loop, in which others are heard: each takes in a little of what is left
        while not asking.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 100
        assert [len(given) for given in await asking] == [4 * MiB] * len(mine)


def test_an_update_for_many_workers_is_in_the_parent_once() -> None:
    """However many are stopped with it unread."""
    code = """
import resource
async def main():
    async with av.AsyncVecEnv(stamp_envs(4), num_workers=4) as envs:
        await envs.reset(seed=1)
        payload = bytes(64 << 20)
        for pid in pids(envs):
            os.kill(pid, signal.SIGSTOP)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        receipt = envs.broadcast(payload)
        for _ in range(5):
            await asyncio.sleep(0.01)
        print((peak() - before) / 1024 / 64)
        for pid in pids(envs):
            os.kill(pid, signal.SIGCONT)
        await receipt
asyncio.run(main())
"""
    with Parent(code) as parent:
        code_, out, err = parent.end()
    assert (code_, err) == (0, "")
    assert float(out) < 3.5  # pickled, beside its topic, and a little
