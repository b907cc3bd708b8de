"""The one writer of a worker's rows: checks what envs return, writes it, filters infos, bounds what travels.

Rows are named by their place among the worker's own. What does not lie in the shared block becomes a note of the
reply; a large reply goes out in parts.
"""
# pure: arrays and notes; calls no env, no pipe, no process, no clock

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..core.framing import dumps, loads
from ..core.layout import Leaf, Slab, SpaceTree, cast, exact
from ..core.messages import (
    END_INFO,
    ERROR,
    FINAL_INFO,
    FINAL_OBS,
    GIVEN_OBS,
    INFO,
    NOTHING,
    OBS,
    PART_BYTES,
    RESULT,
    TASK,
    WARNING,
    Note,
    Packed,
    encode_notes,
)
from ..core.options import Settings
from ..core.report import ErrorReport, RowError, describe

__all__ = [
    "LARGEST",
    "PLAIN",
    "Group",
    "Refuse",
    "Rows",
    "bad_flags",
    "close_all",
    "flags_of",
    "pack",
    "per_row",
    "reward_of",
]

Refuse = Callable[[Note, Exception], None]
_FEW = 64  # numbers that Python adds up faster than numpy looks at them
# subjects per worker that are warned about: an env may invent new observation keys endlessly
_MAX_WARNED = 32
PLAIN = frozenset({float, int, np.float64})  # rewards that compare with any float
LARGEST = (
    sys.float_info.max
)  # between it and its negative: neither NaN nor infinity, nor an int beyond floats
_REWARD_TYPES = PLAIN | {np.float32, np.int64, np.int32, bool, np.bool_}


class Group(Protocol):
    """The envs of one worker, whatever they are. Each command returns the notes of its reply; errors of envs are
    notes, nothing else is raised. Envs are named by their index among the worker's own."""

    everyone: range
    rows: Rows

    def step(self, envs: Sequence[int] | None, pickled: Sequence[Any] = ()) -> list[Note]:
        """Step these envs (None: all) with the actions in their rows; autoreset where one is due.

        `pickled[k]` holds, per env of the command, the action's k-th leaf where that is not in the block.
        """

    def reset(self, envs: Sequence[int], seeds: Sequence[int | None], packed: bytes | None) -> list[Note]:
        """Reset these envs, each with its seed. `packed`: the options, pickled; each env gets its own."""

    def call(self, op: str, name: str, envs: Sequence[int], packed: Packed) -> list[Note]:
        """`op`: "call" (packed: args, kwargs), "get", "set" (packed: one per env), "apply" (packed: a function of env).

        Per env a RESULT or an ERROR, in their order. What is packed is pickled; each env gets its own.
        """

    def refuse(self, envs: Sequence[int], op: str, error: Exception) -> list[Note]:
        """A command of these envs could not be understood: each of them has failed."""

    def close(self) -> list[Note]:
        """Close every env, each once; an ERROR of each that raised, by its position."""

    def pack(self, notes: list[Note], op: str = "step") -> Sequence[bytes]:
        """The payloads of the reply to `op`. What cannot travel fails its own env only."""


def close_all(envs: Iterable[Any]) -> list[Note]:
    """Close envs, each once; an ERROR of each that raised, by its position."""
    notes: list[Note] = []
    for i, env in enumerate(envs):
        try:
            env.close()
        except Exception as error:
            notes.append((i, 0, ERROR, describe(error, "close")))
    return notes


