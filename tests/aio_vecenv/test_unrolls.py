"""Unrolls: a chunk is the rows that steps would have given, in everything."""
# edge: real workers

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import aio_vecenv as av
from aio_vecenv.testing import StampEnv, stamp_envs

from .envs import Follows, Talks, TalksBack, TwoTowers, weights

Backend = Literal["process", "inline"]


def same(left: Any, right: Any, where: Any = "") -> None:
    """Alike to the bit, types included."""
    assert type(left) is type(right), where
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, where
        assert left.shape == right.shape, where
        assert left.tolist() == right.tolist(), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            same(left[key], right[key], (where, key))
    elif isinstance(left, tuple) and not hasattr(left, "_fields"):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right)):
            same(a, b, (where, i))
    else:
        assert left == right, where


def pick(batch: Any, t: int) -> Any:
    if isinstance(batch, dict):
        return {key: pick(part, t) for key, part in batch.items()}
    return tuple(pick(part, t) for part in batch) if isinstance(batch, tuple) else batch[t]


async def all_of(stream: av.EventStream) -> list[av.EventBatch]:
    """Every batch of events of a stream that has been closed."""
    batches: list[av.EventBatch] = []
    try:
        while True:
            batches.append(await stream.next_batch())
    except StopAsyncIteration:
        return batches


async def check_rows(
    unrolled: av.AsyncVecEnv, stepped: av.AsyncVecEnv, policy: Any, params: Any, lengths: tuple[int, ...]
) -> None:
    """U1: the same policy on the same noise, in chunks and step by step."""
    n = unrolled.num_envs
    events, twin_events = unrolled.events(), stepped.events()
    first, _ = await unrolled.reset(seed=3)
    obs, _ = await stepped.reset(seed=3)
    same(first, obs)
    rng = np.random.default_rng(0)
    for k, length in enumerate(lengths):
        if k % 2:
            for envs in (unrolled, stepped):
                assert envs.set_policy(params(k)) == (k + 1) // 2
                envs.broadcast(k)
        noise = policy.draw(rng, (length, n))
        chunk = await unrolled.unroll(noise)
        assert chunk.policy_version == (k + 1) // 2
        for t in range(length):
            same(pick(chunk.obs, t), obs, t)
            actions, outputs = stepped.act(obs, noise[t])
            same(pick(chunk.actions, t), actions, t)
            same(pick(chunk.outputs, t), outputs, t)
            batch, row = await stepped.step(actions), chunk.row(t)
            for name in batch._fields:
                same(getattr(row, name), getattr(batch, name), (t, name))
            obs = batch.obs
            running = [stepped.running_episode(env_id) for env_id in range(n)]
            for j, episode in enumerate(running):
                assert episode is None or episode.index == chunk.index[t, j]
        assert [unrolled.running_episode(env_id) for env_id in range(n)] == running
        assert chunk.watermark == batch.watermark
        if k % 3 == 2:  # a single step between two chunks
            actions, _ = unrolled.act(obs, noise[0])
            for left, right in zip(await unrolled.step(actions), batch := await stepped.step(actions)):
                same(left, right)
            obs = batch.obs
    left, right = unrolled.statistics(), stepped.statistics()
    assert (left.executed_steps, left.episodes) == (right.executed_steps, right.episodes)
    await unrolled.aclose()
    await stepped.aclose()
    assert await all_of(events) == await all_of(twin_events)


@pytest.mark.parametrize(
    ("backend", "workers", "transposed", "copy"),
    [
        ("process", 2, True, True),
        ("process", 3, False, False),
        ("process", 5, True, False),
        ("inline", 1, False, True),
        ("inline", 5, True, False),
    ],
)
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u1_every_row_is_what_a_step_returns(
    workers: int, transposed: bool, copy: bool, backend: Backend
) -> None:
    """Bit for bit: two towers of 64 with heads of width 2 and 1, envs cut between workers in the middle of a block."""
    policy = TwoTowers(weights(transposed=transposed))
    async with (
        av.AsyncVecEnv(
            "CartPole-v1", 22, num_workers=workers, backend=backend, policy=policy, unroll=16, copy=copy
        ) as unrolled,
        av.AsyncVecEnv("CartPole-v1", 22, num_workers=1, backend="inline", policy=policy) as stepped,
    ):

        def params(k: int) -> Any:
            return weights(k, transposed=bool(k % 4 == 1) ^ transposed)

        await check_rows(unrolled, stepped, policy, params, (16, 1, 7, 16))


@pytest.mark.parametrize(
    ("backend", "info"), [("process", "all"), ("process", ["t"]), ("inline", "episode"), ("inline", ["t"])]
)
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u1_infos_tasks_versions_and_structures_of_spaces(backend: Backend, info: Any) -> None:
    def make() -> list[Any]:
        return [lambda i=i: Talks(i) for i in range(5)]

    policy = TalksBack()
    async with (
        av.AsyncVecEnv(
            make(), num_workers=2, backend=backend, policy=policy, unroll=9, info=info
        ) as unrolled,
        av.AsyncVecEnv(make(), num_workers=1, backend="inline", policy=policy, info=info) as stepped,
    ):
        await check_rows(unrolled, stepped, policy, lambda k: k, (9, 3, 1, 9))


