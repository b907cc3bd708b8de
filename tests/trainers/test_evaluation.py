"""Evaluation while training: beside the run, without a trace in it; the best is kept, and may end the run."""
# async: real runs, inline and in processes

from __future__ import annotations

import asyncio
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import curriculum as cu
from tests.trainers.helpers import LEVELS, PLAN, Corridor, corridor_job, tiny
from trainers import ConfigError, EvalConfig, Job, Summary, TrainConfig, training
from trainers.evaluate import evaluate
from trainers.jobs import resolve_job
from trainers.record.checkpoint import Checkpoints, load
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics
from trainers.record.progress import PlainLines
from trainers.record.summary import wilson

pytestmark = pytest.mark.alternate_loops


async def finish(config: TrainConfig, job: Job | None = None, **options: Any) -> tuple[Summary, RunFolder]:
    async with training(config, job=job or corridor_job(), **options) as run:
        return await run.wait(), run.folder


def untimed(folder: RunFolder) -> list[dict[str, Any]]:
    return [{**line, "timing": None} for line in read_metrics(folder.metrics)]


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_training_does_not_depend_on_it(tmp_path: Path, backend: Any) -> None:
    """Metrics, journal and parameters with and without it: bit for bit."""
    config = tiny(tmp_path, backend=backend, total_steps=64 * 12)
    _, without = await finish(config)
    _, folder = await finish(replace(config, eval=EvalConfig(every=3, episodes=8)))
    assert untimed(folder) == untimed(without)
    assert folder.journal.read_bytes() == without.journal.read_bytes()
    ours, theirs = (Checkpoints(one.checkpoints).load_newest()[0].model for one in (folder, without))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    lines = read_metrics(folder.evaluations)
    assert [(line["update"], line["env_steps"]) for line in lines] == [(n, 64 * n) for n in (3, 6, 9, 12)]


