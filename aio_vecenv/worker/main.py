"""The child's whole life: attach, loop, report, exit. Synchronous; imports neither asyncio nor torch."""
# resource (child): owns this process's ends of the pipes

from __future__ import annotations

import faulthandler
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..core import framing as wire
from ..core.env_state import put_back, restore
from ..core.factories import check_own
from ..core.framing import Decoder, Kind, Message, ProtocolError, encode, new_message, pieces
from ..core.layout import TAKEN
from ..core.log_levels import adopt
from ..core.messages import (
    ERROR,
    NOTHING,
    NOW,
    Attachment,
    Call,
    Failed,
    Reset,
    Setup,
    Spaces,
    Step,
    decode,
    decode_update,
    encode_notes,
)
from ..core.messages import encode as encode_body
from ..core.report import describe, describe_policy
from ..core.updates import Inbox, Unreadable
from ..errors import PolicyError
from ..memory import SharedBlock, bytes_left
from . import env_groups
from .rows import Group
from .unroll import Unroller, UnrollUnderWay, unroller_of

__all__ = ["execute", "interrupted", "main", "make_envs", "take_update"]

_STEP, _PART, _REPLY, _CLOSE = Kind.STEP, Kind.PART, Kind.REPLY, Kind.CLOSE
_POLICY, _UNROLL = Kind.POLICY, Kind.UNROLL


class _ParentGone(BaseException):
    """End-of-file on a pipe: the parent is gone."""


def main(lifeline_fd: int, commands_fd: int, updates_fd: int, block_fd: int, crash_fd: int) -> None:
    """Run one worker over inherited descriptors until it is told to close, or the parent is gone."""
    crash_file = os.fdopen(crash_fd, "wb", buffering=0)
    faulthandler.enable(crash_file)
    if hasattr(signal, "SIGUSR2"):
        faulthandler.register(signal.SIGUSR2, crash_file, all_threads=True)
    _yield_to_sender()
    worker = _Worker(
        socket.socket(fileno=commands_fd), socket.socket(fileno=updates_fd), lifeline_fd, block_fd
    )
    code = 1
    try:
        worker.run()
        code = 0
    except _ParentGone:
        pass
    except SystemExit as error:
        code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # the env may have closed them
            stream.flush()
    os._exit(code)  # neither the env's atexit hooks nor its threads may keep a worker that is done


