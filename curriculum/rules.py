"""Advance, regress, mix: the rules as functions of counts, in exact integer arithmetic."""
# pure: no state, no clock; counts come in as arguments, verdicts go out as return values

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

__all__ = [
    "BASE_RATIO",
    "CHECK_EVERY",
    "RATIOS",
    "WINDOW",
    "Cusum",
    "cusum",
    "early",
    "exact",
    "hysteresis_band",
    "learned",
    "mean_below",
    "mean_reached",
    "mixing_band",
    "parts",
    "regression",
    "standard",
    "steps_draw",
    "trend",
    "trend_bonus",
]

WINDOW = 50  # outcomes of one stage that a success rate looks back on
CHECK_EVERY = 10  # ended episodes between two checks
EARLY_OUTCOMES = 30
TREND_OUTCOMES = 20
MIXING_OUTCOMES = 5  # with fewer, a stage keeps its last ratio
REGRESSION_OUTCOMES = 100
COOLDOWN = 100  # admitted outcomes after any move without a regression
BACKOFF_LIMIT = 8  # each regression doubles M and the cooldown of the next stay, up to this factor
BASE_RATIO = 0.20
RATIOS = (0.40, 0.25, 0.15, 0.05)  # by band: success rate below .50, below .65, below .80, the rest
EDGES = (25, 33, 40)  # the bands' lower ends as counts of 50: .50, .65 (32.5, so 33) and .80
TREND_LEAST = Fraction(15, 100)
TREND_SLACK = Fraction(5, 100)
PARTS = 10**9  # a return is a whole number of these parts of one: so eight rewards of .1 are .8
INDIFFERENCE = Fraction(10, 100)  # p0 = T - .10
LEARNED_MARGIN = Fraction(10, 100)


def exact(value: float | Fraction) -> Fraction:
    """The decimal that was written: exact(.65) is 13/20, not the double nearest to it."""
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))


def standard(k: int, length: int, n: int, threshold: Fraction, min_episodes: int) -> bool:
    """`r ≥ T and n ≥ M`, with r = k/length, 0 if the window is empty."""
    return n >= min_episodes and k * threshold.denominator >= threshold.numerator * length and length > 0


def early(k: int, length: int, n: int) -> bool:
    """`n ≥ 30 and r ≥ .90`."""
    return n >= EARLY_OUTCOMES and 10 * k >= 9 * length and length > 0


def trend(k: int, length: int, first_k: int) -> Fraction:
    """mean(second half) - mean(first half); halves split at length//2 in time order; `first_k` successes in
    the first.
    """
    half = length // 2
    if half == 0:
        return Fraction(0)
    return Fraction(k - first_k, length - half) - Fraction(first_k, half)


def trend_bonus(k: int, length: int, n: int, first_k: int, threshold: Fraction, min_episodes: int) -> bool:
    """`len(w) ≥ 20 and trend > .15 and n ≥ .8·M and r ≥ T - .05`."""
    if length < TREND_OUTCOMES or 5 * n < 4 * min_episodes:
        return False
    return trend(k, length, first_k) > TREND_LEAST and Fraction(k, length) >= threshold - TREND_SLACK


def mixing_band(k: int, length: int) -> int:
    """Index into RATIOS: `r < .50`, `r < .65`, `r < .80`, the rest."""
    if 2 * k < length or length == 0:
        return 0
    if 20 * k < 13 * length:
        return 1
    return 2 if 5 * k < 4 * length else 3


def hysteresis_band(band: int, k: int) -> int:
    """The band after a full window of 50 with k successes: left upward at edge + 2, downward
    below edge - 2.
    """
    while band < len(EDGES) and k >= EDGES[band] + 2:
        band += 1
    while band > 0 and k < EDGES[band - 1] - 2:
        band -= 1
    return band


@dataclass(frozen=True, slots=True)
class Cusum:
    """Page's one-sided CUSUM (1954) of `p ≥ T` against `p ≤ p0 = max(T - .10, T/2)`, in
    thousandths of a nat.
    """

    up: int  # score of a success
    down: int | None  # what a failure takes away; None: T = 1, a failure sets the statistic to 0
    limit: int  # h

    def step(self, statistic: int, success: bool) -> int:
        """S ← max(0, S + score)."""
        if success:
            return statistic + self.up
        return 0 if self.down is None else max(0, statistic - self.down)


@lru_cache(maxsize=256)
def cusum(threshold: Fraction) -> Cusum:
    """The test for threshold T: scores ln(T/p0) and ln((1-p0)/(1-T)); h = 6500, 8000 for T > .95."""
    p0 = max(threshold - INDIFFERENCE, threshold / 2)
    up = round(1000 * math.log(threshold / p0))
    down = None if threshold == 1 else round(1000 * math.log((1 - p0) / (1 - threshold)))
    return Cusum(up, down, 8000 if threshold > Fraction(95, 100) else 6500)


def regression(k: int, length: int, n: int, floor: Fraction) -> bool:
    """The reference rules' failure test: `n ≥ 100, len(w) = 50, r < floor`."""
    return n >= REGRESSION_OUTCOMES and length == WINDOW and k * floor.denominator < floor.numerator * length


def learned(k: int, length: int, floor: Fraction) -> bool:
    """A stage had been learned, so that falling below the floor means something: `len(w) = 50 and r ≥ floor +
    .10`.
    """
    return length == WINDOW and Fraction(k, length) >= floor + LEARNED_MARGIN


def parts(value: float) -> int:
    """A return in billionths, rounded: what a mean is exact in."""
    return round(exact(value) * PARTS)


def mean_reached(total: int, length: int, n: int, threshold: Fraction, min_episodes: int) -> bool:
    """`mean ≥ T and n ≥ M`; `total`: sum of `length` returns in billionths."""
    return n >= min_episodes and length > 0 and total >= threshold * PARTS * length


def mean_below(total: int, length: int, n: int, floor: Fraction) -> bool:
    """The failure test of returns: `n ≥ 100, len(w) = 50, mean < floor`."""
    return n >= REGRESSION_OUTCOMES and length == WINDOW and total < floor * PARTS * length


def steps_draw(ratio: float, current_length: Fraction, previous_length: Fraction) -> float:
    """`q = ρ·Lc / (ρ·Lc + (1-ρ)·Lp)`, rounded to .01: drawn with q, the share of *steps* is ρ."""
    rho = exact(ratio)
    weight = rho * current_length
    total = weight + (1 - rho) * previous_length
    return ratio if total == 0 else round(100 * weight / total) / 100
