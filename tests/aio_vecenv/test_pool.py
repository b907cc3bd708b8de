"""What is owed, by whom, and what its rows mean: any order of sends, replies, losses, errors, resets and takes.

Pure: real envs in real env groups over a block of ordinary memory, and the parent's books; no process, no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aio_vecenv import BadActions, BusyError, Episode, EpisodeStarted
from aio_vecenv.core.assignment import Assignment, EnvIds, assign
from aio_vecenv.core.batch import Batch, EventBatch
from aio_vecenv.core.chunk import Chunk
from aio_vecenv.core.chunks import Chunks
from aio_vecenv.core.command import Unroll
from aio_vecenv.core.episodes import EpisodeTracker
from aio_vecenv.core.framing import Message, dumps
from aio_vecenv.core.layout import ChunkRows, RowSpec, Slab, SpaceTree, layout
from aio_vecenv.core.messages import ERROR, decode_joined, decode_notes
from aio_vecenv.core.options import Settings
from aio_vecenv.core.policy import PolicyRunner
from aio_vecenv.core.pool import Command, Event, IllegalMove, Phase, Pool, derive_seed, moves
from aio_vecenv.core.updates import Inbox
from aio_vecenv.core.waiting import Waiting
from aio_vecenv.worker.env_group import EnvGroup
from aio_vecenv.worker.main import execute
from aio_vecenv.worker.unroll import Unroller, UnrollUnderWay

OBS = gym.spaces.Box(-(2**62), 2**62, (4,), np.int64)
ACTION = gym.spaces.Discrete(2)
Fate = Literal["runs", "terminates", "truncates", "raises", "raises twice"]
LONGEST = 4  # rows of an unroll
HISTORIES = 30
FATES: st.SearchStrategy[Fate] = st.sampled_from(
    ["runs", "runs", "runs", "terminates", "truncates", "raises", "raises twice"]
)


# -- the workers' side -------------------------------------------------------------------------------------------------


class FatedEnv(gym.Env[Any, Any]):
    """Observation (env, life, episode, t), reward t; its next command goes as `fate` says ("raises": its step, or
    its reset if that is what comes; "… twice": also the reset after a step that raised or ended its episode)."""

    observation_space, action_space = OBS, ACTION

    def __init__(self, env_id: int, life: int) -> None:
        self.place = (env_id, life)
        self.episode, self.t, self.version = -1, 0, 0
        self.fate: Fate = "runs"
        self.later: list[Fate] = []  # of the rows after the next one, in a command of several
        self.begun: list[int | None] = []  # the seeds of the resets of this life that did not raise

    def on_broadcast(self, payload: int, version: int) -> None:
        assert payload == version > self.version
        self.version = version

    def _next(self) -> Fate:
        fate, self.fate = self.fate, self.later.pop(0) if self.later else "runs"
        return fate

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        fate = self._next()
        if fate.startswith("raises"):
            raise RuntimeError("a reset that raises")
        self.begun.append(seed)
        self.episode, self.t = self.episode + 1, 0
        task = (*self.place, self.episode, self.version, seed)
        return self._obs(), {"task": task, "row": self._obs()}

    def step(self, action: Any) -> Any:
        fate = self._next()
        if fate.startswith("raises"):
            if fate == "raises twice":
                self.fate = "raises"
            raise RuntimeError("a step that raises")
        self.t += 1
        return (
            self._obs(),
            float(self.t),
            fate == "terminates",
            fate == "truncates",
            {"row": self._obs()},
        )

    def _obs(self) -> Any:
        return np.array([*self.place, self.episode, self.t])


class TurningEnv(FatedEnv):
    """As `FatedEnv`; "raises twice" ends the episode instead, and then raises in the reset that follows."""

    def step(self, action: Any) -> Any:
        if self.fate != "raises twice":
            return super().step(action)
        self.fate = "terminates"
        result = super().step(action)
        self.fate = "raises"
        return result


class FatedPolicy:
    """Raises in the calls that `fails` says, oldest first."""

    noise = ((), np.float32)
    outputs: Any = {}  # noqa: RUF012
    fails: ClassVar[list[bool]] = []

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Any:
        return np.zeros(rows, np.float32)

    def load(self, params: Any) -> None:
        pass

    def act(self, obs: Any, noise: Any) -> Any:
        if FatedPolicy.fails and FatedPolicy.fails.pop(0):
            raise RuntimeError("an act that raises")
        return np.zeros(len(obs), np.int64), {}


@dataclass(eq=False)
class FakeWorker:
    """One worker: its envs, its incarnation, the commands it was sent and has not done, oldest first."""

    index: int
    rows: range
    incarnation: int = 0
    queue: list[Command] = field(default_factory=list)
    envs: list[FatedEnv] = field(default_factory=list)
    group: Any = None
    unroller: Any = None
    seeds: list[int | None] | None = None  # of a replacement: for the resets that bring none


@dataclass(eq=False)
class Reset:
    """A reset under way: its envs, and the seeds it was given."""

    ids: EnvIds
    seeds: dict[int, int | None]


# -- the parent's side -------------------------------------------------------------------------------------------------


class Hall:
    """The books and the workers of one vec env, without the loop between them."""

    def __init__(
        self,
        num_envs: int,
        num_workers: int,
        autoreset: AutoresetMode,
        on_env_error: Literal["raise", "reset"],
    ) -> None:
        obs, action = SpaceTree(OBS), SpaceTree(ACTION)
        same_step = autoreset is AutoresetMode.SAME_STEP
        chunks = ChunkRows(LONGEST, num_workers, RowSpec((), np.dtype(np.float32)), {})
        fields, size_bytes = layout(obs, action, num_envs, final_obs=same_step, chunks=chunks)
        self.trees, self.fields, self.block = (obs, action), fields, np.zeros(size_bytes, np.uint8)
        self.slab = Slab(self.block, fields, obs, action)
        self.settings = Settings(autoreset, on_env_error=on_env_error)
        runs = assign(num_envs, num_workers)
        self.assignment = Assignment([len(run) for run in runs])
        self.pool = Pool(self.assignment, self.slab, obs, autoreset, copy=True)
        self.chunks = Chunks(self.pool, self.assignment, self.slab, obs, action, copy=True)
        self.waiting = Waiting(self.pool, self.assignment)
        self.workers = [FakeWorker(index, run) for index, run in enumerate(runs)]
        self.asked: dict[int, dict[int, int | None]] = {}  # the seeds of each reset call, by its number
        self.sequence = self.version = 0
        for worker in self.workers:
            self._start(worker, None)

    def _start(self, worker: FakeWorker, seeds: list[int | None] | None) -> None:
        turning = self.settings.autoreset is AutoresetMode.SAME_STEP and self.settings.on_env_error == "raise"
        worker.seeds = seeds
        kind = TurningEnv if turning else FatedEnv
        worker.envs = [kind(env_id, worker.incarnation) for env_id in worker.rows]
        inbox = Inbox(len(worker.envs))

        def catch_up(version: int) -> None:
            inbox.take(version, version, "topic", version, now=False)

        slab = Slab(self.block, self.fields, *self.trees)
        worker.group = EnvGroup(
            worker.envs, worker.rows.start, slab, *self.trees, self.settings, inbox, catch_up, seeds
        )
        policy = dumps(FatedPolicy())
        worker.unroller = Unroller(
            worker.group, slab, lambda: PolicyRunner(policy, OBS, ACTION, worker=worker.index), worker.index
        )

    def publish(self) -> None:
        self.version += 1
        self.slab.mark(self.version)

    def _post(self, commands: Sequence[Command]) -> None:
        for command in commands:
            self.sequence += 1
            command.sequence = self.sequence
            self.workers[command.worker].queue.append(command)

    def send(self, ids: EnvIds) -> None:
        selection = self.assignment.select(ids)
        self.pool.check_send(selection)
        selection = self.waiting.part(selection, self.waiting.due)
        commands = self.pool.commands(selection, [])
        self.pool.sent(selection)
        self._post(self.waiting.keep(commands))

    def unroll(self, ids: EnvIds, length: int) -> None:
        noise = np.zeros((length, len(ids)), np.float32)
        held = [worker for worker in self.waiting.due if self.waiting.playing(worker)]
        self._post(self.chunks.send(self.assignment.select(ids), noise, 0, None, lambda _: held))

    def reset(self, ids: EnvIds, seeds: dict[int, int | None]) -> None:
        self.pool.take_errors(ids)
        stale = self.pool.select(ids)
        self.released = self.pool.collect(stale) if stale else None
        self.dropped = []
        for column in self.chunks.select(ids):
            self.chunks.take_errors([column])
            self.dropped.append(self.chunks.collect([column]))
        self.asked[self.pool.next_number] = seeds
        self._post(self.pool.reset(ids, seeds, None))

    def cancel(self, ids: EnvIds) -> None:
        self.pool.drop(ids, [command for worker in self.workers for command in worker.queue])

    def work(self, worker: FakeWorker) -> None:
        """The worker does its oldest command; its reply comes in."""
        command = worker.queue.pop(0)
        message = Message(command.kind, command.sequence, 0, command.payload, command.flags)
        if isinstance(command, Unroll):
            self._unroll(worker, command, message)
            return
        for payload in execute(worker.group, message):
            command.notes = [*command.notes, *decode_notes(payload)]
        if command.dropped:
            return
        if self.settings.on_env_error == "reset":
            for env_id, _, kind, report in command.notes:
                if kind == ERROR:
                    self._post([self.pool.retry(command, [(env_id, report)])])
        if command.of is None:
            self.pool.replied(command)
        elif len(command.env_ids):
            self.chunks.reset_again(command)

    def _unroll(self, worker: FakeWorker, command: Unroll, message: Message) -> None:
        under_way = UnrollUnderWay(worker.unroller, message)
        while under_way.row():
            pass
        for payload in under_way.reply():
            command.notes = [*command.notes, *decode_joined(payload)]
        self.chunks.replied(command)
        if self.settings.on_env_error == "reset":
            for env_id, row, report in self.chunks.failed(command):
                self._post([self.pool.retry_last_row(command, env_id, row, report)])

    def lose(self, worker: FakeWorker) -> None:
        """The worker dies; its replacement gets what it owed."""
        worker.incarnation += 1
        worker.queue = [command for command in worker.queue if not command.dropped]
        self._post(self.waiting.begin_anew(worker.index))
        self._start(worker, self.pool.lost(worker.index, "died", worker.incarnation, worker.queue))

    def renew(self, worker: FakeWorker) -> None:
        """It gives way to a fresh one, which gets what was kept back."""
        worker.incarnation += 1
        self._post(self.waiting.begin_anew(worker.index))
        self._start(worker, self.pool.renewed(worker.index, worker.incarnation, worker.queue))

    def ready(self, ids: EnvIds) -> bool:
        return not self.pool.waits_for(ids, self.chunks.complete)

    def errors(self, ids: EnvIds | None = None) -> list[int]:
        """The envs whose errors a call raises now."""
        return [env_id for _, env_id, _ in self.pool.take_errors(ids)]

    def collect(self, ids: EnvIds | None = None) -> tuple[Batch, EventBatch | None]:
        return self.pool.collect(self.pool.take_ready() if ids is None else self.pool.select(ids))


# -- what must hold, whatever happens ----------------------------------------------------------------------------------


class Witness:
    """Sees what a caller sees, and asserts what a caller was promised."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.running: dict[int, EpisodeStarted] = {}
        self.ended: dict[int, Episode] = {}
        self.lengths = [0] * num_envs
        self.orders = [-1] * num_envs
        self.tasks: set[tuple[Any, ...]] = set()
        self.watermark = 0
        self.batches = 0

    def events(self, released: EventBatch | None, number: int, *, last: bool = False) -> None:
        """G6, G8: each began once and ends once, as it began; order and watermark hold."""
        for event in released.events if released else ():
            env_id = event.env_id
            assert event.order >= self.watermark, f"{event} is behind a watermark of {self.watermark}"
            assert event.order % self.num_envs == env_id
            if isinstance(event, EpisodeStarted):
                assert env_id not in self.running
                assert event.order > self.orders[env_id]
                assert event.index == (self.ended[env_id].index + 1 if env_id in self.ended else 0)
                assert event.task not in self.tasks
                assert event.task[0] == env_id
                assert (event.version, event.seed) == event.task[3:]  # what the env itself knows of its reset
                self.tasks.add(event.task)
                self.running[env_id], self.orders[env_id] = event, event.order
                self.lengths[env_id] = 0
            else:
                began = self.running.pop(env_id)
                for name in ("index", "order", "version", "task", "seed"):
                    assert getattr(began, name) == getattr(event, name)
                assert event.batch == number
                assert event.episode_return == event.length * (event.length + 1) / 2
                if event.outcome == "aborted":  # with the last ones go rows that no batch has shown
                    assert last or event.length == self.lengths[env_id]
                else:
                    assert tuple(event.final_info["row"]) == (*event.task[:3], event.length)
                self.ended[env_id] = event

    def chunk(self, chunk: Chunk, released: Sequence[EventBatch]) -> None:
        """A chunk is the batches of its rows."""
        events = {batch.number: batch for batch in released}
        for t in range(len(chunk.rewards)):
            row = chunk.row(t)
            if batch := events.pop(row.number, None):
                assert batch.watermark == row.watermark
            self.batch(row, batch, of_chunk=True)
        assert not events

    def batch(self, batch: Batch, released: EventBatch | None, *, of_chunk: bool = False) -> None:
        """G11: every row is the newest of its env, and of the episode that runs or has just ended."""
        assert batch.number == self.batches
        self.batches += 1
        over = {episode.env_id for episode in batch.episodes}
        for row, env_id in enumerate(batch.env_ids.tolist()):
            turned = bool(batch.terminations[row] or batch.truncations[row])
            if not batch.first[row]:
                self.lengths[env_id] += 1
                assert batch.rewards[row] == self.lengths[env_id]
            # … of a lost worker, say so also where their episode had ended
            assert env_id in over or not turned or batch.first[row]
        began = (
            {event.env_id for event in released.events if isinstance(event, EpisodeStarted)}
            if released
            else set()
        )
        self.events(released, batch.number)
        assert batch.watermark >= self.watermark
        self.watermark = batch.watermark
        for row, env_id in enumerate(batch.env_ids.tolist()):
            episode = self.running.get(env_id) or self.ended[env_id]
            assert batch.obs[row].tolist()[:3] == list(episode.task[:3])
            assert batch.versions[row] == episode.version
            if batch.first[row] and env_id not in began:
                # nothing was done in it
                assert of_chunk or batch.infos["_worker_renewal"][row]
                assert (batch.rewards[row], turned) == (0, False)
            elif batch.first[row]:
                assert batch.rewards[row] == batch.obs[row][3] == 0
                assert env_id in self.running
            if "row" in batch.infos and batch.infos["_row"][row]:
                assert (batch.infos["row"][row] == batch.obs[row]).all()
            for why in ("worker_lost", "env_error"):
                if why in batch.infos and batch.infos[f"_{why}"][row]:
                    assert batch.first[row]
                    assert (batch.terminations[row], batch.truncations[row]) == (False, True)


