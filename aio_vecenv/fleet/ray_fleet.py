"""`RayFleet`: several machines, with the face of one vec env's unrolls."""
# async: owns the loop and the door; rules are in `.state`, calls in `.hosts`, Ray in `.ray_transport`

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..core import factories, options
from ..core import framing as wire
from ..core.assignment import Assignment, EnvIds, seeds_for
from ..core.batch import Batch, RunningEpisode
from ..core.chunk import Chunk
from ..core.env_state import EnvState
from ..core.infos import batch_infos
from ..core.layout import pick_rows
from ..core.limits import RenewAfter, RestartBudget, Timeouts
from ..core.policy import BLOCK, Policy
from ..core.report import raise_all
from ..core.statistics import Statistics
from ..core.updates import Apply
from ..errors import (
    BadActions,
    BusyError,
    ClosedError,
    VecEnvError,
    WorkerLost,
)
from ..runtime.calls import Asking
from ..runtime.env_states import EnvStates
from ..runtime.events import EventHub, EventStream
from ..runtime.policies import ParentPolicy
from ..runtime.publisher import Receipt
from ..runtime.renewal import renewal_of
from ..runtime.unrolls import check_min_envs, checked_rows
from .columns import Columns
from .hosts import Hosts, Recipe
from .messages import Liveness
from .opening import agreed, check_room, gather
from .state import Collected, FleetState, Sent, split
from .transport import Transport

__all__ = ["RayFleet"]

_LIVENESS, _TIMEOUTS, _BUDGET = Liveness(), Timeouts(), RestartBudget()


