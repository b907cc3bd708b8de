"""Networks are built from spaces; what they are built from is all that they depend on."""
# pure: tables

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from trainers.config import ConfigError, NetworkConfig
from trainers.learn.actions import action_head
from trainers.learn.encoders import OneHot
from trainers.learn.networks import ActorCritic, has_image, leaf_arrays, leaf_spaces
from trainers.learn.policy import Policy

IMAGE = spaces.Box(0, 255, (84, 84, 4), np.uint8)
GRID = spaces.Box(0, 255, (7, 7, 3), np.uint8)
NESTED = spaces.Dict(
    {"image": GRID, "direction": spaces.Discrete(4), "inner": spaces.Dict({"x": spaces.Box(0, 1, (2,))})}
)
SPACES: list[gym.Space[Any]] = [
    spaces.Box(-1, 1, (5,), np.float32),
    spaces.Box(-1, 1, (2, 3), np.float64),
    spaces.Box(-1, 1, (), np.float32),
    spaces.Discrete(64),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(6),
    IMAGE,
    spaces.Box(0, 255, (3, 64, 48), np.uint8),
    GRID,
    spaces.Box(0, 255, (3, 3, 2), np.uint8),  # too small for convolutions
    NESTED,
    spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,)))),
    spaces.Dict({"x": spaces.Box(0, 1, (2,)), "action_mask": spaces.MultiBinary(3)}),
]
MORE: list[gym.Space[Any]] = [
    spaces.Box(0, 255, (40, 9, 3), np.float32),
    spaces.Box(0, 1, (4, 16, 16, 3), np.float32),  # a stack of frames
    spaces.Box(0, 255, (20, 30), np.uint8),  # grey
    spaces.Box(0, 255, (9, 230, 1), np.uint8),  # averaged down
    spaces.Box(-(2**40), 2**40, (3,), np.int64),
]


def batch_of(space: gym.Space[Any], n: int) -> dict[str, torch.Tensor]:
    space.seed(0)
    batched: Any = gym.vector.utils.create_empty_array(space, n)
    stacked = gym.vector.utils.concatenate(space, [space.sample() for _ in range(n)], batched)
    return {key: torch.as_tensor(array) for key, array in leaf_arrays(space, stacked).items()}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("space", [*SPACES, *MORE], ids=str)
def test_every_space_gives_params_and_values(space: gym.Space[Any], shared: bool) -> None:
    for actions in (spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)):
        head = action_head(actions)
        model = ActorCritic(space, head, NetworkConfig(hidden=(8, 8), shared=shared), seed=0)
        params, values = model(batch_of(space, 6))
        assert params.shape == (6, head.size)
        assert values.shape == (6,)
        assert params.dtype == values.dtype == torch.float32
        assert torch.isfinite(params).all()


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)], ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("space", [*SPACES, *MORE], ids=str)
def test_what_acts_computes_what_learns(space: gym.Space[Any], shared: bool, actions: gym.Space[Any]) -> None:
    """Small networks without images act by numpy, observation statistics included."""
    config = NetworkConfig(hidden=(8, 8), shared=shared, normalise_obs=shared)
    model = ActorCritic(space, action_head(actions), config, seed=0)
    model.observe(batch_of(space, 6), torch.arange(5))
    with torch.no_grad():  # nothing that the start leaves at 0
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    policy = Policy(model, action_head(actions), torch.device("cpu"))
    assert (policy._small is None) == has_image(space)
    batch = batch_of(space, 6)
    with torch.inference_mode():
        params, values = (part.numpy() for part in model(batch))
    got = policy._infer({key: column.numpy() for key, column in batch.items()})
    np.testing.assert_allclose(got[0], params, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[1], values, rtol=1e-5, atol=1e-5)


