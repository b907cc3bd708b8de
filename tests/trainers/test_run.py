"""A whole run, embedded: reports, stopping, resuming, determinism, equal shares, errors, the loop's lag."""
# async: real envs, inline and in processes; states are awaited, nothing sleeps

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import aio_vecenv as av
import curriculum as cu
from tests.aio_vecenv.harness import wait_until
from tests.trainers.helpers import LEVELS, PLAN, Corridor, corridor_job, tiny
from trainers import ConfigError, Job, Run, Summary, TrainConfig, train, training
from trainers.config import NetworkConfig
from trainers.evaluate import evaluate
from trainers.record.checkpoint import CheckpointError, Checkpoints
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics
from trainers.record.progress import PlainLines, summary_lines

pytestmark = pytest.mark.alternate_loops


async def finish(config: TrainConfig, job: Job | None = None, **kwargs: Any) -> tuple[Summary, RunFolder]:
    async with training(config, job=job or corridor_job(), **kwargs) as run:
        return await run.wait(), run.folder


def untimed(folder: RunFolder) -> list[dict[str, Any]]:
    lines = read_metrics(folder.metrics)
    for line in lines:
        del line["timing"]
    return lines


def parameters(folder: RunFolder) -> dict[str, torch.Tensor]:
    return dict(Checkpoints(folder.checkpoints).load_newest()[0].model)


@pytest.mark.asyncio
async def test_a_run_leaves_its_folder(tmp_path: Path) -> None:
    async with training(tiny(tmp_path), job=corridor_job()) as run:
        reports = [report async for report in run.reports()]
        summary = await run.wait()
        assert summary == await run.stop() == run.summary()
    assert [report.update for report in reports] == [1, 2, 3, 4, 5, 6]
    assert (summary.reason, summary.env_steps, summary.updates) == ("steps", 384, 6)
    assert summary.timeline[0].stage == "one"
    assert summary.published >= 1
    assert {entry.name for entry in run.folder.path.iterdir()} == {
        "config.toml", "metrics.jsonl", "journal.jsonl", "checkpoints", "summary.json",
    }  # fmt: skip
    assert json.loads(run.folder.summary.read_text())["env_steps"] == 384
    assert [line["update"] for line in read_metrics(run.folder.metrics)] == [1, 2, 3, 4, 5, 6]
    assert run.folder.config() == run.config
    assert sum(len(r["ended"]) for _n, r in cu.read_journal(run.folder.journal) if r["kind"] == "batch") > 20


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["vector", "discrete", "image", "dict", "dict_mask"])
@pytest.mark.parametrize("collect", ["lockstep", "first_ready"])
async def test_every_kind_of_observation_is_learned_from(tmp_path: Path, kind: str, collect: Any) -> None:
    config = tiny(tmp_path, collect=collect, deterministic=False, total_steps=128)
    summary, _ = await finish(config, corridor_job(kind, masked=kind != "dict_mask"))
    assert summary.updates == 2


@pytest.mark.asyncio
async def test_it_learns_and_the_curriculum_moves(tmp_path: Path) -> None:
    config = tiny(tmp_path, total_steps=20_000, solve_rate=0.9)
    summary, _ = await finish(config)
    assert summary.reason == "solved"
    assert summary.solved_at == summary.env_steps < 20_000
    assert [entry.stage for entry in summary.timeline] == ["one", "three"]
    assert summary.stages[-1].success_rate >= 0.9


@pytest.mark.asyncio
async def test_the_same_metrics_bit_for_bit_for_any_number_of_workers(tmp_path: Path) -> None:
    job, runs = corridor_job(), []
    for backend, workers in (("inline", 1), ("process", 1), ("process", 2)):
        config = tiny(tmp_path, backend=backend, num_workers=workers, total_steps=512)
        summary, folder = await finish(config, job)
        runs.append((untimed(folder), summary.timeline, parameters(folder)))
    for lines, timeline, model in runs[1:]:
        assert lines == runs[0][0]
        assert timeline == runs[0][1]
        assert all(torch.equal(model[key], runs[0][2][key]) for key in model)


