"""What one sees of a run: a live panel on a terminal, plain lines anywhere else; and the summary."""
# edge: writes to the terminal

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainers.record.metrics import EvalReport, Report, StageReport

if TYPE_CHECKING:
    from trainers.record.summary import Summary
    from trainers.run import Run

__all__ = ["Progress", "make_progress", "print_table", "summary_lines", "table_lines"]

PANEL_EVERY_S = 0.25  # drawing takes some milliseconds of the event loop
LINE_EVERY_S = 1.0
MANY_WAITING = 20  # outcomes; where some envs are slower than others, a few always wait


class Progress(Protocol):
    """Shows a run while it runs."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def start(self, run: Run) -> None: ...
    def show(self, report: Report) -> None: ...
    def finish(self, summary: Summary, run: Run) -> None: ...


def make_progress() -> Progress:
    """A live panel if stdout is a terminal, else plain lines."""
    return LivePanel() if sys.stdout.isatty() else PlainLines()


class PlainLines:
    """A line when the stage changes, and one a second."""

    def __init__(self) -> None:
        self._next_s = 0.0
        self._stage = ""
        self._steps_per_s = Smooth()
        self._warnings: Sequence[str] = ()  # of the run; it adds to them
        self._warned = 0
        self._run: Run | None = None
        self._evaluation: EvalReport | None = None  # the one shown last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # they may say why
            self._tell_warnings()

    def _tell_warnings(self) -> None:
        for warning in self._warnings[self._warned :]:
            print(f"warning: {warning}", flush=True)
        self._warned = len(self._warnings)

    def start(self, run: Run) -> None:
        self._warnings, self._run = run.warnings, run
        print("\n".join((_title(run), *run.choices)), flush=True)
        self._tell_warnings()

    def show(self, report: Report) -> None:
        speed = self._steps_per_s.add(report.timing.steps_per_s)
        self._tell_warnings()
        evaluation = None if self._run is None else self._run.last_evaluation
        if evaluation is not None and evaluation is not self._evaluation:
            self._evaluation = evaluation
            print(evaluation_line(evaluation), flush=True)
        now = time.monotonic()
        if report.stage == self._stage and now < self._next_s:
            return
        self._stage, self._next_s = report.stage, now + LINE_EVERY_S
        stages = f"  {report.stage:<10} "
        says = self._run is None or self._run.says_success
        stages += "  ".join(filter(None, (_progress(row, says) for row in report.stages)))
        stages = f"{stages}  {_drawn(report)}" if len(report.stages) > 1 or stages.strip() != "all" else ""
        print(
            f"{report.env_steps:>9,} steps{stages}"
            f"  return {_return(report)}  {speed:,.0f} steps/s{_errors(report)}"
            f"  directives applied {report.timing.applied}/{report.timing.published}{_waiting(report)}",
            flush=True,
        )

    def finish(self, summary: Summary, run: Run) -> None:
        print("\n".join(summary_lines(summary, run)), flush=True)


class LivePanel:
    """Stages with their success and what is missing; budget, speed, versions."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._next_s = 0.0
        self._steps_per_s = Smooth()
        self._title = ""
        self._total = 1
        self._latest: Report | None = None
        self._warnings: Sequence[str] = ()  # of the run; it adds to them
        self._run: Run | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._latest is not None:
            self._live.update(self._panel(self._latest), refresh=True)
        self._live.stop()
        # there was no panel to say them in, and they may say why
        if self._latest is None and error is not None:
            for warning in self._warnings:
                self._console.print(Text(f"warning: {warning}", "yellow"))

    def start(self, run: Run) -> None:
        self._title = _title(run)
        self._console.print("\n".join(run.choices), markup=False, highlight=False)
        self._warnings, self._run = run.warnings, run
        self._total = run.config.total_steps

    def show(self, report: Report) -> None:
        self._latest = report
        self._steps_per_s.add(report.timing.steps_per_s)
        now = time.monotonic()
        if now >= self._next_s:
            self._next_s = now + PANEL_EVERY_S
            self._live.update(self._panel(report), refresh=True)

    def finish(self, summary: Summary, run: Run) -> None:
        print("\n".join(summary_lines(summary, run)), flush=True)

    def _panel(self, report: Report) -> Panel:
        table = Table(box=None, pad_edge=False, expand=True)
        for heading in (
            "stage",
            "success",
            "outcomes",
            "episodes",
            "draws",
            "mixing",
            "waiting",
            "missing to advance",
        ):
            table.add_column(heading, justify="left" if heading[0] in "sm" else "right")
        staged = _staged(report)
        says = self._run is None or self._run.says_success
        for row in report.stages:
            current = row.name == report.stage
            table.add_row(
                Text(f"{'▸' if current else ' '} {row.name}"),  # a plain str would be markup
                f"{row.success_rate:4.0%} {'█' * round(10 * row.success_rate):<10}" if says else "not said",
                str(row.outcomes),
                f"{row.episodes:,}",
                f"{row.share:4.0%}",
                f"{row.mixing_ratio:.2f}" if staged else "",
                f"{row.waiting} for env {row.waiting_for}" if row.waiting else "",
                (row.missing or _measured(row)) if current else _measured(row),
                style="bold" if current else "dim",
            )
        speed = self._steps_per_s.value
        left_s = max(0, self._total - report.env_steps) / speed if speed else 0.0
        timing = report.timing
        facts = Text(
            f"{report.env_steps:,} of at most {self._total:,} env steps · {speed:,.0f} steps/s"
            f" · at most {_duration(left_s)} left\n"
            f"return {_return(report)} · entropy {report.entropy:.2f}"
            f" · directives applied {timing.applied}/{timing.published}"
            f" · loop lag p99 {1000 * timing.loop_lag_p99_s:.1f} ms{_errors(report)}"
        )
        for warning in self._warnings:
            facts.append(f"\nwarning: {warning}", "yellow")
        bar = ProgressBar(total=self._total, completed=report.env_steps)
        return Panel(Group(table, Text(), bar, facts), title=Text(self._title))


