"""Action heads: what numpy samples, torch evaluates; masks are never crossed."""
# pure: tables

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from trainers.config import ConfigError
from trainers.learn.actions import action_head

SPACES: list[gym.Space[Any]] = [
    gym.spaces.Discrete(4),
    gym.spaces.Discrete(3, start=5),
    gym.spaces.MultiDiscrete([2, 3, 4]),
    gym.spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    gym.spaces.Box(-1, 1, (3,), np.float32),
    gym.spaces.Box(np.array([[-1.0, 0.0]]), np.array([[1.0, 5.0]]), dtype=np.float64),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_samples_belong_to_the_space_and_are_evaluated_alike(space: gym.Space[Any]) -> None:
    head = action_head(space)
    rng = np.random.default_rng(0)
    params = rng.normal(size=(64, head.size)).astype(np.float32)
    mask = rng.random((64, head.mask_size)) < 0.7 if head.mask_size else None
    actions, log_probs = head.sample(params, rng, mask)
    assert actions.shape == (64, *head.shape)
    assert actions.dtype == head.dtype
    assert all(space.contains(action) for action in head.to_env(actions))
    torch_mask = None if mask is None else torch.from_numpy(mask)
    got, entropy = head.evaluate(torch.from_numpy(params), torch.from_numpy(actions), torch_mask)
    np.testing.assert_allclose(got.numpy(), log_probs, rtol=1e-4, atol=1e-4)
    assert entropy.shape == (64,)
    assert all(space.contains(action) for action in head.to_env(head.mode(params, mask)))


def test_sampling_follows_the_softmax() -> None:
    head = action_head(gym.spaces.Discrete(3))
    logits = np.tile(np.array([0.0, 1.0, -1.0], np.float32), (20_000, 1))
    actions, log_probs = head.sample(logits, np.random.default_rng(1), None)
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(np.bincount(actions[:, 0]) / 20_000, expected, atol=0.015)
    np.testing.assert_allclose(np.exp(log_probs), expected[actions[:, 0]], rtol=1e-5)


def test_masked_actions_are_never_drawn_and_weigh_nothing() -> None:
    head = action_head(gym.spaces.MultiDiscrete([2, 3]))
    logits = np.zeros((500, 5), np.float32)
    logits[:, [1, 4]] = 20.0  # the favourites are forbidden
    mask = np.tile(np.array([True, False, True, True, False]), (500, 1))
    actions, log_probs = head.sample(logits, np.random.default_rng(2), mask)
    assert set(actions[:, 0]) == {0}
    assert set(actions[:, 1]) == {0, 1}
    np.testing.assert_allclose(np.exp(log_probs), 0.5, rtol=1e-5)
    _, entropy = head.evaluate(torch.from_numpy(logits), torch.from_numpy(actions), torch.from_numpy(mask))
    np.testing.assert_allclose(entropy.numpy(), np.log(2), rtol=1e-5)
    nothing = np.zeros_like(mask)  # as after an episode's end: any action will do
    assert np.isfinite(head.sample(logits, np.random.default_rng(3), nothing)[1]).all()


def test_a_box_is_clipped_for_the_env_only() -> None:
    head = action_head(gym.spaces.Box(-0.1, 0.1, (2,), np.float32))
    params = np.zeros((8, 4), np.float32)
    actions, _ = head.sample(params, np.random.default_rng(0), None)
    assert np.abs(actions).max() > 0.1
    assert np.abs(head.to_env(actions)).max() <= np.float32(0.1)


@pytest.mark.parametrize(
    "space", [gym.spaces.Text(5), gym.spaces.MultiBinary(3), gym.spaces.Box(0, 5, (1,), np.int64)], ids=str
)
def test_an_unknown_action_space_is_named(space: gym.Space[Any]) -> None:
    with pytest.raises(ConfigError, match="no policy for the action space"):
        action_head(space)
