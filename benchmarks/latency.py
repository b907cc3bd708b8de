"""`python -m benchmarks.latency`: one step's round trip, and what publishing while stepping costs."""
# edge: runs contenders, prints Markdown tables

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from benchmarks import harness
from benchmarks.harness import Failed, Floor, Options, Process, Report, Series, Table, Turn, percentile, ratio
from benchmarks.workloads import find

ROUND_TRIP = ("ours", "ours-inline", "gymnasium", "sb3", "tianshou", "torchrl")


@dataclass
class Arguments(Options):
    """Latency of a step, of `broadcast()`, and of its application."""

    rate: float = 500.0
    """Updates a second."""
    workers: tuple[int, ...] = (1, 16)
    """Round trips: a null env in each of so many workers."""
    workloads: tuple[str, ...] = ("cartpole-32", "image-32", "null-16")
    """Published to while stepping these."""
    payload_bytes: tuple[int, ...] = (64, 4096)
    """Sizes of what is published."""


def round_trips(workers: int, options: Options) -> tuple[list[Series], Table]:
    """Microseconds of one step of all envs: a null env in each worker."""
    name = f"null-{workers}"
    pairs = harness.opened(ROUND_TRIP, name, dict.fromkeys(ROUND_TRIP, workers), "µs", harness.say)
    tails: dict[str, list[float]] = {}

    def turn(series: Series, process: Process) -> Callable[[int], float]:
        def take(number: int) -> float:
            taken = process.ask("latencies", seconds=options.seconds)["seconds"]
            tails.setdefault(series.contender, []).append(1e6 * percentile(taken, 0.99))
            return 1e6 * percentile(taken, 0.5)

        return take

    try:
        turns = [
            Turn(series, turn(series, process), process) for series, process in pairs if process is not None
        ]
        harness.interleave(turns, options.rounds, harness.say)
    finally:
        for _, process in pairs:
            if process is not None:
                process.end()
    table = Table(
        f"One step of a null env in each of {workers} workers",
        ["contender", "p50 in µs, median", "min – max", "p99 in µs, median", "it ÷ ours"],
    )
    found = [series for series, _ in pairs]
    ours = next(one for one in found if one.contender == "ours")
    for one in sorted(found, key=lambda s: s.median or float("inf")):
        if one.worst_to_best is None:
            table.rows.append([one.title, f"*{one.status}*: {one.note}", "", "", ""])
            continue
        low, high = one.worst_to_best
        one.extra["p99"] = tails[one.contender]
        table.rows.append([
            one.title, harness.figure(one.median), f"{harness.figure(low)} – {harness.figure(high)}",
            harness.figure(statistics.median(one.extra["p99"])), harness.figure(ratio(one, ours)),
        ])  # fmt: skip
    return found, table


def publishing(arguments: Arguments) -> tuple[list[Series], Table, list[Floor]]:
    """Steps/s with and without updates, in turns; cost and latency of the updates."""
    table = Table(
        f"{arguments.rate:g} updates a second while stepping in lockstep",
        ["workload, payload", "broadcast() µs a worker: p50", "p99", "applied ms: p50", "p99",
         "worker-command ms: p50", "p99", "steps/s kept", "of what the publisher's clock alone leaves"],
    )  # fmt: skip
    floors: list[Floor] = []
    found: list[Series] = []
    for name in arguments.workloads:
        workers = find(name).num_workers
        quiet = Series(name, "ours-quiet", "no updates", "steps/s")
        clock = Series(name, "ours-clock", "a clock that publishes nothing", "steps/s")
        loud = {
            size: Series(name, f"ours-{size}", f"{arguments.rate:g} updates/s of {size} B", "steps/s")
            for size in arguments.payload_bytes
        }
        process = Process("ours")
        try:
            process.ask("open", workload=name)
            process.ask("run", seconds=0.3)
            turns = [
                Turn(quiet, partial(_publish, process, quiet, arguments.seconds, 0.0, 0)),
                Turn(clock, partial(_publish, process, clock, arguments.seconds, arguments.rate, None)),
            ]
            turns += [
                Turn(one, partial(_publish, process, one, arguments.seconds, arguments.rate, size))
                for size, one in loud.items()
            ]
            harness.interleave(turns, arguments.rounds, harness.say)
        except Failed as failure:  # none of them had a turn
            for one in (quiet, clock, *loud.values()):
                one.status, one.note = failure.status, failure.why
        finally:
            process.end()
        found += [quiet, clock, *loud.values()]
        for size, one in loud.items():
            label = f"{name}, {workers} workers, {size} B"
            kept = ratio(one, quiet)
            cost, wait = (
                f"{label}: broadcast() µs a worker, p50",
                f"{label}: applied p99 less one worker-command (p50), ms",
            )
            if not one.values or not one.extra["applied_s"]:
                table.rows.append([label, f"*{one.status}*: {one.note}", *[""] * 7])
                p50 = late = None
            else:
                costs = [1e6 * cost_s / workers for cost_s in one.extra.pop("costs_s")]
                applied = [1e3 * wait_s for wait_s in one.extra.pop("applied_s")]
                command = 1e3 * statistics.median(one.extra["command_p50_s"])
                p50, late = percentile(costs, 0.5), percentile(applied, 0.99) - command
                numbers = [
                    p50, percentile(costs, 0.99), percentile(applied, 0.5), percentile(applied, 0.99), command,
                    1e3 * statistics.median(one.extra["command_p99_s"]), kept, ratio(one, clock),
                ]  # fmt: skip
                table.rows.append([label, *map(harness.figure, numbers)])
            floors += [
                Floor(cost, 20, p50, at_most=True),
                Floor(wait, 1, late, at_most=True),
                Floor(f"{label}: steps/s kept", 0.95, kept),
            ]
    return found, table, floors


def _publish(
    process: Process, series: Series, seconds: float, rate: float, size: int | None, number: int
) -> float:
    answer = process.ask("call", method="updates", seconds=seconds, rate=rate, payload_bytes=size)
    series.extra.setdefault("costs_s", []).extend(answer["costs_s"])
    series.extra.setdefault("applied_s", []).extend(answer["applied_s"])
    for key in ("command_p50_s", "command_p99_s"):
        series.extra.setdefault(key, []).append(answer[key])
    return float(answer["steps"] / answer["seconds"])


def main() -> None:
    arguments = harness.parse(Arguments, "latency")
    harness.check_workloads(arguments.workloads)
    report = Report("latency", asdict(arguments))
    for workers in arguments.workers:
        series, table = round_trips(workers, arguments)
        report.series += series
        report.tables.append(table)
    series, table, report.floors = publishing(arguments)
    report.series += series
    report.tables.append(table)
    report.finish(arguments)


if __name__ == "__main__":
    main()
