"""One PPO update: the loss equals a row-by-row twin, and rows that never ran weigh nothing."""
# pure: numbers in, numbers out

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from trainers.config import NetworkConfig, PPOConfig
from trainers.learn.actions import ActionHead, action_head
from trainers.learn.networks import ActorCritic, leaf_spaces
from trainers.learn.policy import Policy
from trainers.learn.ppo import UpdateStats, make_optimiser, update
from trainers.learn.rollout import Rollout, generalised_advantages

SPACE = gym.spaces.Box(-1, 1, (3,), np.float32)
CONFIG = PPOConfig(num_steps=8, lr=1e-2, epochs=1, minibatches=1, entropy=0.02, value=0.5, clip=0.1)


def setup(seed: int = 0) -> tuple[ActorCritic, ActionHead, Rollout]:
    """A model and a full rollout of 8 × 4 rows, with ends and resets, collected by a slightly different policy."""
    rng = np.random.default_rng(seed)
    head = action_head(gym.spaces.Discrete(3))
    model = ActorCritic(SPACE, head, NetworkConfig(hidden=(8,)), seed=seed)
    rollout = Rollout(8, 4, leaf_spaces(SPACE), action_shape=head.shape, action_dtype=head.dtype, mask_size=3)
    rollout.obs[""][:-1] = rng.uniform(-1, 1, (8, 4, 3))
    rollout.actions[:] = rng.integers(0, 2, rollout.actions.shape)
    assert rollout.masks is not None
    rollout.masks[:, :, 2] = False
    rollout.log_probs[:] = -0.69 + rng.normal(0, 0.2, (8, 4))
    rollout.values[:] = rng.normal(0, 1, (8, 4))
    rollout.rewards[:] = rng.normal(0, 1, (8, 4))
    rollout.terminations[2, 0] = rollout.truncations[4, 1] = True
    rollout.first[3, 0] = rollout.first[5, 1] = True
    rollout.first[6, 2] = rollout.truncations[6, 2] = True  # a lost worker
    rollout.cursor[:] = 8
    return model, head, rollout


LAST = np.array([0.1, -0.2, 0.3, 0.4], np.float32)


def run(model: ActorCritic, head: ActionHead, rollout: Rollout, config: PPOConfig = CONFIG) -> UpdateStats:
    rng = np.random.default_rng(9)
    return update(
        model, make_optimiser(model, config), head, rollout, LAST, config, rates=config.rates(0.0), rng=rng
    )


@pytest.mark.parametrize("clip_value", [None, 0.1])
def test_the_losses_equal_a_twin_that_goes_row_by_row(clip_value: float | None) -> None:
    model, head, rollout = setup()
    config = replace(CONFIG, clip_value=clip_value)
    advantages = generalised_advantages(
        rollout.rewards, rollout.values, LAST, rollout.terminations, rollout.truncations, rollout.first,
        gamma=config.gamma, lam=config.gae_lambda,
    )  # fmt: skip
    rows = [(t, i) for t in range(8) for i in range(4) if not rollout.first[t, i]]
    assert len(rows) == 29
    scale = [float(advantages[at]) for at in rows]
    mean = sum(scale) / len(scale)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in scale) / (len(scale) - 1))
    policy_losses, value_losses, entropies, kls, outside = [], [], [], [], []
    for t, i in rows:
        with torch.no_grad():
            params, value = model({"": torch.from_numpy(rollout.obs[""][t, i][None])})
        logits = params[0, :2].numpy().astype(float)  # the third action is masked
        probabilities = np.exp(logits) / np.exp(logits).sum()
        log_ratio = math.log(probabilities[rollout.actions[t, i, 0]]) - float(rollout.log_probs[t, i])
        ratio = math.exp(log_ratio)
        advantage = (float(advantages[t, i]) - mean) / (deviation + 1e-8)
        policy_losses.append(-min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage))
        old, target = float(rollout.values[t, i]), float(advantages[t, i] + rollout.values[t, i])
        error = (float(value) - target) ** 2
        if clip_value is not None:
            near = old + min(max(float(value) - old, -clip_value), clip_value)
            error = max(error, (near - target) ** 2)
        value_losses.append(0.5 * error)
        entropies.append(-sum(p * math.log(p) for p in probabilities))
        kls.append(ratio - 1 - log_ratio)
        outside.append(abs(ratio - 1) > 0.1)
    stats = run(model, head, rollout, config)
    assert stats.policy_loss == pytest.approx(np.mean(policy_losses), rel=1e-3, abs=1e-5)
    assert stats.value_loss == pytest.approx(np.mean(value_losses), rel=1e-4)
    assert stats.entropy == pytest.approx(np.mean(entropies), rel=1e-4)
    assert stats.approx_kl == pytest.approx(np.mean(kls), rel=1e-3)
    assert stats.clip_fraction == pytest.approx(np.mean(outside))
    assert stats.valid_rows == 29


