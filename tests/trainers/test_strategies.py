"""Every strategy through a whole run: it learns, stops, resumes, is drawn and evaluated; replay's scores are exact."""
# async: real envs, inline and in processes; states are awaited, nothing sleeps

from __future__ import annotations

import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import gymnasium as gym
import numpy as np
import pytest
import torch

import aio_vecenv as av
import curriculum as cu
from tests.curriculum.helpers import Flash, level_set
from tests.trainers.helpers import LEVELS, PLAN, Corridor, corridor_job, tiny
from trainers import ConfigError, Job, PPOConfig, Run, TrainConfig, train, training
from trainers.config import StrategyName, from_mapping
from trainers.evaluate import evaluate
from trainers.jobs import make_strategy, planned
from trainers.learn.ppo import advantages_of
from trainers.learn.rollout import score_parts
from trainers.record.checkpoint import Checkpoints
from trainers.record.metrics import read_metrics
from trainers.record.outcomes import Outcomes
from trainers.record.progress import PlainLines

pytestmark = pytest.mark.alternate_loops

STRATEGIES: tuple[Any, ...] = get_args(StrategyName)


class LastLevel:
    """A strategy of a user's own, in its four methods: from the fifth episode on, only the last level is played."""

    def __init__(self, plan: cu.StagePlan, levels: cu.LevelSet) -> None:
        self.plan, self.levels, self.seen = plan, levels, 0

    def observe(self, episode: Any) -> None:
        self.seen += episode.outcome != "aborted"

    def directive(self) -> cu.Directive:
        weights = np.ones(len(self.levels), np.float32)
        weights[: -1 if self.seen >= 5 else 0] = 0
        return cu.Directive(self.levels.stages, None, weights=weights)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


@pytest.mark.asyncio
async def test_a_job_brings_its_own_strategy(tmp_path: Path) -> None:
    """It is asked, told, reported by stage, saved and resumed."""
    job = replace(corridor_job(), strategy=LastLevel)
    config = tiny(tmp_path, total_steps=64 * 12)
    async with training(config, job=job) as run:
        reports = [report async for report in run.reports()]
    strategy = run.coordinator.strategy
    assert isinstance(strategy, LastLevel)
    assert (strategy.plan, strategy.levels.stages) == (PLAN, ("one", "three"))
    for report in reports:
        assert [(row.name, row.share) for row in report.stages] == [("one", 0.0), ("three", 1.0)]
        assert sum(row.episodes for row in report.stages) == report.episodes
    assert strategy.seen == reports[-1].episodes
    assert reports[-1].stages[-1].outcomes == min(50, reports[-1].stages[-1].episodes)
    async with training(replace(config, total_steps=64 * 14), resume=run.folder.path, job=job) as again:
        resumed = again.coordinator.strategy
        assert isinstance(resumed, LastLevel)
        assert resumed.seen == strategy.seen > 0
        (*_, last) = [report async for report in again.reports()]
    assert last.stages[0].episodes == reports[-1].stages[0].episodes < 12
    assert last.stages[1].episodes > reports[-1].stages[1].episodes
    extra = replace(job, plan=cu.StagePlan([*PLAN.stages, cu.Stage("extra")]))
    async with training(config, job=extra) as run:
        assert [row.share for row in (await run.wait()).stages] == [0.0, 1.0, 0.0]  # it has no levels
    for asked in ({"strategy": "uniform"}, {"curriculum": False}):
        with pytest.raises(
            ConfigError, match="the job brings a strategy of its own, and the config asks for"
        ):
            async with training(replace(config, **asked), job=job):
                pass


def test_the_staged_rules_are_settings(tmp_path: Path) -> None:
    config = tiny(tmp_path, rules="sequential", early=False)
    staged = make_strategy(config, corridor_job())
    assert (staged.rules, staged.window, staged.early, staged.trend) == ("sequential", "started", False, True)
    staged = make_strategy(
        replace(config, rules="reference", window="completed", early=True, trend=False), corridor_job()
    )
    assert (staged.rules, staged.window, staged.early, staged.trend) == (
        "reference",
        "completed",
        True,
        False,
    )


