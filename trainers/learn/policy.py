"""The policy as the collector sees it: numpy observations in, numpy actions out."""
# pure (torch): inference only; short enough to run on the event loop

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.learn.actions import ActionHead
from trainers.learn.networks import ActorCritic, Network
from trainers.learn.rollout import Bools, Floats, joined
from trainers.learn.twins import network_plan
from trainers.twin import compile_steps, forward

__all__ = ["Policy", "SmallNetwork"]

SMALL = 64 * 64 * 64  # rows × width × width: beyond it torch is as fast, and numpy's BLAS would start threads


class Policy:
    """A model and its action head. Sampling is numpy's: torch's distributions cost more than the network."""

    def __init__(self, model: Network, head: ActionHead, device: torch.device) -> None:
        self.model, self.head, self._device = model.eval(), head, device
        self._small = SmallNetwork.of(model) if device.type == "cpu" else None

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

    def judge(self, obs: Mapping[str, NDArray[Any]], pieces: int) -> Floats:
        """The values (T, N) of a whole rollout's observations (T, N, …), computed by torch in so many pieces."""
        rows = next(iter(obs.values())).shape[:2]
        with torch.inference_mode():
            columns = [torch.from_numpy(joined(obs[key])).tensor_split(pieces) for key in self.model.keys]
            parts = [
                self.model.values({key: part.to(self._device) for key, part in zip(self.model.keys, piece)})
                for piece in zip(*columns)
            ]
            return torch.cat(parts).reshape(rows).cpu().numpy()

    def _infer(self, obs: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        if self._small is not None and self._small.takes(obs):
            return self._small(obs)
        with torch.inference_mode():
            tensors = {key: torch.from_numpy(obs[key]).to(self._device) for key in self.model.keys}
            params, values = self.model(tensors)
            return params.cpu().numpy(), values.cpu().numpy()


class SmallNetwork:
    """An `ActorCritic` of vectors, one-hot numbers and linear layers, by numpy. For few rows torch's calls cost
    more than its arithmetic: two towers of 64 × 64 and 32 rows, sampling included, take 0.4 of the time.

    It holds views of the model's parameters, not copies: optimisers and `load_state_dict` write in place.
    """

    def __init__(self, plan: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self._inputs = [(part["path"][0], compile_steps(part["steps"], arrays)) for part in plan["inputs"]]
        towers = ("body", "actor", "critic")
        self._body, self._actor, self._critic = (
            compile_steps(plan[name], arrays, live=True) for name in towers
        )
        self._log_std = None if plan["log_std"] is None else arrays[plan["log_std"]]
        weights = [arrays[step["weight"]] for name in towers for step in plan[name] if "weight" in step]
        self._max_rows = SMALL // max(weight.size for weight in weights)

    @classmethod
    def of(cls, model: Network) -> SmallNetwork | None:
        """The model by numpy; None if it has pictures, or layers that numpy has no counterpart for."""
        if type(model).forward is not ActorCritic.forward or not isinstance(model, ActorCritic):
            return None
        plan = network_plan(model, {key: [key] for key in model.keys})
        if plan is None or any(step["op"] == "conv" for part in plan["inputs"] for step in part["steps"]):
            return None
        return cls(plan, {name: value.numpy() for name, value in model.state_dict().items()})

    def takes(self, obs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether these rows are few enough."""
        return len(obs[self._inputs[0][0]]) <= self._max_rows

    def __call__(self, obs: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """As `ActorCritic.forward`."""
        parts = [forward(steps, obs[key]) for key, steps in self._inputs]
        features = forward(self._body, parts[0] if len(parts) == 1 else np.concatenate(parts, 1))
        params, values = forward(self._actor, features), forward(self._critic, features)
        if self._log_std is not None:
            params = np.concatenate((params, np.broadcast_to(self._log_std, params.shape)), axis=1)
        return params, values[:, 0]
