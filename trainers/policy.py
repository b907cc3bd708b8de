"""The policy as the collector sees it: numpy observations in, numpy actions out."""
# pure (torch): inference only; short enough to run on the event loop

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.actions import ActionHead
from trainers.networks import ActorCritic
from trainers.rollout import Bools, Floats

__all__ = ["Policy"]


class Policy:
    """A model and its action head. Sampling is numpy's: torch's distributions cost more than the network."""

    def __init__(self, model: ActorCritic, head: ActionHead, device: torch.device) -> None:
        self.model, self.head, self._device = model, head, device

    def act(
        self, obs: Mapping[str, NDArray[Any]], rng: np.random.Generator, mask: Bools | None = None
    ) -> tuple[NDArray[Any], Floats, Floats]:
        """Sampled actions (n, *shape), their log probabilities (n,) and the values (n,)."""
        params, values = self._infer(obs)
        actions, log_probs = self.head.sample(params, rng, mask)
        return actions, log_probs, values

    def choose(
        self, obs: Mapping[str, NDArray[Any]], mask: Bools | None, rng: np.random.Generator, greedy: bool
    ) -> NDArray[Any]:
        """Actions only: the most probable ones, or sampled."""
        params, _values = self._infer(obs)
        return self.head.mode(params, mask) if greedy else self.head.sample(params, rng, mask)[0]

    def values(self, obs: Mapping[str, NDArray[Any]]) -> Floats:
        """The values (n,) of observations."""
        return self._infer(obs)[1]

    def _infer(self, obs: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        with torch.inference_mode():
            tensors = {key: torch.from_numpy(obs[key]).to(self._device) for key in self.model.keys}
            params, values = self.model(tensors)
            return params.cpu().numpy(), values.cpu().numpy()
