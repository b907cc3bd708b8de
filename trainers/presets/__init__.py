"""Ready jobs: a stage plan, an env factory and hyperparameters, by name."""
# data: nothing is imported or built before a preset is asked for

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainers.config import ConfigError, TrainConfig

__all__ = ["DEFAULT", "NAMES", "Job", "Preset", "load_preset"]

DEFAULT = "frozenlake"
NAMES = ("frozenlake", "doorkey", "doorkey16", "pendulum", "mazes", "atari")


@dataclass(frozen=True)
class Job:
    """What is trained on: everything that the config cannot say in plain data."""

    plan: Any
    """The `curriculum.StagePlan`."""
    make_env: Callable[[], Any]
    """Makes one env, with a `CurriculumEnv` in it. Travels by value: no child imports this package."""
    success: Callable[[Any], bool] | None = None
    """Whether an episode succeeded; None: its final info says so."""
    strategy: Callable[[Any, Any], Any] | None = None
    """Makes a `curriculum.Strategy` of your own, from the plan and the envs' `LevelSet` (None: they have none); None:
    `TrainConfig.strategy` names one. The plan's stages are what is reported."""


@dataclass(frozen=True)
class Preset:
    """A job and the settings that go with it."""

    name: str
    summary: str
    """One line for `presets`."""
    config: TrainConfig
    """Defaults of the command line when this preset is chosen."""
    job: Callable[[], Job]
    """Builds the job; imports what it needs."""


def load_preset(name: str) -> Preset:
    """A preset by name. Raises `ConfigError` that lists the names."""
    if name not in NAMES:
        raise ConfigError(f"unknown preset {name!r}; there are {', '.join(NAMES)}")
    preset: Preset = importlib.import_module(f"trainers.presets.{name}").PRESET
    return preset
