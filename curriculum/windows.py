"""Success windows: outcomes by completion, and by start order behind a watermark."""
# pure: no loop, no clock; what was admitted goes out as return values

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, NamedTuple

from curriculum.errors import StateError
from curriculum.rules import WINDOW

__all__ = ["Entry", "StartOrder", "Window"]


class Window:
    """The newest 50 outcomes in time order, how many of them were successes, and how many were ever added."""

    __slots__ = ("n", "outcomes", "successes")

    def __init__(self) -> None:
        self.outcomes: deque[bool] = deque(maxlen=WINDOW)
        self.successes = 0  # k
        self.n = 0

    def add(self, success: bool) -> None:
        """Take in one outcome; the oldest of 50 leaves."""
        outcomes = self.outcomes
        if self.n >= WINDOW:  # n counts all that were ever added, so the window is full
            self.successes += success - outcomes[0]
        else:
            self.successes += success
        outcomes.append(success)
        self.n += 1

    def clear(self) -> None:
        """Start empty."""
        self.outcomes.clear()
        self.successes = self.n = 0

    def __len__(self) -> int:
        return len(self.outcomes)

    @property
    def first_half(self) -> int:
        """Successes in the older half, split at length // 2."""
        half = len(self.outcomes) // 2
        return sum(outcome for outcome, _ in zip(self.outcomes, range(half)))

    def state(self) -> list[Any]:
        """Plain data: ["1011…", n], oldest first."""
        return ["".join("01"[outcome] for outcome in self.outcomes), self.n]

    def load(self, state: Any, where: str) -> None:
        """Take over what `state()` gave."""
        if not (
            isinstance(state, list)
            and len(state) == 2
            and isinstance(state[0], str)
            and set(state[0]) <= {"0", "1"}
            and isinstance(state[1], int)
            and len(state[0]) == min(state[1], WINDOW)
        ):
            raise StateError(f'{where}: expected ["0110…" of at most {WINDOW}, count], got {state!r}')
        self.clear()
        for outcome in state[0]:
            self.add(outcome == "1")
        self.n = state[1]


class Entry(NamedTuple):
    """What the order keeps of one episode. `success` is None while it runs, and for an aborted one."""

    stage: int
    role: str
    version: int
    success: bool | None = None
    length: int = 0


class StartOrder:
    """Admits outcomes in the order in which their episodes started (a fast failure cannot overtake a
    slow success).

    An episode is admitted once every episode that started before it has ended. The oldest unfinished one is
    passed over once `patience` later-started episodes have ended; it is handed out without an outcome, and
    its later end is nobody's business here. So at most `patience` outcomes ever wait.
    """

    __slots__ = ("_passed", "_running", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Entry]] = []  # heap of ended episodes by order
        self._running: dict[int, Entry] = {}  # order → entry of those that began and have not ended
        self._passed: set[int] = set()  # orders that were passed over and have not ended

    def start(self, order: int, entry: Entry) -> Entry | None:
        """An episode began. Returns it if it had been passed over before it even began (its reset took that
        long).
        """
        if order in self._passed:
            return entry
        self._running[order] = entry
        return None

    def end(self, order: int, entry: Entry) -> bool:
        """An episode ended. False: it had been passed over, its outcome is too late to count."""
        if order in self._passed:
            self._passed.discard(order)
            return False
        self._running.pop(order, None)
        heappush(self._waiting, (order, entry))
        return True

    def release(self, watermark: int | None, patience: int) -> list[tuple[Entry, bool]]:
        """(entry, passed over?) of all that may be admitted now, oldest first.

        `watermark`: every episode with a smaller order had ended; None: all had. Aborted episodes leave the
        order.
        """
        admitted: list[tuple[Entry, bool]] = []
        waiting = self._waiting
        while True:
            limit = self._limit(watermark)
            while waiting and (limit is None or waiting[0][0] < limit):
                entry = heappop(waiting)[1]
                if entry.success is not None:
                    admitted.append((entry, False))
            if limit is None or len(waiting) < patience:
                break
            straggler = self._running.pop(limit, None)
            self._passed.add(limit)
            if straggler is not None:
                admitted.append((straggler, True))
        if self._passed and watermark is not None:
            self._passed = {order for order in self._passed if order >= watermark}
        return admitted

    def _limit(self, watermark: int | None) -> int | None:
        if watermark is None or watermark not in self._passed:
            return watermark
        # only the watermark tells of resets under way: a second one behind an episode passed over is not seen here
        return min((order for order in self._running if order > watermark), default=None)

    def restart(self) -> list[Entry]:
        """Other envs: what ran is gone as if aborted, so all that waited may be admitted, oldest first."""
        waited = [entry for _, entry in sorted(self._waiting, key=lambda item: item[0])]
        self._waiting, self._running, self._passed = [], {}, set()
        return [entry for entry in waited if entry.success is not None]

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "waiting": [[order, *_plain(entry)] for order, entry in sorted(self._waiting, key=_by_order)],
            "running": [[order, *_plain(entry)] for order, entry in sorted(self._running.items())],
            "passed": sorted(self._passed),
        }

    def load(self, state: Any, stages: int, where: str) -> None:
        """Take over what `state()` gave."""
        try:
            waiting = [(int(row[0]), _entry(row[1:], stages)) for row in state["waiting"]]
            running = {int(row[0]): _entry(row[1:], stages) for row in state["running"]}
            passed = {int(order) for order in state["passed"]}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise StateError(f"{where}: expected waiting, running and passed, as saved: {error}") from error
        self._waiting, self._running, self._passed = sorted(waiting, key=_by_order), running, passed


def _by_order(item: tuple[int, Entry]) -> int:
    return item[0]


def _plain(entry: Entry) -> Iterable[Any]:
    return (entry.stage, entry.role, entry.version, entry.success, entry.length)


def _entry(row: list[Any], stages: int) -> Entry:
    stage, role, version, success, length = row
    if not (0 <= stage < stages and isinstance(role, str) and success in (None, True, False)):
        raise ValueError(f"not an episode: {row!r}")
    return Entry(stage, role, int(version), success, int(length))
