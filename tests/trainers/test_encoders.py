"""How observations are read: which are pictures, which axis holds the channels, and that scale does not matter."""
# pure: spaces and tensors

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces as S

from trainers.config import ConfigError, NetworkConfig
from trainers.learn.actions import action_head
from trainers.learn.encoders import Encoder, Grid, Normalised, Pixels, describe, encoder, picture_of
from trainers.learn.networks import ActorCritic

CONFIG = NetworkConfig()


def made(leaf: Any, config: NetworkConfig = CONFIG) -> Encoder:
    return encoder(leaf, "", config, torch.Generator().manual_seed(0))


def unit(*shape: int) -> S.Box:
    return S.Box(0, 1, shape, np.float32)


@pytest.mark.parametrize(
    ("shape", "order", "size"),
    [
        ((16, 16, 29), "last", (16, 16, 29)),  # more channels than pixels
        ((29, 16, 16), "first", (16, 16, 29)),
        ((5, 4, 26), "last", (5, 4, 26)),
        ((26, 5, 4), "first", (5, 4, 26)),
        ((4, 4, 16), "last", (4, 4, 16)),
        ((84, 84, 4), "last", (84, 84, 4)),
        ((4, 84, 84), "first", (84, 84, 4)),
        ((210, 160, 3), "last", (210, 160, 3)),
        ((3, 210, 160), "first", (210, 160, 3)),
        ((3, 8, 160), "first", (8, 160, 3)),  # elongated
        ((160, 8, 3), "last", (160, 8, 3)),
        ((160, 8, 4), "last", (160, 8, 4)),
        ((4, 100, 3), "last", (4, 100, 3)),
        ((6, 7, 2), "last", (6, 7, 2)),
        ((12, 160, 210), "first", (160, 210, 12)),
        ((7, 7, 7), "last", (7, 7, 7)),
        ((4, 84, 84, 3), "last", (84, 84, 12)),  # a stack of frames
        ((4, 3, 84, 84), "first", (84, 84, 12)),
        ((4, 84, 84, 1), "last", (84, 84, 4)),
    ],
)
def test_channels_are_found(shape: tuple[int, ...], order: str, size: tuple[int, int, int]) -> None:
    picture = picture_of(unit(*shape), CONFIG)
    assert picture is not None
    assert (picture.order, picture[:3]) == (order, size)


def test_settings_say_it_where_the_shape_does_not() -> None:
    first = picture_of(unit(8, 8, 3), NetworkConfig(channels="first"))
    assert first is None, "sides of 8 and 3"
    grid = unit(8, 9, 10)
    assert picture_of(grid, NetworkConfig(channels="first"))[:3] == (9, 10, 8)  # type: ignore[index]
    assert picture_of(grid, NetworkConfig(channels="last"))[:3] == (8, 9, 10)  # type: ignore[index]
    assert picture_of(grid, NetworkConfig(vectors=("*",))) is None
    assert picture_of(grid, NetworkConfig(vectors=("a/b",)), "a/b") is None
    assert picture_of(grid, NetworkConfig(vectors=("a/b",)), "a/c") is not None
    space = S.Dict({"grid": grid})
    with pytest.raises(ConfigError, match=r"network\.vectors: no observation 'gird'; known: grid"):
        ActorCritic(space, action_head(S.Discrete(2)), NetworkConfig(vectors=("gird",)), seed=0)
    with pytest.raises(ConfigError, match=r"network\.log_std must be a number"):
        NetworkConfig(log_std=float("nan"))


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (S.Box(0, 255, (4, 84, 84, 3), np.uint8), "picture 84×84×3 (4 frames, channels last)"),
        (S.Box(0, 255, (84, 80), np.uint8), "picture 84×80×1 (grey)"),
        (S.Box(-1, 1, (40, 80), np.float32), "vector"),  # entities and their features
        (S.Box(0, 255, (84, 84, 3, 4), np.uint8), "vector of 84,672 numbers (no picture by its axes)"),
        (S.Box(-1, 1, (4, 5, 5, 2), np.float32), "vector"),
        (S.Box(0, 255, (3, 3, 2), np.uint8), "vector"),
        (S.Box(0, 255, (128,), np.uint8), "vector"),
        (S.Discrete(3), "one-hot"),
    ],
)
def test_it_is_said_how_a_leaf_is_read(leaf: Any, words: str) -> None:
    assert describe(leaf, CONFIG) == words


SIDES = (4, 7, 8, 9, 16, 19, 20, 32, 35, 36, 40, 84, 110, 111, 160, 210)


