"""A strategy of one's own, in four methods, on real worker processes. Run it: `python examples/custom_strategy.py`.

It practises every stage in proportion to how often it fails there: no order of stages, no thresholds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

import aio_vecenv as av
from curriculum import Coordinator, CurriculumEnv, Directive, Level, LevelSet, is_success

LEVELS = LevelSet([Level(stage, f"{stage}-{i}", {"i": i}) for stage in ("easy", "hard") for i in range(4)])


class MostFailed:
    """Weighs each level by the failure rate of its stage; pure: episodes in, a directive out."""

    def __init__(self, levels: LevelSet) -> None:
        self.levels = levels
        self.failed = dict.fromkeys(levels.stages, 1.0)
        self.played = dict.fromkeys(levels.stages, 2.0)
        self._newest: Directive | None = None

    def observe(self, episode: Any) -> None:
        if episode.outcome == "aborted":  # says nothing: neither a success nor a failure
            return
        stage = episode.task["stage"]
        self.played[stage] += 1
        self.failed[stage] += not is_success(episode)
        if sum(self.played.values()) % 10 == 0:  # new weights every ten episodes
            self._newest = None

    def directive(self) -> Directive:
        if self._newest is None:  # the same object as long as nothing changed: then nothing is published
            rate = {stage: self.failed[stage] / self.played[stage] for stage in self.levels.stages}
            weights = [rate[stage] for stage in self.levels.stages for _ in self.levels.of_stage(stage)]
            self._newest = Directive(self.levels.stages, None, weights=np.array(weights, np.float32))
        return self._newest

    def state_dict(self) -> dict[str, Any]:
        return {"schema": 1, "failed": dict(self.failed), "played": dict(self.played)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.failed, self.played = dict(state["failed"]), dict(state["played"])
        self._newest = None


class Coin(gym.Env[Any, Any]):
    """One step; an easy level always succeeds, a hard one in one of four."""

    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.chance = (options or {})["chance"]
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        good = bool(self.np_random.random() < self.chance)
        return 0, float(good), True, False, {"is_success": good}


class PutChance(gym.Wrapper[Any, Any, Any, Any]):
    """What `load` would do in a real env: turns the level into what the env needs."""

    chance = 1.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={"chance": self.chance})


def load(env: Any, level: Level) -> None:
    env.chance = 1.0 if level.stage == "easy" else 0.25


def make_env() -> CurriculumEnv:
    return CurriculumEnv(PutChance(Coin()), LEVELS, load=load)


async def main() -> None:
    strategy = MostFailed(LEVELS)
    async with av.AsyncVecEnv(make_env, num_envs=8, num_workers=2) as envs:
        coordinator = Coordinator(strategy, envs)
        running = asyncio.create_task(coordinator.run())
        await envs.reset(seed=7)
        for _ in range(400):
            await envs.step(np.zeros(8, np.int64))
            await coordinator.settled()
        for stage in LEVELS.stages:
            print(
                f"{stage}: {strategy.played[stage] - 2:.0f} episodes, {strategy.failed[stage] - 1:.0f} failed"
            )
        print(f"{coordinator.published} directives published")
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


if __name__ == "__main__":
    av.run(main())
