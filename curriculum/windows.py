"""Windows: the newest outcomes of one stage, as successes and failures, or as returns."""
# pure: no loop, no clock

from __future__ import annotations

from collections import deque
from typing import Any

from curriculum.errors import StateError
from curriculum.rules import WINDOW

__all__ = ["ReturnWindow", "Window"]


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


class ReturnWindow:
    """The newest 50 returns in time order, in billionths, their sum, and how many were ever added."""

    __slots__ = ("n", "returns", "total")

    def __init__(self) -> None:
        self.returns: deque[int] = deque(maxlen=WINDOW)
        self.total = 0
        self.n = 0

    def add(self, value: int) -> None:
        """Take in one return; the oldest of 50 leaves."""
        if len(self.returns) == WINDOW:
            self.total -= self.returns[0]
        self.total += value
        self.returns.append(value)
        self.n += 1

    def clear(self) -> None:
        """Start empty."""
        self.returns.clear()
        self.total = self.n = 0

    def __len__(self) -> int:
        return len(self.returns)

    def state(self) -> list[Any]:
        """Plain data: [[returns, oldest first], n]."""
        return [list(self.returns), self.n]

    def load(self, state: Any, where: str) -> None:
        """Take over what `state()` gave."""
        try:
            returns, n = state
            fits = all(type(value) is int for value in returns) and len(returns) == min(n, WINDOW)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise StateError(f"{where}: expected [at most {WINDOW} returns, count], got {state!r:.60}")
        self.clear()
        for value in returns:
            self.add(value)
        self.n = n
