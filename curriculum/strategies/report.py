"""What the staged strategy shows of itself: the progress table and the explanation of the last check."""
# pure: reads counts, returns rows and text

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from curriculum import rules
from curriculum.rules import CHECK_EVERY

if TYPE_CHECKING:
    from curriculum.strategies.staged import Staged
    from curriculum.strategies.tally import Tally

__all__ = ["explanation", "missing", "progress_rows"]


def progress_rows(staged: Staged) -> list[dict[str, Any]]:
    """One plain row per stage, in order."""
    directive = staged.directive()
    rows = []
    for place, tally in enumerate(staged._tallies):
        window, guard = tally.window, tally.guard
        k, length = window.successes, len(window)
        is_current = place == staged._current
        rows.append(
            {
                "stage": tally.stage.name,
                "current": is_current,
                "success_rate": k / length if length else None,
                "successes": k,
                "window": length,
                "outcomes": window.n,
                "threshold": tally.stage.threshold,
                "min_episodes": tally.min_episodes,
                "missing": missing(staged, tally) if is_current else "",
                "mixing_ratio": directive.ratios[place],
                "trend": float(rules.trend(k, length, window.first_half)) if length >= 20 else None,
                "statistic": tally.statistic,
                "probe_outcomes": 0 if is_current else guard.window.n,
                "probe_success_rate": None
                if is_current or not len(guard.window)
                else guard.window.successes / len(guard.window),
                **tally.totals,
            }
        )
    return rows


def missing(staged: Staged, tally: Tally) -> str:
    """What this stage still lacks to meet its rule, in words; empty if it meets it."""
    window = tally.window
    k, length, n = window.successes, len(window), window.n
    lacks = []
    if staged._advance_reasons(tally):
        return ""
    if staged.rules == "sequential":
        limit = tally.test.limit
        if tally.statistic < limit:
            lacks.append(f"evidence {tally.statistic} of {limit}")
    elif k < tally.threshold * length or not length:
        rate = f"{k / length:.0%}" if length else "nothing yet"
        lacks.append(f"success {rate} of {tally.stage.threshold:.0%}")
    if n < tally.min_episodes:
        lacks.append(f"{tally.min_episodes - n} more outcomes")
    return ", ".join(lacks)


def explanation(verdict: dict[str, Any] | None, staged: Staged) -> str:
    """The last check, in a few lines."""
    if verdict is None:
        more = CHECK_EVERY - (staged.total - staged._last_check)
        held = "; decisions are on hold" if staged.held else ""
        return f"{staged.stage}: no check yet, the first is due in {max(more, 1)} episodes{held}"
    k, length, n = verdict["k"], verdict["length"], verdict["n"]
    rate = f"{k}/{length} = {k / length:.3f}" if length else "0/0"
    lines = [
        f"after {verdict['total']} episodes, in {verdict['stage']}: {verdict['outcome']}",
        f"  success {rate}, threshold {verdict['threshold']:g}; "
        f"{n} outcomes, minimum {verdict['min_episodes']}",
    ]
    if length >= 20:
        lines.append(f"  trend {float(rules.trend(k, length, verdict['first_half'])):+.3f}")
    if staged.rules == "sequential":
        lines.append(f"  evidence {verdict['statistic']} (sequential test)")
    lines.append(f"  rules met: {', '.join(verdict['reasons']) or 'none'}")
    if verdict["failing"]:
        lines.append(f"  reason to go back: {verdict['failing']}")
    if verdict["passed_over"]:
        lines.append(f"  {verdict['passed_over']} unfinished episodes were passed over as failures")
    if staged.held:
        lines.append("  decisions are on hold")
    return "\n".join(lines)
