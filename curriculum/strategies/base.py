"""What a strategy is: the small protocol, the episode it is given, and the decision it may report."""
# pure: definitions and one-line readings of an episode

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, Protocol, TypeAlias

import numpy as np

from curriculum.directive import Directive
from curriculum.errors import CommandError, PlanError, StampError, StateError
from curriculum.stages import StagePlan

__all__ = [
    "SUCCESS_EVER",
    "SUCCESS_UNCLEAR",
    "Decision",
    "EpisodeLike",
    "FinishedEpisode",
    "Score",
    "StartedLike",
    "Strategy",
    "Success",
    "ever_success",
    "ever_success_score",
    "expect_number",
    "expect_success",
    "is_success",
    "need",
    "recorded_success",
    "said_success",
    "success_function",
    "success_score",
    "task_of",
    "unclear_said",
    "unclear_success",
]


# keys of the last info, by CurriculumEnv
# whether a step of the episode succeeded; None: no step said anything
SUCCESS_EVER = "curriculum_success_ever"
SUCCESS_UNCLEAR = "curriculum_success_unclear"  # what a step said that is neither yes nor no, if one did


class StartedLike(Protocol):
    """What is read of the start of an episode."""

    @property
    def env_id(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def order(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def task(self) -> Any: ...


class EpisodeLike(StartedLike, Protocol):
    """What is read of a finished episode; the runtime's `Episode` has all of it."""

    @property
    def length(self) -> int: ...
    @property
    def episode_return(self) -> float: ...
    @property
    def outcome(self) -> Any: ...
    @property
    def final_info(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class FinishedEpisode:
    """An episode made by hand: by the single-env mode, by a replay, in tests."""

    env_id: int
    index: int
    order: int
    length: int
    episode_return: float
    outcome: str  # terminated, truncated or aborted
    version: int
    task: Any
    final_info: Mapping[str, Any] = field(default_factory=dict)


Success: TypeAlias = Callable[[Any], bool]
Score: TypeAlias = Callable[[Any], float]


class Strategy(Protocol):
    """Four methods are enough; all are plain functions of plain data, deterministic given their inputs.

    A strategy may also have any of these, which the coordinator calls where they exist:

    - `attached(num_envs)`: it now serves these envs; their orders and versions start anew.
    - `started(event)`: an episode began.
    - `beginning(orders)`: of the episodes whose reset is under way, before `settle`.
    - `settle(watermark) -> Sequence[Decision] | None`: all events of one batch have been given; decide.
    - `published(version)`: its newest directive is out, under that version.
    - `set_stage(name)`, `set_mixing_ratio(stage, ratio)`, `hold()`, `release()`: an operator's commands. Without
      `hold`, the coordinator publishes nothing while held, and then the newest directive.
    - `record_scores(parts)`: what the learner measured on parts of episodes.
    - `stage`, `solved`, `progress()`, `explain()`, `mixing_ratio(stage)`: what the coordinator shows.
    - `success(episode) -> bool` or `score(episode) -> float`: what the journal notes of an episode.
    """

    def observe(self, episode: Any, /) -> object:
        """Take in a finished episode. Episodes of one batch come in the order in which they started."""

    def directive(self) -> Directive:
        """What workers shall draw from. Return the same object, or an equal one, while nothing changed."""

    def state_dict(self) -> dict[str, Any]:
        """All of its state as plain data (what json can write), with a schema version."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take over what `state_dict()` gave; StateError, and nothing changed, if it does not fit."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision, with the counts it was taken on."""

    # advance, regress, solved, stalled; or the operator's set_stage, set_mixing_ratio, hold, release, checkpoint, stop
    kind: str
    stage: str | None  # the stage it was taken in
    to: str | None = None  # the stage it moved to
    reasons: tuple[str, ...] = ()
    total: int = 0  # ended episodes so far, aborted ones not counted
    counts: Mapping[str, Any] = field(default_factory=dict)  # k, length, n, threshold, …
    by: str | None = None
    why: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "reasons": list(self.reasons), "counts": dict(self.counts)}

    def describe(self) -> str:
        """One line: when, what, where, why."""
        where = f"{self.stage} → {self.to}" if self.to is not None else str(self.stage)
        reasons = f"  ({', '.join(self.reasons)})" if self.reasons else ""
        by = f"  by {self.by}" if self.by is not None else ""
        return f"after {self.total:>6} episodes: {self.kind:<9} {where}{reasons}{by}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """What `as_dict` gave."""
        return cls(**{**data, "reasons": tuple(data["reasons"])})


def said_success(info: Mapping[str, Any]) -> bool | None:
    """What `info["is_success"]`, else `["success"]` says: a bool, or a number that is neither 0 nor NaN, also as a
    NumPy scalar or an array of one entry. None: neither key is there, or what it holds is no such value."""
    value = info.get("is_success")
    if value is None:
        value = info.get("success")
    return value if value is None or value is True or value is False else _truth(value)


def recorded_success(success: Any) -> bool:
    """What an outcome given by hand says, read as an info's; CommandError for what is neither a bool nor a number."""
    if (said := _truth(success)) is None:
        raise CommandError(f"success: expected a bool or a number, got {success!r:.60}")
    return said


def _truth(value: Any) -> bool | None:
    try:
        if not isinstance(value, Real):
            value = np.asarray(value) if hasattr(value, "__array__") else None
            if value is None or value.size != 1 or value.dtype.kind not in "biuf":
                return None
            value = value.item()
        return bool(value != 0 and value == value)  # NaN is no success
    except Exception:  # of a type of the env's own
        return None


def unclear_said(info: Mapping[str, Any]) -> str | None:
    """The value of a success key that `said_success` can make nothing of, in words; None where there is none."""
    for key in ("is_success", "success"):
        if (value := info.get(key)) is not None:
            return None if said_success(info) is not None else f"{key} is {_shown(value)}"
    return info.get(SUCCESS_UNCLEAR)


def _shown(value: Any) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a type of the env's own
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}…"


def unclear_success(episode: EpisodeLike) -> str | None:
    """That an episode's success cannot be read from its info, where that is so."""
    if (said := unclear_said(episode.final_info)) is None:
        return None
    task = episode.task if isinstance(episode.task, Mapping) else {}
    where = f"env {episode.env_id}, stage {task.get('stage')!r}, level {task.get('level')!r}"
    return f"{where}: {said}, which is neither a bool nor a number: no success, wherever it is said"


def is_success(episode: EpisodeLike) -> bool:
    """Whether the episode's last step succeeded: what `final_info["is_success"]`, else `["success"]` says.

    A bool or a number counts (0 and NaN are no success), also as a NumPy scalar or an array of one entry; anything
    else is no success.
    """
    return said_success(episode.final_info) is True


def ever_success(episode: EpisodeLike) -> bool:
    """Whether any step of the episode succeeded, as its `CurriculumEnv` saw it.

    StampError if the episode was stamped by something else, which does not tell.
    """
    if is_success(episode):
        return True
    value = episode.final_info.get(SUCCESS_EVER)
    if value is None and "role" not in task_of(episode):
        raise StampError(
            f"env {episode.env_id}: whether it ever succeeded is not known (its last info has no {SUCCESS_EVER!r}): "
            "wrap the env in CurriculumEnv"
        )
    return bool(value)


def success_function(success: Any) -> Success:
    """ "last", "ever" or a function, as a function; PlanError for anything else."""
    if success == "last":
        return is_success
    if success == "ever":
        return ever_success
    if not callable(success):
        raise PlanError(f"success: expected a function of the episode, 'last' or 'ever', got {success!r}")
    function: Success = success
    return function


def expect_success(plan: StagePlan | None, who: str, how: str) -> None:
    """PlanError where a stage does not measure success, which is what `who` goes by. `how`: what to say instead."""
    for stage in plan.stages if plan is not None else ():
        if stage.measure != "success":
            raise PlanError(
                f"stage {stage.name!r}: measure = {stage.measure!r}: {who} goes by success; say with {how}, or take "
                "Staged"
            )


def expect_number(key: str, value: Any, ok: Callable[[Any], bool], expected: str) -> None:
    """PlanError unless a setting is a finite number, and one of which `ok` holds."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and ok(value)):
        raise PlanError(f"{key}: expected {expected}, got {value!r:.60}")


def success_score(episode: EpisodeLike) -> float:
    """1.0 for a success, else 0.0."""
    return float(is_success(episode))


def ever_success_score(episode: EpisodeLike) -> float:
    """1.0 if any step succeeded, else 0.0; raises as `ever_success`."""
    return float(ever_success(episode))


def task_of(event: StartedLike) -> Mapping[str, Any]:
    """The stamp of an episode; StampError that names its env if there is none."""
    task = event.task
    if type(task) is dict and "stage" in task and "level" in task:  # as it comes from a worker
        return task
    if not isinstance(task, Mapping) or "stage" not in task or "level" not in task:
        raise StampError(
            f"env {event.env_id}: episode {event.index} has no task stamp "
            f"(info['task'] at reset is {task!r}); wrap the env in CurriculumEnv"
        )
    return task


def need(state: Any, key: str, kinds: type | tuple[type, ...], where: str) -> Any:
    """state[key] of one of these types; StateError that says what is missing or wrong. True and False are no
    ints.
    """
    if not isinstance(state, Mapping) or key not in state:
        raise StateError(f"{where}: expected a key {key!r}")
    value = state[key]
    allowed: Sequence[type] = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, tuple(allowed)) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise StateError(f"{where}: {key}: expected {names}, got {value!r:.60}")
    return value
