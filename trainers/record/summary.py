"""What a run adds up: the tally kept while it runs, each update's report, and the summary at its end."""
# pure: counts come in, plain data goes out; no clock

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aio_vecenv as av
from trainers.learn.ppo import UpdateStats
from trainers.record.env_errors import EnvErrors, WorkerLosses
from trainers.record.metrics import Report, StageReport, Timing
from trainers.record.outcomes import Outcomes

__all__ = ["RunTally", "StageEntry", "Summary", "stage_reports", "stages_seen", "wilson"]


@dataclass(frozen=True)
class StageEntry:
    """The run entered a stage."""

    stage: str
    env_steps: int
    """Rows collected by then, reset rows included."""
    update: int
    """Updates learned by then."""


@dataclass(frozen=True)
class Summary:
    """A whole run: summary.json."""

    reason: str
    """Why it ended: solved (the goal was reached), steps (the budget is spent), stopped (someone asked)."""
    env_steps: int
    """Rows collected, reset rows included."""
    updates: int
    """Updates learned."""
    episodes: int
    """Episodes ended, aborted ones not counted."""
    solved_at: int | None
    """Env steps at which `solve_rate` was reached; None: it was not."""
    timeline: tuple[StageEntry, ...]
    """Each entry into a stage, in order."""
    stages: tuple[StageReport, ...]
    """Every stage at the end."""
    env_errors: dict[str, int]
    """Episodes that an error of their env ended, or kept from beginning, by level; whatever the stage."""
    worker_losses: int
    """Workers that were lost and replaced, over all parts of the run; with several machines, hosts too."""
    lost_episodes: int
    """Episodes that were aborted with them."""
    wall_s: float
    """Seconds from the first reset to the end, over all parts of the run."""
    steps_per_s: float
    """env_steps / wall_s."""
    loop_lag_p99_s: float
    """How late a 10 ms ticker on the event loop was, 99th percentile, since the run was begun or resumed."""
    published: int
    """Directives published since the run was begun or resumed."""
    applied: int
    """How many of them every worker has taken (or a newer one instead)."""
    resumes: int
    """How often the run was resumed."""
    checkpoint: str
    """The last checkpoint, within the run folder."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        return dataclasses.asdict(self)


class RunTally:
    """What a run has added up so far; survives in the checkpoint as plain data."""

    def __init__(self, max_error_share: float = 1.0) -> None:
        self.errors = EnvErrors(max_error_share)
        self.losses = WorkerLosses()
        self.updates = self.env_steps = self.episodes = self.resumes = 0
        self.solved_at: int | None = None
        self.timeline: list[StageEntry] = []
        self._ended = self._aborted = self._steps = 0  # of this update
        self._return = 0.0
        self._late = 0

    def batch(self, batch: Any) -> list[str]:
        """Take in a `Batch` or `Chunk`; returns the levels that failed with an error of their env for the first time.

        Raises `TooManyEnvErrors` if more episodes fail so than are allowed to.
        """
        # of a chunk, rows without an episode are those of a fleet's host that was not there
        self.env_steps += int((batch.index >= 0).sum()) if isinstance(batch, av.Chunk) else batch.first.size
        for episode in batch.episodes:
            if episode.outcome == "aborted":
                self._aborted += 1
            else:
                self._ended += 1
                self._return += episode.episode_return
                self._steps += episode.length
                self.episodes += 1
        known = self.errors.total.total()
        first = self.errors.batch(batch)
        if self.errors.total.total() > known:
            self.errors.check()
        return first

    def enter(self, stage: str) -> None:
        """Note the current stage, if it is not the one noted last."""
        if not self.timeline or self.timeline[-1].stage != stage:
            self.timeline.append(StageEntry(stage, self.env_steps, self.updates))

    def late_since(self, late: int) -> int:
        """How many of the `late` episodes of this part of the run are new since the last call."""
        new, self._late = late - self._late, late
        return new

    def report(self, stats: UpdateStats, stages: Sequence[StageReport], stage: str, timing: Timing) -> Report:
        """One update is learned: its report; the counts per update start anew."""
        self.updates += 1
        ended = self._ended
        report = Report(
            update=self.updates,
            env_steps=self.env_steps,
            episodes=self.episodes,
            aborted=self._aborted,
            env_errors=self.errors.take(),
            worker_losses=self.losses.take(),
            stage=stage,
            mixing_ratio=next((row.mixing_ratio for row in stages if row.name == stage), 0.0),
            episode_return=self._return / ended if ended else None,
            episode_length=self._steps / ended if ended else None,
            stages=tuple(stages),
            timing=timing,
            **dataclasses.asdict(stats),
        )
        self._ended = self._aborted = self._steps = 0
        self._return = 0.0
        return report

    def summary(self, *, wall_s: float, **rest: Any) -> Summary:
        """The whole run; `rest`: what is not counted here."""
        return Summary(
            env_steps=self.env_steps,
            updates=self.updates,
            episodes=self.episodes,
            solved_at=self.solved_at,
            timeline=tuple(self.timeline),
            env_errors=dict(self.errors.total),
            worker_losses=self.losses.total,
            lost_episodes=self.losses.aborted,
            wall_s=wall_s,
            steps_per_s=self.env_steps / wall_s,
            resumes=self.resumes,
            **rest,
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain data, as a checkpoint keeps it."""
        return {
            "updates": self.updates,
            "env_steps": self.env_steps,
            "episodes": self.episodes,
            "resumes": self.resumes,
            "solved_at": self.solved_at,
            "timeline": [dataclasses.asdict(entry) for entry in self.timeline],
            "env_errors": dict(self.errors.total),
            "worker_losses": self.losses.state(),
            "of_update": [self._ended, self._aborted, self._steps, self._return],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.updates, self.env_steps = state["updates"], state["env_steps"]
        self.episodes, self.resumes = state["episodes"], state["resumes"] + 1
        self.solved_at = state["solved_at"]
        self.timeline = [StageEntry(**entry) for entry in state["timeline"]]
        self._ended, self._aborted, self._steps, self._return = state["of_update"]
        self.errors.total.update(state.get("env_errors", {}))  # not in the oldest checkpoints
        self.losses.load(state.get("worker_losses", (0, 0)))  # nor in those of 0.1


def stage_reports(
    rows: Iterable[Mapping[str, Any]], directive: Any, outcomes: Outcomes
) -> tuple[StageReport, ...]:
    """The coordinator's progress table as stage reports. Strategies without stages keep no window of the newest
    outcomes by stage: theirs are `outcomes`."""
    return tuple(
        _seen(row["stage"], row["outcomes"], row["share"], outcomes)
        if directive.stage is None
        else StageReport(
            name=row["stage"],
            success_rate=row["success_rate"] or 0.0,
            outcomes=row["window"],
            episodes=row["ended"],
            mixing_ratio=row["mixing_ratio"],
            share=_share(row["stage"], directive),
            missing=row["missing"],
            waiting=row["waiting"],
            waiting_for=row["waiting_for"],
            measure=row["measure"],
            value=row["value"],
            threshold=row["threshold"],
        )
        for row in rows
    )


def stages_seen(
    names: Sequence[str], levels: Any, directive: Any, outcomes: Outcomes
) -> tuple[StageReport, ...]:
    """The stages of a strategy of the user's own, as far as they can be told from outside. `levels`: the envs' level
    set, or None."""

    def share(name: str) -> float:
        if directive.stage is not None:
            return _share(name, directive) if name in directive.stages else 0.0
        if levels is None or name not in levels.stages:
            return 0.0
        group = levels.of_stage(name)
        if directive.weights is None:
            return len(group) / len(levels)
        return float(directive.weights[group.start : group.stop].sum() / directive.weights.sum())

    def ratio(name: str) -> float:
        known = directive.ratios and name in directive.stages
        return float(directive.mixing_ratio(name)) if known else 0.0

    return tuple(_seen(name, outcomes.ended(name), share(name), outcomes, ratio(name)) for name in names)


def _seen(name: str, episodes: int, share: float, outcomes: Outcomes, ratio: float = 0.0) -> StageReport:
    newest = outcomes.newest(name)
    return StageReport(
        name=name,
        success_rate=sum(newest) / len(newest) if newest else 0.0,
        outcomes=len(newest),
        episodes=episodes,
        mixing_ratio=ratio,
        share=share,
        missing="",
    )


def _share(stage: str, directive: Any) -> float:
    """Of the draws; the trainer's strategies have no probe."""
    current = directive.stages.index(directive.stage)
    previous = float(directive.mix) if current else 0.0
    place = directive.stages.index(stage)
    return 1 - previous if place == current else previous if place == current - 1 else 0.0


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % confidence interval of a rate (Wilson 1927); (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate, z = successes / trials, 1.959964  # the normal distribution's quantile at .975
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