class Rows:
    """The rows `first` to `first + count - 1` of the block. `left()`: the bytes of memory that are left, None if not
    known; they limit the size of one env's note."""

    def __init__(
        self,
        first: int,
        count: int,
        slab: Slab,
        obs: SpaceTree,
        settings: Settings,
        left: Callable[[], int | None],
    ) -> None:
        mine = slice(first, first + count)
        self.first = first
        self.settings = settings
        self.everyone = range(count)
        self.t = 0  # the row of a chunk that is being written, which notes say
        self.rewards, self.flags, self.versions = slab.rewards[mine], slab.flags[mine], slab.versions[mine]
        self.columns = [None if column is None else column[mine] for column in slab.obs]
        self.final_columns = [None if column is None else column[mine] for column in slab.final_obs]
        self._obs, self._left = obs, left
        self._finite = settings.check == "finite"
        # of an observation that is one leaf
        self._dtype = obs.leaves[0].dtype if obs.is_leaf else None
        self._shape = obs.leaves[0].shape if obs.is_leaf else ()
        self._plain = _plain_leaves(obs, self.columns)
        self._nest = dict if isinstance(obs.space, spaces.Dict) else tuple
        self._warned: set[str] = set()  # subjects the parent was warned about

    # -- observations --------------------------------------------------------------------------------------------

    def write(self, i: int, obs: Any, notes: list[Note], *, final: bool = False) -> None:
        """Write one env's observation, leaf by leaf, after checking all of it; with `final`, an episode's last.

        Raises RowError.
        """
        columns = self.final_columns if final else self.columns
        if type(obs) is np.ndarray and obs.dtype is self._dtype and obs.shape == self._shape:
            column = columns[0]
            if column is not None:
                column[i] = self._check_finite(self._obs.leaves[0], obs)
                return
        elif self._plain is not None and not final and self._write_plain(i, obs, notes):
            return
        values = self._split("the observation", i, obs, notes)
        fitting: list[tuple[NDArray[Any], Any]] = []
        pickled: list[Any] = []
        for leaf, value, column in zip(self._obs.leaves, values, columns):
            if column is not None:
                fitting.append((column, self.fit(i, leaf, value, notes)))
            elif not leaf.fixed and leaf.stackable:
                pickled.append(self.fit(i, leaf, value, notes).copy())
            else:  # the reset that follows an end may use the env's buffers again
                pickled.append(loads(dumps(value, f"obs{leaf}")) if final else value)
        for column, value in fitting:
            column[i] = value
        if final and self.settings.casting == "unsafe" and not self._is_as_in_its_row(values):
            notes.append((self.first + i, self.t, GIVEN_OBS, loads(dumps(obs, "the observation"))))
        if pickled:
            notes.append((self.first + i, self.t, FINAL_OBS if final else OBS, pickled))

    def _write_plain(self, i: int, obs: Any, notes: list[Note]) -> bool:
        """Write an observation of several leaves whose values are what the space says, as they nearly always are.

        False, and nothing is written: it takes a closer look.
        """
        plain, finite = self._plain, self._finite
        assert plain is not None
        if not isinstance(obs, self._nest) or len(obs) != len(plain):
            return False
        found: list[tuple[NDArray[Any], Any]] = []
        pickled: list[Any] = []
        for leaf in plain:
            try:
                value = obs[leaf.key]
            except (KeyError, TypeError):
                return False
            if leaf.column is None:
                pickled.append(value)
                continue
            kind = type(value)
            if kind is np.ndarray or kind is leaf.scalar:
                if value.dtype is not leaf.dtype or value.shape != leaf.shape:
                    return False
                if finite and leaf.floats and not _all_finite(value):
                    return False
            elif kind is not int or not leaf.low <= value <= leaf.high:
                return False
            found.append((leaf.column, value))
        for column, value in found:
            column[i] = value
        if pickled:
            notes.append((self.first + i, self.t, OBS, pickled))
        return True

    def _is_as_in_its_row(self, values: Sequence[Any]) -> bool:
        """Whether reading the row of this (fitting) observation gives the same values, types included."""
        return all(
            not leaf.stackable or (type(value) is np.ndarray and value.dtype == leaf.dtype)
            for leaf, value in zip(self._obs.leaves, values)
        )

    def write_batch(self, rows: slice, obs: Any, notes: list[Note], which: Any = True) -> None:
        """Write those rows of a batch of observations that `which` marks, leaf by leaf, after checking all of it.

        The others belong to the parent. Raises RowError.
        """
        values = self._split("the observations", rows.start, obs, notes)
        arrays = [self._fit_batch(rows, leaf, value, notes) for leaf, value in zip(self._obs.leaves, values)]
        for column, array in zip(self.columns, arrays):
            assert column is not None
            np.copyto(column[rows], array, where=np.reshape(which, (-1,) + (1,) * (array.ndim - 1)))

    def write_final(self, row: int, j: int, final_obs: Any, notes: list[Note]) -> None:
        """Write the last observation of a row, the j-th of an array of them or of a batch as the space says.

        Raises RowError.
        """
        singly = isinstance(final_obs, np.ndarray) and final_obs.dtype == object
        if final_obs is None or (singly and final_obs[j] is None):
            raise RowError('infos["final_obs"]', "the last observation of every row that ended", "none")
        for leaf, column in zip(self._obs.leaves, self.final_columns):
            value = final_obs[j] if singly else final_obs
            for part in leaf.path:
                value = value[part]
            try:
                fitting = self.fit(row, leaf, value if singly else value[j], notes)
            except RowError as error:
                raise RowError(f"final_obs{leaf}", error.expected, error.got, error.leaf) from None
            assert column is not None
            column[row] = fitting

    def fit(self, i: int, leaf: Leaf, value: Any, notes: list[Note]) -> Any:
        """`value` as an array of the leaf's shape and dtype. Raises RowError, unless `Settings.casting` casts it."""
        fitting = exact(leaf, value)
        if fitting is None and self.settings.casting == "unsafe":
            fitting = cast(leaf, value)
            if fitting is not None:
                self._warn_cast(i, leaf, np.asarray(value).dtype, notes)
        if fitting is None:
            plain = isinstance(value, (np.ndarray, np.generic))
            got = f"{value.dtype} {value.shape}" if plain else f"{type(value).__name__} {str(value)[:80]}"
            raise RowError(f"obs{leaf}", f"{leaf.dtype} {leaf.shape}", got, f"obs{leaf}")
        return self._check_finite(leaf, np.asarray(fitting))

    def _fit_batch(self, rows: slice, leaf: Leaf, value: Any, notes: list[Note]) -> NDArray[Any]:
        array: NDArray[Any] = np.asarray(value)
        expected = (rows.stop - rows.start, *leaf.shape)
        fits = array.shape == expected and np.can_cast(array.dtype, leaf.dtype, "safe")
        numbers = array.shape == expected and array.dtype.kind in "iufb"
        if not fits and numbers and self.settings.casting == "unsafe":
            self._warn_cast(rows.start, leaf, array.dtype, notes)
            with np.errstate(all="ignore"):
                array = array.astype(leaf.dtype)
        elif not fits:
            got = f"{array.dtype} {array.shape}"
            raise RowError(f"obs{leaf}", f"{leaf.dtype} {expected}", got, f"obs{leaf}")
        return self._check_finite(leaf, array)

    def _check_finite(self, leaf: Leaf, array: NDArray[Any]) -> NDArray[Any]:
        if self._finite and array.dtype.kind == "f" and not _all_finite(array):
            raise self.infinite(leaf)
        return array

    @staticmethod
    def infinite(leaf: Leaf) -> RowError:
        """What is wrong with a NaN or an infinity under `check="finite"`."""
        return RowError(f"obs{leaf}", "finite numbers", "NaN or infinity", f"obs{leaf}")

    def _split(self, what: str, i: int, obs: Any, notes: list[Note]) -> list[Any]:
        try:
            values, undeclared = self._obs.split(obs)
        except (KeyError, TypeError, IndexError) as error:
            raise RowError(what, str(self._obs.space), str(error.args[0])) from None
        if undeclared:
            text = f"its space does not declare {_some(undeclared)}: dropped from its observations"
            self._warn(i, undeclared, text, notes)
        return values

    def _warn_cast(self, i: int, leaf: Leaf, dtype: np.dtype[Any], notes: list[Note]) -> None:
        text = f"obs{leaf} is {dtype} where its space says {leaf.dtype}: it is cast"
        self._warn(i, [f"obs{leaf}"], text, notes)

    def _warn(self, i: int, about: list[str], text: str, notes: list[Note]) -> None:
        """Have the parent warn, once per subject."""
        if len(self._warned) < _MAX_WARNED and not self._warned.issuperset(about):
            self._warned.update(about)
            notes.insert(0, (self.first + i, self.t, WARNING, (tuple(about), text)))

    # -- infos and errors ----------------------------------------------------------------------------------------

    def say(
        self,
        i: int,
        info: dict[str, Any],
        notes: list[Note],
        *,
        begins: bool = False,
        ends: bool = False,
        final: bool = False,
    ) -> None:
        """Note an info, as `Settings.info` filters it. `final`: of the episode that ended, where the next has begun."""
        wanted = self.settings.info
        if isinstance(wanted, tuple):
            if ends:
                notes.append((self.first + i, self.t, END_INFO, info))
            if begins and "task" in info and "task" not in wanted:
                notes.append((self.first + i, self.t, TASK, info["task"]))
            info = {name: info[name] for name in wanted if name in info}
        elif wanted == "episode" and not (begins or ends):
            return
        if info:
            notes.append((self.first + i, self.t, FINAL_INFO if final else INFO, info))

    def fail(self, envs: Sequence[int], report: ErrorReport, notes: list[Note]) -> None:
        """These envs have failed: the reply has an error for each, and nothing else of them."""
        self.clear(envs, notes)
        notes[:0] = [(self.first + i, self.t, ERROR, report) for i in envs]

    def clear(self, envs: Iterable[int], notes: list[Note]) -> None:
        """Undo what was written and noted for these envs, except warnings."""
        gone = {self.first + i for i in envs}
        notes[:] = [note for note in notes if note[0] not in gone or note[2] == WARNING]
        for env_id in gone:
            self.rewards[env_id - self.first] = 0.0
            self.flags[env_id - self.first] = 0

    # -- the reply -----------------------------------------------------------------------------------------------

    def pack(self, notes: list[Note], fail: Callable[[int, Exception], None]) -> Sequence[bytes]:
        """The payloads of a reply. What cannot travel fails its own env only: `fail(i, error)` changes `notes`."""

        def refuse(note: Note, error: Exception) -> None:
            if any(one is note for one in notes):  # else its env has already failed because of another note
                fail(note[0] - self.first, error)

        return pack(notes, refuse, self._left)

    def pack_results(self, notes: list[Note]) -> Sequence[bytes]:
        """The payloads of the reply to a call. What cannot travel is the error of its own env only."""

        def refuse(note: Note, error: Exception) -> None:
            notes[note[0]] = (note[0], 0, ERROR, describe(error, "call"))

        return pack(notes, refuse, self._left)


