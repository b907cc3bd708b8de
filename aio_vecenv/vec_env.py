"""`AsyncVecEnv`: the object a user holds."""
# async: checks and waits here; who owes what is in `ledger`, the workers are in `crew`

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .backends.base import Backend
from .core import factories, options
from .core import framing as wire
from .core.actions import ActionPort
from .core.assignment import Deal, EnvIds, Share, deal_out, rows_of, seeds_for
from .core.batch import Batch, RunningEpisode
from .core.env_state import EnvState
from .core.framing import Kind
from .core.layout import SharedMemory, Slab, SpaceTree, layout, pick_rows
from .core.limits import RestartBudget, RestartLog, Timeouts
from .core.log_levels import current
from .core.messages import ERROR, URGENT, WARNING, Reset, Setup, Spaces, Step, encode, failed
from .core.options import Settings
from .core.policy import Policy
from .core.pool import Command, Ledger
from .core.report import ErrorReport, raise_all, rebuild
from .core.spaces import same_space
from .core.statistics import Percentiles, Recorder, Statistics, WorkerStatistics
from .core.updates import Apply
from .errors import BadActions, BusyError, ClosedError, SpaceMismatch, VecEnvError, WrongLoopError
from .memory import check_room
from .runtime.calls import Calls, whole_workers
from .runtime.env_states import EnvStates
from .runtime.events import EventHub, EventStream
from .runtime.policies import ParentPolicy
from .runtime.publisher import Receipt
from .runtime.supervisor import Boss, Crew, Shift, derive_seed

__all__ = ["AsyncVecEnv", "EnvFactory"]

EnvFactory = Callable[[], Any] | Callable[[int], Any]

_get_running_loop, _thread_id, _process_id = asyncio._get_running_loop, threading.get_ident, os.getpid
_NOWHERE = object()
_STEP, _CALL = Kind.STEP, Kind.CALL
_TIMEOUTS = Timeouts()
_BUDGET = RestartBudget()


