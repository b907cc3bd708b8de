"""The rules for rows: what each env's next row will be, which envs owe one, and what the collected rows mean.

An env is in one `Phase`. What may happen to it is an `Event`; every legal move is a row of `moves`, and anything else
raises `IllegalMove` and changes nothing. A few things to look up here:

- **How an episode begins is decided in advance.** `Begin` holds the seed of the episode that the env's next row
  begins and, where that cuts a running episode off, why. When the reply arrives, the `Begin` moves to its command:
  that fixes what the row means, and whatever happens afterwards affects the next row only.
- **The worker of env 3 dies during a reset of env 3** (RESETTING, LOST): it stays RESETTING. The same command goes to
  the replacement, with the seed of its caller, or the replacement's own where the caller gave none. Nothing is cut off
  that the reset would not have ended anyway, so its row does not mention the loss.
- **The worker dies during a step, or while idle** (RUNNING, LOST): DUE. The step goes to the replacement, which resets;
  the row is `first` and `truncated`, the old episode is `aborted`, and the info has `worker_lost`. A loss while DUE
  gives the same row.
- **An env raises**: the caller gets the error, and the env is FAILED. Under on_env_error="reset" the worker resets it
  in the same row; if that raises too, the parent sends a reset with the same call number, and the env is DUE until
  one succeeds.
- **A worker is renewed as planned** once none of its envs is RUNNING, so that nothing is cut off. Until then an env of
  it that is DUE may wait: its step is not sent. Where a caller cannot do without its row, the row is `WAITS`: `first`,
  and nothing begins in it; the env stays DUE.
- **A new kind of command that answers with rows** adds an `Event` for its sending, and the phases that allow it, to
  `moves`. A command of T rows causes the events of T one-row commands. Only its first row can find an env DUE; where an
  episode ends or is cut off inside the command, the worker's notes say what begins then. A command that answers without
  rows (`Kind.CALL`) never enters the pool.

Rows are read when they are taken, from the block and the notes of the replies, so the same replies give the same
batches and events, whatever the order in which they arrived.
"""
# pure: arrays and plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum, auto
from operator import attrgetter
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from ..errors import BadActions, BusyError
from .assembly import Columns
from .assignment import Assignment, EnvIds, Selection, rows_of
from .batch import Batch, Episode, EpisodeStarted, EventBatch, Outcome, new_batch
from .command import NO_BEGINS, WAITS, Begin, Command, Unroll, part_of
from .episodes import EpisodeTracker
from .framing import Kind, dumps
from .infos import batch_infos
from .layout import TERMINATED, TRUNCATED, Slab, SpaceTree
from .messages import (
    END_INFO,
    ERROR,
    FINAL_INFO,
    INFO,
    RESTARTED,
    TASK,
    Note,
    Reset,
    Step,
    Unrolled,
    by_kind,
    encode,
    failed,
)
from .report import ErrorReport

__all__ = ["Begin", "Command", "Event", "IllegalMove", "Phase", "Pool", "derive_seed", "moves"]


class Phase(IntEnum):
    """What the next row of an env will be, judging by the replies that have arrived."""

    NEVER = 0  # none: it was never reset, and accepts only a reset
    RUNNING = 1  # a step of its episode
    DUE = 2  # the first of an episode, whatever its action
    ENDED = 3  # none: its episode is over, and autoreset is DISABLED
    FAILED = 4  # none: it raised, and its caller got the error
    RESETTING = 5  # the first of an episode; none if the reset was cancelled

    __hash__ = int.__hash__  # see framing.Kind


class Event(IntEnum):
    """What happens to an env."""

    SENT = auto()  # a step leaves
    RESET = auto()  # a reset leaves
    BEGUN = auto()  # a reply came whose row begins an episode
    END = auto()  # its episode ended, in a row that is being collected
    ERROR = auto()  # it raised, and its caller gets the error now
    RETRIED = auto()  # it raised, and so did the reset after it: the parent resets it
    LOST = auto()  # its worker is being replaced
    CANCELLED = auto()  # the caller of its reset does not wait any more
    WAITED = auto()  # a row of it says that it waits for its worker to be renewed
    RENEWED = auto()  # its worker gives way to a fresh process, as planned

    __hash__ = int.__hash__


Moves = dict[tuple[Phase, Event], Phase]


