"""The unrolls of a vec env: which are under way, what their columns are, and the events of their rows.

A chunk of T rows is T batches. Its rows take T numbers of calls and of batches, and its events are released row by row,
in the order and with the watermarks that T steps would have had. Nothing here looks at a row in which no episode begins
or ends and no env says anything.
"""
# pure: arrays and plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BadActions
from .assignment import Assignment, EnvIds, Selection
from .batch import Episode, EpisodeStarted, EventBatch, Outcome
from .chunk import Chunk
from .command import WAITS, Begin, Command, Unroll, part_of
from .episodes import EpisodeTracker
from .framing import Kind
from .layout import BEGAN, IDLE, TERMINATED, TRUNCATED, ChunkBuffer, Slab, SpaceTree
from .messages import END_INFO, ERROR, INFO, POLICY_FAILED, RESTARTED, TASK, Note, Unrolled, by_kind, encode
from .pool import Pool
from .report import ErrorReport

__all__ = ["Chunks"]

_NOTHING_SAID = by_kind([])  # never written to
_ENDS = TERMINATED | TRUNCATED
_ANY = 1 << 62  # as the number of a call: larger than any
_Turn = Any  # position, env id, flags, length, return and version of one column of a row


class Chunks:
    """Sends unrolls to whole workers and turns their replies into chunks and events."""

    def __init__(
        self, pool: Pool, assignment: Assignment, slab: Slab, obs: SpaceTree, action: SpaceTree, *, copy: bool
    ) -> None:
        self._pool, self._assignment, self._slab = pool, assignment, slab
        self._obs, self._action = obs, action
        self._copy = copy
        self._under_way: list[Unroll] = []  # whose columns were not taken, oldest first
        self._buffers = [0] * len(assignment.rows)  # that each worker fills next

    # -- sending -----------------------------------------------------------------------------------------------

    def send(
        self,
        selection: Selection,
        noise: NDArray[Any],
        policy_version: int,
        params: bytes | None,
        hold: Callable[[Selection], Container[int]] | None = None,
    ) -> list[Unroll]:
        """The unrolls of these envs, column j of `noise` for the j-th of them as they were given.

        `hold`, asked once nothing speaks against them, names the workers in whose unrolls no env begins an episode.

        Raises BusyError or BadActions; nothing has happened then.
        """
        pool = self._pool
        pool.check_send(selection)
        for part in selection.parts:
            if part.local is not None:
                mine = self._assignment.rows[part.worker]
                raise BadActions(
                    f"worker {part.worker} holds the envs {mine.start} to {mine.stop - 1}: an unroll is of all of "
                    "them; nothing was sent",
                    expected="all envs of a worker",
                    got=str(part.env_ids.tolist()),
                )
        held = () if hold is None else hold(selection)
        length, number = len(noise), pool.next_number
        commands: list[Unroll] = []
        for worker, env_ids, rows, _, _ in selection.parts:
            buffer = self._buffers[worker]
            self._buffers[worker] = 1 - buffer
            payload, flags = encode(Unrolled(length, buffer, policy_version, worker in held))
            command = Unroll(Kind.UNROLL, number, worker, env_ids, rows, payload, flags)
            command.length, command.buffer, command.held = length, buffer, worker in held
            command.policy_version, command.params = policy_version, params
            commands.append(command)
            for column, newest in zip(self._slab.chunks[buffer].obs, self._slab.obs):
                column[0, rows] = newest[rows]  # type: ignore[index]  # no leaf is pickled
        buffers = {command.buffer for command in commands}
        if len(buffers) == 1:
            self._slab.chunks[commands[0].buffer].noise[:length, selection.given] = noise
        else:
            given = np.arange(self._assignment.num_envs)[selection.given]
            for command in commands:
                at = np.flatnonzero(np.isin(given, command.env_ids))
                self._slab.chunks[command.buffer].noise[:length, given[at]] = noise[:, at]
        pool.sent(selection, length)
        self._under_way += commands
        return commands

    # -- what comes back ---------------------------------------------------------------------------------------

    def replied(self, command: Unroll) -> None:
        """A reply is in: what its rows mean does not change any more."""
        command.replied = True
        pool = self._pool
        flags = self._slab.chunks[command.buffer].flags[0]
        # which env said it cannot be told: all have failed, after their last row
        if command.unread is not None:
            notes = [
                (env_id, command.length - 1, ERROR, command.unread) for env_id in command.env_ids.tolist()
            ]
            command.notes = notes
        for _, _, kind, report in command.notes:
            if kind == POLICY_FAILED:
                command.policy_error = report
        due = pool.due(command)
        pool.begun(command, [env_id for env_id in due if flags[env_id] & BEGAN])
        if command.held:
            failed = {env_id for env_id, _, _ in self.failed(command)}
            for env_id in due:
                if not flags[env_id] & BEGAN and env_id not in failed:
                    pool.episodes.forget(env_id)  # it waits, and begins nothing in this chunk

    def failed(self, command: Unroll) -> list[tuple[int, int, ErrorReport]]:
        """The envs that have failed: env id, row, what they raised."""
        return [(env_id, t, report) for env_id, t, kind, report in command.notes if kind == ERROR]

    def reset_again(self, again: Command) -> Unroll:
        """The parent's reset of an env that failed in a chunk is done: it is the chunk's last row."""
        command = again.of
        assert command is not None
        self._pool.begun(again, self._pool.due(again))
        buffer, last = self._slab.chunks[command.buffer], command.length - 1
        for env_id in again.env_ids.tolist():
            for column, newest in zip(buffer.obs, self._slab.obs):
                column[last + 1, env_id] = newest[env_id]  # type: ignore[index]
            buffer.versions[last, env_id] = self._slab.versions[env_id]
            buffer.flags[last, env_id] |= BEGAN
            command.again -= 1
        command.seeds = {**command.seeds, **again.seeds}
        command.notes = [
            *command.notes,
            *((env_id, last, kind, value) for env_id, _, kind, value in again.notes),
        ]
        return command

    @property
    def complete(self) -> list[Command]:
        """The unrolls whose rows are all in, not taken."""
        return [command for command in self._under_way if command.replied and not command.again]

    def ready(self, min_envs: int | None) -> list[Unroll]:
        """The columns to take now, of one call, the oldest that has enough; none: wait.

        Raises ValueError if nothing is owed.
        """
        if not self._under_way:
            raise ValueError("recv_unroll() with no chunk owed: send_unroll() first")
        for number in dict.fromkeys(command.number for command in self._under_way):
            mine = [command for command in self._under_way if command.number == number]
            complete = [command for command in mine if command.replied and not command.again]
            owed = sum(len(command.env_ids) for command in mine)
            if complete and sum(len(c.env_ids) for c in complete) >= min(min_envs or owed, owed):
                return complete
            if min_envs is None:
                break
        return []

    def take_errors(self, commands: Sequence[Unroll]) -> list[tuple[Unroll, int, int, ErrorReport]]:
        """The errors that the caller does not know of: unroll, env, row, report. Their envs now accept only a reset.

        Their columns stay.
        """
        errors: list[tuple[Unroll, int, int, ErrorReport]] = []
        for command in commands:
            if command.told:
                continue
            command.told = True
            for env_id, t, report in self.failed(command):
                if env_id not in command.cuts:
                    self._pool.fail(env_id, report)
                    errors.append((command, env_id, t, report))
        return sorted(errors, key=lambda error: error[1])

    def where(self, command: Unroll, env_id: int, t: int, op: str) -> str:
        """Which episode and step it was whose `op` raised in row t, for the message."""
        flags = self._slab.chunks[command.buffer].flags[: t + 1, env_id]
        begun = np.flatnonzero(flags[:t] & BEGAN)
        episodes = self._pool.episodes
        index, steps, seed = episodes.index(env_id), episodes.totals(env_id)[0], episodes.seed[env_id]
        if len(begun):
            index, steps = index + len(begun), 0
            seed = (
                command.begins[env_id].seed
                if len(begun) == 1 and not begun[0] and env_id in command.begins
                else None
            )
        steps += int(
            np.count_nonzero(~flags[begun[-1] if len(begun) else 0 : t] & (BEGAN | IDLE) == BEGAN | IDLE)
        )
        if index < 0:
            return f", in row {t} of the unroll"
        if op == "reset" and t and flags[t - 1] & _ENDS:
            return f", in the reset after episode {index}, row {t} of the unroll"
        return f", episode {index}, after {steps} steps, seed {seed}, row {t} of the unroll"

    # -- columns, taken ----------------------------------------------------------------------------------------

    def select(self, env_ids: EnvIds) -> list[Unroll]:
        """The columns of just these envs, taken out of what waits."""
        parts: list[Unroll] = []
        kept: list[Unroll] = []
        for command in self._under_way:
            mask = np.isin(command.env_ids, env_ids)
            if not (command.replied and mask.any()):
                kept.append(command)
                continue
            parts.append(part_of(command, mask))
            if not mask.all():
                kept.append(part_of(command, ~mask))
        self._under_way = kept
        return parts

    def collect(self, commands: Sequence[Unroll]) -> tuple[Chunk, list[EventBatch]]:
        """These columns, which are of one call, as a chunk, and the events of its rows. Their envs owe nothing more."""
        first = commands[0]
        length, pool = first.length, self._pool
        self._under_way = [command for command in self._under_way if command not in commands]
        ids, rows, number = pool.take_columns(commands, length)
        columns = _Columns(
            [(self._slab.chunks[c.buffer], c.env_ids, c.rows) for c in commands], ids, rows, length
        )
        copy = self._copy
        flags = columns.of("flags", copy=True)
        rewards, versions = columns.of("rewards", copy=copy), columns.of("versions", copy=copy)
        fold = _Fold(pool.episodes, ids, number, first.number, flags, rewards, versions)
        fold.say(commands)
        events = fold.run(pool.next_number, pool.take_unreleased(number))
        for env_id in fold.over:
            pool.end(env_id)
        for command in commands:
            if command.policy_error is not None:
                for env_id in pool.due(command):
                    pool.episodes.forget(env_id)  # it was to begin in row 0, and was not reset
        pool.executed(fold.executed)
        chunk = Chunk(
            ids.copy(),
            self._obs.join([columns.leaf("obs", i, copy) for i in range(len(self._obs.leaves))]),
            self._action.join([columns.leaf("actions", i, copy) for i in range(len(self._action.leaves))]),
            rewards,
            (flags & TERMINATED).view(np.bool_),
            (flags & TRUNCATED).astype(np.bool_),
            (flags & (BEGAN | IDLE)).astype(np.bool_),
            fold.index,
            versions,
            {name: columns.output(name, copy) for name in self._slab.chunks[0].outputs},
            first.policy_version,
            fold.infos,
            fold.episodes_ended,
            number,
            fold.watermarks,
        )
        return chunk, events

    def close(self) -> list[EventBatch]:
        """The events of what nobody took."""
        self.take_errors([command for command in self._under_way if command.replied])
        batches: list[EventBatch] = []
        while replied := [command for command in self._under_way if command.replied]:
            together = [command for command in replied if command.number == replied[0].number]
            batches += self.collect(together)[1]
        return batches


