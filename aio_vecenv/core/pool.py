"""Who owes what: the commands, replies and rows of every env, and how they become batches.

What a row means is decided when its batch is handed out, from the block and the notes of the replies; so the same
replies give the same batches and events, whatever the order in which they arrived.
"""
# pure: arrays and plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from operator import attrgetter
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..errors import BadActions, BusyError
from .assignment import EnvIds, Share, rows_of
from .batch import Batch, Episode, EpisodeStarted, EventBatch, Outcome
from .episodes import EpisodeBook
from .framing import Kind
from .infos import batch_infos
from .layout import TERMINATED, TRUNCATED, Leaf, Slab, SpaceTree
from .messages import (
    END_INFO,
    ERROR,
    FINAL_INFO,
    FINAL_OBS,
    GIVEN_OBS,
    INFO,
    OBS,
    RESTARTED,
    TASK,
    Note,
    by_kind,
    failed,
)
from .report import ErrorReport

__all__ = ["Command", "Ledger"]

# flags to bools, as `bytes.translate` takes it
_TERMINATED = bytes(bool(flags & TERMINATED) for flags in range(256))
_TRUNCATED = bytes(bool(flags & TRUNCATED) for flags in range(256))
_ENDED = bytes(bool(flags) for flags in range(256))
_BOOL = np.dtype(np.bool_)
_by_sequence = attrgetter("sequence")
_NOTED_NOTHING = by_kind([])  # nobody writes to it


class Command:
    """One command to one worker, from its sending to the hand-out of its rows."""

    # what few commands have stands here once: they are made all the time
    sequence: int = 0  # number of the message: replies are matched by it
    version: int = 0  # the newest update at sending
    sent_at: float = 0.0  # seconds, for deadlines
    asked: Sequence[int | None] = ()  # RESET: the seeds that its caller gave
    seeds: Sequence[int | None] = ()  # RESET: those that it is sent with
    options: bytes | None = None  # RESET, pickled
    notes: Sequence[Note] = ()  # of the reply, as far as it is in
    unread: ErrorReport | None = None  # why notes could not be unpickled

    def __init__(
        self,
        kind: Kind,
        number: int,
        worker: int,
        env_ids: EnvIds,
        rows: Any,
        payload: bytes = b"",
        flags: int = 0,
    ) -> None:
        self.kind = kind
        self.number = number  # of the send or reset call
        self.worker = worker
        self.env_ids = env_ids  # sorted
        self.rows = rows  # as `rows_of(env_ids)`
        self.payload = payload
        self.flags = flags