def moves(autoreset: AutoresetMode) -> Moves:
    """Every legal move."""
    end = {
        AutoresetMode.NEXT_STEP: Phase.DUE,
        AutoresetMode.SAME_STEP: Phase.RUNNING,
        AutoresetMode.DISABLED: Phase.ENDED,
    }[autoreset]
    return {
        (Phase.RUNNING, Event.SENT): Phase.RUNNING,
        (Phase.DUE, Event.SENT): Phase.DUE,
        **{(phase, Event.RESET): Phase.RESETTING for phase in Phase},
        (Phase.DUE, Event.BEGUN): Phase.RUNNING,
        (Phase.RESETTING, Event.BEGUN): Phase.RUNNING,
        (Phase.RUNNING, Event.END): end,
        (Phase.DUE, Event.END): Phase.ENDED if end is Phase.ENDED else Phase.DUE,  # lost since its reply
        (Phase.RUNNING, Event.ERROR): Phase.FAILED,
        (Phase.DUE, Event.ERROR): Phase.FAILED,
        (Phase.RESETTING, Event.ERROR): Phase.FAILED,
        (Phase.RUNNING, Event.RETRIED): Phase.DUE,
        (Phase.DUE, Event.RETRIED): Phase.DUE,
        (Phase.RESETTING, Event.RETRIED): Phase.RESETTING,
        **{(phase, Event.LOST): phase for phase in Phase},
        (Phase.RUNNING, Event.LOST): Phase.DUE,
        (Phase.RESETTING, Event.CANCELLED): Phase.RESETTING,
        (Phase.RUNNING, Event.CANCELLED): Phase.RESETTING,  # its reply was in
        (Phase.DUE, Event.CANCELLED): Phase.RESETTING,  # … and its worker was lost since
        (Phase.DUE, Event.WAITED): Phase.DUE,
        **{(phase, Event.RENEWED): phase for phase in Phase if phase is not Phase.RUNNING},
    }


class IllegalMove(Exception):
    """An event that the env's phase does not allow; nothing was changed."""


_BY_ITSELF = Begin()  # autoreset
_SHUT = {Phase.NEVER, Phase.ENDED, Phase.FAILED, Phase.RESETTING}  # an env in them accepts only a reset
_REFUSALS = {
    Phase.NEVER: "was never reset",
    Phase.ENDED: "has ended its episode (autoreset is DISABLED)",
    Phase.RESETTING: "has a reset under way, or one that was cancelled",
}

# flags to bools, as `bytes.translate` takes it
_TERMINATED = bytes(bool(flags & TERMINATED) for flags in range(256))
_TRUNCATED = bytes(bool(flags & TRUNCATED) for flags in range(256))
_ENDED = bytes(bool(flags & (TERMINATED | TRUNCATED)) for flags in range(256))
_BOOL = np.dtype(np.bool_)
_STEP = Kind.STEP
_by_sequence = attrgetter("sequence")
_NOTED_NOTHING = by_kind([])  # never written to

JoinInfos = Callable[[EnvIds, dict[int, dict[str, Any]]], dict[Any, Any]]


