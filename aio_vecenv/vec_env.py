"""`AsyncVecEnv`: the object a user holds."""
# async: checks the loop, thread and process of every call; rows: `core.pool`, workers: `runtime.supervisor`, waiting:
# `runtime.collector`

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .backends.base import Backend
from .backends.inline import InlineBackend
from .backends.process import ProcessBackend
from .core import factories, options
from .core import framing as wire
from .core.actions import ActionWriter
from .core.assignment import EnvIds, seeds_for
from .core.batch import Batch, RunningEpisode
from .core.chunks import Chunks
from .core.env_state import EnvState
from .core.infos import batch_infos
from .core.layout import SharedMemory, pick_rows
from .core.limits import RenewAfter, RestartBudget, Timeouts
from .core.options import Settings
from .core.policy import Policy, PolicyMaker
from .core.pool import JoinInfos, Pool
from .core.statistics import Statistics
from .core.updates import Apply
from .errors import BusyError, ClosedError, VecEnvError, WrongLoopError
from .memory import check_room
from .runtime.calls import Asking, Calls
from .runtime.collector import Collector
from .runtime.env_states import EnvStates
from .runtime.events import EventHub, EventStream
from .runtime.opening import Opening
from .runtime.publisher import Receipt
from .runtime.renewal import Renewal, renewal_of
from .runtime.unrolls import Acting, Unrolls, check_min_envs

__all__ = ["AsyncVecEnv", "EnvFactory"]

EnvFactory = Callable[[], Any] | Callable[[int], Any]

_get_running_loop, _thread_id, _process_id = asyncio._get_running_loop, threading.get_ident, os.getpid
_NOWHERE = object()
_TIMEOUTS = Timeouts()
_BUDGET = RestartBudget()


