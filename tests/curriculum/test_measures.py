"""Stages that are left at a mean return, or after steps: rules at their boundaries, tables, state, journal."""
# pure: episodes by hand; one journal under tmp_path

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import (
    CommandError,
    Coordinator,
    Decision,
    FinishedEpisode,
    PlanError,
    Stage,
    Staged,
    StagePlan,
    StateError,
)
from curriculum.__main__ import main
from curriculum.replay import replay
from curriculum.rules import PARTS, mean_below, mean_reached, parts
from curriculum.rules import exact as decimal
from curriculum.windows import ReturnWindow
from tests.curriculum.helpers import Channel, Started, stamp

pytestmark = pytest.mark.alternate_loops

RETURNS = StagePlan(
    [Stage("a", 180.0, 20, measure="return", floor=50.0), Stage("b", -3.5, 10, measure="return")]
)
STEPS = StagePlan([Stage("a", 1000, measure="steps"), Stage("b", 0.25, measure="steps"), Stage("c")])


def ended(
    order: int, stage: str, value: float, *, length: int = 10, version: int = 1 << 30
) -> FinishedEpisode:
    return FinishedEpisode(
        0, order, order, length, value, "terminated", version, stamp(stage), {"is_success": False}
    )


class Player:
    """Plays single episodes, one per batch, and publishes as the coordinator does."""

    def __init__(self, staged: Staged) -> None:
        self.staged, self.order, self.version = staged, 0, 0
        staged.attached(1)
        self.publish()

    def publish(self) -> None:
        self.staged.directive()
        self.version += 1
        self.staged.published(self.version)

    def play(self, returns: list[float], *, stage: str | None = None, length: int = 10) -> list[Decision]:
        decisions: list[Decision] = []
        for value in returns:
            at = stage or self.staged.stage
            self.staged.observe(ended(self.order, at, value, length=length, version=self.version))
            self.order += 1
            moved = list(self.staged.settle(None))
            if moved:
                self.publish()
            decisions += moved
        return decisions


# ---- returns


def test_a_mean_return_of_exactly_the_threshold_advances_with_the_check_that_meets_it() -> None:
    player = Player(Staged(RETURNS))
    assert player.play([170.0, 190.0] * 9 + [180.0]) == []  # n = 19
    (decision,) = player.play([180.0])
    assert (decision.kind, decision.to, decision.reasons) == ("advance", "b", ("return",))
    assert (decision.counts["measure"], decision.counts["value"]) == ("return", 180.0)
    (solved,) = player.play([-3.5] * 10)  # returns may be negative
    assert (solved.kind, solved.stage) == ("solved", "b")


def test_a_mean_return_just_below_the_threshold_does_not() -> None:
    player = Player(Staged(RETURNS))
    assert player.play([179.999999] + [180.0] * 49) == []
    assert [d.kind for d in player.play([180.0] * 10)] == ["advance"]  # it has left the window of 50


@pytest.mark.parametrize(("reward", "count", "threshold"), [(0.1, 8, 0.8), (0.1, 3, 0.3), (0.7, 3, 2.1)])
def test_returns_are_exact_decimals(reward: float, count: int, threshold: float) -> None:
    """Kind: a sum of rewards that misses its decimal by one bit, and with it the threshold."""
    value = 0.0
    for _ in range(count):
        value += reward
    staged = Staged([Stage("a", threshold, 10, measure="return"), Stage("b")])
    assert [d.to for d in Player(staged).play([value] * 10)] == ["b"]


@given(st.lists(st.floats(-1e6, 1e6), max_size=120), st.floats(-1e6, 1e6))
def test_the_mean_equals_its_slow_twin(returns: list[float], threshold: float) -> None:
    window = ReturnWindow()
    for value in returns:
        window.add(parts(value))
    newest = [round(decimal(value) * PARTS) for value in returns[-50:]]
    twin = bool(newest) and sum(newest) >= decimal(threshold) * PARTS * len(newest)
    assert mean_reached(window.total, len(window), window.n, decimal(threshold), 1) == twin
    again = ReturnWindow()
    again.load(json.loads(json.dumps(window.state())), "w")
    assert (again.total, again.n, list(again.returns)) == (window.total, window.n, list(window.returns))


