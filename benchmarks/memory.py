"""`python -m benchmarks.memory`: private memory of each worker, while the envs are stepped."""
# edge: runs contenders, prints Markdown tables

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks import harness
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import Floor, Options, Process, Report, Series, Table, Turn

CHOSEN = ("ours", "gymnasium", "sb3", "sb3-forkserver", "tianshou", "torchrl")


@dataclass
class Arguments(Options):
    """Private memory (what ends with the process): clean and dirty pages that no other process shares."""

    workloads: tuple[str, ...] = ("cartpole-8", "minigrid-8")
    """Which; peers have one process per env, so that 8 workers stand against 8."""
    num_workers: int = 8
    """Ours: workers."""


def measure(name: str, arguments: Arguments) -> list[Series]:
    """Megabytes per worker, after each turn of stepping."""
    turns: list[Turn] = []
    made: list[Series] = []
    try:
        for contender in CHOSEN:
            kind = CONTENDERS[contender]
            series = Series(
                name, contender, kind.title.replace(", lockstep", ""), "MB per worker", note=kind.note
            )
            made.append(series)
            process = Process(contender)
            turn = Turn(series, _turn(series, process, arguments.seconds), process)
            turns.append(turn)
            try:
                harness.check_memory(4 * arguments.num_workers)
                process.ask("open", workload=name, num_workers=arguments.num_workers)
            except harness.Failed as failure:
                series.status, series.note = failure.status, failure.why
                harness.say(f"{name}: {series.title}: {failure.status}: {failure.why}")
        harness.interleave(turns, arguments.rounds, harness.say)
    finally:
        for turn in turns:
            if turn.process is not None:
                turn.process.end()
    return made


def _turn(series: Series, process: Process, seconds: float) -> Callable[[int], float]:
    def take(number: int) -> float:
        process.ask("run", seconds=min(seconds, 0.5))
        answer = process.ask("memory")
        sizes = [float(size) / 1e6 for size in answer["bytes"]]
        series.extra.setdefault("largest", []).append(max(sizes))
        series.extra.setdefault("workers", []).append(len(sizes))
        series.extra.setdefault("parent", []).append(answer["parent_bytes"] / 1e6)
        middle: float = statistics.median(sizes)
        return middle

    return take


def main() -> None:
    arguments = harness.parse(Arguments, "memory")
    harness.check_workloads(arguments.workloads)
    report = Report("memory", asdict(arguments))
    for name in arguments.workloads:
        found = measure(name, arguments)
        report.series += found
        table = Table(
            f"Private memory, {name}",
            ["contender", "MB per worker, median", "min – max", "largest worker", "workers", "parent MB"],
        )
        for one in found:
            if one.worst_to_best is None:
                table.rows.append([one.title, f"*{one.status}*: {one.note}", "", "", "", ""])
                continue
            low, high = one.worst_to_best
            note = f" ({one.note})" if one.note else ""
            table.rows.append([
                one.title + note, harness.figure(one.median), f"{harness.figure(low)} – {harness.figure(high)}",
                harness.figure(max(one.extra["largest"])), harness.figure(one.extra["workers"][-1]),
                harness.figure(one.extra["parent"][-1]),
            ])  # fmt: skip
            if one.contender == "ours":
                most = max(one.extra["largest"])
                report.floors.append(
                    Floor(f"{name}: private MB of the largest worker", 60, most, at_most=True)
                )
        report.tables.append(table)
    report.finish(arguments)


if __name__ == "__main__":
    main()
