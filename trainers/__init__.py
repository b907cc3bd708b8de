"""Learn, and be run: PPO on a moving curriculum."""
# the door: re-exports, each loaded on first use, so that the command line's help does not wait for torch

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.callbacks import CallbackError
    from trainers.config import ConfigError, EvalConfig, FleetConfig, NetworkConfig, PPOConfig, TrainConfig
    from trainers.export import export
    from trainers.malloc import keep_freed_memory
    from trainers.opening import train, training
    from trainers.presets import Job, Preset, load_preset
    from trainers.record.checkpoint import CheckpointError
    from trainers.record.env_errors import TooManyEnvErrors
    from trainers.record.metrics import Report, StageReport, Timing
    from trainers.record.summary import StageEntry, Summary
    from trainers.run import Run
    from trainers.trained import TrainedPolicy, load_policy
    from trainers.twin import Twin, TwinError, read_twin

__all__ = [
    "CallbackError",
    "CheckpointError",
    "ConfigError",
    "EvalConfig",
    "FleetConfig",
    "Job",
    "NetworkConfig",
    "PPOConfig",
    "Preset",
    "Report",
    "Run",
    "StageEntry",
    "StageReport",
    "Summary",
    "Timing",
    "TooManyEnvErrors",
    "TrainConfig",
    "TrainedPolicy",
    "Twin",
    "TwinError",
    "export",
    "keep_freed_memory",
    "load_policy",
    "load_preset",
    "read_twin",
    "train",
    "training",
]

_ROOMS = {
    "callbacks": ("CallbackError",),
    "record.checkpoint": ("CheckpointError",),
    "config": ("ConfigError", "EvalConfig", "FleetConfig", "NetworkConfig", "PPOConfig", "TrainConfig"),
    "export": ("export",),
    "malloc": ("keep_freed_memory",),
    "record.env_errors": ("TooManyEnvErrors",),
    "record.metrics": ("Report", "StageReport", "Timing"),
    "presets": ("Job", "Preset", "load_preset"),
    "opening": ("train", "training"),
    "run": ("Run",),
    "record.summary": ("StageEntry", "Summary"),
    "trained": ("TrainedPolicy", "load_policy"),
    "twin": ("Twin", "TwinError", "read_twin"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _ROOM_OF:
        return getattr(importlib.import_module(f"trainers.{_ROOM_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
