"""Running mean and variance of a stream of rows, as part of a model; and of discounted returns, to scale rewards."""
# pure (torch): float64, whatever the rows are

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from trainers.learn.rollout import Rollout

__all__ = ["DiscountedReturns", "Moments"]


class Moments(nn.Module):
    """Mean, variance and count of all rows folded in so far, each (width,) or a scalar, as buffers."""

    def __init__(self, width: int, *, mean: float = 0.0, variance: float = 1.0) -> None:
        """`mean` and `variance` hold until the first rows come."""
        super().__init__()
        self.register_buffer("mean", torch.full((width,), mean, dtype=torch.float64))
        self.register_buffer("variance", torch.full((width,), variance, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def fold(self, rows: torch.Tensor) -> None:
        """Take in rows (n, width) (Chan et al. 1979, parallel variance)."""
        mean, variance, count = (cast(torch.Tensor, getattr(self, k)) for k in ("mean", "variance", "count"))
        rows = rows.double()
        total = count + len(rows)
        shift = rows.mean(0) - mean
        moments = (
            variance * count + rows.var(0, correction=0) * len(rows) + shift**2 * count * len(rows) / total
        )
        mean += shift * len(rows) / total
        variance.copy_(moments / total)
        count.copy_(total)


class DiscountedReturns:
    """The discounted return that each env has gathered in its episode so far, over all rollouts (Engstrom et al. 2020).

    Its deviation is what rewards are divided by: their size then does not matter, and their sign stays.
    """

    def __init__(self, moments: Moments, num_envs: int) -> None:
        self._moments = moments  # of the model: saved with it
        self._gathered = np.zeros(num_envs)

    def forget(self) -> None:
        """All envs begin new episodes."""
        self._gathered.fill(0)

    def scale(self, rollout: Rollout, gamma: float) -> float:
        """Take in a full rollout; what its rewards are to be multiplied by. 1 where no return has varied yet."""
        returns = np.zeros(rollout.rewards.shape)
        ended = rollout.terminations | rollout.truncations | rollout.first
        for t in range(rollout.num_steps):
            returns[t] = self._gathered = gamma * self._gathered + rollout.rewards[t]
            self._gathered = self._gathered * ~ended[t]
        executed = returns[~rollout.first]
        moments = self._moments
        if len(executed):
            moments.fold(torch.from_numpy(executed[:, None]).to(cast(torch.Tensor, moments.mean).device))
        deviation = float(cast(torch.Tensor, moments.variance)[0]) ** 0.5
        return 1 / deviation if deviation > 0 and float(cast(torch.Tensor, moments.count)) > 0 else 1.0
