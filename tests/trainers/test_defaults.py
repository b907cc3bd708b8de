"""Settings that nobody named follow the spaces; settings that follow the progress; rewards of any size."""
# pure: configs and arrays; runs of a second, inline

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces as S

from tests.trainers.helpers import corridor_job, tiny
from trainers import ConfigError, NetworkConfig, PPOConfig, TrainConfig, train, training
from trainers.config import from_mapping, to_toml
from trainers.learn.actions import action_head
from trainers.learn.defaults import for_spaces, in_words
from trainers.learn.moments import DiscountedReturns, Moments
from trainers.learn.networks import ActorCritic
from trainers.learn.rollout import Rollout
from trainers.presets import NAMES, load_preset
from trainers.record.folder import RunFolder, load_config
from trainers.record.progress import PlainLines

pytestmark = pytest.mark.alternate_loops

VECTOR, PICTURE = S.Box(-1, 1, (3,), np.float32), S.Box(0, 255, (84, 84, 4), np.uint8)
DISCRETE, BOX = S.Discrete(3), S.Box(-1, 1, (2,), np.float32)
BY_SPACES = ("num_steps", "lr", "epochs", "minibatches", "entropy", "value", "normalise_rewards")


@pytest.mark.parametrize("obs", [VECTOR, PICTURE], ids=["vector", "picture"])
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("num_envs", [1, 3, 32, 4096])
def test_nothing_is_left_open_and_what_was_named_stays(obs: Any, actions: Any, num_envs: int) -> None:
    given = TrainConfig(
        num_envs=num_envs, ppo=PPOConfig(lr=2.5e-4, epochs=7), network=NetworkConfig(hidden=(8,))
    )
    chosen = for_spaces(given, obs, actions)
    assert (chosen.ppo.lr, chosen.ppo.epochs, chosen.network.hidden) == (2.5e-4, 7, (8,))
    assert all(getattr(chosen.ppo, name) is not None for name in BY_SPACES)
    assert chosen.network.normalise_obs is not None
    assert for_spaces(chosen, VECTOR, DISCRETE) == for_spaces(chosen, PICTURE, BOX) == chosen
    if isinstance(actions, S.Box):
        assert chosen.batch_size >= 2048
        assert 64 <= chosen.batch_size / (chosen.ppo.minibatches or 0) < 128


def test_few_rows_have_fewer_minibatches() -> None:
    few = TrainConfig(num_envs=1, ppo=PPOConfig(num_steps=2))
    assert for_spaces(few, VECTOR, DISCRETE).ppo.minibatches == 2
    assert for_spaces(few, VECTOR, BOX).ppo.minibatches == 1


@pytest.mark.parametrize("name", NAMES)
def test_presets_leave_nothing_to_the_spaces(name: str) -> None:
    config = load_preset(name).config
    assert for_spaces(config, VECTOR, DISCRETE) == for_spaces(config, PICTURE, BOX) == config


def test_what_was_chosen_is_said_in_words() -> None:
    words = in_words(TrainConfig(ppo=PPOConfig(lr=1e-3)), S.Dict({"x": VECTOR, "eye": PICTURE}), BOX)
    assert words[0] == "observations: eye: picture 84×84×4 (channels last); x: vector"
    assert words[1].startswith("defaults for Box actions: ppo.num_steps 64, ppo.epochs 10, ")
    assert "lr" not in words[1], "it was named"
    assert len(in_words(load_preset("frozenlake").config, S.Discrete(64), S.Discrete(4))) == 1


@pytest.mark.asyncio
async def test_what_was_chosen_is_said_at_the_start_and_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with training(tiny(tmp_path, name="run", ppo=PPOConfig(num_steps=16)), job=corridor_job()) as run:
        PlainLines().start(run)
    said = capsys.readouterr().out
    assert "observations: vector\ndefaults for discrete actions: ppo.lr 0.00025, ppo.epochs 4, " in said
    saved = RunFolder.open(tmp_path / "run").config()
    assert (saved.ppo.epochs, saved.ppo.lr, saved.network.normalise_obs) == (4, 2.5e-4, False)


