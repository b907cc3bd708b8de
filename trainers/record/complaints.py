"""What a run warns of, as it comes: each thing once, of each kind a few."""
# pure: strings in a list, and a log line for each

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from trainers.learn.masks import ignored, lookalikes, misplaced, sizes_of
from trainers.record.outcomes import SILENT
from trainers.record.summary import RunTally

__all__ = ["Complaints", "warn"]

log = logging.getLogger("trainers")
FEW = 3  # levels
MUTE = (
    f"none of the first {SILENT} episodes said whether it succeeded, so all count as failures: the last step's info "
    "needs is_success (or success), or the Job a success=…"
)


def warn(warned: list[str], text: str) -> None:
    """Note what went wrong without ending the run, and log it."""
    warned.append(text)
    log.warning(text)


class Complaints:
    """What goes wrong in a run without ending it; `warned` has all of it. `statistics`: of the run's vec env."""

    def __init__(self, warned: list[str], tally: RunTally, statistics: Callable[[], Any]) -> None:
        self.warned, self._tally, self._statistics = warned, tally, statistics

    def say(self, text: str) -> None:
        """In any case."""
        warn(self.warned, text)

    def once(self, text: str) -> None:
        """Unless it has been said."""
        if text not in self.warned:
            self.say(text)

    def of_reset(self, infos: Mapping[str, Any]) -> None:
        """Count what went wrong in a reset of all envs."""
        self._of_levels(self._tally.errors.resets(infos))
        self._tally.losses.count(self._statistics(), {})

    def of(self, batch: Any, *, masked: bool) -> None:
        """Count what went wrong in a `Batch` or a `Chunk`. Raises `TooManyEnvErrors`."""
        self._of_levels(self._tally.batch(batch))
        if lost := self._tally.losses.batch(batch):
            for text in self._tally.losses.count(self._statistics(), lost):
                self.say(text)
        if batch.infos and not masked:
            self._of_masks(batch.infos)

    def of_places(self, space: gym.Space[Any], infos: Mapping[str, Any], actions: gym.Space[Any]) -> None:
        """What looks like masks in the observation space and the first infos, where nobody looks for them."""
        for place in (*lookalikes(space, sizes_of(actions)), *misplaced(infos)):
            self.say(ignored(place))

    def of_silence(self) -> None:
        """No episode says whether it succeeded."""
        self.once(MUTE)

    def _of_levels(self, first: list[str]) -> None:
        """Levels whose first error of their env this is; the first few are named as they come."""
        for text in first:
            if (known := len(self._tally.errors.total)) <= FEW:
                self.say(f"an env raised, its episode is aborted: {text}")
            elif known == FEW + 1:
                self.say("envs raised on more levels: metrics.jsonl and the summary name them")

    def _of_masks(self, infos: Any) -> None:
        """Masks in the infos, where the first infos had none."""
        named = infos if isinstance(infos, Mapping) else {key: None for _, _, info in infos for key in info}
        for place in misplaced(named):
            self.once(ignored(place))