@pytest.mark.parametrize("backend", ["process", "inline"])
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_u3_a_decision_between_two_chunks_holds_for_all_rows_of_the_second(backend: Backend) -> None:
    """G3 and G9, a chunk for a batch: in the rest of the deciding chunk 16 episodes of 16 begin under the older version
    and say so; after it none does, not even those whose episodes had ended in its last row."""
    old_steps, length = 4, 8
    async with av.AsyncVecEnv(
        stamp_envs(16, old_steps), num_workers=4, backend=backend, policy=Follows(), unroll=length, info="all"
    ) as envs:
        old = envs.broadcast("old").version
        await envs.reset(seed=1)
        events, noise = envs.events(), np.zeros((length, 16), np.float32)
        await envs.unroll(noise)
        new = envs.broadcast("new", apply="now").version  # the decision that its first episodes led to
        begun = [event for event in await read(events) if isinstance(event, av.EpisodeStarted)]
        assert [event.version for event in begun] == [old] * 16
        chunk = await envs.unroll(noise)
        told = [(t, info["applied_version"]) for t, _, info in chunk.infos]
        assert told == [(t, new) for t in range(length) for _ in range(16)]
        begun = [event for event in await read(events) if isinstance(event, av.EpisodeStarted)]
        assert len(begun) >= 16
        assert {(event.version, event.task["stage"]) for event in begun} == {(new, "new")}


async def read(events: av.EventStream) -> list[Any]:
    return [await anext(events) for _ in range(events.behind)]


@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_what_is_asked_of_an_unroll_is_checked() -> None:
    policy = Follows()
    async with av.AsyncVecEnv(stamp_envs(4), num_workers=2, policy=policy, unroll=4) as envs:
        noise = np.zeros((4, 4), np.float32)
        with pytest.raises(av.BadActions, match="never reset"):
            envs.send_unroll(noise)
        await envs.reset()
        with pytest.raises(ValueError, match="no chunk owed"):
            await envs.recv_unroll()
        for wrong in (
            noise[:0],
            noise[:, :3],
            np.zeros((5, 4), np.float32),
            noise.astype(float),
            None,
            noise[0],
        ):
            with pytest.raises(av.BadActions, match=r"noise.*nothing was sent"):
                envs.send_unroll(wrong)  # type: ignore[arg-type]
        with pytest.raises(
            av.BadActions, match="worker 0 holds the envs 0 to 1: an unroll is of all of them"
        ):
            envs.send_unroll(noise[:, :3], [0, 2, 3])
        envs.send_unroll(noise[:, :2], [3, 2])
        with pytest.raises(av.BusyError, match="still owe"):
            envs.send(np.zeros(4, np.int64))
        with pytest.raises(av.BusyError, match="still owe"):
            envs.send_unroll(noise)
        with pytest.raises(ValueError, match="a chunk is owed: recv_unroll"):
            await envs.recv()
        envs.send(np.zeros(2, np.int64), [0, 1])
        assert (await envs.recv()).env_ids.tolist() == [0, 1]
        with pytest.raises(ValueError, match="min_envs"):
            await envs.recv_unroll(0)
        assert (await envs.recv_unroll()).env_ids.tolist() == [2, 3]
        chunk = await envs.unroll(noise)
        with pytest.raises(IndexError):
            chunk.row(4)
        assert chunk.row(-1).number == chunk.row(3).number


def test_what_cannot_be_unrolled_is_refused_by_name() -> None:
    """Before anything starts, or at opening where only the envs can tell."""
    with pytest.raises(ValueError, match="without policy="):
        av.AsyncVecEnv("CartPole-v1", unroll=4)
    for wrong in (0, True, 1.0):
        with pytest.raises(ValueError, match="unroll is"):
            av.AsyncVecEnv("CartPole-v1", policy=Follows(), unroll=wrong)  # type: ignore[arg-type]
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        with pytest.raises(ValueError, match=f"needs autoreset NEXT_STEP, not {mode.name}"):
            av.AsyncVecEnv("CartPole-v1", policy=Follows(), unroll=4, autoreset=mode)


class Words(StampEnv):
    def __init__(self) -> None:
        super().__init__(0)
        self.observation_space = spaces.Text(5)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "kwargs", "says"),
    [
        (lambda: Words(), {}, r"observation space: Text.* has no fixed size"),
        (
            lambda: StampEnv(0),
            {"shared_memory": False},
            r"observation space travels pickled \(shared_memory=False\)",
        ),
        (lambda: gym.make_vec("CartPole-v1", 2), {}, "VectorEnvs"),
    ],
)
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_envs_that_cannot_be_unrolled_are_refused_at_opening(make: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        await av.AsyncVecEnv.open([make], backend="inline", policy=Follows(), unroll=4, **kwargs)


@pytest.mark.parametrize("backend", ["process", "inline"])
@pytest.mark.alternate_loops
@pytest.mark.asyncio
async def test_a_length_without_room_is_refused_with_the_longest_that_fits(backend: Backend) -> None:
    with pytest.raises(MemoryError, match=r"unroll=\d+ needs \d+ bytes .*; unroll=(\d+) would"):
        await av.AsyncVecEnv.open(stamp_envs(2), backend=backend, policy=Follows(), unroll=10**12)


@pytest.mark.asyncio
async def test_without_unroll_there_are_no_chunks() -> None:
    async with av.AsyncVecEnv(stamp_envs(1), backend="inline", policy=Follows()) as envs:
        with pytest.raises(ValueError, match="without unroll="):
            envs.send_unroll(np.zeros((1, 1), np.float32))
    async with av.AsyncVecEnv(stamp_envs(1), backend="inline") as envs:
        with pytest.raises(ValueError, match="without a policy"):
            envs.send_unroll(np.zeros((1, 1), np.float32))
