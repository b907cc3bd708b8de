"""Infos of several envs as Gymnasium batches them: a dict of arrays, each with a `_key` mask."""
# pure: dicts in, arrays out

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["batch_infos"]


def batch_infos(env_ids: NDArray[np.int64], infos: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """`infos` by env id as a dict of arrays with len(env_ids) rows; row j belongs to env_ids[j].

    Numbers, bools and arrays of one shape become arrays of their dtype (0 where the mask is False), dicts nest,
    everything else an object array (None where the mask is False): as `VectorEnv._add_info` of Gymnasium does.
    """
    batched: dict[str, Any] = {}
    count = len(env_ids)
    for row, env_id in enumerate(env_ids.tolist()):
        info = infos.get(env_id)
        if info:
            _add(batched, info, row, count)
    return batched


def _add(batched: dict[str, Any], info: Mapping[str, Any], row: int, count: int) -> None:
    for key, value in info.items():
        if key in ("final_obs",):  # its shape may differ from env to env
            array = batched.setdefault(key, np.full(count, None, dtype=object))
            array[row] = value
        elif isinstance(value, dict):
            nested = batched.get(key)
            if not isinstance(nested, dict):
                nested = batched[key] = {}
            _add(nested, value, row, count)
        else:
            array = batched.get(key)
            if array is None or isinstance(array, dict):
                array = _column(value, count)
            batched[key] = _put(array, row, value)
        mask = batched.get(f"_{key}")
        if mask is None:
            mask = batched[f"_{key}"] = np.zeros(count, dtype=np.bool_)
        mask[row] = True


def _column(value: Any, count: int) -> NDArray[Any]:
    kind = type(value)
    if kind in (int, float, bool) or isinstance(value, (np.number, np.bool_)):
        return np.zeros(count, dtype=value.dtype if isinstance(value, np.generic) else kind)
    if isinstance(value, np.ndarray):
        return np.zeros((count, *value.shape), dtype=value.dtype)
    return np.full(count, None, dtype=object)


def _put(array: NDArray[Any], row: int, value: Any) -> NDArray[Any]:
    """Write the row; a column that cannot hold `value` unchanged becomes one of objects."""
    if array.dtype != object:
        given = np.asarray(value)
        if given.dtype == object or given.shape != array.shape[1:]:
            array = _objects(array, row)
        elif not np.can_cast(given.dtype, array.dtype, "safe"):
            array = (
                array.astype(np.promote_types(array.dtype, given.dtype))
                if _numeric(given)
                else _objects(array, row)
            )
    if array.dtype == object:
        array[row] = value
    else:
        array[row] = value
    return array


def _numeric(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "biufc"


def _objects(array: NDArray[Any], row: int) -> NDArray[Any]:
    objects = np.full(len(array), None, dtype=object)
    for index in range(row):
        objects[index] = array[index]
    return objects
