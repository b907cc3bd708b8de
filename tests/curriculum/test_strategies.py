"""Strategies over single levels, against the formulas of their papers; and that all of them can be resumed."""
# pure: slow twins and hand-made numbers

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import cube_toy
from curriculum import (
    Coordinator,
    DomainRandomisation,
    Ladder,
    Learnability,
    LearningProgress,
    Level,
    LevelSet,
    PlanError,
    PrioritisedReplay,
    ScorePart,
    Staged,
    StampError,
    StateError,
    ever_success,
    ever_success_score,
    success_score,
)
from curriculum.strategies.learning_progress import progress_weights
from curriculum.strategies.prioritised_replay import prioritised_weights
from tests.curriculum.helpers import Channel, Started, episode, level_set, stamp

pytestmark = pytest.mark.alternate_loops

IDS = ["a", "b", "c", "d"]


def see(strategy: Any, level: str, score: float, order: int = 0, **keywords: Any) -> None:
    made = episode(order, "x", bool(score), level=level, **keywords)
    strategy.score = lambda e: score
    strategy.observe(made)


def test_score_is_a_function() -> None:
    with pytest.raises(PlanError, match=r"score: expected a function of the episode, got 1\.0"):
        LearningProgress(IDS, score=1.0)  # type: ignore[arg-type]


def test_domain_randomisation_is_uniform_for_ever() -> None:
    strategy = DomainRandomisation(level_set())
    for order in range(120):
        strategy.observe(episode(order, "near", True, level="near-1"))
    assert strategy.directive().weights is None
    rows = strategy.progress()
    assert [row["share"] for row in rows] == pytest.approx([1 / 3] * 3)
    assert (rows[0]["outcomes"], rows[0]["seen"], rows[0]["success_rate"]) == (120, 1, 1.0)


def test_learning_progress_by_hand() -> None:
    strategy = LearningProgress(IDS, p_rand={"a": 0.2}, every=1)
    see(strategy, "a", 0.6)  # q = (.6 - .2) / .8 = .5
    assert (strategy.fast[0], strategy.slow[0]) == pytest.approx((0.5, 0.5))
    see(strategy, "a", 1.0)
    assert strategy.fast[0] == pytest.approx(0.1 * 1.0 + 0.9 * 0.5)
    assert strategy.slow[0] == pytest.approx(0.1 * 0.55 + 0.9 * 0.5)
    see(strategy, "a", 0.1)  # below a random policy: 0
    assert strategy.fast[0] == pytest.approx(0.9 * 0.55)
    assert strategy.fast[1:].tolist() == [0, 0, 0]  # what was not sampled is not updated


def _twin(fast: list[float], slow: list[float], seen: list[bool]) -> list[float]:
    """Kanitscheider et al., in loops."""
    size = len(fast)

    def w(p: float) -> float:
        return 0.9 * p / (p + 0.1 * (1 - 2 * p))

    lp = {i: abs(w(fast[i]) - w(slow[i])) for i in range(size) if seen[i]}
    if not lp:
        return [1 / size] * size
    mean = sum(lp.values()) / len(lp)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in lp.values()) / len(lp))
    if deviation < 1e-12:
        return [1 / size] * size
    drive = {i: 1 / (1 + math.exp(-3 * ((x - mean) / deviation - 1.28))) for i, x in lp.items()}
    total = sum(drive.values())
    return [0.9 * drive.get(i, 0) / total + 0.1 / size for i in range(size)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.booleans()), min_size=1, max_size=12))
def test_learning_progress_equals_its_slow_twin(rows: list[tuple[int, int, bool]]) -> None:
    fast, slow = [f / 20 for f, _, _ in rows], [g / 20 for _, g, _ in rows]
    seen = [s for _, _, s in rows]
    changes = {abs(f - g) for f, g, s in rows if s}
    got = progress_weights(np.array(fast), np.array(slow), np.array(seen))
    assert got.sum() == pytest.approx(1)
    if len(changes) != 1:  # with one value, whether the deviation is 0 or 1e-17 is rounding
        assert got.tolist() == pytest.approx(_twin(fast, slow, seen), abs=1e-9)