class Pool:
    """Knows the phase of every env and what it owes, and turns replies into batches. Arrays are by env id."""

    def __init__(
        self, assignment: Assignment, slab: Slab, obs: SpaceTree, autoreset: AutoresetMode, *, copy: bool
    ) -> None:
        num_envs = assignment.num_envs
        self.next_number = 0  # of the next send or reset call
        self.batches = 0  # taken so far
        self.steps = 0  # executed
        self.episodes = EpisodeTracker(num_envs)
        self.ready: list[Command] = []  # replied, not taken
        self.ready_rows = 0
        self.any_errors = False  # whether a reply in `ready` says that an env raised
        self.owed = 0  # envs with a command whose row, or column of rows, was not taken
        self.columns = 0  # of these: whose command is an unroll
        self.owes = np.zeros(num_envs, np.bool_)
        self.phases = [Phase.NEVER] * num_envs
        self.shut = num_envs  # envs that accept only a reset
        self._moves = moves(autoreset)
        self._begins: dict[int, Begin] = {}  # of the envs that are DUE or RESETTING
        # seeds of envs that have begun no episode since their worker was replaced
        self._fresh: dict[int, int | None] = {}
        self._seeds: list[int | None] = [None] * num_envs  # the latest seed that a caller gave
        self._failures: dict[int, str] = {}  # by FAILED env: what it raised, for the refusal
        self._unreleased: list[Episode] = []  # ended without a row of their own; reported with the next batch
        self._assignment, self._slab = assignment, slab
        self._columns = Columns(num_envs, slab, obs, copy=copy)
        self._same_step = autoreset is AutoresetMode.SAME_STEP

    def _move(self, env_id: int, event: Event) -> Phase:
        before = self.phases[env_id]
        after = self._moves.get((before, event))
        if after is None:
            raise IllegalMove(f"env {env_id} is {before.name}: {event.name} may not happen")
        if after is not before:
            self.phases[env_id] = after
            self.shut += (after in _SHUT) - (before in _SHUT)
        return after

    # -- commands ----------------------------------------------------------------------------------------------

    def check_send(self, selection: Selection) -> None:
        """Raise BusyError or BadActions unless every env of `selection` may be sent an action now."""
        if self.owed and b"\1" in self.owes[selection.rows].tobytes():
            busy = selection.env_ids[self.owes[selection.env_ids]]
            how = "recv_unroll()" if self.columns else "recv()"
            raise BusyError(f"envs {_list(busy)} still owe a reply: {how} them before the next send()")
        if self.shut:
            for env_id in selection.env_ids.tolist():
                if (phase := self.phases[env_id]) in _SHUT:
                    why = _REFUSALS.get(phase) or self._failures[env_id]
                    raise BadActions(
                        f"env {env_id} {why}: it accepts only reset(env_ids=[{env_id}])",
                        expected="envs with a running episode",
                        got=f"env {env_id}, which {why}",
                    )
        if self._assignment.whole:
            _check_whole(self._assignment, selection)

    def commands(self, selection: Selection, pickled: list[Any]) -> list[Command]:
        """The commands that step these envs, which passed `check_send`.

        `pickled`: the parts of their actions that are not in the block.
        Raises TypeError or MemoryError if they cannot be pickled. Changes nothing; `sent` does.
        """
        number = self.next_number
        commands: list[Command] = []
        for worker, mine, rows, _, step in selection.parts:  # a comprehension is a function, made each time
            commands.append(Command(_STEP, number, worker, mine, rows, *step))
        if pickled:
            _load(commands, selection, pickled)
        return commands

    def sent(self, selection: Selection, length: int = 0) -> None:
        """The commands for these envs are about to leave; `length`: they are unrolls of so many rows."""
        number = self.next_number
        self.next_number = number + (length or 1)
        self.owes[selection.rows] = True
        self.owed += len(selection.env_ids)
        if length:
            self.columns += len(selection.env_ids)
        if self._begins:
            everyone = len(selection.env_ids) == len(self.owes)
            for env_id in self._begins if everyone else _of(self._begins, selection.env_ids, selection.rows):
                self.episodes.about_to_begin(env_id, number)

    def reset(self, env_ids: EnvIds, seeds: Mapping[int, int | None], options: bytes | None) -> list[Command]:
        """The commands that reset these envs (sorted; none owes a row). Their rows end the unfinished episodes."""
        number = self.next_number
        self.next_number = number + 1
        self.owes[env_ids] = True
        self.owed += len(env_ids)
        for env_id in env_ids.tolist():
            self._move(env_id, Event.RESET)
            self._begins[env_id] = _BY_ITSELF
            if seeds[env_id] is not None:
                self._seeds[env_id] = seeds[env_id]
            self.episodes.about_to_begin(env_id, number)
        commands: list[Command] = []
        for worker, mine in self._assignment.by_worker(env_ids):
            command = Command(Kind.RESET, number, worker, mine, rows_of(mine))
            command.asked, command.options = {env_id: seeds[env_id] for env_id in mine.tolist()}, options
            self._seed(command)
            commands.append(command)
        return commands

    def _seed(self, command: Command) -> None:
        """Set the seeds of a reset: the caller's, or where there is none, the one derived for the replacement."""
        fresh, asked = self._fresh, command.asked
        seeds = {e: asked[e] if asked.get(e) is not None else fresh.get(e) for e in command.env_ids.tolist()}
        for env_id, seed in seeds.items():
            self._begins[env_id] = self._begins[env_id]._replace(seed=seed)
        local = self._assignment.local(command.worker, command.env_ids).tolist()
        command.seeds = seeds
        command.payload, command.flags = encode(Reset(local, list(seeds.values()), command.options))

    # -- what comes back ---------------------------------------------------------------------------------------

    def replied(self, command: Command) -> None:
        """A reply is in; its rows wait to be taken, and what they mean does not change any more."""
        self.ready.append(command)
        self.ready_rows += len(command.env_ids)
        wrong = failed(command.notes) if command.notes else False
        if wrong:
            self.any_errors = True
        if self._begins and (mine := _of(self._begins, command.env_ids, command.rows)):
            if wrong:
                raised = {env_id for env_id, _, kind, _ in command.notes if kind == ERROR}
                mine = [env_id for env_id in mine if env_id not in raised]
            self.begun(command, mine)

    def due(self, command: Command) -> list[int]:
        """Those of its envs whose first row begins an episode, if nothing goes wrong."""
        return _of(self._begins, command.env_ids, command.rows)

    def begun(self, command: Command, env_ids: Sequence[int]) -> None:
        """A reply is in: episodes of these envs begin with the first row of `command`."""
        begins: dict[int, Begin] = {}
        for env_id in env_ids:
            self._move(env_id, Event.BEGUN)
            self._fresh.pop(env_id, None)
            begins[env_id] = self._begins.pop(env_id)
        command.begins = begins

    def lost(self, worker: int, reason: str, restarts: int, under_way: Iterable[Command]) -> list[int | None]:
        """A worker is restarted, for the `restarts`-th time. `under_way`: its commands, which go to the replacement.

        Returns the seeds of its envs' next episodes.
        """
        for env_id in self._assignment.rows[worker]:
            if self._move(env_id, Event.LOST) is Phase.DUE:
                self._begins[env_id] = Begin(None, "worker_lost", reason)
        return self._anew(worker, restarts, under_way)

    def renewed(self, worker: int, restarts: int, under_way: Iterable[Command]) -> list[int | None]:
        """As `lost`, of a worker that is renewed: no row says so. Raises IllegalMove if an env is RUNNING."""
        for env_id in self._assignment.rows[worker]:
            self._move(env_id, Event.RENEWED)
        return self._anew(worker, restarts, under_way)

    def _anew(self, worker: int, restarts: int, under_way: Iterable[Command]) -> list[int | None]:
        """The seeds with which the envs of a new process begin, and what is sent to it."""
        env_ids = self._assignment.rows[worker]
        seeds = [derive_seed(self._seeds[env_id], env_id, restarts) for env_id in env_ids]
        if self._assignment.whole and (first := seeds[0]) is not None and None not in seeds:
            seeds = [first + i for i in range(len(seeds))]  # a VectorEnv may take no more than one
        for env_id, seed in zip(env_ids, seeds):
            self._fresh[env_id] = seed
            if self.phases[env_id] is Phase.DUE:
                self._begins[env_id] = self._begins[env_id]._replace(seed=seed)
        for command in under_way:
            if command.kind is Kind.RESET and not command.dropped:
                self._seed(command)
            elif type(command) is Unroll and command.held:  # in the new process every env begins an episode
                hold(command, held=False)
        return seeds

    # -- planned renewal ---------------------------------------------------------------------------------------

    def wait(self, command: Command) -> None:
        """A step that was not sent: its rows are in, and say that their envs wait."""
        for env_id in command.env_ids.tolist():
            self._move(env_id, Event.WAITED)
            self.episodes.forget(env_id)
        self._slab.flags[command.env_ids] = 0
        self._slab.rewards[command.env_ids] = 0.0
        command.begins = dict.fromkeys(command.env_ids.tolist(), WAITS)
        self.ready.append(command)
        self.ready_rows += len(command.env_ids)

    def retry(self, command: Command, raised: Sequence[tuple[int, ErrorReport]]) -> Command:
        """These envs failed to reset under `command`: they leave it, and are reset by the command returned.

        Only where errors are not raised (on_env_error="reset").
        """
        for env_id, report in raised:
            if self._turned(command, env_id):
                self._end_failed(command, env_id)
                self.episodes.about_to_begin(env_id, command.number)
            if self._move(env_id, Event.RETRIED) is Phase.DUE:
                begin = self._begins.get(env_id, _BY_ITSELF)
                if begin.key != "worker_lost":  # a lost worker is the more important reason
                    begin = Begin(None, "env_error", f"{report.type_name}: {report.message}")
                self._begins[env_id] = begin
        ids = np.array(sorted(env_id for env_id, _ in raised), np.int64)
        again = Command(Kind.RESET, command.number, command.worker, ids, rows_of(ids))
        again.of = command.of
        again.asked, again.options = command.asked, command.options
        self._seed(again)
        rest = part_of(command, ~np.isin(command.env_ids, ids))
        command.env_ids, command.rows, command.notes = rest.env_ids, rest.rows, rest.notes
        return again

    def drop(self, env_ids: EnvIds, under_way: Iterable[Command]) -> None:
        """The reset of these envs was cancelled: its rows are dropped, and they accept only a reset."""
        for command in under_way:
            if command.kind is Kind.RESET and np.isin(command.env_ids, env_ids).any():
                command.dropped = True
        self._remove_ready(env_ids)
        for env_id in env_ids.tolist():
            self._move(env_id, Event.CANCELLED)
            self._begins.pop(env_id, None)
            self.episodes.forget(env_id)  # nothing begins before the next reset
        self._settle(env_ids)

    def retry_last_row(self, command: Unroll, env_id: int, row: int, report: ErrorReport) -> Command:
        """An env failed to reset in this row of a chunk: it is reset by the command returned, as its last row."""
        self._move(env_id, Event.RETRIED)
        begin = self._begins.get(env_id, _BY_ITSELF)
        why = begin if begin.key else Begin(None, "env_error", f"{report.type_name}: {report.message}")
        command.cuts = {**command.cuts, env_id: (row, why)}
        command.again += 1
        self._begins[env_id] = Begin(begin.seed)
        ids = np.array([env_id], np.int64)
        again = Command(Kind.RESET, command.number + command.length - 1, command.worker, ids, rows_of(ids))
        again.of = command
        self._seed(again)
        return again

    def waits_for(self, env_ids: EnvIds, replied: Iterable[Command] = ()) -> bool:
        """Whether one of these envs owes a row that is not in; `replied`: commands that are, beside the ready ones."""
        owing = env_ids[self.owes[env_ids]]
        ready = [command.env_ids for command in (*self.ready, *replied)]
        if len(owing) and ready:
            owing = owing[~np.isin(owing, np.concatenate(ready))]
        return bool(len(owing))

    # -- errors ------------------------------------------------------------------------------------------------

    def take_errors(self, env_ids: EnvIds | None = None) -> list[tuple[Command, int, ErrorReport]]:
        """The errors in the replies that have arrived, by env; their envs now accept only a reset.

        Their unfinished episodes are aborted. With `env_ids`, only those of these envs.
        """
        wanted = None if env_ids is None else set(env_ids.tolist())
        errors: list[tuple[Command, int, ErrorReport]] = [
            (command, env_id, report)
            for command in self.ready
            if failed(command.notes)
            for env_id, _, kind, report in command.notes
            if kind == ERROR and (wanted is None or env_id in wanted)
        ]
        for command, env_id, report in errors:
            if self.episodes.runs(env_id):
                self._end_failed(command, env_id)
            self.episodes.forget(env_id)  # not in `fail`: rows of a chunk that stand may begin one yet
            self.fail(env_id, report)
        gone = np.array([env_id for _, env_id, _ in errors], np.int64)
        self._remove_ready(gone)
        self._settle(gone)
        self.any_errors = any(failed(command.notes) for command in self.ready)
        return sorted(errors, key=lambda item: item[1])

    def fail(self, env_id: int, report: ErrorReport) -> None:
        """The caller is told that this env raised: it accepts only a reset."""
        self._move(env_id, Event.ERROR)
        self._begins.pop(env_id, None)
        self._failures[env_id] = f"raised {report.type_name} in {report.op}"

    def _turned(self, command: Command, env_id: int) -> bool:
        """Whether the step itself ended the env's episode, and only the reset after it raised (SAME_STEP)."""
        ended = bool(self._slab.flags[env_id] & (TERMINATED | TRUNCATED))
        return ended and command.kind is Kind.STEP and self.episodes.runs(env_id)

    def _end_failed(self, command: Command, env_id: int) -> None:
        """The running episode of an env that raised is over."""
        outcome: Outcome = "aborted"
        info: dict[str, Any] = {}
        if self._turned(command, env_id):
            self.episodes.executed_one(env_id, self._slab.rewards.item(env_id))
            outcome = "terminated" if self._slab.flags[env_id] & TERMINATED else "truncated"
            noted = by_kind([command.notes])
            info = noted[END_INFO].get(env_id) or noted[FINAL_INFO].get(env_id, {})
        self._unreleased.append(self.episodes.end(env_id, outcome, info, -1))

    # -- rows, taken -------------------------------------------------------------------------------------------

    def take_ready(self) -> list[Command]:
        """All replied rows, oldest command first; for `collect`."""
        commands, self.ready, self.ready_rows = self.ready, [], 0
        self.any_errors = False
        commands.sort(key=_by_sequence)
        return commands

    def select(self, env_ids: EnvIds) -> list[Command]:
        """The replied rows of just these envs, taken out of what waits; for `collect`."""
        parts = [part_of(command, np.isin(command.env_ids, env_ids)) for command in self.ready]
        self._remove_ready(env_ids)
        return [part for part in parts if len(part.env_ids)]

    def collect(
        self, commands: Sequence[Command], join: JoinInfos = batch_infos
    ) -> tuple[Batch, EventBatch | None]:
        """The rows of `commands` as a batch, and the events that go with it. Their envs owe nothing any more."""
        slab = self._slab
        ids, rows = _union(commands, self._assignment.everyone)
        n = len(ids)
        rewards, versions = slab.rewards[rows], slab.versions[rows]
        if is_view := type(rows) is slice:
            rewards, versions = rewards.copy(), versions.copy()
        self.owes[rows] = False
        self.owed -= n
        number = self.batches
        self.batches = number + 1
        noted, begins = _noted(commands)
        infos: dict[int, dict[str, Any]] = {} if noted is _NOTED_NOTHING else noted[INFO]
        self._columns.keep(noted)
        # Bytes rather than arrays: there is little to do, and each kind of array work costs.
        first = bytearray(n)
        flags = bytearray(slab.flag_bytes[rows] if is_view else slab.flags[rows].data)
        begun = _positions(ids, rows, begins) if begins else []
        is_from_0 = is_view and not rows.start  # positions are env ids, as nearly always
        for position in begun:
            first[position] = True
            if (begin := begins[env_id := ids.item(position)]).key:
                rewards[position], flags[position] = 0.0, 0 if begin is WAITS else TRUNCATED
                infos[env_id] = {**infos.get(env_id, {}), begin.key: begin.reason}
        ended = _ones(flags.translate(_ENDED))
        self.steps += n - len(begun)
        begun_ids = begun if is_from_0 else [ids.item(position) for position in begun]
        self.episodes.executed(rows, rewards, begun_ids)
        events: list[EpisodeStarted | Episode] = []
        if ended or begun or self._unreleased:
            turning = sorted({*ended, *begun}) if begun else ended
            turning_ids = turning if is_from_0 else [ids.item(position) for position in turning]
            self._turn(commands, turning_ids, begins, noted, infos, events)
        final_infos, watermark = noted[FINAL_INFO], self.episodes.watermark(self.next_number)
        batch = new_batch(
            (
                ids.copy(),
                self._columns.obs(rows, ids),
                rewards,
                np.frombuffer(flags.translate(_TERMINATED), _BOOL),
                np.frombuffer(flags.translate(_TRUNCATED), _BOOL),
                np.frombuffer(first, _BOOL),
                join(ids, infos) if infos else {},
                versions,
                tuple([event for event in events if type(event) is Episode]) if events else (),
                number,
                watermark,
                self._columns.final_obs(rows, ids) if self._same_step else None,
                join(ids, final_infos) if final_infos else {},
            )
        )
        beginning = self.episodes.beginning
        return batch, EventBatch(number, watermark, tuple(events), beginning) if events else None

    def take_columns(self, commands: Sequence[Command], length: int) -> tuple[EnvIds, Any, int]:
        """The envs of these unrolls, sorted, what picks their columns, and the number of the batch that is row 0."""
        ids, rows = _union(commands, self._assignment.everyone)
        self._settle(ids)
        self.columns -= len(ids)
        number = self.batches
        self.batches = number + length
        return ids, rows, number

    def take_unreleased(self, number: int) -> list[Episode]:
        """What ended where no row says so, as a part of this batch."""
        unreleased, self._unreleased = self._unreleased, []
        return [episode._replace(batch=number) for episode in unreleased]

    def end(self, env_id: int) -> None:
        """The last episode of the env in a row, or rows, taken now has ended, and no other has begun."""
        if self._move(env_id, Event.END) is Phase.DUE:
            self._begins.setdefault(env_id, _BY_ITSELF)

    def executed(self, steps: int) -> None:
        """So many actions more were executed."""
        self.steps += steps

    def observations(self) -> Any:
        """The newest observation of every env."""
        return self._columns.obs(slice(0, len(self.phases)), self._assignment.everyone)

    @property
    def given_obs(self) -> Mapping[int, Any]:
        """Of the newest batch, by env id: last observations as their envs gave them."""
        return self._columns.given_obs

    def close(self) -> EventBatch:
        """The last events: what ended in replies not collected, then every running episode as aborted."""
        self.take_errors()
        batch, released = self.collect(self.take_ready())
        episodes = self.episodes
        aborted = [episodes.end(env_id, "aborted", {}, batch.number) for env_id in episodes.running]
        watermark = episodes.watermark(self.next_number)
        return EventBatch(batch.number, watermark, (*(released.events if released else ()), *aborted))

    # -- inside ------------------------------------------------------------------------------------------------

    def _turn(
        self,
        commands: Sequence[Command],
        env_ids: Sequence[int],
        begins: Mapping[int, Begin],
        noted: Sequence[dict[int, Any]],
        infos: dict[int, dict[str, Any]],
        events: list[EpisodeStarted | Episode],
    ) -> None:
        """End and begin episodes, env by env, in the rows of these envs."""
        number = self.batches - 1
        if self._unreleased:
            events += self.take_unreleased(number)
        last_infos = noted[FINAL_INFO] if self._same_step else infos
        call_of: dict[int, int] = {}  # where not all rows are of one call
        for command in commands:
            if command.number != commands[0].number:
                call_of = {e: command.number for command in commands for e in command.env_ids.tolist()}
                break
        episodes, slab, tasks = self.episodes, self._slab, noted[TASK]
        for env_id in env_ids:
            begin = begins.get(env_id)
            if begin is WAITS:
                continue
            if begin is None:
                outcome: Outcome = "terminated" if slab.flags[env_id] & TERMINATED else "truncated"
                info = noted[END_INFO].get(env_id) or last_infos.get(env_id, {})
                events.append(episodes.end(env_id, outcome, info, number))
                self.end(env_id)
                if not self._same_step:
                    continue
                begin = _BY_ITSELF
            if episodes.runs(env_id):
                events.append(episodes.end(env_id, "aborted", {}, number))
            call = call_of[env_id] if call_of else commands[0].number
            task = tasks[env_id] if env_id in tasks else infos.get(env_id, {}).get("task")
            events.append(episodes.begin(env_id, call, slab.versions.item(env_id), task, begin.seed))

    def _settle(self, env_ids: EnvIds) -> None:
        self.owes[env_ids] = False
        self.owed -= len(env_ids)

    def _remove_ready(self, env_ids: EnvIds) -> None:
        """Take the rows of these envs out of what waits to be taken."""
        if len(env_ids):
            parts = [part_of(command, ~np.isin(command.env_ids, env_ids)) for command in self.ready]
            self.ready = [part for part in parts if len(part.env_ids)]
            self.ready_rows = sum(len(part.env_ids) for part in self.ready)


