"""The composition root: opens the envs, starts the coordinator, closes the loop, and learns in a thread."""
# async: `training()` is the only place where the three packages meet

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import aio_vecenv as av
import curriculum as cu
from trainers.collect.seen import Seen, is_masked
from trainers.config import ConfigError, TrainConfig
from trainers.jobs import has_no_plan, levels_of, make_strategy, planned, resolve_job
from trainers.lag import LoopLag
from trainers.learn.learner import ACT, Learner, env_seeds, stream, torch_threads
from trainers.learn.networks import MASK
from trainers.presets import Job
from trainers.record.checkpoint import Checkpoint, Checkpoints
from trainers.record.feed import Feed
from trainers.record.folder import RunFolder
from trainers.record.metrics import Logger, MetricsFile, Report, StageReport, TensorBoard, Timing, percentile
from trainers.record.outcomes import Outcomes
from trainers.record.summary import RunTally, Summary, stage_reports, stages_seen

__all__ = ["Run", "train", "training"]

T = TypeVar("T")
Ids = NDArray[np.int64]
log = logging.getLogger("trainers")
SILENT = 100  # episodes


def train(
    config: TrainConfig, *, job: Job | None = None, on_report: Callable[[Report], object] | None = None
) -> Summary:
    """Train to the end, in an event loop of its own; `on_report` is called after every update."""

    async def main() -> Summary:
        async with training(config, job=job) as run:
            async for report in run.reports():
                if on_report is not None:
                    on_report(report)
            return await run.wait()

    return av.run(main())


@contextlib.asynccontextmanager
async def training(
    config: TrainConfig | None = None, *, resume: Path | str | None = None, job: Job | None = None
) -> AsyncIterator[Run]:
    """A run inside the caller's loop: no signals, no prints, no policy changes. It goes on until it is solved or
    spent, `stop()` is called, or the context is left; leaving saves its state and closes everything.

    `resume`: a run folder to go on with; its own config holds unless `config` is given. `job`: an env factory
    (with a `CurriculumEnv` inside) and a plan, instead of those that `config` names. Entering raises
    `ConfigError`, `CheckpointError` or what the other packages raise, and leaves nothing open. Leaving raises what
    ended the run, if that was an error that nobody has seen. Cancelling closes everything, too.
    """
    if config is None and resume is None:
        raise ConfigError("training() needs a config, or a run folder to resume")
    folder = RunFolder.open(Path(resume)) if resume is not None else None
    if config is None and folder is not None:
        config = folder.config()
    assert config is not None
    job = resolve_job(config) if job is None else job
    saved = None
    async with contextlib.AsyncExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder.held())
            saved = Checkpoints(folder.checkpoints, config.keep_checkpoints).load_newest()
        limit = config.step_timeout_s
        envs = await stack.enter_async_context(
            av.AsyncVecEnv(
                job.make_env,
                config.num_envs,
                num_workers=config.num_workers,
                backend=config.backend,
                info=[MASK],  # what else envs say stays with them; tasks and final infos always come
                copy=False,  # the rollout and `Seen` keep copies of their own
                check="finite",
                timeouts=av.Timeouts(reset=limit, step=limit),
            )
        )
        asked = config.strategy != "staged" or job.strategy is not None or has_no_plan(job)
        levels = await levels_of(envs) if asked else None
        job = planned(job, config, levels)
        strategy = make_strategy(config, job, levels)
        space = envs.single_observation_space
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(torch_threads(config, envs.num_workers, space))  # of this thread: it acts
        learning = torch_threads(config, 0, space)  # of the learner's: the workers wait for it
        executor = ThreadPoolExecutor(1, "trainers.learner", torch.set_num_threads, (learning,))
        stack.callback(executor.shutdown)
        began = False
        if folder is None:
            folder = RunFolder.create(config)
            stack.enter_context(folder.held())
            stack.callback(lambda made: None if began else made.remove(), folder)
        loggers: list[Logger] = [MetricsFile(folder.metrics)]
        stack.callback(loggers[0].close)
        if config.tensorboard:
            loggers.append(TensorBoard(folder.path / "tensorboard"))
            stack.callback(loggers[1].close)
        journal = cu.Journal(folder.journal, wait=True)
        stack.callback(journal.close)
        coordinator = cu.Coordinator(strategy, envs, journal=journal)
        run = Run(config, job, levels, folder, envs, coordinator, executor, loggers)
        stack.push_async_callback(run._quiet)
        await run._open(saved)
        # only now, and before the run's first turn: settings that do not fit the checkpoint leave the run as it was
        if saved is not None:
            folder.cut_logs(saved[0].sizes)
        journal.begin()
        folder.save_config(config)
        began = True
        try:
            yield run
        except BaseException:
            run.request_stop()
            await asyncio.wait([run._task])
            raise
        if not run._error_seen:
            await run.stop()