def _yield_to_sender() -> None:
    """Let the parent finish sending to all workers before the first one woken takes its CPU."""
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            if os.sched_getscheduler(0) == os.SCHED_OTHER:
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Worker:
    """The loop: wait for a command or an update, do it, answer."""

    def __init__(
        self, commands: socket.socket, updates: socket.socket, lifeline_fd: int, block_fd: int
    ) -> None:
        self.commands, self.updates, self.block_fd = commands, updates, block_fd
        self.commands_fd, self.updates_fd = commands.fileno(), updates.fileno()
        for sock in (commands, updates):
            sock.setblocking(True)
        self.commands_in, self.updates_in = Decoder(), Decoder()
        self.waiting: list[Message] = []
        self.buffer = bytearray(1 << 16)
        self.incarnation = 0
        self.inbox = Inbox(0)
        self.taken: list[int] = []  # versions taken, not acknowledged yet
        self.group: Group | None = None
        self.unroller: Unroller | None = None
        self.updates_poll = select.poll()
        self.updates_poll.register(updates, select.POLLIN)
        self.poll = select.poll()
        self.poll.register(commands, select.POLLIN)
        self.poll.register(lifeline_fd, 0)  # hang-up only

    def run(self) -> None:
        self.send(Message(Kind.HELLO))
        setup = self.next_command()
        if setup.kind is Kind.CLOSE:
            return
        self.incarnation = setup.incarnation
        try:
            group = self.set_up(decode(setup))
        except Exception as error:
            report = describe_policy(error) if isinstance(error, PolicyError) else describe(error, "make")
            failed = Failed(getattr(error, "env_id", None), report)
            self.send(Message(Kind.FAILED, payload=encode_body(failed)[0]))
            return
        if group is None:
            return
        self.group = group
        self.poll.register(self.updates, select.POLLIN)
        self.send(Message(Kind.ATTACHED))
        try:
            self.serve(group)
        except _ParentGone:
            group.close()
            raise
        notes = group.close()  # only after a normal end, not after an env's sys.exit: close() may block
        self.send(Message(Kind.GOODBYE, payload=encode_notes(notes, "errors") if notes else b""))

    def set_up(self, setup: Setup) -> Group | None:
        if setup.logs is not None:
            adopt(setup.logs)
        envs, spaces = make_envs(setup, {})
        self.send(Message(Kind.SPACES, payload=encode_body(spaces)[0]))
        attach = self.next_command()
        if attach.kind is Kind.CLOSE:
            for env in envs:
                env.close()
            return None
        where: Attachment = decode(attach)
        block = SharedBlock.attach(self.block_fd, where.size_bytes)
        self.inbox = Inbox(len(envs))
        group = env_groups.build(envs, spaces, setup, where, block, self.inbox, self.catch_up, bytes_left)
        self.unroller = unroller_of(group, spaces, setup, where, block)
        return group

    def serve(self, group: Group) -> None:
        inbox, incarnation = self.inbox, self.incarnation
        while True:
            command = self.next_command()
            if command.kind is _CLOSE:
                return
            if command.kind is _POLICY:
                assert self.unroller is not None
                self.unroller.load(command.number, command.payload)
                continue
            if command.version > inbox.taken_up_to:
                self.catch_up(command.version)
            number = command.number
            payloads = execute(group, command) if command.kind is not _UNROLL else self.unroll(command)
            if payloads is not NOTHING and len(payloads) > 1:
                for payload in payloads[:-1]:
                    self.send(new_message((_PART, number, 0, payload, 0, incarnation)))
            payload = payloads[-1]
            reply = new_message((_REPLY, number, inbox.taken_up_to, payload, 0, incarnation))
            if payload:
                self.send(reply)
            else:
                try:
                    self.commands.sendall(encode(reply))
                except ConnectionError:
                    raise _ParentGone from None
            if self.taken:
                self.taken.clear()

    def unroll(self, command: Message) -> Sequence[bytes]:
        assert self.unroller is not None
        under_way = UnrollUnderWay(self.unroller, command)
        while under_way.row():
            pass
        return under_way.reply()

    def next_command(self) -> Message:
        """The next message of the commands pipe; updates that come meanwhile are taken at once."""
        while not self.waiting:
            for fd, event in self.poll.poll():
                if fd == self.commands_fd:
                    self.waiting += self.commands_in.feed(self.buffer, self._receive(self.commands))
                elif fd == self.updates_fd:
                    self.read_updates(in_command=bool(self.waiting))
                elif event & (select.POLLHUP | select.POLLERR):  # the lifeline
                    raise _ParentGone
        return self.waiting.pop(0)

    def catch_up(self, version: int) -> None:
        """Take updates until none up to `version` is missing."""
        while self.inbox.taken_up_to < version:
            if self.taken and not self.updates_poll.poll(0):
                self.acknowledge()  # the parent is waiting for that, to send the next
            self.read_updates(in_command=True)
            # Never between two commands: then another process may have this line already.
            if self.unroller is not None:
                self.unroller.progress[TAKEN] = self.inbox.taken_up_to

    def read_updates(self, *, in_command: bool) -> None:
        """Take the updates that have arrived. During a command, its reply acknowledges them, which saves a message."""
        for message in self.updates_in.feed(self.buffer, self._receive(self.updates)):
            if message.kind is not Kind.UPDATE:
                raise ProtocolError(f"{message.kind.name} on the updates pipe")
            take_update(self.inbox, message)
            self.taken.append(message.version)
        if self.taken and (not in_command or self.inbox.taken_up_to < self.taken[-1]):
            self.acknowledge()

    def acknowledge(self) -> None:
        """Acknowledge every update that was taken and not acknowledged yet."""
        for version in self.taken:
            self._send(self.updates, Message(Kind.TAKEN, 0, version, b"", 0, self.incarnation))
        self.taken.clear()

    def send(self, message: Message) -> None:
        self._send(self.commands, message)

    def _receive(self, sock: socket.socket) -> int:
        """Receive into the buffer; returns the number of bytes."""
        try:
            size = sock.recv_into(self.buffer)
        except ConnectionError:
            size = 0
        if not size:
            raise _ParentGone
        return size

    @staticmethod
    def _send(sock: socket.socket, message: Message) -> None:
        try:
            for piece in pieces(message):
                sock.sendall(piece)
        except ConnectionError:
            raise _ParentGone from None


