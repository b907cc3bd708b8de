"""Each env's running episode: how it began, what it added up, its order among all; and the watermark."""
# pure: plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batch import Episode, EpisodeStarted, Outcome, RunningEpisode, new_episode, new_started

__all__ = ["EpisodeTracker"]

_NEVER = 2**63 - 1  # larger than any order
_MOST_LATE = 64  # steps, before they are added up all the same
_ONE = np.array(1, np.int64)  # added in half the time that a Python number takes


class EpisodeTracker:
    """One line per env. An episode is opened once and closed once; orders only grow."""

    def __init__(self, num_envs: int) -> None:
        self.outcomes: dict[Outcome, int] = {"terminated": 0, "truncated": 0, "aborted": 0}
        self._length = np.zeros(num_envs, np.int64)  # executed steps of the running episode
        self._return = np.zeros(num_envs, np.float64)
        # steps that are not in these yet, oldest first
        self._late: list[tuple[Any, bytes, Sequence[int]]] = []
        self.seed: list[int | None] = [None] * num_envs
        self.num_envs = num_envs
        self._running = [False] * num_envs
        self._index = [-1] * num_envs
        self._order = [0] * num_envs
        self._version = [0] * num_envs
        self._task: list[Any] = [None] * num_envs
        self._open: dict[int, int] = {}  # env id -> order of its episode that runs, or is about to begin
        self._oldest: int | None = _NEVER  # smallest of these; None: look again
        self._beginning: dict[int, int] = {}  # env id -> order of the episode that a command under way begins

    def executed(self, rows: Any, rewards: NDArray[np.float64], not_these: Sequence[int]) -> None:
        """One more step of the envs that `rows` picks, with these rewards; but not of `not_these` among them.

        Nobody asks before an episode ends: until then it is only noted, which is a fifth of the work.
        """
        self._late.append((rows, rewards.tobytes(), not_these))
        if len(self._late) >= _MOST_LATE:
            self._add_up()

    def totals(self, env_id: int) -> tuple[int, float]:
        """Executed steps of the env's newest episode, and the sum of their rewards."""
        if self._late:
            self._add_up()
        return self._length.item(env_id), self._return.item(env_id)

    def totals_of(self, env_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As `totals`, of several envs: arrays of the caller's own."""
        if self._late:
            self._add_up()
        return self._length[env_ids], self._return[env_ids]

    def put_totals(
        self, env_ids: NDArray[np.int64], lengths: NDArray[np.int64], returns: NDArray[np.float64]
    ) -> None:
        """What the newest episodes of these envs come to, several steps later."""
        self._length[env_ids], self._return[env_ids] = lengths, returns

    def executed_one(self, env_id: int, reward: float) -> None:
        """One more step of this env, that is no row of any batch."""
        if self._late:
            self._add_up()
        self._length[env_id] += 1
        self._return[env_id] += reward

    def _add_up(self) -> None:
        lengths, returns = self._length, self._return
        for rows, rewards, not_these in self._late:
            if type(rows) is slice:  # views: `lengths[rows] += 1` would copy them onto themselves
                length, total = lengths[rows], returns[rows]
                length += _ONE
                total += np.frombuffer(rewards)
            else:
                lengths[rows] += _ONE
                returns[rows] += np.frombuffer(rewards)
            for env_id in not_these:
                self._length[env_id] -= 1
        self._late.clear()

    def runs(self, env_id: int) -> bool:
        """Whether an episode of this env has begun and not ended."""
        return self._running[env_id]

    @property
    def running(self) -> list[int]:
        """The envs with a running episode."""
        return [env_id for env_id, runs in enumerate(self._running) if runs]

    def index(self, env_id: int) -> int:
        """Of the env's newest episode; -1 before the first."""
        return self._index[env_id]

    def indices_of(self, env_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same of several envs."""
        return np.array(self._index, np.int64)[env_ids]

    def so_far(self, env_id: int) -> RunningEpisode | None:
        """The running episode of this env; None if there is none."""
        if not self._running[env_id]:
            return None
        length, episode_return = self.totals(env_id)
        version, task = self._version[env_id], self._task[env_id]
        return RunningEpisode(env_id, self._index[env_id], length, episode_return, version, task)

    def about_to_begin(self, env_id: int, call: int) -> None:
        """A command that begins an episode is on its way: the watermark must not pass it."""
        order = self._beginning[env_id] = call * self.num_envs + env_id
        if not self._running[env_id]:
            self._opens(env_id, order)

    def begin(self, env_id: int, call: int, version: int, task: Any, seed: int | None) -> EpisodeStarted:
        """An episode of this env began under the send or reset of number `call`.

        What is noted but not added up yet adds nothing to it: `end` has added up what came before, and the row that
        begins an episode is no step and has no reward.
        """
        order = call * self.num_envs + env_id
        self._running[env_id] = True
        self._index[env_id] = index = self._index[env_id] + 1
        self._order[env_id] = order
        self._beginning.pop(env_id, None)
        self._opens(env_id, order)
        self._length[env_id] = 0
        self._return[env_id] = 0.0
        self._version[env_id] = version
        self._task[env_id] = task
        self.seed[env_id] = seed
        return new_started((env_id, index, order, version, task, seed))

    def end(
        self,
        env_id: int,
        outcome: Outcome,
        info: dict[str, Any],
        batch: int,
        totals: tuple[int, float] | None = None,
    ) -> Episode:
        """The running episode of this env ended in the batch of that number. `totals`: its own, where they are newer
        than what has been added up here."""
        length, episode_return = self.totals(env_id) if totals is None else totals
        self._running[env_id] = False
        if self._open.pop(env_id, None) == self._oldest:
            self._oldest = None
        self.outcomes[outcome] += 1
        return new_episode(
            (
                env_id,
                self._index[env_id],
                self._order[env_id],
                length,
                episode_return,
                outcome,
                self._version[env_id],
                self._task[env_id],
                info,
                self.seed[env_id],
                batch,
            )
        )

    def forget(self, env_id: int) -> None:
        """What was about to begin in this env did not."""
        self._beginning.pop(env_id, None)
        if not self._running[env_id] and self._open.pop(env_id, None) == self._oldest:
            self._oldest = None

    @property
    def beginning(self) -> tuple[int, ...]:
        """The orders of the episodes that are about to begin."""
        return tuple(self._beginning.values())

    def _opens(self, env_id: int, order: int) -> None:
        if self._open.get(env_id) == self._oldest:
            self._oldest = None
        self._open[env_id] = order
        if self._oldest is not None and order < self._oldest:
            self._oldest = order

    def watermark(self, next_call: int) -> int:
        """Every episode with a smaller order, begun or about to begin, has ended."""
        if self._oldest is None:
            self._oldest = min(self._open.values(), default=_NEVER)
        return min(self._oldest, next_call * self.num_envs)
