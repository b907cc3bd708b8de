"""A worker whose factories make VectorEnvs: their sub-envs are the rows, stepped by one call each."""
# pure: calls the user's envs and writes their rows; no pipe, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from .broadcast import Inbox
from .env_group import EnvGroup, Extras, RowError, Settings
from .report import describe
from .slab import TERMINATED, TRUNCATED, Slab, SpaceTree

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
    ) -> None:
        for leaf in obs.leaves:
            if not leaf.fixed:
                raise ValueError(f"obs{leaf} of a VectorEnv has no fixed size: {leaf.space}")
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
        self._begun = np.zeros(count, np.bool_)
        self._ended_rows = np.zeros(count, np.bool_)  # ended by the last step: the next one autoresets them
        self._columns = [None if column is None else column[mine] for column in slab.obs]
        self._final_columns = [None if column is None else column[mine] for column in slab.final_obs]
        self._actions_in = [None if column is None else column[mine] for column in slab.action]
        self._reward_rows = slab.rewards[mine]
        self._flag_rows = slab.flags[mine]
        self._version_rows = slab.versions[mine]
        self._next_step = settings.autoreset is AutoresetMode.NEXT_STEP
        self._same_step = settings.autoreset is AutoresetMode.SAME_STEP

    def step(self, envs: Sequence[int] | None, loose: Sequence[Any] = ()) -> Extras:
        extras: Extras = {}
        for k, rows in self._touched(envs):
            if not self._begun[rows].all():  # a replacement: everything begins anew
                self._reset(k, rows, self._reborn_seeds[rows], None, None, extras)
                continue
            try:
                self._update(k)
                actions = self._action.join([c[rows].copy() for c in self._actions_in if c is not None])
                obs, rewards, terminations, truncations, infos = self.envs[k].step(actions)
                self._fill(self._columns, rows, obs)
                rewards = np.asarray(rewards, np.float64)
                if not np.isfinite(rewards).all():
                    raise RowError("the rewards", "finite numbers", str(rewards)[:80])
                done = np.asarray(terminations, np.bool_) | np.asarray(truncations, np.bool_)
                self._reward_rows[rows] = rewards
                self._flag_rows[rows] = np.where(terminations, TERMINATED, 0) + np.where(
                    truncations, TRUNCATED, 0
                )
                began = done if self._same_step else self._ended_rows[rows]
                self._version_rows[rows] = np.where(began, self._inbox.covered, self._version_rows[rows])
                reset_rows = self._ended_rows[rows].copy() if self._next_step else np.zeros_like(done)
                self._ended_rows[rows] = done
                self._share(rows, dict(infos), done, reset_rows, extras)
            except Exception as error:
                self._fail_all(rows, "step", error, extras)
        return extras

    def reset(
        self, envs: Sequence[int], seeds: Sequence[int | None], options: dict[str, Any] | None
    ) -> Extras:
        extras: Extras = {}
        by_row = dict(zip(envs, seeds))
        for k, rows in self._touched(envs):
            wanted = [row for row in range(rows.start, rows.stop) if row in by_row]
            mask = None
            if len(wanted) < rows.stop - rows.start:
                mask = np.array([row in by_row for row in range(rows.start, rows.stop)])
            mine = [by_row.get(row) for row in range(rows.start, rows.stop)]
            self._reset(k, rows, mine, options, mask, extras)
        return extras

    def call(self, op: str, name: str, envs: Sequence[int], values: Any) -> list[tuple[bool, Any]]:
        results: list[tuple[bool, Any]] = []
        for position, k in enumerate(envs):
            try:
                self._update(k)
                result: Any = None
                if op == "set":
                    setattr(_owner(self.envs[k], name), name, values[position])
                elif op == "apply":
                    result = values(self.envs[k])
                else:
                    result = getattr(_owner(self.envs[k], name), name)
                    if op == "call" and callable(result):
                        result = result(*values[0], **values[1])
                results.append((True, result))
            except Exception as error:
                results.append((False, describe(error, op)))
        return results

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
        options: dict[str, Any] | None,
        mask: Any,
        extras: Extras,
    ) -> None:
        try:
            self._update(k)
            given = dict(options or {})
            if mask is not None:
                given["reset_mask"] = mask
            obs, infos = self.envs[k].reset(seed=_seed_of(seeds, mask), options=given or None)
            self._fill(self._columns, rows, obs)
        except Exception as error:
            self._fail_all(rows, "reset", error, extras)
            return
        which = np.ones(rows.stop - rows.start, np.bool_) if mask is None else mask
        self._begun[rows] |= which
        self._ended_rows[rows] &= ~which
        self._version_rows[rows] = np.where(which, self._inbox.covered, self._version_rows[rows])
        self._reward_rows[rows] = np.where(which, 0.0, self._reward_rows[rows])
        self._flag_rows[rows] = np.where(which, 0, self._flag_rows[rows])
        self._share(rows, dict(infos), np.zeros_like(which), which, extras)

    def _fill(self, columns: Sequence[Any], rows: slice, obs: Any) -> None:
        """Write a batch of observations, leaf by leaf, after checking all of it."""
        values = []
        for leaf, column in zip(self._obs.leaves, columns):
            value = obs
            for part in leaf.path:
                value = value[part]
            array = np.asarray(value)
            expected = (rows.stop - rows.start, *leaf.shape)
            if array.shape != expected or not np.can_cast(array.dtype, leaf.dtype, "safe"):
                raise RowError(
                    f"obs{leaf}", f"{leaf.dtype} {expected}", f"{array.dtype} {array.shape}", f"obs{leaf}"
                )
            if self.settings.check == "finite" and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RowError(f"obs{leaf}", "finite numbers", "NaN or infinity", f"obs{leaf}")
            values.append((column, array))
        for column, array in values:
            column[rows] = array

    def _share(self, rows: slice, infos: dict[str, Any], done: Any, edges: Any, extras: Extras) -> None:
        """Take the VectorEnv's batched infos apart, row by row."""
        final_obs, final_infos = infos.pop("final_obs", None), infos.pop("final_info", None)
        infos.pop("_final_obs", None), infos.pop("_final_info", None)
        for j in range(rows.stop - rows.start):
            row = rows.start + j
            info = _row_of(infos, j)
            if self._same_step and done[j]:
                self._final_row(row, j, final_obs)
                final = _row_of(final_infos or {}, j)
                if final:
                    self._info(row, final, extras, edge=True, kind="final_infos")
                    if isinstance(self.settings.info, tuple):
                        extras.setdefault("ends", []).append((row, final))
            elif done[j] and info and isinstance(self.settings.info, tuple):
                extras.setdefault("ends", []).append((row, info))
            begins = bool(edges[j]) or (self._same_step and bool(done[j]))
            if info:
                self._info(row, info, extras, edge=begins or bool(done[j]))
                if begins and "task" in info and isinstance(self.settings.info, tuple):
                    extras.setdefault("tasks", []).append((row, info["task"]))

    def _final_row(self, row: int, j: int, final_obs: Any) -> None:
        if final_obs is None:
            return
        for leaf, column in zip(self._obs.leaves, self._final_columns):
            value = final_obs[j] if isinstance(final_obs, np.ndarray) and final_obs.dtype == object else None
            if value is None:  # batched as the space says, not row by row
                value = final_obs
                for part in leaf.path:
                    value = value[part]
                value = value[j]
            else:
                for part in leaf.path:
                    value = value[part]
            assert column is not None
            column[row] = value

    def _fail_all(self, rows: slice, op: str, error: Exception, extras: Extras) -> None:
        report = describe(error, op)
        self._begun[rows] = False
        self._reward_rows[rows] = 0.0
        self._flag_rows[rows] = 0
        extras.setdefault("errors", []).extend((row, report) for row in range(rows.start, rows.stop))

    def _fail(self, i: int, op: str, error: Exception, extras: Extras, *, again: bool = True) -> None:
        for items in extras.values():
            items[:] = [item for item in items if item[0] != i]
        self._begun[i] = False
        extras.setdefault("errors", []).append((i, describe(error, op)))


def _seed_of(seeds: list[int | None], mask: Any) -> int | list[int | None] | None:
    """The seeds of the rows in `mask` as Gymnasium's interface has it: an int, of which row i gets seed + i, or None.

    Where no int says it: one seed per row, as Gymnasium's own two take it, but not every VectorEnv.
    """
    rows = range(len(seeds)) if mask is None else np.flatnonzero(mask).tolist()
    firsts = {None if (seed := seeds[row]) is None else seed - row for row in rows}
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
