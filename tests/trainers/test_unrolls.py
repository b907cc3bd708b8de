"""Runs that are collected by unrolls: the same runs whatever the chunks' length, and what else a mode must keep."""
# async: short runs, inline and in real workers

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import aio_vecenv as av
from tests.trainers.helpers import Corridor, corridor_job, make_corridor, tiny
from tests.trainers.test_ppo import setup
from trainers import ConfigError, Job, TrainConfig, training
from trainers.config import NetworkConfig, PPOConfig
from trainers.presets import load_preset
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics

pytestmark = pytest.mark.alternate_loops


async def played(
    config: TrainConfig, job: Job | None = None
) -> tuple[dict[str, Any], list[Any], TrainConfig]:
    """Parameters, metrics without timing, and the config in the end."""
    async with training(config, job=job) as run:
        await run.wait()
    lines = read_metrics(run.folder.metrics)
    for line in lines:
        del line["timing"]
    return run._collector.learner.model.state_dict(), lines, run.folder.config()


def plain(tmp_path: Path, env: str, **changes: Any) -> TrainConfig:
    """Without a curriculum, so that nothing is decided in the middle of a chunk."""
    return tiny(tmp_path, env=env, **{"num_envs": 4, "total_steps": 4 * 16 * 3, **changes})


@pytest.mark.asyncio
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
async def test_a_run_is_the_same_whatever_the_chunks(tmp_path: Path, env: str) -> None:
    """Parameters and metrics, bit for bit: chunks of 1 (lockstep of the same policy), of 5 with a rest, and of 16."""
    runs = [
        await played(plain(tmp_path, env, collect="unroll", unroll=length, num_envs=20))
        for length in (1, 5, 16)
    ]
    model, metrics, _ = runs[0]
    for other, lines, config in runs[1:]:
        assert config.collect == "unroll"
        assert all(torch.equal(model[key], other[key]) for key in model)
        assert lines == metrics


@pytest.mark.asyncio
async def test_workers_collect_what_one_process_does(tmp_path: Path) -> None:
    """By default, as nothing is said of how; three workers, whose blocks are cut elsewhere."""
    inline = await played(plain(tmp_path, "CartPole-v1", num_envs=7))
    workers = await played(plain(tmp_path, "CartPole-v1", num_envs=7, backend="process", num_workers=3))
    assert workers[2].collect == inline[2].collect == "unroll"
    assert all(torch.equal(inline[0][key], workers[0][key]) for key in inline[0])
    assert workers[1] == inline[1]


