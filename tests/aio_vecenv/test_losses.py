"""Workers that die, hang or are given up: replaced within the budget, nothing lost, nothing twice (G7, G8)."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aio_vecenv import (
    AsyncVecEnv,
    EnvError,
    Episode,
    EpisodeStarted,
    RestartBudget,
    Timeouts,
    WorkerLost,
    WorkerTimeout,
)
from aio_vecenv.backends.launcher import launch
from aio_vecenv.backends.process import _exited
from aio_vecenv.core.limits import RestartLog
from aio_vecenv.core.pool import derive_seed
from aio_vecenv.core.protocol import State
from aio_vecenv.memory import SharedBlock
from aio_vecenv.testing import FaultyEnv, ScriptedBackend, StampEnv, check_aligned, check_episodes, stamp_envs

from .harness import alive, kill, stop, until, wait_until

MANY = RestartBudget(1000, per_s=60)


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


def pids(envs: AsyncVecEnv) -> list[int]:
    return [worker.pid for worker in envs.statistics().workers]


async def forever(envs: AsyncVecEnv) -> None:
    """Step until that raises."""
    while True:
        await envs.step(zeros(envs.num_envs))


def faulty(fault: str, folder: Path, **kwargs: Any) -> list[Any]:
    """Four envs on two workers; env 1 has the fault, in its first life only."""
    factories: list[Any] = stamp_envs(4, 9, folder=folder)
    factories[1] = partial(FaultyEnv, 1, fault, length=9, folder=folder, once=folder / "happened", **kwargs)
    return factories


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("sigkill", "SIGKILL"),
        ("segfault", "SIGSEGV"),
        ("sys.exit", "status 3"),
        ("os._exit", "status 3"),
        ("fork", "SIGKILL"),
    ],
)
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f05_f06_a_worker_dies_in_a_step(fault: str, reason: str, tmp_path: Path) -> None:
    """Also where a fork of the worker still holds its pipes ("fork", killed from outside)."""
    async with AsyncVecEnv(faulty(fault, tmp_path), num_workers=2, info=["stamp", "applied_version"]) as envs:
        stream = envs.events()
        await envs.reset(seed=5)
        version = envs.broadcast("early").version
        await envs.step(zeros(4))
        await envs.step(zeros(4))
        before = pids(envs)
        envs.send(zeros(4))
        if fault == "fork":
            await until(lambda: (tmp_path / "happened").exists())
            os.kill(before[0], signal.SIGKILL)
        batch = await envs.recv()
        check_aligned(batch)
        assert batch.first.tolist()[2:] == [False, False]
        if fault != "fork" or batch.first[0]:
            assert batch.first.tolist() == [True, True, False, False]
        else:  # it had replied before it was killed
            batch = await envs.step(zeros(4))
        assert batch.first.tolist() == [True, True, False, False]
        assert batch.truncations.tolist() == [True, True, False, False]
        assert batch.terminations.tolist() == [False] * 4
        assert batch.rewards.tolist()[:2] == [0.0, 0.0]
        assert batch.obs[:2].tolist() == [[0, 1, 0, 0], [1, 1, 0, 0]]  # a new life's first observation
        assert reason in batch.infos["worker_lost"][0]
        assert batch.infos["_worker_lost"].tolist() == [True, True, False, False]
        assert batch.versions.tolist()[:2] == [version, version]  # G7
        if fault == "segfault":
            assert "string_at" in batch.infos["worker_lost"][0]  # its last words
        episodes = [(e.env_id, e.outcome) for e in batch.episodes]
        assert episodes == [(0, "aborted"), (1, "aborted")]
        batch = await envs.step(zeros(4))  # no further autoreset follows
        assert not batch.first.any()
        assert batch.obs[:2, 3].tolist() == [1, 1]
        seeds = await envs.get_attr("seeds")
        assert seeds[:2] == ([derive_seed(5, 0, 1)], [derive_seed(6, 1, 1)])
        assert await envs.get_attr("version") == (version, version, 0, 0)
        after = pids(envs)
        assert after[0] != before[0]
        assert after[1] == before[1]
        statistics = envs.statistics()
        assert statistics.restarts == 1
        assert [worker.env_ids for worker in statistics.workers] == [range(2), range(2, 4)]
        assert [worker.ready for worker in statistics.workers] == [True, True]
        (loss,) = statistics.workers[0].losses
        assert reason in loss
        assert statistics.workers[1].losses == ()
        events = [await anext(stream) for _ in range(stream.behind)]
        check_episodes(events, finished=False)
        started = [e for e in events if isinstance(e, EpisodeStarted) and e.env_id == 1]
        assert [e.seed for e in started] == [6, derive_seed(6, 1, 1)]


@pytest.mark.parametrize("moment", ["idle", "replied", "resetting", "calling", "done", "before reset"])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_worker_is_lost_at_any_moment(moment: str, mode: AutoresetMode) -> None:
    """Scripted: worker 0 (envs 0, 1) is lost at exactly that moment."""
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(
        stamp_envs(4, 3), num_workers=2, backend=backend, autoreset=mode, restart=MANY
    ) as envs:
        stream = envs.events()
        if moment == "before reset":
            backend.lose(0)
            obs, _ = await envs.reset(seed=1)
            assert obs[:, 3].tolist() == [0] * 4
        else:
            await envs.reset(seed=1)
        await envs.step(zeros(4))
        assert not (await envs.step(zeros(4))).first.any()
        match moment:
            case "idle":
                backend.lose(0)
                batch = await envs.step(zeros(4))
                assert batch.first.tolist() == [True, True, False, False]
                assert batch.truncations.tolist()[:2] == [True, True]
            case "replied":
                backend.automatic = False
                envs.send(zeros(4))
                backend.deliver(0)
                backend.lose(0)
                backend.automatic = True
                batch = await envs.recv()
                assert not batch.first.any()  # a row that was replied stays what it is
                assert batch.terminations.all()
                if mode is AutoresetMode.DISABLED:
                    await envs.reset()
                batch = await envs.step(zeros(4))
                assert batch.first.tolist()[:2] == [mode is not AutoresetMode.DISABLED] * 2
            case "resetting":
                backend.automatic = False
                task = asyncio.ensure_future(envs.reset(seed=[7, 8], env_ids=[0, 1]))
                await asyncio.sleep(0)
                backend.lose(0)
                backend.automatic = True
                obs, _ = await task
                assert obs[:, 3].tolist() == [0, 0]
                assert await envs.get_attr("seeds", env_ids=[0, 1]) == ([7], [8])  # sent again with its seeds
            case "calling":
                backend.automatic = False
                task2 = asyncio.ensure_future(envs.call("echo", 1))
                await asyncio.sleep(0)
                backend.deliver(1)
                backend.lose(0)
                backend.automatic = True
                with pytest.raises(WorkerLost, match="during a call"):
                    await task2
                assert await envs.call("echo", 2) == (2, 2, 2, 2)
            case "done":
                assert (await envs.step(zeros(4))).terminations.all()
                backend.lose(0)
                if mode is AutoresetMode.DISABLED:
                    await envs.reset()
                batch = await envs.step(zeros(4))
                assert batch.first.tolist()[:2] == [mode is not AutoresetMode.DISABLED] * 2
        if mode is AutoresetMode.DISABLED:
            await envs.reset()
        for _ in range(2):
            await envs.step(zeros(4))
    events = [event async for event in stream]
    check_episodes(events)
    assert [e for e in events if isinstance(e, Episode) and e.outcome == "aborted"]


@pytest.mark.asyncio
async def test_g07_a_late_worker_takes_the_newest_of_every_topic_in_version_order(tmp_path: Path) -> None:
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, restart=MANY) as envs:
        await envs.reset(seed=1)
        for topic in ("a", "b", "a", "c", "b"):
            envs.broadcast((topic, "payload"), topic=topic)
        kill(pids(envs)[0])
        last = envs.broadcast(("late", 1), topic="d").version
        batch = await envs.step(zeros(2))
        assert batch.first.tolist() == [True, False]
        assert batch.versions[0] == last
        (heard,) = await envs.get_attr("heard", env_ids=[0])
        assert [version for version, _ in heard] == [3, 4, 5, 6]
        assert batch.infos["stamp"][0].tolist() == [0, 0, 0, 0]


@pytest.mark.asyncio
async def test_f34_versions_never_go_back_while_workers_are_killed_and_updates_published() -> None:
    async with AsyncVecEnv(stamp_envs(4, lambda e, k: 1 + (e + k) % 3), num_workers=2, restart=MANY) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        newest = np.zeros(4, np.int64)
        kills = 0
        for k in range(40):
            published = envs.broadcast(k).version
            if k % 10 == 5:
                os.kill(pids(envs)[kills % 2], signal.SIGKILL)
                kills += 1
            batch = await envs.step(zeros(4))
            check_aligned(batch)
            assert (batch.versions >= newest).all()
            assert (batch.versions[batch.first] >= published).all()
            newest = batch.versions
        await envs.broadcast("last")
        assert envs.statistics().restarts == kills
    check_episodes([event async for event in stream])


@pytest.mark.asyncio
async def test_beyond_the_budget_every_call_raises_the_same() -> None:
    """And nobody is given time to close any more: worker 0, which is stopped, would take for ever."""
    budget, timeouts = RestartBudget(2, per_s=3600), Timeouts(close=None)
    async with AsyncVecEnv(stamp_envs(4, 9), num_workers=2, restart=budget, timeouts=timeouts) as envs:
        await envs.reset(seed=1)
        envs.send(zeros(4))
        await envs.recv()
        for _ in range(2):
            pid = pids(envs)[1]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: pids(envs)[1] not in (pid, -1))  # type: ignore[misc]
            await envs.step(zeros(4))
        kill(pids(envs)[1])
        with pytest.raises(WorkerLost) as caught:
            await forever(envs)
        error = caught.value
        assert (error.worker, error.env_ids, error.exit_status) == (1, (2, 3), -9)
        assert len(error.crashes) == 3
        assert all("SIGKILL" in crash for crash in error.crashes)
        assert "budget of 2 in 3600 s" in str(error)
        calls: list[Any] = [
            lambda: envs.recv(),
            lambda: envs.reset(),
            lambda: envs.call("echo", 1),
            lambda: envs.get_attr("t"),
            lambda: envs.set_attr("t", 1),
            lambda: envs.step(zeros(4)),
        ]
        for call in calls:
            with pytest.raises(WorkerLost) as again:
                await call()
            assert again.value is error
        for plain in (lambda: envs.send(zeros(4)), lambda: envs.broadcast(1), lambda: envs.abort([0])):
            with pytest.raises(WorkerLost) as again:
                plain()
            assert again.value is error
        stop(pids(envs)[0])


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_restart_none_and_exit_during_a_call() -> None:
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, restart=None) as envs:
        await envs.reset(seed=1)
        stop(pids(envs)[0])
        call = asyncio.ensure_future(envs.call("echo", 1))
        await asyncio.sleep(0)
        os.kill(pids(envs)[0], signal.SIGKILL)
        with pytest.raises(WorkerLost, match="restarts are off"):
            await call


def test_the_budget_slides() -> None:
    log = RestartLog(RestartBudget(2, per_s=10))
    assert [log.allow(t, str(t)) for t in (0, 1, 11, 12, 13)] == [True, True, True, True, False]
    assert log.reasons == ("11", "12", "13")
    assert not RestartLog(None).allow(0, "x")
    assert not RestartLog(RestartBudget(0)).allow(0, "x")


@pytest.mark.parametrize(
    "kwargs", [{"restarts": -1}, {"restarts": 1.5}, {"per_s": 0}, {"per_s": -3}, {"restarts": True}]
)
def test_a_budget_that_makes_no_sense(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RestartBudget"):
        RestartBudget(**kwargs)


@pytest.mark.parametrize("name", ["start", "reset", "step", "close"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan"), "1", True])
def test_timeouts_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Timeouts: {name}"):
        Timeouts(**{name: value})


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_factory_that_fails_only_on_the_second_start(tmp_path: Path) -> None:
    factory = partial(second_start_fails, tmp_path / "made")
    async with AsyncVecEnv([factory], restart=RestartBudget(1, per_s=3600)) as envs:
        await envs.reset(seed=1)
        os.kill(pids(envs)[0], signal.SIGKILL)
        with pytest.raises(WorkerLost) as caught:
            await forever(envs)
        assert len(caught.value.crashes) == 2
        assert "could not be replaced: EnvError" in str(caught.value)
        assert "only once" in str(caught.value)


def second_start_fails(path: Path) -> StampEnv:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        raise RuntimeError("this factory works only once") from None
    return StampEnv(0)


class Settable:
    """A factory whose settings the caller may change, whenever."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def __call__(self) -> StampEnv:
        return StampEnv(0)


