"""What the page shows of a run, as plain data that JSON can write."""
# pure: reads a run's public face; nothing is asked of workers, and nothing waits

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from trainers.config import to_mapping

__all__ = ["decision_row", "is_over", "outcome", "plain", "report_row", "snapshot", "worker_rows"]


class RunLike(Protocol):
    """What is read of a `Run`."""

    @property
    def config(self) -> Any: ...
    @property
    def folder(self) -> Any: ...
    @property
    def envs(self) -> Any: ...
    @property
    def coordinator(self) -> Any: ...
    @property
    def warnings(self) -> Sequence[str]: ...
    @property
    def last_report(self) -> Any: ...
    @property
    def stage(self) -> str: ...
    @property
    def error(self) -> BaseException | None: ...
    def summary(self) -> Any: ...


DECISIONS = 200  # the newest ones that a snapshot carries


def snapshot(run: RunLike) -> dict[str, Any]:
    """Everything but the curves: `run` (what it is), `status`, `outcome`, `stage`, `summary`, `report`, `progress`,
    `held`, `fixed`, `decisions`, `explain`, `workers`, `warnings`. Numbers that JSON does not know (NaN) are None.
    """
    coordinator = run.coordinator
    decisions = coordinator.decisions
    first = max(0, len(decisions) - DECISIONS)
    data = {
        "run": _about(run),
        "status": status(run),
        "outcome": outcome(run),
        "stage": run.stage,
        "summary": run.summary().as_dict(),
        "report": None if run.last_report is None else dataclasses.asdict(run.last_report),
        "progress": coordinator.progress(),
        "held": coordinator.held,
        "fixed": _fixed(decisions),
        "decisions": [decision_row(i, decisions[i]) for i in range(first, len(decisions))],
        "explain": coordinator.explain(),
        "workers": worker_rows(run),
        "warnings": list(run.warnings),
    }
    found: dict[str, Any] = plain(data)
    return found


def status(run: RunLike) -> str:
    """running, or why it ended: solved, steps, stopped, failed."""
    return "failed" if run.error is not None else run.summary().reason


def is_over(run: RunLike) -> bool:
    """The run has ended, however it did."""
    return status(run) != "running"


def outcome(run: RunLike) -> str:
    """Why the run ended, in words; empty while it runs."""
    summary = run.summary()
    match status(run):
        case "running":
            return ""
        case "solved":
            return f"solved at {summary.solved_at or 0:,} env steps"
        case "steps":
            return f"the budget is spent: {summary.env_steps:,} env steps"
        case "stopped":
            return f"stopped at {summary.env_steps:,} env steps"
    return f"ended by an error: {_first_line(run.error)}"


def _first_line(error: BaseException | None) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _about(run: RunLike) -> dict[str, Any]:
    config, workers = run.config, run.envs.num_workers
    where = f"{workers} worker{'s' * (workers > 1)}" if config.backend == "process" else "this one process"
    if config.fleet.on:
        where = f"a fleet of {workers} workers"
    strategy, staged = type(run.coordinator.strategy).__name__, run.coordinator.stage is not None
    notes = ["The run has ended: there is nothing to command any more."] if is_over(run) else []
    if not staged:
        notes.append(f"{strategy} has no current stage: there is none to set.")
    if config.exact_resume:
        notes.append("A checkpoint resets all envs: this run has exact_resume on.")
    return {
        "title": config.preset or config.env or "your own envs",
        "subtitle": f"seed {config.seed} · {config.num_envs} envs in {where} · {run.folder.path}",
        "notes": notes,
        "num_envs": config.num_envs,
        "total_steps": config.total_steps,
        "solve_rate": config.solve_rate,
        "staged": staged,
        "strategy": strategy,
        "config": to_mapping(config),
    }


def report_row(report: Any) -> dict[str, Any]:
    """One update: a line of metrics.jsonl."""
    row: dict[str, Any] = plain(dataclasses.asdict(report))
    return row


