"""An exception as it crosses a pipe: text always, the exception itself where it survives a round trip."""
# pure: exceptions in, plain data out, and back

from __future__ import annotations

import re
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from ..errors import EnvError, PolicyError, SpaceMismatch, VecEnvError
from . import framing as wire

__all__ = ["ErrorReport", "RowError", "describe", "describe_policy", "raise_all", "rebuild", "rebuild_policy"]

_MAX_TASK = 200  # characters
_MAX_TEXT = 64 * 1024  # characters of a message or traceback that travel


class RowError(Exception):
    """An env returned something that does not fit its row."""

    def __init__(self, what: str, expected: str, got: str, leaf: str | None = None) -> None:
        super().__init__(f"{what}: expected {expected}, got {got}")
        self.expected = expected
        self.got = got
        self.leaf = leaf


@dataclass(frozen=True)
class ErrorReport:
    """What an env raised, told by the side that saw it."""

    op: str  # make, reset, step, on_broadcast, call, get, set
    type_name: str
    message: str
    traceback: str
    pickled: bytes | None  # the exception, if pickling and unpickling it worked where it was raised
    expected: str = ""  # of what did not fit its row
    got: str = ""
    leaf: str | None = None
    task: str = ""  # what its episode was about, as the reset's info said

    def about(self, task: Any) -> ErrorReport:
        """The same, of an episode with this task; None: it is not known."""
        return self if task is None else replace(self, task=_told(task))

    def cut(self, size_bytes: int) -> ErrorReport:
        """The same in at most about `size_bytes` bytes: the end of the traceback, the beginning of the message."""
        if len(self.pickled or b"") + 4 * (len(self.message) + len(self.traceback)) <= size_bytes:
            return self
        some = max(size_bytes // 16, 100)  # a character takes up to four bytes
        return replace(
            self, message=self.message[:some], traceback=_middle_out(self.traceback, some), pickled=None
        )


def describe(error: BaseException, op: str, task: Any = None) -> ErrorReport:
    """Report `error`, whatever is wrong with it. `task`: of the episode, if it is known."""
    try:
        message = str(error)[:_MAX_TEXT]
    except Exception as worse:
        message = f"<its __str__ raised {type(worse).__name__}>"
    try:
        text = _middle_out("".join(traceback.format_exception(error)), _MAX_TEXT)
    except Exception:
        text = ""
    pickled: bytes | None
    try:
        pickled = cloudpickle.dumps(error) if len(message) < _MAX_TEXT else None
        if pickled is None or len(pickled) > _MAX_TEXT or type(wire.loads(pickled)) is not type(error):
            pickled = None
    except Exception:
        pickled = None
    report = ErrorReport(op, type(error).__name__, message, text, pickled).about(task)
    if isinstance(error, RowError):
        return replace(report, expected=error.expected, got=error.got, leaf=error.leaf)
    return report


def describe_policy(error: PolicyError) -> ErrorReport:
    """Report what is wrong with a policy; the exception that travels is the policy's own."""
    whole = describe(error, error.op)
    cause = None if error.__cause__ is None else describe(error.__cause__, error.op).pickled
    return replace(whole, type_name=error.type_name, pickled=cause)


def rebuild_policy(report: ErrorReport, worker: int) -> PolicyError:
    """The exception that the caller sees, where the policy of a worker failed."""
    error = PolicyError(
        f"worker {worker}: {report.message}", op=report.op, worker=worker, type_name=report.type_name
    )
    error.add_note("the traceback in the worker:\n" + report.traceback)
    if report.pickled is not None:
        with suppress(Exception):  # its module may not be importable here: then the text has to do
            error.__cause__ = wire.loads(report.pickled)
    return error


def _told(task: Any) -> str:
    """A task in a few words: "stage 'far', level 'far-3'"."""
    try:
        if isinstance(task, dict):
            return ", ".join(f"{key} {value!r}" for key, value in task.items())[:_MAX_TASK]
        return "" if task is None else f"task {task!r}"[:_MAX_TASK]
    except Exception:  # of a __repr__; the error is what there is to tell
        return ""


def _middle_out(text: str, limit: int) -> str:
    """At most about `limit` characters: the frames come first, what was raised last."""
    return text if len(text) <= limit else f"{text[: limit // 2]}\n…\n{text[-limit // 2 :]}"


def rebuild(report: ErrorReport, env_id: int, worker: int, where: str = "") -> VecEnvError:
    """The exception that the caller sees. `where` says which episode and step."""
    task = f", {report.task}" if report.task else ""
    place = f"env {env_id} (worker {worker}{where}{task})"
    if report.expected:
        mismatch = SpaceMismatch(
            f"{place}: {report.message}",
            env_id=env_id,
            expected=report.expected,
            got=report.got,
            leaf=report.leaf,
        )
        mismatch.add_note(report.traceback)
        return mismatch
    error = EnvError(
        f"{place} raised {report.type_name} in {report.op}: {report.message}",
        env_id=env_id,
        worker=worker,
        op=report.op,
        type_name=report.type_name,
    )
    error.add_note("the traceback in the worker:\n" + report.traceback)
    if report.pickled is not None:
        with suppress(Exception):  # its module may not be importable here: then the text has to do
            error.__cause__ = wire.loads(report.pickled)
    return error


def raise_all(errors: list[VecEnvError], what: str) -> None:
    """Raise the one error, or all in an ExceptionGroup; nothing if there are none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        first = _tell_alike(errors)
        alike = f", and {len(errors) - 1} more alike" if first == 1 else ""
        one = f": {errors[0]}{alike}" if first == 1 else ""
        raise ExceptionGroup(f"{what}: {len(errors)} envs raised{one}", errors)


def _tell_alike(errors: list[VecEnvError]) -> int:
    """Errors that differ in numbers only are told at length once, the others refer to the first; the last one, which
    adapters raise alone, stays whole. Returns how many kinds there are."""
    seen: dict[str, VecEnvError] = {}
    for error in errors:
        first = seen.setdefault(re.sub(r"\d+", "", f"{type(error).__name__} {error}"), error)
        if first is not error is not errors[-1] and hasattr(error, "__notes__"):
            error.__notes__[:] = [
                f"the traceback in the worker: as that of env {getattr(first, 'env_id', '?')}, above"
            ]
            error.__cause__ = first.__cause__  # Python shows one object once
    return len(seen)
