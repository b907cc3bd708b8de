"""The arguments of `AsyncVecEnv`, checked once, before anything is started."""
# pure: raises ValueError or TypeError that names the argument

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gymnasium.vector import AutoresetMode

from . import factories
from .spaces import SpacesRule

__all__ = ["InfoFilter", "OnEnvError", "Settings", "info_filter", "one_of", "whole", "workers_for"]

InfoFilter = Literal["all", "episode"] | tuple[str, ...]
OnEnvError = Literal["raise", "reset"]


@dataclass(frozen=True)
class Settings:
    """What all envs of a vec env have in common."""

    autoreset: AutoresetMode = AutoresetMode.NEXT_STEP
    info: InfoFilter = "all"
    check: Literal["finite"] | None = None
    on_env_error: OnEnvError = "raise"
    spaces: SpacesRule = "equal"
    casting: Literal["safe", "unsafe"] = "safe"


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`; 1 is not True."""
    if not any(value is option or (isinstance(value, str) and value == option) for option in allowed):
        raise ValueError(f"{name} is {value!r}, not one of {', '.join(map(repr, allowed))}")


def whole(name: str, value: Any, least: int) -> int:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}, not a whole number ≥ {least}")
    return value


def workers_for(num_workers: int | Literal["per env"] | None, num_envs: int) -> int:
    """How many workers: by default the CPUs this process may use; never more than envs."""
    if num_workers == "per env":
        return num_envs
    if isinstance(num_workers, str):
        raise ValueError(f"num_workers is {num_workers!r}, not a whole number ≥ 1 or 'per env'")
    wanted = factories.usable_cpus() if num_workers is None else whole("num_workers", num_workers, 1)
    return min(wanted, num_envs)


def info_filter(info: str | Sequence[str]) -> InfoFilter:
    """ "all", "episode", or a tuple of names."""
    if info == "all":
        return "all"
    if info == "episode":
        return "episode"
    if isinstance(info, str) or not all(isinstance(name, str) for name in info):
        raise ValueError(f"info is {info!r}, not 'all', 'episode' or a list of names")
    return tuple(info)
