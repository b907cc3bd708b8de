"""The ladder: up, down, at random from the top; a rung per env in the directive; state, commands, real workers."""
# pure but for the last tests: those are on real worker processes

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

from aio_vecenv import AsyncVecEnv
from benchmarks import terrain
from curriculum import (
    CommandError,
    Coordinator,
    CurriculumEnv,
    Directive,
    DirectiveError,
    Ladder,
    Level,
    LevelSet,
    PlanError,
    Stage,
    StagePlan,
    StampError,
    StateError,
    ever_success,
)
from curriculum.directive import Draws
from examples.ladder import climb
from tests.curriculum.helpers import PLAN, ActionEnv, Channel, episode, level_set

pytestmark = pytest.mark.alternate_loops

NAMES = ("near", "middle", "far")


def ladder(num_envs: int = 2, **options: Any) -> Ladder:
    made = Ladder(NAMES, **options)
    made.attached(num_envs)
    return made


def test_up_after_a_success_down_after_a_failure_and_not_below_the_lowest() -> None:
    made = ladder()
    for order, (env_id, stage, success, rungs) in enumerate(
        [
            (0, "near", True, [1, 0]),
            (1, "near", False, [1, 0]),
            (0, "middle", True, [2, 0]),
            (0, "far", False, [1, 0]),
            (0, "middle", False, [0, 0]),
        ]
    ):
        made.observe(episode(order, stage, success, env_id=env_id))
        assert made.rungs.tolist() == rungs
    assert (made.total, made.mean_rung) == (5, 0.0)


def test_who_succeeds_on_the_top_rung_goes_on_at_a_random_one_the_same_in_any_order() -> None:
    drawn = []
    for order in (range(64), reversed(range(64))):
        made = ladder(64)
        made.set_stage("far")
        for env_id in order:
            made.observe(episode(7, "far", True, env_id=env_id))
        drawn.append(made.rungs.tolist())
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("stage", "outcome"), [("near", "terminated"), ("far", "truncated"), ("middle", "aborted")]
)
def test_only_an_episode_that_was_played_on_the_env_s_rung_moves_it(stage: str, outcome: str) -> None:
    made = ladder()
    made.rungs[0] = 1
    made.observe(episode(0, stage, True, outcome=outcome))
    assert made.rungs.tolist() == [1, 0]
    assert made.total == (outcome != "aborted")


def test_what_goes_up_and_down_can_be_said() -> None:
    made = ladder(success=lambda e: e.length > 20, down=lambda e: e.length < 5)
    for length, rung in ((21, 1), (10, 1), (4, 0)):
        made.observe(episode(0, NAMES[made.rungs[0]], False, length=length))
        assert made.rungs[0] == rung
    assert Ladder(StagePlan(PLAN, success="ever")).success is ever_success


def test_envs_start_spread_up_to_a_rung() -> None:
    assert ladder(5, start=1).rungs.tolist() == [0, 1, 0, 1, 0]


