"""MiniGrid DoorKey, find the key, open the door, reach the goal: 5×5 → 6×6 → 8×8 (extra `minigrid`)."""
# data: a plan, an env, hyperparameters

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from trainers.config import ConfigError, NetworkConfig, PPOConfig, TrainConfig
from trainers.presets import Job, Preset

__all__ = ["PRESET", "job_of"]

SIZES = (5, 6, 8)


def job_of(sizes: tuple[int, ...]) -> Job:
    """Grids of these sizes, one stage each."""
    import curriculum as cu

    if find_spec("minigrid") is None:
        raise ConfigError("the preset doorkey needs the extra: pip install 'aio-vecenv[minigrid]'")
    names = {size: f"{size}x{size}" for size in sizes}
    plan = cu.StagePlan(
        [
            cu.Stage(name, threshold=0.80 if size < 8 else 0.90, min_episodes=100)
            for size, name in names.items()
        ]
    )
    levels = cu.LevelSet(
        [
            cu.Level(id=name, stage=name, generator="doorkey", data={"size": size})
            for size, name in names.items()
        ]
    )
    return Job(plan, _factory(levels), success=lambda episode: bool(episode.episode_return > 0))


def _factory(levels: Any) -> Callable[[], Any]:
    def make_env() -> Any:  # travels by value: what it needs it imports where it runs
        import gymnasium as gym
        import minigrid  # noqa: F401 - registers its envs

        import curriculum as cu

        def load_size(env: Any, level: Any) -> None:
            grid = env.unwrapped
            grid.width = grid.height = level.data["size"]
            grid.max_steps = 10 * level.data["size"] ** 2  # as the registered envs have it

        env = gym.make("MiniGrid-DoorKey-8x8-v0", disable_env_checker=True)
        seen = gym.wrappers.FilterObservation(env, ["image", "direction"])  # the mission is always the same
        return cu.CurriculumEnv(seen, levels, load=load_size)

    return make_env


PRESET = Preset(
    name="doorkey",
    summary="MiniGrid DoorKey, 5×5 → 6×6 → 8×8 (minutes; extra `minigrid`)",
    config=TrainConfig(
        preset="doorkey",
        num_envs=32,
        total_steps=2_000_000,
        solve_rate=0.9,
        solve_window=50,
        ppo=PPOConfig(
            num_steps=128,
            lr=5e-4,
            anneal_lr=False,
            epochs=4,
            minibatches=8,
            entropy=0.01,
            value=0.5,
            normalise_rewards=False,
        ),
        network=NetworkConfig(hidden=(64,), activation="tanh", normalise_obs=False),
    ),
    job=lambda: job_of(SIZES),
)
