"""The staged strategy: stays, checks, windows, regression, probes, hold, state; without loop or process."""
# pure: episodes by hand, hypothesis

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum import (
    CommandError,
    Decision,
    PlanError,
    Stage,
    Staged,
    StagePlan,
    StampError,
    StateError,
)
from tests.curriculum.helpers import PLAN, Started, episode, stamp


class Driver:
    """Feeds a strategy as the coordinator does: a version for each change, one batch at a time."""

    def __init__(self, staged: Staged, num_envs: int = 1) -> None:
        self.staged, self.order, self.version = staged, 0, 0
        self.newest: Any = None
        staged.attached(num_envs)
        self.publish()

    def publish(self) -> None:
        if self.staged.directive() != self.newest:
            self.newest = self.staged.directive()
            self.version += 1
            self.staged.published(self.version)

    def play(self, outcomes: str, stage: str | None = None, **keywords: Any) -> list[Decision]:
        """One episode per batch: 1 is a success, 0 a failure."""
        decisions: list[Decision] = []
        for outcome in outcomes:
            keywords.setdefault("version", self.version)
            made = episode(self.order, stage or self.staged.stage, outcome == "1", **keywords)
            self.order += 1
            self.staged.observe(made)
            decisions += self.staged.settle(None)
            self.publish()
            if "version" in keywords and keywords["version"] < self.version:
                keywords["version"] = self.version
        return decisions


