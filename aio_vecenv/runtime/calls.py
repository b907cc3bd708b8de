"""Asking single envs: call, get, set, apply; at any moment, also while they step."""
# async: one future per worker that is asked

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core import framing as wire
from ..core.assignment import EnvIds
from ..core.framing import Kind
from ..core.messages import ERROR, Call, Note, Packed, encode
from ..core.pool import Command
from ..core.report import raise_all, rebuild
from ..errors import VecEnvError, WorkerLost
from ..memory import check_room
from .supervisor import Crew, Shift

__all__ = ["Calls"]

Answers = Sequence[Note]  # one per env, in their order: its result, or an error


class Calls:
    """The calls under way of one vec env."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._waiting: dict[Command, asyncio.Future[Answers]] = {}

    async def ask(
        self,
        op: str,
        name: str,
        ids: EnvIds,
        parts: list[tuple[int, EnvIds, list[int]]],
        values: Callable[[list[int]], Any],
    ) -> tuple[Any, ...]:
        """One result per env of `ids`, in that order. `parts`: worker, its env ids, their local indices.

        `values(positions)` gives what travels to one worker. Raises EnvError (an ExceptionGroup if several), or
        WorkerLost. Cancelling drops the replies.
        """
        loop = asyncio.get_running_loop()
        positions = {env_id: position for position, env_id in enumerate(ids.tolist())}
        commands: list[Command] = []
        for worker, mine, local in parts:
            rows = [positions[env_id] for env_id in mine.tolist()]
            packed = _pack(op, values(rows), f"the arguments of {name!r}")
            commands.append(
                Command(Kind.CALL, -1, worker, mine, None, *encode(Call(op, name, local, packed)))
            )
        check_room(f"the arguments of {name!r}", sum(len(command.payload) for command in commands))
        futures: list[asyncio.Future[Answers]] = [loop.create_future() for _ in commands]
        self._waiting.update(zip(commands, futures))
        self._crew.post(commands)
        while self._crew.in_thread and any(not future.done() for future in futures) and self._crew.pump():
            pass
        try:
            await asyncio.wait(futures)
        finally:
            for command, future in zip(commands, futures):
                self._waiting.pop(command, None)
                if not future.cancel() and not future.cancelled():
                    future.exception()  # seen: it is raised below, or this call was cancelled
        results: list[Any] = [None] * len(ids)
        errors: list[VecEnvError] = []
        for command, future in zip(commands, futures):
            for env_id, (_, _, kind, value) in zip(command.env_ids.tolist(), future.result()):
                if kind == ERROR:
                    errors.append(rebuild(value, env_id, command.worker))
                else:
                    results[positions[env_id]] = value
        raise_all(errors, f"{op} {name!r}")
        return tuple(results)

    def answered(self, command: Command) -> None:
        """A reply is in; nobody may wait for it any more."""
        future = self._waiting.pop(command, None)
        if future is None or future.done():
            return
        if command.unread is not None:
            command.notes = [(row, 0, ERROR, command.unread) for row in range(len(command.env_ids))]
        future.set_result(command.notes)

    def lost(self, command: Command, shift: Shift, reason: str) -> None:
        """The worker was lost with this call under way."""
        future = self._waiting.pop(command, None)
        if future is not None and not future.done():
            ids = list(shift.rows)
            text = f"worker {shift.index} (envs {ids[0]}-{ids[-1]}) {reason} during a call"
            future.set_exception(WorkerLost(text, worker=shift.index, env_ids=ids, reason=reason))

    def end(self, error: VecEnvError) -> None:
        """It is over: everybody who waits gets `error`."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)


def _pack(op: str, values: Any, what: str) -> Packed:
    """One pickle for all envs; of values to set, one per env."""
    if op != "set":
        return wire.dumps(values, what)
    packed = {id(value): wire.dumps(value, what) for value in {id(value): value for value in values}.values()}
    return [packed[id(value)] for value in values]


def whole_workers(counts: list[int]) -> tuple[EnvIds, list[tuple[int, EnvIds, list[int]]]]:
    """Ids and parts of a call to VectorEnvs: one id per VectorEnv, `counts[w]` of them in worker w."""
    bounds = np.cumsum([0, *counts]).tolist()
    ids = np.arange(bounds[-1])
    return ids, [(w, ids[a : a + n], list(range(n))) for w, (a, n) in enumerate(zip(bounds, counts))]
