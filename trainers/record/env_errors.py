"""Errors of envs and losses of workers that a run survives: counted, and when the errors are too many to go on."""
# pure: batches come in, counts go out

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

__all__ = ["FAILED_RESETS", "EnvErrors", "TooManyEnvErrors", "WorkerLosses"]

FAILED_RESETS = "failed_resets"  # the info in which a CurriculumEnv says which levels could not begin
LOST = ("worker_lost", "host_lost")  # infos that say why an episode was cut off with its worker, or its host
NAMED = 3  # losses
MORE = "more workers were lost and replaced: metrics.jsonl and the summary count them"
TOLD = 120  # characters of a reason: it may have a stack
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
        # the level of those that failed; None: it ended
        self._newest: deque[str | None] = deque(maxlen=NEWEST)
        self._max_share = max_share

    def batch(self, batch: Any) -> list[str]:
        """Take in a `Batch`, or a `Chunk`: what ended in it, and what its infos say. Returns the levels that failed for
        the first time, each with its error."""
        errors: dict[tuple[int, int], str] = {}  # by number of the row's batch and env
        failed: dict[int, list[Any]] = {}  # levels that could not begin, by env; maybe rows after the error
        for number, env_id, info in _said(batch, ("env_error", FAILED_RESETS)):
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


class WorkerLosses:
    """Workers that were lost and replaced, and the episodes that were lost with them."""

    def __init__(self) -> None:
        self.total = 0
        self.aborted = 0
        self.newest = ""  # in words
        self._earlier = 0  # of the total: in parts of the run before this one
        self._taken = 0  # of the total: by the last `take`
        self._rows: Counter[int] = Counter()  # in which an env said that it was lost
        self._told: Counter[int] = Counter()  # losses of each worker that these rows come to
        self._named = 0  # losses of this part of the run that were put into words

    def batch(self, batch: Any) -> dict[int, tuple[str, bool]]:
        """Take in a `Batch`, or a `Chunk`: of each env that was lost with its worker, why, and whether an episode of
        it was aborted."""
        said = {
            (number, env_id): next(str(info[key]) for key in LOST if key in info)
            for number, env_id, info in _said(batch, LOST)
        }
        if not said:
            return {}
        aborted = {(e.batch, e.env_id) for e in batch.episodes if e.outcome == "aborted"} & said.keys()
        self.aborted += len(aborted)
        self._rows.update(env_id for _, env_id in said)
        return {row[1]: (reason, row in aborted) for row, reason in said.items()}

    def count(self, statistics: Any, lost: Mapping[int, tuple[str, bool]]) -> list[str]:
        """Take in the envs' `Statistics`, after a `batch` that gave `lost`. Returns the new losses, in words: the first
        few of this part of the run, and that there are more."""
        new: list[str] = []
        for worker in statistics.workers:
            mine = [env_id for env_id in worker.env_ids if env_id in lost]
            count = max((self._rows[env_id] for env_id in mine), default=0)
            if count <= self._told[worker.worker]:
                continue  # the other rows of a loss that was told of
            self._told[worker.worker] = count
            reason, episodes = lost[mine[0]][0], sum(lost[env_id][1] for env_id in mine)
            which = f"worker {worker.worker} (envs {worker.env_ids[0]}-{worker.env_ids[-1]})"
            new.append(
                f"{which} {_short(reason)}: replaced, {episodes} episode{'s' * (episodes != 1)} aborted"
            )
        self.newest = new[-1] if new else self.newest
        self.total = self._earlier + max(statistics.restarts, self._told.total())
        known, self._named = self._named, self._named + len(new)
        more = known <= NAMED < self._named
        return [*new[: max(0, NAMED - known)], *([MORE] if more else [])]

    def take(self) -> int:
        """Losses since the last call."""
        since, self._taken = self.total - self._taken, self.total
        return since

    def state(self) -> list[int]:
        """Plain data, as a checkpoint keeps it."""
        return [self.total, self.aborted]

    def load(self, state: Sequence[int]) -> None:
        """Go on from what `state` gave, with other workers."""
        self.total, self.aborted = state
        self._earlier = self._taken = self.total

    def lines(self) -> list[str]:
        """How many there were, in words, and the newest."""
        if not self.total:
            return []
        newest = f"; the newest: {self.newest}" if self.newest else ""
        return [f"{self.total:,} lost and replaced, {self.aborted:,} episodes aborted{newest}"]


def _short(reason: str) -> str:
    line = reason.strip().split("\n", 1)[0]
    return line if len(line) <= TOLD else f"{line[:TOLD]}…"


def _said(batch: Any, keys: Sequence[str]) -> Sequence[tuple[int, int, Mapping[str, Any]]]:
    """(number of its batch, env, info) of each row of a `Batch` or a `Chunk` that has one of these infos."""
    infos = batch.infos
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