def evaluation_line(evaluation: EvalReport) -> str:
    """What an evaluation found, in one line."""
    stages = "  ".join(
        f"{row.stage} {row.success_rate:.0%} ({row.low:.0%} … {row.high:.0%}), return {row.mean_return:.3g}"
        for row in evaluation.stages
    )
    return f"evaluated  @ {evaluation.env_steps:,}: {stages}{'  (best)' if evaluation.best else ''}"


def _progress(row: StageReport, says_success: bool) -> str:
    """A stage's success and what else is measured of it, in a few words; nothing where nothing is known."""
    known = [f"{row.success_rate:4.0%}"] if says_success else []
    known += [_measured(row)] if _measured(row) else []
    return " ".join((row.name, *known)) if known else ""


def _known(row: StageReport, run: Run) -> str:
    """As `_progress`, in the summary's words."""
    success = f"success {row.success_rate:4.0%} of the newest {row.outcomes}, " if run.says_success else ""
    return success + (f"{_measured(row)}, " if _measured(row) else "")


def _return(report: Report) -> str:
    """Mean return of the update's episodes."""
    return "–" if report.episode_return is None else f"{report.episode_return:.3g}"


def _errors(report: Report) -> str:
    """How many episodes of the update failed with an error of their env, and how many workers were lost, if any."""
    counts = (("env error", sum(report.env_errors.values())), ("lost worker", report.worker_losses))
    return "".join(f"  {count} {what}{'s' * (count > 1)}" for what, count in counts if count)


def _staged(report: Report) -> bool:
    """Whether the strategy has a current stage."""
    return any(row.name == report.stage for row in report.stages)


def _drawn(report: Report) -> str:
    """What episodes are drawn from, in a few characters."""
    if _staged(report):
        return f"mix {report.mixing_ratio:.2f}"
    return "draws " + "/".join(f"{100 * row.share:.0f}" for row in report.stages)


def _measured(row: StageReport) -> str:
    """Of a stage that something else than success moves on: how far it is."""
    if row.measure == "success" or row.value is None or row.threshold is None:
        return ""
    if row.measure == "steps" and not row.value:  # not entered yet
        return ""
    return f"{row.measure} {row.value:,.6g} of {row.threshold:,.6g}"


def _waiting(report: Report) -> str:
    """Outcomes of the current stage that an older episode has held back for long, if there are any."""
    for row in report.stages:
        if row.name == report.stage and row.waiting >= MANY_WAITING:
            return f"  {row.waiting} outcomes wait for env {row.waiting_for}"
    return ""


class Smooth:
    """A mean that forgets: the newest value weighs a tenth."""

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, value: float) -> float:
        self.value = value if self.value == 0 else 0.9 * self.value + 0.1 * value
        return self.value


def summary_lines(summary: Summary, run: Run) -> list[str]:
    """Why the run ended, the stages' timeline, success, speed, directives, and where all that lies."""
    ended = {
        "solved": f"solved at {summary.solved_at or 0:,} env steps",
        "steps": f"the budget is spent: {summary.env_steps:,} env steps",
        "stopped": f"stopped at {summary.env_steps:,} env steps",
    }[summary.reason]
    counts = f"{summary.updates:,} PPO updates, {summary.episodes:,} episodes"
    timeline = " → ".join(f"{entry.stage} @ {entry.env_steps:,}" for entry in summary.timeline)
    lag_ms = 1000 * summary.loop_lag_p99_s
    return [
        "",
        f"{ended}: {counts}, {_duration(summary.wall_s)}",
        f"  stages     {timeline}  (entered at env step)",
        *(f"  {row.name:<10} {_known(row, run)}{row.episodes:,} episodes" for row in summary.stages),
        *([f"  return     {_return(run.last_report)} (mean of the last update)"] if run.last_report else []),
        f"  speed      {summary.steps_per_s:,.0f} env steps/s; event loop lag p99 {lag_ms:.1f} ms",
        f"  directives {summary.published} published, {summary.applied} applied by every worker",
        *([f"  {evaluation_line(run.last_evaluation).strip()}"] if run.last_evaluation else []),
        *(f"  env error  {line}" for line in run.env_errors.lines()),
        *(f"  workers    {line}" for line in run.worker_losses.lines()),
        *(f"  warning    {warning}" for warning in run.warnings),
        f"  run        {run.folder.path}",
    ]


def print_table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns, the same on a terminal and in a file."""
    print("\n".join(table_lines(headings, rows)))


def table_lines(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table with aligned columns."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(headings, *rows)]
    return [
        "  ".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths)).rstrip()
        for row in (headings, *rows)
    ]


def _title(run: Run) -> str:
    config = run.config
    workers = run.envs.num_workers
    where = f"{workers} worker{'s' * (workers > 1)}" if config.backend == "process" else "this process"
    again = f", resumed at {run.env_steps:,} env steps" if run.env_steps else ""
    return f"{config.preset or config.env} · seed {config.seed} · {config.num_envs} envs in {where}{again}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
