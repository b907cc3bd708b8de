"""The policy as the collector sees it: numpy observations in, numpy actions out."""
# pure (torch): inference only; short enough to run on the event loop

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainers.learn.actions import ActionHead
from trainers.learn.encoders import Flat, Normalised, OneHot
from trainers.learn.networks import ActorCritic
from trainers.learn.rollout import Bools, Floats

__all__ = ["Policy", "SmallNetwork"]

SMALL = 64 * 64 * 64  # rows × width × width: beyond it torch is as fast, and numpy's BLAS would start threads


class Policy:
    """A model and its action head. Sampling is numpy's: torch's distributions cost more than the network."""

    def __init__(self, model: ActorCritic, head: ActionHead, device: torch.device) -> None:
        self.model, self.head, self._device = model, head, device
        self._small = SmallNetwork.of(model) if device.type == "cpu" else None

    def act(
        self, obs: Mapping[str, NDArray[Any]], rng: np.random.Generator, mask: Bools | None = None
    ) -> tuple[NDArray[Any], Floats, Floats]:
        """Sampled actions (n, *shape), their log probabilities (n,) and the values (n,)."""
        params, values = self._infer(obs)
        actions, log_probs = self.head.sample(params, rng, mask)
        return actions, log_probs, values

    def choose(
        self, obs: Mapping[str, NDArray[Any]], mask: Bools | None, rng: np.random.Generator, greedy: bool
    ) -> NDArray[Any]:
        """Actions only: the most probable ones, or sampled."""
        params, _values = self._infer(obs)
        return self.head.mode(params, mask) if greedy else self.head.sample(params, rng, mask)[0]

    def values(self, obs: Mapping[str, NDArray[Any]]) -> Floats:
        """The values (n,) of observations."""
        return self._infer(obs)[1]

    def _infer(self, obs: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        if self._small is not None and self._small.takes(obs):
            return self._small(obs)
        with torch.inference_mode():
            tensors = {key: torch.from_numpy(obs[key]).to(self._device) for key in self.model.keys}
            params, values = self.model(tensors)
            return params.cpu().numpy(), values.cpu().numpy()


Layer = tuple[Floats, Floats | None, Callable[..., Any] | None]
"""Weights (in, out), bias (out,), what follows in place."""


Encoder = Callable[[NDArray[Any]], NDArray[Any]]
"""Observations (n, …) to features (n, width)."""


class SmallNetwork:
    """An `ActorCritic` of vectors, one-hot numbers and linear layers, by numpy. For few rows torch's calls cost
    more than its arithmetic: two towers of 64 × 64 and 32 rows, sampling included, take 0.4 of the time.

    It holds views of the model's parameters, not copies: optimisers and `load_state_dict` write in place.
    """

    def __init__(self, encoders: dict[str, Encoder], body: list[Layer], actor: list[Layer], critic: list[Layer],
                 log_std: Floats | None) -> None:  # fmt: skip
        self._encoders, self._body, self._actor, self._critic = encoders, body, actor, critic
        self._any_key, self._log_std = next(iter(encoders)), log_std
        weights = [layer[0] for layer in (*body, *actor, *critic)]
        self._max_rows = SMALL // max(w.size for w in weights)

    @classmethod
    def of(cls, model: ActorCritic) -> SmallNetwork | None:
        """The model's twin; None if it has pictures, or other layers."""
        encoders = {key: _encoder(encoder) for key, encoder in zip(model.keys, model.encoders)}
        known = {key: encoder for key, encoder in encoders.items() if encoder is not None}
        if len(known) < len(encoders):
            return None
        towers = [_layers(tower) for tower in (model.body, model.actor, model.critic)]
        if any(layers is None for layers in towers):
            return None
        body, actor, critic = (layers or [] for layers in towers)
        log_std = None if model.log_std is None else model.log_std.detach().numpy()
        return cls(known, body, actor, critic, log_std)

    def takes(self, obs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether these rows are few enough."""
        return len(obs[self._any_key]) <= self._max_rows

    def __call__(self, obs: Mapping[str, NDArray[Any]]) -> tuple[Floats, Floats]:
        """As `ActorCritic.forward`."""
        parts = [encode(obs[key]) for key, encode in self._encoders.items()]
        x: Floats = (parts[0] if len(parts) == 1 else np.concatenate(parts, 1)).astype(np.float32, copy=False)
        features = _through(self._body, x)
        params, values = _through(self._actor, features), _through(self._critic, features)
        if self._log_std is not None:
            params = np.concatenate((params, np.broadcast_to(self._log_std, params.shape)), axis=1)
        return params, values[:, 0]


def _encoder(encoder: nn.Module) -> Encoder | None:
    """As numpy does it; None for pictures."""
    match encoder:
        case Flat():
            return partial(_flat, np.float32(encoder.scale))
        case Normalised():
            mean, variance = (cast(torch.Tensor, part).numpy() for part in (encoder.mean, encoder.variance))
            return partial(_normalised, mean, variance)
        case OneHot():
            offsets: NDArray[np.int64] = cast(torch.Tensor, encoder.offsets).numpy()
            return partial(_one_hot, offsets, encoder.width)
    return None


def _flat(scale: np.float32, obs: NDArray[Any]) -> NDArray[Any]:
    flat = obs.reshape(len(obs), -1)
    return flat if scale == 1 else flat * scale


def _normalised(mean: NDArray[np.float64], variance: NDArray[np.float64], obs: NDArray[Any]) -> NDArray[Any]:
    scaled = (obs.reshape(len(obs), -1) - mean) / np.sqrt(variance + 1e-8)
    return np.clip(scaled, -10, 10, out=scaled).astype(np.float32)


def _one_hot(offsets: NDArray[np.int64], width: int, obs: NDArray[Any]) -> Floats:
    hot = np.zeros((len(obs), width), np.float32)
    np.put_along_axis(hot, obs.reshape(len(obs), -1) + offsets, 1.0, axis=1)
    return hot


def _through(layers: list[Layer], x: Floats) -> Floats:
    for weight, bias, activation in layers:
        x = x @ weight
        if bias is not None:
            x += bias
        if activation is not None:
            activation(x, out=x)
    return x


def _relu(x: Floats, out: Floats) -> None:
    np.maximum(x, 0, out=out)


def _layers(tower: nn.Sequential) -> list[Layer] | None:
    """Its layers as numpy views; None if there is any that is neither linear, tanh nor ReLU."""
    layers: list[Layer] = []
    for module in tower:
        match module:
            case nn.Linear():
                bias = None if module.bias is None else module.bias.detach().numpy()
                layers.append((module.weight.detach().numpy().T, bias, None))
            case nn.Tanh() | nn.ReLU() if layers and layers[-1][2] is None:
                follows = np.tanh if isinstance(module, nn.Tanh) else _relu
                layers[-1] = (*layers[-1][:2], follows)
            case _:
                return None
    return layers