class _PlainLeaf(NamedTuple):
    """A leaf right below the space, as the quick look needs it."""

    key: Any
    column: NDArray[Any] | None  # None: it travels pickled, as it is
    dtype: np.dtype[Any]
    scalar: type[Any]  # numpy's, of that dtype
    shape: tuple[int, ...]
    low: int  # of the ints that it takes; above `high`: none
    high: int
    floats: bool


def _plain_leaves(obs: SpaceTree, columns: Sequence[NDArray[Any] | None]) -> list[_PlainLeaf] | None:
    """None: the quick look does not see through this space."""
    plain: list[_PlainLeaf] = []
    for leaf, column in zip(obs.leaves, columns):
        if len(leaf.path) != 1 or (column is None and leaf.stackable):
            return None
        low, high = 1, 0
        if isinstance(leaf.space, spaces.Discrete):
            limits = np.iinfo(leaf.dtype)
            low, high = int(limits.min), int(limits.max)
        dtype = leaf.dtype
        plain.append(
            _PlainLeaf(leaf.path[0], column, dtype, dtype.type, leaf.shape, low, high, dtype.kind == "f")
        )
    return plain


def _all_finite(array: NDArray[Any]) -> bool:
    if array.size <= _FEW and isfinite(sum(array.ravel().tolist())):  # a NaN or an infinity would show in it
        return True
    return bool(np.isfinite(array).all())


