"""Ties a worker to its parent, before it has loaded anything: that takes a second or more on a busy machine."""
# resource (child, and `arm` in the parent): the lifeline that main reads; imports nothing that is slow to load

from __future__ import annotations

import os
import select
import signal
import sys
import threading

__all__ = ["arm", "tie_to_parent"]


def arm(lifeline_fd: int, group: int) -> None:
    """Let the kernel kill a process group when the last write end of the lifeline closes.

    That reaches it even while it is stuck in C with the interpreter lock held. The parent does this, as soon as there
    is a child: an interpreter may take seconds to come to its first line.
    """
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -group)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
        _hung_up(lifeline_fd)  # a signal is sent only for a pipe that was polled


def tie_to_parent(parent_pid: int, lifeline_fd: int) -> None:
    """Die with the parent, however it dies: by the kernel (`arm`), and by a thread where a fork holds the lifeline."""
    if _hung_up(lifeline_fd):  # the parent was gone before it had armed it
        os.killpg(0, signal.SIGKILL)
    threading.Thread(target=_watch_parent, args=(parent_pid, lifeline_fd), daemon=True).start()


def _hung_up(lifeline_fd: int) -> bool:
    poll = select.poll()
    poll.register(lifeline_fd, select.POLLIN)
    return bool(poll.poll(0))


def _watch_parent(parent_pid: int, lifeline_fd: int) -> None:
    """End with it; where there is no pidfd, with the end-of-file on the lifeline."""
    poll = select.poll()
    if hasattr(os, "pidfd_open"):
        try:
            poll.register(os.pidfd_open(parent_pid), select.POLLIN)
        except OSError:  # gone already
            os.killpg(0, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os.killpg(0, signal.SIGKILL)
    else:  # pragma: no cover - macOS
        poll.register(lifeline_fd, select.POLLIN)
    while not poll.poll():
        pass
    os.killpg(0, signal.SIGKILL)
