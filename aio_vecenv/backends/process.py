"""One worker process seen from the parent: start, converse, always reap."""
# async: one reader per socket; callers only await futures

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from ..core.framing import LARGE_BYTES, Decoder, Kind, Message, ProtocolError, encode, pieces
from ..core.messages import Attachment, Setup, Spaces, decode, decode_notes
from ..core.messages import encode as encode_body
from ..core.protocol import Conversation, State
from ..core.report import describe, rebuild, rebuild_policy
from ..deadline import within
from ..errors import WorkerTimeout
from ..memory import SharedBlock, check_room, oom_kills
from .base import Listener, Loss
from .launcher import Child, check_descriptors, launch

__all__ = ["ProcessBackend", "ProcessWorker"]

_REPLY, _PART = Kind.REPLY, Kind.PART

_READ_BYTES = 1 << 17  # read into one buffer: a fresh one of this size costs more than the read
# A stuck worker's faulthandler writes its stack within a millisecond, once it has a CPU. It gets .1 s, and up to a
# second where it waits for a CPU; one that is stopped never writes any.
_STACK_LOOK_S, _STACK_LOOKS, _STACK_LOOKS_IF_BUSY = 0.01, 10, 100


class ProcessBackend:
    """Workers in processes of their own; `spares` warm interpreters wait to replace a lost one."""

    def __init__(self, spares: int = 0, workers: int = 1) -> None:
        check_descriptors(workers + spares)
        self.in_thread = False
        self._block = SharedBlock()
        self.block_fd = self._block.fd
        self._wanted_spares = spares
        self._spares: list[Child] = []

    def worker(self, index: int, incarnation: int, listener: Listener) -> ProcessWorker:
        spare: Child | None = None
        while incarnation and spare is None and self._spares:
            spare = self._spares.pop(0)  # the warmest
            if spare.exited:
                spare.close()
                spare = None
        return ProcessWorker(index, incarnation, listener, self.block_fd, spare)

    def start_spares(self, more: int = 0) -> None:
        while len(self._spares) < self._wanted_spares + more:
            self._spares.append(launch(self.block_fd))

    def allocate(self, size_bytes: int) -> Any:
        return self._block.allocate(size_bytes)

    def close(self) -> None:
        for child in self._spares:
            child.kill()
        for child in self._spares:
            child.close()
        self._spares.clear()
        self._block.close()


