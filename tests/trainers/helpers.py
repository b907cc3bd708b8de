"""Small envs and jobs for the trainer's tests."""
# pure: envs that compute; importable by workers

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import curriculum as cu
from trainers.config import NetworkConfig, PPOConfig, TrainConfig
from trainers.presets import Job


class Corridor(gym.Env[Any, Any]):
    """Walk right `goal` cells (the level says how many) within 12 steps. Observation: where one stands, and whether
    the step was even; success: the goal."""

    def __init__(self, kind: str = "vector", masked: bool = False, delay_s: float = 0.0) -> None:
        self.kind, self.masked, self.delay_s = kind, masked, delay_s
        vector = gym.spaces.Box(0, 1, (3,), np.float32)
        image = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
        spaces: dict[str, gym.Space[Any]] = {
            "vector": vector,
            "discrete": gym.spaces.Discrete(13, start=-1),
            "image": image,
            "dict": gym.spaces.Dict({"image": image, "vector": vector, "at": gym.spaces.Discrete(13)}),
            "dict_mask": gym.spaces.Dict({"vector": vector, "action_mask": gym.spaces.MultiBinary(3)}),
        }
        self.observation_space = spaces[kind]
        self.action_space = gym.spaces.Discrete(3)  # left, right, forbidden where masked
        self.at = self.t = 0
        self.goal = 1

    def _obs(self) -> Any:
        vector = np.array([self.at / 12, self.goal / 12, self.t % 2], np.float32)
        image = np.zeros((7, 7, 3), np.uint8)
        image[min(self.at, 6), :, 0] = 10
        return {
            "vector": vector,
            "discrete": self.at - 1,
            "image": image,
            "dict": {"image": image, "vector": vector, "at": self.at},
            "dict_mask": {"vector": vector, "action_mask": np.array([1, 1, 0], np.int8)},
        }[self.kind]

    def _info(self) -> dict[str, Any]:
        return {"action_mask": np.array([1, 1, 0], np.int8)} if self.masked else {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal = ((options or {}).get("level") or {"goal": 1})["goal"]
        self.at = self.t = 0
        return self._obs(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.masked or self.kind == "dict_mask":
            assert action != 2, "a masked action was taken"
        if self.delay_s:
            time.sleep(self.delay_s)
        self.t += 1
        self.at = min(max(self.at + (1 if action == 1 else -1), 0), 11)
        won = self.at >= self.goal
        info = {**self._info(), "is_success": won}
        return self._obs(), float(won), won, self.t >= 12 and not won, info


PLAN = cu.StagePlan(
    [cu.Stage("one", threshold=0.6, min_episodes=20), cu.Stage("three", threshold=0.6, min_episodes=20)]
)
LEVELS = [
    cu.Level(id="one", stage="one", data={"goal": 1}),
    cu.Level(id="three", stage="three", data={"goal": 3}),
]


def make_corridor(kind: str = "vector", masked: bool = False, delay_s: float = 0.0) -> Callable[[], Any]:
    """A factory, by value."""
    levels = cu.LevelSet(LEVELS)

    def make() -> Any:
        return cu.CurriculumEnv(Corridor(kind, masked, delay_s), levels)

    return make


def corridor_job(kind: str = "vector", masked: bool = False, delay_s: float = 0.0) -> Job:
    return Job(PLAN, make_corridor(kind, masked, delay_s))


def tiny(runs: Path, **changes: Any) -> TrainConfig:
    """A run of a second at most: inline, deterministic, 4 envs × 16 steps."""
    config = TrainConfig(
        env="corridor",
        num_envs=4,
        num_workers=1,
        backend="inline",
        deterministic=True,
        total_steps=4 * 16 * 6,
        checkpoint_every=2,
        runs=runs,
        ppo=PPOConfig(num_steps=16, lr=3e-3, epochs=2, minibatches=2),
        network=NetworkConfig(hidden=(16,)),
    )
    return replace(config, **changes)
