"""What each env showed last: its newest observation and action mask, ready for the policy."""
# pure: arrays in, arrays out

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trainers.config import ConfigError
from trainers.learn.networks import MASK, leaf_arrays, leaf_spaces, mask_leaf

__all__ = ["Seen", "is_masked"]

Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]


def is_masked(space: gym.Space[Any], infos: Mapping[str, Any]) -> bool:
    """Whether actions come with masks: a Dict leaf `action_mask`, or one in the first infos."""
    return mask_leaf(space) or MASK in infos


class Seen:
    """Copies of the newest observation leaves (n, …) and masks (n, k) of all envs."""

    def __init__(self, space: gym.Space[Any], num_envs: int, mask_size: int) -> None:
        """`mask_size` 0: actions are not masked."""
        self._space = space
        self._in_obs = mask_leaf(space)
        self.obs = {
            key: np.zeros((num_envs, *(leaf.shape or ())), leaf.dtype)
            for key, leaf in leaf_spaces(space).items()
        }
        self.masks: Bools | None = np.ones((num_envs, mask_size), np.bool_) if mask_size else None
        self._num_envs = num_envs

    def update(self, ids: Ids, obs: Any, infos: Mapping[str, Any]) -> None:
        """Rows of these envs are new. Raises `ConfigError` if a mask has not one entry per action."""
        leaves = leaf_arrays(self._space, obs)
        for key, column in self.obs.items():
            column[ids] = leaves[key]
        if self.masks is not None:
            width = self.masks.shape[1]
            self.masks[ids] = (
                _masks(leaves[MASK], width) if self._in_obs else _info_masks(infos, len(ids), width)
            )

    def of(self, ids: Ids) -> tuple[dict[str, NDArray[Any]], Bools | None]:
        """Observations and masks of these envs; of all of them without a copy."""
        if len(ids) == self._num_envs:
            return self.obs, self.masks
        masks = None if self.masks is None else self.masks[ids]
        return {key: column[ids] for key, column in self.obs.items()}, masks


def _info_masks(infos: Mapping[str, Any], rows: int, width: int) -> Bools:
    """The rows' action masks; all is allowed where an env gave none."""
    masks = infos.get(MASK)
    if masks is None:
        return np.ones((rows, width), np.bool_)
    given = infos.get(f"_{MASK}")
    if given is None:
        return _masks(masks, width)
    allowed = np.ones((rows, width), np.bool_)
    for row in np.flatnonzero(given):
        allowed[row] = _mask(masks[row], width)
    return allowed


def _masks(masks: Any, width: int) -> Bools:
    """Masks (n, …) as (n, width)."""
    if isinstance(masks, np.ndarray) and masks.dtype != object and masks.size == len(masks) * width:
        return np.asarray(masks, dtype=np.bool_).reshape(len(masks), width)
    return np.stack([_mask(mask, width) for mask in masks])


def _mask(mask: Any, width: int) -> Bools:
    flat = np.asarray(mask, dtype=np.bool_).reshape(-1)
    if len(flat) != width:
        raise ConfigError(f"an action mask has {len(flat)} entries, expected one per action: {width}")
    return flat
