"""The learner: model, optimiser and rollout of one run, and what each random stream derives from."""
# pure (torch): learns from what was stored; who calls it decides in which thread

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from trainers.config import ConfigError, TrainConfig, known
from trainers.learn.actions import action_head
from trainers.learn.defaults import for_spaces
from trainers.learn.meaning import check_meaning, meaning_of
from trainers.learn.moments import DiscountedReturns
from trainers.learn.networks import has_image, leaf_spaces
from trainers.learn.own_networks import make_network
from trainers.learn.policy import Policy
from trainers.learn.ppo import UpdateStats, advantages_of, make_optimiser, update
from trainers.learn.rollout import Floats, Rollout, score_parts
from trainers.record.checkpoint import Checkpoint, CheckpointError

__all__ = ["Learner", "env_seeds", "load_parameters", "load_what_fits", "stream", "torch_threads"]

LARGEST = 10.0  # a normalised reward
ACT, LEARN, RESET, EVAL = range(4)  # what a random stream is for


def stream(seed: int, purpose: int, index: int) -> np.random.Generator:
    """A generator of its own for each (run seed, purpose, index): a counter is all the state there is."""
    return np.random.default_rng((seed, purpose, index))


def env_seeds(seed: int, index: int, num_envs: int, purpose: int = RESET) -> list[int]:
    """Seeds for a reset of all envs before update `index`; they do not depend on the workers."""
    return [int(n) for n in stream(seed, purpose, index).integers(2**31, size=num_envs)]


def torch_threads(config: TrainConfig, busy_workers: int, obs_space: gym.Space[Any]) -> int:
    """Threads for torch: one for networks without images, which more would only slow down; else what workers that
    are busy at the same time leave of the CPUs this process may use, at least one."""
    if config.deterministic or (config.torch_threads is None and not has_image(obs_space, config.network)):
        return 1
    if config.torch_threads is not None:
        return config.torch_threads
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus - (busy_workers if config.backend == "process" else 0))


Part = tuple[int, int, int, float]  # env, episode's index, steps, mean over them


class Learner:
    """Everything that learns. `masked`: actions come with masks of what is allowed."""

    def __init__(
        self, config: TrainConfig, obs_space: gym.Space[Any], action_space: gym.Space[Any], *, masked: bool
    ) -> None:
        leaves = leaf_spaces(obs_space)
        if not leaves:
            raise ConfigError(
                f"nothing to learn from: the observation space {obs_space} has no part beside the action mask"
            )
        self.config = config = for_spaces(config, obs_space, action_space)
        self.head = action_head(action_space, config.network)
        if masked and not self.head.mask_size:
            raise ConfigError(f"an action mask was given, but {action_space} cannot be masked")
        self.device = _device(config.device, has_image(obs_space, config.network))
        self.model = make_network(obs_space, self.head, config.network, seed=config.seed).to(self.device)
        self.spaces = meaning_of(self.model, self.head, obs_space)
        self.optimiser = make_optimiser(self.model, config.ppo)
        self.policy = Policy(self.model, self.head, self.device)
        self._returns = DiscountedReturns(self.model.returns, config.num_envs)
        self.rollout = Rollout(
            known(config.ppo.num_steps, "ppo.num_steps"),
            config.num_envs,
            leaves,
            action_shape=self.head.shape,
            action_dtype=self.head.dtype,
            mask_size=self.head.mask_size if masked else 0,
        )

    def learn(
        self, index: int, progress: float, statistic: str | None = None
    ) -> tuple[UpdateStats, list[Part]]:
        """Update `index` from the full rollout; `progress` in [0, 1] anneals the learning rate. And what a strategy
        asks to know of the episodes in the rollout: by part that lies in it, the mean of `statistic`:
        "abs_advantage", "positive_advantage" or "value", all as the update saw them.

        Raises `FloatingPointError` if the update's numbers are none: the model is spoilt then.
        """
        config = self.config.ppo
        rates = config.rates(progress)
        rng = stream(self.config.seed, LEARN, index)
        rollout = self.rollout
        last_values = self._last_values()
        scale = 1.0
        if config.normalise_rewards:  # in place: nobody else reads them
            scale = self._returns.scale(rollout, config.gamma)
            np.clip(rollout.rewards * np.float32(scale), -LARGEST, LARGEST, out=rollout.rewards)
        stats = update(
            self.model, self.optimiser, self.head, rollout, last_values, config, rates=rates, rng=rng
        )
        for name, value in vars(stats).items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"update {index + 1}: the loss is not a number: {name} is {value}; try a smaller ppo.lr, "
                    "ppo.normalise_rewards, network.normalise_obs"
                )
        if statistic is None:
            return stats, []
        measured = _measure(statistic, advantages_of(rollout, last_values, config), rollout.values) / scale
        return stats, score_parts(measured, rollout.index, rollout.first)

    def _last_values(self) -> Floats:
        """The values that follow the last rows. Those of the rows themselves are filled in where workers acted: they
        compute none."""
        if self.rollout.judged:
            return self.policy.values(self.rollout.last_obs)
        values = self.policy.judge(self.rollout.obs, known(self.config.ppo.minibatches, "ppo.minibatches"))
        self.rollout.values[:] = values[:-1]
        last: Floats = values[-1]
        return last

    def begin_anew(self) -> None:
        """All envs have been reset: no episode goes on in the next rollout."""
        self._returns.forget()

    def load(self, path: Path, saved: Checkpoint, *, optimiser: bool = False) -> None:
        """Take over the parameters that `path` holds, and with `optimiser` Adam's state. Raises `CheckpointError` if
        they are of another network, or of one for other spaces."""
        check_meaning(path, saved.spaces, self.spaces)
        load_parameters(path, self.model, saved.model)
        if optimiser:
            load_parameters(path, self.optimiser, saved.optimiser)


def load_parameters(
    path: Path, module: torch.nn.Module | torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Take over what `state_dict` gave, and `path` holds. Raises `CheckpointError` if it is of another network."""
    try:
        module.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split("\n\t")[:2])  # torch's first line alone names no parameter
        raise CheckpointError(
            f"{path}: the saved network does not fit this config and env: {reason}"
        ) from None


def load_what_fits(
    path: Path, module: torch.nn.Module, saved: dict[str, Any], *, of: str
) -> tuple[int, list[str]]:
    """Take over what is called alike and has the same shape in `saved`, which `path` holds: how many tensors, and why
    each other one is left out or begins anew. Raises `CheckpointError` if no parameter fits."""
    own = module.state_dict()
    fits = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
    if not fits.keys() & dict(module.named_parameters()).keys():
        raise CheckpointError(f"{path}: not one parameter of its network fits {of}")
    module.load_state_dict({**own, **fits})
    left = [
        f"{name} ({tuple(value.shape)}, here {tuple(own[name].shape)})"
        if name in own
        else f"{name} (unknown here)"
        for name, value in saved.items()
        if name not in fits
    ]
    return len(fits), [*left, *(f"{name} (not in it)" for name in own if name not in saved)]


def _measure(statistic: str, advantages: Floats, values: Floats) -> Floats:
    match statistic:
        case "abs_advantage":
            return np.abs(advantages)
        case "positive_advantage":
            return np.maximum(advantages, 0)
        case "value":
            return values
    raise ConfigError(f"the strategy asks for an unknown statistic {statistic!r}")


def _device(wanted: str, pictures: bool) -> torch.device:
    if wanted == "auto":  # a small MLP is faster on the CPU: each of its layers takes less time than a launch
        return torch.device("cuda" if pictures and torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {wanted!r} cannot be used: {str(error).splitlines()[0]}") from None
