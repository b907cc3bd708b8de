"""How one leaf of an observation is read, and the modules that read it: one-hot numbers, vectors, pictures."""
# pure (torch): built from spaces; tensors in, tensors out

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import nn

from trainers.config import ConfigError, NetworkConfig
from trainers.learn.moments import Moments

__all__ = [
    "Encoder",
    "Flat",
    "Grid",
    "Linear",
    "OneHot",
    "Picture",
    "Pixels",
    "describe",
    "encoder",
    "layer",
    "picture_of",
]

GRID_MIN = 4  # cells: the smallest side that three 2×2 convolutions leave anything of
PIXELS_MIN = 8  # from here on a side shows something; below, it counts cells
LARGE = 36  # pixels: from here on the kernels of Mnih et al. 2015 leave anything of a side
NEARLY_SQUARE = 1.5  # long side over short one
# pixels: longer sides than the first are averaged down to at most the second, the side that the kernels of Mnih et al.
# 2015 were made for; it bounds the network's size and its time
WHOLE, REDUCED = 110, 84
WIDE = 4096  # entries: a vector of more is most likely a picture, which should be said
OBSERVED = 256  # pictures of each rollout that the statistics are taken from


class Picture(NamedTuple):
    """A leaf read as a picture."""

    height: int
    width: int
    channels: int
    """Of all frames together."""
    frames: int
    """Pictures stacked in front of the others' axes; 1: none are."""
    order: str
    """Where the channels are: first, last, or none, for a grey picture of two axes."""


def picture_of(leaf: gym.Space[Any], config: NetworkConfig, path: str = "") -> Picture | None:
    """How a leaf is read as a picture; None: it is none.

    A picture is a Box (h, w, channels) or (channels, h, w) whose sides have at least 4 cells, a stack of them
    (frames, …) whose sides have at least 8, or a grey one (h, w) of bytes.
    """
    if not isinstance(leaf, spaces.Box) or "*" in config.vectors or path in config.vectors:
        return None
    shape = leaf.shape
    if config.encoders == 1:
        return _picture_of_0_1(shape)
    if len(shape) == 2:
        grey = leaf.dtype == np.uint8 and bytes_range(leaf) and min(shape) >= PIXELS_MIN
        return Picture(*shape, 1, 1, "none") if grey else None
    if len(shape) not in (3, 4):
        return None
    frames, inner = (shape[0] if len(shape) == 4 else 1), shape[-3:]
    order = config.channels if config.channels != "auto" else _order(inner)
    height, width, channels = inner if order == "last" else (*inner[1:], inner[0])
    if min(height, width) < (GRID_MIN if len(shape) == 3 else PIXELS_MIN):
        return None
    return Picture(height, width, channels * frames, frames, order)


def _order(shape: tuple[int, ...]) -> str:
    """Which of the outer axes holds the channels: the one that leaves a picture at all; then the one that leaves a
    square, or nearly one; then the one of up to 4 entries; then the one that leaves what is nearest to a square.
    Channels last where nothing tells them apart."""
    first, middle, last = shape

    def elongation(a: int, b: int) -> float:
        return max(a, b) / min(a, b) if min(a, b) >= GRID_MIN else math.inf

    if_first, if_last = elongation(middle, last), elongation(first, middle)
    for first_fits, last_fits in (
        (if_first < math.inf, if_last < math.inf),
        (if_first == 1, if_last == 1),
        (if_first <= NEARLY_SQUARE, if_last <= NEARLY_SQUARE),
        (first <= 4, last <= 4),
        (if_first < if_last, if_last < if_first),
    ):
        if first_fits != last_fits:
            return "first" if first_fits else "last"
    return "last"


def _picture_of_0_1(shape: tuple[int, ...]) -> Picture | None:
    if len(shape) != 3:
        return None
    order = "last" if shape[2] <= shape[0] else "first"
    height, width, channels = shape if order == "last" else (*shape[1:], shape[0])
    return Picture(height, width, channels, 1, order) if min(height, width) >= GRID_MIN else None


def bytes_range(leaf: spaces.Box) -> bool:
    """Whether the values are bytes, whatever their type: all bounds are 0 and 255."""
    return bool(leaf.low.size and np.all(leaf.low == 0) and np.all(leaf.high == 255))


def describe(leaf: gym.Space[Any], config: NetworkConfig, path: str = "") -> str:
    """How a leaf is read, in words."""
    picture = picture_of(leaf, config, path)
    if picture is None:
        if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)):
            return "one-hot"
        size = math.prod(leaf.shape or ())
        return "vector" if size <= WIDE else f"vector of {size:,} numbers (no picture by its axes)"
    frames = f"{picture.frames} frames, " if picture.frames > 1 else ""
    order = "grey" if picture.order == "none" else f"channels {picture.order}"
    per_frame = picture.channels // picture.frames
    return f"picture {picture.height}×{picture.width}×{per_frame} ({frames}{order})"


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """`layer` does it; torch's way draws from the process's own generator."""


