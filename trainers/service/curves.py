"""The curves of a run, from its metrics.jsonl: all of it, or so many lines spread over it."""
# resource: reads one file, and keeps nothing

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainers.service.snapshot import plain

__all__ = ["MOST_POINTS", "curves"]

MOST_POINTS = 4000


def curves(path: Path, points: int) -> list[bytes]:
    """At most about `points` lines of metrics.jsonl, the first and the newest among them, as JSON that a browser reads.

    What it costs depends on `points`, not on how long the run is: places in the file are sampled, not read up to.
    Blocks while it reads.
    """
    return [_readable(line) for line in _sample(path, points)]


def _readable(line: bytes) -> bytes:
    if b"NaN" in line or b"Infinity" in line:  # Python's JSON knows them, a browser's does not
        return json.dumps(plain(json.loads(line)), ensure_ascii=False).encode()
    return line


def _sample(path: Path, points: int) -> Iterator[bytes]:
    """Whole lines: all of them if they are few, else about one per point, evenly spread over the file's bytes."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        first = file.readline()
        size = file.seek(0, 2)
        if size <= len(first) * points:
            file.seek(0)
            yield from (line for line in file if line.endswith(b"\n"))
            return
        yield first
        end = len(first)  # of the last line that was given
        for k in range(1, points):
            if _to_next_line(file, max(end, size * k // points)) < size:
                line = file.readline()
                if line.endswith(b"\n"):
                    end = file.tell()
                    yield line
        file.seek(end)
        rest = [line for line in file.read(size - end).splitlines(keepends=True) if line.endswith(b"\n")]
        yield from rest[-1:]


def _to_next_line(file: IO[bytes], at: int) -> int:
    """Go to the first line that begins at `at` or after it; where that is."""
    file.seek(at - 1)
    file.readline()
    return file.tell()
