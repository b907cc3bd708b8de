"""Checks actions before anything is sent, and puts them where the workers find them."""
# pure: arrays in, rows of the block out

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadActions
from .layout import Leaf, Slab, SpaceTree

__all__ = ["ActionPort"]


class ActionPort:
    """The action space of one env as the batch sees it: leaf by leaf, a column of n rows."""

    def __init__(self, tree: SpaceTree, slab: Slab) -> None:
        self._tree = tree
        self._slab = slab
        self._has_loose = any(not leaf.fixed for leaf in tree.leaves)
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
        columns = self._columns(actions, n)
        for index, column in enumerate(self._slab.action):
            if column is not None:
                column[rows] = columns[index]
        if not self._has_loose:
            return []
        return [None if c is not None else columns[k] for k, c in enumerate(self._slab.action)]

    def _columns(self, actions: Any, n: int) -> list[Any]:
        """One column of n rows per leaf. Raises BadActions."""
        if self._tree.is_leaf:
            return [self._column(self._tree.leaves[0], actions, n)]
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
            array.dtype.kind in "iufb" and np.can_cast(array.dtype, leaf.dtype, "same_kind")
        ):
            raise _bad(leaf, f"{leaf.dtype} {(n, *leaf.shape)}", f"{array.dtype} {array.shape}")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise _bad(leaf, "numbers", "NaN")
        return array


def _bad(leaf: Leaf, expected: str, got: str) -> BadActions:
    return BadActions(
        f"actions{leaf}: expected {expected}, got {got}; nothing was sent", expected=expected, got=got
    )


def _describe(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
