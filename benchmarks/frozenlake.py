"""`python -m benchmarks.frozenlake`: the default preset over ten seeds, with the curriculum and without; by unrolls."""
# edge: trains, prints a Markdown table

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tyro

import aio_vecenv as av
from trainers import Summary, TrainConfig, load_preset, training

WITH_LIMIT = 40_000  # env steps within which far must be solved, with the curriculum
WITHOUT_LIMIT = 200_000  # env steps that training on far alone gets


@dataclass(frozen=True)
class Arguments:
    """The preset frozenlake over several seeds, with the curriculum and without; one after the other."""

    seeds: int = 10
    """Seeds 0, 1, 2 …"""
    only: str | None = None
    """with, or without: just that half."""
    unrolls: tuple[int, ...] = ()
    """Instead of both: with the curriculum, collected by unrolls of so many steps; a row for each."""
    json: bool = False
    """Machine-readable output instead of a table."""


@dataclass(frozen=True)
class Result:
    """One training."""

    seed: int
    curriculum: bool
    solved_at: int | None  # env steps, reset rows included; None: not within the limit
    env_steps: int
    wall_s: float  # from nothing to closed: workers' start and their end included, the import of torch not
    lag_p99_s: float  # how late a 1 ms ticker on the training's event loop was
    stages: tuple[tuple[str, int], ...]  # stage, env steps when it was entered
    unroll: int | None  # None: lockstep
    late_episodes: int  # that began after a decision and under the directive before
    directives: int


def one(seed: int, curriculum: bool, folder: Path, unroll: int | None = None) -> Result:
    config: TrainConfig = replace(
        load_preset("frozenlake").config,
        seed=seed,
        curriculum=curriculum,
        total_steps=WITH_LIMIT if curriculum else WITHOUT_LIMIT,
        deterministic=True,  # the same figures on every run
        runs=folder,
        name=f"{'with' if curriculum else 'without'}-{unroll}-{seed}",
    )
    if unroll is not None:
        config = replace(config, collect="unroll", unroll=unroll)
    began = time.monotonic()
    summary, late, lag_p99_s = av.run(_train_beside_a_ticker(config))
    within = summary.solved_at is not None and summary.solved_at <= config.total_steps
    return Result(
        seed=seed,
        curriculum=curriculum,
        solved_at=summary.solved_at if within else None,
        env_steps=summary.env_steps,
        wall_s=time.monotonic() - began,
        lag_p99_s=lag_p99_s,
        stages=tuple((entry.stage, entry.env_steps) for entry in summary.timeline),
        unroll=unroll,
        late_episodes=late,
        directives=summary.published,
    )


async def _train_beside_a_ticker(config: TrainConfig) -> tuple[Summary, int, float]:
    late: list[float] = []
    loop = asyncio.get_running_loop()

    async def ticker() -> None:
        while True:
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            late.append(loop.time() - due)

    async with training(config) as run:
        task = asyncio.create_task(ticker())
        episodes = [report.timing.late_episodes async for report in run.reports()]
        summary = await run.wait()
        task.cancel()
    return summary, sum(episodes), float(np.percentile(late, 99))


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.frozenlake")
    if arguments.unrolls:
        knob(arguments)
        return
    halves = [half for half in ("with", "without") if arguments.only in (None, half)]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for half in halves:
            for seed in range(arguments.seeds):
                result = one(seed, half == "with", Path(folder))
                results.append(result)
                solved = "not solved" if result.solved_at is None else f"solved at {result.solved_at:,}"
                print(
                    f"{half} curriculum, seed {seed}: {solved}, {result.wall_s:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    print("\n".join(table(results)))


def knob(arguments: Arguments) -> None:
    """Markdown: a row per length of the unrolls."""
    print("| steps of an unroll | solved | at, median (lowest … highest) | late episodes per directive |")
    print("|--:|--:|--:|--:|")
    for length in arguments.unrolls:
        with tempfile.TemporaryDirectory() as folder:
            found = [one(seed, True, Path(folder), length) for seed in range(arguments.seeds)]
        solved = sorted(result.solved_at for result in found if result.solved_at is not None)
        spread = f"{np.median(solved):,.0f} ({solved[0]:,} … {solved[-1]:,})" if solved else "–"
        late = sum(result.late_episodes for result in found) / sum(result.directives for result in found)
        print(f"| {length} | {len(solved)} of {len(found)} | {spread} | {late:.1f} |", flush=True)


def table(results: list[Result]) -> list[str]:
    """Markdown: a row per seed, then the count against the bar."""
    with_, without = ({r.seed: r for r in results if r.curriculum is flag} for flag in (True, False))
    lines = [
        f"| seed | with the curriculum: solved at (of {WITH_LIMIT:,}) | middle, far entered at | wall "
        f"| without: solved at (of {WITHOUT_LIMIT:,}) | wall |",
        "|---|---|---|---|---|---|",
    ]
    for seed in sorted({**with_, **without}):
        left, right = with_.get(seed), without.get(seed)
        entered = ", ".join(f"{steps:,}" for _stage, steps in left.stages[1:]) if left else ""
        lines.append(
            f"| {seed} | {_steps(left)} | {entered} | {_wall(left)} | {_steps(right)} | {_wall(right)} |"
        )
    cells = ["solved", *_total(with_), *_total(without)]
    cells.insert(2, "")
    lines.append(f"| {' | '.join(cells)} |")
    lags_ms = sorted(1000 * result.lag_p99_s for result in results)
    lines += [
        "",
        f"Event loop lag while training (1 ms ticker), p99 of each run: median {lags_ms[len(lags_ms) // 2]:.1f} ms, "
        f"worst {lags_ms[-1]:.1f} ms.",
    ]
    return lines


def _total(half: dict[int, Result]) -> tuple[str, str]:
    if not half:
        return "", ""
    solved = sum(result.solved_at is not None for result in half.values())
    return f"**{solved} of {len(half)}**", f"{max(result.wall_s for result in half.values()):.1f} s at most"


def _steps(result: Result | None) -> str:
    if result is None:
        return ""
    return "–" if result.solved_at is None else f"{result.solved_at:,}"


def _wall(result: Result | None) -> str:
    return "" if result is None else f"{result.wall_s:.1f} s"


if __name__ == "__main__":
    main()
