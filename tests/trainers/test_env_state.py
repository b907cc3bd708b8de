"""What wrappers in the envs have learned: saved, judged with, given to other programs, resumed with."""
# async: runs of a second, inline and in this process, so that the envs made can be looked at

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers

import aio_vecenv as av
import curriculum as cu
from tests.trainers.helpers import LEVELS, PLAN, Corridor, tiny
from trainers import CheckpointError, load_policy, training
from trainers.evaluate import evaluate
from trainers.export import export
from trainers.presets import Job
from trainers.record.checkpoint import Checkpoints, load
from trainers.run import Run

pytestmark = [pytest.mark.asyncio, pytest.mark.alternate_loops]


class Far(gym.ObservationWrapper[Any, Any, Any]):
    """A corridor far from 0."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def observation(self, observation: Any) -> Any:
        return observation * 20.0 + 1000.0


def normalised(env: Any) -> Any:
    return wrappers.NormalizeReward(wrappers.NormalizeObservation(Far(env)))


def job_of(made: list[Any], wrap: Callable[[Any], Any] = normalised) -> Job:
    """The corridor in its wrappers; every env that is made goes into `made`."""
    levels = cu.LevelSet(LEVELS)

    def make() -> Any:
        made.append(cu.CurriculumEnv(wrap(Corridor()), levels))
        return made[-1]

    return Job(PLAN, make)


async def a_run(runs: Path, made: list[Any], **changes: Any) -> Path:
    async with training(tiny(runs, name="run", **changes), job=job_of(made)) as run:
        await run.wait()
    return runs / "run"


def _rms(env: Any) -> Any:
    return env.get_wrapper_attr("obs_rms")


def _saved(run: Path) -> Any:
    return Checkpoints(run / "checkpoints").load_newest()[0].envs


async def test_a_checkpoint_holds_the_statistics_of_all_envs(tmp_path: Path) -> None:
    """As merged by numpy from what each env has at the end; since the newest update they all have the same."""
    made: list[Any] = []
    run = await a_run(tmp_path, made)
    saved = _saved(run)["NormalizeObservation"]["running statistics"]["obs_rms"]
    counts = np.array([_rms(env).count for env in made])
    means = np.array([_rms(env).mean for env in made], np.float64)
    assert saved["count"] == pytest.approx(counts.sum())
    assert saved["mean"] == pytest.approx(np.average(means, axis=0, weights=counts))
    assert set(_saved(run)) == {"NormalizeObservation", "NormalizeReward"}
    assert all(np.array_equal(mean, means[0]) for mean in means)


async def test_judging_is_done_with_them_and_changes_nothing(tmp_path: Path) -> None:
    """Envs of an evaluation begin with the run's statistics, frozen."""
    run = await a_run(tmp_path, [])
    saved = _saved(run)["NormalizeObservation"]["running statistics"]["obs_rms"]
    judged: list[Any] = []
    await evaluate(run, episodes=8, job=job_of(judged))
    assert len(judged) == 4
    for env in judged:
        assert _rms(env).mean == pytest.approx(saved["mean"])
        assert _rms(env).count == pytest.approx(saved["count"] / 4)
        assert not env.get_wrapper_attr("update_running_mean")


async def test_a_resumed_run_goes_on_with_them(tmp_path: Path) -> None:
    """From its first reset on; and learns more."""
    config = tiny(tmp_path, name="run")
    run = await a_run(tmp_path, [])
    before = _saved(run)["NormalizeObservation"]["running statistics"]["obs_rms"]["count"]
    resumed: list[Any] = []
    longer = replace(config, total_steps=config.total_steps * 2)
    async with training(longer, resume=run, job=job_of(resumed)) as going:
        for env in resumed:
            assert _rms(env).count == pytest.approx(before / 4 + 1)  # its share, and its first reset
        await going.wait()
    after = _saved(run)["NormalizeObservation"]["running statistics"]["obs_rms"]["count"]
    assert after == pytest.approx(before + 4 + config.total_steps)


async def _die(run: Run) -> None:
    await run._quiet()


