"""Limits of workers: when one is late, renewed, or restarted, and when to give up: the restart budget is Erlang's."""
# pure: time is an argument

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["Patience", "RenewAfter", "RestartBudget", "RestartLog", "Timeouts", "renew_after_of"]


@dataclass(frozen=True)
class RestartBudget:
    """At most `restarts` replacements of workers in any `per_s` seconds; one more fails the whole vec env."""

    restarts: int = 3
    per_s: float = 60.0
    # on_env_error="reset": so many resets in a row an env may fail before each one counts, too
    failed_resets: int = 0

    def __post_init__(self) -> None:
        for name in ("restarts", "failed_resets"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"RestartBudget: {name} is {value!r}, not a whole number ≥ 0")
        _check_limit("RestartBudget: per_s", self.per_s)


@dataclass(frozen=True)
class RenewAfter:
    """When a worker is due to be renewed: whichever comes first."""

    episodes: int | None = None  # that ended or were cut off, of all its envs together, in this process
    megabytes: float | None = None  # resident memory of its process, in 10⁶ bytes; Linux only

    def __post_init__(self) -> None:
        for name, kind, what in (
            ("episodes", int, "a whole number ≥ 1"),
            ("megabytes", (int, float), "a number > 0"),
        ):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf
            ):
                raise ValueError(f"RenewAfter: {name} is {value!r}, not {what}")
        if self.episodes is None and self.megabytes is None:
            raise ValueError("RenewAfter: neither episodes nor megabytes: say after what")


def renew_after_of(value: RenewAfter | int | None) -> RenewAfter | None:
    """A number is one of episodes. Raises ValueError."""
    if value is None or isinstance(value, RenewAfter):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"renew_after is {value!r}, not a whole number of episodes ≥ 1, nor RenewAfter(episodes=…, megabytes=…)"
        )
    return RenewAfter(episodes=value)


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds; None waits for ever."""

    start: float | None = 60.0  # from the start of the interpreter to its envs being made
    reset: float | None = None  # for a reset command
    step: float | None = None  # for a step command, autoresets included
    close: float | None = 5.0  # from "please" to SIGKILL

    def __post_init__(self) -> None:
        for name in ("start", "reset", "step", "close"):
            limit_s = getattr(self, name)
            if limit_s is not None:
                _check_limit(f"Timeouts: {name}", limit_s)


def _check_limit(name: str, limit_s: object) -> None:
    if isinstance(limit_s, bool) or not isinstance(limit_s, (int, float)) or not 0 < limit_s < math.inf:
        raise ValueError(f"{name} is {limit_s!r}, not a number of seconds > 0")


_LOOKS = 4  # at a limit, until it is over
_LATE_S = 0.1  # a look that comes so much later than it was due: the loop, or the machine, stood still
_EXCUSES = 8  # looks; without an end, what hangs would live on beside a loop that is blocked again and again


class Patience:
    """How much of a worker's time limit is left, without the times in which the loop, or the machine, stood still.

    In these nothing is heard of the worker, and it gets nothing that it may be waiting for: the rest of a large
    message, the next update. So the limit is looked at several times, and what passed since the look before does not
    count if this one comes late. Where that goes on and on, it takes up to three times the limit.
    """

    def __init__(self) -> None:
        self._looked_at = 0.0  # seconds
        self._excused_s = 0.0
        self._excuses = 0

    def left_s(self, now: float, since: float, limit_s: float, due_at: float) -> float:
        """Seconds that are left of a limit that runs since `since`; ≤ 0: it is over. `due_at`: of this look."""
        if since > self._looked_at:  # something was heard of the worker
            self._excused_s, self._excuses = 0.0, 0
        if now - due_at > _LATE_S and self._excuses < _EXCUSES:
            self._excuses += 1
            self._excused_s += max(0.0, now - max(since, self._looked_at))
        self._looked_at = now
        left_s = since + limit_s + self._excused_s - now
        return left_s if left_s > 1e-3 else 0.0

    @staticmethod
    def next_look_s(left_s: float, limit_s: float) -> float:
        """When to look next, in seconds from now."""
        return min(left_s, limit_s / _LOOKS)


class RestartLog:
    """The losses that a budget counts, with their reasons. `budget=None` never restarts."""

    def __init__(self, budget: RestartBudget | None) -> None:
        self.budget = budget
        self.total = 0
        self._recent: deque[tuple[float, str]] = deque()
        self._failed: dict[int, tuple[int, int]] = {}  # env → (its newest episode, resets that failed since)

    def failed_reset(self, env_id: int, episode: int) -> int:
        """An env whose newest episode is `episode` failed to reset: how often in a row."""
        newest, count = self._failed.get(env_id, (episode, 0))
        count = count + 1 if newest == episode else 1
        self._failed[env_id] = episode, count
        return count

    def allow(self, now: float, reason: str) -> bool:
        """Count a loss at `now` seconds; whether its worker may be replaced."""
        self._recent.append((now, reason))
        if self.budget is None:
            return False
        while self._recent and now - self._recent[0][0] >= self.budget.per_s:
            self._recent.popleft()
        if len(self._recent) > self.budget.restarts:
            return False
        self.total += 1
        return True

    @property
    def reasons(self) -> tuple[str, ...]:
        """Of the losses inside the period, oldest first."""
        return tuple(reason for _, reason in self._recent)