class _Columns:
    """The columns of one chunk, out of the buffers in which its workers have written them."""

    def __init__(
        self, parts: Sequence[tuple[ChunkBuffer, EnvIds, Any]], ids: EnvIds, rows: Any, length: int
    ) -> None:
        self._parts, self._ids, self._rows, self._length = parts, ids, rows, length
        self._one = len({id(buffer) for buffer, _, _ in parts}) == 1

    def of(self, name: str, *, copy: bool) -> Any:
        return self._pick([getattr(buffer, name) for buffer, _, _ in self._parts], self._length, copy)

    def leaf(self, name: str, index: int, copy: bool) -> NDArray[Any]:
        length = self._length + (name == "obs")
        return self._pick([getattr(buffer, name)[index] for buffer, _, _ in self._parts], length, copy)

    def output(self, name: str, copy: bool) -> NDArray[Any]:
        return self._pick([buffer.outputs[name] for buffer, _, _ in self._parts], self._length, copy)

    def _pick(self, arrays: Sequence[NDArray[Any]], length: int, copy: bool) -> NDArray[Any]:
        """One array (length, n, …): a view where all lie side by side in one buffer and no copy is wanted."""
        if self._one:
            picked: NDArray[Any] = arrays[0][:length, self._rows]
            return picked.copy() if copy and type(self._rows) is slice else picked
        picked = np.empty((length, len(self._ids), *arrays[0].shape[2:]), arrays[0].dtype)
        for array, (_, env_ids, rows) in zip(arrays, self._parts):
            picked[:, np.searchsorted(self._ids, env_ids)] = array[:length, rows]
        return picked


