"""A run's policy, to use where nothing learns: in a game, a test, another program's loop."""
# edge: reads a run folder

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import concatenate, create_empty_array

import aio_vecenv as av
from trainers.collect.observations import is_masked, split
from trainers.config import ConfigError
from trainers.learn.actions import ActionHead, action_head
from trainers.learn.defaults import for_spaces
from trainers.learn.learner import EVAL, load_parameters, stream
from trainers.learn.masks import MASK, read_mask, sizes_of
from trainers.learn.meaning import check_meaning, meaning_of
from trainers.learn.networks import Network, leaf_spaces
from trainers.learn.own_networks import OwnNetwork, make_network, parameters_of
from trainers.learn.policy import Policy
from trainers.learn.twins import twin_of
from trainers.record.checkpoint import CheckpointError, load_saved
from trainers.twin import Twin

__all__ = ["TrainedPolicy", "load_policy"]


def load_policy(
    run: Path | str,
    env: Any,
    *,
    greedy: bool = True,
    seed: int = 0,
    device: str = "cpu",
    on_refused: Callable[[Path, Sequence[str]], object] | None = None,
) -> TrainedPolicy:
    """The policy of a run folder's newest usable checkpoint, or of a checkpoint file in one.

    `env` says which observations and actions it will see: anything with the two spaces of one env, a vectorised
    env included; it is not stepped. What wrappers in the run's envs had learned (`NormalizeObservation`) is given to
    the same wrappers of `env`, which learn no more; a warning says where that cannot be. `greedy`: take the most
    probable action; else sample, from `seed`. `on_refused`: called if newer checkpoints were refused, with the one that
    is used and why each newer one was not.

    Raises `ConfigError` if `run` is no run folder, `CheckpointError` if no checkpoint can be used or its network is
    one for other spaces.
    """
    policy = load_for(run, env, greedy=greedy, seed=seed, device=device, on_refused=on_refused)
    if policy.env_state:
        _restore_env(env, policy.env_state, policy.checkpoint)
    return policy


def load_for(
    run: Path | str,
    env: Any,
    *,
    greedy: bool = True,
    seed: int = 0,
    device: str = "cpu",
    on_refused: Callable[[Path, Sequence[str]], object] | None = None,
) -> TrainedPolicy:
    """`load_policy`, for an env that only says its spaces: it is given nothing."""
    folder, saved, path, refused = load_saved(run)
    if refused and on_refused is not None:
        on_refused(path, refused)
    obs_space: gym.Space[Any] = getattr(env, "single_observation_space", None) or env.observation_space
    action_space: gym.Space[Any] = getattr(env, "single_action_space", None) or env.action_space
    network = for_spaces(folder.config(), obs_space, action_space).network
    head = action_head(action_space, network)
    model = make_network(obs_space, head, network, seed=0)
    check_meaning(path, saved.spaces, meaning_of(model, head, obs_space))
    load_parameters(path, model, saved.model)
    return TrainedPolicy(
        model.to(device).eval(), head, obs_space, action_space, path, saved.envs, greedy=greedy, seed=seed
    )


def _restore_env(env: Any, state: dict[str, Any], path: Path) -> None:
    if isinstance(env, av.AsyncVecEnv):
        warnings.warn(
            f"the run's envs had learned ({', '.join(sorted(state))}): give it to these, before their first reset, by "
            "`await envs.set_state(policy.env_state, frozen=True)`",
            stacklevel=3,
        )
        return
    try:
        if isinstance(getattr(env, "native", None), av.AsyncVecEnv):
            env.set_state(state, frozen=True)
        else:
            av.restore_state(env, state, frozen=True)
    except LookupError as error:
        warnings.warn(
            f"{error}: what it shows is not what the policy learned from. Put the wrappers of the run's envs around it",
            stacklevel=3,
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: what its envs had learned does not fit this env: {error}") from error


class TrainedPolicy:
    """Observations in, actions out. Nothing is learned, and observation statistics stay what they were."""

    def __init__(
        self,
        model: Network,
        head: ActionHead,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        checkpoint: Path,
        env_state: dict[str, Any],
        *,
        greedy: bool,
        seed: int,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space  # of one env
        self.checkpoint = checkpoint  # the file it was loaded from
        self.greedy = greedy
        self.env_state = env_state  # what wrappers in the run's envs had learned, for `set_state`
        self._head = head
        self._policy = Policy(model, self._head, next(model.parameters()).device)
        self._rng = stream(seed, EVAL, 0)

    def act(self, obs: Any, info: Mapping[str, Any] | None = None) -> Any:
        """The action for one env's observation, as its `step` takes it. `info`: where its action mask is, if any.

        Raises ValueError if the observation is none of the space, `ConfigError` if the mask cannot be read, or
        allows nothing.
        """
        space = self.observation_space
        rows: Any = create_empty_array(space, 1)
        try:
            if isinstance(space, (gym.spaces.Discrete, gym.spaces.MultiDiscrete)) and not space.contains(obs):
                raise ValueError
            rows = concatenate(space, [obs], rows)
        except (ValueError, TypeError, KeyError, IndexError):
            raise ValueError(f"the observation {obs!r:.80} is none of {space}") from None
        mask = None if info is None else info.get(MASK)
        if mask is not None:
            mask = read_mask(mask, sizes_of(self.action_space), acting=True)[None]
        action = self.act_batch(rows, {} if mask is None else {MASK: mask})[0]
        return action.item() if isinstance(self.action_space, gym.spaces.Discrete) else action

    def twin(self) -> Twin:
        """The policy in numpy alone, as `AsyncVecEnv(policy=…)` takes it; greedy if this one is.

        An action mask that comes in infos is unknown to it. Raises `ConfigError` for a network without a twin, or whose
        own is no `trainers.Twin`.
        """
        model = self._policy.model
        if not isinstance(model, OwnNetwork):
            twin = twin_of(model, self._head, self.observation_space, greedy=self.greedy)
            if twin is None:
                raise ConfigError(
                    f"the network of {self.checkpoint} has parts that numpy has no counterpart for"
                )
            return twin
        own = model.twin()
        if not isinstance(own, Twin):
            kind = (
                "no twin()"
                if own is None
                else f"a twin() of its own kind ({type(own).__name__}), not trainers.Twin"
            )
            raise ConfigError(f"the network of {self.checkpoint} has {kind}")
        return Twin(own.plan, {**own.arrays, **parameters_of(own, model)}, greedy=self.greedy)

    def act_batch(self, obs: Any, infos: Mapping[str, Any] | None = None) -> Any:
        """Actions (n, …) for n envs' observations and infos, as a vectorised env hands them out."""
        space = self.observation_space
        sizes = sizes_of(self.action_space) if is_masked(space, infos or {}) else ()
        leaves, masks = split(space, obs, infos or {}, len(_any_leaf(obs)), sizes)
        rows = {key: np.asarray(leaves[key], leaf.dtype) for key, leaf in leaf_spaces(space).items()}
        return self._head.to_env(self._policy.choose(rows, masks, self._rng, self.greedy))


def _any_leaf(obs: Any) -> Any:
    while isinstance(obs, (Mapping, tuple)):
        obs = next(iter(obs.values() if isinstance(obs, Mapping) else obs))
    return obs