class ProcessWorker:
    """One incarnation of one worker process."""

    def __init__(
        self, index: int, incarnation: int, listener: Listener, block_fd: int, spare: Child | None = None
    ) -> None:
        self.index = index
        self.conversation = Conversation(incarnation)
        self._listener = listener
        self._block_fd = block_fd
        self._child: Child | None = spare
        self._loop = asyncio.get_running_loop()
        self._decoder, self._acks = Decoder(), Decoder()
        self._buffer = bytearray(_READ_BYTES)
        self._out = _Outbox()  # of the commands pipe: at most one command per env
        self._updates_out = _Outbox()  # of the updates pipe: at most one update per topic
        self._flushing_updates = False
        self._waiter: asyncio.Future[Message] | None = None  # of make and attach
        self._gone: asyncio.Future[Loss] = self._loop.create_future()
        self._burial: asyncio.Task[None] | None = None
        self._verdict = ""  # why we killed it, where we did
        self._attached = False
        self._farewell: bytes | bytearray = b""  # what the envs said when they were closed
        self._env_ids: list[int] = []
        self._oom_kills = 0

    @property
    def pid(self) -> int:
        return self._child.pid if self._child else -1

    # -- set-up ------------------------------------------------------------------------------------------------

    async def make(self, setup: Setup) -> Spaces:
        (payload, _), self._env_ids = encode_body(setup), setup.env_ids
        check_room(f"the factories of worker {self.index}", len(payload))
        self._oom_kills = oom_kills()
        if self._child is None:
            self._child = launch(self._block_fd)
        self._loop.add_reader(self._child.commands.fileno(), self._readable)
        self._loop.add_reader(self._child.updates.fileno(), self._acks_readable)
        if self._child.pidfd >= 0:
            self._loop.add_reader(self._child.pidfd, self._exited)
        await self._answer()  # HELLO
        self.send(Message(Kind.SETUP, payload=payload, incarnation=self.conversation.incarnation))
        del payload
        answer = await self._answer()
        try:
            spaces: Spaces = decode(answer)
        except Exception as error:  # whatever unpickling runs
            raise rebuild(describe(error, "reading its spaces"), setup.env_ids[0], self.index) from error
        return spaces

    async def attach(self, attachment: Attachment) -> None:
        self.send(Message(Kind.ATTACH, payload=encode_body(attachment)[0]))
        await self._answer()  # ATTACHED
        self._attached = True

    async def _answer(self) -> Message:
        if self._gone.done():
            raise self._gone.result()
        self._waiter = self._loop.create_future()
        try:
            message = await self._waiter
        finally:
            self._waiter = None
        if message.kind is Kind.FAILED:
            env_id, report = decode(message)
            if report.op != "make":
                raise rebuild_policy(report, self.index)
            raise rebuild(report, -1 if env_id is None else env_id, self.index)
        return message

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        self.conversation.sent(message.kind, message.number)
        child = self._child
        if child is None or self._burial is not None or self._gone.done():
            return  # its loss is on the way to the listener
        out = self._out
        if not out.waiting and len(message.payload) < LARGE_BYTES:  # as nearly always
            data = encode(message)
            try:
                sent = child.commands.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                return  # as of `_Outbox.flush`
            if sent == len(data):
                return
            out.put(data[sent:])
        else:
            waited = bool(out.waiting)
            for piece in pieces(message):
                out.put(piece)
            if waited or out.flush(child.commands):
                return
        self._loop.add_writer(child.commands.fileno(), self._flush)

    def _flush(self) -> None:
        assert self._child is not None
        if self._out.flush(self._child.commands):
            self._loop.remove_writer(self._child.commands.fileno())

    def push(self, message: Message) -> None:
        child = self._child
        if child is None or not child.alive or self._burial is not None:
            return
        out = self._updates_out
        waited = bool(out.waiting)
        for piece in pieces(message):
            out.put(piece)
        if not waited and out.flush(child.updates):
            return
        if not self._flushing_updates:
            self._flushing_updates = True
            self._on_loop(self._start_flushing_updates)

    def _on_loop(self, callback: Any) -> None:
        if threading.get_ident() == getattr(self._listener, "thread_id", None):
            callback()
        else:
            self._loop.call_soon_threadsafe(callback)

    def _start_flushing_updates(self) -> None:
        if self._child is not None and self._child.alive and self._burial is None:
            self._loop.add_writer(self._child.updates.fileno(), self._flush_updates)

    def _flush_updates(self) -> None:
        assert self._child is not None
        with self._listener.lock:
            if self._updates_out.flush(self._child.updates):
                self._flushing_updates = False
                self._loop.remove_writer(self._child.updates.fileno())

    # -- receiving -------------------------------------------------------------------------------------------------

    def run_pending(self) -> bool:
        return False

    def drain(self) -> None:
        if self._child is not None and self._burial is None:
            self._readable()
            if self._burial is None:
                self._acks_readable()

    def _exited(self) -> None:
        """The process has ended. A child of its own may hold the pipes open, so their end may never come."""
        while self._burial is None and self._readable():
            pass  # what it had sent before
        self._bury()

    def _readable(self) -> bool:
        """Take in what has arrived; whether that was anything."""
        assert self._child is not None
        try:
            size = self._child.commands.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            size = 0
        if not size:
            self._bury()
            return False
        try:
            for message in self._decoder.feed(self._buffer, size):
                kind = message.kind
                if kind is _REPLY:
                    self.conversation.received(kind, message.number, message.incarnation)
                    self._listener.replied(self, message)
                    continue
                if kind is _PART:
                    self.conversation.received(kind, message.number, message.incarnation)
                    self._listener.part(self, message)
                    continue
                self.conversation.received(kind, message.number)
                if kind is Kind.GOODBYE:
                    self._farewell = message.payload
                if self._waiter is None or self._waiter.done():
                    continue
                self._waiter.set_result(message)
        except ProtocolError as error:
            self._verdict = f"broke the protocol: {error}"
            self._bury()
        return True

    def _acks_readable(self) -> None:
        assert self._child is not None
        try:
            size = self._child.updates.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if not size:  # the commands pipe tells the end; both end together
            self._loop.remove_reader(self._child.updates.fileno())
            return
        try:
            for message in self._acks.feed(self._buffer, size):
                self.conversation.received(message.kind, message.number, message.incarnation)
                self._listener.acknowledged(self, message.version)
        except ProtocolError as error:
            self._verdict = f"broke the protocol: {error}"
            self._bury()

    # -- the end ---------------------------------------------------------------------------------------------------

    def kill(self, reason: str, *, stack: bool = False) -> None:
        if self._child is None or self._burial is not None:
            return
        self._verdict = reason
        if stack:
            self._child.dump_stack()
            self._kill_once_told(self._child)
        else:
            self._child.kill()

    def _kill_once_told(self, child: Child, looks: int = 0, seen: str = "") -> None:
        """Kill it after .1 s; where it waits for a CPU then, once its stack grows no more since it was `seen`."""
        report = child.crash_report()
        written = looks >= _STACK_LOOKS and (not child.waits_for_cpu or (report and report == seen))
        if child.alive and not written and looks < _STACK_LOOKS_IF_BUSY:
            self._loop.call_later(_STACK_LOOK_S, self._kill_once_told, child, looks + 1, report)
        else:
            child.kill()

    def _bury(self) -> None:
        """Nothing more will come. Kill the group, reap, then tell."""
        if self._burial is not None:
            return
        child = self._child
        assert child is not None
        self._stop_listening(child)
        child.kill()
        self._burial = self._loop.create_task(self._reap(child), name=f"reap worker {self.index}")

    def _stop_listening(self, child: Child) -> None:
        if child.alive:
            for sock in (child.commands, child.updates):
                self._loop.remove_reader(sock.fileno())
                self._loop.remove_writer(sock.fileno())
            if child.pidfd >= 0:
                self._loop.remove_reader(child.pidfd)

    async def _reap(self, child: Child) -> None:
        said_goodbye = self.conversation.state is State.CLOSED
        await _exited(child)
        report = child.crash_report()
        with self._listener.lock:
            status = child.close()
        reason = self._verdict or describe_exit(status)
        if status == -signal.SIGKILL and not self._verdict and oom_kills() > self._oom_kills:
            reason += ", probably because it ran out of memory"
        if self._decoder.mid_message:
            reason += ", in the middle of a message"
        if report:
            reason += f"\nits last words:\n{report}"
        if not said_goodbye:
            self.conversation.lost()
        loss = Loss(reason, status)
        self._gone.set_result(loss)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(loss)
        if self._attached:
            self._listener.lost(self, loss)

    async def close(self, grace_s: float | None) -> None:
        """Cancelling skips the grace: the process is killed and reaped all the same.

        Raises EnvError (an ExceptionGroup if several) if envs raised in close(), WorkerTimeout if they were not closed
        in grace. A worker that is still being set up is given none.
        """
        if self._child is None:
            return
        self._attached = False  # its end is no loss any more
        try:
            if self._burial is None and not self._gone.done():
                if self.conversation.state in (State.IDLE, State.MADE, State.READY) and grace_s != 0:
                    self.send(Message(Kind.CLOSE))
                    await self._wait_gone(grace_s)
                else:
                    self._bury()  # nobody may listen to it yet: a spare that was not told what it is for
            await asyncio.shield(self._gone)
        finally:
            self._child.kill()
            if not self._gone.done():
                self._stop_listening(self._child)
                if self._burial is not None:
                    self._burial.cancel()
                self._child.close()  # waits for a killed process: a few milliseconds
        notes = decode_notes(self._farewell)
        errors = [rebuild(report, self._env_ids[i], self.index) for i, _, _, report in notes]
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("closing envs", errors)

    async def _wait_gone(self, grace_s: float | None) -> None:
        assert self._child is not None
        try:
            async with within(grace_s):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self._child.dump_stack()
            self._kill_once_told(self._child)
            loss = await asyncio.shield(self._gone)
            raise WorkerTimeout(
                f"worker {self.index} (envs {self._env_ids[0]}-{self._env_ids[-1]}) did not close within {grace_s:g} s "
                f"and {loss.reason}",
                worker=self.index,
                limit_s=float(grace_s or 0),
            ) from None