def test_an_episode_of_no_rung_names_its_env() -> None:
    with pytest.raises(StampError, match=r"env 1: episode 0 is stamped with the stage 'moon'"):
        ladder().observe(episode(0, "moon", env_id=1))
    with pytest.raises(StampError, match=r"env 7: .* for 2 envs"):
        ladder().observe(episode(0, "near", env_id=7))


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([], {}, "expected at least one name"),
        (["a", "a"], {}, "each once"),
        (NAMES, {"start": 3}, "start: expected a rung from 0 to 2, got 3"),
        (NAMES, {"down": "failure"}, "down: expected a function"),
        (
            StagePlan([Stage("far", threshold=1.0, measure="return")]),
            {},
            "stage 'far': measure = 'return': Ladder goes",
        ),
        (NAMES, {"success": "often"}, "success: expected a function of the episode, 'last' or 'ever'"),
    ],
)
def test_settings_that_are_not_valid(stages: Any, options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Ladder(stages, **options)


def test_hold_release_and_set_stage() -> None:
    made = ladder()
    made.hold()
    made.observe(episode(0, "near", True))
    assert (made.rungs.tolist(), made.total) == ([0, 0], 1)
    made.release()
    assert made.set_stage("middle").to == "middle"
    assert made.rungs.tolist() == [1, 1]
    with pytest.raises(CommandError, match="unknown stage 'moon'; the ladder has near, middle, far"):
        made.set_stage("moon")
    assert [row["envs"] for row in made.progress()] == [0, 2, 0]
    assert made.explain() == "mean rung 1.00 of 0 to 2; envs on each: middle 2"


# ---- the directive


def test_a_directive_for_4096_envs_is_a_byte_per_env_on_the_wire() -> None:
    made = Ladder([f"grade {i}" for i in range(10)])
    made.attached(4096)
    packed = pickle.dumps(made.directive(), protocol=5)
    assert len(packed) < 4096 + 512
    assert pickle.loads(packed) == made.directive()
    assert Directive(tuple(map(str, range(300))), None, rungs=np.array([299])).rungs.dtype == np.uint16  # type: ignore[union-attr]


def test_a_directive_is_the_same_object_until_an_env_moves_and_keeps_its_own_rungs() -> None:
    made = ladder()
    first = made.directive()
    assert made.directive() is first
    made.observe(episode(0, "near", False))
    assert made.directive() is first
    made.observe(episode(1, "near", True))
    assert made.directive() != first
    assert first.rungs is not None
    assert first.rungs.tolist() == [0, 0]


@pytest.mark.parametrize("rungs", [[3], [-1], [0.5], [], [[0]]])
def test_rungs_that_are_not_valid(rungs: Any) -> None:
    with pytest.raises(DirectiveError, match=r"rungs: expected the place of a stage \(0 to 2\) for each env"):
        Directive(NAMES, None, rungs=np.array(rungs))
    with pytest.raises(DirectiveError, match="no stage for all"):
        Directive(NAMES, "near", (0.0,) * 3, rungs=np.array([0]))


@given(st.integers(0, 2), st.integers(0, 2**64))
def test_a_draw_is_of_the_env_s_own_rung(rung: int, seed: int) -> None:
    levels = level_set()
    made = Directive(NAMES, None, rungs=np.array([0, rung]))
    number, stage, _, role = Draws(seed).next(made, levels, 1)
    assert (stage, role) == (NAMES[rung], "current")
    assert number in levels.of_stage(stage)


@pytest.mark.parametrize(
    ("index", "message"), [(None, "does not know which it is"), (2, "is the one of index 2")]
)
def test_an_env_that_has_no_rung_says_so(index: int | None, message: str) -> None:
    env = CurriculumEnv(ActionEnv(), level_set(), index=index)
    env.on_broadcast(Directive(NAMES, None, rungs=np.array([0, 1])), 1)
    with pytest.raises(DirectiveError, match=message):
        env.reset()


def test_alone_an_env_climbs_by_itself() -> None:
    env = CurriculumEnv(ActionEnv(), level_set(), strategy=Ladder(NAMES))
    stages = []
    for action in (1, 1, 0, 0, 0):
        _, info = env.reset()
        stages.append(info["task"]["stage"])
        env.step(action)
    assert stages == ["near", "middle", "far", "middle", "near"]


# ---- state


def test_a_state_goes_on_as_if_it_had_not_stopped() -> None:
    made = ladder(8, seed=3)
    rng = np.random.default_rng(1)
    for order in range(200):
        env_id = order % 8
        made.observe(episode(order, NAMES[made.rungs[env_id]], bool(rng.random() < 0.7), env_id=env_id))
    state = json.loads(json.dumps(made.state_dict()))
    again = ladder(2, seed=3)
    again.load_state_dict(state)
    again.attached(8)
    assert again.state_dict() == state
    assert again.directive() == made.directive()
    again.attached(10)  # two more begin on the lowest
    assert again.rungs.tolist() == [*made.rungs.tolist(), 0, 0]
    for change, message in (
        ({"strategy": "Staged"}, "expected schema 1 of Ladder"),
        ({"stages": ["near"]}, "stages: expected"),
        ({"rungs": [3]}, "rungs: expected one from 0 to 2"),
        ({"totals": {}}, "totals: expected a key 'ended'"),
        ({"total": "many"}, "total: expected int"),
    ):
        with pytest.raises(StateError, match=message):
            again.load_state_dict({**state, **change})
    assert again.rungs.tolist() == [*made.rungs.tolist(), 0, 0]


# ---- through the coordinator


@pytest.mark.asyncio
async def test_moves_of_one_hand_out_are_one_directive_in_the_journal(tmp_path: Path) -> None:
    channel, path = Channel(4), tmp_path / "journal.jsonl"
    coordinator = Coordinator(Ladder(NAMES), channel, journal=path)
    task = asyncio.create_task(coordinator.run())
    channel.hand_out([episode(env_id, "near", env_id != 2, env_id=env_id) for env_id in range(4)])
    await coordinator.settled()
    assert channel.version == 2
    assert channel.newest.rungs is not None
    assert channel.newest.rungs.tolist() == [1, 1, 0, 1]
    coordinator.set_stage("far", by="operator")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == [
        "run",
        "batch",
        "published",
        "command",
        "decision",
        "published",
    ]
    assert lines[0]["config"] == {"strategy": "Ladder", "stages": list(NAMES), "start": 0, "seed": 0}


@pytest.mark.asyncio
@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
async def test_every_env_plays_its_own_rung_on_real_workers(autoreset: AutoresetMode) -> None:
    """Each env knows its index in the vec env, whichever worker it is in."""
    stages = [f"grade {i}" for i in range(6)]
    levels = LevelSet([Level(name, name, {}) for name in stages])
    async with AsyncVecEnv(
        lambda: CurriculumEnv(ActionEnv(), levels), 6, num_workers=3, autoreset=autoreset
    ) as envs:
        strategy = Ladder(levels)
        coordinator = Coordinator(strategy, envs)
        task = asyncio.create_task(coordinator.run())
        await envs.reset(seed=1)
        assert await envs.get_attr("index") == (0, 1, 2, 3, 4, 5)
        actions = np.array([0, 0, 0, 1, 1, 1])  # envs 3, 4 and 5 succeed
        for _ in range(9):  # under NEXT_STEP the ninth ends an episode
            await envs.step(actions)
            await coordinator.settled()
        assert strategy.rungs[:3].tolist() == [0, 0, 0]
        assert (strategy.rungs[3:] >= 2).all()
        if autoreset is AutoresetMode.NEXT_STEP:
            await envs.step(actions)  # and this begins the next, on the new rung
            tasks = await envs.get_attr("task")
            assert [task["stage"] for task in tasks] == [stages[rung] for rung in strategy.rungs]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_the_example_climbs(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = await climb(turns=100, num_envs=8)
    assert strategy.mean_rung > 1
    assert "mean rung" in capsys.readouterr().out


def test_the_toy_is_walked_by_both_and_fastest_by_no_uniform_draw() -> None:
    walked = {
        name: terrain.episodes_until_walked(make(), 1, 16, 0) for name, make in terrain.STRATEGIES.items()
    }
    assert max(walked["Staged"], walked["Ladder"]) < walked["DomainRandomisation"] < terrain.MOST
