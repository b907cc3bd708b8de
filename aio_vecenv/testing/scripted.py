"""`ScriptedBackend`: the inline backend, except that replies and deaths come when the test says so."""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported

from __future__ import annotations

from typing import Any

from ..backends.base import Listener, Loss
from ..backends.inline import InlineBackend, InlineWorker
from ..core.framing import Message
from ..core.messages import Attachment, Setup, Spaces


class ScriptedBackend:
    """The inline backend, except that replies and acknowledgements wait until they are delivered, and workers can die.

    While `automatic` (default False), replies are delivered as soon as the loop turns, those that wait already too.
    """

    block_fd = -1
    in_thread = True

    def __init__(self, *, automatic: bool = False) -> None:
        self._inline = InlineBackend()
        self._automatic = automatic
        self.workers: dict[int, ScriptedWorker] = {}
        self.refuse: Exception | None = None  # raised by the next workers' `make`

    @property
    def automatic(self) -> bool:
        """Whether replies come by themselves."""
        return self._automatic

    @automatic.setter
    def automatic(self, value: bool) -> None:
        self._automatic = value
        for worker in self.workers.values():
            worker.hurry()

    def worker(self, index: int, incarnation: int, listener: Listener) -> ScriptedWorker:
        """The newest incarnation of each worker is in `workers`."""
        worker = self.workers[index] = ScriptedWorker(self, index, incarnation, listener)
        return worker

    def start_spares(self, more: int = 0) -> None:
        """There are none."""

    def allocate(self, size_bytes: int) -> Any:
        return self._inline.allocate(size_bytes)

    @property
    def block(self) -> Any:
        return self._inline.block

    def close(self) -> None:
        self._inline.close()

    def deliver(self, index: int) -> bool:
        """Let worker `index` do its oldest command and reply; whether it had one."""
        return self.workers[index].deliver()

    def lose(self, index: int, reason: str = "was killed by the script") -> None:
        """Worker `index` is gone, as if its process had died."""
        self.workers[index].lose(reason)


class ScriptedWorker(InlineWorker):
    """One worker of a `ScriptedBackend`. `hold_acks` keeps acknowledgements back."""

    def __init__(self, backend: ScriptedBackend, index: int, incarnation: int, listener: Listener) -> None:
        super().__init__(backend._inline, index, incarnation, listener)
        self._script = backend
        self.lost = False
        self.hold_acks = False

    async def make(self, setup: Setup) -> Spaces:
        if self._script.refuse is not None:
            raise self._script.refuse
        return await super().make(setup)

    async def attach(self, attachment: Attachment) -> None:
        await super().attach(attachment)

    def send(self, message: Message) -> None:
        if not self.lost:
            super().send(message)
            self.hurry()

    def hurry(self) -> None:
        """Deliver everything at the loop's next turn, if replies come by themselves."""
        if self._script.automatic and not self.lost:
            self._loop.call_soon(self._deliver_all)

    def _deliver_all(self) -> None:
        while self._script.automatic and self.deliver():
            pass

    def push(self, message: Message) -> None:
        if not self.lost:
            super().push(message)

    def run_pending(self) -> bool:
        return False

    def deliver(self) -> bool:
        """Do the oldest command and reply."""
        return not self.lost and super().run_pending()

    def kill(self, reason: str, *, stack: bool = False) -> None:
        self.lose(reason)

    def lose(self, reason: str) -> None:
        """Never answer again; the listener hears of it at the loop's next turn, as from a pipe."""
        if self.lost:
            return
        self.lost = True
        self._queue.clear()
        self._updates.clear()
        self.conversation.lost()
        self._loop.call_soon(self._listener.lost, self, Loss(reason, -9))

    def _take_all(self) -> None:
        if not self.hold_acks and not self.lost:
            super()._take_all()
