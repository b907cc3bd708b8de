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
        mask = batched.get(f"_{key}")
        if key == "final_obs":  # its shape may differ from env to env
            array = batched.setdefault(key, np.empty(count, dtype=object))
            array[row] = value
        elif isinstance(value, dict):
            nested = batched.setdefault(key, {})
            if isinstance(nested, dict):
                _add(nested, value, row, count)
            else:  # another env has no dict under this key: then each keeps what it gave
                batched[key] = _objects(nested, mask)
                batched[key][row] = value
        else:
            array = batched.get(key)
            if array is None:
                array = batched[key] = _column(value, count)
            elif isinstance(array, dict):
                array = batched[key] = _dicts(array, batched[f"_{key}"])
            if array.dtype.hasobject:
                array[row] = value
            else:
                batched[key] = _put(array, row, value, mask)
        if mask is None:
            mask = batched[f"_{key}"] = np.zeros(count, dtype=np.bool_)
        mask[row] = True


def _column(value: Any, count: int) -> NDArray[Any]:
    kind = type(value)
    if kind in (int, float, bool) or isinstance(value, (np.number, np.bool_)):
        return np.zeros(count, dtype=value.dtype if isinstance(value, np.generic) else kind)
    if isinstance(value, np.ndarray):
        return np.zeros((count, *value.shape), dtype=value.dtype)
    return np.empty(count, dtype=object)  # of None


def _put(array: NDArray[Any], row: int, value: Any, mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """Write the row; a column that cannot hold `value` unchanged becomes one of objects. `mask`: the rows written."""
    plain = isinstance(value, (int, float, np.number, np.bool_, np.ndarray))
    given = np.asarray(value if plain else None)  # a list may be ragged, which numpy refuses
    if given.dtype == object or given.shape != array.shape[1:]:
        array = _objects(array, mask)
    elif not np.can_cast(given.dtype, array.dtype, "safe"):
        array = (
            array.astype(np.promote_types(array.dtype, given.dtype))
            if _numeric(given)
            else _objects(array, mask)
        )
    array[row] = value
    return array


def _numeric(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "biufc"


def _dicts(nested: Mapping[str, Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """A column of dicts, one per row of `mask`, out of the nested columns that they had become."""
    column = np.empty(len(mask), dtype=object)
    for row in np.flatnonzero(mask).tolist():
        column[row] = _row(nested, row)
    return column


def _row(nested: Mapping[str, Any], row: int) -> dict[str, Any]:
    names = [key for key in nested if f"_{key}" in nested and nested[f"_{key}"][row]]
    return {k: _row(nested[k], row) if isinstance(nested[k], dict) else nested[k][row] for k in names}


def _objects(array: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """The same column, of objects; None where nothing was written."""
    objects = np.empty(len(array), dtype=object)
    for row in () if mask is None else np.flatnonzero(mask).tolist():
        objects[row] = array[row]
    return objects