def pack(notes: list[Note], refuse: Refuse, left: Callable[[], int | None]) -> Sequence[bytes]:
    """The payloads of the reply's parts, in order. `left()`: the bytes of memory that are left, None if not known.

    A note that cannot be pickled is refused on its own: `refuse` removes it from `notes` and may add an error. If the
    parent has no memory for the whole reply, notes larger than an even share of what is left are refused, too.
    """
    if not notes:
        return NOTHING
    try:
        payload = encode_notes(notes, "infos")
        if len(payload) <= PART_BYTES:
            return (payload,)
        del payload
    except (TypeError, MemoryError):
        pass  # one by one, then
    pickles = {id(note): pickle for note in list(notes) if (pickle := _pickle(note, refuse)) is not None}
    room = left()
    if room is not None and 2 * sum(map(len, pickles.values())) > room:
        share = room // 2 // len(pickles)
        for note in [note for note in notes if len(pickles.get(id(note), b"")) > share]:
            refuse(note, _too_large(note, len(pickles[id(note)]), share))
    return _parts(notes, pickles)


def _pickle(note: Note, refuse: Refuse) -> bytes | None:
    try:
        return encode_notes([note], _name(note))
    except (TypeError, MemoryError) as error:
        refuse(note, error)
        return None


def _parts(notes: Sequence[Note], pickles: dict[int, bytes]) -> list[bytes]:
    """Small notes together, up to PART_BYTES; a large one alone."""
    parts: list[bytes] = []
    together: list[Note] = []
    size_bytes = 0
    for note in notes:
        pickle = pickles.get(id(note)) or encode_notes([note], "an error")
        if together and size_bytes + len(pickle) > PART_BYTES:
            parts.append(encode_notes(together, "infos"))
            together, size_bytes = [], 0
        if len(pickle) > PART_BYTES:
            parts.append(pickle)
        else:
            together.append(note)
            size_bytes += len(pickle)
    if together:
        parts.append(encode_notes(together, "infos"))
    return parts


