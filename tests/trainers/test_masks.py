"""Action masks: where they come from, and masks that allow nothing."""
# resource: small runs, inline and in a worker

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as S

import curriculum as cu
from tests.trainers.helpers import tiny
from trainers import ConfigError, Job, load_policy, training
from trainers.evaluate import evaluate

pytestmark = pytest.mark.alternate_loops


class Turns(gym.Env[Any, Any]):
    """Six steps; which of the actions is allowed changes with every step. Illegal ones are an error. At the end nothing
    is allowed."""

    observation_space = S.Box(0, 6, (1,), np.float32)

    def __init__(self, actions: Any, how: str, stuck_at: int | None = None) -> None:
        self.action_space, self.how, self.stuck_at = actions, how, stuck_at
        self.sizes = [int(actions.n)] if isinstance(actions, S.Discrete) else actions.nvec.tolist()
        self.asked = 0

    def masks(self) -> Any:
        over = self.t >= 6 or self.t == self.stuck_at
        parts = [np.eye(size, dtype=bool)[self.t % size] for size in self.sizes]
        if over:
            parts[-1][:] = False  # one part is enough
        return np.concatenate(parts)

    def action_masks(self) -> Any:
        assert self.how == "method", "an env that says it in its infos was asked"
        assert self.t < 6, "asked at the end, when no action follows"
        return self.masks().tolist()

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.masks()} if self.how == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), self.info()

    def step(self, action: Any) -> Any:
        expected = [self.t % size for size in self.sizes]
        assert np.reshape(action, -1).tolist() == expected, "a masked action was taken"
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t >= 6, False, {**self.info(), "is_success": True}


PLAN = cu.StagePlan([cu.Stage("all")])


def job(actions: Any, how: str, stuck_at: int | None = None, wrapped: bool = False) -> Job:
    levels = cu.LevelSet([cu.Level(id="all", stage="all", data={})])

    def make() -> Any:
        env: Any = Turns(actions, how, stuck_at)
        if wrapped:
            env = gym.wrappers.TimeLimit(gym.wrappers.TransformReward(env, lambda reward: reward), 100)
        env = cu.CurriculumEnv(env, levels, load=lambda env, level: None)
        return gym.wrappers.TransformReward(env, lambda reward: reward) if wrapped else env

    return Job(PLAN, make)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("how", ["info", "method"])
@pytest.mark.parametrize("actions", [S.Discrete(3), S.MultiDiscrete([2, 3])], ids=str)
@pytest.mark.asyncio
async def test_no_masked_action_is_ever_taken(tmp_path: Path, actions: Any, how: str, wrapped: bool) -> None:
    """From infos, or by the method `action_masks` of an env behind wrappers: in training and in eval, and all may be
    forbidden once an episode has ended."""
    config = replace(tiny(tmp_path, name="run"), total_steps=128, on_env_error="raise")
    asked = job(actions, how, wrapped=wrapped)
    async with training(config, job=asked) as run:
        await run.wait()
        assert run._collector.learner.rollout.masks is not None
    (result,) = await evaluate(tmp_path / "run", episodes=8, job=asked)
    assert result.mean_return == 6


@pytest.mark.asyncio
async def test_masks_are_asked_for_in_the_worker(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path, name="run"), total_steps=64, backend="process", on_env_error="raise")
    async with training(config, job=job(S.Discrete(3), "method", wrapped=True)) as run:
        await run.wait()


@pytest.mark.parametrize("stuck_at", [0, 4])
@pytest.mark.parametrize("actions", [S.Discrete(3), S.MultiDiscrete([2, 3])], ids=str)
@pytest.mark.asyncio
async def test_a_mask_that_allows_nothing_is_an_error_that_names_env_and_step(
    tmp_path: Path, actions: Any, stuck_at: int
) -> None:
    async def go() -> None:
        async with training(tiny(tmp_path), job=job(actions, "info", stuck_at)) as run:
            await run.wait()

    with pytest.raises(
        ConfigError, match=rf"^env 0, after {stuck_at} steps of its episode: the action mask allows no"
    ):
        await go()


@pytest.mark.asyncio
async def test_a_loaded_policy_refuses_such_a_mask(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path, name="run"), total_steps=64)
    async with training(config, job=job(S.Discrete(3), "info")) as run:
        await run.wait()
    policy = load_policy(tmp_path / "run", Turns(S.Discrete(3), "info"))
    obs = np.zeros(1, np.float32)
    assert policy.act(obs, {"action_mask": [False, True, False]}) == 1
    with pytest.raises(ConfigError, match="the action mask allows no action"):
        policy.act(obs, {"action_mask": [False] * 3})
