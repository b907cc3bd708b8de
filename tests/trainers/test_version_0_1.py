"""Runs that version 0.1 left behind: what they meant, they still mean."""
# resource: run folders under tests/trainers/data, written by version 0.1; inline envs

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as S

import aio_vecenv as av
import curriculum as cu
from trainers import Job, Summary, load_policy, training
from trainers.record.folder import RunFolder

DATA = Path(__file__).parent / "data" / "v0.1"
SPACES: dict[str, tuple[gym.Space[Any], gym.Space[Any]]] = {
    "vector": (S.Box(-5, 5, (3,), np.float64), S.Discrete(3)),
    "image": (S.Box(0, 255, (4, 4, 5), np.uint8), S.Discrete(3)),  # read as 4 channels of 4×5
    "dict": (
        S.Dict(
            {
                "at": S.Discrete(4, start=1),
                "inner": S.Dict({"count": S.Box(0, 9, (2,), np.int64)}),
                "x": S.Box(-1, 1, (2,), np.float32),
                "on": S.MultiBinary(3),
            }
        ),
        S.MultiDiscrete([2, 3]),
    ),
    "box": (
        S.Box(-1, 1, (2,), np.float32),
        S.Box(np.array([30, -np.inf], np.float32), np.array([1017, 2], np.float32)),
    ),
}


class Plays(gym.Env[Any, Any]):
    """Random observations, the sum of the action as reward, five steps."""

    def __init__(self, name: str) -> None:
        self.observation_space, self.action_space = copy.deepcopy(SPACES[name])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = float(np.sum(np.asarray(action, np.float64))) / 100
        return self.observation_space.sample(), reward, False, self.t >= 5, {}


def job(name: str) -> Job:
    levels = cu.LevelSet([cu.Level(id="all", stage="all", data={})])

    def make() -> Any:
        return cu.CurriculumEnv(Plays(name), levels, load=lambda env, level: None)

    return Job(cu.StagePlan([cu.Stage("all")]), make)


@pytest.mark.parametrize("name", SPACES)
def test_a_policy_of_0_1_acts_as_it_did(name: str) -> None:
    """Scaled actions, channels, integers and pictures: none of today's ways of reading touches it."""
    played = json.loads((DATA / name / "played.json").read_text("utf-8"))
    space, _ = SPACES[name]
    space.seed(7)
    rows: Any = gym.vector.utils.create_empty_array(space, 4)
    rows = gym.vector.utils.concatenate(space, [space.sample() for _ in range(4)], rows)
    greedy = load_policy(DATA / name, Plays(name))
    np.testing.assert_allclose(greedy.act_batch(rows), played["greedy"], rtol=1e-5)
    sampled = load_policy(DATA / name, Plays(name), greedy=False, seed=3)
    np.testing.assert_allclose(sampled.act_batch(rows), played["sampled"], rtol=1e-4)


@pytest.mark.parametrize("name", SPACES)
def test_a_run_of_0_1_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    """New defaults change no resumed run: the next update has the figures that 0.1 gave it. What the run was trained
    with stands in its config from then on."""
    run = tmp_path / name
    shutil.copytree(DATA / name, run)
    for log in ("metrics.jsonl", "journal.jsonl"):
        (run / log).touch()
    config = replace(RunFolder.open(run).config(), total_steps=96)

    async def go_on() -> Summary:
        async with training(config, resume=run, job=job(name)) as resumed:
            return await resumed.wait()

    assert av.run(go_on()).env_steps == 96
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    for key, value in json.loads((run / "played.json").read_text("utf-8"))["resumed"].items():
        assert last[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key
    saved = RunFolder.open(run).config()
    assert (saved.network.encoders, saved.network.scale_actions, saved.ppo.normalise_rewards) == (
        1,
        False,
        False,
    )
