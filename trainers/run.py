"""A run in progress: collect, learn, count, report, save, until it is solved, spent or stopped."""
# async: one task; the learner works in a thread

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aio_vecenv as av
import curriculum as cu
from trainers.collect.collector import Collector
from trainers.collect.observations import is_masked
from trainers.collect.unroller import Unroller
from trainers.config import ConfigError, TrainConfig
from trainers.evaluation import Evaluation
from trainers.jobs import restore_curriculum, restore_envs, restore_what_fits, success_of
from trainers.learn.learner import ACT, Learner, env_seeds, load_what_fits, stream
from trainers.learn.masks import MASK
from trainers.learn.meaning import differences
from trainers.learn.networks import mask_leaf
from trainers.learn.thread import LearnerThread
from trainers.learn.twins import TwinMaker
from trainers.loop_monitor import LoopMonitor
from trainers.presets import Job
from trainers.record.checkpoint import Checkpoint, Checkpoints
from trainers.record.complaints import Complaints
from trainers.record.env_errors import EnvErrors, TooManyEnvErrors, WorkerLosses
from trainers.record.folder import RunFolder
from trainers.record.metrics import EvalReport, Report, StageReport, Timing, percentile
from trainers.record.outcomes import Outcomes
from trainers.record.report_stream import ReportStream
from trainers.record.summary import RunTally, Summary, stage_reports, stages_seen

__all__ = ["CALLBACK", "Run"]

CALLBACK = "trainers.callback"  # how the names of their tasks begin


