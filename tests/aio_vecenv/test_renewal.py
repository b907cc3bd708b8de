"""Planned renewal: fresh processes between episodes; nothing aborted, nothing lost or doubled, no budget touched."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import NormalizeObservation

from aio_vecenv import (
    AsyncVecEnv,
    BadActions,
    Batch,
    Episode,
    RenewAfter,
    RestartBudget,
    Timeouts,
    WorkerLost,
)
from aio_vecenv.backends.inline import InlineBackend
from aio_vecenv.runtime.supervisor import Supervisor
from aio_vecenv.testing import ScriptedBackend, StampEnv, check_aligned, check_episodes, stamp_envs

from .envs import Learns, Once, Pictured, Sure, Unclosable, Wanders, Zeros, length
from .harness import alive, until

pytestmark = pytest.mark.alternate_loops


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


def pids(envs: AsyncVecEnv) -> list[int]:
    return [worker.pid for worker in envs.statistics().workers]


Way = Literal["lockstep", "first ready", "unrolls", "unrolls, first ready"]


def act(envs: AsyncVecEnv, way: Way, env_ids: Any = None) -> None:
    n = envs.num_envs if env_ids is None else len(env_ids)
    if way.startswith("unrolls"):
        envs.send_unroll(np.zeros((5, n), np.float32), env_ids)
    else:
        envs.send(zeros(n), env_ids)


async def see(envs: AsyncVecEnv, way: Way) -> tuple[Any, list[Batch]]:
    """Whose rows are in, and these."""
    least = 2 if way.endswith("first ready") else None
    if not way.startswith("unrolls"):
        batch = await envs.recv(least)
        return batch.env_ids, [batch]
    chunk = await envs.recv_unroll(least)
    return chunk.env_ids, [chunk.row(t) for t in range(len(chunk.rewards))]


@pytest.mark.parametrize("way", ["lockstep", "first ready", "unrolls", "unrolls, first ready"])
@pytest.mark.asyncio
async def test_every_outcome_counts_once_and_none_is_aborted(tmp_path: Path, way: Way) -> None:
    """Two workers of three envs, renewed again and again, where not one restart is allowed."""
    factories = stamp_envs(6, length, folder=tmp_path)
    async with AsyncVecEnv(
        factories, num_workers=2, restart=None, renew_after=4, policy=Zeros(), unroll=5
    ) as envs:
        stream = envs.events()
        await envs.reset(seed=5)
        version, published, waited, env_ids = 0, 0, 0, None
        while min(worker.incarnation for worker in envs.statistics().workers) < 2:
            act(envs, way, env_ids)
            env_ids, batches = await see(envs, way)
            for batch in batches:
                check_aligned(batch)
                assert "worker_lost" not in batch.infos
                waits = batch.infos.get("_worker_renewal", zeros(len(batch.env_ids)).astype(bool))
                waited += int(waits.sum())
                if way == "lockstep":  # what begins does so under the newest update
                    assert (batch.versions[batch.first & ~waits] == published).all()
            version += 1
            published = envs.broadcast(version).version
        assert waited or way == "first ready"  # there the rows come once the new process is there
        statistics = envs.statistics()
        assert (statistics.restarts, statistics.aborted) == (0, 0)
        await until(lambda: envs.statistics().renewals >= 4)  # the last one may still map its memory
        assert not any(worker.losses for worker in statistics.workers)
    events = [event async for event in stream]
    check_episodes(events)
    ended = [event for event in events if isinstance(event, Episode) and event.outcome != "aborted"]
    reported = [Counter((e.task["episode"], e.length) for e in ended if e.env_id == env) for env in range(6)]
    for env in range(6):
        lines = (tmp_path / f"env-{env}.log").read_text().splitlines()
        assert len({line for line in lines if line.startswith("life")}) >= 3  # processes
        # each that an env played, in whichever process, is reported; but those whose rows nobody has taken
        numbers = [line.split() for line in lines if line.startswith("end")]
        played = Counter((int(episode), int(length)) for _, _, episode, length, _ in numbers)
        assert not reported[env] - played
        assert sum((played - reported[env]).values()) <= (5 if way.endswith("first ready") else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.asyncio
async def test_what_leaks_is_renewed_by_its_memory_and_the_others_do_not_notice(tmp_path: Path) -> None:
    """Its old process is closed; the envs of the other worker play bit for bit what they play without."""

    async def rows(leak: int, after: RenewAfter | None, backend: Any) -> list[Any]:
        factories = [partial(Wanders, leak, tmp_path), *[partial(Wanders, 0, tmp_path)] * 3]
        async with AsyncVecEnv(factories, num_workers=2, backend=backend, renew_after=after) as envs:
            found: list[Any] = [(await envs.reset(seed=3))[0][2:]]
            before = pids(envs)
            for _ in range(12):
                batch = await envs.step(zeros(4))
                found += [batch.obs[2:], batch.first[2:], batch.terminations[2:]]
            if after is not None:
                await until(lambda: envs.statistics().renewals == 1)
                assert pids(envs)[0] != before[0]
                assert pids(envs)[1] == before[1]
                await until(lambda: (tmp_path / f"closed-{before[0]}").exists() and not alive(before[0]))
            assert (envs.statistics().restarts, envs.statistics().aborted) == (0, 0)
        return found

    ours, plain = await rows(50_000_000, RenewAfter(megabytes=400), "process"), await rows(0, None, "inline")
    assert all((one == other).all() for one, other in zip(ours, plain, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.asyncio
async def test_a_limit_that_a_fresh_process_passes_is_said_and_renews_nobody() -> None:
    """Else each episode would have a process of its own. The row that the warning stands before is not lost."""
    after = RenewAfter(megabytes=5)
    async with AsyncVecEnv(partial(StampEnv, 0, 4), 1, restart=None, renew_after=after) as envs:
        await envs.reset()
        await steps(envs, 4)
        envs.send(zeros(1))
        why = r"worker 0 \(envs 0-0\) held \d+ MB when its first episode ended, and the limit is 5 MB"
        with pytest.raises(UserWarning, match=why):  # as filters here say of all
            await envs.recv()
        assert (await envs.recv()).first.all()
        await steps(envs, 9)
        assert envs.statistics().renewals == 0


@pytest.mark.asyncio
async def test_a_quarter_of_the_workers_is_renewed_at_once_the_oldest_first() -> None:
    """Of those that are due together; the others play an episode more and are not forgotten."""
    backend = ScriptedBackend(automatic=True)
    factories: list[Any] = [partial(StampEnv, env, 2) for env in range(8)]
    async with AsyncVecEnv(factories, num_workers=8, backend=backend, restart=None, renew_after=1) as envs:
        await envs.reset()
        await steps(envs, 2)
        for renewed in (2, 4, 6, 8):
            await steps(envs, 3)
            incarnations = [worker.incarnation for worker in envs.statistics().workers]
            assert incarnations == [1] * renewed + [0] * (8 - renewed)


class MadeLate(StampEnv):
    """Its second process is never done with making it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        while self.life == 1:
            time.sleep(0.01)


