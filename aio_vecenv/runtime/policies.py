"""The policy in the parent: its versions, and the newest of them to act with."""
# resource: one copy of the policy; while it acts, numpy has as many threads as in the workers

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..blas import same_threads_as_workers
from ..core import framing as wire
from ..core.assignment import Assignment, EnvIds
from ..core.policy import (
    Misfit,
    PolicyMaker,
    PolicyRunner,
    check_declared,
    columns_of,
    fits,
    fixed_tree,
    rows_in_blocks,
)
from ..errors import BadActions

__all__ = ["ParentPolicy"]


class ParentPolicy:
    """Numbers the policy's parameters, pickles them once, and acts with the newest.

    It acts with what it unpickled, as the workers do, never with the objects that the caller gave: the layout of a
    matrix in memory is not always the same after a pickle, and another layout gives other bits.

    `policy` is one, or what makes one for the spaces of one env: a function, a class. Raises PolicyError if the policy
    declares what cannot be, TypeError if it cannot be pickled; of one that is made later, `open` does.
    """

    def __init__(self, policy: Any) -> None:
        later = callable(policy) and (isinstance(policy, type) or not hasattr(policy, "act"))
        self._make: PolicyMaker | None = policy if later else None
        self.params: bytes | None = None  # of the newest version
        if not later:
            self._take(policy)

    def _take(self, policy: Any) -> None:
        self.noise, self.outputs = check_declared(policy)
        self.pickled = wire.dumps(policy, "policy")

    def open(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], assignment: Assignment
    ) -> bool:
        """Make the parent's copy, for these spaces of one env; False: there is no policy for them. Raises PolicyError;
        ValueError for spaces without a fixed size; what making the policy raises."""
        if self._make is not None:
            policy = self._make(observation_space, action_space)
            if policy is None:
                return False
            self._take(policy)
        self._spaces, self._assignment = (observation_space, action_space), assignment
        self._obs = fixed_tree("observation", observation_space)
        self._action = fixed_tree("action", action_space)
        self._runner = PolicyRunner(self.pickled, *self._spaces)
        self._everyone = rows_in_blocks(range(assignment.num_envs))
        return True

    @property
    def version(self) -> int:
        """The newest one; 0 before any `load`."""
        return self._runner.version

    def load(self, params: Any) -> int:
        """Pickle and load; the new version. Raises TypeError or PolicyError; the version before then stays."""
        pickled = wire.dumps(params, "params")
        version = self.version + 1
        try:
            self._runner.load(version, pickled)
        except BaseException:  # a Ctrl-C, too
            self._runner = PolicyRunner(self.pickled, *self._spaces)  # what was loaded in part is dropped
            if self.params is not None:
                self._runner.load(version - 1, self.params)
            raise
        self.params = pickled
        return version

    def act(
        self, obs: Any, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        """(actions, outputs) of these envs' rows. Raises BadActions, PolicyError; ValueError for the env ids."""
        if env_ids is None:
            rows = self._everyone
        else:
            ids = self._assignment.env_ids(env_ids)
            start = int(ids[0])
            in_turn = bool((ids == np.arange(start, start + len(ids))).all())
            rows = rows_in_blocks(range(start, start + len(ids)) if in_turn else ids)
        n = len(rows.env_ids)
        try:
            columns = columns_of(self._obs, obs, n, "obs")
            fits("noise", noise, n, self._runner.noise)
        except Misfit as misfit:
            raise BadActions(str(misfit), expected=misfit.expected, got=misfit.got) from None
        actions, outputs = self._runner.empty(n)
        with same_threads_as_workers():
            self._runner.act(rows, columns, noise, actions, outputs)
        return self._action.join(actions), outputs
