"""A vectorised env for Gymnasium, native to asyncio: worker processes, shared memory, and a broadcast channel.

async with AsyncVecEnv("CartPole-v1", num_envs=64) as envs:
    obs, infos = await envs.reset(seed=7)
    batch = await envs.step(envs.action_space.sample())
    await envs.broadcast({"gravity": 3.7})  # to every env that has on_broadcast(payload, version)
"""
# the door: names are imported when they are first used, since a worker needs few of them

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gymnasium.vector import AutoresetMode

    from .adapters.gymnasium import make_vec
    from .core.batch import Batch, Episode, EpisodeStarted, EventBatch, RunningEpisode
    from .core.chunk import Chunk
    from .core.env_state import restore_state
    from .core.limits import RenewAfter, RestartBudget, Timeouts
    from .core.policy import Policy
    from .core.statistics import Statistics
    from .errors import (
        BadActions,
        BusyError,
        ClosedError,
        EnvError,
        PolicyError,
        SpaceMismatch,
        VecEnvError,
        WorkerLost,
        WorkerTimeout,
        WrongLoopError,
    )
    from .fleet.messages import Liveness
    from .fleet.ray_fleet import RayFleet
    from .loop import run
    from .runtime.events import EventStream
    from .runtime.publisher import Receipt
    from .source import Source
    from .vec_env import AsyncVecEnv

__all__ = [
    "AsyncVecEnv",
    "AutoresetMode",
    "BadActions",
    "Batch",
    "BusyError",
    "Chunk",
    "ClosedError",
    "EnvError",
    "Episode",
    "EpisodeStarted",
    "EventBatch",
    "EventStream",
    "Liveness",
    "Policy",
    "PolicyError",
    "RayFleet",
    "Receipt",
    "RenewAfter",
    "RestartBudget",
    "RunningEpisode",
    "Source",
    "SpaceMismatch",
    "Statistics",
    "Timeouts",
    "VecEnvError",
    "WorkerLost",
    "WorkerTimeout",
    "WrongLoopError",
    "make_vec",
    "restore_state",
    "run",
]

_HOME = {
    "AsyncVecEnv": "vec_env",
    "Batch": "core.batch",
    "Chunk": "core.chunk",
    "Episode": "core.batch",
    "EpisodeStarted": "core.batch",
    "EventBatch": "core.batch",
    "RunningEpisode": "core.batch",
    "EventStream": "runtime.events",
    "Liveness": "fleet.messages",
    "Policy": "core.policy",
    "RayFleet": "fleet.ray_fleet",
    "Receipt": "runtime.publisher",
    "RenewAfter": "core.limits",
    "RestartBudget": "core.limits",
    "Source": "source",
    "Statistics": "core.statistics",
    "Timeouts": "core.limits",
    "make_vec": "adapters.gymnasium",
    "restore_state": "core.env_state",
    "run": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "AutoresetMode":
        value = importlib.import_module("gymnasium.vector").AutoresetMode
    else:
        value = getattr(importlib.import_module(f".{_HOME.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
