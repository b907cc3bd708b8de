"""`python -m curriculum check | replay | explain`: look at levels and journals from the command line."""
# edge: argv, stdout, stderr, exit codes 0 (good), 1 (one clear message), 2 (usage)

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from curriculum.errors import CurriculumError
from curriculum.levels import LevelSet
from curriculum.replay import logged_runs, other_rules, replay
from curriculum.strategies.base import Decision
from curriculum.strategies.staged_progress import measured

__all__ = ["main"]


def _check(arguments: argparse.Namespace) -> int:
    levels = LevelSet.from_directory(arguments.directory)
    for number in range(len(levels)):
        levels[number]  # reads it, or raises
    for stage, generators in levels.counts().items():
        settings = levels.plan[stage] if levels.plan is not None else None
        rule = ""
        if settings is not None:
            what = "" if settings.measure == "success" else f"{settings.measure} "
            rule = f"{what}threshold {settings.threshold:g}, min_episodes {settings.min_episodes}"
        print(f"{stage:<16} {sum(generators.values()):>8} levels   {rule}")
        for name, count in generators.items():
            print(f"  {name:<14} {count:>8}")
    print(f"{len(levels)} levels in {len(levels.stages)} stages, all of them read and valid")
    return 0


def _counts(decision: Decision) -> str:
    counts = decision.counts
    if "length" not in counts:
        return ", ".join(f"{key} {value}" for key, value in counts.items())
    if "measure" in counts:
        return f"{measured(counts)}, passed over {counts['passed_over']}"
    k, length = counts["k"], counts["length"]
    rate = f"{k}/{length} = {k / length:.3f}" if length else "0/0"
    half = length // 2
    trend = ""
    if length >= 20:
        gain = (k - counts["first_half"]) / (length - half) - counts["first_half"] / half
        trend = f", trend {gain:+.3f}"
    return (
        f"success {rate} of {counts['threshold']:g}, {counts['n']} outcomes of {counts['min_episodes']}{trend}, "
        f"evidence {counts['statistic']}, passed over {counts['passed_over']}"
    )


def _explain(arguments: argparse.Namespace) -> int:
    runs = logged_runs(arguments.journal)
    for line, total, decisions in runs:
        if len(runs) > 1:
            print(f"line {line}: a run " + (f"goes on after {total} episodes" if total else "begins"))
        for decision in decisions:
            print(decision.describe())
            counts = _counts(decision)
            if counts:
                print(f"    {counts}")
            if decision.by is not None or decision.why is not None:
                print(f"    by {decision.by or 'nobody named'}: {decision.why or 'no reason given'}")
    print(f"{sum(len(decisions) for _, _, decisions in runs)} decisions")
    return 0


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key in ("rules", "window"):
        if getattr(arguments, key) is not None:
            changes[key] = getattr(arguments, key)
    for key, kind in (("threshold", float), ("min_episodes", int), ("floor", float)):
        given = getattr(arguments, key)
        if not given:
            continue
        flag = "--" + key.replace("_", "-")
        try:
            values = {name: kind(value) for name, _, value in (text.rpartition("=") for text in given)}
        except ValueError:
            number = "a number" if kind is float else "a whole number"
            raise ValueError(f"{flag}: expected {number}, or STAGE=X, got {' '.join(given)!r}") from None
        one = ["=" not in text for text in given]
        if any(one) and not all(one):
            raise ValueError(f"{flag}: expected one value for all stages, or STAGE=X for some, got both")
        changes[key] = kind(given[-1]) if any(one) else values
    for key in ("early", "trend"):
        if getattr(arguments, f"no_{key}"):
            changes[key] = False
    return changes


def _replay(arguments: argparse.Namespace) -> int:
    try:
        changes = _changes(arguments)
    except ValueError as error:
        print(f"curriculum replay: {error}", file=sys.stderr)
        return 2
    result = replay(arguments.journal)
    if not result.same:
        print(
            f"{arguments.journal}: the journal does not replay: it has {len(result.logged)} decisions, folding it "
            f"again gives {len(result.replayed)}",
            file=sys.stderr,
        )
        for name, decisions in (("logged", result.logged), ("replayed", result.replayed)):
            for decision in decisions:
                print(f"  {name:<9}{decision.describe()}", file=sys.stderr)
        return 1
    if not changes:
        for decision in result.logged:
            print(decision.describe())
        print(f"{result.total} episodes, {len(result.logged)} decisions: replayed exactly")
        return 0
    stays = other_rules(arguments.journal, changes)
    print(f"{'stage':<16} {'began after':>11}  {'logged':<36} other rules, on the same episodes")
    for stay in stays:
        print(f"{stay.stage:<16} {stay.began:>11}  {_end(stay.logged):<36} {_end(stay.other)}")
    settings = ", ".join(f"{key}={value}" for key, value in changes.items())
    print(f"other rules: {settings}. Each stay is judged from its own beginning, up to the first move only:")
    print(
        "the episodes after that were drawn under the logged directives, not under those the move would have made."
    )
    return 0


def _end(decision: Decision | None) -> str:
    if decision is None:
        return "no move"
    return f"{decision.kind} to {decision.to} after {decision.total}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m curriculum", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="check | replay | explain")
    check = commands.add_parser("check", help="validate a directory of levels and count them")
    check.add_argument("directory")
    check.set_defaults(run=_check)
    explain = commands.add_parser("explain", help="each decision of a journal with its counts")
    explain.add_argument("journal")
    explain.set_defaults(run=_explain)
    again = commands.add_parser("replay", help="fold a journal again, under its own or other rules")
    again.add_argument("journal")
    again.add_argument("--rules", choices=("reference", "sequential"))
    again.add_argument("--window", choices=("started", "completed"))
    for key in ("threshold", "min_episodes", "floor"):
        flag = "--" + key.replace("_", "-")
        again.add_argument(flag, dest=key, action="append", metavar="X | STAGE=X")
    again.add_argument("--no-early", action="store_true")
    again.add_argument("--no-trend", action="store_true")
    again.set_defaults(run=_replay)
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an encoding that lacks our letters ends nothing
        sys.stdout.reconfigure(errors="replace")
    try:
        code: int = arguments.run(arguments)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CurriculumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
