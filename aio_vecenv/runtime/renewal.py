"""Planned renewal: a worker that is due gives way to a fresh process, between the episodes of its envs.

The new process makes its envs while the old one still has its own. If that fails, the old one goes on, and a warning
says so. What wrappers have learned goes with the envs. It begins when a command for that worker leaves, not before.
"""
# async: a task per renewal; who is due and who waits is decided in `core.waiting`

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Container, Iterable, Sequence
from typing import Any

from gymnasium.vector import AutoresetMode

from ..backends.base import Worker
from ..core.assignment import Assignment, EnvIds, Selection
from ..core.batch import Episode
from ..core.command import Command
from ..core.env_state import read_own
from ..core.framing import Kind
from ..core.limits import RenewAfter, renew_after_of
from ..core.pool import Pool
from ..core.waiting import Waiting
from ..deadline import within
from ..memory import resident_bytes
from .calls import Asked, Calls
from .supervisor import Supervisor, WorkerSlot

__all__ = ["Renewal", "renewal_of"]

_AHEAD = 0.9  # of what makes a worker due: then a process is started for it, which takes a third of a second
# a share of the workers, at once: each that is renewed has two processes until the old one is closed
_QUARTER = 4


class Renewal:
    """Renews the workers of one vec env."""

    def __init__(
        self, after: RenewAfter, pool: Pool, assignment: Assignment, supervisor: Supervisor, calls: Calls
    ) -> None:
        self._after, self._pool, self._supervisor, self._calls = after, pool, supervisor, calls
        self._rows = assignment.rows
        self._at_once = max(1, len(supervisor.slots) // _QUARTER)
        self._ahead: set[int] = set()  # workers that are due soon: processes are started for them
        self._not_before = [0] * len(supervisor.slots)  # episodes, where the last try failed
        self._looked_at: set[int] = set()  # whose memory was, in their newest process
        self._no_limit: set[int] = set()  # that were over the limit at the first look
        self.warnings: dict[tuple[str, ...], str] = {}  # by subject; issued with the next rows
        self._next: list[int] = []  # to be renewed with the send under way
        self.waiting = Waiting(pool, assignment)

    @property
    def busy(self) -> bool:
        """Whether a worker is due."""
        return bool(self.waiting.due)

    def ended(self, episodes: Iterable[Episode]) -> None:
        """These have ended in what was just collected."""
        for worker in sorted(self.waiting.count(episodes) - self.waiting.due):
            self._look_at(self._supervisor.slots[worker])

    def _look_at(self, slot: WorkerSlot) -> None:
        """Whether it is due, or soon will be."""
        if slot.worker is None or not slot.ready:
            return
        after, share, ended = self._after, 0.0, self.waiting.ended[slot.index]
        if after.episodes is not None:
            share = ended / after.episodes
        if after.megabytes is not None and slot.index not in self._no_limit:
            share = max(share, self._of_memory(slot, slot.worker.pid, after.megabytes))
        if ended < self._not_before[slot.index]:
            return
        if share >= 1.0:
            self.waiting.due.add(slot.index)
        if share >= _AHEAD and slot.index not in self._ahead:
            self._ahead.add(slot.index)
            self._start_ahead()

    def _of_memory(self, slot: WorkerSlot, pid: int, limit: float) -> float:
        """What its process holds, as a share of the limit; 0: as much as any process with these envs."""
        megabytes = resident_bytes(pid) / 1e6
        if slot.index not in self._looked_at:
            self._looked_at.add(slot.index)
            if megabytes >= limit:
                self._no_limit.add(slot.index)
                self.warnings.setdefault(
                    ("renewal", "memory"),
                    f"renew_after: worker {slot.index} (envs {slot.rows.start}-{slot.rows.stop - 1}) held "
                    f"{megabytes:.0f} MB when its first episode ended, and the limit is {limit:g} MB: a fresh process "
                    "would be no smaller, so such a one is not renewed for its memory",
                )
                return 0.0
        return megabytes / limit

    def lost(self, slot: WorkerSlot) -> None:
        """It gets a new process in any case."""
        self._fresh(slot.index)
        self._supervisor.post(self._begin_anew(slot.index))

    def _fresh(self, index: int) -> None:
        self._not_before[index] = 0
        self._looked_at.discard(index)
        self._no_limit.discard(index)

    # -- what is about to be sent ------------------------------------------------------------------------------

    def part(self, selection: Selection, *, resetting: bool) -> Selection:
        """As of `Waiting.part`; while somebody waits for a reset, no env is to wait for others."""
        self._next = self._those_between_episodes(part.worker for part in selection.parts)
        return self.waiting.part(selection, () if resetting else self._ready_ones(len(self._next)))

    def keep(self, commands: Sequence[Command]) -> list[Command]:
        """As of `Waiting.keep`, of the commands of what was parted last; they leave now."""
        leaving = self.waiting.keep(commands)
        self._begin(self._next)
        return leaving

    def held(self, selection: Selection) -> list[int]:
        """The workers in whose unrolls no env begins an episode, of those that leave now."""
        self._begin(self._those_between_episodes(part.worker for part in selection.parts))
        return [worker for worker in self._ready_ones() if self.waiting.playing(worker)]

    def before_reset(self, env_ids: EnvIds) -> None:
        """The commands that reset these envs leave now."""
        if self.waiting.due:
            workers = self.waiting.workers_of(env_ids)
            self._begin(self._those_between_episodes(workers, set(env_ids.tolist())))

    def _ready_ones(self, beginning: int = 0) -> list[int]:
        """The workers for whose renewal envs may wait: none while as many as may be are renewed."""
        if beginning >= self._free():
            return []
        return [worker for worker in sorted(self.waiting.due) if self._supervisor.slots[worker].ready]

    def _free(self) -> int:
        """How many renewals may begin now."""
        supervisor = self._supervisor
        return self._at_once - supervisor.retiring - sum(s.renewal is not None for s in supervisor.slots)

    def idle(self) -> list[int]:
        """The workers whose envs wait for a renewal that no row under way brings nearer: the caller has them all."""
        slots = self._supervisor.slots
        return [
            worker
            for worker in sorted(self.waiting.keeping)
            if all(command.kind is Kind.CALL for command in slots[worker].commands.values())
        ]

    # -- inside ------------------------------------------------------------------------------------------------

    def _those_between_episodes(self, workers: Iterable[int], resetting: Container[int] = ()) -> list[int]:
        """The workers to be renewed now: of those that are due, which get a command or have one that waits.

        No sooner: what is called after an episode's end, a picture of its last state say, still meets the old process.
        """
        commanded = self.waiting.keeping | set(workers)
        slots = self._supervisor.slots
        oldest_first = sorted(
            self.waiting.due & commanded, key=lambda index: (-self.waiting.ended[index], index)
        )
        return [
            index
            for index in oldest_first
            if slots[index].ready
            and not slots[index].commands
            and self.waiting.between_episodes(index, resetting)
        ][: max(0, self._free())]

    def _begin(self, workers: Sequence[int]) -> None:
        for index in workers:
            slot = self._supervisor.slots[index]
            age = self.waiting.ended[index]
            kept = self._begin_anew(index)
            learned = self._calls.post("apply", "get_state", list(slot.rows), lambda _: read_own)
            self._supervisor.pause(slot)  # what is sent from now on goes to the new process
            work = self._renew(slot, learned, age, time.monotonic())
            slot.renewal = self._supervisor.begin_task(work, f"renew worker {index}")
            self._supervisor.post(kept)

    def _begin_anew(self, index: int) -> list[Command]:
        self._ahead.discard(index)
        return self.waiting.begin_anew(index)

    async def _renew(self, slot: WorkerSlot, learned: Asked, age: int, began: float) -> None:
        """`age`: of its old process, in episodes."""
        supervisor = self._supervisor
        try:
            worker = await self._start_again(slot, learned, age)
            if worker is None:
                return
            self._fresh(slot.index)
            under_way = slot.commands.values()
            seeds = self._pool.renewed(slot.index, slot.incarnation + 1, under_way)
            if await supervisor.take_over(slot, worker, seeds):
                supervisor.recorder.renewed(time.monotonic() - began)
        finally:
            if slot.renewal is asyncio.current_task():  # a loss may have cancelled it, and another have begun
                slot.renewal = None
        self._start_ahead()

    async def _start_again(self, slot: WorkerSlot, learned: Asked, age: int) -> Worker | None:
        """A new process with the envs of the slot; None: there is none, and the old one goes on."""
        supervisor = self._supervisor
        worker: Worker | None = None
        try:
            own = await self._answered(slot, learned)
            if own is None:
                return None
            worker = supervisor.backend.worker(slot.index, slot.incarnation + 1, supervisor)
            await supervisor.start_again(worker, slot.setup._replace(own=list(own)))
        except BaseException as error:
            if worker is not None:
                await worker.close(0)
            if not isinstance(error, Exception):
                raise
            self._not_before[slot.index] = max(1, age)
            if supervisor.failure is None:  # else nothing is sent any more
                supervisor.resume(slot)
                why = f"{type(error).__name__}: {error}"
                text = f"worker {slot.index} could not be renewed, and goes on for {age} episodes more: {why}"
                self.warnings.setdefault(("renewal", str(slot.index), why), text)
            return None
        return worker

    async def _answered(self, slot: WorkerSlot, learned: Asked) -> tuple[Any, ...] | None:
        """What its envs have learned; None: the old process did not say so in time, which is a loss like any other."""
        limit_s = self._supervisor.start_limit_s
        try:
            async with within(limit_s):
                return await self._calls.answers(learned)
        except TimeoutError:
            assert slot.worker is not None
            assert limit_s is not None
            text = f"did not say what its envs have learned within {limit_s:g} s and was killed"
            slot.worker.kill(text, stack=True)
            return None

    def _start_ahead(self) -> None:
        try:
            self._supervisor.backend.start_spares(min(len(self._ahead), self._at_once))
        except OSError as error:
            text = f"no process could be started ahead of a renewal: {error}"
            self.warnings.setdefault(("renewal", "ahead"), text)


def renewal_of(
    value: RenewAfter | int | None, autoreset: AutoresetMode, *, inline: bool
) -> RenewAfter | None:
    """`renew_after`, checked. Raises ValueError."""
    after = renew_after_of(value)
    if after is None:
        return None
    if autoreset is AutoresetMode.SAME_STEP:
        raise ValueError(
            "renew_after with autoreset SAME_STEP: its envs are never between two episodes; use NEXT_STEP"
        )
    if inline:
        raise ValueError("renew_after with backend='inline', whose envs live in this process: leave it out")
    if after.megabytes is not None and sys.platform != "linux":
        raise ValueError("RenewAfter: megabytes are known on Linux only: say episodes")
    return after