class PoolMachine(RuleBasedStateMachine):
    """Sends, replies in any order, losses, errors, resets cancelled or not, takes; see `Witness` for what must hold."""

    autoreset = AutoresetMode.NEXT_STEP
    on_env_error: Literal["raise", "reset"] = "raise"

    @initialize(num_envs=st.integers(1, 5), data=st.data())
    def open(self, num_envs: int, data: st.DataObject) -> None:
        self.hall = Hall(num_envs, data.draw(st.integers(1, num_envs)), self.autoreset, self.on_env_error)
        self.witness = Witness(num_envs)
        self.owing: set[int] = set()  # a command was sent, its row or error has not been told
        self.shut = set(range(num_envs))  # accepts only reset
        self.resets: list[Reset] = []
        self.everyone = np.arange(num_envs)

    def _some(self, data: st.DataObject, among: set[int]) -> EnvIds:
        chosen = data.draw(st.sets(st.sampled_from(sorted(among)), min_size=1))
        return np.array(sorted(chosen), np.int64)

    @property
    def _in_reset(self) -> set[int]:
        return {env_id for reset in self.resets for env_id in reset.ids.tolist()}

    # -- what a caller does ------------------------------------------------------------------------------------

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        ids = self._some(data, set(self.everyone.tolist()))
        wanted = set(ids.tolist())
        if wanted & self.owing:
            with pytest.raises(BusyError):
                self.hall.send(ids)
        elif wanted & self.shut:
            with pytest.raises(BadActions):
                self.hall.send(ids)
        else:
            self.hall.send(ids)
            self.owing |= wanted

    @precondition(lambda self: set(self.everyone.tolist()) - self.owing - self.shut)
    @rule(data=st.data())
    def send_to_those_that_accept_it(self, data: st.DataObject) -> None:
        ids = self._some(data, set(self.everyone.tolist()) - self.owing - self.shut)
        self.hall.send(ids)
        self.owing |= set(ids.tolist())

    def _whole_workers(self) -> list[range]:
        """The envs of each worker that may be sent an unroll."""
        if self.autoreset is not AutoresetMode.NEXT_STEP:
            return []
        return [one.rows for one in self.hall.workers if not set(one.rows) & (self.owing | self.shut)]

    @precondition(lambda self: self._whole_workers())
    @rule(data=st.data(), length=st.integers(1, LONGEST))
    def unroll(self, data: st.DataObject, length: int) -> None:
        workers = data.draw(st.lists(st.sampled_from(self._whole_workers()), min_size=1, unique=True))
        ids = np.array(sorted(env_id for rows in workers for env_id in rows))
        self.hall.unroll(ids, length)
        self.owing |= set(ids.tolist())

    @precondition(lambda self: not self.resets and self.hall.chunks.complete)
    @rule(least=st.none() | st.integers(1, 5))
    def take_chunk(self, least: int | None) -> None:
        """What `recv_unroll` does: errors are told first, and then the chunk has all of its columns."""
        chunks = self.hall.chunks
        if not (commands := chunks.ready(least)):
            return
        errors = chunks.take_errors(commands)
        assert not errors or self.on_env_error == "raise"
        self.shut |= {env_id for _, env_id, _, _ in errors}
        assert not chunks.take_errors(commands)
        self._seen_chunk(*chunks.collect(commands))

    @precondition(lambda self: not self.resets and self.hall.pool.ready_rows)
    @rule()
    def take(self) -> None:
        """What `recv` does once enough is there: errors are raised alone, the healthy rows stay owed."""
        if failed := self.hall.errors():
            assert self.on_env_error == "raise"
            assert set(failed) <= self.owing
            self.owing -= set(failed)
            self.shut |= set(failed)
            return
        self._seen(*self.hall.collect())

    @rule(data=st.data(), seed=st.none() | st.integers(0, 9))
    def reset(self, data: st.DataObject, seed: int | None) -> None:
        """A reset begins, once no reply is missing of the rows that it drops."""
        free = {e for e in self.everyone.tolist() if self.hall.ready(self.everyone[e : e + 1])}
        if not free - self._in_reset:
            return
        ids = self._some(data, free - self._in_reset)
        seeds = {e: None if seed is None else seed + e for e in ids.tolist()}
        self.hall.reset(ids, seeds)
        if self.hall.released is not None:
            self._seen(*self.hall.released)
        for chunk, released in self.hall.dropped:
            self._seen_chunk(chunk, released)
        self.owing |= seeds.keys()
        self.shut |= seeds.keys()
        self.resets.append(Reset(ids, seeds))

    def _done(self) -> list[Reset]:
        return [reset for reset in self.resets if self.hall.ready(reset.ids)]

    @precondition(lambda self: self._done())
    @rule(data=st.data())
    def finish_reset(self, data: st.DataObject) -> None:
        reset = self._done()[data.draw(st.integers(0, len(self._done()) - 1))]
        self.resets.remove(reset)
        failed = set(self.hall.errors(reset.ids))
        if failed:
            assert self.on_env_error == "raise"
            self.owing -= failed
            return
        batch, released = self.hall.collect(reset.ids)
        assert batch.env_ids.tolist() == reset.ids.tolist()
        assert batch.first.all()
        assert (batch.obs[:, 3] == 0).all()
        self._seen(batch, released)

    @precondition(lambda self: self.resets)
    @rule(data=st.data())
    def cancel_reset(self, data: st.DataObject) -> None:
        reset = self.resets.pop(data.draw(st.integers(0, len(self.resets) - 1)))
        self.hall.cancel(reset.ids)
        self.owing -= set(reset.ids.tolist())
        self.shut |= set(reset.ids.tolist())

    @rule()
    def publish(self) -> None:
        self.hall.publish()

    # -- what workers do ---------------------------------------------------------------------------------------

    @precondition(lambda self: any(worker.queue for worker in self.hall.workers))
    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([one for one in self.hall.workers if one.queue]))
        command = worker.queue[0]
        touched = command.env_ids.tolist()
        rows = command.length if isinstance(command, Unroll) else 1
        for env in worker.envs:
            env.fate = data.draw(FATES) if env.place[0] in touched else "runs"
            env.later = [data.draw(FATES) for _ in range(rows - 1)]
        FatedPolicy.fails[:] = [data.draw(st.integers(0, 9)) == 0 for _ in range(rows)] if rows > 1 else []
        before = [len(env.begun) for env in worker.envs]
        self.hall.work(worker)
        for env, count in zip(worker.envs, before):
            dropped = command.dropped  # decided long ago, and nobody's episode
            if env.begun and not count and worker.incarnation and not dropped:
                self._check_first_seed(env, worker, command.number)

    def _check_first_seed(self, env: FatedEnv, worker: FakeWorker, number: int) -> None:
        """The first episode of a replacement is never left to a generator that nobody seeded, if the env had seeds."""
        env_id = env.place[0]
        asked = self.hall.asked.get(number, {}).get(env_id)
        assert worker.seeds is not None
        assert env.begun[0] == (worker.seeds[env_id - worker.rows.start] if asked is None else asked)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.hall.lose(data.draw(st.sampled_from(self.hall.workers)))

    @rule(data=st.data())
    def is_due(self, data: st.DataObject) -> None:
        """To be renewed as planned."""
        if self.autoreset is not AutoresetMode.SAME_STEP:
            self.hall.waiting.due.add(data.draw(st.integers(0, len(self.hall.workers) - 1)))

    def _between_episodes(self) -> list[FakeWorker]:
        waiting = self.hall.waiting
        return [
            one
            for one in self.hall.workers
            if one.index in waiting.due and not one.queue and waiting.between_episodes(one.index)
        ]

    @precondition(lambda self: self._between_episodes())
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """Once nothing would be cut off; no row says so, and the next ones are of the new process."""
        self.hall.renew(data.draw(st.sampled_from(self._between_episodes())))

    @precondition(lambda self: self.hall.waiting.rows)
    @rule()
    def cannot_do_without_the_rows_of_those_that_wait(self) -> None:
        self.hall.waiting.give_up()

    # -- what must hold ----------------------------------------------------------------------------------------

    def _seen(self, batch: Batch, released: EventBatch | None) -> None:
        self.witness.batch(batch, released)
        ids = set(batch.env_ids.tolist())
        assert ids <= self.owing
        self.owing -= ids
        self.shut -= {e for e in ids if e in self.witness.running}
        if self.autoreset is AutoresetMode.DISABLED:
            self.shut |= {e for e in ids if e not in self.witness.running}

    def _seen_chunk(self, chunk: Chunk, released: Sequence[EventBatch]) -> None:
        self.witness.chunk(chunk, released)
        self.owing -= set(chunk.env_ids.tolist())

    @invariant()
    def it_is_known_what_is_owed(self) -> None:
        pool = self.hall.pool
        assert set(np.flatnonzero(pool.owes).tolist()) == self.owing
        assert pool.owed == len(self.owing)
        assert pool.ready_rows == sum(len(command.env_ids) for command in pool.ready)
        shut = [e for e, phase in enumerate(pool.phases) if phase not in (Phase.RUNNING, Phase.DUE)]
        assert pool.shut == len(shut)
        assert set(shut) - self.owing == self.shut - self.owing
        under_way: list[int] = [e for command in pool.ready for e in command.env_ids.tolist()]
        replied = [command for command in self.hall.chunks._under_way if command.replied]
        under_way += [e for command in replied for e in command.env_ids.tolist()]
        for worker in self.hall.workers:
            for command in worker.queue:
                if not command.dropped and command.of is None:
                    under_way += command.env_ids.tolist()
        kept = [c for commands in self.hall.waiting._kept.values() for c in commands]
        under_way += [env_id for command in kept for env_id in command.env_ids.tolist()]
        assert self.hall.waiting.rows == sum(len(command.env_ids) for command in kept)
        assert sorted(under_way) == sorted(self.owing)  # each once

    def teardown(self) -> None:
        """G8: `aclose` releases what ended and reports what runs as aborted."""
        if hasattr(self, "hall"):
            for released in self.hall.chunks.close():
                self.witness.events(released, released.number, last=True)
            last = self.hall.pool.close()
            self.witness.events(last, last.number, last=True)
            assert not self.witness.running
            if not self.owing:  # nothing more will begin, and nothing runs
                assert last.watermark == self.hall.pool.next_number * self.witness.num_envs