@pytest.mark.asyncio
async def test_another_seed_is_another_run(tmp_path: Path) -> None:
    lines = [untimed((await finish(tiny(tmp_path, seed=seed)))[1]) for seed in (0, 1)]
    assert lines[0] != lines[1]


@pytest.mark.asyncio
async def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    async with training(tiny(tmp_path), job=corridor_job()) as run:
        async for report in run.reports():
            if report.update == 3:
                summary = await run.stop()
                break
    assert summary.reason == "stopped"
    assert summary.updates == 3
    async with training(resume=run.folder.path, job=corridor_job()) as again:
        assert again.env_steps == summary.env_steps
        assert again.folder.path == run.folder.path
        summary = await again.wait()
    assert (summary.reason, summary.updates, summary.resumes) == ("steps", 6, 1)
    assert [line["update"] for line in read_metrics(run.folder.metrics)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.asyncio
@pytest.mark.parametrize(("num_envs", "updates"), [(8, 3 + 2), (2, 3 + 6)])
async def test_resumed_with_other_sizes_it_ends_at_the_same_env_steps(
    tmp_path: Path, num_envs: int, updates: int
) -> None:
    _, folder = await finish(tiny(tmp_path, total_steps=3 * 64))
    other = replace(folder.config(), num_envs=num_envs, total_steps=6 * 64)
    summary, _ = await finish(other, resume=folder.path)
    assert (summary.reason, summary.env_steps, summary.updates) == (
        "steps",
        384 + 64 * (num_envs == 8),
        updates,
    )
    rates = [line["learning_rate"] for line in read_metrics(folder.metrics)][3:]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < rates[0] < 3e-3 * 0.6


@pytest.mark.asyncio
async def test_without_a_curriculum_a_given_job_plays_its_last_stage_only(tmp_path: Path) -> None:
    summary, _ = await finish(tiny(tmp_path, curriculum=False, total_steps=64))
    assert [stage.name for stage in summary.stages] == ["three"]
    assert [entry.stage for entry in summary.timeline] == ["three"]


@pytest.mark.asyncio
async def test_a_solved_run_goes_on_under_another_goal(tmp_path: Path) -> None:
    config = tiny(tmp_path, total_steps=20_000, solve_rate=0.2, solve_window=5)
    summary, folder = await finish(config)
    assert summary.reason == "solved"
    again, _ = await finish(config, resume=folder.path)
    assert (again.reason, again.env_steps) == ("solved", summary.env_steps), "the same goal: it is reached"
    further = replace(config, solve_rate=None, total_steps=summary.env_steps + 64)
    again, _ = await finish(further, resume=folder.path)
    assert (again.reason, again.solved_at) == ("steps", None)
    assert again.env_steps >= further.total_steps


async def kill(run: Run) -> None:
    """End a run as if its process had died: no checkpoint, no summary."""
    await run._quiet()


@pytest.mark.asyncio
@pytest.mark.parametrize("graceful", [True, False])
async def test_exact_resume_equals_the_run_that_never_stopped(tmp_path: Path, graceful: bool) -> None:
    """20 updates at once, or 10 and a bit, an end, and the rest: parameters and metrics bit for bit (F42)."""
    config = tiny(tmp_path, total_steps=20 * 64, checkpoint_every=5, exact_resume=True)
    whole, folder = await finish(replace(config, name="whole"))
    with pytest.MonkeyPatch.context() as patch:
        if not graceful:
            patch.setattr(Run, "stop", kill)
        async with training(replace(config, name="parts"), job=corridor_job()) as run:
            async for report in run.reports():
                if report.update == 12:
                    await run.stop()
                    break
    assert len(read_metrics(run.folder.metrics)) >= 12
    summary, parts = await finish(run.config, resume=run.folder.path)
    assert summary.updates == 20
    assert untimed(parts) == untimed(folder)
    assert summary.timeline == whole.timeline
    ours, theirs = parameters(parts), parameters(folder)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.asyncio
async def test_first_ready_takes_equal_shares_of_fast_and_slow_envs(tmp_path: Path) -> None:
    """V18: every env contributes exactly T rows to each update, however fast it is."""
    counts: list[list[int]] = []
    ahead, levels = tmp_path / "ahead", cu.LevelSet(LEVELS)
    config = tiny(
        tmp_path, collect="first_ready", deterministic=False, backend="process", num_workers=4, min_envs=1,
        total_steps=64 * 3,
    )  # fmt: skip

    class Uneven(Corridor):
        """The fifth step of env 0 lasts until the others are ahead of it."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.left = 5 if index == 0 else 0

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.left -= 1
            if self.left == 0:
                wait_until(ahead.exists)
            return super().step(action)

    make_uneven: Any = lambda index: cu.CurriculumEnv(Uneven(index), levels)  # noqa: E731 - it takes an index
    async with training(config, job=Job(PLAN, make_uneven)) as run:
        look = run._look

        async def watched(batch: Any) -> bool:
            if 0 not in batch.env_ids:
                ahead.touch()
            if run._collector.learner.rollout.full:
                counts.append(run._collector.learner.rollout.cursor.tolist())
            return await look(batch)

        run._look = watched  # type: ignore[method-assign]
        summary = await run.wait()
    assert summary.updates == 3
    assert counts == [[16] * 4] * 3
    assert ahead.exists(), "never was anyone ahead of the others"


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_the_loop_stays_free_while_the_learner_learns(tmp_path: Path) -> None:
    """Every update waits for a turn of the loop; the bar for a figure of speed is in the benchmarks."""
    loop = asyncio.get_running_loop()
    async with training(tiny(tmp_path), job=corridor_job()) as run:
        learn = run._collector.learner.learn

        def watched(*args: Any) -> Any:
            turned = threading.Event()
            loop.call_soon_threadsafe(turned.set)
            assert turned.wait(20), "the loop waits for the learner"
            return learn(*args)

        run._collector.learner.learn = watched  # type: ignore[method-assign, assignment]
        summary = await run.wait()
    assert summary.updates == 6
    assert summary.loop_lag_p99_s >= 0


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_an_operator_steers_a_running_run(tmp_path: Path) -> None:
    async with training(tiny(tmp_path, total_steps=100_000), job=corridor_job()) as run:
        async for report in run.reports():
            if report.update == 1:
                await run.coordinator.set_stage("three", by="operator")
            if report.stage == "three":
                break
        summary = await run.stop()
    assert summary.timeline[-1].stage == "three"
    assert any(d.kind == "set_stage" and d.by == "operator" for d in run.coordinator.decisions)


@pytest.mark.asyncio
async def test_numpy_s_numbers_do_not_spoil_the_checkpoints(tmp_path: Path) -> None:
    """In the plan, and in what an operator commands: every checkpoint can be read again."""
    rates = np.linspace(0.6, 0.7, 2)
    plan = cu.StagePlan([cu.Stage(name, rate, 20) for name, rate in zip(PLAN.names, rates)])
    job = replace(corridor_job(), plan=plan)
    async with training(tiny(tmp_path, total_steps=64 * 20), job=job) as run:
        async for report in run.reports():
            if report.update == 2:
                run.coordinator.set_mixing_ratio("three", np.float64(0.35), by="operator")
        await run.wait()
    assert run.coordinator.decisions
    assert Checkpoints(run.folder.checkpoints).load_newest()[2] == []


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_leaving_early_saves_and_closes(tmp_path: Path) -> None:
    async with training(tiny(tmp_path, total_steps=100_000), job=corridor_job()) as run:
        async for report in run.reports():
            if report.update == 2:
                break
    assert run.envs.closed
    assert run.summary().reason == "stopped"
    assert Checkpoints(run.folder.checkpoints).load_newest()[0].tally["updates"] >= 2


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_cancelled_it_leaves_nothing(tmp_path: Path) -> None:
    started = asyncio.Event()
    config = tiny(tmp_path, total_steps=100_000, backend="process", name="cancelled")

    async def embedder() -> None:
        async with training(config, job=corridor_job()) as run:
            started.set()
            await run.wait()

    task = asyncio.create_task(embedder())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Checkpoints(tmp_path / "cancelled" / "checkpoints").load_newest()


class Mute(Corridor):
    """Never says whether an episode succeeded."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        return (*rest, {name: value for name, value in info.items() if name != "is_success"})


@pytest.mark.asyncio
async def test_success_that_never_comes_is_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """All episodes would count as failures, and the first stage would last for ever."""
    levels = cu.LevelSet(LEVELS)
    mute = Job(PLAN, lambda: cu.CurriculumEnv(Mute(), levels))
    shown = PlainLines()
    async with training(tiny(tmp_path, total_steps=64 * 25, checkpoint_every=1000), job=mute) as run:
        shown.start(run)
        async for report in run.reports():
            shown.show(report)
    warning = "none of the first 100 episodes said whether it succeeded"
    assert [text for text in run.warnings if warning in text] == run.warnings != []
    assert capsys.readouterr().out.count(f"warning: {warning}") == 1
    assert caplog.text.count(warning) == 1

    said = replace(mute, success=lambda episode: episode.episode_return > 0)
    for job in (said, corridor_job()):  # somebody says it
        async with training(tiny(tmp_path, total_steps=64 * 25, checkpoint_every=1000), job=job) as run:
            assert (await run.wait()).episodes > 100
        assert run.warnings == []


class Says(Corridor):
    """Two steps, of which the first says `value`, or both do, instead of whether it succeeded."""

    def __init__(self, value: Any, each: bool = False) -> None:
        super().__init__()
        self.value, self.each = value, each

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *_ = super().step(action)
        info = {"is_success": self.value} if self.each or self.t == 1 else {}
        return obs, reward, False, self.t == 2, info


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [True, False])
async def test_under_ever_an_episode_says_by_any_step_whether_it_succeeded(
    tmp_path: Path, value: bool
) -> None:
    """And not by its last step alone, which may say nothing."""
    levels = cu.LevelSet(LEVELS)
    job = Job(PLAN, lambda: cu.CurriculumEnv(Says(value), levels))
    async with training(tiny(tmp_path, total_steps=64 * 7, success="ever"), job=job) as run:
        summary = await run.wait()
    assert summary.episodes > 100
    assert run.warnings == []
    assert f"  one        success {value:4.0%} of the newest" in "\n".join(summary_lines(summary, run))