def mixed(successes: int, failures: int) -> str:
    """Spread evenly, so that no trend shows."""
    total = successes + failures
    return "".join("01"[(i + 1) * successes // total - i * successes // total] for i in range(total))


def test_standard_advance_comes_with_the_check_that_meets_it() -> None:
    driver = Driver(Staged(PLAN))
    assert driver.play(mixed(30, 19)) == []
    (decision,) = driver.play("1")
    assert (decision.kind, decision.stage, decision.to) == ("advance", "near", "middle")
    assert decision.reasons == ("standard",)
    assert decision.counts["n"] == 50
    assert driver.staged.stage == "middle"


def test_the_reasons_are_all_recorded() -> None:
    (decision,) = Driver(Staged(PLAN, min_episodes=30)).play("0" * 3 + "1" * 27)
    assert decision.reasons == ("standard", "early", "trend")


@pytest.mark.parametrize(
    ("switches", "advanced"),
    [({}, 30), ({"early": False}, 50), ({"early": False, "min_episodes": 90}, 90)],
)
def test_early_can_be_turned_off(switches: dict[str, Any], advanced: int) -> None:
    driver = Driver(Staged(PLAN, **switches))
    driver.play("1" * (advanced - 1))
    assert driver.staged.stage == "near"
    driver.play("1")
    assert driver.staged.stage == "middle"


def test_the_trend_can_be_turned_off() -> None:
    outcomes = "0" * 18 + "1" * 22  # r = .55 = T - .05, n = 40 = .8·M
    assert Driver(Staged(PLAN)).play(outcomes)[0].reasons == ("trend",)
    assert Driver(Staged(PLAN, trend=False)).play(outcomes) == []


def test_c26_the_trend_bonus_never_fires_without_the_rate() -> None:
    driver = Driver(Staged(PLAN))
    # the rate stays .10 below what the bonus asks for; it swings by .2 within each window
    for _ in range(100):
        assert driver.play("0" * 14 + "1" * 11) == []


def test_one_stage_at_a_time_and_not_from_the_last() -> None:
    driver = Driver(Staged(PLAN))
    decisions = driver.play("1" * 300)
    assert [(d.kind, d.to) for d in decisions] == [
        ("advance", "middle"),
        ("advance", "far"),
        ("solved", None),
    ]
    assert driver.staged.solved
    assert driver.play("1" * 100) == []  # reported once


def test_stalled_is_reported_once_per_stay_and_the_curriculum_goes_on() -> None:
    driver = Driver(Staged(PLAN, max_episodes={"near": 40}))
    decisions = driver.play("0" * 80)
    assert [(d.kind, d.total) for d in decisions] == [("stalled", 40)]
    assert [d.to for d in driver.play("1" * 60)] == ["middle", "far"]


def test_c04_a_check_is_due_every_ten_episodes_however_many_end_together() -> None:
    staged = Staged(PLAN)
    checks = []
    for batch in range(40):
        for i in range(7):  # 7, 14, 21, …: multiples of ten are mostly jumped over
            staged.observe(episode(7 * batch + i, "near", False))
        before = staged.state_dict()["last_check"]
        staged.settle(None)
        after = staged.state_dict()["last_check"]
        if after != before:
            checks.append(after)
        staged.settle(None)  # nothing ended: the total stands still, so no second check
        assert staged.state_dict()["last_check"] == after
    assert checks == [
        14,
        28,
        42,
        56,
        70,
        84,
        98,
        112,
        126,
        140,
        154,
        168,
        182,
        196,
        210,
        224,
        238,
        252,
        266,
        280,
    ]


def test_c02_c03_the_ratio_follows_the_newest_outcomes_and_with_fewer_than_five_it_stays() -> None:
    driver = Driver(Staged(PLAN))
    seen = [driver.staged.mixing_ratio("near")]
    for outcomes in ("1111", "1", "00000"):
        driver.play(outcomes)
        seen.append(driver.staged.mixing_ratio("near"))
    assert seen == [0.20, 0.20, 0.05, 0.25]
    driver.staged.set_stage("middle")
    driver.staged.set_stage("near")  # a new stay starts empty, and keeps the last ratio until there are five
    driver.publish()
    driver.play("1111")
    assert driver.staged.mixing_ratio("near") == 0.25
    again = Staged(PLAN)
    again.load_state_dict(driver.staged.state_dict())
    assert again.mixing_ratio("near") == 0.25  # a resume changes nothing, whatever the counts are


def test_every_stage_has_a_ratio_of_its_own() -> None:
    driver = Driver(Staged(PLAN))
    driver.play(mixed(20, 10))
    driver.play("0" * 10, "middle")
    driver.play("1" * 10, "far")
    assert driver.newest.ratios == (0.15, 0.40, 0.05)


def test_switches_of_mixing() -> None:
    for switches, ratio in (({"adaptive_mixing": False}, 0.20), ({"stage_mixing": False}, 0.0)):
        driver = Driver(Staged(PLAN, **switches))  # type: ignore[arg-type]
        driver.play("0" * 20)
        assert driver.newest.ratios == (ratio,) * 3
        assert driver.newest.mix == ratio


def test_c09_an_outcome_counts_for_the_stage_it_is_stamped_with() -> None:
    driver = Driver(Staged(PLAN))
    driver.staged.set_stage("middle")
    driver.publish()
    driver.play("1" * 49, "near", role="previous")
    assert driver.staged.stage == "middle"
    rows = {row["stage"]: row for row in driver.staged.progress()}
    assert (rows["near"]["outcomes"], rows["middle"]["outcomes"]) == (49, 0)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "env 3: episode 8 has no task stamp"),
        ({"level": "x"}, "env 3: episode 8 has no task stamp"),
        (stamp("nowhere"), "env 3: episode 8 is stamped with the unknown stage 'nowhere'; the plan has near"),
    ],
)
def test_an_episode_without_a_valid_stamp_names_its_env(task: Any, message: str) -> None:
    with pytest.raises(StampError, match=message):
        Staged(PLAN).started(Started(3, 8, 8, 0, task))


def test_record_counts_at_once_and_refuses_unknown_stages() -> None:
    staged = Staged()
    for i in range(30):
        staged.record("simplest", i < 12)
    assert staged.mixing_ratio("simplest") == 0.40
    with pytest.raises(CommandError, match="unknown stage 'hardest'"):
        staged.record("hardest", True)


