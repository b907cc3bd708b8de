"""Ray: connects or starts it, reserves a place for each host, and carries calls to them."""
# resource: owns one thread, in which Ray is started, ended and asked what takes time; `ray.get` is never called

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectFetchTimedOutError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .node_host import NodeHost
from .transport import Gone, Node, Unreachable

__all__ = ["RayTransport"]

_SPREAD_S = 1.0  # for a place to be found before the next one is looked for


class RayTransport:
    """Ray as it is where it runs already, else a local one of our own, without dashboard and log forwarding."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._ours = False
        # Ray's processes live as long as the thread that started them: the kernel is asked to end them with it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fleet ray")
        self._groups: list[PlacementGroup] = []  # by slot
        self._handles: list[RayHandle | None] = []  # the newest, by slot
        self._cpus = 1

    async def open(self, hosts: int | None, cpus: int) -> int:
        self._cpus = cpus
        opened: int = await self._in_thread(self._open, hosts, cpus)
        return opened

    def _open(self, wanted: int | None, cpus: int) -> int:
        if not ray.is_initialized():
            self._connect((wanted or 1) * cpus)
            self._ours = True
        hosts = wanted or max(1, len(_nodes_with(cpus)))
        for _ in range(hosts):
            self._groups.append(self._group())
            self._groups[-1].wait(_SPREAD_S)  # one after the other: each is placed where most is free
        self._handles = [None] * hosts
        return hosts

    def _group(self) -> PlacementGroup:
        """A place that stays ours whatever happens to the actor in it, and moves on where its node dies."""
        return placement_group([{"CPU": self._cpus}], strategy="SPREAD")

    def _connect(self, cpus: int) -> None:
        """Signal handlers are only touched from the main thread, which this is not."""
        log = logging.getLogger("ray")
        level = log.level
        log.setLevel(logging.ERROR)  # it would say that it could not take the signals
        before = os.environ.get("RAY_USAGE_STATS_ENABLED")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            if self._address is None and "RAY_ADDRESS" not in os.environ:
                ray.init(
                    address="local", num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False,
                    log_to_driver=False, configure_logging=False,
                )  # fmt: skip
            else:
                ray.init(address=self._address or "auto", log_to_driver=False, configure_logging=False)
        finally:
            log.setLevel(level)
            if before is None:
                del os.environ["RAY_USAGE_STATS_ENABLED"]
            else:
                os.environ["RAY_USAGE_STATS_ENABLED"] = before

    async def places(self, limit_s: float) -> list[bool]:
        found: list[bool] = await self._in_thread(self._wait_for_places, limit_s)
        return found

    def _wait_for_places(self, limit_s: float) -> list[bool]:
        if not _nodes_with(self._cpus):
            limit_s = 0.0  # no host fits on any of them
        deadline = time.monotonic() + limit_s
        return [bool(group.wait(max(0.0, deadline - time.monotonic()))) for group in self._groups]

    def room(self) -> str:
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        free = ray.available_resources().get("CPU", 0)
        return (
            f"Ray has {sum(nodes):g} CPUs, {free:g} of them free, on {len(nodes)} node{'s' * (len(nodes) != 1)} of "
            f"at most {max(nodes, default=0):g}"
        )

    def own_store_bytes(self) -> int | None:
        return _store_bytes(ray.get_runtime_context().get_node_id())

    def put(self, value: bytes) -> Awaitable[bytes]:
        ref: Awaitable[bytes] = ray.put(value)
        return ref

    async def start(self, slot: int) -> RayHandle:
        handle: RayHandle = await self._in_thread(self._start, slot)
        return handle

    def _start(self, slot: int) -> RayHandle:
        before = self._handles[slot]
        if before is not None and not before.known_dead:
            # It was silent: its node may be dead, which Ray takes up to a minute to see, and does not move its place.
            remove_placement_group(self._groups[slot])
            self._groups[slot] = self._group()
        place = PlacementGroupSchedulingStrategy(self._groups[slot], placement_group_bundle_index=0)
        actor = _ACTOR.options(
            num_cpus=self._cpus, max_restarts=0, max_task_retries=0, scheduling_strategy=place
        ).remote()
        handle = self._handles[slot] = RayHandle(actor, self._thread)
        return handle

    async def close(self) -> None:
        with suppress(RuntimeError):  # closed twice
            await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        with suppress(Exception):  # the cluster may be gone
            for group in self._groups:
                remove_placement_group(group)
        self._groups = []
        if self._ours:
            self._ours = False
            ray.shutdown()

    async def _in_thread(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(do, *arguments))


_ACTOR = ray.remote(NodeHost)


class RayHandle:
    """An actor with a `NodeHost`."""

    def __init__(self, actor: Any, thread: ThreadPoolExecutor) -> None:
        self._actor, self._thread = actor, thread
        self.known_dead = False  # Ray has said so

    async def ask(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except (ActorUnavailableError, ObjectLostError, ObjectFetchTimedOutError) as error:
            raise Unreachable(_short(error)) from None
        except RayActorError as error:
            self.known_dead = True
            raise Gone(f"died: {_short(error)}") from None
        except RayTaskError as error:
            raise Gone(f"failed: {_short(error.cause)}") from error
        except RayError as error:
            raise Gone(_short(error)) from error

    def ping(self, incarnation: int, heard: Callable[[Any], None], gone: Callable[[str], None]) -> None:
        def answered(done: Any) -> None:
            error = done.exception()
            if error is None:
                heard(done.result())
            elif isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError):
                self.known_dead = True
                gone(f"died: {_short(error)}")

        self._actor.ping.remote(incarnation).future().add_done_callback(answered)

    def kill(self) -> None:
        def kill() -> None:
            with suppress(Exception):  # dead already
                ray.kill(self._actor, no_restart=True)

        with suppress(RuntimeError):  # the transport is closed
            self._thread.submit(kill)

    async def node(self) -> Node:
        node_id = await self.ask("where")
        return Node(f"the node {node_id[:8]}", _store_bytes(node_id))


def _nodes_with(cpus: int) -> list[Any]:
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= cpus]


def _store_bytes(node_id: str) -> int | None:
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            return int(node["Resources"].get("object_store_memory", 0))
    return None


def _short(error: BaseException) -> str:
    """What it says, in one line: of a traceback its last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "creation task" in lines[0] else lines[0]
