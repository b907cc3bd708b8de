"""A policy that acts in blocks of rows: what one must have, and the runner that calls it and checks what it returns."""
# pure: numpy in, numpy out; it sits in every worker, so it imports nothing that a worker does not have

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import PolicyError
from . import framing as wire
from .layout import Leaf, RowSpec, SpaceTree

__all__ = [
    "BLOCK",
    "Misfit",
    "Policy",
    "PolicyMaker",
    "PolicyRunner",
    "RowSpec",
    "Rows",
    "check_declared",
    "columns_of",
    "fits",
    "fixed_tree",
    "rows_in_blocks",
]

BLOCK = 16  # rows of every call of `act`; env i is row i % 16 of block i // 16
_FEW = 64  # numbers that Python looks at faster than numpy
_ALIGN = 64  # bytes; where a block begins decides how its products are cut into vectors


class Policy(Protocol):
    """What acts: plain Python and numpy, made in the parent; it travels by cloudpickle.

    `act` must be a pure function of its rows and of what `load` was given: all randomness comes in as `noise`, and no
    row may depend on another one. It always gets blocks of 16 rows, of which some may be copies of others.
    """

    @property
    def noise(self) -> Any:
        """Shape and dtype of the random numbers that `act` wants per row: `(2, np.float32)`, `((3, 4), np.float64)`."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Shape and dtype, per row, of what `act` says beside the action: `{"log_prob": ((), np.float32)}`."""
        ...

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        """Noise (*rows, *shape) for that many rows."""
        ...

    def load(self, params: Any) -> None:
        """Take these parameters; what was loaded before has no part in what follows."""
        ...

    def act(self, obs: Any, noise: NDArray[Any]) -> tuple[Any, Mapping[str, NDArray[Any]]]:
        """(actions, outputs) for 16 rows: observations (16, …), batched as the space says, and noise (16, *shape).

        `actions` are what the env gets: the action space's dtype, scaled, clipped.
        """
        ...


PolicyMaker = Callable[[Any, Any], Policy | None]
"""From the observation and the action space of one env to its policy, or None."""


class Declared(NamedTuple):
    """What a policy says of itself."""

    noise: RowSpec
    outputs: dict[str, RowSpec]


def check_declared(policy: Any) -> Declared:
    """What the policy declares. Raises PolicyError that names what is missing or wrong."""
    name = type(policy).__name__
    for method in ("act", "draw", "load"):
        if not callable(getattr(policy, method, None)):
            raise PolicyError(f"the policy {name} has no method {method}()", op="declare")
    if getattr(policy, "state", None) is not None:
        raise PolicyError(
            f"the policy {name} has a `state`: that name is reserved for recurrent policies, which are not "
            "supported; rename it",
            op="declare",
        )
    for attribute in ("noise", "outputs"):
        if not hasattr(policy, attribute):
            raise PolicyError(f"the policy {name} does not declare `{attribute}`", op="declare")
    if not isinstance(policy.outputs, Mapping) or not all(isinstance(key, str) for key in policy.outputs):
        raise PolicyError(
            f"the policy {name} declares outputs = {policy.outputs!r:.80}, not a dict of names", op="declare"
        )
    outputs = {key: _row_spec(name, f"outputs[{key!r}]", given) for key, given in policy.outputs.items()}
    return Declared(_row_spec(name, "noise", policy.noise), outputs)


def _row_spec(policy: str, where: str, given: Any) -> RowSpec:
    try:
        shape, dtype = given
        sizes = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        row = RowSpec(tuple(int(size) for size in sizes), np.dtype(dtype))
    except (TypeError, ValueError):
        row = None
    if (
        row is None
        or dtype is None  # numpy reads it as float64
        or row.dtype.kind not in "biuf"
        or any(size < 0 or size != given_size for size, given_size in zip(row.shape, sizes))
    ):
        raise PolicyError(
            f"the policy {policy} declares {where} = {given!r:.80}, not the shape and dtype of a row, "
            "such as (2, np.float32)",
            op="declare",
        )
    return row


class Piece(NamedTuple):
    """The rows that lie in one block."""

    rows: Any  # which of the rows given
    places: Any  # where they stand in the block
    first: int  # a place that is taken
    free: tuple[Any, ...]  # the places that are not


