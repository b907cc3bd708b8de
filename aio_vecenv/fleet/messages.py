"""What the driver and its hosts say to each other, whatever carries it."""
# pure: definitions only

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from ..core.batch import Episode, EpisodeStarted

__all__ = [
    "Answer",
    "Command",
    "Event",
    "Kill",
    "Liveness",
    "Out",
    "Report",
    "Run",
    "Start",
    "Tell",
    "Wanted",
    "Wants",
]

Event = EpisodeStarted | Episode
Command = Literal["unroll", "reset"]


@dataclass(frozen=True)
class Liveness:
    """When a host counts as silent. Seconds."""

    ping: float = 1.0  # between two pings of a host
    suspect: float = 3.0  # silent for so long: waited for; its workers are not `ready` in `statistics()`
    replace: float = 10.0  # … for so long: it is given up and replaced
    lease: float = 15.0  # a host that hears nothing from the driver for so long closes itself

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"Liveness: {each.name} is {value!r}, not a number of seconds > 0")
        if not self.ping <= self.suspect <= self.replace <= self.lease:
            raise ValueError(f"{self}: ping ≤ suspect ≤ replace ≤ lease must hold")


class Wanted(NamedTuple):
    """The newest update of a topic."""

    topic: str
    version: int
    now: int  # newest version of this topic that was to be applied at once; 0: none


class Wants(NamedTuple):
    """A level, not a message in a queue: what a host should have. Any later one says all that this one says."""

    upto: int = 0  # whoever has taken all of these lacks no update up to this version
    updates: tuple[Wanted, ...] = ()  # in version order


class Start(NamedTuple):
    """Driver: make a host for this slot."""

    slot: int
    incarnation: int
    next_index: tuple[int, ...]  # where the episodes of its envs go on counting, by env


class Run(NamedTuple):
    """Driver: one command for all envs of a host, or to reset some. Sent again, it is the same command."""

    slot: int
    incarnation: int
    sequence: int  # 1, 2, 3, … for this incarnation; it acknowledges the report of the one before
    kind: Command
    number: int  # the fleet's number of the command; row t has number + t
    rows: int
    policy: int  # version of the policy that acts
    wants: Wants
    env_ids: tuple[int, ...] = ()  # reset: of which envs, as numbered in the fleet
    seeds: tuple[int | None, ...] = ()  # reset: one per env


class Tell(NamedTuple):
    """Driver: take what you lack of this."""

    slot: int
    incarnation: int
    wants: Wants


class Kill(NamedTuple):
    """Driver: this host was given up, whether it lives or not."""

    slot: int
    incarnation: int
    reason: str


Out = Start | Run | Tell | Kill


class Report(NamedTuple):
    """Host: what came of a command. Env ids, indices, orders and versions are the fleet's."""

    slot: int
    incarnation: int
    sequence: int
    number: int
    taken: dict[str, int]  # by topic, the newest version that its envs begin under
    events: tuple[tuple[int, tuple[Event, ...]], ...]  # (row, what happened there), rows ascending
    lengths: tuple[tuple[int, int, float], ...]  # (env, executed steps, return) of the episodes that run
    executed: int  # steps
    body: Any = None  # the columns of a chunk, or what a reset returned


class Answer(NamedTuple):
    """Host: it lives; what it has."""

    slot: int
    incarnation: int
    seen: int  # sequence of the newest command that it was given
    done: int  # sequence of the newest one whose report it has made
    taken: dict[str, int]