def test_success_says_nothing_where_returns_are_measured_but_the_mixing_ratio_follows_them() -> None:
    player = Player(Staged(RETURNS))
    player.play([200.0] * 3 + [0.0] * 2)  # 3 of 5 reached the threshold: .60, so .25
    row = player.staged.progress()[0]
    assert (row["success_rate"], row["mixing_ratio"], row["value"]) == (0.6, 0.25, 120.0)
    assert row["missing"] == "mean return 120 of 180, 15 more outcomes"
    with pytest.raises(CommandError, match="measures returns"):
        player.staged.record("a", True)


def test_early_and_trend_are_rules_of_success_only() -> None:
    staged = Staged([Stage("a", 100.0, 200, measure="return"), Stage("b")])
    assert Player(staged).play([0.0] * 50 + [1000.0] * 100) == []


def test_a_return_below_its_floor_regresses_once_the_stage_was_learned() -> None:
    plan = [Stage("z", 0.0, 1, measure="return"), RETURNS["a"]]
    staged = Staged(plan, min_episodes=1000)
    player = Player(staged)
    staged.set_stage("a")
    player.publish()
    assert player.play([115.0] * 50) == []  # half way from the floor to the threshold: armed
    assert player.play([100.0] + [49.0] * 49) == []  # n = 100, a mean of 50.02
    (decision,) = player.play([49.0] * 10)
    assert (decision.kind, decision.to, decision.reasons) == ("regress", "z", ("below its floor",))
    assert not mean_below(50 * 50 * PARTS, 50, 100, decimal(50.0))  # exactly at the floor
    assert mean_below(50 * 50 * PARTS - 1, 50, 100, decimal(50.0))
    assert not mean_below(0, 50, 99, decimal(50.0))


def test_an_unfinished_episode_that_is_passed_over_counts_as_the_lowest_return() -> None:
    staged = Staged(RETURNS)
    staged.attached(1)
    staged.started(Started(0, 0, 0, 1, stamp("a")))
    for order in range(1, 21):
        staged.observe(ended(order, "a", 180.0 + order, version=1))
    staged.settle(0)
    row = staged.progress()[0]
    assert (row["passed_over"], row["outcomes"]) == (1, 21)
    assert row["value"] == sum([*range(181, 201)]) / 20  # it was the first: there was no lowest yet


def test_a_return_that_is_not_finite_names_its_env() -> None:
    with pytest.raises(ValueError, match=r"env 0: episode 0: return: expected a finite number, got inf"):
        Staged(RETURNS).observe(ended(0, "a", float("inf")))


def test_sequential_rules_refuse_returns_and_say_why() -> None:
    with pytest.raises(
        PlanError, match=r"stage 'a': rules=\"sequential\" tests a success rate, and it measures r"
    ):
        Staged(RETURNS, rules="sequential")


# ---- steps


def test_steps_of_the_stay_count_and_exactly_the_wanted_ones_advance() -> None:
    player = Player(Staged(STEPS, total_steps=4000))
    assert player.play([0.0] * 99, length=10) == []
    player.staged.observe(ended(-1, "a", 0.0, length=10**6, version=0))  # began before the stay: not of it
    (decision,) = player.play([0.0], length=10)
    assert (decision.to, decision.reasons, decision.counts["value"]) == ("b", ("steps",), 1000)
    player.play([0.0] * 9, stage="a", length=100)  # mixed in: steps of this stay all the same
    row = player.staged.progress()[1]
    assert (row["value"], row["threshold"], row["missing"]) == (900, 1000, "900 of 1,000 steps")
    (decision,) = player.play([0.0], length=100)
    assert (decision.to, decision.counts["steps"]) == ("c", 1000)


def test_success_moves_no_stage_that_is_left_after_steps_under_either_rules() -> None:
    for rules in ("reference", "sequential"):
        staged = Staged([Stage("a", 5000, measure="steps"), Stage("b")], rules=rules)
        for order in range(400):
            staged.observe(
                FinishedEpisode(0, order, order, 10, 0.0, "terminated", 9, stamp("a"), {"is_success": True})
            )
            staged.settle(None)
        assert staged.stage == "a"
        assert staged.progress()[0]["mixing_ratio"] == 0.05


def test_a_share_needs_to_know_of_how_many_steps() -> None:
    with pytest.raises(
        PlanError, match=r"stage 'b': threshold: 0.25 is a share of the run's steps: say total_steps"
    ):
        Staged(STEPS)
    assert Staged([Stage("a", 0.1, measure="steps")], total_steps=30).progress()[0]["threshold"] == 3  # not 4


