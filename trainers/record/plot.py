"""A run as one picture: success per stage, stage timeline, share of the draws, mixing ratio, return, steps/s."""
# edge: reads metrics.jsonl, writes a PNG; matplotlib is imported when it is needed

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.config import ConfigError
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics
from trainers.record.seeds import SeedRuns, seed_curves

__all__ = ["draw", "draw_seeds"]

POINTS = 4000  # of a run: more than the picture has pixels


def draw(folder: RunFolder, out: Path) -> None:
    """Write the PNG. Raises `ImportError` without matplotlib, `ConfigError` if there is nothing to draw, or
    `out` cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    lines = read_metrics(folder.metrics, POINTS) if folder.metrics.exists() else []
    if not lines:
        raise ConfigError(f"{folder.path}: no metrics yet: not one update was learned")
    steps = [line["env_steps"] for line in lines]
    names = [stage["name"] for stage in lines[0]["stages"]]
    colours = {name: f"C{i}" for i, name in enumerate(names)}

    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    success, draws, returns, speed = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1.2, 1.5, 1.2))
    for i, name in enumerate(names):
        played = [line["stages"][i] for line in lines]
        rates = [stage["success_rate"] if stage["outcomes"] else None for stage in played]
        success.plot(steps, _gaps(rates), color=colours[name], label=_text(name))
    for begin, end, name in _stays(lines):
        for axis in (success, draws, returns, speed):
            axis.axvspan(begin, end, color=colours.get(name, "none"), alpha=0.08, linewidth=0)
    success.set(ylabel="success, newest 50", ylim=(-0.02, 1.02), title=_text(folder.path.name))
    success.legend(loc="lower right", title="stage")
    if any(line["stage"] in colours for line in lines):
        ratios = [line["mixing_ratio"] for line in lines]
        draws.step(steps, ratios, where="post", color="k")
        draws.set(ylabel="mixing ratio", ylim=(0, max(0.5, *ratios) * 1.02))
    else:  # no current stage: episodes are drawn from all
        for i, name in enumerate(names):
            shares = [line["stages"][i]["share"] for line in lines]
            draws.step(steps, shares, where="post", color=colours[name])
        draws.set(ylabel="share of draws", ylim=(0, 1))
    returns.plot(steps, _gaps([line["episode_return"] for line in lines]), color="k")
    returns.set(ylabel="mean return")
    speed.plot(steps, [line["timing"]["steps_per_s"] for line in lines], color="k")
    speed.set(ylabel="env steps/s", xlabel="env steps", ylim=(0, None))
    _save(figure, out)


def draw_seeds(runs: SeedRuns, out: Path) -> None:
    """Write the PNG over several seeds: success per stage and mean return, each the interquartile mean over the seeds
    and its 95 % interval. Raises as `draw` does."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages, total = seed_curves(runs)
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    success, returns = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axis, name, band, colour in (
        *((success, name, band, f"C{i}") for i, (name, band) in enumerate(stages.items())),
        (returns, "return", total, "k"),
    ):
        axis.plot(band.steps, band.mean, color=colour, label=_text(name))
        axis.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
    title = f"{runs.path.name}: {len(runs.seeds)} seeds, interquartile mean and 95 % interval"
    success.set(ylabel="success, newest 50", ylim=(-0.02, 1.02), title=_text(title))
    success.legend(loc="lower right", title="stage")
    returns.set(ylabel="mean return", xlabel="env steps")
    _save(figure, out)


def _save(figure: Any, out: Path) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=120)
        temporary.replace(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from None


def _text(name: str) -> str:
    return name.replace("$", r"\$")  # no formula


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _stays(lines: list[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """(from, to, stage) of each stay, in env steps, as far as the updates tell."""
    stays: list[tuple[int, int, str]] = []
    begin = 0
    for line, following in zip(lines, [*lines[1:], None]):
        if following is None or following["stage"] != line["stage"]:
            stays.append((begin, line["env_steps"], line["stage"]))
            begin = line["env_steps"]
    return stays
