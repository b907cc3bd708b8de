"""The exception tree of the curriculum, named by what the caller should do next.

CurriculumError
 ├ PlanError         a stage plan is not valid: fix the plan (file, line and key are named)
 ├ LevelError        a level cannot be found, read or put into the env: fix the level (file and line are
 named)
 ├ DirectiveError    a directive does not fit the levels, or none has arrived: fix how the two were joined
 ├ StampError        an episode carries no valid task stamp: wrap its env in CurriculumEnv
 ├ CommandError      an operator's command is not valid: nothing was changed
 ├ StateError        a saved state is torn or belongs to something else: nothing was loaded
 ├ JournalError      a journal is torn or foreign (file and line are named)
 └ CoordinatorError  the coordinator is used wrongly: a second one, or one whose run() is not running
"""
# pure: definitions only

from __future__ import annotations

__all__ = [
    "CommandError",
    "CoordinatorError",
    "CurriculumError",
    "DirectiveError",
    "JournalError",
    "LevelError",
    "PlanError",
    "StampError",
    "StateError",
]


class CurriculumError(Exception):
    """Anything that goes wrong in the curriculum."""


class PlanError(CurriculumError, ValueError):
    """A stage or plan is not valid."""


class LevelError(CurriculumError, ValueError):
    """A level cannot be found or read, or a set of levels is not valid."""


class DirectiveError(CurriculumError, ValueError):
    """A directive does not fit the levels it is drawn from, or none has arrived yet."""


class StampError(CurriculumError, ValueError):
    """An episode has no task stamp, or one that names a stage nobody knows."""


class CommandError(CurriculumError, ValueError):
    """A command names something that does not exist, or a value that is not allowed. Nothing was changed."""


class StateError(CurriculumError, ValueError):
    """A saved state cannot be loaded. Nothing was changed."""


class JournalError(CurriculumError, ValueError):
    """A journal cannot be read."""


class CoordinatorError(CurriculumError, RuntimeError):
    """A second coordinator on the same envs, or one that is not running."""
