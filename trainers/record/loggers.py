"""Where reports go: metrics.jsonl, and TensorBoard if asked."""
# resource: owns metrics.jsonl of one run folder, and TensorBoard's event file

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from trainers.config import ConfigError, TrainConfig
from trainers.record.folder import RunFolder
from trainers.record.metrics import Report

__all__ = ["Logger", "MetricsFile", "TensorBoard", "open_loggers"]


class Logger(Protocol):
    """Where reports go. What it raises ends the run."""

    def write(self, report: Report) -> None:
        """Take one update's report, on the event loop: it should be quick."""

    def close(self) -> None:
        """The run has ended, or could not begin."""


class MetricsFile:
    """metrics.jsonl: one report per line, flushed with each, so that a crash loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, report: Report) -> None:
        self._file.write(json.dumps(dataclasses.asdict(report), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorBoard:
    """The same numbers as scalars over env steps (extra `tensorboard`)."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tensorboard=True needs the extra: pip install 'aio-vecenv[tensorboard]'"
            ) from None
        self._writer: Any = SummaryWriter(str(folder))

    def write(self, report: Report) -> None:
        for name, value in _scalars(dataclasses.asdict(report)):
            self._writer.add_scalar(name, value, report.env_steps)

    def close(self) -> None:
        self._writer.close()


def _scalars(plain: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in plain.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (list, tuple)):
            for item in value:
                found += _scalars(item, f"{prefix}{key}/{item['name']}/")
        elif isinstance(value, (int, float)):
            found.append((prefix + key, float(value)))
    return found


def open_loggers(
    config: TrainConfig,
    folder: RunFolder,
    stack: contextlib.AsyncExitStack,
    factories: Sequence[Callable[[Path, TrainConfig], Logger]] = (),
) -> list[Logger]:
    """Those that `config` asks for, and what the user's own `factories` make; `stack` closes them."""
    loggers: list[Logger] = [MetricsFile(folder.metrics)]
    stack.callback(loggers[0].close)
    if config.tensorboard:
        loggers.append(TensorBoard(folder.path / "tensorboard"))
        stack.callback(loggers[1].close)
    for factory in factories:
        loggers.append(factory(folder.path, config))
        stack.callback(loggers[-1].close)
    return loggers