class _Conv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """As for `Linear`."""


def layer(
    kind: Callable[..., nn.Linear | nn.Conv2d],
    *sizes: Any,
    gain: float,
    generator: torch.Generator,
) -> nn.Module:
    """An orthogonal layer with bias 0, drawn from `generator` alone."""
    made = kind(*sizes)
    nn.init.orthogonal_(made.weight, gain, generator)
    nn.init.zeros_(cast(torch.Tensor, made.bias))
    return made


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
    """Boxes and MultiBinary as vectors (n, width); bytes by `scale`."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.width, self.scale = width, scale

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        flat = obs.reshape(len(obs), -1).float()
        return flat if self.scale == 1 else flat * self.scale


class Normalised(Moments):
    """Boxes as vectors (n, width), normalised by running mean and variance."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.width = width

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        mean, variance = cast(torch.Tensor, self.mean), cast(torch.Tensor, self.variance)
        shifted = obs.reshape(len(obs), -1) - mean  # in float64: large integers keep what tells them apart
        return (shifted / torch.sqrt(variance + 1e-8)).clamp(-10, 10).float()

    def observe(self, obs: torch.Tensor, rows: torch.Tensor) -> None:
        """Take these rows of a column (n, …) into the statistics."""
        self.fold(obs.index_select(0, rows).reshape(len(rows), -1))


class Grid(nn.Module):
    """Pictures (n, h, w, c) or (n, c, h, w) of a few cells → (n, width), by three 2×2 convolutions.

    Such grids (MiniGrid) hold small codes, not intensities, so integers are divided by 10. Under the encoders of
    version 0.1 it was also for larger ones, and the network of Mnih et al. 2015, on values / 255, from 36 pixels on.
    """

    def __init__(self, leaf: spaces.Box, picture: Picture, version: int, generator: torch.Generator) -> None:
        super().__init__()
        self.channels_last = picture.order == "last"
        h, w, c = picture.height, picture.width, picture.channels
        self.large = large = min(h, w) >= LARGE
        integers = np.issubdtype(leaf.dtype, np.integer) or (version > 1 and bytes_range(leaf))
        self.scale = 1.0 if not integers else 1 / 255 if large else 1 / 10
        gain = math.sqrt(2)
        plan = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, 2, 1), (32, 2, 1), (64, 2, 1)]
        layers: list[nn.Module] = []
        for out, kernel, stride in plan:
            layers += [layer(_Conv2d, c, out, kernel, stride, gain=gain, generator=generator), nn.ReLU(True)]
            h, w, c = (h - kernel) // stride + 1, (w - kernel) // stride + 1, out
        self.width = 512 if large else 128
        last = layer(Linear, h * w * c, self.width, gain=gain, generator=generator)
        self.layers = nn.Sequential(*layers, nn.Flatten(), last, nn.ReLU(True))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        pixels = obs.permute(0, 3, 1, 2) if self.channels_last else obs
        if not self.large:  # faster channel by channel, 0.9 of the time; large images are faster as they come
            pixels = pixels.contiguous()
        return cast(torch.Tensor, self.layers(pixels.float() * self.scale))


