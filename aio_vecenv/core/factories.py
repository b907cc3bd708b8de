"""What a user may pass as `envs`, as a list of factories."""
# pure: looks up specs; makes no env

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

__all__ = ["MakeSpec", "resolve", "usable_cpus"]


@dataclass(frozen=True)
class MakeSpec:
    """Makes an env from its whole spec, so that it need not be registered where it is made."""

    spec: EnvSpec
    kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make
    wrappers: tuple[Callable[[Any], Any], ...] = ()  # innermost first
    module: str = ""  # who registers it, and perhaps others that it makes itself

    def __call__(self) -> Any:
        if self.module:
            importlib.import_module(self.module)
        env: Any = gym.make(self.spec, **self.kwargs)
        for wrapper in self.wrappers:
            env = wrapper(env)
        return env


def resolve(envs: Any, num_envs: int | None) -> list[Callable[[], Any]]:
    """One factory per env. Raises gymnasium.error.Error for an unknown id, TypeError, ValueError."""
    if num_envs is not None and (isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1):
        raise ValueError(f"num_envs is {num_envs!r}, not a whole number ≥ 1")
    if isinstance(envs, str):
        spec, module = _find(envs)
        envs = MakeSpec(spec, module=module)
    elif isinstance(envs, EnvSpec):
        envs = MakeSpec(envs)
    if callable(envs):
        return [envs] * (1 if num_envs is None else num_envs)
    if not isinstance(envs, Sequence) or not envs:
        raise TypeError(f"envs is {envs!r}, not an env id, an EnvSpec, a factory or a list of factories")
    for index, factory in enumerate(envs):
        if not callable(factory):
            raise TypeError(f"envs[{index}] is {factory!r}, not a factory (a callable that makes an env)")
    if num_envs is not None and num_envs != len(envs):
        raise ValueError(f"num_envs is {num_envs}, but envs has {len(envs)} factories")
    return list(envs)


def _find(env_id: str) -> tuple[EnvSpec, str]:
    """The spec of an id or MODULE:ID, and the module. Raises ImportError, gymnasium.error.Error."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # registers it
    return gym.spec(name), module


def usable_cpus() -> int:
    """How many CPUs this process may use: its affinity, where the platform knows it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover - macOS