class ClosesLate(StampEnv):
    """It does not close before there is a file."""

    def __init__(self, env: int, file: Path) -> None:
        super().__init__(env, 1)
        self._file = file

    def close(self) -> None:
        while not self._file.exists():
            time.sleep(0.01)


@pytest.mark.asyncio
async def test_old_processes_that_close_late_do_not_pile_up(tmp_path: Path) -> None:
    factories: list[Any] = [partial(ClosesLate, env, tmp_path / "close") for env in range(2)]
    async with AsyncVecEnv(factories, num_workers=2, renew_after=1, timeouts=Timeouts(close=60)) as envs:
        try:
            await envs.reset()
            while not envs.statistics().renewals:
                await steps(envs, 1)
            await steps(envs, 8)
            assert envs.statistics().renewals == 1
        finally:
            (tmp_path / "close").touch()
        while envs.statistics().renewals < 2:
            await steps(envs, 1)


@pytest.mark.parametrize("way", ["lockstep", "unrolls"])
@pytest.mark.asyncio
async def test_what_a_reset_cuts_off_or_discards_counts_as_well(way: Way) -> None:
    """Whose episodes are always cut off by the caller leaks, too."""
    envs = AsyncVecEnv(partial(StampEnv, 0, 9), 1, restart=None, renew_after=3, policy=Zeros(), unroll=5)
    async with envs:
        for seed in range(4):
            assert envs.statistics().renewals == 0
            await envs.reset(seed=seed)
            act(envs, way)
            if seed % 2:
                await see(envs, way)
        await envs.reset()
        assert envs.statistics().renewals == 1