class _Outbox:
    """Bytes that wait for a full pipe, not copied: a large update that goes to all workers is there once."""

    def __init__(self) -> None:
        self.waiting: deque[memoryview] = deque()

    def put(self, data: bytes | bytearray) -> None:
        self.waiting.append(memoryview(data))

    def flush(self, sock: Any) -> bool:
        """Send what fits; whether that was all. A dead peer takes everything: its end-of-file tells."""
        waiting = self.waiting
        while waiting:
            data = waiting[0]
            try:
                sent = sock.send(data)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                waiting.clear()
                return True
            if sent < len(data):
                waiting[0] = data[sent:]
                return False
            waiting.popleft()
        return True


def describe_exit(status: int | None) -> str:
    """In words: an exit status as `subprocess` gives it."""
    if status is None:
        return "ended"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"exited with status {status}"


async def _exited(child: Child) -> None:
    """Wait until a child has exited, without reaping it."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    if child.pidfd >= 0:
        loop.add_reader(child.pidfd, finish)
        try:
            await done
        finally:
            if child.alive:  # else somebody else may have that number by now
                loop.remove_reader(child.pidfd)
    elif sys.platform != "linux":  # pragma: no cover - macOS

        def watch() -> None:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            loop.call_soon_threadsafe(finish)

        threading.Thread(target=watch, daemon=True).start()
        await done
