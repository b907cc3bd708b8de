"""`Learnability`: practise what is sometimes solved (Rutherford et al. 2024, arXiv:2408.15099),
without extra rollouts.
"""
# pure: deterministic given the order of its inputs and its seed

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.levels import LevelSet
from curriculum.strategies.base import Score, expect_number
from curriculum.strategies.weighted import Weighted

__all__ = ["Learnability", "learnability"]


def learnability(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """`E[p(1-p)] = ab / ((a+b)(a+b+1))` under Beta(a, b)."""
    return a * b / ((a + b) * (a + b + 1))


class Learnability(Weighted):
    """Half of the draws uniform over the most learnable levels, half uniform over all.

    The top `k = max(1, round(share·levels))` are picked anew with each directive; ties are broken at random, by a
    counter-based generator keyed by `seed` and the number of episodes seen.
    """

    _BY_SCORE = True

    def __init__(
        self,
        levels: LevelSet | Sequence[str],
        *,
        share: float = 0.05,
        decay: float = 0.8,
        every: int = 10,
        seed: int = 0,
        score: Score | None = None,
    ) -> None:
        super().__init__(levels, every=every, score=score)
        for key, value in (("share", share), ("decay", decay)):
            expect_number(key, value, lambda x: 0 < x <= 1, "a number above 0, at most 1")
        self.decay, self.seed = decay, seed
        self.top = max(1, round(share * self.size))
        self.a = np.ones(self.size)  # Beta(1, 1)
        self.b = np.ones(self.size)

    def _take(self, number: int, score: float) -> None:
        self.a[number] = 1 + (self.a[number] - 1) * self.decay + score
        self.b[number] = 1 + (self.b[number] - 1) * self.decay + (1 - score)

    def _weights(self) -> NDArray[np.float64]:
        ties = np.random.Generator(np.random.Philox(key=self.seed, counter=self.total << 64)).random(
            self.size
        )
        best = np.lexsort((ties, -learnability(self.a, self.b)))[: self.top]
        weights = np.full(self.size, 0.5 / self.size)
        weights[best] += 0.5 / self.top
        return weights

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"a": self.a, "b": self.b}
