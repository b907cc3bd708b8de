"""Gymnasium's Pendulum-v1: Box actions, rewards normalised. One stage; a minute."""
# data: a plan, an env, hyperparameters

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainers.config import NetworkConfig, PPOConfig, TrainConfig
from trainers.presets import Job, Preset

__all__ = ["PRESET"]

SWUNG_UP = -200.0  # a return that nothing but swinging up and staying there gives


def _job() -> Job:
    import curriculum as cu

    plan = cu.StagePlan([cu.Stage("swing up", threshold=0.9, min_episodes=50)])
    levels = cu.LevelSet([cu.Level(id="pendulum", stage="swing up")])
    return Job(plan, _factory(levels), success=lambda episode: bool(episode.episode_return >= SWUNG_UP))


def _factory(levels: Any) -> Callable[[], Any]:
    def make_env() -> Any:  # travels by value: what it needs it imports where it runs
        import gymnasium as gym

        import curriculum as cu

        env = gym.make("Pendulum-v1", disable_env_checker=True)
        return cu.CurriculumEnv(env, levels, load=lambda _env, _level: None)

    return make_env


PRESET = Preset(
    name="pendulum",
    summary="Gymnasium's Pendulum-v1, swung up and held; Box actions (a minute)",
    config=TrainConfig(
        preset="pendulum",
        num_envs=4,
        total_steps=100_000,
        # Stable-Baselines3's Zoo for Pendulum-v1, but for its gSDE and with rewards normalised
        ppo=PPOConfig(
            num_steps=1024,
            lr=1e-3,
            anneal_lr=False,
            epochs=10,
            minibatches=64,
            gamma=0.9,
            gae_lambda=0.95,
            clip=0.2,
            entropy=0.0,
            value=1.0,
            normalise_rewards=True,
        ),
        network=NetworkConfig(hidden=(64, 64), activation="tanh", normalise_obs=False),
    ),
    job=_job,
)