def test_rows_whose_action_never_ran_change_nothing() -> None:
    model, head, rollout = setup()
    run(model, head, rollout)
    twin, head, other = setup()
    at = np.nonzero(other.first)
    other.actions[at], other.log_probs[at], other.rewards[at] = 0, -9.0, 1e6
    run(twin, head, other)
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


def test_a_valid_row_does_change_it() -> None:
    model, head, rollout = setup()
    run(model, head, rollout)
    twin, head, other = setup()
    other.rewards[0, 3] += 1
    run(twin, head, other)
    assert any(not torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_explained_variance() -> None:
    model, head, rollout = setup()
    config = replace(CONFIG, gamma=0.0, gae_lambda=0.0)  # returns are the rewards
    rollout.values[:] = rollout.rewards
    assert run(model, head, rollout, config).explained_variance == pytest.approx(1.0)
    rollout.values[:] = 0
    assert run(model, head, rollout, config).explained_variance == pytest.approx(0.0, abs=1e-6)
    rollout.rewards[:] = 3
    assert run(model, head, rollout, config).explained_variance == 0.0


def test_target_kl_ends_the_update_early() -> None:
    model, head, rollout = setup()
    stats = run(model, head, rollout, replace(CONFIG, epochs=5, target_kl=1e-9))
    assert stats.passes == 1
    model, head, rollout = setup()
    assert run(model, head, rollout, replace(CONFIG, epochs=5)).passes == 5


def test_more_minibatches_than_valid_rows_is_no_trouble() -> None:
    model, head, rollout = setup()
    rollout.first[:] = True
    rollout.first[0, :2] = False
    stats = run(model, head, rollout, replace(CONFIG, minibatches=8))
    assert stats.valid_rows == 2
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_rollout_in_which_nothing_was_executed_teaches_nothing() -> None:
    head = action_head(gym.spaces.Discrete(3))
    model = ActorCritic(SPACE, head, NetworkConfig(hidden=(8,), normalise_obs=True), seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, _, rollout = setup()
    rollout.first[:] = True
    assert run(model, head, rollout).valid_rows == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.int64])
def test_discrete_observations_of_any_width_are_learned_from(kind: Any) -> None:
    space = gym.spaces.Discrete(5, dtype=kind)
    _, head, filled = setup()
    model = ActorCritic(space, head, NetworkConfig(hidden=(8,)), seed=0)
    rollout = Rollout(8, 4, leaf_spaces(space), action_shape=head.shape, action_dtype=head.dtype)
    rollout.see(np.arange(4), {"": np.arange(1, 5).astype(kind)})
    rollout.act(np.arange(4), filled.actions[0], *filled.log_probs[:2])
    assert rollout.obs[""][0].tolist() == [1, 2, 3, 4]
    assert run(model, head, rollout).valid_rows == 32


def test_it_learns_which_arm_pays() -> None:
    head = action_head(gym.spaces.Discrete(3))
    model = ActorCritic(SPACE, head, NetworkConfig(hidden=(8,)), seed=0)
    policy = Policy(model, head, torch.device("cpu"))
    config = replace(CONFIG, epochs=4, minibatches=2, clip=0.2, entropy=0.0)
    optimiser = make_optimiser(model, config)
    rng = np.random.default_rng(0)
    rollout = Rollout(8, 16, leaf_spaces(SPACE), action_shape=head.shape, action_dtype=head.dtype)
    everyone, none, obs = np.arange(16), np.zeros(16, bool), {"": np.zeros((16, 3), np.float32)}
    rollout.see(everyone, obs)
    for _ in range(15):
        rollout.clear()
        while not rollout.full:
            actions, log_probs, values = policy.act(obs, rng)
            rollout.act(everyone, actions, log_probs, values)
            rollout.outcome(everyone, (actions[:, 0] == 2).astype(float), ~none, none, none)
            rollout.see(everyone, obs)
        update(
            model,
            optimiser,
            head,
            rollout,
            policy.values(rollout.last_obs),
            config,
            rates=config.rates(0.0),
            rng=rng,
        )
    chosen: Any = policy.choose(obs, None, rng, True)
    assert (chosen == 2).all()


def test_torch_never_fights_with_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from trainers.config import TrainConfig
    from trainers.learn.learner import torch_threads

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    image = gym.spaces.Box(0, 255, (7, 7, 3), np.uint8)
    config = TrainConfig()
    assert torch_threads(config, 2, SPACE) == 1, "a small network is slower with more"
    assert [torch_threads(config, busy, image) for busy in (0, 1, 6, 8, 20)] == [8, 7, 2, 1, 1]
    assert torch_threads(replace(config, torch_threads=3), 8, SPACE) == 3
    assert torch_threads(replace(config, deterministic=True), 1, image) == 1