def test_aborted_episodes_count_neither_way_and_are_reported() -> None:
    driver = Driver(Staged(PLAN))
    driver.play("1" * 29)
    driver.play("0" * 50, outcome="aborted")
    assert driver.staged.stage == "near"
    assert driver.staged.total == 29
    driver.play("1")
    assert driver.staged.stage == "middle"
    assert driver.staged.progress()[0]["aborted"] == 50


def test_c18_episodes_that_began_before_the_stay_do_not_count_for_it() -> None:
    driver = Driver(Staged(PLAN))
    old = driver.version
    driver.staged.set_stage("far")
    driver.publish()
    driver.staged.set_stage("near")
    driver.publish()
    for order in range(60):
        driver.staged.observe(episode(order, "near", True, version=old))
        driver.staged.settle(None)
    row = driver.staged.progress()[0]
    assert (driver.staged.stage, row["outcomes"], row["earlier_stay"]) == ("near", 0, 60)
    driver.play("1" * 30)
    assert driver.staged.stage == "middle"


def test_setting_the_current_stage_again_is_a_no_op() -> None:
    driver = Driver(Staged(PLAN))
    driver.play("1" * 20)
    assert driver.staged.set_stage("near") is None
    assert driver.staged.progress()[0]["outcomes"] == 20


FLOOR = StagePlan(
    [Stage("near", 0.60, 10), Stage("middle", 0.65, 60, floor=0.40), Stage("far", 0.70, 80, floor=0.4)]
)


def learned_then_lost(staged: Staged) -> Driver:
    """In middle: 50 outcomes at exactly floor + .10, then failures only."""
    driver = Driver(staged)
    driver.staged.set_stage("middle")
    driver.publish()
    driver.play(mixed(25, 25))
    return driver


def test_c14_regression_fires_within_a_window_of_fifty() -> None:
    driver = learned_then_lost(Staged(FLOOR))
    decisions = driver.play("0" * 60)
    assert [(d.kind, d.to, d.counts["n"]) for d in decisions] == [("regress", "near", 100)]


def test_regression_needs_a_stage_that_was_learned_or_four_times_its_minimum() -> None:
    driver = Driver(Staged(FLOOR))
    driver.staged.set_stage("middle")
    driver.publish()
    assert driver.play("0" * 239) == []
    assert driver.play("0")[0].kind == "regress"  # n = 240 = 4·M


def test_without_a_floor_nothing_regresses() -> None:
    driver = Driver(Staged(PLAN))
    driver.staged.set_stage("middle")
    driver.publish()
    assert driver.play("1" * 25 + "0" * 800) == []


def test_c15_a_stay_begun_by_a_regression_starts_empty_without_early_and_trend() -> None:
    driver = learned_then_lost(Staged(FLOOR, min_episodes={"near": 100}))
    driver.play("0" * 60)
    assert driver.staged.stage == "near"
    row = driver.staged.progress()[0]
    assert row["window"] == row["outcomes"] == 10 - 0  # only what was played since
    assert driver.play("1" * 80) == []  # early would have moved at 30
    assert [d.reasons for d in driver.play("1" * 10)] == [("standard",)]


def test_each_regression_doubles_minimum_and_cooldown_up_to_eightfold() -> None:
    driver = learned_then_lost(Staged(FLOOR))
    minima = []
    for _ in range(5):
        driver.play("0" * 2000, "middle")
        assert driver.staged.stage == "near"
        driver.staged.set_stage("middle")
        driver.publish()
        minima.append(driver.staged.progress()[1]["min_episodes"])
    assert minima == [120, 240, 480, 480, 480]