@pytest.mark.asyncio
async def test_rows_of_chunks_are_rows_of_steps(tmp_path: Path) -> None:
    """One rollout, against lockstep on the same noise: all that was seen, done and came of it; and the values."""
    rollouts = []
    for collect in ("unroll", "lockstep"):
        config = plain(tmp_path, "CartPole-v1", collect=collect, total_steps=1)
        async with training(config) as run:
            await run.wait()
            rollouts.append(run._collector.learner.rollout)
    ours, theirs = rollouts
    for name in ("actions", "rewards", "terminations", "truncations", "first"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    assert ours.first.any()
    np.testing.assert_array_equal(ours.index[~ours.first], theirs.index[~ours.first])  # else of no episode
    np.testing.assert_array_equal(ours.obs[""], theirs.obs[""])
    np.testing.assert_allclose(ours.log_probs, theirs.log_probs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5, atol=1e-6)


@pytest.mark.asyncio
async def test_a_curriculum_moves_and_says_which_episodes_were_late(tmp_path: Path) -> None:
    """Short episodes and long chunks: some begin after the decision and under the directive before. In lockstep and
    in chunks of one row there are none."""
    late = {}
    for length in (16, 1):
        config = tiny(tmp_path, unroll=length, num_envs=8, total_steps=8 * 16 * 8)
        async with training(config, job=corridor_job()) as run:
            await run.wait()
        lines = read_metrics(run.folder.metrics)
        assert run.config.collect == "unroll"
        assert [entry["stage"] for entry in run.summary().as_dict()["timeline"]] == ["one", "three"]
        late[length] = sum(line["timing"]["late_episodes"] for line in lines)
    assert late[1] == 0 < late[16]


@pytest.mark.asyncio
async def test_what_cannot_be_unrolled_is_collected_in_lockstep(tmp_path: Path) -> None:
    """Masks in infos; a large picture: the run says so. What was asked for, and cannot be, is an error."""
    async with training(tiny(tmp_path), job=corridor_job(masked=True)) as run:
        await run.wait()
    assert RunFolder(run.folder.path).config().collect == "lockstep"
    assert run.choices[-1] == "collected in lockstep: the action masks are in the infos"
    with pytest.raises(ConfigError, match=r"collect='unroll': the action masks are in the infos"):
        async with training(tiny(tmp_path, collect="unroll"), job=corridor_job(masked=True)):
            pass
    async with training(tiny(tmp_path, total_steps=64), job=corridor_job("dict_mask")) as run:
        await run.wait()
    assert run.config.collect == "unroll"

    class Picture(Corridor):
        def __init__(self) -> None:
            super().__init__("image")
            self.observation_space = gym.spaces.Box(0, 255, (40, 40, 3), np.uint8)

        def _obs(self) -> Any:
            return np.full((40, 40, 3), self.at, np.uint8)

    job = Job(corridor_job().plan, lambda: make_corridor_env(Picture()))
    async with training(tiny(tmp_path, total_steps=64), job=job) as run:
        await run.stop()
    assert run.config.collect == "lockstep"
    assert run.choices[-1] == "collected in lockstep: for large pictures torch is faster than numpy"
    async with training(
        tiny(tmp_path, collect="first_ready", deterministic=False), job=corridor_job()
    ) as run:
        await run.stop()
    assert run.choices[-1] == "collected from the first 1 envs that are ready"


def make_corridor_env(env: Any) -> Any:
    import curriculum as cu

    return cu.CurriculumEnv(env, make_corridor()().levels)


@pytest.mark.asyncio
async def test_a_mask_that_allows_nothing_names_env_and_step(tmp_path: Path) -> None:
    """In the middle of a chunk, in an episode that began in it or before."""

    class Nothing(Corridor):
        def _obs(self) -> Any:
            return {**super()._obs(), "action_mask": np.array([self.t < 5] * 2 + [False], np.int8)}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.goal = 99
            return super().step(action)

    job = Job(corridor_job().plan, lambda: make_corridor_env(Nothing("dict_mask")))
    for length in (3, 8):
        with pytest.raises(
            ConfigError,
            match=r"env 0, after 5 steps of its episode, stage 'one', level 'one': the action mask",
        ):
            async with training(tiny(tmp_path, unroll=length), job=job) as run:
                await run.wait()


@pytest.mark.asyncio
async def test_stop_finishes_the_chunk(tmp_path: Path) -> None:
    """Nothing is under way any more, and the rows of a started rollout are counted in whole chunks."""
    config = tiny(tmp_path, backend="process", total_steps=10**6)
    async with training(config, job=corridor_job(delay_s=0.002)) as run:
        async for _ in run.reports():
            break
        summary = await run.stop()
    assert summary.reason == "stopped"
    assert summary.env_steps % (8 * config.num_envs) == 0


def test_only_newer_runs_unroll_by_default(tmp_path: Path) -> None:
    """A folder whose config.toml names no way of collecting is of a version that had lockstep only."""
    (tmp_path / "config.toml").write_text('env = "CartPole-v1"\n')
    assert RunFolder(tmp_path).config().collect == "lockstep"
    assert TrainConfig().collect is None
    assert load_preset("frozenlake").config.collect == "lockstep"
    with pytest.raises(ConfigError, match="unroll must be at least 1"):
        TrainConfig(unroll=0)


def test_values_are_those_of_the_network(tmp_path: Path) -> None:
    """All of a rollout's, in pieces; the actor is left out."""
    model, head, rollout = setup()
    from trainers.learn.policy import Policy

    values = Policy(model, head, torch.device("cpu")).judge(rollout.obs, 3)
    assert values.shape == (9, 4)
    with torch.no_grad():
        expected = model({"": torch.from_numpy(rollout.obs[""].reshape(36, 3))})[1].reshape(9, 4)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.asyncio
async def test_a_worker_that_acts_is_small(tmp_path: Path) -> None:
    """It loads numpy and one module of the trainer: less than 60 MB of its own."""
    psutil = pytest.importorskip("psutil")
    config = replace(
        tiny(tmp_path, env="CartPole-v1", backend="process", total_steps=64),
        ppo=PPOConfig(num_steps=16, minibatches=2, epochs=1),
        network=NetworkConfig(),
    )
    async with training(config) as run:
        assert isinstance(run.envs, av.AsyncVecEnv)
        async for _ in run.reports():
            (worker,) = run.envs.statistics().workers
            assert psutil.Process(worker.pid).memory_full_info().uss < 60e6
            break
        await run.stop()
