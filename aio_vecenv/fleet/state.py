"""The fleet as the driver knows it: who is up, who has which update, which reports count, what a chunk is made of.

An env belongs to a host *slot* for good. The slot's host may be replaced: its `incarnation` grows by one, and what the
one before still says is refused. Three rules carry everything else:

- **Updates are levels.** Every message names the newest version of every topic, so whatever was lost, late or out of
  order, the next one makes up for it.
- **Reports count once.** Commands to a slot have numbers of their own; a report is taken under the number that is
  awaited, and no other. Episodes are known by (env, index); a lost host's running ones are aborted, once.
- **Reports are read when they are collected**, by slot, so the same reports give the same chunks and events whatever
  the order in which they came.
"""
# pure: no Ray, no loop, no clock: time is an argument, what is to be sent waits in `take_outbox`

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

from ..core.batch import EventBatch
from ..core.limits import RestartBudget, RestartLog
from ..core.pool import derive_seed
from ..core.updates import Apply
from ..errors import BadActions, BusyError
from .episodes import FleetEpisodes
from .messages import Answer, Command, Kill, Liveness, Out, Report, Run, Start, Tell, Wanted, Wants

__all__ = ["Collected", "FleetState", "Phase", "Sent", "split"]


class Phase(IntEnum):
    """What a slot's host is doing."""

    ABSENT = 0  # there is none
    STARTING = 1  # it is being placed, or makes its envs
    BEGINNING = 2  # it took another one's place: its envs are reset
    READY = 3  # it takes commands


class Collected(NamedTuple):
    """The columns of one command, and what happened in them."""

    number: int  # of the command
    rows: int
    policy: int
    reports: tuple[Report, ...]  # by slot
    absent: tuple[int, ...]  # slots whose host was lost or not there: their columns hold nothing
    aborted: frozenset[int]  # envs whose episode was cut off since the last time
    events: tuple[EventBatch, ...]  # by row; those with events
    first_batch: int
    watermarks: tuple[int, ...]  # by row


class _Began(NamedTuple):
    """A host that took another one's place has reset its envs."""

    report: Report


class _Lost(NamedTuple):
    """The slot's host is gone; what it had reported stands before this."""


@dataclass
class _Slot:
    env_ids: range
    phase: Phase = Phase.ABSENT
    incarnation: int = 0
    heard_at: float = 0.0
    taken: dict[str, int] = field(default_factory=dict)
    on_the_way: dict[str, int] = field(default_factory=dict)  # pushed, not answered, by topic
    told_at: float = 0.0
    sequence: int = 0  # of the newest command
    run: Run | None = None  # under way
    run_at: float = 0.0
    owes: Sent | None = None  # not collected yet
    unread: deque[Report | _Began | _Lost] = field(default_factory=deque)  # in order
    cut: bool = False  # its episodes were cut off, and no column has said so yet
    # envs that were reset, with no episode: the next row begins one
    idle: set[int] = field(default_factory=set)
    losses: list[str] = field(default_factory=list)


class Sent:
    """One call of `send` or `reset`, until its last column is collected."""

    number = -1  # taken when it leaves

    def __init__(self, kind: Command, rows: int, policy: int, slots: Iterable[int]) -> None:
        self.kind, self.rows, self.policy = kind, rows, policy
        self.env_ids: tuple[int, ...] = ()  # reset
        self.owed = set(slots)  # not collected
        self.waiting: set[int] = set(slots)  # not in
        self.absent: set[int] = set()
        self.held = True  # not sent: too few hosts are there

    @property
    def is_in(self) -> bool:
        """Whether all columns that it owes can be collected."""
        return not self.held and not self.waiting


