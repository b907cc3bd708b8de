"""The broadcast channel in the parent: publish from any thread, receipts, what each worker has taken."""
# async: `publish` never waits; acknowledgements come in on the loop

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..backends.base import Worker
from ..core import framing as wire
from ..core.layout import Slab
from ..core.messages import encode_update, update_message
from ..core.protocol import State
from ..core.updates import Apply, Update, Updates
from ..errors import ClosedError, WrongLoopError
from ..memory import check_room

__all__ = ["Channel", "Receipt"]

_READY, _CLOSING = State.READY, State.CLOSING
_LATENCIES = 4096  # of the newest acknowledgements, for the percentiles


class Publisher(Protocol):
    """Who knows which workers have taken what."""

    def taken_by(self, topic: str, version: int) -> tuple[int, ...]: ...
    def pending(self, topic: str, version: int) -> tuple[int, ...]: ...
    async def wait(self, topic: str, version: int) -> None: ...


class Receipt:
    """What `broadcast` returned. `await receipt` waits until every live worker has taken it, or a newer one.

    Reading the properties is allowed from any thread; awaiting from the loop that opened the vec env.
    """

    __slots__ = ("_channel", "topic", "version")

    def __init__(self, channel: Publisher, topic: str, version: int) -> None:
        self._channel = channel
        self.topic = topic
        self.version = version

    @property
    def taken(self) -> tuple[int, ...]:
        """The live workers that have taken it, or a newer one of its topic.

        Under apply="reset" their envs get it afterwards, each just before its next reset.
        """
        return self._channel.taken_by(self.topic, self.version)

    @property
    def applied(self) -> tuple[int, ...]:
        """The old name of `taken`; it never meant that an env has the update. Will be removed in the next version."""
        warnings.warn("Receipt.applied was renamed to Receipt.taken", DeprecationWarning, stacklevel=2)
        return self.taken

    @property
    def pending(self) -> tuple[int, ...]:
        """The live workers that have not."""
        return self._channel.pending(self.topic, self.version)

    def __await__(self) -> Generator[Any, None, Receipt]:
        return self.wait().__await__()

    async def wait(self, timeout: float | None = None) -> Receipt:
        """Wait until nothing is pending. Cancelling, or the timeout's TimeoutError, changes nothing.

        Raises ClosedError if the vec env is closed meanwhile.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._channel.wait(self.topic, self.version)
        except TimeoutError:
            raise TimeoutError(
                f"update {self.version} of {self.topic!r}: workers {list(self.pending)} have not taken it "
                f"within {timeout} s"
            ) from None
        return self

    def __repr__(self) -> str:
        return f"<Receipt {self.topic!r} version {self.version}: {len(self.pending)} pending>"


class Channel:
    """Publishes to all live workers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: Sequence[Worker]) -> None:
        self.lock = threading.RLock()  # held for non-blocking work only
        self.thread_id = threading.get_ident()
        self.updates = Updates()
        self._slab: Slab | None = None
        self.latencies_s: deque[float] = deque(maxlen=_LATENCIES)
        self.bytes_sent = 0
        self._loop = loop
        self._workers = workers
        self._waiters: list[tuple[str, int, asyncio.Future[None]]] = []
        self.closed = False

    @property
    def version(self) -> int:
        """The newest version that was published; 0 = none."""
        return self.updates.version

    def publish(self, payload: Any, topic: str, apply: Apply) -> Receipt:
        """Publish now; never waits. Raises TypeError or ValueError if the payload cannot travel."""
        body = encode_update(topic, wire.dumps(payload, "payload"))
        check_room("the payload", len(body), len(self._workers))
        with self.lock:
            if self.closed:
                raise ClosedError("the vec env is closed")
            update = self.updates.publish(topic, apply, body, time.monotonic())
            slab = self._slab
            if slab is not None:
                slab.mark(update.version)
            for worker in self._workers:
                # In the midst of an unroll it need not send a message, and the parent need not wake up for it.
                if slab is not None and (taken := slab.taken(worker.index)):
                    self.acknowledge_up_to(worker, taken)
                self._push(worker)
        return Receipt(self, topic, update.version)

    def open(self, slab: Slab) -> None:
        """From now on versions are visible in the shared block."""
        self._slab = slab

    def adopt(self) -> None:
        """From now on the loop turns in this thread."""
        self.thread_id = threading.get_ident()

    def join(self, worker: Worker) -> None:
        """A worker is ready: the newest update of every topic goes to it."""
        with self.lock:
            self.updates.join(worker.index)
            if self._slab is not None:
                self._slab.forget(worker.index)
            self._push(worker)

    def leave(self, index: int) -> None:
        """A worker is gone; receipts wait for the others."""
        with self.lock:
            self.updates.leave(index)
            self._wake()

    def acknowledge(self, worker: Worker, version: int) -> None:
        """A worker acknowledged an update. Raises ProtocolError if it was never sent that one."""
        with self.lock:
            update = self.updates.acknowledge(worker.index, version)
            if update is not None:
                self._after_acknowledgement(worker, [update])

    def acknowledge_up_to(self, worker: Worker, version: int) -> None:
        """A worker's reply says up to which version it has taken every update; that acknowledges them, too."""
        with self.lock:
            updates = self.updates.acknowledge_up_to(worker.index, version)
            if updates:
                self._after_acknowledgement(worker, updates)

    def _after_acknowledgement(self, worker: Worker, updates: list[Update]) -> None:
        now = time.monotonic()
        self.latencies_s.extend(now - update.published_at for update in updates)
        self._push(worker)
        if self._waiters:
            self._wake()

    def taken_by(self, topic: str, version: int) -> tuple[int, ...]:
        with self.lock:
            return self.updates.taken_by(topic, version)

    def pending(self, topic: str, version: int) -> tuple[int, ...]:
        with self.lock:
            return self.updates.pending(topic, version)

    async def wait(self, topic: str, version: int) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError("this receipt belongs to the event loop that opened its vec env")
        with self.lock:
            if not self.updates.pending(topic, version):
                return
            if self.closed:
                raise ClosedError("the vec env was closed before every worker had taken the update")
            future: asyncio.Future[None] = self._loop.create_future()
            entry = (topic, version, future)
            self._waiters.append(entry)
        try:
            await future
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)

    def close(self) -> None:
        """Make every `await receipt` under way raise ClosedError."""
        with self.lock:
            self.closed = True
            self._slab = None
            for _, _, future in self._waiters:
                if not future.done():
                    future.set_exception(
                        ClosedError("the vec env was closed before every worker had taken the update")
                    )

    def _push(self, worker: Worker) -> None:
        conversation, updates, index = worker.conversation, self.updates, worker.index
        if conversation.state is not _READY and conversation.state is not _CLOSING:
            return
        while frame := updates.next_frame(index):
            body = frame.update.body
            self.bytes_sent += len(body)
            worker.push(
                update_message(frame.update.version, frame.covers, body, frame.now, conversation.incarnation)
            )

    def _wake(self) -> None:
        if threading.get_ident() != self.thread_id:  # who publishes may see what a worker has taken
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._wake)
            return
        for topic, version, future in self._waiters:
            if not future.done() and not self.updates.pending(topic, version):
                future.set_result(None)
