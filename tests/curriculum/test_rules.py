"""The rules at their boundaries, in exact arithmetic, and where a float implementation would go wrong."""
# pure: tables, hypothesis and slow twins

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import rules
from curriculum.rules import cusum, exact

F = Fraction


@pytest.mark.parametrize(
    ("k", "length", "n", "threshold", "minimum", "met"),
    [
        (30, 50, 50, 0.60, 50, True),
        (29, 50, 50, 0.60, 50, False),
        (30, 50, 49, 0.60, 50, False),
        (13, 20, 60, 0.65, 60, True),  # exactly .65
        (35, 50, 80, 0.70, 80, True),
        (0, 0, 0, 0.60, 1, False),
        (50, 50, 50, 1.0, 50, True),
        (49, 50, 500, 1.0, 50, False),
    ],
)
def test_standard(k: int, length: int, n: int, threshold: float, minimum: int, met: bool) -> None:
    assert rules.standard(k, length, n, exact(threshold), minimum) is met


@pytest.mark.parametrize(
    ("k", "length", "n", "met"),
    [(27, 30, 30, True), (26, 30, 30, False), (29, 29, 29, False), (45, 50, 400, True), (44, 50, 400, False)],
)
def test_early(k: int, length: int, n: int, met: bool) -> None:
    assert rules.early(k, length, n) is met


@pytest.mark.parametrize(
    ("k", "length", "ratio"),
    [
        (0, 1, 0.40),
        (24, 50, 0.40),
        (25, 50, 0.25),  # exactly .50
        (32, 50, 0.25),
        (13, 20, 0.15),  # exactly .65
        (33, 50, 0.15),
        (39, 50, 0.15),
        (40, 50, 0.05),  # exactly .80
        (50, 50, 0.05),
        (12, 30, 0.40),
    ],
)
def test_mixing_ratio(k: int, length: int, ratio: float) -> None:
    assert rules.RATIOS[rules.mixing_band(k, length)] == ratio


# (length, successes in the first half, in the second): the gain is exactly .15, so not more than .15, but in
# floats
# it is .15000000000000002 or the like. These are all pairs of 20 to 50 outcomes where floats go wrong.
FLOAT_GAIN = [(31, 9, 12), (41, 17, 21), (49, 6, 10)]
FLOAT_GAIN += [(40, first, first + 3) for first in (1, 5, 6, 7, 8, 10, 12, 13, 14, 15, 17)]

# (T, length, successes): r is exactly T - .05, so enough, but in floats T - .05 comes out above it. All pairs
# for
# thresholds of two decimals from .20.
FLOAT_SLACK = [(0.20, 20, 3), (0.20, 40, 6), (0.27, 50, 11), (0.40, 20, 7), (0.40, 40, 14), (0.53, 25, 12)]
FLOAT_SLACK += [(0.53, 50, 24)]


def test_the_gain_is_exact_where_floats_are_not() -> None:
    wrong = []
    for length in range(20, 51):
        half = length // 2
        for first in range(half + 1):
            for second in range(length - half + 1):
                above = rules.trend(first + second, length, first) > rules.TREND_LEAST
                assert above == (
                    100 * (second * half - first * (length - half)) > 15 * half * (length - half)
                )
                if above != (second / (length - half) - first / half > 0.15):
                    wrong.append((length, first, second))
                    assert not rules.trend_bonus(first + second, length, 1000, first, F(1, 20), 50)
    assert sorted(wrong) == sorted(FLOAT_GAIN)


