"""Several runs that differ in their seed alone: one folder around theirs, one table, one set of curves."""
# resource: owns seeds.toml and table.txt in one folder; the run folders in it are the runs'

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config import ConfigError, TrainConfig, from_mapping, to_toml
from trainers.record.estimates import interval, iqm
from trainers.record.folder import SEEDS, RunFolder, anchored, read_toml
from trainers.record.metrics import read_metrics

__all__ = ["Band", "SeedRuns", "parse_seeds", "seed_curves", "seed_table"]

MOST = 1000  # seeds
NEWEST = 10  # lines of metrics whose returns the table's mean is over
POINTS = 300  # of a curve
LINES = 4000  # of a run's metrics
OVER = ("solved", "steps")  # how a run ends that has come to its end


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that "0-4", "0,3,7" or "0-2,7" names, in that order. Raises `ConfigError`."""
    seeds: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part.strip(), re.ASCII)
        if matched is None:
            raise ConfigError(f"--seeds {text}: expected seeds and ranges such as 0-4 or 0,3,7, got {part!r}")
        first = int(matched[1])
        last = first if matched[2] is None else int(matched[2])
        if last < first:
            raise ConfigError(f"--seeds {text}: {part} ends before it begins")
        if len(seeds) + last - first >= MOST:
            raise ConfigError(f"--seeds {text}: more than {MOST} seeds")
        seeds += range(first, last + 1)
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise ConfigError(f"--seeds {text}: seed {twice} is named twice")
    return tuple(seeds)


@dataclass(frozen=True)
class SeedRuns:
    """A folder of runs, one per seed: seeds.toml, seed-0/, seed-1/, …, table.txt, curve.png."""

    path: Path
    config: TrainConfig
    """What all runs have in common; each has a seed of its own."""
    seeds: tuple[int, ...]

    @classmethod
    def create(cls, config: TrainConfig, text: str) -> SeedRuns:
        """A fresh folder for the seeds that `text` names. Raises `ConfigError` if it exists or cannot be made."""
        seeds = parse_seeds(text)
        path = RunFolder.new(config, f"seeds{text.replace(' ', '')}")
        runs = cls(path, config, seeds)
        runs.save()
        return runs

    @classmethod
    def open(cls, path: Path) -> SeedRuns:
        """An existing folder. Raises `ConfigError` if it is none."""
        file = path / SEEDS
        data = read_toml(file)
        seeds = data.pop("seeds", None)
        whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
        if not whole or not seeds:
            raise ConfigError(f"{file}: seeds: expected a list of whole numbers, got {seeds!r:.80}")
        return cls(path, from_mapping(TrainConfig, data, source=str(file)), tuple(seeds))

    @staticmethod
    def holds(path: Path) -> bool:
        """Whether `path` is such a folder."""
        return (path / SEEDS).is_file()

    def save(self) -> None:
        """Write seeds.toml."""
        text = f"seeds = {list(self.seeds)}\n{to_toml(anchored(self.config))}"
        (self.path / SEEDS).write_text(text, encoding="utf-8")

    def remove_if_empty(self) -> None:
        """Undo `create` where no run has begun."""
        if not any(self.folder(seed).path.exists() for seed in self.seeds):
            RunFolder(self.path).remove()

    def of(self, seed: int) -> TrainConfig:
        """The config of one run."""
        return replace(self.config, seed=seed, runs=self.path, name=f"seed-{seed}")

    def folder(self, seed: int) -> RunFolder:
        """Where one run keeps what it leaves, or will."""
        return RunFolder(self.path / f"seed-{seed}")

    def begun(self, seed: int) -> Path | None:
        """One run's folder, if it has begun. What a process that was killed meanwhile made of one is removed."""
        folder = self.folder(seed)
        if folder.path.exists() and not (folder.checkpoints.exists() or self.lines(seed)):
            folder.remove()
        return folder.path if folder.path.exists() else None

    def done(self, seed: int) -> bool:
        """Whether a run has come to its end; one whose steps are spent goes on if there are more now."""
        ended = self.summary(seed)
        spent = ended["reason"] == "steps" and ended["env_steps"] >= self.config.total_steps
        return bool(spent or ended["reason"] == "solved")

    def summary(self, seed: int) -> dict[str, Any]:
        """One run's summary.json; of a run that has none, that it is `unfinished`."""
        try:
            summary: dict[str, Any] = json.loads(self.folder(seed).summary.read_bytes())
        except (OSError, ValueError):
            return {"reason": "unfinished"}
        return summary

    def lines(self, seed: int) -> list[dict[str, Any]]:
        """One run's metrics; nothing where there are none."""
        metrics = self.folder(seed).metrics
        return read_metrics(metrics, LINES) if metrics.exists() else []


