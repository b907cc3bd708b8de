"""What a run reports, number by number."""
# pure: plain data

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "EvalReport",
    "Report",
    "StageReport",
    "StageResult",
    "Timing",
    "percentile",
    "wall_clock",
]


@dataclass(frozen=True)
class StageReport:
    """One stage, as the curriculum counts it at the end of the update."""

    name: str
    """The stage's name."""
    success_rate: float
    """Successes among the newest outcomes that count (at most 50); 0 while there are none."""
    outcomes: int
    """How many those are."""
    episodes: int
    """Episodes played on it in this run that ended, aborted ones not counted."""
    mixing_ratio: float
    """Probability that an episode is drawn from the previous stage instead, while this one is current; 0 for
    strategies without a current stage."""
    share: float
    """Probability that an episode that begins now is drawn from it."""
    missing: str
    """What keeps it from advancing, in words; empty where nothing does, or where it never would."""
    waiting: int = 0
    """Outcomes that do not count yet: an episode of the stage that started earlier has not ended (`window`)."""
    waiting_for: int | None = None
    """The env that plays this episode; None: nothing waits."""
    measure: str = "success"
    """What moves the stage on: success, return, or steps."""
    value: float | None = None
    """What that is now: success rate, mean return of the newest outcomes, steps in this stay; None without any."""
    threshold: float | None = None
    """What it has to reach; None where nothing is asked."""


@dataclass(frozen=True)
class Timing:
    """What depends on the machine and the moment: all that two equal runs may differ in."""

    wall_s: float
    """Seconds since the run began, over all its parts."""
    steps_per_s: float
    """Env steps of this update over its collecting and learning time."""
    collect_s: float
    """Seconds spent collecting this update's rows."""
    learn_s: float
    """Seconds spent learning from them, in the learner's thread."""
    policy_s: float
    """Of the collecting: seconds the event loop spent on inference and on storing rows."""
    loop_lag_p99_s: float
    """How late a 10 ms ticker on the event loop was, 99th percentile over this update."""
    loop_lag_max_s: float
    """The same, the worst."""
    published: int
    """Directives that the curriculum has published since the run was begun or resumed."""
    applied: int
    """How many of the `published` directives every worker has taken (or a newer one instead)."""
    late_episodes: int = 0
    """Episodes of this update that began after the outcome that decided on a directive, and yet under the one before:
    inside of the same unroll. No rule counts them for the new stage. 0 in lockstep."""


@dataclass(frozen=True)
class Report:
    """One update: one line of metrics.jsonl."""

    update: int
    """Updates learned so far."""
    env_steps: int
    """Rows collected so far, reset rows included."""
    episodes: int
    """Episodes ended so far, aborted ones not counted."""
    aborted: int
    """Episodes of this update that were lost with a worker or to an error of their env: neither success nor failure.
    Those that a reset of all envs ends are not counted."""
    env_errors: dict[str, int]
    """Errors of envs in this update by level (STAGE/LEVEL): episodes that they ended, or kept from beginning."""
    worker_losses: int
    """Workers that were lost and replaced in this update; with several machines, hosts too."""
    stage: str
    """The current stage; "all" for strategies without one."""
    mixing_ratio: float
    """Probability that an episode is drawn from the previous stage instead of the current one; in the first stage it
    is 0 whatever its ratio."""
    episode_return: float | None
    """Mean undiscounted return of the episodes that ended in this update; None: none ended."""
    episode_length: float | None
    """Their mean number of executed steps; None: none ended."""
    policy_loss: float
    """Clipped surrogate, to be minimised; near 0 by construction, its size says little."""
    value_loss: float
    """Half the mean squared error of the values against the returns."""
    entropy: float
    """Mean entropy of the policy in nats; falls to 0 as it becomes certain."""
    approx_kl: float
    """KL divergence from the policy that collected, in the last pass: mean(ratio - 1 - log ratio)."""
    clip_fraction: float
    """Share of rows whose probability ratio left 1 ± clip."""
    grad_norm: float
    """Norm of the gradient before it was clipped, mean over minibatches."""
    explained_variance: float
    """1 - Var(returns - values) / Var(returns), before the update: 1 is perfect, 0 as good as the mean."""
    learning_rate: float
    """Adam's, in this update."""
    valid_rows: int
    """Rows that entered the loss: those whose action was executed."""
    passes: int
    """Passes over the rollout; fewer than `ppo.epochs` where `ppo.target_kl` ended it."""
    stages: tuple[StageReport, ...]
    """Every stage, in order."""
    timing: Timing
    """Everything that is not reproducible."""


@dataclass(frozen=True)
class StageResult:
    """One stage under frozen weights."""

    stage: str
    """The stage's name."""
    episodes: int
    """Episodes that ended; aborted ones are left out."""
    success_rate: float
    """Share of them that succeeded."""
    low: float
    """Lower end of its 95 % confidence interval (Wilson 1927)."""
    high: float
    """Upper end."""
    mean_return: float
    """Mean undiscounted return."""
    mean_length: float
    """Mean number of executed steps."""
    cvar: float
    """Mean return of the worst tenth of the episodes (CVaR at 10 %)."""


@dataclass(frozen=True)
class EvalReport:
    """One evaluation: one line of eval.jsonl."""

    update: int
    """Updates that the evaluated parameters have learned."""
    env_steps: int
    """Rows collected by then, reset rows included."""
    best: bool
    """Whether it is the best one so far: checkpoints/best.pt."""
    wall_s: float
    """Seconds that it took, beside the training."""
    stages: tuple[StageResult, ...]
    """Every stage, in order."""


def percentile(samples: Sequence[float], percent: float) -> float:
    """The percentile of samples; 0 where there are none."""
    return float(np.percentile(samples, percent)) if len(samples) else 0.0


def wall_clock() -> str:
    """The date and time, for names and logs; nothing is decided by it."""
    return time.strftime("%Y%m%d-%H%M%S")


def read_metrics(path: Path, most: int | None = None) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; a last line that was cut short is left out. `most`: about so many of them,
    evenly spread, the first and the newest among them; the file may then be of any size."""
    kept: list[bytes] = []
    newest, every = b"", 1
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            newest = line
            if number % every == 0:
                kept.append(line)
                if most is not None and len(kept) > most:
                    kept, every = kept[::2], 2 * every
    if kept and kept[-1] is not newest:
        kept.append(newest)
    return [json.loads(line) for line in kept]
