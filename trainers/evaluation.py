"""Evaluation while training: beside the run, on a frozen copy; the best one is kept."""
# async: one task at a time, in envs of its own; training goes on meanwhile

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from trainers.config import TrainConfig
from trainers.evaluate import Evaluator, judging
from trainers.record.checkpoint import Checkpoint, Checkpoints
from trainers.record.folder import RunFolder
from trainers.record.metrics import EvalReport, read_metrics

__all__ = ["Evaluation", "eval_config"]


def eval_config(config: TrainConfig) -> TrainConfig:
    """The config of the envs that evaluate: no more of them than episodes."""
    return judging(config, min(config.num_envs, config.eval.episodes), config.eval.workers)


class Evaluation:
    """Evaluates checkpoints that a run hands over, one at a time, and keeps the best."""

    def __init__(
        self,
        evaluator: Evaluator,
        config: TrainConfig,
        folder: RunFolder,
        checkpoints: Checkpoints,
        tell: Callable[[EvalReport], object],
    ) -> None:
        """`tell` gets each evaluation once eval.jsonl has it."""
        self.last: EvalReport | None = None  # the newest, of this part of the run
        self._evaluator, self._config, self._checkpoints = evaluator, config, checkpoints
        self._path, self._tell = folder.evaluations, tell
        self._task: asyncio.Task[None] | None = None

    @property
    def never(self) -> str:
        """Why nothing is ever evaluated, in words; empty if something is."""
        every, has = self._config.eval.every or 0, self._config.num_updates
        return (
            f"eval.every={every} updates, and the run has {has}: nothing is evaluated" if every > has else ""
        )

    def knows(self, update: int) -> bool:
        """Whether eval.jsonl has the evaluation of this update."""
        return any(line["update"] == update for line in self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        return read_metrics(self._path) if self._path.exists() else []

    async def begin(self, state: Checkpoint) -> None:
        """Evaluate `state`, which nobody changes any more, in the background, once the one before it is done.

        Where an evaluation may end the run, it is waited for. Raises what the one before it raised.
        """
        await self.finish()
        self._task = asyncio.create_task(self._play(state), name="trainers.evaluation")
        if self._config.eval.stops:
            await self.finish()

    async def finish(self) -> None:
        """Wait for the one under way. Raises what it raised. Cancelling leaves it as it is."""
        if self._task is not None:
            await asyncio.wait([self._task])
            task, self._task = self._task, None
            if not task.cancelled():  # else `stop` was called
                task.result()

    def stop(self) -> None:
        """End the one under way; it leaves nothing."""
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """`stop()`, and wait for it."""
        self.stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def reached(self) -> bool:
        """Whether the last stage was evaluated as well as `eval.stop_success` or `eval.stop_return` asks."""
        asked = self._config.eval
        if self.last is None:
            return False
        goal = self.last.stages[-1]
        return (asked.stop_success is not None and goal.success_rate >= asked.stop_success) or (
            asked.stop_return is not None and goal.mean_return >= asked.stop_return
        )

    async def _play(self, state: Checkpoint) -> None:
        began, asked = time.monotonic(), self._config.eval
        stages = await self._evaluator.play(
            state,
            self._checkpoints.folder,
            episodes=asked.episodes,
            greedy=asked.greedy,
            seed=self._config.seed,
        )
        rows = [dataclasses.asdict(stage) for stage in stages]
        best = all(self._merit(rows) > self._merit(line["stages"]) for line in self._lines())
        if best:
            await asyncio.to_thread(self._checkpoints.save_best, state)
        self.last = EvalReport(
            state.tally["updates"], state.env_steps, best, time.monotonic() - began, tuple(stages)
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(self.last), ensure_ascii=False) + "\n")
        self._tell(self.last)

    def _merit(self, stages: Sequence[dict[str, Any]]) -> tuple[float, float]:
        """What makes one the best: the mean of `eval.best` over the stages, then of the return."""
        figures = (self._config.eval.best, "mean_return")
        first, second = (sum(float(stage[figure]) for stage in stages) for figure in figures)
        return first, second
