"""The simulation of the table is the strategy itself: the same episodes through `Staged`, and a small table."""
# pure: fixed seeds; the whole table is `python -m benchmarks.false_advance`

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import false_advance as fa
from curriculum import Stage, Staged, StagePlan
from tests.curriculum.helpers import episode


def test_c24_overtaking_by_simulation() -> None:
    completed, started = fa.overtaking(fa.Situation(256), runs=60, seed=1)
    assert completed > 0.97
    assert started <= 0.05


@pytest.mark.parametrize(
    "situation",
    [
        fa.Situation(128),
        fa.Situation(60, rate=0.6, success_steps=20, failure_steps=40, horizon=400),
        fa.Situation(8, rate=0.55, success_steps=5, failure_steps=300, horizon=2000),
        fa.Situation(256, mixed=0.4, mixed_steps=2000),
        fa.Situation(60, rate=0.6, success_steps=20, failure_steps=40, horizon=600, mixed=0.4, mixed_steps=9),
    ],
)
def test_c24_the_simulation_equals_the_strategy(situation: fa.Situation) -> None:
    rng = np.random.default_rng(5)
    verdicts = set()
    for _ in range(12):
        episodes = fa.play(situation, rng)
        completed = fa.advances_completed(episodes, situation)
        assert fa.fold(episodes, situation, "reference", "completed") == completed
        verdicts.add(completed)
        if not fa.passes_over(episodes, situation):
            started = fa.advances_started(episodes, situation)
            assert fa.fold(episodes, situation, "sequential", "started") == started
            verdicts.add(started)
    assert True in verdicts  # else it would compare nothing with nothing


@pytest.mark.parametrize("threshold", [0.6, 0.75, 1.0])
def test_c25_sequences_give_the_same_first_advance_as_the_strategy(threshold: float) -> None:
    rng = np.random.default_rng(8)
    for rules, rule in (("reference", fa.reference), ("sequential", fa.sequential)):
        rate = 1.0 if threshold == 1.0 else threshold + 0.05
        outcomes = rng.random((6, 300)) < rate
        expected = fa.first_advance(rule, outcomes, threshold, 60)
        for row, first in zip(outcomes, expected.tolist()):
            plan = StagePlan([Stage("now", threshold, 60), Stage("next")])
            staged = Staged(plan, rules=rules)  # type: ignore[arg-type]
            moved = -1
            for order, good in enumerate(row):
                staged.observe(episode(order, "now", bool(good)))
                if staged.settle(None) and moved < 0:
                    moved = order + 1
            assert moved == first
    assert (expected > 0).any()


def test_c25_a_rate_below_the_threshold_does_not_advance() -> None:
    outcomes = np.random.default_rng(3).random((1000, 1000)) < 0.5
    assert (fa.first_advance(fa.reference, outcomes, 0.60, 50) > 0).mean() > 0.9
    assert (fa.first_advance(fa.sequential, outcomes, 0.60, 50) > 0).mean() <= 0.05
