"""The workers of one vec env: started together, replaced when lost, timed, and always closed."""
# async: owns the workers and the tasks that replace them

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from ..backends.base import Backend, Loss, Worker
from ..core.batch import Outcome
from ..core.command import Command, Unroll
from ..core.env_state import EnvState
from ..core.framing import HEADER_BYTES, Kind, Message, new_message
from ..core.layout import AT_WORK, LAST_ROW_NS, POLICY_NS, ROWS_DONE, Field, Slab
from ..core.limits import Patience, RestartBudget, RestartLog, Timeouts
from ..core.messages import Attachment, Setup, Spaces, Unrolling, decode_joined, decode_notes
from ..core.report import ErrorReport, describe
from ..core.statistics import Percentiles, Recorder, Statistics, WorkerStatistics
from ..deadline import within
from ..errors import VecEnvError, WorkerLost, WorkerTimeout
from .publisher import Channel

__all__ = ["Client", "Memory", "Supervisor", "WorkerSlot"]

T = TypeVar("T")
_STEP = Kind.STEP


class Memory(NamedTuple):
    """Where the rows of all workers lie."""

    slab: Slab
    rows: Sequence[range]  # per worker
    fields: tuple[Field, ...]
    size_bytes: int
    policy: bytes | None = None  # that workers act with, pickled

    def attachment(self, rows: range, seeds: list[int | None] | None) -> Attachment:
        """The ATTACH message for the worker of these rows; `seeds`: for the envs of a replacement."""
        unrolling = None if self.policy is None else Unrolling(self.rows.index(rows), self.policy)
        return Attachment(rows.start, self.rows[-1].stop, self.fields, self.size_bytes, seeds, unrolling)


class WorkerSlot:
    """One worker across its incarnations: factories, rows, commands under way, and the current process."""

    def __init__(self, index: int, setup: Setup) -> None:
        self.index = index
        self.setup = setup
        self.rows = range(0)  # env ids
        self.incarnation = 0
        self.commands: dict[int, Command] = {}  # sent or waiting for a replacement, oldest first
        self.progress_at = 0.0  # seconds, of the last reply
        self.timer: asyncio.TimerHandle | None = None
        self.due_at = 0.0  # of the timer
        self.patience = Patience()
        self.worker: Worker | None = None
        self.ready = False
        self.row_at = 0.0  # seconds, of the last row of an unroll, as it was seen last
        self.policy_version = 0  # that its worker has
        self.renewal: asyncio.Task[None] | None = None  # under way
        self.acknowledged = 0  # version up to which its worker lacks no update, as its newest reply says


class Client(Protocol):
    """Owns the commands; hears of replies and losses, on the loop."""

    def replied(self, command: Command) -> None:
        """A command was answered: its notes are in."""

    def lost(self, slot: WorkerSlot, reason: str, calls: Sequence[Command]) -> list[int | None]:
        """A worker is restarted; returns the seeds of its envs' next episodes. `calls` were under way and fail now."""

    def failed(self, error: VecEnvError) -> None:
        """The vec env has failed: from now on every call but aclose raises `error`."""