def histories(autoreset: AutoresetMode, on_env_error: Literal["raise", "reset"], count: int) -> None:
    kind = type("Machine", (PoolMachine,), {"autoreset": autoreset, "on_env_error": on_env_error})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=count,
            stateful_step_count=30,
            deadline=None,
            derandomize=count == HISTORIES,  # the suite's are the same each time
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("on_env_error", ["raise", "reset"])
@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_g06_g08_g11_hold_whatever_the_order(
    autoreset: AutoresetMode, on_env_error: Literal["raise", "reset"]
) -> None:
    histories(autoreset, on_env_error, HISTORIES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("on_env_error", ["raise", "reset"])
@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_g06_g08_g11_hold_in_a_thousand_orders(
    autoreset: AutoresetMode, on_env_error: Literal["raise", "reset"]
) -> None:
    """The same, at length, others in every run: `python -m pytest -m soak tests/aio_vecenv/test_pool.py`."""
    histories(autoreset, on_env_error, 1_000)


@pytest.mark.parametrize("autoreset", list(AutoresetMode))
def test_what_is_no_row_of_the_table_raises_and_changes_nothing(autoreset: AutoresetMode) -> None:
    """And every row leads where it says; how many envs accept only a reset is counted on the way."""
    shut = {Phase.NEVER, Phase.ENDED, Phase.FAILED, Phase.RESETTING}
    legal = moves(autoreset)
    for before, event in product(Phase, Event):
        pool = Hall(2, 1, autoreset, "raise").pool
        pool.phases[0] = before
        pool.shut = (before in shut) + 1
        if (before, event) in legal:
            pool._move(0, event)
            assert pool.phases == [legal[before, event], Phase.NEVER]
        else:
            with pytest.raises(IllegalMove, match=rf"env 0 is {before.name}: {event.name} may not happen"):
                pool._move(0, event)
            assert pool.phases == [before, Phase.NEVER]
        assert pool.shut == sum(phase in shut for phase in pool.phases)


@pytest.mark.parametrize(
    ("autoreset", "after"),
    [
        (AutoresetMode.NEXT_STEP, Phase.DUE),
        (AutoresetMode.SAME_STEP, Phase.RUNNING),
        (AutoresetMode.DISABLED, Phase.ENDED),
    ],
)
def test_the_rules_of_a_row(autoreset: AutoresetMode, after: Phase) -> None:
    """Spelled out: what the table says of sends, ends, errors, losses and resets."""
    table = moves(autoreset)
    everywhere = set(Phase)
    assert {phase for phase in everywhere if (phase, Event.SENT) in table} == {Phase.RUNNING, Phase.DUE}
    assert {table[phase, Event.RESET] for phase in everywhere} == {Phase.RESETTING}
    assert table[Phase.RUNNING, Event.END] is after
    assert table[Phase.DUE, Event.END] is (Phase.ENDED if after is Phase.ENDED else Phase.DUE)
    for phase in everywhere:  # only a running episode is cut off
        lost = table[phase, Event.LOST]
        assert lost is (Phase.DUE if phase is Phase.RUNNING else phase)
    for phase in (Phase.RUNNING, Phase.DUE, Phase.RESETTING):
        assert table[phase, Event.ERROR] is Phase.FAILED
        assert table[phase, Event.CANCELLED] is Phase.RESETTING
    for phase in (Phase.NEVER, Phase.ENDED, Phase.FAILED):  # nothing is under way
        for event in (Event.BEGUN, Event.END, Event.ERROR, Event.RETRIED, Event.CANCELLED):
            assert (phase, event) not in table


def test_a_worker_that_dies_in_a_reset_does_it_again_and_no_row_speaks_of_the_loss() -> None:
    """Its neighbour, which only ran, begins with its next row, and that says why."""
    hall = Hall(2, 1, AutoresetMode.NEXT_STEP, "raise")
    worker, both, first = hall.workers[0], np.arange(2), np.arange(1)
    hall.reset(both, {0: 1, 1: 2})
    hall.work(worker)
    hall.collect(both)
    hall.reset(first, {0: 5})
    hall.lose(worker)
    assert hall.pool.phases == [Phase.RESETTING, Phase.DUE]
    hall.work(worker)
    batch, _ = hall.collect(first)
    assert "worker_lost" not in batch.infos
    assert worker.envs[0].begun == [5]
    hall.send(both)
    hall.work(worker)
    batch, _ = hall.collect()
    assert batch.first.tolist() == batch.truncations.tolist() == [False, True]
    assert batch.infos["worker_lost"].tolist() == [None, "died"]
    assert [(one.env_id, one.outcome) for one in batch.episodes] == [(1, "aborted")]


def test_a_reset_whose_worker_is_lost_twice_has_the_seed_of_the_second_replacement() -> None:
    """It is told again with what its own incarnation derives, not with what the one before it was to have."""
    hall = Hall(1, 1, AutoresetMode.NEXT_STEP, "raise")
    ids, worker = np.arange(1), hall.workers[0]
    hall.reset(ids, {0: 7})
    hall.work(worker)
    hall.collect(ids)
    hall.reset(ids, {0: None})
    hall.lose(worker)
    hall.lose(worker)
    hall.work(worker)
    _, released = hall.collect(ids)
    assert released is not None
    begun = [event.seed for event in released.events if isinstance(event, EpisodeStarted)]
    assert begun == worker.envs[0].begun == [derive_seed(7, 0, 2)]


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), mode=st.sampled_from(list(AutoresetMode)))
def test_the_order_in_which_replies_arrive_changes_nothing(seed: int, mode: AutoresetMode) -> None:
    """The same rows give the same batches and events."""

    def play(shuffled: bool) -> list[Any]:
        fates, order = np.random.default_rng(seed), np.random.default_rng(seed + shuffled)
        hall, everyone = Hall(4, 3, mode, "reset"), np.arange(4)
        seen: list[Any] = []
        ended: set[int] = set(range(4))
        for _ in range(12):
            if mode is not AutoresetMode.DISABLED:
                ended = ended if not seen else set()
            if ended:
                ids = np.array(sorted(ended))
                hall.reset(ids, {e: e for e in ended})
                for worker in hall.workers:
                    while worker.queue:
                        hall.work(worker)
                seen.append(hall.collect(ids))
            hall.send(everyone)
            chosen = [
                [str(fates.choice(["runs", "truncates", "raises"])) for _ in w.envs] for w in hall.workers
            ]
            for index in order.permutation(3) if shuffled else range(3):
                worker = hall.workers[index]
                for env, fate in zip(worker.envs, chosen[index]):
                    env.fate = fate  # type: ignore[assignment]
                while worker.queue:  # a reset that failed is tried again
                    hall.work(worker)
            batch, released = hall.collect()
            ended = {event.env_id for event in batch.episodes if event.outcome != "aborted"}
            seen.append((batch, released))
        return seen

    assert repr(play(False)) == repr(play(True))


