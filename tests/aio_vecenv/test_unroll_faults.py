"""Unrolls when something goes wrong in the middle of a chunk: every case of the table, on real processes."""
# edge: real workers, real faults

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import aio_vecenv as av
from aio_vecenv.testing import check_episodes

from .envs import Acts, Interrupted, Scripted
from .harness import until
from .test_unrolls import all_of

Backend = Literal["process", "inline"]
both = pytest.mark.parametrize("backend", ["process", "inline"])
T, ENVS = 6, 4  # rows of a chunk; envs, of which a worker has two


Script = dict[int, dict[tuple[int, int], str]]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., av.AsyncVecEnv]:
    """`make(backend, script by env)`: two workers with two envs each."""

    def build(backend: Backend, script: Script, **kwargs: Any) -> av.AsyncVecEnv:
        makers = [lambda i=i: Scripted(i, script.get(i, {}), tmp_path) for i in range(ENVS)]
        return av.AsyncVecEnv(
            makers, **{"num_workers": 2, "backend": backend, "policy": Acts(), "unroll": T, **kwargs}
        )

    return build


NOISE = np.arange(T * ENVS, dtype=np.float32).reshape(T, ENVS)


def rows(chunk: av.Chunk, env: int) -> list[list[int]]:
    """What the env has seen: episode and t, of each of its observations."""
    j = chunk.env_ids.tolist().index(env)
    found: list[list[int]] = np.nan_to_num(chunk.obs[:, j, 1:3], nan=-1.0).astype(int).tolist()
    return found


def column(chunk: av.Chunk, env: int, name: str) -> list[Any]:
    """Of a column of bools, the rows in which it is true; else its values."""
    values = getattr(chunk, name)[:, chunk.env_ids.tolist().index(env)]
    return np.flatnonzero(values).tolist() if values.dtype == bool else list(values.tolist())


def is_ordinary(chunk: av.Chunk, env: int, t: int = 0, episode: int = 0) -> None:
    """The neighbours of a fault: T steps of one episode, from step t on."""
    assert rows(chunk, env) == [[episode, t + k] for k in range(T + 1)]
    assert column(chunk, env, "rewards") == [t + k + 1 for k in range(T)]
    for name in ("first", "terminations", "truncations"):
        assert column(chunk, env, name) == []
    assert chunk.outputs["noise"][:, chunk.env_ids.tolist().index(env)].tolist() == NOISE[:, env].tolist()


async def check_events(envs: av.AsyncVecEnv, events: av.EventStream) -> list[av.EventBatch]:
    """G8 at the end: each began and ended once; the watermark grows and keeps its word."""
    await envs.aclose()
    batches = await all_of(events)
    check_episodes([event for batch in batches for event in batch.events])
    watermark = 0
    for batch in batches:
        assert all(event.order >= watermark for event in batch.events)
        assert batch.watermark >= watermark
        watermark = batch.watermark
    assert [batch.number for batch in batches] == sorted(batch.number for batch in batches)
    return batches


# -- episodes end ------------------------------------------------------------------------------------------------------


