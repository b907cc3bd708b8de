"""Atari's Pong as everybody preprocesses it, in the worker: Gymnasium's wrappers (extra `atari`). Hours."""
# data: a plan, an env, hyperparameters

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from trainers.config import ConfigError, NetworkConfig, PPOConfig, TrainConfig
from trainers.presets import Job, Preset

__all__ = ["PRESET"]


def _job() -> Job:
    import curriculum as cu

    if any(find_spec(name) is None for name in ("ale_py", "cv2")):
        raise ConfigError("the preset atari needs the extra: pip install 'aio-vecenv[atari]'")
    plan = cu.StagePlan([cu.Stage("pong", measure="return", threshold=18.0)])
    levels = cu.LevelSet([cu.Level(id="pong", stage="pong")])
    return Job(plan, _factory(levels), success=lambda episode: bool(episode.episode_return > 0))


def _factory(levels: Any) -> Callable[[], Any]:
    def make_env() -> Any:  # travels by value: what it needs it imports where it runs
        import ale_py
        import gymnasium as gym
        from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

        import curriculum as cu

        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # else a banner per env
        gym.register_envs(ale_py)
        env = gym.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
        # 30 no-ops at most, 4 frames a step, grey, 84×84; four of them: (4, 84, 84) bytes
        stacked = FrameStackObservation(AtariPreprocessing(env, noop_max=30), 4)
        return cu.CurriculumEnv(stacked, levels, load=lambda _env, _level: None)

    return make_env


PRESET = Preset(
    name="atari",
    summary="Atari's Pong, four frames of 84×84, played against its own computer (hours; extra `atari`)",
    config=TrainConfig(
        preset="atari",
        num_envs=8,
        total_steps=10_000_000,
        ppo=PPOConfig(  # Huang et al. 2022, table of the details for Atari
            num_steps=128,
            lr=2.5e-4,
            epochs=4,
            minibatches=4,
            gamma=0.99,
            gae_lambda=0.95,
            clip=0.1,
            clip_value=0.1,
            entropy=0.01,
            value=1.0,
            normalise_rewards=False,
        ),
        network=NetworkConfig(hidden=(), shared=True, normalise_obs=False),
    ),
    job=_job,
)
