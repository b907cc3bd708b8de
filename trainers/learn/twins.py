"""From a built network to its numpy twin: what it computes, read from its modules, and its parameters."""
# pure (torch): a model in, plain data and arrays out

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from trainers.config import ConfigError, TrainConfig
from trainers.learn.actions import ActionHead, action_head
from trainers.learn.defaults import for_spaces
from trainers.learn.encoders import Flat, Grid, Normalised, OneHot, Pixels
from trainers.learn.masks import MASK
from trainers.learn.networks import ActorCritic, Network, leaf_spaces, mask_leaf
from trainers.learn.own_networks import OwnNetwork, check_twin, make_network
from trainers.twin import Twin, names_in

__all__ = ["TwinMaker", "network_plan", "twin_of"]

Steps = list[dict[str, Any]]


class NoTwin(Exception):
    """A module that numpy has no counterpart for."""


def twin_of(
    model: Network,
    head: ActionHead,
    observation_space: gym.Space[Any],
    *,
    greedy: bool = False,
) -> Twin | None:
    """The actor's twin, with copies of its parameters; None if there is a module that has no counterpart in numpy.

    The critic is left out. A mask that is a leaf of the observation is heeded; one that comes in infos cannot be.
    """
    if not isinstance(model, ActorCritic) or type(model).forward is not ActorCritic.forward:
        return None
    plan = network_plan(model, dict(zip(leaf_spaces(observation_space), _paths(observation_space))))
    if plan is None:
        return None
    del plan["critic"]
    plan["mask"] = [MASK] if head.mask_size and mask_leaf(observation_space) else None
    plan["action"] = head.plan
    state = _arrays(model)
    return Twin(plan, {**{name: state[name] for name in names_in(plan)}, **head.constants}, greedy=greedy)


class TwinMaker:
    """Makes the policy that acts in workers, once the envs' spaces are known: `AsyncVecEnv(policy=…)`.

    There is none under another `collect`; by default (None) where numpy is slower than torch: for large pictures.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.twin: Any = None
        self.why = ""  # there is none, where nobody asked for that

    def __call__(self, obs_space: gym.Space[Any], action_space: gym.Space[Any]) -> Any:
        """Raises `ConfigError` if unrolls were asked for, and the network has no twin."""
        collect, network = self._config.collect, for_spaces(self._config, obs_space, action_space).network
        if collect not in (None, "unroll"):
            return None
        head = action_head(action_space, network)
        model = make_network(obs_space, head, network, seed=0)
        if isinstance(model, OwnNetwork):
            self.twin, self.why = model.twin(), "the network has no twin()"
            if self.twin is not None:
                tried = make_network(obs_space, head, network, seed=0)
                check_twin(self.twin, cast(OwnNetwork, tried), head, obs_space)
        elif collect is None and _slow(model):
            self.why = "for large pictures torch is faster than numpy"
        else:
            self.twin = twin_of(model, head, obs_space)
            self.why = "the network has parts that numpy has no counterpart for"
        if collect == "unroll" and self.twin is None:
            raise ConfigError(f"collect='unroll': {self.why}")
        return self.twin


def _slow(model: Network) -> bool:
    """Whether numpy takes longer than torch: for large pictures."""
    encoders = model.encoders if isinstance(model, ActorCritic) else ()
    return any(isinstance(part, Pixels) or getattr(part, "large", False) for part in encoders)


def network_plan(model: ActorCritic, paths: Mapping[str, Sequence[str | int]]) -> dict[str, Any] | None:
    """What `model` computes, as a `Twin`'s plan has it, with the steps of its `critic`; `paths`: where each leaf is
    found. None if there is a module that has no counterpart in numpy."""
    names = {id(module): name for name, module in model.named_modules()}
    try:
        return {
            "inputs": [
                {"path": paths[key], "steps": _encoder(encoder, names)}
                for key, encoder in zip(model.keys, model.encoders)
            ],
            "body": _steps(model.body, names),
            "actor": _steps(model.actor, names),
            "critic": _steps(model.critic, names),
            "log_std": None if model.log_std is None else "log_std",
        }
    except NoTwin:
        return None


def _arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def _paths(space: gym.Space[Any], above: tuple[str | int, ...] = ()) -> Iterator[list[str | int]]:
    """The keys of every leaf but the mask, in the order of `leaf_spaces`."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            if (*above, key) != (MASK,):
                yield from _paths(part, (*above, key))
    else:
        yield list(above)


def _encoder(encoder: nn.Module, names: Mapping[int, str]) -> Steps:
    match encoder:
        case OneHot():
            offsets = cast(torch.Tensor, encoder.offsets).tolist()
            return [{"op": "one_hot", "offsets": offsets, "width": encoder.width}]
        case Normalised():
            return [{"op": "flatten"}, _normalise(names[id(encoder)], 1e-8)]
        case Flat():
            return [
                {"op": "flatten"},
                {"op": "scale", "by": encoder.scale} if encoder.scale != 1 else {"op": "float"},
            ]
        case Grid():
            order: Steps = [{"op": "channels_first"}] if encoder.channels_last else []
            return [*order, {"op": "scale", "by": encoder.scale}, *_steps(encoder.layers, names)]
        case Pixels():
            picture = encoder.picture
            order = [{"op": "channels_first"}] if picture.order == "last" else []
            if picture.frames > 1 or picture.order == "none":
                order += [{"op": "reshape", "shape": [picture.channels, picture.height, picture.width]}]
            if encoder.pool != (1, 1):
                order += [{"op": "average", "size": list(encoder.pool)}]
            return [*order, _normalise(names[id(encoder)], 1e-12), *_steps(encoder.layers, names)]
    raise NoTwin(type(encoder).__name__)


def _normalise(name: str, epsilon: float) -> dict[str, Any]:
    return {"op": "normalise", "mean": f"{name}.mean", "variance": f"{name}.variance", "epsilon": epsilon}


def _steps(layers: nn.Sequential, names: Mapping[int, str]) -> Steps:
    return [_step(layer, names[id(layer)]) for layer in layers]


def _step(layer: nn.Module, name: str) -> dict[str, Any]:
    arrays = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
    match layer:
        case nn.Linear() if layer.bias is not None:
            return {"op": "linear", **arrays}
        case nn.Conv2d() if (
            layer.bias is not None
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and isinstance(layer.padding, tuple)
        ):
            return {"op": "conv", **arrays, "stride": list(layer.stride), "padding": list(layer.padding)}
        case nn.Tanh():
            return {"op": "tanh"}
        case nn.ReLU():
            return {"op": "relu"}
        case nn.Flatten() if (layer.start_dim, layer.end_dim) == (1, -1):
            return {"op": "flatten"}
    raise NoTwin(type(layer).__name__)
