"""What a backend is: workers that hold the conversation of `protocol`, wherever they run."""
# pure: definitions only

from __future__ import annotations

import threading
from typing import Any, Protocol

from ..core.framing import Message
from ..core.messages import Attachment, Setup, Spaces
from ..core.protocol import Conversation

__all__ = ["Backend", "Listener", "Loss", "Worker"]


class Loss(Exception):
    """Why a worker is gone, in words; `exit_status` is negative for a signal, None where nobody knows."""

    def __init__(self, reason: str, exit_status: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_status = exit_status


class Listener(Protocol):
    """Who hears from the workers. Plain functions, called on the event loop, one at a time."""

    lock: threading.RLock  # held around everything that touches the updates pipes
    thread_id: int  # of the loop

    def part(self, worker: Worker, message: Message) -> None:
        """The beginning of a reply came in."""

    def replied(self, worker: Worker, message: Message) -> None:
        """A reply came in, to its end."""

    def acknowledged(self, worker: Worker, version: int) -> None:
        """The worker acknowledged an update."""

    def lost(self, worker: Worker, loss: Loss) -> None:
        """The worker is gone, reaped, and will say nothing more. Called once, only after `attach` returned."""


class Worker(Protocol):
    """One incarnation of one worker, seen from the parent."""

    index: int
    conversation: Conversation

    @property
    def pid(self) -> int:
        """Of its process; -1: it has none of its own."""

    async def make(self, setup: Setup) -> Spaces:
        """Start, make the envs. Raises Loss, or what `Setup` brought about. Cancelling leaves `close` to clean up."""

    async def attach(self, attachment: Attachment) -> None:
        """Map the shared block; from here on commands are taken. Raises Loss."""

    def send(self, message: Message) -> None:
        """Send a command; never waits."""

    def push(self, message: Message) -> None:
        """Send an update; never waits; the one call that is allowed from any thread (under the caller's lock)."""

    def run_pending(self) -> bool:
        """Do one piece of work in the caller's thread, if that is where this backend works; whether there was any."""

    def drain(self) -> None:
        """Take in what has arrived already, without waiting."""

    def kill(self, reason: str, *, stack: bool = False) -> None:
        """Give the worker up; `lost` follows. With `stack`, first ask for the stack it is stuck in."""

    async def close(self, grace_s: float | None) -> None:
        """Say goodbye, wait at most `grace_s` seconds, then kill; always ends with nothing left."""


class Backend(Protocol):
    """Makes workers."""

    block_fd: int  # -1: memory need not be shared
    in_thread: bool  # whether its workers do their commands in `run_pending`, in the caller's thread

    def worker(self, index: int, incarnation: int, listener: Listener) -> Worker:
        """A new worker; nothing is started yet."""

    def start_spares(self, more: int = 0) -> None:
        """Start what is missing of the warm interpreters that wait to replace a worker; never waits.

        `more`: for planned renewals, beside those that were asked for at the start. Raises OSError.
        """

    def allocate(self, size_bytes: int) -> Any:
        """A writable buffer of that size which the workers can attach. Raises MemoryError."""

    def close(self) -> None:
        """Release what belongs to no worker."""