def test_a_setting_that_is_not_known_yet_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"ppo\.num_steps is chosen by the env's spaces, which are not known yet"
    ):
        _ = TrainConfig().batch_size


# ---- schedules


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.5, 1.0, 0.0]),
        ("cosine", [2.0, 1 + math.sqrt(0.5), 1.0, 0.0]),
        (((0.25, 8.0), (0.75, 4.0)), [8.0, 8.0, 6.0, 4.0]),
        (((0.5, 3.0),), [3.0, 3.0, 3.0, 3.0]),
    ],
)
def test_schedules(schedule: Any, at: list[float]) -> None:
    config = PPOConfig(
        lr=2.0, lr_schedule=schedule, clip=2.0, clip_schedule=schedule, entropy=2.0, entropy_schedule=schedule
    )
    for progress, value in zip((0.0, 0.25, 0.5, 1.0), at):
        assert tuple(config.rates(progress)) == pytest.approx((value, value, value), abs=1e-12)


def test_anneal_lr_is_a_linear_schedule_unless_there_is_one() -> None:
    rates = [PPOConfig(lr=1.0, entropy=0, anneal_lr=on).rates(0.25).lr for on in (True, False)]
    assert rates == [0.75, 1.0]
    assert PPOConfig(lr=1.0, entropy=0, anneal_lr=False, lr_schedule="linear").rates(0.25).lr == 0.75
    assert PPOConfig(lr=1.0, entropy=0, anneal_lr=True, lr_schedule="constant").rates(0.25).lr == 1.0


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("expo", "expected one of 'constant', 'linear', 'cosine', got 'expo'"),
        (3, "expected one of 'constant', 'linear', 'cosine', got 3"),
        ((), "must be constant, linear, cosine, or pairs"),
        ((0.5, 1.0), "expected a list, got 0.5"),
        (((0.5, 1.0), (0.5, 2.0)), "must rise within"),
        (((0.0, 1.0), (1.5, 2.0)), "must rise within"),
        (((0.0, -1.0),), "at least 0"),
        (((0.0, math.nan),), "at least 0"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(schedule: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"ppo\.clip_schedule.*{message}"):
        PPOConfig(clip_schedule=schedule)


def test_schedules_through_every_door(tmp_path: Path) -> None:
    """Python, TOML and back; a wrong file is named."""
    config = TrainConfig(ppo=PPOConfig(lr_schedule=[(0, 1e-3), [0.5, 1e-4]], clip_schedule="cosine"))  # type: ignore[arg-type]
    assert config.ppo.lr_schedule == ((0.0, 1e-3), (0.5, 1e-4))
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), "utf-8")
    assert load_config(path) == config
    written = {"ppo": {"lr_schedule": [[0, 1], [1, 0]], "entropy_schedule": "linear"}}
    assert from_mapping(TrainConfig, written, source="x").ppo.lr_schedule == ((0.0, 1.0), (1.0, 0.0))
    for wrong, message in [("lin", "expected one of 'constant', 'linear', 'cosine', got 'lin'"),
                           ([[0, 1, 2]], "expected 2 values"), ([1], "expected a list, got 1"),
                           ([["a", 1]], "expected float, got 'a'")]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"x: ppo: lr_schedule: {message}"):
            from_mapping(TrainConfig, {"ppo": {"lr_schedule": wrong}}, source="x")


# ---- actions


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        ([30, -2], [1017, 2], [[30, 523.5, 1017], [-2, 0, 2]]),
        ([0, -np.inf], [np.inf, 5], [[0, 0, 1], [-1, 0, 1]]),  # half-infinite: as they are, clipped
        ([-np.inf, 0], [np.inf, 0], [[-1, 0, 1], [0, 0, 0]]),
        ([-3.4e38, -1], [3.4e38, 1], [[-1, 0, 1], [-1, 0, 1]]),  # says that there is none
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite_bounds_are_the_policy_s_range(low: Any, high: Any, ends: Any, dtype: Any) -> None:
    """Per dimension; what lies beyond is clipped for the env, and its probability is that of what was drawn."""
    space = S.Box(np.array(low, dtype), np.array(high, dtype), (2,), dtype)
    head = action_head(space)
    actions = np.array([[-1, -1], [0, 0], [1, 1], [-7, 7], [2.5, -2.5]], np.float32)
    played = head.to_env(actions)
    np.testing.assert_allclose(played[:3].T, ends, rtol=1e-6)
    assert played.dtype == dtype
    assert all(space.contains(action) for action in played)
    unscaled = action_head(space, NetworkConfig(scale_actions=False))
    np.testing.assert_array_equal(
        unscaled.to_env(actions), np.clip(actions, space.low, space.high).astype(dtype)
    )
    params = np.zeros((5, 4), np.float32)
    drawn, log_probs = head.sample(params, np.random.default_rng(0), None)
    assert np.abs(drawn).max() > 1
    evaluated, _ = head.evaluate(torch.from_numpy(params), torch.from_numpy(drawn), None)
    np.testing.assert_allclose(log_probs, evaluated, rtol=1e-5)


