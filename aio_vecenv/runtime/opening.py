"""Opening a vec env: the spaces that all of its workers agree on, and memory for their rows."""
# async: `agree` waits for the workers; the rest is plain data

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gymnasium.vector import AutoresetMode

from ..backends.base import Backend
from ..core.assignment import Assignment, assign
from ..core.layout import ChunkRows, SharedMemory, Slab, SpaceTree, layout
from ..core.limits import RenewAfter, RestartBudget, Timeouts
from ..core.log_levels import current
from ..core.messages import Setup, Spaces
from ..core.options import Settings
from ..core.spaces import same_space
from ..errors import SpaceMismatch
from ..memory import bytes_left
from .supervisor import Memory, Supervisor
from .unrolls import Unrolls

__all__ = ["Agreed", "Opening"]


class Agreed(NamedTuple):
    """What all workers of a vec env have in common."""

    spaces: Spaces
    obs: SpaceTree
    action: SpaceTree
    assignment: Assignment


class Opening:
    """What a vec env is to be made of, as its constructor was told; it can be opened once."""

    def __init__(
        self,
        factories: Sequence[Callable[..., Any]],
        num_workers: int,
        backend: Callable[[], Backend],
        settings: Settings,
        shared_memory: SharedMemory,
        copy: bool,
        timeouts: Timeouts,
        restart: RestartBudget | None,
        renew_after: RenewAfter | None,
        unrolls: Unrolls,
    ) -> None:
        self.renew_after = renew_after
        self.settings, self.copy, self.unrolls = settings, copy, unrolls
        self._factories, self._num_workers, self._backend = factories, num_workers, backend
        self._shared_memory, self._timeouts, self._restart = shared_memory, timeouts, restart

    def supervisor(self) -> Supervisor:
        """Of workers that are not started yet."""
        logs = current()
        setups = [
            Setup(
                list(self._factories[run.start : run.stop]),
                list(run),
                self.settings,
                self._shared_memory,
                logs,
            )
            for run in assign(len(self._factories), self._num_workers)
        ]
        return Supervisor(self._backend(), setups, self._timeouts, self._restart)

    async def agree(self, supervisor: Supervisor) -> Agreed:
        """Start the workers and let them make their envs. Raises SpaceMismatch, and what making them brings about."""
        made = await supervisor.make()
        spaces = _agree(made, [slot.setup.env_ids[0] for slot in supervisor.slots], self.settings)
        obs, action = SpaceTree(spaces.observation, self._shared_memory), SpaceTree(spaces.action)
        if spaces.vectorised:
            if self.renew_after is not None:
                raise ValueError(
                    "renew_after for factories that make VectorEnvs, whose envs begin episodes by themselves"
                )
            _check_shared(obs, action, self._shared_memory)
        return Agreed(
            spaces, obs, action, Assignment([sum(one.rows) for one in made], whole=spaces.vectorised)
        )

    def allocate(self, supervisor: Supervisor, agreed: Agreed) -> Memory:
        """The block in which their rows lie. Raises MemoryError; ValueError for envs that cannot be unrolled."""
        spaces, obs, action, assignment = agreed
        same_step = self.settings.autoreset is AutoresetMode.SAME_STEP
        self.unrolls.open(spaces, obs, action, assignment)
        chunks = self.unrolls.rows(len(assignment.rows))
        fields, size_bytes = layout(obs, action, assignment.num_envs, final_obs=same_step, chunks=chunks)
        if chunks is not None:
            _check_room(agreed, chunks, size_bytes)
        slab = Slab(supervisor.backend.allocate(size_bytes), fields, obs, action)
        return Memory(slab, assignment.rows, fields, size_bytes, self.unrolls.pickled)


def _check_room(agreed: Agreed, chunks: ChunkRows, size_bytes: int) -> None:
    """Raise MemoryError unless chunks of this length find room, with the longest that would."""
    left = bytes_left()
    if left is None or size_bytes <= left:
        return
    _, obs, action, assignment = agreed
    one, two = (
        layout(obs, action, assignment.num_envs, final_obs=False, chunks=chunks._replace(length=n))[1]
        for n in (1024, 2048)
    )
    per_row = (two - one) / 1024
    most = int((left - (one - 1024 * per_row)) // per_row)
    advice = f"unroll={most} would" if most > 0 else "no unroll would: use fewer envs"
    raise MemoryError(
        f"unroll={chunks.length} needs {size_bytes} bytes of shared memory, where {left} are left; {advice}"
    )


def _check_shared(obs: SpaceTree, action: SpaceTree, shared_memory: SharedMemory) -> None:
    """Raise ValueError unless all rows of VectorEnvs can lie in shared memory."""
    if shared_memory is False:
        raise ValueError(
            "shared_memory=False, but rows of VectorEnvs travel in shared memory only: leave it out"
        )
    for name, tree in (("observation", obs), ("action", action)):
        for leaf in tree.leaves:
            if not leaf.fixed:
                raise ValueError(f"the {name} space{leaf} of a VectorEnv has no fixed size: {leaf.space}")


def _agree(made: list[Spaces], first_ids: list[int], settings: Settings) -> Spaces:
    """The spaces of all workers, if they agree. Raises SpaceMismatch."""
    expected = made[0]
    for got, env_id in zip(made[1:], first_ids[1:]):
        for name in ("observation", "action"):
            want, have = getattr(expected, name), getattr(got, name)
            if not same_space(name, want, have, settings.spaces):
                raise SpaceMismatch(
                    f"env {env_id}: the {name} space is {have}; that of env {first_ids[0]} is {want}",
                    env_id=env_id,
                    expected=str(want),
                    got=str(have),
                )
        if got.vectorised != expected.vectorised:
            raise SpaceMismatch(
                f"env {env_id}: some factories make VectorEnvs, others single envs",
                env_id=env_id,
                expected="all of one kind",
                got="both",
            )
    return expected
