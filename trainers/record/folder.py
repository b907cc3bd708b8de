"""The run folder: config.toml, metrics.jsonl, journal.jsonl, checkpoints/, summary.json, curve.png."""
# resource: owns one folder on disk

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainers.config import UNSET, ConfigError, NetworkConfig, PPOConfig, TrainConfig, from_mapping, to_toml
from trainers.record.metrics import wall_clock

__all__ = ["SEEDS", "RunFolder", "anchored", "load_config", "read_toml"]

# What version 0.1 did where there is a setting now: a config.toml that does not name them is from then.
OF_0_1 = TrainConfig(
    collect="lockstep",
    ppo=PPOConfig(normalise_rewards=False),
    network=NetworkConfig(scale_actions=False, encoders=1),
)
SEEDS = "seeds.toml"  # in the folder around the runs of several seeds
FILES = ("plan", "levels", "init_from")  # settings that name what is read
LOGS = ("metrics.jsonl", "journal.jsonl", "eval.jsonl")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it leaves."""

    path: Path

    @classmethod
    def create(cls, config: TrainConfig) -> RunFolder:
        """A fresh folder with the config in it. Raises `ConfigError` if it exists or cannot be made."""
        folder = cls(cls.new(config, f"seed{config.seed}"))
        folder.save_config(config)
        return folder

    @staticmethod
    def new(config: TrainConfig, seeds: str) -> Path:
        """An empty folder of the config's name, else of its title, `seeds` and the date."""
        name = config.name or f"{config.title}-{seeds}-{wall_clock()}"
        path = config.runs / name
        number = 1
        while True:
            try:
                path.mkdir(parents=True)
                return path
            except FileExistsError:
                if config.name is not None:
                    raise ConfigError(
                        f"{path} exists: choose another name, or go on with --resume {path}"
                    ) from None
                number += 1
                path = config.runs / f"{name}-{number}"
            except OSError as error:
                raise ConfigError(f"cannot make the run folder {path}: {error.strerror}") from None

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run's folder. Raises `ConfigError` if there is none."""
        if not path.is_dir():
            raise ConfigError(f"{path}: no such run folder{' or checkpoint' if path.suffix == '.pt' else ''}")
        if not (path / "config.toml").is_file():
            if (path / SEEDS).is_file():
                raise ConfigError(f"{path} holds the runs of several seeds: name one of its folders seed-…")
            raise ConfigError(f"{path}: not a run folder: it has no config.toml")
        return cls(path)

    @classmethod
    def around(cls, path: Path | str) -> RunFolder:
        """The run folder that `path` is, or that the checkpoint file `path` lies in. Raises `ConfigError`."""
        path = Path(path)
        if not path.is_file():
            return cls.open(path)
        folder = path.absolute().parent.parent
        if path.suffix != ".pt" or not (folder / "config.toml").is_file():
            raise ConfigError(
                f"{path}: neither a run folder nor a checkpoint in one; a checkpoint is read where it lies, as "
                "RUN/checkpoints/NAME.pt"
            )
        return cls.open(folder)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    def config(self) -> TrainConfig:
        """The config that the run was started with; settings that it does not name are as they were then."""
        return load_config(self.path / "config.toml", OF_0_1)

    def save_config(self, config: TrainConfig) -> None:
        """Its files by whole paths: a run is resumed and judged from anywhere."""
        (self.path / "config.toml").write_text(to_toml(anchored(config)), encoding="utf-8")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For one run at a time: raises `ConfigError` if another one is in here. The system lets go of the folder when
        the process ends, however it ends; a filesystem that knows no such locks holds nothing.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ConfigError(
                        f"{self.path}: in use: a run is going on in it, in this process or in another"
                    ) from None
            yield
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Undo `create`: a run that never began leaves nothing that `--resume` could not go on with."""
        shutil.rmtree(self.path, ignore_errors=True)

    def log_sizes(self) -> dict[str, int]:
        """Bytes of each log."""
        return {name: (self.path / name).stat().st_size for name in LOGS if (self.path / name).exists()}

    def cut_logs(self, sizes: dict[str, int]) -> None:
        """Drop what the logs hold beyond `sizes`: it happened after the checkpoint, and will happen again."""
        for name in LOGS:
            with contextlib.suppress(FileNotFoundError):
                if (self.path / name).stat().st_size > sizes.get(name, 0):
                    os.truncate(self.path / name, sizes.get(name, 0))


def anchored(config: TrainConfig) -> TrainConfig:
    """The config with the files that it names by their whole paths."""
    files = {name: getattr(config, name) for name in FILES}
    return replace(config, **{name: path and path.absolute() for name, path in files.items()})


def load_config(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """Read a config file, over `base`. Plan, levels and `init_from` are looked for beside it; then, like those that
    arguments name, from where one stands. Raises `ConfigError` with file, key or line, and what was expected."""
    data = read_toml(path)
    for name in FILES:
        named = data.get(name)
        if isinstance(named, str) and named != UNSET and (path.parent / named).exists():
            data[name] = str(path.parent / named)
    return from_mapping(TrainConfig, data, source=str(path), base=base)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as plain data. Raises `ConfigError` that names file and line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
