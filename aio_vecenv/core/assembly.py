"""The columns of a batch: observations of any rows, out of the block or as they came pickled beside it."""
# pure: arrays and plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .assignment import EnvIds
from .layout import Leaf, Slab, SpaceTree
from .messages import FINAL_OBS, GIVEN_OBS, OBS

__all__ = ["Columns"]


class Columns:
    """Gives the observations of rows as a batch. Under `copy=False` those of neighbours are views of the block."""

    def __init__(self, num_envs: int, slab: Slab, obs: SpaceTree, *, copy: bool) -> None:
        self._slab, self._obs, self._copy = slab, obs, copy
        # leaves not in the block
        self._pickled = [index for index, column in enumerate(slab.obs) if column is None]
        # their values, by leaf and env
        self._newest: list[list[Any]] = [[None] * num_envs for _ in obs.leaves]
        self._final: list[list[Any]] = [[None] * num_envs for _ in obs.leaves]

        # of the newest batch, by env id: last ones, as their envs gave them
        self.given_obs: Mapping[int, Any] = {}

    def keep(self, noted: Sequence[dict[int, Any]]) -> None:
        """Store the observations that came pickled with these notes."""
        self.given_obs = noted[GIVEN_OBS]
        if self._pickled:
            for kind, store in ((OBS, self._newest), (FINAL_OBS, self._final)):
                for env_id, values in noted[kind].items():
                    for index, value in zip(self._pickled, values):
                        store[index][env_id] = value

    def obs(self, rows: Any, ids: EnvIds) -> Any:
        """The newest observations of these envs; `rows`: as `rows_of(ids)`."""
        return self._join(self._slab.obs, self._newest, rows, ids)

    def final_obs(self, rows: Any, ids: EnvIds) -> Any:
        """The last observations of the episodes that ended in these rows, under SAME_STEP."""
        return self._join(self._slab.final_obs, self._final, rows, ids)

    def _join(
        self, columns: Sequence[NDArray[Any] | None], pickled: Sequence[Sequence[Any]], rows: Any, ids: EnvIds
    ) -> Any:
        if self._obs.is_leaf and columns[0] is not None:
            return self._picked(columns[0], rows)
        leaves: list[Any] = []
        for index, column in enumerate(columns):
            if column is not None:
                leaves.append(self._picked(column, rows))
            else:
                values = [pickled[index][env_id] for env_id in ids.tolist()]
                leaves.append(_stack(self._obs.leaves[index], values))
        return self._obs.join(leaves)

    def _picked(self, column: NDArray[Any], rows: Any) -> NDArray[Any]:
        """Of a slice a view, or a copy of it; else a copy (`take`: a quarter of an index's time)."""
        if type(rows) is slice:
            return column[rows].copy() if self._copy else column[rows]
        picked: NDArray[Any] = column.take(rows, 0)
        return picked


def _stack(leaf: Leaf, values: list[Any]) -> Any:
    """Observations that came pickled: one array where the space has a fixed size, else a tuple."""
    if not leaf.stackable:
        return tuple(values)
    rows = np.zeros((len(values), *leaf.shape), leaf.dtype)
    for row, value in enumerate(values):
        if value is not None:
            rows[row] = value
    return rows
