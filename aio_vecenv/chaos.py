"""`python -m aio_vecenv.chaos`: breaks things at random and counts what was lost.

Steps envs at full speed while workers are killed, crashed, stopped, slowed down, and calls cancelled, at random,
with updates published all the time. Every episode, every row and every update is checked. The same --seed plays
the same faults again. Exit status: 0 if everything adds up, 1 if anything was lost, doubled, hung or left behind.
"""
# edge: argv, stdout, signals to its own workers

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from .core.batch import Episode, EpisodeStarted
from .core.limits import RestartBudget, Timeouts
from .core.statistics import Statistics
from .errors import VecEnvError, WorkerLost
from .loop import run
from .runtime.events import EventStream
from .testing import StampEnv, check_aligned
from .vec_env import AsyncVecEnv

__all__ = ["Options", "Table", "main", "soak"]

T = TypeVar("T")

_HANG_S = 60.0  # nothing here takes a tenth of that, on a loaded machine
_STEP_LIMIT_S = 1.5
FAULTS = ("kill", "crash", "exit", "stop", "hang", "slow", "cancel")


@dataclass(frozen=True)
class Options:
    """What to break, how often, for how long."""

    seconds: float = 60.0
    seed: int = 0
    num_envs: int = 16
    num_workers: int = 4
    faults_per_minute: float = 60.0
    updates_per_s: float = 100.0
    spares: int = 1
    unroll: int = 0  # the most rows of an unroll; 0: single steps
    renew_after: int = 0  # episodes; 0: no worker is renewed
    factory: Callable[[], Any] | None = None  # default: envs that can check every row


@dataclass
class Table:
    """What was seen. `failures` is empty if everything added up."""

    seconds: float = 0.0
    steps: int = 0
    batches: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: int = 0
    renewals: int = 0
    recovery_p50_ms: float = 0.0
    recovery_p99_ms: float = 0.0
    started: int = 0
    terminated: int = 0
    truncated: int = 0
    aborted: int = 0
    duplicates: int = 0
    lost: int = 0
    published: int = 0
    applied: int = 0
    descriptors: tuple[int, int] = (0, 0)  # at the start, at the end
    processes: tuple[int, int] = (0, 0)
    # of this process and its workers: after the warm-up, at the end
    memory_mb: tuple[float, float] = (0.0, 0.0)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            ("time", f"{self.seconds:.1f} s"),
            ("steps", f"{self.steps:,} in {self.batches:,} batches"),
            ("faults", ", ".join(f"{n} {k}" for k, n in sorted(self.faults.items())) or "none"),
            ("recoveries, renewals", f"{self.recoveries}, {self.renewals}"),
            ("recovery time", f"p50 {self.recovery_p50_ms:.0f} ms, p99 {self.recovery_p99_ms:.0f} ms"),
            ("episodes started", str(self.started)),
            (
                "episodes ended",
                f"{self.terminated} terminated + {self.truncated} truncated + {self.aborted} aborted",
            ),
            ("episodes doubled, lost", f"{self.duplicates}, {self.lost}"),
            ("updates", f"{self.published} published, newest applied by every worker: {self.applied}"),
            ("descriptors", "{} at the start, {} at the end".format(*self.descriptors)),
            ("processes", "{} at the start, {} at the end".format(*self.processes)),
            ("memory", "{:.0f} MB after the warm-up, {:.0f} MB at the end".format(*self.memory_mb)),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        return "\n".join([*lines, *(f"FAILED: {failure}" for failure in self.failures)])


class ChaosEnv(StampEnv):
    """A `StampEnv` that can be told to crash, leave, hang or dawdle in its next step."""

    def __init__(self, env: int) -> None:
        super().__init__(env, length=lambda env, episode: 3 + (7 * env + 13 * episode) % 40)
        self._next = ""

    def misbehave(self, how: str) -> None:
        """In the next step."""
        self._next = how

    def step(self, action: Any) -> Any:
        how, self._next = self._next, ""
        if how == "crash":
            os.abort()
        if how == "exit":
            sys.exit(3)
        if how == "hang":
            time.sleep(3600)
        if how == "slow":
            time.sleep(0.05)
        return super().step(action)


