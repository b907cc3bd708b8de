"""The settings that nobody named, chosen by the env's spaces; and in words, what was chosen."""
# pure: a config and two spaces in, a config out

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import gymnasium as gym

from trainers.config import TrainConfig
from trainers.learn.encoders import describe
from trainers.learn.networks import has_image, leaf_spaces

__all__ = ["for_spaces", "in_words"]

# rows of an update and of a minibatch, as in Schulman et al. 2017 for MuJoCo
BOX_ROWS, BOX_MINIBATCH = 2048, 64


def for_spaces(config: TrainConfig, obs_space: gym.Space[Any], action_space: gym.Space[Any]) -> TrainConfig:
    """`config` with every setting that is None because it depends on the spaces. What was named stays."""
    return _filled(config, _defaults(config, obs_space, action_space))


def in_words(config: TrainConfig, obs_space: gym.Space[Any], action_space: gym.Space[Any]) -> tuple[str, ...]:
    """What `for_spaces` chooses, and how each observation is read: a line each, to be said when a run starts."""
    chosen = for_spaces(config, obs_space, action_space)
    parts = []
    for table in ("ppo", "network"):
        for item in dataclasses.fields(getattr(config, table)):
            before, after = (getattr(getattr(it, table), item.name) for it in (config, chosen))
            if before != after:
                parts.append(
                    f"{table}.{item.name} {after:g}"
                    if isinstance(after, float)
                    else f"{table}.{item.name} {after}"
                )
    leaves = [
        (f"{path}: " if path else "") + describe(leaf, chosen.network, path)
        for path, leaf in leaf_spaces(obs_space).items()
    ]
    own = config.network.factory
    lines = [f"observations: {'; '.join(leaves)}" if own is None else f"network: {own}"]
    if parts:
        lines.append(f"defaults for {_kind(config, obs_space, action_space)}: {', '.join(parts)}")
    return tuple(lines)


def _kind(config: TrainConfig, obs_space: gym.Space[Any], action_space: gym.Space[Any]) -> str:
    if isinstance(action_space, gym.spaces.Box):
        return "Box actions"
    return "pictures" if has_image(obs_space, config.network) else "discrete actions"


def _defaults(
    config: TrainConfig, obs_space: gym.Space[Any], action_space: gym.Space[Any]
) -> dict[str, dict[str, Any]]:
    """Settings by table. One row per kind; `docs/training.md` has the same table."""
    envs, named = config.num_envs, config.ppo.num_steps
    match _kind(config, obs_space, action_space):
        case "Box actions":  # Schulman et al. 2017, table 3, and the normalisation of Huang et al. 2022
            num_steps = named or max(16, -(-BOX_ROWS // envs))
            return {
                "ppo": {
                    "num_steps": num_steps, "lr": 3e-4, "epochs": 10, "entropy": 0.0, "value": 1.0,
                    "minibatches": max(1, num_steps * envs // BOX_MINIBATCH), "normalise_rewards": True,
                },
                "network": {"normalise_obs": True},
            }  # fmt: skip
        case _:  # Huang et al. 2022
            num_steps = named or 128
            return {
                "ppo": {
                    "num_steps": num_steps, "lr": 2.5e-4, "epochs": 4, "entropy": 0.01, "value": 0.5,
                    "minibatches": min(4, num_steps * envs), "normalise_rewards": False,
                },
                "network": {"normalise_obs": False},
            }  # fmt: skip


def _filled(config: TrainConfig, defaults: dict[str, dict[str, Any]]) -> TrainConfig:
    tables = {}
    for table, values in defaults.items():
        given = getattr(config, table)
        tables[table] = replace(given, **{k: v for k, v in values.items() if getattr(given, k) is None})
    return replace(config, **tables)