class _Fold:
    """The episodes that begin and end in the rows of a chunk, and what its envs said.

    `flags`, `rewards` (T, n) are corrected where a row cuts an episode off.
    """

    def __init__(
        self,
        episodes: EpisodeTracker,
        ids: EnvIds,
        number: int,
        call: int,
        flags: NDArray[np.uint8],
        rewards: NDArray[np.float64],
        versions: NDArray[np.int64],
    ) -> None:
        self._episodes, self._ids, self._number, self._call = episodes, ids, number, call
        self._flags, self._rewards, self._versions = flags, rewards, versions
        # the notes of the rows that have any, by kind and env
        self._noted: dict[int, list[dict[int, Any]]] = {}
        # (row, env) → how an episode begins, or why one is cut off
        self._why: dict[tuple[int, int], Begin] = {}
        self._seeds: dict[int, int | None] = {}  # env → of the parent's reset, which is its last row
        self._failed: dict[int, int] = {}  # env → the row in which it failed
        self.index: NDArray[np.int64] = np.empty(flags.shape, np.int64)
        self.infos: list[tuple[int, int, dict[str, Any]]] = []
        self.over: dict[int, None] = {}  # envs whose last episode has ended, and no other begun
        self.executed = 0
        self.episodes_ended: tuple[Episode, ...] = ()
        self.watermarks: NDArray[np.int64] = np.empty(len(flags), np.int64)

    def say(self, commands: Sequence[Unroll]) -> None:
        """Take in what was noted beside the rows."""
        by_row: dict[int, list[Note]] = {}
        for command in commands:
            for env_id, begin in command.begins.items():
                self._why[0, env_id] = begin
            self._seeds.update(command.seeds)
            for env_id, (t, begin) in command.cuts.items():
                if env_id in self._ids:  # a part of its columns may have been dropped
                    self._why[t, env_id] = begin
            for note in command.notes:
                by_row.setdefault(note[1], []).append(note)
                _, t, kind, report = note
                if kind == RESTARTED and not ((t, note[0]) in self._why and self._why[t, note[0]].key):
                    begin = self._why.get((t, note[0]), Begin())
                    self._why[t, note[0]] = Begin(
                        begin.seed, "env_error", f"{report.type_name}: {report.message}"
                    )
                elif kind == ERROR:
                    self._failed[note[0]] = t
        self._noted = {t: by_kind([notes]) for t, notes in by_row.items()}
        told: dict[tuple[int, int], dict[str, Any]] = {
            (t, env_id): info for t, noted in self._noted.items() for env_id, info in noted[INFO].items()
        }
        for command in commands:
            if command.held:
                for t, env_id in self._waits(command):
                    told[t, env_id] = {WAITS.key: WAITS.reason}
        for (t, env_id), begin in self._why.items():
            if not begin.key:
                continue
            j = int(np.searchsorted(self._ids, env_id))
            self._flags[t, j] = self._flags.item(t, j) & ~TERMINATED | TRUNCATED
            self._rewards[t, j] = 0.0
            told[t, env_id] = {**told.get((t, env_id), {}), begin.key: begin.reason}
        self.infos = [(t, env_id, told[t, env_id]) for t, env_id in sorted(told)]

    def _waits(self, command: Unroll) -> Iterator[tuple[int, int]]:
        """The rows, and envs, in which an env of this unroll waits for its worker to be renewed."""
        if command.policy_error is None:
            for env_id in command.env_ids.tolist():
                if env_id not in self._failed:
                    for t in np.flatnonzero(
                        self._flags[:, np.searchsorted(self._ids, env_id)] & IDLE
                    ).tolist():
                        yield t, env_id

    def run(self, next_call: int, unreleased: Sequence[Episode]) -> list[EventBatch]:
        """Fold the rows, in order; the events of those in which an episode begins or ends.

        `unreleased` go with row 0.
        """
        length = len(self._flags)
        episodes, watermarks, failed = self._episodes, self.watermarks, self._failed
        self._total_up()
        batches: list[EventBatch] = []
        ended: list[Episode] = []
        at = 0
        turning = self._turning()
        if unreleased:
            turning = {0: turning.pop(0, []), **turning}
        for t, turns in turning.items():
            if t > at:
                watermarks[at:t] = episodes.watermark(_ANY)
            at = t
            row: list[EpisodeStarted | Episode] = []
            if unreleased and t == 0:
                row += unreleased
                ended += unreleased
            noted, number = self._noted.get(t, _NOTHING_SAID), self._number + t
            for j, env_id, flags, steps, total, version in turns:
                if flags & BEGAN or (failed and failed.get(env_id) == t):
                    if episodes.runs(env_id):
                        if flags & BEGAN:  # these steps are the new one's
                            steps = int(self._lengths[t - 1, j] if t else self._carried[j])
                        episode = episodes.end(env_id, "aborted", {}, number, (steps, total))
                        row.append(episode)
                        ended.append(episode)
                    self._next(t, env_id, flags, version, noted, row)
                    continue
                info = noted[END_INFO].get(env_id) or noted[INFO].get(env_id, {})
                outcome: Outcome = "terminated" if flags & TERMINATED else "truncated"
                episode = episodes.end(env_id, outcome, info, number, (steps, total))
                row.append(episode)
                ended.append(episode)
                self.over[env_id] = None
            if row:
                watermark = episodes.watermark(next_call if t == length - 1 else self._call + t + 1)
                batches.append(EventBatch(number, watermark, tuple(row), episodes.beginning))
        watermarks[at:] = episodes.watermark(_ANY)
        bounds = np.arange(self._call + 1, self._call + length + 1)
        bounds[-1] = next_call
        np.minimum(watermarks, bounds * episodes.num_envs, out=watermarks)
        self.episodes_ended = tuple(ended)
        episodes.put_totals(self._ids, self._lengths[-1], self._last_returns)
        return batches

    def _total_up(self) -> None:
        """What the episodes add up to, row by row; counts the steps and the episodes."""
        flags, rewards, episodes = self._flags, self._rewards, self._episodes
        done = flags & (BEGAN | IDLE) == 0
        self.executed = int(np.count_nonzero(done))
        begins: NDArray[np.bool_] = flags & BEGAN != 0
        np.add.accumulate(begins, 0, np.int64, self.index)
        self.index += episodes.indices_of(self._ids)
        carried, total = episodes.totals_of(self._ids)
        so_far = done.cumsum(0)  # of the chunk; what it was at the begin of an episode does not belong to it
        not_mine = np.maximum.accumulate(np.where(begins, so_far, -carried), 0)
        returns = np.empty(flags.shape)
        some_begin = set(np.nonzero(begins)[0].tolist())
        for t, row in enumerate(rewards):  # row after row, as single steps add them up
            total = np.add(total, row, out=returns[t])
            if t in some_begin:
                total = np.where(begins[t], 0.0, total)
        self._lengths, self._returns = so_far - not_mine, returns
        self._carried, self._last_returns = carried, total

    def _turning(self) -> dict[int, list[_Turn]]:
        """The rows in which something begins or ends, ascending, and what does, column by column."""
        flags = self._flags
        turns = flags & (BEGAN | _ENDS)
        if self._failed:
            for j, env_id in enumerate(self._ids.tolist()):
                if env_id in self._failed:
                    turns[self._failed[env_id], j] |= IDLE
        rows, columns = np.nonzero(turns)
        here = (rows, columns)
        found: dict[int, list[_Turn]] = {}
        for t, *turn in zip(
            rows.tolist(),
            columns.tolist(),
            self._ids[columns].tolist(),
            flags[here].tolist(),
            self._lengths[here].tolist(),
            self._returns[here].tolist(),
            self._versions[here].tolist(),
        ):
            found.setdefault(t, []).append(turn)
        return found

    def _next(
        self,
        t: int,
        env_id: int,
        flags: int,
        version: int,
        noted: Sequence[dict[int, Any]],
        row: list[EpisodeStarted | Episode],
    ) -> None:
        """An env's next episode begins in this row, or none does: it has failed in it."""
        self.over.pop(env_id, None)
        if not flags & BEGAN:
            self._episodes.forget(env_id)
            return
        tasks = noted[TASK]
        task = tasks[env_id] if env_id in tasks else noted[INFO].get(env_id, {}).get("task")
        begin = self._why.get((t, env_id))
        seed = None if begin is None else begin.seed
        if env_id in self._seeds and t == len(self._flags) - 1:
            seed = self._seeds[env_id]
        row.append(self._episodes.begin(env_id, self._call + t, version, task, seed))