# ---- plans


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "reward"}, "measure: expected one of 'success', 'return', 'steps', got 'reward'"),
        ({"measure": "return"}, "threshold: measure = 'return' needs one"),
        ({"measure": "steps"}, "threshold: measure = 'steps' needs one"),
        ({"measure": "return", "threshold": float("inf")}, "threshold: expected a finite number, got inf"),
        ({"measure": "steps", "threshold": 1.5}, "threshold: expected a whole number of steps, or a share"),
        ({"measure": "steps", "threshold": 0}, "threshold: expected a whole number of steps, or a share"),
        (
            {"measure": "steps", "threshold": 5, "floor": 0.1},
            "floor: expected nothing: a stage that is left after",
        ),
        (
            {"measure": "return", "threshold": 5, "floor": 5},
            "floor: expected a number below the threshold, 5",
        ),
        ({"threshold": 180.0}, r"threshold: expected a number in \(0, 1\], got 180.0"),
    ],
)
def test_what_a_measure_asks_of_its_settings(settings: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Stage("a", **settings)


def test_a_plan_with_measures_goes_through_toml_and_overrides(tmp_path: Path) -> None:
    plan = StagePlan([*RETURNS.stages, Stage("c", 100_000, measure="steps"), Stage("d")])
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    assert StagePlan.from_toml(tmp_path / "plan.toml") == plan
    assert 'measure = "return"' in plan.to_toml()
    assert "measure" not in StagePlan([Stage("d")]).to_toml()
    with pytest.raises(
        PlanError, match="threshold: one value for all stages, but they measure return and steps and"
    ):
        plan.override(threshold=0.9)
    assert plan.override(threshold={"b": 7}).stages[1].threshold == 7.0
    (tmp_path / "plan.toml").write_text('[[stage]]\nname = "a"\nmeasure = "return"\n')
    with pytest.raises(PlanError, match=r"plan\.toml:1: stage 'a': threshold: measure = 'return' needs one"):
        StagePlan.from_toml(tmp_path / "plan.toml")


# ---- state, journal, command line


@pytest.mark.parametrize(("plan", "options"), [(RETURNS, {}), (STEPS, {"total_steps": 4000})])
def test_a_state_goes_on_as_if_it_had_not_stopped(plan: StagePlan, options: dict[str, Any]) -> None:
    player = Player(Staged(plan, **options))
    player.play([100.5, 222.25] * 6, length=7)
    player.staged.started(Started(0, 99, 99, player.version, stamp("a")))
    player.staged.observe(ended(100, "a", 33.5, version=player.version))
    player.staged.settle(99)  # one waits
    state = json.loads(json.dumps(player.staged.state_dict()))
    again = Staged(plan, **options)
    again.load_state_dict(state)
    assert again.state_dict() == state
    for staged in (player.staged, again):
        staged.observe(ended(99, "a", 180.0, version=player.version))
        for order in range(101, 190):
            staged.observe(ended(order, "a", 250.0, length=20, version=player.version))
            staged.settle(None)
    assert again.state_dict() == player.staged.state_dict()
    assert again.stage != "a"
    del state["tallies"][0]["returns" if plan is RETURNS else "steps"]
    with pytest.raises(StateError, match="expected a key"):
        Staged(plan, **options).load_state_dict(state)


@pytest.mark.asyncio
async def test_a_journal_replays_and_explains_its_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channel, path = Channel(), tmp_path / "journal.jsonl"
    plan = StagePlan([RETURNS["a"], Stage("b", 100, measure="steps"), Stage("c")])
    coordinator = Coordinator(Staged(plan), channel, journal=path)
    task = asyncio.create_task(coordinator.run())
    for order in range(60):
        channel.hand_out([ended(order, coordinator.stage or "", 190.0, version=channel.version)], order + 1)
        await coordinator.settled()
    assert "100 steps in this stay, of 100" in coordinator.explain() or coordinator.stage == "c"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [decision.to for decision in coordinator.decisions] == ["b", "c"]
    assert replay(path).same
    assert main(["explain", str(path)]) == 0
    out = capsys.readouterr().out
    assert "mean return 190 of the newest 20, threshold 180; 20 outcomes, minimum 20" in out
    assert "100 steps in this stay, of 100; 10 outcomes" in out
    assert main(["replay", str(path), "--rules", "sequential"]) == 1
    assert "tests a success rate" in capsys.readouterr().err
