"""Networks of the user's own, from a module of the user's: trained, saved, resumed, judged; and what is refused."""
# async: short runs, inline and in a worker

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.trainers.helpers import tiny
from trainers import CheckpointError, ConfigError, TrainConfig, cli, load_policy, read_twin, training
from trainers.config import NetworkConfig, from_mapping
from trainers.evaluate import evaluate
from trainers.export import export
from trainers.learn.actions import action_head
from trainers.learn.own_networks import make_network
from trainers.record.folder import RunFolder

pytestmark = pytest.mark.alternate_loops

MINE = """
import torch
from torch import nn
from trainers import Twin


class Net(nn.Module):
    def __init__(self, space, head, config, *, seed):
        super().__init__()
        self.head = head
        self.body = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Dropout(0.0))
        self.actor, self.critic = nn.Linear(24, head.size), nn.Linear(24, 1)

    def forward(self, obs):
        x = self.body(obs[""])
        return self.actor(x), self.critic(x)[:, 0]


class WithTwin(Net):
    def twin(self):
        plan = {
            "inputs": [{"path": [], "steps": []}],
            "body": [{"op": "linear", "weight": "body.0.weight", "bias": "body.0.bias"}, {"op": "relu"}],
            "actor": [{"op": "linear", "weight": "actor.weight", "bias": "actor.bias"}],
            "log_std": None, "mask": None, "action": self.head.plan,
        }
        return Twin(plan, {name: value.numpy() for name, value in self.state_dict().items()})


class WrongTwin(WithTwin):
    def forward(self, obs):
        params, values = super().forward(obs)
        return params * 2, values


class Plan(WithTwin):  # with one change
    change = staticmethod(lambda plan: None)

    def twin(self):
        made = super().twin()
        self.change(made.plan)
        return Twin(made.plan, made.arrays)


class Liner(Plan):
    change = staticmethod(lambda plan: plan["body"][0].update(op="liner"))


class Bdy(Plan):
    change = staticmethod(lambda plan: plan["body"][0].update(weight="bdy.0.weight"))


class Weihgt(Plan):
    change = staticmethod(lambda plan: plan["actor"][0].update(weihgt=plan["actor"][0].pop("weight")))


class NoLogStd(Plan):
    change = staticmethod(lambda plan: plan.pop("log_std"))


class Pos(Plan):
    change = staticmethod(lambda plan: plan["inputs"][0]["path"].append("pos"))


class Fails(WithTwin):
    def twin(self):
        return self.nothing


class OwnTwin(Net):
    def twin(self):
        from my_policy import Policy
        return Policy(self.head.numpy)


class Stale(WithTwin):  # the twin knows nothing of the mean, which is 0 at first
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mean", torch.zeros(4))

    def observe(self, obs):
        self.mean.copy_(obs[""].clamp(-1, 1).mean(0) + 1)

    def forward(self, obs):
        return super().forward({"": obs[""] - self.mean})


class Unbiased(WithTwin):  # so is the bias that its twin leaves out
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.zeros_(self.actor.bias)

    def twin(self):
        made = OwnTwin.twin(self)
        made.unbiased = True
        return made


class Frozen(Net):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)


class Wide(Net):
    def forward(self, obs):
        params, values = super().forward(obs)
        return params, values[:, None]


class Elsewhere(Net):
    def forward(self, obs):
        return super().forward({"": obs["image"]})


class Double(Net):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.double()


def number(space, head, config, *, seed):
    return 3


def fails(space, head, config, *, seed):
    raise ZeroDivisionError("no width")
"""

POLICY = """
import numpy as np


class Policy:  # numpy only: this module is what the workers import
    def __init__(self, actions):
        self.actions, self.noise, self.outputs = actions, (actions.width, np.float32), actions.outputs

    def draw(self, rng, rows):
        return self.actions.draw(rng, rows)

    def load(self, params):
        self.p = params

    def act(self, obs, noise):
        x = np.maximum(obs @ self.p["body.0.weight"].T + self.p["body.0.bias"], 0)
        bias = 0 if hasattr(self, "unbiased") else self.p["actor.bias"]
        return self.actions.act(x @ self.p["actor.weight"].T + bias, noise)
"""


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net.py").write_text(MINE)
    (tmp_path / "my_policy.py").write_text(POLICY)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_net", "my_policy"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def config(tmp_path: Path, factory: str, **changes: Any) -> TrainConfig:
    network = NetworkConfig(factory=f"my_net:{factory}")
    return tiny(tmp_path, env="CartPole-v1", network=network, name="run", **changes)


