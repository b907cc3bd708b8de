"""`python -m benchmarks.training`: PPO end to end, executed env steps per second."""
# edge: runs learners, prints Markdown tables

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from benchmarks import harness
from benchmarks.harness import Floor, Options, Process, Report, Series, Table, Turn, ratio
from benchmarks.learners import LEARNERS

FAMILIES: dict[str, tuple[str, ...]] = {
    "ours": ("ours-unroll", "ours", "ours-first", "ours-inline"),
    "sb3": ("sb3-dummy", "sb3-subproc"),
    "cleanrl": ("cleanrl-sync", "cleanrl-async"),
}
# 0: as the trainer chooses itself; one for vectors, with images all CPUs while it learns
OUR_THREADS = (0, 2)
FLOORS = {"cartpole": 1.7, "minigrid": 1.4}


@dataclass
class Arguments(Options):
    """PPO: 32 envs × 128 steps, 4 epochs, 4 minibatches, two tanh layers of 64 (MiniGrid: a small CNN before them).

    The first round tries every family's vector envs and torch thread counts; its best goes on to the others.
    """

    updates: int = 2
    """Updates of a turn that are timed, after one that is not. Half as many of MiniGrid: its env is slow."""
    envs: tuple[Literal["cartpole", "minigrid"], ...] = ("cartpole", "minigrid")
    threads: tuple[int, ...] = (1, 2)
    """Of torch, for the peers; ours is tried with what it chooses itself, and with two."""


def _turn(series: Series, process: Process, env: str, updates: int, threads: int) -> Callable[[int], float]:
    def take(number: int) -> float:
        timed = max(1, updates // 2) if env == "minigrid" else updates
        answer = process.ask("train", env=env, updates=timed, threads=threads, limit_s=240)
        for key, value in answer.items():
            series.extra.setdefault(key, []).append(value)
        return float(answer["steps"] / answer["seconds"])

    return take


def measure(env: str, arguments: Arguments) -> tuple[list[Series], dict[str, Series]]:
    """All variants once, then the best of each family in turns. Every series, and the best by family."""
    everything: list[Series] = []
    champions: dict[str, Series] = {}
    finals: list[Turn] = []
    processes: list[Process] = []
    try:
        trials: dict[str, list[Turn]] = {}
        for family, names in FAMILIES.items():
            for name in names:
                process = Process(name, "benchmarks.learners")
                processes.append(process)
                for threads in OUR_THREADS if family == "ours" else arguments.threads:
                    chosen = f"{threads} torch thread{'s' * (threads > 1)}" if threads else "default threads"
                    title = f"{LEARNERS[name].title}, {chosen}"
                    series = Series(env, f"{name}-{threads}", title, "steps/s")
                    take = _turn(series, process, env, arguments.updates, threads)
                    trials.setdefault(family, []).append(Turn(series, take, process))
        turns = [turn for family in trials.values() for turn in family]
        harness.interleave(turns, 1, harness.say)
        everything = [turn.series for turn in turns]
        for family, mine in trials.items():
            top = harness.best(turn.series for turn in mine)
            if top is not None:
                champions[family] = top
                finals += [turn for turn in mine if turn.series is top]
        harness.interleave(finals, arguments.rounds - 1, harness.say)
    finally:
        for process in processes:
            process.end()
    return everything, champions


def main() -> None:
    arguments = harness.parse(Arguments, "training")
    report = Report("training", asdict(arguments))
    for env in arguments.envs:
        found, champions = measure(env, arguments)
        report.series += found
        ours = champions.get("ours")
        table = Table(
            f"PPO on {env}: executed env steps per second",
            ["learner", "steps/s, median", "min – max", "ours ÷ it", "collecting", "learning", "parameters",
             "rounds"],
        )  # fmt: skip
        for one in sorted(found, key=lambda s: -(s.median or 0.0)):
            if one.worst_to_best is None:
                table.rows.append([one.title, f"*{one.status}*: {one.note}", "", "", "", "", "", ""])
                continue
            low, high = one.worst_to_best
            share = statistics.median(
                c / s for c, s in zip(one.extra["collect_s"], one.extra["seconds"], strict=True)
            )
            table.rows.append([
                f"**{one.title}**" if one in champions.values() else one.title, harness.figure(one.median),
                f"{harness.figure(low)} – {harness.figure(high)}", harness.figure(ratio(ours, one)),
                f"{share:.0%}", f"{1 - share:.0%}", f"{one.extra['parameters'][0]:,.0f}", str(len(one.values)),
            ])  # fmt: skip
        report.tables.append(table)
        for family in ("sb3", "cleanrl"):
            rival = champions.get(family)
            name = f"{env}: ours ÷ {rival.title}" if rival else f"{env}: ours ÷ {family}"
            report.floors.append(Floor(name, FLOORS[env], ratio(ours, rival)))
    report.finish(arguments)


if __name__ == "__main__":
    main()