@pytest.mark.asyncio
async def test_an_unroll_that_is_refused_renews_nobody() -> None:
    """Before anything is sent, nothing has happened."""
    async with AsyncVecEnv(partial(StampEnv, 0, 1), 1, renew_after=1, policy=Zeros(), unroll=5) as envs:
        await envs.reset()
        await steps(envs, 1)
        before = envs.statistics()
        with pytest.raises(BadActions):
            envs.send_unroll(np.zeros((5, 2), np.float32))
        await envs.get_attr("spec")
        assert pids(envs) == [before.workers[0].pid]
        await envs.unroll(np.zeros((1, 1), np.float32))
        assert pids(envs) != [before.workers[0].pid]


@pytest.mark.asyncio
async def test_where_all_envs_of_a_worker_wait_the_policy_is_not_asked() -> None:
    """Rows of a chunk in which nothing happens: `first`, and the policy said nothing of them."""
    factories = [partial(StampEnv, 0, 2), partial(StampEnv, 1, 4)]
    async with AsyncVecEnv(factories, num_workers=1, renew_after=5, policy=Sure(), unroll=8) as envs:
        await envs.reset()
        waited = False
        while envs.statistics().renewals < 2:
            chunk = await envs.unroll(np.zeros((8, 2), np.float32))
            asked = chunk.outputs["one"] == 1
            assert chunk.first[~asked].all()
            assert not chunk.actions[~asked].any()
            assert asked[~chunk.first].all()
            waited |= not asked.all()
        assert waited


@pytest.mark.asyncio
async def test_what_envs_have_learned_goes_with_them() -> None:
    """Each env has its own, nobody having asked before."""
    factories = [partial(Learns, 0, 2), partial(Learns, 1, 3)]
    async with AsyncVecEnv(factories, num_workers=1, restart=None, renew_after=2) as envs:
        await envs.reset()
        steps = zeros(2)
        while envs.statistics().renewals < 2:
            batch = await envs.step(zeros(2))
            steps += ~batch.first
        assert await envs.get_attr("seen") == tuple(steps)


@pytest.mark.asyncio
async def test_statistics_that_were_frozen_stay_frozen() -> None:
    """However they were: here, by a call to the wrapper."""
    env = partial(gym.make, "CartPole-v1", max_episode_steps=1)
    async with AsyncVecEnv(lambda: NormalizeObservation(env()), 1, renew_after=1) as envs:
        await envs.reset()
        await envs.set_attr("update_running_mean", False)
        while not envs.statistics().renewals:
            await envs.step(zeros(1))
        assert await envs.get_attr("update_running_mean") == (False,)


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.asyncio
async def test_a_call_never_meets_an_env_that_was_not_reset(autoreset: AutoresetMode) -> None:
    """Between an end and the next command it meets the old process, as without renewals; after that, the new one."""
    env = partial(Pictured, 0, 2)
    async with AsyncVecEnv(env, 1, restart=None, renew_after=1, autoreset=autoreset) as envs:
        await envs.reset()
        for episode in range(3):
            picture = pids(envs)
            await steps(envs, 2)
            assert await envs.get_attr("picture") == tuple(picture)
            assert await envs.call("get_wrapper_attr", "picture") == tuple(picture)
            resets = autoreset is AutoresetMode.DISABLED
            command: Any = envs.reset(seed=episode) if resets else envs.step(zeros(1))
            beginning = asyncio.create_task(command)
            await asyncio.sleep(0)
            (under_way,) = await envs.get_attr("picture")
            await beginning
            assert [under_way] == pids(envs) != picture  # it came after the command
            await until(lambda: not envs._supervisor.retiring)  # the next renewal waits for it
        assert envs.statistics().renewals == 3


async def steps(envs: AsyncVecEnv, count: int) -> None:
    for _ in range(count):
        check_aligned(await envs.step(zeros(envs.num_envs)))


