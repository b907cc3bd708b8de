"""How a command ends: one clear message for an error, the signal that came for a signal."""
# edge: stderr, signals

from __future__ import annotations

import os
import re
import signal
import sys

__all__ = ["die_by", "message"]


def message(error: BaseException) -> str:
    """One clear message: what the error says, and its type unless it was meant for a user."""
    if isinstance(error, BaseExceptionGroup):
        alike: dict[str, list[str]] = {}  # but for their numbers: many envs have one and the same mistake
        for text in map(message, error.exceptions):
            alike.setdefault(re.sub(r"\d+", "", text), []).append(text)
        return "; ".join(
            first + (f" (and {len(others)} more)" if others else "") for first, *others in alike.values()
        )
    text = str(error) or type(error).__name__
    known = type(error).__module__.split(".")[0] in ("trainers", "curriculum", "aio_vecenv")
    return text if known else f"{type(error).__name__}: {text} (--debug shows where)"


def die_by(number: signal.Signals) -> None:
    """End as the signal would have ended it, so that whoever waits sees 128 + number."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