def test_the_policy_s_first_deviation_is_a_setting() -> None:
    model = ActorCritic(VECTOR, action_head(BOX), NetworkConfig(log_std=-1.5), seed=0)
    params, _ = model({"": torch.zeros(1, 3)})
    assert params[0, 2:].tolist() == [-1.5, -1.5]


# ---- rewards


def rollout_of(rewards: Any, ended: Any, first: Any) -> Rollout:
    rows = Rollout(
        len(rewards), rewards.shape[1], {"": VECTOR}, action_shape=(1,), action_dtype=np.dtype(np.int64)
    )
    rows.rewards[:], rows.truncations[:], rows.first[:] = rewards, ended, first
    return rows


def test_rewards_are_divided_by_the_deviation_of_all_discounted_returns() -> None:
    """Against a slow twin, over two rollouts: episodes go on from one to the next, unless all envs were reset."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(3, 1, (2, 20, 3)).astype(np.float32)
    ended = rng.random((2, 20, 3)) < 0.2
    first = np.zeros((2, 20, 3), bool)
    first[:, 1:] = ended[:, :-1]
    first[1, 0] = ended[0, -1]
    rewards[first] = 0
    for anew in (False, True):
        moments = Moments(1)
        returns = DiscountedReturns(moments, 3)
        seen: list[float] = []
        gathered = [0.0] * 3
        for part in range(2):
            if anew:
                returns.forget()
                gathered = [0.0] * 3
            scale = returns.scale(rollout_of(rewards[part], ended[part], first[part]), 0.9)
            for t in range(20):
                for env in range(3):
                    if first[part, t, env]:
                        gathered[env] = 0.0
                        continue
                    gathered[env] = 0.9 * gathered[env] + float(rewards[part, t, env])
                    seen.append(gathered[env])
                    if ended[part, t, env]:
                        gathered[env] = 0.0
            assert scale == pytest.approx(1 / np.std(seen), rel=1e-6)


def test_rewards_that_never_vary_are_left_alone() -> None:
    zeros = np.zeros((4, 2), np.float32)
    returns = DiscountedReturns(Moments(1), 2)
    assert returns.scale(rollout_of(zeros, zeros > 0, zeros > 0), 0.9) == 1.0


@pytest.mark.parametrize("size", [2.0**13, 2.0**-13])  # exact, so that no action is drawn otherwise
def test_rewards_of_any_size_are_learned_alike(tmp_path: Path, size: float) -> None:
    """The same run, its rewards times a factor: the same update after update, and the same episodes."""

    def scaled(factor: float) -> Any:
        job = corridor_job()

        def make() -> Any:
            return gym.wrappers.TransformReward(job.make_env(), lambda reward: factor * float(reward))

        return replace(job, make_env=make)

    saved = []
    for factor in (1.0, size):
        config = tiny(tmp_path, name=f"run-{factor}")
        config = replace(config, ppo=replace(config.ppo, normalise_rewards=True))
        train(config, job=scaled(factor))
        metrics = RunFolder.open(tmp_path / f"run-{factor}").metrics.read_text("utf-8").splitlines()
        saved.append(metrics)
    for one, other in zip(*(map(json.loads, lines) for lines in saved), strict=True):
        assert one["episodes"] == other["episodes"]
        for key in ("policy_loss", "value_loss", "entropy", "explained_variance"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), key
