"""Figures over a few seeds: interquartile means, and intervals for them by the bootstrap."""
# pure: numbers in, numbers out; the resampling has a fixed seed

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["difference", "interval", "iqm"]

DRAWS = 20_000
LOW, HIGH = 2.5, 97.5  # percentiles: an interval of 95 %


def iqm(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half: a quarter of the values, rounded down, is left out at either end, as in
    Agarwal et al. 2021. Of fewer than four values it is their mean."""
    return float(_iqms(np.asarray(values, np.float64)[None])[0])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the interquartile mean, by the percentile bootstrap over seeds."""
    low, high = np.percentile(_resampled(values, 0), (LOW, HIGH))
    return float(low), float(high)


def difference(
    ours: Sequence[float], theirs: Sequence[float], *, relative: bool
) -> tuple[float, float, float]:
    """How far our interquartile mean lies above theirs, `relative`: as a share of its size; and the 95 % interval of
    that. Seeds are resampled on each side by themselves: a seed means nothing across two programs."""
    ours_drawn, theirs_drawn = _resampled(ours, 0), _resampled(theirs, 1)
    size = np.abs(theirs_drawn) if relative else 1.0
    low, high = np.percentile((ours_drawn - theirs_drawn) / size, (LOW, HIGH))
    return (iqm(ours) - iqm(theirs)) / (abs(iqm(theirs)) if relative else 1.0), float(low), float(high)


def _iqms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    out = rows.shape[1] // 4
    means: NDArray[np.float64] = np.sort(rows, axis=1)[:, out : rows.shape[1] - out].mean(axis=1)
    return means


def _resampled(values: Sequence[float], seed: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    return _iqms(np.asarray(values, np.float64)[drawn])
