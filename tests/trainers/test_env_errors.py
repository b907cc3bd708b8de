"""A bad level does not end a day's training: counted, survived, and ended where there are too many of them."""
# async: real envs that raise, real workers that are killed

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import aio_vecenv as av
import curriculum as cu
from tests.trainers.helpers import LEVELS, PLAN, Corridor, corridor_job, tiny
from trainers import ConfigError, Job, Summary, TooManyEnvErrors, TrainConfig, training
from trainers.evaluate import evaluate
from trainers.record.checkpoint import Checkpoints
from trainers.record.env_errors import EnvErrors
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics
from trainers.record.progress import PlainLines, summary_lines

pytestmark = pytest.mark.alternate_loops


class Treacherous(Corridor):
    """Raises where its level says: in the first step, in reset, or by an observation that is no number."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        level = (options or {}).get("level") or {}
        self.bad = level.get("bad", "")
        if self.bad == "reset":
            raise OSError("no such map")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        if self.bad == "step":
            raise ZeroDivisionError("a hole in the map")
        return (np.full_like(obs, np.nan) if self.bad == "nan" else obs, *rest)


def treacherous(good: int, *bad: str, stages: tuple[str, ...] = ("only",)) -> Job:
    """Levels of each stage: `good` good ones, and one for each of `bad`, called by its number."""
    levels = cu.LevelSet(
        [
            cu.Level(stage=stage, id=f"{stage}-{number}", data={"goal": 1 + number % 2, "bad": kind})
            for stage in stages
            for number, kind in enumerate([*[""] * good, *bad])
        ]
    )
    plan = cu.StagePlan([cu.Stage(name) for name in stages])
    return Job(plan, lambda: cu.CurriculumEnv(Treacherous(), levels))


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    return tiny(tmp_path, **{"strategy": "uniform", "total_steps": 64 * 20, "name": "run", **changes})


async def finish(config: TrainConfig, job: Job, **options: Any) -> Summary:
    async with training(config, job=job, **options) as run:
        return await run.wait()


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["inline", "process"])
@pytest.mark.parametrize("bad", ["step", "reset"])
async def test_a_bad_level_among_many_is_counted_and_survived(
    tmp_path: Path, backend: Any, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = PlainLines()
    async with training(config(tmp_path, backend=backend), job=treacherous(6, bad)) as run:
        shown.start(run)
        async for report in run.reports():
            shown._next_s = 0.0
            shown.show(report)
        summary = await run.wait()
    level, error = "only/only-6", "no such map" if bad == "reset" else "a hole in the map"
    assert summary.reason == "steps"
    assert list(summary.env_errors) == [level]
    assert summary.env_errors[level] >= 5
    lines = read_metrics(run.folder.metrics)
    assert sum((Counter(line["env_errors"]) for line in lines), Counter()) == summary.env_errors
    assert sum(line["aborted"] for line in lines) == (0 if bad == "reset" else summary.env_errors[level])
    assert json.loads(run.folder.summary.read_text())["env_errors"] == summary.env_errors
    kind = "OSError" if bad == "reset" else "ZeroDivisionError"
    assert run.warnings == [f"an env raised, its episode is aborted: {level}: {kind}: {error}"]
    assert re.search(r"  \d env errors?  ", capsys.readouterr().out)
    assert f"  env error  {level}: {summary.env_errors[level]} × {kind}: {error}" in summary_lines(
        summary, run
    )


class Begins(Treacherous):
    """Its bad levels begin with what fits nowhere, or cannot say what is allowed."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(seed=seed, options=options)
        wrong: Any = {"shape": (obs[:2], info), "nan at once": (obs * np.nan, info), "info": (obs, None)}
        return wrong.get(self.bad, (obs, info))  # type: ignore[no-any-return]


