"""Versions, topics, newest-wins slots: who must be sent which update, and what a worker has taken.

An update is a fact, not a message in a queue: a newer one of the same topic replaces it wherever it still waits.
Per worker and topic at most one update is on its way; the next leaves when that one has been acknowledged. So a
stuck worker costs one slot per topic, however often is published.
"""
# pure: no socket, no lock, no clock; the caller sends what `next_frame` gives and reports what came back

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from .framing import ProtocolError

__all__ = ["Apply", "Frame", "Inbox", "Unreadable", "Update", "Updates"]

Apply = Literal["reset", "now"]


class Update(NamedTuple):
    """What one call of `broadcast` published."""

    version: int
    topic: str
    apply: Apply
    body: bytes  # topic and pickled payload, as they travel
    published_at: float  # seconds on the publisher's clock


class Frame(NamedTuple):
    """One update on its way to one worker."""

    update: Update
    covers: int  # once taken, the worker lacks no update up to this version
    now: bool


@dataclass
class _Worker:
    """What one live worker was sent and has taken, per topic."""

    sent: dict[str, int] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    on_the_way: dict[str, Update] = field(default_factory=dict)  # sent, not acknowledged
    since: dict[str, int] = field(default_factory=dict)  # oldest version not sent yet, of topics with one
    acknowledged: int = 0  # by its newest reply; what it says about these itself may follow, however late
    now: set[str] = field(default_factory=set)  # topics whose unsent update is, or replaced, a "now"


class Updates:
    """The parent's side, for all workers. Versions are 1, 2, 3 … over all topics."""

    def __init__(self) -> None:
        self.version = 0
        self.newest: dict[str, Update] = {}
        self._workers: dict[int, _Worker] = {}

    def publish(self, topic: str, apply: Apply, body: bytes, now: float) -> Update:
        """A new update of `topic`; it waits for every live worker from here on."""
        self.version += 1
        update = Update(self.version, topic, apply, body, now)
        self.newest[topic] = update
        for worker in self._workers.values():
            worker.since.setdefault(topic, update.version)
            if apply == "now":
                worker.now.add(topic)
        return update

    def join(self, index: int) -> None:
        """A worker is live (again), and knows nothing: the newest of every topic waits for it."""
        worker = self._workers[index] = _Worker()
        for update in self.newest.values():
            worker.since[update.topic] = 1  # it lacks all there ever was of this topic
            if update.apply == "now":
                worker.now.add(update.topic)

    def leave(self, index: int) -> None:
        """A worker is gone; nobody waits for it."""
        self._workers.pop(index, None)

    def next_frame(self, index: int) -> Frame | None:
        """The oldest update that may leave for this worker now; call until None."""
        worker = self._workers.get(index)
        if worker is None or not worker.since:
            return None
        if len(worker.since) == 1:  # as nearly always
            (topic,) = worker.since
            if topic in worker.on_the_way:
                return None
            update = self.newest[topic]
        else:
            free = [self.newest[topic] for topic in worker.since if topic not in worker.on_the_way]
            if not free:
                return None
            update = min(free)
            topic = update.topic
        del worker.since[topic]
        worker.sent[topic] = update.version
        worker.on_the_way[topic] = update
        covers = min(worker.since.values()) - 1 if worker.since else self.version
        now = topic in worker.now
        if now:
            worker.now.remove(topic)
        return Frame(update, covers, now)

    def acknowledge(self, index: int, version: int) -> Update | None:
        """A worker acknowledged `version`; None if a reply that covers it came first.

        Raises ProtocolError if that was not on its way to it.
        """
        worker = self._workers.get(index)
        if worker is not None:
            for update in worker.on_the_way.values():
                if update.version == version:
                    return self._take(worker, update)
            if 0 < version <= worker.acknowledged:
                return None
        raise ProtocolError(f"worker {index} acknowledged update {version}, which was not on its way")

    def acknowledge_up_to(self, index: int, version: int) -> list[Update]:
        """A reply says that its worker lacks no update up to `version`: those that this acknowledges."""
        worker = self._workers.get(index)
        if worker is None:
            return []
        arrived = [update for update in worker.on_the_way.values() if update.version <= version]
        worker.acknowledged = max(worker.acknowledged, version)
        return [self._take(worker, update) for update in arrived]

    @staticmethod
    def _take(worker: _Worker, update: Update) -> Update:
        del worker.on_the_way[update.topic]
        worker.taken[update.topic] = update.version
        return update

    def taken_by(self, topic: str, version: int) -> tuple[int, ...]:
        """The live workers that have taken `version` of `topic`, or a newer one."""
        return tuple(i for i, worker in self._sorted() if worker.taken.get(topic, 0) >= version)

    def pending(self, topic: str, version: int) -> tuple[int, ...]:
        """The live workers that have not."""
        return tuple(i for i, worker in self._sorted() if worker.taken.get(topic, 0) < version)

    def newest_taken(self, index: int) -> int:
        """The highest version that this worker has taken; 0 = none."""
        worker = self._workers.get(index)
        return max(worker.taken.values(), default=0) if worker else 0

    def _sorted(self) -> list[tuple[int, _Worker]]:
        return sorted(self._workers.items(), key=lambda item: item[0])


class Unreadable(NamedTuple):
    """Stands for a payload that could not be unpickled; an env that is told it fails with that."""

    error: Exception


class Inbox:
    """The worker's side: what has been taken, and which env must still be told.

    `taken_up_to` is the version up to which nothing is missing; episodes report it.
    """

    def __init__(self, num_envs: int) -> None:
        self.taken_up_to = 0
        self._undelivered: list[dict[str, tuple[int, Any]]] = [{} for _ in range(num_envs)]
        self._now: list[set[str]] = [set() for _ in range(num_envs)]
        self.has_now = False  # whether some env must be told something before the next command

    def take(self, version: int, covers: int, topic: str, payload: Any, *, now: bool) -> None:
        """Take an update over: every later reset begins under it."""
        self.taken_up_to = max(self.taken_up_to, covers)
        for undelivered, now_topics in zip(self._undelivered, self._now):
            undelivered[topic] = (version, payload)
            if now:
                now_topics.add(topic)
        if now:
            self.has_now = True

    def deliver(self, env: int, hook: Callable[[Any, int], None] | None) -> None:
        """Tell one env everything it has not been told, in version order. Raises what its hook raises; an update
        that a hook has refused is not told again."""
        undelivered = self._undelivered[env]
        if not undelivered:
            return
        updates = sorted(undelivered.values(), key=_version)
        undelivered.clear()
        self._now[env].clear()
        if hook is not None:
            _tell(hook, updates)

    def deliver_now(self, env: int, hook: Callable[[Any, int], None] | None) -> None:
        """Tell one env what was published to be applied at once."""
        topics = self._now[env]
        if not topics:
            return
        undelivered = self._undelivered[env]
        updates = sorted((undelivered.pop(topic) for topic in topics), key=_version)
        topics.clear()
        if hook is not None:
            _tell(hook, updates)


def _version(item: tuple[int, Any]) -> int:
    return item[0]


def _tell(hook: Callable[[Any, int], None], updates: list[tuple[int, Any]]) -> None:
    errors: list[Exception] = []
    for version, payload in updates:
        try:
            if isinstance(payload, Unreadable):
                raise payload.error
            hook(payload, version)
        except Exception as error:
            error.add_note(f"in on_broadcast, update {version}")
            errors.append(error)
    if errors:
        raise errors[0] if len(errors) == 1 else ExceptionGroup("on_broadcast", errors)
