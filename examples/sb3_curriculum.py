"""Stable-Baselines3's PPO with a curriculum beside it. `python examples/sb3_curriculum.py`

A corridor with a door at its end: near, middle, far. Far alone is hardly ever solved by chance; the curriculum moves on
when a stage is mastered, and every worker hears of it through the broadcast channel. Two lines make the difference to a
plain SB3 script: `VecEnv` in the place of `SubprocVecEnv`, and `CurriculumVecEnvWrapper` around it.
"""
# edge: argv and prints

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from aio_vecenv.adapters.sb3 import VecEnv
from curriculum import CurriculumEnv, Level, LevelSet, Stage, Staged, StagePlan
from curriculum.adapters import CurriculumVecEnvWrapper

LENGTHS = {"near": (2, 3), "middle": (5, 6), "far": (9, 10)}

PLAN = StagePlan([Stage(name, threshold=0.7, min_episodes=50) for name in LENGTHS])
LEVELS = LevelSet(
    [Level(stage, f"{stage}-{n}", data=n) for stage, lengths in LENGTHS.items() for n in lengths]
)


class Corridor(gym.Env[Any, Any]):
    """Walk to the door. One wrong step, and the walk is over; `length` more steps than needed are allowed."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 1, (24,), np.float32)  # one-hot: a sign at each place
        self.action_space = gym.spaces.Discrete(3)  # the right one depends on the sign
        self.length, self.place = 2, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = int((options or {}).get("level", 2))
        self.place = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        right = int(action) == (self.place * 7) % 3
        self.place += right
        there = self.place == self.length
        return self._obs(), float(there), there or not right, False, {"is_success": there}

    def _obs(self) -> Any:
        obs = np.zeros(24, np.float32)
        obs[self.place] = 1.0
        return obs


def make_env() -> gym.Env[Any, Any]:
    """One env of the curriculum; runs in the workers."""
    return CurriculumEnv(Corridor(), LEVELS)


def train(steps: int, *, num_envs: int = 16, seed: int = 0) -> CurriculumVecEnvWrapper:
    """Train for so many env steps; the wrapper, closed, with what its coordinator has decided."""
    venv = CurriculumVecEnvWrapper(VecMonitor(VecEnv(make_env, num_envs)), Staged(PLAN))  # type: ignore[arg-type]
    venv.seed(seed)
    model = PPO(
        "MlpPolicy", venv, n_steps=64, batch_size=256, learning_rate=2e-3, ent_coef=0.01, seed=seed, device="cpu"  # type: ignore[arg-type]
    )  # fmt: skip
    model.learn(steps)
    venv.close()
    return venv


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trained = train(args.steps, seed=args.seed)
    for decision in trained.coordinator.decisions:
        print(decision)
    for row in trained.progress():
        print(row)
    print(f"stage {trained.stage}, solved: {trained.coordinator.solved}")
