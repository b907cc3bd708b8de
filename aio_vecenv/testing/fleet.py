"""A fleet without Ray: hosts with made-up episodes, on a network that drops, delays, reorders, doubles and kills."""
# pure: one random generator, and a clock that is a number

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Any

from ..core.batch import Episode, EpisodeStarted, EventBatch
from ..core.limits import RestartBudget
from ..fleet.host_state import HostState, Refused
from ..fleet.messages import Answer, Event, Kill, Liveness, Report, Run, Start, Tell
from ..fleet.state import Collected, FleetState, Phase

__all__ = ["FakeFleet", "FakeHost", "Faults"]


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong: per message, and per second and host. Delays are seconds."""

    drop: float = 0.0
    double: float = 0.0
    delay: float = 0.0  # at most, per message: later ones overtake
    kill: float = 0.0
    freeze: float = 0.0  # a host stands still; it may be given up meanwhile, and go on afterwards
    freeze_for: float = 20.0  # at most
    deaf: float = 0.5  # how often a host that is given up is not told, and goes on


class FakeHost:
    """One incarnation of one host. It lives until it is killed, whatever the driver thinks of it."""

    def __init__(
        self, start: Start, env_ids: range, total_envs: int, rng: random.Random, ends: float
    ) -> None:
        self.state = HostState(
            start.slot, start.incarnation, env_ids.start, len(env_ids), total_envs, start.next_index
        )
        self.alive = True
        self.frozen_until = 0.0
        self.made: list[Event] = []  # every event, in order
        self._rng, self._ends, self._env_ids, self._total = rng, ends, env_ids, total_envs
        self._index = list(start.next_index)
        self._running: dict[int, EpisodeStarted] = {}

    def run(self, run: Run) -> Report | None:
        """What a command brings about; None while it is under way. Raises Refused."""
        accepted = self.state.accept(run)
        if isinstance(accepted, Report):
            return accepted
        if accepted == "under way":
            return None
        self.take(run)
        rows: list[tuple[int, tuple[Event, ...]]] = []
        if run.kind == "reset":
            rows.append((0, tuple(e for env in run.env_ids for e in self._begin(env, run, 0))))
        else:
            for row in range(run.rows):
                events: list[Event] = []
                for env in self._env_ids:
                    started = self._running.get(env)
                    if started is None:
                        events += self._begin(env, run, row)
                    elif self._rng.random() < self._ends:
                        events.append(self._end(started, "terminated"))
                if events:
                    rows.append((row, tuple(events)))
        for _, happened in rows:
            self.made += happened
        lengths = tuple((env, 1, 1.0) for env in self._running)
        return self.state.done(
            Report(
                run.slot,
                run.incarnation,
                run.sequence,
                run.number,
                dict(self.state.taken),
                tuple(rows),
                lengths,
                run.rows,
            )
        )

    def take(self, message: Run | Tell) -> None:
        """Fetch what is lacking. Newer updates are never undone by older levels."""
        for due in self.state.lacking(message.wants):
            self.state.took(due, message.wants)

    def _begin(self, env: int, run: Run, row: int) -> list[Event]:
        ended = [self._end(self._running[env], "aborted")] if env in self._running else []
        index = self._index[env - self._env_ids.start]
        self._index[env - self._env_ids.start] = index + 1
        order = (run.number + row) * self._total + env
        version = self.state.versions[-1]
        self._running[env] = started = EpisodeStarted(env, index, order, version, None, None)
        return [*ended, started]

    def _end(self, started: EpisodeStarted, outcome: Any) -> Event:
        del self._running[started.env_id]
        return Episode(
            started.env_id, started.index, started.order, 1, 1.0, outcome, started.version, None, {}, None, 0
        )


class FakeFleet:
    """A `FleetState` and its hosts, on one clock. All that happens follows from `seed`.

    `check()` raises AssertionError unless every episode was released exactly once, in order, under the version that
    it was promised.
    """

    def __init__(
        self, seed: int, slots: list[range], faults: Faults, *, min_hosts: int = 1, ends: float = 0.2
    ) -> None:
        self.rng, self.faults = random.Random(seed), faults
        self.now = 0.0
        self.state = FleetState(slots, Liveness(), RestartBudget(1_000_000, 1.0), min_hosts=min_hosts)
        self.hosts: dict[tuple[int, int], FakeHost] = {}
        self.released: list[EventBatch] = []
        self.promised: dict[int, int] = {}  # command number → version that was published before it left
        self._ends = ends
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._next_tick = 0.0
        self.advance(0.0)

    # -- what a driver does ----------------------------------------------------------------------------------------

    def publish(self, topic: str) -> int:
        version = self.state.publish(topic, self.rng.choice(("reset", "now")), self.now)
        self._post()
        return version

    def reset(self) -> None:
        """Reset all envs and wait for it."""
        everyone = range(self.state.num_envs)
        command = self.state.reset(everyone, [None] * len(everyone), self.now)
        self._post()
        self.until(lambda: command.is_in)
        self._keep(self.state.collect(command))

    def send(self, slots: list[int], rows: int) -> None:
        self.state.check_send(slots)
        self.state.send(slots, rows, self.now)
        self._post()

    def can_collect(self, min_envs: int | None = None) -> bool:
        return self.state.ready(min_envs) is not None

    def collect(self, min_envs: int | None = None) -> Collected | None:
        """What can be collected now, if anything can."""
        command = self.state.ready(min_envs)
        if command is None:
            return None
        collected = self.state.collect(command)
        self._keep(collected)
        return collected

    def _keep(self, collected: Collected) -> None:
        self.released += collected.events

    def close(self) -> None:
        last = self.state.close()
        if last is not None:
            self.released.append(last)

    # -- time ------------------------------------------------------------------------------------------------------

    def until(self, state: Callable[[], bool], limit_s: float = 10_000.0) -> None:
        """Let time pass until it is so."""
        deadline = self.now + limit_s
        while not state():
            assert self.now < deadline, f"not so within {limit_s} s"
            self.advance(0.5)

    def advance(self, seconds: float) -> None:
        """Let time pass: deliver what is due, ping, kill, freeze."""
        end = self.now + seconds
        while True:
            if self._due and self._due[0][0] <= min(end, self._next_tick):
                self.now, _, happen = heappop(self._due)
                happen()
            elif self._next_tick <= end:
                self.now = self._next_tick
                self._tick()
                self._next_tick += 1.0
            else:
                break
            self._post()
        self.now = end

    def calm(self) -> None:
        """No more faults; whoever is frozen goes on."""
        self.faults = Faults()
        for host in self.hosts.values():
            host.frozen_until = self.now

    def _tick(self) -> None:
        self.state.tick(self.now)
        for slot in self.state.live:
            ask = partial(self._pinged, slot, self.state.incarnation(slot), self.now)
            self._carry(ask)
        for host in self.hosts.values():
            if self.rng.random() < self.faults.kill:
                self._die(host)
            if self.rng.random() < self.faults.freeze:
                host.frozen_until = self.now + self.rng.uniform(0, self.faults.freeze_for)

    def _die(self, host: FakeHost) -> None:
        """A death may be noticed at once, or only by its silence."""
        if host.alive:
            host.alive = False
            if self.rng.random() < 0.5:
                slot, incarnation = host.state.slot, host.state.incarnation
                self._later(0.01, lambda: self.state.lost(slot, incarnation, "died", self.now))

    # -- the network -----------------------------------------------------------------------------------------------

    def _later(self, seconds: float, happen: Callable[[], object]) -> None:
        self._count += 1
        heappush(self._due, (self.now + seconds, self._count, happen))

    def _carry(self, happen: Callable[[], object], failed: Callable[[], object] | None = None) -> None:
        """Deliver once, twice or never; where it is never, the sender may be told."""
        rng, faults = self.rng, self.faults
        if rng.random() < faults.drop:
            if failed is not None and rng.random() < 0.5:
                self._later(rng.uniform(0, 1), failed)
            return
        for _ in range(1 + (rng.random() < faults.double)):
            self._later(0.001 + rng.uniform(0, faults.delay), happen)

    def _post(self) -> None:
        for out in self.state.take_outbox():
            if isinstance(out, Start):
                self._later(self.rng.uniform(0.5, 3.0), partial(self._start, out))
            elif isinstance(out, Kill):
                host = self.hosts.get((out.slot, out.incarnation))
                if host is not None and self.rng.random() >= self.faults.deaf:
                    host.alive = False
            elif isinstance(out, Run):
                self.promised.setdefault(out.number, out.wants.upto)
                failed = partial(self._unanswered, out)
                self._carry(partial(self._arrived, out, failed), failed)
            else:
                untold = partial(self.state.untold, out.slot, out.incarnation)
                self._carry(partial(self._told, out, self.now), untold)

    def _start(self, start: Start) -> None:
        host = FakeHost(start, self.state.slots[start.slot], self.state.num_envs, self.rng, self._ends)
        self.hosts[start.slot, start.incarnation] = host
        self.state.up(start.slot, start.incarnation, self.now)

    def _unanswered(self, run: Run) -> None:
        self.state.unanswered(run.slot, run.incarnation, run.sequence, self.now)

    def _at(self, slot: int, incarnation: int, happen: Callable[[FakeHost], None]) -> None:
        """Let a host do something, once it is not frozen; never if it is dead."""
        host = self.hosts.get((slot, incarnation))
        if host is None or not host.alive:
            return
        if host.frozen_until > self.now:
            self._later(host.frozen_until - self.now, lambda: self._at(slot, incarnation, happen))
        else:
            happen(host)

    def _arrived(self, run: Run, failed: Callable[[], object]) -> None:
        def do(host: FakeHost) -> None:
            try:
                report = host.run(run)
            except Refused:
                return
            if report is not None:
                self._carry(lambda: self.state.reported(report, self.now) and None, failed)

        self._at(run.slot, run.incarnation, do)

    def _told(self, tell: Tell, asked_at: float) -> None:
        def do(host: FakeHost) -> None:
            host.take(tell)
            self._answer(host, asked_at)

        self._at(tell.slot, tell.incarnation, do)

    def _pinged(self, slot: int, incarnation: int, asked_at: float) -> None:
        self._at(slot, incarnation, lambda host: self._answer(host, asked_at))

    def _answer(self, host: FakeHost, asked_at: float) -> None:
        answer: Answer = host.state.answer()
        self._carry(lambda: self.state.answered(answer, asked_at, self.now))

    # -- what must hold --------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether all hosts are up and have every newest update."""
        state = self.state
        newest = {update.topic: update.version for update in state.wants.updates}
        return all(
            state.phase(slot) is Phase.READY
            and self.hosts[slot, state.incarnation(slot)].state.taken == newest
            and not any(state.pending(topic, version) for topic, version in newest.items())
            for slot in range(len(state.slots))
        )

    def check(self) -> None:
        """After `close()`."""
        begun: dict[tuple[int, int], EpisodeStarted] = {}
        ended: set[tuple[int, int]] = set()
        next_index: dict[int, int] = defaultdict(int)
        open_orders: set[int] = set()
        watermark, number = 0, -1
        for batch in self.released:
            assert batch.number > number, "batches are numbered upwards"
            number = batch.number
            for event in batch.events:
                key = event.env_id, event.index
                if isinstance(event, EpisodeStarted):
                    assert event.index == next_index[event.env_id], (
                        f"{event}: doubled, or one before it was lost"
                    )
                    next_index[event.env_id] += 1
                    assert event.order >= watermark, f"{event}: began before the watermark {watermark}"
                    assert (event.env_id, event.index - 1) in ended or not event.index
                    begun[key] = event
                    open_orders.add(event.order)
                else:
                    assert key in begun, f"{event}: ended and never began"
                    assert key not in ended, f"{event}: ended twice"
                    assert event.batch == batch.number
                    ended.add(key)
                    open_orders.remove(event.order)
            assert batch.watermark >= watermark, "the watermark fell"
            watermark = batch.watermark
            assert not open_orders or min(open_orders) >= watermark, "the watermark passed a running episode"
        assert begun.keys() == ended, "lost: begun and never ended"
        assert len({event.order for event in begun.values()}) == len(begun), "two episodes of one order"
        numbers = sorted(self.promised)
        for event in begun.values():
            number = numbers[bisect_right(numbers, event.order // self.state.num_envs) - 1]
            assert event.version >= self.promised[number], (
                f"{event}: under an older version than was promised"
            )
        for (slot, incarnation), host in self.hosts.items():
            if incarnation == self.state.incarnation(slot):
                for event in host.made:
                    if isinstance(event, Episode):
                        key = event.env_id, event.index
                        assert key in ended, f"{event}: a living host's episode was lost"
                        assert begun[key].order == event.order, f"{event}: another one has its key"
