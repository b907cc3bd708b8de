"""Errors of envs that a run survives: counted by level, and when they are too many to go on."""
# pure: batches come in, counts go out

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

__all__ = ["FAILED_RESETS", "EnvErrors", "TooManyEnvErrors"]

FAILED_RESETS = "failed_resets"  # the info in which a CurriculumEnv says which levels could not begin
NEWEST = 100  # episodes that the share is taken of
FEWEST = 20  # … once there are so many: one error among the first two says little


class TooManyEnvErrors(RuntimeError):
    """So many episodes fail with an error of their env that the run has ended; the message names level and error."""


class EnvErrors:
    """Episodes that an error of their env ended, or kept from beginning, by level.

    A level is called STAGE/LEVEL, or by one name where both are the same.
    """

    def __init__(self, max_share: float) -> None:
        self.total: Counter[str] = Counter()
        self._since: Counter[str] = Counter()  # the last `take`
        self._text: dict[str, str] = {}  # the newest error of each level
        self._newest: deque[str | None] = deque(
            maxlen=NEWEST
        )  # the level of those that failed; None: it ended
        self._max_share = max_share

    def batch(self, batch: Any) -> list[str]:
        """Take in a `Batch`, or a `Chunk`: what ended in it, and what its infos say. Returns the levels that failed for
        the first time, each with its error."""
        errors: dict[tuple[int, int], str] = {}  # by number of the row's batch and env
        failed: dict[int, list[Any]] = {}  # levels that could not begin, by env; maybe rows after the error
        for number, env_id, info in _said(batch):
            if info.get("env_error"):
                errors[number, env_id] = info["env_error"]
            failed.setdefault(env_id, []).extend(info.get(FAILED_RESETS) or ())
        first: list[str] = []
        for episode in batch.episodes:
            if episode.outcome != "aborted":
                self._newest.append(None)
            elif (episode.batch, episode.env_id) in errors:
                first += self._count(_level(episode.task), errors.pop((episode.batch, episode.env_id)))
        for stage, level, text in chain(*failed.values()):
            first += self._count(_level({"stage": stage, "level": level}), text)
        for (_, env_id), text in errors.items():
            if not failed.get(env_id):  # its reset gave what does not fit: nothing says which level that was
                first += self._count("unknown", text)
        return first

    def resets(self, infos: Mapping[str, Any]) -> list[str]:
        """Take in what the infos of a reset say of levels that could not begin; returns as `batch`."""
        first: list[str] = []
        for failed in _column(infos, FAILED_RESETS).values():
            for stage, level, text in failed:
                first += self._count(_level({"stage": stage, "level": level}), text)
        return first

    def _count(self, level: str, text: str) -> list[str]:
        known = level in self.total
        self.total[level] += 1
        self._since[level] += 1
        self._newest.append(level)
        self._text[level] = text
        return [] if known else [f"{level}: {text}"]

    def check(self) -> None:
        """Raise `TooManyEnvErrors` if more than the allowed share of the newest episodes failed."""
        failed = Counter(level for level in self._newest if level is not None)
        if len(self._newest) >= FEWEST and failed.total() > self._max_share * len(self._newest):
            worst = "; ".join(
                f"{level}: {count} × {self._text[level]}" for level, count in failed.most_common(3)
            )
            raise TooManyEnvErrors(
                f"{failed.total()} of the newest {len(self._newest)} episodes failed with an error of their env "
                f"(max_error_share allows {self._max_share:.0%}): {worst}; --on-env-error raise shows the traceback "
                "of the first one"
            )

    def take(self) -> dict[str, int]:
        """Errors by level since the last call."""
        since, self._since = dict(self._since), Counter()
        return since

    def lines(self) -> list[str]:
        """The levels with the most errors, in words; at most 5."""
        found = [
            f"{level}: {count:,} × {self._text.get(level, 'error')}"
            for level, count in self.total.most_common(5)
        ]
        return [*found, *([f"and {len(self.total) - 5} levels more"] if len(self.total) > 5 else [])]


def _said(batch: Any) -> Sequence[tuple[int, int, Mapping[str, Any]]]:
    """(number of its batch, env, info) of each row of a `Batch` or a `Chunk` that says something of errors."""
    infos, keys = batch.infos, ("env_error", FAILED_RESETS)
    if not isinstance(infos, Mapping):  # of a chunk: rows that say anything at all, with their place in it
        return [(batch.number + t, env, info) for t, env, info in infos if any(key in info for key in keys)]
    found = [(row, {key: value}) for key in keys for row, value in _column(infos, key).items()]
    return [(batch.number, int(batch.env_ids[row]), info) for row, info in found]


def _column(infos: Mapping[str, Any], key: str) -> dict[int, Any]:
    """What the rows that have this info say."""
    if key not in infos:
        return {}
    values, given = infos[key], infos[f"_{key}"]
    return {row: values[row] for row in range(len(given)) if given[row]}


def _level(task: Any) -> str:
    stage, level = str(task["stage"]), str(task["level"])
    return stage if stage == level else f"{stage}/{level}"