class Run:
    """A run in progress, made by `training()`."""

    def __init__(
        self,
        config: TrainConfig,
        job: Job,
        levels: Any,
        folder: RunFolder,
        envs: av.AsyncVecEnv,
        coordinator: cu.Coordinator,
        executor: ThreadPoolExecutor,
        loggers: list[Logger],
    ) -> None:
        self.config, self.folder, self.envs, self.coordinator = config, folder, envs, coordinator
        self.warnings: list[str] = []  # what went wrong without ending the run
        self.last_report: Report | None = None
        self._executor, self._loggers = executor, loggers
        self._checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints)
        self._checkpoint_path: Path | None = None
        self._tally, self._lag, self._feed = RunTally(), LoopLag(), Feed[Report]()
        self._goal = job.plan.names[-1]
        self._job, self._levels = job, levels
        self._outcomes = Outcomes(
            job.success or cu.is_success, config.num_envs, in_order=config.window == "started"
        )
        self._all: Ids = np.arange(config.num_envs)
        self._learner: Learner
        self._seen: Seen
        self._task: asyncio.Task[Summary]
        self._helpers: list[asyncio.Task[None]] = []
        self._in_thread: asyncio.Future[Any] | None = None
        self._stop_asked = self._error_seen = False
        self._statistic: str | None = getattr(coordinator.strategy, "statistic", None)  # asked of the learner
        self._started = envs.events() if self._statistic is not None else None
        self._playing: Ids = np.zeros(config.num_envs, np.int64)  # the index of each env's newest episode
        self._aborted: set[tuple[int, int]] = set()  # episodes of this update, which get no score
        self._silent: int | None = None  # episodes that did not say whether they succeeded, until one has
        if job.success is None and (len(job.plan.names) > 1 or config.solve_rate is not None):
            self._silent = 0
        self._receipts: list[Any] = []  # of directives that some worker may not have taken yet
        self._summary: Summary | None = None
        self._began_s = time.monotonic()  # earlier parts of the run are as if they had run just before
        self._policy_s = 0.0

    # ---- what its owner does with it

    async def reports(self) -> AsyncIterator[Report]:
        """The report of every update from now on, until the run ends; then raises what ended it, if anything did.

        A reader that falls 256 behind misses the oldest. Cancelling or leaving the iteration ends only that.
        """
        async for report in self._feed.read():
            yield report
        await self.wait()

    async def wait(self) -> Summary:
        """The summary, once the run has ended. Raises what ended it. Cancelling leaves the run as it is."""
        try:
            return await asyncio.shield(self._task)
        except Exception:
            self._error_seen = True
            raise

    async def stop(self) -> Summary:
        """Finish the env step, write checkpoint and summary, and end the run; leaving the context closes it.

        May be called again, and after the run has ended. Cancelling it does not take the request back.
        """
        self.request_stop()
        return await self.wait()

    def request_stop(self) -> None:
        """`stop()` without waiting."""
        self._stop_asked = True

    @property
    def stage(self) -> str:
        """The current stage; "all" for strategies without one."""
        return self.coordinator.stage or "all"

    @property
    def env_steps(self) -> int:
        """Rows collected so far, reset rows included."""
        return self._tally.env_steps

    def summary(self) -> Summary:
        """The run so far; once it has ended, as it ended."""
        return self._summary if self._summary is not None else self._summarise("running")

    # ---- the run

    async def _open(self, saved: tuple[Checkpoint, Path, list[str]] | None) -> None:
        """Take over a checkpoint, begin the first episodes, build the learner for what they show; then go."""
        tally = self._tally
        if saved is not None:
            state, self._checkpoint_path, refused = saved
            self.warnings += [f"checkpoint refused: {reason}" for reason in refused]
            self.coordinator.load_state_dict(state.curriculum)
            tally.load_state_dict(state.tally)
            self._outcomes.load_state_dict(state.tally["outcomes"])
            if not self._reached_goal():  # the goal may be another one now
                tally.solved_at = None
            self._outcomes.restart()
            self._began_s -= state.train_time_s
        self._helpers.append(asyncio.create_task(self.coordinator.run(), name="trainers.coordinator"))
        space = self.envs.single_observation_space
        obs, infos = await self.envs.reset(seed=self._seeds())
        await self.coordinator.settled()
        await self._follow()
        masked = is_masked(space, infos)
        self._learner = await self._thread(  # torch loads much on first use: not on the loop
            partial(Learner, self.config, space, self.envs.single_action_space, masked=masked)
        )
        self._seen = Seen(space, self.config.num_envs, self._learner.head.mask_size if masked else 0)
        if saved is not None:
            self._learner.load(saved[1], saved[0].model, saved[0].optimiser)
        self._note(self._all, obs, infos)
        self._task = asyncio.create_task(self._main(), name="trainers.run")

    async def _main(self) -> Summary:
        self._helpers.append(asyncio.create_task(self._lag.run(), name="trainers.lag"))
        try:
            if self._tally.updates == 0:
                await self._checkpoint()  # a disk that cannot take it is better known now
            try:
                reason = await self._train()
            except (av.VecEnvError, ExceptionGroup, ConfigError):
                # An error of the envs (ConfigError: of their masks): the model is as good as before.
                if not self.config.exact_resume:
                    with contextlib.suppress(OSError):  # what ended the run is what there is to tell
                        await self._checkpoint(final=True)
                raise
            if not (
                self.config.exact_resume and reason == "stopped"
            ):  # there, the last one is where to go on
                await self._checkpoint(final=True)
            summary = self._summarise(reason)
            text = json.dumps(summary.as_dict(), indent=2, ensure_ascii=False) + "\n"
            await self._thread(self.folder.summary.write_text, text, "utf-8")
            self._summary = summary
            return summary
        finally:
            self._feed.close()
            if self._started is not None:
                await self._started.aclose()
            for (
                helper
            ) in self._helpers:  # from here on the coordinator refuses commands: nobody plays any more
                helper.cancel()
            await asyncio.gather(*self._helpers, return_exceptions=True)

    async def _train(self) -> str:
        """Collect and learn until the run is solved, its steps are spent, or someone stops it: which."""
        config, tally = self.config, self._tally
        while tally.env_steps < config.total_steps:
            began = time.monotonic()
            progress = config.progress(tally.env_steps)
            self._policy_s = 0.0
            complete = tally.solved_at is None and not self._stop_asked and await self._collect()
            if not complete:
                return "solved" if tally.solved_at is not None else "stopped"
            collected = time.monotonic()
            stats, parts = await self._thread(
                self._learner.learn_and_score, self._seen.obs, tally.updates, progress, self._statistic
            )
            if (
                parts
            ):  # of running episodes, and the last ones of those that have ended: only now are they known
                self.coordinator.record_scores(part for part in parts if part[:2] not in self._aborted)
            self._aborted.clear()
            learned = time.monotonic()
            lags = self._lag.take()
            published, applied = self._versions()
            timing = Timing(
                wall_s=learned - self._began_s,
                steps_per_s=config.batch_size / (learned - began),
                collect_s=collected - began,
                learn_s=learned - collected,
                policy_s=self._policy_s,
                loop_lag_p99_s=percentile(lags, 99),
                loop_lag_max_s=max(lags, default=0.0),
                published=published,
                applied=applied,
            )
            self._publish(tally.report(stats, self._stages(), self.stage, timing))
            if tally.updates % config.checkpoint_every == 0:
                await self._checkpoint()
        return "steps"

    async def _collect(self) -> bool:
        """**The loop of the system**: results → coordinator → policy → workers → results, until every env has
        contributed its T rows. False: solved or stopped before that; what was collected is not learned from.

        first_ready: an env whose column is full waits, so fast envs contribute no more than slow ones.
        """
        config, envs, rollout = self.config, self.envs, self._learner.rollout
        lockstep = config.collect == "lockstep"
        quorum = config.num_envs if lockstep else config.min_envs or max(1, config.num_envs // 4)
        rng = stream(config.seed, ACT, self._tally.updates)
        rollout.clear()
        ready = self._all
        while not rollout.full:
            if len(ready):
                envs.send(self._act(ready, rng), None if lockstep else ready)
            batch = await envs.recv(quorum)
            await self.coordinator.settled()  # what is decided on this batch holds for the very next step
            ready = self._store(batch)
            await self._follow()
            if self._tally.solved_at is not None or self._stop_asked:
                return False
        return True

    def _act(self, ids: Ids, rng: np.random.Generator) -> NDArray[Any]:
        """Actions for these envs, noted in the rollout. Runs on the event loop: it is short."""
        began = time.perf_counter()
        learner = self._learner
        obs, masks = self._seen.of(ids)
        actions, log_probs, values = learner.policy.act(obs, rng, masks)
        learner.rollout.act(ids, obs, actions, log_probs, values, masks)
        self._policy_s += time.perf_counter() - began
        return learner.head.to_env(actions)

    def _store(self, batch: av.Batch) -> Ids:
        """Note what came of the actions; the envs that go on."""
        began = time.perf_counter()
        tally = self._tally
        going_on = self._learner.rollout.outcome(
            batch.env_ids, batch.rewards, batch.terminations, batch.truncations, batch.first,
            None if self._started is None else self._playing[batch.env_ids],
        )  # fmt: skip
        tally.batch(len(batch.env_ids), batch.episodes)
        self._outcomes.batch(batch.episodes, batch.watermark)
        if self._silent is not None:
            self._listen(batch.episodes)
        self._note(batch.env_ids, batch.obs, batch.infos)
        if batch.episodes and self._reached_goal():
            tally.solved_at = tally.env_steps
        self._policy_s += time.perf_counter() - began
        return going_on

    def _listen(self, episodes: Iterable[av.Episode]) -> None:
        """Warn once if no episode says whether it succeeded: then no stage will ever move."""
        for episode in episodes:
            if {"is_success", "success"} & episode.final_info.keys():
                self._silent = None
                return
            if episode.outcome != "aborted" and self._silent is not None:
                self._silent += 1
        if self._silent is not None and self._silent >= SILENT:
            self._silent = None
            self._warn(
                f"none of the first {SILENT} episodes said whether it succeeded, so all count as failures: the last "
                "step's info needs is_success (or success), or the Job a success=…"
            )

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        log.warning(text)

    async def _follow(self) -> None:
        """Which episode each env plays from its next executed row on; what is needed to score episodes."""
        events = self._started
        while events is not None and events.behind:
            for event in (await events.next_batch()).events:
                if isinstance(event, av.EpisodeStarted):
                    self._playing[event.env_id] = event.index
                elif event.outcome == "aborted":
                    self._aborted.add((event.env_id, event.index))

    def _note(self, ids: Ids, obs: Any, infos: dict[str, Any]) -> None:
        self._seen.update(ids, obs, infos)
        self._tally.enter(self.stage)
        receipt = self.coordinator.receipt
        if receipt is not None and (not self._receipts or self._receipts[-1] is not receipt):
            self._receipts.append(receipt)

    def _reached_goal(self) -> bool:
        """The newest `solve_window` outcomes of the last stage are good enough, whatever the strategy."""
        rate = self.config.solve_rate
        return rate is not None and self._outcomes.reached(self._goal, rate, self.config.solve_window)

    def _stages(self) -> tuple[StageReport, ...]:
        directive = self.coordinator.strategy.directive()
        if self._job.strategy is not None:  # which may show nothing of itself, or something else
            return stages_seen(self._job.plan.names, self._levels, directive, self._outcomes)
        return stage_reports(self.coordinator.progress(), directive, self._outcomes)

    # ---- state

    def _seeds(self) -> list[int]:
        """For a reset of all envs. They depend on the progress: a resumed run does not play its start again."""
        return env_seeds(self.config.seed, self._tally.updates, self.config.num_envs)

    async def _begin_anew(self) -> None:
        """End all running episodes (aborted), and begin those that a run resumed from here begins.

        Twice: the first closes the books, which may change the directive that the second draws from.
        """
        for _ in range(2):
            obs, infos = await self.envs.reset(seed=self._seeds())
            await self.coordinator.settled()
            await self._follow()
            self._note(self._all, obs, infos)

    async def _checkpoint(self, *, final: bool = False) -> None:
        """Save the run. If that fails on the way (disk full), the previous one stands and training goes on."""
        if self.config.exact_resume and not final:
            await self._begin_anew()
        state = Checkpoint(
            model=self._learner.model.state_dict(),
            optimiser=self._learner.optimiser.state_dict(),
            curriculum=self.coordinator.state_dict(),
            tally={**self._tally.state_dict(), "outcomes": self._outcomes.state_dict()},
            env_steps=self._tally.env_steps,
            train_time_s=time.monotonic() - self._began_s,
            sizes=self.folder.log_sizes(),
        )
        try:
            self._checkpoint_path = await self._thread(self._checkpoints.save, state)
        except OSError as error:
            if final or self._tally.updates == 0:
                raise
            self._warn(f"checkpoint not written, the previous one stands: {error}")

    # ---- small parts

    async def _thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run `work` in the learner's thread. Cancelled: it goes on there, and `_quiet` waits for it."""
        self._in_thread = asyncio.get_running_loop().run_in_executor(self._executor, work, *args)
        result: T = await asyncio.shield(self._in_thread)
        return result

    async def _quiet(self) -> None:
        """End all tasks of the run, and wait for what is still in the learner's thread."""
        tasks = [*self._helpers, *([self._task] if hasattr(self, "_task") else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._in_thread is not None and not self._in_thread.done():
            await asyncio.wait([self._in_thread])

    def _publish(self, report: Report) -> None:
        self.last_report = report
        for logger in self._loggers:
            logger.write(report)
        self._feed.put(report)

    def _versions(self) -> tuple[int, int]:
        """Directives published in this part of the run, and how many of them every worker has taken."""
        self._receipts = [receipt for receipt in self._receipts if receipt.pending] or self._receipts[-1:]
        published = self.coordinator.published
        return published, published - sum(bool(receipt.pending) for receipt in self._receipts)

    def _summarise(self, reason: str) -> Summary:
        published, applied = self._versions()
        path = self._checkpoint_path
        return self._tally.summary(
            reason=reason,
            stages=self._stages(),
            wall_s=time.monotonic() - self._began_s,
            loop_lag_p99_s=percentile(self._lag.all, 99),
            published=published,
            applied=applied,
            checkpoint=str(path.relative_to(self.folder.path)) if path is not None else "",
        )
