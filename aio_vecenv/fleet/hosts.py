"""The hosts of a fleet at work: sends what `FleetState` wants sent, takes what comes back, pings, waits."""
# async: one task per call under way; pings leave from a thread, so that a loop that learns loses no host

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from ..core import framing as wire
from ..core.env_state import EnvState
from ..core.statistics import Statistics
from ..core.updates import Apply
from ..deadline import within
from ..errors import ClosedError, WorkerLost, WrongLoopError
from .messages import Kill, Liveness, Report, Run, Start, Tell
from .node_host import Failed, HostSetup, Opened, Said, unpacked_error
from .state import FleetState, Phase, Sent
from .statistics import merged
from .transport import Gone, Handle, Node, Transport, Unreachable

__all__ = ["Hosts", "Recipe"]

_AGAIN_S = 0.2  # until a call that failed is made again


class Recipe:
    """What hosts are made of: the factories of each slot's envs, the options of its vec env, and a state for them."""

    def __init__(
        self, slots: Sequence[range], makers: Sequence[Any], settings: dict[str, Any], transport: Transport
    ) -> None:
        self.state: tuple[EnvState, int, bool] | None = None  # what wrappers in the envs have learned
        self._slots, self._makers, self._settings, self._transport = slots, makers, settings, transport

    def of(self, slot: int) -> Awaitable[bytes]:
        """Pickled, where the hosts can fetch it."""
        own = self._slots[slot]
        workers = min(self._settings["num_workers"], len(own))
        made_of = (self._makers[own.start : own.stop], {**self._settings, "num_workers": workers})
        return self._transport.put(wire.dumps(made_of, "envs"))

    def carry(self, state: tuple[EnvState, int, bool]) -> None:
        """Hosts that are replaced begin with this."""
        self.state = state


class _Payload(NamedTuple):
    """What goes with a slot's command."""

    noise: Any = None
    options: Any = None


