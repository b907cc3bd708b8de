"""The envs of one worker, stepped in turn: autoreset, info filter, updates delivered at reset, one error per env.

Used by every backend: in a child process by `worker`, in the caller's thread by `backends.inline`. One env's failure
never touches its neighbours; what went wrong is reported with the reply.
"""
# pure: calls the user's envs and writes their rows; no pipe, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from ..core import framing as wire
from ..core.layout import AT_WORK, BEGAN, STOP, TERMINATED, TRUNCATED, Slab, SpaceTree
from ..core.messages import ERROR, INFO, RESTARTED, RESULT, Note, Packed
from ..core.options import Settings
from ..core.report import RowError, describe
from ..core.updates import Inbox
from .rows import LARGEST, PLAIN, Rows, bad_flags, close_all, reward_of

__all__ = ["EnvGroup"]


_BOOLS = (False, True)


class EnvGroup:
    """`envs[i]` is env `first + i` of the vec env and owns that row of the slab while it has a command.

    `catch_up(version)` must return only once the inbox covers `version`; it is called just before a reset if the
    newest version in the block is ahead. Errors of envs come back in the notes; nothing else is raised. `left()`: the
    bytes of memory that are left, which limit the size of one env's note.
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
        restart_seeds: Sequence[int | None] | None = None,
        left: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.envs = list(envs)
        count = len(self.envs)
        self.settings = settings
        self.rows = Rows(first, count, slab, obs, settings, left)
        self.everyone = self.rows.everyone
        self._inbox, self._catch_up = inbox, catch_up
        self._action = action
        self._steps: list[Callable[[Any], tuple[Any, Any, Any, Any, Any]]] = [env.step for env in self.envs]
        self._hooks = [hook_of(env) for env in self.envs]
        self._tasks: list[Any] = [None] * count  # of the episode that each env is in
        self._pending = [True] * count  # its next command resets it, whatever it is
        # Envs that have not begun an episode here: in a replacement, any command begins one, with this seed.
        self._fresh: dict[int, int | None] = dict(enumerate(restart_seeds or [None] * count))
        self._refused: dict[int, Exception] = {}  # raised in on_broadcast outside the env's own command
        # A memoryview takes and gives a Python number in a third of the time that an array does.
        self._newest: Any = memoryview(slab.newest.data)
        self._rewards: Any = memoryview(self.rows.rewards.data)
        self._flags: Any = memoryview(self.rows.flags.data)
        self._versions: Any = memoryview(self.rows.versions.data)
        self._no_flags = bytes(count)
        self._action_columns = [None if c is None else c[first : first + count] for c in slab.action]
        as_ints = settings.casting == "safe"  # else numpy's integers, as other vec envs have it
        self._discrete = [as_ints and isinstance(leaf.space, gym.spaces.Discrete) for leaf in action.leaves]
        self._glance = _Glance(obs, self.rows, settings)
        self._progress: Any = (
            None  # of a chunk under way: the line that says which env is at work, and may end it
        )

    # -- commands: each returns what the reply carries beside the block ------------------------------------------

    def step(self, envs: Sequence[int] | None, pickled: Sequence[Any] = ()) -> list[Note]:
        """Step each of `envs` (local indices; None = all) with the action in its row; autoreset where one is due.

        `pickled[k]` holds, per env of the command, the action's k-th leaf where that is not in the block.
        """
        notes: list[Note] = []
        progress = self._progress
        if self._inbox.has_now and progress is None:
            self._deliver_now()
        steps, pending, refused, rewards = self._steps, self._pending, self._refused, self._rewards
        glance = self._glance
        rows, dtype, shape = glance.views, glance.dtype, glance.shape
        numbers, low, high = glance.numbers, glance.low, glance.high
        ndarray, all_infos, first, t = np.ndarray, self.settings.info == "all", self.rows.first, self.rows.t
        envs = self._cleared(envs)
        for i, action in zip(envs, self._actions(envs, pickled)):
            if progress is not None:
                if progress[STOP]:
                    break
                progress[AT_WORK] = first + i
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
            usual = (  # nearly always; everything else takes the slow path, `_take`
                terminated is False
                and truncated is False
                and type(reward) in PLAIN
                and -LARGEST <= reward <= LARGEST
                and type(info) is dict
            )
            if usual:
                if type(obs) is ndarray and obs.dtype is dtype and obs.shape == shape and rows is not None:
                    rows[i][...] = obs
                elif type(obs) is int and low <= obs <= high:
                    numbers[i] = obs
                else:
                    usual = False
            if usual:
                rewards[i] = reward
                if info:
                    if all_infos:
                        notes.append((first + i, t, INFO, info))
                    else:
                        self.rows.say(i, info, notes)
                continue
            try:
                self._take(i, obs, reward, terminated, truncated, info, notes)
            except Exception as error:
                self._fail(i, "step", error, notes)
        finite = glance.finite
        if finite is not None and np.count_nonzero(np.isfinite(finite)) < finite.size:
            self._fail_infinite(envs, notes)
        return notes

    def _fail_infinite(self, envs: Sequence[int], notes: list[Note]) -> None:
        """Fail those whose step gave a NaN or an infinity. Their rows are zeros until they are reset."""
        finite, leaf = self._glance.finite, self._glance.leaf
        assert finite is not None
        assert leaf is not None
        failed = {note[0] for note in notes if note[2] == ERROR}
        for i in envs:
            if self.rows.first + i not in failed and not np.isfinite(finite[i]).all():
                finite[i] = 0
                self._fail(i, "step", self.rows.infinite(leaf), notes)

    def _take(
        self, i: int, obs: Any, reward: Any, terminated: Any, truncated: Any, info: Any, notes: list[Note]
    ) -> None:
        """Check and store what a step gave. Raises RowError."""
        if type(reward) not in PLAIN or not -LARGEST <= reward <= LARGEST:
            reward = reward_of(reward)
        if terminated not in _BOOLS or truncated not in _BOOLS or not isinstance(info, dict):
            raise bad_flags(terminated, truncated, info)
        if terminated or truncated:
            self._end(i, obs, reward, bool(terminated), bool(truncated), info, notes)
            return
        self.rows.write(i, obs, notes)
        self._rewards[i] = reward
        if info:
            self.rows.say(i, info, notes)

    def begin_chunk(self, progress: Any) -> None:
        """From now on each `step` is a row of a chunk, whose number is `rows.t`; `progress`: its worker's line.

        Envs that must hear of an update now do so before its first row, those that are reset before their reset.
        """
        if self._inbox.has_now:
            self._deliver_now()
        self._progress = progress

    @property
    def between_episodes(self) -> list[int]:
        """The envs that the next command resets, whatever it is."""
        return [i for i in self.everyone if self._pending[i]]

    def end_chunk(self) -> None:
        self._progress = None
        self.rows.t = 0

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
        envs, self.envs = self.envs, []
        return close_all(envs)

    def pack(self, notes: list[Note], op: str = "step") -> Sequence[bytes]:
        return self.rows.pack(notes, lambda i, error: self._fail(i, op, error, notes, again=False))

    def _cleared(self, envs: Sequence[int] | None) -> Sequence[int]:
        """The envs of a command (None: all), whose flags are 0 now."""
        if envs is None:
            self._flags[:] = self._no_flags
            return self.everyone
        for i in envs:
            self._flags[i] = 0
        return envs

    # -- one env ----------------------------------------------------------------------------------------------

    def _actions(self, envs: Sequence[int], pickled: Sequence[Any]) -> Iterable[Any]:
        """One action per env of the command: ints for Discrete, an array or numpy scalar of its own otherwise."""
        if not self._action_columns:
            return [self._action.join([]) for _ in envs]
        columns: list[Iterable[Any]] = []
        for index, column in enumerate(self._action_columns):
            if pickled and pickled[index] is not None:
                columns.append(pickled[index])
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
        """Reset env `i`, after taking every update published so far; its episode reports that version."""
        inbox = self._inbox
        newest = self._newest[0]
        if newest > inbox.taken_up_to:
            self._catch_up(newest)
            if inbox.has_now and self._progress is None:
                self._deliver_now(skip=i)
        op = "on_broadcast"
        try:
            version = inbox.taken_up_to
            inbox.deliver(i, self._hooks[i])
            op = "reset"
            self._tasks[i] = None
            result = self.envs[i].reset(seed=seed, options=options)
            obs, info = _reset_result(result)
            self._tasks[i] = info.get("task")
            self.rows.write(i, obs, notes)
        except Exception as error:
            if op == "reset":
                self._tasks[i] = _failed_task(self.envs[i], error, self._tasks[i])
            self._fail(i, op, error, notes, again=False)
            return
        self._pending[i] = False
        if self._fresh:
            self._fresh.pop(i, None)
        self._versions[i] = version
        self._rewards[i] = 0.0
        self._flags[i] = 0 if self._progress is None else BEGAN
        if info:
            self.rows.say(i, info, notes, begins=True)

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
            self.rows.write(i, obs, notes, final=True)
            info = wire.loads(wire.dumps(info, "infos")) if info else info
            self._autoreset(i, notes)
        else:
            self.rows.write(i, obs, notes)
            self._pending[i] = self.settings.autoreset is AutoresetMode.NEXT_STEP
        self._rewards[i] = reward
        self._flags[i] = terminated * TERMINATED + truncated * TRUNCATED
        if info:
            self.rows.say(i, info, notes, ends=True, final=same_step)

    def _fail(self, i: int, op: str, error: Exception, notes: list[Note], *, again: bool = True) -> None:
        """Env `i` raised. With on_env_error="reset" it is reset at once, unless `again` is False: a reset failed."""
        report = describe(error, op, self._tasks[i])
        self._pending[i] = True
        if self.settings.on_env_error == "reset" and again:
            self.rows.clear([i], notes)
            self._autoreset(i, notes)
            if not self._pending[i]:
                notes.append((self.rows.first + i, self.rows.t, RESTARTED, report))
            return
        self.rows.fail([i], report, notes)

    def _deliver_now(self, skip: int = -1) -> None:
        self._inbox.has_now = False
        for i, hook in enumerate(self._hooks):
            if i == skip:
                continue  # it gets everything in its reset
            try:
                if i in self._fresh:  # it gets all of them, in version order, not only those with apply="now"
                    self._inbox.deliver(i, hook)
                else:
                    self._inbox.deliver_now(i, hook)
            except Exception as error:
                self._refused[i] = error


class _Glance:
    """Recognises the usual observation cheaply: a single leaf in the block, as an array of its dtype and shape, or
    an int for a Discrete."""

    def __init__(self, obs: SpaceTree, rows: Rows, settings: Settings) -> None:
        leaf = self.leaf = obs.leaves[0] if obs.is_leaf else None
        column = rows.columns[0] if obs.is_leaf else None
        self.dtype = None if leaf is None else leaf.dtype
        self.shape = () if leaf is None else leaf.shape
        self.views = None if column is None else [column[i, ...] for i in rows.everyone]
        self.numbers: Any = None  # takes an int faster than an array does
        self.low, self.high = 1, 0  # of the ints that it takes: none
        if leaf is not None and column is not None and isinstance(leaf.space, gym.spaces.Discrete):
            limits = np.iinfo(leaf.dtype)
            self.numbers, self.low, self.high = memoryview(column.data), int(limits.min), int(limits.max)
        # where its numbers must be finite: all these rows, looked at once per command
        floats = settings.check == "finite" and leaf is not None and leaf.dtype.kind == "f"
        self.finite = column if floats else None


def hook_of(env: Any) -> Callable[[Any, int], None] | None:
    """The outermost `on_broadcast` of an env and what it wraps."""
    try:
        hook = env.get_wrapper_attr("on_broadcast")
    except AttributeError:
        return None
    return hook if callable(hook) else None


def _failed_task(env: Any, error: Exception, task: Any) -> Any:
    """The task of a reset that failed: what the `on_failed_reset` of the env, or of what it wraps, returns, if there
    is one, else `task`, from the reset's info."""
    try:
        found = env.get_wrapper_attr("on_failed_reset")(error)
    except Exception:  # the first error is the one to tell
        return task
    return task if found is None else found


def _reset_result(result: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise RowError("what reset returned", "(observation, info dict)", type(result).__name__)
    return result
