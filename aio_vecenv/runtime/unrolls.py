"""The policy of a vec env, and the unrolls that its workers make with it."""
# async: nothing here waits; chunks are collected in `.collector`

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..core import options
from ..core.assignment import Assignment, Selection
from ..core.chunks import Chunks
from ..core.layout import ChunkRows, SpaceTree
from ..core.messages import Spaces
from ..core.policy import Misfit, RowSpec, fits
from ..errors import BadActions
from .policies import ParentPolicy
from .supervisor import Supervisor

__all__ = ["Unrolls"]


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

    def send(self, noise: NDArray[Any], selection: Selection, chunks: Chunks, supervisor: Supervisor) -> None:
        """As of `AsyncVecEnv.send_unroll`."""
        policy = self.policy("send_unroll()")
        if not self.length:
            raise ValueError(
                "send_unroll() without unroll=: construct the vec env with the most rows of a chunk"
            )
        n, spec = len(selection.env_ids), policy.noise
        length = noise.shape[0] if getattr(noise, "ndim", 0) else 0
        if not 1 <= length <= self.length:
            raise BadActions(
                f"noise: {length} rows, where unroll={self.length} is the most and 1 the least; nothing was sent",
                expected=f"1 to {self.length} rows",
                got=str(length),
            )
        try:
            fits("noise", noise, length, RowSpec((n, *spec.shape), spec.dtype))
        except Misfit as misfit:
            raise BadActions(
                f"{misfit}; nothing was sent", expected=misfit.expected, got=misfit.got
            ) from None
        supervisor.post(chunks.send(selection, noise, policy.version, policy.params))