class Ledger:
    """The state of all envs. Arrays are indexed by env id."""

    def __init__(
        self, num_envs: int, slab: Slab, obs: SpaceTree, autoreset: AutoresetMode, *, copy: bool
    ) -> None:
        self.num_envs = num_envs
        self.join_infos: Callable[[EnvIds, dict[int, dict[str, Any]]], dict[Any, Any]] = batch_infos
        self.given_obs: dict[
            int, Any
        ] = {}  # of the newest batch, by env id: last observations as the envs gave them
        self.next_number = 0  # of the next send or reset call
        self.batches = 0  # handed out so far
        self.steps = 0  # executed
        self.book = EpisodeBook(num_envs)
        self.ready: list[Command] = []  # replied, not handed out
        self.ready_rows = 0
        self.any_errors = False  # whether a reply in `ready` says that an env raised
        self.owed = 0  # envs with a command whose row was not handed out
        self.owes = np.zeros(num_envs, np.bool_)
        self.blocked: dict[int, str] = dict.fromkeys(range(num_envs), "was never reset")  # accepts only reset
        self._slab, self._obs, self._copy = slab, obs, copy
        self._same_step = autoreset is AutoresetMode.SAME_STEP
        self._next_step = autoreset is AutoresetMode.NEXT_STEP
        self._everyone = np.arange(num_envs)
        self._all_rows = rows_of(self._everyone)
        self._loose: list[list[Any]] = [[None] * num_envs for _ in obs.leaves]
        self._loose_final: list[list[Any]] = [[None] * num_envs for _ in obs.leaves]
        self._due: set[int] = set()  # its current or next command begins an episode
        self._next_seed: dict[int, int | None] = {}  # that the due episode is seeded with
        # the due episode is a replacement: info key and reason
        self._anew_why: dict[int, tuple[str, str]] = {}
        # lost after its row was replied: reason, seed
        self._anew_later: dict[int, tuple[str, int | None]] = {}
        # of envs that have begun nothing in their worker's replacement
        self._seed_due: dict[int, int | None] = {}
        self._unreleased: list[Episode] = []  # ended outside a hand-out; part of the next one

    # -- commands ----------------------------------------------------------------------------------------------

    def check_send(self, share: Share) -> None:
        """Raise BusyError or BadActions unless all of them may be sent an action now."""
        if self.owed and b"\1" in self.owes[share.rows].tobytes():
            busy = share.env_ids[self.owes[share.env_ids]]
            raise BusyError(f"envs {_list(busy)} still owe a reply: recv() them before the next send()")
        if self.blocked:
            for env_id in share.env_ids.tolist():
                if reason := self.blocked.get(env_id):
                    raise BadActions(
                        f"env {env_id} {reason}: it accepts only reset(env_ids=[{env_id}])",
                        expected="envs with a running episode",
                        got=f"env {env_id}, which {reason}",
                    )

    def sent(self, share: Share) -> None:
        """Step commands for these envs are about to leave, under the number `next_number`."""
        number = self.next_number
        self.next_number = number + 1
        self.owes[share.rows] = True
        n = len(share.env_ids)
        self.owed += n
        due = self._due
        if due:
            if n < self.num_envs:
                due = due.intersection(share.env_ids.tolist())
            for env_id in due:
                self.book.about_to_begin(env_id, number)

    def resetting(self, env_ids: EnvIds, seeds: Sequence[int | None], number: int) -> None:
        """A reset command for these envs is on its way. Their unfinished episodes end when it is handed out."""
        self.owes[env_ids] = True
        self.owed += len(env_ids)
        for env_id, seed in zip(env_ids.tolist(), seeds):
            self._due.add(env_id)
            self.blocked[env_id] = "has a reset under way, or one that was cancelled"
            self._anew_why.pop(env_id, None)
            self._anew_later.pop(env_id, None)
            self._next_seed[env_id] = seed
            self.book.about_to_begin(env_id, number)

    def replied(self, command: Command) -> None:
        """A reply is in; its rows wait to be handed out."""
        self.ready.append(command)
        self.ready_rows += len(command.env_ids)
        if command.notes and failed(command.notes):
            self.any_errors = True

    def is_ready(self, env_id: int) -> bool:
        """Whether the row of this env waits to be handed out."""
        return any(env_id in command.env_ids for command in self.ready)

    def waits_for(self, env_ids: EnvIds) -> bool:
        """Whether one of these envs owes a row that is not in."""
        owing = env_ids[self.owes[env_ids]]
        if len(owing) and self.ready:
            owing = owing[~np.isin(owing, np.concatenate([command.env_ids for command in self.ready]))]
        return bool(len(owing))

    def made_anew(self, env_ids: Iterable[int], reason: str, seeds: Sequence[int | None]) -> None:
        """The worker of these envs is replaced: the row of the command in flight, or of the next, begins an episode.

        A row that has been replied stays what it is. An env that waits for a reset gets that, and no such row.
        """
        for env_id, seed in zip(env_ids, seeds):
            self._seed_due[env_id] = seed
            if self.is_ready(env_id):
                self._anew_later[env_id] = (reason, seed)
            elif env_id not in self.blocked:
                self._begin_anew(env_id, "worker_lost", reason, seed)

    def seed_due(self, env_id: int) -> int | None:
        """The seed for a reset that brings none: that of a replacement, whose own generator nobody has seeded."""
        return self._seed_due.get(env_id)

    def reseed(self, command: Command) -> None:
        """A reset goes to the replacement of its worker: what it does not seed gets the replacement's seeds."""
        env_ids = command.env_ids.tolist()
        command.seeds = [
            self.seed_due(env_id) if asked is None else asked for env_id, asked in zip(env_ids, command.asked)
        ]
        self._next_seed.update(zip(env_ids, command.seeds))

    def retry(self, command: Command, failed: Sequence[tuple[int, ErrorReport]]) -> Command:
        """These envs failed to reset under `command`: they leave that, and are reset again by the command returned.

        Only where errors are not raised (on_env_error="reset").
        """
        for env_id, report in failed:
            if self.book.runs(env_id) and command.kind is Kind.STEP and self._slab.flags[env_id]:
                self._end_failed(command, env_id)
                self.book.about_to_begin(env_id, command.number)
            known = self._anew_why.get(env_id)  # a lost worker is what there is to tell, if one was lost
            if command.kind is Kind.STEP if known is None else known[0] == "env_error":
                why = f"{report.type_name}: {report.message}"
                self._begin_anew(env_id, "env_error", why, self.seed_due(env_id))
        gone = {env_id for env_id, _ in failed}
        asked = dict(zip(command.env_ids.tolist(), command.asked))
        command.notes = [note for note in command.notes if note[0] not in gone]
        ids = np.array(sorted(gone), np.int64)
        if asked:
            command.asked = [seed for env_id, seed in asked.items() if env_id not in gone]
        command.env_ids = command.env_ids[~np.isin(command.env_ids, ids)]
        command.rows = rows_of(command.env_ids)
        again = Command(Kind.RESET, command.number, command.worker, ids, rows_of(ids))
        again.seeds = [self._next_seed.get(env_id) for env_id in ids.tolist()]
        again.asked = [asked.get(env_id) for env_id in ids.tolist()]
        again.options = command.options
        return again

    def drop(self, env_ids: EnvIds) -> None:
        """A reset of these envs was cancelled: its rows are dropped, and they accept only reset."""
        self._remove_ready(env_ids)
        self._settle(env_ids)
        for env_id in env_ids.tolist():
            self.book.forget(env_id)  # nothing begins before the next reset

    def _begin_anew(self, env_id: int, key: str, reason: str, seed: int | None) -> None:
        self._anew_why[env_id] = (key, reason)
        self._due.add(env_id)
        self._next_seed[env_id] = seed

    def _settle(self, env_ids: EnvIds) -> None:
        self.owes[env_ids] = False
        self.owed -= len(env_ids)

    # -- errors ------------------------------------------------------------------------------------------------

    def take_errors(self, env_ids: EnvIds | None = None) -> list[tuple[Command, int, ErrorReport]]:
        """The errors among the replies that are in, by env; their envs now accept only reset.

        Their unfinished episodes are aborted. With `env_ids`, only those of these envs.
        """
        wanted = None if env_ids is None else set(env_ids.tolist())
        errors: list[tuple[Command, int, ErrorReport]] = []
        for command in self.ready:
            if not failed(command.notes):
                continue
            mine = [(e, report) for e, _, kind, report in command.notes if kind == ERROR]
            if wanted is not None:
                mine = [(e, report) for e, report in mine if e in wanted]
            for env_id, report in mine:
                self._fail(command, env_id, report)
            errors += [(command, env_id, report) for env_id, report in mine]
        gone = np.array([env_id for _, env_id, _ in errors], np.int64)
        self._remove_ready(gone)
        self._settle(gone)
        self.any_errors = any(failed(command.notes) for command in self.ready)
        return sorted(errors, key=lambda item: item[1])

    def _fail(self, command: Command, env_id: int, report: ErrorReport) -> None:
        if self.book.runs(env_id):
            self._end_failed(command, env_id)
        self.book.forget(env_id)
        self._due.add(env_id)
        self._anew_why.pop(env_id, None)
        self.blocked[env_id] = f"raised {report.type_name} in {report.op}"

    def _end_failed(self, command: Command, env_id: int) -> None:
        """The episode of an env that raised is over; as it ended itself, if only the reset after it failed."""
        flags = int(self._slab.flags[env_id])
        outcome: Outcome = "aborted"
        info: dict[str, Any] = {}
        if flags and command.kind is Kind.STEP:  # SAME_STEP
            self.book.executed_one(env_id, self._slab.rewards.item(env_id))
            outcome = "terminated" if flags & TERMINATED else "truncated"
            noted = by_kind([command.notes])
            info = noted[END_INFO].get(env_id) or noted[FINAL_INFO].get(env_id, {})
        self._unreleased.append(self.book.end(env_id, outcome, info, -1))

    # -- hand-out ----------------------------------------------------------------------------------------------

    def select(self, env_ids: EnvIds) -> list[Command]:
        """The replied rows of just these envs, taken out of what waits."""
        taken = [
            part for command in self.ready if (part := _part(command, np.isin(command.env_ids, env_ids)))
        ]
        self._remove_ready(env_ids)
        return taken

    def take_ready(self) -> list[Command]:
        """All replied rows, oldest command first."""
        commands, self.ready, self.ready_rows = self.ready, [], 0
        self.any_errors = False
        if len(commands) > 1:
            commands.sort(key=_by_sequence)
        return commands

    def hand_out(self, commands: Sequence[Command]) -> tuple[Batch, EventBatch | None]:
        """The rows of `commands` as a batch, and the events that go with it. Their envs owe nothing any more."""
        slab = self._slab
        ids, rows = self._union(commands)
        n = len(ids)
        rewards, versions = slab.rewards[rows], slab.versions[rows]
        if is_view := type(rows) is slice:
            rewards, versions = rewards.copy(), versions.copy()
        self.owes[rows] = False
        self.owed -= n
        number = self.batches
        self.batches = number + 1
        replies: list[Sequence[Note]] = []
        for command in commands:
            if command.notes:
                replies.append(command.notes)  # noqa: PERF401 - a comprehension is a function, made each time
        noted = by_kind(replies) if replies else _NOTED_NOTHING
        infos: dict[int, dict[str, Any]] = noted[INFO] if replies else {}
        final_infos: dict[int, dict[str, Any]] = noted[FINAL_INFO]
        anew: set[int] = set()
        self.given_obs = noted[GIVEN_OBS]
        if replies:
            self._loosen(noted)
        if self._anew_why or noted[RESTARTED]:
            anew = self._made_anew_rows(noted[RESTARTED], ids, infos)
        # Bytes rather than arrays: there is little to do, and each kind of array work costs.
        first = bytearray(n)
        flags = bytearray(slab.flag_bytes[rows] if is_view else slab.flags[rows].data)
        begins: list[int] = []  # positions of the rows of actions that were not executed
        if self._due or anew:
            begins = _positions(ids, rows, self._due | anew if anew else self._due)
            for position in begins:
                first[position] = True
            for position in _positions(ids, rows, anew) if anew else ():
                rewards[position], flags[position] = 0.0, TRUNCATED
        ends = _ones(flags.translate(_ENDED))
        self.steps += n - len(begins)
        book = self.book
        book.executed(rows, rewards, [int(ids[position]) for position in begins] if begins else ())
        events: list[EpisodeStarted | Episode] = []
        if ends or begins or self._unreleased or self._anew_later:
            if self._unreleased:
                events += [episode._replace(batch=number) for episode in self._unreleased]
                self._unreleased.clear()
            turning = sorted({*ends, *begins}) if begins else ends
            self._turn(turning, commands, noted, ids, first, flags, anew, infos, number, events)
            if self._anew_later:
                for env_id in self._anew_later.keys() & set(ids.tolist()):  # from its next row on
                    reason, seed = self._anew_later.pop(env_id)
                    self._seed_due[env_id] = seed
                    self._begin_anew(env_id, "worker_lost", reason, seed)
        watermark = book.watermark(self.next_number)
        batch = Batch(
            ids.copy(),
            self._observations(slab.obs, self._loose, rows, ids, is_view),
            rewards,
            np.frombuffer(flags.translate(_TERMINATED), _BOOL),
            np.frombuffer(flags.translate(_TRUNCATED), _BOOL),
            np.frombuffer(first, _BOOL),
            self.join_infos(ids, infos) if infos else {},
            versions,
            tuple([event for event in events if type(event) is Episode]) if events else (),
            number,
            watermark,
            self._observations(slab.final_obs, self._loose_final, rows, ids, is_view)
            if self._same_step
            else None,
            self.join_infos(ids, final_infos) if final_infos else {},
        )
        return batch, EventBatch(number, watermark, tuple(events), book.beginning) if events else None

    def observations(self) -> Any:
        """The newest observation of every env."""
        return self._observations(self._slab.obs, self._loose, self._all_rows, self._everyone, True)

    def close(self) -> EventBatch:
        """The last events: what ended in replies that nobody took, then every running episode as aborted."""
        self.take_errors()
        batch, released = self.hand_out(self.take_ready())
        aborted = [self.book.end(env_id, "aborted", {}, batch.number) for env_id in self.book.running]
        watermark = self.book.watermark(self.next_number)
        return EventBatch(batch.number, watermark, (*(released.events if released else ()), *aborted))

    # -- inside ------------------------------------------------------------------------------------------------

    def _made_anew_rows(
        self, restarted: dict[int, ErrorReport], ids: EnvIds, infos: dict[int, dict[str, Any]]
    ) -> set[int]:
        """The envs whose row begins a replacement: their worker was lost under it, or they raised and were reset.

        Their infos say why.
        """
        why = {
            env_id: ("env_error", f"{report.type_name}: {report.message}")
            for env_id, report in restarted.items()
        }
        for env_id in self._anew_why.keys() & set(ids.tolist()):
            why[env_id] = self._anew_why.pop(env_id)
        for env_id, (key, reason) in why.items():
            infos[env_id] = {**infos.get(env_id, {}), key: reason}
        return set(why)

    def _turn(
        self,
        positions: Sequence[int],
        commands: Sequence[Command],
        noted: list[dict[int, Any]],
        ids: EnvIds,
        first: bytearray,
        flags: bytearray,
        anew: set[int],
        infos: dict[int, dict[str, Any]],
        number: int,
        events: list[EpisodeStarted | Episode],
    ) -> None:
        """End and begin episodes, env by env, in the rows at `positions`."""
        tasks, ends = noted[TASK], noted[END_INFO]
        last_infos = noted[FINAL_INFO] if self._same_step else infos
        call_of: dict[int, int] = {}  # where not all rows are of one call
        for command in commands:
            if command.number != commands[0].number:
                call_of = {e: command.number for command in commands for e in command.env_ids.tolist()}
                break
        book, versions = self.book, self._slab.versions
        for position in positions:
            env_id, begins, flag = ids.item(position), first[position], flags[position]
            if flag and env_id not in anew:
                outcome: Outcome = "terminated" if flag & TERMINATED else "truncated"
                info = ends.get(env_id) or last_infos.get(env_id, {})
                events.append(book.end(env_id, outcome, info, number))
                if self._next_step:
                    self._due.add(env_id)
                elif self._same_step:
                    begins = True
                else:
                    self.blocked[env_id] = "has ended its episode (autoreset is DISABLED)"
            if begins:
                if book.runs(env_id):
                    events.append(book.end(env_id, "aborted", {}, number))
                task = (
                    tasks[env_id]
                    if env_id in tasks
                    else infos[env_id].get("task")
                    if env_id in infos
                    else None
                )
                call = call_of[env_id] if call_of else commands[0].number
                seed = self._next_seed.pop(env_id, None)
                events.append(book.begin(env_id, call, versions.item(env_id), task, seed))
                self._due.discard(env_id)
                self.blocked.pop(env_id, None)
                self._seed_due.pop(env_id, None)

    def _union(self, commands: Sequence[Command]) -> tuple[EnvIds, Any]:
        """The envs of all commands, sorted, and what picks their rows."""
        if len(commands) == 1:
            return commands[0].env_ids, commands[0].rows
        n = 0
        for command in commands:
            n += len(command.env_ids)
        if n == self.num_envs:
            return self._everyone, self._all_rows
        ids = np.concatenate([command.env_ids for command in commands]) if n else self._everyone[:0]
        ids.sort()
        return ids, rows_of(ids)

    def _remove_ready(self, env_ids: EnvIds) -> None:
        """Take the rows of these envs out of what waits to be handed out."""
        if not len(env_ids):
            return
        kept: list[Command] = []
        for command in self.ready:
            gone = np.isin(command.env_ids, env_ids)
            if not gone.any():
                kept.append(command)
                continue
            self.ready_rows -= int(gone.sum())
            if rest := _part(command, ~gone):
                kept.append(rest)
        self.ready = kept

    def _loosen(self, noted: list[dict[int, Any]]) -> None:
        """Store observations that came pickled."""
        loose = [index for index, column in enumerate(self._slab.obs) if column is None]
        if not loose:
            return
        for kind, store in ((OBS, self._loose), (FINAL_OBS, self._loose_final)):
            for env_id, values in noted[kind].items():
                for index, value in zip(loose, values):
                    store[index][env_id] = value

    def _observations(
        self,
        columns: Sequence[NDArray[Any] | None],
        loose: Sequence[Sequence[Any]],
        rows: Any,
        ids: EnvIds,
        is_view: bool,
    ) -> Any:
        """The batch of observations; arrays that the caller owns, or views of the block under copy=False."""
        if self._obs.is_leaf and columns[0] is not None:
            return _own(columns[0], rows, is_view, self._copy)
        leaves: list[Any] = []
        for index, column in enumerate(columns):
            if column is not None:
                leaves.append(_own(column, rows, is_view, self._copy))
            else:
                values = [loose[index][env_id] for env_id in ids.tolist()]
                leaves.append(_stack(self._obs.leaves[index], values))
        return self._obs.join(leaves)


