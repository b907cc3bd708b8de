"""The same conversation without a process, in the caller's thread: for pdb, for tests, for very cheap envs."""
# async: nothing here waits; commands are done in `run_pending`, in order of sending

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..blas import same_threads_as_workers
from ..core.framing import Kind, Message
from ..core.messages import Attachment, Setup, Spaces
from ..core.protocol import Conversation
from ..core.report import describe, rebuild
from ..core.updates import Inbox
from ..memory import bytes_left
from ..worker import env_groups
from ..worker.main import execute, interrupted, make_envs, take_update
from ..worker.rows import Group
from ..worker.unroll import Unroller, UnrollUnderWay, unroller_of
from .base import Listener

__all__ = ["InlineBackend", "InlineWorker"]


class InlineBackend:
    """Workers in the caller's thread. Timeouts and crashes do not apply; memory is ordinary memory."""

    block_fd = -1
    in_thread = True

    def __init__(self) -> None:
        self.block: Any = None
        self.owners: dict[int, int] = {}  # env ids by `id(env)`: its workers share a process

    def worker(self, index: int, incarnation: int, listener: Listener) -> InlineWorker:
        return InlineWorker(self, index, incarnation, listener)

    def start_spares(self, more: int = 0) -> None:
        pass

    def allocate(self, size_bytes: int) -> Any:
        self.block = np.zeros(size_bytes, np.uint8)
        return self.block

    def close(self) -> None:
        self.block = None


class InlineWorker:
    """One worker's envs, here. Factories are called as they are; updates and replies are pickled as ever."""

    def __init__(self, backend: InlineBackend, index: int, incarnation: int, listener: Listener) -> None:
        self.index = index
        self.conversation = Conversation(incarnation)
        self._backend, self._listener = backend, listener
        self._queue: deque[Message] = deque()
        self._updates: deque[Message] = deque()
        self._group: Group | None = None
        self._unroller: Unroller | None = None
        self._under_way: UnrollUnderWay | None = None  # of the first message in the queue
        self._envs: list[Any] = []
        self._inbox = Inbox(0)
        self._loop = asyncio.get_running_loop()

    @property
    def pid(self) -> int:
        return -1

    async def make(self, setup: Setup) -> Spaces:
        self.conversation.received(Kind.HELLO)
        self.conversation.sent(Kind.SETUP)
        self._setup, self._env_ids = setup, setup.env_ids
        try:
            self._envs, self._spaces = make_envs(setup, self._backend.owners)
        except Exception as error:
            failed = rebuild(describe(error, "make"), getattr(error, "env_id", -1), self.index)
            failed.__cause__ = error
            raise failed from error
        self.conversation.received(Kind.SPACES)
        return self._spaces

    async def attach(self, attachment: Attachment) -> None:
        self.conversation.sent(Kind.ATTACH)
        self._inbox = Inbox(len(self._envs))
        self._group = env_groups.build(
            self._envs,
            self._spaces,
            self._setup,
            attachment,
            self._backend.block,
            self._inbox,
            self._catch_up,
            bytes_left,
        )
        self._unroller = unroller_of(
            self._group, self._spaces, self._setup, attachment, self._backend.block, same_threads_as_workers
        )
        self.conversation.received(Kind.ATTACHED)

    def send(self, message: Message) -> None:
        self.conversation.sent(message.kind, message.number)
        self._queue.append(message)

    def push(self, message: Message) -> None:
        """An idle worker takes an update as soon as the loop turns, like a process does."""
        self._updates.append(message)
        self._loop.call_soon_threadsafe(self._take_all)

    def _take_all(self) -> None:
        while self._updates:
            message = self._updates.popleft()
            take_update(self._inbox, message)
            self._listener.acknowledged(self, message.version)

    def _catch_up(self, version: int) -> None:
        while self._inbox.taken_up_to < version:
            self._take_all()

    def run_pending(self) -> bool:
        if not self._queue or self._group is None:
            return False
        message = self._queue[0]
        if message.kind is Kind.UNROLL:
            self._row(message)
            return True
        if message.kind is Kind.POLICY:
            assert self._unroller is not None
            # before popleft: after a Ctrl-C in it, once more
            self._unroller.load(message.number, message.payload)
            self._queue.popleft()
            return True
        self._queue.popleft()
        if message.version > self._inbox.taken_up_to:
            self._catch_up(message.version)
        try:
            payloads = execute(self._group, message)
        except BaseException as error:
            # Ctrl-C: the command is answered all the same, or it would be owed for ever
            self._answer(message, interrupted(self._group, message, error))
            raise
        self._answer(message, payloads)
        return True

    def _row(self, message: Message) -> None:
        """Do one row of an unroll."""
        if self._under_way is None:
            if message.version > self._inbox.taken_up_to:
                self._catch_up(message.version)
            assert self._unroller is not None
            self._under_way = UnrollUnderWay(self._unroller, message)
        under_way = self._under_way
        try:
            if under_way.row():
                return
            payloads = under_way.reply()
        except BaseException as error:
            self._end_unroll(message, under_way.interrupted(error))
            raise
        self._end_unroll(message, payloads)

    def _end_unroll(self, message: Message, payloads: Sequence[bytes]) -> None:
        self._queue.popleft()
        self._under_way = None
        self._answer(message, payloads)

    def _answer(self, message: Message, payloads: Sequence[bytes]) -> None:
        number = message.number
        for payload in payloads[:-1]:
            self.conversation.received(Kind.PART, number)
            self._listener.part(self, Message(Kind.PART, number, 0, payload))
        self.conversation.received(Kind.REPLY, number)
        self._listener.replied(self, Message(Kind.REPLY, number, self._inbox.taken_up_to, payloads[-1]))

    def drain(self) -> None:
        pass

    def kill(self, reason: str, *, stack: bool = False) -> None:
        pass

    async def close(self, grace_s: float | None) -> None:
        envs, self._envs, self._group = self._envs, [], None
        self._unroller = self._under_way = None
        self._queue.clear()
        self._updates.clear()
        errors: list[Exception] = []
        for env_id, env in zip(getattr(self, "_env_ids", ()), envs):
            try:
                env.close()
            except Exception as error:
                errors.append(rebuild(describe(error, "close"), env_id, self.index))
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("closing envs", errors)