def hold(command: Unroll, *, held: bool) -> None:
    """Say whether no env may begin an episode in an unroll whose envs have ended theirs."""
    command.held = held
    unrolled = Unrolled(command.length, command.buffer, command.policy_version, held)
    command.payload, command.flags = encode(unrolled)


def derive_seed(seed: int | None, env_id: int, restarts: int) -> int | None:
    """The seed of an env that is made again, from (seed, env_id, restart count); None stays None."""
    if seed is None:
        return None
    return int(np.random.SeedSequence([seed & (2**63 - 1), env_id, restarts]).generate_state(1)[0])


def _union(commands: Sequence[Command], everyone: EnvIds) -> tuple[EnvIds, Any]:
    """The envs of all commands, sorted, and what picks their rows."""
    if len(commands) == 1:
        return commands[0].env_ids, commands[0].rows
    n = 0
    for command in commands:
        n += len(command.env_ids)
    if n == len(everyone):
        return everyone, slice(0, n)
    if not n:
        return everyone[:0], slice(0, 0)
    ids = np.concatenate([command.env_ids for command in commands])
    ids.sort()
    return ids, rows_of(ids)


def _noted(commands: Sequence[Command]) -> tuple[list[dict[int, Any]], Mapping[int, Begin]]:
    """The notes of these replies, by kind and env, and the rows that begin an episode."""
    replies: list[Sequence[Note]] = []
    begins: Mapping[int, Begin] = NO_BEGINS
    for command in commands:
        if command.notes:
            replies.append(command.notes)
        if command.begins:
            begins = {**begins, **command.begins} if begins else command.begins
    noted = by_kind(replies) if replies else _NOTED_NOTHING
    if noted[RESTARTED]:
        begins = _with_restarted(begins, noted[RESTARTED])
    return noted, begins