def _name(note: Note) -> str:
    kind = note[2]
    return (
        "observation" if kind in (OBS, FINAL_OBS, GIVEN_OBS) else "the result" if kind == RESULT else "infos"
    )


def _too_large(note: Note, size_bytes: int, share: int) -> ValueError:
    where, value = _name(note), note[3]
    if isinstance(value, dict):
        key: Any = max(value, key=lambda key: len(dumps(value[key])))
        where = f'{where}["{key}"]'
    return ValueError(
        f"{where} is too large: {size_bytes} bytes pickled, where memory is left for {share}. Return less, or give the "
        "container more memory"
    )


def reward_of(reward: Any) -> float:
    """A finite Python float, from any real scalar. Raises RowError."""
    try:
        known = type(reward) in _REWARD_TYPES
        if (known or (np.ndim(reward) == 0 and np.asarray(reward).dtype.kind in "fiub")) and isfinite(reward):
            return float(reward)
    except (TypeError, ValueError, OverflowError):
        pass
    if isinstance(reward, np.ndarray) and reward.ndim:
        raise RowError("the reward", "a number", f"an array of shape {reward.shape}: {str(reward)[:80]}")
    raise RowError("the reward", "a finite number", f"{type(reward).__name__} {str(reward)[:80]}")


def bad_flags(terminated: Any, truncated: Any, info: Any) -> RowError:
    if not isinstance(info, dict):
        return RowError("the info", "a dict", type(info).__name__)
    name, value = ("terminated", terminated) if terminated not in (True, False) else ("truncated", truncated)
    return RowError(name, "a bool", f"{type(value).__name__} {str(value)[:80]}")


def per_row(what: str, values: Any, count: int) -> NDArray[Any]:
    array = np.asarray(values)
    if array.shape != (count,):
        raise RowError(what, f"one per row, ({count},)", f"{array.dtype} {array.shape}")
    return array


def flags_of(what: str, values: Any, count: int) -> NDArray[np.bool_]:
    array = per_row(what, values, count)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise RowError(what, "bools", f"{array.dtype} {str(array)[:80]}")
    return array.astype(np.bool_)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