def test_learnability_by_hand() -> None:
    strategy = Learnability(IDS, every=1)
    assert strategy.top == 1
    see(strategy, "b", 1.0)
    assert (strategy.a[1], strategy.b[1]) == (2.0, 1.0)
    see(strategy, "b", 0.25)
    assert strategy.a[1] == pytest.approx(1 + 0.8 + 0.25)
    assert strategy.b[1] == pytest.approx(1 + 0.75)
    for _ in range(20):
        see(strategy, "a", 1.0)
        see(strategy, "c", 0.0)
        see(strategy, "d", 1.0)
        see(strategy, "b", 0.5)
    weights = strategy.directive().weights
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.125, 0.625, 0.125, 0.125])


def test_learnability_breaks_ties_at_random_and_repeatably() -> None:
    def best(seed: int) -> list[int]:
        strategy = Learnability([f"{i}" for i in range(100)], every=1, seed=seed)
        found = []
        for order in range(20):
            see(strategy, "0", 1.0, order)
            weights = strategy.directive().weights
            assert weights is not None
            found += np.flatnonzero(weights > 0.05).tolist()
        return found

    assert best(0) == best(0) != best(1)
    assert len(set(best(0))) > 40  # five of a hundred, twenty times


def test_weights_are_renewed_every_so_many_episodes() -> None:
    for strategy, every in (
        (LearningProgress(IDS), 50),
        (Learnability(IDS), 10),
        (PrioritisedReplay(IDS), 50),
    ):
        first = strategy.directive()
        for order in range(every - 1):
            strategy.observe(episode(order, "x", order % 2 == 0, level="a"))
            assert strategy.directive() is first
        strategy.observe(episode(every, "x", True, level="a"))
        assert strategy.directive() is not first


def test_prioritised_weights_by_hand() -> None:
    scores = np.array([0.5, 9.0, 0.5, 7.0, 0.7])
    seen = np.array([True, False, True, True, True])
    drawn_at = np.array([4, 0, 10, 7, 9])
    got = prioritised_weights(scores, seen, drawn_at, 10, beta=0.5, rho=0.1)
    ranks = [3, 4, 1, 2]  # of 0, 2, 3, 4: stable where equal
    by_score = np.array([1 / r**2 for r in ranks])
    stale = np.array([6, 0, 3, 1]) / 10
    expected = 0.9 * by_score / by_score.sum() + 0.1 * stale
    assert got[[0, 2, 3, 4]] == pytest.approx(expected)
    assert got[1] == 0
    fresh = prioritised_weights(scores, seen, np.full(5, 10), 10, beta=0.1, rho=1.0)
    assert fresh[seen] == pytest.approx([0.25] * 4)  # nobody is stale: uniform


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.data())
def test_c22_a_score_does_not_depend_on_where_rollouts_cut_the_episode(
    values: list[float], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(values) - 1)), max_size=5)) | {0, len(values)})
    when = data.draw(st.integers(0, len(cuts)))  # the episode's end is reported before or after its last part
    strategy = PrioritisedReplay(IDS)
    strategy.started(Started(0, 5, 0, 1, stamp("x", level="c")))
    ended = episode(5, "x", True, level="c", length=len(values))
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        if i == when:
            strategy.observe(ended)
        assert not strategy.seen[2]
        strategy.record_scores([ScorePart(0, 5, end - begin, float(np.mean(values[begin:end])))])
    if when >= len(cuts) - 1:
        strategy.observe(ended)
    assert strategy.seen[2]
    assert strategy.scores[2] == pytest.approx(float(np.mean(values)), abs=1e-9)


def test_max_mc_uses_the_highest_return_so_far_including_this_episode() -> None:
    strategy = PrioritisedReplay(IDS, by="max_mc")
    assert strategy.statistic == "value"
    for order, (success, value, score) in enumerate(
        [(False, 0.25, -0.25), (True, 0.5, 0.5), (False, 0.2, 0.8)]
    ):
        strategy.observe(episode(order, "x", success, level="b", length=3))
        strategy.record_scores([(0, order, 3, value)])
        assert strategy.scores[1] == pytest.approx(score)


def test_aborted_or_incomplete_episodes_give_no_score() -> None:
    strategy = PrioritisedReplay(IDS)
    strategy.record_scores([(0, 0, 4, 1.0)])
    strategy.observe(episode(0, "x", level="a", length=4, outcome="aborted"))
    strategy.record_scores([(0, 1, 3, 1.0)])
    strategy.observe(episode(1, "x", level="a", length=4))
    assert not strategy.seen.any()
    with pytest.raises(ValueError, match="env 0: episode 1 has 4 steps, but parts of 5 were scored"):
        strategy.record_scores([(0, 1, 2, 1.0)])
    with pytest.raises(ValueError, match="expected steps ≥ 1 and a finite value"):
        strategy.record_scores([(0, 2, 2, float("nan"))])


