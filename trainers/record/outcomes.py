"""The newest outcomes of each stage, whatever the strategy: what is reported, and what *solved* is decided on."""
# pure: finished episodes come in, counts go out

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import curriculum as cu

__all__ = ["Outcomes"]

EVER = "curriculum_success_ever"  # of a final info: what a CurriculumEnv says of all steps
SILENT = 100  # episodes
NEWEST = 50  # outcomes kept per stage, as the curriculum's own windows do
STRAGGLER = 20  # × num_envs: outcomes that wait for an older episode before it is passed over


class Outcomes:
    """Successes and failures by the stage that an episode was stamped with; aborted episodes do not count.

    `in_order`: outcomes count in the curriculum's start order: each once all older episodes of its stage have ended,
    else quick failures or quick successes overtake the rest. An episode that others have waited for too long is passed
    over, and counts when it ends.
    """

    def __init__(self, success: Callable[[Any], bool], num_envs: int, *, in_order: bool = True) -> None:
        self.silent: int | None = 0  # episodes that did not say whether they succeeded; None: one has
        self._success, self._in_order, self._patience = success, in_order, STRAGGLER * num_envs
        self._windows: dict[str, deque[bool]] = {}
        self._ended: dict[str, int] = {}
        self._stages: dict[str, int] = {}  # numbered as the order wants them
        self._order = cu.StartOrder()
        self._carried: list[tuple[str, bool]] = []  # what waited in the checkpoint that was loaded

    def follow(self, batch: Any) -> None:
        """Take in an `EventBatch`: what began and ended, and what other episodes still have to wait for."""
        for event in batch.events:
            stage = str(event.task["stage"])
            entry = cu.Entry(self._stages.setdefault(stage, len(self._stages)), "", 0)
            if not hasattr(event, "outcome"):
                if self._in_order:
                    self._order.start(event.order, entry)
                continue
            success = None if event.outcome == "aborted" else bool(self._success(event))
            if success is not None:
                self._ended[stage] = self.ended(stage) + 1
            if self.silent is not None:
                self.silent = None if self._said(event) else self.silent + (success is not None)
            if not self._in_order or not self._order.end(event.order, entry._replace(success=success)):
                self._count(stage, success)
        if self._in_order:
            names = list(self._stages)
            for entry, passed_over in self._order.release(batch.watermark, self._patience, batch.beginning):
                if not passed_over:
                    self._count(names[entry.stage], entry.success)

    def _said(self, episode: Any) -> bool:
        """Whether the episode says if it succeeded; any of its steps may, where any counts."""
        info = episode.final_info
        any_step = self._success is cu.ever_success and info.get(EVER) is not None
        return any_step or cu.said_success(info) is not None

    def _count(self, stage: str, success: bool | None) -> None:
        if success is not None:
            self._windows.setdefault(stage, deque(maxlen=NEWEST)).append(success)

    @property
    def silence(self) -> bool:
        """Whether so many episodes have ended, and not one said whether it succeeded, that it is worth a warning."""
        return self.silent is not None and self.silent >= SILENT

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
            "silent": self.silent,
            "waiting": [*map(list, self._carried), *map(list, self._waiting())],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be as when `state_dict` was asked; `restart()` goes on from there."""
        self._windows = {stage: deque(window, NEWEST) for stage, window in state["windows"].items()}
        self._ended = dict(state.get("ended", {}))  # not in the oldest checkpoints
        self.silent = state.get("silent", 0)  # nor this
        self._carried = [(stage, success) for stage, success in state["waiting"]]

    def restart(self) -> None:
        """Other envs, whose episodes are numbered anew: nothing is left that an outcome could wait for."""
        waiting = [*self._carried, *self._waiting()]
        self._order, self._carried = cu.StartOrder(), []
        for stage, success in waiting:
            self._count(stage, success)

    def _waiting(self) -> list[tuple[str, bool]]:
        """(stage, success) of what waits for an older episode to end, oldest first."""
        names = list(self._stages)
        rows = ((names[stage], success) for _, stage, _, _, success, _ in self._order.state()["waiting"])
        return [(stage, success) for stage, success in rows if success is not None]