class RayFleet(Asking):
    """Many Gymnasium environments on several machines: a host on each, with an `AsyncVecEnv` of its own.

    What crosses between machines is chunks of steps and updates, never single steps: there is `unroll`, and `step` is
    refused. Env ids, seeds, episodes and updates are as of one vec env of as many envs.

    Args:
        envs: as of `AsyncVecEnv`; factories travel by cloudpickle, and what they import must be installed on every
            machine.
        num_envs: how many envs, over all hosts.
        hosts: how many; each is one Ray actor of `num_workers + 1` CPUs, spread over the nodes. None: one for each node
            that has so many.
        policy: as of `AsyncVecEnv`.
        unroll: the most rows of a chunk.
        num_workers: worker processes of each host; "per env": one for each of its envs.
        backend: "inline": a host steps its envs itself, without worker processes, for cheap envs.
        min_hosts: with fewer, chunks wait. With fewer than `hosts` it goes on, and takes the others when they come.
        address: of a running Ray cluster ("auto": the one of this machine); None: where Ray is connected already, that
            is used, else a local one is started, and ended with the fleet.
        liveness: when a host counts as silent, see `Liveness`.
        restart: how many lost hosts may be replaced, see `RestartBudget`; None: none.
        host_restart: how many lost workers each host may replace by itself.
        info, timeouts, renew_after, on_env_error, check, spares, spaces, casting: as of `AsyncVecEnv`, for each host.
        transport: what carries calls in the place of Ray.

    Constructing starts nothing. Use `async with`, or `open` and `aclose`. It belongs to the event loop that opens it;
    `broadcast` alone may be called from any thread.
    """

    def __init__(
        self,
        envs: Any,
        num_envs: int | None = None,
        *,
        hosts: int | None,
        policy: Policy | Callable[..., Any],
        unroll: int,
        num_workers: int | Literal["per env"] = 1,
        backend: Literal["process", "inline"] = "process",
        min_hosts: int = 1,
        address: str | None = None,
        liveness: Liveness = _LIVENESS,
        restart: RestartBudget | None = _BUDGET,
        host_restart: RestartBudget | None = _BUDGET,
        renew_after: RenewAfter | int | None = None,
        info: Literal["all", "episode"] | Sequence[str] = "all",
        timeouts: Timeouts = _TIMEOUTS,
        on_env_error: Literal["raise", "reset"] = "raise",
        check: Literal["finite"] | None = None,
        spares: int = 0,
        spaces: Literal["equal", "equivalent"] = "equal",
        casting: Literal["safe", "unsafe"] = "safe",
        transport: Transport | None = None,
    ) -> None:
        self.closed, self._opened = True, False
        self._makers = factories.resolve(envs, num_envs)
        self.num_envs = len(self._makers)
        self._wanted = hosts if hosts is None else options.whole("hosts", hosts, 1)
        self._slots = split(self.num_envs, hosts or 1, BLOCK)
        if options.whole("min_hosts", min_hosts, 1) > (hosts or min_hosts):
            raise ValueError(f"min_hosts is {min_hosts}, and there are {hosts} hosts")
        self._unroll = options.whole("unroll", unroll, 1)
        per_host = max(len(slot) for slot in self._slots)
        options.one_of("backend", backend, ("process", "inline"))
        own_workers = options.workers_for(num_workers, per_host)
        after = renewal_of(renew_after, AutoresetMode.NEXT_STEP, inline=backend == "inline")
        self.num_workers = own_workers * len(self._slots)
        self._min_hosts, self._liveness = min_hosts, liveness
        self._timeouts, self._restart = timeouts, restart
        self._options: dict[str, Any] = {
            "num_workers": own_workers, "backend": backend, "policy": policy, "unroll": unroll, "info": info,
            "timeouts": timeouts, "restart": host_restart, "renew_after": after, "on_env_error": on_env_error,
            "check": check, "spares": spares, "spaces": spaces, "casting": casting,
        }  # fmt: skip
        self._policy = ParentPolicy(policy)
        self._transport = _ray(address) if transport is None else transport

    # -- opening and closing -------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Construct and open. Cancelling closes what was started."""
        return await cls(*args, **kwargs).__aenter__()

    async def __aenter__(self) -> Self:
        """Find places, start the hosts and make the envs. Raises what went wrong, after ending everything. Cancelling
        too."""
        if self._opened:
            raise ClosedError("this fleet was opened already: construct a new one")
        self._opened = True
        self._hub, self._receiving = EventHub(), False
        try:
            own_workers = self._options["num_workers"]
            hosts = await self._transport.open(self._wanted, own_workers + 1)
            self._slots, self.num_workers = split(self.num_envs, hosts, BLOCK), own_workers * hosts
            state = FleetState(self._slots, self._liveness, self._restart, min_hosts=self._min_hosts)
            self._recipe = Recipe(self._slots, self._makers, self._options, self._transport)
            # Nothing there holds this object: dropping it ends it all, see __del__.
            self._hosts = Hosts(state, self._transport, self._liveness, self._recipe)
        except BaseException:
            await self._close_transport()
            raise
        try:
            await self._agree()
        except BaseException:
            await self._end()
            raise
        self.closed = False
        return self

    async def _agree(self) -> None:
        """Start the hosts that have a place, and agree with them on spaces and room."""
        slots = await gather(
            self._hosts,
            self._transport,
            self._min_hosts,
            self._options["num_workers"] + 1,
            self._timeouts.start,
        )
        first = self._like = agreed(self._hosts, slots, self._options["spaces"])
        self.single_observation_space: gym.Space[Any] = first.observation_space
        self.single_action_space: gym.Space[Any] = first.action_space
        self._assignment = Assignment([len(slot) for slot in self._slots])
        if not self._policy.open(first.observation_space, first.action_space, self._assignment):
            raise ValueError(
                "the function that makes the policy returned None: a fleet has nothing but unrolls"
            )
        self._columns = Columns(
            self._slots, first.observation_space, first.action_space, self._policy.outputs
        )
        self._states = EnvStates(self._recipe, self.num_envs)
        await check_room(self._hosts, self._transport, slots, self._columns, self._unroll)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except (VecEnvError, ExceptionGroup) as failure:
            if error is None:
                raise
            error.add_note(f"and closing the fleet: {type(failure).__name__}: {failure}")

    async def aclose(self) -> None:
        """Close all envs and hosts. Always closes; raises EnvError if an env's close() did.

        Episodes that run are aborted. Can be called twice. Cancelling skips the grace, never the closing.
        """
        if self.closed:
            return
        self.closed = True
        self._hub.release(self._hosts.state.close())
        self._hub.close()
        raise_all(await self._end(), "closing the fleet")

    async def _end(self) -> list[Any]:
        try:
            return await self._hosts.close((self._timeouts.close or 5.0) + 5.0)
        finally:
            await self._close_transport()

    async def _close_transport(self) -> None:
        """However often this task is cancelled meanwhile."""
        closing = asyncio.ensure_future(self._transport.close())
        while not closing.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([closing])

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self._hosts.abandon()
            unclosed = f"{self!r} was not closed: use `async with`, or aclose()"
            warnings.warn(unclosed, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<RayFleet {self.num_envs} envs on {len(self._slots)} hosts, {state}>"

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of all envs together."""
        return batch_space(self.single_observation_space, self.num_envs)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of all envs together."""
        return batch_space(self.single_action_space, self.num_envs)

    @property
    def metadata(self) -> dict[str, Any]:
        """As of `AsyncVecEnv`."""
        return {**self._like.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    @property
    def spec(self) -> Any:
        """Of one env, if it was made from one."""
        return self._like.spec

    # -- resets and chunks -----------------------------------------------------------------------------------------

    async def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        env_ids: Sequence[int] | EnvIds | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset envs; (observations, infos), rows in the order of `env_ids` (default, and the first time: all).

        As of `AsyncVecEnv`, but raises BusyError while one of their hosts owes a chunk. Envs whose host is not there
        are reset when it comes: until then their observations are what they showed last, zeros at first. Cancelling
        drops the replies.
        """
        self._check_open()
        ids = self._assignment.env_ids(env_ids)
        in_order = np.sort(ids)
        given = dict(zip(ids.tolist(), seeds_for(seed, ids)))
        sent = self._hosts.reset(in_order.tolist(), [given[env] for env in in_order.tolist()], options)
        await self._hosts.until(lambda: sent.is_in)
        errors = self._errors(sent)
        collected = self._collect(sent)
        infos: dict[int, dict[str, Any]] = {}
        for report in collected.reports:
            if report.body.columns is not None:
                obs, said = report.body.columns
                mine = self._slots[report.slot]
                self._columns.see([env for env in in_order.tolist() if env in mine], obs)
                infos |= said
        raise_all(errors, "a reset")
        obs = pick_rows(self.single_observation_space, self._columns.shown(range(self.num_envs)), ids)
        return obs, batch_infos(ids, infos)

    def set_policy(self, params: Any) -> int:
        """Give the policy's `load` these parameters; the new version, as of `AsyncVecEnv`."""
        self._check_open()
        version = self._policy.load(params)
        assert self._policy.params is not None
        self._hosts.set_policy(version, self._policy.params)
        return version

    def act(
        self, obs: Any, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None = None
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        """The policy on these envs' rows, here, as of `AsyncVecEnv`."""
        self._check_open()
        return self._policy.act(obs, noise, env_ids)

    def send_unroll(self, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None = None) -> None:
        """Let the hosts of these envs (default: all) act and step T times; never waits.

        As of `AsyncVecEnv`; `env_ids`: all envs of whole hosts. A host that is not there is passed over: its columns
        are `first` from the first row on, and their noise is not used.
        """
        self._check_open()
        ids = self._assignment.env_ids(env_ids)
        slots = [slot for slot, _ in self._assignment.by_worker(np.sort(ids))]
        if sum(len(self._slots[slot]) for slot in slots) != len(ids):
            raise BadActions(
                "an unroll is of all envs of a host; nothing was sent",
                expected="all envs of whole hosts",
                got=str(ids.tolist()),
            )
        rows = checked_rows(noise, len(ids), self._policy.noise, self._unroll)
        where = {env: column for column, env in enumerate(ids.tolist())}
        self._hosts.send(slots, rows, {s: noise[:, [where[env] for env in self._slots[s]]] for s in slots})

    async def recv_unroll(self, min_envs: int | None = None) -> Chunk:
        """The columns of one `send_unroll`, the oldest that has at least `min_envs` of them, as of `AsyncVecEnv`.

        Where all of them come from one host, the arrays are read-only views of its reply. Cancelling loses nothing:
        the chunk stays owed.
        """
        self._check_open()
        check_min_envs(min_envs)
        if self._receiving:
            raise BusyError("recv_unroll() while another task is in recv_unroll(): share the chunks of one")
        state = self._hosts.state
        self._receiving = True
        try:
            await self._hub.wait_for_readers()
            if not state.owed:
                raise ValueError("recv_unroll() with no chunk owed: send_unroll() first")
            await self._hosts.until(lambda: state.ready(min_envs) is not None)
        finally:
            self._receiving = False
        sent = state.ready(min_envs)
        assert sent is not None
        raise_all(self._errors(sent), "an unroll")
        collected = self._collect(sent)
        parts: dict[int, Any] = dict.fromkeys(collected.absent)
        parts |= {report.slot: report.body.columns for report in collected.reports}
        why = {slot: losses[-1] for slot in parts if (losses := state.losses(slot))}
        return self._columns.chunk(collected, parts, why)

    async def unroll(self, noise: NDArray[Any]) -> Chunk:
        """`send_unroll(noise)`, then `recv_unroll()` of all. Cancelling loses nothing: the chunk stays owed."""
        self.send_unroll(noise)
        return await self.recv_unroll()

    def _errors(self, sent: Sent) -> list[Any]:
        """What its hosts said that was raised; said once."""
        return [error for slot in sorted(sent.owed) for error in self._hosts.errors.pop(slot, ())]

    def _collect(self, sent: Sent) -> Collected:
        collected = self._hosts.state.collect(sent)
        for slot, (obs, _) in self._hosts.state.take_begun():
            self._columns.see(self._slots[slot], obs)
        for batch in collected.events:
            self._hub.release(batch)
        return collected

    async def step(self, actions: Any) -> Batch:
        """Refused: raises ValueError."""
        raise _no_steps("step")

    def send(self, actions: Any, env_ids: Sequence[int] | EnvIds | None = None) -> None:
        """Refused: raises ValueError."""
        raise _no_steps("send")

    # -- telling and asking ----------------------------------------------------------------------------------------

    def broadcast(self, payload: Any, *, topic: str = "default", apply: Apply = "reset") -> Receipt:
        """Tell every host `payload`; never waits; allowed from any thread.

        Every episode that begins in a chunk sent after it returned begins under this payload or a newer one of its
        topic; so does every one that begins after `await receipt`. The rest as of `AsyncVecEnv`.
        """
        if self.closed:
            raise ClosedError("the fleet is closed, or not open yet")
        options.one_of("apply", apply, ("reset", "now"))
        version = self._hosts.publish(wire.dumps(payload, "payload"), topic, apply)
        return Receipt(self._hosts, topic, version)

    async def get_state(self) -> EnvState:
        """The state that lives in the envs and their wrappers, merged over all of them, as of `AsyncVecEnv`."""
        merged = await self._states.get(self._apply_where_live)
        await self._hosts.carry(self._recipe.state)
        return merged

    async def set_state(self, state: Mapping[str, Any], *, frozen: bool = False, anew: bool = False) -> None:
        """Give all envs a state that `get_state` returned, as of `AsyncVecEnv`."""
        await self._states.set(self._apply_where_live, state, frozen=frozen, anew=anew)
        await self._hosts.carry(self._recipe.state)

    async def _apply_where_live(self, function: Callable[[Any], Any]) -> tuple[Any, ...]:
        live = [env for slot in self._hosts.state.live for env in self._slots[slot]]
        return await self.apply(function, env_ids=live) if live else ()

    async def _ask(
        self, op: str, name: str, env_ids: Sequence[int] | EnvIds | None, values: Callable[[list[int]], Any]
    ) -> tuple[Any, ...]:
        self._check_open()
        ids = self._assignment.env_ids(env_ids)
        rows = {env: row for row, env in enumerate(ids.tolist())}
        parts = [(slot, mine.tolist()) for slot, mine in self._assignment.by_worker(np.sort(ids))]
        asked = [
            self._hosts.ask(
                slot,
                "ask",
                op,
                name,
                wire.dumps(values([rows[e] for e in mine]), f"the arguments of {name!r}"),
                mine,
            )
            for slot, mine in parts
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        errors: list[Any] = [answer for answer in answers if isinstance(answer, BaseException)]
        lost: list[Any] = [error for error in errors if isinstance(error, WorkerLost)]
        errors = lost[:1] or errors
        raise_all(errors, f"{op} {name!r}")
        results: list[Any] = [None] * len(ids)
        for (_, mine), answer in zip(parts, answers):
            for env, result in zip(mine, answer or ()):  # type: ignore[arg-type]
                results[rows[env]] = result
        return tuple(results)

    def _count(self, env_ids: Sequence[int] | EnvIds | None) -> int:
        return len(self._assignment.env_ids(env_ids))

    def events(self) -> EventStream:
        """A stream of `EpisodeStarted` and `Episode` from now on: lossless, in order; several may be open."""
        if self.closed:
            raise ClosedError("the fleet is closed, or not open yet")
        return self._hub.open()

    def running_episode(self, env_id: int) -> RunningEpisode | None:
        """The env's episode, as far as its chunks were received; None where none runs."""
        if not 0 <= env_id < self.num_envs:
            raise IndexError(f"env {env_id}: there are {self.num_envs}")
        so_far = self._hosts.state.episodes.so_far(env_id)
        if so_far is None:
            return None
        started, length, episode_return = so_far
        return RunningEpisode(env_id, started.index, length, episode_return, started.version, started.task)

    def statistics(self) -> Statistics:
        """A frozen snapshot: the fleet's counts, and the workers of all hosts as their newest ping said."""
        return self._hosts.statistics()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the fleet is closed, or not open yet: use `async with`")
        self._hosts.check()


def _no_steps(name: str) -> ValueError:
    return ValueError(
        f"{name}() of a fleet: a call to another machine takes a millisecond, so what crosses is chunks of steps; use "
        "unroll(), or send_unroll() and recv_unroll()"
    )


def _ray(address: str | None) -> Transport:
    try:
        from .ray_transport import RayTransport
    except ImportError as error:
        raise ImportError(f"RayFleet needs the extra: pip install 'aio-vecenv[ray]' ({error})") from None
    return RayTransport(address)
