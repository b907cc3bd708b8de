"""One host of a fleet: it holds a vec env of its own and does what the driver says, once."""
# async: runs on the loop of whoever carries its calls; it knows no Ray

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..core import framing as wire
from ..core.batch import EventBatch
from ..core.chunk import Chunk
from ..core.env_state import restore
from ..core.statistics import Statistics
from ..errors import BadActions, VecEnvError
from ..vec_env import AsyncVecEnv
from .host_state import HostState, Refused
from .messages import Answer, Report, Run, Wants

__all__ = ["Body", "Failed", "HostSetup", "NodeHost", "Opened", "Said", "packed_error", "unpacked_error"]

Refs = Mapping[int, Awaitable[bytes]]  # pickled payloads of updates, by version


class HostSetup(NamedTuple):
    """What a host is made of."""

    slot: int
    incarnation: int
    first_env: int
    num_envs: int
    total_envs: int
    next_index: tuple[int, ...]
    made_of: Awaitable[bytes]  # pickled: the factories of its envs, and the options of their vec env
    lease_s: float
    path: tuple[str, ...]  # the driver's `sys.path`: what is there on this machine, too, is looked at last
    state: Any  # what wrappers in the envs have learned, and whether they learn on; None: nobody has asked


class Said(NamedTuple):
    """A ping's answer."""

    answer: Answer
    statistics: Statistics


class Opened(NamedTuple):
    """A host has made its envs."""

    node: str  # where it is, in words
    pid: int
    observation_space: Any
    action_space: Any
    metadata: dict[str, Any]
    spec: Any
    num_workers: int
    said: Said


class Body(NamedTuple):
    """What a command brought: a chunk, or what a reset returned; and what was raised on the way."""

    columns: Any  # Chunk; (observations, infos by env); None: it came to nothing
    errors: bytes | None = None


class Failed(NamedTuple):
    """The host cannot go on, or what was asked raised."""

    error: bytes


