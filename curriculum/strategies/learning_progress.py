"""`LearningProgress`: practise what changes fastest (Kanitscheider et al. 2021, arXiv:2106.14876)."""
# pure: deterministic given the order of its inputs

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.errors import PlanError
from curriculum.levels import LevelSet
from curriculum.strategies.base import Score, expect_number
from curriculum.strategies.weighted import Weighted

__all__ = ["LearningProgress", "progress_weights", "reweight"]


def reweight(p: NDArray[np.float64], theta: float) -> NDArray[np.float64]:
    """`w(p) = (1-θ)p / (p + θ(1-2p))`: makes differences near 0 count more than differences near 1."""
    return (1 - theta) * p / (p + theta * (1 - 2 * p))


def progress_weights(
    fast: NDArray[np.float64],
    slow: NDArray[np.float64],
    seen: NDArray[np.bool_],
    *,
    theta: float = 0.1,
    centre: float = 1.28,
    slope: float = 3.0,
    floor: float = 0.10,
) -> NDArray[np.float64]:
    """(levels,) probabilities: `LP = |w(f) - w(g)|`, z-score over the seen, sigmoid, normalised, uniform floor."""
    uniform = np.full(len(fast), 1 / len(fast))
    if not seen.any():
        return uniform
    progress = np.abs(reweight(fast[seen], theta) - reweight(slow[seen], theta))
    deviation = progress.std()  # population
    if deviation == 0:
        return uniform
    z = (progress - progress.mean()) / deviation
    drive = np.zeros(len(fast))
    drive[seen] = 1 / (1 + np.exp(-slope * (z - centre)))
    return np.asarray((1 - floor) * drive / drive.sum() + floor * uniform)


class LearningProgress(Weighted):
    """Draws levels by how fast their success rate moves, up or down.

    `p_rand`: the score of a random policy, which is no progress: one number, or one by level id.
    """

    _BY_SCORE = True

    def __init__(
        self,
        levels: LevelSet | Sequence[str],
        *,
        p_rand: float | Mapping[str, float] = 0.0,
        a: float = 0.1,
        theta: float = 0.1,
        centre: float = 1.28,
        slope: float = 3.0,
        floor: float = 0.10,
        every: int = 50,
        score: Score | None = None,
    ) -> None:
        super().__init__(levels, every=every, score=score)
        expect_number("a", a, lambda x: 0 < x <= 1, "a number above 0, at most 1")
        expect_number("theta", theta, lambda x: 0 < x < 1, "a number between 0 and 1")
        expect_number("floor", floor, lambda x: 0 <= x <= 1, "a number from 0 to 1")
        expect_number("centre", centre, lambda x: True, "a number")
        expect_number("slope", slope, lambda x: True, "a number")
        self.a, self.theta, self.centre, self.slope, self.floor = a, theta, centre, slope, floor
        self._p_rand = np.zeros(self.size)
        if isinstance(p_rand, Mapping):
            for name, value in p_rand.items():
                number = self._levels.index(name) if self._levels is not None else (self._ids or {}).get(name)
                if number is None:
                    raise PlanError(f"p_rand: unknown level {name!r}")
                self._p_rand[number] = value
        else:
            self._p_rand[:] = p_rand
        if not ((self._p_rand >= 0) & (self._p_rand < 1)).all():
            raise PlanError("p_rand: expected numbers from 0 to below 1")
        self.fast = np.zeros(self.size)
        self.slow = np.zeros(self.size)

    def _take(self, number: int, score: float) -> None:
        p_rand = self._p_rand[number]
        q = max(score - p_rand, 0.0) / (1 - p_rand)
        if self.counts[number] == 1:
            self.fast[number] = self.slow[number] = q
            return
        self.fast[number] = self.a * q + (1 - self.a) * self.fast[number]
        self.slow[number] = self.a * self.fast[number] + (1 - self.a) * self.slow[number]

    def _weights(self) -> NDArray[np.float64]:
        return progress_weights(
            self.fast,
            self.slow,
            self.counts > 0,
            theta=self.theta,
            centre=self.centre,
            slope=self.slope,
            floor=self.floor,
        )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"fast": self.fast, "slow": self.slow}
