"""The process of one version: started by `benchmarks.versions`, in that version's checkout. Uses public names only."""
# edge: reads requests from stdin, answers in JSON on stdout

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = sys.argv[1]
sys.path[0] = ROOT  # not the folder of this file, which may be another version's

import gymnasium as gym  # noqa: E402
import numpy as np  # noqa: E402

import aio_vecenv as av  # noqa: E402

NUM_ENVS, NUM_WORKERS = 32, 2
PROJECT = tuple(os.path.join(ROOT, package) + os.sep for package in ("aio_vecenv", "curriculum", "trainers"))


class CountCalls:
    """Counts calls of this version's functions in this thread, while it is on."""

    def __init__(self) -> None:
        self.calls = 0

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PROJECT):
            self.calls += 1

    def start(self) -> None:
        self.calls = 0
        sys.setprofile(self._profile)

    def stop(self) -> int:
        sys.setprofile(None)
        return self.calls


class Counted(gym.Wrapper[Any, Any, Any, Any]):
    """An env by which the calls in its worker can be counted."""

    counter = CountCalls()

    def start_counting(self) -> None:
        self.counter.start()

    def stop_counting(self) -> int:
        return self.counter.stop()


def make_env(name: str) -> Callable[[], gym.Env[Any, Any]]:
    if name.startswith("frozenlake"):
        return lambda: Counted(
            gym.make("FrozenLake-v1", map_name="8x8", is_slippery=False, max_episode_steps=16)
        )
    return lambda: Counted(gym.make("CartPole-v1"))


def tree_cpu_s() -> float:
    """CPU time of this process and all below it, in seconds; nanosecond resolution."""
    total, pending = 0, [os.getpid()]
    while pending:
        for task in Path(f"/proc/{pending.pop()}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
            pending += map(int, (task / "children").read_text().split())
    return total / 1e9


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[tuple[av.AsyncVecEnv, np.ndarray[Any, Any]]]:
    async with av.AsyncVecEnv(make_env(name), NUM_ENVS, num_workers=NUM_WORKERS, info="episode") as envs:
        await envs.reset(seed=0)
        actions = np.random.default_rng(0).integers(0, envs.single_action_space.n, (1024, NUM_ENVS))
        yield envs, actions


async def step(envs: av.AsyncVecEnv, actions: np.ndarray[Any, Any], seconds: float, first: bool) -> int:
    """Step for a while; the number of executed steps."""
    end, executed, at = time.perf_counter() + seconds, 0, 0
    if first:
        envs.send(actions[0])
    while time.perf_counter() < end:
        at = (at + 1) % len(actions)
        if first:
            batch = await envs.recv(min_envs=NUM_ENVS // NUM_WORKERS)
            envs.send(actions[at, batch.env_ids], batch.env_ids)
        else:
            batch = await envs.step(actions[at])
        executed += len(batch.first) - int(batch.first.sum())
    if first:
        batch = await envs.recv()
        executed += len(batch.first) - int(batch.first.sum())
    return executed


async def serve(name: str) -> None:
    async with opened(name) as (envs, actions):
        answer({})
        for line in sys.stdin:
            wall, cpu = time.perf_counter(), tree_cpu_s()
            executed = await step(envs, actions, float(line), name.endswith("first"))
            answer({"steps": executed, "cpu_s": tree_cpu_s() - cpu, "wall_s": time.perf_counter() - wall})


async def count_commands() -> dict[str, float]:
    """Calls per worker-command, in the parent and in a worker, stepping CartPoles."""
    counts: dict[str, float] = {}
    turns, share = 500, NUM_ENVS // NUM_WORKERS
    for title, first in (("lockstep", False), ("first-N-ready", True)):
        async with opened("cartpole") as (envs, actions):
            await step(envs, actions, 0.2, first)
            counter, rows = CountCalls(), 0
            if first:
                envs.send(actions[0])
            counter.start()
            for turn in range(turns):
                if first:
                    batch = await envs.recv(min_envs=share)
                    envs.send(actions[turn, batch.env_ids], batch.env_ids)
                else:
                    batch = await envs.step(actions[turn])
                rows += len(batch.env_ids)
            counts[f"worker-command, parent, {title}"] = counter.stop() / (rows / share)
            if first:
                await envs.recv()
                continue
            await envs.call("start_counting", env_ids=[0])
            for turn in range(turns):
                await envs.step(actions[turn])
            (inside,) = await envs.call("stop_counting", env_ids=[0])
            counts["worker-command, worker"] = inside / turns
    return counts


async def count_training() -> dict[str, float]:
    """Calls per turn (one step of all envs), in the event loop's thread, training the default preset."""
    from trainers import TrainConfig, training

    counter, begin = CountCalls(), 0
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            preset="frozenlake", runs=Path(folder), num_workers=NUM_WORKERS, total_steps=20_480
        )
        async with training(config) as run:
            async for report in run.reports():
                if begin == 0:
                    begin = report.env_steps
                    counter.start()
                elif report.env_steps >= 15_000:
                    break
            calls = counter.stop()
            await run.stop()
    return {"turn of training": calls / ((report.env_steps - begin) / NUM_ENVS)}


async def count(kind: str) -> None:
    answer({})
    sys.stdin.readline()
    answer(await (count_commands if kind == "calls-command" else count_training)())


def answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    kind = sys.argv[2]
    asyncio.run(count(kind) if kind.startswith("calls-") else serve(kind))
