"""How good a run's policy is on every stage: frozen weights, equal episodes per env, confidence intervals."""
# async: opens envs of its own; the curriculum does not move

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aio_vecenv as av
import curriculum as cu
from trainers.collect.collector import Collector
from trainers.collect.observations import is_masked
from trainers.config import ConfigError
from trainers.jobs import has_no_plan, levels_of, make_envs, planned, resolve_job, restore_envs, success_of
from trainers.learn.learner import EVAL, Learner, env_seeds, stream, torch_threads
from trainers.presets import Job
from trainers.record.checkpoint import Checkpoints
from trainers.record.env_errors import EnvErrors
from trainers.record.folder import RunFolder
from trainers.record.summary import wilson

__all__ = ["StageResult", "evaluate"]


@dataclass(frozen=True)
class StageResult:
    """One stage under frozen weights."""

    stage: str
    """The stage's name."""
    episodes: int
    """Episodes that ended; aborted ones are left out."""
    success_rate: float
    """Share of them that succeeded."""
    low: float
    """Lower end of its 95 % confidence interval (Wilson 1927)."""
    high: float
    """Upper end."""
    mean_return: float
    """Mean undiscounted return."""
    mean_length: float
    """Mean number of executed steps."""


async def evaluate(
    run: Path,
    *,
    episodes: int = 100,
    greedy: bool = False,
    seed: int = 0,
    job: Job | None = None,
    on_refused: Callable[[Path, Sequence[str]], object] | None = None,
) -> list[StageResult]:
    """Play at least `episodes` per stage with the run's newest usable checkpoint; every env plays the same number, so
    that short episodes do not count more often. `on_refused`: called before the first episode if newer checkpoints
    were refused, with the one that is played and why each newer one was not. Cancelling closes everything."""
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    folder = RunFolder.open(run)
    config = replace(folder.config(), curriculum=True)
    saved, path, refused = Checkpoints(folder.checkpoints).load_newest()
    if refused and on_refused is not None:
        on_refused(path, refused)
    job = resolve_job(config) if job is None else job
    success = success_of(job, config)
    per_env = math.ceil(episodes / config.num_envs)
    results = []
    threads_before = torch.get_num_threads()
    async with make_envs(config, job) as envs:
        if has_no_plan(job):
            job = planned(job, config, await levels_of(envs))
        names = job.plan.names
        try:
            space = envs.single_observation_space
            torch.set_num_threads(torch_threads(config, envs.num_workers, space))
            collector: Collector | None = None
            await restore_envs(envs, saved, path, frozen=True)
            for number, name in enumerate(names):
                envs.broadcast(
                    cu.Directive(stages=names, stage=name, ratios=(0.0,) * len(names)),
                    topic="curriculum",
                    apply="now",
                )
                seeds = env_seeds(seed, number, config.num_envs, EVAL)
                obs, infos = await envs.reset(seed=seeds)
                if collector is None:
                    learner = Learner(config, space, envs.single_action_space, masked=is_masked(space, infos))
                    learner.load(path, saved.model)
                    collector = Collector(envs, learner, greedy=greedy)
                collector.see(collector.everyone, obs, infos)
                rng = stream(seed, EVAL, number)
                played: list[list[Any]] = [[] for _ in collector.everyone]

                errors = EnvErrors(config.max_error_share)
                errors.resets(infos)

                async def look(
                    batch: av.Batch, played: list[list[Any]] = played, errors: EnvErrors = errors
                ) -> bool:
                    errors.batch(batch)
                    errors.check()
                    for episode in batch.episodes:
                        if episode.outcome != "aborted" and len(played[episode.env_id]) < per_env:
                            played[episode.env_id].append(episode)
                    return min(map(len, played)) < per_env

                while await collector.collect(rng, look):
                    pass
                results.append(_result(name, [episode for column in played for episode in column], success))
        finally:
            torch.set_num_threads(threads_before)
    return results


def _result(stage: str, episodes: list[Any], succeeded: Callable[[Any], bool]) -> StageResult:
    successes = sum(succeeded(episode) for episode in episodes)
    low, high = wilson(successes, len(episodes))
    return StageResult(
        stage=stage,
        episodes=len(episodes),
        success_rate=successes / len(episodes),
        low=low,
        high=high,
        mean_return=float(np.mean([episode.episode_return for episode in episodes])),
        mean_length=float(np.mean([episode.length for episode in episodes])),
    )
