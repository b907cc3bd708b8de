"""`python -m benchmarks`: all of them, one after another; tables to stdout, JSON, tables and charts to a folder."""
# edge: starts the benchmarks as processes

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from benchmarks.harness import end_on_signals

Name = Literal["throughput", "latency", "start", "memory", "training"]
MOST = {"memory": 2}  # rounds: sizes hardly differ
SECONDS = {"throughput": 0.4, "latency": 0.5, "start": 1.0, "memory": 0.4, "training": 1.0}


@dataclass(frozen=True)
class Arguments:
    """Every benchmark of speed and size, in under 15 minutes on 2 cores."""

    out: Path = Path("bench-results")
    """Folder for NAME.json, NAME.md and NAME.png."""
    only: tuple[Name, ...] = get_args(Name)
    """Which."""
    rounds: int = 5
    """Rounds of each."""


def main() -> None:
    end_on_signals()
    arguments = tyro.cli(Arguments, prog="python -m benchmarks")
    arguments.out.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), []
    for name in arguments.only:
        target = arguments.out / name
        command = [
            sys.executable, "-m", f"benchmarks.{name}", "--rounds", str(min(arguments.rounds, MOST.get(name, 99))),
            "--seconds", str(SECONDS.get(name, 1.0)),
            "--json", f"{target}.json", "--plot", f"{target}.png",
        ]  # fmt: skip
        benchmark = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            tables, _ = benchmark.communicate()
        finally:  # after a signal: it ends its contenders, then itself
            benchmark.terminate()
            benchmark.wait()
        print(tables, flush=True)
        target.with_suffix(".md").write_text(tables, "utf-8")
        if benchmark.returncode:
            failed.append(name)
    print(f"{time.monotonic() - began:.0f} s in all; JSON, tables and charts are in {arguments.out}/")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
