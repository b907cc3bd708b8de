"""One run's state on disk: written whole or not at all, read with a schema, never unpickled freely."""
# resource: owns the files step-*.pt of one folder

from __future__ import annotations

import os
import pickle
import re
import zipfile
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from trainers.record.folder import RunFolder

__all__ = ["Checkpoint", "CheckpointError", "Checkpoints", "load_saved"]

SCHEMA = "aio-vecenv trainer checkpoint"
VERSION = 1
# what torch.load raises for files that are not its own, or that hold more than plain data and tensors
UNREADABLE = (
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
)
NAME = re.compile(r"step-(\d+)\.pt")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and says why."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on. Random streams derive from (seed, purpose, update): the
    number of updates is their whole state. Observation statistics are buffers of the model."""

    model: dict[str, Any]
    """The network's state_dict."""
    optimiser: dict[str, Any]
    """Adam's state_dict."""
    curriculum: dict[str, Any]
    """The coordinator's state_dict."""
    tally: dict[str, Any]
    """The counters: updates, env steps, episodes, stage timeline."""
    env_steps: int
    """Rows collected so far, reset rows included."""
    train_time_s: float
    """Time spent so far, over all parts of the run."""
    sizes: dict[str, int]
    """Bytes of each of the run folder's logs when this was written: a resumed run cuts them back to here."""
    envs: dict[str, Any] = field(default_factory=dict)
    """What wrappers in the envs have learned: `AsyncVecEnv.get_state`. Empty: nothing, or of an older version."""
    spaces: dict[str, Any] = field(default_factory=dict)
    """What the envs' spaces mean to the network: `trainers.learn.meaning`. Empty: of an older version."""


class Checkpoints:
    """The newest K checkpoints in `folder`."""

    def __init__(self, folder: Path, keep: int = 3, newest: Path | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.newest = newest  # the one that was written or loaded last

    def save(self, state: Checkpoint) -> Path:
        """Write `step-….pt`: to a temporary name, flushed to disk, then renamed; then drop the oldest. Newer
        ones are of a run that went on from an older one: they were refused, and stay where they are.

        Raises `OSError` (disk full, …) with the previous files as they were and nothing left behind. What a killed
        process left half-written goes, too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._write(state, f"step-{state.env_steps:010d}.pt")
        up_to_now = [other for other in self.paths() if _step(other) <= state.env_steps]
        for old in (*up_to_now[: -self.keep], *self.folder.glob("step-*.tmp")):
            old.unlink(missing_ok=True)
        self.newest = path
        return path

    def save_best(self, state: Checkpoint) -> Path:
        """Write `best.pt` in the same way; it stays until a better one takes its place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self._write(state, "best.pt")

    def _write(self, state: Checkpoint, name: str) -> Path:
        path = self.folder / name
        temporary = path.with_suffix(".tmp")
        # not asdict: it would copy every tensor
        content = {item.name: getattr(state, item.name) for item in fields(state)}
        try:
            with temporary.open("wb") as file:
                torch.save({"schema": SCHEMA, "version": VERSION, **content}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except RuntimeError as error:  # torch reports a failed write as a RuntimeError
            raise OSError(f"cannot write {path}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(self.folder)
        return path

    def paths(self) -> list[Path]:
        """All checkpoints by step, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if NAME.fullmatch(path.name)), key=_step)

    def load_newest(self) -> tuple[Checkpoint, Path, list[str]]:
        """The newest usable checkpoint, its path, and why each newer one was refused.

        Raises `CheckpointError` when none can be used.
        """
        refused: list[str] = []
        for path in reversed(self.paths()):
            try:
                return load(path), path, refused
            except CheckpointError as error:
                refused.append(str(error))
        if not refused:
            raise CheckpointError(f"{self.folder}: no checkpoint there")
        raise CheckpointError("no usable checkpoint: " + "; ".join(refused))


def load(path: Path) -> Checkpoint:
    """Read one checkpoint. Raises `CheckpointError` that names the file if it is torn, foreign or too new."""
    try:
        # a torn file has no directory at its end, a damaged one a wrong CRC
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: damaged at {damaged}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except CheckpointError:
        raise
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path}: torn, or not a checkpoint") from None
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise CheckpointError(f"{path}: not a checkpoint of this program")
    version = content.pop("version", None)
    if version != VERSION:
        raise CheckpointError(f"{path}: has format {version!r}, this program reads {VERSION}")
    missing = {item.name for item in fields(Checkpoint)} ^ ({"envs", "spaces"} | set(content))
    if missing:
        raise CheckpointError(f"{path}: wrong content: {', '.join(sorted(missing))}")
    return Checkpoint(**content)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_saved(path: Path | str) -> tuple[RunFolder, Checkpoint, Path, list[str]]:
    """The run folder that `path` is, or that the checkpoint file `path` lies in, and the checkpoint: that file, or the
    newest usable one, and why each newer one was refused. Raises `ConfigError`, `CheckpointError`."""
    path, folder = Path(path), RunFolder.around(path)
    if path.is_file():
        return folder, load(path), path, []
    return folder, *Checkpoints(folder.checkpoints).load_newest()
