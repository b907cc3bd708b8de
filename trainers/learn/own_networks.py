"""Networks of the user's own behind the door of `ActorCritic`: made, and tried once before anything is trained."""
# resource: imports the user's module and calls what it names; every mistake is one `ConfigError`

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import nn

from trainers.config import ConfigError, NetworkConfig
from trainers.learn.actions import ActionHead
from trainers.learn.masks import MASK
from trainers.learn.moments import Moments
from trainers.learn.networks import ActorCritic, Network, leaf_arrays, leaf_spaces, mask_leaf
from trainers.names import named
from trainers.twin import TwinError

__all__ = ["OwnNetwork", "check_twin", "make_network", "parameters_of"]

ROWS = 16  # tried with so many
NEAR = 1e-3  # a twin's log probabilities may be off by that much


def make_network(space: gym.Space[Any], head: ActionHead, config: NetworkConfig, *, seed: int) -> Network:
    """The network that `config` says. Raises `ConfigError`, for one of the user's own also if it does not do what it
    must: it is tried on observations of the space."""
    if config.factory is None:
        return ActorCritic(space, head, config, seed=seed)
    name = f"network {config.factory}"
    factory = named("network", config.factory)
    for path, leaf in leaf_spaces(space).items():
        if not isinstance(leaf, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            raise ConfigError(
                f"{name}: the observation space {leaf}{path and f' at {path!r}'} is none of numbers"
            )
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation depends on the seed alone
        torch.manual_seed(seed)
        try:
            made = factory(space, head, config, seed=seed)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{name}: making it failed: {_said(error)}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{name}: expected a torch.nn.Module, got {type(made).__name__}")
    network = made if isinstance(made, Network) else OwnNetwork(made, tuple(leaf_spaces(space)), name)
    _check(network, space, head, name)
    return network


class OwnNetwork(Network):
    """A module of the user's own: what a run keeps beside it, and the names by which it is saved."""

    def __init__(self, module: nn.Module, keys: tuple[str, ...], name: str) -> None:
        super().__init__()
        self.name = name  # in messages
        self.keys = keys
        self.module = module
        self.returns = Moments(1)

    def forward(self, obs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return cast(tuple[torch.Tensor, torch.Tensor], self.module(obs))

    def observe(self, obs: Mapping[str, torch.Tensor], rows: torch.Tensor | None = None) -> None:
        """Hand a rollout's leaves to the module, if it has an `observe(obs)` for running statistics."""
        fold: Any = getattr(self.module, "observe", None)
        if fold is not None:
            taken = obs if rows is None else {key: obs[key].index_select(0, rows) for key in self.keys}
            with torch.no_grad():
                fold(taken)

    def twin(self) -> Any:
        """The module's own twin; None if it has none. Raises `ConfigError` if making it fails."""
        make: Any = getattr(self.module, "twin", None)
        try:
            return None if make is None else make()
        except ConfigError:
            raise
        except TwinError as error:
            raise ConfigError(f"{self.name}: its twin(): {error}") from error
        except Exception as error:
            raise ConfigError(f"{self.name}: its twin() failed: {_said(error)}") from error

    def arrays(self) -> Mapping[str, torch.Tensor]:
        return self.module.state_dict()


def _check(network: Network, space: gym.Space[Any], head: ActionHead, name: str) -> None:
    parameters = list(network.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        frozen = f": all {len(parameters)} have requires_grad=False" if parameters else ""
        raise ConfigError(f"{name}: it has no parameters to learn{frozen}")
    if other := {str(p.dtype) for p in parameters} - {"torch.float32"}:
        raise ConfigError(f"{name}: expected parameters of torch.float32, got {', '.join(sorted(other))}")
    obs = {key: torch.from_numpy(array) for key, array in _example(space).items() if key != MASK}
    shapes = ", ".join(f"{key or 'obs'} {tuple(array.shape)}" for key, array in obs.items())
    network.eval()
    try:
        with torch.no_grad():
            result = network(obs)
    except Exception as error:
        raise ConfigError(f"{name}: it failed on {shapes}: {_said(error)}") from error
    expected = f"params ({ROWS}, {head.size}) and values ({ROWS},) of torch.float32"
    got = (
        " and ".join(f"{tuple(part.shape)} of {part.dtype}" for part in result)
        if isinstance(result, tuple) and all(isinstance(part, torch.Tensor) for part in result)
        else type(result).__name__
    )
    wanted = f"{(ROWS, head.size)} of torch.float32 and {(ROWS,)} of torch.float32"
    if got != wanted:
        raise ConfigError(f"{name}: on {shapes} it gave {got}; expected {expected}")


def check_twin(twin: Any, network: OwnNetwork, head: ActionHead, space: gym.Space[Any]) -> None:
    """Raise `ConfigError` unless a user's twin gives its actions the probabilities that the network does. `network` is
    one made for this: it is changed before, as by learning. First values (biases of 0, a mean of 0) would hide what a
    twin leaves out, or never takes over.
    """
    name = network.name
    needed = {"log_prob", *head.numpy.outputs}
    if missing := sorted(needed - set(getattr(twin, "outputs", ()))):
        raise ConfigError(
            f"{name}: twin() gave {type(twin).__name__}, which lacks outputs[{missing[0]!r}]; outputs are those of "
            "head.numpy"
        )
    batch = _sampled(space)
    arrays = leaf_arrays(space, batch)
    obs = {key: torch.from_numpy(arrays[key]) for key in network.keys}
    _move(network, obs)
    try:
        twin.load(parameters_of(twin, network))
        actions, outputs = twin.act(batch, twin.draw(np.random.default_rng(0), (ROWS,)))
        stored = torch.from_numpy(head.stored(actions, outputs))
        given = torch.from_numpy(outputs["log_prob"])
    except TwinError as error:
        raise ConfigError(f"{name}: its twin(): {error}") from error
    except Exception as error:
        raise ConfigError(f"{name}: its twin failed: {_said(error)}") from error
    mask = None
    if head.mask_size and mask_leaf(space):
        mask = torch.from_numpy(arrays[MASK].reshape(ROWS, -1).astype(np.bool_))
    with torch.no_grad():
        params, _ = network(obs)
        log_probs, _ = head.evaluate(params, stored, mask)
    if (off := float((log_probs - given).abs().max())) > NEAR:
        raise ConfigError(
            f"{name}: its twin computes something else: log probabilities differ by up to {off:.3g}"
        )


def _move(network: OwnNetwork, obs: Mapping[str, torch.Tensor]) -> None:
    """Change in `network` what an update changes: its parameters, and the statistics that it keeps."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:  # by a tenth of its size, so that what is computed stays as large
                size = float(parameter.abs().mean()) or 1.0
                parameter.add_(0.1 * size * torch.randn(parameter.shape, generator=generator))
        try:
            network.train()
            network(obs)
            network.observe(obs)
        except Exception as error:
            raise ConfigError(f"{network.name}: it failed in learning: {_said(error)}") from error
        finally:
            network.eval()


def parameters_of(twin: Any, network: Network) -> dict[str, Any]:
    """What `load` of the twin takes: copies of the network's parameters and statistics by name, as they are now; those
    that `twin.parameters` names, else all."""
    arrays = network.arrays()
    names = getattr(twin, "parameters", None) or arrays
    return {name: arrays[name].detach().cpu().numpy().copy() for name in names}


def _example(space: gym.Space[Any]) -> dict[str, Any]:
    return leaf_arrays(space, _sampled(space))


def _sampled(space: gym.Space[Any]) -> Any:
    """A batch of `ROWS` observations; the space's own generator stays as it is."""
    own = copy.deepcopy(space)
    own.seed(0)
    room: Any = create_empty_array(own, ROWS)
    return concatenate(own, [own.sample() for _ in range(ROWS)], room)


def _said(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    at = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{at}"
