"""How often the rules advance when they should not, and how fast when they should: the simulation table.

`python -m benchmarks.false_advance [--runs 2000]` prints reference rules over completed episodes beside sequential
rules over started ones, with the bounds of the design, and returns 1 if one is missed. Seeds are fixed.
"""
# edge: argv and stdout; the simulations are pure, and a test folds the same episodes through `Staged` itself

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from curriculum.rules import cusum, exact

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
# (runs, outcomes), T, M → (runs, outcomes + 1): would a check advance?
Rule = Callable[[Bools, float, int], Bools]

PLANS = ((0.60, 50), (0.65, 60), (0.70, 80), (0.75, 120), (0.80, 150))
WINDOW, EVERY = 50, 10


# ---- the rules, over whole sequences of outcomes at once


def _sums(outcomes: Bools) -> Ints:
    """(runs, n + 1) successes among the first n."""
    return np.concatenate(
        [np.zeros((len(outcomes), 1), np.int64), np.cumsum(outcomes, axis=1, dtype=np.int64)], axis=1
    )


def _windows(outcomes: Bools) -> tuple[Ints, Ints, Ints, Ints]:
    """n, window length, successes in the window, successes in its first half, for every prefix."""
    sums = _sums(outcomes)
    n = np.arange(sums.shape[1])
    length = np.minimum(n, WINDOW)
    k = sums - sums[:, n - length]
    first = sums[:, n - length + length // 2] - sums[:, n - length]
    return n, length, k, first


def reference(outcomes: Bools, threshold: float, minimum: int) -> Bools:
    """standard, early or trend, after every prefix; as in `curriculum.rules`, in integers."""
    t = exact(threshold)
    slack = t - Fraction(5, 100)
    n, length, k, first = _windows(outcomes)
    half = length // 2
    standard = (k * t.denominator >= t.numerator * length) & (n >= minimum)
    early = (n >= 30) & (10 * k >= 9 * length)
    gain = 100 * ((k - first) * half - first * (length - half)) > 15 * half * (length - half)
    trend = gain & (length >= 20) & (5 * n >= 4 * minimum)
    trend &= k * slack.denominator >= slack.numerator * length
    return np.asarray(standard | early | trend)


def sequential(outcomes: Bools, threshold: float, minimum: int) -> Bools:
    """The CUSUM at its limit, and M or early, after every prefix."""
    test = cusum(exact(threshold))
    n, length, k, _ = _windows(outcomes)
    if test.down is None:  # T = 1: a failure sets S to 0, so S counts the successes since the last one
        last = np.maximum.accumulate(np.where(outcomes, 0, n[1:]), axis=1)
        since = np.concatenate([np.zeros((len(outcomes), 1), np.int64), n[1:] - last], axis=1)
        statistic = test.up * since
    else:
        walk = np.cumsum(np.where(outcomes, test.up, -test.down), axis=1, dtype=np.int64)
        walk = np.concatenate([np.zeros((len(outcomes), 1), np.int64), walk], axis=1)
        statistic = walk - np.minimum.accumulate(walk, axis=1)  # S ← max(0, S + score)
    early = (n >= 30) & (10 * k >= 9 * length)
    return np.asarray((statistic >= test.limit) & ((n >= minimum) | early))


RULES: tuple[Rule, Rule] = (reference, sequential)


def first_advance(rule: Rule, outcomes: Bools, threshold: float, minimum: int, since: int = 0) -> Ints:
    """(runs,) outcomes at the first check after `since` that advances, checked every 10; -1: none does."""
    verdicts = rule(outcomes, threshold, minimum)[:, EVERY::EVERY]
    verdicts[:, : since // EVERY] = False
    return np.where(verdicts.any(axis=1), (verdicts.argmax(axis=1) + 1) * EVERY, -1)


# ---- many envs, outcomes whose duration depends on them


@dataclass(frozen=True)
class Situation:
    """All envs begin at step 0 and play one episode after the other."""

    num_envs: int
    rate: float = 0.20
    success_steps: int = 100  # 1 + Poisson
    failure_steps: int = 1000
    horizon: int = 3000
    threshold: float = 0.60
    minimum: int = 50
    every: int = EVERY  # ended episodes between two checks
    mixed: float = 0.0  # share of the episodes that are drawn from the stage before
    mixed_rate: float = 0.80
    mixed_steps: int = 100  # 1 + Poisson, whatever their outcome


@dataclass(frozen=True)
class Episodes:
    """The episodes of one run that ended in time, in the order in which they started; and those that did not."""

    success: Bools
    started: Ints
    ended: Ints  # above the horizon: not in time
    env: Ints
    current: Bools  # of the stage that is decided on; else of the one before

    def of_current(self) -> Episodes:
        """Those of the current stage."""
        return Episodes(*(column[self.current] for column in vars(self).values()))


def play(situation: Situation, rng: np.random.Generator) -> Episodes:
    """One run."""
    s = situation
    mean = 1 + s.rate * s.success_steps + (1 - s.rate) * s.failure_steps
    if s.mixed:
        mean = s.mixed * (1 + s.mixed_steps) + (1 - s.mixed) * mean
    count = 24 + int(3 * s.horizon / mean)  # per env; far more than fit, and checked
    success = rng.random((s.num_envs, count)) < s.rate
    lengths = 1 + np.where(
        success,
        rng.poisson(s.success_steps, success.shape),
        rng.poisson(s.failure_steps, success.shape),
    )
    current = np.ones(success.shape, np.bool_)
    if s.mixed:
        current = rng.random(success.shape) >= s.mixed
        success = np.where(current, success, rng.random(success.shape) < s.mixed_rate)
        lengths = np.where(current, lengths, 1 + rng.poisson(s.mixed_steps, success.shape))
    ended = np.cumsum(lengths, axis=1)
    assert (ended[:, -1] > s.horizon).all()
    started = ended - lengths
    begun = started < s.horizon
    env = np.broadcast_to(np.arange(s.num_envs)[:, None], success.shape)
    order = np.lexsort((env[begun], started[begun]))
    return Episodes(*(column[begun][order] for column in (success, started, ended, env, current)))


def _checks(ended: Ints, every: int) -> Ints:
    """The steps of the checks: each the first at whose end `every` more episodes have ended."""
    steps, counts = np.unique(ended, return_counts=True)
    totals = np.cumsum(counts)
    chosen, last = [], 0
    for i, total in enumerate(totals.tolist()):
        if total >= last + every:
            chosen.append(i)
            last = total
    return steps[chosen]


def advances_completed(episodes: Episodes, s: Situation) -> bool:
    """Reference rules over outcomes as they complete. Episodes of the stage before count for when it is checked."""
    steps = _checks(episodes.ended[episodes.ended <= s.horizon], s.every)
    mine = episodes.of_current()
    by_end = np.argsort(mine.ended, kind="stable")  # within one step: in start order
    seen = np.searchsorted(mine.ended[by_end], steps, side="right")
    return bool(reference(mine.success[by_end][None], s.threshold, s.minimum)[0, seen].any())


def advances_started(episodes: Episodes, s: Situation) -> bool:
    """Sequential rules over outcomes in the stage's own start order. Valid while nobody is passed over
    (`passes_over`)."""
    steps = _checks(episodes.ended[episodes.ended <= s.horizon], s.every)
    mine = episodes.of_current()
    complete = np.maximum.accumulate(mine.ended)  # when all up to here had ended
    admitted = np.searchsorted(complete, steps, side="right")
    return bool(sequential(mine.success[None], s.threshold, s.minimum)[0, admitted].any())


def passes_over(episodes: Episodes, s: Situation) -> bool:
    """Whether the oldest unfinished episode ever keeps 20 × num_envs ended ones waiting; with a stage mixed in: whether
    it might, since so many have ended."""
    steps = np.unique(episodes.ended[episodes.ended <= s.horizon])
    complete = np.maximum.accumulate(episodes.ended)
    ended = np.searchsorted(np.sort(episodes.ended), steps, side="right")
    if s.mixed:
        return bool(ended[-1:].sum() >= 20 * s.num_envs)
    return bool((ended - np.searchsorted(complete, steps, side="right") >= 20 * s.num_envs).any())


def fold(episodes: Episodes, s: Situation, rules: str, window: str) -> bool:
    """The same run through `Staged` itself, step by step: for runs with stragglers, and to test the above."""
    from curriculum import FinishedEpisode, Stage, Staged, StagePlan

    plan = StagePlan([Stage("before"), Stage("now", s.threshold, s.minimum), Stage("next")])
    staged = Staged(plan, rules=rules, window=window)  # type: ignore[arg-type]
    staged.attached(s.num_envs)
    staged.set_stage("now")
    staged.published(1)
    tasks = [
        {"stage": stage, "level": "x", "generator": "default", "role": role}
        for stage, role in (("before", "previous"), ("now", "current"))
    ]
    orders = episodes.started * s.num_envs + episodes.env
    made = [
        FinishedEpisode(
            int(env), 0, int(order), 1, 0.0, "terminated", 1, tasks[int(current)], {"is_success": bool(good)}
        )
        for env, order, good, current in zip(episodes.env, orders, episodes.success, episodes.current)
    ]
    for episode in made:
        staged.started(episode)
    complete = np.maximum.accumulate(episodes.ended)
    for step in np.unique(episodes.ended[episodes.ended <= s.horizon]):
        for i in np.flatnonzero(episodes.ended == step):
            staged.observe(made[i])
        oldest = int(np.searchsorted(complete, step, side="right"))
        if any(
            d.kind == "advance" for d in staged.settle(int(orders[oldest]) if oldest < len(orders) else None)
        ):
            return True
    return False


def overtaking(situation: Situation, runs: int, seed: int) -> tuple[float, float]:
    """Share of runs that advance falsely: reference over completed, sequential over started."""
    rng = np.random.default_rng(seed)
    wrong = [0, 0]
    for _ in range(runs):
        episodes = play(situation, rng)
        wrong[0] += advances_completed(episodes, situation)
        if passes_over(episodes, situation):
            wrong[1] += fold(episodes, situation, "sequential", "started")
        else:
            wrong[1] += advances_started(episodes, situation)
    return wrong[0] / runs, wrong[1] / runs


# ---- the table


def _row(name: str, values: Sequence[str], bound: str, met: bool | None) -> bool:
    verdict = "" if met is None else ("ok" if met else "MISSED")
    print(f"{name:<90}{values[0]:>10}{values[1]:>12}   {bound:<12}{verdict}")
    return met is not False


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description="False advance, power and delay of the rules, by simulation."
    )
    parser.add_argument(
        "--runs", type=int, default=2000, help="runs of each row (at least 2000 for the record)"
    )
    runs = parser.parse_args(argv).runs
    begun = time.perf_counter()
    good = True
    print(f"{'situation':<90}{'reference':>10}{'sequential':>12}")
    print(f"{'':<90}{'completed':>10}{'started':>12}   bound")
    cases = [(num_envs, times, EVERY, 0) for times in (10, 50, 100) for num_envs in (128, 256)]
    cases += [(128, 10, 1, 0), (256, 10, 1, 0)]
    cases += [(num_envs, 10, EVERY, steps) for steps in (100, 2000) for num_envs in (128, 256)]
    situations = [
        Situation(
            n,
            failure_steps=100 * x,
            horizon=300 * x,
            every=each,
            mixed=0.40 if steps else 0.0,
            mixed_steps=steps,
        )
        for n, x, each, steps in cases
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = pool.map(overtaking, situations, [runs] * len(cases), [n + x for n, x, *_ in cases])
        for (num_envs, times, each, steps), shares in zip(cases, found):
            name = f"fast first: rate .20, T .60, {num_envs} envs, failures {times} x as long"
            name += "" if each == EVERY else ", always"
            name += f", .40 mixed in ({steps:,} steps)" if steps else ""
            good &= _row(name, [f"{share:.3f}" for share in shares], "≤ .05", shares[1] <= 0.05)
    tables: list[tuple[str, float, int, str, Callable[[float], bool] | None]] = [
        ("luck: rate T - .10: false advance in 1,000", -0.10, 1000, "≤ .05", lambda share: share <= 0.05),
        ("power: rate T + .10, advance in 400", 0.10, 400, "≥ .95", lambda share: share >= 0.95),
        ("indifference: rate T - .05, advance in 1,000", -0.05, 1000, "", None),
        ("indifference: rate T, advance in 400", 0.0, 400, "", None),
    ]
    for title, offset, horizon, bound, test in tables:
        for threshold, minimum in PLANS:
            rng = np.random.default_rng(round(1000 * (threshold + offset)) + horizon)
            outcomes = rng.random((runs, horizon)) < min(1.0, threshold + offset)
            share = [float((first_advance(rule, outcomes, threshold, minimum) > 0).mean()) for rule in RULES]
            met = None if test is None else test(share[1])
            name = f"{title}, T {threshold:.2f}, M {minimum}"
            good &= _row(name, [f"{each:.3f}" for each in share], bound, met)
    for threshold, minimum in PLANS:
        rng = np.random.default_rng(round(1000 * threshold))
        rates = np.concatenate([np.full(300, 0.30), np.full(700, min(1.0, threshold + 0.10))])
        outcomes = rng.random((runs, 1000)) < rates
        delays = []
        for rule in RULES:
            at = first_advance(rule, outcomes, threshold, minimum, since=300)
            delays.append(float(np.median(np.where(at > 0, at - 300, 10_000))))
        name = f"delay: 300 at .30, then T + .10, median, T {threshold:.2f}, M {minimum}"
        good &= _row(name, [f"{delay:.0f}" for delay in delays], "≤ 120", delays[1] <= 120)
    print(f"{runs} runs a row, {time.perf_counter() - begun:.0f} s")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
