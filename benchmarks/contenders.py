"""One class per contender: open, step, close. Each runs in a process of its own, driven by the harness.

A *step* is an executed action, for all of them: rows of an autoreset are not counted.
"""
# edge: `python -m benchmarks.contenders NAME` answers one line of JSON for each line of JSON

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import workloads
from benchmarks.workloads import Workload

__all__ = ["CONTENDERS", "Contender", "Host"]

T = TypeVar("T")


class Contender:
    """Something that steps the envs of a workload. `step()` steps a batch and says how many actions were executed."""

    title: ClassVar[str]
    note: ClassVar[str] = ""
    module: ClassVar[str] = ""
    """What it imports."""
    parallel: ClassVar[bool] = True
    """Whether it counts as a peer: it steps the same Python envs in processes of their own."""

    def open(self, workload: Workload) -> None:
        """Start everything and do the first reset."""
        self._actions = workload.actions()
        self._at = -1
        self.workload = workload
        self._open(workload)

    def _open(self, workload: Workload) -> None:
        raise NotImplementedError

    def _next_actions(self) -> NDArray[np.int64]:
        self._at += 1
        row: NDArray[np.int64] = self._actions[self._at & 1023]
        return row

    def step(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def run(self, seconds: float) -> dict[str, float]:
        """Step for so long: executed steps, calls, seconds."""
        steps = calls = 0
        began = now = time.perf_counter()
        while now - began < seconds:
            steps += self.step()
            calls += 1
            now = time.perf_counter()
        return {"steps": steps, "calls": calls, "seconds": now - began}

    def latencies(self, seconds: float) -> list[float]:
        """Seconds of each call of `step()`."""
        taken: list[float] = []
        began = now = time.perf_counter()
        while now - began < seconds:
            before = now
            self.step()
            now = time.perf_counter()
            taken.append(now - before)
        return taken


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it can be had."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory


# -- ours --------------------------------------------------------------------------------------------------------


class Ours(Contender):
    title = "aio-vecenv, lockstep"
    module = "aio_vecenv"

    def _open(self, workload: Workload) -> None:
        import aio_vecenv as av

        self._runner = asyncio.Runner(loop_factory=_loop_factory())
        self.envs = av.AsyncVecEnv(workload.factories, num_workers=workload.num_workers)
        self._do(self._start())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _start(self) -> None:
        await self.envs.__aenter__()
        await self.envs.reset(seed=0)

    def run(self, seconds: float) -> dict[str, float]:
        return self._do(self._run(seconds))

    def latencies(self, seconds: float) -> list[float]:
        return self._do(self._latencies(seconds))

    async def _run(self, seconds: float) -> dict[str, float]:
        envs, calls = self.envs, 0
        before = envs.statistics().executed_steps
        began = now = time.perf_counter()
        while now - began < seconds:
            await envs.step(self._next_actions())
            calls += 1
            now = time.perf_counter()
        steps = envs.statistics().executed_steps - before
        return {"steps": steps, "calls": calls, "seconds": now - began}

    async def _latencies(self, seconds: float) -> list[float]:
        taken: list[float] = []
        began = now = time.perf_counter()
        while now - began < seconds:
            before = now
            await self.envs.step(self._next_actions())
            now = time.perf_counter()
            taken.append(now - before)
        return taken

    def updates(self, seconds: float, rate: float, payload_bytes: int | None) -> dict[str, Any]:
        """Step while publishing `rate` updates a second; 0: none. Without a payload only the publisher's clock runs:
        it wakes as often, and publishes nothing."""
        payload = None if payload_bytes is None else bytes(payload_bytes)
        return self._do(self._updates(seconds, rate, payload))

    async def _updates(self, seconds: float, rate: float, payload: bytes | None) -> dict[str, Any]:
        costs: list[float] = []
        applied: list[float] = []
        publisher = asyncio.ensure_future(self._publish(rate, payload, costs, applied)) if rate else None
        result: dict[str, Any] = await self._run(seconds)
        if publisher is not None:
            publisher.cancel()
            await asyncio.wait([publisher])
        commands = [worker.step_time for worker in self.envs.statistics().workers]
        return {
            **result,
            "costs_s": costs,
            "applied_s": applied,
            "command_p50_s": max(command.p50_s for command in commands),
            "command_p99_s": max(command.p99_s for command in commands),
        }

    async def _publish(
        self, rate: float, payload: bytes | None, costs: list[float], applied: list[float]
    ) -> None:
        """At an even pace. Every fourth receipt is waited for, as seen by the caller."""
        watchers: set[asyncio.Task[None]] = set()

        async def watch(receipt: Any, since: float) -> None:
            await receipt
            applied.append(time.perf_counter() - since)

        began, number = time.perf_counter(), 0
        while True:
            if (wait := began + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            number += 1
            if payload is None:
                continue
            before = time.perf_counter()
            receipt = self.envs.broadcast(payload)
            costs.append(time.perf_counter() - before)
            if number % 4 == 0:
                task = asyncio.ensure_future(watch(receipt, before))
                watchers.add(task)
                task.add_done_callback(watchers.discard)

    def close(self) -> None:
        self._do(self.envs.aclose())
        self._runner.close()


class OursFirstReady(Ours):
    title = "aio-vecenv, first-N-ready"

    async def _run(self, seconds: float) -> dict[str, float]:
        envs, calls, quorum = self.envs, 0, self.workload.min_envs
        before = envs.statistics().executed_steps
        began = now = time.perf_counter()
        envs.send(self._next_actions())
        while True:
            batch = await envs.recv(quorum)
            calls += 1
            now = time.perf_counter()
            if now - began >= seconds:
                break
            envs.send(self._next_actions()[batch.env_ids], batch.env_ids)
        steps = envs.statistics().executed_steps - before
        with contextlib.suppress(ValueError):  # nothing is owed
            await envs.recv()  # the next round begins with nothing under way
        return {"steps": steps, "calls": calls, "seconds": now - began}


class OursInline(Ours):
    title = "aio-vecenv, inline"
    parallel = False
    note = "no processes"

    def _open(self, workload: Workload) -> None:
        import aio_vecenv as av

        self._runner = asyncio.Runner()
        self.envs = av.AsyncVecEnv(workload.factories, backend="inline", num_workers=1)
        self._do(self._start())


# -- the limit -----------------------------------------------------------------------------------------------------


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
        self._runner = asyncio.Runner(loop_factory=_loop_factory())
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


# -- peers ---------------------------------------------------------------------------------------------------------


class GymnasiumAsync(Contender):
    title = "Gymnasium AsyncVectorEnv"
    module = "gymnasium.vector"

    def _open(self, workload: Workload) -> None:
        from gymnasium.vector import AsyncVectorEnv

        self.envs: Any = AsyncVectorEnv(workload.factories, shared_memory=True)
        self.envs.reset(seed=0)
        self._resets = 0  # rows of the next step that only reset

    def step(self) -> int:
        _, _, terminated, truncated, _ = self.envs.step(self._next_actions())
        executed = self.workload.num_envs - self._resets
        self._resets = int(np.count_nonzero(terminated | truncated))
        return executed

    def close(self) -> None:
        self.envs.close()


class GymnasiumSync(GymnasiumAsync):
    title = "Gymnasium SyncVectorEnv"
    note = "serial"
    parallel = False

    def _open(self, workload: Workload) -> None:
        from gymnasium.vector import SyncVectorEnv

        self.envs = SyncVectorEnv(workload.factories)
        self.envs.reset(seed=0)
        self._resets = 0


class StableBaselines3(Contender):
    title = "SB3 SubprocVecEnv"
    module = "stable_baselines3"
    note = "start method fork"
    start_method = "fork"

    def _open(self, workload: Workload) -> None:
        vec_env = import_module("stable_baselines3.common.vec_env")
        self.envs: Any = vec_env.SubprocVecEnv(workload.factories, start_method=self.start_method)
        self.envs.seed(0)
        self.envs.reset()

    def step(self) -> int:
        self.envs.step(self._next_actions())  # it resets within the step: every row is an executed action
        return self.workload.num_envs

    def close(self) -> None:
        self.envs.close()


class StableBaselines3Default(StableBaselines3):
    title = "SB3 SubprocVecEnv (forkserver)"
    note = "its default start method: every child imports torch"
    start_method = "forkserver"


class Tianshou(Contender):
    title = "Tianshou ShmemVectorEnv"
    module = "tianshou.env"

    def _open(self, workload: Workload) -> None:
        self.envs: Any = import_module("tianshou.env").ShmemVectorEnv(workload.factories, **self._options())
        self.envs.seed(0)
        self.envs.reset()

    def _options(self) -> dict[str, Any]:
        return {}

    def step(self) -> int:
        _, _, terminated, truncated, _ = self.envs.step(self._next_actions())
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            self.envs.reset(ended)  # as its Collector does
        return self.workload.num_envs

    def close(self) -> None:
        self.envs.close()


class TianshouAsync(Tianshou):
    title = "Tianshou ShmemVectorEnv, wait_num"

    def _open(self, workload: Workload) -> None:
        super()._open(workload)
        self._ready: NDArray[np.int64] = np.arange(workload.num_envs)

    def _options(self) -> dict[str, Any]:
        return {"wait_num": self.workload.min_envs}

    def step(self) -> int:
        actions = self._next_actions()[self._ready]
        _, _, terminated, truncated, infos = self.envs.step(actions, self._ready)
        self._ready = np.array([info["env_id"] for info in infos])
        ended = self._ready[terminated | truncated]
        if len(ended):
            self.envs.reset(ended)
        return len(self._ready)


class TorchRL(Contender):
    title = "TorchRL ParallelEnv"
    module = "torchrl.envs"
    note = "start method fork"

    def _open(self, workload: Workload) -> None:
        self._torch = import_module("torch")
        library = import_module("torchrl.envs")

        def make() -> Any:
            return library.GymWrapper(workload.make(), categorical_action_encoding=True)

        self.envs: Any = self._group(library, make)
        self.envs.set_seed(0)
        self._state = self.envs.reset()

    def _group(self, library: Any, make: Callable[[], Any]) -> Any:
        return library.ParallelEnv(self.workload.num_envs, make, mp_start_method="fork")

    def step(self) -> int:
        actions = self._torch.from_numpy(self._next_actions().reshape(self._state.batch_size))
        _, self._state = self.envs.step_and_maybe_reset(self._state.set("action", actions))
        return self.workload.num_envs

    def close(self) -> None:
        self.envs.close()


class TorchRLGrouped(TorchRL):
    title = "TorchRL ParallelEnv of SerialEnv"
    note = "W workers; start method fork"

    def _group(self, library: Any, make: Callable[[], Any]) -> Any:
        share = self.workload.num_envs // self.workload.num_workers
        workers = self.workload.num_workers
        return library.ParallelEnv(workers, lambda: library.SerialEnv(share, make), mp_start_method="fork")


class EnvPool(Contender):
    title = "envpool"
    module = "envpool"
    note = "its own C++ env, not the Python one"
    parallel = False

    def _open(self, workload: Workload) -> None:
        if workload.gym_id is None:
            raise Unfit("has only envs of its own")
        self.envs: Any = import_module("envpool").make(
            workload.gym_id,
            env_type="gymnasium",
            num_envs=workload.num_envs,
            num_threads=workload.num_workers,
        )
        self.envs.reset()

    def step(self) -> int:
        infos = self.envs.step(self._next_actions())[4]
        return int(np.count_nonzero(infos["elapsed_step"]))  # 0: the row of a reset

    def close(self) -> None:
        self.envs.close()


class Unfit(Exception):
    """This contender cannot do this workload; the message says why."""


CONTENDERS: dict[str, type[Contender]] = {
    "limit": Limit,
    "told": Told,
    "bare": Bare,
    "bare-first": BareFirst,
    "start-limit": StartLimit,
    "ours": Ours,
    "ours-first": OursFirstReady,
    "ours-inline": OursInline,
    "gymnasium": GymnasiumAsync,
    "gymnasium-sync": GymnasiumSync,
    "sb3": StableBaselines3,
    "sb3-forkserver": StableBaselines3Default,
    "tianshou": Tianshou,
    "tianshou-async": TianshouAsync,
    "torchrl": TorchRL,
    "torchrl-grouped": TorchRLGrouped,
    "envpool": EnvPool,
}


# -- what the kernel says --------------------------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """All processes below this one that step envs: helpers of multiprocessing are left out."""
    found: list[int] = []
    for child in _children(pid):
        if b"resource_tracker" in _command(child):
            continue
        if _FORKSERVER in _command(child) and _FORKSERVER not in _command(pid):  # its forks bear its name
            found += descendants(child)
        else:
            found += [child, *descendants(child)]
    return found


_FORKSERVER = b"from multiprocessing.forkserver"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def cpu_s(pid: int) -> float:
    """Processor time of a process, all its threads; nanosecond resolution."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def private_bytes(pid: int) -> int:
    """Memory that ends with this process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


# -- the process that a contender runs in ----------------------------------------------------------------------------


class Host:
    """Answers the harness's requests, one at a time."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender

    def import_all(self) -> dict[str, Any]:
        """What opening would import: a start is measured without it, for everyone."""
        if self._contender.module:
            import_module(self._contender.module)
        return {}

    def open(self, workload: str, num_workers: int | None = None) -> dict[str, Any]:
        chosen = workloads.find(workload)
        if num_workers is not None:
            chosen = Workload(**{**vars(chosen), "num_workers": num_workers})
        began = time.perf_counter()
        self._contender.open(chosen)
        return {"seconds": time.perf_counter() - began}

    def run(self, seconds: float) -> dict[str, Any]:
        here, below = os.getpid(), descendants(os.getpid())
        gc.collect()
        before = cpu_s(here), sum(map(cpu_s, below))
        result = self._contender.run(seconds)
        after = cpu_s(here), sum(map(cpu_s, below))
        return {**result, "parent_cpu_s": after[0] - before[0], "children_cpu_s": after[1] - before[1]}

    def latencies(self, seconds: float) -> dict[str, Any]:
        gc.collect()
        return {"seconds": self._contender.latencies(seconds)}

    def memory(self) -> dict[str, Any]:
        sizes = [private_bytes(pid) for pid in descendants(os.getpid())]
        return {"bytes": sizes, "parent_bytes": private_bytes(os.getpid())}

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """A measurement that only this contender has."""
        result: dict[str, Any] = getattr(self._contender, method)(**arguments)
        return result

    def close(self) -> dict[str, Any]:
        self._contender.close()
        return {}


def serve(host: Any) -> None:
    """One line of JSON in, one out, until the input ends; what it asks is a method of `host`."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log

    try:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(host, json.loads(line)), default=_plain) + "\n")
    except BaseException:
        traceback.print_exc()
        raise
    finally:  # whoever asked has gone, perhaps without a word: what some libraries start would outlive us
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)


def _answer(host: Any, request: dict[str, Any]) -> dict[str, Any]:
    do = request.pop("do")
    try:
        return {"ok": True, **getattr(host, do)(**request)}
    except ModuleNotFoundError as error:
        return {"ok": False, "status": "missing", "why": str(error)}
    except Unfit as error:
        return {"ok": False, "status": "unfit", "why": str(error)}
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"ok": False, "status": "crashed", "why": text[:200]}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        number = value.item()
        return None if isinstance(number, float) and math.isnan(number) else number
    raise TypeError(f"{type(value).__name__} is not JSON")


if __name__ == "__main__":
    from benchmarks import contenders  # pickled by this name, not as __main__

    contenders.serve(contenders.Host(contenders.CONTENDERS[sys.argv[1]]()))
