"""What the staged strategy shows of itself: the progress table and the explanation of the last check."""
# pure: reads the state, returns rows and text

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curriculum import rules
from curriculum.rules import CHECK_EVERY
from curriculum.strategies.stage_counts import StageCounts
from curriculum.strategies.staged_state import StagedState

__all__ = ["explanation", "measured", "progress_rows"]


def progress_rows(
    state: StagedState, ratios: Sequence[float], *, sequential: bool, met: bool
) -> list[dict[str, Any]]:
    """One plain row per stage, in order.

    `ratios`: the mixing ratios in force. `met`: the current stage meets a rule to advance.
    """
    waits = state.order.waits()
    rows = []
    for place, counts in enumerate(state.stages):
        window, probed = counts.window, counts.regression.window
        k, length = window.successes, len(window)
        is_current = place == state.current
        waiting = waits.get(place)
        rows.append(
            {
                "stage": counts.stage.name,
                "current": is_current,
                "success_rate": k / length if length else None,
                "successes": k,
                "window": length,
                "outcomes": window.n,
                "measure": counts.measure,
                "value": counts.value,
                "threshold": counts.steps_wanted if counts.measure == "steps" else counts.stage.threshold,
                "min_episodes": counts.min_episodes,
                "missing": _missing(counts, sequential) if is_current and not met else "",
                "mixing_ratio": ratios[place],
                "trend": float(rules.trend(k, length, window.first_half)) if length >= 20 else None,
                "statistic": counts.statistic,
                "probe_outcomes": 0 if is_current else probed.n,
                "probe_success_rate": None
                if is_current or not len(probed)
                else probed.successes / len(probed),
                **counts.totals,
                "waiting": 0 if waiting is None else waiting.outcomes,
                # an order is a command's number × num_envs + the env's id
                "waiting_for": None if waiting is None else waiting.order % state.num_envs,
            }
        )
    return rows


def _missing(counts: StageCounts, sequential: bool) -> str:
    """What a stage that meets no rule still lacks, in words."""
    window = counts.window
    k, length, n = window.successes, len(window), window.n
    lacks = []
    if counts.measure == "steps":
        return f"{counts.steps:,} of {counts.steps_wanted:,} steps"
    if counts.measure == "return":
        value = counts.value
        if value is None or counts.returns.total < counts.threshold * rules.PARTS * len(counts.returns):
            lacks.append(
                f"mean return {'nothing yet' if value is None else f'{value:.4g}'} of {counts.stage.threshold:g}"
            )
    elif sequential:
        limit = counts.test.limit
        if counts.statistic < limit:
            lacks.append(f"evidence {counts.statistic} of {limit}")
    elif k < counts.threshold * length or not length:
        rate = f"{k / length:.0%}" if length else "nothing yet"
        lacks.append(f"success {rate} of {counts.stage.threshold:.0%}")
    if n < counts.min_episodes:
        lacks.append(f"{counts.min_episodes - n} more outcomes")
    return ", ".join(lacks)


def measured(figures: Mapping[str, Any]) -> str:
    """What a decision was taken on, by the measure of its stage, in one line."""
    k, length, n = figures["k"], figures["length"], figures["n"]
    minimum = f"{n} outcomes, minimum {figures['min_episodes']}"
    match figures.get("measure", "success"):
        case "steps":
            return f"{figures['value']:,} steps in this stay, of {figures['steps']:,}; {n} outcomes"
        case "return":
            mean = "nothing yet" if figures["value"] is None else f"{figures['value']:.4g}"
            return f"mean return {mean} of the newest {length}, threshold {figures['threshold']:g}; {minimum}"
    rate = f"{k}/{length} = {k / length:.3f}" if length else "0/0"
    return f"success {rate}, threshold {figures['threshold']:g}; {minimum}"


def explanation(state: StagedState, *, sequential: bool) -> str:
    """The last check, in a few lines."""
    verdict = state.last_verdict
    if verdict is None:
        more = CHECK_EVERY - (state.total - state.last_check)
        held = "; decisions are on hold" if state.held else ""
        return f"{state.here.stage.name}: no check yet, the first is due in {max(more, 1)} episodes{held}"
    k, length, measure = verdict["k"], verdict["length"], verdict.get("measure", "success")
    lines = [
        f"after {verdict['total']} episodes, in {verdict['stage']}: {verdict['outcome']}",
        f"  {measured(verdict)}",
    ]
    if length >= 20 and measure == "success":
        lines.append(f"  trend {float(rules.trend(k, length, verdict['first_half'])):+.3f}")
    if sequential and measure == "success":
        lines.append(f"  evidence {verdict['statistic']} (sequential test)")
    lines.append(f"  rules met: {', '.join(verdict['reasons']) or 'none'}")
    if verdict["failing"]:
        lines.append(f"  reason to go back: {verdict['failing']}")
    if verdict["passed_over"]:
        lines.append(f"  {verdict['passed_over']} unfinished episodes were passed over as failures")
    if state.held:
        lines.append("  decisions are on hold")
    return "\n".join(lines)