def _with_restarted(begins: Mapping[int, Begin], restarted: dict[int, ErrorReport]) -> dict[int, Begin]:
    """`begins`, plus the rows in which an env raised and was restarted. Where a worker was lost, that reason stays."""
    merged = dict(begins)
    for env_id, report in restarted.items():
        begin = merged.get(env_id, _BY_ITSELF)
        if not begin.key:
            merged[env_id] = Begin(begin.seed, "env_error", f"{report.type_name}: {report.message}")
    return merged


def _of(some: Iterable[int], env_ids: EnvIds, rows: Any) -> list[int]:
    """Those of `some` envs that are among `env_ids`; `rows`: as `rows_of(env_ids)`."""
    found: list[int] = []
    if type(rows) is slice:
        start, stop = rows.start, rows.stop
        for env_id in some:  # as in `commands`
            if start <= env_id < stop:
                found.append(env_id)  # noqa: PERF401
        return found
    among = set(env_ids.tolist())
    return [env_id for env_id in some if env_id in among]


def _ones(marks: bytearray) -> list[int]:
    """The positions of the ones among zeros, ascending."""
    found: list[int] = []
    at = marks.find(1)
    while at >= 0:
        found.append(at)
        at = marks.find(1, at + 1)
    return found


def _positions(ids: EnvIds, rows: Any, env_ids: Mapping[int, Any]) -> list[int]:
    """The positions in `ids` of the `env_ids` it contains, ascending; `rows`: as `rows_of(ids)`."""
    if type(rows) is slice:
        return sorted([e - rows.start for e in env_ids if rows.start <= e < rows.stop])
    return [position for position, env_id in enumerate(ids.tolist()) if env_id in env_ids]