def test_the_cooldown_counts_admitted_outcomes_since_any_move() -> None:
    plan = StagePlan([Stage("near"), Stage("middle", 0.9, 60, floor=0.6)])
    driver = Driver(Staged(plan, rules="sequential"))
    driver.staged.set_stage("middle")
    driver.publish()
    driver.play("1" * 50)
    decisions = driver.play("0" * 60)
    # the test itself had fired before
    assert [(d.kind, d.counts["n"]) for d in decisions] == [("regress", 100)]
    assert decisions[0].reasons == ("below its floor",)


def test_failures_from_before_a_stage_was_learned_are_no_sign_of_forgetting() -> None:
    plan = StagePlan([Stage("near"), Stage("middle", 0.65, 1000, floor=0.40)])
    driver = Driver(Staged(plan, rules="sequential", early=False))
    driver.staged.set_stage("middle")
    driver.publish()
    assert driver.play("0" * 200 + mixed(50, 50)) == []  # learned at 25 of 50, after two hundred failures
    assert [decision.kind for decision in driver.play("0" * 60)] == ["regress"]


def test_sequential_advance_is_not_latched_and_needs_the_evidence() -> None:
    driver = Driver(Staged(PLAN, rules="sequential", early=False))
    driver.play("1" * 40)
    assert driver.staged.progress()[0]["statistic"] == 40 * 182
    driver.play("0" * 5)  # 7280 - 1115 = 6165 < 6500
    assert driver.play("0" * 3 + "1" * 2) == []
    decisions = driver.play("1" * 20)
    assert [(d.kind, d.reasons) for d in decisions] == [("advance", ("sequential",))]


def test_sequential_early_needs_evidence_too() -> None:
    driver = Driver(Staged(PLAN, rules="sequential"))
    decisions = driver.play("1" * 40)
    assert [(d.reasons, d.counts["n"]) for d in decisions] == [(("early",), 40)]  # 36 · 182 ≥ 6500 > 35 · 182


def test_hysteresis_holds_the_band_once_the_window_is_full() -> None:
    ratios = {}
    for rules in ("reference", "sequential"):
        driver = Driver(Staged(StagePlan([Stage("near", 0.9, 1000), Stage("far")]), rules=rules))
        driver.play("0" * 26 + "1" * 24)
        seen = []
        for _ in range(12):  # 25, 24, 25, 24 … of 50
            driver.play("1")
            seen.append(driver.staged.mixing_ratio("near"))
        ratios[rules] = seen
    assert ratios["reference"] == [0.25] * 8 + [0.15] * 4  # 25, 26, … 32, 33 …: at the edges 25 and 33
    assert ratios["sequential"] == [0.40, 0.40] + [0.25] * 8 + [0.15] * 2  # at 27 and at 35


def test_stages_alone_are_a_plan() -> None:
    stages = [Stage("a"), Stage("b")]
    assert Staged(stages, threshold=0.9).plan == StagePlan(stages, threshold=0.9)


@pytest.mark.parametrize("plan", [3, Stage("near")])
def test_a_plan_is_stages(plan: Any) -> None:
    with pytest.raises(PlanError, match="plan: expected a StagePlan or stages, got"):
        Staged(plan)


def test_success_is_a_function() -> None:
    with pytest.raises(
        PlanError, match="success: expected a function of the episode, 'last' or 'ever', got True"
    ):
        Staged(PLAN, success=True)  # type: ignore[arg-type]


def test_sequential_over_completed_episodes_is_refused() -> None:
    with pytest.raises(PlanError, match='needs window="started"'):
        Staged(PLAN, rules="sequential", window="completed")


@pytest.mark.parametrize("option", ["rules", "window", "mix_by"])
def test_unknown_options_are_refused(option: str) -> None:
    with pytest.raises(PlanError, match=f"{option}: expected 'ref|{option}: expected"):
        Staged(PLAN, **{option: "other"})  # type: ignore[arg-type]


