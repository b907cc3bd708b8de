"""`python -m benchmarks.doorkey`: three sizes under two curricula, against uniform draws and against 8×8 alone."""
# edge: trains, writes results as they come, prints a Markdown table, draws a PNG

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from trainers import TrainConfig, load_preset, train

SETTINGS: dict[str, dict[str, Any]] = {
    "staged": {},
    "learning_progress": {"strategy": "learning_progress"},
    "uniform": {"strategy": "uniform"},
    "8x8 alone": {"curriculum": False},
}
WHAT = {
    "staged": "`Staged`: 5×5 → 6×6 → 8×8",
    "learning_progress": "`LearningProgress` over the three sizes",
    "uniform": "`DomainRandomisation`: the three sizes alike",
    "8x8 alone": "8×8 alone",
}


@dataclass(frozen=True)
class Arguments:
    """DoorKey: env steps until the newest 50 outcomes of 8×8 hold 45 successes, the same PPO four times."""

    seeds: int = 5
    """Seeds 0, 1, 2 …; all four settings of a seed before the next seed."""
    first_seed: int = 0
    """Begin with this one."""
    total_steps: int = 200_000
    """Env steps at most, for each training."""
    workers: int = 1
    """Worker processes; the figures are the same for any number."""
    only: str | None = None
    """Just one of: staged, learning_progress, uniform, 8x8 alone."""
    results: Path = Path("doorkey.json")
    """Written after each training; trainings that are in it already, under the same limit, are not repeated."""
    plot: Path | None = None
    """The PNG to draw (extra `plots`)."""


@dataclass(frozen=True)
class Result:
    """One training."""

    setting: str
    seed: int
    total_steps: int  # the limit
    solved_at: int | None  # env steps, reset rows included; None: not within the limit
    env_steps: int
    wall_s: float
    curve: tuple[tuple[int, float], ...]  # (env steps, success among 8×8's newest outcomes) after each update


def one(setting: str, seed: int, arguments: Arguments, folder: Path) -> Result:
    config: TrainConfig = replace(
        load_preset("doorkey").config,
        seed=seed,
        total_steps=arguments.total_steps,
        solve_rate=0.9,
        solve_window=50,
        num_workers=arguments.workers,
        deterministic=True,  # the same figures on every run
        collect="lockstep",  # as the table in docs/presets.md was made
        runs=folder,
        name=f"{setting.replace(' ', '-')}-{seed}",
        **SETTINGS[setting],
    )
    curve: list[tuple[int, float]] = []
    began = time.monotonic()
    summary = train(
        config, on_report=lambda report: curve.append((report.env_steps, report.stages[-1].success_rate))
    )
    within = summary.solved_at is not None and summary.solved_at <= arguments.total_steps
    if within:
        curve.append((summary.env_steps, summary.stages[-1].success_rate))
    return Result(
        setting=setting,
        seed=seed,
        total_steps=arguments.total_steps,
        solved_at=summary.solved_at if within else None,
        env_steps=summary.env_steps,
        wall_s=round(time.monotonic() - began, 1),
        curve=tuple(curve),
    )


def load(path: Path, total_steps: int) -> list[Result]:
    """What earlier calls measured, under this limit."""
    if not path.exists():
        return []
    rows = [Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    return [row for row in rows if row.total_steps == total_steps]


def save(path: Path, results: list[Result]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    os.replace(temporary, path)


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.doorkey")
    if arguments.only is not None and arguments.only not in SETTINGS:
        raise SystemExit(f"--only: expected one of {', '.join(SETTINGS)}, got {arguments.only!r}")
    results = load(arguments.results, arguments.total_steps)
    done = {(result.setting, result.seed) for result in results}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            for setting in SETTINGS:
                if (setting, seed) in done or arguments.only not in (None, setting):
                    continue
                result = one(setting, seed, arguments, Path(folder))
                results.append(result)
                save(arguments.results, results)
                solved = "not solved" if result.solved_at is None else f"solved at {result.solved_at:,}"
                print(f"{setting}, seed {seed}: {solved}, {result.wall_s:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(table(results, arguments.total_steps)))
    if arguments.plot is not None:
        draw(results, arguments.plot)


def table(results: list[Result], limit: int) -> list[str]:
    """Markdown: a row per setting. An unsolved training counts as later than every solved one."""
    lines = [
        f"| practised | solved within {limit:,} | median | min | max | seed by seed |",
        "|---|---|---|---|---|---|",
    ]
    for setting, what in WHAT.items():
        found = sorted((r for r in results if r.setting == setting), key=lambda r: r.seed)
        if not found:
            continue
        at = [float("inf") if r.solved_at is None else float(r.solved_at) for r in found]
        solved = sum(r.solved_at is not None for r in found)
        cells = [
            f"**{solved} of {len(found)}**",
            *(_steps(f(at), limit) for f in _STATISTICS),
            ", ".join(_steps(value, limit) for value in at),
        ]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


_STATISTICS: tuple[Callable[[list[float]], float], ...] = (statistics.median_high, min, max)


def _steps(value: float, limit: int) -> str:
    return f"> {limit:,}" if value == float("inf") else f"{int(value):,}"


def draw(results: list[Result], out: Path) -> None:
    """Success on 8×8 over env steps: a line per training, its end marked where it was solved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limit = max(result.total_steps for result in results)
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for i, (axis, setting) in enumerate(zip(axes, SETTINGS)):
        for result in (r for r in results if r.setting == setting):
            steps, rates = zip(*result.curve)
            axis.plot(steps, rates, color=f"C{i}", alpha=0.7)
            if result.solved_at is not None:
                axis.plot(result.solved_at, 0.9, marker="o", color=f"C{i}", clip_on=False)
        axis.axhline(0.9, color="k", linewidth=0.5, linestyle=":")
        axis.set(title=WHAT[setting].replace("`", ""), ylim=(-0.02, 1.02), xlim=(0, limit))
        axis.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:.0f}k")
        axis.label_outer()
    figure.supxlabel("env steps")
    figure.supylabel("success, newest 50 episodes of 8×8")
    figure.savefig(out, format="png", dpi=110)


if __name__ == "__main__":
    main()
