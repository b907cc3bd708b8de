"""Rounds, interleaving, medians, tables, plots: what all benchmarks share.

Contenders take turns, round by round, in one run: what the machine does meanwhile hits all of them. Only ratios
measured this way mean anything; they are taken round by round, then their median.
"""
# edge: starts contenders' processes, prints, writes files; statistics and tables are pure functions

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import tyro

from benchmarks.contenders import CONTENDERS
from benchmarks.workloads import find

__all__ = ["Failed", "Floor", "Options", "Process", "Report", "Series", "Table", "interleave", "ratio"]

PATIENCE_S = 2.0  # after a signal, before another one is taken to mean it
OPEN_LIMIT_S = 120.0  # the slowest peer that we know opens 64 processes in half of that
SPARE_BYTES = 2 << 30  # memory that is left alone
CHILD_BYTES = 45 << 20  # what one more child is expected to take


# -- pure: numbers and text -----------------------------------------------------------------------------------------


@dataclass
class Series:
    """What one contender did in one workload: a value per round, or why there is none."""

    workload: str
    contender: str
    title: str
    unit: str
    values: list[float] = field(default_factory=list)
    status: str = "ok"
    """ok, missing (not installed), unfit (cannot do this workload), crashed, skipped (not enough memory)."""
    note: str = ""
    parallel: bool = True
    extra: dict[str, list[float]] = field(default_factory=dict)
    """Other figures per round."""

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def worst_to_best(self) -> tuple[float, float] | None:
        """Smallest and largest value."""
        return (min(self.values), max(self.values)) if self.values else None


def ratio(over: Series | None, under: Series | None) -> float | None:
    """Median over the rounds that both took part in of over ÷ under; None if there is none."""
    if over is None or under is None:
        return None
    pairs = [a / b for a, b in zip(over.values, under.values) if b]
    return statistics.median(pairs) if pairs else None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    if not values:
        raise ValueError("a percentile of nothing")
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * len(ordered) * 1e6) // 1_000_000) - 1)]


def best(series: Iterable[Series]) -> Series | None:
    """The one with the highest median, of those that ran."""
    ran = [one for one in series if one.values]
    return max(ran, key=lambda one: one.median or 0.0, default=None)


@dataclass(frozen=True)
class Floor:
    """What must be reached; `measured` is None where it could not be measured."""

    name: str
    bound: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def row(self) -> list[str]:
        sign = "≤" if self.at_most else "≥"
        verdict = {True: "yes", False: "**no**", None: "not measured"}[self.met]
        return [self.name, f"{sign} {figure(self.bound)}", figure(self.measured), verdict]