@pytest.mark.asyncio
@pytest.mark.parametrize(("strategy", "success"), [("staged", "last"), ("uniform", "ever")])
async def test_a_success_that_cannot_be_read_ends_no_run_and_is_warned_of_once(
    tmp_path: Path, strategy: Any, success: Any
) -> None:
    levels = cu.LevelSet(LEVELS)
    job = Job(PLAN, lambda: cu.CurriculumEnv(Says(np.array([1, 0]), each=True), levels))
    config = tiny(tmp_path, name="run", total_steps=64, strategy=strategy, success=success)
    text = r"^env \d, stage '\w+', level '\w+': is_success is array\(\[1, 0\]\), which is neither a bool nor a number"
    async with training(config, job=job) as run:
        summary = await run.wait()
    assert len(run.warnings) == 1
    assert re.match(text, run.warnings[0])
    assert {stage.success_rate for stage in summary.stages} == {0.0}
    with pytest.warns(UserWarning, match=text):
        rows = await evaluate(tmp_path / "run", episodes=4, job=job)
    assert {row.success_rate for row in rows} == {0.0}


@pytest.mark.asyncio
async def test_stages_that_need_no_success_show_what_is_measured_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No warning that success is never said: nothing waits for it. Lines and summary say how far each stage is."""
    plan = cu.StagePlan(
        [cu.Stage("one", measure="return", threshold=2.0), cu.Stage("three", measure="steps", threshold=500)]
    )
    shown, mute = PlainLines(), Job(plan, lambda: cu.CurriculumEnv(Mute(), cu.LevelSet(LEVELS)))
    async with training(tiny(tmp_path, total_steps=64 * 25, checkpoint_every=1000), job=mute) as run:
        shown.start(run)
        async for report in run.reports():
            shown.show(report)
        shown.finish(await run.wait(), run)
    assert run.warnings == []
    assert run.summary().episodes > 100
    lines = capsys.readouterr().out
    assert re.search(r"64 steps  one +one return [\d.-]+ of 2  mix", lines)
    assert re.search(r"^  one +return [\d.]+ of 2, \d+ episodes", lines, re.M)


class Faulty(Corridor):
    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise ZeroDivisionError("the env is broken")


def make_faulty() -> Any:
    return cu.CurriculumEnv(Faulty(), cu.LevelSet([cu.Level(id="one", stage="one", data={"goal": 1})]))


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_an_error_of_the_env_ends_the_run_and_reaches_whoever_waits(tmp_path: Path) -> None:
    job = Job(cu.StagePlan([cu.Stage("one")]), make_faulty)
    config = tiny(tmp_path, on_env_error="raise")
    with pytest.raises((av.EnvError, ExceptionGroup)):
        async with training(config, job=job) as run:
            await asyncio.wait([run._task])  # nobody asks what came of it: leaving raises it
    async with training(config, job=job) as run:
        with pytest.raises((av.EnvError, ExceptionGroup)):
            await anext(run.reports())
        with pytest.raises((av.EnvError, ExceptionGroup)):
            await run.wait()


class Mortal(Corridor):
    """Works for a while."""

    steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps > 56:
            raise ZeroDivisionError("worn out")
        return super().step(action)


@pytest.mark.asyncio
async def test_what_was_learned_outlives_an_error_of_the_env(tmp_path: Path) -> None:
    levels = cu.LevelSet(LEVELS)
    mortal = Job(PLAN, lambda: cu.CurriculumEnv(Mortal(), levels))
    with pytest.raises((av.EnvError, ExceptionGroup)):
        async with training(tiny(tmp_path, checkpoint_every=1000, on_env_error="raise"), job=mortal) as run:
            await run.wait()
    assert run.last_report is not None
    async with training(resume=run.folder.path, job=corridor_job()) as again:
        assert again.env_steps >= run.last_report.env_steps > 0
        first = await anext(again.reports())
        assert first.update == run.last_report.update + 1
        assert (await again.wait()).reason == "steps"


class Blank(Corridor):
    """Sees nothing from its third step on."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        return (np.full_like(obs, np.nan) if self.t > 2 else obs, *rest)