def test_a10_which_step_has_to_succeed_is_a_setting_of_plan_and_config(tmp_path: Path) -> None:
    """Kind: a rule that one door has, and another has not."""
    config, job = tiny(tmp_path), corridor_job()
    ever = replace(job, plan=cu.StagePlan(job.plan.stages, success="ever"))
    assert make_strategy(config, job).success is cu.is_success
    assert make_strategy(config, ever).success is cu.ever_success
    assert make_strategy(replace(config, success="last"), ever).success is cu.is_success
    assert make_strategy(replace(config, success="ever"), job).success is cu.ever_success
    (last,) = planned(ever, replace(config, curriculum=False)).plan.names
    assert planned(ever, replace(config, curriculum=False)).plan == cu.StagePlan(
        [ever.plan[last]], success="ever"
    )
    assert from_mapping(TrainConfig, {"success": "ever"}, source="x").success == "ever"
    own = replace(job, success=lambda episode: True)
    assert make_strategy(config, own).success is own.success
    with pytest.raises(ConfigError, match="the job has a success of its own, and the config asks for 'ever'"):
        make_strategy(replace(config, success="ever"), own)


@pytest.mark.asyncio
async def test_a10_a_run_counts_success_in_the_middle_and_warns_where_it_does_not(tmp_path: Path) -> None:
    levels = level_set(PLAN)
    job = Job(PLAN, lambda: cu.CurriculumEnv(Flash(length=4, at=(2,)), levels, load=lambda env, level: None))
    config = tiny(tmp_path, total_steps=64 * 4)
    for asked in ("last", "ever"):
        async with training(replace(config, success=asked), job=job) as run:
            summary = await run.wait()
        warned = [text for text in run.warnings if 'say success = "ever"' in text]
        assert (len(warned), summary.stages[0].success_rate) == ((1, 0.0) if asked == "last" else (0, 1.0))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_from_start_to_picture(
    tmp_path: Path, strategy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers, a stop, a resume, the goal, metrics, summary, progress, plot, eval."""
    config = tiny(
        tmp_path, backend="process", strategy=strategy, total_steps=64 * 500, solve_rate=0.9, solve_window=20,
        env="tests.trainers.helpers:Corridor", plan=tmp_path / "plan.toml", levels=tmp_path / "levels",
    )  # fmt: skip
    for stage, goal in (("one", 1), ("three", 3)):
        (tmp_path / "levels" / stage).mkdir(parents=True)
        levels = (f'{{"id": "{stage}{i}", "data": {{"goal": {goal}}}}}\n' for i in range(3))
        (tmp_path / "levels" / stage / "some.jsonl").write_text("".join(levels))
    for plan in (tmp_path / "plan.toml", tmp_path / "levels" / "plan.toml"):
        plan.write_text(
            "".join(f'[[stage]]\nname = "{name}"\nthreshold = 0.6\n\n' for name in ("one", "three"))
        )

    async def parts() -> Path:
        async with training(config) as run:
            async for report in run.reports():
                if report.update == 3:
                    break
        shown = PlainLines()
        async with training(resume=run.folder.path) as again:
            shown.start(again)
            async for report in again.reports():
                shown.show(report)
            summary = await again.wait()
        shown.finish(summary, again)
        assert summary.reason == "solved"
        results = await evaluate(again.folder.path, episodes=4)
        assert [result.stage for result in results] == ["one", "three"]
        return again.folder.path

    folder = av.run(parts())
    out = capsys.readouterr().out
    assert "solved at" in out
    assert "mix " in out if strategy == "staged" else "three" in out
    if strategy == "learning_progress":  # outside: matplotlib keeps its fonts open
        subprocess.run([sys.executable, "-m", "trainers", "plot", str(folder)], check=True)
        assert (folder / "curve.png").stat().st_size > 10_000
    lines = read_metrics(folder / "metrics.jsonl")
    for line in lines:
        assert [stage["name"] for stage in line["stages"]] == ["one", "three"]
        assert math.isclose(sum(stage["share"] for stage in line["stages"]), 1, rel_tol=1e-5)
        assert line["stage"] in (("one", "three") if strategy == "staged" else ("all",))
    assert {stage["episodes"] > 0 for stage in lines[-1]["stages"]} == {True}
    (before, *_, last) = (line["stages"][0]["outcomes"] for line in lines[2:])
    assert last >= before > 0, "those before the stop count"


@pytest.mark.parametrize("strategy", ["learning_progress", "prioritised_replay"])
def test_resumed_it_goes_on_where_it_was(tmp_path: Path, strategy: Any) -> None:
    """Weights in force, scores and counts survive."""
    config = tiny(tmp_path, strategy=strategy, total_steps=64 * 12)
    states: list[dict[str, Any]] = []

    async def parts() -> None:
        async with training(config, job=corridor_job()) as run:
            async for report in run.reports():
                if report.update == 8:
                    break
        states.append(run.coordinator.strategy.state_dict())
        async with training(resume=run.folder.path, job=corridor_job()) as again:
            states.append(again.coordinator.strategy.state_dict())
            summary = await again.wait()
        assert (summary.updates, summary.resumes) == (12, 1)
        states.append(again.coordinator.strategy.state_dict())

    av.run(parts())
    before, after, end = states
    assert before["weights"] == after["weights"]
    assert after["weights"] is not None
    for name in ("counts", "sums", "fast", "scores", "seen"):
        assert before["arrays"].get(name) == after["arrays"].get(name)
    assert end["total"] > before["total"] == after["total"]


async def kill(run: Run) -> None:
    """End a run as if its process had died: no checkpoint, no summary."""
    await run._quiet()


@pytest.mark.parametrize("strategy", ["learning_progress", "learnability", "prioritised_replay"])
def test_exact_resume_holds_for_levels_too(
    tmp_path: Path, strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F42: parameters and metrics of 12 updates, bit for bit, with and without an end on the way."""
    config = tiny(tmp_path, strategy=strategy, total_steps=12 * 64, checkpoint_every=5, exact_resume=True)

    async def whole() -> Path:
        async with training(replace(config, name="whole"), job=corridor_job()) as run:
            await run.wait()
        return run.folder.path

    async def parts() -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "stop", kill)
            async with training(replace(config, name="parts"), job=corridor_job()) as run:
                async for report in run.reports():
                    if report.update == 7:
                        await run.stop()
                        break
        async with training(resume=run.folder.path, job=corridor_job()) as run:
            await run.wait()
        return run.folder.path

    folders = [av.run(whole()), av.run(parts())]
    lines = [read_metrics(folder / "metrics.jsonl") for folder in folders]
    for line in (*lines[0], *lines[1]):
        del line["timing"]
    assert lines[0] == lines[1]
    ours, theirs = (Checkpoints(folder / "checkpoints").load_newest()[0] for folder in folders)
    assert all(torch.equal(ours.model[key], theirs.model[key]) for key in ours.model)
    for name in ("arrays", "numbers", "total", "weights"):  # draws of replay, too
        assert ours.curriculum["strategy"][name] == theirs.curriculum["strategy"][name]