@pytest.mark.parametrize(("replay", "share"), [(0.8, 0.8), ("proportionate", 0.25)])
def test_unseen_levels_get_what_replay_leaves(replay: Any, share: float) -> None:
    strategy = PrioritisedReplay(IDS, replay=replay, every=1)
    assert strategy.directive().weights is None  # nothing seen: uniform
    strategy.record_scores([(0, 0, 10, 1.0)])
    strategy.observe(episode(0, "x", level="b"))
    weights = strategy.directive().weights
    assert weights is not None
    assert weights[1] == pytest.approx(share)
    assert weights[[0, 2, 3]] == pytest.approx([(1 - share) / 3] * 3)


def make_all(levels: Any) -> list[Any]:
    return [
        DomainRandomisation(levels),
        LearningProgress(levels, every=7),
        Learnability(levels, every=7),
        PrioritisedReplay(levels, every=7, by="max_mc"),
    ]


@pytest.mark.parametrize("which", range(4))
def test_c23_every_strategy_continues_from_its_state(which: int) -> None:
    levels = level_set()
    rng = np.random.default_rng(which)
    whole, half = make_all(levels)[which], make_all(levels)[which]
    ids = list(levels.ids())
    for order in range(300):
        if order == 151:
            state = json.loads(json.dumps(half.state_dict()))
            half = make_all(levels)[which]
            half.load_state_dict(state)
        level, good = ids[int(rng.integers(9))], bool(rng.random() < 0.5)
        for strategy in (whole, half):
            strategy.observe(episode(order, level[:-2], good, level=level))
            if isinstance(strategy, PrioritisedReplay):
                strategy.record_scores([(0, order, 4, 0.25)])
                if order:  # the rest of the previous episode comes late
                    strategy.record_scores([(0, order - 1, 6, 0.5)])
        assert half.directive() == whole.directive()
    assert half.state_dict() == whole.state_dict()


@pytest.mark.parametrize("which", range(4))
def test_c23_on_hold_the_weights_stay_whoever_looks_and_over_a_resume(which: int) -> None:
    def see_some(strategy: Any, orders: range) -> None:
        for order in orders:
            level = ids[order % 5]
            strategy.observe(episode(order, level[:-2], order % 3 == 0, level=level))
            if isinstance(strategy, PrioritisedReplay):
                strategy.record_scores([(0, order, 10, float(order))])

    ids = list(level_set().ids())
    held = make_all(level_set())[which]
    see_some(held, range(40))
    held.hold()
    before = held.directive()
    see_some(held, range(40, 83))
    held.progress()
    again = make_all(level_set())[which]
    again.load_state_dict(json.loads(json.dumps(held.state_dict())))
    assert held.directive() is before
    assert again.directive() == before
    for strategy in (held, again):
        strategy.release()
        assert (strategy.directive() == before) == (which == 0)  # the baseline's never change
    assert held.directive() == again.directive()


