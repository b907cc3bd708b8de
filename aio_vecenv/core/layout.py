"""Where each env's observation, action, reward and flags lie in the shared block.

A space is flattened into leaves. Box, Discrete, MultiDiscrete and MultiBinary have a fixed size and lie in the
block, one array per leaf with a row per env; every other leaf travels pickled with the message.
"""
# pure: arithmetic and views; who owns the memory is decided elsewhere

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = [
    "AT_WORK",
    "BEGAN",
    "IDLE",
    "LAST_ROW_NS",
    "POLICY_AT_WORK",
    "POLICY_NS",
    "ROWS_DONE",
    "STOP",
    "TAKEN",
    "TERMINATED",
    "TRUNCATED",
    "ChunkBuffer",
    "ChunkRows",
    "Field",
    "Leaf",
    "RowSpec",
    "SharedMemory",
    "Slab",
    "SpaceTree",
    "cast",
    "exact",
    "layout",
    "pick_rows",
]

TERMINATED, TRUNCATED = 1, 2  # flags of a row
BEGAN = 4  # … it begins an episode, where the worker itself resets
IDLE = 8  # … of a chunk: nothing was done
# What a worker that unrolls says of itself while it does, one number each
ROWS_DONE, LAST_ROW_NS, AT_WORK, POLICY_NS, STOP, TAKEN = range(6)
_PROGRESS = 8  # numbers: a cache line
_NO_PROGRESS = np.zeros((0, _PROGRESS), np.int64)
POLICY_AT_WORK = -1  # instead of an env id

SharedMemory = Literal["auto", True, False]
Path = tuple[str | int, ...]

_FIXED = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_ALIGN = 64  # a cache line: rows of two workers share one at a leaf's borders only


@dataclass(frozen=True)
class Leaf:
    """One leaf of a space. `dtype` and `shape` are those of one env's value."""

    path: Path
    space: gym.Space[Any]
    fixed: bool

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        # A pickled dtype comes back as an equal object, not the same one; from its name it is numpy's own, so that
        # who looks at every row can ask `is`.
        return np.dtype(np.dtype(self.space.dtype).str)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.space.shape or ())

    @property
    def stackable(self) -> bool:
        """Whether values of several envs make one array, however they travel."""
        return isinstance(self.space, _FIXED)

    def __str__(self) -> str:
        return "".join(f"[{part!r}]" for part in self.path).replace("'", '"')


