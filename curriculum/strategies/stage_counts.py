"""What the staged strategy counts of one stage: windows, sequential statistics, lengths, totals."""
# pure: counts in, counts out

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from curriculum import rules
from curriculum.errors import StateError
from curriculum.rules import MIXING_OUTCOMES, RATIOS, WINDOW, Cusum, cusum, exact
from curriculum.stages import Stage
from curriculum.strategies.base import need
from curriculum.windows import Window

__all__ = ["RegressionTest", "StageCounts"]

_TOTALS = ("ended", "succeeded", "aborted", "passed_over", "late", "earlier_stay", "regressions")


@dataclass(slots=True)
class RegressionTest:
    """Whether a stage, in one stay, has fallen below its floor."""

    floor: Fraction | None
    window: Window = field(default_factory=Window)
    statistic: int = 0  # CUSUM of failures against T' = 1 - floor
    armed: bool = False
    test: Cusum | None = None

    def __post_init__(self) -> None:
        if self.floor is not None:
            self.test = cusum(1 - self.floor)

    def clear(self, *, armed: bool = False) -> None:
        """A new stay."""
        self.window.clear()
        self.statistic, self.armed = 0, armed

    def add(self, success: bool, patience: int) -> None:
        """Take in one outcome; arms once the stage was learned in this stay, or at n ≥ patience (4·M)."""
        self.window.add(success)
        if self.floor is None or self.test is None:
            return
        self.statistic = self.test.step(self.statistic, not success)
        if self.armed:
            return
        if rules.learned(self.window.successes, len(self.window), self.floor):
            self.armed = True
            self.statistic = 0  # failures from before it was learned are no evidence of forgetting
        elif self.window.n >= patience:
            self.armed = True

    def fails(self, sequential: bool) -> bool:
        """Armed, and below the floor by the test in force."""
        if self.floor is None or self.test is None or not self.armed:
            return False
        if sequential:
            return self.statistic >= self.test.limit
        return rules.regression(self.window.successes, len(self.window), self.window.n, self.floor)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"window": self.window.state(), "statistic": self.statistic, "armed": self.armed}

    def load(self, data: Any, where: str) -> None:
        """Take over what `as_dict` gave."""
        self.window.load(need(data, "window", list, where), f"{where}: window")
        self.statistic = need(data, "statistic", int, where)
        self.armed = need(data, "armed", bool, where)


class StageCounts:
    """Everything that is counted of one stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.threshold = exact(stage.threshold)
        self.test = cusum(self.threshold)
        self.window = Window()  # for advance: outcomes passed over are failures in it
        self.mixing = Window()  # for the mixing ratio: without them
        self.statistic = 0  # CUSUM of successes against the threshold
        floor = None if stage.floor is None else exact(stage.floor)
        self.regression = RegressionTest(floor)  # from this stage, or to it by probes
        self.band: int | None = None
        self.ratio = rules.BASE_RATIO
        self.lengths: deque[int] = deque(maxlen=WINDOW)
        self.passed = False  # it was once left by its own rule
        self.totals = dict.fromkeys(_TOTALS, 0)

    @property
    def factor(self) -> int:
        """What regressions from this stage have made of M and the cooldown: 1, 2, 4, at most 8."""
        return int(min(2 ** self.totals["regressions"], rules.BACKOFF_LIMIT))

    @property
    def min_episodes(self) -> int:
        """M, in force."""
        return self.stage.min_episodes * self.factor

    def begin_stay(self) -> None:
        """w, n and the statistics start empty; the ratio stays until there are five outcomes."""
        self.window.clear()
        self.mixing.clear()
        self.statistic = 0
        self.regression.clear()

    def add(self, success: bool, *, sequential: bool) -> None:
        """An outcome of this stage, for advance and mixing."""
        self.window.add(success)
        self.statistic = self.test.step(self.statistic, success)
        mixing = self.mixing
        mixing.add(success)
        if mixing.n < MIXING_OUTCOMES:
            return
        if sequential and mixing.n >= WINDOW and self.band is not None:
            self.band = rules.hysteresis_band(self.band, mixing.successes)
        else:
            self.band = rules.mixing_band(mixing.successes, len(mixing.outcomes))
        self.ratio = RATIOS[self.band]

    def add_passed_over(self) -> None:
        """An episode of this stage was passed over: a failure for advance, nothing for
        regression and mixing.
        """
        self.window.add(False)
        self.statistic = self.test.step(self.statistic, False)

    def figures(self) -> dict[str, Any]:
        """What a decision is taken on, as it is noted with it."""
        return {
            "stage": self.stage.name,
            "k": self.window.successes,
            "length": len(self.window),
            "n": self.window.n,
            "first_half": self.window.first_half,
            "statistic": self.statistic,
            "threshold": self.stage.threshold,
            "min_episodes": self.min_episodes,
            "passed_over": self.totals["passed_over"],
        }

    def mean_length(self) -> Fraction | None:
        """Mean length of the newest 50 admitted episodes; None with fewer than five."""
        known = len(self.lengths)
        return None if known < rules.MIXING_OUTCOMES else Fraction(sum(self.lengths), known)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "window": self.window.state(),
            "mixing": self.mixing.state(),
            "statistic": self.statistic,
            "guard": self.regression.as_dict(),
            "band": self.band,
            "ratio": self.ratio,
            "lengths": list(self.lengths),
            "passed": self.passed,
            "totals": dict(self.totals),
        }

    @classmethod
    def from_dict(cls, stage: Stage, data: Any, where: str) -> StageCounts:
        """What `as_dict` gave; StateError that names what is wrong."""
        counts = cls(stage)
        counts.window.load(need(data, "window", list, where), f"{where}: window")
        counts.mixing.load(need(data, "mixing", list, where), f"{where}: mixing")
        counts.statistic = need(data, "statistic", int, where)
        counts.regression.load(need(data, "guard", dict, where), f"{where}: guard")
        counts.band = need(data, "band", (int, type(None)), where)
        if counts.band is not None and not 0 <= counts.band < len(RATIOS):
            raise StateError(f"{where}: band: expected 0 to {len(RATIOS) - 1}, got {counts.band}")
        counts.ratio = float(need(data, "ratio", (float, int), where))
        lengths = need(data, "lengths", list, where)
        if not all(isinstance(length, int) for length in lengths):
            raise StateError(f"{where}: lengths: expected whole numbers, got {lengths!r:.60}")
        counts.lengths = deque(lengths, maxlen=WINDOW)
        counts.passed = need(data, "passed", bool, where)
        totals = need(data, "totals", dict, where)
        counts.totals = {key: need(totals, key, int, f"{where}: totals") for key in _TOTALS}
        return counts