def decision_row(number: int, decision: Any) -> dict[str, Any]:
    """A decision of the run, counted from 0, with a line on what it was and one on its counts, who and why."""
    facts = [f"after {decision.total:,} episodes", *_facts(decision)]
    row: dict[str, Any] = plain(
        {"number": number, **decision.as_dict(), "title": _title(decision), "facts": " · ".join(facts)}
    )
    return row


def _title(decision: Any) -> str:
    counts = decision.counts
    match decision.kind:
        case "set_mixing_ratio":
            ratio = counts["ratio"]
            how = "left to the rules" if ratio is None else f"fixed at {ratio:g}"
            return f"mixing ratio of {counts['stage']}: {how}"
        case "hold" | "release":
            return f"{decision.kind} decisions"
        case "checkpoint" | "stop":
            return str(decision.kind)
    kind = decision.kind.replace("_", " ")
    return f"{kind}: {decision.stage}" + (f" → {decision.to}" if decision.to is not None else "")


def _facts(decision: Any) -> list[str]:
    counts, facts = decision.counts, []
    if "k" in counts and "length" in counts:
        facts.append(_measured(counts))
    if decision.reasons:
        facts.append(f"rule: {', '.join(decision.reasons)}")
    if decision.by is not None:
        facts.append(f"by {decision.by}")
    if decision.why is not None:
        facts.append(f"why: {decision.why}")
    return facts


def _measured(counts: Mapping[str, Any]) -> str:
    """What a stage move was taken on, by the measure of its stage."""
    k, length, threshold = counts["k"], counts["length"], counts.get("threshold")
    match counts.get("measure", "success"):
        case "steps":
            return f"{counts['value']:,} of {counts['steps']:,} steps in the stage"
        case "return":
            return f"mean return {counts['value']:.4g} of the newest {length}, threshold {threshold:g}"
    limit = "" if threshold is None else f", threshold {threshold:.0%}"
    return f"{k} of the newest {length} succeeded{limit}"


def _fixed(decisions: Sequence[Any]) -> dict[str, float]:
    """The mixing ratios that an operator has fixed, by stage."""
    fixed: dict[str, float] = {}
    for decision in decisions:
        if decision.kind == "set_mixing_ratio":
            stage, ratio = decision.counts["stage"], decision.counts["ratio"]
            if ratio is None:
                fixed.pop(stage, None)
            else:
                fixed[stage] = ratio
    return fixed


def worker_rows(run: RunLike) -> list[dict[str, Any]]:
    """One row per worker; empty once the envs are closed."""
    if run.envs.closed:
        return []
    statistics = run.envs.statistics()
    if not statistics.workers:  # of a fleet, all of whose hosts are being replaced
        return []
    median_s = float(np.median([w.step_time.p50_s for w in statistics.workers]))
    return [_worker_row(worker, statistics.version, median_s) for worker in statistics.workers]


def _worker_row(worker: Any, newest: int, median_s: float) -> dict[str, Any]:
    return {
        "worker": worker.worker,
        "pid": worker.pid if worker.pid > 0 else None,
        "envs": _span(worker.env_ids),
        "ready": worker.ready,
        "restarts": worker.incarnation,
        "losses": list(worker.losses),
        "step_p50_s": worker.step_time.p50_s,
        "step_p99_s": worker.step_time.p99_s,
        "wait_share": worker.wait_share,
        "version": worker.version,
        "newest_version": newest,
        "straggler": worker.step_time.p50_s > STRAGGLER * median_s > 0,
    }


STRAGGLER = 1.5  # times the median worker's median step time


def plain(value: Any) -> Any:
    """`value` as JSON can write it and a browser can read it."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):  # NumPy's, too
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    return str(value)


def _span(env_ids: range) -> str:
    return str(env_ids.start) if len(env_ids) == 1 else f"{env_ids.start}–{env_ids.stop - 1}"