@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_factory_that_cannot_be_pickled_any_more(spares: int) -> None:
    """A replacement that is told nothing, warm or not, is a loss; nobody waits for it."""
    factory = Settable()
    async with AsyncVecEnv([factory], restart=RestartBudget(1, per_s=3600), spares=spares) as envs:
        await envs.reset(seed=1)
        factory.settings["lock"] = threading.Lock()
        os.kill(pids(envs)[0], signal.SIGKILL)
        async with asyncio.timeout(60):
            with pytest.raises(
                WorkerLost, match=r"could not be replaced: TypeError: envs\[0\] cannot be pickled"
            ):
                await forever(envs)


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_replacement_with_other_spaces(tmp_path: Path) -> None:
    factory = partial(another_space, tmp_path / "made")
    async with AsyncVecEnv([factory], restart=RestartBudget(1, per_s=3600)) as envs:
        await envs.reset(seed=1)
        os.kill(pids(envs)[0], signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"observation was .*\(4,\).* and is now .*\(5,\)"):
            await forever(envs)


def another_space(path: Path) -> StampEnv:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return StampEnv(0, width=5)
    return StampEnv(0)


# -- timeouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hang", "wait", "hang in c", "sigstop"])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f07_f08_a_worker_hangs(fault: str, tmp_path: Path) -> None:
    async with AsyncVecEnv(faulty(fault, tmp_path, at=0), num_workers=2, timeouts=Timeouts(step=1.5)) as envs:
        await envs.reset(seed=1)
        began = time.monotonic()
        envs.send(zeros(4))
        batch = await envs.recv(min_envs=2)
        assert batch.env_ids.tolist() == [2, 3]  # the others are not held up
        envs.send(zeros(2), [2, 3])
        batch = await envs.recv()
        assert time.monotonic() - began > 1.45
        reason = batch.infos["worker_lost"][0]
        assert "did not finish a step within 1.5 s" in reason
        if fault == "hang":
            assert "_hang" in reason  # the stack it was stuck in
        if fault == "hang in c":
            assert "_hang_in_c" in reason
        check_aligned(await envs.step(zeros(4)))


