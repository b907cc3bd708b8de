"""Everything that `Staged` remembers, as plain fields, and as plain data in a checkpoint and a journal."""
# pure: fields in, plain data out and back; nothing is decided here

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curriculum.errors import StateError
from curriculum.stages import StagePlan
from curriculum.start_order import StartOrder
from curriculum.strategies.base import need
from curriculum.strategies.stage_counts import StageCounts

__all__ = ["StagedState"]

_COUNTS = ("num_envs", "stay_admitted", "total", "last_check", "ended_now")
_FLAGS = ("stay_by_regression", "moved", "stalled", "solved", "held")
_WHERE = "Staged state"


@dataclass(slots=True)
class StagedState:
    """The fields; `Staged` folds episodes into them, and its progress table reads them."""

    stages: list[StageCounts]
    order: StartOrder
    num_envs: int = 1
    current: int = 0  # place of the current stage
    stay_version: int | None = None  # the version that began the stay; None: not published yet
    stay_by_regression: bool = False
    stay_admitted: int = 0  # outcomes of any stage since the last move
    moved: bool = False  # the stay was begun by a move, not by the start of the run
    stalled: bool = False
    solved: bool = False
    held: bool = False
    total: int = 0  # ended episodes, aborted ones not counted
    last_check: int = 0  # `total` at the last check
    ended_now: int = 0  # episodes that ended since the last settle, aborted ones not counted
    overrides: dict[int, float] = field(default_factory=dict)  # an operator's mixing ratios, by place
    ratios: list[float] = field(default_factory=list)  # in force, before overrides
    last_verdict: dict[str, Any] | None = None

    @classmethod
    def begin(cls, plan: StagePlan, order: StartOrder, steps: Sequence[int]) -> StagedState:
        """The state of a run that begins. `steps`: those that a stage wants, 0 where it measures something else."""
        return cls([StageCounts(stage, wanted) for stage, wanted in zip(plan, steps)], order)

    @property
    def here(self) -> StageCounts:
        """The counts of the current stage."""
        return self.stages[self.current]

    def in_stay(self, version: int) -> bool:
        """Whether an episode that began under this version belongs to the current stay."""
        return self.stay_version is None or version >= self.stay_version

    def as_dict(self, window: str) -> dict[str, Any]:
        """Plain data, with a schema version."""
        names = [counts.stage.name for counts in self.stages]
        return {
            "schema": 1,
            "strategy": "Staged",
            "stages": names,
            "window": window,
            "current": self.current,
            "stay_version": self.stay_version,
            **{name: getattr(self, name) for name in (*_COUNTS, *_FLAGS)},
            "overrides": {names[place]: ratio for place, ratio in self.overrides.items()},
            "ratios": list(self.ratios),
            "last_verdict": self.last_verdict,
            "order": self.order.state(),
            "tallies": [counts.as_dict() for counts in self.stages],
        }

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        plan: StagePlan,
        window: str,
        order: StartOrder,
        steps: Sequence[int],
    ) -> StagedState:
        """What `as_dict` gave, with `order`, which is empty, filled from it; StateError that names what does not fit
        this plan and window.
        """
        schema, strategy = need(data, "schema", int, _WHERE), need(data, "strategy", str, _WHERE)
        if (schema, strategy) != (1, "Staged"):
            raise StateError(f"{_WHERE}: expected schema 1 of Staged, got {schema} of {strategy}")
        for key, mine in (("stages", list(plan.names)), ("window", window)):
            if need(data, key, (list, str), _WHERE) != mine:
                raise StateError(f"{_WHERE}: {key}: expected {mine!r}, got {data[key]!r}")
        saved = need(data, "tallies", list, _WHERE)
        if len(saved) != len(plan):
            raise StateError(f"{_WHERE}: tallies: expected {len(plan)}, got {len(saved)}")
        state = cls(
            [
                StageCounts.from_dict(stage, counts, f"{_WHERE}: stage {stage.name!r}", wanted)
                for stage, counts, wanted in zip(plan, saved, steps)
            ],
            order,
        )
        state.order.load(need(data, "order", dict, _WHERE), len(plan), f"{_WHERE}: order")
        state.current = need(data, "current", int, _WHERE)
        if not 0 <= state.current < len(plan):
            raise StateError(f"{_WHERE}: current: expected 0 to {len(plan) - 1}, got {state.current}")
        state.stay_version = need(data, "stay_version", (int, type(None)), _WHERE)
        for names, kind in ((_COUNTS, int), (_FLAGS, bool)):
            for name in names:
                setattr(state, name, need(data, name, kind, _WHERE))
        overrides = need(data, "overrides", dict, _WHERE)
        ratios = need(data, "ratios", list, _WHERE)
        if len(ratios) != len(plan) or set(overrides) - set(plan.names):
            raise StateError(f"{_WHERE}: ratios and overrides: expected those of {', '.join(plan.names)}")
        state.ratios = [float(ratio) for ratio in ratios]
        state.overrides = {plan.index(name): float(ratio) for name, ratio in overrides.items()}
        state.last_verdict = need(data, "last_verdict", (dict, type(None)), _WHERE)
        return state
