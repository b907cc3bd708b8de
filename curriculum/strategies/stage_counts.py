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
from curriculum.windows import ReturnWindow, Window

__all__ = ["RegressionTest", "ReturnRegressionTest", "StageCounts"]

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

    def add(self, success: bool, value: int, patience: int) -> None:
        """Take in one outcome; arms once the stage was learned in this stay, or at n ≥ patience (4·M).

        `value` is for tests of returns.
        """
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


class ReturnRegressionTest(RegressionTest):
    """Whether the mean return of a stage, in one stay, has fallen below its floor.

    Armed once the mean of 50 was half way from the floor to the threshold, or at n ≥ 4·M.
    """

    def __init__(self, floor: Fraction, threshold: Fraction) -> None:
        super().__init__(None)
        self.least, self.learned = floor, (floor + threshold) / 2
        self.returns = ReturnWindow()

    def clear(self, *, armed: bool = False) -> None:
        super().clear(armed=armed)
        self.returns.clear()

    def add(self, success: bool, value: int, patience: int) -> None:
        super().add(success, value, patience)
        returns = self.returns
        returns.add(value)
        full = len(returns) == WINDOW and rules.mean_reached(
            returns.total, WINDOW, returns.n, self.learned, 1
        )
        self.armed = self.armed or full or returns.n >= patience

    def fails(self, sequential: bool) -> bool:
        returns = self.returns
        return self.armed and rules.mean_below(returns.total, len(returns), returns.n, self.least)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "returns": self.returns.state()}

    def load(self, data: Any, where: str) -> None:
        super().load(data, where)
        self.returns.load(need(data, "returns", list, where), f"{where}: returns")


class StageCounts:
    """Everything that is counted of one stage."""

    def __init__(self, stage: Stage, steps_wanted: int = 0) -> None:
        self.stage = stage
        self.measure = stage.measure
        self.threshold = exact(stage.threshold)
        # of success; where another measure moves the stage on, no rule asks it
        self.test = cusum(self.threshold) if self.measure == "success" else cusum(exact(0.5))
        self.returns = ReturnWindow()  # measure="return": of the outcomes in `window`
        self.steps, self.steps_wanted = 0, steps_wanted  # measure="steps": executed in this stay
        self.window = Window()  # for advance: outcomes passed over are failures in it
        self.mixing = Window()  # for the mixing ratio: without them
        self.statistic = 0  # CUSUM of successes against the threshold
        floor = None if stage.floor is None else exact(stage.floor)
        self.regression = (  # from this stage, or to it by probes
            ReturnRegressionTest(floor, self.threshold)
            if self.measure == "return" and floor is not None
            else RegressionTest(floor)
        )
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
        self.returns.clear()
        self.steps = 0
        self.regression.clear()

    def add(self, success: bool, value: int, *, sequential: bool) -> None:
        """An outcome of this stage, for advance and mixing. `value`: its return in billionths."""
        self.window.add(success)
        if self.measure == "return":
            self.returns.add(value)
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
        regression and mixing. Of returns: the lowest in the window, for advance.
        """
        if self.returns.returns:
            self.returns.add(min(self.returns.returns))
        self.window.add(False)
        self.statistic = self.test.step(self.statistic, False)

    @property
    def value(self) -> float | None:
        """What the stage's measure is now: success rate, mean return, steps in this stay; None without outcomes."""
        if self.measure == "steps":
            return self.steps
        if self.measure == "return":
            return (
                float(Fraction(self.returns.total, rules.PARTS * len(self.returns))) if self.returns else None
            )
        return self.window.successes / len(self.window) if len(self.window) else None

    def figures(self) -> dict[str, Any]:
        """What a decision is taken on, as it is noted with it."""
        more = {} if self.measure == "success" else {"measure": self.measure, "value": self.value}
        if self.measure == "steps":
            more["steps"] = self.steps_wanted
        return {
            **more,
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
            **({"returns": self.returns.state()} if self.measure == "return" else {}),
            **({"steps": self.steps} if self.measure == "steps" else {}),
        }

    @classmethod
    def from_dict(cls, stage: Stage, data: Any, where: str, steps_wanted: int = 0) -> StageCounts:
        """What `as_dict` gave; StateError that names what is wrong."""
        counts = cls(stage, steps_wanted)
        if stage.measure == "return":
            counts.returns.load(need(data, "returns", list, where), f"{where}: returns")
        elif stage.measure == "steps":
            counts.steps = need(data, "steps", int, where)
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