@pytest.mark.parametrize("which", range(4))
def test_a_state_of_other_levels_is_refused(which: int) -> None:
    state = make_all(level_set())[which].state_dict()
    for other, message in (
        (level_set(per_stage=4), "levels: expected 12, got 9"),
        (LevelSet([Level("x", str(i)) for i in range(9)]), "ids: it was saved over other levels"),
    ):
        with pytest.raises(StateError, match=message):
            make_all(other)[which].load_state_dict(state)
    with pytest.raises(StateError, match="got 1 of"):
        make_all(level_set())[which - 1].load_state_dict(state)
    state["arrays"]["counts"] = [0] * 8
    with pytest.raises(StateError, match="counts: expected 9 numbers"):
        make_all(level_set())[which].load_state_dict(state)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LearningProgress(IDS, p_rand=1.0), "p_rand: expected numbers from 0 to below 1"),
        (lambda: LearningProgress(IDS, p_rand={"z": 0.1}), "p_rand: unknown level 'z'"),
        (lambda: LearningProgress(IDS, a=0), "a: expected"),
        (lambda: Learnability(IDS, share=2), "share: expected"),
        (lambda: LearningProgress(IDS, slope=math.nan), "slope: expected a number, got nan"),
        (
            lambda: PrioritisedReplay(IDS, replay="often"),  # type: ignore[arg-type]
            "replay: expected a probability or 'proportionate', got",
        ),
        (lambda: Staged(probe="a"), "probe: expected a probability below 1, got 'a'"),  # type: ignore[arg-type]
        (lambda: Staged(total_steps=0), "total_steps: expected a number of steps, got 0"),
        (
            lambda: PrioritisedReplay(IDS, by="l2"),  # type: ignore[arg-type]
            "by: expected one of l1, positive, max_mc, got 'l2'",
        ),
        (lambda: PrioritisedReplay(IDS, replay=1.5), "replay: expected a probability"),
        (lambda: DomainRandomisation(["a", "a"]), "at least one id, each once"),
        (lambda: DomainRandomisation(IDS, every=0), "every: expected"),
        (lambda: DomainRandomisation(LevelSet.from_function(lambda s, i: i, ["x"])), "at most 10,000,000"),
    ],
)
def test_settings_that_are_not_valid(build: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build()


def test_a_plan_of_levels_says_what_succeeds_to_whatever_draws_from_them(tmp_path: Path) -> None:
    """One plan, one meaning, whichever strategy reads it."""
    (tmp_path / "near").mkdir()
    (tmp_path / "near/a.jsonl").write_text('{"id": "x", "data": {}}\n')
    (tmp_path / "plan.toml").write_text('success = "ever"\n[[stage]]\nname = "near"\n')
    levels = LevelSet.from_directory(tmp_path)
    made = [kind(levels) for kind in (DomainRandomisation, LearningProgress, Learnability, PrioritisedReplay)]
    assert [strategy.score for strategy in made] == [ever_success_score] * 4
    assert Ladder(levels).success is ever_success
    assert Learnability(levels, score=success_score).score is success_score
    (tmp_path / "plan.toml").write_text('[[stage]]\nname = "near"\nmeasure = "return"\nthreshold = 5.0\n')
    levels = LevelSet.from_directory(tmp_path)
    for kind in (Learnability, LearningProgress):
        with pytest.raises(
            PlanError, match=rf"'near': measure = 'return': {kind.__name__} goes by success; say"
        ):
            kind(levels)
        kind(levels, score=lambda episode: 0.5)


def test_an_unknown_level_or_a_score_out_of_range_is_an_error_that_names_the_env() -> None:
    with pytest.raises(StampError, match="env 0: episode 3 is stamped with the unknown level 'z'"):
        Learnability(IDS).observe(episode(3, "x", level="z"))
    with pytest.raises(ValueError, match="env 0: score: expected a number from 0 to 1, got 2"):
        see(Learnability(IDS), "a", 2.0)
    with pytest.raises(ValueError, match="env 0: score: expected a number from 0 to 1, got None"):
        Learnability(IDS, score=lambda e: None).observe(episode(0, "x", level="a"))  # type: ignore[arg-type, return-value]


@pytest.mark.asyncio
async def test_the_coordinator_hands_scores_to_the_strategy_and_publishes() -> None:
    channel = Channel(num_envs=2)
    coordinator = Coordinator(PrioritisedReplay(level_set(), every=1), channel)
    task = asyncio.create_task(coordinator.run())
    channel.hand_out([Started(0, 0, 0, 1, stamp("near", level="near-1"))])
    channel.hand_out([episode(0, "near", level="near-1", length=4)])
    await coordinator.settled()
    coordinator.record_scores([ScorePart(0, 0, 4, 0.5)])
    channel.hand_out([episode(1, "near", level="near-0", length=4)])
    await coordinator.settled()
    assert channel.newest.weights is not None
    assert channel.newest.weights[1] == pytest.approx(0.8)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_the_cube_toy_after_a_quarter_of_its_episodes() -> None:
    """The whole of it is `python -m benchmarks.cube_toy`; a quarter tells the strategies apart already."""
    levels = cube_toy.cubes()
    shares = {
        name: cube_toy.simulate(make(levels), levels, seed=0, episodes=5000)[-1]
        for name, make in cube_toy.STRATEGIES.items()
    }
    assert shares["uniform"] <= 0.01
    assert shares["LearningProgress"] > 0.20
    assert shares["Learnability"] > 0.10