HOW = {
    "lockstep": "collected in lockstep: the network has no twin()",
    "unroll": "collected by unrolls of 8 steps",
}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("factory", "collect"), [("Net", "lockstep"), ("WithTwin", "unroll"), ("OwnTwin", "unroll")]
)
async def test_it_trains_is_saved_resumed_and_judged(tmp_path: Path, factory: str, collect: str) -> None:
    async with training(config(tmp_path, factory, total_steps=128)) as run:
        await run.wait()
        assert run.choices[0] == f"network: my_net:{factory}"
        assert run.choices[-1] == HOW[collect]
        before = {key: value.clone() for key, value in run._collector.learner.model.state_dict().items()}
    folder = tmp_path / "run"
    saved = RunFolder(folder).config()
    assert (saved.collect, saved.network.factory) == (collect, f"my_net:{factory}")
    async with training(TrainConfig(**{**vars(saved), "total_steps": 256}), resume=folder) as run:
        assert all(
            torch.equal(before[key], value)
            for key, value in run._collector.learner.model.state_dict().items()
        )
        await run.wait()
        after = run._collector.learner.model.state_dict()
    assert not torch.equal(before["module.actor.weight"], after["module.actor.weight"])
    (row,) = await evaluate(folder, episodes=4)
    assert row.episodes >= 4
    env = gym.make("CartPole-v1")
    policy = load_policy(folder, env)
    obs, _ = env.reset(seed=1)
    assert policy.act(obs) in (0, 1)
    if factory == "WithTwin":
        await export(folder, tmp_path / "policy.npz")
        rows = np.stack([obs] * 16)
        exported = read_twin(tmp_path / "policy.npz", greedy=True)
        assert (
            exported.act(rows, exported.draw(np.random.default_rng(0), (16,)))[0] == policy.act_batch(rows)
        ).all()
    else:
        why = r"has no twin\(\)" if factory == "Net" else r"a twin\(\) of its own kind \(Policy\)"
        with pytest.raises(ConfigError, match=why):
            policy.twin()


@pytest.mark.asyncio
async def test_its_twin_acts_in_workers_as_inline(tmp_path: Path) -> None:
    """The user's own class is imported there; the same run, bit for bit."""
    states = []
    for backend, folder in (("inline", "a"), ("process", "b")):
        async with training(config(tmp_path / folder, "OwnTwin", backend=backend, total_steps=64)) as run:
            await run.wait()
            states.append(run._collector.learner.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nothing", r"network my_net:nothing: my_net has no 'nothing'"),
        ("fails", r"network my_net:fails: making it failed: ZeroDivisionError: no width \(my_net\.py:\d+\)"),
        ("number", r"network my_net:number: expected a torch\.nn\.Module, got int"),
        ("Wide", r"\(16, 2\) of torch\.float32 and \(16, 1\) of torch\.float32; expected params \(16, 2\) and values"),
        ("Elsewhere", r"it failed on obs \(16, 4\): KeyError: 'image' \(my_net\.py:\d+\)"),
        ("Double", r"expected parameters of torch\.float32, got torch\.float64"),
        (
            "Liner",
            r"network my_net:Liner: its twin\(\): body\[0\]: unknown step 'liner'; did you mean 'linear'\?; known: ",
        ),
        (
            "Bdy",
            r"my_net:Bdy: its twin\(\): body\[0\]\.weight: no array 'bdy\.0\.weight'; did you mean 'body\.0\.weight'",
        ),
        ("Weihgt", r"twin\(\): actor\[0\] \(linear\) has no 'weight'; did you mean 'weihgt'\?; it needs weight"),
        ("NoLogStd", r"my_net:NoLogStd: its twin\(\): the plan has no 'log_std'; it needs inputs, body, actor"),
        ("Pos", r"my_net:Pos: its twin\(\): path \['pos'\]: the observation has no 'pos' there"),
        ("Fails", r"my_net:Fails: its twin\(\) failed: AttributeError: .*'nothing'"),
        ("WrongTwin", r"its twin computes something else: log probabilities differ by up to"),
        ("Stale", r"its twin computes something else"),
        ("Unbiased", r"its twin computes something else"),
        ("Frozen", r"it has no parameters to learn: all 6 have requires_grad=False"),
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_what_cannot_be_is_one_clear_error(tmp_path: Path, factory: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        async with training(config(tmp_path, factory)):
            pass
    assert not (tmp_path / "run").exists()


@pytest.mark.asyncio
async def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    async with training(config(tmp_path, "Net", total_steps=64)) as run:
        await run.wait()
    other = TrainConfig(**{**vars(RunFolder(tmp_path / "run").config()), "network": NetworkConfig()})
    with pytest.raises(CheckpointError, match="does not fit this config and env"):
        async with training(other, resume=tmp_path / "run"):
            pass


def test_every_door_names_it(tmp_path: Path) -> None:
    """A field, a string in Python and in TOML, both spellings on the command line."""
    expected = NetworkConfig(factory="my_net:Net")
    given: Any = "my_net:Net"
    assert TrainConfig(network=given).network == expected
    assert from_mapping(TrainConfig, {"network": given}, source="x").network == expected
    assert from_mapping(TrainConfig, {"network": {"factory": given}}, source="x").network == expected
    for words in (["--network", given], [f"--network={given}"], ["--network.factory", given]):
        command: Any = cli._parse(["train", "--env", "CartPole-v1", *words, "--network.hidden", "8"])
        assert command.settings.network == NetworkConfig(factory=given, hidden=(8,))


def test_observations_that_are_no_numbers_are_named() -> None:
    space = gym.spaces.Dict({"words": gym.spaces.Text(5), "x": gym.spaces.Box(0, 1, (4,))})
    with pytest.raises(
        ConfigError, match=r"my_net:Net: the observation space Text\(.* at 'words' is none of numbers"
    ):
        make_network(space, action_head(gym.spaces.Discrete(2)), NetworkConfig(factory="my_net:Net"), seed=0)


def test_the_start_depends_on_the_seed_alone() -> None:
    space, head = gym.spaces.Box(-1, 1, (4,)), action_head(gym.spaces.Discrete(2))
    made = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        network = make_network(space, head, NetworkConfig(factory="my_net:Net"), seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        made.append(network.state_dict()["module.actor.weight"])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
