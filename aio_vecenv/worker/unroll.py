"""Unrolls in a worker: several steps of all of its envs, acted by its own copy of the policy.

A row of a chunk is an ordinary step of the group, whose actions the policy has put where the parent puts those of a
step; what it gave is then copied into the chunk. So a row cannot mean anything else than a step does.
"""
# pure: acts, steps and copies rows; no pipe, no process

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.framing import Message
from ..core.layout import (
    AT_WORK,
    IDLE,
    LAST_ROW_NS,
    POLICY_AT_WORK,
    POLICY_NS,
    ROWS_DONE,
    STOP,
    ChunkBuffer,
    Slab,
    SpaceTree,
)
from ..core.messages import (
    ERROR,
    NOTHING,
    POLICY_FAILED,
    Attachment,
    Note,
    Setup,
    Spaces,
    Unrolled,
    decode,
    encode_notes,
    joined,
)
from ..core.policy import PolicyRunner, rows_in_blocks
from ..core.report import describe_policy
from ..errors import PolicyError
from .env_group import EnvGroup
from .rows import Group

__all__ = ["UnrollUnderWay", "Unroller", "unroller_of"]

_KEPT_ROWS = 128
ActUnder = Callable[[], AbstractContextManager[None]]


class Unroller:
    """Acts for the envs of one worker. `act_under`: what the policy acts in, where others compute in this process."""

    def __init__(
        self,
        group: EnvGroup,
        slab: Slab,
        runner: Callable[[], PolicyRunner],
        worker: int,
        act_under: ActUnder | None = None,
    ) -> None:
        first, count = group.rows.first, len(group.everyone)
        mine = slice(first, first + count)
        self.group, self.act_under = group, act_under
        self.blocks = rows_in_blocks(range(first, first + count))
        self.actions = [column[mine] for column in slab.action if column is not None]
        self.newest = [column[mine] for column in slab.obs if column is not None]
        self.progress: Any = memoryview(slab.progress[worker].data)
        self.buffers = [_Columns(buffer, mine) for buffer in slab.chunks]
        self._new_runner = runner
        self.runner = runner()
        self.broken: PolicyError | None = None  # raised by the newest parameters

    def load(self, version: int, params: bytes | bytearray) -> None:
        """Take the policy's parameters. What goes wrong is reported by the unrolls that are to act under them."""
        self.progress[ROWS_DONE], self.progress[AT_WORK] = 0, POLICY_AT_WORK
        try:
            if self.broken is not None:  # what was loaded in part is dropped
                self.runner = self._new_runner()
            self.runner.load(version, bytes(params))
            self.broken = None
        except PolicyError as error:
            self.broken = error


class _Row(NamedTuple):
    """One row of a worker's columns: what `act` reads and fills, and where the rest goes."""

    obs: list[NDArray[Any]]
    noise: NDArray[Any]
    outputs: dict[str, NDArray[Any]]
    actions: list[NDArray[Any]]
    next_obs: list[NDArray[Any]]
    rewards: NDArray[np.float64]
    versions: NDArray[np.int64]
    flags: NDArray[np.uint8]


class _Columns:
    """A worker's columns of one buffer: time first. The first rows, which nearly all chunks have, are kept as views."""

    def __init__(self, buffer: ChunkBuffer, mine: slice) -> None:
        self._rows: list[_Row] = []
        self.obs = [array[:, mine] for array in buffer.obs]
        self.actions = [array[:, mine] for array in buffer.actions]
        self.outputs = {name: array[:, mine] for name, array in buffer.outputs.items()}
        self.rewards, self.flags, self.versions = (
            array[:, mine] for array in (buffer.rewards, buffer.flags, buffer.versions)
        )
        self.noise = buffer.noise[:, mine]

    def row(self, t: int) -> _Row:
        if t < len(self._rows):
            return self._rows[t]
        row = _Row(
            [array[t] for array in self.obs],
            self.noise[t],
            {name: array[t] for name, array in self.outputs.items()},
            [array[t] for array in self.actions],
            [array[t + 1] for array in self.obs],
            self.rewards[t],
            self.versions[t],
            self.flags[t],
        )
        if t == len(self._rows) < _KEPT_ROWS:
            self._rows.append(row)
        return row