def _check_whole(assignment: Assignment, selection: Selection) -> None:
    """Raise BadActions where only some envs of a worker are sent an action."""
    for part in selection.parts:
        if part.local is not None:
            raise BadActions(
                f"worker {part.worker} holds VectorEnvs, whose envs {assignment.rows[part.worker]} "
                "are stepped together; nothing was sent",
                expected="all of them",
                got=str(part.env_ids.tolist()),
            )


def _load(commands: Sequence[Command], selection: Selection, pickled: list[Any]) -> None:
    """Put actions that travel pickled into their commands. Raises TypeError or MemoryError if they cannot."""
    dumps(pickled, "actions")
    order = range(len(selection.env_ids)) if selection.order is None else selection.order.tolist()
    at = 0
    for command, (_, mine, _, local, _) in zip(commands, selection.parts):
        rows = order[at : at + len(mine)]
        at += len(mine)
        picked = [c[rows] if isinstance(c, np.ndarray) else c and [c[row] for row in rows] for c in pickled]
        envs = None if local is None else local.tolist()
        command.payload, command.flags = encode(Step(envs, dumps(picked, "actions")))


def _list(env_ids: EnvIds) -> str:
    ids = env_ids.tolist()
    return str(ids) if len(ids) <= 8 else f"[{', '.join(map(str, ids[:8]))}, …] ({len(ids)} envs)"
