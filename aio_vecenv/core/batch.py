"""What the caller gets back: `Batch`, and the events of an episode's life, with order and watermark."""
# pure: plain data, no loop, no process, no clock.

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Batch",
    "Episode",
    "EpisodeStarted",
    "EventBatch",
    "Outcome",
    "RunningEpisode",
    "new_batch",
    "new_episode",
    "new_started",
]

Outcome = Literal["terminated", "truncated", "aborted"]


class EpisodeStarted(NamedTuple):
    """An episode began: the reply with its first observation reached the parent."""

    env_id: int
    index: int  # type: ignore[assignment]  # 0, 1, 2, … per env
    # number of the send or reset that began it × num_envs + env_id; sorts a run's episodes by start
    order: int
    version: int  # the newest update its worker had taken when it began; 0 = none
    task: Any  # the reset info's "task", if any
    seed: int | None  # the seed passed to its reset, else None


class Episode(NamedTuple):
    """An episode ended. Every episode that began is reported exactly once."""

    env_id: int
    index: int  # type: ignore[assignment]  # as at its start
    order: int
    length: int  # executed steps
    episode_return: float  # undiscounted sum of its rewards
    outcome: Outcome
    version: int  # as at its start
    task: Any  # as at its start
    final_info: dict[str, Any]  # the last step's info; empty for aborted episodes
    seed: int | None
    batch: int  # number of the batch it ended in


class RunningEpisode(NamedTuple):
    """An episode that has begun and not ended, so far as its rows have been received."""

    env_id: int
    index: int  # type: ignore[assignment]  # as at its start
    length: int  # executed steps
    episode_return: float  # undiscounted sum of its rewards
    version: int  # as at its start
    task: Any  # as at its start


class EventBatch(NamedTuple):
    """The events that one `recv` or `reset` released together, in order."""

    number: int  # Batch.number
    watermark: int  # Batch.watermark
    events: tuple[EpisodeStarted | Episode, ...]
    beginning: tuple[int, ...] = ()  # orders of the episodes whose first command was under way


class Batch(NamedTuple):
    """One row per env that finished its step; n rows, sorted by `env_ids`."""

    env_ids: NDArray[np.int64]  # (n,)
    obs: Any  # batched as the observation space says: (n, …) arrays, or a tuple for spaces without a fixed size
    rewards: NDArray[np.float64]  # (n,) undiscounted, this step only
    terminations: NDArray[np.bool_]  # (n,)
    truncations: NDArray[np.bool_]  # (n,)
    first: NDArray[np.bool_]  # (n,) the action was not executed: autoreset, or a lost worker
    infos: dict[str, Any]  # Gymnasium's dict of arrays with `_key` masks; row j belongs to env_ids[j]
    versions: NDArray[np.int64]  # (n,) the update under which each row's current episode began
    episodes: tuple[Episode, ...]  # those that ended in this batch
    number: int  # 0, 1, 2, … over the batches that recv and reset return
    watermark: int  # every episode with a smaller order had ended when this batch was complete
    final_obs: Any  # SAME_STEP only: n rows, meaningless where no episode ended
    final_infos: dict[str, Any]  # SAME_STEP only: as `infos`


# As the classes themselves, of a tuple of all their fields, but all in C: see `framing.new_message`.
new_started: Callable[[tuple[int, int, int, int, Any, int | None]], EpisodeStarted] = partial(
    tuple.__new__, EpisodeStarted
)
new_episode: Callable[
    [tuple[int, int, int, int, float, Outcome, int, Any, dict[str, Any], int | None, int]], Episode
] = partial(tuple.__new__, Episode)
new_batch: Callable[[tuple[Any, ...]], Batch] = partial(tuple.__new__, Batch)