@pytest.mark.asyncio
async def test_no_observation_that_is_no_number_reaches_the_network(tmp_path: Path) -> None:
    blank = Job(PLAN, lambda: cu.CurriculumEnv(Blank(), cu.LevelSet(LEVELS)))
    config = tiny(tmp_path, num_envs=1, on_env_error="raise")
    with pytest.raises(av.SpaceMismatch, match="finite numbers, got NaN"):
        await finish(config, blank)
    _, folder = await finish(config)
    with pytest.raises(av.SpaceMismatch, match="finite numbers, got NaN"):
        await evaluate(folder.path, job=blank)


@pytest.mark.asyncio
async def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine", checkpoint_every=1)
    config = replace(config, ppo=replace(config.ppo, lr=1e30, anneal_lr=False))
    with pytest.raises(FloatingPointError, match=r"^update 1: the loss is not a number: \w+ is (nan|inf); "):
        await finish(config)
    folder = RunFolder.open(tmp_path / "mine")
    assert all(torch.isfinite(value).all() for value in parameters(folder).values())
    assert read_metrics(folder.metrics) == []


@pytest.mark.asyncio
async def test_an_error_of_the_curriculum_ends_the_run(tmp_path: Path) -> None:
    def broken(_: Any) -> bool:
        raise LookupError("no such success")

    job = replace(corridor_job(), success=broken)
    with pytest.raises(LookupError, match="no such success"):
        await finish(tiny(tmp_path), job)


