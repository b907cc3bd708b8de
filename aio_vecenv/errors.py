"""The exception tree, named by what the caller should do next.

VecEnvError
 ├ ClosedError                          you closed it: fix the calling code
 ├ WrongLoopError                       another loop or thread opened it: call broadcast, or hop
 ├ BusyError                            two tasks stepping the same env at once: fix the calling code
 ├ SpaceMismatch(env_id, expected, got) the envs disagree: fix the factory
 ├ BadActions(expected, got)            wrong shape, dtype or count: nothing was sent, the env is still usable
 ├ EnvError(env_id)                     your env raised; its exception is the cause, its traceback a note
 ├ PolicyError(op)                      your policy raised, or returned what it may not: fix the policy
 ├ WorkerLost(worker, env_ids, reason)  the process is gone: the restart budget is spent, or a call was in flight
 └ WorkerTimeout(worker, limit_s)       no start in time; also a TimeoutError and multiprocessing.TimeoutError
"""
# pure: definitions only

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from typing import Any

__all__ = [
    "BadActions",
    "BusyError",
    "ClosedError",
    "EnvError",
    "PolicyError",
    "SpaceMismatch",
    "VecEnvError",
    "WorkerLost",
    "WorkerTimeout",
    "WrongLoopError",
]


class VecEnvError(Exception):
    """Anything that goes wrong in the runtime. The remote traceback, where there is one, is a note."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[VecEnvError], args: tuple[Any, ...], fields: dict[str, Any]) -> VecEnvError:
    """An error out of a pickle, without its constructor, whose arguments are keywords."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ClosedError(VecEnvError):
    """The vec env is closed, or not open yet."""


class WrongLoopError(VecEnvError):
    """Called from another event loop or thread than the one that opened it; only `broadcast` may be."""


class BusyError(VecEnvError):
    """Two tasks use the same env at once, or an env that still owes a reply was sent an action."""


class SpaceMismatch(VecEnvError):
    """An env's space, observation or step result is not what was agreed.

    `leaf` is the path inside the space, as in `obs["image"]`; `None` where the whole is meant.
    """

    def __init__(
        self, message: str, *, env_id: int, expected: str, got: str, leaf: str | None = None
    ) -> None:
        super().__init__(message)
        self.env_id = env_id
        self.expected = expected
        self.got = got
        self.leaf = leaf


class BadActions(VecEnvError, ValueError):
    """Actions of the wrong shape, dtype or count. Nothing was sent; the vec env is as it was."""

    def __init__(self, message: str, *, expected: str, got: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.got = got


class EnvError(VecEnvError):
    """The user's env raised. `__cause__` is its exception where that survives pickling.

    `type_name` is the remote type's name, also where the exception itself could not travel;
    `op` is what was being done: `make`, `reset`, `step`, `call`, `on_broadcast`, …
    """

    def __init__(
        self, message: str, *, env_id: int, worker: int = -1, op: str = "", type_name: str = ""
    ) -> None:
        super().__init__(message)
        self.env_id = env_id
        self.worker = worker
        self.op = op
        self.type_name = type_name


class PolicyError(VecEnvError):
    """The policy raised, or declared or returned what it may not. `__cause__` is its exception, if it raised one.

    `op` is what was being done: `declare`, `unpickle`, `load`, `act`, `draw`; `type_name` is the name of the
    exception's type; `worker` the one whose copy of the policy it was, -1 in the parent.
    """

    def __init__(self, message: str, *, op: str, worker: int = -1, type_name: str = "") -> None:
        super().__init__(message)
        self.op = op
        self.worker = worker
        self.type_name = type_name


class WorkerLost(VecEnvError):
    """A worker process is gone. `crashes` holds the reason of every loss that the restart budget counted.

    `exit_status` is that of the process, negative for a signal; None where nobody knows.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: int,
        env_ids: Sequence[int],
        reason: str,
        exit_status: int | None = None,
        crashes: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.env_ids = tuple(env_ids)
        self.reason = reason
        self.exit_status = exit_status
        self.crashes = tuple(crashes)


class WorkerTimeout(VecEnvError, multiprocessing.TimeoutError, TimeoutError):
    """A worker did not start, or did not close, within `limit_s` seconds."""

    def __init__(self, message: str, *, worker: int, limit_s: float) -> None:
        super().__init__(message)
        self.worker = worker
        self.limit_s = limit_s
