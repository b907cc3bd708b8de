"""The workers of one vec env: started together, replaced when lost, timed, and always closed."""
# async: owns the workers and the tasks that replace them

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np

from ..backends.base import Backend, Loss, Worker
from ..core.framing import HEADER_BYTES, Kind, Message, new_message
from ..core.layout import Field
from ..core.limits import RestartLog, Timeouts
from ..core.messages import Attachment, Setup, Spaces, decode_notes
from ..core.pool import Command
from ..core.report import describe
from ..core.statistics import Recorder
from ..errors import VecEnvError, WorkerLost, WorkerTimeout
from .publisher import Channel

__all__ = ["Boss", "Crew", "Shift"]

T = TypeVar("T")
_STEP = Kind.STEP

_LATE_S = 0.1  # a timer this late means that the loop, or the machine, stood still: nobody's time was fairly measured


class Shift:
    """What one worker does: its factories, rows, commands under way, and the incarnation that does it now."""

    def __init__(self, index: int, setup: Setup) -> None:
        self.index = index
        self.setup = setup
        self.rows = range(0)  # env ids
        self.incarnation = 0
        self.commands: dict[int, Command] = {}  # sent or waiting for a replacement, oldest first
        self.progress_at = 0.0  # seconds, of the last reply
        self.timer: asyncio.TimerHandle | None = None
        self.due_at = 0.0
        self.worker: Worker | None = None
        self.ready = False
        self.covered = 0  # version up to which its worker lacks no update, as its newest reply says


class Boss(Protocol):
    """The vec env, as its crew sees it."""

    def replied(self, command: Command) -> None:
        """A command was answered: its notes are in."""

    def lost(self, shift: Shift, reason: str) -> list[int | None]:
        """A worker is being replaced: the seeds of its envs' next episodes. Calls in flight have been taken off."""

    def failed(self, error: VecEnvError) -> None:
        """It is over: every call but aclose raises this."""


