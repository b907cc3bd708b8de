"""Shared by the tests of the runtime: waiting for states, parents and what they leave, an env that learns."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
PREFIX = """
import asyncio, os, signal, sys, time, threading, ctypes
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
import aio_vecenv as av
from functools import partial
from aio_vecenv.testing import *
def pids(envs): return [w.pid for w in envs.statistics().workers]
def ready(envs, *more):
    print("READY", *pids(envs), *more, flush=True)
"""


async def until(state: Callable[[], Any], limit_s: float = 60.0, pause_s: float = 0.002) -> None:
    """Wait, on the loop, until `state()` is true; looks at each turn of it where `pause_s` is 0.

    Raises AssertionError where it is not true after the limit either.
    """
    deadline, late = time.monotonic() + limit_s, False
    while not state():
        assert not late, f"not so within {limit_s} s: {state}"
        await asyncio.sleep(pause_s)
        late = time.monotonic() > deadline


def wait_until(state: Callable[[], Any], limit_s: float = 60.0) -> None:
    """The same without a loop."""
    deadline, late = time.monotonic() + limit_s, False
    while not state():
        assert not late, f"not so within {limit_s} s: {state}"
        time.sleep(0.002)
        late = time.monotonic() > deadline


def stop(pid: int) -> None:
    """Stop a process; it stands still once this returns."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T")


def kill(pid: int) -> None:
    """Kill a process; once this returns it does nothing more, and nobody has heard of it yet."""
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def state_of(pid: int) -> str:
    """As the kernel sees it: R, S, T, Z …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ending(pid: int) -> bool:
    """Whether it has ended, or will without doing anything more: how long that takes is up to the machine."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    exiting = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]) & 4  # PF_EXITING
    return bool(exiting or pending & 1 << (signal.SIGKILL - 1) or status["State"].startswith("Z"))


class Parent:
    """A Python process in a session of its own that runs `code`; Ctrl-C restored, everything it starts is counted."""

    def __init__(self, code: str, *arguments: str, stdin: bool = False, **environment: str) -> None:
        command = [sys.executable, "-"] if stdin else [sys.executable, "-c", PREFIX + code]
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            restore_signals=True,
            cwd=ROOT,
            env={**os.environ, **environment, "AIO_VECENV_TEST": str(time.monotonic_ns())},
        )
        if stdin:
            assert self.process.stdin is not None
            self.process.stdin.write(PREFIX + code)
            self.process.stdin.close()
            self.process.stdin = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> Parent:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # first: it may start others meanwhile, and these hold its pipes open
        wait_until(lambda: not self._kill_left())
        self.process.communicate()

    def _kill_left(self) -> list[int]:
        left = self.left()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def ready(self) -> list[str]:
        """Wait for its line READY; what follows the word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("READY"):
                return line.split()[1:]
        raise AssertionError(
            f"it never was ready: {self.process.stderr.read() if self.process.stderr else ''}"
        )

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self, limit_s: float = 100.0) -> tuple[int, str, str]:
        """Wait for its end; exit code, stdout, stderr."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        late = threading.Timer(limit_s, self.process.kill)
        late.start()
        with ThreadPoolExecutor(1) as reader:  # not communicate(): it loses what was read ahead by `ready`
            err = reader.submit(self.process.stderr.read)
            out = self.process.stdout.read()
        status = self.process.wait()
        assert late.is_alive(), f"not ended within {limit_s} s: {out} {err.result()}"
        late.cancel()
        late.join()
        return status, out, err.result()

    def left(self) -> list[int]:
        """Processes of its session that live and were not killed, itself excluded."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            try:
                if os.getsid(int(entry.name)) == self.pid and not ending(int(entry.name)):
                    found.append(int(entry.name))
            except (ProcessLookupError, FileNotFoundError):
                continue
        return found

    def nothing_left(self, limit_s: float = 2.0) -> None:
        """Raise AssertionError unless nothing of it lives within the limit."""
        wait_until(lambda: not self.left(), limit_s)