class RowSpec(NamedTuple):
    """One row of an array: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class ChunkRows(NamedTuple):
    """What the block holds for chunks: two buffers of so many rows, what a policy adds to a row, a line per worker."""

    length: int
    workers: int
    noise: RowSpec
    outputs: Mapping[str, RowSpec]


class SpaceTree:
    """A space and its leaves, in a fixed order; takes values apart and puts batches together."""

    def __init__(self, space: gym.Space[Any], shared_memory: SharedMemory = "auto") -> None:
        self.space = space
        self.leaves = tuple(_leaves(space, (), shared_memory))
        self.is_leaf = len(self.leaves) == 1 and self.leaves[0].path == ()
        if shared_memory is True:
            for leaf in self.leaves:
                if not leaf.fixed:
                    raise ValueError(
                        f"shared_memory=True, but the leaf obs{leaf} has no fixed size: {leaf.space}; "
                        'use "auto" to send it pickled'
                    )

    def split(self, value: Any) -> tuple[list[Any], list[str]]:
        """The leaves of one env's `value`, in order, and the keys of its dicts that the space does not declare.

        Also of a batch that is nested as the space is. Raises KeyError, TypeError or IndexError where it has not the
        structure of the space.
        """
        if self.is_leaf:
            return [value], []
        undeclared: list[str] = []
        _check_structure(self.space, value, "", undeclared)
        return [_at(value, leaf.path) for leaf in self.leaves], undeclared

    def join(self, columns: Sequence[Any]) -> Any:
        """The batch whose leaves are `columns`, nested as the space is."""
        if self.is_leaf:
            return columns[0]
        return _join(self.space, iter(columns))


def _leaves(space: gym.Space[Any], path: Path, shared_memory: SharedMemory) -> list[Leaf]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, sub in space.items() for leaf in _leaves(sub, (*path, key), shared_memory)]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, sub in enumerate(space) for leaf in _leaves(sub, (*path, i), shared_memory)]
    return [Leaf(path, space, isinstance(space, _FIXED) and shared_memory is not False)]


def _at(value: Any, path: Path) -> Any:
    for part in path:
        value = value[part]
    return value


def _check_structure(space: gym.Space[Any], value: Any, where: str, undeclared: list[str]) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict):
            raise TypeError(f"obs{where} is {type(value).__name__}, not a dict")
        if value.keys() != space.spaces.keys():
            if missing := sorted(map(repr, space.spaces.keys() - value.keys())):
                raise KeyError(f"obs{where}: missing keys [{', '.join(missing)}]")
            undeclared += sorted(f'obs{where}["{key}"]' for key in value.keys() - space.spaces.keys())
        for key, sub in space.items():
            _check_structure(sub, value[key], f'{where}["{key}"]', undeclared)
    elif isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            got = f"{len(value)} items" if isinstance(value, (tuple, list)) else type(value).__name__
            raise TypeError(f"obs{where} is {got}, not a tuple of {len(space.spaces)}")
        for i, sub in enumerate(space):
            _check_structure(sub, value[i], f"{where}[{i}]", undeclared)


def _join(space: gym.Space[Any], columns: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _join(sub, columns) for key, sub in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_join(sub, columns) for sub in space)
    return next(columns)


def pick_rows(space: gym.Space[Any], batch: Any, rows: Any) -> Any:
    """These rows of a batch of values of `space`, in this order."""
    if isinstance(space, spaces.Dict):
        return {key: pick_rows(sub, batch[key], rows) for key, sub in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(pick_rows(sub, part, rows) for sub, part in zip(space, batch))
    return batch[rows] if isinstance(batch, np.ndarray) else tuple(batch[row] for row in rows.tolist())


@dataclass(frozen=True)
class Field:
    """One array of the block: (num_envs, *shape) of `dtype`, `offset` bytes into it."""

    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def layout(
    obs: SpaceTree, action: SpaceTree, num_envs: int, *, final_obs: bool, chunks: ChunkRows | None = None
) -> tuple[tuple[Field, ...], int]:
    """The fields of the block and its size in bytes. Field "newest", the newest update's version, comes first."""
    wanted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = [("newest", np.dtype(np.int64), (1,))]
    wanted += [
        ("rewards", np.dtype(np.float64), (num_envs,)),
        ("versions", np.dtype(np.int64), (num_envs,)),
        ("flags", np.dtype(np.uint8), (num_envs,)),
    ]
    for name, tree in (("action", action), ("obs", obs), ("final_obs", obs)):
        if name != "final_obs" or final_obs:
            wanted += [
                (f"{name}{index}", leaf.dtype, (num_envs, *leaf.shape))
                for index, leaf in enumerate(tree.leaves)
                if leaf.fixed
            ]
    if chunks is not None:
        wanted += _of_chunks(obs, action, num_envs, chunks)
    fields: list[Field] = []
    offset = 0
    for name, dtype, shape in wanted:
        field = Field(name, offset, dtype.str, shape)
        fields.append(field)
        offset += -(-field.size_bytes // _ALIGN) * _ALIGN
    return tuple(fields), max(offset, _ALIGN)


def _of_chunks(
    obs: SpaceTree, action: SpaceTree, num_envs: int, chunks: ChunkRows
) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    wanted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = [
        ("progress", np.dtype(np.int64), (chunks.workers, _PROGRESS))
    ]
    rows = (chunks.length, num_envs)
    for buffer in ("chunk0_", "chunk1_"):
        wanted += [
            (buffer + "rewards", np.dtype(np.float64), rows),
            (buffer + "versions", np.dtype(np.int64), rows),
            (buffer + "flags", np.dtype(np.uint8), rows),
            (buffer + "noise", chunks.noise.dtype, (*rows, *chunks.noise.shape)),
        ]
        wanted += [
            (f"{buffer}obs{i}", leaf.dtype, (chunks.length + 1, num_envs, *leaf.shape))
            for i, leaf in enumerate(obs.leaves)
        ]
        wanted += [
            (f"{buffer}action{i}", leaf.dtype, (*rows, *leaf.shape)) for i, leaf in enumerate(action.leaves)
        ]
        wanted += [
            (f"{buffer}output_{name}", spec.dtype, (*rows, *spec.shape))
            for name, spec in chunks.outputs.items()
        ]
    return wanted


class ChunkBuffer:
    """One of the two buffers of chunks: arrays (rows, num_envs, …), observations one row more."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], number: int) -> None:
        prefix = f"chunk{number}_"
        mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        self.rewards: NDArray[np.float64] = mine["rewards"]
        self.versions: NDArray[np.int64] = mine["versions"]
        self.flags: NDArray[np.uint8] = mine["flags"]
        self.noise = mine["noise"]
        self.obs = [array for name, array in mine.items() if name.startswith("obs")]
        self.actions = [array for name, array in mine.items() if name.startswith("action")]
        self.outputs = {
            name.removeprefix("output_"): array for name, array in mine.items() if name.startswith("output_")
        }


class Slab:
    """Views of a block, by field. The views keep the buffer alive; `release` lets go of them."""

    def __init__(self, buffer: Any, fields: Sequence[Field], obs: SpaceTree, action: SpaceTree) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        for field in fields:
            count = int(np.prod(field.shape, dtype=np.int64))
            flat = np.frombuffer(buffer, dtype=field.dtype, count=count, offset=field.offset)
            self.arrays[field.name] = flat.reshape(field.shape)
        self.newest: NDArray[np.int64] = self.arrays["newest"]
        self.rewards: NDArray[np.float64] = self.arrays["rewards"]
        self.versions: NDArray[np.int64] = self.arrays["versions"]
        self.flags: NDArray[np.uint8] = self.arrays["flags"]  # 0, or TERMINATED | TRUNCATED
        self.flag_bytes = memoryview(self.flags.data)
        self.obs = self._columns("obs", obs)
        self.final_obs = self._columns("final_obs", obs)
        self.action = self._columns("action", action)
        both = range(2) if "progress" in self.arrays else ()
        self.chunks = [ChunkBuffer(self.arrays, number) for number in both]
        self.progress: NDArray[np.int64] = self.arrays.get("progress", _NO_PROGRESS)

    def release(self) -> None:
        """Let go of the block: it is unmapped once no view is left, such as one that a caller still holds.

        (A mapping keeps a duplicate of its descriptor, so this is what gives that back, too.)
        """
        self.arrays.clear()
        self.newest = np.zeros(1, np.int64)
        self.rewards, self.versions = np.zeros(0, np.float64), np.zeros(0, np.int64)
        self.flags = np.zeros(0, np.uint8)
        self.flag_bytes = memoryview(b"")
        self.obs, self.final_obs, self.action = [], [], []
        self.chunks, self.progress = [], _NO_PROGRESS

    def mark(self, version: int) -> None:
        """Make the newest version visible to the workers: one aligned store of 8 bytes."""
        self.newest[0] = version

    def taken(self, worker: int) -> int:
        """Up to which version a worker that unrolls lacks no update, as it says while it does; 0: it says nothing."""
        return self.progress.item(worker, TAKEN) if len(self.progress) else 0

    def forget(self, worker: int) -> None:
        """A worker begins anew in the place of one that is gone."""
        self.progress[worker : worker + 1, TAKEN] = 0

    def stop(self) -> None:
        """Workers that unroll end after the env step under way."""
        self.progress[:, STOP] = 1

    def _columns(self, name: str, tree: SpaceTree) -> list[NDArray[Any] | None]:
        """Per leaf its (num_envs, *shape) array; None where the leaf is pickled or the field is not there."""
        return [self.arrays.get(f"{name}{index}") for index in range(len(tree.leaves))]


def exact(leaf: Leaf, value: Any) -> NDArray[Any] | np.generic | int | float | bool | None:
    """`value` if it fits `leaf` exactly or by a cast that loses nothing, else None.

    A value fits if it has the leaf's shape and its dtype can be cast safely (numpy's "safe"), or, for integers and
    Python numbers, if the value itself survives the cast: a Python int for a Discrete, a list for a Box.
    """
    try:
        array = np.asarray(value)
    except Exception:
        return None
    if array.shape != leaf.shape or array.dtype == object:
        return None
    if np.can_cast(array.dtype, leaf.dtype, "safe"):
        return array
    # An integer keeps its value in another integer type if it is in range; a Python float, a list of floats has no
    # dtype of its own, so it may become the float type of the space.
    if array.dtype.kind in "iu" and leaf.dtype.kind in "iu":
        cast = array.astype(leaf.dtype)
        return cast if bool((cast.astype(array.dtype) == array).all()) and _same_sign(cast, array) else None
    if (
        not isinstance(value, (np.ndarray, np.generic))
        and leaf.dtype.kind == "f"
        and array.dtype.kind in "fiu"
    ):
        with np.errstate(over="ignore"):
            cast = array.astype(leaf.dtype)
        kept = np.isfinite(cast) == np.isfinite(array) if array.dtype.kind == "f" else cast == array
        return cast if bool(kept.all()) else None
    return None


def cast(leaf: Leaf, value: Any) -> NDArray[Any] | None:
    """`value` as numpy casts it to the dtype of `leaf`, whatever is lost; None if it is no array of numbers of its
    shape."""
    try:
        array = np.asarray(value)
        if array.shape != leaf.shape or array.dtype.kind not in "iufb":
            return None
        with np.errstate(all="ignore"):
            return array.astype(leaf.dtype)
    except Exception:
        return None


def _same_sign(cast: NDArray[Any], array: NDArray[Any]) -> bool:
    return bool(((cast < 0) == (array < 0)).all())
