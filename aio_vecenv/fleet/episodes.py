"""The episodes of a fleet: begun once and ended once, known by (env, index); order and watermark over all hosts."""
# pure: plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import chain

from ..core.batch import Episode, EpisodeStarted, EventBatch, Outcome
from .messages import Event, Report

__all__ = ["FleetEpisodes"]


class FleetEpisodes:
    """One line per env, fed by the reports of its slot in their order."""

    def __init__(self, num_envs: int) -> None:
        self.outcomes: dict[Outcome, int] = {"terminated": 0, "truncated": 0, "aborted": 0}
        self.executed = 0  # steps
        self.unreleased: list[Event] = []  # what happened outside of any command's rows
        self.aborted: set[int] = set()  # envs whose episode was cut off; its reader clears it
        self._num_envs = num_envs
        self._watermark = 0  # of the newest batch
        self._running: dict[int, EpisodeStarted] = {}
        self._so_far: dict[int, tuple[int, float]] = {}  # executed steps and return, of those that run
        self._next_index = [0] * num_envs  # as far as reports were announced
        self._open: dict[int, int] = {}  # env → order of its episode that runs or is about to begin
        self._heap: list[tuple[int, int]] = []  # (order, env): the open ones, and some that were
        # env → orders that commands begin whose reports are not read
        self._beginning: dict[int, list[int]] = {}

    def next_index(self, env_ids: Iterable[int]) -> tuple[int, ...]:
        """Where the episodes of these envs go on counting."""
        return tuple(self._next_index[env] for env in env_ids)

    def announce(self, report: Report) -> None:
        """A report is accepted, and read later: no other episode may have an index of its."""
        for _, events in report.events:
            for event in events:
                if event.index >= self._next_index[event.env_id]:
                    self._next_index[event.env_id] = event.index + 1

    def about_to_begin(self, env: int, number: int) -> None:
        """A command of that number begins an episode of this env with its first row."""
        order = number * self._num_envs + env
        self._beginning.setdefault(env, []).append(order)
        if env not in self._open:  # else an older one runs, or begins in a report that is not read yet
            self._opens(env, order)

    def note(self, event: Event) -> Event:
        """An episode began or ended."""
        env = event.env_id
        if isinstance(event, EpisodeStarted):
            self._no_more(env, event.order)
            self._running[env] = event
            self._so_far.pop(env, None)
            self._opens(env, event.order)
        else:
            started = self._running.pop(env, None)
            assert started is not None, event
            assert started.index == event.index, event
            self.outcomes[event.outcome] += 1
            self._open.pop(env, None)
            if env in self._beginning:  # a command begins the next one
                self._opens(env, self._beginning[env][0])
        return event

    def sum_up(self, report: Report, env_ids: Iterable[int]) -> set[int]:
        """After the events of a report: what its running episodes have come to; the envs that have none."""
        self.executed += report.executed
        for env, length, episode_return in report.lengths:
            self._so_far[env] = (length, episode_return)
        idle = {env for env in env_ids if env not in self._running}
        self.forget(idle, report.number)  # its first row raised
        return idle

    def forget(self, env_ids: Iterable[int], number: int) -> None:
        """What the command of that number was about to begin in these envs does not begin."""
        for env in env_ids:
            order = number * self._num_envs + env
            self._no_more(env, order)
            if self._open.get(env) == order:
                del self._open[env]
                if env in self._beginning:
                    self._opens(env, self._beginning[env][0])

    def read(self, report: Report, env_ids: Iterable[int]) -> set[int]:
        """A report that stands in nobody's rows: its events come with the next command's. As `sum_up`."""
        for _, events in report.events:
            self.unreleased += map(self.note, events)
        return self.sum_up(report, env_ids)

    def cut(self, env_ids: Iterable[int]) -> None:
        """The host of these envs was lost: what runs is aborted."""
        for env in env_ids:
            started = self._running.get(env)
            if started is None:
                continue
            length, episode_return = self._so_far.get(env, (0, 0.0))
            episode = Episode(
                env, started.index, started.order, length, episode_return, "aborted", started.version,
                started.task, {}, started.seed, -1,
            )  # fmt: skip
            self.unreleased.append(self.note(episode))
            self.aborted.add(env)

    def release(
        self, number: int, rows: int, reports: Sequence[Report], next_number: int, first_batch: int
    ) -> tuple[tuple[EventBatch, ...], list[int]]:
        """The events of one command's columns, row by row, and the watermark of each row, as lockstep would have them.

        `next_number`: of the next command. `sum_up` each report afterwards.
        """
        early, self.unreleased = self.unreleased, []
        by_row: dict[int, list[Event]] = {0: []} if early else {}
        for report in reports:
            for row, events in report.events:
                by_row.setdefault(row, []).extend(events)
        released: list[EventBatch] = []
        watermarks: list[int] = []
        for row in range(rows):
            following = next_number if row == rows - 1 else number + row + 1
            if row not in by_row:
                watermarks.append(self.watermark(following))
                continue
            noted = list(map(self.note, by_row[row]))
            batch = [e._replace(batch=first_batch + row) if isinstance(e, Episode) else e for e in noted]
            if row == 0:
                batch[:0] = [e._replace(batch=first_batch) if isinstance(e, Episode) else e for e in early]
            watermarks.append(self.watermark(following))
            released.append(
                EventBatch(
                    first_batch + row,
                    watermarks[-1],
                    tuple(batch),
                    tuple(chain.from_iterable(self._beginning.values())),
                )
            )
        return tuple(released), watermarks

    def so_far(self, env: int) -> tuple[EpisodeStarted, int, float] | None:
        """The env's running episode, its executed steps and return."""
        started = self._running.get(env)
        return None if started is None else (started, *self._so_far.get(env, (0, 0.0)))

    def watermark(self, next_number: int) -> int:
        """Every episode with a smaller order, begun or about to begin, has ended."""
        heap = self._heap
        while heap and self._open.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        limit = next_number * self._num_envs
        reached = min(heap[0][0], limit) if heap else limit
        # Rows of a host that was lost may be returned after those of later commands: nothing begins in them.
        self._watermark = max(self._watermark, reached)
        return self._watermark

    def _no_more(self, env: int, order: int) -> None:
        orders = self._beginning.get(env, [])
        if order in orders:
            orders.remove(order)
            if not orders:
                del self._beginning[env]

    def _opens(self, env: int, order: int) -> None:
        self._open[env] = order
        heappush(self._heap, (order, env))