def test_c24_a_fast_failure_cannot_overtake_a_slow_success_nor_the_other_way_round() -> None:
    """256 envs start together; one in five succeeds, fast; the failures take ten times as long."""

    def advanced(window: Any) -> bool:
        staged = Staged(PLAN, window=window)
        staged.attached(256)
        for env in range(256):
            staged.started(Started(env, 0, env, 1, stamp("near")))
        decisions: list[Decision] = []
        running = set(range(256))
        fast = [env for env in range(256) if env % 5 == 0]  # the successes
        for env in fast + [env for env in range(256) if env % 5]:
            running.discard(env)
            staged.observe(episode(env, "near", env % 5 == 0, env_id=env))
            decisions += staged.settle(min(running, default=256))
        return bool(decisions)

    assert advanced("completed")
    assert not advanced("started")


def test_a_straggler_counts_as_a_failure_for_advance_and_as_nothing_for_mixing() -> None:
    staged = Staged(PLAN, early=False, floor={"near": 0.3})
    staged.attached(2)
    staged.started(Started(0, 0, 0, 1, stamp("near")))  # never ends
    for order in range(1, 40):
        staged.observe(episode(order, "near", True, env_id=1))
        staged.settle(0)
    assert staged.progress()[0]["outcomes"] == 0
    staged.observe(episode(40, "near", True, env_id=1))
    staged.settle(0)  # 40 = 20 × 2 later-started episodes have ended
    row = staged.progress()[0]
    assert (row["outcomes"], row["successes"], row["passed_over"]) == (41, 40, 1)
    state = staged.state_dict()["tallies"][0]
    assert state["mixing"] == ["1" * 40, 40]
    assert state["guard"]["window"] == ["1" * 40, 40]
    staged.observe(episode(0, "near", True, env_id=0))  # its later end: totals and report, nothing else
    staged.settle(41)
    row = staged.progress()[0]
    assert (row["outcomes"], row["late"], row["ended"], staged.total) == (41, 1, 41, 41)


def test_a_probe_sees_forgetting_and_takes_the_run_one_stage_back() -> None:
    plan = StagePlan([Stage("near", 0.6, 50, floor=0.4), Stage("middle"), Stage("far", 0.9, 5000)])
    driver = Driver(Staged(plan, probe=0.02))
    driver.play("1" * 60, "near")
    assert driver.staged.stage == "middle"
    driver.staged.set_stage("far")
    driver.publish()
    assert driver.newest.probe == 0.02
    driver.play(mixed(60, 60), "far")
    assert driver.play("0" * 99, "near", role="probe") == []
    row = driver.staged.progress()[0]
    assert (row["probe_outcomes"], row["probe_success_rate"]) == (99, 0.0)
    decisions = driver.play("0", "near", role="probe")
    assert [(d.kind, d.to, d.reasons) for d in decisions] == [("regress", "middle", ("near was forgotten",))]


def test_mix_by_steps_makes_the_ratio_the_share_of_steps() -> None:
    driver = Driver(Staged(PLAN, mix_by="steps"))
    driver.play("0" * 4, "near", length=40)
    driver.staged.set_stage("middle")
    driver.publish()
    driver.play("0" * 10, "middle", length=10)
    assert (driver.newest.ratios[1], driver.newest.mix) == (0.40, 0.40)  # four lengths of near: not enough
    driver.play("0", "near", length=40, role="previous")
    assert (driver.newest.ratios[1], driver.newest.mix) == (0.40, 0.14)


def test_commands_that_are_not_valid_change_nothing() -> None:
    staged = Staged(PLAN)
    before = staged.state_dict()
    commands: list[tuple[Callable[[], object], str]] = [
        (lambda: staged.set_stage("nowhere"), "unknown stage 'nowhere'; the plan has near, middle, far"),
        (lambda: staged.set_mixing_ratio("nowhere", 0.1), "unknown stage"),
        (
            lambda: staged.set_mixing_ratio("near", 1.5),
            "mixing ratio of 'near': expected a number from 0 to 1",
        ),
        (lambda: staged.set_mixing_ratio("near", True), "expected a number"),
    ]
    for command, message in commands:
        with pytest.raises(CommandError, match=message):
            command()
    assert staged.state_dict() == before


