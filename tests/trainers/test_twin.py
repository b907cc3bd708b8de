"""Numpy twins compute what torch computes, act as policies must, and need no torch."""
# pure: tables; one test looks into a fresh interpreter

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import aio_vecenv as av
from aio_vecenv.blas import same_threads_as_workers
from aio_vecenv.testing import check_policy
from tests.trainers.test_actions import SPACES as ACTIONS
from tests.trainers.test_networks import GRID, MORE
from tests.trainers.test_networks import SPACES as OBSERVATIONS
from trainers.config import NetworkConfig
from trainers.learn.actions import action_head
from trainers.learn.networks import ActorCritic, leaf_arrays
from trainers.learn.own_networks import parameters_of
from trainers.learn.twins import twin_of
from trainers.twin import Twin, TwinError, read_twin

pytestmark = pytest.mark.alternate_loops

VECTOR = OBSERVATIONS[0]


def built(
    space: gym.Space[Any], actions: gym.Space[Any], seed: int = 0, **config: Any
) -> tuple[ActorCritic, Any]:
    """A network in which nothing is left at the 0 or the near-uniform of its start."""
    head = action_head(actions)
    model = ActorCritic(space, head, NetworkConfig(**{"hidden": (64, 64), **config}), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3 / parameter[0].numel() ** 0.5)
    return model.eval(), head


def batch_of(space: gym.Space[Any], n: int) -> Any:
    space.seed(0)
    room: Any = gym.vector.utils.create_empty_array(space, n)
    return gym.vector.utils.concatenate(space, [space.sample() for _ in range(n)], room)


def tensors(space: gym.Space[Any], batch: Any) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(array) for key, array in leaf_arrays(space, batch).items()}


def twin(model: ActorCritic, head: Any, space: Any, **kwargs: Any) -> Twin:
    made = twin_of(model, head, space, **kwargs)
    assert made is not None
    return made


@pytest.mark.parametrize("actions", [ACTIONS[1], ACTIONS[2], ACTIONS[5]], ids=str)
@pytest.mark.parametrize(
    "config", [{}, {"shared": True, "activation": "relu", "normalise_obs": True}], ids=str
)
@pytest.mark.parametrize("space", [*OBSERVATIONS, *MORE], ids=str)
@same_threads_as_workers()  # numpy, with several, spends most of its time waiting for them
def test_a_twin_computes_what_torch_computes(space: Any, config: Any, actions: Any) -> None:
    """Every kind of observation, both activations, towers apart and shared; probabilities as the learner has them."""
    if isinstance(space, spaces.Dict) and "action_mask" in space.spaces and actions is not ACTIONS[1]:
        pytest.skip("that mask is for three actions")
    model, head = built(space, actions, **config)
    batch = batch_of(space, 40)
    model.observe(tensors(space, batch))  # statistics, where it has any
    rows = batch_of(space, 16)
    one = twin(model, head, space)
    noise = one.draw(np.random.default_rng(1), (16,))
    got, outputs = one.act(rows, noise)
    leaves = tensors(space, rows)
    masks = leaves.pop("action_mask").bool() if "action_mask" in leaves else None
    with torch.no_grad():
        params, _ = model(leaves)
        np.testing.assert_allclose(one._network(rows), params, rtol=1e-5, atol=1e-5)
        if "action" in outputs:
            stored = torch.from_numpy(outputs["action"])
        else:
            stored = torch.from_numpy((got - np.asarray(actions.start)).reshape(16, -1)).long()
        log_prob, _ = head.evaluate(params, stored, masks)
    np.testing.assert_allclose(outputs["log_prob"], log_prob, rtol=1e-5, atol=1e-5)
    assert all(actions.contains(action) for action in got)
    assert (got == head.to_env(stored.numpy())).all()
    greedy = twin(model, head, space, greedy=True)
    most, nothing = greedy.act(rows, greedy.draw(np.random.default_rng(1), (16,)))
    mask = None if masks is None else masks.numpy()
    np.testing.assert_allclose(most, head.to_env(head.mode(params.numpy(), mask)), rtol=1e-5, atol=1e-5)
    assert nothing == {}


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (VECTOR, ACTIONS[0]),
        (OBSERVATIONS[11], ACTIONS[2]),
        (OBSERVATIONS[13], ACTIONS[1]),
        (GRID, ACTIONS[5]),
    ],
    ids=str,
)
@same_threads_as_workers()  # numpy, with several, spends most of its time waiting for them
def test_a_twin_is_a_policy(space: Any, actions: Any, greedy: bool) -> None:
    model, head = built(space, actions)
    other, _ = built(space, actions, seed=1)
    one = twin(model, head, space, greedy=greedy)
    check_policy(one, space, actions, params=[parameters_of(one, other), parameters_of(one, model)])


