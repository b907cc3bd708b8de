"""What the coordinator costs: microseconds of CPU time per episode event at 256 envs, with and without a journal.

`python -m benchmarks.coordinator` feeds a scripted channel: 256 envs, episodes of 5 to 40 steps, as many batches as
steps. An event is one `EpisodeStarted` or `Episode`. Medians of seven interleaved runs; the bar is 20 µs an event.
"""
# edge: argv and stdout; no worker process, so that only the coordinator is measured

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aio_vecenv.core.batch import Episode, EpisodeStarted, EventBatch
from curriculum import Coordinator, Stage, Staged, StagePlan

NUM_ENVS = 256
STEPS = 600
BAR_US = 20.0


class Script:
    """A vec env that hands out what was prepared."""

    num_envs = NUM_ENVS

    def __init__(self, batches: Sequence[EventBatch]) -> None:
        self._batches: list[EventBatch] = list(reversed(batches))
        self.version = 0

    def events(self) -> Script:
        return self

    @property
    def behind(self) -> int:
        return len(self._batches)

    async def next_batch(self) -> EventBatch:
        if not self._batches:
            raise StopAsyncIteration
        return self._batches.pop()

    async def aclose(self) -> None:
        pass

    def broadcast(self, payload: Any, *, topic: str = "", apply: str = "") -> Script:
        self.version += 1
        return self


def prepare() -> tuple[list[EventBatch], int]:
    """Hand-outs of one run, and how many events they hold."""
    rng = random.Random(0)
    running: dict[int, tuple[int, int]] = {}
    batches, count = [], 0
    for step in range(STEPS):
        events: list[EpisodeStarted | Episode] = []
        task = {"stage": "near", "level": "near-1", "generator": "default", "role": "current"}
        for env in range(NUM_ENVS):
            if env not in running:
                order = step * NUM_ENVS + env
                running[env] = (order, step + rng.randint(5, 40))
                events.append(EpisodeStarted(env, 0, order, 1 << 30, task, None))
            elif running[env][1] == step:
                order, _ = running.pop(env)
                info = {"is_success": rng.random() < 0.5}
                events.append(Episode(env, 0, order, 10, 1.0, "terminated", 1 << 30, task, info, None, step))
        watermark = min((order for order, _ in running.values()), default=step * NUM_ENVS)
        if events:
            batches.append(EventBatch(step, watermark, tuple(events)))
        count += len(events)
    return batches, count


def measure(batches: Sequence[EventBatch], count: int, rules: Any, journal: Path | None) -> float:
    """Microseconds of CPU time per event: other people's load on the machine does not count."""

    async def run() -> float:
        plan = StagePlan([Stage("near", 1.0, 10**6), Stage("far")])
        envs = Script(batches)
        coordinator = Coordinator(Staged(plan, rules=rules), envs, journal=journal)
        begun = time.process_time()
        await coordinator.run()
        return (time.process_time() - begun) / count * 1e6

    return asyncio.run(run())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description="Cost of the coordinator per episode event.")
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args(argv).runs
    batches, count = prepare()
    cases = [(rules, noted) for rules in ("reference", "sequential") for noted in (False, True)]
    found: dict[tuple[str, bool], list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(runs):
            for rules, noted in cases:
                journal = Path(folder) / f"{rules}-{run}.jsonl" if noted else None
                found[rules, noted].append(measure(batches, count, rules, journal))
    print(f"{count} events in {len(batches)} batches, {NUM_ENVS} envs, median of {runs}")
    worst = 0.0
    for (rules, noted), values in found.items():
        median = statistics.median(values)
        worst = max(worst, median)
        print(f"{rules:<12}{'with a journal' if noted else 'no journal':<16}{median:6.1f} µs an event")
    return int(worst > BAR_US)


if __name__ == "__main__":
    sys.exit(main())
