"""The composition root: opens envs, curriculum, learner and folder of a run, starts it, and closes them all."""
# async: `training()` is the only place where the three packages meet

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import torch

import aio_vecenv as av
import curriculum as cu
from trainers.callbacks import Callbacks
from trainers.config import ConfigError, TrainConfig
from trainers.evaluate import evaluator
from trainers.evaluation import Evaluation, eval_config
from trainers.jobs import has_no_plan, levels_of, make_envs, make_strategy, named, planned, resolve_job
from trainers.learn.defaults import for_spaces, in_words
from trainers.learn.learner import torch_threads
from trainers.learn.thread import LearnerThread
from trainers.learn.twins import TwinMaker
from trainers.presets import Job
from trainers.record.checkpoint import Checkpoint, Checkpoints, load_saved
from trainers.record.complaints import warn
from trainers.record.folder import RunFolder, anchored
from trainers.record.loggers import Logger, check_extras, open_loggers, own_loggers
from trainers.record.metrics import Report
from trainers.record.report_stream import ReportStream
from trainers.record.summary import Summary
from trainers.run import Run

__all__ = ["train", "training"]


def train(
    config: TrainConfig, *, job: Job | None = None, on_report: Callable[[Report], object] | None = None
) -> Summary:
    """Train to the end, in an event loop of its own; `on_report` is called after every update.

    Raises RuntimeError where a loop runs already, as in a notebook: there, use `training()`.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "an event loop is running here already, as in a notebook: instead of `train(config)` write "
            "`async with training(config) as run: summary = await run.wait()`"
        )

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
    folder = RunFolder.open(Path(resume)) if resume is not None else None
    if config is None:
        if folder is None:
            raise ConfigError("training() needs a config, or a run folder to resume")
        config = folder.config()
    start = _start(config, folder)
    job = resolve_job(config) if job is None else job
    check_extras(config)
    own = own_loggers(config)
    callbacks = Callbacks({name: named("callback", name) for name in config.callback})
    async with contextlib.AsyncExitStack() as stack:
        saved = None
        if folder is not None:
            stack.enter_context(folder.held())
            saved = Checkpoints(folder.checkpoints).load_newest()
        config = dataclasses.replace(config, collect="unroll") if config.fleet.on else config
        maker = TwinMaker(config)
        envs = await stack.enter_async_context(_envs_of(config, job, maker))
        spaces = envs.single_observation_space, envs.single_action_space
        choices, config = in_words(config, *spaces), for_spaces(config, *spaces)
        asked = config.strategy != "staged" or job.strategy is not None or has_no_plan(job)
        levels = await levels_of(envs) if asked else None
        whole, job = job, planned(job, config, levels)
        if config.eval.every is not None and has_no_plan(job):
            raise ConfigError(
                "eval.every plays every stage of a plan, and there is none: give one (--plan), in which a single "
                "[[stage]] is enough"
            )
        strategy = make_strategy(config, job, levels)
        thread = _start_thread(config, envs, stack)
        began = False
        if folder is None:
            folder = RunFolder.create(config)
            stack.enter_context(folder.held())
            stack.callback(lambda made: None if began else made.remove(), folder)
        checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints, saved and saved[1])
        loggers: list[Logger] = []
        reports = ReportStream(loggers)
        evaluation = await _open_evaluation(config, whole, folder, checkpoints, reports, stack)
        journal = cu.Journal(folder.journal, wait=True, episodes=config.journal == "full")
        stack.callback(journal.close)
        warned: list[str] = []
        coordinator = cu.Coordinator(strategy, envs, journal=journal, warn=partial(warn, warned))
        if evaluation is not None and evaluation.never:
            warn(warned, evaluation.never)
        loggers += await open_loggers(config, folder, stack, thread, own)
        run = Run(
            config, job, levels, folder, checkpoints, envs, coordinator, thread, reports, warned, evaluation, maker
        )  # fmt: skip
        run.choices = choices
        stack.push_async_callback(run._quiet)
        await run._open(saved, start)
        callbacks.start(run)
        stack.push_async_callback(callbacks.aclose)
        # only now, and before the run's first turn: settings that do not fit the checkpoint leave the run as it was
        if saved is not None:
            folder.cut_logs(saved[0].sizes)
        journal.begin()
        folder.save_config(run.config)
        began = True
        async with _going_on(run):
            yield run
        await callbacks.finish()


def _envs_of(config: TrainConfig, job: Job, maker: TwinMaker) -> av.AsyncVecEnv:
    """The envs that are trained in, to be opened; the rollout keeps copies of their rows."""
    unroll = min(config.unroll, config.ppo.num_steps or config.unroll)
    envs: av.AsyncVecEnv = make_envs(config, job, copy=False, policy=maker, unroll=unroll)
    return envs


@contextlib.asynccontextmanager
async def _going_on(run: Run) -> AsyncIterator[None]:
    """Leaving ends the run, and raises what ended it if nobody has seen that."""
    try:
        yield
    except BaseException:
        run.request_stop()
        await asyncio.wait([run._task])
        raise
    if not run._error_seen:
        await run.stop()


def _start(config: TrainConfig, resumed: RunFolder | None) -> tuple[Checkpoint, Path, list[str]] | None:
    """What `init_from` names, for a run that begins. Raises `ConfigError`, `CheckpointError`."""
    if resumed is None:
        return None if config.init_from is None else load_saved(config.init_from)[1:]
    if anchored(config).init_from != anchored(resumed.config()).init_from:
        raise ConfigError("init_from is where a run begins: a resumed one goes on from its own checkpoint")
    return None


def _start_thread(
    config: TrainConfig, envs: av.AsyncVecEnv, stack: contextlib.AsyncExitStack
) -> LearnerThread:
    """The learner's thread. This one, which acts, gets what the workers leave of the CPUs, until `stack` is left."""
    space = envs.single_observation_space
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    torch.set_num_threads(torch_threads(config, envs.num_workers, space))
    thread = LearnerThread(torch_threads(config, 0, space))  # the workers wait for it
    stack.push_async_callback(thread.aclose)
    return thread


async def _open_evaluation(
    config: TrainConfig,
    job: Job,
    folder: RunFolder,
    checkpoints: Checkpoints,
    reports: ReportStream,
    stack: contextlib.AsyncExitStack,
) -> Evaluation | None:
    """What evaluates the run beside it, if anything does; `stack` closes its envs."""
    if config.eval.every is None:
        return None
    judge = await stack.enter_async_context(evaluator(eval_config(config), job))
    return Evaluation(judge, config, folder, checkpoints, reports.evaluated)