class ChaosPolicy:
    """Acts at random, and says in each row under which parameters it did."""

    noise = ((), np.float64)
    outputs: Any = {"version": ((), np.int64)}  # noqa: RUF012
    version = 0

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Any:
        """Uniform in [0, 1)."""
        return rng.random(rows)

    def load(self, params: tuple[int, bytes]) -> None:
        self.version = params[0]

    def act(self, obs: Any, noise: Any) -> Any:
        return (10 * noise).astype(np.int64), {"version": np.full(len(obs), self.version)}


class _Books:
    """Every episode once: begun, then ended; orders grow; versions are not older than what was published before."""

    def __init__(self, table: Table, num_envs: int) -> None:
        self._table = table
        self._num_envs = num_envs
        self._open: dict[int, EpisodeStarted] = {}
        self._last: dict[int, tuple[int, int]] = {}  # env -> index and order of its newest episode
        self.newest_at: dict[int, int] = {}  # number of the send or reset -> newest version at its sending

    def fold(self, event: EpisodeStarted | Episode) -> None:
        table = self._table
        if isinstance(event, EpisodeStarted):
            table.started += 1
            index, order = self._last.get(event.env_id, (-1, -1))
            if event.env_id in self._open or event.index <= index or event.order <= order:
                table.duplicates += 1
                table.failures.append(f"env {event.env_id}: episode {event.index} began after {index}")
            elif event.index != index + 1:
                table.lost += 1
                table.failures.append(f"env {event.env_id}: episode {event.index} began after {index}")
            floor = self.newest_at.get(event.order // self._num_envs, 0)
            if event.version < floor:
                table.failures.append(
                    f"env {event.env_id}: an episode under version {event.version}, {floor} was published before"
                )
            self._last[event.env_id] = (event.index, event.order)
            self._open[event.env_id] = event
            return
        begun = self._open.pop(event.env_id, None)
        if begun is None or begun.index != event.index:
            table.duplicates += 1
            table.failures.append(f"env {event.env_id}: episode {event.index} ended, {begun} was open")
        setattr(table, event.outcome, getattr(table, event.outcome) + 1)

    def close(self) -> None:
        """Nothing may be open any more."""
        table = self._table
        table.lost += len(self._open)
        table.failures += [f"{started} never ended" for started in self._open.values()]
        ended = table.terminated + table.truncated + table.aborted
        if table.started != ended:
            table.failures.append(f"{table.started} episodes began, {ended} ended")


class _Soak:
    """One run: a stepper, a breaker, a publisher and a reader, over one vec env."""

    def __init__(self, options: Options, envs: AsyncVecEnv, table: Table) -> None:
        self.options, self.envs, self.table = options, envs, table
        self.random = random.Random(options.seed)
        self.books = _Books(table, envs.num_envs)
        self.stopping = False
        self.cancel_next = False
        self.stepping: asyncio.Task[Any] | None = None

    async def step(self) -> None:
        """Full speed, first-N-ready and lockstep in turns; sometimes cancelled, always aligned."""
        envs, books = self.envs, self.books
        rng = np.random.default_rng(self.options.seed)
        books.newest_at[0] = 0
        await envs.reset(seed=self.options.seed)
        ready = np.arange(envs.num_envs)
        number = 1
        while not self.stopping:
            if len(ready):
                books.newest_at[number] = self.table.published
                books.newest_at.pop(number - 10_000, None)
                envs.send(self._actions(rng, ready), ready)
                number += 1
            lockstep = self.table.batches // 500 % 2 == 0
            batch = await self._unless_cancelled(envs.recv(None if lockstep else max(1, envs.num_envs // 4)))
            if batch is None:
                ready = ready[:0]  # the replies stay owed
                continue
            self.table.batches += 1
            if self.options.factory is None:
                check_aligned(batch)
            ready = batch.env_ids

    async def unroll(self) -> None:
        """As `step`, in chunks of any length, with single steps and new parameters between them."""
        envs, books, policy = self.envs, self.books, ChaosPolicy()
        rng = np.random.default_rng(self.options.seed)
        books.newest_at[0] = 0
        await envs.reset(seed=self.options.seed)
        ready = np.arange(envs.num_envs)
        number, version, rows = 1, 0, False  # rows: whether a single step is owed
        while not self.stopping:
            if len(ready):
                if rng.random() < 0.1:
                    size = int(rng.choice([10, 300_000]))
                    version = envs.set_policy((version + 1, b"x" * size))
                length = 1 + int(rng.integers(self.options.unroll))
                single = rng.random() < 0.1
                for t in range(1 if single else length):
                    books.newest_at[number + t] = self.table.published
                    books.newest_at.pop(number + t - 10_000, None)
                if single:
                    envs.send(rng.integers(0, 10, len(ready)), ready)
                else:
                    envs.send_unroll(policy.draw(rng, (length, len(ready))), ready)
                number += 1 if single else length
                rows = rows or single
            received = await self._unless_cancelled(self._receive(rows))
            if received is None:
                ready = ready[:0]  # the replies stay owed
            else:
                ready, rows = received, False

    async def _unless_cancelled(self, receive: Coroutine[Any, Any, T]) -> T | None:
        """What `receive` returns; None where chaos has it cancelled. Raises TimeoutError if it hangs."""
        receiving = asyncio.ensure_future(receive)
        if self.cancel_next:
            self.cancel_next = False
            await asyncio.wait([receiving], timeout=0)
            receiving.cancel()
        try:
            async with asyncio.timeout(_HANG_S):
                return await receiving
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return None

    async def _receive(self, rows: bool) -> Any:
        """Rows, or a chunk; first-N-ready and lockstep in turns. The envs that owe nothing now."""
        envs = self.envs
        lockstep = self.table.batches // 500 % 2 == 0
        min_envs = None if lockstep else max(1, envs.num_envs // 4)
        if rows:
            batch = await envs.recv()
            self.table.batches += 1
            check_aligned(batch)
            return batch.env_ids
        chunk = await envs.recv_unroll(min_envs)
        self.table.batches += len(chunk.rewards)
        for t in range(len(chunk.rewards)):
            check_aligned(chunk.row(t))
        acted = chunk.outputs["version"]
        idle = chunk.first & (acted == 0)  # all envs of that worker wait for its renewal
        assert ((acted == chunk.policy_version) | idle).all(), (
            f"acted by {set(acted[~idle].flat)}, not {chunk.policy_version}"
        )
        return chunk.env_ids

    def _actions(self, rng: np.random.Generator, ready: Any) -> Any:
        if self.options.factory is None:
            return rng.integers(0, 10, len(ready))
        space = self.envs.single_action_space
        from gymnasium.vector.utils import batch_space

        return batch_space(space, len(ready)).sample()

    async def publish(self) -> None:
        """Updates all the time, on two topics; now and then one is awaited."""
        while not self.stopping:
            topic = self.random.choice(("wind", "rain"))
            apply: Literal["reset", "now"] = "now" if topic == "rain" else "reset"
            payload = {"payload": b"x" * self.random.randrange(2000)}
            receipt = self.envs.broadcast(payload, topic=topic, apply=apply)
            self.table.published = receipt.version
            if self.random.random() < 0.05:
                await receipt.wait(_HANG_S)
            await asyncio.sleep(self.random.expovariate(self.options.updates_per_s))

    async def break_things(self) -> None:
        """One fault after another, at random distances."""
        kinds = FAULTS if self.options.factory is None else ("kill", "stop", "cancel")
        while not self.stopping:
            await asyncio.sleep(self.random.expovariate(self.options.faults_per_minute / 60))
            kind = self.random.choice(kinds)
            worker = self.random.randrange(self.envs.num_workers)
            self.table.faults[kind] += 1
            with suppress(VecEnvError, ExceptionGroup, ProcessLookupError):  # it may be down already
                await self._break(kind, worker)

    async def _break(self, kind: str, worker: int) -> None:
        pid = self.envs.statistics().workers[worker].pid
        if kind == "cancel":
            self.cancel_next = True
        elif kind == "kill" and pid > 0:
            os.kill(pid, signal.SIGKILL)
        elif kind == "stop" and pid > 0:
            os.kill(pid, signal.SIGSTOP)
            try:  # shorter than a step's limit: it goes on; longer: it is replaced
                await asyncio.sleep(self.random.choice((0.05, 0.3, 2 * _STEP_LIMIT_S)))
            finally:
                os.kill(pid, signal.SIGCONT)
        elif kind in ("crash", "exit", "hang", "slow"):
            first = worker * self.envs.num_envs // self.envs.num_workers
            async with asyncio.timeout(_HANG_S):
                await self.envs.call("misbehave", kind, env_ids=[first])

    async def read(self, stream: EventStream) -> None:
        """Fold every event, to the end of the stream."""
        async for event in stream:
            self.books.fold(event)


def _make(options: Options) -> AsyncVecEnv:
    factories: list[Callable[[], Any]] = (
        [options.factory] * options.num_envs
        if options.factory is not None
        else [_chaos_env(env) for env in range(options.num_envs)]
    )
    return AsyncVecEnv(
        factories,
        num_workers=options.num_workers,
        timeouts=Timeouts(start=_HANG_S, step=_STEP_LIMIT_S, reset=_STEP_LIMIT_S, close=_HANG_S),
        restart=RestartBudget(10_000, per_s=60),
        spares=options.spares,
        policy=ChaosPolicy() if options.unroll else None,
        unroll=options.unroll or None,
        renew_after=options.renew_after or None,
    )


async def soak(options: Options, report: Callable[[str], None] = lambda line: None) -> Table:
    """Break things for `options.seconds`; what came of it. `report` gets a line of progress every ten seconds."""
    table = Table()
    began = time.monotonic()
    before = _own_numbers()
    envs = _make(options)
    statistics: Statistics | None = None
    async with envs:
        run_ = _Soak(options, envs, table)
        reader = asyncio.create_task(run_.read(envs.events()))
        stepping = run_.unroll() if options.unroll else run_.step()
        tasks = [asyncio.create_task(part) for part in (stepping, run_.publish(), run_.break_things())]
        try:
            began = time.monotonic()  # opening does not count
            await _look_on(began, options, envs, table, tasks, report)
            run_.stopping = True
            tasks[-1].cancel()  # what breaks things: the last fault was before the last update
            async with asyncio.timeout(_HANG_S):
                await asyncio.wait(tasks[-1:])
                await tasks[0]
                await _all_answer(envs)  # a worker that is being replaced has applied nothing yet
                receipts = [envs.broadcast("the last", topic=topic) for topic in ("wind", "rain")]
                for receipt in receipts:
                    await receipt.wait(_HANG_S)
                table.published = receipts[-1].version
                table.applied = min(worker.version for worker in envs.statistics().workers)
            table.memory_mb = (table.memory_mb[0], _memory_mb(envs))
            statistics = envs.statistics()
        except (TimeoutError, AssertionError, WorkerLost, VecEnvError, ExceptionGroup) as error:
            first: BaseException = error
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            cause = "" if first is error else f"; the first: {type(first).__name__}: {first}"
            table.failures.append(f"{type(error).__name__}: {error}{cause}")
        finally:
            run_.stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(_HANG_S):
        await reader
    run_.books.close()
    if statistics is not None:
        table.steps, table.recoveries = statistics.executed_steps, statistics.restarts
        table.renewals = statistics.renewals
        table.recovery_p50_ms = 1e3 * statistics.recovery.p50_s
        table.recovery_p99_ms = 1e3 * statistics.recovery.p99_s
        if table.applied != table.published:
            table.failures.append(f"update {table.published} was published last, {table.applied} applied")
    del envs, run_, tasks, reader
    gc.collect()
    after = _own_numbers()
    table.descriptors, table.processes = (before[0], after[0]), (before[1], after[1])
    if after[0] > before[0] or after[1] > before[1]:
        table.failures.append(f"left behind: descriptors {table.descriptors}, processes {table.processes}")
    table.seconds = time.monotonic() - began
    return table


async def _look_on(
    began: float,
    options: Options,
    envs: AsyncVecEnv,
    table: Table,
    tasks: Sequence[asyncio.Task[None]],
    report: Callable[[str], None],
) -> None:
    """Until the time is over; raises what one of the tasks raised."""
    warm, end, next_line = False, began + options.seconds, began + 10
    while (now := time.monotonic()) < end:
        if not warm and now - began >= min(60.0, options.seconds / 4):
            warm = True
            table.memory_mb = (_memory_mb(envs), 0.0)
        done, _ = await asyncio.wait(tasks, timeout=min(1.0, end - now), return_when=asyncio.FIRST_COMPLETED)
        for task in done:  # none of them ends by itself
            task.result()
        if now >= next_line:
            next_line += 10
            report(f"{now - began:5.0f} s  {table.batches:,} batches, {sum(table.faults.values())} faults")


async def _all_answer(envs: AsyncVecEnv) -> None:
    """Wait until every worker answers; the last faults may still be at work."""
    while True:
        try:
            await envs.apply(_here)
        except WorkerLost:
            continue  # while that call was under way: its replacement will answer
        return


def _here(env: Any) -> bool:
    return True


def _chaos_env(env: int) -> Callable[[], ChaosEnv]:
    return lambda: ChaosEnv(env)


def _own_numbers() -> tuple[int, int]:
    """Descriptors of this process, and its children."""
    fds = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    return fds, len(_children(os.getpid()))


def _children(parent: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = entry.read_text().partition(" ")
            if int(rest.rpartition(")")[2].split()[1]) == parent:
                found.append(int(pid))
    return found


def _memory_mb(envs: AsyncVecEnv) -> float:
    """Resident memory of this process, and private memory of its workers as a mean times their number."""
    workers = [
        _field_kb(worker.pid, "smaps_rollup", "Private_Dirty:") for worker in envs.statistics().workers
    ]
    alive = [size for size in workers if size]
    mean = sum(alive) / len(alive) if alive else 0.0
    return (_field_kb(os.getpid(), "status", "VmRSS:") + mean * len(workers)) / 1024


def _field_kb(pid: int, file: str, name: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return float(line.split()[1])
    return 0.0


def _load_factory(name: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SystemExit(f"chaos: --env {name}: expected MODULE:FACTORY, {error}") from None
    if not callable(factory):
        raise SystemExit(f"chaos: --env {name} is not callable")
    return factory  # type: ignore[no-any-return]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv`, soak, print the table; the exit status."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m aio_vecenv.chaos", description=__doc__)
    parser.add_argument(
        "--env", metavar="MODULE:FACTORY", help="your own env, instead of one that checks every row"
    )
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="the same seed plays the same faults")
    parser.add_argument("--num-envs", type=int, default=defaults.num_envs)
    parser.add_argument("--num-workers", type=int, default=defaults.num_workers)
    parser.add_argument("--faults-per-minute", type=float, default=defaults.faults_per_minute)
    parser.add_argument("--updates-per-s", type=float, default=defaults.updates_per_s)
    parser.add_argument(
        "--spares", type=int, default=defaults.spares, help="warm interpreters for replacements"
    )
    parser.add_argument(
        "--unroll",
        type=int,
        nargs="?",
        const=16,
        default=0,
        metavar="ROWS",
        help="in chunks of up to so many rows (16), acted by a policy in the workers",
    )
    parser.add_argument(
        "--renew-after", type=int, default=defaults.renew_after, metavar="EPISODES",
        help="renew each worker after so many (0: none is)",
    )  # fmt: skip
    given = vars(parser.parse_args(argv))
    env = given.pop("env")
    if env is not None and given["unroll"]:
        parser.error("--unroll goes with the env that checks every row, not with --env")
    options = Options(**given, factory=None if env is None else _load_factory(env))
    print(f"seed {options.seed}: {options.num_envs} envs in {options.num_workers} workers", flush=True)
    table = run(soak(options, lambda line: print(line, flush=True)))
    print(table)
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