def test_the_slack_is_exact_where_floats_are_not() -> None:
    wrong = []
    for threshold in (hundredths / 100 for hundredths in range(20, 101)):
        for length in range(20, 51):
            for k in range(length + 1):
                # nothing but successes in the second half, as far as they go: the gain is never what is
                # missing
                first = max(0, k - (length - length // 2))
                if rules.trend(k, length, first) <= rules.TREND_LEAST:
                    continue
                met = rules.trend_bonus(k, length, 1000, first, exact(threshold), 50)
                if met != (k / length >= threshold - 0.05):
                    assert met
                    wrong.append((threshold, length, k))
    assert wrong == FLOAT_SLACK


@pytest.mark.parametrize(
    ("k", "length", "first", "n", "minimum", "met"),
    [
        (14, 20, 4, 48, 60, True),  # n = .8·M
        (14, 20, 4, 47, 60, False),
        (13, 19, 3, 60, 60, False),  # 20 outcomes are needed
        (14, 20, 7, 60, 60, False),  # no trend
        (11, 20, 2, 60, 60, False),  # r = .55 < .60
        (12, 20, 2, 60, 60, True),  # r = T - .05
    ],
)
def test_trend_bonus(k: int, length: int, first: int, n: int, minimum: int, met: bool) -> None:
    assert rules.trend_bonus(k, length, n, first, F(13, 20), minimum) is met


def test_the_trend_splits_an_odd_window_at_half() -> None:
    assert rules.trend(14, 21, 4) == F(10, 11) - F(4, 10)


@pytest.mark.parametrize(
    ("threshold", "up", "down", "limit"),
    [
        (0.60, 182, 223, 6500),
        (0.65, 167, 251, 6500),
        (0.70, 154, 288, 6500),
        (0.75, 143, 336, 6500),
        (0.80, 134, 405, 6500),
        (0.95, 111, 1099, 6500),
        (0.96, 110, 1253, 8000),
        (1.0, 105, None, 8000),
        (0.1, 693, 54, 6500),  # p0 = T/2
    ],
)
def test_sequential_scores(threshold: float, up: int, down: int | None, limit: int) -> None:
    test = cusum(exact(threshold))
    assert (test.up, test.down, test.limit) == (up, down, limit)


def test_the_statistic_is_reflected_at_zero_and_a_failure_at_T_1_clears_it() -> None:
    assert cusum(F(3, 5)).step(100, False) == 0
    assert cusum(F(3, 5)).step(300, False) == 77
    assert cusum(F(1)).step(7000, False) == 0


def _false_advance(threshold: float, rate: float, minimum: int, horizon: int) -> float:
    """Exact Markov chain: S, checked every 10 outcomes; the probability to have advanced within
    the horizon.
    """
    test = cusum(exact(threshold))
    # above it, ten failures in a row cannot bring S below the limit before a check
    cap = test.limit + 20 * test.up
    assert test.down is not None
    mass = np.zeros(cap + test.up + 1)
    mass[0] = 1.0
    advanced = 0.0
    states = np.arange(len(mass))
    up, down = np.minimum(states + test.up, len(mass) - 1), np.maximum(states - test.down, 0)
    for n in range(1, horizon + 1):
        new = np.zeros_like(mass)
        np.add.at(new, up, mass * rate)
        np.add.at(new, down, mass * (1 - rate))
        mass = new
        if n % 10 == 0 and n >= minimum:
            advanced += float(mass[test.limit :].sum())
            mass[test.limit :] = 0
    return advanced


@pytest.mark.parametrize(
    ("threshold", "minimum", "false"),
    [(0.60, 50, 0.015), (0.65, 60, 0.016), (0.70, 80, 0.017), (0.75, 120, 0.019), (0.80, 150, 0.023)],
)
def test_false_advance_and_power_of_the_sequential_rule(threshold: float, minimum: int, false: float) -> None:
    assert _false_advance(threshold, threshold - 0.10, minimum, 1000) == pytest.approx(false, abs=0.002)
    assert _false_advance(threshold, threshold + 0.10, minimum, 400) > 0.9999


@pytest.mark.parametrize(
    ("band", "k", "new"),
    [
        *((0, 26, 0), (0, 27, 1), (1, 23, 1), (1, 22, 0), (1, 34, 1), (1, 35, 2), (2, 31, 2), (2, 30, 1)),
        *((2, 41, 2), (2, 42, 3), (3, 38, 3), (3, 37, 2), (0, 50, 3), (3, 0, 0)),
    ],
)
def test_hysteresis(band: int, k: int, new: int) -> None:
    assert rules.hysteresis_band(band, k) == new


def test_regression_boundaries() -> None:
    assert rules.regression(19, 50, 100, F(2, 5)) is True
    assert rules.regression(20, 50, 100, F(2, 5)) is False  # r = floor
    assert rules.regression(19, 50, 99, F(2, 5)) is False
    assert rules.learned(25, 50, F(2, 5)) is True
    assert rules.learned(24, 50, F(2, 5)) is False
    assert rules.learned(25, 49, F(2, 5)) is False


def test_the_share_of_steps_is_the_ratio() -> None:
    q = rules.steps_draw(0.40, F(10), F(40))
    assert q == 0.14
    assert q * 40 / (q * 40 + (1 - q) * 10) == pytest.approx(0.40, abs=0.02)
    assert pytest.approx(0.73, abs=0.005) == 0.40 * 40 / (0.40 * 40 + 0.60 * 10)  # what it is by episodes


@given(
    st.lists(st.booleans(), max_size=50), st.integers(0, 300), st.sampled_from([0.6, 0.65, 0.7, 0.75, 0.8])
)
def test_rules_equal_their_slow_twins(outcomes: list[bool], n: int, threshold: float) -> None:
    k, length = sum(outcomes), len(outcomes)
    rate = F(k, length) if length else F(0)
    exactly: Callable[[str], Fraction] = Fraction
    assert rules.standard(k, length, n, exact(threshold), 60) == (rate >= exactly(str(threshold)) and n >= 60)
    assert rules.early(k, length, n) == (n >= 30 and rate >= exactly("0.9"))
    bands = [exactly("0.5"), exactly("0.65"), exactly("0.8")]
    assert rules.mixing_band(k, length) == sum(rate >= band for band in bands)
    first, second = outcomes[: length // 2], outcomes[length // 2 :]
    if length >= 20:
        gain = F(sum(second), len(second)) - F(sum(first), len(first))
        met = gain > exactly("0.15") and n >= exactly("0.8") * 60
        met = met and rate >= exactly(str(threshold)) - exactly("0.05")
        assert rules.trend_bonus(k, length, n, sum(first), exact(threshold), 60) == met
