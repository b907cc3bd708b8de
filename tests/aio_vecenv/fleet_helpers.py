"""A fleet whose hosts live in this process: the whole of it but Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

from aio_vecenv.fleet.node_host import NodeHost
from aio_vecenv.fleet.transport import Gone, Node, Unreachable

__all__ = ["Held", "LocalHandle", "LocalTransport"]


class Held:
    """An object that was put."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, None, bytes]:
        yield from asyncio.sleep(0).__await__()
        return self.value


class LocalHandle:
    """A host in this process. `dead`: it was killed; `silent`: calls to it hang until it speaks again."""

    def __init__(self) -> None:
        self.host = NodeHost(leave=self.kill)
        self.dead = asyncio.Event()
        self.spoken = asyncio.Event()
        self.spoken.set()
        self.fail_next: list[str] = []  # methods whose next answer is lost
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ask(self, method: str, *arguments: Any) -> Any:
        if self.dead.is_set():
            raise Gone("died")
        task = self._spawn(self._call(method, *arguments))
        death = self._spawn(self.dead.wait())
        await asyncio.wait([task, death], return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if not task.done():
            task.cancel()
            raise Gone("died")
        if method in self.fail_next:
            self.fail_next.remove(method)
            raise Unreachable("the answer was lost")
        return task.result()

    async def _call(self, method: str, *arguments: Any) -> Any:
        await self.spoken.wait()
        return await getattr(self.host, method)(*arguments)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def ping(self, incarnation: int, heard: Callable[[Any], None], gone: Callable[[str], None]) -> None:
        def ask() -> None:
            if self.dead.is_set():
                gone("died")
            else:
                self._spawn(self._ping(incarnation, heard))

        self._loop.call_soon_threadsafe(ask)

    async def _ping(self, incarnation: int, heard: Callable[[Any], None]) -> None:
        heard(await self.ask("ping", incarnation))

    def kill(self) -> None:
        """As Ray would: its process is gone, and its workers with it."""
        self.dead.set()
        self._loop.call_soon(lambda: self._spawn(self.host.close()))

    async def ended(self) -> None:
        self.kill()
        await self.host.close()
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def node(self) -> Node:
        return Node("here", None)


class LocalTransport:
    """`places`: how many hosts find one."""

    def __init__(self, places: int = 1_000_000, store_bytes: int | None = None) -> None:
        self.handles: list[LocalHandle] = []
        self.have, self._store_bytes = places, store_bytes

    async def open(self, hosts: int | None, cpus: int) -> int:
        self._hosts = hosts or 1
        return self._hosts

    async def places(self, limit_s: float) -> list[bool]:
        return [slot < self.have for slot in range(self._hosts)]

    def room(self) -> str:
        return "there is no more room"

    def own_store_bytes(self) -> int | None:
        return self._store_bytes

    def put(self, value: bytes) -> Held:
        return Held(value)

    async def start(self, slot: int) -> LocalHandle:
        handle = LocalHandle()
        if slot >= self.have:
            handle.spoken.clear()
        self.handles.append(handle)
        return handle

    async def close(self) -> None:
        for handle in self.handles:
            await handle.ended()