class Pixels(Moments):
    """Pictures of any size from 8×8 on, stacks of them, any type and range → (n, width).

    Values are normalised by one running mean and deviation (until there is any: by the bounds), so that bytes, floats
    up to 255, floats up to 1, faint contrasts and small codes look alike. Long sides are averaged down. Each side then
    has its own kernels and strides: from 36 pixels on those of Mnih et al. 2015, below 3×3 ones; what is left is at
    most 10×10, however long the picture was.
    """

    def __init__(self, leaf: spaces.Box, picture: Picture, generator: torch.Generator) -> None:
        super().__init__(1, variance=_spread(leaf) ** 2)
        self.largest = _spread(leaf)
        self.picture = picture
        h, w, c = picture.height, picture.width, picture.channels
        self.pool = (_pooled(h), _pooled(w))
        h, w = h // self.pool[0], w // self.pool[1]
        large = max(h, w) >= LARGE
        gain = math.sqrt(2)
        layers: list[nn.Module] = []
        steps = zip((32, 64, 64) if large else (16, 32, 32), _convolutions(h, large), _convolutions(w, large))
        for out, vertical, horizontal in steps:
            sizes, strides, paddings = zip(vertical, horizontal)
            layers += [
                layer(_Conv2d, c, out, sizes, strides, paddings, gain=gain, generator=generator),
                nn.ReLU(True),
            ]
            h, w = (
                (n + 2 * padding - size) // stride + 1
                for n, size, stride, padding in zip((h, w), sizes, strides, paddings)
            )
            c = out
        self.width = 512 if large else 256
        last = layer(Linear, h * w * c, self.width, gain=gain, generator=generator)
        self.layers = nn.Sequential(*layers, nn.Flatten(), last, nn.ReLU(True))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        pixels = self._channels_first(obs).float()
        if self.pool != (1, 1):
            pixels = self._averaged(pixels)
        mean, variance = cast(torch.Tensor, self.mean), cast(torch.Tensor, self.variance)
        scale = torch.rsqrt(variance + 1e-12)
        shifted = pixels - mean.float()  # new memory: `pixels` may be the rollout's own
        return cast(torch.Tensor, self.layers(shifted.mul_(scale.float()).clamp_(-10, 10)))

    def _averaged(self, pixels: torch.Tensor) -> torch.Tensor:
        """As `avg_pool2d`, which on the CPU takes five times as long where channels come last."""
        if pixels.is_cuda:  # where a convolution rounds more coarsely (TF32)
            return F.avg_pool2d(pixels, self.pool)
        channels = pixels.shape[1]
        kernel = pixels.new_full((channels, 1, *self.pool), 1 / math.prod(self.pool))
        return F.conv2d(pixels, kernel, stride=self.pool, groups=channels)

    def _channels_first(self, obs: torch.Tensor) -> torch.Tensor:
        _h, _w, channels, frames, order = self.picture
        if order == "none":
            return obs[:, None]
        if order == "last":
            obs = obs.movedim(-1, -3)
        return obs.reshape(len(obs), channels, *obs.shape[-2:]) if frames > 1 else obs

    def observe(self, obs: torch.Tensor, rows: torch.Tensor) -> None:
        """Take some of these rows of a column (n, …) into the statistics."""
        some = rows[:: -(-len(rows) // OBSERVED)]
        self.fold(obs.index_select(0, some).reshape(-1, 1))


def _spread(leaf: spaces.Box) -> float:
    """The largest value by the bounds; 1 where they are no help."""
    largest = float(max(np.abs(leaf.low).max(initial=0), np.abs(leaf.high).max(initial=0)))
    return largest if 0 < largest <= 1e6 else 1.0


def _pooled(side: int) -> int:
    """How many pixels of a side become one."""
    return 1 if side <= WHOLE else -(-side // REDUCED)


def _convolutions(side: int, large: bool) -> tuple[tuple[int, int, int], ...]:
    """Kernel size, stride and padding of the three convolutions along one side; `large`: the other one may be."""
    if side >= LARGE:
        return (8, 4, 0), (4, 2, 0), (3, 1, 0)
    if side >= 20:
        return (3, 2, 1), (3, 2, 1), (3, 2, 1)
    if side >= PIXELS_MIN:
        return ((3, 2, 1), (3, 2, 1), (3, 1, 1)) if large else ((3, 1, 1), (3, 2, 1), (3, 2, 1))
    return (3, 1, 1), (3, 1, 1), (3, 2, 1)


Encoder = OneHot | Flat | Normalised | Grid | Pixels


def encoder(leaf: gym.Space[Any], path: str, config: NetworkConfig, generator: torch.Generator) -> Encoder:
    """What reads one leaf. Raises `ConfigError` for a kind that nothing reads."""
    picture = picture_of(leaf, config, path)
    match leaf:
        case spaces.Discrete() | spaces.MultiDiscrete():
            return OneHot(leaf)
        case spaces.Box() if picture is not None:
            if config.encoders == 1 or max(picture.height, picture.width) < PIXELS_MIN:
                return Grid(leaf, picture, config.encoders, generator)
            return Pixels(leaf, picture, generator)
        case spaces.Box():
            width = math.prod(leaf.shape)
            if config.normalise_obs and (config.encoders > 1 or np.issubdtype(leaf.dtype, np.floating)):
                return Normalised(width)
            return Flat(width, 1 / 255 if config.encoders > 1 and bytes_range(leaf) else 1.0)
        case spaces.MultiBinary():
            return Flat(math.prod(leaf.shape))
        case _:
            where = f" at {path!r}" if path else ""
            raise ConfigError(
                f"no network for the observation space {leaf}{where}; known: Box, Discrete, "
                "MultiDiscrete, MultiBinary, and Dict or Tuple of these"
            )
