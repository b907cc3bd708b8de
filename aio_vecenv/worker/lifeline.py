"""Ties this process to its parent, before anything else is loaded: that takes a second or more on a busy machine."""
# resource (child): arms the lifeline that main reads; imports nothing that is slow to load

from __future__ import annotations

import os
import select
import signal
import sys
import threading

__all__ = ["tie_to_parent"]


def tie_to_parent(parent_pid: int, lifeline_fd: int) -> None:
    """Die with the parent, however it dies: by the kernel, and by a thread where a fork holds the lifeline."""
    if sys.platform == "linux":
        import fcntl

        # When the last write end of the lifeline closes, the kernel kills our process group, even while this
        # process is stuck in C with the interpreter lock held. A signal is sent only for a pipe that was polled.
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
        poll = select.poll()
        poll.register(lifeline_fd, select.POLLIN)
        if poll.poll(0):  # the parent was gone before we were ready
            os.killpg(0, signal.SIGKILL)
    threading.Thread(target=_watch_parent, args=(parent_pid, lifeline_fd), daemon=True).start()


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
