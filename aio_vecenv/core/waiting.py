"""Planned renewal, its rules: which workers are due, and which of their envs wait for the others to end their episodes.

A worker is renewed between the episodes of all its envs, so that nothing is cut off. Where it has several, their ends
do not fall together: once it is due, an env that has ended its episode begins no other in the old process. The step
that would begin it is kept back until the new process is there. Where the caller cannot do without that row (it waits
for all envs, say), the row says that the env waits: see `command.WAITS`. Nobody waits for an env that the caller does
not step: then the episodes begin in the old process, and the worker stays due.
"""
# pure: plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from .assignment import Assignment, EnvIds, Selection
from .batch import Episode
from .command import Command
from .pool import Phase, Pool

__all__ = ["Waiting"]


class Waiting:
    """Counts the episodes of each worker, and keeps the steps of the envs that wait for its renewal."""

    def __init__(self, pool: Pool, assignment: Assignment) -> None:
        self._pool, self._assignment = pool, assignment
        self._worker_of = [worker for worker, rows in enumerate(assignment.rows) for _ in rows]
        self._kept: dict[int, list[Command]] = {}  # by worker
        self._chosen: set[int] = set()  # envs of the send under way that are to wait
        self.due: set[int] = set()
        self.ended = [0] * len(assignment.rows)  # episodes, by worker, in its newest process
        self.rows = 0  # that are owed and kept back

    def count(self, episodes: Iterable[Episode]) -> set[int]:
        """These have ended, however they did; the workers that they were of."""
        workers = [self._worker_of[episode.env_id] for episode in episodes]
        for worker in workers:
            self.ended[worker] += 1
        return set(workers)

    @property
    def keeping(self) -> set[int]:
        """The workers of which steps are kept back."""
        return set(self._kept)

    def workers_of(self, env_ids: EnvIds) -> set[int]:
        """The workers that hold these envs."""
        return {self._worker_of[env_id] for env_id in env_ids.tolist()}

    def begin_anew(self, worker: int) -> list[Command]:
        """It has, or gets, a new process; the steps that waited for that, and go there."""
        self.due.discard(worker)
        running = sum(map(self._pool.episodes.runs, self._assignment.rows[worker]))
        self.ended[worker] = -running  # they will be reported as aborted, and were the old process's
        return self._take(worker)

    def between_episodes(self, worker: int, resetting: Container[int] = ()) -> bool:
        """Whether none of its envs is in an episode that goes on, nor owes a row that is not kept back.

        `resetting`: envs that are reset now, whatever they are in.
        """
        pool = self._pool
        kept = {env_id for command in self._kept.get(worker, ()) for env_id in command.env_ids.tolist()}
        return all(
            (pool.phases[env_id] is not Phase.RUNNING or env_id in resetting)
            and (env_id in kept or not pool.owes[env_id])
            for env_id in self._assignment.rows[worker]
        )

    # -- steps -------------------------------------------------------------------------------------------------

    def part(self, selection: Selection, workers: Iterable[int]) -> Selection:
        """The same envs; those that are to wait for the renewal of one of `workers` are parts of their own.

        An env waits while another of its worker is in an episode, and all that are go on with it: they owe a row, or
        are among `selection`.
        """
        pool, sending = self._pool, set(selection.env_ids.tolist())
        self._chosen = {
            env_id
            for worker in workers
            if self.playing(worker) and not self._stands_still(worker, sending)
            for env_id in self._assignment.rows[worker]
            # while its episode runs it was cut off by a loss, and a row has to say so
            if env_id in sending and pool.phases[env_id] is Phase.DUE and not pool.episodes.runs(env_id)
        }
        return self._assignment.apart(selection, self._chosen) if self._chosen else selection

    def keep(self, commands: Sequence[Command]) -> list[Command]:
        """Of the commands of such a selection those that leave, and kept ones that need not wait any more."""
        leaving: list[Command] = []
        for command in commands:
            if self._chosen and command.env_ids.item(0) in self._chosen:
                self._kept.setdefault(command.worker, []).append(command)
                self.rows += len(command.env_ids)
            else:
                leaving.append(command)
        self._chosen = set()
        for worker in [worker for worker in self._kept if self._stands_still(worker, set())]:
            leaving += self._take(worker)
        return leaving

    def rows_of(self, workers: Iterable[int]) -> int:
        """Those that are kept back of these workers, which keep some."""
        return sum(len(command.env_ids) for worker in workers for command in self._kept[worker])

    def give_up(self, workers: Iterable[int] | None = None) -> None:
        """The caller cannot do without the rows that these (default: all) keep back: they say that their envs wait."""
        for worker in list(self._kept) if workers is None else workers:
            for command in self._take(worker):
                self._pool.wait(command)

    def playing(self, worker: int) -> bool:
        """Whether one of its envs is in an episode."""
        phases = self._pool.phases
        return any(phases[env_id] is Phase.RUNNING for env_id in self._assignment.rows[worker])

    def _stands_still(self, worker: int, sending: set[int]) -> bool:
        """Whether one of its envs is in an episode that does not go on."""
        pool = self._pool
        return any(
            pool.phases[env_id] is Phase.RUNNING and not pool.owes[env_id] and env_id not in sending
            for env_id in self._assignment.rows[worker]
        )

    def _take(self, worker: int) -> list[Command]:
        kept = self._kept.pop(worker, [])
        self.rows -= sum(len(command.env_ids) for command in kept)
        return kept
