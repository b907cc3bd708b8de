"""What the counts say: whether the current stage meets a rule to advance, or gives a reason to go back."""
# pure: reads the state, returns reasons; nothing is changed

from __future__ import annotations

from curriculum import rules
from curriculum.strategies.stage_counts import StageCounts
from curriculum.strategies.staged_state import StagedState

__all__ = ["advance_reasons", "regress_reason"]


def advance_reasons(counts: StageCounts, *, sequential: bool, early: bool, trend: bool) -> tuple[str, ...]:
    """The rules to advance that a stage meets; empty: none. `early`, `trend`: whether these rules are on."""
    k, length, n = counts.window.successes, len(counts.window), counts.window.n
    minimum = counts.min_episodes
    if counts.measure == "steps":
        return ("steps",) * (counts.steps >= counts.steps_wanted)
    if counts.measure == "return":
        returns = counts.returns
        reached = rules.mean_reached(returns.total, len(returns), n, counts.threshold, minimum)
        return ("return",) * reached
    fast = early and rules.early(k, length, n)
    if sequential:
        if counts.statistic < counts.test.limit:
            return ()
        return ("sequential",) * (n >= minimum) + ("early",) * fast
    reasons = ("standard",) * rules.standard(k, length, n, counts.threshold, minimum) + ("early",) * fast
    if trend:
        bonus = rules.trend_bonus(k, length, n, counts.window.first_half, counts.threshold, minimum)
        reasons += ("trend",) * bonus
    return reasons


def regress_reason(state: StagedState, *, sequential: bool, probes: bool) -> str | None:
    """Why to go one stage back, if there is a reason. `probes`: earlier stages are probed, so their tests count."""
    here = state.here
    if state.current == 0 or (state.moved and state.stay_admitted < rules.COOLDOWN * here.factor):
        return None
    if here.regression.fails(sequential):
        return "below its floor"
    if probes:
        for earlier in state.stages[: state.current]:
            if earlier.regression.fails(sequential):
                return f"{earlier.stage.name} was forgotten"
    return None