def test_f07_only_who_waits_for_a_cpu_is_given_time_to_tell_where_it_is_stuck() -> None:
    block = SharedBlock()
    child = launch(block.fd)
    try:
        wait_until(lambda: child.waits_for_cpu)  # it is importing
        stop(child.pid)
        assert not child.waits_for_cpu
    finally:
        child.close()
        block.close()


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_reset_hangs(tmp_path: Path) -> None:
    """Whoever else was late is replaced, too."""
    factories = faulty("hang", tmp_path, op="reset", at=1)
    async with AsyncVecEnv(factories, num_workers=2, timeouts=Timeouts(reset=0.4), restart=MANY) as envs:
        await envs.reset(seed=1)
        obs, _ = await envs.reset(seed=1)
        losses = [worker.losses for worker in envs.statistics().workers]
        assert obs[:, 3].tolist() == [0] * 4
        assert (obs[:2, 1] > 0).all()  # of a life that did not hang
        assert losses[0]
        assert all("did not finish a reset within 0.4 s" in loss for of in losses for loss in of)


@pytest.mark.parametrize("before", ["call", "reset"])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_step_is_timed_whatever_came_before_it(before: str, tmp_path: Path) -> None:
    timeouts = Timeouts(step=0.4, reset=1000)
    factories = faulty("hang", tmp_path, at=0)[:2]
    async with AsyncVecEnv(factories, num_workers=1, timeouts=timeouts, restart=MANY) as envs:
        await envs.reset(seed=1)
        if before == "call":
            asked = asyncio.ensure_future(envs.call("echo", 1))
            await asyncio.sleep(0)
        envs.send(zeros(2))
        batch = await envs.recv()
        assert batch.first.all()
        assert "did not finish a step within 0.4 s" in batch.infos["worker_lost"][0]
        if before == "call":
            assert await asked == (1, 1)


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f03_start_timeout() -> None:
    """The worker that hangs is the one that is named, once the limit is one that the other keeps on a busy machine.

    What hangs while it starts is given no grace: it would be for ever.
    """
    factories: list[Any] = stamp_envs(2)
    factories[1] = partial(FaultyEnv, 1, "wait", op="make")
    for limit_s in (1.5, 6, 24):
        timeouts = Timeouts(start=limit_s, close=None)
        with pytest.raises(WorkerTimeout, match=rf"did not start within {limit_s} s") as caught:
            await AsyncVecEnv.open(factories, num_workers=2, timeouts=timeouts)
        assert isinstance(caught.value, TimeoutError)
        if caught.value.worker == 1:
            return
    raise AssertionError("the worker that starts was named")


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f23_close_with_a_hung_worker(tmp_path: Path) -> None:
    hangs = partial(FaultyEnv, 0, "hang", at=0, once=tmp_path / "happened")
    envs = await AsyncVecEnv.open([hangs], timeouts=Timeouts(close=0.5))
    await envs.reset(seed=1)
    envs.send(zeros(1))
    await until((tmp_path / "happened").exists)
    (pid,) = pids(envs)
    began = time.monotonic()
    with pytest.raises(WorkerTimeout, match=r"did not close within 0\.5 s[\s\S]*_hang"):
        await envs.aclose()
    assert time.monotonic() - began > 0.45
    assert not alive(pid)


