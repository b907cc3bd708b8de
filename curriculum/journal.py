"""The journal: every batch's episodes, every command and every decision, appended as JSON lines."""
# pure + files: one line per event, written at once; reading checks every line

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from curriculum.errors import JournalError
from curriculum.strategies.base import Decision, FinishedEpisode

__all__ = ["NOTED", "SCHEMA", "Journal", "episode_of", "read_journal", "started_of"]

SCHEMA = 1
KINDS: Mapping[str, tuple[str, ...]] = {  # kind of line → the keys it must have
    "run": ("schema", "num_envs", "config", "state"),
    "batch": ("number", "watermark", "started", "ended"),
    "published": ("version",),
    "command": ("command", "arguments", "by", "why"),
    "decision": ("decision",),
}
NOTED = ("checkpoint", "stop")  # commands that the run carries out: they change nothing in a strategy


class Journal:
    """Appends to one file; a torn last line, left by a crash, is cut off first.

    Each line is handed to the operating system when it is written, so a crash of this process loses none.
    `wait`: leave the file alone, and keep the lines, until `begin()`; a start that fails has then not touched it.
    `episodes`: off, it holds decisions and commands only: a thousandth of the size, and nothing to replay.
    """

    def __init__(self, path: str | Path, *, wait: bool = False, episodes: bool = True) -> None:
        self._episodes = episodes
        self._file: IO[str] | None = None
        self._waiting: list[str] | None = []
        self.path = Path(path)
        self.cut_bytes = 0
        if not wait:
            self.begin()

    def begin(self) -> None:
        """Open the file, and append what has waited for that; once it is open, do nothing."""
        if self._waiting is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.cut_bytes = _cut_torn_line(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._file.writelines(self._waiting)
        self._waiting = None

    def write(self, kind: str, **values: Any) -> None:
        """Append one line."""
        if not self._episodes:
            if kind == "batch":
                return
            values |= {"episodes": False} if kind == "run" else {}
        line = _ENCODER.encode({"kind": kind, **values}) + "\n"
        if self._waiting is not None:
            self._waiting.append(line)
        elif self._file is None:
            raise JournalError(f"{self.path}: the journal is closed")
        else:
            self._file.write(line)

    def batch(
        self,
        number: int,
        watermark: int | None,
        started: Sequence[Any],
        ended: Sequence[tuple[Any, Any]],
        beginning: Sequence[int] = (),
    ) -> None:
        """One batch: the starts, each ended episode with its success or score, and which are `beginning`."""
        self.write(
            "batch",
            number=number,
            watermark=watermark,
            **({"beginning": list(beginning)} if beginning else {}),
            started=[[e.env_id, e.index, e.order, e.version, e.task] for e in started],
            ended=[
                [
                    e.env_id,
                    e.index,
                    e.order,
                    e.version,
                    e.task,
                    e.length,
                    e.episode_return,
                    e.outcome,
                    result,
                ]
                for e, result in ended
            ],
        )

    def decision(self, decision: Decision) -> None:
        """One decision with its counts."""
        self.write("decision", decision=decision.as_dict())

    def close(self) -> None:
        """Close the file; closing again does nothing. What still waited is dropped."""
        self._waiting = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:  # of a coordinator that never ran; every line is written already
        self.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """Numpy's scalars and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot be written to a journal: {value!r:.60}")


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)  # `json.dumps` makes one for each line


def _cut_torn_line(path: Path) -> int:
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with path.open("rb+") as stream:
        end = position = stream.seek(0, os.SEEK_END)
        while position > 0:
            step = min(4096, position)
            stream.seek(position - step)
            newline = stream.read(step).rfind(b"\n")
            if newline >= 0:
                position = position - step + newline + 1
                break
            position -= step
        if position < end:
            stream.truncate(position)
        return end - position


def read_journal(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of every line; JournalError names file, line, key and what was expected.

    A last line without its end is what a crash left: it is not an error, it was never whole.
    """
    path = Path(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error}") from error
    with stream:
        number = 0
        for number, line in enumerate(stream, start=1):
            where = f"{path}:{number}"
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise JournalError(f"{where}: not valid JSON: {error}") from error
            if not isinstance(record, dict) or record.get("kind") not in KINDS:
                raise JournalError(
                    f"{where}: kind: expected one of {', '.join(KINDS)}, got "
                    f"{record.get('kind') if isinstance(record, dict) else record!r:.60}"
                )
            for key in KINDS[record["kind"]]:
                if key not in record:
                    raise JournalError(f"{where}: a {record['kind']} line needs the key {key!r}")
            if number == 1 and record["kind"] != "run":
                raise JournalError(f"{where}: expected a run line first, got {record['kind']}")
            if record["kind"] == "run" and record["schema"] != SCHEMA:
                raise JournalError(f"{where}: schema: expected {SCHEMA}, got {record['schema']!r}")
            yield number, record
        if number == 0:
            raise JournalError(f"{path}:1: expected a run line, the file is empty")


def started_of(row: Any, where: str) -> FinishedEpisode:
    """The start of an episode, from a journal's row."""
    try:
        env_id, index, order, version, task = row
        return FinishedEpisode(int(env_id), int(index), int(order), 0, 0.0, "", int(version), task)
    except (TypeError, ValueError) as error:
        raise JournalError(
            f"{where}: started: expected [env_id, index, order, version, task]: {row!r:.80}"
        ) from error


def episode_of(row: Any, where: str) -> FinishedEpisode:
    """A finished episode, from a journal's row; its noted success stands where success is looked for."""
    try:
        env_id, index, order, version, task, length, total, outcome, result = row
        if outcome not in ("terminated", "truncated", "aborted"):
            raise ValueError(outcome)
        info = {} if result is None else {"is_success": bool(result), "score": float(result)}
        return FinishedEpisode(
            int(env_id), int(index), int(order), int(length), float(total), outcome, int(version), task, info
        )
    except (TypeError, ValueError) as error:
        raise JournalError(
            f"{where}: ended: expected "
            "[env_id, index, order, version, task, length, return, outcome, success]: "
            f"{row!r:.80}"
        ) from error
