"""The host's side of the conversation: which command is new, which update is lacking, and the fleet's numbers."""
# pure: no Ray, no loop, no clock

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..core.batch import EpisodeStarted, EventBatch
from .messages import Answer, Event, Report, Run, Wants

__all__ = ["Due", "HostState", "Refused"]


class Refused(Exception):
    """A command for another incarnation, or one whose report was acknowledged already."""


class Due(NamedTuple):
    """An update that this host lacks."""

    topic: str
    version: int
    now: bool


class HostState:
    """One incarnation of one host.

    `first_env`: the fleet's id of its env 0; `num_envs`: how many it has; `total_envs`: how many the fleet has;
    `next_index`: where their episodes go on counting.
    """

    def __init__(
        self,
        slot: int,
        incarnation: int,
        first_env: int,
        num_envs: int,
        total_envs: int,
        next_index: Iterable[int],
    ) -> None:
        self.slot, self.incarnation, self.first_env = slot, incarnation, first_env
        self.taken: dict[str, int] = {}
        self.versions = [0]  # the fleet's, by the vec env's own
        self.policy = 0  # version that acts
        self._num_envs, self._total_envs = num_envs, total_envs
        self._index = tuple(next_index)
        self._orders = [0] * num_envs  # of each env's newest episode
        self._seen = self._done = 0
        self._kept: Report | None = None  # until the next command acknowledges it
        self._numbers = (0, 0)  # the newest command's number: the fleet's, and the vec env's own
        self._next_number = 0  # the vec env's own

    # -- commands --------------------------------------------------------------------------------------------------

    def accept(self, run: Run) -> Literal["new", "under way"] | Report:
        """Whether a command is new, being done, or done: then its report once more. Raises Refused."""
        if run.incarnation != self.incarnation:
            raise Refused(f"for incarnation {run.incarnation}; this is {self.incarnation}")
        if run.sequence < self._seen:
            raise Refused(f"command {run.sequence} was acknowledged; the newest is {self._seen}")
        if run.sequence == self._seen:
            return "under way" if self._kept is None else self._kept
        self._seen, self._kept = run.sequence, None
        self._numbers = (run.number, self._next_number)
        self._next_number += run.rows
        return "new"

    def done(self, report: Report) -> Report:
        """Keep the report of the command under way."""
        self._done, self._kept = report.sequence, report
        return report

    def answer(self) -> Answer:
        """What a ping or an update is answered with."""
        return Answer(self.slot, self.incarnation, self._seen, self._done, dict(self.taken))

    # -- updates ---------------------------------------------------------------------------------------------------

    def lacking(self, wants: Wants) -> list[Due]:
        """What of this it has not taken, in version order."""
        return [
            Due(topic, version, now > self.taken.get(topic, 0))
            for topic, version, now in wants.updates
            if version > self.taken.get(topic, 0)
        ]

    def took(self, due: Due, wants: Wants) -> None:
        """The vec env was told this update, in the order of `lacking(wants)`."""
        self.taken[due.topic] = due.version
        complete = not self.lacking(wants)
        self.versions.append(max(self.versions[-1], wants.upto) if complete else self.versions[-1])

    # -- events ----------------------------------------------------------------------------------------------------

    def events(self, batches: Iterable[EventBatch], first: int) -> tuple[tuple[int, tuple[Event, ...]], ...]:
        """The events of the newest command by row, in the fleet's numbers; `first`: number of its first batch."""
        found: dict[int, list[Event]] = {}
        for batch in batches:
            row = max(0, batch.number - first)
            found.setdefault(row, []).extend(map(self._translated, batch.events))
        return tuple((row, tuple(found[row])) for row in sorted(found))

    def _translated(self, event: Event) -> Event:
        env = event.env_id
        index, version = self._index[env] + event.index, self.versions[event.version]
        if isinstance(event, EpisodeStarted):
            ours, own = self._numbers
            number = ours + max(0, event.order // self._num_envs - own)
            self._orders[env] = number * self._total_envs + self.first_env + env
            return event._replace(
                env_id=self.first_env + env, index=index, order=self._orders[env], version=version
            )
        return event._replace(
            env_id=self.first_env + env, index=index, order=self._orders[env], version=version
        )
