"""`python -m benchmarks.versions COMMIT`: the working tree beside another commit, in turns, in one run.

Two figures that a busy machine disturbs little. CPU time of the process tree per executed step, this tree ÷ the other:
turns alternate; the median of the ratios is given with its 80 % bootstrap interval. And `--calls`: how many functions
of the project one command and one turn of training call, counted, not timed.
"""
# edge: checks a commit out into a temporary worktree, starts one process per version, prints a Markdown table

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.harness import percentile

ROOT = Path(__file__).parents[1]
WORKLOADS = ("cartpole-lockstep", "cartpole-first", "frozenlake-lockstep")


@dataclass(frozen=True)
class Arguments:
    """CPU time per executed step against another commit."""

    commit: Annotated[str, tyro.conf.Positional]
    """What to compare with: a commit, branch or tag."""
    turns: int = 30
    """Turns of each version and workload."""
    seconds: float = 0.3
    """Length of a turn."""
    workloads: tuple[str, ...] = WORKLOADS
    """Which."""
    calls: bool = False
    """Count calls of project functions instead."""


class Version:
    """One checkout's process: it steps envs on request and reports executed steps and CPU time."""

    def __init__(self, root: Path, *workload: str) -> None:
        script = Path(__file__).with_name("version_child.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(root), *workload],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        )  # fmt: skip
        self.ask()  # it has opened its envs

    def ask(self, request: str = "") -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if request:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"a version's process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate("")


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary worktree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "other"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", str(path), commit], cwd=ROOT, check=True
        )
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True)


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """The 80 % percentile-bootstrap interval of the median (Efron 1979), always the same for the same values."""
    generator = random.Random(0)
    medians = [statistics.median(generator.choices(values, k=len(values))) for _ in range(2000)]
    return percentile(medians, 0.1), percentile(medians, 0.9)


def compare(arguments: Arguments, other: Path) -> None:
    print(f"CPU time of the process tree per executed step, this tree ÷ {arguments.commit};")
    print(f"{arguments.turns} alternating turns of {arguments.seconds} s\n")
    print("| workload | median ratio | 80 % interval | here, µs | there, µs | steps/s, here ÷ there |")
    print("|---|---|---|---|---|---|")
    for workload in arguments.workloads:
        here, there = Version(ROOT, workload), Version(other, workload)
        ratios: list[float] = []
        cost: dict[Version, list[float]] = {here: [], there: []}
        rate: dict[Version, list[float]] = {here: [], there: []}
        for turn in range(arguments.turns + 1):
            for version in (here, there) if turn % 2 else (there, here):
                answer = version.ask(str(arguments.seconds))
                cost[version].append(answer["cpu_s"] / answer["steps"] * 1e6)
                rate[version].append(answer["steps"] / answer["wall_s"])
        for values in (*cost.values(), *rate.values()):
            del values[0]  # the turn that warms up
        ratios = [a / b for a, b in zip(cost[here], cost[there])]
        low, high = interval_of_median(ratios)
        rates = statistics.median([a / b for a, b in zip(rate[here], rate[there])])
        print(
            f"| {workload} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} "
            f"| {statistics.median(cost[here]):.2f} | {statistics.median(cost[there]):.2f} | {rates:.3f} |",
            flush=True,
        )
        here.close()
        there.close()


def count(arguments: Arguments, other: Path) -> None:
    print(f"Calls of project functions, this tree and {arguments.commit}\n")
    print("| per | here | there |")
    print("|---|---|---|")
    for kind in ("calls-command", "calls-training"):
        here, there = Version(ROOT, kind), Version(other, kind)
        counts, before = here.ask("count"), there.ask("count")
        for name in counts:
            print(f"| {name} | {counts[name]:.1f} | {before[name]:.1f} |", flush=True)
        here.close()
        there.close()


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.versions")
    if wrong := [name for name in arguments.workloads if name not in WORKLOADS]:
        sys.exit(f"no workload {wrong[0]!r}: there are {', '.join(WORKLOADS)}")
    with checkout(arguments.commit) as other:
        (count if arguments.calls else compare)(arguments, other)


if __name__ == "__main__":
    main()