@pytest.mark.asyncio
async def test_entering_fails_with_one_clear_error_and_nothing_open(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        await finish_plain(tiny(tmp_path, env=None))
    with pytest.raises(ConfigError, match="needs a config, or a run folder"):
        async with training():
            pass
    with pytest.raises(ConfigError, match="no such run folder"):
        async with training(resume=tmp_path / "nowhere"):
            pass
    _, folder = await finish(tiny(tmp_path, total_steps=64))
    other = replace(folder.config(), network=replace(folder.config().network, hidden=(5,)))
    with pytest.raises(CheckpointError, match=r"step-\d+\.pt: the saved network does not fit"):
        await finish(other, resume=folder.path)
    with pytest.raises(
        CheckpointError, match=r"step-\d+\.pt: the curriculum in it .*: DomainRandomisation state"
    ):
        await finish(replace(folder.config(), strategy="uniform"), resume=folder.path)
    assert folder.config().strategy == "staged", "settings that do not fit leave the run as it was"
    for path in folder.checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"no usable checkpoint: .*torn"):
        await finish(folder.config(), resume=folder.path)


class Narrow(Corridor):
    """Its mask, at reset or from the second step on, is of `width` actions; there are three."""

    def __init__(self, kind: str, width: int, late: bool = False) -> None:
        super().__init__(kind)
        self.width, self.late = width, late
        if kind == "dict_mask":
            self.observation_space["action_mask"] = gym.spaces.MultiBinary(width)  # type: ignore[index]

    def _obs(self) -> Any:
        obs = super()._obs()
        return obs if self.kind == "vector" else {**obs, "action_mask": np.ones(self.width, np.int8)}

    def _info(self) -> dict[str, Any]:
        width = 3 if self.late and self.t < 2 else self.width
        return {} if self.kind == "dict_mask" else {"action_mask": np.ones(width, np.int8)}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("kind", "width", "late"),
    [
        ("dict_mask", 1, False),
        ("dict_mask", 2, False),
        ("vector", 1, False),
        ("vector", 4, False),
        ("vector", 2, True),
    ],
)
async def test_a_mask_of_another_width_is_refused(tmp_path: Path, kind: str, width: int, late: bool) -> None:
    job = Job(PLAN, lambda: cu.CurriculumEnv(Narrow(kind, width, late), cu.LevelSet(LEVELS)))
    place = r"env \d, after \d steps of its episode, stage 'one', level 'one'"
    with pytest.raises(
        ConfigError, match=f"^{place}: an action mask has {width} entries, expected one per action: 3$"
    ):
        await finish(tiny(tmp_path), job)


