"""Storage of one rollout, a column per env, and generalised advantage estimation."""
# pure: numpy only; everything is allocated once

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["Rollout", "generalised_advantages", "score_parts"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Rollout:
    """T rows for each of N envs. Row t of env i holds what was seen, what was done, and what came of it.

    Every env fills its own column (`cursor`), in whatever order replies come in, and then waits: each
    contributes exactly T rows. The row after an episode's end is `first`: its observation is the final one,
    its action was not executed. So `values[t + 1]` is the value of the observation that row t led to, always.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        obs_spaces: Mapping[str, gym.Space[Any]],
        *,
        action_shape: tuple[int, ...],
        action_dtype: np.dtype[Any],
        mask_size: int = 0,
    ) -> None:
        rows = (num_steps, num_envs)
        self.num_steps, self.num_envs = rows
        self.obs = {key: np.zeros((*rows, *(s.shape or ())), _dtype(s)) for key, s in obs_spaces.items()}
        self.actions = np.zeros((*rows, *action_shape), action_dtype)
        self.masks = np.ones((*rows, mask_size), np.bool_) if mask_size else None
        self.log_probs = np.zeros(rows, np.float32)
        self.values = np.zeros(rows, np.float32)
        self.rewards = np.zeros(rows, np.float32)
        self.terminations = np.zeros(rows, np.bool_)
        self.truncations = np.zeros(rows, np.bool_)
        self.first = np.zeros(rows, np.bool_)  # the row's action was not executed
        self.episodes = np.zeros(rows, np.int64)  # the index of the row's episode, where someone says it
        self.cursor = np.zeros(num_envs, np.int64)

    @property
    def full(self) -> bool:
        """Whether every env has contributed its T rows."""
        return int(self.cursor.min()) == self.num_steps

    def clear(self) -> None:
        """Begin the next rollout; the arrays are used again."""
        self.cursor.fill(0)

    def act(
        self,
        env_ids: NDArray[np.int64],
        obs: Mapping[str, NDArray[Any]],
        actions: NDArray[Any],
        log_probs: Floats,
        values: Floats,
        masks: Bools | None = None,
    ) -> None:
        """Store what n envs saw and were told to do, in their current rows."""
        at = (self.cursor[env_ids], env_ids)
        for key, column in self.obs.items():
            column[at] = obs[key]
        self.actions[at] = actions
        self.log_probs[at] = log_probs
        self.values[at] = values
        if self.masks is not None and masks is not None:
            self.masks[at] = masks

    def outcome(
        self,
        env_ids: NDArray[np.int64],
        rewards: NDArray[np.float64],
        terminations: Bools,
        truncations: Bools,
        first: Bools,
        episodes: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Store what came of it, and complete the rows. Returns the envs whose columns are not full yet."""
        at = (self.cursor[env_ids], env_ids)
        self.rewards[at] = rewards
        self.terminations[at] = terminations
        self.truncations[at] = truncations
        self.first[at] = first
        if episodes is not None:
            self.episodes[at] = episodes
        self.cursor[env_ids] += 1
        return env_ids[self.cursor[env_ids] < self.num_steps]


def _dtype(space: gym.Space[Any]) -> Any:
    """Numbers of Discrete spaces are kept as int64: torch cannot pick rows of some others."""
    return np.int64 if isinstance(space, gym.spaces.Discrete) else space.dtype


def generalised_advantages(
    rewards: Floats,
    values: Floats,
    last_values: Floats,
    terminations: Bools,
    truncations: Bools,
    first: Bools,
    *,
    gamma: float,
    lam: float,
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap",
) -> Floats:
    """Advantages (T, N) by GAE(λ), Schulman et al. 2016, eq. 16; `last_values` (N,) follow the last row.

    A truncated episode bootstraps from its final observation, unless `time_limit` is "terminal". Rows that
    are `first` get 0 and pass nothing on: what they would carry belongs to another episode.
    """
    terminal = terminations | truncations if time_limit == "terminal" else terminations
    ended = terminations | truncations
    advantages = np.zeros_like(rewards)
    carry = np.zeros_like(last_values)
    next_values = last_values
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * next_values * ~terminal[t] - values[t]  # termination cuts the bootstrap
        carry = delta + gamma * lam * ~ended[t] * carry  # any end cuts the trace
        carry[first[t]] = 0.0
        advantages[t] = carry
        next_values = values[t]
    return advantages


def score_parts(
    values: Floats, episodes: NDArray[np.int64], first: Bools
) -> list[tuple[int, int, int, float]]:
    """(env, episode, steps, mean of `values`) of each part of an episode in these (T, N) rows, by env and episode.

    Rows that are `first` belong to no episode: their action was not executed.
    """
    steps, envs = np.nonzero(~first)
    indices = episodes[steps, envs]
    keys = envs * (int(episodes.max()) + 1) + indices
    _, at, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=values[steps, envs], minlength=len(counts))
    return [
        (int(envs[i]), int(indices[i]), int(count), float(total / count))
        for i, count, total in zip(at, counts, sums)
    ]