@pytest.mark.asyncio
async def test_a_renewal_that_fails_leaves_the_old_process_as_it_was(tmp_path: Path) -> None:
    """One warning, no loss, no end, and a second try as long after. What closing the old one raises is a warning."""
    async with AsyncVecEnv(partial(Once, tmp_path), 1, restart=None, renew_after=2) as envs:
        await envs.reset()
        before = pids(envs)
        why = r"worker 0 could not be renewed, and goes on for 2 episodes more: .*FileExistsError"

        async def two_tries_but_one_step() -> None:
            await steps(envs, 6)
            (tmp_path / "made").unlink()
            await steps(envs, 5)

        with pytest.warns(UserWarning, match=why):
            await two_tries_but_one_step()
        statistics = envs.statistics()
        assert (pids(envs), statistics.renewals, statistics.terminated) == (before, 0, 4)
        await steps(envs, 1)
        statistics = envs.statistics()
        assert (statistics.renewals, statistics.restarts, statistics.aborted) == (1, 0, 0)
        assert pids(envs) != before
    envs = await AsyncVecEnv.open(partial(Unclosable, 0, 2), 1, restart=None, renew_after=1)
    await envs.reset()

    async def closed(caught: Any) -> None:
        await steps(envs, 3)
        await until(lambda: len(caught))

    with pytest.warns(UserWarning, match="worker 0 was renewed; its old process: .*busy") as caught:
        await closed(caught)
    with pytest.raises(Exception, match="busy"):
        await envs.aclose()


@pytest.mark.parametrize("when", ["envs wait", "the new process is made"])
@pytest.mark.asyncio
async def test_a_worker_that_dies_while_it_is_due_is_an_ordinary_loss(when: str, tmp_path: Path) -> None:
    """While envs wait for others, and while its successor is made."""
    first: Any = StampEnv if when == "envs wait" else MadeLate
    factories: list[Any] = [partial(first, 0, 1, folder=tmp_path), partial(StampEnv, 1, 6)]

    def processes() -> list[int]:
        lines = (tmp_path / "env-0.log").read_text().splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("life")]

    async with AsyncVecEnv(factories, num_workers=1, renew_after=1) as envs:
        stream = envs.events()
        await envs.reset()
        for _ in range(3 if when == "envs wait" else 6):
            batch = await envs.step(zeros(2))
        assert bool(batch.terminations[1]) is (when != "envs wait")
        assert batch.first[0]
        envs.send(zeros(2))
        if when != "envs wait":
            await until(lambda: len(processes()) == 2)
        os.kill(pids(envs)[0], signal.SIGKILL)
        lost = zeros(2).astype(bool)
        while not lost.all():  # rows of before may come first, and one that says that env 0 waits
            batch = await envs.recv()
            check_aligned(batch)
            lost |= batch.infos.get("_worker_lost", False)
            envs.send(zeros(2))
        statistics = envs.statistics()
        assert (statistics.restarts, statistics.renewals) == (1, 0)
        assert statistics.aborted == (when == "envs wait")
        *former, _ = processes()
        await until(lambda: not any(map(alive, former)))  # also the one that was being made
    check_episodes([event async for event in stream])


@pytest.mark.both_loops
@pytest.mark.parametrize("loses", ["the budget is spent", "its worker", "its worker, at once"])
@pytest.mark.asyncio
async def test_what_ends_while_the_old_process_is_asked_ends_quietly(loses: str) -> None:
    """A failed vec env is sent nothing more, and no task or answer is left that nobody has looked at."""
    wrong: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    backend = ScriptedBackend(automatic=True)
    factories: list[Any] = [partial(StampEnv, 0, 2), partial(StampEnv, 1, 9)]
    restart = None if loses == "the budget is spent" else RestartBudget()
    async with AsyncVecEnv(factories, num_workers=2, backend=backend, restart=restart, renew_after=1) as envs:
        await envs.reset()
        await steps(envs, 2)
        backend.automatic = False
        if loses == "its worker, at once":
            backend.lose(0)
        envs.send(zeros(2))  # worker 0 is asked what its env has learned
        await asyncio.sleep(0)
        if loses != "its worker, at once":
            backend.lose(loses == "the budget is spent")
            for _ in range(4):  # turns in which the renewal goes on
                await asyncio.sleep(0)
        backend.automatic = restart is not None
        if restart is None:
            with pytest.raises(WorkerLost, match="restarts are off"):
                await envs.recv()
        else:
            batch = await asyncio.wait_for(envs.recv(), 60)
            assert batch.infos["_worker_lost"].tolist() == [True, False]
    del envs, backend
    gc.collect()
    await asyncio.sleep(0)
    assert not wrong