class NodeHost:
    """An `AsyncVecEnv` behind calls that may come late, twice, or never. `leave` ends its process."""

    def __init__(self, leave: Callable[[], object] | None = None) -> None:
        self._leave = (lambda: os._exit(0)) if leave is None else leave
        self._envs: AsyncVecEnv | None = None
        self._heard_at = 0.0

    async def open(self, setup: HostSetup) -> Opened | Failed:
        """Make the envs."""
        try:
            opened = await self._open(setup)
            self._heard_at = asyncio.get_running_loop().time()  # from now on it is pinged
            self._watch = asyncio.create_task(self._keep_lease(setup.lease_s), name="lease of a host")
            return opened
        except Exception as error:
            await self.close()
            return Failed(packed_error(_explained(error)))

    async def _open(self, setup: HostSetup) -> Opened:
        _look_there_too(setup.path)
        factories, options = wire.loads(await setup.made_of)
        self._taking = asyncio.Lock()
        self._doing: asyncio.Future[Report | Failed] | None = None
        self.state = HostState(
            setup.slot, setup.incarnation, setup.first_env, setup.num_envs, setup.total_envs, setup.next_index
        )
        self._next_index = np.array(setup.next_index, np.int64)
        envs = await AsyncVecEnv.open(factories, copy=False, **options)
        self._envs, self._events = envs, envs.events()
        if setup.state is not None:
            state, parts, frozen = setup.state
            await envs.apply(partial(restore, state=state, parts=parts, frozen=frozen, anew=False))
            envs._supervisor.carry(setup.state)
        return Opened(
            platform.node(), os.getpid(), envs.single_observation_space, envs.single_action_space, envs.metadata,
            envs.spec, envs.num_workers, Said(self.state.answer(), envs.statistics()),
        )  # fmt: skip

    async def _keep_lease(self, lease_s: float) -> None:
        """Close once the driver has not been heard for too long."""
        loop = asyncio.get_running_loop()
        while (left_s := self._heard_at + lease_s - loop.time()) > 0:  # noqa: ASYNC110  it waits for time
            await asyncio.sleep(left_s)
        envs, self._envs = self._envs, None
        if envs is not None:
            with suppress(Exception):
                await envs.aclose()
        self._leave()

    def _live(self, incarnation: int) -> AsyncVecEnv:
        self._heard_at = asyncio.get_running_loop().time()
        if self._envs is None or incarnation != self.state.incarnation:
            raise Refused("not this incarnation, or closed")
        return self._envs

    # -- what the driver says --------------------------------------------------------------------------------------

    async def ping(self, incarnation: int) -> Said | None:
        """That it lives."""
        try:
            envs = self._live(incarnation)
        except Refused:
            return None
        return Said(self.state.answer(), envs.statistics())

    async def tell(self, incarnation: int, wants: Wants, refs: Refs) -> Answer | None:
        """Take what is lacking of these updates."""
        try:
            envs = self._live(incarnation)
        except Refused:
            return None
        await self._take(envs, wants, refs)
        return self.state.answer()

    async def run(
        self, run: Run, refs: Refs, params: Sequence[Awaitable[bytes]], noise: Any, options: Any
    ) -> Report | Failed | None:
        """Do a command, or give its report once more."""
        try:
            envs = self._live(run.incarnation)
            accepted = self.state.accept(run)
        except Refused:
            return None
        if isinstance(accepted, Report):
            return accepted
        if accepted == "under way":
            assert self._doing is not None
            return await asyncio.shield(self._doing)
        self._doing = doing = asyncio.get_running_loop().create_future()
        try:
            await self._take(envs, run.wants, refs)
            if params and run.policy != self.state.policy:
                envs.set_policy(wire.loads(await params[0]))
                self.state.policy = run.policy
            body = await (
                self._unroll(envs, run, noise) if run.kind == "unroll" else self._reset(envs, run, options)
            )
            report: Report | Failed = self.state.done(await self._report(envs, run, body))
        except Exception as error:
            report = Failed(packed_error(error))
        doing.set_result(report)
        return report

    async def ask(
        self, incarnation: int, op: str, name: str, arguments: bytes, env_ids: Sequence[int]
    ) -> Any:
        """Ask these envs, as the fleet numbers them, for `op`: call, get, set or apply; their results."""
        envs = self._live(incarnation)
        local = [env - self.state.first_env for env in env_ids]
        try:
            given = wire.loads(arguments)
            match op:
                case "call":
                    args, kwargs = given
                    return await envs.call(name, *args, env_ids=local, **kwargs)
                case "get":
                    return await envs.get_attr(name, env_ids=local)
                case "set":
                    return await envs.set_attr(name, given, env_ids=local)
                case _:
                    return await envs.apply(given, env_ids=local)
        except Exception as error:
            return Failed(packed_error(error))

    async def carry(self, incarnation: int, state: Any) -> None:
        """Workers that are replaced here begin with this state of their envs, which `HostSetup.state` describes."""
        self._live(incarnation)._supervisor.carry(state)

    async def where(self) -> str:
        """The id of its Ray node."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def close(self) -> Failed | None:
        """Close the envs."""
        watch = getattr(self, "_watch", None)
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        envs, self._envs = self._envs, None
        try:
            if envs is not None:
                await envs.aclose()
        except Exception as error:
            return Failed(packed_error(error))
        return None

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _take(self, envs: AsyncVecEnv, wants: Wants, refs: Refs) -> None:
        if not self.state.lacking(wants):
            return
        async with self._taking:
            for due in self.state.lacking(wants):
                payload = wire.loads(await refs[due.version])
                envs.broadcast(payload, topic=due.topic, apply="now" if due.now else "reset")
                self.state.took(due, wants)

    async def _unroll(self, envs: AsyncVecEnv, run: Run, noise: Any) -> Body:
        errors: list[Exception] = []
        try:
            envs.send_unroll(np.asarray(noise))
        except BadActions as error:  # an env that has raised was not reset
            return Body(None, packed_error(error))
        while True:
            try:
                chunk = await envs.recv_unroll()
                return Body(chunk, packed_error(*errors) if errors else None)
            except (VecEnvError, ExceptionGroup) as error:
                if len(errors) > envs.num_envs:  # it is not the envs
                    raise
                errors.append(error)

    async def _reset(self, envs: AsyncVecEnv, run: Run, options: Any) -> Body:
        first = self.state.first_env
        local = [env - first for env in run.env_ids]
        try:
            batch = await envs._reset(list(run.seeds), options, local, join=_as_they_are)
        except (VecEnvError, ExceptionGroup) as error:
            return Body(None, packed_error(error))
        infos: Mapping[Any, Any] = batch.infos
        return Body((batch.obs, {first + env: info for env, info in infos.items()}))

    async def _report(self, envs: AsyncVecEnv, run: Run, body: Body) -> Report:
        state = self.state
        columns, executed = body.columns, 0
        batches: list[EventBatch] = []
        while self._events.behind:
            batches.append(await self._events.next_batch())
        number = batches[0].number if batches else 0
        if isinstance(columns, Chunk):
            number = columns.number
            executed = int((~columns.first).sum())
        events = state.events(batches, number)
        if isinstance(columns, Chunk):
            columns = self._in_the_fleets_numbers(columns, run)
        running = [(env, envs.running_episode(env)) for env in range(envs.num_envs)]
        lengths = tuple(
            (state.first_env + env, episode.length, episode.episode_return)
            for env, episode in running
            if episode is not None
        )
        return Report(
            run.slot, run.incarnation, run.sequence, run.number, dict(state.taken), events, lengths, executed,
            body._replace(columns=columns),
        )  # fmt: skip

    def _in_the_fleets_numbers(self, chunk: Chunk, run: Run) -> dict[str, Any]:
        """The columns of a chunk, by the names of its fields."""
        first = self.state.first_env
        return {
            "obs": chunk.obs,
            "actions": chunk.actions,
            "rewards": chunk.rewards,
            "terminations": chunk.terminations,
            "truncations": chunk.truncations,
            "first": chunk.first,
            "index": np.where(chunk.index >= 0, chunk.index + self._next_index, -1),
            "versions": np.array(self.state.versions, np.int64)[chunk.versions],
            "outputs": chunk.outputs,
            "infos": [(row, first + env, info) for row, env, info in chunk.infos],
        }


def _look_there_too(path: Sequence[str]) -> None:
    """Find the modules that the driver finds, where its folders are on this machine, too."""
    sys.path += [entry for entry in path if entry not in sys.path and os.path.exists(entry)]


def _as_they_are(env_ids: Any, infos: dict[int, dict[str, Any]]) -> dict[Any, Any]:
    return dict(infos)


def _explained(error: Exception) -> Exception:
    """What is missing on this machine, in one line."""
    if isinstance(error, ModuleNotFoundError):
        text = (
            f"the Python of the node {platform.node()} has no module {error.name!r}, which the envs need: install it "
            'there, or let Ray bring it: ray.init(runtime_env={"working_dir": "."}) before opening the fleet'
        )
        return ModuleNotFoundError(text, name=error.name)
    return error


def packed_error(*errors: BaseException) -> bytes:
    """Errors as they travel; one that cannot be pickled as its text."""
    packed: list[tuple[bytes, bytes | None]] = []
    for error in errors:
        cause: bytes | None = None
        with suppress(Exception):
            cause = None if error.__cause__ is None else wire.dumps(error.__cause__)
        try:
            one = wire.dumps(error)
            wire.loads(one)
        except Exception:
            one = wire.dumps(VecEnvError(f"{type(error).__name__}: {error}"))
        packed.append((one, cause))
    return wire.dumps(packed)


def unpacked_error(packed: bytes, where: str) -> list[Exception]:
    """The errors again, with where they come from as a note."""
    errors: list[Exception] = []
    for one, cause in wire.loads(packed):
        error: Exception = wire.loads(one)
        error.add_note(where)
        if cause is not None:
            with suppress(Exception):  # its module may not be importable here: then the text has to do
                error.__cause__ = wire.loads(cause)
        errors.append(error)
    return errors