class UnrollUnderWay:
    """One unroll: `row()` until there is none left, then `reply()`."""

    def __init__(self, unroller: Unroller, message: Message) -> None:
        command: Unrolled = decode(message)
        self._unroller, self._length, self._held = unroller, command.length, command.held
        self._columns = unroller.buffers[command.buffer]
        self._t = 0
        self._acting: list[int] | None = None  # envs that have not failed and do not wait; None: all
        self._payloads: list[bytes] = []
        progress = unroller.progress
        progress[ROWS_DONE], progress[POLICY_NS], progress[LAST_ROW_NS] = 0, 0, time.monotonic_ns()

    def row(self) -> bool:
        """Act and step once; whether there is another row to do."""
        unroller, t = self._unroller, self._t
        progress, group, row = unroller.progress, unroller.group, self._columns.row(t)
        group.rows.t = t
        if t == 0:
            group.begin_chunk(progress)
        if self._held:
            self._let_wait()
            if not self._acting:
                self._nothing_from(t)
                return False
        progress[AT_WORK] = POLICY_AT_WORK
        began_ns = time.perf_counter_ns()
        try:
            if unroller.broken is not None:
                raise unroller.broken
            if unroller.act_under is None:
                unroller.runner.act(unroller.blocks, row.obs, row.noise, unroller.actions, row.outputs)
            else:
                with unroller.act_under():
                    unroller.runner.act(unroller.blocks, row.obs, row.noise, unroller.actions, row.outputs)
        except PolicyError as error:
            note: Note = (group.rows.first, t, POLICY_FAILED, describe_policy(error))
            self._payloads.append(encode_notes([note], "an error"))
            self._nothing_from(t)
            return False
        progress[POLICY_NS] += time.perf_counter_ns() - began_ns
        for array, column in zip(row.actions, unroller.actions):
            array[...] = column
        if notes := group.step(self._acting):
            self._say(notes, group, t)
        self._copy(row)
        progress[ROWS_DONE], progress[LAST_ROW_NS] = t + 1, time.monotonic_ns()
        self._t = t + 1
        return self._t < self._length and not progress[STOP]

    def reply(self) -> Sequence[bytes]:
        """The payloads of the reply."""
        self._unroller.group.end_chunk()
        return joined(self._payloads) if self._payloads else NOTHING

    def interrupted(self, error: BaseException) -> Sequence[bytes]:
        """The payloads of the reply where an interrupt ended the row under way: its envs have failed in it."""
        group, t = self._unroller.group, self._t
        acting = group.everyone if self._acting is None else self._acting
        failure = RuntimeError(f"interrupted by {type(error).__name__}")
        self._payloads += group.pack(group.refuse(acting, "unroll", failure))
        self._nothing_from(t)
        return self.reply()

    def _let_wait(self) -> None:
        """Who is to be reset next waits instead: in this chunk it does nothing more."""
        group = self._unroller.group
        waiting = group.between_episodes
        acting = group.everyone if self._acting is None else self._acting
        self._acting = [i for i in acting if i not in waiting]
        group.rows.rewards[waiting] = 0.0

    def _say(self, notes: list[Note], group: Group, t: int) -> None:
        """Keep what was said in this row; who failed in it does nothing more."""
        self._payloads += group.pack(notes)
        first = group.rows.first
        failed = {env_id - first for env_id, _, kind, _ in notes if kind == ERROR}
        if failed:
            acting = group.everyone if self._acting is None else self._acting
            self._acting = [i for i in acting if i not in failed]
            for column, array in zip(self._unroller.newest, self._columns.obs):
                for i in failed:
                    column[i] = array[t, i]  # as it was before

    def _copy(self, row: _Row) -> None:
        unroller = self._unroller
        rows = unroller.group.rows
        for array, column in zip(row.next_obs, unroller.newest):
            array[...] = column
        row.rewards[...] = rows.rewards
        row.versions[...] = rows.versions
        row.flags[...] = rows.flags
        if self._acting is not None:
            idle = sorted(set(unroller.group.everyone).difference(self._acting))
            row.flags[idle] = IDLE

    def _nothing_from(self, t: int) -> None:
        """Nothing happens in the rows from `t` on."""
        columns, length = self._columns, self._length
        rows = self._unroller.group.rows
        for column, array in zip(self._unroller.newest, columns.obs):
            array[t + 1 : length + 1] = array[t]
            column[...] = array[t]
        for array in (*columns.actions, *columns.outputs.values()):
            array[t:length] = 0
        columns.rewards[t:length] = 0.0
        columns.flags[t:length] = IDLE
        columns.versions[t:length] = rows.versions


def unroller_of(
    group: Group,
    spaces: Spaces,
    setup: Setup,
    where: Attachment,
    block: Any,
    act_under: ActUnder | None = None,
) -> Unroller | None:
    """Who unrolls the group's envs, if the vec env unrolls. Raises PolicyError."""
    unrolling = where.unrolling
    if unrolling is None:
        return None
    assert isinstance(group, EnvGroup)
    obs, action = SpaceTree(spaces.observation, setup.shared_memory), SpaceTree(spaces.action)
    slab = Slab(block, where.fields, obs, action)

    def runner() -> PolicyRunner:
        return PolicyRunner(unrolling.policy, spaces.observation, spaces.action, worker=unrolling.worker)

    return Unroller(group, slab, runner, unrolling.worker, act_under)