@pytest.mark.asyncio
async def test_f43_f45_a_blocked_loop_makes_no_worker_late() -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=1, timeouts=Timeouts(step=1)) as envs:
        await envs.reset(seed=1)
        envs.send(zeros(2))
        time.sleep(1.2)  # noqa: ASYNC251 the user's own blocking call, while the replies are in
        check_aligned(await envs.recv())
        assert envs.statistics().restarts == 0


@pytest.mark.asyncio
async def test_f43_parent_and_workers_suspended_together() -> None:
    """The workers stand still as long as the parent: nobody is late."""
    async with AsyncVecEnv(stamp_envs(2), num_workers=1, timeouts=Timeouts(step=1.2)) as envs:
        await envs.reset(seed=1)
        for pid in pids(envs):
            stop(pid)
        envs.send(zeros(2))
        time.sleep(1.4)  # noqa: ASYNC251 on purpose
        for pid in pids(envs):
            os.kill(pid, signal.SIGCONT)
        check_aligned(await envs.recv())
        worker: Any = envs._supervisor.workers[0]
        assert not worker._verdict  # nor is it about to be killed


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f45_closing_is_not_late_where_the_loop_stood_still_meanwhile() -> None:
    envs = await AsyncVecEnv.open(stamp_envs(2), num_workers=1, timeouts=Timeouts(close=1))
    closing = asyncio.ensure_future(envs.aclose())
    workers: Any = envs._supervisor.workers
    while any(w.conversation.state is State.READY for w in workers):  # noqa: ASYNC110 not a moment longer
        await asyncio.sleep(0)
    time.sleep(1.2)  # noqa: ASYNC251 the user's own blocking call, while the workers end
    await closing


class SlowEnv(StampEnv):
    def step(self, action: Any) -> Any:
        time.sleep(0.3)
        return super().step(action)


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f45_who_waits_for_a_blocked_loop_is_not_late() -> None:
    """The second update of a topic leaves once the first was acknowledged, and the step waits for it."""
    async with AsyncVecEnv([partial(SlowEnv, 0)], timeouts=Timeouts(step=1.5)) as envs:
        await envs.reset(seed=1)
        envs.broadcast("first")
        envs.broadcast("second")
        envs.send(zeros(1))
        time.sleep(1.4)  # noqa: ASYNC251 on purpose: until just before the limit
        check_aligned(await envs.recv())
        assert envs.statistics().restarts == 0


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f45_what_hangs_beside_a_loop_that_is_blocked_again_and_again(tmp_path: Path) -> None:
    factories, timeouts = faulty("hang", tmp_path, at=0), Timeouts(step=0.05)
    async with AsyncVecEnv(factories, num_workers=2, timeouts=timeouts, restart=MANY) as envs:
        await envs.reset(seed=1)
        envs.send(zeros(4))
        turns = 0
        while not envs.statistics().workers[0].losses:
            batch = await envs.recv(min_envs=2)
            time.sleep(0.2)  # noqa: ASYNC251 the user's own work on them, longer than the limit
            envs.send(zeros(len(batch.env_ids)), batch.env_ids)
            turns += 1
            assert turns < 60