def _ones(marks: bytearray) -> list[int]:
    """Where they stand among zeros, ascending."""
    found: list[int] = []
    at = marks.find(1)
    while at >= 0:
        found.append(at)
        at = marks.find(1, at + 1)
    return found


def _positions(ids: EnvIds, rows: Any, env_ids: set[int]) -> list[int]:
    """Where in `ids` those of `env_ids` stand that are there, ascending; `rows`: as `rows_of(ids)`."""
    if type(rows) is slice:
        return sorted([e - rows.start for e in env_ids if rows.start <= e < rows.stop])
    return [position for position, env_id in enumerate(ids.tolist()) if env_id in env_ids]


def _own(column: NDArray[Any], rows: Any, is_view: bool, copy: bool) -> NDArray[Any]:
    """The picked rows: of a slice a view, or a copy of it; else a copy (`take`: a quarter of an index's time)."""
    picked: NDArray[Any] = column[rows] if is_view else column.take(rows, 0)
    return picked.copy() if is_view and copy else picked


def _stack(leaf: Leaf, values: list[Any]) -> Any:
    """Observations that came pickled: one array where the space has a fixed size, else a tuple."""
    if not leaf.stackable:
        return tuple(values)
    rows = np.zeros((len(values), *leaf.shape), leaf.dtype)
    for row, value in enumerate(values):
        if value is not None:
            rows[row] = value
    return rows


def _part(command: Command, mask: NDArray[np.bool_]) -> Command | None:
    """The part of a replied command that `mask` picks; None if that is nothing."""
    if not mask.any():
        return None
    if mask.all():
        return command
    ids = command.env_ids[mask]
    keep = set(ids.tolist())
    part = copy(command)
    part.env_ids, part.rows = ids, rows_of(ids)
    part.notes = [note for note in command.notes if note[0] in keep]
    return part


def _list(env_ids: EnvIds) -> str:
    ids = env_ids.tolist()
    return str(ids) if len(ids) <= 8 else f"[{', '.join(map(str, ids[:8]))}, …] ({len(ids)} envs)"
