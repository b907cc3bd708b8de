"""Every async test runs on asyncio and on uvloop; a leak fails the test that made it."""
# edge: looks at this process from outside

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

if sys.platform != "win32":
    import uvloop

    uvloop.new_event_loop().close()  # libuv keeps one pipe of the process from its first loop on


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if sys.platform != "win32":
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def _descriptors() -> dict[str, str]:
    """What this process has open, by number; its own listing excluded."""
    open_now: dict[str, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            open_now[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the listing itself
            continue
    return open_now


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes, descriptors, named shared memory: the same after the test as before it.

    Tasks are checked by the loop's own end: a pending task that is destroyed is an error here. Wider fixtures of the
    test are set up before this one looks, so what they own is not counted.
    """
    for name in request.fixturenames:
        if name != "no_leaks" and "module" in name:
            request.getfixturevalue(name)
    shm = Path("/dev/shm")
    before = _descriptors(), _children(), set(shm.iterdir()) if shm.exists() else set()
    yield
    gc.collect()
    after = _descriptors(), _children(), set(shm.iterdir()) if shm.exists() else set()
    new = {number: target for number, target in after[0].items() if before[0].get(number) != target}
    # Loops and the test runner keep one of these between tests; what we open is never of that kind.
    new = {n: t for n, t in new.items() if not t.startswith(("anon_inode:[eventpoll]", "/dev/null"))}
    assert not after[1] - before[1], f"child processes left: {after[1] - before[1]}"
    assert not after[2] - before[2], f"shared memory left: {after[2] - before[2]}"
    assert not new, f"descriptors left: {new}"
