"""`check_policy`: whether a policy may act in workers."""
# public: used in tests only

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from ..core import framing as wire
from ..core.policy import (
    BLOCK,
    Policy,
    PolicyRunner,
    RowSpec,
    check_declared,
    columns_of,
    fixed_tree,
    rows_in_blocks,
)
from ..errors import PolicyError

__all__ = ["check_policy"]

_ENVS = 3 * BLOCK + 5  # the last block is not full
_SEED = 0
# relative and absolute: a row at another place of its block may have other bits, no other value
_CLOSE = 1e-3

Acted = tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]


def check_policy(
    policy: Policy,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any] | None = None,
    *,
    params: Sequence[Any] = (),
) -> None:
    """Raise PolicyError, naming what is wrong, unless the policy acts alike in the parent and in every worker.

    On observations drawn from the space (of one env): what it declares is what it draws and returns; a row gets the
    same bits when it acts again, beside other rows, alone, and in another copy that came through a pickle; and the same
    values at another place of its block. With the action space: actions are inside it. With some `params`: whatever was
    loaded before, the newest decides alone.
    """
    declared = check_declared(policy)
    rng = np.random.default_rng(_SEED)
    noise = _drawn(policy, rng, (_ENVS,), declared.noise)
    for rows in ((3, 4), (0,)):
        _drawn(policy, rng, rows, declared.noise)
    tree = fixed_tree("observation", observation_space)
    observation_space.seed(_SEED)
    room: Any = create_empty_array(observation_space, _ENVS)
    batch = concatenate(
        observation_space,
        [observation_space.sample() for _ in range(_ENVS)],
        room,
    )
    obs = columns_of(tree, batch, _ENVS, "obs")
    pickled = wire.dumps(policy, "policy")
    if action_space is None:
        first = [column[:BLOCK].copy() for column in obs]
        action_space = _space_of(pickled, tree.join(first), noise[:BLOCK].copy())
    checks = _Checks(pickled, observation_space, action_space, obs, noise)
    checks.rows(())
    for index in range(len(params)):
        checks.rows(params[: index + 1])
        if index:
            checks.same(
                checks.all(checks.copy(params[: index + 1])),
                checks.all(checks.copy(params[index : index + 1])),
                range(_ENVS),
                "after another load() before its newest: what was loaded first still has a part in it",
            )


def _drawn(policy: Policy, rng: np.random.Generator, rows: tuple[int, ...], spec: RowSpec) -> NDArray[Any]:
    call = f"draw(rng, {rows})"
    try:
        drawn = policy.draw(rng, rows)
    except Exception as error:
        raise PolicyError(f"{call} raised {type(error).__name__}: {error}", op="draw") from error
    if not isinstance(drawn, np.ndarray) or drawn.shape != (*rows, *spec.shape):
        got = drawn.shape if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise PolicyError(f"{call} gave {got}, not {(*rows, *spec.shape)}", op="draw")
    if drawn.dtype != spec.dtype:
        raise PolicyError(f"{call} gave {drawn.dtype}, not {spec.dtype}, as `noise` declares", op="draw")
    return drawn


class _Checks:
    """The same rows, acted on in different company."""

    def __init__(
        self,
        pickled: bytes,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        obs: list[NDArray[Any]],
        noise: NDArray[Any],
    ) -> None:
        self._pickled, self._spaces = pickled, (observation_space, action_space)
        self._obs, self._noise = obs, noise

    def copy(self, params: Sequence[Any]) -> PolicyRunner:
        runner = PolicyRunner(self._pickled, *self._spaces)
        for version, given in enumerate(params, 1):
            runner.load(version, wire.dumps(given, f"params[{version - 1}]"))
        return runner

    def all(self, runner: PolicyRunner) -> Acted:
        return self._act(runner, np.arange(_ENVS), np.arange(_ENVS))

    def rows(self, params: Sequence[Any]) -> None:
        runner = self.copy(params)
        want = self.all(runner)
        self.same(want, self.all(runner), range(_ENVS), "when it acts a second time on the same rows")
        self.same(
            want, self.all(self.copy(params)), range(_ENVS), "in another copy that came through a pickle"
        )
        for low, high in ((0, 5), (5, 23), (BLOCK, 2 * BLOCK), (23, _ENVS)):
            ids = np.arange(low, high)
            got = self._act(runner, ids, ids)
            self.same(
                _pick(want, ids), got, ids, "without the rows of other envs: a row depends on its neighbours"
            )
        # other neighbours, each row at its place: envs 16 apart change blocks
        moved = (np.arange(_ENVS) // BLOCK * BLOCK + BLOCK) % (3 * BLOCK) + np.arange(_ENVS) % BLOCK
        ids = np.arange(3 * BLOCK)
        mixed = np.where(ids % 2, ids, moved[: 3 * BLOCK])
        got = self._act(runner, ids, mixed)
        self.same(_pick(want, mixed), got, mixed, "beside other rows: a row depends on its neighbours")
        turned = ids // BLOCK * BLOCK + (ids + 3) % BLOCK
        self.same(
            _pick(want, turned),
            self._act(runner, ids, turned),
            turned,
            "at another place of its block",
            _CLOSE,
        )

    def same(self, want: Acted, got: Acted, ids: Any, when: str, close: float = 0.0) -> None:
        pairs = [("actions", a, b) for a, b in zip(want[0], got[0])]
        pairs += [(f"outputs[{name!r}]", want[1][name], got[1][name]) for name in want[1]]
        for name, a, b in pairs:
            equal = a == b
            if close and a.dtype.kind == "f":
                equal = np.isclose(a, b, rtol=close, atol=close)
            if not equal.all():
                row = int(np.flatnonzero(~equal.reshape(len(equal), -1).all(1))[0])
                raise PolicyError(
                    f"{name} of env {ids[row]} is {a[row]!s:.80}, but {b[row]!s:.80} {when}", op="act"
                )

    def _act(self, runner: PolicyRunner, ids: NDArray[np.int64], rows: NDArray[np.int64]) -> Acted:
        """The rows `rows` of what was drawn, as if they were of the envs `ids`."""
        actions, outputs = runner.empty(len(ids))
        placed = rows_in_blocks(range(int(ids[0]), int(ids[-1]) + 1))
        runner.act(placed, [column[rows] for column in self._obs], self._noise[rows], actions, outputs)
        return actions, outputs


def _pick(acted: Acted, rows: NDArray[np.int64]) -> Acted:
    return [column[rows] for column in acted[0]], {name: column[rows] for name, column in acted[1].items()}


def _space_of(pickled: bytes, batch: Any, noise: NDArray[Any]) -> gym.Space[Any]:
    """A space of all actions of the shape and dtype that the policy returns. Raises PolicyError."""
    policy = wire.loads(pickled)
    try:
        actions, _outputs = policy.act(batch, noise)
    except Exception as error:
        raise PolicyError(f"act() raised {type(error).__name__}: {error}", op="act") from error
    if (
        not isinstance(actions, np.ndarray)
        or actions.shape[:1] != (BLOCK,)
        or actions.dtype.kind not in "iuf"
    ):
        got = (
            f"{actions.dtype} {actions.shape}" if isinstance(actions, np.ndarray) else type(actions).__name__
        )
        raise PolicyError(f"actions: {got} for {BLOCK} rows; give the action space", op="act")
    if actions.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, actions.shape[1:], actions.dtype.type)
    every = np.iinfo(actions.dtype)
    return spaces.Box(every.min, every.max, actions.shape[1:], actions.dtype.type)
