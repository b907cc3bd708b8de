"""Thousands of generated mazes, short → medium → long; a hundred of each are held out to test on. Minutes."""
# data: a plan, an env, hyperparameters

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config import NetworkConfig, PPOConfig, TrainConfig
from trainers.presets import Job, Preset
from trainers.presets.maze_levels import HELD_OUT, LENGTHS, PER_STAGE, SIZE

__all__ = ["PRESET", "held_out"]

FILE = Path(__file__).with_name("mazes.npz")  # by `python -m trainers.presets.maze_levels --seed 0 --out …`
VIEW = 2  # cells that the agent sees in each direction
LIMIT = 80  # steps of an episode


def _job() -> Job:
    return _job_of(0, PER_STAGE - HELD_OUT)


def held_out() -> Job:
    """The same game on the levels that training never draws, for `trainers.evaluate(run, job=held_out())`."""
    return _job_of(PER_STAGE - HELD_OUT, HELD_OUT)


def _job_of(first: int, count: int) -> Job:
    import curriculum as cu

    plan = cu.StagePlan([cu.Stage(name, threshold=0.80, min_episodes=200) for name in LENGTHS])
    with np.load(FILE, allow_pickle=False) as file:
        columns = [file[name].reshape(len(LENGTHS), PER_STAGE, -1) for name in ("walls", "start", "goal")]
    chosen = {
        name: [column[k, first : first + count] for column in columns] for k, name in enumerate(LENGTHS)
    }
    cells = SIZE * SIZE

    def level(stage: str, i: int) -> dict[str, Any]:
        import numpy as np

        walls, start, goal = (column[i] for column in chosen[stage])
        return {
            "walls": np.unpackbits(walls, count=cells).tolist(),
            "start": start.tolist(),
            "goal": goal.tolist(),
        }

    levels = cu.LevelSet.from_function(level, list(LENGTHS), count=count)
    return Job(plan, _factory(levels, SIZE, VIEW, LIMIT))


def _factory(levels: Any, size: int, view: int, limit: int) -> Callable[[], Any]:
    def make_env() -> Any:  # travels by value: what it needs it imports where it runs
        import gymnasium as gym
        import numpy as np

        import curriculum as cu

        width, row = 2 * view + 1, size + 2 * view
        window = [di * row + dj for di in range(-view, view + 1) for dj in range(-view, view + 1)]
        moves = (-row, row, -1, 1)

        class Maze(gym.Env[Any, Any]):
            """Reach the goal. One sees the walls around, where one has been, and in which direction the goal lies.

            Observation, `seen`: 25 cells, 1 where a wall is; 25 cells, how often one has been there, at most 4 times,
            / 4; rows and columns to the goal, / size. Steps into walls are masked. Reward at the goal:
            1 - 0.9 · steps / limit.
            """

            observation_space = gym.spaces.Dict(
                seen=gym.spaces.Box(-1, 1, (2 * width * width + 2,), np.float32),
                action_mask=gym.spaces.MultiBinary(4),
            )
            action_space = gym.spaces.Discrete(4)  # up, down, left, right

            def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
                super().reset(seed=seed)
                level = options["level"]
                inner = np.reshape(level["walls"], (size, size))
                self._walls = np.pad(inner, view, constant_values=1).ravel().tolist()
                self._at, self._goal = (
                    (i + view) * row + j + view for i, j in (level["start"], level["goal"])
                )
                self._been = [0.0] * len(self._walls)
                self._steps = 0
                return self._seen(), {}

            def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
                self._steps += 1
                ahead = self._at + moves[action]
                if not self._walls[ahead]:
                    self._at = ahead
                won = self._at == self._goal
                reward = 1 - 0.9 * self._steps / limit if won else 0.0
                return self._seen(), reward, won, not won and self._steps >= limit, {"is_success": won}

            def _seen(self) -> Any:
                at, walls, been = self._at, self._walls, self._been
                been[at] = min(been[at] + 0.25, 1.0)
                down, right = self._goal // row - at // row, self._goal % row - at % row
                cells = [at + offset for offset in window]
                values = [*(walls[cell] for cell in cells), *(been[cell] for cell in cells)]
                seen = np.array([*values, down / size, right / size], np.float32)
                return {
                    "seen": seen,
                    "action_mask": np.array([not walls[at + move] for move in moves], np.int8),
                }

        return cu.CurriculumEnv(Maze(), levels)

    return make_env


PRESET = Preset(
    name="mazes",
    summary="4,200 generated mazes, short → medium → long, and 300 to test on (minutes)",
    config=TrainConfig(
        preset="mazes",
        num_envs=32,
        total_steps=400_000,
        ppo=PPOConfig(
            num_steps=32,
            lr=1e-3,
            anneal_lr=True,
            epochs=4,
            minibatches=4,
            gamma=0.97,
            gae_lambda=0.95,
            entropy=0.01,
            value=0.5,
            normalise_rewards=False,
        ),
        network=NetworkConfig(hidden=(64, 64), activation="tanh", normalise_obs=False),
    ),
    job=_job,
)