class AsyncVecEnv:
    """Many Gymnasium environments, stepped in worker processes, from asyncio.

    Args:
        envs: an env id, an `EnvSpec`, one factory, or a list of factories (their spaces must agree). A factory may
            return a Gymnasium `VectorEnv`: its sub-envs are the rows. One whose one positional parameter has no default
            is given its index, 0, 1, 2, … Each must make a new env. They travel by cloudpickle.
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
        on_env_error: "raise", or "reset": the env begins a new episode, its row says so (info `env_error`).
        check: "finite" also refuses observations with NaN or infinities.
        spares: warm interpreters kept for replacements.
        spaces: "equivalent": the envs' observation spaces may differ in their bounds, not in structure, shape or
            dtype; `single_observation_space` is that of env 0.
        policy: what `act` acts with, see `Policy`; it is pickled here and now.
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
        on_env_error: Literal["raise", "reset"] = "raise",
        check: Literal["finite"] | None = None,
        spares: int = 0,
        spaces: Literal["equal", "equivalent"] = "equal",
        policy: Policy | None = None,
        casting: Literal["safe", "unsafe"] = "safe",
    ) -> None:
        self._closed = True  # until opened: makes __del__ safe if what follows raises
        self._factories = factories.resolve(envs, num_envs)
        self.num_envs = len(self._factories)
        self.num_workers = options.workers_for(num_workers, self.num_envs)
        autoreset = AutoresetMode(autoreset)
        options.one_of("on_env_error", on_env_error, ("raise", "reset"))
        options.one_of("check", check, (None, "finite"))
        options.one_of("shared_memory", shared_memory, ("auto", True, False))
        options.one_of("spaces", spaces, ("equal", "equivalent"))
        options.one_of("casting", casting, ("safe", "unsafe"))
        if isinstance(backend, str):
            options.one_of("backend", backend, ("process", "inline"))
        self._settings = Settings(autoreset, options.info_filter(info), check, on_env_error, spaces, casting)
        self._backend_choice, self._spares = backend, options.whole("spares", spares, 0)
        self._shared_memory, self._copy = shared_memory, copy
        self._timeouts, self._budget = timeouts, restart
        self._policy = None if policy is None else ParentPolicy(policy)
        self._opened = False
        # the loop it belongs to, while all is well: what `send` and `recv` ask first, before `_check_open` says why not
        self._home: object = _NOWHERE
        self._thread = 0
        self._pid = os.getpid()

    # -- opening and closing -------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Construct and open. Cancelling closes what was started."""
        return await cls(*args, **kwargs).__aenter__()

    async def __aenter__(self) -> Self:
        """Start the workers and make the envs. Raises what went wrong, after stopping everything. Cancelling too."""
        if self._opened:
            raise ClosedError("this vec env was opened already: construct a new one")
        self._opened = True
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._hub = EventHub()
        self._seed: list[int | None] = []
        self._restarts: list[int] = []
        self._receiving = False
        self._in_reset: set[int] = set()
        self._waiter: asyncio.Future[None] | None = None
        self._need = 0
        self._watchers: list[asyncio.Future[None]] = []
        self._dropped: set[int] = set()
        self._warnings: dict[
            tuple[str, ...], str
        ] = {}  # what to warn of, by what it is about; "" once that was said
        self._retried = 0  # errors that on_env_error="reset" counted against the restart budget
        self._closing: asyncio.Task[None] | None = None
        self._log = RestartLog(self._budget)
        self._recorder = Recorder(self.num_workers, time.monotonic())
        self._backend = self._make_backend()
        # The loop holds the crew, the crew does not hold its boss: dropping the vec env ends it all, see __del__.
        boss: Boss = weakref.proxy(self)
        self._crew = Crew(self._backend, self._setups(), boss, self._timeouts, self._log, self._recorder)
        try:
            self._calls = Calls(self._crew)
            await self._open_crew()
        except BaseException:
            self._closing = self._loop.create_task(self._shut(), name="close vec env")
            with suppress(VecEnvError, ExceptionGroup):  # what went wrong first is what there is to tell
                await self._end()
            raise
        self._closed = False
        if self._crew.failure is None:
            self._home = self._loop
        return self

    def _make_backend(self) -> Backend:
        if self._backend_choice == "inline":
            from .backends.inline import InlineBackend

            return InlineBackend()
        if self._backend_choice == "process":
            from .backends.process import ProcessBackend

            return ProcessBackend(self._spares, self.num_workers)
        return self._backend_choice

    def _setups(self) -> list[Setup]:
        logs = current()
        return [
            Setup(self._factories[run.start : run.stop], list(run), self._settings, self._shared_memory, logs)
            for run in deal_out(self.num_envs, self.num_workers)
        ]

    async def _open_crew(self) -> None:
        made = await self._crew.make()
        self._spaces = _agree(made, [shift.setup.env_ids[0] for shift in self._crew.shifts], self._settings)
        self._deal = Deal([sum(spaces.rows) for spaces in made], whole=self._spaces.vectorised)
        self.num_envs = self._deal.num_envs
        self._seed = [None] * self.num_envs
        self._restarts = [0] * self.num_workers
        obs = SpaceTree(self._spaces.observation, self._shared_memory)
        action = SpaceTree(self._spaces.action)
        if self._spaces.vectorised:
            _check_shared(obs, action, self._shared_memory)
        same_step = self._settings.autoreset is AutoresetMode.SAME_STEP
        fields, size_bytes = layout(obs, action, self.num_envs, final_obs=same_step)
        slab = self._slab = Slab(self._backend.allocate(size_bytes), fields, obs, action)
        self.single_observation_space = self._spaces.observation
        self.single_action_space = self._spaces.action
        if self._policy is not None:
            self._policy.open(self._spaces.observation, self._spaces.action, self._deal)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**self._spaces.metadata, "autoreset_mode": self._settings.autoreset}
        self.spec = self._spaces.spec
        self._ledger = Ledger(self.num_envs, slab, obs, self._settings.autoreset, copy=self._copy)
        self._port = ActionPort(action, slab, as_given=self._settings.casting == "unsafe")
        self._states = EnvStates(self._crew, len(self._factories) if self._deal.whole else self.num_envs)
        self._crew.channel.mark = slab.mark
        await self._crew.attach(self._deal.rows, self.num_envs, fields, size_bytes)
        stock = getattr(self._backend, "stock", None)
        if stock is not None:
            stock()

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
        """Close all envs and workers. Always closes; an error from it means that an env was not closed in grace:

        EnvError if its close() raised, WorkerTimeout if a worker was killed for not coming to it in time.
        Can be called twice, at once from several tasks, after any failure, and in a cancelled task: cancelling
        skips the grace, never the closing.
        """
        if self._closed and getattr(self, "_closing", None) is None:
            return
        self._check_owner()
        if self._closing is None:
            self._closed = True
            self._home = _NOWHERE
            self._closing = self._loop.create_task(self._shut(), name="close vec env")
            self._end_calls(ClosedError("the vec env was closed"))
            try:
                self._hub.release(self._ledger.close())
            finally:
                self._hub.close()
                await self._end()
        elif not self._closing.done():
            await self._end()

    async def _shut(self) -> None:
        try:
            await self._crew.close()
        finally:
            if hasattr(self, "_slab"):
                self._slab.release()

    async def _end(self) -> None:
        """Wait for the closing under way. Cancelling cuts its grace short, and is raised once all is closed."""
        assert self._closing is not None
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._crew.hurry()
            while not self._closing.done():  # milliseconds, however often this task is cancelled meanwhile
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([self._closing])
            if not self._closing.cancelled():
                self._closing.exception()  # seen: the cancellation is what there is to tell
            raise
        finally:
            for name in ("_ledger", "_port"):  # their views keep the block, and Python's mapping a descriptor
                vars(self).pop(name, None)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and os.getpid() == self._pid:
            self._crew.abandon()
            warnings.warn(
                f"{self!r} was not closed: use `async with`, or aclose()",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<AsyncVecEnv {self.num_envs} envs in {self.num_workers} workers, {state}>"

    @property
    def closed(self) -> bool:
        """Whether it is not open: not yet, or no more."""
        return self._closed

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
        self._check_open()
        ids = self._deal.env_ids(env_ids)
        seeds = seeds_for(seed, ids)
        if self._receiving or not self._in_reset.isdisjoint(ids.tolist()):
            raise BusyError("reset() while another task is in recv(), or in reset() of the same envs")
        packed = None
        if options is not None:
            if not isinstance(options, dict):
                raise TypeError(f"options is {options!r:.80}, not a dict; nothing was sent")
            packed = wire.dumps(options, "options")
            check_room("the options", len(packed), len(self._deal.by_worker(np.sort(ids))))
        self._in_reset.update(ids.tolist())
        try:
            return await self._reset(ids, seeds, packed)
        finally:
            self._in_reset.difference_update(ids.tolist())

    async def _reset(
        self, ids: EnvIds, seeds: list[int | None], options: bytes | None
    ) -> tuple[Any, dict[str, Any]]:
        await self._all_ready(ids)
        self._ledger.take_errors(
            ids
        )  # their episodes are over; what went wrong with them does not matter any more
        if stale := self._ledger.select(ids):
            self._hub.release(self._ledger.hand_out(stale)[1])
        number = self._ledger.next_number
        self._ledger.next_number += 1
        asked = dict(zip(ids.tolist(), seeds))
        by_env = dict(asked)
        for env_id, given in by_env.items():
            if given is None:
                by_env[env_id] = self._ledger.seed_due(env_id)
            else:
                self._seed[env_id] = given
        in_order = np.sort(ids)
        self._ledger.resetting(in_order, [by_env[e] for e in in_order.tolist()], number)
        for worker, mine in self._deal.by_worker(in_order):
            command = Command(Kind.RESET, number, worker, mine, rows_of(mine))
            command.asked = [asked[e] for e in mine.tolist()]
            command.seeds, command.options = [by_env[e] for e in mine.tolist()], options
            self._post_reset(command)
        try:
            await self._all_ready(in_order)
        except asyncio.CancelledError:
            if not self._closed:
                self._drop_reset(in_order)
            raise
        if self._warnings:
            self._warn()
        self._raise_errors(self._ledger.take_errors(ids))
        batch, events = self._ledger.hand_out(self._ledger.select(ids))
        self._hub.release(events)
        if (in_order == ids).all():
            return batch.obs, batch.infos
        order = np.searchsorted(in_order, ids)
        return pick_rows(self.single_observation_space, batch.obs, order), _take_infos(batch.infos, order)

    def send(self, actions: Any, env_ids: Sequence[int] | EnvIds | None = None) -> None:
        """Send one action to each env of `env_ids` (default: all); never waits.

        Raises BadActions or BusyError before anything is sent; TypeError or ValueError if actions that travel pickled
        cannot, or find no memory.
        """
        if (
            _get_running_loop() is not self._home
            or _thread_id() != self._thread
            or _process_id() != self._pid
        ):
            self._check_open()
        ledger = self._ledger
        share = self._deal.share(env_ids)
        if ledger.owed or ledger.blocked:
            ledger.check_send(share)
        if self._deal.whole:
            self._check_whole_workers(share)
        loose = self._port.put(actions, len(share.env_ids), share.given)
        number = ledger.next_number
        commands: list[Command] = []
        for worker, mine, rows, _, (payload, flags) in share.parts:
            commands.append(Command(_STEP, number, worker, mine, rows, payload, flags))
        if loose:
            self._load(commands, share, loose)
        ledger.sent(share)
        self._crew.post(commands)

    async def recv(self, min_envs: int | None = None) -> Batch:
        """The envs whose replies are in, at least `min_envs` of them (default, and cap: all that owe one).

        Raises EnvError (an ExceptionGroup if several) if an env raised; the healthy rows stay owed, and the next
        `recv` returns them. Raises ValueError if nothing is owed, BusyError if another task receives.
        Cancelling loses nothing: the replies stay owed.
        """
        if (
            _get_running_loop() is not self._home
            or _thread_id() != self._thread
            or _process_id() != self._pid
        ):
            self._check_open()
        if min_envs is not None and (isinstance(min_envs, bool) or min_envs < 1):
            raise ValueError(f"min_envs is {min_envs!r}, not a whole number ≥ 1")
        if self._receiving or self._in_reset:
            raise BusyError("recv() while another task is in recv() or reset(): share the batches of one")
        self._receiving = True
        ledger = self._ledger
        try:
            if self._hub.crowded and self._hub.slowest() is not None:
                await self._hub.wait_for_readers()
                self._check_alive()
            while True:
                owed = ledger.owed
                if not owed:
                    raise ValueError("recv() with nothing owed: send() first")
                need = owed if min_envs is None else min(min_envs, owed)
                if ledger.ready_rows >= need:
                    break
                if not (self._crew.in_thread and self._crew.pump()):
                    self._need = need
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                if self._home is not self._loop:
                    self._check_alive()
        finally:
            self._receiving = False
        if self._warnings:
            self._warn()
        if ledger.any_errors:
            self._raise_errors(ledger.take_errors())
        batch, events = ledger.hand_out(ledger.take_ready())
        self._hub.release(events)
        return batch

    async def step(self, actions: Any) -> Batch:
        """`send(actions)`, then `recv()` of all. Cancelling loses nothing: the replies stay owed, for `recv`."""
        self.send(actions)
        return await self.recv()

    # -- the policy ------------------------------------------------------------------------------------------------

    def set_policy(self, params: Any) -> int:
        """Give the policy's `load` these parameters; the new version: 1, 2, 3, … They are pickled once, here.

        Raises TypeError if they cannot be pickled, PolicyError if `load` raises: the version before stays in force.
        """
        return self._own_policy("set_policy").load(params)

    def act(
        self, obs: Any, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None = None
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        """The policy on these envs' rows (default: all): (actions, outputs), arrays that the caller owns.

        `obs` (n, …), batched as the observation space says, `noise` (n, *shape), row j for `env_ids[j]`. The actions
        are what `step` and `send` take. An env's row gives the same bits whichever other envs act with it.

        Raises BadActions if `obs` or `noise` has another shape or dtype, PolicyError if the policy raises or returns
        what it may not, ValueError for the env ids.
        """
        return self._own_policy("act").act(obs, noise, env_ids)

    def _own_policy(self, name: str) -> ParentPolicy:
        self._check_open()
        if self._policy is None:
            raise ValueError(f"{name}() without a policy: construct the vec env with policy=")
        return self._policy

    # -- telling and asking --------------------------------------------------------------------------------------

    def broadcast(self, payload: Any, *, topic: str = "default", apply: Apply = "reset") -> Receipt:
        """Tell every worker `payload`; never waits; allowed from any thread, at any moment.

        Every episode that begins after it returned begins under this payload or a newer one of its topic, and every
        step sent after it runs after its worker has taken it. Envs get it in `on_broadcast(payload, version)`:
        apply="reset": each just before its next reset; "now": all before their worker's next command.

        Raises TypeError or ValueError if the payload cannot be pickled or finds no memory; nothing was published.
        """
        if self._closed:
            raise ClosedError("the vec env is closed, or not open yet")
        if os.getpid() != self._pid:
            raise ClosedError("this is a fork of the process that opened the vec env")
        if self._crew.failure is not None:
            raise self._crew.failure
        if apply not in ("reset", "now"):
            raise ValueError(f"apply is {apply!r}, not 'reset' or 'now'")
        return self._crew.channel.publish(payload, topic, apply)

    async def call(
        self, name: str, *args: Any, env_ids: Sequence[int] | EnvIds | None = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Call a method of each env, through wrappers; one result per env. Also with steps under way.

        Raises EnvError (a wrong name: its cause is an AttributeError); everything stays usable. WorkerLost if a
        worker is lost meanwhile. Cancelling drops the replies.
        """
        return await self._ask("call", name, env_ids, lambda rows: (args, kwargs))

    async def get_attr(self, name: str, *, env_ids: Sequence[int] | EnvIds | None = None) -> tuple[Any, ...]:
        """An attribute of each env, found as `get_wrapper_attr` does. Errors and cancelling as for `call`."""
        return await self._ask("get", name, env_ids, lambda rows: None)

    async def set_attr(
        self, name: str, values: Any, *, env_ids: Sequence[int] | EnvIds | None = None
    ) -> None:
        """Set an attribute of each env, where `set_wrapper_attr` finds it; a list or tuple gives one value per env.

        Errors and cancelling as for `call`. A replaced worker does not have it any more.
        """
        self._check_open()
        if isinstance(values, (list, tuple)):
            n = len(self._deal.env_ids(env_ids)) if not self._deal.whole else len(self._factories)
            if len(values) != n:
                raise ValueError(f"set_attr({name!r}): {len(values)} values for {n} envs")
            await self._ask("set", name, env_ids, lambda rows: [values[r] for r in rows])
        else:
            await self._ask("set", name, env_ids, lambda rows: [values] * len(rows))

    async def apply(
        self, function: Callable[[Any], Any], *, env_ids: Sequence[int] | EnvIds | None = None
    ) -> tuple[Any, ...]:
        """`function(env)` where each env lives, with its outermost wrapper; one result per env.

        Errors and cancelling as for `call`.
        """
        name = getattr(function, "__name__", "a function")
        return await self._ask("apply", name, env_ids, lambda rows: function)

    async def get_state(self) -> EnvState:
        """The state that lives in the envs and their wrappers, merged over all envs: plain data by wrapper, {} if none.

        Running statistics such as those of Gymnasium's `NormalizeObservation` and `NormalizeReward` are known; others
        have `get_state()`, `set_state(state)`, `merge_states(states)` and, if merging counts something,
        `split_state(state, parts)`. From now on replaced workers begin with it. Errors and cancelling as for `call`.
        """
        return await self._states.get(self.apply)

    async def set_state(self, state: Mapping[str, Any], *, frozen: bool = False) -> None:
        """Give all envs a state that `get_state` returned, here or elsewhere; each gets its share of what is counted.

        `frozen`: statistics stay what they are from now on (`update_running_mean = False`), as for judging. Raises
        LookupError if no env has a wrapper that it is of, ValueError if it does not fit; the rest as for `call`.
        """
        await self._states.set(self.apply, state, frozen=frozen)

    async def render(self) -> tuple[Any, ...]:
        """One frame per env, as its `render()` gives it. Errors and cancelling as for `call`."""
        return await self.call("render")

    def events(self) -> EventStream:
        """A stream of `EpisodeStarted` and `Episode` from now on: lossless, in order; several may be open."""
        self._check_open(alive=False)
        return self._hub.open()

    def observations(self) -> Any:
        """The newest observation of every env, batched; zeros for an env that was never reset. Not while any owes."""
        self._check_open()
        if self._ledger.owed:
            raise BusyError("observations() while envs owe a reply: recv() first")
        return self._ledger.observations()

    def abort(self, env_ids: Sequence[int] | EnvIds) -> None:
        """Give up the workers of these envs now, instead of at their timeout; then as if they had died."""
        self._check_open()
        ids = self._deal.env_ids(env_ids)
        self._crew.abort(
            [worker for worker, _ in self._deal.by_worker(np.sort(ids))], "was aborted by the caller"
        )

    def running_episode(self, env_id: int) -> RunningEpisode | None:
        """The env's episode so far; None where none runs. Raises IndexError if there is no such env."""
        self._check_open(alive=False)
        if not 0 <= env_id < self.num_envs:
            raise IndexError(f"env {env_id}: there are {self.num_envs}")
        return self._ledger.book.so_far(env_id)

    def statistics(self) -> Statistics:
        """A frozen snapshot of what was counted and timed so far."""
        self._check_open(alive=False)
        now, ledger, channel = time.monotonic(), self._ledger, self._crew.channel
        workers = tuple(
            WorkerStatistics(
                shift.index,
                getattr(shift.worker, "pid", -1),
                shift.incarnation,
                Percentiles.of(self._recorder.step_times_s[shift.index]),
                self._recorder.share(shift.index, now),
                1.0 - self._recorder.share(shift.index, now),
                channel.updates.newest_taken(shift.index),
                shift.rows,
                shift.ready,
                tuple(self._recorder.losses[shift.index]),
            )
            for shift in self._crew.shifts
        )
        return Statistics(
            executed_steps=ledger.steps,
            terminated=ledger.book.outcomes["terminated"],
            truncated=ledger.book.outcomes["truncated"],
            aborted=ledger.book.outcomes["aborted"],
            restarts=self._log.total - self._retried,
            recovery=Percentiles.of(self._recorder.recoveries_s),
            bytes_sent=self._recorder.bytes_sent + channel.bytes_sent,
            bytes_received=self._recorder.bytes_received,
            version=channel.version,
            broadcast=Percentiles.of(channel.latencies_s),
            workers=workers,
        )

    # -- what the crew says (Boss) -------------------------------------------------------------------------------

    def replied(self, command: Command) -> None:
        """A reply is in: store it, and wake who waits for it."""
        if command.kind is _CALL:
            self._calls.answered(command)
            return
        if self._dropped and command.sequence in self._dropped:
            self._dropped.discard(command.sequence)
            return
        if command.unread is not None:  # which env it came from cannot be told
            command.notes = [(env_id, 0, ERROR, command.unread) for env_id in command.env_ids.tolist()]
        if command.notes and command.notes[0][2] in URGENT:
            self._keep_warnings(command)
            if failed(command.notes) and self._settings.on_env_error == "reset":
                self._retry_resets(command)
        ledger = self._ledger
        ledger.replied(command)
        if self._waiter is not None and ledger.ready_rows >= self._need and not self._waiter.done():
            self._waiter.set_result(None)
        if self._watchers:
            self._wake_watchers()

    def _keep_warnings(self, command: Command) -> None:
        """Take the warnings out of a reply; what each is about is said once."""
        for env_id, _, kind, value in command.notes:
            if kind == WARNING:
                about, text = value
                self._warnings.setdefault(about, f"env {env_id}: {text}")
        command.notes = [note for note in command.notes if note[2] != WARNING]

    def lost(self, shift: Shift, reason: str) -> list[int | None]:
        """A worker is about to be replaced."""
        self._restarts[shift.index] += 1
        restarts = self._restarts[shift.index]
        for sequence, command in list(shift.commands.items()):
            if command.kind is Kind.CALL:
                del shift.commands[sequence]
                self._calls.lost(command, shift, reason)
            elif sequence in self._dropped:
                del shift.commands[sequence]
                self._dropped.discard(sequence)
        seeds = [derive_seed(self._seed[env_id], env_id, restarts) for env_id in shift.rows]
        if self._deal.whole and (first := seeds[0]) is not None and None not in seeds:
            seeds = [first + i for i in range(len(seeds))]  # a VectorEnv may take no more than one
        self._ledger.made_anew(shift.rows, reason + self._states.age(), seeds)
        for command in shift.commands.values():
            if command.kind is Kind.RESET:
                self._ledger.reseed(command)
                self._pack_reset(command)
        return seeds

    def failed(self, error: VecEnvError) -> None:
        """Beyond the restart budget: everybody who waits gets the error."""
        self._home = _NOWHERE
        self._end_calls(error)

    def _retry_resets(self, command: Command) -> None:
        """on_env_error="reset", and an env failed to reset: try again, within the restart budget."""
        shift = self._crew.shifts[command.worker]
        counted: set[ErrorReport] = set()  # rows of one VectorEnv, or of one reply, share what went wrong
        errors = [(env_id, report) for env_id, _, kind, report in command.notes if kind == ERROR]
        for together in [errors] if self._deal.whole else [[one] for one in errors]:
            for env_id, report in together:
                if report not in counted:
                    counted.add(report)
                    if not self._may_retry(env_id, report, shift):
                        return
            self._post_reset(self._ledger.retry(command, together))

    def _may_retry(self, env_id: int, report: ErrorReport, shift: Shift) -> bool:
        """Whether an env that failed to reset may try again; False: the restart budget is spent, it is all over."""
        log = self._log
        times = log.failed_reset(env_id, self._ledger.book.index(env_id))
        if log.budget is not None and times <= log.budget.failed_resets:
            return True
        again = f" ({times} times in a row)" if times > 1 else ""
        text = f"env {env_id} raised {report.type_name} in {report.op}{again}: {report.message}"
        allowed = self._crew.count_loss(text, shift)
        self._retried += allowed
        return allowed

    # -- inside --------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """From now on the loop turns in this thread. For `adapters.driver`, which owns the loop that it turns."""
        self._thread = self._crew.thread_id = self._crew.channel.thread_id = threading.get_ident()

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
        if alive:
            self._check_alive()

    def _check_alive(self) -> None:
        if self._closed:
            raise ClosedError("the vec env was closed")
        if self._crew.failure is not None:
            raise self._crew.failure

    def _warn(self) -> None:
        """Say what the workers had to say, once. Nothing is lost where warnings are errors."""
        for about, text in self._warnings.items():
            if text:
                self._warnings[about] = ""
                warnings.warn(f"{text} (said once)", stacklevel=3)

    def _end_calls(self, error: VecEnvError) -> None:
        self._calls.end(error)
        waiting, self._watchers = [self._waiter, *self._watchers], []
        for future in waiting:
            if future is not None and not future.done():
                future.set_exception(error)

    def _drop_reset(self, ids: EnvIds) -> None:
        """A reset of these envs was cancelled: what is still under way for it will be dropped."""
        for shift in self._crew.shifts:
            for command in shift.commands.values():
                if command.kind is Kind.RESET and np.isin(command.env_ids, ids).any():
                    self._dropped.add(command.sequence)
        self._ledger.drop(ids)

    async def _all_ready(self, ids: EnvIds) -> None:
        """Wait until every one of these envs that owes a row has it ready."""
        ledger = self._ledger
        while ledger.waits_for(ids):
            if not (self._crew.in_thread and self._crew.pump()):
                future = self._loop.create_future()
                self._watchers.append(future)
                try:
                    await future
                finally:
                    if future in self._watchers:
                        self._watchers.remove(future)
            self._check_alive()

    def _wake_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for future in watchers:
            if not future.done():
                future.set_result(None)

    def _raise_errors(self, found: list[tuple[Command, int, ErrorReport]]) -> None:
        errors: list[VecEnvError] = []
        for command, env_id, report in found:
            book = self._ledger.book
            index, length, seed = book.index(env_id), book.totals(env_id)[0], book.seed[env_id]
            where = "" if index < 0 else f", episode {index}, after {length} steps, seed {seed}"
            if command.kind is Kind.RESET:
                given = dict(zip(command.env_ids.tolist(), command.seeds)).get(env_id)
                where = f", with seed {given}"
            elif report.op == "reset":  # an autoreset: not the episode before has failed
                where = f", in the reset after episode {index}" if index >= 0 else ""
            errors.append(rebuild(report, env_id, command.worker, where))
        raise_all(errors, "a step or reset")

    def _check_whole_workers(self, share: Share) -> None:
        for worker, mine, _, local, _ in share.parts:
            if local is not None:
                raise BadActions(
                    f"worker {worker} holds VectorEnvs, whose envs {self._deal.rows[worker]} are stepped together; "
                    "nothing was sent",
                    expected="all of them",
                    got=str(mine.tolist()),
                )

    @staticmethod
    def _load(commands: Sequence[Command], share: Share, loose: list[Any]) -> None:
        """Put actions that travel pickled into their commands. Raises TypeError or ValueError if they cannot."""
        wire.dumps(loose, "actions")
        order = range(len(share.env_ids)) if share.order is None else share.order.tolist()
        at = 0
        for command, (_, mine, _, local, _) in zip(commands, share.parts):
            rows = order[at : at + len(mine)]
            at += len(mine)
            picked = [c[rows] if isinstance(c, np.ndarray) else c and [c[row] for row in rows] for c in loose]
            envs = None if local is None else local.tolist()
            command.payload, command.flags = encode(Step(envs, wire.dumps(picked, "actions")))
        check_room("the actions", sum(len(command.payload) for command in commands))

    def _post_reset(self, command: Command) -> None:
        self._pack_reset(command)
        self._crew.post([command])

    def _pack_reset(self, command: Command) -> None:
        local = self._deal.local(command.worker, command.env_ids).tolist()
        command.payload, command.flags = encode(Reset(local, list(command.seeds), command.options))

    async def _ask(
        self,
        op: str,
        name: str,
        env_ids: Sequence[int] | EnvIds | None,
        values: Callable[[list[int]], Any],
    ) -> tuple[Any, ...]:
        self._check_open()
        if self._deal.whole:
            if env_ids is not None:
                raise ValueError("a call of VectorEnvs goes to all of them: env_ids cannot pick rows")
            ids, parts = whole_workers([len(shift.setup.factories) for shift in self._crew.shifts])
        else:
            ids = self._deal.env_ids(env_ids)
            dealt = self._deal.by_worker(np.sort(ids))
            parts = [(worker, mine, self._deal.local(worker, mine).tolist()) for worker, mine in dealt]
        return await self._calls.ask(op, name, ids, parts, values)


def _check_shared(obs: SpaceTree, action: SpaceTree, shared_memory: SharedMemory) -> None:
    """Raise ValueError unless all rows of VectorEnvs can lie in shared memory."""
    if shared_memory is False:
        raise ValueError(
            "shared_memory=False, but rows of VectorEnvs travel in shared memory only: leave it out"
        )
    for name, tree in (("observation", obs), ("action", action)):
        for leaf in tree.leaves:
            if not leaf.fixed:
                raise ValueError(f"the {name} space{leaf} of a VectorEnv has no fixed size: {leaf.space}")


def _agree(made: list[Spaces], first_ids: list[int], settings: Settings) -> Spaces:
    """The spaces of all workers, if they agree. Raises SpaceMismatch."""
    expected = made[0]
    for got, env_id in zip(made[1:], first_ids[1:]):
        for name in ("observation", "action"):
            want, have = getattr(expected, name), getattr(got, name)
            if not same_space(name, want, have, settings.spaces):
                raise SpaceMismatch(
                    f"env {env_id}: the {name} space is {have}; that of env {first_ids[0]} is {want}",
                    env_id=env_id,
                    expected=str(want),
                    got=str(have),
                )
        if got.vectorised != expected.vectorised:
            raise SpaceMismatch(
                f"env {env_id}: some factories make VectorEnvs, others single envs",
                env_id=env_id,
                expected="all of one kind",
                got="both",
            )
    return expected


def _take_infos(infos: dict[str, Any], order: NDArray[np.intp]) -> dict[str, Any]:
    return {k: _take_infos(v, order) if isinstance(v, dict) else v[order] for k, v in infos.items()}