class Supervisor:
    """Starts, feeds, replaces and closes the workers."""

    def __init__(
        self, backend: Backend, setups: Sequence[Setup], timeouts: Timeouts, budget: RestartBudget | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.backend, self._timeouts = backend, timeouts
        self._log, self.recorder = RestartLog(budget), Recorder(len(setups), time.monotonic())
        self._retried = 0  # resets tried again, which count against the budget like losses
        self._tasks: set[asyncio.Task[None]] = set()
        self._retiring: dict[Worker, asyncio.Task[None]] = {}  # that were renewed, until they are closed
        self._closing = False
        self.workers: list[Worker] = []
        self.channel = Channel(self._loop, self.workers)
        self.lock = self.channel.lock
        self.thread_id = threading.get_ident()
        self.slots = [WorkerSlot(index, setup) for index, setup in enumerate(setups)]
        self._memory: Memory | None = None
        self._client: Client | None = None
        self.failure: VecEnvError | None = None
        self._made: list[Spaces] = []
        self._updates = self.channel.updates
        self._sequence = 0  # of the newest command
        self._timed = timeouts.step is not None or timeouts.reset is not None

    @property
    def start_limit_s(self) -> float | None:
        """Of a worker that starts, and of what has to be known of the one before it."""
        return self._timeouts.start

    @property
    def retiring(self) -> int:
        """The old processes of renewed workers that still close."""
        return len(self._retiring)

    # -- opening -------------------------------------------------------------------------------------------------

    async def make(self) -> list[Spaces]:
        """Start all workers and make their envs. The first failure ends it; `close` cleans up, also if cancelled."""
        self.workers[:] = [self.backend.worker(slot.index, 0, self) for slot in self.slots]
        for slot, worker in zip(self.slots, self.workers):
            slot.worker = worker
        self._made = await _all_or_none([self._start(w, s.setup) for w, s in zip(self.workers, self.slots)])
        return self._made

    async def _start(self, worker: Worker, setup: Setup) -> Spaces:
        limit_s = self._timeouts.start
        who = f"worker {worker.index} (envs {setup.env_ids[0]}-{setup.env_ids[-1]})"
        try:
            async with within(limit_s):
                return await worker.make(setup)
        except TimeoutError:
            raise WorkerTimeout(
                f"{who} did not start within {limit_s} s", worker=worker.index, limit_s=float(limit_s or 0)
            ) from None
        except Loss as loss:
            raise _start_failed(who, worker.index, setup, loss) from None

    async def attach(self, memory: Memory, client: Client) -> None:
        """Tell every worker where its rows are; afterwards commands are taken, and `client` hears of them."""
        self._memory, self._client = memory, client
        self.channel.open(memory.slab)
        for slot, mine in zip(self.slots, memory.rows):
            slot.rows = mine
        await _all_or_none([self._attach(s, w, None) for s, w in zip(self.slots, self.workers)])
        self.backend.start_spares()

    async def _attach(self, slot: WorkerSlot, worker: Worker, seeds: list[int | None] | None) -> None:
        """Attach the worker. If it is lost after this, it counts as a running worker and is replaced."""
        limit_s = self._timeouts.start
        who = f"worker {slot.index} (envs {slot.rows.start}-{slot.rows.stop - 1})"
        try:
            async with within(limit_s):
                await worker.attach(self._memory.attachment(slot.rows, seeds))  # type: ignore[union-attr]
        except TimeoutError:
            raise WorkerTimeout(
                f"{who} did not map its memory within {limit_s} s",
                worker=slot.index,
                limit_s=float(limit_s or 0),
            ) from None
        except Loss as loss:
            raise _start_failed(who, slot.index, slot.setup, loss) from None
        slot.ready = True
        self.channel.join(worker)

    # -- commands ------------------------------------------------------------------------------------------------

    def post(self, commands: Sequence[Command]) -> None:
        """Number the commands, and send each now, or once its worker's replacement is ready."""
        version, now, sequence = self._updates.version, time.monotonic(), self._sequence
        self._sequence += len(commands)
        for command in commands:
            slot = self.slots[command.worker]
            command.sequence = sequence = sequence + 1
            command.version, command.sent_at = version, now
            slot.commands[sequence] = command
            if slot.ready:
                self._send(slot, command)

    def _send(self, slot: WorkerSlot, command: Command) -> None:
        if type(command) is Unroll and command.policy_version != slot.policy_version:
            slot.policy_version = command.policy_version
            assert command.params is not None  # only a version that was set has a number
            self.recorder.bytes_sent += HEADER_BYTES + len(command.params)
            policy = (Kind.POLICY, command.policy_version, 0, command.params, 0, slot.incarnation)
            slot.worker.send(new_message(policy))  # type: ignore[union-attr]
        slot.worker.send(  # type: ignore[union-attr]
            new_message(
                (
                    command.kind,
                    command.sequence,
                    command.version,
                    command.payload,
                    command.flags,
                    slot.incarnation,
                )
            )
        )
        if self._timed:
            self._arm(slot)

    def run_pending(self) -> bool:
        """Let workers that live in this thread do the oldest command; whether there was one."""
        if not self.backend.in_thread:
            return False
        for slot in sorted((s for s in self.slots if s.commands), key=lambda s: next(iter(s.commands))):
            assert slot.worker is not None
            if slot.worker.run_pending():
                return True
        return False

    # -- what workers say (Listener) -----------------------------------------------------------------------------

    def part(self, worker: Worker, message: Message) -> None:
        slot = self.slots[worker.index]
        slot.progress_at = time.monotonic()  # who sends is not stuck
        self.recorder.bytes_received += HEADER_BYTES + len(message.payload)
        if not self._closing:
            _read(slot.commands[message.number], message)

    def replied(self, worker: Worker, message: Message) -> None:
        slot = self.slots[worker.index]
        command = slot.commands.pop(message.number)
        if message.version > slot.acknowledged:
            slot.acknowledged = message.version
            self.channel.acknowledge_up_to(worker, message.version)
        now = time.monotonic()
        took_s = now - (command.sent_at if command.sent_at > slot.progress_at else slot.progress_at)
        slot.progress_at = now
        recorder = self.recorder
        recorder.busy_s[worker.index] += took_s
        if command.kind is _STEP:
            recorder.step_times_s[worker.index].append(took_s)
        elif type(command) is Unroll:
            recorder.step_times_s[worker.index].append(took_s / command.length)
            policy_s = 1e-9 * self._progress(slot, POLICY_NS)
            recorder.policy_times_s[worker.index].append(policy_s / command.length)
        recorder.bytes_sent += HEADER_BYTES + len(command.payload)
        recorder.bytes_received += HEADER_BYTES + len(message.payload)
        if self._closing:
            return
        if self._timed and slot.commands:
            self._arm(slot)
        if message.payload:
            _read(command, message)
        self._client.replied(command)  # type: ignore[union-attr]

    def acknowledged(self, worker: Worker, version: int) -> None:
        if worker not in self._retiring:
            self.channel.acknowledge(worker, version)

    def lost(self, worker: Worker, loss: Loss) -> None:
        slot = self.slots[worker.index]
        if worker is not slot.worker:  # one that was renewed
            return
        slot.ready = False
        if slot.renewal is not None:
            slot.renewal.cancel()
        for command in slot.commands.values():
            command.notes, command.unread = (), None  # of a reply that did not arrive completely
        self.channel.leave(worker.index)
        self._disarm(slot)
        if self._closing or self.failure is not None:
            return
        self._replace_or_fail(slot, loss.reason, loss.exit_status)

    def _replace_or_fail(self, slot: WorkerSlot, reason: str, exit_status: int | None = None) -> None:
        ids = list(slot.rows)
        text = f"worker {slot.index} (envs {ids[0]}-{ids[-1]}) {reason}"
        self.recorder.losses[slot.index].append(reason)
        if not self.count_loss(text, slot, exit_status):
            return
        self.begin_task(self._replace(slot, reason), f"replace worker {slot.index}")

    def begin_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task that ends with the supervisor."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def count_loss(self, text: str, slot: WorkerSlot, exit_status: int | None = None) -> bool:
        """Count it against the restart budget; False if that is spent, and the vec env has failed."""
        if self._log.allow(time.monotonic(), text):
            return True
        self.fail(_budget_spent(self._log, text, slot, exit_status))
        return False

    def may_retry(self, slot: WorkerSlot, env_id: int, episode: int, report: ErrorReport) -> bool:
        """Whether an env that failed to reset may try again; False: the restart budget is spent, the vec env failed.

        `episode`: the index of its newest one.
        """
        log = self._log
        times = log.failed_reset(env_id, episode)
        if log.budget is not None and times <= log.budget.failed_resets:
            return True
        again = f" ({times} times in a row)" if times > 1 else ""
        text = f"env {env_id} raised {report.type_name} in {report.op}{again}: {report.message}"
        allowed = self.count_loss(text, slot)
        self._retried += allowed
        return allowed

    def carry(self, state: tuple[EnvState, int, bool]) -> None:
        """Replacements get this state of their envs from now on."""
        for slot in self.slots:
            slot.setup = slot.setup._replace(state=state)

    def fail(self, error: VecEnvError) -> None:
        """The vec env has failed; `close` then kills whatever still runs, without grace."""
        if self.failure is None:
            self.failure = error
            if self._client is not None:
                self._client.failed(error)

    async def _replace(self, slot: WorkerSlot, reason: str) -> None:
        """Start a new incarnation, and send it what the old one still owed."""
        began = time.monotonic()
        calls = [command for command in slot.commands.values() if command.kind is Kind.CALL]
        slot.commands = {
            number: command
            for number, command in slot.commands.items()
            if command.kind is not Kind.CALL and not command.dropped
        }
        assert self._client is not None
        worker = self.backend.worker(slot.index, slot.incarnation + 1, self)
        old = self._swap(slot, worker)
        seeds = self._client.lost(slot, reason, calls)
        try:
            if old is not None:
                await old.close(0)
            await self.start_again(worker, slot.setup)
            await self._attach(slot, worker, seeds)
        except Exception as error:
            await self._not_replaced(slot, worker, error)
            return
        self.recorder.recoveries_s.append(time.monotonic() - began)
        self.resume(slot)
        try:
            self.backend.start_spares()
        except OSError as error:
            warnings.warn(f"no process could be started for the next replacement: {error}", stacklevel=1)

    def _swap(self, slot: WorkerSlot, worker: Worker) -> Worker | None:
        """The next incarnation takes the slot; the one before it."""
        slot.incarnation += 1
        slot.acknowledged = slot.policy_version = 0
        old, slot.worker = slot.worker, worker
        with self.lock:
            self.workers[slot.index] = worker
        return old

    async def start_again(self, worker: Worker, setup: Setup) -> None:
        """Make the envs of a slot once more. Raises as `make`, and ValueError if they do not fit their rows."""
        _check_unchanged(self._made[worker.index], await self._start(worker, setup))

    async def _not_replaced(self, slot: WorkerSlot, worker: Worker, error: Exception) -> None:
        """A replacement that failed, however it did, is one more loss."""
        await worker.close(0)
        if self.failure is None and not self._closing:
            self._replace_or_fail(slot, f"could not be replaced: {type(error).__name__}: {error}")

    # -- planned renewal: see `.renewal` -------------------------------------------------------------------------

    def pause(self, slot: WorkerSlot) -> None:
        """What is sent to this worker waits from now on."""
        slot.ready = False
        self._disarm(slot)

    def resume(self, slot: WorkerSlot) -> None:
        """Send what waits."""
        slot.ready, slot.progress_at = True, time.monotonic()
        for command in list(slot.commands.values()):
            self._send(slot, command)

    async def take_over(self, slot: WorkerSlot, worker: Worker, seeds: list[int | None]) -> bool:
        """A worker that was started again takes the slot of one that has nothing to do, which closes beside it.

        False: it was lost before it could; that is a loss like any other.
        """
        self.channel.leave(slot.index)
        old = self._swap(slot, worker)
        assert old is not None
        retiring = self._retiring[old] = self._loop.create_task(
            self._retire(old), name=f"close the worker that {slot.index} was"
        )
        retiring.add_done_callback(lambda _: self._retiring.pop(old, None))
        try:
            await self._attach(slot, worker, seeds)
        except Exception as error:
            await self._not_replaced(slot, worker, error)
            return False
        self.resume(slot)
        return True

    async def _retire(self, worker: Worker) -> None:
        try:
            await worker.close(self._timeouts.close)
        except (VecEnvError, ExceptionGroup) as error:
            warnings.warn(f"worker {worker.index} was renewed; its old process: {error}", stacklevel=1)

    # -- timeouts ------------------------------------------------------------------------------------------------

    def abort(self, workers: Sequence[int], reason: str) -> None:
        """Kill these workers now, including replacements that are still being made."""
        for index in workers:
            worker = self.slots[index].worker
            if worker is not None:
                worker.kill(reason)

    def _arm(self, slot: WorkerSlot) -> None:
        """Watch the oldest command; the time it spent queued behind others does not count.

        An earlier timer stays and re-arms itself when it fires, so an ordinary step costs no timer.
        """
        oldest = next(iter(slot.commands.values()), None) if slot.ready else None
        limit_s = None if oldest is None else _limit(self._timeouts, oldest)
        if oldest is None or limit_s is None:
            return
        due_at = max(oldest.sent_at, slot.progress_at, slot.row_at) + limit_s
        if slot.timer is not None:
            if slot.due_at <= due_at:
                return
            slot.timer.cancel()
        self._look_after(slot, due_at - time.monotonic(), limit_s)

    def _look_after(self, slot: WorkerSlot, left_s: float, limit_s: float) -> None:
        wait_s = Patience.next_look_s(left_s, limit_s)
        slot.due_at = time.monotonic() + wait_s
        # uvloop's clock is read once per turn, so a timer may come early; `_expired` looks again.
        slot.timer = self._loop.call_later(wait_s, self._expired, slot)

    def _expired(self, slot: WorkerSlot) -> None:
        slot.timer = None
        now = time.monotonic()
        assert slot.worker is not None
        slot.worker.drain()
        oldest = next(iter(slot.commands.values()), None)
        limit_s = None if oldest is None else _limit(self._timeouts, oldest)
        if oldest is None or limit_s is None:
            return
        if type(oldest) is Unroll:
            slot.row_at = 1e-9 * self._progress(slot, LAST_ROW_NS)
        since = max(oldest.sent_at, slot.progress_at, slot.row_at)
        left_s = slot.patience.left_s(now, since, limit_s, slot.due_at)
        if left_s > 0:
            if slot.timer is None:  # else a reply that was just taken in has set it
                self._look_after(slot, left_s, limit_s)
            return
        what = _under_way(oldest, self._memory, slot)
        slot.worker.kill(f"did not finish a {what} within {limit_s:g} s and was killed", stack=True)

    def _progress(self, slot: WorkerSlot, what: int) -> int:
        """What the worker says of the unroll that it does, in the block."""
        assert self._memory is not None
        return self._memory.slab.progress.item(slot.index, what)

    def _disarm(self, slot: WorkerSlot) -> None:
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None

    # -- telling ---------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """From now on the loop turns in this thread."""
        self.thread_id = threading.get_ident()
        self.channel.adopt()

    def statistics(self, executed_steps: int, outcomes: Mapping[Outcome, int]) -> Statistics:
        """A frozen snapshot of what was counted and timed so far."""
        now, channel, recorder = time.monotonic(), self.channel, self.recorder
        newest_taken = channel.updates.newest_taken
        workers = tuple(_statistics_of(slot, recorder, now, newest_taken(slot.index)) for slot in self.slots)
        return Statistics(
            executed_steps=executed_steps,
            terminated=outcomes["terminated"],
            truncated=outcomes["truncated"],
            aborted=outcomes["aborted"],
            restarts=self._log.total - self._retried,
            recovery=Percentiles.of(recorder.recoveries_s),
            bytes_sent=recorder.bytes_sent + channel.bytes_sent,
            bytes_received=recorder.bytes_received,
            version=channel.version,
            broadcast=Percentiles.of(channel.latencies_s),
            workers=workers,
            renewals=recorder.renewals,
            renewal=Percentiles.of(recorder.renewals_s),
        )

    # -- closing ---------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Cut the grace of a `close` under way short: whoever still lives is killed."""
        for worker in (*self.workers, *self._retiring):
            worker.kill("was not given time to close")

    def abandon(self) -> None:
        """The vec env was dropped without aclose(). Allowed from any thread, whatever the loop is doing."""
        self._closing = True
        self.hurry()
        with suppress(RuntimeError):  # the loop is closed: what the workers own goes with them
            self._loop.call_soon_threadsafe(lambda: self.begin_task(self.close(), "close a dropped vec env"))

    async def close(self) -> None:
        """Close every worker within its grace, then the memory. Always ends with nothing left, also if cancelled.

        Raises EnvError and WorkerTimeout of envs that were not closed in grace, afterwards.
        """
        self._closing = True
        self.channel.close()
        for slot in self.slots:
            self._disarm(slot)
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if self._memory is not None:
            self._memory.slab.stop()
        grace_s = self._timeouts.close if self.failure is None else 0
        if self.failure is not None:
            for worker in self._retiring:
                worker.kill("was not given time to close")
        closings = [asyncio.ensure_future(worker.close(grace_s)) for worker in self.workers]
        closings += self._retiring.values()
        try:
            await asyncio.gather(*tasks, *closings, return_exceptions=True)
        finally:
            for closing in closings:
                closing.cancel()
            try:
                await asyncio.gather(*closings, return_exceptions=True)
            finally:
                if self._memory is not None:
                    self._memory.slab.release()
                self.backend.close()
        errors = [c.exception() for c in closings if not c.cancelled()]
        failed = [error for error in errors if isinstance(error, Exception)]
        if len(failed) == 1:
            raise failed[0]
        if failed:
            raise ExceptionGroup("closing the vec env", failed)


def _under_way(command: Command, memory: Memory | None, slot: WorkerSlot) -> str:
    """What a worker is stuck in."""
    if type(command) is not Unroll or memory is None:
        return command.kind.name.lower()
    row, at_work = (memory.slab.progress.item(slot.index, what) for what in (ROWS_DONE, AT_WORK))
    return f"row of an unroll (row {row}, {'the policy' if at_work < 0 else f'env {at_work}'} at work)"


def _limit(timeouts: Timeouts, command: Command) -> float | None:
    """Of the whole command; of an unroll, of each row."""
    limits = {Kind.STEP: timeouts.step, Kind.RESET: timeouts.reset, Kind.UNROLL: timeouts.step}
    return limits.get(command.kind)


def _budget_spent(log: RestartLog, text: str, slot: WorkerSlot, exit_status: int | None) -> WorkerLost:
    """What fails the vec env."""
    budget = log.budget
    spent = (
        "restarts are off"
        if budget is None
        else f"the restart budget of {budget.restarts} in {budget.per_s:g} s is spent"
    )
    return WorkerLost(
        f"{text}; {spent}",
        worker=slot.index,
        env_ids=list(slot.rows),
        reason=text,
        exit_status=exit_status,
        crashes=log.reasons,
    )


def _statistics_of(slot: WorkerSlot, recorder: Recorder, now: float, newest_taken: int) -> WorkerStatistics:
    share = recorder.share(slot.index, now)
    return WorkerStatistics(
        slot.index,
        -1 if slot.worker is None else slot.worker.pid,
        slot.incarnation,
        Percentiles.of(recorder.step_times_s[slot.index]),
        share,
        1.0 - share,
        newest_taken,
        slot.rows,
        slot.ready,
        tuple(recorder.losses[slot.index]),
        Percentiles.of(recorder.policy_times_s[slot.index]),
    )


def _read(command: Command, message: Message) -> None:
    """Add the notes of a reply, or of a part of one."""
    try:
        decode = decode_joined if type(command) is Unroll else decode_notes
        notes = decode(message.payload)
    except Exception as error:  # whatever unpickling runs
        of = "the result of a call" if command.kind is Kind.CALL else "the infos of its worker"
        command.unread = describe(error, f"reading {of}")
        return
    command.notes = [*command.notes, *notes] if command.notes else notes


async def _all_or_none(starts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, or the first failure, raised once no task runs any more. Cancelling cancels all."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check_unchanged(was: Spaces, now: Spaces) -> None:
    """Raise ValueError if a factory made an env that does not fit its rows any more."""
    for name in ("observation", "action", "rows", "vectorised"):
        if getattr(was, name) != getattr(now, name):
            raise ValueError(f"the env's {name} was {getattr(was, name)} and is now {getattr(now, name)}")


def _start_failed(who: str, index: int, setup: Setup, loss: Loss) -> WorkerLost:
    return WorkerLost(
        f"{who} {loss.reason} while starting",
        worker=index,
        env_ids=setup.env_ids,
        reason=loss.reason,
        exit_status=loss.exit_status,
    )
