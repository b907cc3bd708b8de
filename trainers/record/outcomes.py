"""The newest outcomes of each stage, whatever the strategy: what is reported, and what *solved* is decided on."""
# pure: finished episodes come in, counts go out

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Outcomes"]

SAID = {"is_success", "success"}  # keys of a final info
NEWEST = 50  # outcomes kept per stage, as the curriculum's own windows do
STRAGGLER = 20  # × num_envs: outcomes that wait for an older episode before it is passed over


class Outcomes:
    """Successes and failures by the stage that an episode was stamped with; aborted episodes do not count.

    `in_order`: outcomes count in the order in which their episodes started, each once all older episodes have ended:
    else quick failures or quick successes overtake the rest. An episode that others have waited for too long is
    passed over, and counts when it ends.
    """

    def __init__(self, success: Callable[[Any], bool], num_envs: int, *, in_order: bool = True) -> None:
        self.silent: int | None = 0  # episodes that did not say whether they succeeded; None: one has
        self._success, self._in_order, self._limit = success, in_order, STRAGGLER * num_envs
        self._windows: dict[str, deque[bool]] = {}
        self._ended: dict[str, int] = {}
        self._waiting: list[tuple[int, str, bool | None]] = []  # a heap by order; None: aborted
        # where someone was passed over: all older episodes have ended, or were passed over, too
        self._next = -1

    def batch(self, episodes: Iterable[Any], watermark: int) -> None:
        """Take in the episodes of one hand-out, and the order below which every episode has ended."""
        for episode in episodes:
            success = None if episode.outcome == "aborted" else bool(self._success(episode))
            stage = str(episode.task["stage"])
            if success is not None:
                self._ended[stage] = self.ended(stage) + 1
            if self.silent is not None:
                info = episode.final_info
                said = SAID & info.keys() or info.get("curriculum_success_ever")  # by CurriculumEnv
                self.silent = None if said else self.silent + (success is not None)
            heapq.heappush(self._waiting, (episode.order, stage, success))
        waiting = self._waiting
        while waiting:
            order = waiting[0][0]
            waits = self._in_order and order >= watermark and order > self._next
            if waits and len(waiting) <= self._limit:
                break
            if waits or order == self._next:
                # who still runs below is passed over for good: none waits for it again
                self._next = order + 1
            self._count(*heapq.heappop(waiting)[1:])

    def _count(self, stage: str, success: bool | None) -> None:
        if success is not None:
            self._window(stage).append(success)

    def _window(self, stage: str) -> deque[bool]:
        return self._windows.setdefault(stage, deque(maxlen=NEWEST))

    def newest(self, stage: str) -> Sequence[bool]:
        """The newest outcomes of a stage, at most 50, oldest first."""
        return tuple(self._windows.get(stage, ()))

    def ended(self, stage: str) -> int:
        """Episodes of a stage that ended, aborted ones not counted."""
        return self._ended.get(stage, 0)

    def reached(self, stage: str, rate: float, window: int) -> bool:
        """Whether the newest `window` outcomes of a stage are there, and at least that share are successes."""
        newest = self.newest(stage)[-window:]
        return len(newest) == window and sum(newest) >= rate * window

    def state_dict(self) -> dict[str, Any]:
        """Plain data, as a checkpoint keeps it."""
        return {
            "windows": {stage: list(window) for stage, window in self._windows.items()},
            "ended": dict(self._ended),
            "waiting": [
                [stage, success] for _, stage, success in sorted(self._waiting) if success is not None
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be as when `state_dict` was asked; `restart()` goes on from there."""
        self._windows = {stage: deque(window, NEWEST) for stage, window in state["windows"].items()}
        self._ended = dict(state.get("ended", {}))  # not in the oldest checkpoints
        self._waiting = [(order, *outcome) for order, outcome in enumerate(state["waiting"])]

    def restart(self) -> None:
        """Other envs, whose episodes are numbered anew: nothing is left that an outcome could wait for."""
        for _, stage, success in sorted(self._waiting):
            self._count(stage, success)
        self._waiting, self._next = [], -1
