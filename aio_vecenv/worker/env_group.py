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
from ..core.options import Settings
from ..core.report import ErrorReport, RowError, describe
from ..core.updates import Inbox

__all__ = ["EnvGroup", "Extras", "Packed", "fit"]

Packed = bytes | list[bytes]  # pickles: one for all envs of a call, or one per env
Extras = dict[str, list[tuple[int, Any]]]  # what does not fit the block, by kind; rows are local indices

_BOOLS = (False, True)
_SLACK = 4096  # bytes of a reply that are no env's
_REWARD_TYPES = frozenset({float, int, np.float64, np.float32, np.int64, np.int32, bool, np.bool_})


class _Rows(NamedTuple):
    """Where one set of observations goes: per leaf, per local env, a writable view; None for loose leaves."""

    views: list[list[np.ndarray[Any, Any]] | None]

    @classmethod
    def of(cls, columns: Sequence[np.ndarray[Any, Any] | None], start: int, stop: int) -> _Rows:
        return cls([None if c is None else [c[i, ...] for i in range(start, stop)] for c in columns])


class EnvGroup:
    """`envs[i]` is env `first + i` of the vec env and owns that row of the slab while it has a command.

    `catch_up(version)` must return only once the inbox covers `version`; it is called just before a reset if the
    newest version in the block is ahead. Errors of envs come back in the extras; nothing else is raised.
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
    ) -> None:
        self.envs = list(envs)
        count = len(self.envs)
        self.settings = settings
        self._inbox, self._catch_up = inbox, catch_up
        self._obs, self._action = obs, action
        self._steps: list[Callable[[Any], tuple[Any, Any, Any, Any, Any]]] = [env.step for env in self.envs]
        self._hooks = [hook_of(env) for env in self.envs]
        self._pending = [True] * count  # its next command resets it, whatever it is
        # Who is in it has never begun an episode: after a restart any command begins one, with this seed.
        self._fresh: dict[int, int | None] = dict(enumerate(reborn or [None] * count))
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
        self._noted: set[str] = set()  # what the parent was told once
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

    def step(self, envs: Sequence[int] | None, loose: Sequence[Any] = ()) -> Extras:
        """Step each of `envs` (local indices; None = all) with the action in its row; autoreset where one is due.

        `loose[k]` holds, per env of the command, the action's k-th leaf where that is not in the block.
        """
        extras: Extras = {}
        if self._inbox.has_now:
            self._deliver_now()
        steps, pending, refused, rewards = self._steps, self._pending, self._refused, self._rewards
        rows, dtype, shape = self._plain_rows, self._dtype, self._shape
        ndarray, all_infos = np.ndarray, self.settings.info == "all"
        if envs is None:
            envs = self.everyone
            self._flags[:] = self._no_flags
        else:
            for i in envs:
                self._flags[i] = 0
        for i, action in zip(envs, self._actions(envs, loose)):
            if pending[i] or refused:
                if error := refused.pop(i, None):
                    self._fail(i, "on_broadcast", error, extras)
                    continue
                if pending[i]:
                    self._autoreset(i, extras)
                    continue
            try:
                obs, reward, terminated, truncated, info = steps[i](action)
            except Exception as error:
                self._fail(i, "step", error, extras)
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
                        extras.setdefault("infos", []).append((i, info))
                    else:
                        self._info(i, info, extras, edge=False)
                continue
            try:
                self._take(i, obs, reward, terminated, truncated, info, extras)
            except Exception as error:
                self._fail(i, "step", error, extras)
        finite = self._finite
        if finite is not None and np.count_nonzero(np.isfinite(finite)) < finite.size:
            self._fail_infinite(envs, extras)
        return extras

    def _fail_infinite(self, envs: Sequence[int], extras: Extras) -> None:
        """Fail those whose step gave a NaN or an infinity. Their rows are zeros until they are reset."""
        assert self._finite is not None
        failed = {i for i, _ in extras.get("errors", ())}
        for i in envs:
            if i not in failed and not np.isfinite(self._finite[i]).all():
                self._finite[i] = 0
                self._fail(i, "step", _infinite(self._obs.leaves[0]), extras)

    def _take(
        self, i: int, obs: Any, reward: Any, terminated: Any, truncated: Any, info: Any, extras: Extras
    ) -> None:
        """Check and store what a step gave. Raises RowError."""
        if type(reward) not in _REWARD_TYPES or not isfinite(reward):
            reward = _reward(reward)
        if terminated not in _BOOLS or truncated not in _BOOLS or not isinstance(info, dict):
            raise _bad_flags(terminated, truncated, info)
        if terminated or truncated:
            self._end(i, obs, reward, bool(terminated), bool(truncated), info, extras)
            return
        self._write(i, obs, self._rows, "objects", extras)
        self._rewards[i] = reward
        if info:
            self._info(i, info, extras, edge=False)

    def reset(self, envs: Sequence[int], seeds: Sequence[int | None], packed: bytes | None) -> Extras:
        """Reset each of `envs` with its seed; also the way back for an env that has failed. `packed`: the options,
        pickled; each env gets its own."""
        extras: Extras = {}
        if self._inbox.has_now:
            self._deliver_now()
        for i, seed in zip(envs, seeds):
            if error := self._refused.pop(i, None):
                self._fail(i, "on_broadcast", error, extras, again=False)
                continue
            try:
                options = None if packed is None else wire.loads(packed)
            except Exception as error:  # whatever unpickling runs
                self._fail(i, "reset", error, extras, again=False)
                continue
            self._begin(i, seed, options, extras)
        return extras

    def call(self, op: str, name: str, envs: Sequence[int], packed: Packed) -> list[tuple[bool, Any]]:
        """`op`: "call" (packed: args, kwargs), "get", "set" (packed: one per env), "apply" (packed: a function of env).

        Per env (ok, result or report). What is packed is pickled; each env gets its own.
        """
        results: list[tuple[bool, Any]] = []
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
                results.append((True, result))
            except Exception as error:
                results.append((False, describe(error, op)))
        return results

    def refuse(self, envs: Sequence[int], op: str, error: Exception) -> Extras:
        """A command of these envs could not be understood: each of them has failed."""
        extras: Extras = {}
        for i in envs:
            self._fail(i, op, error, extras, again=False)
        return extras

    def close(self) -> list[tuple[int, ErrorReport]]:
        """Close every env, each once; what those that raised have to say."""
        reports: list[tuple[int, ErrorReport]] = []
        envs, self.envs = self.envs, []
        for i, env in enumerate(envs):
            try:
                env.close()
            except Exception as error:
                reports.append((i, describe(error, "close")))
        return reports

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

    def _autoreset(self, i: int, extras: Extras) -> None:
        self._begin(i, self._fresh.get(i), None, extras)

    def _begin(self, i: int, seed: int | None, options: dict[str, Any] | None, extras: Extras) -> None:
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
            result = self.envs[i].reset(seed=seed, options=options)
            obs, info = _reset_result(result)
            self._write(i, obs, self._rows, "objects", extras)
        except Exception as error:
            self._fail(i, op, error, extras, again=False)
            return
        self._pending[i] = False
        if self._fresh:
            self._fresh.pop(i, None)
        self._versions[i] = version
        self._rewards[i] = 0.0
        self._flags[i] = 0
        if info:
            self._info(i, info, extras, edge=True)
            if "task" in info and isinstance(self.settings.info, tuple) and "task" not in self.settings.info:
                extras.setdefault("tasks", []).append((i, info["task"]))

    def _end(
        self,
        i: int,
        obs: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        info: dict[str, Any],
        extras: Extras,
    ) -> None:
        """The step that ended an episode; under SAME_STEP the next one begins at once."""
        same_step = self.settings.autoreset is AutoresetMode.SAME_STEP
        if same_step:
            # Snapshotted before the reset: the env may use its buffers and dicts again.
            self._write(i, obs, self._final_rows, "final_objects", extras)
            info = wire.loads(wire.dumps(info, "infos")) if info else info
            self._begin(i, None, None, extras)
        else:
            self._write(i, obs, self._rows, "objects", extras)
            self._pending[i] = self.settings.autoreset is AutoresetMode.NEXT_STEP
        self._rewards[i] = reward
        self._flags[i] = terminated * TERMINATED + truncated * TRUNCATED
        if info:
            self._info(i, info, extras, edge=True, kind="final_infos" if same_step else "infos")
            if isinstance(self.settings.info, tuple):
                extras.setdefault("ends", []).append((i, info))

    def _write(self, i: int, obs: Any, rows: _Rows, loose_kind: str, extras: Extras) -> None:
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
        self._note_undeclared(i, undeclared, extras)
        fitting: list[Any] = []
        loose: list[Any] = []
        for leaf, value, views in zip(tree.leaves, values, rows.views):
            if views is None:
                if not leaf.fixed and leaf.stackable:
                    value = self._fit(i, leaf, value, extras).copy()
                elif loose_kind == "final_objects":  # the reset that follows may use its buffers again
                    value = wire.loads(wire.dumps(value, f"obs{leaf}"))
                loose.append(value)
            else:
                fitting.append(self._fit(i, leaf, value, extras))
        fixed = iter(fitting)
        for views in rows.views:
            if views is not None:
                views[i][...] = next(fixed)
        if loose:
            extras.setdefault(loose_kind, []).append((i, loose))

    def _fit(self, i: int, leaf: Leaf, value: Any, extras: Extras) -> Any:
        """`value` as an array of the leaf's shape and dtype. Raises RowError, unless `Settings.casting` casts it."""
        try:
            return fit(leaf, value, self.settings.check == "finite")
        except RowError:
            if self.settings.casting == "safe" or exact(leaf, value) is not None:
                raise
            if (fitting := cast(leaf, value)) is None:
                raise
        self._note_cast(i, leaf, np.asarray(value).dtype, extras)
        return fit(leaf, fitting, self.settings.check == "finite")

    def _note_cast(self, i: int, leaf: Leaf, dtype: np.dtype[Any], extras: Extras) -> None:
        text = f"obs{leaf} is {dtype} where its space says {leaf.dtype}: it is cast"
        self._note(i, [f"obs{leaf}"], text, extras)

    def _note_undeclared(self, i: int, keys: list[str], extras: Extras) -> None:
        if keys:
            text = f"its space does not declare {', '.join(keys)}: dropped from its observations"
            self._note(i, keys, text, extras)

    def _note(self, i: int, about: list[str], text: str, extras: Extras) -> None:
        """Have the parent warn, once for what it is about."""
        if not self._noted.issuperset(about):
            self._noted.update(about)
            extras.setdefault("notes", []).append((i, (tuple(about), text)))

    def _info(self, i: int, info: dict[str, Any], extras: Extras, *, edge: bool, kind: str = "infos") -> None:
        wanted = self.settings.info
        if isinstance(wanted, tuple):
            info = {name: info[name] for name in wanted if name in info}
        elif wanted == "episode" and not edge:
            return
        if info:
            extras.setdefault(kind, []).append((i, info))

    def _fail(self, i: int, op: str, error: Exception, extras: Extras, *, again: bool = True) -> None:
        """Env `i` raised. With on_env_error="reset" it begins anew at once, unless it was a reset that failed."""
        report = describe(error, op)
        self._rewards[i] = 0.0
        self._flags[i] = 0
        for items in extras.values():
            items[:] = [item for item in items if item[0] != i]
        self._pending[i] = True
        if self.settings.on_env_error == "reset" and again:
            self._begin(i, None, None, extras)
            if not self._pending[i]:
                extras.setdefault("env_errors", []).append((i, report))
            return
        extras.setdefault("errors", []).append((i, report))

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

    def encode(self, extras: Extras, op: str = "step") -> bytes:
        """The payload of the reply to `op`. What cannot be pickled, or is too large, fails its own env only."""
        if not extras:
            return b""
        try:
            payload = wire.dumps(extras, "infos")
            if len(payload) <= wire.MAX_PAYLOAD:
                return payload
        except TypeError:
            pass
        share = (wire.MAX_PAYLOAD - _SLACK) // max(1, len(self.everyone))
        for kind in [kind for kind in extras if kind not in ("errors", "env_errors")]:
            for i, value in list(extras.get(kind, ())):
                if error := _unsendable(kind, value, share):
                    self._fail(i, op, error, extras, again=False)
        for kind in ("errors", "env_errors"):
            if kind in extras:
                extras[kind] = [(i, report.cut(share // 2)) for i, report in extras[kind]]
        sizes: dict[int, int] = {}
        for kind in extras.keys() - {"errors"}:
            for i, value in extras[kind]:
                sizes[i] = sizes.get(i, 0) + len(wire.dumps(value))
        for i, size in sizes.items():
            if size > share:
                what = f"what it returned is too large: {size} bytes pickled, {wire.MAX_PAYLOAD} for all of a reply"
                self._fail(i, op, ValueError(what), extras, again=False)
        return wire.dumps(extras, "infos")


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


def _unsendable(kind: str, value: Any, share: int) -> Exception | None:
    name = "observation" if "objects" in kind else "infos"
    try:
        size = len(wire.dumps(value, name))
    except TypeError as error:
        return error
    if size <= share:
        return None
    where = name
    if isinstance(value, dict):
        key = max(value, key=lambda key: len(wire.dumps(value[key])))
        where = f'{name}["{key}"]'
    return ValueError(f"{where} is too large: {size} bytes pickled, {wire.MAX_PAYLOAD} for all of a reply")