def test_episodes_open_and_close_once_and_their_sums_are_those_of_their_rows() -> None:
    """Against a slow twin: rows by slices and by ids, some of which were not executed, and one that is in no batch."""
    rng = np.random.default_rng(1)
    book = EpisodeTracker(4)
    twin: dict[int, list[float]] = {}
    for call in range(200):
        for env_id in range(4):
            if not book.runs(env_id) and rng.random() < 0.5:
                started = book.begin(env_id, call, call, ("task", call), env_id)
                assert (started.order, started.version) == (4 * call + env_id, call)
                twin[env_id] = []
        rows: Any = slice(1, 3) if rng.random() < 0.5 else np.array([0, 2, 3])
        ids = np.arange(4)[rows]
        rewards = rng.integers(0, 9, len(ids)).astype(np.float64)
        skipped = [int(e) for e in ids if int(e) not in twin or rng.random() < 0.2]
        rewards[np.isin(ids, skipped)] = 0.0
        book.executed(rows, rewards, skipped)
        for env_id, reward in zip(ids.tolist(), rewards.tolist()):
            if env_id not in skipped:
                twin[env_id].append(reward)
        for env_id in list(twin):
            if rng.random() < 0.1:
                book.executed_one(env_id, 3.0)
                twin[env_id].append(3.0)
            if rng.random() < 0.3:
                index = book.index(env_id)
                ended = book.end(env_id, "terminated", {"x": 1}, call)
                mine = twin.pop(env_id)
                assert (ended.length, ended.episode_return) == (len(mine), sum(mine))
                assert (ended.index, ended.seed, ended.batch) == (index, env_id, call)
        assert book.running == sorted(twin)
    assert book.outcomes["terminated"] > 50


def test_the_watermark_waits_for_what_runs_and_for_what_is_about_to_begin() -> None:
    book = EpisodeTracker(3)
    assert book.watermark(5) == 15  # nothing is open
    book.about_to_begin(2, 4)
    assert book.watermark(5) == 14
    book.begin(1, 1, 0, None, None)
    assert book.watermark(5) == 4
    book.about_to_begin(1, 5)  # while it runs its own order counts
    assert book.watermark(6) == 4
    book.end(1, "aborted", {}, 0)
    assert book.watermark(6) == 14
    book.forget(2)  # it did not begin
    assert book.watermark(6) == 18