class Crew:
    """Starts, feeds, replaces and closes the workers."""

    def __init__(
        self,
        backend: Backend,
        setups: Sequence[Setup],
        boss: Boss,
        timeouts: Timeouts,
        log: RestartLog,
        recorder: Recorder,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._backend, self._boss = backend, boss
        self._timeouts, self._log, self._recorder = timeouts, log, recorder
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.workers: list[Worker] = []
        self.channel = Channel(self._loop, self.workers)
        self.lock = self.channel.lock
        self.thread_id = threading.get_ident()
        self.shifts = [Shift(index, setup) for index, setup in enumerate(setups)]
        self.fields: tuple[Field, ...] = ()
        self.size_bytes = 0
        self.num_envs = 0
        self.failure: VecEnvError | None = None
        self._made: list[Spaces] = []
        self.in_thread = getattr(backend, "in_thread", True)
        self._updates = self.channel.updates
        self._sequence = 0  # of the newest command
        self._timed = timeouts.step is not None or timeouts.reset is not None

    # -- opening -------------------------------------------------------------------------------------------------

    async def make(self, progress: Callable[[int, int], None] | None = None) -> list[Spaces]:
        """Start all workers and make their envs. The first failure ends it; `close` cleans up, also if cancelled."""
        self.workers[:] = [self._backend.worker(shift.index, 0, self) for shift in self.shifts]
        for shift, worker in zip(self.shifts, self.workers):
            shift.worker = worker
        ready = 0

        async def start(worker: Worker, setup: Setup) -> Spaces:
            nonlocal ready
            spaces = await self._start(worker, setup)
            ready += 1
            if progress is not None:
                progress(ready, len(self.shifts))
            return spaces

        self._made = await _all_or_none([start(w, s.setup) for w, s in zip(self.workers, self.shifts)])
        return self._made

    async def _start(self, worker: Worker, setup: Setup) -> Spaces:
        limit_s = self._timeouts.start
        who = f"worker {worker.index} (envs {setup.env_ids[0]}-{setup.env_ids[-1]})"
        try:
            async with asyncio.timeout(limit_s):
                return await worker.make(setup)
        except TimeoutError:
            raise WorkerTimeout(
                f"{who} did not start within {limit_s} s", worker=worker.index, limit_s=float(limit_s or 0)
            ) from None
        except Loss as loss:
            raise _start_failed(who, worker.index, setup, loss) from None

    async def attach(
        self, rows: Sequence[range], num_envs: int, fields: tuple[Field, ...], size_bytes: int
    ) -> None:
        """Tell every worker where its rows are; afterwards commands are taken."""
        self.fields, self.size_bytes, self.num_envs = fields, size_bytes, num_envs
        for shift, mine in zip(self.shifts, rows):
            shift.rows = mine
        await _all_or_none([self._attach(s, w, None) for s, w in zip(self.shifts, self.workers)])

    async def _attach(self, shift: Shift, worker: Worker, reborn: list[int | None] | None) -> None:
        """From here on the worker's loss is one of a running worker."""
        limit_s = self._timeouts.start
        who = f"worker {shift.index} (envs {shift.rows.start}-{shift.rows.stop - 1})"
        try:
            async with asyncio.timeout(limit_s):
                await worker.attach(self._attachment(shift, reborn))
        except TimeoutError:
            raise WorkerTimeout(
                f"{who} did not map its memory within {limit_s} s",
                worker=shift.index,
                limit_s=float(limit_s or 0),
            ) from None
        except Loss as loss:
            raise _start_failed(who, shift.index, shift.setup, loss) from None
        shift.ready = True
        self.channel.join(worker)

    def _attachment(self, shift: Shift, reborn: list[int | None] | None) -> Attachment:
        return Attachment(shift.rows.start, self.num_envs, self.fields, self.size_bytes, reborn)

    # -- commands ------------------------------------------------------------------------------------------------

    def post(self, commands: Sequence[Command]) -> None:
        """Number commands, and send them now, or when their worker's replacement is ready."""
        version, now, sequence = self._updates.version, time.monotonic(), self._sequence
        self._sequence += len(commands)
        for command in commands:
            shift = self.shifts[command.worker]
            command.sequence = sequence = sequence + 1
            command.version, command.sent_at = version, now
            shift.commands[sequence] = command
            if shift.ready:
                self._send(shift, command)

    def _send(self, shift: Shift, command: Command) -> None:
        shift.worker.send(  # type: ignore[union-attr]
            new_message(
                (
                    command.kind,
                    command.sequence,
                    command.version,
                    command.payload,
                    command.flags,
                    shift.incarnation,
                )
            )
        )
        if self._timed:
            self._arm(shift)

    def pump(self) -> bool:
        """Let workers that live in this thread do the oldest command; whether there was one."""
        for shift in sorted((s for s in self.shifts if s.commands), key=lambda s: next(iter(s.commands))):
            assert shift.worker is not None
            if shift.worker.pump():
                return True
        return False

    # -- what workers say (Listener) -----------------------------------------------------------------------------

    def part(self, worker: Worker, message: Message) -> None:
        shift = self.shifts[worker.index]
        shift.progress_at = time.monotonic()  # who sends is not stuck
        self._recorder.bytes_received += HEADER_BYTES + len(message.payload)
        if not self._closing:
            _read(shift.commands[message.number], message)

    def replied(self, worker: Worker, message: Message) -> None:
        shift = self.shifts[worker.index]
        command = shift.commands.pop(message.number)
        if message.version > shift.covered:
            shift.covered = message.version
            self.channel.covered(worker, message.version)
        now = time.monotonic()
        took_s = now - (command.sent_at if command.sent_at > shift.progress_at else shift.progress_at)
        shift.progress_at = now
        recorder = self._recorder
        recorder.busy_s[worker.index] += took_s
        if command.kind is _STEP:
            recorder.step_times_s[worker.index].append(took_s)
        recorder.bytes_sent += HEADER_BYTES + len(command.payload)
        recorder.bytes_received += HEADER_BYTES + len(message.payload)
        if self._closing:
            return
        if self._timed and shift.commands:
            self._arm(shift)
        if message.payload:
            _read(command, message)
        self._boss.replied(command)

    def took(self, worker: Worker, version: int) -> None:
        self.channel.took(worker, version)

    def lost(self, worker: Worker, loss: Loss) -> None:
        shift = self.shifts[worker.index]
        shift.ready = False
        for command in shift.commands.values():
            command.notes, command.unread = (), None  # of a reply that did not come to its end
        self.channel.leave(worker.index)
        self._disarm(shift)
        if self._closing or self.failure is not None:
            return
        self._replace_or_fail(shift, loss.reason, loss.exit_status)

    def _replace_or_fail(self, shift: Shift, reason: str, exit_status: int | None = None) -> None:
        ids = list(shift.rows)
        text = f"worker {shift.index} (envs {ids[0]}-{ids[-1]}) {reason}"
        self._recorder.losses[shift.index].append(reason)
        if not self.count_loss(text, shift, exit_status):
            return
        task = self._loop.create_task(self._replace(shift, reason), name=f"replace worker {shift.index}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count_loss(self, text: str, shift: Shift, exit_status: int | None = None) -> bool:
        """Count it against the restart budget; False if that is spent, and the vec env has failed."""
        if self._log.allow(time.monotonic(), text):
            return True
        budget = self._log.budget
        spent = (
            "restarts are off"
            if budget is None
            else f"the restart budget of {budget.restarts} in {budget.per_s:g} s is spent"
        )
        error = WorkerLost(
            f"{text}; {spent}",
            worker=shift.index,
            env_ids=list(shift.rows),
            reason=text,
            exit_status=exit_status,
            crashes=self._log.reasons,
        )
        self.fail(error)
        return False

    def fail(self, error: VecEnvError) -> None:
        """It is over; whatever still runs is killed by `close`, without grace."""
        if self.failure is None:
            self.failure = error
            self._boss.failed(error)

    async def _replace(self, shift: Shift, reason: str) -> None:
        """Start a new incarnation, and send it what the old one still owed."""
        shift.incarnation += 1
        shift.covered = 0
        began = time.monotonic()
        seeds = self._boss.lost(shift, reason)
        worker = self._backend.worker(shift.index, shift.incarnation, self)
        old, shift.worker = shift.worker, worker
        with self.lock:
            self.workers[shift.index] = worker
        try:
            if old is not None:
                await old.close(0)
            spaces = await self._start(worker, shift.setup)
            _check_unchanged(self._made[shift.index], spaces)
            await self._attach(shift, worker, seeds)
        except Exception as error:  # a replacement that failed, however it did, is one more loss
            await worker.close(0)
            if self.failure is None and not self._closing:
                self._replace_or_fail(shift, f"could not be replaced: {type(error).__name__}: {error}")
            return
        self._recorder.restarted(shift.index, time.monotonic() - began)
        shift.progress_at = time.monotonic()
        for command in list(shift.commands.values()):
            self._send(shift, command)
        stock = getattr(self._backend, "stock", None)
        if stock is not None:
            stock()

    # -- timeouts ------------------------------------------------------------------------------------------------

    def abort(self, workers: Sequence[int], reason: str) -> None:
        """Give these workers up now; a replacement that is still being made, too."""
        for index in workers:
            worker = self.shifts[index].worker
            if worker is not None:
                worker.kill(reason)

    def _limit(self, command: Command) -> float | None:
        return {Kind.STEP: self._timeouts.step, Kind.RESET: self._timeouts.reset}.get(command.kind)

    def _arm(self, shift: Shift) -> None:
        """Watch the oldest command; the time before it was that worker's turn does not count.

        A timer that comes earlier stays: it looks again. So an ordinary step costs no timer.
        """
        oldest = next(iter(shift.commands.values()), None)
        limit_s = None if oldest is None else self._limit(oldest)
        if oldest is None or limit_s is None:
            return
        due_at = max(oldest.sent_at, shift.progress_at) + limit_s
        if shift.timer is not None:
            if shift.due_at <= due_at:
                return
            shift.timer.cancel()
        shift.due_at = due_at
        # uvloop's clock is read once per turn, so a timer may come early; `_expired` looks again.
        shift.timer = self._loop.call_later(due_at - time.monotonic(), self._expired, shift)

    def _expired(self, shift: Shift) -> None:
        shift.timer = None
        now = time.monotonic()
        if now - shift.due_at > _LATE_S:
            shift.progress_at = now  # the loop stood still: measure again
            self._arm(shift)
            return
        assert shift.worker is not None
        shift.worker.poll()
        for command in shift.commands.values():
            limit_s = self._limit(command)
            if limit_s is not None and now - max(command.sent_at, shift.progress_at) >= limit_s - 1e-3:
                what = command.kind.name.lower()
                shift.worker.kill(f"did not finish a {what} within {limit_s:g} s and was killed", stack=True)
            else:
                self._arm(shift)
            return

    def _disarm(self, shift: Shift) -> None:
        if shift.timer is not None:
            shift.timer.cancel()
            shift.timer = None

    # -- closing ---------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Cut the grace of a `close` under way short: whoever still lives is killed."""
        for worker in self.workers:
            worker.kill("was not given time to close")

    def abandon(self) -> None:
        """Nobody holds the vec env any more. Allowed from any thread, whatever the loop does."""
        self._closing = True
        self.hurry()
        with suppress(RuntimeError):  # the loop is closed: what the workers own goes with them
            self._loop.call_soon_threadsafe(self._close_later)

    def _close_later(self) -> None:
        task = self._loop.create_task(self.close(), name="close a dropped vec env")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Close every worker within its grace, then the memory. Always ends with nothing left, also if cancelled.

        Raises EnvError and WorkerTimeout of envs that were not closed in grace, afterwards.
        """
        self._closing = True
        self.channel.close()
        for shift in self.shifts:
            self._disarm(shift)
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        grace_s = self._timeouts.close if self.failure is None else 0
        closings = [asyncio.ensure_future(worker.close(grace_s)) for worker in self.workers]
        try:
            await asyncio.gather(*tasks, *closings, return_exceptions=True)
        finally:
            for closing in closings:
                closing.cancel()
            try:
                await asyncio.gather(*closings, return_exceptions=True)
            finally:
                self.channel.mark = lambda version: None  # nobody is left to see it, and it holds the block
                self._backend.close()
        errors = [c.exception() for c in closings if not c.cancelled()]
        failed = [error for error in errors if isinstance(error, Exception)]
        if len(failed) == 1:
            raise failed[0]
        if failed:
            raise ExceptionGroup("closing the vec env", failed)


def _read(command: Command, message: Message) -> None:
    """Add the notes of a reply, or of a part of one."""
    try:
        notes = decode_notes(message.payload)
    except Exception as error:  # whatever unpickling runs
        of = "the result of a call" if command.kind is Kind.CALL else "the infos of its worker"
        command.unread = describe(error, f"reading {of}")
        return
    command.notes = [*command.notes, *notes] if command.notes else notes


async def _all_or_none(starts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; or the first failure, once none runs any more. Cancelling cancels all."""
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


def derive_seed(seed: int | None, env_id: int, restarts: int) -> int | None:
    """The seed of an env that is made again, from (seed, env_id, restart count); None stays None."""
    if seed is None:
        return None
    return int(np.random.SeedSequence([seed & (2**63 - 1), env_id, restarts]).generate_state(1)[0])
