"""Interquartile means and their intervals, against what they are by definition."""
# pure

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.estimates import difference, interval, iqm


def test_the_middle_half() -> None:
    assert iqm([1.0, 2.0, 6.0]) == 3.0
    assert iqm([100.0, 1.0, 2.0, 3.0, -50.0]) == 2.0
    assert iqm([*[0.0] * 2, *[1.0, 2.0, 3.0, 6.0], *[9.0] * 2]) == 3.0


def test_an_interval_covers_what_it_says() -> None:
    """Of 200 samples of 20 from a symmetric distribution, about 95 % hold its middle."""
    rng = np.random.default_rng(0)
    held = [low <= 5 <= high for low, high in (interval(rng.normal(5, 2, 20).tolist()) for _ in range(200))]
    assert 0.88 <= np.mean(held) <= 0.99
    assert interval([3.0] * 5) == (3.0, 3.0)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_is_above_where_ours_is_higher(sign: int) -> None:
    """Also of negative returns, where a share of their size is meant."""
    theirs = [sign * value for value in (98.0, 99.0, 100.0, 101.0, 102.0)]
    by, low, high = difference([value + 20 for value in theirs], theirs, relative=True)
    assert by == pytest.approx(0.2)
    assert 0.17 < low < by < high < 0.23
    assert difference(theirs, theirs, relative=False)[0] == 0
