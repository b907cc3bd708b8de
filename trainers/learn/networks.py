"""Actor-critic networks for vector, image, Discrete and Dict observations."""
# pure (torch): built from spaces; tensors in, tensors out

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from trainers.config import ConfigError, NetworkConfig
from trainers.learn.actions import ActionHead, Gaussian

__all__ = ["ActorCritic", "has_image", "leaf_arrays", "leaf_spaces", "mask_leaf"]

MASK = "action_mask"
NATURE_MIN = 36  # pixels: the smallest side that the large CNN's three convolutions leave anything of
SMALL_MIN = 4  # cells: the same for the small one
MANY = 1 << 14  # numbers: from here on the arithmetic outweighs the calls


def leaf_spaces(space: gym.Space[Any]) -> dict[str, gym.Space[Any]]:
    """The space's leaves by path, in a fixed order; `""` is the space itself. The mask leaf is left out."""
    return {path: leaf for path, leaf in _walk(space, "") if path != MASK}


def mask_leaf(space: gym.Space[Any]) -> bool:
    """Whether a Dict observation carries the action mask."""
    return isinstance(space, spaces.Dict) and MASK in space.spaces


def _walk(space: gym.Space[Any], path: str) -> Iterator[tuple[str, gym.Space[Any]]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from _walk(part, f"{path}/{key}" if path else str(key))
    else:
        yield path, space


def leaf_arrays(space: gym.Space[Any], obs: Any) -> dict[str, NDArray[Any]]:
    """A batch of observations as one array (n, …) per leaf, keyed as in `leaf_spaces`, the mask included."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return {"": obs}
    leaves: dict[str, NDArray[Any]] = {}
    parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    for key, part in parts:
        for path, array in leaf_arrays(part, obs[key]).items():
            leaves[f"{key}/{path}" if path else str(key)] = array
    return leaves


def has_image(space: gym.Space[Any]) -> bool:
    """Whether a CNN is used for any leaf."""
    return any(_image_side(leaf) >= SMALL_MIN for leaf in leaf_spaces(space).values())


def _image_side(leaf: gym.Space[Any]) -> int:
    """The shorter side in pixels; 0 for what is no image: a Box (h, w, channels) or (channels, h, w)."""
    if not isinstance(leaf, spaces.Box) or len(leaf.shape) != 3:
        return 0
    return min(leaf.shape[:2] if _channels_last(leaf.shape) else leaf.shape[1:])


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[2] <= shape[0]  # the channels are the short axis


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """`_layer` does it; torch's way draws from the process's own generator."""


class _Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """As for `_Linear`."""


def _layer(
    kind: Callable[..., nn.Linear | nn.Conv2d], *sizes: int, gain: float, generator: torch.Generator
) -> nn.Module:
    """An orthogonal layer with bias 0, drawn from `generator` alone."""
    layer = kind(*sizes)
    nn.init.orthogonal_(layer.weight, gain, generator)
    nn.init.zeros_(cast(torch.Tensor, layer.bias))
    return layer


class OneHot(nn.Module):
    """Discrete and MultiDiscrete (n, …) → (n, sum of sizes)."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__()
        sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.reshape(-1).tolist()
        self.width = sum(sizes)
        offsets = np.cumsum([0, *sizes[:-1]]) - np.asarray(space.start).reshape(-1)
        self.register_buffer("offsets", torch.as_tensor(offsets), persistent=False)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        columns = obs.reshape(len(obs), -1).long() + cast(torch.Tensor, self.offsets)
        hot = torch.zeros(len(obs), self.width, device=obs.device)
        return hot.scatter_(1, columns, 1.0)


class Flat(nn.Module):
    """Boxes and MultiBinary as vectors (n, width), optionally normalised by running mean and variance."""

    def __init__(self, width: int, normalise: bool) -> None:
        super().__init__()
        self.width, self.normalise = width, normalise
        if normalise:
            self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
            self.register_buffer("variance", torch.ones(width, dtype=torch.float64))
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        flat = obs.reshape(len(obs), -1)
        if not self.normalise:
            return flat.float()
        mean, variance = cast(torch.Tensor, self.mean), cast(torch.Tensor, self.variance)
        return ((flat - mean) / torch.sqrt(variance + 1e-8)).clamp(-10, 10).float()

    @torch.no_grad()
    def observe(self, obs: torch.Tensor) -> None:
        """Fold rows (n, …) into the statistics (Chan et al. 1979, parallel variance)."""
        mean, variance, count = (cast(torch.Tensor, getattr(self, k)) for k in ("mean", "variance", "count"))
        flat = obs.reshape(len(obs), -1).double()
        total = count + len(flat)
        shift = flat.mean(0) - mean
        moments = (
            variance * count + flat.var(0, correction=0) * len(flat) + shift**2 * count * len(flat) / total
        )
        mean += shift * len(flat) / total
        variance.copy_(moments / total)
        count.copy_(total)


class Image(nn.Module):
    """uint8 or float images (n, h, w, c) or (n, c, h, w) → (n, width).

    From 36 pixels on, the network of Mnih et al. 2015 on values / 255. Below, three 2×2 convolutions: such
    grids (MiniGrid) hold small codes, not intensities, so integers are divided by 10.
    """

    def __init__(self, space: spaces.Box, generator: torch.Generator) -> None:
        super().__init__()
        self.channels_last = _channels_last(space.shape)
        h, w, c = space.shape if self.channels_last else (*space.shape[1:], space.shape[0])
        self.large = large = min(h, w) >= NATURE_MIN
        integers = np.issubdtype(space.dtype, np.integer)
        self.scale = 1.0 if not integers else 1 / 255 if large else 1 / 10
        gain = math.sqrt(2)
        plan = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, 2, 1), (32, 2, 1), (64, 2, 1)]
        layers: list[nn.Module] = []
        for out, kernel, stride in plan:
            layers += [_layer(_Conv2d, c, out, kernel, stride, gain=gain, generator=generator), nn.ReLU(True)]
            h, w, c = (h - kernel) // stride + 1, (w - kernel) // stride + 1, out
        self.width = 512 if large else 128
        last = _layer(_Linear, h * w * c, self.width, gain=gain, generator=generator)
        self.layers = nn.Sequential(*layers, nn.Flatten(), last, nn.ReLU(True))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        pixels = obs.permute(0, 3, 1, 2) if self.channels_last else obs
        if not self.large:  # faster channel by channel, 0.9 of the time; large images are faster as they come
            pixels = pixels.contiguous()
        return cast(torch.Tensor, self.layers(pixels.float() * self.scale))


