"""Contenders that guarantee nothing: what no runtime can pass, each with a little more to do than the one before."""
# edge: starts processes that step envs

from __future__ import annotations

import asyncio
import itertools
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contender import Contender, loop_factory
from benchmarks.workloads import Workload

__all__ = ["Bare", "BareFirst", "Limit", "StartLimit", "Told"]


class Limit(Contender):
    """W independent plain loops in W processes, each over its share of the envs: nothing is communicated."""

    title = "limit: plain loops"
    parallel = False

    def _open(self, workload: Workload) -> None:
        context = multiprocessing.get_context("fork")
        bounds = np.linspace(0, workload.num_envs, workload.num_workers + 1).astype(int).tolist()
        self._workers: list[tuple[Any, Connection]] = []
        for index in range(workload.num_workers):
            here, there = context.Pipe()
            columns = slice(bounds[index], bounds[index + 1])
            process = context.Process(
                target=_plain_loop, args=(workload, bounds[index], self._actions[:, columns].tolist(), there)
            )
            process.start()
            there.close()
            self._workers.append((process, here))
        for _, pipe in self._workers:
            pipe.recv()

    def run(self, seconds: float) -> dict[str, float]:
        for _, pipe in self._workers:
            pipe.send(seconds)
        results = [pipe.recv() for _, pipe in self._workers]
        rate = sum(steps / taken for steps, taken in results)
        return {"steps": rate * seconds, "calls": 0, "seconds": seconds}

    def close(self) -> None:
        for _, pipe in self._workers:
            pipe.send(None)
        for process, _ in self._workers:
            process.join()


def _plain_loop(workload: Workload, first: int, table: list[list[int]], pipe: Connection) -> None:
    envs = [workload.make() for _ in table[0]]
    for index, env in enumerate(envs):
        env.reset(seed=first + index)
    pipe.send(None)
    at = 0
    while (seconds := pipe.recv()) is not None:
        steps = 0
        began = now = time.perf_counter()
        while now - began < seconds:
            for env, action in zip(envs, table[at & 1023]):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            steps += len(envs)
            at += 1
            now = time.perf_counter()
        pipe.send((steps, now - began))


class Told(Contender):
    """The limit's loops in fresh interpreters, each batch begun by one byte from the parent and ended by one byte back.

    No data, no bookkeeping, no infos: what it loses against the limit is what waking processes costs on the machine,
    and what any runtime loses that steps in lockstep, starts its workers by exec and waits without spinning.
    """

    title = "plain loops, told each batch by a byte"
    parallel = False

    def _open(self, workload: Workload) -> None:
        context = multiprocessing.get_context("spawn")
        bounds = np.linspace(0, workload.num_envs, workload.num_workers + 1).astype(int).tolist()
        self._workers: list[tuple[Any, Connection]] = []
        for index in range(workload.num_workers):
            here, there = context.Pipe()
            table = self._actions[:, bounds[index] : bounds[index + 1]].tolist()
            process = context.Process(target=_told_loop, args=(workload, bounds[index], table, there))
            process.start()
            there.close()
            self._workers.append((process, here))
        self._fds = [pipe.fileno() for _, pipe in self._workers]
        for fd in self._fds:
            os.read(fd, 1)

    def step(self) -> int:
        for fd in self._fds:
            os.write(fd, b"s")
        for fd in self._fds:
            os.read(fd, 1)
        return self.workload.num_envs

    def close(self) -> None:
        for process, pipe in self._workers:
            os.write(pipe.fileno(), b"q")
            process.join()
            pipe.close()


def _told_loop(workload: Workload, first: int, table: list[list[int]], pipe: Connection) -> None:
    envs = [workload.make() for _ in table[0]]
    for index, env in enumerate(envs):
        env.reset(seed=first + index)
    fd = pipe.fileno()
    os.write(fd, b"r")
    at = 0
    while os.read(fd, 1) == b"s":
        for env, action in zip(envs, table[at & 1023]):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        at += 1
        os.write(fd, b"d")