def test_an_operator_s_ratio_holds_until_it_is_given_back() -> None:
    driver = Driver(Staged(PLAN))
    driver.staged.set_mixing_ratio("near", 0.33)
    driver.play("0" * 10)
    assert driver.staged.mixing_ratio("near") == 0.33
    driver.staged.set_mixing_ratio("near", None)
    assert driver.staged.mixing_ratio("near") == 0.40


def test_hold_counts_and_decides_nothing() -> None:
    driver = Driver(Staged(PLAN))
    driver.staged.hold()
    before = driver.newest
    assert driver.play("1" * 100) == []
    assert driver.newest is before
    assert driver.staged.progress()[0]["outcomes"] == 100
    driver.staged.release()
    driver.publish()
    assert driver.newest.ratios[0] == 0.05
    assert [d.kind for d in driver.play("1")] == ["advance"]


def test_custom_success() -> None:
    staged = Staged(PLAN, success=lambda e: e.episode_return > 0.5)
    staged.observe(episode(0, "near", True))
    staged.settle(None)
    assert staged.progress()[0]["successes"] == 1


def test_progress_and_explain_say_what_is_missing() -> None:
    driver = Driver(Staged(PLAN))
    assert "the first is due in 10 episodes" in driver.staged.explain()
    driver.play(mixed(10, 10))
    row = driver.staged.progress()[0]
    assert (row["success_rate"], row["missing"]) == (0.5, "success 50% of 60%, 30 more outcomes")
    assert "rules met: none" in driver.staged.explain()
    assert "after 20 episodes, in near: stays" in driver.staged.explain()
    driver.play("1" * 20)
    assert "advance to middle" in driver.staged.explain()


# ---- state