class Around(gym.Wrapper[Any, Any, Any, Any]):
    """Raises after the reset of what it wraps, in another's name; its bad levels cannot say what is allowed."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        if self.unwrapped.bad == "around":  # type: ignore[attr-defined]
            raise KeyError("around")
        return result

    def action_masks(self) -> Any:
        if self.unwrapped.bad == "mask":  # type: ignore[attr-defined]
            raise ArithmeticError("no mask")
        return [1, 1, 0]


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", ["shape", "nan at once", "info", "around", "mask"])
async def test_what_goes_wrong_around_a_reset_is_counted_by_the_level_that_was_drawn(
    tmp_path: Path, bad: str
) -> None:
    """Found by the worker, by a wrapper around, by the mask's method: after the level was drawn."""
    inside = treacherous(3, bad)
    assert callable(inside.make_env)
    levels = inside.make_env().levels
    job = Job(inside.plan, lambda: Around(cu.CurriculumEnv(Begins(), levels)))
    summary = await finish(config(tmp_path, total_steps=64 * 2), job)
    assert list(summary.env_errors) == ["only/only-3"]
    with pytest.raises((av.VecEnvError, ExceptionGroup)) as caught:
        await finish(config(tmp_path, on_env_error="raise", name="raise"), job)
    errors = caught.value.exceptions if isinstance(caught.value, ExceptionGroup) else [caught.value]
    assert all("stage 'only', level 'only-3'" in str(error) for error in errors)


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", ["step", "nan"])
async def test_raise_ends_the_run_at_the_first_error(tmp_path: Path, bad: str) -> None:
    kind = av.EnvError if bad == "step" else av.SpaceMismatch
    with pytest.raises((kind, ExceptionGroup)):
        await finish(config(tmp_path, on_env_error="raise"), treacherous(2, bad))


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", ["step", "reset", "nan"])
async def test_too_many_errors_end_the_run_and_say_of_which_level(tmp_path: Path, bad: str) -> None:
    """Two of three episodes fail; what was learned is saved, and the run goes on once the levels are mended."""
    job = treacherous(2, *[bad] * 4)
    with pytest.raises(
        TooManyEnvErrors, match=r"of the newest \d+ episodes failed with an error of their env"
    ) as caught:
        await finish(config(tmp_path, total_steps=10**6), job)
    assert "max_error_share allows 50%" in str(caught.value)
    folder = RunFolder.open(tmp_path / "run")
    tally = Checkpoints(folder.checkpoints).load_newest()[0].tally
    assert sum(tally["env_errors"].values()) >= 10
    summary = await finish(
        replace(folder.config(), total_steps=tally["env_steps"] + 64), treacherous(6), resume=folder.path
    )
    assert summary.env_errors == tally["env_errors"], "what was counted before stays counted"


@pytest.mark.asyncio
@pytest.mark.parametrize("bad", ["step", "reset"])
@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_a_stage_all_of_whose_levels_fail_ends_the_run(tmp_path: Path, bad: str, backend: Any) -> None:
    """Where not one episode can begin, no row ever comes: the restart budget ends that, without an end of patience."""
    settings = config(tmp_path, strategy="staged", backend=backend, total_steps=10**6)
    with pytest.raises(TooManyEnvErrors if bad == "step" else av.WorkerLost) as caught:
        await finish(settings, treacherous(0, bad))
    if bad == "reset":
        assert re.match(
            r"env \d raised OSError in reset \(\d\d times in a row\): no such map; "
            r"the restart budget of 10 in 600 s is spent",
            str(caught.value),
        )


@pytest.mark.asyncio
async def test_workers_that_are_killed_again_and_again_end_the_run_by_the_budget_only(tmp_path: Path) -> None:
    """Four within seconds are survived, one more than the budget is not."""
    settings = config(
        tmp_path, backend="process", num_workers=2, strategy="staged", restarts=4, spares=1, total_steps=10**6
    )
    levels = cu.LevelSet(LEVELS)

    class Endless(Corridor):  # here, so that no worker imports this module
        """Its episodes run until their worker is lost."""

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            obs, reward, _, _, info = super().step(action)
            return obs, reward, False, False, info

    async with training(settings, job=Job(PLAN, lambda: cu.CurriculumEnv(Endless(), levels))) as run:
        kills = 0

        async def kill() -> None:
            nonlocal kills
            async for _ in run.reports():
                if run.envs.statistics().restarts == kills <= 4:
                    os.kill((await run.envs.apply(lambda env: os.getpid()))[kills % 4], signal.SIGKILL)
                    kills += 1

        with pytest.raises(av.WorkerLost, match="the restart budget of 4 in 600 s is spent"):
            await kill()
    assert kills == 5
    summary = run.summary()
    assert summary.env_errors == {}, "a lost worker is no error of an env"
    assert summary.worker_losses == 4
    assert 2 <= summary.lost_episodes <= 8  # none of a worker that had not begun any since it was replaced
    lines = read_metrics(run.folder.metrics)
    assert sum(line["aborted"] for line in lines) <= summary.lost_episodes
    assert 3 <= sum(line["worker_losses"] for line in lines) <= 4, (
        "the last update may not have been learned from"
    )
    named = r"worker [01] \(envs (0-1|2-3)\) was killed by SIGKILL: replaced"
    assert all(re.match(named, text) for text in run.warnings[:3])
    # the fourth may come with rows that the fifth ends the run before
    assert [text.partition(":")[0] for text in run.warnings[3:]] in (
        [],
        ["more workers were lost and replaced"],
    )
    (line,) = run.worker_losses.lines()
    assert line.startswith(
        f"4 lost and replaced, {summary.lost_episodes} episodes aborted; the newest: worker "
    )


