"""Cancel at every await point: `python -m benchmarks.cancellation [--points N] [--backend process|inline]`.

Each public coroutine is driven to its k-th await and cancelled there, for every k, over and over until N points have
been done; after each, everything must answer, and every row must be where it belongs. Prints one line per coroutine.
"""
# edge: argv and stdout

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

import aio_vecenv as av
from aio_vecenv.core.pool import Phase
from aio_vecenv.testing import check_aligned, check_episodes, stamp_envs

Operation = Callable[[av.AsyncVecEnv], Coroutine[Any, Any, Any]]


def _actions(envs: av.AsyncVecEnv) -> np.ndarray[Any, Any]:
    return np.zeros(envs.num_envs, np.int64)


async def _first_ready(envs: av.AsyncVecEnv) -> None:
    envs.send(_actions(envs))
    await envs.recv(min_envs=1)


async def _reset_while_owed(envs: av.AsyncVecEnv) -> None:
    envs.send(_actions(envs))
    await envs.reset(env_ids=[1, 2])


OPERATIONS: dict[str, Operation] = {
    "step": lambda envs: envs.step(_actions(envs)),
    "recv": _first_ready,
    "reset": lambda envs: envs.reset(seed=3),
    "reset of some": lambda envs: envs.reset(env_ids=[2, 0]),
    "reset while owed": _reset_while_owed,
    "call": lambda envs: envs.call("echo", 1),
    "get_attr": lambda envs: envs.get_attr("t"),
    "set_attr": lambda envs: envs.set_attr("marker", 1),
    "broadcast": lambda envs: envs.broadcast("x").wait(60),
}


async def cancel_after(envs: av.AsyncVecEnv, operation: Operation, k: int) -> bool:
    """Drive `operation` to its (k+1)-th await and cancel it there; whether it ended by itself before."""
    coroutine = operation(envs)
    waits = 0
    try:
        awaited = coroutine.send(None)
        while waits < k:
            waits += 1
            await _done(awaited)
            awaited = coroutine.send(None)
    except StopIteration:
        return True
    if awaited is not None:
        awaited._asyncio_future_blocking = False
    try:
        coroutine.throw(asyncio.CancelledError())
    except (asyncio.CancelledError, StopIteration):
        return False
    raise AssertionError(f"it awaits after it was cancelled: {coroutine}")


async def _done(awaited: Any) -> None:
    """What the loop would do with what a coroutine awaits."""
    if awaited is None:  # a bare yield
        await asyncio.sleep(0)
        return
    awaited._asyncio_future_blocking = False
    await asyncio.wait([awaited], timeout=60)
    assert awaited.done(), "what it waits for never comes"


async def settled(envs: av.AsyncVecEnv) -> None:
    """Bring everything back into step, and check that rows, calls and updates are what they should be."""
    pool = envs._pool
    if pool.owed:
        check_aligned(await envs.recv())
    if pool.shut:
        usable = (Phase.RUNNING, Phase.DUE)
        await envs.reset(env_ids=[e for e, phase in enumerate(pool.phases) if phase not in usable])
    before = await envs.get_attr("t")
    batch = await envs.step(_actions(envs))
    check_aligned(batch)
    assert await envs.get_attr("t") == tuple(batch.obs[:, 3].tolist()), "a row of another step"
    assert len(before) == envs.num_envs
    assert await envs.call("echo", batch.number) == (batch.number,) * envs.num_envs


async def sweep(points: int, backend: Any) -> Counter[str]:
    """Do `points` cancellations; how many of each coroutine."""
    done: Counter[str] = Counter()
    async with av.AsyncVecEnv(stamp_envs(4, 3), num_workers=2, backend=backend) as envs:
        events: list[av.Episode | av.EpisodeStarted] = []

        async def read() -> None:
            events.extend([event async for event in stream])

        stream = envs.events()
        reading = asyncio.create_task(read())
        await envs.reset(seed=1)
        while done.total() < points:
            for name, operation in OPERATIONS.items():
                for k in range(100):
                    ended = await cancel_after(envs, operation, k)
                    await settled(envs)
                    if ended:
                        break
                    done[name] += 1
        restarts = envs.statistics().restarts
    await reading
    check_episodes(events)
    assert restarts == 0
    return done


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--backend", choices=["process", "inline"], default="process")
    options = parser.parse_args(argv)
    began = time.monotonic()
    done = av.run(sweep(options.points, options.backend))
    for name, count in done.items():
        print(f"{name:20} {count:7d} cancelled")
    print(f"{'all':20} {done.total():7d} cancelled, 0 wrong, 0 hung, {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
