"""Directives: what is valid, how they travel, and that a draw depends on nothing but seed and resets."""
# pure: chi-squared bounds on fixed seeds, hypothesis; no global random state

from __future__ import annotations

import pickle
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import Directive, DirectiveError, Level, LevelSet
from curriculum.directive import Draws
from tests.curriculum.helpers import PLAN, level_set

NAMES = PLAN.names


def staged(stage: str, mix: float = 0.0, probe: float = 0.0) -> Directive:
    return Directive(NAMES, stage, (0.4, 0.25, 0.05), mix, probe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAMES, "nowhere", (0.1, 0.1, 0.1)), "stage: expected one of near, middle, far, got 'nowhere'"),
        ((NAMES, "near", (0.1,)), r"ratios: expected one per stage \(3\), got 1"),
        ((NAMES, "near", (0.1, 2.0, 0.1)), "ratios: expected numbers from 0 to 1, got 2.0"),
        ((NAMES, "near", (0.1, 0.1, 0.1), float("nan")), "mix: expected numbers from 0 to 1"),
        (((), None, (), 0.0, 0.0, np.array([0.0, 0.0])), "weights: expected one finite number ≥ 0 per level"),
        (((), None, (), 0.0, 0.0, np.array([1.0, -1.0])), "weights"),
        (((), None, (), 0.0, 0.0, np.array([1.0, np.inf])), "weights"),
    ],
)
def test_a_directive_that_is_not_valid(arguments: Any, message: str) -> None:
    with pytest.raises(DirectiveError, match=message):
        Directive(*arguments)


def test_it_must_fit_the_levels() -> None:
    with pytest.raises(DirectiveError, match="stage 'near', but there are levels only for x"):
        staged("near").check_fits(LevelSet([Level("x", "1")]))
    with pytest.raises(DirectiveError, match="weighs 2 levels, but the env has 9"):
        Directive((), None, weights=np.ones(2, np.float32)).check_fits(level_set())


def test_it_travels_whole_and_small() -> None:
    directive = staged("middle", 0.25)
    assert pickle.loads(pickle.dumps(directive)) == directive
    assert len(pickle.dumps(directive)) < 300
    big = Directive((), None, weights=np.random.default_rng(0).random(100_000).astype(np.float32))
    big.cumulative()
    there = pickle.dumps(big, protocol=5)
    assert len(there) < 400_500  # four bytes a level; the sums are made again there
    assert pickle.loads(there) == big
    assert big != Directive((), None, weights=np.ones(100_000, np.float32))
    assert big != Directive((), None)


@given(st.integers(0, 2**70), st.integers(0, 20), st.sampled_from(NAMES), st.floats(0, 1), st.floats(0, 1))
def test_c10_the_same_seed_and_resets_give_the_same_task(
    seed: int, resets: int, stage: str, mix: float, probe: float
) -> None:
    levels, directive = level_set(), staged(stage, mix, probe)
    one, other = Draws(seed), Draws(seed)
    for _ in range(resets):
        one.next(directive, levels)
    np.random.seed(resets)  # noqa: NPY002 - global state must not matter
    for _ in range(resets):
        other.next(directive, levels)
    drawn = one.next(directive, levels)
    assert drawn == other.next(directive, levels)
    number, drawn_stage, _, role = drawn
    assert levels[number].stage == drawn_stage
    place, current = NAMES.index(drawn_stage), NAMES.index(stage)
    assert {"current": place == current, "previous": place == current - 1, "probe": place < current}[role]


def test_c10_a_draw_is_a_function_of_the_seed_and_the_number_of_resets() -> None:
    levels, env = level_set(per_stage=1000), Draws(7)
    for reset in range(50):
        chance = np.random.Generator(np.random.Philox(key=7, counter=reset << 64)).random(4)[3]
        assert env.next(staged("near", 0.0), levels)[0] == int(chance * 1000)