@pytest.mark.asyncio
async def test_an_evaluation_survives_a_bad_level_too(tmp_path: Path) -> None:
    await finish(config(tmp_path), treacherous(4))
    rows = await evaluate(tmp_path / "run", episodes=12, job=treacherous(4, "step"))
    assert [(row.stage, row.episodes) for row in rows] == [("only", 12)]
    with pytest.raises(TooManyEnvErrors, match="a hole in the map"):
        await evaluate(tmp_path / "run", episodes=12, job=treacherous(0, "step"))


class Episodes:
    """A batch of ended episodes."""

    number, env_ids = 0, np.arange(1)
    infos: dict[str, Any]

    def __init__(self, failed: bool) -> None:
        task = {"stage": "a", "level": "b"}
        self.episodes = [
            av.Episode(0, 0, 0, 1, 0.0, "aborted" if failed else "terminated", 1, task, {}, None, 0)
        ]
        marked = np.ones(1, bool)
        self.infos = {"env_error": np.array(["E: x"], object), "_env_error": marked} if failed else {}


def test_the_share_is_of_the_newest_hundred() -> None:
    def play(errors: EnvErrors, *failed: bool) -> None:
        for one in failed:
            errors.batch(Episodes(one))
            errors.check()

    errors = EnvErrors(0.25)
    play(errors, *[number % 4 == 3 for number in range(400)])
    with pytest.raises(TooManyEnvErrors, match=r"26 of the newest 100 episodes .* a/b: 26 × E: x"):
        play(errors, *[True] * 4)
    few = EnvErrors(0.0)
    play(few, *[True] * 19)
    with pytest.raises(TooManyEnvErrors, match="20 of the newest 20"):
        play(few, True)


class Flaky(gym.Env[Any, Any]):
    """Every other reset fails."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)
    resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.resets += 1
        if self.resets % 2:
            raise OSError("busy")
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), 0.0, True, False, {}


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_only_failed_resets_in_a_row_count_against_the_budget(backend: Any) -> None:
    async def play(allowed: int) -> None:
        budget = av.RestartBudget(2, per_s=60, failed_resets=allowed)
        async with av.AsyncVecEnv(Flaky, 1, backend=backend, on_env_error="reset", restart=budget) as envs:
            await envs.reset(seed=1)
            for _ in range(40):
                await envs.step(np.zeros(1, np.int64))
            assert envs.statistics().restarts == 0

    await play(1)
    with pytest.raises(av.WorkerLost, match="raised OSError in reset: busy"):
        await play(0)


@pytest.mark.asyncio
@pytest.mark.parametrize("collect", ["lockstep", "unroll", "first_ready"])
async def test_workers_are_renewed_without_an_aborted_episode(tmp_path: Path, collect: Any) -> None:
    """Two envs in each: rows in which one waits for the other are learned from by nobody, and no outcome is lost."""
    config = tiny(
        tmp_path, deterministic=False, backend="process", collect=collect, num_envs=4, num_workers=2,
        renew_after_episodes=12, restarts=0, total_steps=10**6,
    )  # fmt: skip
    async with training(config, job=corridor_job()) as run:
        async for _ in run.reports():
            if run.envs.statistics().renewals > 1:
                break
    metrics = read_metrics(run.folder.metrics)
    assert sum(line["aborted"] for line in metrics) == 0


def test_what_cannot_be_renewed_is_one_clear_error(tmp_path: Path) -> None:
    for wrong, text in (
        ({"renew_after_mb": -1.0}, "renew_after_mb must be positive, got -1.0"),
        ({"renew_after_episodes": 0}, "renew_after_episodes must be positive, got 0"),
        ({"renew_after_episodes": 5, "deterministic": True}, "renew_after_episodes excludes deterministic"),
        ({"renew_after_mb": 5.0, "backend": "inline"}, "renew_after_mb needs backend='process'"),
    ):
        with pytest.raises(ConfigError, match=text):
            tiny(tmp_path, **{"deterministic": False, "backend": "process", **wrong})
