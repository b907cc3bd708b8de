"""A batch of observations and infos as the policy takes them: an array per leaf, and the action masks."""
# pure: arrays in, arrays out

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trainers.config import ConfigError
from trainers.learn.networks import MASK, leaf_arrays, mask_leaf

__all__ = ["is_masked", "split"]

Bools = NDArray[np.bool_]


def is_masked(space: gym.Space[Any], infos: Mapping[str, Any]) -> bool:
    """Whether actions come with masks: a Dict leaf `action_mask`, or one in the first infos."""
    return mask_leaf(space) or MASK in infos


def split(
    space: gym.Space[Any], obs: Any, infos: Mapping[str, Any], rows: int, mask_size: int
) -> tuple[dict[str, NDArray[Any]], Bools | None]:
    """n observations as one array (n, …) per leaf, and what is allowed (n, mask_size); nothing is copied that need not
    be. `mask_size` 0: actions are not masked. Raises `ConfigError` if a mask has not one entry per action."""
    leaves = leaf_arrays(space, obs)
    masks = None
    if mask_size:
        inside = mask_leaf(space)
        masks = _masks(leaves[MASK], mask_size) if inside else _info_masks(infos, rows, mask_size)
    leaves.pop(MASK, None)
    return leaves, masks


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
