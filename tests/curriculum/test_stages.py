"""Stages and plans: what is valid, what an override replaces, and errors that name file, line and key."""
# pure: tables; files only under tmp_path

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import DEFAULT_STAGES, PlanError, Stage, Staged, StagePlan, ever_success, is_success
from tests.curriculum.helpers import PLAN


def test_the_default_plan_is_the_reference_s() -> None:
    plan = StagePlan()
    assert plan.names == ("simplest", "simpler", "simple", "medium", "complex", "exploration", "mine_heavy")
    assert [stage.threshold for stage in plan] == [0.60, 0.65, 0.70, 0.70, 0.75, 0.80, 0.80]
    assert [stage.min_episodes for stage in plan] == [50, 60, 80, 100, 120, 150, 150]
    assert plan.stages == DEFAULT_STAGES


def test_c07_no_override_is_in_force_unless_it_is_set() -> None:
    assert [stage.threshold for stage in StagePlan(PLAN)] == [0.60, 0.65, 0.70]
    assert [stage.threshold for stage in StagePlan(PLAN, threshold=None)] == [0.60, 0.65, 0.70]


def test_one_value_replaces_all_and_a_mapping_only_those_it_names() -> None:
    assert [stage.threshold for stage in StagePlan(PLAN, threshold=0.9)] == [0.9, 0.9, 0.9]
    plan = StagePlan(PLAN, threshold={"far": 0.9}, min_episodes={"near": 7})
    assert [stage.threshold for stage in plan] == [0.60, 0.65, 0.9]
    assert [stage.min_episodes for stage in plan] == [7, 60, 80]
    assert "one value replaces the setting of *every* stage" in " ".join(str(StagePlan.__doc__).split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "name: expected a non-empty string"),
        ({"name": "a/b"}, "name: expected a non-empty string without slashes"),
        ({"threshold": 0}, r"threshold: expected a number in \(0, 1\], got 0"),
        ({"threshold": 1.01}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"min_episodes": 0}, "min_episodes: expected a whole number of at least 1, got 0"),
        ({"min_episodes": 1.5}, "min_episodes"),
        ({"max_episodes": 0}, "max_episodes"),
        (
            {"threshold": 0.65, "floor": 0.46},
            r"floor: expected a number above 0 and at most threshold - .20 = 0.45",
        ),
        ({"floor": 0}, "floor"),
        ({"floor": float("inf")}, "floor: expected a number above 0"),
        ({"floor": float("nan")}, "floor"),
    ],
)
def test_a_stage_that_is_not_valid(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Stage(**{"name": "near", **settings})


def test_numpy_s_numbers_become_python_s_at_birth() -> None:
    """A checkpoint is read with weights_only=True, which refuses NumPy's scalars."""
    name: Any = np.str_("near")
    stage = Stage(name, np.float64(0.7), 50, floor=np.float64(0.4))
    assert [type(value) for value in stage.as_dict().values()] == [str, float, int, float]
    plan = StagePlan([stage], threshold=np.float64(0.8))
    assert type(plan["near"].threshold) is float


def test_the_floor_s_bound_is_exact() -> None:
    assert Stage("near", 0.70, floor=0.50).floor == 0.50  # in floats .70 - .20 is .4999999999999999
    with pytest.raises(PlanError, match="floor"):
        StagePlan([Stage("near", 0.70, floor=0.50)], threshold=0.60)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StagePlan([]), "at least one stage"),
        (lambda: StagePlan([Stage("a"), Stage("a")]), "'a' occurs twice"),
        (lambda: StagePlan(PLAN, threshold={"nowhere": 0.5}), "override threshold: unknown stage 'nowhere'"),
        (
            lambda: StagePlan(["near"]),  # type: ignore[list-item]
            "expected Stage objects",
        ),
        (lambda: PLAN["nowhere"], "unknown stage 'nowhere'; the plan has near, middle, far"),
    ],
)
def test_a_plan_that_is_not_valid(build: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build()


TOML = """\
min_episodes = { far = 90 }

[[stage]]
name = "near"
threshold = 0.60
min_episodes = 50

[[stage]]
name = "far"
threshold = 0.70
floor = 0.40
"""


def test_a_plan_from_toml_and_back(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(TOML)
    plan = StagePlan.from_toml(file)
    assert plan.stages == (Stage("near", 0.60, 50), Stage("far", 0.70, 90, floor=0.40))
    file.write_text(plan.to_toml())
    assert StagePlan.from_toml(file) == plan


def test_a_plan_file_s_overrides_hold_together(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text("threshold = 0.5\nfloor = 0.3\n" + TOML)
    assert [(stage.threshold, stage.floor) for stage in StagePlan.from_toml(file)] == [(0.5, 0.3)] * 2


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("threshold = 0.70", "threshold = ", 10, "not valid TOML"),
        ("threshold = 0.70", "threshold = 7", 10, r"threshold: expected a number in \(0, 1\], got 7"),
        ("floor = 0.40", "floor = 0.6", 11, "floor: expected"),
        ("floor = 0.40", "floor = inf", 11, "stage 'far': floor: expected .* got inf"),
        (
            "min_episodes = { far = 90 }",
            "max_episodes = 9\nthreshold = 0.5",
            2,
            "stage 'far': floor: expected",
        ),
        ("floor = 0.40", "flor = 0.4", 11, "unknown key 'flor'; expected name, threshold"),
        ('name = "far"', 'name = "near"', 9, "'near' occurs twice"),
        ('name = "far"\n', "", 8, "name: expected a string, got nothing"),
        ("{ far = 90 }", "{ fear = 90 }", 1, "override min_episodes: unknown stage 'fear'"),
        ("min_episodes = { far", "min_epis = { far", 1, "unknown key 'min_epis'"),
    ],
)
def test_a_broken_plan_file_names_file_line_and_key(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(TOML.replace(old, new, 1))
    with pytest.raises(PlanError, match=message) as caught:
        StagePlan.from_toml(file)
    assert str(caught.value).startswith(f"{file}:{line}: ")


def test_a_plan_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nowhere\.toml: cannot be read"):
        StagePlan.from_toml(tmp_path / "nowhere.toml")


NAMES = st.lists(
    st.text(
        st.characters(codec="utf-8", exclude_characters="/\\\n", exclude_categories=["C", "Z"]), min_size=1
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


@given(NAMES, st.floats(0.01, 1), st.integers(1, 10**6), st.none() | st.integers(1, 10**6))
def test_any_plan_survives_toml(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], threshold: float, least: int, most: int | None
) -> None:
    plan = StagePlan([Stage(name, threshold, least, max_episodes=most) for name in names])
    file = tmp_path_factory.getbasetemp() / "any-plan.toml"
    file.write_text(plan.to_toml(), encoding="utf-8")
    assert StagePlan.from_toml(file) == plan


def test_a10_a_plan_says_which_step_of_an_episode_has_to_succeed(tmp_path: Path) -> None:
    plan = StagePlan([Stage("near")], success="ever")
    (tmp_path / "plan.toml").write_text(plan.to_toml())
    again = StagePlan.from_toml(tmp_path / "plan.toml")
    assert (again, again.success, again.override(threshold=0.5).success) == (plan, "ever", "ever")
    assert StagePlan(plan, threshold=0.5) == plan.override(threshold=0.5)
    assert StagePlan(plan, success="last").success == "last"
    assert plan != StagePlan([Stage("near")])
    assert "success" not in StagePlan([Stage("near")]).to_toml()
    assert Staged(plan).success is ever_success
    assert Staged(plan, success="last").success is is_success
    with pytest.raises(PlanError, match="success: expected 'last' or 'ever', got 'always'"):
        StagePlan([Stage("near")], success="always")  # type: ignore[arg-type]
    (tmp_path / "plan.toml").write_text('success = "always"\n[[stage]]\nname = "near"\n')
    with pytest.raises(PlanError, match=r"plan\.toml:1: success: expected 'last' or 'ever', got 'always'"):
        StagePlan.from_toml(tmp_path / "plan.toml")