def seed_table(runs: SeedRuns) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each seed's last figures, then their interquartile mean and its 95 % interval, over the seeds
    that have come to an end."""
    rows, figures, names = [], [], []
    for seed in runs.seeds:
        summary, lines = runs.summary(seed), runs.lines(seed)
        over = summary["reason"] in OVER
        row = _figures(summary if over else lines[-1] if lines else None, lines)
        if lines:
            names = [stage["name"] for stage in lines[-1]["stages"]]
        if over:
            figures.append(row)
        rows.append([str(seed), summary["reason"], *_cells(row)])
    if figures:
        columns = list(zip(*figures))
        low, high = zip(*map(interval, columns))
        rows.append(["all", "interquartile mean", *_cells([iqm(column) for column in columns])])
        rows += [["", "95 % interval, from", *_cells(low)], ["", "to", *_cells(high)]]
    headings = ["seed", "ended", "env steps", "return", *names]
    return headings, [row + ["–"] * (len(headings) - len(row)) for row in rows]


def _figures(newest: dict[str, Any] | None, lines: Sequence[dict[str, Any]]) -> list[float]:
    """Of a run so far: env steps, mean return of the newest updates, success rate of each stage."""
    if newest is None:
        return []
    returns = [line["episode_return"] for line in lines if line["episode_return"] is not None][-NEWEST:]
    rates = [stage["success_rate"] for stage in newest["stages"]]
    return [newest["env_steps"], sum(returns) / len(returns) if returns else math.nan, *rates]


def _cells(row: Sequence[float]) -> tuple[str, ...]:
    if not row:
        return ()
    steps, total, *rates = row
    return (
        f"{steps:,.0f}",
        f"{total:.3g}" if math.isfinite(total) else "–",
        *(f"{rate:.1%}" for rate in rates),
    )


@dataclass(frozen=True)
class Band:
    """One curve over the seeds, by env steps."""

    steps: list[int]
    mean: list[float]
    """Interquartile mean."""
    low: list[float]
    """Lower end of its 95 % interval."""
    high: list[float]


def seed_curves(runs: SeedRuns) -> tuple[dict[str, Band], Band]:
    """The success rate of each stage, and the mean return. A run that has come to its end keeps its last value: a
    solved one stays solved; others count as far as they have come."""
    lines = {seed: found for seed in runs.seeds if (found := runs.lines(seed))}
    if not lines:
        raise ConfigError(f"{runs.path}: no metrics yet: not one update was learned")
    every = sorted({line["env_steps"] for found in lines.values() for line in found})
    picked = [every[i] for i in np.unique(np.linspace(0, len(every) - 1, POINTS).astype(int))]

    def band(value: Any) -> Band:
        columns = [
            list(_held(found, value, picked, runs.summary(seed)["reason"] in OVER))
            for seed, found in lines.items()
        ]
        rows = [(step, [v for v in at if v is not None]) for step, at in zip(picked, zip(*columns))]
        rows = [(step, values) for step, values in rows if values]
        ends = [interval(values) for _, values in rows]
        return Band(
            [step for step, _ in rows],
            [iqm(values) for _, values in rows],
            [low for low, _ in ends],
            [high for _, high in ends],
        )

    def rate(line: dict[str, Any], place: int) -> float | None:
        stage = line["stages"][place]
        return stage["success_rate"] if stage["outcomes"] else None

    names = [stage["name"] for stage in next(iter(lines.values()))[0]["stages"]]
    stages = {name: band(lambda line, i=i: rate(line, i)) for i, name in enumerate(names)}
    return stages, band(lambda line: line["episode_return"])


def _held(
    lines: list[dict[str, Any]], value: Any, steps: Sequence[int], over: bool
) -> Iterator[float | None]:
    """The newest value at each of `steps`, None before the first; also after the last line, if the run is `over`."""
    newest: float | None = None
    place = 0
    for step in steps:
        while place < len(lines) and lines[place]["env_steps"] <= step:
            found = value(lines[place])
            newest = newest if found is None else found
            place += 1
        yield newest if over or place < len(lines) or step <= lines[-1]["env_steps"] else None
