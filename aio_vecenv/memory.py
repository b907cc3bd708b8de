"""Memory: one anonymous shared block, created, passed by descriptor, mapped, released; and how much is left.

Nothing of the block has a name, so nothing can stay behind: the kernel frees the block with the last descriptor and
mapping.
"""
# resource: owns one descriptor and one mapping

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["SharedBlock", "available_bytes", "bytes_left", "check_room", "machine_bytes", "oom_kills"]

_SMALL = 1 << 20  # bytes for which nobody asks the machine
_CGROUP = Path("/sys/fs/cgroup")


class SharedBlock:
    """A block of shared memory, found by descriptor. Where the platform has no memfd: an unlinked temporary file."""

    def __init__(self) -> None:
        self.fd = -1
        if sys.platform == "linux":
            self.fd = os.memfd_create("aio_vecenv", os.MFD_CLOEXEC)
        else:  # pragma: no cover - macOS
            with tempfile.TemporaryFile(prefix="aio_vecenv") as file:
                self.fd = os.dup(file.fileno())
        self.size_bytes = 0

    def allocate(self, size_bytes: int) -> mmap.mmap:
        """Reserve `size_bytes` now, so that nothing later ends in SIGBUS or the out-of-memory killer, and map them.

        Raises MemoryError that says how much was needed and how much there was.
        """
        left = bytes_left()
        if left is not None and size_bytes > left:
            raise MemoryError(_no_room(size_bytes, f"{left} bytes are left"))
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, size_bytes)
            else:  # pragma: no cover - macOS
                os.ftruncate(self.fd, size_bytes)
            block = mmap.mmap(self.fd, size_bytes)
        except OSError as error:
            raise MemoryError(_no_room(size_bytes, str(error))) from error
        self.size_bytes = size_bytes
        return block

    def close(self) -> None:
        """Give the descriptor back. Mappings stay until the last array that views them is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @staticmethod
    def attach(fd: int, size_bytes: int) -> mmap.mmap:
        """Map a block that was inherited as `fd`, and close the descriptor."""
        try:
            return mmap.mmap(fd, size_bytes)
        finally:
            os.close(fd)


def _no_room(size_bytes: int, why: str) -> str:
    return (
        f"the shared block needs {size_bytes} bytes ({size_bytes / 2**20:.1f} MiB): {why}. Use fewer envs, smaller "
        "observations, or give the container more memory (docker run --memory …)"
    )


def bytes_left() -> int | None:
    """What can still be had before the machine, or a limit of this process's cgroups, is reached; None: not known."""
    rooms = [room for room in (available_bytes(), machine_bytes()) if room is not None]
    return min(rooms) if rooms else None


def check_room(what: str, size_bytes: int, receivers: int = 1) -> None:
    """Raise ValueError unless `what`, pickled, fits twice into what is left for each receiver: the bytes, and what
    they become. What travels has no other limit."""
    needed = 2 * size_bytes * receivers
    if needed > _SMALL and (left := bytes_left()) is not None and needed > left:
        raise ValueError(
            f"{what}: {size_bytes} bytes pickled, twice that for {receivers} receivers is {needed}, and {left} bytes "
            "of memory are left. Send less at once, use fewer workers, or give the container more memory"
        )


def available_bytes(root: Path = _CGROUP, proc: Path = Path("/proc/self/cgroup")) -> int | None:
    """What is left below the tightest memory limit of this process's cgroups (v1 and v2, every ancestor).

    None where there is no limit, or no cgroup at all.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            base, limit_name, used_name = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit_name, used_name = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        while True:
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            # v1 writes "no limit" as a huge number
            if limit is not None and used is not None and limit < 2**60:
                left.append(max(limit - used, 0) + _reclaimable(folder))
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return min(left) if left else None


def resident_bytes(pid: int) -> int:
    """Memory that a process holds, shared parts included; 0 where there is no such process any more. Linux only."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What the machine can give without swapping; None where it does not say.

    A memfd has no limit of its own: to reserve more than there is ends in the out-of-memory killer, not in an error.
    """
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None


def _reclaimable(folder: Path) -> int:
    """File pages that the kernel drops before it kills: counted as used, yet no obstacle."""
    try:
        stat: dict[str, Any] = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):
        return 0
    return int(stat.get("inactive_file", stat.get("total_inactive_file", 0)))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None


def oom_kills(root: Path = _CGROUP, proc: Path = Path("/proc/self/cgroup")) -> int:
    """How many processes of this cgroup the kernel has killed for lack of memory; 0 where nobody counts."""
    try:
        lines = proc.read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if line.startswith("0::"))
        events = (root / path.lstrip("/") / "memory.events").read_text()
        return int(dict(line.split() for line in events.splitlines()).get("oom_kill", 0))
    except (OSError, StopIteration, ValueError):
        return 0
