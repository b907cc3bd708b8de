"""A batch of observations and infos as the policy takes them: an array per leaf, and the action masks."""
# pure: arrays in, arrays out

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from trainers.learn.masks import MASK, MaskError, read_mask
from trainers.learn.networks import leaf_arrays, mask_leaf

__all__ = ["is_masked", "split"]

Bools = NDArray[np.bool_]


def is_masked(space: gym.Space[Any], infos: Mapping[str, Any]) -> bool:
    """Whether actions come with masks: a Dict leaf `action_mask`, or one in the first infos."""
    return mask_leaf(space) or MASK in infos


def split(
    space: gym.Space[Any], obs: Any, infos: Mapping[str, Any], rows: int, sizes: Sequence[int]
) -> tuple[dict[str, NDArray[Any]], Bools | None]:
    """n observations as one array (n, …) per leaf, and what is allowed, (n, actions); nothing is copied that need not
    be. `sizes`: the actions of each dimension; (): actions are not masked. Raises `MaskError`, which says the row."""
    leaves = leaf_arrays(space, obs)
    masks = None
    if sizes:
        inside = mask_leaf(space)
        masks = _masks(leaves[MASK], sizes) if inside else _info_masks(infos, rows, sizes)
    leaves.pop(MASK, None)
    return leaves, masks


def _info_masks(infos: Mapping[str, Any], rows: int, sizes: Sequence[int]) -> Bools:
    """The rows' action masks; all is allowed where an env gave none."""
    masks = infos.get(MASK)
    if masks is None:
        return np.ones((rows, sum(sizes)), np.bool_)
    given = infos.get(f"_{MASK}")
    if isinstance(masks, Mapping):  # of the infos' columns: the envs gave dicts
        masks = np.full(rows, masks, object)
    return _masks(masks, sizes, given)


def _masks(masks: Any, sizes: Sequence[int], given: Any = None) -> Bools:
    """Masks (n, …) as (n, actions); all is allowed where none was `given` (None: all were)."""
    width = sum(sizes)
    kind = masks.dtype.kind if isinstance(masks, np.ndarray) and masks.size == len(masks) * width else ""
    if kind and (kind in "biu" or (kind == "f" and not np.isnan(masks).any())):
        allowed: Bools = masks.reshape(len(masks), width).astype(np.bool_, copy=False)
        return allowed if given is None else np.logical_or(allowed, ~np.asarray(given, np.bool_)[:, None])
    allowed = np.ones((len(masks), width), np.bool_)
    for row in range(len(masks)) if given is None else np.flatnonzero(given):
        try:
            allowed[row] = read_mask(masks[row], sizes)
        except MaskError as error:
            error.row = int(row)
            raise
    return allowed