class Bare(Contender):
    """The least that hands out batches from asyncio: told by a byte, with rows in shared memory, on the event loop.

    What a reply brings is copied and no more: no checks, no infos, no episodes, no errors, no lost workers, no updates.
    What ours loses against it is the price of what it guarantees; what this loses against the loops that are told by a
    byte is the price of the loop and of the data.
    """

    title = "the least from asyncio: rows in shared memory, no checks, no bookkeeping"
    parallel = False

    def _open(self, workload: Workload) -> None:
        context = multiprocessing.get_context("spawn")
        env = workload.make()
        space: Any = env.observation_space
        env.close()
        n = workload.num_envs
        rows = {"obs": (space.dtype.str, space.shape), "rewards": ("<f8", ()), "flags": ("|u1", ()),
                "actions": ("<i8", ())}  # fmt: skip
        shared = {
            name: (context.RawArray("B", n * max(1, math.prod(shape)) * np.dtype(kind).itemsize), kind, shape)
            for name, (kind, shape) in rows.items()
        }
        self._rows = {name: _view(*part) for name, part in shared.items()}
        bounds = np.linspace(0, n, workload.num_workers + 1).astype(int).tolist()
        self._workers: list[tuple[Any, Connection]] = []
        for first, stop in itertools.pairwise(bounds):
            here, there = context.Pipe()
            process = context.Process(target=_bare_loop, args=(workload, first, stop, shared, there))
            process.start()
            there.close()
            self._workers.append((process, here))
        self._fds = [pipe.fileno() for _, pipe in self._workers]
        self._parts = {fd: slice(a, b) for fd, (a, b) in zip(self._fds, itertools.pairwise(bounds))}
        for fd in self._fds:
            os.read(fd, 1)
        self._runner = asyncio.Runner(loop_factory=loop_factory())
        self._loop = self._runner.get_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._ready: list[int] = []  # descriptors of workers whose reply is in
        self._rows_ready = self._quorum = 0
        for fd in self._fds:
            self._loop.add_reader(fd, self._replied, fd)

    @staticmethod
    def _quorum_of(workload: Workload) -> int:
        """Rows to wait for."""
        return workload.num_envs

    def _replied(self, fd: int) -> None:
        os.read(fd, 1)
        self._ready.append(fd)
        self._rows_ready += self._parts[fd].stop - self._parts[fd].start
        if self._rows_ready >= self._quorum and not self._done.done():
            self._done.set_result(None)

    def run(self, seconds: float) -> dict[str, float]:
        return self._runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> dict[str, float]:
        steps = calls = 0
        self._send(self._fds)
        began = now = time.perf_counter()
        while now - began < seconds:
            await self._wait(self._quorum_of(self.workload))
            ready, self._ready, self._rows_ready = self._ready, [], 0
            steps += self._batch(ready)
            self._send(ready)
            calls += 1
            now = time.perf_counter()
        await self._wait(self.workload.num_envs)  # nothing is under way when the next turn begins
        self._ready, self._rows_ready = [], 0
        return {"steps": steps, "calls": calls, "seconds": now - began}

    def _send(self, fds: Sequence[int]) -> None:
        """The next actions to these workers' envs; all of one call have one row of the table."""
        actions, written = self._next_actions(), self._rows["actions"]
        if len(fds) == len(self._fds):
            written[:] = actions
        for fd in fds:
            if len(fds) < len(self._fds):
                written[self._parts[fd]] = actions[self._parts[fd]]
            os.write(fd, b"s")

    async def _wait(self, quorum: int) -> None:
        self._quorum = quorum
        if self._rows_ready < quorum:
            self._done = self._loop.create_future()
            await self._done

    def _batch(self, fds: Sequence[int]) -> int:
        """What these workers replied, as arrays that the caller owns; how many rows."""
        rows, all_rows = self._rows, slice(0, self.workload.num_envs)
        parts = [all_rows] if len(fds) == len(self._fds) else [self._parts[fd] for fd in fds]
        obs, rewards, flags = (
            rows[name][parts[0]].copy()
            if len(parts) == 1
            else np.concatenate([rows[name][part] for part in parts])
            for name in ("obs", "rewards", "flags")
        )
        terminations, truncations = flags == 1, flags == 2
        assert len(obs) == len(rewards) == len(terminations) == len(truncations)
        return len(flags)

    def close(self) -> None:
        for fd in self._fds:
            self._loop.remove_reader(fd)
        for process, pipe in self._workers:
            os.write(pipe.fileno(), b"q")
            process.join()
            pipe.close()
        self._runner.close()


class BareFirst(Bare):
    title = "the least from asyncio, first-N-ready"

    @staticmethod
    def _quorum_of(workload: Workload) -> int:
        return workload.min_envs


def _view(shared: Any, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.frombuffer(shared, kind).reshape(-1, *shape)


def _bare_loop(workload: Workload, first: int, stop: int, shared: dict[str, Any], pipe: Connection) -> None:
    rows = {name: _view(*part)[first:stop] for name, part in shared.items()}
    envs = [workload.make() for _ in range(first, stop)]
    for index, env in enumerate(envs):
        env.reset(seed=first + index)
    observations = list(rows["obs"])
    rewards: Any = memoryview(rows["rewards"].data)
    flags: Any = memoryview(rows["flags"].data)
    fd = pipe.fileno()
    os.write(fd, b"r")
    while os.read(fd, 1) == b"s":
        for i, action in enumerate(rows["actions"].tolist()):
            obs, reward, terminated, truncated, _ = envs[i].step(action)
            rewards[i], flags[i] = reward, terminated + 2 * truncated
            if terminated or truncated:
                obs, _ = envs[i].reset()
            observations[i][...] = obs
        os.write(fd, b"d")


class StartLimit(Contender):
    """W fresh interpreters that import numpy and gymnasium, make their envs and reset them: nothing else."""

    title = "limit: bare interpreters"
    parallel = False

    def _open(self, workload: Workload) -> None:
        share = -(-workload.num_envs // workload.num_workers)
        code = (
            "from benchmarks import workloads\n"
            f"envs = [workloads.find({workload.name!r}).make() for _ in range({share})]\n"
            "for env in envs: env.reset(seed=0)\n"
        )
        self._processes = [
            subprocess.Popen([sys.executable, "-c", code]) for _ in range(workload.num_workers)
        ]
        self.close()

    def close(self) -> None:
        for process in self._processes:
            process.wait()
