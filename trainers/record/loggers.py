"""Where reports go: metrics.jsonl; TensorBoard and Weights & Biases if asked."""
# resource: owns metrics.jsonl of one run folder, TensorBoard's event file, a run of W&B

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, Self

from trainers.config import ConfigError, TrainConfig, to_mapping
from trainers.learn.thread import LearnerThread
from trainers.names import named, raised_by
from trainers.record.folder import RunFolder
from trainers.record.metrics import EvalReport, Report

__all__ = ["BUILT_IN", "Logger", "MetricsFile", "TensorBoard", "WandB", "check_extras", "open_loggers"]


class Logger(Protocol):
    """Where reports go. What it raises ends the run. If it has a method `evaluated(evaluation)`, that gets every
    `EvalReport`, on the event loop, too."""

    def write(self, report: Report) -> None:
        """Take one update's report, on the event loop: it should be quick."""

    def close(self) -> None:
        """The run has ended, or could not begin."""


class MetricsFile:
    """metrics.jsonl: one report per line, flushed with each, so that a crash loses nothing. `every`: updates per line;
    the first report and the last one have theirs in any case."""

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path, self._every = path, every
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._newest: Report | None = None  # without a line so far

    def write(self, report: Report) -> None:
        self._newest = report
        if report.update == 1 or report.update % self._every == 0:
            self._flush()

    def _flush(self) -> None:
        if self._newest is not None:
            self._file.write(json.dumps(dataclasses.asdict(self._newest), ensure_ascii=False) + "\n")
            self._newest = None

    def close(self) -> None:
        if not self._file.closed:
            self._flush()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class TensorBoard:
    """The same numbers as scalars over env steps, evaluations under eval/ (extra `tensorboard`)."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, report: Report) -> None:
        self._add(_scalars(dataclasses.asdict(report)), report.env_steps)

    def evaluated(self, evaluation: EvalReport) -> None:
        self._add(_scalars(dataclasses.asdict(evaluation), "eval/"), evaluation.env_steps)

    def _add(self, scalars: Sequence[tuple[str, float]], env_steps: int) -> None:
        for name, value in scalars:
            self._writer.add_scalar(name, value, env_steps)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases with the same numbers and the config (extra `wandb`). Its files lie in the run folder;
    WANDB_MODE, WANDB_PROJECT and its other variables hold. A resumed run goes on with its own."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        import wandb

        before = sorted((folder / "wandb").glob("*run-*-*"))  # their names end in the id
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "aio-vecenv"),
                name=folder.name,
                dir=str(folder),
                config=to_mapping(config),
                id=before[-1].name.rpartition("-")[2] if before else None,
                resume="allow",
                reinit="create_new",  # the program may have one of its own
                settings=wandb.Settings(console="off"),  # the terminal is not ours to read
            )
        except wandb.errors.Error as error:
            raise ConfigError(f"logger wandb: {error}") from error
        self._run.define_metric("*", step_metric="env_steps")  # an evaluation comes later than its update
        self._run.define_metric("eval/*", step_metric="eval/env_steps")

    def write(self, report: Report) -> None:
        self._run.log(dict(_scalars(dataclasses.asdict(report))))

    def evaluated(self, evaluation: EvalReport) -> None:
        self._run.log(dict(_scalars(dataclasses.asdict(evaluation), "eval/")))

    def close(self) -> None:
        self._run.finish()


class LoggerError(RuntimeError):
    """A logger of the user's raised; the message names it, and says what and where."""


class OwnLogger:
    """A logger of the user's own; its errors name it."""

    def __init__(
        self, name: str, factory: Callable[[Path, TrainConfig], Logger], folder: Path, config: TrainConfig
    ) -> None:
        self._name = name
        self._logger: Any = self._call(factory, folder, config)
        if lacking := [
            method for method in ("write", "close") if not callable(getattr(self._logger, method, None))
        ]:
            kind = type(self._logger).__name__
            raise ConfigError(f"logger {name}: expected an object with {' and '.join(lacking)}(), got {kind}")
        if callable(evaluated := getattr(self._logger, "evaluated", None)):
            self.evaluated = partial(self._call, evaluated)

    def write(self, report: Report) -> None:
        self._call(self._logger.write, report)

    def close(self) -> None:
        self._call(self._logger.close)

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            raise LoggerError(raised_by(f"logger {self._name}", error)) from error


BUILT_IN: Mapping[str, Callable[[Path, TrainConfig], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_extras(config: TrainConfig) -> None:
    """Raise `ConfigError` if a logger needs a package that is not there."""
    for name in built_in(config):
        if find_spec(name) is None:
            raise ConfigError(f"logger {name} needs the extra: pip install 'aio-vecenv[{name}]'")


def built_in(config: TrainConfig) -> list[str]:
    """Those that come with this package, as `config` asks for them."""
    return [
        name for name in BUILT_IN if name in config.logger or (name == "tensorboard" and config.tensorboard)
    ]


def own_loggers(config: TrainConfig) -> dict[str, Callable[..., Any]]:
    """The factories of the user's own, by name. Raises `ConfigError`."""
    return {name: named("logger", name, known=BUILT_IN) for name in config.logger if name not in BUILT_IN}


def _scalars(plain: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in plain.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, (list, tuple)):
            for item in value:
                found += _scalars(item, f"{prefix}{key}/{item.get('name', item.get('stage'))}/")
        elif isinstance(value, (int, float)):
            found.append((prefix + key, float(value)))
    return found


async def open_loggers(
    config: TrainConfig,
    folder: RunFolder,
    stack: contextlib.AsyncExitStack,
    thread: LearnerThread,
    factories: Mapping[str, Callable[[Path, TrainConfig], Logger]] = MappingProxyType({}),
) -> list[Logger]:
    """Those that `config` asks for, and what the user's own `factories` make; `stack` closes them. Others than the
    user's are opened and closed in `thread`: they import much, and may wait for a server."""
    loggers: list[Logger] = [MetricsFile(folder.metrics, config.metrics_every)]
    stack.callback(loggers[0].close)
    for name in built_in(config):
        opened: list[Logger] = []  # also if who waits for it is cancelled

        def close(opened: list[Logger] = opened) -> None:
            for logger in opened:
                logger.close()

        stack.push_async_callback(thread.run, close)
        await thread.run(lambda name=name, to=opened: to.append(BUILT_IN[name](folder.path, config)))
        loggers += opened
    for name, factory in factories.items():
        loggers.append(OwnLogger(name, factory, folder.path, config))
        stack.callback(loggers[-1].close)
    return loggers