class Tanh(nn.Tanh):
    """tanh; on the CPU and for many numbers as 2 σ(2x) - 1, which torch computes in 0.4 of the time (error < 2e-7)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() < MANY or x.device.type != "cpu":
            return torch.tanh(x)
        return cast(torch.Tensor, _FastTanh.apply(x))  # type: ignore[no-untyped-call]


class _FastTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        y = (x * 2).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return cast(torch.Tensor, torch.ops.aten.tanh_backward(grads[0], y))


def _encoder(
    path: str, leaf: gym.Space[Any], normalise: bool, generator: torch.Generator
) -> OneHot | Flat | Image:
    match leaf:
        case spaces.Discrete() | spaces.MultiDiscrete():
            return OneHot(leaf)
        case spaces.Box() if _image_side(leaf) >= SMALL_MIN:
            return Image(leaf, generator)
        case spaces.Box() | spaces.MultiBinary():
            return Flat(math.prod(leaf.shape), normalise and np.issubdtype(leaf.dtype, np.floating))
        case _:
            where = f" at {path!r}" if path else ""
            raise ConfigError(
                f"no network for the observation space {leaf}{where}; known: Box, Discrete, "
                "MultiDiscrete, MultiBinary, and Dict or Tuple of these"
            )


class ActorCritic(nn.Module):
    """An encoder per leaf, concatenated; then hidden layers, shared by policy and value or not.

    Orthogonal initialisation: √2 in hidden layers, 0.01 for the policy's last (it starts near uniform), 1 for
    the value's.
    """

    def __init__(self, space: gym.Space[Any], head: ActionHead, config: NetworkConfig, *, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        leaves = leaf_spaces(space)
        self.keys = tuple(leaves)
        self.encoders = nn.ModuleList(
            _encoder(path, leaf, config.normalise_obs, draw) for path, leaf in leaves.items()
        )
        width = sum(cast(int, encoder.width) for encoder in self.encoders)
        gaussian = isinstance(head, Gaussian)
        outputs = head.size // 2 if gaussian else head.size
        together, apart = (config.hidden, ()) if config.shared else ((), config.hidden)
        body, width = _hidden(width, together, config, draw)
        self.body = nn.Sequential(*body)
        self.actor = _tower(width, apart, config, outputs, 0.01, draw)
        self.critic = _tower(width, apart, config, 1, 1.0, draw)
        self.log_std = nn.Parameter(torch.zeros(outputs)) if gaussian else None

    def forward(self, obs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Leaves (n, …) → the action head's `params` (n, size) and values (n,)."""
        parts = [encoder(obs[key]) for key, encoder in zip(self.keys, self.encoders)]
        features = self.body(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        params = self.actor(features)
        if self.log_std is not None:
            params = torch.cat((params, self.log_std.expand_as(params)), dim=1)
        return params, self.critic(features).squeeze(1)

    def observe(self, obs: Mapping[str, torch.Tensor]) -> None:
        """Fold a rollout's rows into the observation statistics, where the network keeps any."""
        for key, encoder in zip(self.keys, self.encoders):
            if isinstance(encoder, Flat) and encoder.normalise:
                encoder.observe(obs[key])


def _hidden(
    width: int, sizes: Sequence[int], config: NetworkConfig, generator: torch.Generator
) -> tuple[list[nn.Module], int]:
    activation = {"tanh": Tanh, "relu": nn.ReLU}[config.activation]
    layers: list[nn.Module] = []
    for hidden in sizes:
        layers += [_layer(_Linear, width, hidden, gain=math.sqrt(2), generator=generator), activation()]
        width = hidden
    return layers, width


def _tower(
    width: int,
    sizes: Sequence[int],
    config: NetworkConfig,
    outputs: int,
    gain: float,
    generator: torch.Generator,
) -> nn.Sequential:
    layers, width = _hidden(width, sizes, config, generator)
    return nn.Sequential(*layers, _layer(_Linear, width, outputs, gain=gain, generator=generator))
