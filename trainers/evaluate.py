"""How good a run's policy is on every stage: frozen weights, equal episodes per env, confidence intervals."""
# async: opens envs of its own; the curriculum does not move

from __future__ import annotations

import asyncio
import contextlib
import math
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import aio_vecenv as av
import curriculum as cu
from trainers.collect.collector import Collector
from trainers.collect.observations import is_masked
from trainers.config import ConfigError, TrainConfig
from trainers.jobs import has_no_plan, levels_of, make_envs, planned, resolve_job, restore_envs, success_of
from trainers.learn.learner import EVAL, Learner, env_seeds, stream, torch_threads
from trainers.presets import Job
from trainers.record.checkpoint import Checkpoint, load_saved
from trainers.record.env_errors import EnvErrors
from trainers.record.metrics import StageResult
from trainers.record.summary import wilson

__all__ = ["Evaluator", "StageResult", "evaluate", "evaluator", "judging"]


async def evaluate(
    run: Path | str,
    *,
    episodes: int = 100,
    greedy: bool = False,
    seed: int = 0,
    job: Job | None = None,
    on_refused: Callable[[Path, Sequence[str]], object] | None = None,
) -> list[StageResult]:
    """Play at least `episodes` per stage with a run folder's newest usable checkpoint, or a checkpoint file in one.

    Every env plays the same number, so that short episodes do not count more often. `on_refused`: called before the
    first episode if newer checkpoints were refused, with the one that is played and why each newer one was not.
    Cancelling closes everything.
    """
    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    folder, saved, path, refused = load_saved(run)
    config = replace(folder.config(), curriculum=True)
    if refused and on_refused is not None:
        on_refused(path, refused)
    job = resolve_job(config) if job is None else job
    threads_before = torch.get_num_threads()
    try:
        async with evaluator(config, job) as judge:
            torch.set_num_threads(judge.torch_threads)
            results = await judge.play(saved, path, episodes=episodes, greedy=greedy, seed=seed)
            if judge.unclear is not None:
                warnings.warn(judge.unclear, stacklevel=2)
            return results
    finally:
        torch.set_num_threads(threads_before)


def judging(config: TrainConfig, num_envs: int, num_workers: int) -> TrainConfig:
    """`config` for so many envs that only judge: all stages, no spares, no renewals. `min_envs` and minibatches, which
    must fit the number of envs, are of no use to them."""
    return replace(
        config, num_envs=num_envs, num_workers=num_workers, spares=0, renew_after_episodes=None, renew_after_mb=None,
        min_envs=None, curriculum=True, ppo=replace(config.ppo, minibatches=1),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def evaluator(config: TrainConfig, job: Job) -> AsyncIterator[Evaluator]:
    """Opens `config.num_envs` envs of its own for `job`, and closes them. Cancelling closes them, too."""
    async with make_envs(config, job) as envs:
        if has_no_plan(job):
            job = planned(job, config, await levels_of(envs))
        yield Evaluator(envs, config, job)


class Evaluator:
    """Plays every stage of a job, one after another, under frozen parameters."""

    def __init__(self, envs: av.AsyncVecEnv, config: TrainConfig, job: Job) -> None:
        self.envs, self.stages, self._config = envs, job.plan.names, config
        self._success = success_of(job, config)
        # the first episode whose success cannot be read, where its info is to say it
        self.unclear: str | None = None
        self._learner: Learner | None = None

    @property
    def torch_threads(self) -> int:
        return torch_threads(self._config, self.envs.num_workers, self.envs.single_observation_space)

    async def play(
        self, saved: Checkpoint, path: Path, *, episodes: int, greedy: bool, seed: int
    ) -> list[StageResult]:
        """At least `episodes` of each stage, with the parameters of `saved`, which `path` names in errors."""
        await restore_envs(self.envs, saved, path, frozen=True)
        per_env = math.ceil(episodes / self.envs.num_envs)
        return [
            await self._play(saved, path, number, per_env, greedy, seed) for number in range(len(self.stages))
        ]

    async def play_one(
        self,
        saved: Checkpoint,
        path: Path,
        stage: str,
        *,
        episodes: int,
        greedy: bool,
        seed: int,
        draw: Callable[[], Awaitable[None]],
    ) -> StageResult:
        """As `play`, one stage, which must be one; `draw` is awaited whenever the envs show something new."""
        await restore_envs(self.envs, saved, path, frozen=True)
        per_env = math.ceil(episodes / self.envs.num_envs)
        return await self._play(saved, path, self.stages.index(stage), per_env, greedy, seed, draw)

    async def _play(
        self,
        saved: Checkpoint,
        path: Path,
        number: int,
        per_env: int,
        greedy: bool,
        seed: int,
        draw: Callable[[], Awaitable[None]] | None = None,
    ) -> StageResult:
        """`per_env` episodes of every env on the stage of this number."""
        name = self.stages[number]
        self.envs.broadcast(
            cu.Directive(stages=self.stages, stage=name, ratios=(0.0,) * len(self.stages)),
            topic="curriculum",
            apply="now",
        )
        obs, infos = await self.envs.reset(seed=env_seeds(seed, number, self.envs.num_envs, EVAL))
        if self._learner is None:
            space, actions = self.envs.single_observation_space, self.envs.single_action_space
            self._learner = Learner(self._config, space, actions, masked=is_masked(space, infos))
        if number == 0 or draw is not None:
            self._learner.load(path, saved)
        collector = Collector(self.envs, self._learner, greedy=greedy)
        collector.see(collector.everyone, obs, infos)
        if draw is not None:
            await draw()
        played = await self._play_stage(collector, infos, per_env, (seed, number), draw)
        if self._success in (cu.is_success, cu.ever_success):
            self.unclear = next(filter(None, (self.unclear, *map(cu.unclear_success, played))), None)
        return _result(name, played, self._success)

    async def _play_stage(
        self,
        collector: Collector,
        infos: Mapping[str, Any],
        per_env: int,
        seeds: tuple[int, int],
        draw: Callable[[], Awaitable[None]] | None,
    ) -> list[Any]:
        """`per_env` episodes of every env, by env."""
        rng = stream(seeds[0], EVAL, seeds[1])
        played: list[list[Any]] = [[] for _ in collector.everyone]
        errors = EnvErrors(self._config.max_error_share)
        errors.resets(infos)

        async def look(batch: av.Batch) -> bool:
            await asyncio.sleep(0)  # inline envs never wait, and others have work, too
            errors.batch(batch)
            errors.check()
            for episode in batch.episodes:
                if episode.outcome != "aborted" and len(played[episode.env_id]) < per_env:
                    played[episode.env_id].append(episode)
            if draw is not None:
                await draw()
            return min(map(len, played)) < per_env

        while await collector.collect(rng, look):
            pass
        return [episode for column in played for episode in column]


def _result(stage: str, episodes: list[Any], succeeded: Callable[[Any], bool]) -> StageResult:
    successes = sum(succeeded(episode) for episode in episodes)
    low, high = wilson(successes, len(episodes))
    returns = np.sort([episode.episode_return for episode in episodes])
    return StageResult(
        stage=stage,
        episodes=len(episodes),
        success_rate=successes / len(episodes),
        low=low,
        high=high,
        mean_return=float(returns.mean()),
        mean_length=float(np.mean([episode.length for episode in episodes])),
        cvar=float(returns[: math.ceil(len(returns) / 10)].mean()),
    )
