"""Which worker holds which envs; env ids and seeds as users give them, checked."""
# pure: index arithmetic

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .messages import Encoded, Step, encode

__all__ = ["Assignment", "EnvIds", "Part", "Selection", "assign", "rows_of", "seeds_for"]

EnvIds = NDArray[np.int64]


def assign(count: int, workers: int) -> list[range]:
    """`count` things for `workers` workers: contiguous runs, as even as can be."""
    bounds = np.linspace(0, count, workers + 1).astype(int).tolist()
    return [range(a, b) for a, b in pairwise(bounds)]


class Part(NamedTuple):
    """What one worker has of the envs of a call."""

    worker: int
    env_ids: EnvIds  # sorted
    rows: Any  # what picks these rows: a slice where they stand side by side, else the ids
    local: EnvIds | None  # their indices among the worker's own; None: all that it has
    step: Encoded  # the command to step them: parts are kept


class Selection(NamedTuple):
    """The envs of a call, sorted and dealt to the workers that hold them."""

    env_ids: EnvIds  # sorted
    rows: Any  # as of a `Part`
    parts: Sequence[Part]
    given: Any  # what picks the rows in the order in which the ids were given
    order: EnvIds | None  # what was given, in the order of the parts; None: it is in that order


# of envs that stand side by side, kept for the next call; one more, and all are made anew
_MOST_SELECTIONS = 512


class Assignment:
    """Worker w holds the envs `rows[w]`. `whole`: a worker's envs can only be stepped all together."""

    def __init__(self, rows_per_worker: Sequence[int], *, whole: bool = False) -> None:
        bounds = np.cumsum([0, *rows_per_worker]).tolist()
        self.num_envs = int(bounds[-1])
        self.rows = [range(a, b) for a, b in pairwise(bounds)]
        self.everyone: EnvIds = np.arange(self.num_envs)
        self.everyone.flags.writeable = False
        self.whole = whole
        self._starts = np.array(bounds[:-1])
        self._bytes = self.everyone.tobytes()
        self._selections: dict[tuple[int, int], Selection] = {}
        parts = [self._part(worker, mine) for worker, mine in self.by_worker(self.everyone)]
        self._all = Selection(self.everyone, slice(0, self.num_envs), parts, slice(0, self.num_envs), None)
        self._singly = len(self.rows) == self.num_envs  # one env per worker

    def select(self, env_ids: Sequence[int] | EnvIds | None) -> Selection:
        """The envs of a call; None = all. Raises ValueError.

        Ids that stand side by side in order, as those of one worker do, are known at a glance.
        """
        if env_ids is None:
            return self._all
        if type(env_ids) is np.ndarray and env_ids.dtype == np.int64 and env_ids.ndim == 1 and len(env_ids):
            start, stop = int(env_ids[0]), int(env_ids[0]) + len(env_ids)
            if start >= 0 and self._bytes[8 * start : 8 * stop] == env_ids.tobytes():
                return self._selections.get((start, stop)) or self._side_by_side(start, stop)
        ids = self.env_ids(env_ids)
        if is_sorted(ids):
            rows = rows_of(ids)
            return Selection(ids, rows, self._parts(ids), rows, None)
        order = np.argsort(ids)
        in_order = ids[order]
        return Selection(in_order, rows_of(in_order), self._parts(in_order), ids, order)

    def apart(self, selection: Selection, chosen: set[int]) -> Selection:
        """The same selection, the `chosen` of its envs in parts of their own."""
        ids = selection.env_ids
        order = np.arange(len(ids)) if selection.order is None else selection.order
        parts: list[Part] = []
        for part in selection.parts:
            mask = np.array([env_id in chosen for env_id in part.env_ids.tolist()])
            if mask.any() and not mask.all():
                parts += [
                    self._part(part.worker, part.env_ids[~mask]),
                    self._part(part.worker, part.env_ids[mask]),
                ]
            else:
                parts.append(part)
        order = np.concatenate([order[np.searchsorted(ids, part.env_ids)] for part in parts])
        return selection._replace(parts=parts, order=order)

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

    def local(self, worker: int, ids: EnvIds) -> EnvIds:
        """Env ids as indices among the worker's own."""
        return ids - self.rows[worker].start

    def is_all_of(self, worker: int, ids: EnvIds) -> bool:
        """Whether these are all envs of the worker."""
        return len(ids) == len(self.rows[worker])

    def _parts(self, ids: EnvIds) -> list[Part]:
        if self._singly:
            return [self._all.parts[env_id] for env_id in ids.tolist()]
        rows, whole = self.rows, self._all.parts
        return [
            whole[worker] if len(mine) == len(rows[worker]) else self._part(worker, mine)
            for worker, mine in self.by_worker(ids)
        ]

    def _part(self, worker: int, ids: EnvIds) -> Part:
        local = None if self.is_all_of(worker, ids) else self.local(worker, ids)
        step = encode(Step(local))  # type: ignore[arg-type]  # an array is as good
        return Part(worker, ids, rows_of(ids), local, step)

    def _side_by_side(self, start: int, stop: int) -> Selection:
        ids, rows = self.everyone[start:stop], slice(start, stop)
        parts = self._all.parts[start:stop] if self._singly else self._parts(ids)
        if len(self._selections) >= _MOST_SELECTIONS:
            self._selections.clear()
        selection = self._selections[start, stop] = Selection(ids, rows, parts, rows, None)
        return selection


def rows_of(ids: EnvIds) -> Any:
    """What picks the rows of `ids` (sorted): a slice where they stand side by side, which is a fifth of the work."""
    n = len(ids)
    start = int(ids[0]) if n else 0
    return slice(start, start + n) if not n or int(ids[-1]) - start == n - 1 else ids


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