@pytest.mark.asyncio
async def test_nobody_waits_for_an_env_that_is_not_stepped() -> None:
    """Such as one that a caller has no use for any more; nor does a reset."""
    factories: list[Any] = [partial(StampEnv, 0, 1), partial(StampEnv, 1, 9)]
    async with AsyncVecEnv(factories, num_workers=1, restart=None, renew_after=1) as envs:
        await envs.reset()
        await envs.step(zeros(2))
        envs.send(zeros(1), [1])
        envs.send(zeros(1), [0])  # waits for env 1, which goes on
        assert (await envs.recv(1)).env_ids.tolist() == [1]
        batch = await envs.recv()
        assert batch.env_ids.tolist() == [0]
        assert "worker_renewal" in batch.infos
        for t in (0, 1):  # env 1 stands still: a new episode of env 0 begins, and ends
            envs.send(zeros(1), [0])
            assert (await envs.recv()).obs[0, 2:].tolist() == [1, t]
        envs.send(zeros(2))
        obs, _ = await asyncio.wait_for(envs.reset(env_ids=[0]), 60)
        assert obs[0, 2:].tolist() == [2, 0]


@pytest.mark.asyncio
async def test_the_first_that_are_ready_wait_for_no_straggler() -> None:
    """Where all that a worker still owes waits for its renewal, that is said at once, not when a slow one replies."""
    backend = ScriptedBackend(automatic=True)
    factories: list[Any] = [partial(StampEnv, env, 1 if env == 2 else 9) for env in range(4)]
    async with AsyncVecEnv(factories, num_workers=2, backend=backend, restart=None, renew_after=1) as envs:
        await envs.reset()
        await steps(envs, 1)
        backend.automatic = False
        envs.send(zeros(4))  # worker 0 is slow; env 2 waits for env 3
        receiving = asyncio.create_task(envs.recv(2))
        await asyncio.sleep(0)
        assert backend.deliver(1)
        batch = await asyncio.wait_for(receiving, 60)
        assert batch.env_ids.tolist() == [2, 3]
        assert batch.infos["_worker_renewal"].tolist() == [True, False]
        envs.send(zeros(2), [2, 3])
        assert backend.deliver(1)
        assert (await asyncio.wait_for(envs.recv(2), 60)).env_ids.tolist() == [2, 3]


@pytest.mark.asyncio
async def test_an_old_process_that_does_not_answer_is_an_ordinary_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is asked what its envs have learned; for that it has as long as a worker has to start: here, a share."""
    a_share = property(lambda supervisor: supervisor._timeouts.start / 1000)
    monkeypatch.setattr(Supervisor, "start_limit_s", a_share)
    async with AsyncVecEnv(partial(StampEnv, 0, 1), renew_after=1, timeouts=Timeouts(start=80)) as envs:
        await envs.reset()
        await steps(envs, 1)
        os.kill(pids(envs)[0], signal.SIGSTOP)
        batch = await envs.step(zeros(1))
        assert batch.first[0]
        (worker,) = envs.statistics().workers
        assert "did not say what its envs have learned within 0.08 s and was killed" in worker.losses[0]
        assert (envs.statistics().restarts, envs.statistics().renewals) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither episodes nor megabytes"), ({"episodes": 0}, "episodes is 0"), ({"episodes": 1.5}, "is 1.5"),
        ({"megabytes": -1}, "megabytes is -1"), ({"megabytes": float("nan")}, "is nan"),
        ({"megabytes": "500 MB"}, "is '500 MB'"), ({"episodes": True}, "is True"),
    ],
)  # fmt: skip
def test_what_is_no_limit_is_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"RenewAfter: .*{message}"):
        RenewAfter(**arguments)


def test_where_workers_cannot_be_renewed_it_is_refused(tmp_path: Path) -> None:
    def refused(match: str, **kwargs: Any) -> None:
        with pytest.raises(ValueError, match=match):
            AsyncVecEnv("CartPole-v1", 2, **{"renew_after": 1, **kwargs})

    for wrong in (0, -1, 1.5, True, "500 MB"):
        refused(f"renew_after is {wrong!r}, not a whole number of episodes", renew_after=wrong)
    refused("renew_after with autoreset SAME_STEP", autoreset=AutoresetMode.SAME_STEP)
    for inline in ("inline", InlineBackend()):
        refused("renew_after with backend='inline'", backend=inline)

    async def open_vector_envs() -> None:
        vector = partial(gym.make_vec, "CartPole-v1", 2, vectorization_mode="sync")
        await AsyncVecEnv.open([vector], renew_after=1)

    with pytest.raises(ValueError, match="renew_after for factories that make VectorEnvs"):
        asyncio.run(open_vector_envs())
