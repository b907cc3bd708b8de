"""Outcomes in the order in which their episodes started, stage by stage: what may count now, and what waits for whom.

Of each stage, the outcomes that may count are those that started before its oldest unfinished episode. An episode's
stage is known once its start has been told; one whose reset is still under way may be of any stage, and holds all up.
"""
# pure: no loop, no clock; what was admitted goes out as return values

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, Literal, NamedTuple

from curriculum.errors import StateError

__all__ = ["Entry", "StartOrder", "Waiting"]


class Entry(NamedTuple):
    """What the order keeps of one episode. `success` is None while it runs, and for an aborted one."""

    stage: int
    role: str
    version: int
    success: bool | None = None
    length: int = 0
    value: int = 0  # its return in billionths, where its stage measures returns


class Waiting(NamedTuple):
    """How many outcomes of a stage wait, and the order of the unfinished episode that they wait for."""

    outcomes: int
    order: int


class _Queue:
    """The episodes of one stage: those that ended and wait, and those that run."""

    __slots__ = ("running", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Entry]] = []  # heap of ended episodes by order
        self.running: list[int] = []  # heap of orders; of ended ones, too, until they come to its top


class StartOrder:
    """Admits outcomes in start order, so that a fast failure cannot overtake a slow success.

    An outcome is admitted once every episode of its stage that started before it has ended (`by="run"`: every
    episode of any stage, the rule of version 0.1). The oldest unfinished episode of a stage is passed over once
    `patience` later-started episodes of any stage have ended: it comes out without an outcome, and its later end is
    no longer counted here. So at most `patience` outcomes ever wait.
    """

    __slots__ = ("_ended", "_passed", "_queues", "_running", "_unannounced", "by")

    def __init__(self, by: Literal["stage", "run"] = "stage") -> None:
        self.by = by
        self._clear()

    def _clear(self) -> None:
        self._queues: dict[int, _Queue] = {}  # by stage; one for all with by="run"
        self._running: dict[int, Entry] = {}  # order → entry of those that began and have not ended
        self._passed: set[int] = set()  # orders that were passed over and have not ended
        self._ended: list[int] = []  # sorted orders of those that ended, from the oldest unfinished one on
        # sorted orders of those whose reset is under way, at the last release
        self._unannounced: list[int] = []

    def _queue(self, entry: Entry) -> _Queue:
        key = entry.stage if self.by == "stage" else 0
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue()
        return queue

    def start(self, order: int, entry: Entry) -> Entry | None:
        """An episode began. Returns it if it had been passed over before it even began (its reset took that
        long).
        """
        if order in self._passed:
            return entry
        self._running[order] = entry
        heappush(self._queue(entry).running, order)
        return None

    def end(self, order: int, entry: Entry) -> bool:
        """An episode ended. False: it had been passed over, its outcome is too late to count."""
        insort(self._ended, order)
        if order in self._passed:
            self._passed.discard(order)
            return False
        self._running.pop(order, None)
        heappush(self._queue(entry).waiting, (order, entry))
        return True

    def release(
        self, watermark: int | None, patience: int, beginning: Iterable[int] = ()
    ) -> list[tuple[Entry, bool]]:
        """(entry, passed over?) of all that may be admitted now, oldest first.

        `watermark`: every episode with a smaller order had ended; None: all had. `beginning`: orders of episodes
        whose reset is under way. Aborted episodes leave the order.
        """
        if watermark is None:
            self._unannounced = []
            return [(entry, False) for _, entry in self._take_all()]
        running, passed = self._running, self._passed
        self._unannounced = sorted(
            {order for order in (watermark, *beginning) if order not in running and order not in passed}
        )
        admitted: list[tuple[int, Entry, bool]] = []
        for queue in self._queues.values():
            self._release(queue, patience, admitted)
        if self._passed:
            self._passed = {order for order in self._passed if order >= watermark}
        oldest = min(self._oldest(), default=None)
        del self._ended[: len(self._ended) if oldest is None else bisect_right(self._ended, oldest)]
        admitted.sort(key=_by_order)
        return [(entry, passed_over) for _, entry, passed_over in admitted]

    def _release(self, queue: _Queue, patience: int, admitted: list[tuple[int, Entry, bool]]) -> None:
        waiting = queue.waiting
        while True:
            limit = self._limit(queue)
            while waiting and (limit is None or waiting[0][0] < limit):
                order, entry = heappop(waiting)
                if entry.success is not None:
                    admitted.append((order, entry, False))
            if limit is None or len(self._ended) - bisect_right(self._ended, limit) < patience:
                return
            self._passed.add(limit)
            straggler = self._running.pop(limit, None)
            if straggler is None:
                del self._unannounced[0]
            else:
                admitted.append((limit, straggler, True))

    def _limit(self, queue: _Queue) -> int | None:
        """The oldest episode that this queue has to wait for; None: there is none."""
        running = queue.running
        while running and running[0] not in self._running:
            heappop(running)
        if not self._unannounced:
            return running[0] if running else None
        return min(running[0], self._unannounced[0]) if running else self._unannounced[0]

    def _oldest(self) -> Iterator[int]:
        for queue in self._queues.values():
            limit = self._limit(queue)
            if limit is not None:
                yield limit

    def waits(self) -> dict[int, Waiting]:
        """By stage: how many outcomes wait, and for which unfinished episode. Stages without any are left out."""
        found: dict[int, Waiting] = {}
        for queue in self._queues.values():
            limit = self._limit(queue)
            if limit is None:
                continue
            for _, entry in queue.waiting:
                if entry.success is not None:
                    before = found[entry.stage].outcomes if entry.stage in found else 0
                    found[entry.stage] = Waiting(before + 1, limit)
        return found

    def _all_waiting(self) -> list[tuple[int, Entry]]:
        return sorted((item for queue in self._queues.values() for item in queue.waiting), key=_by_order)

    def _take_all(self) -> list[tuple[int, Entry]]:
        waited = self._all_waiting()
        for queue in self._queues.values():
            queue.waiting = []
        self._ended = []
        return [item for item in waited if item[1].success is not None]

    def restart(self) -> list[Entry]:
        """Other envs: what ran is gone as if aborted, so all that waited may be admitted, oldest first."""
        waited = [entry for _, entry in self._take_all()]
        self._clear()
        return waited

    def state(self) -> dict[str, Any]:
        """Plain data."""
        waiting = self._all_waiting()
        listed = {order for order, _ in waiting}
        return {
            "by": self.by,
            "waiting": [[order, *_plain(entry)] for order, entry in waiting],
            "running": [[order, *_plain(entry)] for order, entry in sorted(self._running.items())],
            "passed": sorted(self._passed),
            "ended": [order for order in self._ended if order not in listed],  # beside those that wait
        }

    def load(self, state: Mapping[str, Any], stages: int, where: str) -> None:
        """Take over what `state()` gave, or version 0.1 did, whatever rule it was kept under."""
        try:
            waiting = [(int(row[0]), _entry(row[1:], stages)) for row in state["waiting"]]
            running = {int(row[0]): _entry(row[1:], stages) for row in state["running"]}
            passed = {int(order) for order in state["passed"]}
            ended = [int(order) for order in state.get("ended", ())]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"{where}: expected waiting, running and passed, as saved: {error}") from error
        self._clear()
        self._passed, self._ended = passed, sorted([*ended, *(order for order, _ in waiting)])
        for order, entry in running.items():
            self.start(order, entry)
        for item in waiting:
            heappush(self._queue(item[1]).waiting, item)


def _by_order(item: tuple[Any, ...]) -> int:
    order: int = item[0]
    return order


def _plain(entry: Entry) -> Sequence[Any]:
    return entry if entry.value else entry[:-1]


def _entry(row: Sequence[Any], stages: int) -> Entry:
    stage, role, version, success, length, *value = row
    if not (0 <= stage < stages and isinstance(role, str) and success in (None, True, False)):
        raise ValueError(f"not an episode: {row!r}")
    return Entry(stage, role, int(version), success, int(length), *map(int, value))
