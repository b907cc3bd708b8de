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
from ..core.messages import ERROR, RESULT, Note, Packed
from ..core.options import Settings
from ..core.report import RowError, describe
from ..core.updates import Inbox
from .rows import Rows, close_all, flags_of, per_row

__all__ = ["VectorEnvGroup"]


class VectorEnvGroup:
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
        restart_seeds: Sequence[int | None] | None = None,
        left: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.envs: list[Any] = list(envs)
        self.settings = settings
        self._inbox, self._catch_up = inbox, catch_up
        self._action = action
        self._hooks = [_hook_of(env) for env in envs]
        bounds = np.cumsum([0, *rows]).tolist()
        self._slices = [slice(a, b) for a, b in pairwise(bounds)]
        count = bounds[-1]
        self.rows = Rows(first, count, slab, obs, settings, left)
        self.everyone = self.rows.everyone
        mine = slice(first, first + count)
        self._newest = slab.newest
        self._restart_seeds: list[int | None] = (
            [None] * count if restart_seeds is None else list(restart_seeds)
        )
        self._begun = np.zeros(count, np.bool_)
        self._tasks: list[Any] = [None] * count  # of the episode that each row is in
        self._ended_rows = np.zeros(count, np.bool_)  # ended by the last step: the next one autoresets them
        self._actions_in: list[Any] = [None if column is None else column[mine] for column in slab.action]
        self._next_step = settings.autoreset is AutoresetMode.NEXT_STEP
        self._same_step = settings.autoreset is AutoresetMode.SAME_STEP

    def step(self, envs: Sequence[int] | None, pickled: Sequence[Any] = ()) -> list[Note]:
        notes: list[Note] = []
        for k, rows in self._touched(envs):
            anew = ~self._begun[rows]  # of a replacement
            if anew.all():
                self._reset(k, rows, self._restart_seeds[rows], None, anew, notes)
                continue
            try:
                self._update(k)
                if self._next_step:
                    self._forget_tasks(_at(rows, self._ended_rows[rows]))
                actions = self._action.join(self._actions_of(rows, pickled))
                obs, rewards, terminations, truncations, infos = self.envs[k].step(actions)
                self.rows.write_batch(rows, obs, notes)
                count = rows.stop - rows.start
                rewards = per_row("the rewards", rewards, count)
                if rewards.dtype.kind not in "fiub" or not np.isfinite(rewards).all():
                    raise RowError("the rewards", "finite numbers", f"{rewards.dtype} {str(rewards)[:80]}")
                terminations = flags_of("the terminations", terminations, count)
                truncations = flags_of("the truncations", truncations, count)
                done = terminations | truncations
                self.rows.rewards[rows] = rewards
                self.rows.flags[rows] = np.where(terminations, TERMINATED, 0) + np.where(
                    truncations, TRUNCATED, 0
                )
                began = done if self._same_step else self._ended_rows[rows]
                self.rows.versions[rows] = np.where(began, self._inbox.taken_up_to, self.rows.versions[rows])
                reset_rows = self._ended_rows[rows].copy() if self._next_step else np.zeros_like(done)
                self._ended_rows[rows] = done
                self._share(rows, infos, done, reset_rows, notes)
            except Exception as error:
                self._fail(range(rows.start, rows.stop), "step", error, notes)
                continue
            if anew.any():
                # Some rows were reset by a command before: the others begin now, and what they did was for nothing.
                self.rows.clear(_at(rows, anew), notes)
                self._reset(k, rows, self._restart_seeds[rows], None, anew, notes)
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

    def refuse(self, envs: Sequence[int], op: str, error: Exception) -> list[Note]:
        notes: list[Note] = []
        self._fail(envs, op, error, notes)
        return notes

    def close(self) -> list[Note]:
        envs, self.envs = self.envs, []
        return close_all(envs)

    def pack(self, notes: list[Note], op: str = "step") -> Sequence[bytes]:
        return self.rows.pack(notes, lambda i, error: self._fail([i], op, error, notes))

    # -- inside --------------------------------------------------------------------------------------------------

    def _touched(self, envs: Sequence[int] | None) -> Iterator[tuple[int, slice]]:
        wanted = None if envs is None else set(envs)
        for k, rows in enumerate(self._slices):
            if wanted is None or any(row in wanted for row in range(rows.start, rows.stop)):
                yield k, rows

    def _update(self, k: int) -> None:
        newest = int(self._newest[0])
        if newest > self._inbox.taken_up_to:
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
            self._forget_tasks(_at(rows, which))
            if (self._begun[rows] & ~which).any():
                given["reset_mask"] = which.copy()
            obs, infos = self.envs[k].reset(seed=_seed_of(seeds, which), options=given or None)
            self.rows.write_batch(rows, obs, notes, which)
            self._share(rows, infos, np.zeros_like(which), which, notes)
        except Exception as error:
            self._fail(_at(rows, which), "reset", error, notes)
            return
        self._begun[rows] |= which
        self._ended_rows[rows] &= ~which
        self.rows.versions[rows] = np.where(which, self._inbox.taken_up_to, self.rows.versions[rows])
        self.rows.rewards[rows] = np.where(which, 0.0, self.rows.rewards[rows])
        self.rows.flags[rows] = np.where(which, 0, self.rows.flags[rows])

    def _actions_of(self, rows: slice, pickled: Sequence[Any]) -> list[NDArray[Any]]:
        """The actions of these rows, leaf by leaf; `pickled` as in `step`."""
        columns: list[NDArray[Any]] = []
        for index, leaf in enumerate(self._action.leaves):
            given = pickled[index] if pickled else None
            if given is None:
                columns.append(self._actions_in[index][rows].copy())
            else:
                columns.append(np.array(given[rows], leaf.dtype))
        return columns

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
            begins = bool(edges[j]) or (self._same_step and bool(done[j]))
            if begins:
                self._tasks[row] = info.get("task")
            if self._same_step and done[j]:
                self.rows.write_final(row, j, final_obs, notes)
                if final := _row_of(final_infos or {}, j):
                    self.rows.say(row, final, notes, ends=True, final=True)
            if info:
                ends = bool(done[j]) and not self._same_step
                self.rows.say(row, info, notes, begins=begins, ends=ends)

    def _forget_tasks(self, rows: Sequence[int]) -> None:
        """These rows are about to begin episodes, of tasks that nobody knows yet."""
        for row in rows:
            self._tasks[row] = None

    def _fail(self, rows: Sequence[int], op: str, error: Exception, notes: list[Note]) -> None:
        """Each row's error is said with the task of its own episode."""
        self._begun[rows] = False
        report = describe(error, op)
        for row in reversed(rows):  # each is put in front
            self.rows.fail([row], report.about(self._tasks[row]), notes)


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
