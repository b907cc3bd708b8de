"""The envs of one worker, stepped in turn: autoreset, info filter, updates applied at reset, errors kept apart.

Used by every backend: in a child process by `worker`, in the caller's thread by `backends.inline`. One env's failure
never touches its neighbours; what went wrong is reported with the reply.
"""
# pure: calls the user's envs and writes their rows; no pipe, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ..core import framing as wire
from ..core.layout import TERMINATED, TRUNCATED, Leaf, Slab, SpaceTree, cast, exact
from ..core.messages import (
    END_INFO,
    ERROR,
    FINAL_INFO,
    FINAL_OBS,
    GIVEN_OBS,
    INFO,
    OBS,
    RESTARTED,
    RESULT,
    TASK,
    WARNING,
    Note,
    Packed,
)
from ..core.options import Settings
from ..core.report import RowError, describe
from ..core.updates import Inbox
from .rows import pack

__all__ = ["EnvGroup", "fit"]


_BOOLS = (False, True)
_REWARD_TYPES = frozenset({float, int, np.float64, np.float32, np.int64, np.int32, bool, np.bool_})

_MAX_WARNED = (
    32  # keys of a worker's observations: those of an env that makes up new ones all the time are enough then
)


class _Rows(NamedTuple):
    """Where one set of observations goes: per leaf, per local env, a writable view; None for loose leaves."""

    views: list[list[np.ndarray[Any, Any]] | None]

    @classmethod
    def of(cls, columns: Sequence[np.ndarray[Any, Any] | None], start: int, stop: int) -> _Rows:
        return cls([None if c is None else [c[i, ...] for i in range(start, stop)] for c in columns])