def figure(value: float | None) -> str:
    """Three significant digits; thousands apart."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    digits = max(0, 2 - _exponent(value))
    return f"{value:.{digits}f}"


def _exponent(value: float) -> int:
    exponent = 0
    size = abs(value)
    while size >= 10:
        size, exponent = size / 10, exponent + 1
    while 0 < size < 1:
        size, exponent = size * 10, exponent - 1
    return exponent


@dataclass
class Table:
    """Rows under a heading, as Markdown."""

    heading: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"### {self.heading}", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("|---" + "|--:" * (len(self.columns) - 1) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"


def series_table(heading: str, series: Sequence[Series]) -> Table:
    """Median, spread, share of the limit, and how many times the contender our lockstep is."""
    by_name = {one.contender: one for one in series}
    unit = series[0].unit if series else ""
    table = Table(heading, ["contender", f"{unit}, median", "min – max", "÷ limit", "ours ÷ it", "rounds"])
    if "limit" not in by_name:
        table.columns = [c for c in table.columns if c != "÷ limit"]
    for one in sorted(series, key=lambda s: -(s.median or 0.0)):
        name = f"{one.title} ({one.note})" if one.note and one.status == "ok" else one.title
        if one.worst_to_best is None:
            row = [name, f"*{one.status}*: {one.note}".replace("|", "/"), "", "", "", ""]
        else:
            low, high = one.worst_to_best
            share = ratio(one, by_name.get("limit")) if one.contender != "limit" else 1.0
            times = ratio(by_name.get("ours"), one) if one.contender != "limit" else None
            spread = f"{figure(low)} – {figure(high)}"
            row = [name, figure(one.median), spread, figure(share), figure(times), str(len(one.values))]
        if "limit" not in by_name:
            del row[3]
        table.rows.append(row)
    return table


def floors_table(floors: Sequence[Floor]) -> Table:
    return Table("Floors", ["what", "must be", "measured", "met"], [floor.row() for floor in floors])


# -- the contenders' processes ---------------------------------------------------------------------------------------


class Failed(Exception):
    """A contender gave no answer; `status` as in `Series`."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Process:
    """A contender in a process group of its own: whatever it does, the benchmark goes on."""

    def __init__(self, contender: str, module: str = "benchmarks.contenders") -> None:
        self.contender = contender
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, contender],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip

    def ask(self, do: str, *, limit_s: float = OPEN_LIMIT_S, **arguments: Any) -> dict[str, Any]:
        """Raises Failed if it says so, dies, or does not answer in time."""
        self.tell(do, **arguments)
        return self.answer(do, limit_s)

    def tell(self, do: str, **arguments: Any) -> None:
        """Ask without waiting; `answer` comes next. Raises Failed if it is dead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed("crashed", self._last_words()) from None

    def answer(self, do: str, limit_s: float = OPEN_LIMIT_S) -> dict[str, Any]:
        """To what was asked last. Raises as `ask`."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s)
        if not ready:
            raise Failed("crashed", f"no answer to {do!r} within {limit_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise Failed("crashed", self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            raise Failed(answer["status"], answer["why"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        code = self._process.poll()
        return f"exit status {code}: {lines[-1][:160] if lines else 'it said nothing'}"

    def end(self) -> None:
        """Ask it to close; then kill what is left of its group."""
        with contextlib.suppress(Failed, OSError):
            self.ask("close", limit_s=20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()
        self._log.close()


def available_bytes() -> int:
    """Memory that can be had without swapping: the machine's, and this control group's."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def check_memory(children: int) -> None:
    """Raise Failed unless there is room for so many children."""
    need, have = children * CHILD_BYTES + SPARE_BYTES, available_bytes()
    if children and have < need:
        raise Failed("skipped", f"{children} processes need {need >> 20} MB, {have >> 20} MB are free")


# -- rounds ------------------------------------------------------------------------------------------------------------


@dataclass
class Turn:
    """A contender and what it does when its turn comes: the value of this round."""

    series: Series
    take: Callable[[int], float]
    process: Process | None = None
    rounds: int | None = None
    """A slow one takes part in so many rounds only."""


def interleave(turns: Sequence[Turn], rounds: int, say: Callable[[str], None]) -> None:
    """Everyone's turn, then the next round; the order moves on by one, so nobody is always first.

    Whoever fails is out, and its series says why.
    """
    for number in range(rounds):
        shift = number % max(1, len(turns))
        for turn in [*turns[shift:], *turns[:shift]]:
            series = turn.series
            if series.status != "ok" or (turn.rounds is not None and number >= turn.rounds):
                continue
            try:
                series.values.append(turn.take(number))
            except Failed as failure:
                series.status, series.note = failure.status, failure.why
                say(f"{series.workload}: {series.title}: {failure.status}: {failure.why}")
        done = [f"{t.series.contender} {figure(t.series.values[-1])}" for t in turns if t.series.values]
        say(f"{turns[0].series.workload if turns else ''} round {number + 1}/{rounds}: {', '.join(done)}")


def opened(names: Sequence[str], workload: str, children: Mapping[str, int], unit: str,
           say: Callable[[str], None]) -> list[tuple[Series, Process | None]]:  # fmt: skip
    """Every contender with its envs open, or its series with the reason why not. Imports run side by side."""
    processes = [Process(name) for name in names]
    for started in processes:
        with contextlib.suppress(Failed):  # no answer will come, and that says why
            started.tell("import_all")
    found: list[tuple[Series, Process | None]] = []
    for name, started in zip(names, processes):
        kind = CONTENDERS[name]
        series = Series(workload, name, kind.title, unit, note=kind.note, parallel=kind.parallel)
        try:
            started.answer("import_all")
            check_memory(children.get(name, 0))
            started.ask("open", workload=workload)
            found.append((series, started))
        except Failed as failure:
            series.status, series.note = failure.status, failure.why
            say(f"{workload}: {series.title}: {failure.status}: {failure.why}")
            started.end()
            found.append((series, None))
    return found


# -- the report --------------------------------------------------------------------------------------------------------


@dataclass
class Options:
    """What every benchmark takes."""

    rounds: int = 5
    """Rounds; each contender has one turn in each."""
    seconds: float = 1.0
    """Seconds of a turn."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    plot: Path | None = None
    """Write a bar chart to this PNG."""


A = TypeVar("A", bound=Options)


def end_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM end this process as `sys.exit` does: what it has started ends with it.

    One that follows at once would cut that short, and counts for nothing; a later one ends it there and then.
    """

    def end(number: int, frame: object) -> None:
        since = time.monotonic()

        def again(later: int, frame: object) -> None:
            if time.monotonic() - since > PATIENCE_S:
                os._exit(128 + later)

        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, again)
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def parse(kind: type[A], name: str) -> A:
    """The command line of a benchmark, which a signal ends together with its contenders."""
    end_on_signals()
    return tyro.cli(kind, prog=f"python -m benchmarks.{name}")


def check_workloads(names: Iterable[str]) -> None:
    """End with one line if one of them is unknown, before anything is measured."""
    try:
        for name in names:
            find(name)
    except ValueError as error:
        sys.exit(str(error))


@dataclass
class Report:
    """What one benchmark measured."""

    benchmark: str
    options: dict[str, Any]
    began: float = field(default_factory=time.monotonic)
    series: list[Series] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "machine": machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "took_s": time.monotonic() - self.began,
            "options": {key: str(v) if isinstance(v, Path) else v for key, v in self.options.items()},
            "series": [
                {**asdict(one), "median": one.median, "min": min(one.values, default=None),
                 "max": max(one.values, default=None)}
                for one in self.series
            ],
            "floors": [{**asdict(floor), "met": floor.met} for floor in self.floors],
            "tables": [asdict(table) for table in self.tables],
        }  # fmt: skip

    def finish(self, options: Options) -> None:
        """Print the tables; write the files that were asked for."""
        facts = machine()
        print(f"## {self.benchmark}\n")
        cpus = f"{facts['cpus']} CPUs ({facts['cpu']})"
        print(f"{cpus}, Python {facts['python']}; {options.rounds} rounds of {options.seconds:g} s; "
              f"{time.monotonic() - self.began:.0f} s in all; load {os.getloadavg()[0]:.1f}.\n"
              f"{versions()}\n")  # fmt: skip
        for table in self.tables:
            print(table.markdown())
        if self.floors:
            print(floors_table(self.floors).markdown())
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        if options.plot is not None:
            options.plot.parent.mkdir(parents=True, exist_ok=True)
            bar_chart(self.benchmark, self.series, options.plot)


def say(line: str) -> None:
    """Progress, where it does not mix with the tables."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": cpu,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


PACKAGES = ("gymnasium", "stable-baselines3", "tianshou", "torchrl", "envpool", "minigrid", "numpy", "torch")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> str:
    return ", ".join(f"{name} {_version(name) or 'not installed'}" for name in PACKAGES) + "."


def bar_chart(title: str, series: Sequence[Series], path: Path) -> None:
    """One panel per workload: medians, with whiskers from min to max; who did not run says why."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(one.workload for one in series))
    groups = [[one for one in series if one.workload == name] for name in names]
    heights = [0.35 * len(group) + 0.9 for group in groups]
    chart, axes = pyplot.subplots(
        len(groups), 1, figsize=(9, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for group, name, panel in zip(groups, names, axes[:, 0]):
        ordered = sorted(group, key=lambda one: one.median or 0.0)
        for place, one in enumerate(ordered):
            middle = one.median
            if middle is None:
                panel.text(0, place, f" {one.status}", va="center", fontsize=8, color="0.4")
                continue
            low, high = one.worst_to_best or (middle, middle)
            colour = (
                "C0" if one.contender.startswith("ours") else "0.35" if one.contender == "limit" else "0.7"
            )
            panel.barh(
                place, middle, color=colour, xerr=[[middle - low], [high - middle]], error_kw={"lw": 0.8}
            )
            panel.text(middle, place, f" {figure(middle)}", va="bottom", fontsize=8)
        panel.set_yticks(range(len(ordered)), [one.title for one in ordered], fontsize=8)
        panel.set_title(f"{name} ({group[0].unit})", fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.12)
        panel.set_ylim(-0.6, len(ordered) - 0.4)
    chart.suptitle(title, fontsize=10)
    chart.savefig(path, dpi=120)
    pyplot.close(chart)
