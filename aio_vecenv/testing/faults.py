"""Envs that misbehave: `FaultyEnv` does one of `FAULTS` at a chosen moment."""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .envs import StampEnv


class TwoArguments(Exception):
    """Cannot be rebuilt from its `args` alone."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")
        self.left, self.right = left, right


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class BadText(Exception):
    """Raises in its own `__str__`."""

    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Unloadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, ())


def _explode() -> None:
    raise RuntimeError("this object does not want to be unpickled")


Result = tuple[Any, ...]  # what reset or step returned


def _raise(error: Callable[[], BaseException]) -> Callable[[FaultyEnv, Result], Result]:
    def fault(env: FaultyEnv, result: Result) -> Result:
        raise error()

    return fault


def _info(value: Callable[[], Any]) -> Callable[[FaultyEnv, Result], Result]:
    return lambda env, result: (*result[:-1], {**result[-1], "a": {"b": value()}})


def _obs(change: Callable[[Any], Any]) -> Callable[[FaultyEnv, Result], Result]:
    return lambda env, result: (change(result[0]), *result[1:])


def _reward(value: Any) -> Callable[[FaultyEnv, Result], Result]:
    return lambda env, result: (result[0], value, *result[2:]) if len(result) == 5 else result


def _hang(env: FaultyEnv, result: Result) -> Result:
    while True:
        pass


def _wait(env: FaultyEnv, result: Result) -> Result:
    threading.Event().wait()
    return result


def _hang_in_c(env: FaultyEnv, result: Result) -> Result:
    mutex = ctypes.create_string_buffer(128)  # zeros: an unlocked mutex
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)  # PyDLL keeps the interpreter lock; no signal ends this
    return result


def _segfault(env: FaultyEnv, result: Result) -> Result:
    ctypes.string_at(0)
    return result


def _print(env: FaultyEnv, result: Result) -> Result:
    sys.stdout.write("x" * 100_000)
    return result


def _close_standard_files(env: FaultyEnv, result: Result) -> Result:
    for fd in (0, 1, 2):
        os.close(fd)
    return result


def _grandchild(env: FaultyEnv, result: Result) -> Result:
    env.helper = subprocess.Popen(["sleep", "1000"])
    return result


def _fork(env: FaultyEnv, result: Result) -> Result:
    if not os.fork():
        time.sleep(1000)  # a fork holds every descriptor of its parent
        os._exit(0)
    return result


def _signal_handlers(env: FaultyEnv, result: Result) -> Result:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return result


def _kill(number: int) -> Callable[[FaultyEnv, Result], Result]:
    def fault(env: FaultyEnv, result: Result) -> Result:
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # a stop takes effect at once, a death too; neither comes back here
        return result

    return fault


FAULTS: dict[str, Callable[[Any, Result], Result]] = {
    "raise": _raise(lambda: ValueError("the env is broken")),
    "raise two arguments": _raise(lambda: TwoArguments("one", "two")),
    "raise unpicklable": _raise(lambda: HoldsALock("an exception with a lock")),
    "raise without text": _raise(BadText),
    "raise group": _raise(lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")])),
    "raise 10 MB": _raise(lambda: ValueError("x" * 10_000_000)),
    "raise 100 kB": _raise(lambda: ValueError("x" * 100_000)),
    "raise unicode": _raise(lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")),
    "hang": _hang,
    "wait": _wait,
    "hang in c": _hang_in_c,
    "segfault": _segfault,
    "sys.exit": _raise(lambda: SystemExit(3)),
    "os._exit": lambda env, result: os._exit(3),
    "sigkill": _kill(signal.SIGKILL),
    "sigstop": _kill(signal.SIGSTOP),
    "huge info": _info(lambda: bytes(17 << 20)),
    "unpicklable info": _info(threading.Lock),
    "unloadable info": _info(Unloadable),
    "wrong shape": _obs(lambda obs: obs[:1]),
    "wrong dtype": _obs(lambda obs: obs.astype(np.float64) + 0.5),
    "no observation": _obs(lambda obs: None),
    "nan reward": _reward(float("nan")),
    "infinite reward": _reward(float("inf")),
    "no reward": _reward(None),
    "four results": lambda env, result: result[:4] if len(result) == 5 else result[:1],
    "prints": _print,
    "closes standard files": _close_standard_files,
    "child": _grandchild,
    "fork": _fork,
    "signal handlers": _signal_handlers,
}


class FaultyEnv(StampEnv):
    """A `StampEnv` that does FAULTS[fault] at its `at`-th call (0, 1, …) of `op`: make, reset, step or close.

    With `once`, a path, only the first of all lives does: the fault leaves that file behind.
    """

    helper: subprocess.Popen[bytes] | None = None

    def __init__(
        self,
        env: int,
        fault: str,
        *,
        op: Literal["make", "reset", "step", "close"] = "step",
        at: int = 2,
        once: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(env, **kwargs)
        self.fault, self.op, self.at, self.once = fault, op, at, once
        self.calls = 0
        if op == "make":
            self.at = 0
            self._perhaps("make", ())

    def reset(self, **kwargs: Any) -> Any:
        return self._perhaps("reset", super().reset(**kwargs))

    def step(self, action: np.int64) -> Any:
        return self._perhaps("step", super().step(action))

    def close(self) -> None:
        super().close()
        if self.op == "close":
            self.at = 0
        self._perhaps("close", ())

    def _perhaps(self, op: str, result: Result) -> Any:
        if op != self.op:
            return result
        self.calls += 1
        if self.calls != self.at + 1:
            return result
        if self.once is not None:
            try:
                Path(self.once).touch(exist_ok=False)
            except FileExistsError:
                return result
        return FAULTS[self.fault](self, result)


class ReusesBuffer(StampEnv):
    """Returns the same array every time, and the same info dict."""

    def __init__(self, env: int, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self._buffer = np.zeros(self.observation_space.shape or (), np.int64)
        self._dict: dict[str, Any] = {}

    def _obs(self) -> NDArray[np.int64]:
        if not hasattr(self, "_buffer"):
            return super()._obs()
        self._buffer[:] = super()._obs()
        return self._buffer

    def _info(self) -> dict[str, Any]:
        self._dict.clear()
        self._dict.update(super()._info())
        return self._dict