@pytest.mark.parametrize("height", SIDES)
def test_pictures_of_any_size_have_a_network_of_bounded_size(
    height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cliff between sizes, and no explosion for long ones."""
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda weight, *_: weight)  # slow, and beside the point
    for width in SIDES:
        space = S.Box(0, 255, (height, width, 3), np.uint8)
        reads = made(space, NetworkConfig(channels="last"))
        assert isinstance(reads, Grid) == (max(height, width) < 8)
        features = reads(torch.zeros(2, height, width, 3, dtype=torch.uint8))
        assert features.shape == (2, reads.width)
        assert sum(p.numel() for p in reads.parameters()) < 3_500_000


def test_a_long_picture_is_averaged_down() -> None:
    """Each side by itself, in any order of the axes; what does not fill a pixel is left out."""
    for shape, frames in (((211, 160, 3), 1), ((3, 211, 160), 1), ((2, 211, 160, 3), 2)):
        reads = made(S.Box(-9, 9, shape, np.float32))
        assert isinstance(reads, Pixels)
        assert reads.pool == (3, 2)
        pixels = torch.randn(2, 3 * frames, 211, 160)
        expected = torch.nn.functional.avg_pool2d(pixels, (3, 2))
        assert expected.shape[-2:] == (70, 80)
        for given in (pixels, pixels.to(memory_format=torch.channels_last)):
            torch.testing.assert_close(reads._averaged(given), expected)
    reads = made(S.Box(0, 255, (16, 20_000, 1), np.uint8))
    assert sum(p.numel() for p in reads.parameters()) < 3_500_000
    made(S.Box(0, 255, (5, 2_000, 1), np.uint8))(torch.zeros(1, 5, 2000, 1))


@pytest.mark.parametrize("size", [7, 12, 40])
def test_float_pictures_up_to_255_are_read_as_bytes_are(size: int) -> None:
    """The first rollout too, before there are statistics."""
    bytes_, floats = S.Box(0, 255, (size, size, 3), np.uint8), S.Box(0, 255, (size, size, 3), np.float64)
    pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    torch.testing.assert_close(made(bytes_)(pixels), made(floats)(pixels.double()))


@pytest.mark.parametrize("shape", [(12, 12, 3), (3, 12, 12), (2, 12, 12, 3), (2, 3, 12, 12), (12, 12)])
def test_scale_and_offset_of_a_picture_do_not_matter(shape: tuple[int, ...]) -> None:
    """Once there are statistics: bytes, faint contrasts, and floats of any size look alike. Axes too: a frame is the
    same picture in any order."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, *shape)).astype(np.uint8)
    features = []
    kinds: list[tuple[float, float, Any, float, float]] = [
        (0, 255, np.uint8, 1, 0), (0, 1, np.float32, 1 / 255, 0), (-np.inf, np.inf, np.float64, 1e4, 3e5),
    ]  # fmt: skip
    for low, high, dtype, scale, offset in kinds:
        leaf = S.Box(low, high, shape, dtype)
        if len(shape) == 2 and dtype != np.uint8:
            continue
        reads = made(leaf)
        assert isinstance(reads, Pixels)
        column = torch.from_numpy((pixels * scale + offset).astype(dtype))
        reads.observe(column, torch.arange(8))
        features.append(reads(column))
    for other in features[1:]:
        torch.testing.assert_close(features[0], other, rtol=1e-2, atol=1e-2)


def test_a_stack_of_frames_is_a_picture_of_all_channels() -> None:
    frames = torch.rand(2, 4, 16, 16, 3)
    last, first = made(unit(4, 16, 16, 3)), made(unit(4, 3, 16, 16))
    together = made(unit(12, 16, 16))
    merged = frames.movedim(-1, -3)
    torch.testing.assert_close(last(frames), first(merged))
    torch.testing.assert_close(last(frames), together(merged.reshape(2, 12, 16, 16)))


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(np.int64, 1_700_000_000), (np.uint64, 1_700_000_000), (np.float64, 1_700_000_000), (np.int32, 10**9)]
    + [(dtype, 0) for dtype in (np.int8, np.uint8, np.uint16, np.float32)],
)
def test_numbers_of_every_type_are_normalised(dtype: type, offset: int) -> None:
    """Integers too; large ones keep what tells them apart."""
    rows: Any = np.array([[offset + 10 * c, c] for c in range(4)], dtype)
    reads = made(S.Box(0, offset + 100, (2,), dtype), NetworkConfig(normalise_obs=True))
    assert isinstance(reads, Normalised)
    column = torch.from_numpy(rows)
    reads.observe(column, torch.arange(4))
    expected = (np.arange(4) - 1.5) / np.arange(4).std()
    np.testing.assert_allclose(reads(column), np.stack([expected, expected], 1), rtol=1e-5)


def test_bytes_that_are_no_picture_are_scaled_too() -> None:
    rows = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    torch.testing.assert_close(made(S.Box(0, 255, (3,), np.uint8))(rows), torch.tensor([[0.0, 1.0, 0.2]]))
    assert made(S.Box(0, 9, (3,), np.uint8))(rows).tolist() == [[0, 255, 51]]
