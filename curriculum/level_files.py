"""Level files: JSON lines and .npz, indexed and checked once, read level by level; never pickle."""
# pure + files: each call opens, reads and closes; nothing stays open

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from curriculum.errors import LevelError

__all__ = ["FileSource", "Mark", "Source", "open_source"]

_KEYS = ("id", "data", "tags")
Mark: TypeAlias = tuple[int, int]  # of a file: its bytes, and a checksum


class Source(Protocol):
    """The levels of one generator in one stage."""

    def __len__(self) -> int: ...

    def load(self, i: int) -> tuple[str, Any, tuple[str, ...]]:
        """(id, data, tags) of the i-th level."""

    def ids(self) -> Iterator[tuple[str, str]]:
        """(id, where it stands) of every level, in order."""


def open_source(file: Path, mark: Mark | None) -> Source:
    """Open a file of levels. `mark`: its own when it was checked, so that it is only indexed; None: check it."""
    if file.suffix not in (".jsonl", ".npz"):
        raise LevelError(f"{file}: expected a .jsonl or .npz file; levels are never unpickled")
    if not file.is_file():
        raise LevelError(f"{file}: expected a file")
    kind = JsonLines if file.suffix == ".jsonl" else Arrays
    if mark is None:
        return kind(file, check=True)
    opened = kind(file, check=False)
    if opened.mark != mark:
        size, now = mark[0], opened.mark[0]
        how = f"{size} bytes then, {now} now" if size != now else "as long as then, with other contents"
        raise LevelError(f"{file}: changed after it was checked ({how})")
    return opened


class FileSource:
    """Levels of one file."""

    file: Path
    mark: Mark  # of its bytes when it was opened


class JsonLines(FileSource):
    """One level per line: {"id": "…", "data": {…}, "tags": ["…"]}."""

    def __init__(self, file: Path, *, check: bool) -> None:
        self.file = file
        self._starts: list[tuple[int, int]] = []  # (line number, byte offset)
        with file.open("rb") as stream:
            offset = crc = 0
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    self._starts.append((number, offset))
                    if check:
                        self._parse(line, number)
                offset += len(line)
                crc = zlib.crc32(line, crc)
        self.mark = (offset, crc)

    def __len__(self) -> int:
        return len(self._starts)

    def _parse(self, line: bytes, number: int) -> tuple[str, Any, tuple[str, ...]]:
        where = f"{self.file}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise LevelError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise LevelError(f'{where}: expected an object {{"id", "data", "tags"}}, got {record!r:.60}')
        for key in record:
            if key not in _KEYS:
                raise LevelError(f"{where}: unknown key {key!r}; expected {', '.join(_KEYS)}")
        name, data, tags = record.get("id"), record.get("data"), record.get("tags", [])
        if not isinstance(name, str) or not name:
            raise LevelError(f"{where}: id: expected a non-empty string, got {name!r:.60}")
        if not isinstance(data, dict):
            raise LevelError(f"{where}: data: expected an object, got {data!r:.60}")
        if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
            raise LevelError(f"{where}: tags: expected a list of strings, got {tags!r:.60}")
        return name, data, tuple(tags)

    def load(self, i: int) -> tuple[str, Any, tuple[str, ...]]:
        number, offset = self._starts[i]
        with self.file.open("rb") as stream:
            stream.seek(offset)
            return self._parse(stream.readline(), number)

    def ids(self) -> Iterator[tuple[str, str]]:
        with self.file.open("rb") as stream:
            for number, offset in self._starts:
                stream.seek(offset)
                yield self._parse(stream.readline(), number)[0], f"{self.file}:{number}"


class Arrays(FileSource):
    """One array per level, under the level's id; object arrays would need pickle and are refused."""

    def __init__(self, file: Path, *, check: bool) -> None:
        self.file = file
        try:
            with zipfile.ZipFile(file) as archive:
                sums = [
                    part.CRC for part in archive.infolist()
                ]  # of the arrays' bytes, as the file notes them
                self.mark = (file.stat().st_size, zlib.crc32(repr(sums).encode()))
                self._names = [name.removesuffix(".npy") for name in archive.namelist()]
                if check:
                    for name in archive.namelist():
                        self._check(archive, name)
        except zlib.error as error:
            raise LevelError(f"{file}: damaged: {error}") from error
        except (zipfile.BadZipFile, OSError) as error:
            raise LevelError(f"{file}: not an .npz file: {error}") from error

    def _check(self, archive: zipfile.ZipFile, name: str) -> None:
        where = f"{self.file}: {name.removesuffix('.npy')!r}"
        with archive.open(name) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0
                header = read(stream) if version == (1, 0) else np.lib.format.read_array_header_2_0(stream)
            except ValueError as error:
                raise LevelError(f"{where}: not an array: {error}") from error
        if header[2].hasobject:
            raise LevelError(f"{where}: expected numbers, got an object array, which only pickle could read")

    def __len__(self) -> int:
        return len(self._names)

    def load(self, i: int) -> tuple[str, Any, tuple[str, ...]]:
        name = self._names[i]
        try:
            with np.load(self.file, allow_pickle=False) as arrays:
                return name, arrays[name], ()
        except (ValueError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise LevelError(f"{self.file}: {name!r}: cannot be read: {error}") from error

    def ids(self) -> Iterator[tuple[str, str]]:
        return ((name, str(self.file)) for name in self._names)
