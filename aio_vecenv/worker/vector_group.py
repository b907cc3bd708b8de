"""A worker whose factories make VectorEnvs: their sub-envs are the rows, stepped by one call each."""
# pure: calls the user's envs and writes their rows; no pipe, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..core import framing as wire
from ..core.layout import TERMINATED, TRUNCATED, Slab, SpaceTree
from ..core.messages import END_INFO, ERROR, FINAL_INFO, RESULT, TASK, WARNING, Note, Packed
from ..core.options import Settings
from ..core.report import RowError, describe
from ..core.updates import Inbox
from .env_group import EnvGroup

__all__ = ["VectorEnvGroup"]


class VectorEnvGroup(EnvGroup):
    """Envs of a worker that are VectorEnvs. Each steps and autoresets by itself, as its metadata says.

    Updates reach a VectorEnv before each command, all of them: its sub-envs reset inside its own step, so "by the
    next reset" can be kept per command only. An error of a VectorEnv is one of all its rows.
    """

    def __init__(
        self,
        envs: Sequence[gym.vector.VectorEnv[Any, Any, Any]],
        rows: Sequence[int],
        first: int,
        slab: Slab,
        obs: SpaceTree,
        action: SpaceTree,
        settings: Settings,
        inbox: Inbox,
        catch_up: Callable[[int], None],
        reborn: Sequence[int | None] | None = None,
        left: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._left, self._first = left, first
        self.envs: Any = list(envs)
        self.settings = settings
        self._inbox, self._catch_up = inbox, catch_up
        self._obs, self._action = obs, action
        self._hooks = [_hook_of(env) for env in envs]
        bounds = np.cumsum([0, *rows]).tolist()
        self._slices = [slice(a, b) for a, b in pairwise(bounds)]
        count = bounds[-1]
        self.everyone = range(count)
        mine = slice(first, first + count)
        self._newest = slab.newest
        self._reborn_seeds: list[int | None] = [None] * count if reborn is None else list(reborn)
        self._warned = set()
        self._begun = np.zeros(count, np.bool_)
        self._ended_rows = np.zeros(count, np.bool_)  # ended by the last step: the next one autoresets them
        self._columns: list[Any] = [None if column is None else column[mine] for column in slab.obs]
        self._final_columns = [None if column is None else column[mine] for column in slab.final_obs]
        self._actions_in: list[Any] = [None if column is None else column[mine] for column in slab.action]
        self._reward_rows = slab.rewards[mine]
        self._flag_rows = slab.flags[mine]
        self._version_rows = slab.versions[mine]
        self._next_step = settings.autoreset is AutoresetMode.NEXT_STEP
        self._same_step = settings.autoreset is AutoresetMode.SAME_STEP

    def step(self, envs: Sequence[int] | None, loose: Sequence[Any] = ()) -> list[Note]:
        notes: list[Note] = []
        for k, rows in self._touched(envs):
            anew = ~self._begun[rows]  # of a replacement
            if anew.all():
                self._reset(k, rows, self._reborn_seeds[rows], None, anew, notes)
                continue
            try:
                self._update(k)
                actions = self._action.join(self._actions_of(rows, loose))
                obs, rewards, terminations, truncations, infos = self.envs[k].step(actions)
                self._fill(rows, obs, notes)
                count = rows.stop - rows.start
                rewards = _per_row("the rewards", rewards, count)
                if rewards.dtype.kind not in "fiub" or not np.isfinite(rewards).all():
                    raise RowError("the rewards", "finite numbers", f"{rewards.dtype} {str(rewards)[:80]}")
                terminations = _flags("the terminations", terminations, count)
                truncations = _flags("the truncations", truncations, count)
                done = terminations | truncations
                self._reward_rows[rows] = rewards
                self._flag_rows[rows] = np.where(terminations, TERMINATED, 0) + np.where(
                    truncations, TRUNCATED, 0
                )
                began = done if self._same_step else self._ended_rows[rows]
                self._version_rows[rows] = np.where(began, self._inbox.covered, self._version_rows[rows])
                reset_rows = self._ended_rows[rows].copy() if self._next_step else np.zeros_like(done)
                self._ended_rows[rows] = done
                self._share(rows, infos, done, reset_rows, notes)
            except Exception as error:
                self._fail_rows(range(rows.start, rows.stop), "step", error, notes)
                continue
            if anew.any():
                # Some rows were reset by a command before: the others begin now, and what they did was for nothing.
                self._forget(_at(rows, anew), notes)
                self._reset(k, rows, self._reborn_seeds[rows], None, anew, notes)
        return notes

    def reset(self, envs: Sequence[int], seeds: Sequence[int | None], packed: bytes | None) -> list[Note]:
        notes: list[Note] = []
        by_row = dict(zip(envs, seeds))
        for k, rows in self._touched(envs):
            which = np.array([row in by_row for row in range(rows.start, rows.stop)])
            mine = [by_row.get(row) for row in range(rows.start, rows.stop)]
            self._reset(k, rows, mine, packed, which, notes)
        return notes

    def call(self, op: str, name: str, envs: Sequence[int], packed: Packed) -> list[Note]:
        notes: list[Note] = []
        for position, k in enumerate(envs):
            try:
                self._update(k)
                result: Any = None
                given = wire.loads(packed if isinstance(packed, bytes) else packed[position])
                if op == "set":
                    setattr(_owner(self.envs[k], name), name, given)
                elif op == "apply":
                    result = given(self.envs[k])
                else:
                    result = getattr(_owner(self.envs[k], name), name)
                    if op == "call" and callable(result):
                        result = result(*given[0], **given[1])
                notes.append((position, 0, RESULT, result))
            except Exception as error:
                notes.append((position, 0, ERROR, describe(error, op)))
        return notes

    # -- inside --------------------------------------------------------------------------------------------------

    def _touched(self, envs: Sequence[int] | None) -> Iterator[tuple[int, slice]]:
        wanted = None if envs is None else set(envs)
        for k, rows in enumerate(self._slices):
            if wanted is None or any(row in wanted for row in range(rows.start, rows.stop)):
                yield k, rows

    def _update(self, k: int) -> None:
        newest = int(self._newest[0])
        if newest > self._inbox.covered:
            self._catch_up(newest)
        self._inbox.deliver(k, self._hooks[k])

    def _reset(
        self,
        k: int,
        rows: slice,
        seeds: list[int | None],
        packed: bytes | None,
        which: NDArray[np.bool_],
        notes: list[Note],
    ) -> None:
        """Begin an episode in the rows of `which`. A VectorEnv none of whose rows runs on is reset whole."""
        try:
            self._update(k)
            given = {} if packed is None else wire.loads(packed)
            if (self._begun[rows] & ~which).any():
                given["reset_mask"] = which.copy()
            obs, infos = self.envs[k].reset(seed=_seed_of(seeds, which), options=given or None)
            self._fill(rows, obs, notes, which)
            self._share(rows, infos, np.zeros_like(which), which, notes)
        except Exception as error:
            self._fail_rows(_at(rows, which), "reset", error, notes)
            return
        self._begun[rows] |= which
        self._ended_rows[rows] &= ~which
        self._version_rows[rows] = np.where(which, self._inbox.covered, self._version_rows[rows])
        self._reward_rows[rows] = np.where(which, 0.0, self._reward_rows[rows])
        self._flag_rows[rows] = np.where(which, 0, self._flag_rows[rows])

    def _actions_of(self, rows: slice, loose: Sequence[Any]) -> list[NDArray[Any]]:
        """The actions of these rows, leaf by leaf; `loose` as in `step`."""
        columns: list[NDArray[Any]] = []
        for index, leaf in enumerate(self._action.leaves):
            given = loose[index] if loose else None
            if given is None:
                columns.append(self._actions_in[index][rows].copy())
            else:
                columns.append(np.array(given[rows], leaf.dtype))
        return columns

    def _fill(self, rows: slice, obs: Any, notes: list[Note], which: Any = True) -> None:
        """Write the rows of `which` of a batch of observations, leaf by leaf, after checking all of it.

        The others belong to the parent.
        """
        try:
            values, undeclared = self._obs.split(obs)
        except (KeyError, TypeError, IndexError) as error:
            raise RowError("the observations", str(self._obs.space), str(error.args[0])) from None
        self._warn_undeclared(rows.start, undeclared, notes)
        arrays: list[NDArray[Any]] = []
        for leaf, value in zip(self._obs.leaves, values):
            array = np.asarray(value)
            expected = (rows.stop - rows.start, *leaf.shape)
            numbers = array.shape == expected and array.dtype.kind in "iufb"
            if (
                numbers
                and self.settings.casting == "unsafe"
                and not np.can_cast(array.dtype, leaf.dtype, "safe")
            ):
                self._warn_cast(rows.start, leaf, array.dtype, notes)
                with np.errstate(all="ignore"):
                    array = array.astype(leaf.dtype)
            if array.shape != expected or not np.can_cast(array.dtype, leaf.dtype, "safe"):
                raise RowError(
                    f"obs{leaf}", f"{leaf.dtype} {expected}", f"{array.dtype} {array.shape}", f"obs{leaf}"
                )
            if self.settings.check == "finite" and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RowError(f"obs{leaf}", "finite numbers", "NaN or infinity", f"obs{leaf}")
            arrays.append(array)
        for column, array in zip(self._columns, arrays):
            np.copyto(column[rows], array, where=np.reshape(which, (-1,) + (1,) * (array.ndim - 1)))

    def _share(self, rows: slice, infos: Any, done: Any, edges: Any, notes: list[Note]) -> None:
        """Take the VectorEnv's batched infos apart, row by row."""
        if not isinstance(infos, dict):
            raise RowError("the infos", "a dict of arrays", type(infos).__name__)
        infos = dict(infos)
        final_obs = infos.pop("final_obs", None)
        _check_infos(infos, rows.stop - rows.start)
        final_infos = infos.pop("final_info", None)
        infos.pop("_final_obs", None), infos.pop("_final_info", None)
        for j in range(rows.stop - rows.start):
            row = rows.start + j
            info = _row_of(infos, j)
            if self._same_step and done[j]:
                self._final_row(row, j, final_obs, notes)
                final = _row_of(final_infos or {}, j)
                if final:
                    self._info(row, final, notes, edge=True, kind=FINAL_INFO)
                    if isinstance(self.settings.info, tuple):
                        notes.append((self._first + row, 0, END_INFO, final))
            elif done[j] and info and isinstance(self.settings.info, tuple):
                notes.append((self._first + row, 0, END_INFO, info))
            begins = bool(edges[j]) or (self._same_step and bool(done[j]))
            if info:
                self._info(row, info, notes, edge=begins or bool(done[j]))
                if begins and "task" in info and isinstance(self.settings.info, tuple):
                    notes.append((self._first + row, 0, TASK, info["task"]))

    def _final_row(self, row: int, j: int, final_obs: Any, notes: list[Note]) -> None:
        """Write the last observation of a row, from an array of them or from a batch as the space says."""
        singly = isinstance(final_obs, np.ndarray) and final_obs.dtype == object
        if final_obs is None or (singly and final_obs[j] is None):
            raise RowError('infos["final_obs"]', "the last observation of every row that ended", "none")
        for leaf, column in zip(self._obs.leaves, self._final_columns):
            value = final_obs[j] if singly else final_obs
            for part in leaf.path:
                value = value[part]
            try:
                fitting = self._fit(row, leaf, value if singly else value[j], notes)
            except RowError as error:
                raise RowError(f"final_obs{leaf}", error.expected, error.got, error.leaf) from None
            assert column is not None
            column[row] = fitting

    def _fail_rows(self, rows: Sequence[int], op: str, error: Exception, notes: list[Note]) -> None:
        report = describe(error, op)
        self._forget(rows, notes)
        self._begun[rows] = False
        self._reward_rows[rows] = 0.0
        self._flag_rows[rows] = 0
        notes[:0] = [(self._first + row, 0, ERROR, report) for row in rows]

    def _fail(self, i: int, op: str, error: Exception, notes: list[Note], *, again: bool = True) -> None:
        self._fail_rows([i], op, error, notes)

    def _forget(self, rows: Sequence[int], notes: list[Note]) -> None:
        gone = {self._first + row for row in rows}
        notes[:] = [note for note in notes if note[0] not in gone or note[2] == WARNING]


def _per_row(what: str, values: Any, count: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (count,):
        raise RowError(what, f"one per row, ({count},)", f"{array.dtype} {array.shape}")
    return array


def _flags(what: str, values: Any, count: int) -> NDArray[np.bool_]:
    array = _per_row(what, values, count)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise RowError(what, "bools", f"{array.dtype} {str(array)[:80]}")
    return array.astype(np.bool_)


def _check_infos(infos: dict[str, Any], count: int, where: str = "infos") -> None:
    """Raise RowError unless they are as Gymnasium has them: arrays with a row per env, also in nested dicts."""
    for key, value in infos.items():
        if isinstance(value, dict):
            _check_infos(value, count, f'{where}["{key}"]')
            continue
        try:
            size = -1 if isinstance(value, (str, bytes)) else len(value)
        except TypeError:
            size = -1
        if size != count:
            got = type(value).__name__ if size < 0 else f"{type(value).__name__} of {size}"
            raise RowError(f'{where}["{key}"]', f"an array of {count} rows", got)


def _at(rows: slice, which: NDArray[np.bool_]) -> list[int]:
    at: list[int] = (rows.start + np.flatnonzero(which)).tolist()
    return at


def _seed_of(seeds: list[int | None], which: NDArray[np.bool_]) -> int | list[int | None] | None:
    """The seeds of the rows of `which` as Gymnasium's interface has it: an int, of which row i gets seed + i, or None.

    Where no int says it: one seed per row, as Gymnasium's own two take it, but not every VectorEnv.
    """
    firsts = {None if (seed := seeds[row]) is None else seed - row for row in _at(slice(0, None), which)}
    first = firsts.pop()
    return seeds if firsts or (first is not None and first < 0) else first


def _owner(env: Any, name: str) -> Any:
    """The outermost of a VectorEnv and those it wraps that has the attribute; if none has, the VectorEnv itself."""
    layer = env
    while not hasattr(layer, name):
        if not isinstance(layer, gym.vector.VectorWrapper):
            return env
        layer = layer.env
    return layer


def _hook_of(env: Any) -> Callable[[Any, int], None] | None:
    hook = getattr(_owner(env, "on_broadcast"), "on_broadcast", None)
    return hook if callable(hook) else None


def _row_of(infos: dict[str, Any], j: int) -> dict[str, Any]:
    """One env's info out of Gymnasium's dict of arrays with masks."""
    info: dict[str, Any] = {}
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        if mask is not None and not mask[j]:
            continue
        info[key] = _row_of(value, j) if isinstance(value, dict) else value[j]
    return info
