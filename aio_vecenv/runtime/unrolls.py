"""The policy of a vec env, and the unrolls that its workers make with it."""
# async: awaits the chunks that `.collector` collects

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..core import options
from ..core.assignment import Assignment, EnvIds, Selection
from ..core.chunk import Chunk
from ..core.chunks import Chunks
from ..core.layout import ChunkRows, SpaceTree
from ..core.messages import Spaces
from ..core.policy import Misfit, RowSpec, fits
from ..errors import BadActions
from .collector import Collector
from .policies import ParentPolicy
from .supervisor import Supervisor

__all__ = ["Acting", "Unrolls", "check_min_envs", "checked_rows"]


class Unrolls:
    """What acts, in the parent and in the workers. `unroll`: the most rows of a chunk; None: workers do not act.

    Raises PolicyError or TypeError for the policy, ValueError for the rest.
    """

    def __init__(self, policy: Any, unroll: int | None, autoreset: AutoresetMode) -> None:
        self.length = 0 if unroll is None else options.whole("unroll", unroll, 1)
        if self.length and policy is None:
            raise ValueError("unroll= without policy=: unrolls are acted by a policy in the workers")
        if self.length and autoreset is not AutoresetMode.NEXT_STEP:
            raise ValueError(f"unroll= needs autoreset NEXT_STEP, not {autoreset.name}")
        self._policy = None if policy is None else ParentPolicy(policy)

    @property
    def pickled(self) -> bytes | None:
        """The policy that workers act with; None: they do not."""
        return self._policy.pickled if self.length and self._policy is not None else None

    def rows(self, workers: int) -> ChunkRows | None:
        """What the block must hold for chunks, once the policy is open."""
        if not self.length:
            return None
        policy = self.policy("unroll=")
        return ChunkRows(self.length, workers, policy.noise, policy.outputs)

    def open(self, spaces: Spaces, obs: SpaceTree, action: SpaceTree, assignment: Assignment) -> None:
        """Raises ValueError for envs that cannot be unrolled; as of `ParentPolicy.open`."""
        if self._policy is not None and not self._policy.open(spaces.observation, spaces.action, assignment):
            self._policy, self.length = None, 0
        if self.length:
            if spaces.vectorised:
                raise ValueError("unroll= for factories that make VectorEnvs, which unrolls do not support")
            for name, tree in (("observation", obs), ("action", action)):
                for leaf in tree.leaves:
                    if not leaf.fixed:
                        why = (
                            f"{leaf.space} has no fixed size" if not leaf.stackable else "shared_memory=False"
                        )
                        raise ValueError(
                            f"unroll= needs all observations and actions in shared memory: the {name} space{leaf} "
                            f"travels pickled ({why})"
                        )

    def policy(self, call: str) -> ParentPolicy:
        """Raises ValueError if there is none."""
        if self._policy is None:
            raise ValueError(f"{call} without a policy: construct the vec env with policy=")
        return self._policy

    def send(
        self,
        noise: NDArray[Any],
        selection: Selection,
        chunks: Chunks,
        supervisor: Supervisor,
        hold: Callable[[Selection], Sequence[int]] | None = None,
    ) -> None:
        """As of `AsyncVecEnv.send_unroll`; `hold`: as of `Chunks.send`."""
        policy = self.policy("send_unroll()")
        if not self.length:
            raise ValueError(
                "send_unroll() without unroll=: construct the vec env with the most rows of a chunk"
            )
        checked_rows(noise, len(selection.env_ids), policy.noise, self.length)
        supervisor.post(chunks.send(selection, noise, policy.version, policy.params, hold))


