"""`python -m benchmarks.start`: seconds from opening to the first observations of 64 envs."""
# edge: runs contenders, prints Markdown tables

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from benchmarks import harness
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import Floor, Options, Process, Report, Series, Table, Turn, ratio

PEERS = ("gymnasium", "sb3", "sb3-forkserver", "tianshou", "torchrl")
SLOW = {"sb3-forkserver", "torchrl"}  # one round is enough to see


@dataclass
class Arguments(Options):
    """Start-up. The libraries' imports in the parent are not counted, for anyone."""

    num_envs: int = 64
    workers: tuple[int, ...] = (2, 8)
    """Ours, in so many workers."""
    forkserver: bool = False
    """Also SB3 with its default start method, in which every child imports torch: a minute and a half."""
    rounds_of_all: int = 2
    """Rounds of the sizes other than 8 workers, and of the peers."""


def _turn(contender: str, workload: str, children: int, workers: int | None) -> Callable[[int], float]:
    def take(number: int) -> float:
        harness.check_memory(children)
        process = Process(contender)
        try:
            process.ask("import_all")
            return float(process.ask("open", workload=workload, num_workers=workers)["seconds"])
        finally:
            process.end()

    return take


def main() -> None:
    arguments = harness.parse(Arguments, "start")
    report = Report("start", asdict(arguments))
    name = f"cartpole-{arguments.num_envs}"
    turns: list[Turn] = []
    for workers in arguments.workers:
        for contender in ("ours", "start-limit"):
            title = f"{CONTENDERS[contender].title}, {workers} workers".replace(", lockstep", "")
            series = Series(name, f"{contender}-{workers}", title, "s")
            rounds = None if workers == 8 else arguments.rounds_of_all
            turns.append(Turn(series, _turn(contender, name, workers, workers), rounds=rounds))
    for contender in PEERS:
        if contender == "sb3-forkserver" and not arguments.forkserver:
            continue
        kind = CONTENDERS[contender]
        series = Series(name, contender, f"{kind.title}, {arguments.num_envs} workers", "s", note=kind.note)
        rounds = 1 if contender in SLOW else arguments.rounds_of_all
        turns.append(Turn(series, _turn(contender, name, arguments.num_envs, None), rounds=rounds))
    harness.interleave(turns, arguments.rounds, harness.say)

    report.series = [turn.series for turn in turns]
    by_name = {series.contender: series for series in report.series}
    table = Table(
        f"Seconds until the first reset of {arguments.num_envs} CartPoles returned",
        ["contender", "s, median", "min – max", "÷ bare interpreters", "rounds"],
    )
    for series in report.series:
        if series.worst_to_best is None:
            table.rows.append([series.title, f"*{series.status}*: {series.note}", "", "", ""])
            continue
        low, high = series.worst_to_best
        limit = by_name.get(series.contender.replace("ours-", "start-limit-"))
        over = ratio(series, limit) if limit is not series else None
        note = f" ({series.note})" if series.note else ""
        table.rows.append([
            series.title + note, harness.figure(series.median),
            f"{harness.figure(low)} – {harness.figure(high)}", harness.figure(over), str(len(series.values)),
        ])  # fmt: skip
    report.tables.append(table)
    if (eight := by_name.get("ours-8")) is not None:
        what = f"{arguments.num_envs} envs in 8 workers: seconds to the first reset"
        report.floors.append(Floor(what, 1.5, eight.median, at_most=True))
    report.finish(arguments)


if __name__ == "__main__":
    main()
