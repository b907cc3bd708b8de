"""A figure over a few seeds: the interquartile mean, and an interval for it by the bootstrap."""
# pure: numbers in, numbers out; the resampling has a fixed seed

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["interval", "iqm"]

DRAWS = 2000
LOW, HIGH = 2.5, 97.5  # percentiles: an interval of 95 %


def iqm(values: Sequence[float]) -> float:
    """The mean of the middle half: a quarter of the values, rounded down, is left out at either end (Agarwal et al.
    2021). Of fewer than four values it is their mean."""
    return float(_iqms(np.asarray(values, np.float64)[None])[0])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of `iqm`, by the percentile bootstrap over seeds (Efron 1979); always the same for the same
    values."""
    drawn = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(_iqms(np.asarray(values, np.float64)[drawn]), (LOW, HIGH))
    return float(low), float(high)


def _iqms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    out = rows.shape[1] // 4
    means: NDArray[np.float64] = np.sort(rows, axis=1)[:, out : rows.shape[1] - out].mean(axis=1)
    return means
