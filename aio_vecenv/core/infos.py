"""Infos of several envs as Gymnasium batches them: a dict of arrays, each with a `_key` mask."""
# pure: dicts in, arrays out

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["batch_infos"]

_Column = tuple[list[int], list[Any]]  # of one key: the rows that have it, and what they have
_BOOL = np.dtype(np.bool_)
_NUMBERS = (np.number, np.bool_)
_ARRAYS = (*_NUMBERS, np.ndarray)


def batch_infos(env_ids: NDArray[np.int64], infos: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """`infos` by env id as a dict of arrays with len(env_ids) rows; row j belongs to env_ids[j].

    Numbers, bools and arrays of one shape become arrays of their dtype (0 where the mask is False), dicts nest,
    everything else an object array (None where the mask is False): as `VectorEnv._add_info` of Gymnasium does.
    """
    rows = [(row, infos[env_id]) for row, env_id in enumerate(env_ids.tolist()) if infos.get(env_id)]
    return _batch(rows, len(env_ids))


def _batch(infos: Sequence[tuple[int, Mapping[str, Any]]], count: int) -> dict[str, Any]:
    # Key by key rather than env by env: numpy is asked once per key, which is most of the time where keys are many.
    columns: dict[str, _Column] = {}
    for row, info in infos:
        for key, value in info.items():
            column = columns.get(key)
            if column is None:
                columns[key] = ([row], [value])
            else:
                column[0].append(row)
                column[1].append(value)
    batched: dict[str, Any] = {}
    for key, (rows, values) in columns.items():
        batched[key] = _objects(rows, values, count) if key == "final_obs" else _join(rows, values, count)
        batched[f"_{key}"] = _spread(rows, True, count, _BOOL)
    return batched


def _join(rows: list[int], values: list[Any], count: int) -> Any:
    """One key's column: an array of `count` rows, or a dict of columns where all values are dicts."""
    kind = type(values[0])
    kinds = {kind} if len(values) == 1 else set(map(type, values))
    if len(kinds) == 1:
        if kind is dict:
            return _batch(list(zip(rows, values)), count)
        if kind is float or kind is bool or kind is int or issubclass(kind, _NUMBERS):
            try:
                return _spread(rows, values, count, np.dtype(kind))
            except OverflowError:  # an int of more than 64 bits
                return _objects(rows, values, count)
        if not issubclass(kind, (np.ndarray, dict)):
            return _objects(rows, values, count)
    if all(issubclass(kind, dict) for kind in kinds):
        return _batch(list(zip(rows, values)), count)
    for kind in kinds:
        if kind not in (float, bool, int) and not issubclass(kind, _ARRAYS):
            return _objects(rows, values, count)
    arrays = values if kinds == {np.ndarray} else [np.asarray(value) for value in values]
    shape, dtype = arrays[0].shape, arrays[0].dtype
    for array in arrays:
        if array.shape != shape:
            return _objects(rows, values, count)
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "safe"):
            if array.dtype.kind not in "biufc" or dtype.kind not in "biufc":
                return _objects(rows, values, count)
            dtype = np.promote_types(dtype, array.dtype)
    column = np.zeros((count, *shape), dtype)
    for row, array in zip(rows, arrays):
        column[row] = array
    return column


def _spread(rows: list[int], values: Any, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """`count` rows: these values at `rows`, ascending, and zeros elsewhere. `values`: a list, or True for all."""
    if len(rows) == count:
        return np.ones(count, dtype) if values is True else np.array(values, dtype)
    column = np.zeros(count, dtype)
    if len(rows) == 1:  # a third of what a list of indices takes
        column[rows[0]] = True if values is True else values[0]
    else:
        column[rows] = values
    return column


def _objects(rows: list[int], values: list[Any], count: int) -> NDArray[Any]:
    """A column of the values themselves; None where no env has any."""
    column = np.empty(count, dtype=object)
    for row, value in zip(rows, values):
        column[row] = value
    return column
