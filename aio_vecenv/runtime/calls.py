"""Asking single envs: call, get, set, apply; at any moment, also while they step."""
# async: one future per worker that is asked

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..core import framing as wire
from ..core.assignment import Assignment, EnvIds
from ..core.framing import Kind
from ..core.messages import ERROR, Call, Note, Packed, encode
from ..core.pool import Command
from ..core.report import raise_all, rebuild
from ..errors import VecEnvError, WorkerLost
from ..memory import check_room
from .supervisor import Supervisor, WorkerSlot

__all__ = ["Asked", "Asking", "Calls"]

Answers = Sequence[Note]  # one per env, in their order: its result, or an error


class _Ask(Command):
    """A call of some envs of one worker, and who waits for its answers."""

    answers: asyncio.Future[Answers]


class Asked(NamedTuple):
    """A call under way."""

    what: str  # for errors
    asks: list[_Ask]
    positions: dict[int, int]  # of the envs among those asked, by env


class Asking:
    """Calls of single envs, as `AsyncVecEnv` and `RayFleet` have them: each says how they get there, in `_ask`."""

    def _check_open(self) -> None:
        raise NotImplementedError

    def _count(self, env_ids: Sequence[int] | EnvIds | None) -> int:
        """How many are asked: envs, or VectorEnvs."""
        raise NotImplementedError

    async def _ask(
        self, op: str, name: str, env_ids: Sequence[int] | EnvIds | None, values: Callable[[list[int]], Any]
    ) -> tuple[Any, ...]:
        """As of `Calls.ask`."""
        raise NotImplementedError

    async def call(
        self, name: str, *args: Any, env_ids: Sequence[int] | EnvIds | None = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Call a method of each env, through wrappers; one result per env. Also with steps under way.

        Raises EnvError (a wrong name: its cause is an AttributeError); everything stays usable. WorkerLost if a
        worker, or a fleet's host, is lost meanwhile. Cancelling drops the replies.
        """
        return await self._ask("call", name, env_ids, lambda rows: (args, kwargs))

    async def get_attr(self, name: str, *, env_ids: Sequence[int] | EnvIds | None = None) -> tuple[Any, ...]:
        """An attribute of each env, found as `get_wrapper_attr` does. Errors and cancelling as for `call`."""
        return await self._ask("get", name, env_ids, lambda rows: None)

    async def set_attr(
        self, name: str, values: Any, *, env_ids: Sequence[int] | EnvIds | None = None
    ) -> None:
        """Set an attribute of each env, where `set_wrapper_attr` finds it; a list or tuple gives one value per env.

        Errors and cancelling as for `call`. It is lost when its worker, or a fleet's host, is replaced.
        """
        self._check_open()
        if not isinstance(values, (list, tuple)):
            await self._ask("set", name, env_ids, lambda rows: [values] * len(rows))
        elif len(values) != (n := self._count(env_ids)):
            raise ValueError(f"set_attr({name!r}): {len(values)} values for {n} envs")
        else:
            await self._ask("set", name, env_ids, lambda rows: [values[row] for row in rows])

    async def apply(
        self, function: Callable[[Any], Any], *, env_ids: Sequence[int] | EnvIds | None = None
    ) -> tuple[Any, ...]:
        """`function(env)` where each env lives, with its outermost wrapper; one result per env.

        Errors and cancelling as for `call`.
        """
        name = getattr(function, "__name__", "a function")
        return await self._ask("apply", name, env_ids, lambda rows: function)

    async def render(self) -> tuple[Any, ...]:
        """One frame per env, as its `render()` gives it. Errors and cancelling as for `call`."""
        return await self.call("render")


class Calls:
    """Asks the envs of one vec env, and brings each answer to its caller."""

    def __init__(self, supervisor: Supervisor, assignment: Assignment) -> None:
        self._supervisor, self._assignment = supervisor, assignment

    def count(self, env_ids: Sequence[int] | EnvIds | None) -> int:
        """How many are asked: envs, or VectorEnvs."""
        if self._assignment.whole:
            return sum(len(slot.setup.factories) for slot in self._supervisor.slots)
        return len(self._assignment.env_ids(env_ids))

    async def ask(
        self,
        op: str,
        name: str,
        env_ids: Sequence[int] | EnvIds | None,
        values: Callable[[list[int]], Any],
    ) -> tuple[Any, ...]:
        """One result per env of `env_ids` (default: all), in that order.

        `values(positions)` gives what travels to one worker. Raises EnvError (an ExceptionGroup if several), or
        WorkerLost. Cancelling drops the replies.
        """
        return await self.answers(self.post(op, name, env_ids, values))

    def post(
        self,
        op: str,
        name: str,
        env_ids: Sequence[int] | EnvIds | None,
        values: Callable[[list[int]], Any],
    ) -> Asked:
        """The first half of `ask`: it is on its way."""
        loop = asyncio.get_running_loop()
        ids, parts = self._parts(env_ids)
        positions = {env_id: position for position, env_id in enumerate(ids.tolist())}
        asks: list[_Ask] = []
        for worker, mine, local in parts:
            rows = [positions[env_id] for env_id in mine.tolist()]
            packed = _pack(op, values(rows), f"the arguments of {name!r}")
            ask = _Ask(Kind.CALL, -1, worker, mine, None, *encode(Call(op, name, local, packed)))
            ask.answers = loop.create_future()
            ask.answers.add_done_callback(_seen)
            asks.append(ask)
        check_room(f"the arguments of {name!r}", sum(len(ask.payload) for ask in asks))
        self._supervisor.post(asks)
        return Asked(f"{op} {name!r}", asks, positions)

    async def answers(self, asked: Asked) -> tuple[Any, ...]:
        """The second half of `ask`."""
        what, asks, positions = asked
        while any(not ask.answers.done() for ask in asks) and self._supervisor.run_pending():
            pass
        try:
            await asyncio.wait([ask.answers for ask in asks])
        finally:
            for ask in asks:
                ask.answers.cancel()
        results: list[Any] = [None] * len(positions)
        errors: list[VecEnvError] = []
        for ask in asks:
            for env_id, (_, _, kind, value) in zip(ask.env_ids.tolist(), ask.answers.result()):
                if kind == ERROR:
                    errors.append(rebuild(value, env_id, ask.worker))
                else:
                    results[positions[env_id]] = value
        raise_all(errors, what)
        return tuple(results)

    def _parts(
        self, env_ids: Sequence[int] | EnvIds | None
    ) -> tuple[EnvIds, list[tuple[int, EnvIds, list[int]]]]:
        """The ids, and by worker its own and their local indices. Of VectorEnvs: one id per VectorEnv."""
        assignment = self._assignment
        if not assignment.whole:
            ids = assignment.env_ids(env_ids)
            return ids, [
                (w, mine, assignment.local(w, mine).tolist())
                for w, mine in assignment.by_worker(np.sort(ids))
            ]
        if env_ids is not None:
            raise ValueError("a call of VectorEnvs goes to all of them: env_ids cannot pick rows")
        counts = [len(slot.setup.factories) for slot in self._supervisor.slots]
        bounds = np.cumsum([0, *counts]).tolist()
        ids = np.arange(bounds[-1])
        return ids, [(w, ids[a : a + n], list(range(n))) for w, (a, n) in enumerate(zip(bounds, counts))]

    def answered(self, command: Command) -> None:
        """A reply is in; its caller may not wait for it any more."""
        if command.unread is not None:
            command.notes = [(row, 0, ERROR, command.unread) for row in range(len(command.env_ids))]
        if isinstance(command, _Ask) and not command.answers.done():
            command.answers.set_result(command.notes)

    def lost(self, command: Command, slot: WorkerSlot, reason: str) -> None:
        """The worker was lost with this call under way."""
        ids = list(slot.rows)
        text = f"worker {slot.index} (envs {ids[0]}-{ids[-1]}) {reason} during a call"
        _fail(command, WorkerLost(text, worker=slot.index, env_ids=ids, reason=reason))

    def end(self, error: VecEnvError) -> None:
        """It is over: every caller that waits gets `error`."""
        for slot in self._supervisor.slots:
            for command in slot.commands.values():
                _fail(command, error)


def _seen(answers: asyncio.Future[Answers]) -> None:
    """Whoever waits for them raises what they failed with; where nobody does any more, that is no error."""
    if not answers.cancelled():
        answers.exception()


def _fail(command: Command, error: VecEnvError) -> None:
    if isinstance(command, _Ask) and not command.answers.done():
        command.answers.set_exception(error)


def _pack(op: str, values: Any, what: str) -> Packed:
    """One pickle for all envs; of values to set, one per env."""
    if op != "set":
        return wire.dumps(values, what)
    packed = {id(value): wire.dumps(value, what) for value in {id(value): value for value in values}.values()}
    return [packed[id(value)] for value in values]
