"""A run's policy outside training: it plays as it was trained, on every kind of observation."""
# pure: runs of a second, inline; then envs are stepped by hand

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import aio_vecenv as av
from tests.trainers.helpers import Corridor, corridor_job, tiny
from trainers import ConfigError, TrainConfig, load_policy, train
from trainers.config import NetworkConfig
from trainers.learn.networks import leaf_arrays, leaf_spaces
from trainers.record.checkpoint import CheckpointError, Checkpoints

pytestmark = pytest.mark.alternate_loops

KINDS = [(kind, False) for kind in ("vector", "discrete", "image", "dict", "dict_mask")] + [("vector", True)]


def a_run(runs: Path, kind: str = "vector", masked: bool = False, **changes: Any) -> Path:
    config: TrainConfig = replace(tiny(runs, name="run"), **changes)
    train(config, job=corridor_job(kind, masked))
    return runs / "run"


def test_a_trained_policy_does_what_it_learned(tmp_path: Path) -> None:
    run = a_run(tmp_path, total_steps=64 * 150, solve_rate=0.95, solve_window=50)
    env = Corridor()
    policy = load_policy(run, env)
    assert policy.checkpoint == Checkpoints(run / "checkpoints").paths()[-1]
    for goal in (1, 3):
        obs, info = env.reset(options={"level": {"goal": goal}})
        for _ in range(goal):  # straight to the goal: no step of 12 is wasted
            action = policy.act(obs, info)
            assert type(action) is int
            obs, reward, terminated, _, info = env.step(action)
        assert (terminated, reward) == (True, 1)


@pytest.mark.parametrize(("kind", "masked"), KINDS)
def test_it_acts_by_the_newest_checkpoint(tmp_path: Path, kind: str, masked: bool) -> None:
    """Greedy: the largest logit of the saved network, computed here by torch, one env at a time and in a batch."""
    run = a_run(
        tmp_path, kind, masked, total_steps=64 * 2, network=NetworkConfig(hidden=(16,), normalise_obs=True)
    )
    env = Corridor(kind, masked)
    policy = load_policy(run, env)
    seen: list[tuple[Any, dict[str, Any]]] = [env.reset(options={"level": {"goal": 12}})]
    for action in (1, 1, 0, 1, 1, 1):
        obs, _, _, _, info = env.step(action)
        seen.append((obs, info))
    rows: Any = gym.vector.utils.create_empty_array(env.observation_space, len(seen))
    batch = gym.vector.utils.concatenate(env.observation_space, [obs for obs, _ in seen], rows)
    leaves = leaf_arrays(env.observation_space, batch)
    tensors = {key: torch.from_numpy(leaves[key]) for key in leaf_spaces(env.observation_space)}
    with torch.inference_mode():
        logits = policy._policy.model(tensors)[0].numpy()
    saved = Checkpoints(run / "checkpoints").load_newest()[0].model
    assert all(torch.equal(saved[name], value) for name, value in policy._policy.model.state_dict().items())
    if masked or kind == "dict_mask":
        logits[:, 2] = -np.inf
    expected = logits.argmax(axis=1).tolist()
    assert [policy.act(obs, info) for obs, info in seen] == expected
    infos = {"action_mask": np.array([info["action_mask"] for _, info in seen])} if masked else {}
    assert policy.act_batch(batch, infos).tolist() == expected


def test_sampling_draws_from_the_policy_and_from_its_seed_alone(tmp_path: Path) -> None:
    run = a_run(tmp_path, total_steps=64)
    obs = np.zeros((3000, 3), np.float32)
    policy = load_policy(run, Corridor(), greedy=False, seed=5)
    drawn = policy.act_batch(obs)
    with torch.inference_mode():
        logits = policy._policy.model({"": torch.from_numpy(obs[:1])})[0]
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert np.abs(shares - torch.softmax(logits, 1).numpy()[0]).max() < 0.05
    again = load_policy(run, Corridor(), greedy=False, seed=5).act_batch(obs)
    assert (again == drawn).all()
    assert (load_policy(run, Corridor(), greedy=False, seed=6).act_batch(obs) != drawn).any()


def test_continuous_actions_keep_to_the_bounds(tmp_path: Path) -> None:
    train(tiny(tmp_path, name="run", env="Pendulum-v1", total_steps=64))
    env = gym.make("Pendulum-v1")
    policy = load_policy(tmp_path / "run", env, greedy=False)
    obs, _ = env.reset(seed=0)
    actions = [policy.act(obs * 100) for _ in range(200)]
    assert all(action.shape == (1,) and action in env.action_space for action in actions)
    assert len({float(action[0]) for action in actions}) > 100
    env.close()


@pytest.mark.asyncio
async def test_a_vec_env_says_what_it_will_see(tmp_path: Path) -> None:
    run = tmp_path / "run"
    async with av.AsyncVecEnv(lambda: Corridor("dict", True), 3, backend="inline") as envs:
        await asyncio.to_thread(a_run, tmp_path, "dict", True, total_steps=64)
        policy = load_policy(run, envs)
        obs, infos = await envs.reset(seed=0)
        for _ in range(14):  # a forbidden action would raise in the env
            batch = await envs.step(policy.act_batch(obs, infos))
            obs, infos = batch.obs, batch.infos


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run folder"):
        load_policy(tmp_path / "nowhere", Corridor())
    run = a_run(tmp_path, total_steps=64)
    with pytest.raises(
        CheckpointError, match=r"step-\d+\.pt: the saved network does not fit .* shape \[3\], here"
    ):
        load_policy(run, gym.make("CartPole-v1"))
    policy = load_policy(run, Corridor())
    with pytest.raises(ValueError, match=r"the observation .* is none of Box"):
        policy.act(np.zeros(4, np.float32))
    (tmp_path / "second").mkdir()
    discrete = load_policy(a_run(tmp_path / "second", "discrete", total_steps=64), Corridor("discrete"))
    for wrong in (99, -5):
        with pytest.raises(ValueError, match=rf"the observation {wrong} is none of Discrete"):
            discrete.act(wrong)
    for path in Checkpoints(run / "checkpoints").paths():
        path.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="torn"):
        load_policy(run, Corridor())