async def test_exact_resume_is_exact_with_them(tmp_path: Path) -> None:
    """20 updates at once, or 10 and a bit, a death, and the rest: parameters and statistics bit for bit."""
    config = tiny(tmp_path, total_steps=20 * 64, checkpoint_every=5, exact_resume=True)
    async with training(replace(config, name="whole"), job=job_of([])) as whole:
        await whole.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "stop", _die)
        async with training(replace(config, name="parts"), job=job_of([])) as run:
            async for report in run.reports():
                if report.update == 12:
                    await run.stop()
                    break
    async with training(run.config, resume=tmp_path / "parts", job=job_of([])) as rest:
        await rest.wait()
    ours, theirs = (
        Checkpoints(tmp_path / name / "checkpoints").load_newest()[0] for name in ("parts", "whole")
    )
    assert ours.envs == theirs.envs
    assert all(torch.equal(ours.model[key], theirs.model[key]) for key in ours.model)


async def test_load_policy_gives_them_to_the_env_that_it_is_for(tmp_path: Path) -> None:
    """To an env, a vector env or an adapter with the same wrappers; where that cannot be, a warning says so."""
    run = await a_run(tmp_path, [])
    saved = _saved(run)
    mean = saved["NormalizeObservation"]["running statistics"]["obs_rms"]["mean"]
    env = wrappers.TimeLimit(normalised(Corridor()), 5)
    assert load_policy(run, env).env_state == saved
    assert _rms(env).mean == pytest.approx(mean)
    assert not env.get_wrapper_attr("update_running_mean")
    with pytest.warns(
        UserWarning, match="NormalizeObservation, NormalizeReward, but the env has no such wrapper"
    ):
        load_policy(run, Far(Corridor()))
    left_out: list[str] = []  # an exported file has no env to give them to
    await export(run, tmp_path / "policy.npz", job=job_of([]), on_left_out=left_out.append)
    assert re.search(r"policy\.npz does not hold .* \(NormalizeObservation, NormalizeReward\)", left_out[0])
    envs = av.AsyncVecEnv(lambda: normalised(Corridor()), 2, num_workers=1, backend="inline")
    async with envs:
        with pytest.warns(UserWarning, match=r"await envs\.set_state\(policy\.env_state, frozen=True\)"):
            policy = load_policy(run, envs)
        await envs.set_state(policy.env_state, frozen=True)
        assert (await envs.get_attr("obs_rms"))[1].mean == pytest.approx(mean)


async def test_statistics_that_do_not_fit_are_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    """Envs without the wrapper, or of another shape, neither judge nor go on; the message names file and wrapper."""
    run = await a_run(tmp_path, [])

    def wider(env: Any) -> Any:
        space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        env = wrappers.TransformObservation(Far(env), lambda obs: np.append(obs, 0.0), space)
        return wrappers.NormalizeReward(wrappers.NormalizeObservation(env))

    for wrap, text in (
        (Far, "no env has such a wrapper"),
        (wider, r"its obs_rms has shape \(4,\), the state \(3,\)"),
    ):
        with pytest.raises(CheckpointError, match=rf"step-\d+\.pt: .*{text}"):
            await evaluate(run, episodes=4, job=job_of([], wrap))
        with pytest.raises(CheckpointError, match=text):
            async with training(resume=run, job=job_of([], wrap)):
                pass


async def test_a_checkpoint_from_before_they_were_kept_is_read_with_a_warning(tmp_path: Path) -> None:
    run = await a_run(tmp_path, [])
    for path in Checkpoints(run / "checkpoints").paths():
        content = torch.load(path, weights_only=True)
        del content["envs"]
        torch.save(content, path)
        assert load(path).envs == {}
    with pytest.warns(UserWarning, match="does not hold the state of NormalizeObservation, NormalizeReward"):
        await evaluate(run, episodes=4, job=job_of([]))


async def test_what_cannot_be_carried_is_said_at_the_start(tmp_path: Path) -> None:
    class Half(gym.Wrapper[Any, Any, Any, Any]):
        def get_state(self) -> Any:
            return 1

        def set_state(self, state: Any) -> None:
            raise AssertionError("nobody asked")

    with pytest.warns(UserWarning, match="Half: it has get_state and set_state, but no merge_states"):
        async with training(tiny(tmp_path), job=job_of([], Half)) as run:
            await run.stop()
