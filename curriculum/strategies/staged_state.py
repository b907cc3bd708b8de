"""The staged strategy's settings and state as plain data, and back; a state that does not fit changes nothing."""
# pure: reads and sets one strategy's fields

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curriculum.errors import StateError
from curriculum.rules import BASE_RATIO
from curriculum.strategies.base import need
from curriculum.strategies.tally import Tally
from curriculum.windows import StartOrder

if TYPE_CHECKING:
    from curriculum.strategies.staged import Staged

__all__ = ["load_staged", "staged_config", "staged_state"]


def staged_config(staged: Staged) -> dict[str, Any]:
    """The constructor's arguments as plain data; a replay needs them."""
    return {
        "strategy": "Staged",
        "stages": [stage.as_dict() for stage in staged.plan],
        "rules": staged.rules,
        "window": staged.window,
        "early": staged.early,
        "trend": staged.trend,
        "adaptive_mixing": staged.adaptive_mixing,
        "stage_mixing": staged.stage_mixing,
        "probe": staged.probe,
        "mix_by": staged.mix_by,
    }


def staged_state(staged: Staged) -> dict[str, Any]:
    """Plain data, with a schema version."""
    return {
        "schema": 1,
        "strategy": "Staged",
        "stages": list(staged.plan.names),
        "window": staged.window,
        "num_envs": staged._num_envs,
        "current": staged._current,
        "stay_version": staged._stay_version,
        "stay_by_regression": staged._stay_by_regression,
        "stay_admitted": staged._stay_admitted,
        "moved": staged._moved,
        "stalled": staged._stalled,
        "solved": staged._solved,
        "held": staged._held,
        "total": staged._total,
        "last_check": staged._last_check,
        "ended_now": staged._ended_now,
        "overrides": {staged.plan[i].name: ratio for i, ratio in staged._overrides.items()},
        "ratios": list(staged._ratios),
        "last_verdict": staged._last_verdict,
        "order": staged._order.state(),
        "tallies": [tally.state() for tally in staged._tallies],
    }


def load_staged(staged: Staged, state: Mapping[str, Any]) -> None:
    """Continue as if it had not stopped. StateError, and nothing changed, if the state does not fit."""
    fresh = [Tally(stage, BASE_RATIO) for stage in staged.plan]
    order = StartOrder()
    where = "Staged state"
    if need(state, "schema", int, where) != 1 or need(state, "strategy", str, where) != "Staged":
        raise StateError(
            f"{where}: expected schema 1 of Staged, got {state['schema']} of {state['strategy']}"
        )
    for key, mine in (("stages", list(staged.plan.names)), ("window", staged.window)):
        if need(state, key, (list, str), where) != mine:
            raise StateError(f"{where}: {key}: expected {mine!r}, got {state[key]!r}")
    tallies = need(state, "tallies", list, where)
    if len(tallies) != len(fresh):
        raise StateError(f"{where}: tallies: expected {len(fresh)}, got {len(tallies)}")
    for tally, saved in zip(fresh, tallies):
        tally.load(saved, f"{where}: stage {tally.stage.name!r}")
    order.load(need(state, "order", dict, where), len(fresh), f"{where}: order")
    current = need(state, "current", int, where)
    if not 0 <= current < len(fresh):
        raise StateError(f"{where}: current: expected 0 to {len(fresh) - 1}, got {current}")
    counts = {
        key: need(state, key, int, where)
        for key in ("num_envs", "stay_admitted", "total", "last_check", "ended_now")
    }
    flags = {
        key: need(state, key, bool, where)
        for key in ("stay_by_regression", "moved", "stalled", "solved", "held")
    }
    overrides = need(state, "overrides", dict, where)
    ratios = [float(ratio) for ratio in need(state, "ratios", list, where)]
    if len(ratios) != len(fresh) or set(overrides) - set(staged.plan.names):
        raise StateError(f"{where}: ratios and overrides: expected those of {', '.join(staged.plan.names)}")
    stay_version = need(state, "stay_version", (int, type(None)), where)
    staged._last_verdict = need(state, "last_verdict", (dict, type(None)), where)
    staged._tallies, staged._order, staged._current, staged._stay_version = (
        fresh,
        order,
        current,
        stay_version,
    )
    for name, value in (*counts.items(), *flags.items()):
        setattr(staged, f"_{name}", value)
    staged._overrides = {staged.plan.index(name): float(ratio) for name, ratio in overrides.items()}
    staged._ratios = ratios
    staged._directive = None
