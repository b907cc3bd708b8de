"""Which worker holds which envs; env ids and seeds as users give them, checked."""
# pure: index arithmetic

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Deal", "EnvIds", "deal_out", "seeds_for"]

EnvIds = NDArray[np.int64]


def deal_out(count: int, workers: int) -> list[range]:
    """`count` things for `workers` workers: contiguous runs, as even as can be."""
    bounds = np.linspace(0, count, workers + 1).astype(int).tolist()
    return [range(a, b) for a, b in pairwise(bounds)]


class Deal:
    """Worker w holds the envs `rows[w]`. `whole`: a worker's envs can only be stepped all together."""

    def __init__(self, rows_per_worker: Sequence[int], *, whole: bool = False) -> None:
        bounds = np.cumsum([0, *rows_per_worker]).tolist()
        self.num_envs = int(bounds[-1])
        self.rows = [range(a, b) for a, b in pairwise(bounds)]
        self.everyone: EnvIds = np.arange(self.num_envs)
        self.everyone.flags.writeable = False
        self.whole = whole
        self._bounds = bounds
        self._starts = np.array(bounds[:-1])
        self._bytes = self.everyone.tobytes()

    def run(self, env_ids: Sequence[int] | EnvIds | None) -> slice | None:
        """The rows of env ids that stand side by side in order, as those of one worker do; None if they do not.

        A quick look, for what is sent all the time: `env_ids` checks the others.
        """
        if env_ids is None:
            return slice(0, self.num_envs)
        if (
            type(env_ids) is not np.ndarray
            or env_ids.dtype != np.int64
            or env_ids.ndim != 1
            or not len(env_ids)
        ):
            return None
        start, stop = int(env_ids[0]), int(env_ids[0]) + len(env_ids)
        if start < 0 or self._bytes[8 * start : 8 * stop] != env_ids.tobytes():
            return None
        return slice(start, stop)

    def env_ids(self, env_ids: Sequence[int] | EnvIds | None) -> EnvIds:
        """Env ids as the user gave them; None = all. Raises ValueError."""
        if env_ids is None:
            return self.everyone
        ids = np.asarray(env_ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ValueError(f"env_ids is {env_ids!r}, not a sequence of env indices")
        ids = ids.astype(np.int64)
        if int(ids.min()) < 0 or int(ids.max()) >= self.num_envs:
            raise ValueError(f"env_ids {ids.tolist()}: there are envs 0 to {self.num_envs - 1}")
        if not is_sorted(ids) and len(np.unique(ids)) != len(ids):
            raise ValueError(f"env_ids {ids.tolist()} names an env twice")
        return ids

    def by_worker(self, ids: EnvIds) -> list[tuple[int, EnvIds]]:
        """Sorted env ids, dealt to the workers that hold them."""
        cuts = np.searchsorted(ids, self._starts).tolist()
        return [(w, ids[a:b]) for w, (a, b) in enumerate(pairwise([*cuts, len(ids)])) if b > a]

    def by_run(self, rows: slice) -> list[tuple[int, EnvIds]]:
        """The same for envs that stand side by side."""
        bounds, start = self._bounds, rows.start
        worker = bisect_right(bounds, start) - 1
        parts: list[tuple[int, EnvIds]] = []
        while start < rows.stop:
            stop = min(bounds[worker + 1], rows.stop)
            if stop > start:
                parts.append((worker, self.everyone[start:stop]))
            worker, start = worker + 1, stop
        return parts

    def local(self, worker: int, ids: EnvIds) -> EnvIds:
        """Env ids as indices among the worker's own."""
        return ids - self.rows[worker].start

    def is_all_of(self, worker: int, ids: EnvIds) -> bool:
        """Whether these are all envs of the worker."""
        return len(ids) == len(self.rows[worker])


def is_sorted(ids: EnvIds) -> bool:
    """Whether ids strictly increase."""
    return bool((ids[1:] > ids[:-1]).all())


def seeds_for(seed: int | Sequence[int | None] | None, ids: EnvIds) -> list[int | None]:
    """One seed per env: `seed + env_id` for an int, each its own for a sequence. Raises ValueError."""
    if seed is None:
        return [None] * len(ids)
    if isinstance(seed, (int, np.integer)):
        return [int(seed) + env_id for env_id in ids.tolist()]
    if len(seed) != len(ids):
        raise ValueError(f"{len(seed)} seeds for {len(ids)} envs")
    return [None if one is None else int(one) for one in seed]
