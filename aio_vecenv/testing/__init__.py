"""For your own tests: envs that misbehave on order, envs whose every row can be checked, and the backend contract.

`StampEnv` says in each observation which row of which episode it is, so any mix-up shows. `FaultyEnv` is a `StampEnv`
that does one of `FAULTS` at a chosen moment. `ScriptedBackend` is the inline backend, except that replies and deaths
come when the test says so. `BackendContract` is the suite that every backend must pass: subclass it and
say which. `check_policy` says whether a policy may act in workers.
"""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported. Names are
# imported when they are first used, since workers need the envs, not the runtime

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import BackendContract
    from .envs import StampEnv, check_aligned, check_episodes, stamp_envs
    from .faults import FAULTS, FaultyEnv
    from .policies import check_policy
    from .scripted import ScriptedBackend

__all__ = [
    "FAULTS",
    "BackendContract",
    "FaultyEnv",
    "ScriptedBackend",
    "StampEnv",
    "check_aligned",
    "check_episodes",
    "check_policy",
    "stamp_envs",
]

_HOME = {
    "FAULTS": "faults",
    "BackendContract": "contract",
    "FaultyEnv": "faults",
    "ScriptedBackend": "scripted",
    "check_policy": "policies",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f".{_HOME.get(name, 'envs')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