class EnvGroup:
    """`envs[i]` is env `first + i` of the vec env and owns that row of the slab while it has a command.

    `catch_up(version)` must return only once the inbox covers `version`; it is called just before a reset if the
    newest version in the block is ahead. Errors of envs come back in the notes; nothing else is raised. `left()`: the
    bytes of memory that are left, which bound what one env may say.
    """

    def __init__(
        self,
        envs: Sequence[gym.Env[Any, Any]],
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
        self.envs = list(envs)
        self._left = left
        self._first = first
        count = len(self.envs)
        self.settings = settings
        self._inbox, self._catch_up = inbox, catch_up
        self._obs, self._action = obs, action
        self._steps: list[Callable[[Any], tuple[Any, Any, Any, Any, Any]]] = [env.step for env in self.envs]
        self._hooks = [hook_of(env) for env in self.envs]
        self._pending = [True] * count  # its next command resets it, whatever it is
        # Who is in it has never begun an episode: after a restart any command begins one, with this seed.
        self._fresh: dict[int, int | None] = dict(enumerate(reborn or [None] * count))
        self._tasks: list[Any] = [None] * count  # of the newest reset, as its info says
        self._refused: dict[int, Exception] = {}  # raised in on_broadcast outside the env's own command

        stop = first + count
        self._newest = slab.newest
        self._rows = _Rows.of(slab.obs, first, stop)
        self._final_rows = _Rows.of(slab.final_obs, first, stop)
        # A memoryview takes a Python number in a third of the time that an array takes.
        self._rewards: Any = memoryview(slab.rewards[first:stop].data)
        self._flags: Any = memoryview(slab.flags[first:stop].data)
        self._versions: Any = memoryview(slab.versions[first:stop].data)
        self._action_columns = [None if c is None else c[first:stop] for c in slab.action]
        as_ints = settings.casting == "safe"  # else numpy's integers, as other vec envs have it
        self._discrete = [as_ints and isinstance(leaf.space, gym.spaces.Discrete) for leaf in action.leaves]
        self._warned: set[str] = set()  # what the parent was told once
        self.everyone = range(count)  # local indices of its rows
        self._no_flags = bytes(count)
        # where the observation is one leaf in the block: its rows, by local index
        leaf = obs.leaves[0] if obs.leaves else None  # of an empty Dict or Tuple there is none
        self._dtype = None if leaf is None else leaf.dtype
        self._shape = () if leaf is None else leaf.shape
        self._plain_rows = self._rows.views[0] if obs.is_leaf else None
        # where its numbers must be finite: all these rows, looked at once per command
        finite = settings.check == "finite" and leaf is not None and leaf.dtype.kind == "f"
        column = slab.obs[0] if finite and obs.is_leaf else None
        self._finite = None if column is None else column[first:stop]

    # -- commands: each returns what the reply carries beside the block ------------------------------------------

    def step(self, envs: Sequence[int] | None, loose: Sequence[Any] = ()) -> list[Note]:
        """Step each of `envs` (local indices; None = all) with the action in its row; autoreset where one is due.

        `loose[k]` holds, per env of the command, the action's k-th leaf where that is not in the block.
        """
        notes: list[Note] = []
        if self._inbox.has_now:
            self._deliver_now()
        steps, pending, refused, rewards = self._steps, self._pending, self._refused, self._rewards
        rows, dtype, shape = self._plain_rows, self._dtype, self._shape
        ndarray, all_infos, first = np.ndarray, self.settings.info == "all", self._first
        if envs is None:
            envs = self.everyone
            self._flags[:] = self._no_flags
        else:
            for i in envs:
                self._flags[i] = 0
        for i, action in zip(envs, self._actions(envs, loose)):
            if pending[i] or refused:
                if error := refused.pop(i, None):
                    self._fail(i, "on_broadcast", error, notes)
                    continue
                if pending[i]:
                    self._autoreset(i, notes)
                    continue
            try:
                obs, reward, terminated, truncated, info = steps[i](action)
            except Exception as error:
                self._fail(i, "step", error, notes)
                continue
            if (  # as nearly always; everything else is looked at with care
                terminated is False
                and truncated is False
                and type(reward) is float
                and isfinite(reward)
                and type(info) is dict
                and rows is not None
                and type(obs) is ndarray
                and obs.dtype is dtype
                and obs.shape == shape
            ):
                rows[i][...] = obs
                rewards[i] = reward
                if info:
                    if all_infos:
                        notes.append((first + i, 0, INFO, info))
                    else:
                        self._info(i, info, notes, edge=False)
                continue
            try:
                self._take(i, obs, reward, terminated, truncated, info, notes)
            except Exception as error:
                self._fail(i, "step", error, notes)
        finite = self._finite
        if finite is not None and np.count_nonzero(np.isfinite(finite)) < finite.size:
            self._fail_infinite(envs, notes)
        return notes

    def _fail_infinite(self, envs: Sequence[int], notes: list[Note]) -> None:
        """Fail those whose step gave a NaN or an infinity. Their rows are zeros until they are reset."""
        assert self._finite is not None
        failed = {note[0] for note in notes if note[2] == ERROR}
        for i in envs:
            if self._first + i not in failed and not np.isfinite(self._finite[i]).all():
                self._finite[i] = 0
                self._fail(i, "step", _infinite(self._obs.leaves[0]), notes)

    def _take(
        self, i: int, obs: Any, reward: Any, terminated: Any, truncated: Any, info: Any, notes: list[Note]
    ) -> None:
        """Check and store what a step gave. Raises RowError."""
        if type(reward) not in _REWARD_TYPES or not isfinite(reward):
            reward = _reward(reward)
        if terminated not in _BOOLS or truncated not in _BOOLS or not isinstance(info, dict):
            raise _bad_flags(terminated, truncated, info)
        if terminated or truncated:
            self._end(i, obs, reward, bool(terminated), bool(truncated), info, notes)
            return
        self._write(i, obs, self._rows, OBS, notes)
        self._rewards[i] = reward
        if info:
            self._info(i, info, notes, edge=False)

    def reset(self, envs: Sequence[int], seeds: Sequence[int | None], packed: bytes | None) -> list[Note]:
        """Reset each of `envs` with its seed; also the way back for an env that has failed. `packed`: the options,
        pickled; each env gets its own."""
        notes: list[Note] = []
        if self._inbox.has_now:
            self._deliver_now()
        for i, seed in zip(envs, seeds):
            if error := self._refused.pop(i, None):
                self._fail(i, "on_broadcast", error, notes, again=False)
                continue
            try:
                options = None if packed is None else wire.loads(packed)
            except Exception as error:  # whatever unpickling runs
                self._fail(i, "reset", error, notes, again=False)
                continue
            self._begin(i, seed, options, notes)
        return notes

    def call(self, op: str, name: str, envs: Sequence[int], packed: Packed) -> list[Note]:
        """`op`: "call" (packed: args, kwargs), "get", "set" (packed: one per env), "apply" (packed: a function of env).

        Per env a RESULT or an ERROR, in their order. What is packed is pickled; each env gets its own.
        """
        notes: list[Note] = []
        if self._inbox.has_now:
            self._deliver_now()
        for position, i in enumerate(envs):
            env = self.envs[i]
            try:
                given = wire.loads(packed if isinstance(packed, bytes) else packed[position])
                if op == "set":
                    env.set_wrapper_attr(name, given)
                    result: Any = None
                elif op == "apply":
                    result = given(env)
                else:
                    result = env.get_wrapper_attr(name)
                    if op == "call" and callable(result):
                        args, kwargs = given
                        result = result(*args, **kwargs)
                notes.append((position, 0, RESULT, result))
            except Exception as error:
                notes.append((position, 0, ERROR, describe(error, op, self._tasks[i])))
        return notes

    def refuse(self, envs: Sequence[int], op: str, error: Exception) -> list[Note]:
        """A command of these envs could not be understood: each of them has failed."""
        notes: list[Note] = []
        for i in envs:
            self._fail(i, op, error, notes, again=False)
        return notes

    def close(self) -> list[Note]:
        """Close every env, each once; an ERROR of each that raised, by its position."""
        notes: list[Note] = []
        envs, self.envs = self.envs, []
        for i, env in enumerate(envs):
            try:
                env.close()
            except Exception as error:
                notes.append((i, 0, ERROR, describe(error, "close")))
        return notes

    # -- one env ----------------------------------------------------------------------------------------------

    def _actions(self, envs: Sequence[int], loose: Sequence[Any]) -> Iterable[Any]:
        """One action per env of the command: ints for Discrete, an array or numpy scalar of its own otherwise."""
        if not self._action_columns:
            return [self._action.join([]) for _ in envs]
        columns: list[Iterable[Any]] = []
        for index, column in enumerate(self._action_columns):
            if loose and loose[index] is not None:
                columns.append(loose[index])
            else:
                assert column is not None
                values = column if envs is self.everyone else column[list(envs)]
                if values.ndim == 1:
                    columns.append(values.tolist() if self._discrete[index] else list(values))
                else:  # an env may keep its action; picking rows by index has copied already
                    columns.append(values.copy() if values is column else values)
        if self._action.is_leaf:
            return columns[0]
        return (self._action.join(leaves) for leaves in zip(*columns))

    def _autoreset(self, i: int, notes: list[Note]) -> None:
        self._begin(i, self._fresh.get(i), None, notes)

    def _begin(self, i: int, seed: int | None, options: dict[str, Any] | None, notes: list[Note]) -> None:
        """Reset env `i`; its episode begins with the look at the newest version."""
        inbox = self._inbox
        newest = int(self._newest[0])
        if newest > inbox.covered:
            self._catch_up(newest)
            if inbox.has_now:
                self._deliver_now(skip=i)
        op = "on_broadcast"
        try:
            version = inbox.covered
            inbox.deliver(i, self._hooks[i])
            op = "reset"
            self._tasks[i] = None
            result = self.envs[i].reset(seed=seed, options=options)
            obs, info = _reset_result(result)
            self._tasks[i] = info.get("task")
            self._write(i, obs, self._rows, OBS, notes)
        except Exception as error:
            self._fail(i, op, error, notes, again=False)
            return
        self._pending[i] = False
        if self._fresh:
            self._fresh.pop(i, None)
        self._versions[i] = version
        self._rewards[i] = 0.0
        self._flags[i] = 0
        if info:
            self._info(i, info, notes, edge=True)
            if "task" in info and isinstance(self.settings.info, tuple) and "task" not in self.settings.info:
                notes.append((self._first + i, 0, TASK, info["task"]))

    def _end(
        self,
        i: int,
        obs: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
        notes: list[Note],
    ) -> None:
        """The step that ended an episode; under SAME_STEP the next one begins at once."""
        same_step = self.settings.autoreset is AutoresetMode.SAME_STEP
        if same_step:
            # Snapshotted before the reset: the env may use its buffers and dicts again.
            self._write(i, obs, self._final_rows, FINAL_OBS, notes)
            if self.settings.casting == "unsafe" and not self._is_as_in_its_row(obs):
                notes.append((self._first + i, 0, GIVEN_OBS, wire.loads(wire.dumps(obs, "the observation"))))
            info = wire.loads(wire.dumps(info, "infos")) if info else info
            self._begin(i, None, None, notes)
        else:
            self._write(i, obs, self._rows, OBS, notes)
            self._pending[i] = self.settings.autoreset is AutoresetMode.NEXT_STEP
        self._rewards[i] = reward
        self._flags[i] = terminated * TERMINATED + truncated * TRUNCATED
        if info:
            self._info(i, info, notes, edge=True, kind=FINAL_INFO if same_step else INFO)
            if isinstance(self.settings.info, tuple):
                notes.append((self._first + i, 0, END_INFO, info))

    def _is_as_in_its_row(self, obs: Any) -> bool:
        """Whether the row of an observation that fits gives it back, types included."""
        leaves = zip(self._obs.leaves, self._obs.split(obs)[0])
        return all(
            not leaf.stackable or (type(value) is np.ndarray and value.dtype == leaf.dtype)
            for leaf, value in leaves
        )

    def _write(self, i: int, obs: Any, rows: _Rows, kind: int, notes: list[Note]) -> None:
        """Write one observation, leaf by leaf, after checking all of it."""
        if self._plain_rows is not None and type(obs) is np.ndarray and obs.dtype is self._dtype:
            views = rows.views[0]
            if views is not None and obs.shape == self._shape:
                if self._finite is not None and not np.isfinite(obs).all():
                    raise _infinite(self._obs.leaves[0])
                views[i][...] = obs
                return
        tree = self._obs
        try:
            values, undeclared = tree.split(obs)
        except (KeyError, TypeError, IndexError) as error:
            raise RowError("the observation", str(tree.space), str(error.args[0])) from None
        self._warn_undeclared(i, undeclared, notes)
        fitting: list[Any] = []
        loose: list[Any] = []
        for leaf, value, views in zip(tree.leaves, values, rows.views):
            if views is None:
                if not leaf.fixed and leaf.stackable:
                    value = self._fit(i, leaf, value, notes).copy()
                elif kind == FINAL_OBS:  # the reset that follows may use its buffers again
                    value = wire.loads(wire.dumps(value, f"obs{leaf}"))
                loose.append(value)
            else:
                fitting.append(self._fit(i, leaf, value, notes))
        fixed = iter(fitting)
        for views in rows.views:
            if views is not None:
                views[i][...] = next(fixed)
        if loose:
            notes.append((self._first + i, 0, kind, loose))

    def _fit(self, i: int, leaf: Leaf, value: Any, notes: list[Note]) -> Any:
        """`value` as an array of the leaf's shape and dtype. Raises RowError, unless `Settings.casting` casts it."""
        try:
            return fit(leaf, value, self.settings.check == "finite")
        except RowError:
            if self.settings.casting == "safe" or exact(leaf, value) is not None:
                raise
            if (fitting := cast(leaf, value)) is None:
                raise
        self._warn_cast(i, leaf, np.asarray(value).dtype, notes)
        return fit(leaf, fitting, self.settings.check == "finite")

    def _warn_cast(self, i: int, leaf: Leaf, dtype: np.dtype[Any], notes: list[Note]) -> None:
        text = f"obs{leaf} is {dtype} where its space says {leaf.dtype}: it is cast"
        self._warn(i, [f"obs{leaf}"], text, notes)

    def _warn_undeclared(self, i: int, keys: list[str], notes: list[Note]) -> None:
        if keys:
            text = f"its space does not declare {_some(keys)}: dropped from its observations"
            self._warn(i, keys, text, notes)

    def _warn(self, i: int, about: list[str], text: str, notes: list[Note]) -> None:
        """Have the parent warn, once for what it is about."""
        if len(self._warned) < _MAX_WARNED and not self._warned.issuperset(about):
            self._warned.update(about)
            notes.insert(0, (self._first + i, 0, WARNING, (tuple(about), text)))

    def _info(self, i: int, info: dict[str, Any], notes: list[Note], *, edge: bool, kind: int = INFO) -> None:
        wanted = self.settings.info
        if isinstance(wanted, tuple):
            info = {name: info[name] for name in wanted if name in info}
        elif wanted == "episode" and not edge:
            return
        if info:
            notes.append((self._first + i, 0, kind, info))

    def _fail(self, i: int, op: str, error: Exception, notes: list[Note], *, again: bool = True) -> None:
        """Env `i` raised. With on_env_error="reset" it begins anew at once, unless it was a reset that failed."""
        report = describe(error, op, self._tasks[i])
        self._rewards[i] = 0.0
        self._flags[i] = 0
        env_id = self._first + i
        notes[:] = [note for note in notes if note[0] != env_id or note[2] == WARNING]
        self._pending[i] = True
        if self.settings.on_env_error == "reset" and again:
            self._begin(i, None, None, notes)
            if not self._pending[i]:
                notes.append((env_id, 0, RESTARTED, report))
            return
        notes.insert(0, (env_id, 0, ERROR, report))

    def _deliver_now(self, skip: int = -1) -> None:
        self._inbox.has_now = False
        for i, hook in enumerate(self._hooks):
            if i == skip:
                continue  # it gets everything in its reset
            try:
                if i in self._fresh:  # in the order of the versions, also those that it gets before a reset
                    self._inbox.deliver(i, hook)
                else:
                    self._inbox.deliver_now(i, hook)
            except Exception as error:
                self._refused[i] = error

    # -- the reply ----------------------------------------------------------------------------------------------

    def pack(self, notes: list[Note], op: str = "step") -> Sequence[bytes]:
        """The payloads of the reply to `op`. What cannot travel fails its own env only."""

        def refuse(note: Note, error: Exception) -> None:
            if note in notes:  # its env has not failed for another one
                self._fail(note[0] - self._first, op, error, notes, again=False)

        return pack(notes, refuse, self._left)

    def pack_results(self, notes: list[Note]) -> Sequence[bytes]:
        """The payloads of the reply to a call. What cannot travel is the error of its own env only."""

        def refuse(note: Note, error: Exception) -> None:
            notes[note[0]] = (note[0], 0, ERROR, describe(error, "call"))

        return pack(notes, refuse, self._left)


def hook_of(env: Any) -> Callable[[Any, int], None] | None:
    """The outermost `on_broadcast` of an env and what it wraps."""
    try:
        hook = env.get_wrapper_attr("on_broadcast")
    except AttributeError:
        return None
    return hook if callable(hook) else None


def fit(leaf: Leaf, value: Any, finite: bool) -> Any:
    """One env's value of a leaf as an array of its shape and dtype, nothing lost. Raises RowError."""
    fitting = exact(leaf, value)
    if fitting is None:
        got = (
            f"{value.dtype} {value.shape}"
            if isinstance(value, (np.ndarray, np.generic))
            else f"{type(value).__name__} {str(value)[:80]}"
        )
        raise RowError(f"obs{leaf}", f"{leaf.dtype} {leaf.shape}", got, f"obs{leaf}")
    array = np.asarray(fitting)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _infinite(leaf)
    return array


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def _infinite(leaf: Leaf) -> RowError:
    return RowError(f"obs{leaf}", "finite numbers", "NaN or infinity", f"obs{leaf}")


def _reward(reward: Any) -> float:
    """A finite Python float, from any real scalar. Raises RowError."""
    try:
        if np.ndim(reward) == 0 and np.asarray(reward).dtype.kind in "fiub" and isfinite(reward):
            return float(reward)
    except (TypeError, ValueError):
        pass
    if isinstance(reward, np.ndarray) and reward.ndim:
        raise RowError("the reward", "a number", f"an array of shape {reward.shape}: {str(reward)[:80]}")
    raise RowError("the reward", "a finite number", f"{type(reward).__name__} {str(reward)[:80]}")


def _bad_flags(terminated: Any, truncated: Any, info: Any) -> RowError:
    if not isinstance(info, dict):
        return RowError("the info", "a dict", type(info).__name__)
    name, value = ("terminated", terminated) if terminated not in (True, False) else ("truncated", truncated)
    return RowError(name, "a bool", f"{type(value).__name__} {str(value)[:80]}")


def _reset_result(result: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise RowError("what reset returned", "(observation, info dict)", type(result).__name__)
    return result
