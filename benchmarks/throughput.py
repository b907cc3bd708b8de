"""`python -m benchmarks.throughput`: executed steps per second, of every contender and of the limit."""
# edge: runs contenders, prints Markdown tables

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

from benchmarks import harness
from benchmarks.harness import Floor, Options, Process, Report, Series, Table, Turn, ratio
from benchmarks.workloads import WORKLOADS, find

Contender = Literal[
    "limit", "told", "bare", "bare-first", "ours", "ours-first", "gymnasium", "sb3", "tianshou", "tianshou-async",
    "torchrl", "torchrl-grouped", "gymnasium-sync", "envpool",
]  # fmt: skip
ALL: tuple[str, ...] = get_args(Contender)
CONTENDERS_OF: dict[str, tuple[str, ...]] = {
    "cartpole-32": ALL,
    # One process per env: 256 of them; those that import torch in each do not fit a small machine.
    "cartpole-256": ("limit", "told", "bare", "bare-first", "ours", "ours-first", "gymnasium", "sb3", "tianshou",
                     "torchrl-grouped", "gymnasium-sync", "envpool"),
    "minigrid-32": tuple(name for name in ALL if name != "envpool"),
    "image-32": tuple(name for name in ALL if name != "envpool"),
    "tail-32": tuple(name for name in ALL if name not in ("envpool", "gymnasium-sync", "torchrl-grouped")),
}  # fmt: skip
Name = Literal["cartpole-32", "cartpole-256", "minigrid-32", "image-32", "tail-32", "null"]
NULL = ("ours", "ours-first", "gymnasium", "told", "bare")
# of null envs in over 16 workers, unless others are asked for: to start them takes a while
MANY = ("ours", "gymnasium")
COSTS = ("parent_cpu_s", "children_cpu_s", "steps")  # of a turn, beside its steps/s
PER_ENV = {"gymnasium", "sb3", "tianshou", "tianshou-async", "torchrl"}  # one process per env


@dataclass
class Arguments(Options):
    """Steps per second, side by side."""

    workloads: tuple[Name, ...] = get_args(Name)
    """Which; `null` is a null env per worker, for each of `null_workers`."""
    contenders: tuple[Contender, ...] = ()
    """Only these; default: all that a workload can take."""
    null_workers: tuple[int, ...] = (1, 4, 16, 64, 128)
    """W; sizes that memory does not allow are reported as skipped."""


def measure(name: str, contenders: tuple[str, ...], options: Options) -> list[Series]:
    """All contenders of a workload, in turns."""
    workload = find(name)
    children = {
        one: workload.num_envs if one in PER_ENV else workload.num_workers
        for one in contenders
        if one not in ("gymnasium-sync", "ours-inline", "envpool")
    }
    pairs = harness.opened(contenders, name, children, "steps/s", harness.say)
    try:
        turns: list[Turn] = []
        for series, process in pairs:
            if process is not None:
                turns.append(Turn(series, _turn(series, process, options.seconds), process))
        for turn in turns:  # caches, branch predictors, lazy imports: not counted
            if turn.process is not None:
                _try(turn, partial(turn.process.ask, "run", seconds=min(0.3, options.seconds)))
        harness.interleave(turns, options.rounds, harness.say)
    finally:
        for _, process in pairs:
            if process is not None:
                process.end()
    return [series for series, _ in pairs]


def _turn(series: Series, process: Process, seconds: float) -> Callable[[int], float]:
    def take(number: int) -> float:
        answer = process.ask("run", seconds=seconds, limit_s=seconds + 60)
        for key in ("steps", "calls", "parent_cpu_s", "children_cpu_s"):
            series.extra.setdefault(key, []).append(float(answer[key]))
        return float(answer["steps"] / answer["seconds"])

    return take


def _try(turn: Turn, warm_up: Callable[[], Any]) -> None:
    try:
        warm_up()
    except harness.Failed as failure:
        turn.series.status, turn.series.note = failure.status, failure.why
        harness.say(f"{turn.series.workload}: {turn.series.title}: {failure.status}: {failure.why}")


def cpu_per_step(series: Series, who: str) -> float | None:
    """Microseconds of processor time per executed step (with one env per worker: per worker-command)."""
    seconds, steps = sum(series.extra.get(who, ())), sum(series.extra.get("steps", ()))
    return 1e6 * seconds / steps if steps else None


def cpu_ratio(over: Series | None, under: Series | None) -> float | None:
    """Median over the rounds of over ÷ under, in processor time of all processes per executed step."""
    if over is None or under is None:
        return None
    costs = [
        [(a + b) / steps for a, b, steps in zip(*(one.extra.get(key, ()) for key in COSTS))]
        for one in (over, under)
    ]
    pairs = [a / b for a, b in zip(*costs) if b]
    return statistics.median(pairs) if pairs else None


