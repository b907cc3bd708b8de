"""The newest outcomes of each stage, whatever the strategy: what is reported, and what *solved* is decided on."""
# pure: finished episodes come in, counts go out

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Outcomes"]

NEWEST = 50  # outcomes kept per stage, as the curriculum's own windows do
STRAGGLER = 20  # × num_envs: outcomes that wait for an older episode before it is passed over


class Outcomes:
    """Successes and failures by the stage that an episode was stamped with; aborted episodes do not count.

    `in_order`: outcomes count in the order in which their episodes started, each once all older episodes have ended:
    else quick failures or quick successes overtake the rest. An episode that others have waited for too long is
    passed over, and counts when it ends.
    """

    def __init__(self, success: Callable[[Any], bool], num_envs: int, *, in_order: bool = True) -> None:
        self._success, self._in_order, self._limit = success, in_order, STRAGGLER * num_envs
        self._windows: dict[str, deque[bool]] = {}
        self._waiting: list[tuple[int, str, bool]] = []  # a heap by order

    def batch(self, episodes: Iterable[Any], watermark: int) -> None:
        """Take in the episodes of one hand-out, and the order below which every episode has ended."""
        for episode in episodes:
            if episode.outcome != "aborted":
                outcome = (episode.order, str(episode.task["stage"]), bool(self._success(episode)))
                heapq.heappush(self._waiting, outcome)
        waiting = self._waiting
        while waiting and (not self._in_order or waiting[0][0] < watermark or len(waiting) > self._limit):
            _, stage, success = heapq.heappop(waiting)
            self._window(stage).append(success)

    def _window(self, stage: str) -> deque[bool]:
        return self._windows.setdefault(stage, deque(maxlen=NEWEST))

    def newest(self, stage: str) -> Sequence[bool]:
        """The newest outcomes of a stage, at most 50, oldest first."""
        return tuple(self._windows.get(stage, ()))

    def reached(self, stage: str, rate: float, window: int) -> bool:
        """Whether the newest `window` outcomes of a stage are there, and at least that share are successes."""
        newest = self.newest(stage)[-window:]
        return len(newest) == window and sum(newest) >= rate * window

    def state_dict(self) -> dict[str, Any]:
        """Plain data, as a checkpoint keeps it."""
        return {
            "windows": {stage: list(window) for stage, window in self._windows.items()},
            "waiting": [list(outcome[1:]) for outcome in sorted(self._waiting)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; nothing is left that an outcome could wait for."""
        self._windows = {stage: deque(window, NEWEST) for stage, window in state["windows"].items()}
        self._waiting = []
        for stage, success in state["waiting"]:
            self._window(stage).append(success)