@both
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_an_episode_that_ends_inside_of_a_chunk_and_at_its_end(make: Any, backend: Backend) -> None:
    """The final observation follows the end, the first of the next episode the row after, which is `first`."""
    script = {1: {(0, 2): "terminates"}, 2: {(0, 6): "truncates", (1, 5): "terminates"}}
    async with make(backend, script) as envs:
        events = envs.events()
        await envs.reset()
        chunk = await envs.unroll(NOISE)
        assert rows(chunk, 1) == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3]]
        assert column(chunk, 1, "first") == [2]
        assert column(chunk, 1, "terminations") == [1]
        assert column(chunk, 1, "rewards") == [1, 2, 0, 1, 2, 3]
        assert column(chunk, 1, "index") == [0, 0, 1, 1, 1, 1]
        assert column(chunk, 2, "truncations") == [5]
        assert column(chunk, 2, "first") == []
        for env in (0, 3):
            is_ordinary(chunk, env)
        assert [(e.env_id, e.batch, e.length, e.outcome) for e in chunk.episodes] == [
            (1, 2, 2, "terminated"),
            (2, 6, 6, "truncated"),
        ]
        assert [info for info in chunk.infos if "t" in info[2]] == [(1, 1, {"t": 2}), (5, 2, {"t": 6})]
        after = await envs.unroll(NOISE)
        assert column(after, 2, "first") == [0]
        assert rows(after, 2) == [[0, 6], *([1, t] for t in range(6))]
        batch = await envs.step(np.zeros(ENVS, np.int64))  # after a chunk, autoreset goes on
        assert batch.first.tolist() == [False, False, True, False]
        assert batch.number == 1 + 2 * T
        await check_events(envs, events)


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u2_an_episode_that_begins_in_a_chunk_begins_under_the_newest_version(
    make: Any, tmp_path: Path
) -> None:
    """In the middle of one: who is reset is told, the others hear it before the first row of the next chunk."""
    script = {1: {(0, 2): "waits terminates"}, 0: {(0, 5): "terminates"}}
    async with make("process", script) as envs:
        await envs.reset()
        envs.broadcast("before", apply="now")
        envs.send_unroll(NOISE)
        await until((tmp_path / "here-1").exists)
        receipt = envs.broadcast("meanwhile", apply="now")
        (tmp_path / "go-1").touch()
        chunk = await envs.recv_unroll()
        assert column(chunk, 1, "versions") == [0, 0, 2, 2, 2, 2]
        assert column(chunk, 0, "versions") == [0, 0, 0, 0, 0, 2]
        await receipt
        told = await envs.get_attr("told")  # a command like any other: now all have heard
        assert [one[-1] for one in told[:2]] == [(2, 0, 5), (2, 0, 2)]
        assert all(one[-2:] == [(1, 0, 0), (2, 0, 6)] for one in told[2:])


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_an_update_taken_in_a_chunk_makes_way_for_the_next_at_once(make: Any, tmp_path: Path) -> None:
    """The worker sends no message for it and waits for none: who publishes sees in the block what it has taken."""
    script = {1: {(0, 2): "waits terminates", (1, 1): "terminates"}, 0: {(0, 4): "waits"}}
    async with make("process", script) as envs:
        await envs.reset()
        envs.send_unroll(NOISE)
        await until((tmp_path / "here-1").exists)
        first = envs.broadcast("first")
        (tmp_path / "go-1").touch()
        await until((tmp_path / "here-0").exists)  # env 1 has begun under the first
        await until(lambda: 1 in first.taken)
        assert first.pending == (0,)
        asyncio.get_running_loop().set_debug(True)  # a future that another thread resolves is an error then
        waits = asyncio.create_task(first.wait())
        await asyncio.sleep(0)
        second = await asyncio.to_thread(envs.broadcast, "second")
        assert first.pending == ()
        await waits
        asyncio.get_running_loop().set_debug(False)
        (tmp_path / "go-0").touch()
        chunk = await envs.recv_unroll()
        assert column(chunk, 1, "versions") == [0, 0, 1, 1, 2, 2]
        assert 0 in second.taken  # the reply says so


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u2_inline_other_tasks_run_between_two_rows(make: Any) -> None:
    async with make("inline", {1: {(0, 4): "terminates"}}) as envs:
        await envs.reset()
        envs.send_unroll(NOISE)
        receiving = asyncio.ensure_future(envs.recv_unroll())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not receiving.done()
        envs.broadcast("meanwhile")
        chunk = await receiving
        assert column(chunk, 1, "versions") == [0, 0, 0, 0, 1, 1]
        assert (chunk.versions[:, [0, 2, 3]] == 0).all()


# -- envs raise --------------------------------------------------------------------------------------------------------


def check_began_again(chunk: av.Chunk, says: str) -> None:
    """Env 1 failed in row 2 and began a new episode in it."""
    assert rows(chunk, 1) == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3]]
    assert column(chunk, 1, "first") == column(chunk, 1, "truncations") == [2]
    assert column(chunk, 1, "terminations") == []
    assert column(chunk, 1, "rewards") == [1, 2, 0, 1, 2, 3]
    assert column(chunk, 1, "index") == [0, 0, 1, 1, 1, 1]
    assert [(t, e, info["env_error"]) for t, e, info in chunk.infos if "env_error" in info] == [(2, 1, says)]
    assert [(e.env_id, e.outcome, e.length, e.batch) for e in chunk.episodes] == [(1, "aborted", 2, 3)]


