"""Who owes what: commands, rows, episodes, order and watermark of every env, seen from the parent.

All of an episode's life is decided here, when a batch is handed out, from the rows in the block and the extras of the
replies; so the same replies give the same batches and events whatever the order in which they arrived.
"""
# pure: arrays and plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from .batch import Batch, Episode, EpisodeStarted, EventBatch, Outcome
from .errors import BadActions, BusyError
from .infos import batch_infos
from .report import ErrorReport
from .slab import Leaf, Slab, SpaceTree
from .wire import Kind

__all__ = ["Command", "Ledger"]

_NONE = np.iinfo(np.int64).max  # no episode is open
EnvIds = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Command:
    """One command to one worker, from its sending to the hand-out of its rows."""

    kind: Kind
    sequence: int  # number of the message: replies are matched by it
    number: int  # of the send or reset call
    worker: int
    env_ids: EnvIds
    payload: bytes = b""
    flags: int = 0
    version: int = 0  # the newest update at sending
    sent_at: float = 0.0  # loop time
    seeds: Sequence[int | None] = ()  # RESET
    options: dict[str, Any] | None = None  # RESET
    extras: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)  # of the reply; rows are env ids


class Ledger:
    """The state of all envs. Arrays are indexed by env id."""

    def __init__(
        self, num_envs: int, slab: Slab, obs: SpaceTree, autoreset: AutoresetMode, *, copy: bool
    ) -> None:
        self.num_envs = num_envs
        self.next_number = 0  # of the next send or reset call
        self.batches = 0  # handed out so far
        self.steps = 0  # executed
        self.outcomes: dict[str, int] = {"terminated": 0, "truncated": 0, "aborted": 0}
        self.ready: list[Command] = []  # replied, not handed out
        self.owed = 0  # envs with a command whose row was not handed out
        self.ready_rows = 0
        self._slab, self._obs, self._copy = slab, obs, copy
        self._same_step = autoreset is AutoresetMode.SAME_STEP
        self._next_step = autoreset is AutoresetMode.NEXT_STEP
        self._everyone = np.arange(num_envs)
        self._loose: list[list[Any]] = [[None] * num_envs for _ in obs.leaves]
        self._loose_final: list[list[Any]] = [[None] * num_envs for _ in obs.leaves]

        self.owes = np.zeros(num_envs, np.bool_)
        self.blocked: dict[int, str] = dict.fromkeys(range(num_envs), "was never reset")  # accepts only reset
        self._due = np.zeros(num_envs, np.bool_)  # its current or next command begins an episode
        self.is_ready = np.zeros(num_envs, np.bool_)  # its row waits to be handed out
        self._anew_why: dict[
            int, tuple[str, str]
        ] = {}  # the due episode is a replacement: info key and reason
        self._anew_later: dict[
            int, tuple[str, int | None]
        ] = {}  # lost after its row was replied: reason, seed
        self._running = np.zeros(num_envs, np.bool_)
        self._index = np.full(num_envs, -1, np.int64)
        self._order = np.zeros(num_envs, np.int64)
        self._open = np.full(
            num_envs, _NONE, np.int64
        )  # order of the episode that runs, or is about to begin
        self._length = np.zeros(num_envs, np.int64)
        self._return = np.zeros(num_envs, np.float64)
        self._version = np.zeros(num_envs, np.int64)
        self._task: list[Any] = [None] * num_envs
        self._seed: list[int | None] = [None] * num_envs
        self._next_seed: dict[int, int | None] = {}
        self._unreleased: list[Episode] = []  # ended outside a hand-out; part of the next one

    # -- commands ------------------------------------------------------------------------------------------------

    def check_send(self, env_ids: EnvIds | None) -> None:
        """Raise BusyError or BadActions unless all of them may be sent an action now; None = all."""
        busy = self.owes if env_ids is None else self.owes[env_ids]
        if busy.any():
            ids = self._everyone if env_ids is None else env_ids
            raise BusyError(f"envs {_list(ids[busy])} still owe a reply: recv() them before the next send()")
        if self.blocked:
            ids = self._everyone if env_ids is None else env_ids
            for env_id in ids.tolist():
                if reason := self.blocked.get(env_id):
                    raise BadActions(
                        f"env {env_id} {reason}: it accepts only reset(env_ids=[{env_id}])",
                        expected="envs with a running episode",
                        got=f"env {env_id}, which {reason}",
                    )

    def sent(self, env_ids: EnvIds | None, number: int) -> None:
        """A step command for these envs is on its way; None = all."""
        which: Any = slice(None) if env_ids is None else env_ids
        self.owes[which] = True
        self.owed += self.num_envs if env_ids is None else len(env_ids)
        ids = self._everyone if env_ids is None else env_ids
        due = ids[self._due[which] & ~self._running[which]]
        if len(due):
            self._open[due] = number * self.num_envs + due

    def resetting(self, env_ids: EnvIds, seeds: Sequence[int | None], number: int) -> None:
        """A reset command for these envs is on its way. Their unfinished episodes end when it is handed out."""
        self.owes[env_ids] = True
        self.owed += len(env_ids)
        self._due[env_ids] = True
        for env_id, seed in zip(env_ids.tolist(), seeds):
            self.blocked[env_id] = "has a reset under way, or one that was cancelled"
            self._anew_why.pop(env_id, None)
            self._next_seed[env_id] = seed
            if not self._running[env_id]:
                self._open[env_id] = number * self.num_envs + env_id

    def replied(self, command: Command) -> None:
        """A reply is in; its rows wait to be handed out."""
        self.ready.append(command)
        self.ready_rows += len(command.env_ids)
        self.is_ready[command.env_ids] = True

    def made_anew(self, env_ids: Iterable[int], reason: str, seeds: Sequence[int | None]) -> None:
        """The worker of these envs was replaced: the row of the command in flight, or of the next, begins an episode.

        A row that has been replied stays what it is. An env that waits for a reset gets that, and no such row.
        """
        for env_id, seed in zip(env_ids, seeds):
            if env_id in self.blocked:
                continue
            if self.is_ready[env_id]:
                self._anew_later[env_id] = (reason, seed)
            else:
                self._begin_anew(env_id, "worker_lost", reason, seed)

    def retry(self, command: Command, env_id: int, report: ErrorReport) -> Command:
        """Env `env_id` failed to reset under `command`: it leaves that command, and is reset again by the one returned.

        Only where errors are not raised (on_env_error="reset").
        """
        for items in command.extras.values():
            items[:] = [item for item in items if item[0] != env_id]
        command.env_ids = command.env_ids[command.env_ids != env_id]
        if command.kind is Kind.STEP or env_id in self._anew_why:
            self._begin_anew(env_id, "env_error", f"{report.type_name}: {report.message}", None)
        seed = self._next_seed.get(env_id)
        again = np.array([env_id], np.int64)
        kind = Kind.RESET
        return Command(kind, 0, command.number, command.worker, again, seeds=[seed], options=command.options)

    def _begin_anew(self, env_id: int, key: str, reason: str, seed: int | None) -> None:
        self._anew_why[env_id] = (key, reason)
        self._due[env_id] = True
        self._next_seed[env_id] = seed

    def drop(self, env_ids: EnvIds) -> None:
        """A reset of these envs was cancelled: its rows are dropped, and they accept only reset."""
        self._remove_ready(env_ids)
        self.owes[env_ids] = False
        self.owed -= len(env_ids)

    # -- errors --------------------------------------------------------------------------------------------------

    def take_errors(self, env_ids: EnvIds | None = None) -> list[tuple[Command, int, ErrorReport]]:
        """The errors among the replies that are in, oldest command first; their envs now accept only reset.

        Their unfinished episodes are aborted. With `env_ids`, only those of these envs.
        """
        errors: list[tuple[Command, int, ErrorReport]] = []
        for command in list(self.ready):
            failed = command.extras.get("errors")
            if not failed:
                continue
            mine = [(e, r) for e, r in failed if env_ids is None or e in env_ids]
            for env_id, report in mine:
                errors.append((command, env_id, report))
                self._fail(command, env_id, report)
            gone = np.array([env_id for env_id, _ in mine], np.int64)
            if len(gone):
                failed[:] = [item for item in failed if item not in mine]
                self._remove_ready(gone)
                self.owes[gone] = False
                self.owed -= len(gone)
        return sorted(errors, key=lambda item: item[1])

    def _fail(self, command: Command, env_id: int, report: ErrorReport) -> None:
        slab = self._slab
        ended = bool(slab.terminations[env_id] or slab.truncations[env_id])
        if self._running[env_id]:
            if ended and command.kind is Kind.STEP:  # SAME_STEP: the episode ended, the reset after it failed
                self._length[env_id] += 1
                self._return[env_id] += slab.rewards[env_id]
                outcome: Outcome = "terminated" if slab.terminations[env_id] else "truncated"
                info = dict(command.extras.get("ends", ()) or command.extras.get("final_infos", ()))
                self._unreleased.append(self._close_episode(env_id, outcome, info.get(env_id, {})))
            else:
                self._unreleased.append(self._close_episode(env_id, "aborted", {}))
        self._open[env_id] = _NONE
        self._due[env_id] = True
        self._anew_why.pop(env_id, None)
        self.blocked[env_id] = f"raised {report.type_name} in {report.op}"

    @property
    def any_errors(self) -> bool:
        """Whether a reply that is in says that an env raised."""
        return any("errors" in command.extras for command in self.ready)

    def episode_of(self, env_id: int) -> tuple[int, int, int | None]:
        """Index, steps so far and seed of an env's newest episode, for messages."""
        return int(self._index[env_id]), int(self._length[env_id]), self._seed[env_id]

    # -- hand-out ------------------------------------------------------------------------------------------------

    def select(self, env_ids: EnvIds) -> list[Command]:
        """The replied rows of just these envs, taken out of what waits."""
        wanted = np.zeros(self.num_envs, np.bool_)
        wanted[env_ids] = True
        taken: list[Command] = []
        for command in list(self.ready):
            mask = wanted[command.env_ids]
            if mask.any():
                mine = command.env_ids[mask]
                keep = set(mine.tolist())
                extras = {k: [i for i in items if i[0] in keep] for k, items in command.extras.items()}
                part = Command(
                    command.kind, command.sequence, command.number, command.worker, mine, extras=extras
                )
                taken.append(part)
                self._remove_ready(mine)
        return taken

    def take_ready(self) -> list[Command]:
        """All replied rows, oldest command first."""
        commands, self.ready, self.ready_rows = self.ready, [], 0
        self.is_ready[:] = False
        commands.sort(key=lambda command: command.sequence)
        return commands

    def hand_out(self, commands: Sequence[Command]) -> tuple[Batch, EventBatch]:
        """The rows of `commands` as a batch, and the events that go with it. Their envs owe nothing any more."""
        slab, n = self._slab, sum(len(command.env_ids) for command in commands)
        everyone = n == self.num_envs
        rows: Any
        if everyone:
            ids, rows = self._everyone, slice(None)
        else:
            ids = rows = np.sort(np.concatenate([c.env_ids for c in commands])) if commands else _no_ids()
        self.owes[rows] = False
        self.owed -= n
        extras = [command.extras for command in commands if command.extras]
        number = self.batches
        self.batches += 1

        rewards = _own(slab.rewards[rows], everyone)
        terminations = _own(slab.terminations[rows], everyone)
        truncations = _own(slab.truncations[rows], everyone)
        versions = _own(slab.versions[rows], everyone)
        first = _own(self._due[rows], everyone)
        done = terminations | truncations
        infos: dict[int, dict[str, Any]] = {}
        events: list[EpisodeStarted | Episode] = []
        final_infos: dict[int, dict[str, Any]] = {}
        if extras:
            self._loosen(extras)
            infos = _gather(extras, "infos")
        remade = _gather(extras, "env_errors") if extras else {}
        if remade or self._anew_later or self._unreleased or first.any() or done.any():
            events += [replace(episode, batch=number) for episode in self._unreleased]
            self._unreleased.clear()
            anew = self._anew(ids, remade, infos, first)
            if len(anew):
                rewards[anew], terminations[anew], truncations[anew], first[anew] = 0.0, False, True, True
                done[anew] = False
            executed = ~first
            self.steps += int(executed.sum())
            self._length[rows] += executed
            self._return[rows] += rewards
            if self._same_step:
                final_infos = _gather(extras, "final_infos")
            self._turn(commands, extras, ids, first, terminations, done, infos, final_infos, number, events)
            for env_id in [e for e in ids.tolist() if e in self._anew_later]:  # from the next row on
                self._begin_anew(env_id, "worker_lost", *self._anew_later.pop(env_id))
        else:
            self.steps += n
            self._length[rows] += 1
            self._return[rows] += rewards

        watermark = self.watermark()
        batch = Batch(
            env_ids=ids.copy(),
            obs=self._observations(slab.obs, self._loose, rows, ids, everyone),
            rewards=rewards,
            terminations=terminations,
            truncations=truncations,
            first=first,
            infos=batch_infos(ids, infos) if infos else {},
            versions=versions,
            episodes=tuple(event for event in events if type(event) is Episode),
            number=number,
            watermark=watermark,
            final_obs=(
                self._observations(slab.final_obs, self._loose_final, rows, ids, everyone)
                if self._same_step
                else None
            ),
            final_infos=batch_infos(ids, final_infos) if final_infos else {},
        )
        return batch, EventBatch(number, watermark, tuple(events))

    def watermark(self) -> int:
        """Every episode with a smaller order, begun or about to begin, has ended."""
        return min(int(self._open.min()), self.next_number * self.num_envs)

    def close(self) -> EventBatch:
        """The last events: what ended in replies that nobody took, then every running episode as aborted."""
        self.take_errors()
        _, released = self.hand_out(self.take_ready())
        running = np.flatnonzero(self._running).tolist()
        aborted = [self._close_episode(env_id, "aborted", {}, released.number) for env_id in running]
        return EventBatch(released.number, self.watermark(), (*released.events, *aborted))

    # -- inside --------------------------------------------------------------------------------------------------

    def _anew(
        self, ids: EnvIds, remade: dict[int, Any], infos: dict[int, dict[str, Any]], first: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """The positions of rows whose env was made anew under its command, or reset after it raised."""
        positions: list[int] = []
        for env_id, report in remade.items():
            infos[env_id] = {**infos.get(env_id, {}), "env_error": f"{report.type_name}: {report.message}"}
            positions.append(int(np.searchsorted(ids, env_id)))
        for position in np.flatnonzero(first).tolist():
            env_id = int(ids[position])
            if why := self._anew_why.pop(env_id, None):
                infos[env_id] = {**infos.get(env_id, {}), why[0]: why[1]}
                positions.append(position)
        return np.array(positions, np.intp)

    def _turn(
        self,
        commands: Sequence[Command],
        extras: Sequence[dict[str, list[tuple[int, Any]]]],
        ids: EnvIds,
        first: NDArray[np.bool_],
        terminations: NDArray[np.bool_],
        done: NDArray[np.bool_],
        infos: dict[int, dict[str, Any]],
        final_infos: dict[int, dict[str, Any]],
        number: int,
        events: list[EpisodeStarted | Episode],
    ) -> None:
        """End and begin episodes, env by env."""
        tasks, ends = _gather(extras, "tasks"), _gather(extras, "ends")
        call_of: Callable[[int], int]
        if len({command.number for command in commands}) == 1:
            only = commands[0].number
            call_of = lambda env_id: only  # noqa: E731
        else:
            numbers = {int(e): command.number for command in commands for e in command.env_ids}
            call_of = numbers.__getitem__
        for position in np.flatnonzero(first | done).tolist():
            env_id = int(ids[position])
            begins = bool(first[position])
            if done[position]:
                outcome: Outcome = "terminated" if terminations[position] else "truncated"
                info = ends.get(env_id) or (final_infos if self._same_step else infos).get(env_id, {})
                events.append(self._close_episode(env_id, outcome, info, number))
                self._due[env_id] = self._next_step
                begins = self._same_step
                if not (self._next_step or self._same_step):
                    self.blocked[env_id] = "has ended its episode (autoreset is DISABLED)"
            if begins:
                if self._running[env_id]:
                    events.append(self._close_episode(env_id, "aborted", {}, number))
                info = infos.get(env_id, {})
                task = tasks[env_id] if env_id in tasks else info.get("task")
                events.append(self._open_episode(env_id, call_of(env_id), task))

    def _open_episode(self, env_id: int, call: int, task: Any) -> EpisodeStarted:
        order = call * self.num_envs + env_id
        self._due[env_id] = False
        self._running[env_id] = True
        self._index[env_id] += 1
        self._order[env_id] = self._open[env_id] = order
        self._length[env_id], self._return[env_id] = 0, 0.0
        self._version[env_id] = self._slab.versions[env_id]
        self._task[env_id] = task
        self._seed[env_id] = self._next_seed.pop(env_id, None)
        self.blocked.pop(env_id, None)
        return EpisodeStarted(
            env_id, int(self._index[env_id]), order, int(self._version[env_id]), task, self._seed[env_id]
        )

    def _close_episode(
        self, env_id: int, outcome: Outcome, info: dict[str, Any], number: int = -1
    ) -> Episode:
        self._running[env_id] = False
        self._open[env_id] = _NONE
        self.outcomes[outcome] += 1
        return Episode(
            env_id,
            int(self._index[env_id]),
            int(self._order[env_id]),
            int(self._length[env_id]),
            float(self._return[env_id]),
            outcome,
            int(self._version[env_id]),
            self._task[env_id],
            info,
            self._seed[env_id],
            number,
        )

    def _remove_ready(self, env_ids: EnvIds) -> None:
        gone = np.zeros(self.num_envs, np.bool_)
        gone[env_ids] = True
        kept: list[Command] = []
        for command in self.ready:
            left = command.env_ids[~gone[command.env_ids]]
            if len(left) < len(command.env_ids):
                remaining = set(left.tolist())
                command.extras = {
                    k: [i for i in items if i[0] in remaining] for k, items in command.extras.items()
                }
                self.ready_rows -= len(command.env_ids) - len(left)
                self.is_ready[command.env_ids[gone[command.env_ids]]] = False
                command.env_ids = left
            if len(left):
                kept.append(command)
        self.ready = kept

    def _loosen(self, extras: Sequence[dict[str, list[tuple[int, Any]]]]) -> None:
        """Store observations that came pickled."""
        loose = [index for index, column in enumerate(self._slab.obs) if column is None]
        if not loose:
            return
        for kind, store in (("objects", self._loose), ("final_objects", self._loose_final)):
            for extra in extras:
                for env_id, values in extra.get(kind, ()):
                    for index, value in zip(loose, values):
                        store[index][env_id] = value

    def _observations(
        self,
        columns: Sequence[NDArray[Any] | None],
        loose: Sequence[Sequence[Any]],
        rows: Any,
        ids: EnvIds,
        everyone: bool,
    ) -> Any:
        """The batch of observations; arrays that the caller owns, or views of the block under copy=False."""
        own = everyone and self._copy
        leaves: list[Any] = []
        for index, column in enumerate(columns):
            if column is not None:
                leaves.append(_own(column[rows], own))
            elif self._obs.leaves[index].fixed:
                leaves.append(None)
            else:
                values = [loose[index][env_id] for env_id in ids.tolist()]
                leaves.append(_stack(self._obs.leaves[index], values))
        return self._obs.join(leaves)


def _own(rows: NDArray[Any], view: bool) -> NDArray[Any]:
    """A slice is a view and must be copied; picking rows by index has copied already."""
    return rows.copy() if view else rows


def _stack(leaf: Leaf, values: list[Any]) -> Any:
    """Observations that came pickled: one array where the space has a fixed size, else a tuple."""
    if not leaf.stackable:
        return tuple(values)
    empty = np.zeros(leaf.shape, leaf.dtype)
    return np.stack([empty if value is None else value for value in values])


def _no_ids() -> EnvIds:
    return np.zeros(0, np.int64)


def _list(env_ids: EnvIds) -> str:
    ids = env_ids.tolist()
    return str(ids) if len(ids) <= 8 else f"[{', '.join(map(str, ids[:8]))}, …] ({len(ids)} envs)"


def _gather(extras: Sequence[dict[str, list[tuple[int, Any]]]], kind: str) -> dict[int, Any]:
    return {env_id: value for extra in extras for env_id, value in extra.get(kind, ())}