@pytest.mark.asyncio
async def test_a_start_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    """Else the next try is told to resume a run that has no checkpoint."""

    def make_unready() -> Any:
        return cu.CurriculumEnv(Unready(), cu.LevelSet(LEVELS))

    config = tiny(tmp_path, name="mine")
    for settings, error in (
        (config, av.WorkerLost),
        (replace(config, on_env_error="raise"), (av.EnvError, ExceptionGroup)),
    ):
        with pytest.raises(error, match=r"no display|4 envs raised"):
            await finish(settings, Job(PLAN, make_unready))
    assert os.listdir(tmp_path) == []
    summary, _ = await finish(config)
    assert summary.reason == "steps"


class Unready(Corridor):
    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        raise OSError("no display")


@pytest.mark.asyncio
@pytest.mark.parametrize("changes", [{"network": NetworkConfig(hidden=(5,))}, {"strategy": "uniform"}])
async def test_a_resume_that_is_refused_leaves_the_logs_as_they_were(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    _, folder = await finish(tiny(tmp_path))
    Checkpoints(folder.checkpoints).paths()[-1].unlink()  # the logs have more than the checkpoint
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError):
        await finish(replace(folder.config(), **changes), resume=folder.path)
    assert {path: path.read_bytes() for path in before} == before
    await finish(folder.config(), resume=folder.path)
    assert [line["update"] for line in read_metrics(folder.metrics)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.asyncio
async def test_a_run_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    """Two would write the same logs. What it is held by ends with the process, whatever ends that."""
    async with training(tiny(tmp_path), job=corridor_job()) as run:
        with pytest.raises(ConfigError, match=rf"{run.folder.path}: in use: a run is going on in it"):
            await finish(run.config, resume=run.folder.path)
    assert (await finish(run.config, resume=run.folder.path))[0].reason == "steps"


async def finish_plain(config: TrainConfig) -> None:
    async with training(config) as run:
        await run.wait()


@pytest.mark.asyncio
async def test_a_full_disk_on_the_way_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save, calls = Checkpoints.save, []

    def full(self: Checkpoints, state: Any) -> Path:
        calls.append(state)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save(self, state)

    monkeypatch.setattr(Checkpoints, "save", full)
    with caplog.at_level(logging.WARNING, "trainers"):
        async with training(tiny(tmp_path), job=corridor_job()) as run:
            summary = await run.wait()
    assert summary.updates == 6
    assert "No space left" in run.warnings[0]
    assert "the previous one stands" in caplog.text


def test_the_plain_call(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    seen: list[int] = []
    summary = train(tiny(tmp_path), job=corridor_job(), on_report=lambda report: seen.append(report.update))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert summary.reason == "steps"
    assert torch.get_num_threads() == threads


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_worker_killed_on_the_way_costs_its_episodes_and_nothing_else(tmp_path: Path) -> None:
    """SIGKILL between two updates: the run goes on, the lost rows are masked, their episodes censored and unscored."""
    config = tiny(
        tmp_path, backend="process", num_workers=2, strategy="prioritised_replay", total_steps=64 * 12
    )
    lost: list[int] = []
    async with training(config, job=corridor_job()) as run:
        learn, pid = run._collector.learner.learn, run.envs.statistics().workers[0].pid

        def watched(index: int, *args: Any) -> Any:
            if index == 2:
                os.kill(pid, signal.SIGKILL)  # all workers wait for the learner
            rollout = run._collector.learner.rollout
            lost.extend(np.nonzero(rollout.first & rollout.truncations)[1].tolist())
            stats, parts = learn(index, *args)
            assert stats.valid_rows == int((~rollout.first).sum()) == sum(steps for _, _, steps, _ in parts)
            return stats, parts

        run._collector.learner.learn = watched  # type: ignore[method-assign, assignment]
        summary = await run.wait()
        assert run.envs.statistics().restarts == 1
    assert (summary.reason, summary.updates) == ("steps", 12)
    assert lost == [0, 1], "one row of each env of that worker"
    assert sum(line["aborted"] for line in read_metrics(run.folder.metrics)) == 2
    strategy: Any = run.coordinator.strategy
    assert strategy.aborted == 2
    assert strategy.total == summary.episodes
    assert all(opened.level is not None for opened in strategy._open.values())


@pytest.mark.asyncio
@pytest.mark.parametrize("exact", [False, True])
async def test_a_checkpoint_on_demand_is_where_the_run_goes_on(tmp_path: Path, exact: bool) -> None:
    """From any coroutine, several at once: one file, of the update under way; a run resumed from it continues."""
    config = tiny(tmp_path, checkpoint_every=1000, exact_resume=exact, total_steps=64 * 20, name="run")
    async with training(config, job=corridor_job()) as run:
        async for report in run.reports():
            if report.update == 2:
                first, second = await asyncio.gather(run.checkpoint(), run.checkpoint())
                break
        assert first == second
        asked = Checkpoints(run.folder.checkpoints).load_newest()[0].tally["updates"]
        assert asked in (3, 4)
        await run._quiet()  # as if the process had died
        with pytest.raises(asyncio.CancelledError):
            await run.stop()
        run._error_seen = True
    whole = [line for line in untimed(run.folder) if line["update"] > asked]
    async with training(resume=run.folder.path, job=corridor_job()) as again:
        assert again.env_steps == 64 * asked
        summary = await again.wait()
        assert await again.checkpoint() == run.folder.path / summary.checkpoint, "ended: the last one"
    assert summary.updates == 20
    if exact:
        assert [line for line in untimed(run.folder) if line["update"] > asked][: len(whole)] == whole


@pytest.mark.asyncio
async def test_a_checkpoint_on_demand_that_cannot_be_written_is_the_caller_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with training(
        tiny(tmp_path, total_steps=64 * 100, checkpoint_every=1000), job=corridor_job()
    ) as run:
        await anext(run.reports())

        def full(*_: Any) -> Path:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", full)
            with pytest.raises(OSError, match="No space left"):
                await run.checkpoint()
        cancelled = asyncio.ensure_future(run.checkpoint())
        await asyncio.sleep(0)
        cancelled.cancel()
        assert (await run.checkpoint()).is_file(), "the run goes on"
        await run.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "error", [StopIteration("no more"), SystemExit(3), asyncio.CancelledError(), ValueError("x")]
)
async def test_whatever_is_raised_in_the_learner_s_thread_ends_the_run(
    tmp_path: Path, error: BaseException
) -> None:
    """A future cannot hold StopIteration, and a cancellation from there would look like the caller's own."""
    async with training(tiny(tmp_path), job=corridor_job()) as run:

        def learn(*_: Any) -> Any:
            raise error

        run._collector.learner.learn = learn  # type: ignore[method-assign, assignment]
        kind: Any = ValueError if isinstance(error, ValueError) else RuntimeError
        with pytest.raises(kind) as caught:
            await run.wait()
    if kind is RuntimeError:
        assert f"{type(error).__name__} was raised in the learner's thread" in str(caught.value)
        assert caught.value.__cause__ is error


class OnlyMask(Corridor):
    """Shows nothing but what is allowed."""

    def __init__(self, empty: bool) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Dict({} if empty else {"action_mask": gym.spaces.MultiBinary(3)})

    def _obs(self) -> Any:
        return {key: np.ones(3, np.int8) for key in self.observation_space}  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_an_observation_with_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    job = Job(PLAN, lambda: cu.CurriculumEnv(OnlyMask(False), cu.LevelSet(LEVELS)))
    with pytest.raises(ConfigError, match=r"nothing to learn from: the observation space .*action_mask"):
        await asyncio.wait_for(finish(tiny(tmp_path), job), 20)


@pytest.mark.parametrize("collect", ["unroll", "lockstep"])
@pytest.mark.asyncio
async def test_a_leaf_without_entries_says_nothing_and_does_no_harm(tmp_path: Path, collect: Any) -> None:
    class Nothing(Corridor):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Box(0, 1, (0,), np.float32)

        def _obs(self) -> Any:
            return np.zeros(0, np.float32)

    job = Job(PLAN, lambda: cu.CurriculumEnv(Nothing(), cu.LevelSet(LEVELS)))
    summary, _ = await asyncio.wait_for(finish(tiny(tmp_path, collect=collect), job), 30)
    assert summary.episodes


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_in_a_running_loop_the_plain_calls_say_what_to_write_instead(tmp_path: Path) -> None:
    """A notebook cell: one error, and no warning of a coroutine that was never awaited."""

    async def main() -> None:
        raise AssertionError("never begun")

    with pytest.raises(RuntimeError, match=r"write `await main\(\)`"):
        av.run(main())
    with pytest.raises(RuntimeError, match=r"`async with training\(config\) as run"):
        train(tiny(tmp_path), job=corridor_job())
    gc.collect()
    assert os.listdir(tmp_path) == []
