"""Waiting for rows: replies, losses and errors go into the pool, and whoever waits for them wakes up."""
# async: futures of the callers of recv and reset; every rule about rows is in `core.pool`

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.assignment import EnvIds
from ..core.batch import Batch, Episode
from ..core.chunk import Chunk
from ..core.chunks import Chunks
from ..core.command import Command, Unroll, where
from ..core.framing import Kind
from ..core.infos import batch_infos
from ..core.messages import ERROR, URGENT, WARNING, failed
from ..core.pool import JoinInfos, Pool
from ..core.report import ErrorReport, raise_all, rebuild, rebuild_policy
from ..errors import BusyError, VecEnvError
from .calls import Calls
from .env_states import EnvStates
from .events import EventHub
from .renewal import Renewal
from .supervisor import Supervisor, WorkerSlot

__all__ = ["Collector"]

_CALL = Kind.CALL


class Collector:
    """Collects rows for the callers of `recv` and `reset`. `tries_again`: a failed reset is retried."""

    def __init__(
        self,
        pool: Pool,
        chunks: Chunks,
        supervisor: Supervisor,
        calls: Calls,
        states: EnvStates,
        hub: EventHub,
        *,
        tries_again: bool,
        whole: bool,
        renewal: Renewal | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool, self.chunks, self._supervisor = pool, chunks, supervisor
        self._calls, self._states, self._hub = calls, states, hub
        self._tries_again, self._whole = tries_again, whole
        self.renewal = renewal
        self.over: VecEnvError | None = None  # what every call raises from now on
        self._receiving = False
        self._in_reset: set[int] = set()  # envs that a `reset` waits for
        self._waiter: asyncio.Future[None] | None = None  # of `recv`
        self._need = 0  # rows that it waits for
        self._watchers: list[asyncio.Future[None]] = []  # of `reset`
        # by subject; "" once it has been issued
        self._warnings: dict[tuple[str, ...], str] = {} if renewal is None else renewal.warnings

    # -- what callers do -----------------------------------------------------------------------------------------

    async def recv(self, min_envs: int | None = None, join: JoinInfos = batch_infos) -> Batch:
        """As of `AsyncVecEnv.recv`; `join` gives the infos of the batch their shape."""
        if self._receiving or self._in_reset:
            raise BusyError("recv() while another task is in recv() or reset(): share the batches of one")
        self._receiving = True
        pool, hub = self._pool, self._hub
        try:
            if hub.crowded and hub.slowest() is not None:
                await hub.wait_for_readers()
                self._check()
            while True:
                owed = pool.owed - pool.columns
                if not owed:
                    raise ValueError(
                        "recv() where a chunk is owed: recv_unroll() returns it"
                        if pool.columns
                        else "recv() with nothing owed: send() first"
                    )
                need = owed if min_envs is None else min(min_envs, owed)
                if pool.ready_rows >= need:
                    break
                if self.renewal is not None and self.renewal.waiting.rows:
                    if owed - self.renewal.waiting.rows < need:
                        self.renewal.waiting.give_up()
                        continue
                    if self._enough(need):
                        self.renewal.waiting.give_up(self.renewal.idle())
                        continue
                if not self._supervisor.run_pending():
                    self._need = need
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                if self.over is not None:
                    raise self.over
        finally:
            self._receiving = False
        if self._warnings:
            self._warn()
        if pool.any_errors:
            self._raise_errors(pool.take_errors())
        batch, events = pool.collect(pool.take_ready(), join)
        if events is not None:
            hub.release(events)
            self._count(batch.episodes)
        return batch

    async def recv_chunk(self, min_envs: int | None = None) -> Chunk:
        """As of `AsyncVecEnv.recv_unroll`."""
        if self._receiving or self._in_reset:
            raise BusyError(
                "recv_unroll() while another task is in recv() or reset(): share the chunks of one"
            )
        self._receiving = True
        hub = self._hub
        try:
            if hub.crowded and hub.slowest() is not None:
                await hub.wait_for_readers()
                self._check()
            while not (commands := self.chunks.ready(min_envs)):
                if self._supervisor.run_pending():
                    await asyncio.sleep(0)  # workers in this thread: other tasks run between two rows
                else:
                    self._need = 0
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                self._check()
        finally:
            self._receiving = False
        if self._warnings:
            self._warn()
        self._raise_chunk_errors(commands)
        chunk, released = self.chunks.collect(commands)
        for events in released:
            hub.release(events)
        self._count(chunk.episodes)
        return chunk

    @property
    def resetting(self) -> bool:
        """Whether somebody waits for a reset."""
        return bool(self._in_reset)

    def check_free(self, env_ids: EnvIds) -> None:
        """Raise BusyError if another task waits for rows of these envs."""
        if self._receiving or not self._in_reset.isdisjoint(env_ids.tolist()):
            raise BusyError("reset() while another task is in recv(), or in reset() of the same envs")

    async def reset(
        self,
        ids: EnvIds,
        seeds: Sequence[int | None],
        options: bytes | None,
        join: JoinInfos = batch_infos,
    ) -> Batch:
        """As of `AsyncVecEnv.reset`; the rows are in the order of the env ids."""
        waits_for = set(ids.tolist())
        self._in_reset |= waits_for
        if self.renewal is not None:
            self.renewal.waiting.give_up()
        try:
            await self._all_ready(ids)
            self._pool.take_errors(ids)  # discarded: the reset makes these errors irrelevant
            if stale := self._pool.select(ids):
                discarded, events = self._pool.collect(stale)
                self._hub.release(events)
                self._count(discarded.episodes)
            for column in self.chunks.select(ids):
                self.chunks.take_errors([column])
                chunk, in_rows = self.chunks.collect([column])
                for released in in_rows:
                    self._hub.release(released)
                self._count(chunk.episodes)
            in_order = np.sort(ids)
            if self.renewal is not None:
                self.renewal.before_reset(in_order)
            self._supervisor.post(self._pool.reset(in_order, dict(zip(ids.tolist(), seeds)), options))
            try:
                await self._all_ready(in_order)
            except asyncio.CancelledError:
                if self.over is None:
                    under_way = [c for slot in self._supervisor.slots for c in slot.commands.values()]
                    self._pool.drop(in_order, under_way)
                raise
            if self._warnings:
                self._warn()
            self._raise_errors(self._pool.take_errors(ids))
            batch, events = self._pool.collect(self._pool.select(ids), join)
            self._hub.release(events)
            self._count(batch.episodes)
            return batch
        finally:
            self._in_reset -= waits_for

    # -- what the supervisor says (Client) -----------------------------------------------------------------------

    def replied(self, command: Command) -> None:
        if command.kind is _CALL:
            self._calls.answered(command)
            return
        if command.dropped:
            return
        if type(command) is Unroll:
            self._unrolled(command)
            return
        if command.unread is not None:  # it cannot be known which env it came from
            command.notes = [(env_id, 0, ERROR, command.unread) for env_id in command.env_ids.tolist()]
        if command.notes and command.notes[0][2] in URGENT:
            self._keep_warnings(command)
            if self._tries_again and failed(command.notes):
                self._retry_resets(command)
        pool = self._pool
        if command.of is None:
            pool.replied(command)
        elif len(command.env_ids):
            self.chunks.reset_again(command)
        self._wake()

    def _unrolled(self, command: Unroll) -> None:
        """A chunk's reply is in."""
        if command.notes and any(note[2] == WARNING for note in command.notes):
            self._keep_warnings(command)
        self.chunks.replied(command)
        if self._tries_again:
            slot = self._supervisor.slots[command.worker]
            for env_id, row, report in self.chunks.failed(command):
                index = self._pool.episodes.index(env_id)
                if not self._supervisor.may_retry(slot, env_id, index, report):
                    return
                self._supervisor.post([self._pool.retry_last_row(command, env_id, row, report)])
        self._wake()

    def _wake(self) -> None:
        """Wake who waits, if there is enough for them now."""
        waiter = self._waiter
        if waiter is not None and (self._pool.ready_rows >= self._need or self._enough(self._need)):
            self._waiter = None  # told once
            if not waiter.done():
                waiter.set_result(None)
        if self._watchers:
            self._wake_watchers()

    def _enough(self, need: int) -> bool:
        """Whether so many rows are ready, with those that wait in workers which bring no other for now."""
        ready, renewal = self._pool.ready_rows, self.renewal
        if ready >= need or renewal is None or not renewal.waiting.rows:
            return ready >= need
        return ready + renewal.waiting.rows_of(renewal.idle()) >= need

    def lost(self, slot: WorkerSlot, reason: str, calls: Sequence[Command]) -> list[int | None]:
        for command in calls:
            self._calls.lost(command, slot, reason)
        if self.renewal is not None:
            self.renewal.lost(slot)
        return self._pool.lost(
            slot.index, reason + self._states.age(), slot.incarnation, slot.commands.values()
        )

    def failed(self, error: VecEnvError) -> None:
        """The vec env has failed: every waiting call and every later one raises `error`."""
        self.over = error
        self._calls.end(error)
        waiting, self._watchers = [self._waiter, *self._watchers], []
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(error)

    # -- warnings of envs ----------------------------------------------------------------------------------------

    def _keep_warnings(self, command: Command) -> None:
        """Move the warnings out of a reply; each subject is warned about once."""
        for env_id, _, kind, value in command.notes:
            if kind == WARNING:
                about, text = value
                self._warnings.setdefault(about, f"env {env_id}: {text}")
        command.notes = [note for note in command.notes if note[2] != WARNING]

    def _warn(self) -> None:
        """Issue the workers' warnings, each once. Where a filter makes one raise, the others stay for the next call."""
        for about, text in self._warnings.items():
            if text:
                self._warnings[about] = ""
                warnings.warn(f"{text} (said once)", stacklevel=4)

    # -- inside --------------------------------------------------------------------------------------------------

    def _retry_resets(self, command: Command) -> None:
        """Reset the envs that failed to reset again, within the restart budget."""
        slot = self._supervisor.slots[command.worker]
        counted: set[ErrorReport] = set()  # rows of one VectorEnv, or of one reply, share what went wrong
        raised = [(env_id, report) for env_id, _, kind, report in command.notes if kind == ERROR]
        for together in [raised] if self._whole else [[one] for one in raised]:
            for env_id, report in together:
                what = replace(report, task="")  # each row has an episode of its own
                if what not in counted:
                    counted.add(what)
                    if not self._supervisor.may_retry(
                        slot, env_id, self._pool.episodes.index(env_id), report
                    ):
                        return
            self._supervisor.post([self._pool.retry(command, together)])

    def _count(self, episodes: Sequence[Episode]) -> None:
        """These have ended in rows that are returned, or discarded, now."""
        if episodes and self.renewal is not None:
            self.renewal.ended(episodes)

    async def _all_ready(self, ids: EnvIds) -> None:
        """Wait until every one of these envs that owes a row has it ready."""
        while self._pool.waits_for(ids, self.chunks.complete):
            if not self._supervisor.run_pending():
                future = self._loop.create_future()
                self._watchers.append(future)
                try:
                    await future
                finally:
                    if future in self._watchers:
                        self._watchers.remove(future)
            self._check()

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for future in watchers:
            if not future.done():
                future.set_result(None)

    def _check(self) -> None:
        if self.over is not None:
            raise self.over

    def _raise_chunk_errors(self, commands: Sequence[Unroll]) -> None:
        errors: list[VecEnvError] = []
        untold = [command for command in commands if not command.told]
        broken = [command for command in untold if command.policy_error is not None]
        if broken:  # one policy, one error
            error = rebuild_policy(broken[0].policy_error, broken[0].worker)  # type: ignore[arg-type]
            if others := [str(command.worker) for command in broken[1:]]:
                error.add_note(f"so it did in the workers {', '.join(others)}")
            errors.append(error)
        found = self.chunks.take_errors(untold)
        errors += [
            rebuild(report, env_id, command.worker, self.chunks.where(command, env_id, t, report.op))
            for command, env_id, t, report in found
        ]
        raise_all(errors, "an unroll")

    def _raise_errors(self, found: list[tuple[Command, int, ErrorReport]]) -> None:
        errors: list[VecEnvError] = [
            rebuild(report, env_id, command.worker, where(command, env_id, report.op, self._pool.episodes))
            for command, env_id, report in found
        ]
        raise_all(errors, "a step or reset")
