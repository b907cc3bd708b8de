"""Storage of one rollout, a column per env, and generalised advantage estimation."""
# pure: numpy only; everything is allocated once

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["Rollout", "generalised_advantages", "joined", "score_parts"]

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


class Rollout:
    """T rows for each of N envs, laid out as a chunk of the vec env: time first, and one observation more.

    Row t of env i holds what was seen, what was done, and what came of it; `obs[t + 1]` is the observation that it
    led to, so the last row needs nothing from outside. Every env fills its own column up to `cursor`, in whatever
    order replies come in, and then waits: each contributes exactly T rows. `obs[cursor[i], i]` is what env i shows
    now. The row after an episode's end is `first`: its observation is the final one, its action was not executed.
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
        """`mask_size` 0: actions are not masked."""
        rows = (num_steps, num_envs)
        seen = (num_steps + 1, num_envs)
        self.num_steps, self.num_envs = rows
        self.obs = {key: np.zeros((*seen, *(s.shape or ())), _dtype(s)) for key, s in obs_spaces.items()}
        self.masks = np.ones((*seen, mask_size), np.bool_) if mask_size else None
        self.actions = np.zeros((*rows, *action_shape), action_dtype)
        self.log_probs = np.zeros(rows, np.float32)
        self.values = np.zeros(rows, np.float32)
        self.rewards = np.zeros(rows, np.float32)
        self.terminations = np.zeros(rows, np.bool_)
        self.truncations = np.zeros(rows, np.bool_)
        self.first = np.zeros(rows, np.bool_)  # the row's action was not executed
        self.index = np.zeros(rows, np.int64)  # of the row's episode, where someone says it
        self.judged = True  # whether `values` are there; else the learner computes them
        self.cursor = np.zeros(num_envs, np.int64)

    @property
    def full(self) -> bool:
        """Whether every env has contributed its T rows."""
        return int(self.cursor.min()) == self.num_steps

    @property
    def last_obs(self) -> dict[str, NDArray[Any]]:
        """The observations (n, …) that the last rows led to."""
        return {key: column[-1] for key, column in self.obs.items()}

    def clear(self) -> None:
        """Begin the next rollout, at what each env shows now; the arrays are used again."""
        at = self._at(np.arange(self.num_envs))
        for column in self._seen():
            column[0] = column[at]
        self.cursor.fill(0)

    def see(
        self, env_ids: NDArray[np.int64], obs: Mapping[str, NDArray[Any]], masks: Bools | None = None
    ) -> None:
        """Store what n envs show now."""
        at = self._at(env_ids)
        for key, column in self.obs.items():
            column[at] = obs[key]
        if self.masks is not None and masks is not None:
            self.masks[at] = masks

    def seen(self, env_ids: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], Bools | None]:
        """What n envs show now, and what they allow; of all envs in step with each other without a copy."""
        at = self._at(env_ids)
        return {key: column[at] for key, column in self.obs.items()}, (
            None if self.masks is None else self.masks[at]
        )

    def act(
        self, env_ids: NDArray[np.int64], actions: NDArray[Any], log_probs: Floats, values: Floats
    ) -> None:
        """Store what n envs were told to do on what they show now."""
        at = self._at(env_ids)
        self.actions[at] = actions
        self.log_probs[at] = log_probs
        self.values[at] = values
        self.judged = True

    def outcome(
        self,
        env_ids: NDArray[np.int64],
        rewards: NDArray[np.float64],
        terminations: Bools,
        truncations: Bools,
        first: Bools,
        index: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Store what came of it, and complete the rows; `see` what they led to comes next. Returns the envs whose
        columns are not full yet."""
        at = self._at(env_ids)
        self.rewards[at] = rewards
        self.terminations[at] = terminations
        self.truncations[at] = truncations
        self.first[at] = first
        if index is not None:
            self.index[at] = index
        self.cursor[env_ids] += 1
        return env_ids[self.cursor[env_ids] < self.num_steps]

    def chunk(
        self,
        obs: Mapping[str, NDArray[Any]],
        masks: Bools | None,
        actions: NDArray[Any],
        log_probs: Floats,
        came: Any,
    ) -> None:
        """Store T rows of all envs, as blocks: what they saw (T + 1, N, …) and did, and the chunk that came of it.
        Without values."""
        t = int(self.cursor[0])
        until = t + len(actions)
        for key, column in self.obs.items():
            column[t : until + 1] = obs[key]
        if self.masks is not None and masks is not None:
            self.masks[t : until + 1] = masks
        self.actions[t:until], self.log_probs[t:until] = actions, log_probs
        for name in ("rewards", "terminations", "truncations", "first", "index"):
            getattr(self, name)[t:until] = getattr(came, name)
        self.cursor += len(actions)
        self.judged = False

    def _at(self, env_ids: NDArray[np.int64]) -> Any:
        """Where the current rows of these envs are, in ascending order; one block if they are all envs in step."""
        t = int(self.cursor[0])
        if len(env_ids) == self.num_envs and (self.cursor == t).all():
            return t
        return self.cursor[env_ids], env_ids

    def _seen(self) -> Iterator[NDArray[Any]]:
        yield from self.obs.values()
        if self.masks is not None:
            yield self.masks


def _dtype(space: gym.Space[Any]) -> Any:
    """Numbers of Discrete spaces are kept as int64: torch cannot pick rows of some others."""
    return np.int64 if isinstance(space, gym.spaces.Discrete) else space.dtype


def joined(column: NDArray[Any]) -> NDArray[Any]:
    """(T, N, …) → (T·N, …), also of a leaf without entries."""
    length, n, *shape = column.shape
    return column.reshape(length * n, *shape)


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


def score_parts(values: Floats, index: NDArray[np.int64], first: Bools) -> list[tuple[int, int, int, float]]:
    """(env, episode, steps, mean of `values`) of each part of an episode in these (T, N) rows, by env and episode.

    Rows that are `first` belong to no episode: their action was not executed.
    """
    steps, envs = np.nonzero(~first)
    indices = index[steps, envs]
    keys = envs * (int(index.max()) + 1) + indices
    _, at, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=values[steps, envs], minlength=len(counts))
    return [
        (int(envs[i]), int(indices[i]), int(count), float(total / count))
        for i, count, total in zip(at, counts, sums)
    ]
