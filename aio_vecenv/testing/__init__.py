"""For your own tests: envs that misbehave on order, envs whose every row can be checked, and the backend contract.

`StampEnv` says in each observation which row of which episode it is, so any mix-up shows. `FaultyEnv` is a `StampEnv`
that does one of `FAULTS` at a chosen moment. `ScriptedBackend` is the inline backend, except that replies and deaths
come when the test says so. `BackendContract` is the suite that every backend must pass: subclass it and
say which. `check_policy` says whether a policy may act in workers.
"""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported

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