# -- giving up, spares -------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_abort_gives_up_a_stuck_worker(tmp_path: Path) -> None:
    async with AsyncVecEnv(faulty("wait", tmp_path, at=0), num_workers=2) as envs:
        await envs.reset(seed=1)
        envs.send(zeros(4))
        assert (await envs.recv(min_envs=2)).env_ids.tolist() == [2, 3]
        await until((tmp_path / "happened").exists)
        envs.abort([1])
        batch = await envs.recv()
        assert batch.env_ids.tolist() == [0, 1]
        assert batch.truncations.all()
        assert "aborted by the caller" in batch.infos["worker_lost"][0]
        check_aligned(await envs.step(zeros(4)))
        with pytest.raises(ValueError, match="env_ids"):
            envs.abort([9])


def slow_second_life(folder: Path) -> StampEnv:
    """Its first replacement is never made: without a limit for the start, only the caller can end that."""
    life = len(list(folder.iterdir()))
    (folder / str(life)).touch()
    while life == 1:
        time.sleep(0.01)  # until it is killed
    return StampEnv(0, 9)


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_abort_gives_up_a_replacement_that_is_being_made(tmp_path: Path) -> None:
    make, timeouts = partial(slow_second_life, tmp_path), Timeouts(start=None)
    async with AsyncVecEnv([make], num_workers=1, timeouts=timeouts) as envs:
        await envs.reset(seed=1)
        os.kill(pids(envs)[0], signal.SIGKILL)
        envs.send(zeros(1))
        await until((tmp_path / "1").exists)
        envs.abort([0])
        async with asyncio.timeout(60):
            batch = await envs.recv()
        assert "aborted by the caller while starting" in batch.infos["worker_lost"][0]
        assert batch.first.all()
        assert envs.statistics().restarts == 2
        check_aligned(await envs.step(zeros(1)))


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_spares_replace_at_once_and_are_restocked() -> None:
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, spares=1, restart=MANY) as envs:
        await envs.reset(seed=1)
        for lost in range(1, 3):
            backend: Any = envs._backend
            await until(lambda backend=backend: len(backend._spares) == 1)  # type: ignore[misc]
            spare = backend._spares[0].pid
            pid = pids(envs)[0]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: pids(envs)[0] not in (pid, -1))  # type: ignore[misc]
            assert pids(envs)[0] == spare
            check_aligned(await envs.step(zeros(2)))
            assert envs.statistics().restarts == lost
        await until(lambda: len(backend._spares) == 1)
        os.kill(backend._spares[0].pid, signal.SIGKILL)  # a spare that died costs nothing
        await until(lambda: backend._spares[0].exited)
        os.kill(pids(envs)[0], signal.SIGKILL)
        await until(lambda: envs.statistics().restarts == 3)
        check_aligned(await envs.step(zeros(2)))
        assert envs.statistics().restarts == 3