class Run:
    """A run in progress, made by `training()`."""

    def __init__(
        self,
        config: TrainConfig,
        job: Job,
        levels: Any,
        folder: RunFolder,
        checkpoints: Checkpoints,
        envs: av.AsyncVecEnv,
        coordinator: cu.Coordinator,
        thread: LearnerThread,
        reports: ReportStream,
        warned: list[str],
        evaluation: Evaluation | None,
        maker: TwinMaker,
    ) -> None:
        self.config, self.folder, self.envs, self.coordinator = config, folder, envs, coordinator
        self.choices: tuple[str, ...] = ()  # how observations are read, which settings the spaces decided
        self._job, self._levels, self._evaluation = job, levels, evaluation
        self._maker = maker  # of what acts in the workers, if anything does
        self._thread, self._checkpoints, self._reports = thread, checkpoints, reports
        self._tally, self._monitor = RunTally(config.max_error_share), LoopMonitor()
        self._complaints = Complaints(warned, self._tally, envs.statistics)
        self._outcomes = Outcomes(
            success_of(job, config), config.num_envs, in_order=config.window == "started"
        )
        self._collector: Collector
        self._task: asyncio.Task[Summary]
        self._helpers: list[asyncio.Task[None]] = []
        self._stop_asked = self._error_seen = False
        self._env_state: dict[str, Any] = {}  # what wrappers in the envs had learned at the newest update
        self._receipts: list[Any] = []  # of directives that some worker may not have taken yet
        self._wanted: list[asyncio.Future[Path | OSError]] = []  # checkpoints that someone waits for
        self._summary: Summary | None = None

    # ---- what its owner does with it

    async def reports(self, *, raising: bool = True) -> AsyncIterator[Report]:
        """The report of every update from now on, until the run ends; then raises what ended it, if anything did.

        `raising=False`: just ends; the error is left to others, and to `error`. A reader that falls 256 behind misses
        the oldest. Cancelling or leaving the iteration ends only that.
        """
        async for report in self._reports.read():
            yield report
        if raising:
            await self.wait()
        else:
            await asyncio.wait([self._task])

    async def wait(self) -> Summary:
        """The summary, once the run has ended. Raises what ended it. Cancelling leaves the run as it is."""
        try:
            return await asyncio.shield(self._task)
        except Exception:
            reader = asyncio.current_task()
            # what a callback has seen, who opened the run is to see, too
            if reader is None or not reader.get_name().startswith(CALLBACK):
                self._error_seen = True
            raise

    async def stop(self) -> Summary:
        """Finish the env step, or with unrolls the chunk, write checkpoint and summary, and end the run; leaving the
        context closes it.

        May be called again, and after the run has ended. Cancelling it does not take the request back.
        """
        self.request_stop()
        return await self.wait()

    def request_stop(self) -> None:
        """`stop()` without waiting."""
        self._stop_asked = True
        if self._evaluation is not None:
            self._evaluation.stop()

    async def checkpoint(self) -> Path:
        """Save the run once the update under way is learned; returns the file. Several callers share one.

        Under `exact_resume` this resets all envs, as every checkpoint does. Once the run has ended, it is the last
        one. Raises `OSError` if it cannot be written, the run goes on then; and what ended the run, if an error did.
        Cancelling it takes nothing back.
        """
        wanted: asyncio.Future[Path | OSError] = asyncio.get_running_loop().create_future()
        self._wanted.append(wanted)
        either: list[asyncio.Future[Any]] = [wanted, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            await self.wait()
        saved = wanted.result() if wanted.done() else self._checkpoints.newest
        if isinstance(saved, OSError):
            raise saved
        assert saved is not None  # there is one from the start on
        return saved

    @property
    def last_evaluation(self) -> EvalReport | None:
        """The newest evaluation that has ended, in this part of the run."""
        return None if self._evaluation is None else self._evaluation.last

    @property
    def last_report(self) -> Report | None:
        """The newest update's report, of this part of the run."""
        return self._reports.last

    @property
    def error(self) -> BaseException | None:
        """What ended the run, if that was an error. Looking at it leaves it to be raised."""
        if not self._task.done():
            return None
        return asyncio.CancelledError() if self._task.cancelled() else self._task.exception()

    @property
    def stage(self) -> str:
        """The current stage; "all" for strategies without one."""
        return self.coordinator.stage or "all"

    @property
    def env_steps(self) -> int:
        """Rows collected so far, reset rows included."""
        return self._tally.env_steps

    @property
    def warnings(self) -> list[str]:
        """What went wrong without ending the run, in order."""
        return self._complaints.warned

    @property
    def says_success(self) -> bool:
        """Whether the job, or the final info of any episode so far, says if an episode succeeded."""
        return self._job.success is not None or self._outcomes.silent is None

    @property
    def env_errors(self) -> EnvErrors:
        """Episodes that failed with an error of their env, by level."""
        return self._tally.errors

    @property
    def worker_losses(self) -> WorkerLosses:
        """Workers that were lost and replaced, and the episodes that were lost with them."""
        return self._tally.losses

    def summary(self) -> Summary:
        """The run so far; once it has ended, as it ended."""
        return self._summary if self._summary is not None else self._summarise("running")

    # ---- the run

    async def _open(
        self,
        saved: tuple[Checkpoint, Path, list[str]] | None,
        start: tuple[Checkpoint, Path, list[str]] | None = None,
    ) -> None:
        """Take over a checkpoint, or the network of one to `start` with; begin the first episodes, build the learner
        for what they show; then go."""
        config, tally = self.config, self._tally
        if saved is not None:
            state, path, refused = saved
            self.warnings.extend(f"checkpoint refused: {reason}" for reason in refused)
            restore_curriculum(self.coordinator, state, path)
            tally.load_state_dict(state.tally)
            self._outcomes.load_state_dict(state.tally["outcomes"])
            if not self._reached_goal():  # the goal may be another one now
                tally.solved_at = None
            self._outcomes.restart()
            self._monitor.began_before(state.train_time_s)
            self._env_state = await restore_envs(self.envs, state, path, frozen=False)
        else:
            left = [] if start is None else await restore_what_fits(self.envs, start[0].envs)
            self._env_state = await self.envs.get_state()
        self._helpers.append(asyncio.create_task(self.coordinator.run(), name="trainers.coordinator"))
        await asyncio.sleep(0)  # it begins, even if the first reset ends the run
        space, events = self.envs.single_observation_space, self.envs.events()
        obs, infos = await self.envs.reset(seed=self._seeds())
        await self.coordinator.settled()
        self._complaints.of_reset(infos)
        masked = is_masked(space, infos)
        if not masked:
            self._complaints.of_places(space, infos, self.envs.single_action_space)
        learner = await self._thread.run(  # torch loads much on first use: not on the loop
            partial(Learner, config, space, self.envs.single_action_space, masked=masked)
        )
        if saved is not None:
            learner.load(saved[1], saved[0], optimiser=True)
        elif start is not None:
            state, path, refused = start
            self.warnings.extend(f"checkpoint refused: {reason}" for reason in refused)
            count, parts = load_what_fits(path, learner.model, state.model, of="this env and config")
            said = "; ".join([*parts, *left]) or "nothing"
            other = "; ".join(differences(state.spaces, learner.spaces))
            self.choices += (
                f"begins with {count} tensors of {path}; left out: {said}"
                + (f"; trained for other spaces: {other}" if other else ""),
            )
        self._collector = self._make_collector(learner, events, masked)
        await self._collector.follow()
        self._collector.see(self._collector.everyone, obs, infos)
        self._note_stage()
        self._task = asyncio.create_task(self._main(), name="trainers.run")

    def _make_collector(self, learner: Learner, events: av.EventStream, masked: bool) -> Collector:
        """What collects as the config says, which says from now on what was chosen."""
        config, hidden = self.config, masked and not mask_leaf(self.envs.single_observation_space)
        if config.collect == "unroll" and hidden:
            raise ConfigError(
                "collect='unroll': the action masks are in the infos, which the policy in the workers does not see; "
                f"put them into the observation, as a leaf {MASK!r} of a Dict, or say collect='lockstep'"
            )
        options: dict[str, Any] = {"events": events, "on_events": self._outcomes.follow}
        twin = self._maker.twin
        if twin is not None and not hidden:
            self.config = dataclasses.replace(config, collect="unroll")
            self.choices += (f"collected by unrolls of {config.unroll} steps",)
            return Unroller(self.envs, learner, twin=twin, length=config.unroll, **options)
        self.config = dataclasses.replace(config, collect=config.collect or "lockstep")
        if self.config.collect == "first_ready":
            options["quorum"] = config.min_envs or max(1, config.num_envs // 4)
            self.choices += (f"collected from the first {options['quorum']} envs that are ready",)
        else:
            why = "the action masks are in the infos" if twin is not None else self._maker.why
            self.choices += ("collected in lockstep" + (f": {why}" if why else ""),)
        return Collector(self.envs, learner, **options)

    async def _main(self) -> Summary:
        self._helpers.append(asyncio.create_task(self._monitor.run(), name="trainers.loop_monitor"))
        try:
            if self._tally.updates == 0:
                await self._checkpoint()  # a disk that cannot take it is better known now
            elif self._evaluation is not None and not self._evaluation.knows(self._tally.updates):
                await self._evaluate()
            try:
                reason = await self._train()
                if self._evaluation is not None and reason != "stopped":
                    await self._evaluation.finish()
            except (av.VecEnvError, TooManyEnvErrors, ExceptionGroup, ConfigError):
                # An error of the envs (ConfigError: of their masks): the model is as good as before.
                if not self.config.exact_resume:
                    with contextlib.suppress(OSError):  # what ended the run is what there is to tell
                        await self._checkpoint(final=True)
                raise
            # a stopped exact run goes on from its last one
            if not (self.config.exact_resume and reason == "stopped"):
                await self._checkpoint(final=True)
            summary = self._summarise(reason)
            text = json.dumps(summary.as_dict(), indent=2, ensure_ascii=False) + "\n"
            await self._thread.run(self.folder.summary.write_text, text, "utf-8")
            self._summary = summary
            return summary
        finally:
            self._reports.close()
            await self._collector.aclose()
            if self._evaluation is not None:
                await self._evaluation.aclose()
            # from here on the coordinator refuses commands: nobody plays any more
            for helper in self._helpers:
                helper.cancel()
            await asyncio.gather(*self._helpers, return_exceptions=True)

    async def _train(self) -> str:
        """Collect and learn until the run is solved, its steps are spent, or someone stops it: which."""
        config, tally, collector = self.config, self._tally, self._collector
        while tally.env_steps < config.total_steps:
            began = time.monotonic()
            progress = config.progress(tally.env_steps)
            rng = stream(config.seed, ACT, tally.updates)
            collector.policy_s = 0.0
            if not (self._going_on() and await collector.collect(rng, self._look)):
                return "solved" if tally.solved_at is not None else "stopped"
            collected = time.monotonic()
            stats, parts = await self._thread.run(
                self._collector.learner.learn, tally.updates, progress, self._statistic
            )
            if parts:  # also of running episodes, and of those that have ended: only now are they known
                self.coordinator.record_scores(part for part in parts if part[:2] not in collector.aborted)
            collector.aborted.clear()
            await self._share_state()
            timing = self._timing(began, collected, time.monotonic())
            self._reports.put(tally.report(stats, self._stages(), self.stage, timing))
            await self._evaluate()
            if tally.updates % config.checkpoint_every == 0 or self._wanted:
                await self._checkpoint()
        return "steps" if tally.solved_at is None else "solved"

    async def _look(self, batch: av.Batch | av.Chunk) -> bool:
        """Count what ended in a batch or a chunk, and let the curriculum decide on it, before anyone acts on it. False:
        solved or stopped; what was collected is not learned from."""
        await self.coordinator.settled()  # what is decided on this batch holds for the very next step
        self._complaints.of(batch, masked=self._collector.masked)
        self._note_stage()
        if batch.episodes:
            self._expect_success()
            if self._reached_goal():
                self._tally.solved_at = self._tally.env_steps
        return self._going_on()

    def _going_on(self) -> bool:
        return self._tally.solved_at is None and not self._stop_asked

    def _expect_success(self) -> None:
        """Warn if no episode says whether it succeeded, where a stage waits for that, or the run to be solved."""
        stages = self._job.plan.stages
        moves = len(stages) > 1 and any(stage.measure == "success" for stage in stages)
        if (moves or self.config.solve_rate is not None) and not self.says_success and self._outcomes.silence:
            self._complaints.of_silence()

    @property
    def _statistic(self) -> str | None:
        """What the strategy asks the learner to measure."""
        asked: str | None = getattr(self.coordinator.strategy, "statistic", None)
        return asked

    def _note_stage(self) -> None:
        self._tally.enter(self.stage)
        receipt = self.coordinator.receipt
        if receipt is not None and (not self._receipts or self._receipts[-1] is not receipt):
            self._receipts.append(receipt)

    def _reached_goal(self) -> bool:
        """The newest `solve_window` outcomes of the last stage are good enough, whatever the strategy."""
        rate = self.config.solve_rate
        goal = self._job.plan.names[-1]
        return rate is not None and self._outcomes.reached(goal, rate, self.config.solve_window)

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
        for turn in range(2):
            if turn == 1:  # where a resumed run begins, too
                await self._share_state(anew=True)
            obs, infos = await self.envs.reset(seed=self._seeds())
            await self.coordinator.settled()
            await self._collector.follow()
            self._complaints.of_reset(infos)
            self._collector.see(self._collector.everyone, obs, infos)
            self._note_stage()
        self._collector.learner.begin_anew()

    async def _share_state(self, *, anew: bool = False) -> None:
        """Keep what wrappers in the envs have learned, and let all of them go on with it: what one policy sees is
        normalised alike, in training as in judging. Nothing, where they had nothing to learn at the start.

        A worker that is lost meanwhile leaves it as it was.
        """
        if self._env_state:
            with contextlib.suppress(av.WorkerLost):
                self._env_state = await self.envs.get_state()
                await self.envs.set_state(self._env_state, anew=anew)

    async def _checkpoint(self, *, final: bool = False) -> None:
        """Save the run. If that fails on the way (disk full), the previous one stands and training goes on."""
        if self.config.exact_resume and not final:
            await self._begin_anew()
        state = self._state()
        wanted, self._wanted = self._wanted, []
        saved: Path | OSError
        try:
            saved = await self._thread.run(self._checkpoints.save, state)
        except OSError as error:
            if final or self._tally.updates == 0:
                raise
            self._complaints.say(f"checkpoint not written, the previous one stands: {error}")
            saved = error
        for waiting in wanted:
            if not waiting.done():
                waiting.set_result(saved)

    async def _evaluate(self) -> None:
        """Hand a copy over to be evaluated, where it is time for that; the run may be found to be as good as asked."""
        evaluation, every = self._evaluation, self.config.eval.every
        if evaluation is None or every is None or self._tally.updates % every or self._stop_asked:
            return
        await evaluation.begin(await self._thread.run(copy.deepcopy, self._state()))
        if self._stop_asked:  # while it waited
            evaluation.stop()
        if evaluation.reached:
            self._tally.solved_at = self._tally.env_steps

    def _state(self) -> Checkpoint:
        """The run as it is now; its arrays are the learner's own."""
        return Checkpoint(
            model=self._collector.learner.model.state_dict(),
            optimiser=self._collector.learner.optimiser.state_dict(),
            curriculum=self.coordinator.state_dict(),
            tally={**self._tally.state_dict(), "outcomes": self._outcomes.state_dict()},
            env_steps=self._tally.env_steps,
            train_time_s=self._monitor.wall_s(),
            sizes=self.folder.log_sizes(),
            envs=self._env_state,
            spaces=self._collector.learner.spaces,
        )

    # ---- small parts

    async def _quiet(self) -> None:
        """End all tasks of the run; what is still in the learner's thread is for who closes that."""
        tasks = [*self._helpers, *([self._task] if hasattr(self, "_task") else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _timing(self, began: float, collected: float, learned: float) -> Timing:
        lags = self._monitor.take()
        published, applied = self._versions()
        return Timing(
            wall_s=self._monitor.wall_s(),
            steps_per_s=self.config.batch_size / (learned - began),
            collect_s=collected - began,
            learn_s=learned - collected,
            policy_s=self._collector.policy_s,
            loop_lag_p99_s=percentile(lags, 99),
            loop_lag_max_s=max(lags, default=0.0),
            published=published,
            applied=applied,
            late_episodes=self._tally.late_since(self.coordinator.late),
        )

    def _versions(self) -> tuple[int, int]:
        """Directives published in this part of the run, and how many of them every worker has taken."""
        self._receipts = [receipt for receipt in self._receipts if receipt.pending] or self._receipts[-1:]
        published = self.coordinator.published
        return published, published - sum(bool(receipt.pending) for receipt in self._receipts)

    def _summarise(self, reason: str) -> Summary:
        published, applied = self._versions()
        path = self._checkpoints.newest
        return self._tally.summary(
            reason=reason,
            stages=self._stages(),
            wall_s=self._monitor.wall_s(),
            loop_lag_p99_s=percentile(self._monitor.all, 99),
            published=published,
            applied=applied,
            checkpoint=str(path.relative_to(self.folder.path)) if path is not None else "",
        )
