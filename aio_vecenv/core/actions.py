"""Checks actions before anything is sent, and puts them where the workers find them."""
# pure: arrays in, rows of the block out, and what travels with the command

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import BadActions
from .layout import Leaf, Slab, SpaceTree

__all__ = ["ActionWriter", "check_declared", "columns_of"]


class ActionWriter:
    """The action space of one env as the batch sees it: leaf by leaf, a column of n rows.

    `as_given`: what is not of its leaf's dtype already reaches the envs as it was given, float64s and lists included,
    and floats with whole values are actions of integer spaces, too.
    """

    def __init__(self, tree: SpaceTree, slab: Slab, *, as_given: bool = False) -> None:
        self._tree = tree
        self._slab = slab
        self._as_given = as_given
        # of the usual case, one leaf in the block; `_dtype` None: there is none
        leaf = tree.leaves[0] if tree.is_leaf and tree.leaves[0].fixed else None
        self._dtype = None if leaf is None else leaf.dtype
        self._shape = () if leaf is None else leaf.shape
        self._may_be_nan = leaf is not None and leaf.dtype.kind == "f"

    def put(self, actions: Any, n: int, rows: Any) -> list[Any]:
        """Write n actions to these rows of the block. Returns the leaves that travel with the command instead.

        Raises BadActions; nothing was written.
        """
        if (
            type(actions) is np.ndarray
            and actions.dtype is self._dtype
            and actions.shape == (n, *self._shape)
            and not self._may_be_nan
        ):
            self._slab.action[0][rows] = actions  # type: ignore[index]  # as nearly always
            return []
        pickled: list[Any] = []
        columns = self._columns(actions, n)
        for leaf, column, given in zip(self._tree.leaves, self._slab.action, columns):
            if column is None or (
                self._as_given and not (type(given) is np.ndarray and given.dtype == leaf.dtype)
            ):
                pickled.append(given)
            else:
                column[rows] = given
                pickled.append(None)
        return pickled if any(given is not None for given in pickled) else []

    def _columns(self, actions: Any, n: int) -> list[Any]:
        """One column of n rows per leaf. Raises BadActions."""
        if self._tree.is_leaf:
            return [self._column(self._tree.leaves[0], actions, n)]
        if not self._as_given:  # Gymnasium drops what it does not know
            check_declared(self._tree.space, actions)
        columns: list[Any] = []
        for leaf in self._tree.leaves:
            value = actions
            try:
                for part in leaf.path:
                    value = value[part]
            except (KeyError, IndexError, TypeError):
                raise BadActions(
                    f"actions{leaf} is missing: a {type(actions).__name__} does not have the structure of "
                    f"{self._tree.space}",
                    expected=str(self._tree.space),
                    got=type(actions).__name__,
                ) from None
            columns.append(self._column(leaf, value, n))
        return columns

    def _column(self, leaf: Leaf, actions: Any, n: int) -> Any:
        if not leaf.fixed:
            if self._as_given and isinstance(actions, np.ndarray):
                actions = list(actions)
            if not isinstance(actions, (tuple, list)) or len(actions) != n:
                raise _bad(leaf, f"a tuple of {n} actions", _describe(actions))
            return list(actions)
        try:
            array: NDArray[Any] = np.asarray(actions)
        except (ValueError, TypeError) as error:
            raise _bad(leaf, f"{leaf.dtype} {(n, *leaf.shape)}", str(error)) from None
        if array.shape != (n, *leaf.shape):
            raise _bad(leaf, f"{leaf.dtype} {(n, *leaf.shape)}", f"{array.dtype} {array.shape}")
        if array.dtype != leaf.dtype and not (
            array.dtype.kind in "iufb"
            and (
                np.can_cast(array.dtype, leaf.dtype, "same_kind")
                or (self._as_given and _whole(array, leaf.dtype))
            )
        ):
            raise _bad(leaf, f"{leaf.dtype} {(n, *leaf.shape)}", f"{array.dtype} {array.shape}")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise _bad(leaf, "numbers", "NaN")
        if self._as_given and isinstance(actions, (list, tuple)) and not _are_rows(actions, leaf):
            return list(actions)
        return array


def check_declared(space: gym.Space[Any], actions: Any, who: str = "the actions hold") -> None:
    """Raise BadActions, which begins with `who`, for keys of Dicts that `space` does not have."""
    if keys := _undeclared(space, actions, ""):
        raise BadActions(
            f"{who} {', '.join(keys)}, which {space} does not have; nothing was sent",
            expected=str(space),
            got=", ".join(keys),
        )


def _undeclared(space: gym.Space[Any], value: Any, where: str) -> list[str]:
    found: list[str] = []
    if isinstance(space, spaces.Dict) and isinstance(value, Mapping):
        found += sorted(f"{where}[{key!r}]" for key in value.keys() - space.spaces.keys())
        for key in value.keys() & space.spaces.keys():
            found += _undeclared(space.spaces[key], value[key], f"{where}[{key!r}]")
    elif isinstance(space, spaces.Tuple) and isinstance(value, (tuple, list)):
        for i, (sub, part) in enumerate(zip(space.spaces, value)):
            found += _undeclared(sub, part, f"{where}[{i}]")
    return found


def columns_of(space: gym.Space[Any], actions: Sequence[Any], where: str = "") -> Any:
    """The actions of n envs, one by one, batched as `space` of one env says. Raises BadActions."""
    parts: Sequence[tuple[Any, Any]]
    if not where:
        for env, action in enumerate(actions):
            check_declared(space, action, f"the action of env {env} holds")
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        parts = list(enumerate(space.spaces))
        for env, action in enumerate(actions):
            if not isinstance(action, (tuple, list)) or len(action) != len(parts):
                raise _not_of(space, env, where, f"a {_describe(action)}")
    else:
        return list(actions)
    columns: dict[Any, Any] = {}
    for key, sub in parts:
        column: list[Any] = []
        for env, action in enumerate(actions):
            try:
                column.append(action[key])
            except (KeyError, IndexError, TypeError):
                raise _not_of(space, env, where, f"a {type(action).__name__} without {key!r}") from None
        columns[key] = columns_of(
            sub, column, f'{where}["{key}"]' if isinstance(key, str) else f"{where}[{key}]"
        )
    return columns if isinstance(space, spaces.Dict) else tuple(columns.values())


def _not_of(space: gym.Space[Any], env: int, where: str, got: str) -> BadActions:
    return BadActions(
        f"the action{where} of env {env} is {got}, not one of {space}; nothing was sent",
        expected=str(space),
        got=got,
    )


def _whole(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether every value is one of `dtype`, exactly."""
    with np.errstate(invalid="ignore"):
        return bool((array.astype(dtype) == array).all())


def _are_rows(actions: Sequence[Any], leaf: Leaf) -> bool:
    """Whether they can as well travel as one array: rows that numpy gives back, or nothing that it or Python knows."""
    kind = np.ndarray if leaf.shape else np.generic
    return all(isinstance(one, kind) and one.dtype == leaf.dtype for one in actions) or not all(
        type(one).__module__ in ("builtins", "numpy") for one in actions
    )


def _bad(leaf: Leaf, expected: str, got: str) -> BadActions:
    return BadActions(
        f"actions{leaf}: expected {expected}, got {got}; nothing was sent", expected=expected, got=got
    )


def _describe(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
