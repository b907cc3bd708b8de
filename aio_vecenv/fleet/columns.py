"""One chunk out of what several hosts report; the columns of hosts that are not there hold nothing."""
# pure: arrays in, arrays out

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..core.batch import Episode
from ..core.chunk import Chunk
from ..core.layout import SpaceTree
from ..core.policy import RowSpec
from .state import Collected

__all__ = ["LOST", "Columns"]

LOST = "host_lost"  # the info of a row whose episode was cut off with its host
_FIELDS = ("rewards", "terminations", "truncations", "first", "index", "versions")
_EMPTY: dict[str, tuple[Any, Any]] = {
    "rewards": (np.float64, 0), "terminations": (np.bool_, False), "truncations": (np.bool_, False),
    "first": (np.bool_, True), "index": (np.int64, -1), "versions": (np.int64, 0),
}  # fmt: skip


def _size(row: Any) -> int:
    size: int = int(np.prod(row.shape, dtype=np.int64)) * np.dtype(row.dtype).itemsize
    return size


class Columns:
    """Puts chunks together. It keeps what every env showed last, for the columns that are absent."""

    def __init__(
        self,
        slots: Sequence[range],
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        outputs: Mapping[str, RowSpec],
    ) -> None:
        self.obs, self.action = SpaceTree(observation_space), SpaceTree(action_space)
        self._slots, self._outputs = slots, outputs
        num_envs = slots[-1].stop
        self._last = [np.zeros((num_envs, *leaf.shape), leaf.dtype) for leaf in self.obs.leaves]

    def size_bytes(self, rows: int, envs: int) -> int:
        """How large a chunk is; infos aside."""
        shown = sum(_size(leaf) for leaf in self.obs.leaves)
        beside = sum(_size(leaf) for leaf in self.action.leaves) + sum(map(_size, self._outputs.values()))
        return envs * ((rows + 1) * shown + rows * (beside + 3 * 8 + 3))

    def see(self, env_ids: Sequence[int], obs: Any) -> None:
        """What these envs show since they were reset."""
        for last, shown in zip(self._last, self.obs.split(obs)[0]):
            last[list(env_ids)] = shown

    def shown(self, env_ids: Sequence[int]) -> Any:
        """What these envs showed last; zeros before their first reset."""
        return self.obs.join([last[list(env_ids)] for last in self._last])

    def chunk(
        self, collected: Collected, parts: Mapping[int, Mapping[str, Any] | None], why: Mapping[int, str]
    ) -> Chunk:
        """The chunk of these columns; `parts` by slot, None where there is nothing; `why` a slot's host was lost."""
        order = sorted(parts)
        columns = [self._absent(slot, collected) if (part := parts[slot]) is None else part for slot in order]
        env_ids = np.concatenate(
            [np.arange(self._slots[slot].start, self._slots[slot].stop) for slot in order]
        )
        obs = self._joined([self.obs.split(part["obs"])[0] for part in columns])
        for last, leaf in zip(self._last, obs):
            last[env_ids] = leaf[-1]
        infos = [info for part in columns for info in part["infos"]]
        infos += [
            (0, env, {LOST: why.get(slot, "")})
            for slot in order
            for env in self._slots[slot]
            if parts[slot] is None and env in collected.aborted
        ]
        infos.sort(key=lambda info: info[:2])
        return Chunk(
            env_ids=env_ids,
            obs=self.obs.join(obs),
            actions=self.action.join(
                self._joined([self.action.split(part["actions"])[0] for part in columns])
            ),
            **{name: _side_by_side([part[name] for part in columns]) for name in _FIELDS},
            outputs={
                name: _side_by_side([part["outputs"][name] for part in columns]) for name in self._outputs
            },
            policy_version=collected.policy,
            infos=infos,
            episodes=tuple(e for batch in collected.events for e in batch.events if isinstance(e, Episode)),
            number=collected.first_batch,
            watermarks=np.array(collected.watermarks, np.int64),
        )

    def _absent(self, slot: int, collected: Collected) -> dict[str, Any]:
        rows, env_ids = collected.rows, self._slots[slot]
        shape = (rows, len(env_ids))
        found: dict[str, Any] = {name: np.full(shape, fill, dtype) for name, (dtype, fill) in _EMPTY.items()}
        for column, env in enumerate(env_ids):
            found["truncations"][0, column] = env in collected.aborted
        own = slice(env_ids.start, env_ids.stop)
        shown = [np.broadcast_to(last[own], (rows + 1, *last[own].shape)) for last in self._last]
        acted = [np.zeros((*shape, *leaf.shape), leaf.dtype) for leaf in self.action.leaves]
        return {
            **found,
            "obs": self.obs.join(shown),
            "actions": self.action.join(acted),
            "outputs": {
                name: np.zeros((*shape, *row.shape), row.dtype) for name, row in self._outputs.items()
            },
            "infos": [],
        }

    @staticmethod
    def _joined(parts: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
        return [_side_by_side(list(leaves)) for leaves in zip(*parts)]


def _side_by_side(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Columns of several hosts in one array; of one host as it came, read-only."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