def take_update(inbox: Inbox, message: Message) -> None:
    """Take the update that `message` carries."""
    topic, packed = decode_update(message.payload)
    try:
        payload = wire.loads(packed)
    except Exception as error:  # whatever unpickling runs
        payload = Unreadable(error)
    inbox.take(message.version, message.number, topic, payload, now=bool(message.flags & NOW))


def execute(group: Group, message: Message) -> Sequence[bytes]:
    """Do one command; the payloads of its reply's parts."""
    if message.kind is _STEP and not message.flags:  # as nearly always
        notes = group.step(None)
        return group.pack(notes) if notes else NOTHING
    command = decode(message)
    match command:
        case Step(envs, packed):
            try:
                pickled = () if packed is None else wire.loads(packed)
            except Exception as error:  # whatever unpickling runs
                return group.pack(group.refuse(group.everyone if envs is None else envs, "step", error))
            return group.pack(group.step(envs, pickled))
        case Reset():
            return group.pack(group.reset(*command), "reset")
        case Call():
            return group.rows.pack_results(group.call(*command))
    raise ProtocolError(f"{message.kind.name} is no command")


def interrupted(group: Group, message: Message, error: BaseException) -> Sequence[bytes]:
    """The payloads of the reply to a command that was interrupted: all its envs have failed."""
    failure = RuntimeError(f"interrupted by {type(error).__name__}")
    command = decode(message)
    if type(command) is Call:
        report = describe(failure, command.op)
        return group.rows.pack_results(
            [(position, 0, ERROR, report) for position in range(len(command.envs))]
        )
    envs = group.everyone if command.envs is None else command.envs
    return group.pack(group.refuse(envs, message.kind.name.lower(), failure))


def _tell_index(env: Any, env_id: int) -> None:
    """Call the `on_index` of an env, or of what it wraps, if there is one."""
    try:
        hook = env.get_wrapper_attr("on_index")
    except AttributeError:
        return
    hook(env_id)


def make_envs(setup: Setup, owners: dict[int, int]) -> tuple[list[Any], Spaces]:
    """Make the envs, one after another; their spaces must agree. An error carries `env_id`.

    `owners`: as of `check_own`, of all envs in this process.
    """
    envs: list[Any] = []
    spaces: Spaces | None = None
    rows: list[int] = []
    for place in [place for place, owner in owners.items() if owner in setup.env_ids]:
        del owners[place]  # of a former incarnation: another env may have that id() by now
    try:
        for env_id, factory in zip(setup.env_ids, setup.factories):
            try:
                env = factory()
                check_own(env, env_id, owners)
                envs.append(env)
                _tell_index(env, env_id)
                mine = env_groups.spaces_of(env, setup.settings)
                if spaces is None:
                    spaces = mine
                else:
                    env_groups.check_same(spaces, mine, setup.env_ids[0], setup.settings)
                rows += mine.rows
            except Exception as error:
                error.env_id = env_id  # type: ignore[attr-defined]
                raise
    except Exception:
        for env in envs:
            with suppress(Exception):  # the first failure is the one to tell
                env.close()
        raise
    if setup.state is not None:
        state, parts, frozen = setup.state
        for env in envs:
            restore(env, state, parts=parts, frozen=frozen)
    for env, own in zip(envs, setup.own or ()):
        put_back(env, own)
    assert spaces is not None, "a worker has at least one env"
    return envs, Spaces(
        spaces.observation, spaces.action, spaces.metadata, spaces.spec, rows, spaces.vectorised
    )