class Hosts:
    """The shell around a `FleetState`. Everything but `publish` belongs to the loop that made it."""

    def __init__(self, state: FleetState, transport: Transport, liveness: Liveness, recipe: Recipe) -> None:
        self.state, self.closed = state, False
        self.opened: dict[int, Opened] = {}  # by slot, the newest
        self.said: dict[int, Said] = {}  # by slot
        self.failures: dict[int, list[Exception]] = {}  # of hosts that could not make their envs
        self.errors: dict[int, list[Exception]] = {}  # that commands not collected brought, by slot
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._transport, self._liveness, self._recipe = transport, liveness, recipe
        self._handles: dict[tuple[int, int], Handle] = {}
        self._payloads: dict[int, _Payload] = {}
        self._lock = threading.Lock()  # of the two that follow
        self._version = 0
        self._published: deque[tuple[str, Apply, Awaitable[bytes]]] = deque()  # not known to `state` yet
        self._updates: dict[str, tuple[int, Awaitable[bytes]]] = {}  # the newest of each topic
        self._params: dict[int, Awaitable[bytes]] = {}  # by version: the newest, and those that chunks name
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._heard: dict[tuple[int, int], float] = {}  # written by whichever thread hears
        self._pinged_at = time.monotonic()
        self._stop = threading.Event()
        self._pinger: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- time ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the hosts; from now on they are pinged, and replaced."""
        self._pinger = threading.Thread(target=self._ping, name="fleet pings", daemon=True)
        self._pinger.start()
        self._tick()

    def _ping(self) -> None:
        while not self._stop.wait(self._liveness.ping):
            if self._is_long(time.monotonic() - self._pinged_at):
                self._forgive()
            self._pinged_at = time.monotonic()
            for slot, incarnation in list(self._handles):
                handle = self._handles.get((slot, incarnation))
                if handle is not None and slot in self.opened:
                    with suppress(Exception):  # the fleet is being closed, or the host is known to be dead
                        handle.ping(
                            incarnation,
                            partial(self._answered, slot, incarnation, time.monotonic()),
                            partial(self._died, slot, incarnation),
                        )

    def _is_long(self, silent_s: float) -> bool:
        return silent_s > 2 * self._liveness.ping

    def _forgive(self) -> None:
        """This process stood still: nobody was asked anything meanwhile, so nobody's silence counts."""
        self._heard |= dict.fromkeys(list(self._handles), time.monotonic())

    def _answered(self, slot: int, incarnation: int, asked_at: float, said: Any) -> None:
        """In any thread: a ping was answered."""
        if isinstance(said, Said):
            self._heard[slot, incarnation] = time.monotonic()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._told, said, asked_at)

    def _died(self, slot: int, incarnation: int, reason: str) -> None:
        """In any thread: a host is dead, whether it had something to do or not."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.lost, slot, incarnation, reason)

    def _told(self, said: Said, asked_at: float) -> None:
        if said.answer.incarnation == self.state.incarnation(said.answer.slot):
            self.said[said.answer.slot] = said
        self.state.answered(said.answer, asked_at, time.monotonic())
        self.post()

    def _tick(self) -> None:
        if self._stop.is_set():  # it was dropped
            return
        late_s = 0.0 if self._timer is None else self._loop.time() - self._timer.when()
        if self._is_long(late_s) and self._is_long(time.monotonic() - self._pinged_at):
            self._forgive()
        self._take_heard()
        self.state.tick(time.monotonic())
        self.post()
        self._timer = self._loop.call_later(self._liveness.ping / 4, self._tick)

    def _take_heard(self) -> None:
        for (slot, incarnation), at in list(self._heard.items()):
            self.state.heard(slot, incarnation, at)

    def statistics(self) -> Statistics:
        """What all hosts said last, in one snapshot."""
        self._take_heard()
        return merged(self.state, self.said, time.monotonic())

    # -- what the driver wants -------------------------------------------------------------------------------------

    def publish(self, pickled: bytes, topic: str, apply: Apply) -> int:
        """A new update; its version. Never waits; allowed from any thread."""
        ref = self._transport.put(pickled)
        with self._lock:
            if self.closed:
                raise ClosedError("the fleet is closed")
            self._version += 1
            version = self._version
            self._published.append((topic, apply, ref))
        if asyncio._get_running_loop() is self._loop:
            self.post()
        else:
            self._loop.call_soon_threadsafe(self.post)
        return version

    def set_policy(self, version: int, pickled: bytes) -> None:
        """The policy that the next chunks act under."""
        named = {sent.policy for sent in self.state.sent}
        self._params = {v: ref for v, ref in self._params.items() if v in named}
        self._params[version] = self._transport.put(pickled)
        self.state.policy = version

    def send(self, slots: Sequence[int], rows: int, noise: dict[int, Any]) -> Sent:
        """A chunk of these slots, with the noise of each."""
        self.state.check_send(slots)
        payloads = {slot: _Payload(noise[slot]) for slot in slots}
        return self._sent(payloads, lambda now: self.state.send(slots, rows, now))

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int | None], options: Any) -> Sent:
        """A reset of these envs."""
        payload = _Payload(options=options)
        payloads = {
            slot: payload for slot, own in enumerate(self.state.slots) if any(e in own for e in env_ids)
        }
        return self._sent(payloads, lambda now: self.state.reset(env_ids, seeds, now))

    def _sent(self, payloads: dict[int, _Payload], send: Callable[[float], Sent]) -> Sent:
        self._take_published()
        sent = send(time.monotonic())  # raises before anything is changed
        self._payloads |= payloads
        self.post()
        return sent

    async def ask(self, slot: int, method: str, *arguments: Any) -> Any:
        """Ask a host something beside its commands. Raises WorkerLost, and what the host raised."""
        incarnation = self.state.incarnation(slot)
        handle = self._handles.get((slot, incarnation))
        if handle is None or slot not in self.state.live:
            raise self._gone(slot, "is not there")
        try:
            answer = await handle.ask(method, incarnation, *arguments)
        except (Gone, Unreachable) as error:
            raise self._gone(slot, f"{error} during a call") from None
        if isinstance(answer, Failed):
            raise unpacked_error(answer.error, self.where(slot))[0]
        return answer

    async def carry(self, state: tuple[EnvState, int, bool] | None) -> None:
        """Have each host give it to workers that it replaces. One that is lost meanwhile is made with it."""
        if state is not None:
            telling = (self.ask(slot, "carry", state) for slot in self.state.live)
            for told in await asyncio.gather(*telling, return_exceptions=True):
                if isinstance(told, BaseException) and not isinstance(told, WorkerLost):
                    raise told

    async def nodes(self, slots: Sequence[int]) -> list[tuple[int, Node]]:
        """Where the hosts of these slots are."""
        handles = [self._handles[slot, self.state.incarnation(slot)] for slot in slots]
        return list(zip(slots, await asyncio.gather(*(handle.node() for handle in handles))))

    def _gone(self, slot: int, reason: str) -> WorkerLost:
        env_ids = self.state.slots[slot]
        return WorkerLost(
            f"host {slot} (envs {env_ids.start}-{env_ids.stop - 1}) {reason}",
            worker=slot, env_ids=env_ids, reason=reason,
        )  # fmt: skip

    def where(self, slot: int) -> str:
        """Where the slot's host is, in words, for errors that come from there."""
        opened = self.opened.get(slot)
        at = "" if opened is None else f" on {opened.node}"
        first = self.state.slots[slot].start
        return f"on host {slot}{at}, whose env 0 is the fleet's env {first}"

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait for a state. Raises WorkerLost once no host is replaced any more, ClosedError once it is closed."""
        while not so():
            self.check()
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def check(self) -> None:
        """Raise unless it may be used here, and goes on."""
        if self.closed:
            raise ClosedError("the fleet is closed")
        if asyncio._get_running_loop() not in (None, self._loop) or threading.get_ident() != self._thread:
            raise WrongLoopError(
                "this fleet was opened in another event loop or thread: only broadcast() may be called from there"
            )
        if self.state.over is not None:
            raise WorkerLost(
                f"the restart budget of the fleet's hosts is spent: {self.state.over}",
                worker=-1, env_ids=(), reason=self.state.over, crashes=self.state.over.split("; "),
            )  # fmt: skip

    def wake(self) -> None:
        """Let everyone in `until` look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- receipts --------------------------------------------------------------------------------------------------

    def taken_by(self, topic: str, version: int) -> tuple[int, ...]:
        """As of `FleetState.taken`."""
        return self.state.taken(topic, version)

    def pending(self, topic: str, version: int) -> tuple[int, ...]:
        """As of `FleetState.pending`."""
        return self.state.pending(topic, version)

    async def wait(self, topic: str, version: int) -> None:
        """Wait until no live host lacks it. Raises as `until`, and WrongLoopError."""
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError("this receipt belongs to the event loop that opened its fleet")
        await self.until(lambda: self.state.version >= version and not self.pending(topic, version))

    # -- what is sent, and what comes back -------------------------------------------------------------------------

    def _take_published(self) -> None:
        while self._published:
            topic, apply, ref = self._published.popleft()
            self._updates[topic] = (self.state.publish(topic, apply, time.monotonic()), ref)

    def post(self) -> None:
        """Send what is to be sent; whoever waits looks again."""
        if self.closed:
            return
        self._take_published()
        while outbox := self.state.take_outbox():
            for out in outbox:
                if isinstance(out, Start):
                    self._spawn(self._start(out))
                elif isinstance(out, Run):
                    self._spawn(self._run(out))
                elif isinstance(out, Tell):
                    self._spawn(self._tell(out))
                else:
                    self._kill(out)
        self.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name="a call of a fleet")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refs(self) -> dict[int, Awaitable[bytes]]:
        """Of what `state.wants` names now: an update that was overtaken since a message was made is gone."""
        return dict(self._updates.values())

    async def _start(self, start: Start) -> None:
        slot, incarnation = start.slot, start.incarnation
        self.opened.pop(slot, None)
        self.said.pop(slot, None)
        handle = await self._transport.start(slot)
        if incarnation != self.state.incarnation(slot):
            handle.kill()
            return
        self._handles[slot, incarnation] = handle
        env_ids = self.state.slots[slot]
        setup = HostSetup(
            slot, incarnation, env_ids.start, len(env_ids), self.state.num_envs, start.next_index,
            self._recipe.of(slot), self._liveness.lease, tuple(sys.path), self._recipe.state,
        )  # fmt: skip
        try:
            opened = await handle.ask("open", setup)
        except (Gone, Unreachable) as error:
            self.failures[slot] = [self._gone(slot, f"{error} while starting")]
            self.lost(slot, incarnation, f"{error} while starting")
            return
        if isinstance(opened, Failed):
            self.failures[slot] = unpacked_error(opened.error, self.where(slot))
            self.lost(slot, incarnation, f"could not make its envs: {self.failures[slot][0]}")
            return
        self.opened[slot], self.said[slot] = opened, opened.said
        if not self.state.up(slot, incarnation, time.monotonic()):
            handle.kill()
        self.post()

    async def _run(self, run: Run) -> None:
        slot, incarnation = run.slot, run.incarnation
        handle = self._handles[slot, incarnation]
        began = self.state.phase(slot) is Phase.BEGINNING
        noise, options = _Payload() if began else self._payloads.get(slot, _Payload())
        try:
            params = [self._params[run.policy]] if run.policy in self._params else []
            answer = await handle.ask(
                "run", run._replace(wants=self.state.wants), self._refs(), params, noise, options
            )
        except Gone as error:
            self.lost(slot, incarnation, str(error))
            return
        except Unreachable:
            await asyncio.sleep(_AGAIN_S)
            self.state.unanswered(slot, incarnation, run.sequence, time.monotonic())
        else:
            if isinstance(answer, Report):
                if self.state.reported(answer, time.monotonic()) and answer.body.errors is not None:
                    self.errors[slot] = unpacked_error(answer.body.errors, self.where(slot))
            elif isinstance(answer, Failed):
                self.lost(slot, incarnation, f"gave up: {unpacked_error(answer.error, self.where(slot))[0]}")
        self.post()

    async def _tell(self, tell: Tell) -> None:
        slot, incarnation, asked_at = tell.slot, tell.incarnation, time.monotonic()
        handle = self._handles[slot, incarnation]
        try:
            answer = await handle.ask("tell", incarnation, self.state.wants, self._refs())
        except Gone as error:
            self.lost(slot, incarnation, str(error))
            return
        except Unreachable:
            self.state.untold(slot, incarnation)
        else:
            if answer is not None:
                self.state.answered(answer, asked_at, time.monotonic())
        self.post()

    def lost(self, slot: int, incarnation: int, reason: str) -> None:
        """A host is gone, or of no use."""
        self.state.lost(slot, incarnation, reason, time.monotonic())
        self.post()

    def _kill(self, kill: Kill) -> None:
        handle = self._handles.pop((kill.slot, kill.incarnation), None)
        self._heard.pop((kill.slot, kill.incarnation), None)
        if handle is not None:
            handle.kill()

    # -- closing ---------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Nobody holds the fleet any more. Allowed from any thread."""
        self._stop.set()
        for handle in list(self._handles.values()):
            handle.kill()

    async def close(self, grace_s: float) -> list[Exception]:
        """Close all envs, kill all hosts; what could not be closed. Always ends."""
        with self._lock:
            self.closed = True
        self._stop.set()
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        errors: list[Exception] = []
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            async with within(grace_s):
                live = [h for (slot, _), h in self._handles.items() if slot in self.opened]
                answers = await asyncio.gather(
                    *(handle.ask("close") for handle in live), return_exceptions=True
                )
            for answer in answers:
                if isinstance(answer, Failed):
                    errors += unpacked_error(answer.error, "closing the fleet")
        except TimeoutError:
            pass  # killed now
        finally:
            for handle in self._handles.values():
                handle.kill()
            self._handles.clear()
            self.wake()
        return errors
