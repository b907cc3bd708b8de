"""Action distributions: sampled with numpy while collecting, differentiated with torch while learning."""
# pure (torch): arrays in, arrays out; randomness comes in as a generator

from __future__ import annotations

import itertools
import math
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from trainers.config import ConfigError, NetworkConfig

__all__ = ["ActionHead", "Categorical", "Gaussian", "action_head"]

MASKED = np.float32(-1e8)  # a logit that is never drawn, yet finite: a row with nothing allowed stays uniform
DEFAULT = NetworkConfig()
UNBOUNDED = 1e15  # a bound that far away says that there is none
TINY = np.finfo(np.float32).tiny

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

    def evaluate(
        self, params: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities (n,) and entropies (n,) in nats, differentiable in `params`."""
        ...


class Categorical:
    """Discrete and MultiDiscrete: independent categorical variables; stored as int64 (n, k), from 0."""

    def __init__(self, space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> None:
        nvec = [int(space.n)] if isinstance(space, gym.spaces.Discrete) else space.nvec.reshape(-1).tolist()
        self._space = space
        self._start = np.asarray(space.start)
        edges = np.cumsum([0, *nvec]).tolist()
        self._segments = tuple(itertools.pairwise(edges))
        self.size = self.mask_size = edges[-1]
        self.shape: tuple[int, ...] = (len(nvec),)
        self.dtype: np.dtype[Any] = np.dtype(np.int64)

    def sample(
        self, params: Floats, rng: np.random.Generator, mask: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], Floats]:
        logits = params if mask is None else np.where(mask, params, MASKED)
        # Gumbel-max: the largest of logit - log(exponential noise) is distributed as softmax(logits)
        noise = rng.standard_exponential(logits.shape, dtype=np.float32)
        np.log(np.maximum(noise, TINY, out=noise), out=noise)  # a noise of 0 would beat even what is masked
        actions = self._largest(logits - noise)
        rows = np.arange(len(logits))
        log_probs = np.zeros(len(logits), np.float32)
        for k, (lo, hi) in enumerate(self._segments):
            part = logits[:, lo:hi]
            shifted = part - part.max(axis=1, keepdims=True)
            log_probs += shifted[rows, actions[:, k]] - np.log(np.exp(shifted).sum(axis=1))
        return actions, log_probs

    def mode(self, params: Floats, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        return self._largest(params if mask is None else np.where(mask, params, MASKED))

    def nothing_allowed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        allowed = [mask[:, lo:hi].any(axis=1) for lo, hi in self._segments]
        nothing: NDArray[np.bool_] = ~np.logical_and.reduce(allowed)
        return nothing

    def _largest(self, scores: Floats) -> NDArray[np.int64]:
        actions = np.empty((len(scores), len(self._segments)), np.int64)
        for k, (lo, hi) in enumerate(self._segments):
            scores[:, lo:hi].argmax(axis=1, out=actions[:, k])
        return actions

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        shaped = actions.reshape(len(actions), *self._start.shape) + self._start
        return shaped.astype(self._space.dtype, copy=False)

    def evaluate(
        self, params: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = params if mask is None else params.masked_fill(~mask, float(MASKED))
        log_prob = entropy = torch.zeros((), device=params.device)
        for k, (lo, hi) in enumerate(self._segments):
            log_p = torch.log_softmax(logits[:, lo:hi], dim=1)
            log_prob = log_prob + log_p.gather(1, actions[:, k : k + 1]).squeeze(1)
            entropy = entropy - (log_p.exp() * log_p).sum(dim=1)
        return log_prob, entropy


class Gaussian:
    """Box: a diagonal normal, its deviation independent of the state.

    `params` are (mean, log deviation), each as wide as the flattened action. Stored actions are the policy's own,
    neither clipped nor scaled, and so are their probabilities. For the env, and only there, -1 … 1 becomes what lies
    between finite bounds (`scaled`), and what lies beyond the bounds is clipped. A dimension without two finite
    bounds (beyond ± 1e15 they count as none) is never scaled.
    """

    def __init__(self, space: gym.spaces.Box, *, scaled: bool) -> None:
        self._space = space
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        bounded = scaled & (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.half, self.middle = (high - low) / 2, (high + low) / 2
        self._as_is = bool(np.all((self.half == 1) & (self.middle == 0)))
        self._width = math.prod(space.shape)
        self.size = 2 * self._width
        self.mask_size = 0
        self.shape: tuple[int, ...] = (self._width,)
        self.dtype: np.dtype[Any] = np.dtype(np.float32)

    def sample(
        self, params: Floats, rng: np.random.Generator, mask: NDArray[np.bool_] | None
    ) -> tuple[Floats, Floats]:
        mean, log_std = params[:, : self._width], params[:, self._width :]
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        log_probs = -0.5 * noise**2 - log_std - np.float32(0.5 * math.log(2 * math.pi))
        actions: Floats = (mean + np.exp(log_std) * noise).astype(np.float32, copy=False)
        total: Floats = log_probs.sum(axis=1, dtype=np.float32)
        return actions, total

    def mode(self, params: Floats, mask: NDArray[np.bool_] | None) -> Floats:
        return params[:, : self._width]

    def nothing_allowed(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.zeros(len(mask), np.bool_)

    def to_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        shaped = actions.reshape(len(actions), *self._space.shape)
        if not self._as_is:
            shaped = shaped * self.half + self.middle
        bounded: NDArray[Any] = np.clip(shaped, self._space.low, self._space.high)
        return bounded.astype(self._space.dtype, copy=False)

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