# ---- what prioritised replay gets from the learner


def test_parts_equal_their_slow_twin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=(9, 3)).astype(np.float32)
        first = rng.random((9, 3)) < 0.2
        episodes = np.cumsum(first, axis=0) + rng.integers(5, size=3)
        twin: dict[tuple[int, int], list[float]] = defaultdict(list)
        for env in range(3):
            for t in range(9):
                if not first[t, env]:
                    twin[env, int(episodes[t, env])].append(float(values[t, env]))
        found = {(env, index): (n, mean) for env, index, n, mean in score_parts(values, episodes, first)}
        assert found.keys() == twin.keys()
        for key, (steps, mean) in found.items():
            assert steps == len(twin[key])
            assert math.isclose(mean, sum(twin[key]) / steps, abs_tol=1e-12)


@pytest.mark.parametrize("by", ["l1", "positive", "max_mc"])
@pytest.mark.parametrize("collect", ["lockstep", "first_ready"])
def test_scores_are_means_over_whole_episodes_however_rollouts_cut_them(
    tmp_path: Path, by: Any, collect: Any
) -> None:
    """C22: 5 rows a rollout, episodes of up to 12 steps. A twin that walks the rows finds the same scores."""
    config = tiny(
        tmp_path, strategy="prioritised_replay", replay_score=by, collect=collect, deterministic=False
    )
    config = replace(config, total_steps=20 * 40, ppo=replace(config.ppo, num_steps=5))
    measured: dict[tuple[int, int], list[float]] = defaultdict(list)
    indices = [0] * 4
    ended: dict[tuple[int, int], Any] = {}

    async def watched() -> Run:
        async with training(config, job=corridor_job()) as run:
            learner, learn = run._collector.learner, run._collector.learner.learn

            def copying(index: int, progress: float, statistic: str | None) -> Any:
                rollout = learner.rollout
                advantages = advantages_of(rollout, learner.policy.values(rollout.last_obs), config.ppo)
                statistics = {
                    "l1": np.abs(advantages), "positive": np.maximum(advantages, 0), "max_mc": rollout.values,
                }  # fmt: skip
                for env in range(4):
                    for t in range(5):
                        if rollout.first[t, env]:
                            indices[env] += 1
                        else:
                            measured[env, indices[env]].append(float(statistics[by][t, env]))
                return learn(index, progress, statistic)

            learner.learn = copying  # type: ignore[method-assign, assignment]
            tally = run._tally.batch

            def noting(batch: Any) -> list[str]:
                ended.update({(e.env_id, e.index): e for e in batch.episodes})
                return tally(batch)

            run._tally.batch = noting  # type: ignore[method-assign]
            await run.wait()
        return run

    run = av.run(watched())
    strategy: Any = run.coordinator.strategy
    assert any(len(parts) > 5 for parts in measured.values()), "no episode spanned two rollouts"
    newest: dict[str, float] = {}
    best: dict[str, float] = {}
    # a score is complete with the rollout in which its episode ended; within one, parts come by env and episode
    for key, episode in sorted(ended.items(), key=lambda item: (item[1].batch // 5, item[0])):
        level = episode.task["level"]
        best[level] = max(best.get(level, 0.0), episode.episode_return)
        assert len(measured[key]) == episode.length
        mean = sum(measured[key]) / episode.length
        newest[level] = best[level] - mean if by == "max_mc" else mean
    assert strategy.seen.all()
    if collect == "lockstep":  # else hand-outs do not tell which rollout an end belongs to
        for number, level in enumerate(("one", "three")):
            assert strategy.scores[number] == pytest.approx(newest[level], abs=1e-6)
    waiting = {key for key, opened in strategy._open.items() if opened.length is not None}
    assert not waiting, "an episode ended and never got its score"


def test_many_short_episodes_in_a_rollout_all_get_their_score() -> None:
    """3,000 rows of episodes of one step: 1,500 of them wait for the update that scores them."""
    levels = cu.LevelSet(LEVELS)
    config = TrainConfig(
        env="corridor", strategy="prioritised_replay", num_envs=1, ppo=PPOConfig(num_steps=3000)
    )
    strategy = make_strategy(config, corridor_job(), levels)
    strategy.attached(1)
    for order in range(1500):
        strategy.observe(
            cu.FinishedEpisode(0, order, order, 1, 1.0, "terminated", 0, {"stage": "one", "level": "one"})
        )
    strategy.record_scores([(0, 0, 1, 0.5)])
    assert strategy.scores.tolist() == [0.5, 0.0]


# ---- what cannot be


async def opened(config: TrainConfig, job: Job) -> None:
    async with training(config, job=job):
        pass


class Bare(gym.Wrapper[Any, Any, Any, Any]):
    pass


@pytest.mark.parametrize("strategy", ["uniform", "prioritised_replay"])
def test_a_strategy_without_levels_to_choose_from_is_one_clear_error(tmp_path: Path, strategy: Any) -> None:
    config = tiny(tmp_path, strategy=strategy)
    with pytest.raises(ConfigError, match="draws from levels, and the envs have none"):
        av.run(opened(config, Job(PLAN, lambda: Bare(Corridor()))))
    one = cu.LevelSet(LEVELS[:1])
    with pytest.raises(ConfigError, match="at least two levels"):
        av.run(
            opened(config, Job(cu.StagePlan([cu.Stage("one")]), lambda: cu.CurriculumEnv(Corridor(), one)))
        )
    with pytest.raises(ConfigError, match="expected levels for the plan's stages one, three, got one"):
        av.run(opened(config, Job(PLAN, lambda: cu.CurriculumEnv(Corridor(), one))))
    with pytest.raises(ConfigError, match="curriculum=False plays the last stage only"):
        replace(config, curriculum=False)
    assert not list(tmp_path.iterdir()), "a run that cannot be leaves no folder"


@pytest.mark.parametrize(
    "strategy", ["uniform", "prioritised_replay", "ladder", "learning_progress", "learnability"]
)
def test_who_goes_by_success_refuses_a_plan_that_measures_something_else(strategy: Any) -> None:
    """Nothing would ever move. Who asks nothing of the stages takes any; so does whoever is told what succeeds."""
    plan = cu.StagePlan([cu.Stage("one"), cu.Stage("three", threshold=0.5, measure="return")])
    config, levels = tiny(Path("runs"), strategy=strategy), cu.LevelSet(LEVELS)
    make_strategy(config, Job(plan, Corridor, success=bool), levels)
    if strategy in ("uniform", "prioritised_replay"):
        make_strategy(config, Job(plan, Corridor), levels)
    else:
        with pytest.raises(
            ConfigError, match=f"stage 'three': measure = 'return', and strategy='{strategy}'"
        ):
            make_strategy(config, Job(plan, Corridor), levels)


# ---- the goal


def _began(*orders: int, stage: str = "three") -> list[Any]:
    task = {"stage": stage, "level": stage}
    return [av.EpisodeStarted(0, order, order, 0, task, None) for order in orders]


def _ended(order: int, success: bool, stage: str = "three", outcome: str = "terminated") -> Any:
    return cu.FinishedEpisode(
        0, order, order, 1, 0.0, outcome, 0, {"stage": stage, "level": stage}, {"is_success": success}
    )


def _follow(outcomes: Outcomes, *events: Any, watermark: int) -> None:
    outcomes.follow(av.EventBatch(0, watermark, events))


def test_outcomes_count_in_the_order_in_which_episodes_started() -> None:
    """Stage by stage: an episode that runs holds back those of its own stage only."""
    outcomes = Outcomes(cu.is_success, 2)
    _follow(outcomes, *_began(0, stage="one"), *_began(1, 2, 3), watermark=0)
    _follow(outcomes, _ended(3, True), _ended(1, True), watermark=0)
    assert outcomes.newest("three") == (True,), "an episode of another stage that still runs holds back none"
    saved = outcomes.state_dict()
    _follow(outcomes, _ended(2, False, outcome="aborted"), watermark=0)
    assert outcomes.newest("three") == (True, True)
    _follow(outcomes, *_began(4), *_began(5, stage="one"), watermark=0)
    _follow(outcomes, _ended(4, False), _ended(5, True, "one"), watermark=0)
    assert (outcomes.newest("three"), outcomes.newest("one")) == ((True, True, False), ())
    assert outcomes.reached("three", 0.6, 3)
    assert not outcomes.reached("three", 0.7, 3)
    assert not outcomes.reached("three", 0.1, 4)
    again = Outcomes(cu.is_success, 2)
    again.load_state_dict(saved)
    assert again.newest("three") == (True,)
    assert again.state_dict() == saved
    assert again.silent is None, "episodes have said whether they succeeded"
    again.restart()
    assert again.newest("three") == (True, True), "nothing is left to wait for"


def test_a_straggler_is_passed_over_in_the_end_and_counts_when_it_ends() -> None:
    outcomes = Outcomes(cu.is_success, 1)
    _follow(outcomes, *_began(0), watermark=0)
    for order in range(1, 20):
        _follow(outcomes, *_began(order), _ended(order, True), watermark=0)
    assert outcomes.newest("three") == ()
    _follow(outcomes, *_began(20), _ended(20, True), watermark=0)
    assert len(outcomes.newest("three")) == 20, "it is passed over for good, and holds up nobody any more"
    _follow(outcomes, *_began(21, 22, 23), _ended(21, True), _ended(23, True), watermark=0)
    assert len(outcomes.newest("three")) == 21, "the next one that runs is waited for"
    _follow(outcomes, _ended(0, False), watermark=22)
    assert outcomes.newest("three")[-1] is False
    _follow(outcomes, _ended(22, True, outcome="aborted"), watermark=24)
    assert outcomes.newest("three")[-2:] == (False, True)
    ended = Outcomes(cu.is_success, 1, in_order=False)
    _follow(ended, *_began(0, 1), _ended(1, True), watermark=0)
    assert ended.newest("three") == (True,)


def test_the_same_metrics_for_any_number_of_workers(tmp_path: Path) -> None:
    runs = []
    for backend, workers in (("inline", 1), ("process", 2)):
        config = tiny(
            tmp_path, strategy="prioritised_replay", backend=backend, num_workers=workers, name=backend
        )
        train(config, job=corridor_job())
        runs.append(read_metrics(tmp_path / backend / "metrics.jsonl"))
    for line in (*runs[0], *runs[1]):
        del line["timing"]
    assert runs[0] == runs[1]