def test_sampling_follows_the_probabilities() -> None:
    """The noise, and what becomes of it, are those of the distribution: Gumbel-max, and the normal's own moments."""
    model, head = built(VECTOR, ACTIONS[0])
    rows = np.repeat(batch_of(VECTOR, 1), 20_000, 0)
    one = twin(model, head, VECTOR)
    actions, outputs = one.act(rows, one.draw(np.random.default_rng(0), (20_000,)))
    shares = np.bincount(actions, minlength=4) / 20_000
    with torch.no_grad():
        expected = torch.softmax(model(tensors(VECTOR, rows[:1]))[0], 1)[0].numpy()
    np.testing.assert_allclose(shares, expected, atol=0.015)
    np.testing.assert_allclose(np.exp(outputs["log_prob"]), expected[actions], rtol=1e-4)
    model, head = built(VECTOR, ACTIONS[4])
    one = twin(model, head, VECTOR)
    _, outputs = one.act(rows, one.draw(np.random.default_rng(0), (20_000,)))
    with torch.no_grad():
        params = model(tensors(VECTOR, rows[:1]))[0][0].numpy()
    np.testing.assert_allclose(outputs["action"].mean(0), params[:3], atol=0.03)
    np.testing.assert_allclose(outputs["action"].std(0), np.exp(params[3:]), rtol=0.03)


def test_only_the_actor_travels() -> None:
    model, head = built(VECTOR, ACTIONS[0])
    assert not [name for name in twin(model, head, VECTOR).arrays if name.startswith("critic")]


def test_a_module_that_numpy_does_not_know_has_no_twin() -> None:
    model, head = built(VECTOR, ACTIONS[0])
    model.actor[1] = nn.Softplus()
    assert twin_of(model, head, VECTOR) is None


def test_padded_convolutions_are_torch_s() -> None:
    model, head = built(GRID, ACTIONS[0])
    layers: Any = model.encoders[0].layers
    layers[0] = nn.Conv2d(3, 16, (3, 2), stride=(1, 2), padding=(1, 0))
    with torch.no_grad():
        layers[7] = nn.Linear(layers[:7](torch.zeros(1, 3, 7, 7)).shape[1], 128)
    rows = batch_of(GRID, 16)
    with torch.no_grad():
        expected = model(tensors(GRID, rows))[0]
    got = twin(model, head, GRID)._network(rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    model, head = built(OBSERVATIONS[11], ACTIONS[5])
    one = twin(model, head, OBSERVATIONS[11])
    one.write(tmp_path / "policy.npz")
    back = read_twin(tmp_path / "policy.npz")
    rows, noise = batch_of(OBSERVATIONS[11], 16), one.draw(np.random.default_rng(0), (16,))
    for a, b in ((one, back), (back, one)):
        b.load(parameters_of(a, model))
        assert (a.act(rows, noise)[0] == b.act(rows, noise)[0]).all()
    with pytest.raises(TwinError, match=r"no array 'actor\.0\.bias' \(and \d+ more\)"):
        back.load({})
    (tmp_path / "torn.npz").write_bytes((tmp_path / "policy.npz").read_bytes()[:-50])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "newer.npz", plan='{"format": 2}')
    (tmp_path / "text.npz").write_text("hello")
    for name in ("torn", "other", "text"):
        with pytest.raises(TwinError, match=rf"{name}\.npz: no exported policy"):
            read_twin(tmp_path / f"{name}.npz")
    with pytest.raises(TwinError, match="another version"):
        read_twin(tmp_path / "newer.npz")
    with pytest.raises(FileNotFoundError):
        read_twin(tmp_path / "none.npz")


@pytest.mark.asyncio
async def test_a_twin_acts_in_a_worker_without_torch() -> None:
    """Same bits as in the parent; the worker imports nothing that it did not have, but for this one module."""
    env = gym.make("CartPole-v1")
    space, actions = env.observation_space, env.action_space
    model, head = built(space, actions)
    one = twin(model, head, space)

    def in_worker(env: Any) -> Any:
        import sys

        from aio_vecenv.core.policy import PolicyRunner, rows_in_blocks

        ran = PolicyRunner(pickled, space, actions)
        filled = ran.empty(16)
        ran.act(rows_in_blocks(range(16)), [rows], noise, *filled)
        return filled, [
            name for name in ("torch", "asyncio", "curriculum", "rich", "tyro") if name in sys.modules
        ]

    from aio_vecenv.core.framing import dumps

    pickled, rows = dumps(one), batch_of(space, 16)
    noise = one.draw(np.random.default_rng(0), (16,))
    async with av.AsyncVecEnv("CartPole-v1", 16, num_workers=1, policy=one) as envs:
        (((theirs,), said), loaded), *_ = await envs.apply(in_worker, env_ids=[0])
        actions_here, outputs = envs.act(rows, noise)
    assert loaded == []
    assert (actions_here == theirs).all()
    assert (outputs["log_prob"] == said["log_prob"]).all()


def test_importing_the_twin_imports_numpy_only() -> None:
    text = """
import sys, numpy
before = set(sys.modules)
import trainers.twin
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"numpy"}))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['trainers']"
