"""Opening a fleet: places for its hosts, the spaces that they agree on, and room for their chunks."""
# async: waits for the hosts

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..core.spaces import SpacesRule, same_space
from ..deadline import within
from ..errors import SpaceMismatch, VecEnvError, WorkerTimeout
from .columns import Columns
from .hosts import Hosts
from .node_host import Opened
from .state import Phase
from .transport import Transport

__all__ = ["agreed", "check_room", "gather"]

_GATHER_S = 10.0  # until it goes on with fewer hosts than asked for


async def gather(
    hosts: Hosts, transport: Transport, min_hosts: int, cpus: int, start_s: float | None
) -> list[int]:
    """Start the hosts that have a place, and wait for them; their slots. The others join when there is room.

    Raises VecEnvError if they are fewer than `min_hosts`, WorkerTimeout, and what a host could not do.
    """
    placed = await transport.places(_GATHER_S)
    if sum(placed) < min_hosts:
        raise VecEnvError(
            f"{sum(placed)} of {len(placed)} hosts found a place within {_GATHER_S:g} s, and min_hosts is {min_hosts}: "
            f"a host takes {cpus} CPUs (a worker each, and one); {transport.room()}"
        )
    if sum(placed) < len(placed):
        text = f"{sum(placed)} of {len(placed)} hosts found a place; the others join when there is room"
        warnings.warn(text, RuntimeWarning, stacklevel=5)
    hosts.begin()
    slots = [slot for slot, has in enumerate(placed) if has]

    def late() -> list[int]:
        return [slot for slot in slots if hosts.state.phase(slot) is not Phase.READY]

    try:
        async with within(start_s):
            await hosts.until(lambda: bool(hosts.failures) or not late())
    except TimeoutError:
        limit_s = start_s or 0.0
        text = f"hosts {late()} did not start within {limit_s:g} s"
        raise WorkerTimeout(text, worker=late()[0], limit_s=limit_s) from None
    if hosts.failures:
        raise next(iter(hosts.failures.values()))[0]
    return slots


def agreed(hosts: Hosts, slots: Sequence[int], rule: SpacesRule) -> Opened:
    """What the first host said, if the others said the same. Raises SpaceMismatch."""
    first = hosts.opened[slots[0]]
    for slot in slots[1:]:
        other = hosts.opened[slot]
        for name in ("observation", "action"):
            want, have = getattr(first, f"{name}_space"), getattr(other, f"{name}_space")
            if not same_space(name, want, have, rule):
                raise SpaceMismatch(
                    f"host {slot}: the {name} space is {have}; that of host {slots[0]} is {want}",
                    env_id=hosts.state.slots[slot].start,
                    expected=str(want),
                    got=str(have),
                )
    return first


async def check_room(
    hosts: Hosts, transport: Transport, slots: Sequence[int], columns: Columns, rows: int
) -> None:
    """Raise MemoryError unless two chunks of every host fit the object stores that they go through."""
    found = [("this machine", transport.own_store_bytes(), sum(len(own) for own in hosts.state.slots))]
    for slot, node in await hosts.nodes(slots):
        found.append((node.name, node.store_bytes, len(hosts.state.slots[slot])))
    for name, size, envs in found:
        needed = 2 * columns.size_bytes(rows, envs)
        if size is not None and needed > size:
            most = max((r for r in range(rows) if 2 * columns.size_bytes(r, envs) <= size), default=0)
            raise MemoryError(
                f"two chunks of {rows} rows of {envs} envs take {needed / 1e6:.1f} MB, and the object store of {name} "
                f"has {size / 1e6:.1f} MB: unroll={most} is the most that fits; or start Ray with a larger one "
                "(ray start --object-store-memory)"
            )
