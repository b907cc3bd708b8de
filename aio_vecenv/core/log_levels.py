"""Which log records this process lets through, and how it writes them, for workers to do the same."""
# pure: looks at the logging module's settings, and sets them where it is told to

from __future__ import annotations

import logging
from typing import NamedTuple

__all__ = ["LogLevels", "adopt", "current"]


class LogLevels(NamedTuple):
    """What a worker takes over. Handlers stay where they are: records of a worker go to its stderr."""

    levels: dict[str, int]  # of the loggers that have one; "": the root
    disabled: int  # as `logging.disable` was told
    form: tuple[str, str | None] | None  # format and date format; None: no handler has any


def current() -> LogLevels:
    """The settings of this process."""
    root = logging.getLogger()
    levels = {"": root.level}
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    for handler in root.handlers:
        formatter = handler.formatter
        if formatter is not None and formatter._fmt and type(formatter) is logging.Formatter:
            return LogLevels(levels, root.manager.disable, (formatter._fmt, formatter.datefmt))
    return LogLevels(levels, root.manager.disable, None)


def adopt(wanted: LogLevels) -> None:
    """Let the same records through here. An env's own logging settings come later and win."""
    for name, level in wanted.levels.items():
        logging.getLogger(name or None).setLevel(level)
    logging.disable(wanted.disabled)
    handler = logging.StreamHandler()
    if wanted.form is not None:
        try:
            handler.setFormatter(logging.Formatter(*wanted.form))
        except ValueError:  # of another style than %: the records are what matters
            handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
    # What takes a record that no handler wants: so a later `basicConfig` of an env's own is not in vain.
    logging.lastResort = handler