async def lose(envs: AsyncVecEnv, worker: int) -> None:
    """Until it was replaced."""
    os.kill(pids(envs)[worker], signal.SIGKILL)
    await until(lambda: envs._supervisor.recorder.recoveries_s)


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_spare_that_cannot_be_started_is_a_warning() -> None:
    """Without descriptors for another one, the worker that was replaced goes on."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, spares=1) as envs:
        await envs.reset(seed=1)
        gc.collect()  # what is collected later gives descriptors back
        try:
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1])
            )
            with suppress(OSError):
                while True:
                    held.append(os.dup(0))
            with pytest.warns(UserWarning, match=r"no process could be started .*Too many open files"):
                await lose(envs, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in held:
                os.close(fd)
        check_aligned(await envs.step(zeros(2)))


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_who_is_closed_while_its_end_is_awaited_leaves_its_numbers_to_others() -> None:
    """Whoever gets the number of its descriptor goes on being heard."""
    loop = asyncio.get_running_loop()
    block = os.open(os.devnull, os.O_RDONLY)
    child = launch(block)
    os.close(block)
    number, opened = child.pidfd, list[int]()
    ending = asyncio.ensure_future(_exited(child))
    await asyncio.sleep(0)
    loop.remove_reader(number)
    child.close()
    while number not in opened:
        opened += os.pipe()
    loop.add_reader(number, print)
    ending.cancel()
    await asyncio.wait([ending])
    assert loop.remove_reader(number)
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize("name", ["make", "reset", "close"])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f06_a_worker_dies_outside_a_step(name: Any, tmp_path: Path) -> None:
    factories: list[Any] = stamp_envs(2)
    factories[1] = partial(FaultyEnv, 1, "segfault", op=name, at=0, once=tmp_path / "once")
    if name == "make":
        with pytest.raises(
            WorkerLost, match=r"worker 1 \(envs 1-1\) was killed by SIGSEGV[\s\S]* while starting"
        ):
            await AsyncVecEnv.open(factories, num_workers=2)
        return
    async with AsyncVecEnv(factories, num_workers=2) as envs:
        obs, _ = await envs.reset(seed=1)
        assert obs[:, 3].tolist() == [0, 0]
        check_aligned(await envs.step(zeros(2)))


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f12_the_workers_own_children_go_with_it(tmp_path: Path) -> None:
    factory = partial(FaultyEnv, 0, "child", op="reset", at=0, length=99)
    async with AsyncVecEnv([factory], restart=MANY) as envs:
        await envs.reset(seed=1)
        children = [pid for pid in _group(pids(envs)[0]) if pid != pids(envs)[0]]
        assert children
        os.kill(pids(envs)[0], signal.SIGKILL)
        await until(lambda: not any(alive(pid) for pid in children))
        await envs.step(zeros(1))
        again = [pid for pid in _group(pids(envs)[0]) if pid != pids(envs)[0]]
        assert again
    await until(lambda: not any(alive(pid) for pid in again))


def _group(pgid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == pgid:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_on_env_error_reset_and_losses_together(tmp_path: Path) -> None:
    """An env that raises and a worker that dies in one and the same step."""
    factories: list[Any] = [
        partial(FaultyEnv, 0, "raise", at=1, length=9),
        partial(FaultyEnv, 1, "sigkill", at=1, length=9, once=tmp_path / "once"),
    ]
    async with AsyncVecEnv(factories, num_workers=2, on_env_error="reset") as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(2))
        batch = await envs.step(zeros(2))
        assert batch.first.all()
        assert batch.truncations.all()
        assert "env is broken" in batch.infos["env_error"][0]
        assert "SIGKILL" in batch.infos["worker_lost"][1]


@pytest.mark.asyncio
async def test_a_worker_is_lost_after_its_reset_was_replied_and_before_the_others() -> None:
    """The row of the reset stays what it is; the next one begins the replacement, and says so."""
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, backend=backend, restart=MANY) as envs:
        stream = envs.events()
        backend.automatic = False
        task = asyncio.ensure_future(envs.reset(seed=1))
        await asyncio.sleep(0)
        backend.deliver(0)
        backend.lose(0)
        await until(lambda: envs.statistics().recovery.p50_s > 0)  # replaced, while the other still resets
        backend.deliver(1)
        backend.automatic = True
        await task
        batch = await envs.step(zeros(2))
        assert batch.first.tolist() == [True, False]
        assert "worker_lost" in batch.infos
        check_aligned(batch)
        batch = await envs.step(zeros(2))
        assert not batch.first.any()
        check_aligned(batch)
        check_episodes([await anext(stream) for _ in range(stream.behind)], finished=False)


@pytest.mark.parametrize("when", ["idle", "ended", "in the reset"])
@pytest.mark.asyncio
async def test_a_replacement_is_seeded_also_by_a_reset_that_brings_no_seed(when: str) -> None:
    """A fresh process has no generator to go on with: what it draws would be another story in each run."""
    backend = ScriptedBackend(automatic=True)
    mode = AutoresetMode.DISABLED if when == "ended" else AutoresetMode.NEXT_STEP
    async with AsyncVecEnv(stamp_envs(2, 1), num_workers=1, backend=backend, autoreset=mode) as envs:
        stream = envs.events()
        await envs.reset(seed=7)
        if when == "ended":
            assert (await envs.step(zeros(2))).terminations.all()
        if when == "in the reset":
            backend.automatic = False
        else:
            backend.lose(0)
            await until(lambda: envs.statistics().recovery.p50_s > 0)
        resetting = asyncio.ensure_future(envs.reset(seed=[None, 9]))
        if when == "in the reset":
            await asyncio.sleep(0)
            backend.lose(0)
            await until(lambda: envs.statistics().recovery.p50_s > 0)
            backend.automatic = True
        await resetting
        derived = derive_seed(7, 0, 1)
        assert await envs.get_attr("seeds") == ([derived], [9])
        await envs.reset()  # from here on there is a generator to go on with
        assert await envs.get_attr("seeds") == ([derived, None], [9, None])
        begun = [
            e for e in [await anext(stream) for _ in range(stream.behind)] if isinstance(e, EpisodeStarted)
        ]
        assert [(e.env_id, e.seed) for e in begun] == [
            (0, 7),
            (1, 8),
            (0, derived),
            (1, 9),
            (0, None),
            (1, None),
        ]


@pytest.mark.asyncio
async def test_a_reset_that_is_tried_again_in_a_replacement_says_its_seed(tmp_path: Path) -> None:
    """on_env_error="reset": the step raises, so does the reset, and the worker dies before it has tried again."""
    backend = ScriptedBackend(automatic=True)
    broken = partial(FaultyEnv, 0, "raise", op="reset", at=1, length=9, once=tmp_path / "reset")

    class Broken(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            if action:
                raise RuntimeError("broken")
            return self.env.step(action)

    async with AsyncVecEnv(
        lambda: Broken(broken()), 1, backend=backend, restart=MANY, on_env_error="reset"
    ) as envs:
        stream = envs.events()
        await envs.reset(seed=7)
        backend.automatic = False
        envs.send(np.ones(1, np.int64))
        backend.deliver(0)  # both raise; a reset of its own follows
        backend.lose(0)
        backend.automatic = True
        await envs.recv()
        (seeds,) = await envs.get_attr("seeds")
        events = [await anext(stream) for _ in range(stream.behind)]
        assert [e.seed for e in events if isinstance(e, EpisodeStarted)] == [7, *seeds]
        assert seeds == [derive_seed(7, 0, 1)]


@pytest.mark.asyncio
async def test_options_are_those_of_the_call_also_for_a_replacement() -> None:
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=1, backend=backend, restart=MANY) as envs:
        await envs.reset(seed=1)
        backend.automatic = False
        options: dict[str, Any] = {"level": 1}
        resetting = asyncio.ensure_future(envs.reset(options=options))
        await asyncio.sleep(0)
        options.update(level=2, lock=threading.Lock())  # the caller's again
        backend.lose(0)
        backend.automatic = True
        _, infos = await asyncio.wait_for(resetting, 10)
        assert infos["options"].tolist() == ["{'level': 1}"] * 2


@pytest.mark.parametrize("policy", ["raise", "reset"])
@pytest.mark.asyncio
async def test_a_replacement_that_fails_its_first_reset_is_seeded_all_the_same(
    policy: Literal["raise", "reset"], tmp_path: Path
) -> None:
    """And its row says that the worker was lost."""
    backend = ScriptedBackend(automatic=True)
    make = partial(FaultyEnv, 0, "raise", op="reset", at=0, length=9, once=tmp_path / "once")
    (tmp_path / "once").touch()
    async with AsyncVecEnv(make, 1, backend=backend, restart=MANY, on_env_error=policy) as envs:
        await envs.reset(seed=7)
        (tmp_path / "once").unlink()
        backend.lose(0)
        await until(lambda: envs.statistics().recovery.p50_s > 0)
        if policy == "raise":
            with pytest.raises(EnvError):
                await envs.step(zeros(1))
            await envs.reset()
        else:
            assert "worker_lost" in (await envs.step(zeros(1))).infos
        assert (await envs.get_attr("seeds"))[0][-1] == derive_seed(7, 0, 1)


@pytest.mark.asyncio
async def test_a_cancelled_reset_whose_worker_was_lost_after_its_reply_leaves_a_seed() -> None:
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, backend=backend, restart=MANY) as envs:
        await envs.reset(seed=7)
        backend.automatic = False
        resetting = asyncio.ensure_future(envs.reset())
        await asyncio.sleep(0)
        backend.deliver(0)
        backend.lose(0)
        await until(lambda: envs.statistics().recovery.p50_s > 0)
        resetting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resetting
        backend.automatic = True
        await envs.reset()
        assert (await envs.get_attr("seeds", env_ids=[0]))[0][-1] == derive_seed(7, 0, 1)


@pytest.mark.asyncio
async def test_a_cancelled_reset_of_an_ended_env_does_not_hold_the_watermark() -> None:
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(
        stamp_envs(2, 1), num_workers=2, backend=backend, autoreset=AutoresetMode.DISABLED
    ) as envs:
        await envs.reset(seed=1)
        assert (await envs.step(zeros(2))).terminations.all()
        backend.automatic = False
        resetting = asyncio.ensure_future(envs.reset(env_ids=[0]))
        await asyncio.sleep(0)
        resetting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resetting
        backend.automatic = True
        for _ in range(3):
            await envs.reset(env_ids=[1])
            envs.send(zeros(1), [1])
            batch = await envs.recv()
            assert batch.watermark > batch.episodes[0].order  # nothing older runs, or will begin


@pytest.mark.asyncio
async def test_g07_also_what_is_applied_at_once_comes_in_version_order() -> None:
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, restart=MANY) as envs:
        await envs.reset(seed=1)
        envs.broadcast("A", topic="a")
        envs.broadcast("B", topic="b", apply="now")
        await envs.broadcast("C", topic="c")
        kill(pids(envs)[0])
        assert (await envs.step(zeros(2))).first.tolist() == [True, False]
        assert (await envs.get_attr("heard", env_ids=[0])) == ([(1, "A"), (2, "B"), (3, "C")],)


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_f05_an_env_that_exits_and_then_cannot_be_closed() -> None:
    async with AsyncVecEnv(_Leaver, 2, num_workers=2, restart=MANY) as envs:
        await envs.reset()
        async with asyncio.timeout(60):
            batch = await envs.step(np.array([1, 0]))
        assert batch.first.tolist() == [True, False]
        assert batch.infos["worker_lost"][0] == "exited with status 3"


class _Leaver(StampEnv):
    """Action 1 ends its process; after that its close() never returns."""

    def __init__(self) -> None:
        super().__init__(0, 9)
        self.left = False

    def step(self, action: np.int64) -> Any:
        if action:
            self.left = True
            sys.exit(3)
        return super().step(action)

    def close(self) -> None:
        while self.left:
            signal.pause()


@pytest.mark.asyncio
async def test_an_env_raises_then_its_worker_is_lost_before_anyone_asks(tmp_path: Path) -> None:
    """After its reset nothing of the loss is left to be told about that env."""
    backend = ScriptedBackend(automatic=True)
    factories: list[Any] = stamp_envs(2, 50)
    factories[0] = partial(FaultyEnv, 0, "raise", at=1, length=50, once=str(tmp_path / "once"))
    async with AsyncVecEnv(factories, num_workers=1, backend=backend, restart=MANY) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        await envs.step(zeros(2))
        backend.automatic = False
        envs.send(zeros(1), [0])
        envs.send(zeros(1), [1])
        backend.deliver(0)
        backend.lose(0)
        backend.automatic = True
        with pytest.raises(EnvError):
            await envs.recv()
        assert (await envs.recv()).env_ids.tolist() == [1]
        await envs.reset(env_ids=[0])
        for _ in range(2):
            batch = await envs.step(zeros(2))
            assert not batch.first.any()
            check_aligned(batch)
        check_episodes([await anext(stream) for _ in range(stream.behind)], finished=False)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_vector_env_that_takes_one_seed_is_replaced(seed: int | None) -> None:
    make = partial(gym.make_vec, "CartPole-v1", 2, vectorization_mode="vector_entry_point")
    async with AsyncVecEnv([make] * 2, num_workers=1, restart=MANY) as envs:
        await envs.reset(seed=seed)
        stream = envs.events()
        for _ in range(2):
            kill(pids(envs)[0])
            batch = await envs.step(zeros(4))
            assert batch.first.all()
            assert batch.truncations.all()
            assert set(batch.infos["worker_lost"])
            assert (np.abs(batch.obs) <= 0.05).all()
        events = [await anext(stream) for _ in range(stream.behind)]
        begun = [event.seed for event in events if isinstance(event, EpisodeStarted)]
        first = [derive_seed(seed, 0, restart) for restart in (1, 2)]
        assert begun == [None if one is None else one + i for one in first for i in range(4)]


@pytest.mark.parametrize("when", ["before", "under way", "replied"])
@pytest.mark.parametrize("length", [1, 50])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_some_rows_of_a_vector_env_are_reset_and_its_worker_is_lost(
    when: str, length: int, mode: AutoresetMode
) -> None:
    """Those rows go on from there; the others begin with the next step."""
    backend = ScriptedBackend(automatic=True)
    make = partial(SyncVectorEnv, stamp_envs(3, length), autoreset_mode=mode)
    async with AsyncVecEnv([make], num_workers=1, backend=backend, autoreset=mode, restart=MANY) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        backend.automatic = False
        if when == "replied":
            envs.send(zeros(3))
            backend.deliver(0)
        if when == "under way":
            reset = asyncio.ensure_future(envs.reset(seed=9, env_ids=[1]))
            await asyncio.sleep(0)
        backend.lose(0)
        backend.automatic = True
        await until(lambda: envs.statistics().recovery.p50_s > 0)
        obs, _ = await (reset if when == "under way" else envs.reset(seed=9, env_ids=[1]))
        assert (obs[:, 0].tolist(), obs[:, 3].tolist()) == ([1], [0])
        if when == "replied":
            batch = await envs.recv()
            assert batch.env_ids.tolist() == [0, 2]
            assert not batch.first.any()
            if length == 1 and mode is AutoresetMode.DISABLED:
                await envs.reset(env_ids=[0, 2])
                return
        batch = await envs.step(zeros(3))
        assert batch.first.tolist() == [True, False, True]
        assert batch.truncations.tolist() == [True, False, True]
        assert batch.infos["_worker_lost"].tolist() == [True, False, True]
        assert batch.terminations.tolist() == [False, length == 1, False]
        assert batch.rewards.tolist() == [0, 1, 0]
        if length > 1:
            for t in (1, 2):
                check_aligned(batch)
                assert batch.obs[:, 3].tolist() == [t - 1, t, t - 1]
                batch = await envs.step(zeros(3))
                assert not batch.first.any()
        events = [await anext(stream) for _ in range(stream.behind)]
        check_episodes(events, finished=False)
        begun = [event.seed for event in events if isinstance(event, EpisodeStarted) and event.env_id == 1]
        assert [seed for seed in begun if seed is not None] == [2, 10]


class LateBackend(ScriptedBackend):
    """Its worker 1 attaches only when `go` is set."""

    def __init__(self) -> None:
        super().__init__(automatic=True)
        self.go = asyncio.Event()

    def worker(self, index: int, incarnation: int, listener: Any) -> Any:
        worker = super().worker(index, incarnation, listener)
        if index == 1:
            attach = worker.attach

            async def late(attachment: Any) -> None:
                await self.go.wait()
                await attach(attachment)

            worker.attach = late  # type: ignore[method-assign]
        return worker


@pytest.mark.asyncio
async def test_a_worker_lost_while_others_still_attach_is_what_every_call_raises() -> None:
    backend = LateBackend()
    opening = asyncio.ensure_future(
        AsyncVecEnv.open(stamp_envs(2), num_workers=2, backend=backend, restart=None)
    )
    await until(lambda: 0 in backend.workers and backend.workers[0].conversation.state.name == "READY")
    backend.lose(0)
    backend.go.set()
    envs = await opening
    for use in (envs.reset(seed=1), envs.step(zeros(2)), envs.recv()):
        with pytest.raises(WorkerLost, match="killed by the script"):
            await use
    await envs.aclose()
