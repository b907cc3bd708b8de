"""Action distributions: sampled with numpy while collecting, differentiated with torch while learning."""
# pure (torch): arrays in, arrays out; randomness comes in as a generator

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from trainers.config import ConfigError, NetworkConfig
from trainers.twin import MASKED, CategoricalActions, NormalActions

__all__ = ["ActionHead", "Categorical", "Gaussian", "action_head"]

DEFAULT = NetworkConfig()
UNBOUNDED = 1e15  # a bound that far away says that there is none

Floats = NDArray[np.float32]


class ActionHead(Protocol):
    """How the network's outputs `params` (n, size) become actions."""

    size: int
    """Width of `params`."""
    shape: tuple[int, ...]
    """Shape of one stored action."""
    dtype: np.dtype[Any]
    """Type of stored actions."""
    mask_size: int
    """Width of an action mask; 0: actions cannot be masked."""
    plan: dict[str, Any]
    """What makes its `numpy` half, as plain data (`Twin`), with `constants`, its arrays by name."""
    constants: dict[str, NDArray[Any]]

    @property
    def numpy(self) -> CategoricalActions | NormalActions:
        """The half that needs no torch: it draws noise and samples, in workers too."""
        ...

    def sample(
        self, params: Floats, rng: np.random.Generator, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], Floats]:
        """Draw actions (n, *shape) and their log probabilities (n,)."""
        ...

    def mode(self, params: Floats, mask: NDArray[np.bool_] | None) -> NDArray[Any]:
        """The most probable actions (n, *shape)."""
        ...

    def nothing_allowed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Rows (n,) of a mask that leave no action."""
        ...

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Stored actions as the env's action space says."""
        ...

    def stored(self, actions: NDArray[Any], outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """What to store (n, *shape) of actions (n, …) that envs took, and of what the policy said of them beside."""
        ...

    def evaluate(
        self, params: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities (n,) and entropies (n,) in nats, differentiable in `params`."""
        ...


class Categorical:
    """Discrete and MultiDiscrete: independent categorical variables; stored as int64 (n, k), from 0."""

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> None:
        sizes = [int(space.n)] if isinstance(space, gym.spaces.Discrete) else space.nvec.reshape(-1).tolist()
        start = np.asarray(space.start).reshape(-1).tolist()
        self.plan = {"kind": "categorical", **_kind(space), "sizes": sizes, "start": start}
        self.constants: dict[str, NDArray[Any]] = {}
        self.numpy = CategoricalActions(self.plan)
        self._segments = tuple(itertools.pairwise(np.cumsum([0, *sizes]).tolist()))
        self.size = self.mask_size = self.numpy.width
        self.shape: tuple[int, ...] = (len(sizes),)
        self.dtype: np.dtype[Any] = np.dtype(np.int64)

    def sample(
        self, params: Floats, rng: np.random.Generator, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], Floats]:
        return self.numpy.sample(_masked(params, mask), self.numpy.draw(rng, (len(params),)))

    def mode(self, params: Floats, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        return self.numpy.mode(_masked(params, mask))

    def nothing_allowed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return self.numpy.nothing_allowed(mask)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        return self.numpy.to_env(actions)

    def stored(self, actions: NDArray[Any], outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return self.numpy.from_env(actions)

    def evaluate(
        self, params: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = params if mask is None else params.masked_fill(~mask, float(MASKED))
        parts = []
        for k, (lo, hi) in enumerate(self._segments):
            log_p = torch.log_softmax(logits[:, lo:hi], dim=1)
            log_prob, entropy = (
                log_p.gather(1, actions[:, k : k + 1]).squeeze(1),
                -(log_p.exp() * log_p).sum(dim=1),
            )
            parts.append((log_prob, entropy))
        log_probs, entropies = zip(*parts)
        return sum(log_probs[1:], log_probs[0]), sum(entropies[1:], entropies[0])


def _masked(logits: Floats, mask: NDArray[np.bool_] | None) -> Floats:
    return logits if mask is None else np.where(mask, logits, MASKED)


def _kind(space: gym.Space[Any]) -> dict[str, Any]:
    """Shape and dtype of one action, as plain data."""
    return {"shape": list(space.shape or ()), "dtype": np.dtype(space.dtype).str}


class Gaussian:
    """Box: a diagonal normal, its deviation independent of the state.

    `params` are (mean, log deviation), each as wide as the flattened action. Stored actions are the policy's own,
    neither clipped nor scaled, and so are their probabilities. For the env, and only there, -1 … 1 becomes what lies
    between finite bounds (`scaled`), and what lies beyond the bounds is clipped. A dimension without two finite
    bounds (beyond ± 1e15 they count as none) is never scaled.
    """

    def __init__(self, space: gym.spaces.Box, *, scaled: bool) -> None:
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = scaled & (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        arrays = {"low": space.low, "high": space.high, "half": (high - low) / 2, "middle": (high + low) / 2}
        names = {key: f"action.{key}" for key in arrays}
        self.plan = {"kind": "normal", **_kind(space), **names}
        self.constants = {names[key]: arrays[key] for key in arrays}
        self.numpy = NormalActions(self.plan, self.constants)
        self._width = self.numpy.width
        self.size = 2 * self._width
        self.mask_size = 0
        self.shape: tuple[int, ...] = (self._width,)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def sample(
        self, params: Floats, rng: np.random.Generator, mask: NDArray[np.bool_] | None
    ) -> tuple[Floats, Floats]:
        return self.numpy.sample(params, self.numpy.draw(rng, (len(params),)))

    def mode(self, params: Floats, mask: NDArray[np.bool_] | None) -> Floats:
        return self.numpy.mode(params)

    def nothing_allowed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.zeros(len(mask), np.bool_)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        return self.numpy.to_env(actions)

    def stored(self, actions: NDArray[Any], outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return outputs["action"]

    def evaluate(
        self, params: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = params[:, : self._width], params[:, self._width :]
        noise = (actions - mean) * torch.exp(-log_std)
        log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e)
        return log_prob.sum(dim=1), entropy.sum(dim=1)


def action_head(space: gym.Space[Any], config: NetworkConfig = DEFAULT) -> ActionHead:
    """The distribution for an action space. Raises `ConfigError` for a kind that PPO here does not act in."""
    match space:
        case gym.spaces.Discrete() | gym.spaces.MultiDiscrete():
            return Categorical(space)
        case gym.spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return Gaussian(space, scaled=config.scale_actions)
        case _:
            raise ConfigError(
                f"no policy for the action space {space}; known: Discrete, MultiDiscrete, Box of floats"
            )