def test_c10_turns_do_not_depend_on_what_other_stages_played() -> None:
    names = {"near": ["a", "b", "c"], "far": ["d", "e"]}
    levels = LevelSet([Level(stage, g, generator=g) for stage, all_of in names.items() for g in all_of])

    def played(env: Draws, order: str) -> dict[str, list[str]]:
        turns: dict[str, list[str]] = {"near": [], "far": []}
        for letter in order:
            stage = {"n": "near", "f": "far"}[letter]
            turns[stage].append(env.next(Directive(("near", "far"), stage, (0.0, 0.0)), levels)[2])
        return turns

    mixed, apart = played(Draws(3), "nfnnfffnnffn"), played(Draws(3), "nnnnnnffffff")
    assert mixed == apart
    assert [sorted(mixed["near"][at : at + 3]) for at in (0, 3)] == [["a", "b", "c"]] * 2
    more = LevelSet([Level("near", g, generator=g) for g in "ab"])
    env = Draws(3)
    env.next(Directive(("near",), "near", (0.0,)), LevelSet([Level("near", "a", generator="a")]))
    assert env.next(Directive(("near",), "near", (0.0,)), more)[2] in "ab"  # an env may be given other levels


def test_c10_envs_with_different_seeds_draw_differently() -> None:
    levels, directive = level_set(per_stage=50), staged("far", 0.4)
    draws = [tuple(env.next(directive, levels)[0] for _ in range(8)) for env in map(Draws, range(64))]
    assert len(set(draws)) == 64


def test_shares_of_roles() -> None:
    levels, env = level_set(), Draws(1)
    drawn = Counter(env.next(staged("far", 0.4, 0.1), levels)[1::2] for _ in range(20_000))
    assert drawn["near", "probe"] / 20_000 == pytest.approx(0.05, abs=0.005)
    assert drawn["middle", "probe"] / 20_000 == pytest.approx(0.05, abs=0.005)
    assert drawn["middle", "previous"] / 20_000 == pytest.approx(0.36, abs=0.012)
    assert drawn["far", "current"] / 20_000 == pytest.approx(0.54, abs=0.012)


def test_the_first_stage_has_nothing_to_mix_in() -> None:
    levels, env = level_set(), Draws(1)
    assert {env.next(staged("near", 0.4, 0.5), levels)[1:] for _ in range(200)} == {
        ("near", "default", "current")
    }


def test_generators_take_turns_in_shuffled_rounds_and_envs_differ() -> None:
    generators = ["a", "b", "c"]
    levels = LevelSet(
        [Level("near", f"{g}{i}", generator=g) for g in generators for i in range(9 if g == "a" else 1)]
    )
    directive = Directive(("near",), "near", (0.2,))
    firsts: Counter[str] = Counter()
    for seed in range(300):
        env = Draws(seed)
        turns = [env.next(directive, levels)[2] for _ in range(9)]
        assert all(sorted(turns[i : i + 3]) == generators for i in (0, 3, 6))  # not nine to one to one
        firsts[turns[0]] += 1
    assert min(firsts.values()) > 70
    assert len({tuple(Draws(s).next(directive, levels)[2] for s in range(k, k + 6)) for k in range(20)}) > 10


def test_weights_within_a_stage_and_over_all_levels() -> None:
    levels = level_set(per_stage=3)
    weights = np.array([1, 0, 3, 0, 0, 0, 0, 4, 0], np.float32)
    over_all = Directive((), None, weights=weights)
    env = Draws(5)
    drawn = Counter(env.next(over_all, levels)[0] for _ in range(8000))
    assert set(drawn) == {0, 2, 7}
    assert drawn[7] / 8000 == pytest.approx(0.5, abs=0.02)
    within = Directive(NAMES, "near", (0.1, 0.1, 0.1), weights=weights)
    drawn = Counter(env.next(within, levels)[0] for _ in range(8000))
    assert set(drawn) == {0, 2}
    assert drawn[2] / 8000 == pytest.approx(0.75, abs=0.02)
    # all of its levels weigh 0: uniform
    unweighed = Directive(NAMES, "middle", (0.1, 0.1, 0.1), weights=weights)
    assert {env.next(unweighed, levels)[0] for _ in range(100)} == {3, 4, 5}


def test_a_draw_over_100_000_levels_makes_nothing_of_their_size() -> None:
    """O(log n): the sums are made once; a draw that made 100,000 of anything would need their memory."""
    levels = LevelSet.from_function(lambda stage, i: i, ["x"], count=100_000)
    directive = Directive((), None, weights=np.arange(1, 100_001, dtype=np.float32))
    env = Draws(0)
    env.next(directive, levels)
    tracemalloc.start()
    try:
        for _ in range(100):
            env.next(directive, levels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000