@pytest.mark.asyncio
async def test_what_it_reports_is_what_eval_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the parameters of that update, whatever training did meanwhile; every figure from the episodes."""
    config = tiny(tmp_path, total_steps=64 * 8, eval=EvalConfig(every=4, episodes=8), checkpoint_every=4)
    shown = PlainLines()
    async with training(config, job=corridor_job()) as run:
        shown.start(run)
        async for report in run.reports():
            shown.show(report)
        await run.wait()  # for the last evaluation, too
        shown.show(report)
        last = run.last_evaluation
    folder = run.folder
    (first, second) = read_metrics(folder.evaluations)
    for line, path in zip((first, second), Checkpoints(folder.checkpoints).paths()[-2:], strict=True):
        judged = await evaluate(path, episodes=8, seed=config.seed, job=corridor_job())
        assert [json.loads(json.dumps(vars(row))) for row in judged] == line["stages"]
    assert last is not None
    assert last.update == 8
    for row in last.stages:
        assert row.episodes == 8
        assert (row.low, row.high) == wilson(round(row.success_rate * 8), 8)
        assert row.cvar <= row.mean_return
    assert "evaluated  @ 512: one " in capsys.readouterr().out


@pytest.mark.asyncio
async def test_the_best_is_kept_by_the_figure_that_is_named(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        total_steps=64 * 40,
        keep_checkpoints=1,
        eval=EvalConfig(every=2, episodes=8, best="mean_return"),
    )
    _, folder = await finish(config)
    lines = read_metrics(folder.evaluations)
    means = [sum(stage["mean_return"] for stage in line["stages"]) for line in lines]
    bests = [line["update"] for line in lines if line["best"]]
    assert bests == [
        line["update"] for i, line in enumerate(lines) if all(means[i] > mean for mean in means[:i])
    ]
    assert len(bests) > 1, "it never became better"
    best = folder.checkpoints / "best.pt"
    assert load(best).tally["updates"] == bests[-1]
    assert [path.name for path in Checkpoints(folder.checkpoints).paths()] == ["step-0000002560.pt"]
    judged = await evaluate(best, episodes=8, job=corridor_job())
    assert sum(row.mean_return for row in judged) == pytest.approx(max(means))


@pytest.mark.asyncio
@pytest.mark.parametrize("goal", [{"stop_success": 0.6}, {"stop_return": 0.6}])
async def test_a_goal_that_is_evaluated_ends_the_run(tmp_path: Path, goal: dict[str, Any]) -> None:
    config = tiny(tmp_path, total_steps=64 * 400, eval=EvalConfig(every=5, episodes=16, **goal))
    summary, folder = await finish(config)
    line = read_metrics(folder.evaluations)[-1]
    assert (summary.reason, summary.solved_at) == ("solved", line["env_steps"])
    assert summary.env_steps == line["env_steps"] < config.total_steps, "training waits for what may end it"
    assert line["stages"][-1]["mean_return"] >= 0.6


@pytest.mark.asyncio
async def test_a_resumed_run_evaluates_what_was_cut_again(tmp_path: Path) -> None:
    config = tiny(tmp_path, total_steps=64 * 6, eval=EvalConfig(every=3, episodes=4))
    _, folder = await finish(config)
    before = read_metrics(folder.evaluations)
    folder.evaluations.write_text("")
    await finish(replace(config, total_steps=64 * 9), resume=folder.path)
    after = read_metrics(folder.evaluations)
    assert [line["update"] for line in after] == [6, 9]
    assert after[0]["stages"] == before[1]["stages"]


class Doomed(Corridor):
    """Raises wherever it is told to."""

    fails = True

    def step(self, action: Any) -> Any:
        if self.fails and self.goal == 3:
            raise ZeroDivisionError("only in evaluation")
        return super().step(action)


@pytest.mark.asyncio
async def test_an_evaluation_that_fails_ends_the_run_and_says_why(tmp_path: Path) -> None:
    """Stage three is never practised here, and cannot be played."""
    plan = cu.StagePlan([cu.Stage("one", threshold=1.0, min_episodes=10**6), *PLAN.stages[1:]])
    job = Job(plan, lambda: cu.CurriculumEnv(Doomed(), cu.LevelSet(LEVELS)))
    config = tiny(
        tmp_path, total_steps=64 * 50, early=False, trend=False, eval=EvalConfig(every=2, episodes=8)
    )
    with pytest.raises(RuntimeError, match=r"three: .* only in evaluation"):
        await finish(config, job)


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_stopping_does_not_wait_for_it(tmp_path: Path) -> None:
    config = tiny(tmp_path, total_steps=64 * 1000, eval=EvalConfig(every=1, episodes=10**5))
    async with training(config, job=corridor_job()) as run:
        reports = run.reports()
        await anext(reports)
        await anext(reports)  # the second evaluation waits for the first, and so does the run
        summary = await asyncio.wait_for(run.stop(), 20)
    assert summary.reason == "stopped"
    assert not run.folder.evaluations.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 0}, "eval.every must be at least 1"),
        ({"stop_return": 1.0}, "need eval.every"),
        ({"every": 1, "stop_success": 1.5}, r"eval.stop_success must lie in \(0, 1\]"),
        ({"best": "succes_rate"}, "did you mean 'success_rate'"),
    ],
)
def test_what_cannot_be_evaluated_is_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalConfig(**changes)


@pytest.mark.asyncio
async def test_without_a_plan_there_is_nothing_to_evaluate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One clear error, and nothing left; a plan of one stage is enough."""
    config = tiny(tmp_path, env="CartPole-v1", total_steps=64, eval=EvalConfig(every=1, episodes=1))
    with pytest.raises(
        ConfigError, match=r"eval\.every plays every stage of a plan, and there is none: give one"
    ):
        await finish(config, resolve_job(config))
    assert os.listdir(tmp_path) == []
    # as the one stage without a plan is called
    (tmp_path / "plan.toml").write_text('[[stage]]\nname = "all"\n')
    config = replace(config, plan=tmp_path / "plan.toml")
    _, folder = await finish(config, resolve_job(config))
    (line,) = read_metrics(folder.evaluations)
    assert [stage["stage"] for stage in line["stages"]] == ["all"]
    await finish(replace(config, eval=EvalConfig(every=9)), resolve_job(config))
    assert "eval.every=9 updates, and the run has 1: nothing is evaluated" in caplog.text


def test_cvar_is_the_mean_of_the_worst_tenth() -> None:
    from trainers.evaluate import _result

    returns = np.random.default_rng(0).permutation(25).astype(float)
    episodes = [
        cu.FinishedEpisode(0, i, i, 1, value, "terminated", 0, {"stage": "a", "level": "a"}, {})
        for i, value in enumerate(returns)
    ]
    assert _result("a", episodes, lambda episode: False).cvar == np.mean([0, 1, 2])
    assert math.isclose(_result("a", episodes[:3], lambda episode: True).cvar, min(returns[:3]))
