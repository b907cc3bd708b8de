"""Every async test runs on asyncio and on uvloop; a leak fails the test that made it."""
# edge: looks at this process from outside

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import psutil
import pytest

# A busy machine is no defect, and every run tries the same examples; others with `--hypothesis-profile=others`.
_untimed = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("others", _untimed)
hypothesis.settings.register_profile("same", _untimed, derandomize=True, database=None)
hypothesis.settings.load_profile("same")

if sys.platform != "win32":
    import uvloop

    uvloop.new_event_loop().close()  # libuv keeps one pipe of the process from its first loop on

LOOPS = ("asyncio",) if sys.platform == "win32" else ("asyncio", "uvloop")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if sys.platform != "win32":
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under `alternate_loops` each case of a test runs on one loop only, by its name: half the time.

    For tests that are not about the loop; what a guarantee promises is tested on both (`both_loops`, in a module
    that alternates).
    """
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        call = getattr(item, "callspec", None)
        # the closest first
        marks = (mark.name for mark in item.iter_markers() if mark.name.endswith("_loops"))
        if call is None or next(marks, None) != "alternate_loops":
            kept.append(item)
            continue
        loop, _, case = call.id.partition("-")
        name = f"{getattr(item, 'originalname', '')} {case}"
        other = len(LOOPS) > 1 and loop in LOOPS and loop != LOOPS[zlib.crc32(name.encode()) % 2]
        (dropped if other else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _descriptors() -> dict[str, str]:
    """What this process has open, by number; its own listing excluded."""
    open_now: dict[str, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            open_now[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the listing itself
            continue
    return open_now


_clusters: list[psutil.Process] = []  # their processes come and go as Ray likes


def _of_clusters() -> set[int]:
    found: set[int] = set()
    for cluster in _clusters:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {cluster.pid, *(child.pid for child in cluster.children(recursive=True))}
    return found


def _children() -> set[int]:
    theirs = _of_clusters()  # looked for twice: some end, and some begin, while all are looked for
    return {child.pid for child in psutil.Process().children(recursive=True)} - theirs - _of_clusters()


class Cluster:
    """A Ray cluster of this machine, in a process of its own: a head without CPUs, and nodes to be killed."""

    def __init__(self) -> None:
        helper = Path(__file__).parent / "aio_vecenv" / "ray_cluster.py"
        self.process = subprocess.Popen(
            [sys.executable, str(helper)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        _clusters.append(psutil.Process(self.process.pid))
        self.address = self._read()
        self.raylets = [int(self._read()), int(self._read())]  # pids

    def add_node(self) -> None:
        """One node more; its raylet is the last."""
        self._tell("add")
        self.raylets.append(int(self._read()))

    def settle(self) -> None:
        """Wait until it knows of its dead nodes, which takes it 15 s: until then it gives away places on them."""
        self._tell("settle")
        self._read()

    def close(self) -> None:
        """End it, and whatever of it is left."""
        assert self.process.stdin is not None
        left = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        _clusters.clear()

    def _tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def _read(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("CLUSTER"):
                return line.split()[1]
        raise AssertionError("the cluster has ended")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """One for all tests that ask for it, where Ray is installed."""
    pytest.importorskip("ray")
    cluster = Cluster()
    yield cluster
    cluster.close()


def _named_memory() -> set[Path]:
    """Names in shared memory. Beside other test processes they may be theirs, so nobody looks there then."""
    shm = Path("/dev/shm")
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    return set(shm.iterdir()) if alone and shm.exists() else set()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes, descriptors, named shared memory: the same after the test as before it.

    Tasks are checked by the loop's own end: a pending task that is destroyed is an error here. Fixtures of a module
    are set up before this one looks, so what they own is not counted.
    """
    for name in request.fixturenames:
        if name.startswith("module_"):
            request.getfixturevalue(name)
    fds, children, memory = _descriptors(), _children(), _named_memory()

    def left() -> dict[str, object]:
        # An event loop that is not collected yet still has its selector: that is the test runner's. matplotlib keeps
        # the fonts open that a thread has drawn with.
        theirs = ("[eventpoll]", "/mpl-data/fonts/")
        new_fds = {
            n: t
            for n, t in _descriptors().items()
            if fds.get(n) != t and not any(part in t for part in theirs)
        }
        found = {
            "descriptors": new_fds,
            "processes": _children() - children,
            "memory": _named_memory() - memory,
        }
        return {name: what for name, what in found.items() if what}

    yield
    if left():
        gc.collect()
        assert not left(), f"left behind: {left()}"