class Rows(NamedTuple):
    """Env ids, cut into blocks."""

    env_ids: Sequence[int]
    pieces: tuple[Piece, ...]


def rows_in_blocks(env_ids: Iterable[int]) -> Rows:
    """Where the rows of these envs stand: env i at place i % 16 of block i // 16."""
    pieces: list[Piece] = []
    if isinstance(env_ids, range):
        for first in range(env_ids.start // BLOCK * BLOCK, env_ids.stop, BLOCK):
            low, high = max(env_ids.start, first), min(env_ids.stop, first + BLOCK)
            around = (slice(0, low - first), slice(high - first, BLOCK))
            pieces.append(
                Piece(
                    slice(low - env_ids.start, high - env_ids.start),
                    slice(low - first, high - first),
                    low - first,
                    tuple(part for part in around if part.start < part.stop),
                )
            )
        return Rows(env_ids, tuple(pieces))
    ids = np.fromiter(env_ids, np.int64)
    for number in np.unique(ids // BLOCK).tolist():
        rows = np.flatnonzero(ids // BLOCK == number)
        places = ids[rows] % BLOCK
        free = np.setdiff1d(np.arange(BLOCK), places)
        pieces.append(Piece(rows, places, int(places[0]), (free,) if len(free) else ()))
    return Rows(ids.tolist(), tuple(pieces))


class Misfit(Exception):
    """An array that is not what was agreed: where, what was expected, what came."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


def fits(where: str, array: Any, rows: int, spec: RowSpec | Leaf) -> NDArray[Any]:
    """`array`, if it is one of (rows, *shape) and of exactly this dtype. Raises Misfit."""
    if not isinstance(array, np.ndarray) or array.shape != (rows, *spec.shape) or array.dtype != spec.dtype:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise Misfit(where, f"{spec.dtype} {(rows, *spec.shape)}", got)
    return array


def fixed_tree(name: str, space: gym.Space[Any]) -> SpaceTree:
    """The space's leaves. Raises ValueError if one has no fixed size."""
    tree = SpaceTree(space)
    for leaf in tree.leaves:
        if not leaf.fixed:
            raise ValueError(f"no policy for the {name} space{leaf}: {leaf.space} has no fixed size")
    return tree


def columns_of(tree: SpaceTree, value: Any, rows: int, name: str) -> list[NDArray[Any]]:
    """The leaves of a batch, each (rows, *shape) of its space's dtype. Raises Misfit."""
    if tree.is_leaf:
        return [fits(name, value, rows, tree.leaves[0])]
    columns = []
    for leaf in tree.leaves:
        part = value
        try:
            for key in leaf.path:
                part = part[key]
        except (KeyError, IndexError, TypeError):
            raise Misfit(f"{name}{leaf}", f"the structure of {tree.space}", type(value).__name__) from None
        columns.append(fits(f"{name}{leaf}", part, rows, leaf))
    return columns


class PolicyRunner:
    """One copy of a policy: it calls `act` in blocks of rows and checks all that comes back.

    A block is always the same memory, aligned, C-ordered and full, and env i always stands at the same place in it. So
    the bits of a row depend neither on the other rows nor on which worker holds which envs: products of matrices are
    computed differently for other numbers of rows, other places and other layouts.

    Raises PolicyError if the policy cannot be unpickled or declares what cannot be, ValueError if a leaf of a space
    has no fixed size.
    """

    def __init__(
        self,
        pickled: bytes,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        worker: int = -1,
    ) -> None:
        self.version = 0  # what acts: 0 as it was pickled, else what `load` was told
        self.worker = worker
        self._obs = fixed_tree("observation", observation_space)
        self._action = fixed_tree("action", action_space)
        self._policy: Policy = self._unpickle(pickled, "the policy")
        self.noise, self.outputs = check_declared(self._policy)
        self._checks = [_bounds(leaf.space) for leaf in self._action.leaves]
        leaf = self._action.leaves[0] if self._action.is_leaf else None
        self._whole_action = (None, None) if leaf is None else ((BLOCK, *leaf.shape), leaf.dtype)
        self._whole_outputs = [
            (name, (BLOCK, *spec.shape), spec.dtype) for name, spec in self.outputs.items()
        ]
        self._obs_block = [_aligned(BLOCK, leaf) for leaf in self._obs.leaves]
        self._only_obs = self._obs_block[0] if self._obs.is_leaf else None
        self._noise_block = _aligned(BLOCK, self.noise)

    def load(self, version: int, pickled: bytes) -> None:
        """Take parameters, as `framing.dumps` made them of what `set_policy` was given.

        Raises PolicyError; the policy may then hold a part of them, so it must not act any more.
        """
        params = self._unpickle(pickled, f"the policy's parameters (version {version})")
        try:
            self._policy.load(params)
        except Exception as error:
            raise self._raised("load", error, version) from error
        self.version = version

    def empty(self, *rows: int) -> tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]:
        """Arrays (*rows, …) that `act` may fill: a column per leaf of the action space, and the outputs."""
        return (
            [np.empty((*rows, *leaf.shape), leaf.dtype) for leaf in self._action.leaves],
            {name: np.empty((*rows, *spec.shape), spec.dtype) for name, spec in self.outputs.items()},
        )

    def act(
        self,
        rows: Rows,
        obs: Sequence[NDArray[Any]],
        noise: NDArray[Any],
        actions: Sequence[NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
    ) -> None:
        """Act on n rows: observations, one column (n, …) per leaf, and noise (n, *shape). Fills `actions` and
        `outputs`, as of `empty(n)`. Raises PolicyError; what was filled then means nothing."""
        obs_block, noise_block, only = self._obs_block, self._noise_block, self._only_obs
        for at, places, first, free in rows.pieces:
            for column, given in zip(obs_block, obs):
                column[places] = given[at]
            noise_block[places] = noise[at]
            for place in free:
                for column in (*obs_block, noise_block):
                    column[place] = column[first]
            try:  # views, since a policy may reshape what it is given
                seen = only[:] if only is not None else self._obs.join([column[:] for column in obs_block])
                result = self._policy.act(seen, noise_block[:])
            except Exception as error:
                raise self._raised("act", error, self.version) from error
            if type(result) is not tuple or len(result) != 2 or type(result[1]) is not dict:
                result = self._result(result)
            try:
                whole = not free and type(places) is slice  # and in the order of its places
                self._take(at, places, whole, result[0], result[1], actions, outputs)
            except Misfit as misfit:
                raise self._error(str(misfit)) from None
        self._check_values(rows, actions, outputs)

    def _result(self, result: Any) -> tuple[Any, Mapping[str, Any]]:
        """What `act` returned, if it is such a pair. Raises PolicyError."""
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise self._error("act must return (actions, outputs), outputs a dict", type(result).__name__)
        return result

    def _take(
        self,
        at: Any,
        places: Any,
        whole: bool,
        given: Any,
        said: Mapping[str, Any],
        actions: Sequence[NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
    ) -> None:
        """Take a block's rows out of what `act` returned; `whole`: all of them, as they stand. Raises Misfit."""
        for column, acted in zip(actions, self._actions_of(given)):
            column[at] = acted if whole else acted[places]
        if len(said) != len(outputs):
            self._check_names(said)
        for name, shape, dtype in self._whole_outputs:
            got: Any = said.get(name)
            if type(got) is not np.ndarray or got.shape != shape or got.dtype is not dtype:
                self._check_names(said)
                got = fits(f"outputs[{name!r}]", got, BLOCK, self.outputs[name])
            outputs[name][at] = got if whole else got[places]

    def _check_names(self, said: Mapping[str, Any]) -> None:
        if said.keys() != self.outputs.keys():
            raise Misfit("outputs", str(sorted(self.outputs)), str(sorted(map(str, said))))

    def _actions_of(self, actions: Any) -> list[NDArray[Any]]:
        """The leaves of a block's actions, the usual one at a glance. Raises Misfit."""
        if (
            type(actions) is np.ndarray
            and actions.shape == self._whole_action[0]
            and actions.dtype is self._whole_action[1]
        ):
            return [actions]
        return columns_of(self._action, actions, BLOCK, "actions")

    def _check_values(
        self, rows: Rows, actions: Sequence[NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> None:
        for leaf, bounds, column in zip(self._action.leaves, self._checks, actions):
            if not bounds.hold(column):
                row = int(np.flatnonzero(bounds.outside(column).reshape(len(column), -1).any(1))[0])
                env_id, value = rows.env_ids[row], column[row]
                raise self._error(f"actions{leaf} of env {env_id}: {value!s:.80} is not in {leaf.space}")
        for name, column in outputs.items():
            if _has_nan(column):
                row = int(np.flatnonzero(np.isnan(column).reshape(len(column), -1).any(1))[0])
                raise self._error(f"outputs[{name!r}] of env {rows.env_ids[row]} is NaN")

    def _unpickle(self, pickled: bytes, what: str) -> Any:
        try:
            return wire.loads(pickled)
        except Exception as error:
            raise PolicyError(
                f"{what} cannot be unpickled: {_text(error)}",
                op="unpickle",
                worker=self.worker,
                type_name=type(error).__name__,
            ) from error

    def _raised(self, op: str, error: Exception, version: int) -> PolicyError:
        return PolicyError(
            f"{self._who(version)} raised {_text(error)} in {op}()",
            op=op,
            worker=self.worker,
            type_name=type(error).__name__,
        )

    def _error(self, message: str, got: str = "") -> PolicyError:
        got = got and f", got {got}"
        return PolicyError(f"{self._who(self.version)}: {message}{got}", op="act", worker=self.worker)

    def _who(self, version: int) -> str:
        return f"the policy {type(self._policy).__name__} (version {version})"


def _text(error: Exception) -> str:
    try:
        text = str(error)
    except Exception as worse:  # the user's own
        text = f"<its __str__ raised {type(worse).__name__}>"
    return f"{type(error).__name__}: {text}"


def _aligned(rows: int, spec: RowSpec | Leaf) -> NDArray[Any]:
    """Zeros (rows, *shape), C-ordered, that begin at a cache line."""
    size = rows * int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize
    room = np.zeros(size + _ALIGN, np.uint8)
    start = -room.ctypes.data % _ALIGN
    return room[start : start + size].view(spec.dtype).reshape(rows, *spec.shape)


def _has_nan(column: NDArray[Any]) -> bool:
    if column.dtype.kind != "f" or not column.size:
        return False
    if column.ndim == 1 and len(column) <= _FEW:  # in a fifth of the time
        total = sum(column.tolist())
        if total == total:
            return False
    least = np.minimum.reduce(column, axis=None)  # NaN, if any is
    return bool(least != least)


class Bounds(NamedTuple):
    """Which values of a leaf are in its space: low ≤ value ≤ high; None: no bound on that side."""

    low: Any
    high: Any
    # integers from 0 on: as unsigned ones, a negative one is the largest of all
    unsigned: np.dtype[Any] | None

    def hold(self, column: NDArray[Any]) -> bool:
        """Whether all values are inside. Looked at for every row: one reduction in the usual case, Discrete."""
        if not column.size:
            return True
        if self.unsigned is not None and column.ndim == 1 and len(column) <= _FEW:
            numbers = column.tolist()
            return bool(min(numbers) >= 0 and max(numbers) <= self.high)
        if self.unsigned is not None:
            return bool(np.maximum.reduce(column.view(self.unsigned), axis=None) <= self.high)
        return not self.outside(column).any()

    def outside(self, column: NDArray[Any]) -> NDArray[np.bool_]:
        """Which values are not; NaN never is inside."""
        inside: NDArray[np.bool_] = column == column
        if self.low is not None:
            inside &= column >= self.low
        if self.high is not None:
            inside &= column <= self.high
        return ~inside


def _bounds(space: gym.Space[Any]) -> Bounds:
    low: Any
    high: Any
    match space:
        case spaces.Discrete():
            low, high = int(space.start), int(space.start) + int(space.n) - 1
        case spaces.MultiDiscrete():
            low, high = space.start, space.start + space.nvec - 1
        case spaces.MultiBinary():
            low, high = 0, 1
        case _:
            assert isinstance(space, spaces.Box)  # the fourth of those that have a fixed size
            low = space.low if space.bounded_below.any() else None
            high = space.high if space.bounded_above.any() else None
    dtype = np.dtype(space.dtype)
    unsigned = None
    if dtype.kind in "iu" and isinstance(low, int) and low == 0:
        unsigned = np.dtype(f"u{dtype.itemsize}")
    return Bounds(low, high, unsigned)
