"""`Chunk`: what the caller gets back of an unroll, several rows of each of its envs."""
# pure: plain data, no loop, no process, no clock.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Batch, Episode
from .infos import batch_infos

__all__ = ["Chunk"]


@dataclass(frozen=True, eq=False)
class Chunk:
    """T rows of each of n envs, made by one command; time comes first. Row t is what the t-th `step` would return."""

    env_ids: NDArray[np.int64]  # (n,) sorted
    obs: Any  # (T + 1, n, …) batched as the space says: row t is what action t was chosen on, row T what comes next
    actions: Any  # (T, n, …) of the action space
    rewards: NDArray[np.float64]  # (T, n) undiscounted
    terminations: NDArray[np.bool_]  # (T, n)
    truncations: NDArray[np.bool_]  # (T, n)
    first: NDArray[np.bool_]  # (T, n) the action was not executed
    index: NDArray[np.int64]  # (T, n) `Episode.index` of each row's current episode; -1: none has begun yet
    versions: NDArray[np.int64]  # (T, n) the update under which that episode began
    outputs: dict[str, NDArray[Any]]  # (T, n, …) what the policy said beside the actions; 0 if not asked
    policy_version: int  # of the one policy that acted: what `set_policy` returned, 0 before it
    infos: Sequence[tuple[int, int, dict[str, Any]]]  # (t, env id, info), sorted
    episodes: tuple[Episode, ...]  # those that ended in it, in order
    number: int  # `Batch.number` of row 0; the others follow
    watermarks: NDArray[np.int64] = field(repr=False)  # (T,) `Batch.watermark` of each row

    @property
    def watermark(self) -> int:
        """Every episode with a smaller order had ended when this chunk was complete."""
        return int(self.watermarks[-1])

    def row(self, t: int) -> Batch:
        """Row t as the batch that `step` would have returned; arrays are views. Raises IndexError."""
        length = len(self.rewards)
        if not -length <= t < length:
            raise IndexError(f"row {t} of a chunk of {length}")
        t %= length
        infos = {env_id: info for row, env_id, info in self.infos if row == t}
        return Batch(
            self.env_ids,
            _row(self.obs, t + 1),
            self.rewards[t],
            self.terminations[t],
            self.truncations[t],
            self.first[t],
            batch_infos(self.env_ids, infos) if infos else {},
            self.versions[t],
            tuple([episode for episode in self.episodes if episode.batch == self.number + t]),
            self.number + t,
            int(self.watermarks[t]),
            None,
            {},
        )


def _row(batch: Any, t: int) -> Any:
    if isinstance(batch, dict):
        return {key: _row(part, t) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_row(part, t) for part in batch)
    return batch[t]