def random_run(
    seed: int, staged: Staged, num_envs: int, steps: int, half: int | None = None
) -> tuple[Any, ...]:
    """A vec env's worth of random episodes; at step `half`, the strategy is saved and loaded into a fresh one."""
    rng = random.Random(seed)
    staged.attached(num_envs)
    version, newest = 0, None
    decisions: list[Decision] = []
    running: dict[int, tuple[int, int, int, dict[str, str]]] = {}
    for step in range(steps):
        if step == half:
            state = json.loads(json.dumps(staged.state_dict()))
            fresh = Staged(staged.plan, rules=staged.rules, window=staged.window, probe=staged.probe)
            fresh.load_state_dict(state)
            assert fresh.state_dict() == staged.state_dict()
            staged = fresh
        if staged.directive() != newest:
            newest, version = staged.directive(), version + 1
            staged.published(version)
        for env in range(num_envs):
            if env not in running:
                place = staged.plan.index(staged.stage)
                role = "previous" if place and rng.random() < 0.2 else "current"
                place -= role == "previous"
                task = stamp(staged.plan[place].name, role)
                order = step * num_envs + env
                running[env] = (order, step + rng.choice((1, 2, 30)), version, task)
                staged.started(Started(env, order, order, version, task))
        for env, (order, end, began, task) in sorted(running.items()):
            if end == step:
                outcome = "aborted" if rng.random() < 0.05 else "terminated"
                good = rng.random() < 0.5 + 0.4 * min(1, step / steps * 2)
                staged.observe(
                    episode(
                        order,
                        task["stage"],
                        good,
                        version=began,
                        outcome=outcome,
                        role=task["role"],
                        env_id=env,
                    )
                )
                del running[env]
        decisions += staged.settle(min((order for order, *_ in running.values()), default=1 << 60))
    return [d.as_dict() for d in decisions], staged.state_dict()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.sampled_from([("reference", "started"), ("reference", "completed"), ("sequential", "started")]),
    st.integers(0, 200),
)
def test_c23_the_fold_is_deterministic_never_skips_a_stage_and_survives_its_state(
    seed: int, num_envs: int, kind: tuple[Any, Any], half: int
) -> None:
    def make() -> Staged:
        return Staged(FLOOR, rules=kind[0], window=kind[1], probe=0.02)

    decisions, state = random_run(seed, make(), num_envs, 200)
    assert random_run(seed, make(), num_envs, 200) == (decisions, state)
    assert random_run(seed, make(), num_envs, 200, half) == (decisions, state)
    place = 0
    for decision in decisions:
        assert decision["stage"] == FLOOR[place].name
        if decision["to"] is not None:
            assert abs(FLOOR.index(decision["to"]) - place) == 1
            place = FLOOR.index(decision["to"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("tallies"), "expected a key 'tallies'"),
        (lambda s: s.update(schema=2), "expected schema 1 of Staged, got 2"),
        (lambda s: s.update(strategy="Other"), "got 1 of Other"),
        (
            lambda s: s.update(stages=["near"]),
            r"stages: expected \['near', 'middle', 'far'\], got \['near'\]",
        ),
        (lambda s: s.update(window="completed"), "window: expected 'started', got 'completed'"),
        (lambda s: s.update(current=3), "current: expected 0 to 2, got 3"),
        (lambda s: s.update(total="7"), "total: expected int, got '7'"),
        (lambda s: s.update(held=1), "held: expected bool, got 1"),
        (lambda s: s["tallies"][1].update(window=[0]), "stage 'middle': window: expected"),
        (lambda s: s["tallies"][2].update(band=9), "stage 'far': band: expected 0 to 3"),
        (lambda s: s["order"].pop("passed"), "order: expected waiting, running and passed"),
        (lambda s: s["tallies"].pop(), "tallies: expected 3, got 2"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change: Any, message: str) -> None:
    staged = Staged(PLAN)
    before = staged.state_dict()
    donor = Driver(Staged(PLAN))
    donor.play("1" * 20)
    state = json.loads(json.dumps(donor.staged.state_dict()))
    change(state)
    with pytest.raises(StateError, match=message):
        staged.load_state_dict(state)
    assert staged.state_dict() == before


def test_a19_the_table_says_how_many_outcomes_wait_and_for_which_env() -> None:
    staged = Staged(PLAN)
    staged.attached(4)
    for order in (5, 6, 7, 10):  # the second command of envs 1, 2 and 3, and the third of env 2
        staged.started(Started(order % 4, order // 4, order, 1, stamp("near")))
    for order in (6, 10):
        staged.observe(episode(order, "near", env_id=2, version=1))
    staged.settle(5)
    waits = [(row["outcomes"], row["waiting"], row["waiting_for"]) for row in staged.progress()]
    assert waits == [(0, 2, 1), (0, 0, None), (0, 0, None)]
    staged.observe(episode(5, "near", env_id=1, version=1))
    staged.settle(7)
    assert [row["waiting"] for row in staged.progress()] == [1, 0, 0]
    assert staged.progress()[0]["waiting_for"] == 3


def test_a_state_of_either_start_order_loads_under_the_other() -> None:
    """Kind: a checkpoint of before: what waited in it is there still, whatever the rule it waited under."""
    saved = Staged(PLAN, start_order="run")
    saved.started(Started(0, 0, 0, 1, stamp("near")))
    saved.observe(episode(1, "middle", version=1))
    saved.settle(0)
    state = saved.state_dict()
    assert state["order"]["by"] == "run"
    fresh = Staged(PLAN)
    fresh.load_state_dict(state)
    assert fresh.state_dict()["order"]["by"] == "stage"
    assert fresh.progress()[1]["outcomes"] == 0
    fresh.settle(0)
    assert fresh.progress()[1]["outcomes"] == 1