def test_the_seed_alone_decides_the_start() -> None:
    head = action_head(spaces.Discrete(3))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ActorCritic(NESTED, head, NetworkConfig(), seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "the process's generator was used"
    torch.manual_seed(2)
    second = ActorCritic(NESTED, head, NetworkConfig(), seed=5).state_dict()
    other = ActorCritic(NESTED, head, NetworkConfig(), seed=6).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_the_policy_starts_near_uniform() -> None:
    model = ActorCritic(SPACES[0], action_head(spaces.Discrete(4)), NetworkConfig(), seed=0)
    params, _ = model(batch_of(SPACES[0], 32))
    assert torch.softmax(params, 1).sub(0.25).abs().max() < 0.02


def test_one_hot_counts_from_the_start_of_the_space() -> None:
    hot = OneHot(spaces.Discrete(3, start=-1))(torch.tensor([-1, 0, 1]))
    assert torch.equal(hot, torch.eye(3))
    multi = OneHot(spaces.MultiDiscrete([2, 3]))(torch.tensor([[1, 0], [0, 2]]))
    assert multi.tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_channels_may_come_first_or_last() -> None:
    head = action_head(spaces.Discrete(2))
    last = ActorCritic(spaces.Box(0, 255, (12, 12, 3), np.uint8), head, NetworkConfig(), seed=3)
    first = ActorCritic(spaces.Box(0, 255, (3, 12, 12), np.uint8), head, NetworkConfig(), seed=3)
    pixels = torch.randint(0, 255, (2, 12, 12, 3), dtype=torch.uint8)
    torch.testing.assert_close(last({"": pixels})[0], first({"": pixels.permute(0, 3, 1, 2)})[0])


def test_observation_statistics_are_those_of_all_rows() -> None:
    space = spaces.Box(-100, 100, (2,), np.float64)
    model = ActorCritic(space, action_head(spaces.Discrete(2)), NetworkConfig(normalise_obs=True), seed=0)
    rows = torch.randn(100, 2, dtype=torch.float64) * torch.tensor([3.0, 0.1]) + 50
    for begin in range(0, 100, 33):
        model.observe({"": rows}, torch.arange(begin, min(begin + 33, 100)))
    state = model.state_dict()
    torch.testing.assert_close(state["encoders.0.mean"], rows.mean(0))
    torch.testing.assert_close(state["encoders.0.variance"], rows.var(0, correction=0))
    features = model.encoders[0](rows)
    assert features.mean(0).abs().max() < 1e-5
    assert (features.std(0) - 1).abs().max() < 0.01


def test_leaves_keep_their_paths() -> None:
    assert list(leaf_spaces(NESTED)) == ["direction", "image", "inner/x"]
    assert list(leaf_spaces(SPACES[0])) == [""]
    assert list(leaf_spaces(SPACES[13])) == ["x"], "the mask is no observation"
    assert has_image(NESTED)
    assert not has_image(SPACES[10])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(3)})}),
        spaces.Dict({"a~1b": spaces.Discrete(2), "a/b": spaces.Discrete(3)}),
        spaces.Dict({"": spaces.Dict({"b": spaces.Discrete(2)}), "b": spaces.Discrete(3)}),
        spaces.Tuple((spaces.Tuple((spaces.Discrete(2),)), spaces.Dict({"0": spaces.Discrete(3)}))),
        spaces.Dict({"0/1": spaces.Discrete(2), "0": spaces.Tuple((spaces.Discrete(3), spaces.Discrete(4)))}),
        spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Discrete(3)}),
    ],
    ids=str,
)
def test_every_leaf_reaches_the_network(space: gym.Space[Any]) -> None:
    """Whatever keys are called: no two leaves share a path, each array belongs to its leaf, each moves the outputs."""
    leaves = leaf_spaces(space)
    batch = batch_of(space, 4)
    assert set(leaves) == set(batch)
    assert all(space.contains(int(batch[key][0])) for key, space in leaves.items())
    assert sorted(space.n for space in leaves.values()) == [2, 3, 4][: len(leaves)]  # type: ignore[attr-defined]
    model = ActorCritic(space, action_head(spaces.Discrete(2)), NetworkConfig(hidden=(8,)), seed=0)
    still = {key: torch.zeros_like(column) for key, column in batch.items()}
    for key in leaves:
        moved = {**still, key: torch.ones_like(still[key])}
        assert not torch.equal(model(still)[1], model(moved)[1]), key


def test_an_unknown_observation_space_is_named() -> None:
    space = spaces.Dict({"words": spaces.Text(5)})
    with pytest.raises(ConfigError, match=r"no network for the observation space .* at 'words'"):
        ActorCritic(space, action_head(spaces.Discrete(2)), NetworkConfig(), seed=0)