def null_table(found: dict[int, list[Series]]) -> Table:
    """Steps/s, and processor time per worker-command in the parent and in the children."""
    table = Table(
        "A null env in each of W workers",
        ["W, contender", "steps/s, median", "min – max", "ours ÷ it", "parent µs a command",
         "children µs a command", "sum"],
    )  # fmt: skip
    for size, series in found.items():
        ours = next((one for one in series if one.contender == "ours"), None)
        for one in series:
            if one.worst_to_best is None:
                table.rows.append([f"{size}, {one.title}", f"*{one.status}*: {one.note}", "", "", "", "", ""])
                continue
            low, high = one.worst_to_best
            parent, children = cpu_per_step(one, "parent_cpu_s"), cpu_per_step(one, "children_cpu_s")
            table.rows.append([
                f"{size}, {one.title}", harness.figure(one.median),
                f"{harness.figure(low)} – {harness.figure(high)}", harness.figure(ratio(ours, one)),
                harness.figure(parent), harness.figure(children),
                harness.figure((parent or 0) + (children or 0)),
            ])  # fmt: skip
    return table


def floors(found: dict[str, list[Series]], nulls: dict[int, list[Series]]) -> list[Floor]:
    """What this project promises, as measured."""

    def of(workload: str, contender: str) -> Series | None:
        return next((one for one in found.get(workload, ()) if one.contender == contender), None)

    def best_peer(workload: str) -> Series | None:
        return harness.best(
            one for one in found.get(workload, ()) if one.parallel and not one.contender.startswith("ours")
        )

    def against(workload: str, mine: str, other: str | None, bound: float) -> Floor:
        rival = best_peer(workload) if other is None else of(workload, other)
        name = (
            f"best peer ({rival.title})"
            if other is None and rival
            else "best peer"
            if rival is None
            else rival.title
        )
        label = {"ours": "lockstep", "ours-first": "first-N-ready"}[mine]
        return Floor(f"{workload}: {label} ÷ {name}", bound, ratio(of(workload, mine), rival))

    def processor_time(workload: str, mine: str, least: str) -> Floor:
        label = {"ours": "lockstep", "ours-first": "first-N-ready"}[mine]
        name = f"{workload}: CPU time per step, {label} ÷ the least from asyncio"
        return Floor(name, 1.35, cpu_ratio(of(workload, mine), of(workload, least)), at_most=True)

    result: list[Floor] = []
    for workload in ("cartpole-32", "cartpole-256", "minigrid-32", "image-32"):
        if workload in found:
            result.append(processor_time(workload, "ours", "bare"))
            result.append(processor_time(workload, "ours-first", "bare-first"))
    if "minigrid-32" in found:
        result.append(against("minigrid-32", "ours", None, 2.2))
    if "image-32" in found:
        result += [against("image-32", "ours", None, 1.5), against("image-32", "ours-first", None, 1.8)]
    if "tail-32" in found:
        result += [against("tail-32", "ours-first", "ours", 1.5), against("tail-32", "ours-first", None, 1.7)]
    costs: dict[int, float] = {}
    for size, series in nulls.items():
        by_name = {one.contender: one for one in series}
        mine = by_name.get("ours")
        if mine is not None and mine.values:
            parts = (cpu_per_step(mine, "parent_cpu_s"), cpu_per_step(mine, "children_cpu_s"))
            costs[size] = sum(part or 0.0 for part in parts)
    if 4 in costs and max(costs) > 4:
        name = f"null: CPU per worker-command at W = {max(costs)} ÷ that at W = 4"
        result.append(Floor(name, 1.3, costs[max(costs)] / costs[4], at_most=True))
    return result


def main() -> None:
    arguments = harness.parse(Arguments, "throughput")
    report = Report("throughput", asdict(arguments))
    found: dict[str, list[Series]] = {}
    nulls: dict[int, list[Series]] = {}
    for name in arguments.workloads:
        sizes = arguments.null_workers if name == "null" else (0,)
        for size in sizes:
            full = f"null-{size}" if name == "null" else name
            few = size > 16 and not arguments.contenders
            allowed = CONTENDERS_OF[name] if name != "null" else MANY if few else NULL
            chosen = tuple(one for one in allowed if not arguments.contenders or one in arguments.contenders)
            series = measure(full, chosen, arguments)
            report.series += series
            if name == "null":
                nulls[size] = series
            else:
                found[name] = series
                report.tables.append(harness.series_table(WORKLOADS[name].says, series))
    if nulls:
        report.tables.append(null_table(nulls))
    report.floors = floors(found, nulls)
    report.finish(arguments)


if __name__ == "__main__":
    main()