def split(num_envs: int, hosts: int, block: int) -> list[range]:
    """The envs of each slot: contiguous, as even as can be, each beginning where a block does. Raises ValueError."""
    blocks = -(-num_envs // block)
    if blocks < hosts:
        raise ValueError(
            f"num_envs={num_envs} over {hosts} hosts: a host has at least one block of {block} envs, so there is "
            f"work for {blocks} host{'s' * (blocks > 1)}; take num_envs > {block * (hosts - 1)}, or fewer hosts"
        )
    bounds = [min(num_envs, blocks * slot // hosts * block) for slot in range(hosts)] + [num_envs]
    return [range(a, b) for a, b in pairwise(bounds)]


class FleetState:
    """All slots, updates, commands and episodes. Env ids and numbers are the fleet's."""

    def __init__(
        self,
        slots: Sequence[range],
        liveness: Liveness,
        restart: RestartBudget | None,
        *,
        min_hosts: int = 1,
    ) -> None:
        self.num_envs = slots[-1].stop
        self.episodes = FleetEpisodes(self.num_envs)
        self.version = 0  # the newest update
        self.policy = 0  # the newest policy
        self.batches = 0
        self.restarts = 0
        self.over: str | None = None  # why no host is replaced any more
        self.min_hosts = min_hosts
        self._liveness, self._log = liveness, RestartLog(restart)
        self._slots = [_Slot(env_ids) for env_ids in slots]
        self._topics: dict[str, Wanted] = {}
        self._commands: list[Sent] = []  # owed, oldest first
        self._next_number = 0
        self._outbox: list[Out] = []
        self._seeds: list[int | None] | None = None  # what the newest reset gave; None: there was none
        self._unused = [False] * self.num_envs  # that seed has begun no episode yet
        self._begun: list[tuple[int, Any]] = []
        self._given: dict[int, int | None] = {}  # seeds of the reset that waits or leaves

    def take_outbox(self) -> list[Out]:
        """What is to be sent, in order; the caller sends it."""
        outbox, self._outbox = self._outbox, []
        return outbox

    # -- updates ---------------------------------------------------------------------------------------------------

    def publish(self, topic: str, apply: Apply, now: float) -> int:
        """A new update; its version. Every live host is told, unless one of its topic is on the way there."""
        self.version += 1
        before = self._topics.get(topic)
        self._topics.pop(topic, None)  # the newest stands last: `wants` is in version order
        at_once = self.version if apply == "now" else (0 if before is None else before.now)
        self._topics[topic] = Wanted(topic, self.version, at_once)
        for slot in range(len(self._slots)):
            self._push(slot, now)
        return self.version

    @property
    def wants(self) -> Wants:
        """What every host should have."""
        return Wants(self.version, tuple(self._topics.values()))

    def taken(self, topic: str, version: int) -> tuple[int, ...]:
        """Slots whose host has taken this version of the topic, or a newer one."""
        return tuple(s for s in self.live if self._slots[s].taken.get(topic, 0) >= version)

    def pending(self, topic: str, version: int) -> tuple[int, ...]:
        """Slots whose host has not."""
        return tuple(s for s in self.live if self._slots[s].taken.get(topic, 0) < version)

    def _push(self, slot: int, now: float) -> None:
        """Tell a host what it lacks; of a topic that is on its way to it, the next answer tells when."""
        s = self._slots[slot]
        if s.phase < Phase.BEGINNING:
            return
        lacks = [
            u
            for u in self._topics.values()
            if u.version > s.taken.get(u.topic, 0) and u.topic not in s.on_the_way
        ]
        if lacks:
            for update in lacks:
                s.on_the_way[update.topic] = update.version
            s.told_at = now
            self._outbox.append(Tell(slot, s.incarnation, self.wants))

    def _levels(self, slot: int, taken: dict[str, int]) -> None:
        """A host says what it has; answers may come in any order, levels only grow."""
        s = self._slots[slot]
        for topic, version in taken.items():
            if version > s.taken.get(topic, 0):
                s.taken[topic] = version
            if s.on_the_way.get(topic, version + 1) <= version:
                del s.on_the_way[topic]

    # -- hosts -----------------------------------------------------------------------------------------------------

    @property
    def slots(self) -> list[range]:
        """The envs of each slot."""
        return [s.env_ids for s in self._slots]

    @property
    def live(self) -> list[int]:
        """Slots whose host is up."""
        return [slot for slot, s in enumerate(self._slots) if s.phase >= Phase.BEGINNING]

    def phase(self, slot: int) -> Phase:
        return self._slots[slot].phase

    def incarnation(self, slot: int) -> int:
        return self._slots[slot].incarnation

    def losses(self, slot: int) -> tuple[str, ...]:
        return tuple(self._slots[slot].losses)

    def levels(self, slot: int) -> dict[str, int]:
        """The newest version of each topic that its host has."""
        return self._slots[slot].taken

    def suspects(self, now: float) -> list[int]:
        """Slots whose host is up and has been silent for too long."""
        limit_s = self._liveness.suspect
        return [slot for slot in self.live if now - self._slots[slot].heard_at >= limit_s]

    def tick(self, now: float) -> None:
        """Give up whoever is silent for too long, and let every empty slot have a host."""
        for slot in self.live:
            silent_s = now - self._slots[slot].heard_at
            if silent_s >= self._liveness.replace:
                self.lost(slot, self._slots[slot].incarnation, f"did not answer for {silent_s:.0f} s", now)
        for slot, s in enumerate(self._slots):
            if s.phase is Phase.ABSENT and self.over is None:
                s.phase = Phase.STARTING
                self._outbox.append(Start(slot, s.incarnation, self.episodes.next_index(s.env_ids)))

    def up(self, slot: int, incarnation: int, now: float) -> bool:
        """The host of this slot has made its envs; False: not the one that is awaited."""
        s = self._slots[slot]
        if incarnation != s.incarnation or s.phase is not Phase.STARTING:
            return False
        s.heard_at = now
        s.taken, s.on_the_way = {}, {}
        if self._seeds is None:
            s.phase = Phase.READY
            self._dispatch_held(now)
        else:
            s.phase = Phase.BEGINNING
            seeds = tuple(self._seed(env, incarnation) for env in s.env_ids)
            number = self._take_number(1)
            self._run(slot, Run(slot, 0, 0, "reset", number, 1, 0, self.wants, tuple(s.env_ids), seeds), now)
        self._push(slot, now)
        return True

    def _seed(self, env: int, incarnation: int) -> int | None:
        assert self._seeds is not None
        seed = self._seeds[env]
        if self._unused[env]:
            self._unused[env] = False
            return seed
        return derive_seed(seed, env, incarnation)

    def lost(self, slot: int, incarnation: int, reason: str, now: float) -> bool:
        """The host is gone, or given up: whatever it may still say is refused. False: it was not the newest.

        Its columns are absent, and its running episodes are aborted once what it had reported is collected.
        """
        s = self._slots[slot]
        if incarnation != s.incarnation or s.phase is Phase.ABSENT:
            return False
        self._outbox.append(Kill(slot, incarnation, reason))
        s.losses.append(reason)
        if s.run is not None:
            self.episodes.forget(s.env_ids, s.run.number)
        s.incarnation, s.phase = incarnation + 1, Phase.ABSENT
        s.sequence, s.run, s.taken, s.on_the_way = 0, None, {}, {}
        s.unread.append(_Lost())
        if s.owes is not None and slot in s.owes.waiting and not s.owes.held:
            s.owes.waiting.discard(slot)
            s.owes.absent.add(slot)
        if self._log.allow(now, f"host {slot} {reason}"):
            self.restarts += 1
        else:
            self.over = "; ".join(self._log.reasons)
        return True

    def heard(self, slot: int, incarnation: int, at: float) -> None:
        """A host answered something at that time."""
        s = self._slots[slot]
        if incarnation == s.incarnation:
            s.heard_at = max(s.heard_at, at)

    def answered(self, answer: Answer, asked_at: float, now: float) -> None:
        """A host answered a ping or an update that was sent at `asked_at`."""
        slot, s = answer.slot, self._slots[answer.slot]
        if answer.incarnation != s.incarnation or s.phase < Phase.BEGINNING:
            return
        s.heard_at = max(s.heard_at, now)
        self._levels(slot, answer.taken)
        if s.on_the_way and asked_at > s.told_at:
            s.on_the_way.clear()  # asked later, and it lacks them: they were lost, or are late; once more does no harm
        self._push(slot, now)
        run = s.run
        if run is not None and asked_at > s.run_at:
            never_came = answer.seen < run.sequence
            report_lost = answer.done >= run.sequence and now - s.run_at >= self._liveness.replace
            if never_came or report_lost:
                self._send_again(slot, now)

    def untold(self, slot: int, incarnation: int) -> None:
        """An update could not be delivered; the next answer shows whether it is still lacking."""
        s = self._slots[slot]
        if incarnation == s.incarnation:
            s.on_the_way.clear()

    def unanswered(self, slot: int, incarnation: int, sequence: int, now: float) -> None:
        """A command's call failed, though its host may live: the same command goes there once more."""
        s = self._slots[slot]
        if incarnation == s.incarnation and s.run is not None and s.run.sequence == sequence:
            self._send_again(slot, now)

    def _send_again(self, slot: int, now: float) -> None:
        s = self._slots[slot]
        assert s.run is not None
        s.run, s.run_at = s.run._replace(wants=self.wants), now
        self._outbox.append(s.run)

    # -- commands --------------------------------------------------------------------------------------------------

    def check_send(self, slots: Sequence[int]) -> None:
        """Raise BusyError or BadActions unless these slots may be sent a command."""
        if busy := [slot for slot in slots if self._slots[slot].owes is not None]:
            raise BusyError(f"hosts {busy} still owe a chunk: recv_unroll() it before the next command")
        if self._seeds is None:
            raise BadActions(
                "the envs were never reset: they accept only reset()",
                expected="envs with a running episode",
                got="envs that were never reset",
            )

    def send(self, slots: Sequence[int], rows: int, now: float) -> Sent:
        """A command of that many rows to these slots, which `check_send` let.

        Slots without a host are absent from it. Where that is all of them, or fewer than `min_hosts` hosts are there,
        it waits.
        """
        return self._command(Sent("unroll", rows, self.policy, slots), now)

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int | None], now: float) -> Sent:
        """Reset these envs, all of them the first time. Raises BusyError. Slots without a host reset their envs when
        they have one."""
        slots = [slot for slot, s in enumerate(self._slots) if any(env in s.env_ids for env in env_ids)]
        if busy := [slot for slot in slots if self._slots[slot].owes is not None]:
            raise BusyError(f"reset() while hosts {busy} owe a chunk: recv_unroll() it first")
        if self._seeds is None:
            if len(env_ids) < self.num_envs:
                raise BadActions(
                    "the first reset() is one of all envs", expected="all envs", got=f"{len(env_ids)} of them"
                )
            self._seeds = [None] * self.num_envs
        for env, seed in zip(env_ids, seeds):
            self._unused[env] = seed is not None
            if seed is not None:
                self._seeds[env] = seed
        command = Sent("reset", 1, 0, slots)
        command.env_ids = tuple(env_ids)
        self._given = dict(zip(env_ids, seeds))
        return self._command(command, now)

    def _command(self, command: Sent, now: float) -> Sent:
        for slot in command.owed:
            self._slots[slot].owes = command
        self._commands.append(command)
        self._dispatch(command, now)
        return command

    def _take_number(self, rows: int) -> int:
        number, self._next_number = self._next_number, self._next_number + rows
        return number

    @property
    def sent(self) -> tuple[Sent, ...]:
        """Commands that are not collected yet, oldest first."""
        return tuple(self._commands)

    def _dispatch_held(self, now: float) -> None:
        for command in self._commands:
            if command.held:
                self._dispatch(command, now)

    def _dispatch(self, command: Sent, now: float) -> None:
        """Send it, if enough hosts are there."""
        phases = [s.phase for s in self._slots]
        ready = [slot for slot in sorted(command.owed) if phases[slot] is Phase.READY]
        if not ready or sum(phase is Phase.READY for phase in phases) < self.min_hosts:
            return
        if command.kind == "reset" and any(phases[slot] is Phase.BEGINNING for slot in command.owed):
            return  # it is resetting its envs already, in its own command
        command.held, command.number = False, self._take_number(command.rows)
        for slot in ready:
            self._read_leading(slot)
        command.waiting = {slot for slot in ready if command.kind == "reset" or not self._slots[slot].cut}
        command.absent = command.owed - command.waiting
        for slot in sorted(command.waiting):
            run = Run(slot, 0, 0, command.kind, command.number, command.rows, command.policy, self.wants)
            if command.kind == "reset":
                mine = tuple(env for env in command.env_ids if env in self._slots[slot].env_ids)
                for env in mine:
                    self._unused[env] = False
                run = run._replace(env_ids=mine, seeds=tuple(self._given[env] for env in mine))
            self._run(slot, run, now)

    def _run(self, slot: int, run: Run, now: float) -> None:
        s = self._slots[slot]
        s.sequence += 1
        s.run = run._replace(incarnation=s.incarnation, sequence=s.sequence)
        s.run_at = now
        for env in s.idle if run.kind == "unroll" else run.env_ids:
            self.episodes.about_to_begin(env, run.number)
        self._outbox.append(s.run)

    def reported(self, report: Report, now: float) -> bool:
        """A report came in; False: it was taken already, or comes from a host that was given up."""
        s = self._slots[report.slot]
        if (
            report.incarnation != s.incarnation
            or s.run is None
            or report.sequence != s.run.sequence
            or s.phase < Phase.BEGINNING
        ):
            return False
        began = s.phase is Phase.BEGINNING
        s.run, s.heard_at = None, max(s.heard_at, now)
        s.unread.append(_Began(report) if began else report)
        self.episodes.announce(report)
        self._levels(report.slot, report.taken)
        self._push(report.slot, now)
        if began:
            s.phase = Phase.READY
            self._dispatch_held(now)
        elif s.owes is not None:
            s.owes.waiting.discard(report.slot)
        return True

    # -- collecting ------------------------------------------------------------------------------------------------

    @property
    def owed(self) -> bool:
        """Whether there is a chunk to be collected, or one under way."""
        return any(command.kind == "unroll" for command in self._commands)

    def ready(self, min_envs: int | None = None) -> Sent | None:
        """The oldest chunk that has all columns that it owes, or `min_envs` of them; None: wait."""
        for command in self._commands:
            if command.kind != "unroll" or command.held:
                continue
            rows = {slot: len(self._slots[slot].env_ids) for slot in command.owed}
            missing = sum(rows[slot] for slot in command.waiting)
            came = sum(n for slot, n in rows.items() if slot not in command.waiting | command.absent)
            if not missing or (min_envs is not None and came >= min_envs):
                return command
        return None

    def collect(self, command: Sent) -> Collected:
        """The columns of this command that are in; their slots owe nothing any more."""
        slots = sorted(command.owed - command.waiting)
        absent = tuple(slot for slot in slots if slot in command.absent)
        reports: list[Report] = []
        for slot, s in enumerate(self._slots):
            self._read_leading(slot)
            if slot in slots:
                s.owes, s.cut = None, False
                if slot not in absent:
                    report = s.unread.popleft()
                    assert isinstance(report, Report)
                    reports.append(report)
        command.owed.difference_update(slots)
        command.absent.difference_update(slots)
        if not command.owed:
            self._commands.remove(command)
        first_batch, self.batches = self.batches, self.batches + command.rows
        book = self.episodes
        events, watermarks = book.release(
            command.number, command.rows, reports, self._next_number, first_batch
        )
        for report in reports:
            s = self._slots[report.slot]
            s.idle = book.sum_up(report, s.env_ids)
        aborted, book.aborted = frozenset(book.aborted), set()
        return Collected(
            command.number, command.rows, command.policy, tuple(reports), absent, aborted, events, first_batch,
            tuple(watermarks),
        )  # fmt: skip

    def take_begun(self) -> list[tuple[int, Any]]:
        """What the envs of hosts that took another one's place show since then, by slot."""
        begun, self._begun = self._begun, []
        return begun

    def close(self) -> EventBatch | None:
        """The last events: what was reported and not collected, then every running episode as aborted."""
        for slot, s in enumerate(self._slots):
            while s.unread:
                self._read_leading(slot)
                if s.unread:
                    report = s.unread.popleft()
                    assert isinstance(report, Report)
                    s.idle = self.episodes.read(report, s.env_ids)
            self.episodes.cut(s.env_ids)
        number, self.batches = self.batches, self.batches + 1
        released, _ = self.episodes.release(self._next_number, 1, (), self._next_number, number)
        return released[0] if released else None

    def _read_leading(self, slot: int) -> None:
        """Read what came before the rows that this slot owes: losses, and what its host began by itself."""
        s = self._slots[slot]
        while s.unread and not isinstance(s.unread[0], Report):
            item = s.unread.popleft()
            if isinstance(item, _Began):
                s.idle = self.episodes.read(item.report, s.env_ids)
                if item.report.body is not None and item.report.body.columns is not None:
                    self._begun.append((slot, item.report.body.columns))
            else:
                self.episodes.cut(s.env_ids)
                s.idle, s.cut = set(), True
