"""A level per env: up after a success, down after a failure, over real worker processes.

`python examples/ladder.py` walks up a ladder of ten terrains with a walker that gets better with every episode, and
prints where the envs are.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import gymnasium as gym
import numpy as np

import aio_vecenv as av
from curriculum import Coordinator, CurriculumEnv, Ladder, Level, LevelSet

LEVELS = LevelSet([Level(f"grade {i}", f"grade {i}", {"grade": i}) for i in range(10)])


class Terrain(gym.Env[Any, Any]):
    """One step an episode: who has skill s (the action) crosses grade g with probability 1 / (1 + exp(2(g - s)))."""

    observation_space = gym.spaces.Discrete(10)
    action_space = gym.spaces.Box(0, 100, (), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.grade = (options or {})["level"]["grade"]
        return self.grade, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        across = self.np_random.random() < 1 / (1 + math.exp(2 * (self.grade - float(action))))
        return self.grade, float(across), True, False, {"is_success": across}


def make_env() -> CurriculumEnv:
    return CurriculumEnv(Terrain(), LEVELS)


async def climb(turns: int = 400, num_envs: int = 32) -> Ladder:
    ladder = Ladder(LEVELS)
    async with av.AsyncVecEnv(make_env, num_envs, num_workers=2) as envs:
        coordinator = Coordinator(ladder, envs)
        deciding = asyncio.create_task(coordinator.run())
        await envs.reset(seed=0)
        for turn in range(turns):
            skill = 10 * turn / turns
            await envs.step(np.full(num_envs, skill, np.float32))
            await coordinator.settled()  # every env's next episode is on its new rung
            if turn % 50 == 0:
                print(f"turn {turn:>4}, skill {skill:4.1f}: {coordinator.explain()}")
        deciding.cancel()
        await asyncio.gather(deciding, return_exceptions=True)
    return ladder


if __name__ == "__main__":
    av.run(climb())