# `Acting`: the policy and unrolls; `Asking`: call, get_attr, set_attr, apply, render
class AsyncVecEnv(Acting, Asking):
    """Many Gymnasium environments, stepped in worker processes, from asyncio.

    Args:
        envs: an env id, an `EnvSpec`, one factory, or a list of factories (their spaces must agree). A factory may
            return a Gymnasium `VectorEnv`: its sub-envs are the rows. A factory with one required positional parameter
            gets its index, 0, 1, 2, … Every call must make a new env. Factories are sent by cloudpickle.
        num_envs: how many envs to make (default: 1); not with a list of factories.
        num_workers: default: the CPUs this process may use, at most one per env. "per env": a process for each, where
            envs share module variables or the generators of `random` and numpy.
        backend: "process", "inline" (no processes: for pdb and for very cheap envs), or a `Backend`.
        autoreset: Gymnasium's `AutoresetMode`.
        info: "all", "episode" (only at the start and the end of an episode), or names. Filtered in the worker.
        copy: whether `Batch.obs` is the caller's own; else views, valid until the next `send` or `reset` of the envs.
        shared_memory: "auto" decides per observation leaf, True insists (ValueError), False never.
        timeouts: seconds, see `Timeouts`.
        restart: how many lost workers may be replaced, see `RestartBudget`; None: none.
        renew_after: when a worker gives way to a fresh process, between the episodes of its envs: after so many
            episodes, or see `RenewAfter`. Not with autoreset SAME_STEP, VectorEnvs, backend "inline" (ValueError).
        on_env_error: "raise", or "reset": the env is reset, and its row says so (info `env_error`).
        check: "finite" also refuses observations with NaN or infinities.
        spares: warm interpreters kept for replacements.
        spaces: "equivalent": the envs' observation spaces may differ in their bounds, not in structure, shape or
            dtype; `single_observation_space` is that of env 0.
        policy: what `act` and unrolls act with, see `Policy`; it is pickled here and now. Or a function that makes it,
            called while opening with the spaces of one env, (observation_space, action_space); it may return None: no
            policy, and no unrolls.
        unroll: the most rows of an unroll; each worker then has a copy of the policy. Needs `policy`, autoreset
            NEXT_STEP, single envs, and observations and actions that lie in shared memory (ValueError); MemoryError,
            with the most that there is room for.
        casting: "safe": observations and actions lose nothing, or are refused; "unsafe", as Gymnasium's and
            Stable-Baselines3's vec envs do it: observations are cast to the dtype of their space, with one warning,
            and actions reach the envs as they were given.

    Constructing starts nothing. Use `async with`, or `open` and `aclose`. It belongs to the event loop that opens it;
    `broadcast` alone may be called from any thread.
    """

    def __init__(
        self,
        envs: str | gym.envs.registration.EnvSpec | EnvFactory | Sequence[EnvFactory],
        num_envs: int | None = None,
        *,
        num_workers: int | Literal["per env"] | None = None,
        backend: Literal["process", "inline"] | Backend = "process",
        autoreset: AutoresetMode = AutoresetMode.NEXT_STEP,
        info: Literal["all", "episode"] | Sequence[str] = "all",
        copy: bool = True,
        shared_memory: SharedMemory = "auto",
        timeouts: Timeouts = _TIMEOUTS,
        restart: RestartBudget | None = _BUDGET,
        renew_after: RenewAfter | int | None = None,
        on_env_error: Literal["raise", "reset"] = "raise",
        check: Literal["finite"] | None = None,
        spares: int = 0,
        spaces: Literal["equal", "equivalent"] = "equal",
        policy: Policy | PolicyMaker | None = None,
        unroll: int | None = None,
        casting: Literal["safe", "unsafe"] = "safe",
    ) -> None:
        self._closed = True  # until opened: makes __del__ safe if what follows raises
        makers = factories.resolve(envs, num_envs)
        self.num_envs = len(makers)
        self.num_workers = options.workers_for(num_workers, self.num_envs)
        autoreset = AutoresetMode(autoreset)
        options.one_of("on_env_error", on_env_error, ("raise", "reset"))
        options.one_of("check", check, (None, "finite"))
        options.one_of("shared_memory", shared_memory, ("auto", True, False))
        options.one_of("spaces", spaces, ("equal", "equivalent"))
        options.one_of("casting", casting, ("safe", "unsafe"))
        if isinstance(backend, str):
            options.one_of("backend", backend, ("process", "inline"))
        settings = Settings(autoreset, options.info_filter(info), check, on_env_error, spaces, casting)
        warm = options.whole("spares", spares, 0)
        make = _backend_maker(backend, warm, self.num_workers)
        inline = backend == "inline" or isinstance(backend, InlineBackend)
        renewal = renewal_of(renew_after, autoreset, inline=inline)
        self._unrolls = Unrolls(policy, unroll, autoreset)
        self._opening = Opening(
            makers,
            self.num_workers,
            make,
            settings,
            shared_memory,
            copy,
            timeouts,
            restart,
            renewal,
            self._unrolls,
        )
        self._opened = False
        # the loop it belongs to, while it is open: what `send` and `recv` ask first, before `_check_open` says why not
        self._home: object = _NOWHERE
        self._thread = 0
        self._pid = os.getpid()

    # -- opening and closing -------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Construct and open. Cancelling closes what was started."""
        return await cls(*args, **kwargs).__aenter__()

    async def __aenter__(self) -> Self:
        """Start the workers and make the envs. If anything fails or is cancelled, stops everything, then raises."""
        if self._opened:
            raise ClosedError("this vec env was opened already: construct a new one")
        self._opened = True
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._hub = EventHub()
        self._closing: asyncio.Task[None] | None = None
        # The loop holds the supervisor, and nothing there holds this object: dropping it ends it all, see __del__.
        self._supervisor = self._opening.supervisor()
        try:
            await self._start()
        except BaseException:
            self._closing = self._loop.create_task(self._supervisor.close(), name="close vec env")
            with suppress(VecEnvError, ExceptionGroup):  # the first failure is the one to report
                await self._end()
            raise
        self._closed = False
        self._home = self._loop
        return self

    async def _start(self) -> None:
        opening, supervisor, settings = self._opening, self._supervisor, self._opening.settings
        agreed = await opening.agree(supervisor)
        spaces, assignment = agreed.spaces, agreed.assignment
        self._assignment, self.num_envs = assignment, assignment.num_envs
        self.single_observation_space = spaces.observation
        self.single_action_space = spaces.action
        memory = opening.allocate(supervisor, agreed)  # first: it says what is missing where there is no room
        self.observation_space = batch_space(spaces.observation, self.num_envs)
        self.action_space = batch_space(spaces.action, self.num_envs)
        self.metadata = {**spaces.metadata, "autoreset_mode": settings.autoreset}
        self.spec = spaces.spec
        self._pool = Pool(assignment, memory.slab, agreed.obs, settings.autoreset, copy=opening.copy)
        self._calls = Calls(supervisor, assignment)
        self._actions = ActionWriter(agreed.action, memory.slab, as_given=settings.casting == "unsafe")
        self._states = EnvStates(supervisor, self._calls.count(None))
        chunks = Chunks(self._pool, assignment, memory.slab, agreed.obs, agreed.action, copy=opening.copy)
        self._collector = Collector(
            self._pool, chunks, supervisor, self._calls, self._states, self._hub,
            tries_again=settings.on_env_error == "reset", whole=assignment.whole,
            renewal=None if opening.renew_after is None
            else Renewal(opening.renew_after, self._pool, assignment, supervisor, self._calls),
        )  # fmt: skip
        await supervisor.attach(memory, self._collector)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except (VecEnvError, ExceptionGroup) as failure:
            if error is None:
                raise
            error.add_note(f"and closing the vec env: {type(failure).__name__}: {failure}")

    async def aclose(self) -> None:
        """Close all envs and workers. Always closes everything; an error means that an env was not closed properly:

        EnvError if its close() raised, WorkerTimeout if a worker did not finish within the grace and was killed.
        Can be called twice, at once from several tasks, after any failure, and in a cancelled task: cancelling
        skips the grace, never the closing.
        """
        if self._closed and getattr(self, "_closing", None) is None:
            return
        self._check_owner()
        if self._closing is None:
            self._closed = True
            self._home = _NOWHERE
            self._closing = self._loop.create_task(self._supervisor.close(), name="close vec env")
            self._collector.failed(ClosedError("the vec env was closed"))
            try:
                for released in self._collector.chunks.close():
                    self._hub.release(released)
                self._hub.release(self._pool.close())
            finally:
                self._hub.close()
                await self._end()
        elif not self._closing.done():
            await self._end()

    async def _end(self) -> None:
        """Wait for the closing under way. Cancelling cuts its grace short, and is raised once all is closed."""
        assert self._closing is not None
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._supervisor.hurry()
            while not self._closing.done():  # milliseconds, however often this task is cancelled meanwhile
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([self._closing])
            if not self._closing.cancelled():
                self._closing.exception()  # mark it retrieved: the cancellation is what is raised
            raise

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and os.getpid() == self._pid:
            self._supervisor.abandon()
            unclosed = f"{self!r} was not closed: use `async with`, or aclose()"
            warnings.warn(unclosed, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<AsyncVecEnv {self.num_envs} envs in {self.num_workers} workers, {state}>"

    @property
    def closed(self) -> bool:
        """Whether it is not open: not yet, or no more."""
        return self._closed

    @property
    def _backend(self) -> Backend:
        return self._supervisor.backend

    # -- stepping --------------------------------------------------------------------------------------------------

    async def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        env_ids: Sequence[int] | EnvIds | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset envs; (observations, infos), rows in the order of `env_ids` (default: all).

        An int seed gives env i the seed `seed + i`; a sequence gives each row its own; None does not reseed. Waits
        for the replies that its envs owe and discards those rows, not their events. Unfinished episodes: aborted.

        Raises EnvError (an ExceptionGroup if several); the healthy envs' rows stay owed, for `recv`. After a cancelled
        reset those envs accept only reset; its replies are dropped.
        """
        batch = await self._reset(seed, options, env_ids)
        return batch.obs, batch.infos

    async def _reset(
        self,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        env_ids: Sequence[int] | EnvIds | None = None,
        join: JoinInfos | None = None,
    ) -> Batch:
        """The batch of a reset; `join` gives its infos their shape, instead of Gymnasium's."""
        self._check_open()
        ids = self._assignment.env_ids(env_ids)
        seeds = seeds_for(seed, ids)
        self._collector.check_free(ids)
        packed = None if options is None else _packed(options, len(self._assignment.by_worker(np.sort(ids))))
        batch = await self._collector.reset(ids, seeds, packed, join or batch_infos)
        return _in_order(batch, ids, self.single_observation_space, joined=join is None)

    def send(self, actions: Any, env_ids: Sequence[int] | EnvIds | None = None) -> None:
        """Send one action to each env of `env_ids` (default: all); never waits.

        Raises BadActions or BusyError before anything is sent; TypeError or ValueError if actions that travel pickled
        cannot, or find no memory.
        """
        if (
            _get_running_loop() is not self._home
            or self._collector.over is not None
            or _thread_id() != self._thread
            or _process_id() != self._pid
        ):
            self._check_open()
        pool = self._pool
        selection = self._assignment.select(env_ids)
        if pool.owed or pool.shut or self._assignment.whole:
            pool.check_send(selection)
        renewal = self._collector.renewal
        if renewal is not None and renewal.busy:
            selection = renewal.part(selection, resetting=self._collector.resetting)
        pickled = self._actions.put(actions, len(selection.env_ids), selection.given)
        commands = pool.commands(selection, pickled)
        if pickled:
            check_room("the actions", sum(len(command.payload) for command in commands))
        pool.sent(selection)
        if renewal is not None and renewal.busy:
            commands = renewal.keep(commands)
        self._supervisor.post(commands)

    async def recv(self, min_envs: int | None = None) -> Batch:
        """The envs whose replies are in, at least `min_envs` of them (default, and cap: all that owe one).

        Raises EnvError (an ExceptionGroup if several) if an env raised; the healthy rows stay owed, and the next
        `recv` returns them. Raises ValueError if nothing is owed, BusyError if another task is in `recv`.
        Cancelling loses nothing: the replies stay owed.
        """
        if (
            _get_running_loop() is not self._home
            or self._collector.over is not None
            or _thread_id() != self._thread
            or _process_id() != self._pid
        ):
            self._check_open()
        if min_envs is not None:
            check_min_envs(min_envs)
        return await self._collector.recv(min_envs)

    async def step(self, actions: Any) -> Batch:
        """`send(actions)`, then `recv()` of all. Cancelling loses nothing: the replies stay owed, for `recv`."""
        self.send(actions)
        return await self._collector.recv()

    # -- telling and asking --------------------------------------------------------------------------------------

    def broadcast(self, payload: Any, *, topic: str = "default", apply: Apply = "reset") -> Receipt:
        """Send `payload` to every worker; never waits; allowed from any thread, at any time.

        Every episode that begins after it returned begins under this payload or a newer one of its topic, and every
        step sent after it runs after its worker has taken it. Envs get it in `on_broadcast(payload, version)`:
        apply="reset": each just before its next reset; "now": all before their worker's next command.

        Raises TypeError or ValueError if the payload cannot be pickled or finds no memory; nothing was published.
        """
        if self._closed:
            raise ClosedError("the vec env is closed, or not open yet")
        if os.getpid() != self._pid:
            raise ClosedError("this is a fork of the process that opened the vec env")
        if self._collector.over is not None:
            raise self._collector.over
        if apply not in ("reset", "now"):
            raise ValueError(f"apply is {apply!r}, not 'reset' or 'now'")
        return self._supervisor.channel.publish(payload, topic, apply)

    async def get_state(self) -> EnvState:
        """The state that lives in the envs and their wrappers, merged over all envs: plain data by wrapper, {} if none.

        Running statistics such as those of Gymnasium's `NormalizeObservation` and `NormalizeReward` are known; others
        have `get_state()`, `set_state(state)`, `merge_states(states)` and, if merging counts something,
        `split_state(state, parts)`. From now on replaced workers begin with it. Errors and cancelling as for `call`.
        """
        return await self._states.get(self.apply)

    async def set_state(self, state: Mapping[str, Any], *, frozen: bool = False, anew: bool = False) -> None:
        """Give all envs a state that `get_state` returned, here or elsewhere; each gets its share of what is counted.

        `anew`: all envs are reset next; what wrappers sum up over an episode begins at 0, too (`NormalizeReward`).
        `frozen`: statistics stay what they are from now on (`update_running_mean = False`), as for judging. Raises
        LookupError if no env has a wrapper that it is of, ValueError if it does not fit; the rest as for `call`.
        """
        await self._states.set(self.apply, state, frozen=frozen, anew=anew)

    def events(self) -> EventStream:
        """A stream of `EpisodeStarted` and `Episode` from now on: lossless, in order; several may be open."""
        self._check_open(alive=False)
        return self._hub.open()

    def observations(self) -> Any:
        """The newest observation of every env, batched; zeros for an env that was never reset. Not while any owes."""
        self._check_open()
        if self._pool.owed:
            raise BusyError("observations() while envs owe a reply: recv() first")
        return self._pool.observations()

    def abort(self, env_ids: Sequence[int] | EnvIds) -> None:
        """Kill the workers of these envs now, without waiting for the timeout; then as if they had died."""
        self._check_open()
        ids = self._assignment.env_ids(env_ids)
        self._supervisor.abort(
            [worker for worker, _ in self._assignment.by_worker(np.sort(ids))], "was aborted by the caller"
        )

    def running_episode(self, env_id: int) -> RunningEpisode | None:
        """The env's episode so far; None where none runs. Raises IndexError if there is no such env."""
        self._check_open(alive=False)
        if not 0 <= env_id < self.num_envs:
            raise IndexError(f"env {env_id}: there are {self.num_envs}")
        return self._pool.episodes.so_far(env_id)

    def statistics(self) -> Statistics:
        """A frozen snapshot of what was counted and timed so far."""
        self._check_open(alive=False)
        return self._supervisor.statistics(self._pool.steps, self._pool.episodes.outcomes)

    # -- inside --------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """From now on the loop turns in this thread. For `adapters.driver`, which owns the loop that it turns."""
        self._thread = threading.get_ident()
        self._supervisor.adopt()

    def _check_owner(self) -> None:
        if os.getpid() != self._pid:
            raise ClosedError("this is a fork of the process that opened the vec env, which alone may use it")
        running = asyncio._get_running_loop()
        if threading.get_ident() != self._thread or (running is not None and running is not self._loop):
            raise WrongLoopError(
                "this vec env was opened in another event loop or thread: only broadcast() may be called from there"
            )

    def _check_open(self, *, alive: bool = True) -> None:
        if self._closed:
            raise ClosedError(
                "the vec env is closed" if self._opened else "the vec env is not open yet: use `async with`"
            )
        self._check_owner()
        if alive and self._collector.over is not None:
            raise self._collector.over

    async def _ask(
        self, op: str, name: str, env_ids: Sequence[int] | EnvIds | None, values: Callable[[list[int]], Any]
    ) -> tuple[Any, ...]:
        self._check_open()
        return await self._calls.ask(op, name, env_ids, values)

    def _count(self, env_ids: Sequence[int] | EnvIds | None) -> int:
        return self._calls.count(env_ids)


def _packed(options: Any, workers: int) -> bytes:
    """The options of a reset, for so many workers. Raises TypeError or MemoryError."""
    if not isinstance(options, dict):
        raise TypeError(f"options is {options!r:.80}, not a dict; nothing was sent")
    packed = wire.dumps(options, "options")
    check_room("the options", len(packed), workers)
    return packed


def _backend_maker(choice: str | Backend, spares: int, num_workers: int) -> Callable[[], Backend]:
    if not isinstance(choice, str):
        return lambda: choice
    return InlineBackend if choice == "inline" else partial(ProcessBackend, spares, num_workers)


def _in_order(batch: Batch, ids: EnvIds, space: gym.Space[Any], *, joined: bool) -> Batch:
    """The batch of a reset, its rows in the order of `ids`; `joined`: its infos have rows, too."""
    if (batch.env_ids == ids).all():
        return batch
    order = np.searchsorted(batch.env_ids, ids)
    infos = _take_infos(batch.infos, order) if joined else batch.infos
    return batch._replace(env_ids=ids, obs=pick_rows(space, batch.obs, order), infos=infos)


def _take_infos(infos: dict[str, Any], order: NDArray[np.intp]) -> dict[str, Any]:
    return {k: _take_infos(v, order) if isinstance(v, dict) else v[order] for k, v in infos.items()}