@both
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_an_env_that_raises_begins_again_in_the_same_row(make: Any, backend: Backend) -> None:
    async with make(backend, {1: {(0, 3): "raises"}}, on_env_error="reset") as envs:
        events = envs.events()
        await envs.reset()
        chunk = await envs.unroll(NOISE)
        check_began_again(chunk, "RuntimeError: a step that raises")
        for env in (0, 2, 3):
            is_ordinary(chunk, env)
        is_ordinary(await envs.unroll(NOISE), 1, t=3, episode=1)
        await check_events(envs, events)


@both
@pytest.mark.parametrize("again", ["", " and again"])
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_an_env_whose_reset_raises_too_is_reset_as_the_last_row(
    make: Any, backend: Backend, again: str
) -> None:
    """The rows between repeat its observation; the parent resets it, within its budget, before it returns the chunk."""
    budget = av.RestartBudget(5)
    async with make(
        backend, {1: {(0, 3): f"raises twice{again}"}}, on_env_error="reset", restart=budget
    ) as envs:
        events = envs.events()
        await envs.reset()
        chunk = await envs.unroll(NOISE)
        assert rows(chunk, 1) == [[0, 0], [0, 1], [0, 2], [0, 2], [0, 2], [0, 2], [1, 0]]
        assert column(chunk, 1, "first") == [2, 3, 4, 5]
        assert column(chunk, 1, "truncations") == [2]
        assert column(chunk, 1, "rewards") == [1, 2, 0, 0, 0, 0]
        assert column(chunk, 1, "index") == [0, 0, 0, 0, 0, 1]
        assert [(t, e) for t, e, info in chunk.infos if "env_error" in info] == [(2, 1)]
        assert [(t, e) for t, e, info in chunk.infos if "task" in info] == [(5, 1)]
        assert [(e.env_id, e.outcome, e.length, e.batch) for e in chunk.episodes] == [(1, "aborted", 2, 3)]
        for env in (0, 2, 3):
            is_ordinary(chunk, env)
        is_ordinary(await envs.unroll(NOISE), 1, episode=1)
        batches = await check_events(envs, events)
        began = [e for batch in batches for e in batch.events if isinstance(e, av.EpisodeStarted)]
        assert [(e.env_id, e.order // ENVS, e.task) for e in began[ENVS:]] == [(1, T, (0, 1))]


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_reset_that_never_works_spends_the_budget(make: Any) -> None:
    budget = av.RestartBudget(1)
    async with make(
        "process", {1: {(0, 3): "raises twice and again"}}, on_env_error="reset", restart=budget
    ) as envs:
        await envs.reset()
        with pytest.raises(av.WorkerLost, match="env 1 raised RuntimeError in reset"):
            await envs.unroll(NOISE)


@both
@pytest.mark.parametrize("how", ["raises", "nan"])
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_an_env_that_raises_is_an_error_and_the_chunk_comes_with_all_columns(
    make: Any, backend: Backend, how: str
) -> None:
    """A NaN where observations must be finite is seen in its row, before the policy acts on it."""
    async with make(backend, {1: {(0, 3): how}}, check="finite") as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        kind = av.EnvError if how == "raises" else av.SpaceMismatch
        where = "episode 0, after 2 steps, seed None, row 2 of the unroll" if how == "raises" else "NaN"
        with pytest.raises(kind, match=f"env 1 .*{where}") as raised:
            await envs.recv_unroll()
        assert getattr(raised.value, "env_id") == 1  # noqa: B009
        chunk = await envs.recv_unroll()
        assert chunk.env_ids.tolist() == list(range(ENVS))
        assert rows(chunk, 1) == [[0, 0], [0, 1], [0, 2], [0, 2], [0, 2], [0, 2], [0, 2]]
        assert column(chunk, 1, "first") == [2, 3, 4, 5]
        assert column(chunk, 1, "truncations") == column(chunk, 1, "terminations") == []
        assert column(chunk, 1, "rewards") == [1, 2, 0, 0, 0, 0]
        assert [(e.env_id, e.outcome, e.length, e.batch) for e in chunk.episodes] == [(1, "aborted", 2, 3)]
        for env in (0, 2, 3):
            is_ordinary(chunk, env)
        with pytest.raises(av.BadActions, match=r"env 1 .* accepts only reset\(env_ids=\[1\]\)"):
            envs.send_unroll(NOISE)
        await envs.reset(env_ids=[1])
        is_ordinary(await envs.unroll(NOISE), 0, t=T)
        await check_events(envs, events)


@both
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_nan_begins_again_too(make: Any, backend: Backend) -> None:
    async with make(backend, {1: {(0, 3): "nan"}}, check="finite", on_env_error="reset") as envs:
        await envs.reset()
        chunk = await envs.unroll(NOISE)
        check_began_again(chunk, "RowError: obs: expected finite numbers, got NaN or infinity")


@both
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_an_info_that_cannot_travel_fails_its_env_in_its_row(make: Any, backend: Backend) -> None:
    async with make(backend, {1: {(0, 3): "unpicklable"}}) as envs:
        await envs.reset()
        with pytest.raises(av.EnvError, match="cannot be pickled"):
            await envs.unroll(NOISE)
        chunk = await envs.recv_unroll()
        assert column(chunk, 1, "first") == [2, 3, 4, 5]
        is_ordinary(chunk, 0)


# -- the policy fails --------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["raises", "shape", "dtype", "nan", "outside"])
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_policy_that_fails_is_one_error_and_its_episodes_go_on(
    make: Any, backend: Backend, how: str
) -> None:
    """Nothing happens from that row on, in that worker; an episode that had just ended begins in the next command."""
    async with make(backend, {0: {(0, 3): "terminates"}}) as envs:
        events = envs.events()
        await envs.reset()
        envs.set_policy((1, 3, how))
        envs.send_unroll(NOISE)
        with pytest.raises(av.PolicyError, match=r"worker 0: the policy Acts \(version 1\)") as raised:
            await envs.recv_unroll()
        assert raised.value.worker == 0
        assert raised.value.op == "act"
        if how == "raises":
            assert isinstance(raised.value.__cause__, KeyError)
            assert "in act" in raised.value.__notes__[0]
        chunk = await envs.recv_unroll()
        for env in (0, 1):
            assert rows(chunk, env) == [[0, 0], [0, 1], [0, 2], [0, 3], [0, 3], [0, 3], [0, 3]]
            assert column(chunk, env, "first") == [3, 4, 5]
            assert column(chunk, env, "rewards") == [1, 2, 3, 0, 0, 0]
        for env in (2, 3):
            is_ordinary(chunk, env)
        assert [(e.env_id, e.outcome) for e in chunk.episodes] == [(0, "terminated")]
        envs.set_policy(7)
        chunk = await envs.unroll(NOISE)
        is_ordinary(chunk, 1, t=3)
        assert column(chunk, 0, "first") == [0]
        assert (chunk.outputs["params"] == 7).all()
        await check_events(envs, events)


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_policy_that_fails_before_the_first_row_begins_nothing(make: Any) -> None:
    """Also where an autoreset was due there; every worker says the same, once."""
    async with make("process", {0: {(0, T): "terminates"}}) as envs:
        events = envs.events()
        await envs.reset()
        await envs.unroll(NOISE)
        envs.set_policy((0, T, "raises"))
        envs.send_unroll(NOISE[:2])
        with pytest.raises(av.PolicyError):
            await envs.recv_unroll()
        chunk = await envs.recv_unroll()
        assert chunk.first[:, :2].all()
        assert not chunk.first[:, 2:].any()
        assert envs.running_episode(0) is None
        envs.set_policy(1)
        chunk = await envs.unroll(NOISE)
        assert column(chunk, 0, "first") == [0]
        is_ordinary(chunk, 1, t=T)
        await check_events(envs, events)


# -- workers are lost --------------------------------------------------------------------------------------------------


def check_made_again(chunk: av.Chunk, why: str) -> None:
    """U5: the rows of worker 0 come from its replacement, all of them; worker 1 has never noticed."""
    assert rows(chunk, 0) == [[0, 3], *([0, t] for t in range(T))]
    assert rows(chunk, 1) == [[1, 0], *([0, t] for t in range(T))]
    for env in (0, 1):
        assert column(chunk, env, "first") == column(chunk, env, "truncations") == [0]
        assert column(chunk, env, "rewards") == [0, 1, 2, 3, 4, 5]
        assert chunk.outputs["noise"][:, env].tolist() == NOISE[:, env].tolist()
    lost = [(t, env, why in info["worker_lost"]) for t, env, info in chunk.infos if "worker_lost" in info]
    assert lost == [(0, 0, True), (0, 1, True)]
    for env in (2, 3):
        is_ordinary(chunk, env, t=3)


async def three_steps(envs: av.AsyncVecEnv) -> None:
    """Of every env; env 1 has begun its second episode meanwhile."""
    await envs.reset(seed=5)
    await envs.unroll(NOISE[:3])


@pytest.mark.parametrize("how", ["dies", "hangs"])
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u5_a_chunk_whose_worker_is_lost_is_made_again(make: Any, how: str) -> None:
    """Under the same noise and policy. What began and ended in the lost part counts nowhere."""
    script = {0: {(0, 7): f"once {how}"}, 1: {(0, 2): "once terminates", (1, 3): "once terminates"}}
    limit = av.Timeouts(step=2.0 if how == "hangs" else None)
    async with make("process", script, timeouts=limit) as envs:
        events = envs.events()
        await three_steps(envs)
        assert envs.set_policy(3) == 1
        envs.send_unroll(NOISE)
        envs.set_policy(4)
        chunk = await envs.recv_unroll()
        check_made_again(chunk, "SIGKILL" if how == "dies" else "row 3, env 0 at work")
        assert chunk.policy_version == 1
        assert (chunk.outputs["params"] == 3).all()
        assert [(e.env_id, e.index, e.outcome, e.length) for e in chunk.episodes] == [
            (0, 0, "aborted", 3),
            (1, 1, "aborted", 0),
        ]
        assert column(chunk, 1, "index") == [2] * T
        after = await envs.unroll(NOISE)
        assert (after.outputs["params"] == 4).all()
        is_ordinary(after, 0, t=5)
        assert envs.statistics().restarts == 1
        await check_events(envs, events)


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u4_the_limit_is_one_rows_and_a_stuck_policy_is_named(make: Any) -> None:
    """A chunk may take longer than the limit of a step, if no row of it does."""
    slow = {env: {(0, t): "sleeps 0.15" for t in range(1, 7)} for env in range(ENVS)}
    async with make("process", slow, timeouts=av.Timeouts(step=1.5)) as envs:
        await envs.reset()
        await envs.unroll(NOISE)
        assert envs.statistics().restarts == 0
        envs.set_policy((1, 8, "hangs"))
        began = time.monotonic()
        envs.send_unroll(NOISE)
        chunk = await envs.recv_unroll()
        reason = envs.statistics().workers[0].losses[0]
        assert "did not finish a row of an unroll (row 2, the policy at work) within 1.5 s" in reason
        assert "in act" in reason  # its stack
        assert time.monotonic() - began > 1.45
        assert column(chunk, 0, "truncations") == [0]
        assert column(chunk, 3, "truncations") == []


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u6_abort_kills_at_once_and_the_chunk_is_made_again(make: Any, tmp_path: Path) -> None:
    script = {0: {(0, 7): "once hangs"}, 1: {(0, 2): "once terminates", (0, 5): "once waits"}}
    async with make("process", script) as envs:
        events = envs.events()
        await three_steps(envs)
        envs.send_unroll(NOISE)
        envs.abort([0])
        check_made_again(await envs.recv_unroll(), "aborted by the caller")
        await check_events(envs, events)


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_worker_that_is_lost_after_its_reply_has_its_rows_and_begins_with_the_next(make: Any) -> None:
    async with make("process", {1: {(0, 3): "once terminates"}}) as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        await until(lambda: len(envs._collector.chunks.complete) == 2)
        pid = envs.statistics().workers[0].pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: envs.statistics().restarts == 1)
        chunk = await envs.recv_unroll()
        is_ordinary(chunk, 0)
        assert column(chunk, 1, "index") == [0, 0, 0, 1, 1, 1]
        after = await envs.unroll(NOISE)
        assert column(after, 0, "truncations") == column(after, 1, "truncations") == [0]
        assert [(e.env_id, e.index, e.outcome) for e in after.episodes] == [
            (0, 0, "aborted"),
            (1, 1, "aborted"),
        ]
        is_ordinary(after, 2, t=T)
        await check_events(envs, events)


# -- callers change their minds ----------------------------------------------------------------------------------------


@both
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u6_a_cancelled_recv_unroll_loses_nothing(make: Any, backend: Backend, tmp_path: Path) -> None:
    script = (
        {1: {(0, 2): "waits"}} if backend == "process" else {}
    )  # inline, two turns of the loop are two rows
    async with make(backend, script) as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        receiving = asyncio.ensure_future(envs.recv_unroll())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        with pytest.raises(av.BusyError):
            envs.send_unroll(NOISE)
        (tmp_path / "go-1").touch()
        is_ordinary(await envs.recv_unroll(), 1)
        await check_events(envs, events)


@both
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_reset_waits_for_the_chunk_and_drops_its_column_not_its_events(
    make: Any, backend: Backend
) -> None:
    async with make(backend, {1: {(0, 2): "terminates"}, 0: {(0, 4): "raises"}}) as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        obs, _ = await envs.reset(env_ids=[1])  # env 0 has failed: that is told by recv_unroll
        assert obs[0, 1:3].tolist() == [2, 0]
        with pytest.raises(av.EnvError, match="env 0"):
            await envs.recv_unroll()
        chunk = await envs.recv_unroll()
        assert chunk.env_ids.tolist() == [0, 2, 3]
        is_ordinary(chunk, 2)
        assert chunk.index.shape == (T, 3)
        assert [e.env_id for e in chunk.episodes] == [0]
        await envs.reset(env_ids=[0])
        is_ordinary(await envs.unroll(NOISE), 1, episode=2)
        batches = await check_events(envs, events)
        mine = [e for batch in batches for e in batch.events if isinstance(e, av.Episode) and e.env_id == 1]
        assert [(e.index, e.outcome, e.length) for e in mine] == [
            (0, "terminated", 2),
            (1, "aborted", 3),
            (2, "aborted", T),
        ]


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_first_ready_by_worker_and_asking_in_the_middle(make: Any, tmp_path: Path) -> None:
    """The worker that is done comes first, and may go on; what is asked of the other waits for its chunk."""
    async with make("process", {0: {(0, 2): "waits"}}) as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        await until((tmp_path / "here-0").exists)
        asking = asyncio.ensure_future(envs.get_attr("t", env_ids=[0]))
        chunk = await envs.recv_unroll(min_envs=1)
        assert chunk.env_ids.tolist() == [2, 3]
        is_ordinary(chunk, 3)
        envs.send_unroll(NOISE[:, 2:], [2, 3])
        later = await envs.recv_unroll(min_envs=2)
        is_ordinary(later, 2, t=T)
        assert not asking.done()
        (tmp_path / "go-0").touch()
        is_ordinary(await envs.recv_unroll(), 0)
        assert await asking == (T,)
        is_ordinary(await envs.unroll(NOISE), 1, t=T)  # the workers are in different buffers now
        await check_events(envs, events)


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_views_are_valid_until_the_second_next_unroll(make: Any) -> None:
    """Nothing else touches them: single steps, resets, a loss."""
    async with make("process", {}, copy=False) as envs:
        await envs.reset()
        chunk = await envs.unroll(NOISE)
        held = chunk.obs.copy(), chunk.actions.copy(), chunk.rewards.copy(), chunk.outputs["noise"].copy()
        assert np.shares_memory(chunk.obs, envs._pool._slab.chunks[0].obs[0])
        await envs.step(np.zeros(ENVS, np.int64))
        await envs.unroll(NOISE)
        envs.abort([0])
        await envs.reset()
        now = chunk.obs, chunk.actions, chunk.rewards, chunk.outputs["noise"]
        assert all((a == b).all() for a, b in zip(held, now))
        await envs.unroll(NOISE[:2])
        assert (chunk.obs[:3] != held[0][:3]).any()


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u6_closing_ends_a_chunk_after_the_env_step_under_way(make: Any, tmp_path: Path) -> None:
    """Well before its rows are done; the envs are closed in grace, the episodes reported as aborted."""
    slow = {env: {(0, t): "sleeps 0.4" for t in range(1, 7)} for env in range(ENVS)}
    slow[0][0, 1] = slow[2][0, 1] = "waits"
    async with make("process", slow, timeouts=av.Timeouts(close=3.5)) as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        await until(lambda: (tmp_path / "here-0").exists() and (tmp_path / "here-2").exists())
        closing = asyncio.ensure_future(envs.aclose())
        await asyncio.sleep(0)
        (tmp_path / "go-0").touch()
        (tmp_path / "go-2").touch()
        await closing  # 11 steps of .4 s are more than its grace of 3.5 s, which would be an error
        batches = await check_events(envs, events)
        ended = [e for batch in batches for e in batch.events if isinstance(e, av.Episode)]
        assert [(e.env_id, e.outcome, e.length) for e in ended] == [
            (env, "aborted", 0) for env in range(ENVS)
        ]


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_what_was_not_received_is_reported_at_the_end(make: Any) -> None:
    """Episodes that ended in a chunk that nobody took are not lost with it."""
    async with make("process", {1: {(0, 2): "terminates"}}) as envs:
        events = envs.events()
        await envs.reset()
        envs.send_unroll(NOISE)
        await until(lambda: len(envs._collector.chunks.complete) == 2)
        batches = await check_events(envs, events)
        ended = [e for batch in batches for e in batch.events if isinstance(e, av.Episode)]
        assert [(e.env_id, e.index, e.outcome, e.length) for e in ended if e.env_id == 1] == [
            (1, 0, "terminated", 2),
            (1, 1, "aborted", 3),
        ]


@pytest.mark.asyncio
async def test_a_watermark_waits_for_an_episode_of_a_chunk_whose_error_was_raised(
    make: Callable[..., av.AsyncVecEnv],
) -> None:
    """Its chunk is not returned yet: what other workers' rows release meanwhile must not pass its beginning."""
    script = {i: {(0, 1): "terminates", (1, 1): "raises" if i == 0 else ""} for i in range(ENVS)}
    async with make("inline", script, num_workers=ENVS) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        await envs.step(np.zeros(ENVS, np.int64))  # all have ended: their next rows begin episode 1
        envs.send_unroll(np.zeros((3, 1), np.float32), env_ids=[0])
        with pytest.raises(av.EnvError, match="row 1 of the unroll"):
            await envs.recv_unroll()
        envs.send(np.zeros(3, np.int64), env_ids=[1, 2, 3])
        await envs.recv()
        await envs.recv_unroll()
    watermark = 0
    while True:
        try:
            batch = await stream.next_batch()
        except StopAsyncIteration:
            break
        began = [event.order for event in batch.events if isinstance(event, av.EpisodeStarted)]
        assert all(order >= watermark for order in began), (watermark, began)
        assert batch.watermark >= watermark
        watermark = batch.watermark
    assert watermark


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.asyncio
async def test_ctrl_c_while_parameters_are_loaded_leaves_one_policy(
    make: Callable[..., av.AsyncVecEnv], tmp_path: Path, at: int
) -> None:
    """In the parent: the old one everywhere. In an inline worker: the new one everywhere, once it goes on."""
    noise = np.zeros((2, ENVS), np.float32)
    async with make("inline", {}, policy=Interrupted(tmp_path, at)) as envs:
        obs, _ = await envs.reset(seed=1)
        if at == 1:
            with pytest.raises(KeyboardInterrupt):
                envs.set_policy(5)
            chunk = await envs.unroll(noise)
        else:
            envs.set_policy(5)
            with pytest.raises(KeyboardInterrupt):
                await envs.unroll(noise)
            chunk = await envs.recv_unroll()
        said = 0 if at == 1 else 5
        assert (chunk.policy_version, chunk.outputs["params"].tolist()) == (at - 1, [[said] * ENVS] * 2)
        assert envs.act(obs, noise[0])[1]["params"].tolist() == [said] * ENVS


@pytest.mark.asyncio
async def test_ctrl_c_in_an_update_before_a_chunk_fails_its_envs_as_in_a_step(
    make: Callable[..., av.AsyncVecEnv],
) -> None:
    """The chunk does not run as if its envs had heard of the update."""
    async with make("inline", {}, num_workers=1) as envs:
        await envs.reset(seed=1)
        envs.broadcast("Ctrl-C", apply="now")
        envs.send_unroll(np.zeros((2, ENVS), np.float32))
        with pytest.raises(KeyboardInterrupt):
            await envs.recv_unroll()
        with pytest.raises(ExceptionGroup, match="4 envs raised"):
            await envs.recv_unroll()


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u4_parameters_that_never_load_are_named(make: Callable[..., av.AsyncVecEnv]) -> None:
    """Not the row and the env that the chunk before ended with; and what was sent is counted."""

    class Hangs(Acts):
        def load(self, params: Any) -> None:
            if params == "hangs" and os.getpid() != parent:
                time.sleep(3600)

    parent = os.getpid()
    noise = np.zeros((2, ENVS), np.float32)
    async with make("process", {}, policy=Hangs(), timeouts=av.Timeouts(step=1.5), restart=None) as envs:
        await envs.reset(seed=1)
        await envs.unroll(noise)
        sent = envs.statistics().bytes_sent
        envs.set_policy("hangs")
        with pytest.raises(av.WorkerLost, match=r"row 0, the policy at work"):
            await envs.unroll(noise)
        assert envs.statistics().bytes_sent - sent > 100
