"""Starts fresh child interpreters by exec, in process groups of their own, tied to the parent by a lifeline."""
# resource: owns one child process and the parent's ends of its pipes

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..worker.lifeline import arm

__all__ = ["Child", "check_descriptors", "launch"]

# The child must find this package before it can import anything, and never runs the user's __main__.
# Packages that the parent has loaded from this one's folder are found there, whatever lies in the user's own.
_BOOT = (
    "import sys, json; from importlib.machinery import PathFinder; "
    "root, ours, sys.path[:] = json.loads(sys.argv[1]); "
    "find = lambda name, path=None, target=None: PathFinder.find_spec(name, [root]) if name in ours else None; "
    "sys.meta_path.insert(0, type('Ours', (), {'find_spec': staticmethod(find)})); "
    "from aio_vecenv.worker.lifeline import tie_to_parent; tie_to_parent(*map(int, sys.argv[2:4])); "
    "from aio_vecenv.worker.main import main; main(*map(int, sys.argv[3:]))"
)
_DESCRIPTORS_PER_CHILD = 5  # two sockets, lifeline, crash file, pidfd
_DESCRIPTORS_WHILE_LAUNCHING = 10  # the child's ends, subprocess's own pipe, the shared block, a little room
_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def _loaded_beside() -> tuple[str, list[str]]:
    """The folder that this package lies in, and the packages that are loaded from there."""
    name = __package__.partition(".")[0]
    root = os.path.dirname(next(iter(sys.modules[name].__path__)))
    found = []
    for other, module in sys.modules.copy().items():
        path = [] if "." in other else list(getattr(module, "__path__", None) or [])
        if path and isinstance(path[0], str) and os.path.dirname(path[0]) == root:
            found.append(other)
    return root, found


class Child:
    """One child process, and our ends of its pipes. `close()` kills the whole group, reaps, and closes them all."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        commands: socket.socket,
        updates: socket.socket,
        lifeline: int,
        crash: int,
        pidfd: int,
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.commands = commands
        self.updates = updates
        self.pidfd = pidfd  # readable once the process has exited; -1 where there is no such thing
        self._crash = crash
        fds = [lifeline, crash] if pidfd < 0 else [lifeline, crash, pidfd]
        # Runs also when the object is dropped, and at the interpreter's end; never in a fork of this process.
        self._cleanup = weakref.finalize(self, _destroy, os.getpid(), process, (commands, updates), fds)

    @property
    def alive(self) -> bool:
        """Whether `close` has not been called."""
        return self._cleanup.alive

    @property
    def exited(self) -> bool:
        """Whether the process has ended, as far as can be told without reaping it."""
        poll = select.poll()
        if self.pidfd >= 0:
            poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        """SIGKILL for the child and everything in its process group. The end-of-file on its pipes follows."""
        if self._cleanup.alive:
            _kill_group(self.process)

    def dump_stack(self) -> None:
        """Ask a stuck child for its Python stack; `crash_report` has it a moment later."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR2)

    @property
    def waits_for_cpu(self) -> bool:
        """Whether it would run if it were given a CPU, as far as the system tells."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] == "R"

    def crash_report(self) -> str:
        """What the child's faulthandler has written so far."""
        if not self._cleanup.alive:
            return ""
        try:
            return os.pread(self._crash, 1 << 16, 0).decode(errors="replace").strip()
        except OSError:
            return ""

    def close(self) -> int | None:
        """Kill what is left, reap, release. The exit status; None if somebody else took it. Can be called twice."""
        self._cleanup()
        code = self.process.returncode
        return code if isinstance(code, int) else None


def launch(block_fd: int) -> Child:
    """Start one interpreter that will attach to the shared block of `block_fd`. Raises OSError."""
    opened: list[Callable[[], None]] = []
    try:
        commands, child_commands = socket.socketpair()
        opened += [commands.close, child_commands.close]
        updates, child_updates = socket.socketpair()
        opened += [updates.close, child_updates.close]
        child_lifeline, lifeline = os.pipe()
        opened += [lambda: os.close(lifeline), lambda: os.close(child_lifeline)]
        crash = _anonymous_file()
        opened += [lambda: os.close(crash)]
        for sock in (commands, updates):
            sock.setblocking(False)
        fds = (child_lifeline, child_commands.fileno(), child_updates.fileno(), block_fd, crash)
        arguments = [str(number) for number in (os.getpid(), *fds)]
        path = json.dumps((*_loaded_beside(), [entry or os.getcwd() for entry in sys.path]))
        process = subprocess.Popen(
            [sys.executable, *_interpreter_flags(), "-c", _BOOT, path, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            process_group=0,
            env={**dict.fromkeys(_THREAD_LIMITS, "1"), **os.environ},
        )
        arm(child_lifeline, process.pid)
    except BaseException:
        for close in opened:
            close()
        raise
    child_commands.close()
    child_updates.close()
    os.close(child_lifeline)
    return Child(process, commands, updates, lifeline, crash, _pidfd(process.pid))


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    except OSError:  # it has exited and nobody waits for it (SIGCHLD is ignored): the end-of-file will tell
        return -1


def check_descriptors(children: int) -> None:
    """Raise OSError now, rather than in the middle, if `children` more children would need too many descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    needed = children * _DESCRIPTORS_PER_CHILD + _DESCRIPTORS_WHILE_LAUNCHING
    if open_now + needed > limit:
        raise OSError(
            errno.EMFILE,
            f"{children} workers need {needed} file descriptors; {open_now} are open and the limit is {limit}: "
            "use fewer workers, or raise RLIMIT_NOFILE (ulimit -n)",
        )


def _interpreter_flags() -> list[str]:
    """The options of this interpreter that change what user code means: warnings stay those of each process."""
    flags = ["-O" * sys.flags.optimize] if sys.flags.optimize else []
    if sys.flags.utf8_mode:
        flags += ["-X", "utf8"]
    if sys.flags.dev_mode:
        flags += ["-X", "dev"]
    return flags


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("aio_vecenv-crash", os.MFD_CLOEXEC)
    import tempfile  # pragma: no cover - macOS

    with tempfile.TemporaryFile() as file:  # pragma: no cover - macOS
        return os.dup(file.fileno())


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return  # reaped: the number may belong to somebody else by now
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _destroy(
    owner_pid: int,
    process: subprocess.Popen[bytes],
    sockets: Sequence[socket.socket],
    fds: Sequence[int],
) -> None:
    if os.getpid() != owner_pid:  # a fork of the parent owns nothing
        return
    _kill_group(process)
    process.wait()
    for sock in sockets:
        sock.close()
    for fd in fds:
        os.close(fd)
