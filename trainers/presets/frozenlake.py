"""FrozenLake 8×8 whose goal moves away: near → middle → far. The default preset; solved in seconds."""
# data: a plan, an env, hyperparameters

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainers.config import NetworkConfig, PPOConfig, TrainConfig
from trainers.presets import Job, Preset

__all__ = ["PRESET"]

MAPS = Path(__file__).with_name("frozenlake_maps.json")  # with their source


def _job() -> Job:
    import curriculum as cu

    data = json.loads(MAPS.read_text(encoding="utf-8"))
    maps: dict[str, list[str]] = {stage["name"]: stage["map"] for stage in data["stages"]}
    plan = cu.StagePlan(
        [
            # early: a policy that is sure of the middle goal finds what lies beyond it less often
            cu.Stage("near", threshold=0.50, min_episodes=30),
            cu.Stage("middle", threshold=0.50, min_episodes=30),
            cu.Stage("far", threshold=0.70, min_episodes=80),
        ]
    )
    levels = cu.LevelSet(
        [cu.Level(id=name, stage=name, generator="fixed", data={"map": rows}) for name, rows in maps.items()]
    )
    return Job(plan, _factory(levels, data["env"]), success=lambda episode: bool(episode.episode_return > 0))


def _factory(levels: Any, settings: dict[str, Any]) -> Callable[[], Any]:
    def make_env() -> Any:  # travels by value: what it needs it imports where it runs
        import gymnasium as gym
        from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

        import curriculum as cu

        tables: dict[str, FrozenLakeEnv] = {}  # transitions are built once per map, not at every reset

        def load_map(env: Any, level: Any) -> None:
            table = tables.get(level.id)
            if table is None:
                table = tables[level.id] = FrozenLakeEnv(desc=level.data["map"], is_slippery=False)
            lake = env.unwrapped
            lake.desc, lake.P, lake.initial_state_distrib = table.desc, table.P, table.initial_state_distrib

        env = gym.make(
            settings["id"],
            map_name="8x8",
            is_slippery=settings["is_slippery"],
            max_episode_steps=settings["max_episode_steps"],
            disable_env_checker=True,
        )
        return cu.CurriculumEnv(env, levels, load=load_map)

    return make_env


PRESET = Preset(
    name="frozenlake",
    summary="FrozenLake 8×8, 16 steps, not slippery; the goal moves from near to far (seconds)",
    config=TrainConfig(
        preset="frozenlake",
        num_envs=32,
        collect="lockstep",  # a decision holds from the very next step on
        total_steps=200_000,
        solve_rate=1.0,
        solve_window=50,
        ppo=PPOConfig(
            num_steps=32,
            lr=1e-3,
            anneal_lr=False,
            epochs=4,
            minibatches=4,
            gamma=0.99,
            gae_lambda=0.95,
            entropy=0.01,
            value=0.5,
            normalise_rewards=False,
            time_limit="terminal",  # 16 steps are the task; with bootstrapping it is not learned
        ),
        network=NetworkConfig(hidden=(64, 64), activation="tanh", shared=True, normalise_obs=False),
    ),
    job=_job,
)
