"""What carries a fleet's calls: a place for each host, and an object that is put once for all of them."""
# pure: definitions only

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

__all__ = ["Gone", "Handle", "Node", "Transport", "Unreachable"]


class Gone(Exception):
    """The host is dead, in words."""


class Unreachable(Exception):
    """The call failed, and its host may live: nobody knows whether it was done."""


class Node(NamedTuple):
    """Where a host has its place."""

    name: str
    store_bytes: int | None  # of its object store; None: there is none


class Handle(Protocol):
    """One incarnation of one host."""

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of its `NodeHost`. Raises Gone or Unreachable."""
        ...

    def ping(self, incarnation: int, heard: Callable[[Any], None], gone: Callable[[str], None]) -> None:
        """Ping it; `heard(answer)`, or `gone(reason)` if it is dead, is called in some thread. Allowed from any."""
        ...

    def kill(self) -> None:
        """End it, without waiting."""
        ...

    async def node(self) -> Node:
        """Where it is. Raises Gone or Unreachable."""
        ...


class Transport(Protocol):
    """Starts hosts and carries what is said to them."""

    async def open(self, hosts: int | None, cpus: int) -> int:
        """Connect, and reserve a place of `cpus` CPUs for every host; None: one on each node that has room. How many.

        Cancelling leaves `close` to clean up."""
        ...

    async def places(self, limit_s: float) -> list[bool]:
        """Which slots have a place; waits for all of them, at most `limit_s` seconds."""
        ...

    def room(self) -> str:
        """What room there is, in words, for who finds none."""
        ...

    def own_store_bytes(self) -> int | None:
        """Size of this machine's object store; None: there is none."""
        ...

    def put(self, value: bytes) -> Awaitable[bytes]:
        """Put an object where every host can fetch it."""
        ...

    async def start(self, slot: int) -> Handle:
        """A new host in the slot's place, or in another one where its node may be dead; it need not be up yet."""
        ...

    async def close(self) -> None:
        """End what was started here; always ends."""
        ...