class Acting:
    """What `AsyncVecEnv` does with its policy."""

    _unrolls: Unrolls
    _assignment: Assignment
    _collector: Collector
    _supervisor: Supervisor

    def _check_open(self, *, alive: bool = True) -> None:
        raise NotImplementedError

    def set_policy(self, params: Any) -> int:
        """Give the policy's `load` these parameters; the new version: 1, 2, 3, … They are pickled once, here.

        Raises TypeError if they cannot be pickled, PolicyError if `load` raises: the version before stays in force.
        """
        self._check_open()
        return self._unrolls.policy("set_policy()").load(params)

    def act(
        self, obs: Any, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None = None
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        """The policy on these envs' rows (default: all): (actions, outputs), arrays that the caller owns.

        `obs` (n, …), batched as the observation space says, `noise` (n, *shape), row j for `env_ids[j]`. The actions
        are what `step` and `send` take. An env's row gives the same bits whichever other envs act with it.

        Raises BadActions if `obs` or `noise` has another shape or dtype, PolicyError if the policy raises or returns
        what it may not, ValueError for the env ids.
        """
        self._check_open()
        return self._unrolls.policy("act()").act(obs, noise, env_ids)

    def send_unroll(self, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None = None) -> None:
        """Let the workers of these envs (default: all) act and step T times; never waits.

        `noise` (T, n, *shape), as `policy.draw` gives it, column j for `env_ids[j]`; T ≥ 1, at most `unroll`. They act
        under the parameters that `set_policy` was given last. `env_ids`: all envs of whole workers.

        Raises BadActions or BusyError before anything is sent; ValueError for the env ids.
        """
        self._check_open()
        collector = self._collector
        renewal, selection = collector.renewal, self._assignment.select(env_ids)
        hold = None if renewal is None or not renewal.busy else renewal.held
        self._unrolls.send(noise, selection, collector.chunks, self._supervisor, hold)

    async def recv_unroll(self, min_envs: int | None = None) -> Chunk:
        """The columns of one `send_unroll` whose rows are all in, the oldest that has at least `min_envs` of them.

        Default, and cap: all that it still owes. Events are released row by row. With copy=False: views where all
        columns lie in one buffer, valid until the second-next `send_unroll` of any of their workers.

        Raises EnvError if an env raised, PolicyError if the policy did (an ExceptionGroup if several); the chunk stays
        owed, all columns of it, and the next `recv_unroll` returns it. Raises ValueError if no chunk is owed, BusyError
        if another task receives. Cancelling loses nothing: the chunk stays owed.
        """
        self._check_open()
        check_min_envs(min_envs)
        return await self._collector.recv_chunk(min_envs)

    async def unroll(self, noise: NDArray[Any]) -> Chunk:
        """`send_unroll(noise)`, then `recv_unroll()` of all. Cancelling loses nothing: the chunk stays owed."""
        self.send_unroll(noise)
        return await self._collector.recv_chunk()


def checked_rows(noise: Any, envs: int, spec: RowSpec, most: int) -> int:
    """How many rows a chunk of these envs has whose noise is `noise` (T, envs, *shape): T. Raises BadActions."""
    if not isinstance(noise, np.ndarray) or not noise.ndim:
        raise BadActions(
            f"noise: an array (T, n, …) is needed, not {type(noise).__name__}; nothing was sent",
            expected="an array (T, n, …)",
            got=type(noise).__name__,
        )
    rows = len(noise)
    if not 1 <= rows <= most:
        raise BadActions(
            f"noise: {rows} rows, where unroll={most} is the most and 1 the least; nothing was sent",
            expected=f"1 to {most} rows",
            got=str(rows),
        )
    try:
        fits("noise", noise, rows, RowSpec((envs, *spec.shape), spec.dtype))
    except Misfit as misfit:
        raise BadActions(f"{misfit}; nothing was sent", expected=misfit.expected, got=misfit.got) from None
    return rows


def check_min_envs(min_envs: int | None) -> None:
    """Raises ValueError."""
    whole = isinstance(min_envs, (int, np.integer)) and not isinstance(min_envs, bool)
    if min_envs is not None and not (whole and min_envs >= 1):
        raise ValueError(f"min_envs is {min_envs!r}, not a whole number ≥ 1")
