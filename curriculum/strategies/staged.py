"""`Staged`: one stage after the other, by success windows or by sequential tests."""
# pure: deterministic given the order of its inputs; it never waits and draws nothing

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, Literal

from curriculum import rules
from curriculum.directive import Directive
from curriculum.errors import CommandError, PlanError, StampError
from curriculum.rules import BASE_RATIO, CHECK_EVERY, exact
from curriculum.stages import FloatOverride, IntOverride, Stage, StagePlan, SuccessRule
from curriculum.start_order import Entry, StartOrder
from curriculum.strategies.base import (
    Decision,
    EpisodeLike,
    StartedLike,
    Success,
    expect_number,
    recorded_success,
    success_function,
    task_of,
)
from curriculum.strategies.staged_progress import explanation, progress_rows
from curriculum.strategies.staged_state import StagedState
from curriculum.strategies.verdict import advance_reasons, regress_reason

__all__ = ["Staged"]

_PATIENCE = 20  # later-started episodes per env that may end before the oldest unfinished one is passed over
_CONFIG = (
    *("rules", "window", "start_order", "early", "trend"),
    *("adaptive_mixing", "stage_mixing", "probe", "mix_by"),
)


class Staged:
    """Counts outcomes per stage, moves one stage at a time, and sets how much of the previous stage is mixed
    in.

    `threshold=`, `min_episodes=`, `floor=`, `max_episodes=` override the plan's stages: one value replaces
    **all** stages' own settings, a mapping such as `{"far": .9}` just those it names; unset, the stages' own
    hold.

    `rules`: "reference", or "sequential" (only with window="started"). `window`: "started" admits outcomes in
    the order in which their episodes started, "completed" as they end. `start_order`: "stage" keeps that order
    stage by stage; "run", over all stages, is the rule of version 0.1, for replaying its journals.

    Switches, all on: `early` (nine of ten of at least 30 outcomes advance, whatever the stage's threshold and
    minimum), `trend`, `adaptive_mixing` (off: ratio .20), `stage_mixing` (off: ratio 0). `probe`: probability of
    an episode of any earlier stage; `mix_by="steps"` makes the ratio the share of steps instead of episodes.
    `success`: "last" or "ever", whichever step of an episode has to succeed, or a function episode → bool; None: as
    the plan says. `total_steps`: of the whole run, for stages that ask for a share of them.
    """

    def __init__(
        self,
        plan: StagePlan | Iterable[Stage] | None = None,
        *,
        rules: Literal["reference", "sequential"] = "reference",
        window: Literal["started", "completed"] = "started",
        start_order: Literal["stage", "run"] = "stage",
        early: bool = True,
        trend: bool = True,
        adaptive_mixing: bool = True,
        stage_mixing: bool = True,
        probe: float = 0.0,
        mix_by: Literal["episodes", "steps"] = "episodes",
        success: Success | SuccessRule | None = None,
        total_steps: int | None = None,
        threshold: FloatOverride = None,
        min_episodes: IntOverride = None,
        floor: FloatOverride = None,
        max_episodes: IntOverride = None,
    ) -> None:
        for key, value, allowed in (
            ("rules", rules, ("reference", "sequential")),
            ("window", window, ("started", "completed")),
            ("start_order", start_order, ("stage", "run")),
            ("mix_by", mix_by, ("episodes", "steps")),
        ):
            if value not in allowed:
                raise PlanError(f"{key}: expected {' or '.join(map(repr, allowed))}, got {value!r}")
        if rules == "sequential" and window == "completed":
            raise PlanError(
                'rules="sequential" needs window="started": over completed episodes it advances falsely '
                "in 95 % of runs (256 envs, failures ten times as long as successes)"
            )
        expect_number("probe", probe, lambda x: 0 <= x < 1, "a probability below 1")
        if total_steps is not None:
            expect_number("total_steps", total_steps, lambda n: n >= 1, "a number of steps")
        if not (plan is None or isinstance(plan, (StagePlan, Iterable))):
            raise PlanError(f"plan: expected a StagePlan or stages, got {plan!r:.60}")
        self.plan = (plan if isinstance(plan, StagePlan) else StagePlan(plan)).override(
            threshold=threshold, min_episodes=min_episodes, floor=floor, max_episodes=max_episodes
        )
        self.rules, self.window, self.start_order = rules, window, start_order
        self.mix_by, self.probe = mix_by, float(probe)
        self.early, self.trend = early, trend
        self.adaptive_mixing, self.stage_mixing = adaptive_mixing, stage_mixing
        self.success = success_function(self.plan.success if success is None else success)
        self._sequential = rules == "sequential"
        self.total_steps = total_steps
        self._steps = [self._wanted(stage) for stage in self.plan]
        self._places = {name: place for place, name in enumerate(self.plan.names)}
        self._state = StagedState.begin(self.plan, StartOrder(start_order), self._steps)
        self._state.ratios = self._rule_ratios()
        self._directive: Directive | None = None
        self._beginning: Sequence[int] = ()

    def _wanted(self, stage: Stage) -> int:
        """Steps to spend in the stage; 0 where it measures something else."""
        if stage.measure == "return" and self._sequential:
            raise PlanError(
                f'stage {stage.name!r}: rules="sequential" tests a success rate, and it measures returns: take '
                'rules="reference", or measure success'
            )
        if stage.measure != "steps":
            return 0
        if stage.threshold >= 1:
            return int(stage.threshold)
        if self.total_steps is None:
            raise PlanError(
                f"stage {stage.name!r}: threshold: {stage.threshold:g} is a share of the run's steps: say total_steps"
            )
        return max(1, math.ceil(exact(stage.threshold) * self.total_steps))

    # ---- episodes in

    def attached(self, num_envs: int) -> None:
        """Other envs from here on: what ran in the old ones is gone, all that waited for it is admitted."""
        self._state.num_envs = num_envs
        for entry in self._state.order.restart():
            self._admit(entry)
        self._state.stay_version = None
        self._refresh()

    def published(self, version: int) -> None:
        """The newest directive is out under this version; the first after a move is the one that began the
        stay.
        """
        if self._state.stay_version is None:
            self._state.stay_version = version

    def started(self, event: StartedLike) -> None:
        """An episode began."""
        if self.window == "started":
            late = self._state.order.start(event.order, self._entry(event))
            if late is not None:
                self._pass_over(late)

    def observe(self, episode: EpisodeLike) -> None:
        """An episode ended. It counts for the stage it was stamped with, once it is admitted."""
        state = self._state
        if episode.outcome == "aborted":
            entry = self._entry(episode)
            state.stages[entry.stage].totals["aborted"] += 1
        else:
            entry = self._outcome(episode)
            totals = state.stages[entry.stage].totals
            if state.in_stay(entry.version):
                state.here.steps += episode.length
            totals["ended"] += 1
            totals["succeeded"] += entry.success is True
            state.total += 1
            state.ended_now += 1
        if self.window == "completed":
            if entry.success is not None:
                self._admit(entry)
        elif not state.order.end(episode.order, entry) and entry.success is not None:
            state.stages[entry.stage].totals["late"] += 1

    def record(self, stage: str, success: bool) -> None:
        """Count an outcome without an episode, at once."""
        place = self._place(stage)
        if self.plan[place].measure == "return":
            raise CommandError(f"stage {stage!r} measures returns: a success says nothing of them")
        said = recorded_success(success)
        self._admit(Entry(place, "current", self._state.stay_version or 0, said), recorded=True)
        self._refresh()

    def beginning(self, orders: Sequence[int]) -> None:
        """Episodes whose reset is under way, by order: of which stage they are is not known yet."""
        self._beginning = orders

    def settle(self, watermark: int | None = None) -> Sequence[Decision]:
        """All events of one batch are in: admit what may be admitted, check if one is due, renew the
        directive.

        `watermark`: every episode with a smaller order had ended; None: all had.
        """
        state = self._state
        if self.window == "started":
            patience = _PATIENCE * state.num_envs
            for entry, passed_over in state.order.release(watermark, patience, self._beginning):
                if passed_over:
                    self._pass_over(entry)
                else:
                    self._admit(entry)
        decisions: Sequence[Decision] = ()
        if state.ended_now and not state.held and state.total >= state.last_check + CHECK_EVERY:
            state.last_check = state.total
            decisions = self._check()
        state.ended_now = 0
        self._refresh()
        return decisions

    def _entry(self, event: StartedLike, *, length: int = 0) -> Entry:
        task = task_of(event)
        place = self._places.get(task["stage"])
        if place is None:
            raise StampError(
                f"env {event.env_id}: episode {event.index} is stamped with the unknown stage "
                f"{task['stage']!r}; the plan has {', '.join(self.plan.names)}"
            )
        return Entry(place, task.get("role", "current"), event.version, None, length)

    def _outcome(self, episode: EpisodeLike) -> Entry:
        """Of an episode that ended. Where its stage measures returns, it succeeded if its return reached T."""
        entry = self._entry(episode, length=episode.length)
        counts = self._state.stages[entry.stage]
        if counts.measure != "return":
            return entry._replace(success=bool(self.success(episode)))
        if not math.isfinite(episode.episode_return):
            raise ValueError(
                f"env {episode.env_id}: episode {episode.index}: return: expected a finite number, "
                f"got {episode.episode_return!r}"
            )
        value = rules.parts(episode.episode_return)
        return entry._replace(success=value >= counts.threshold * rules.PARTS, value=value)

    def _admit(self, entry: Entry, *, recorded: bool = False) -> None:
        state = self._state
        counts, success = state.stages[entry.stage], entry.success is True
        state.stay_admitted += 1
        if not recorded:
            counts.lengths.append(entry.length)
        in_stay = state.in_stay(entry.version)
        if entry.stage != state.current:
            counts.add(success, entry.value, sequential=self._sequential)
            if in_stay and entry.stage < state.current and entry.role in ("previous", "probe"):
                counts.regression.add(success, entry.value, 4 * counts.min_episodes)
        elif in_stay:
            counts.add(success, entry.value, sequential=self._sequential)
            if counts.stage.floor is not None:
                counts.regression.add(success, entry.value, 4 * counts.min_episodes)
        else:
            counts.totals["earlier_stay"] += 1

    def _pass_over(self, entry: Entry) -> None:
        counts = self._state.stages[entry.stage]
        counts.totals["passed_over"] += 1
        if entry.stage == self._state.current and self._state.in_stay(entry.version):
            counts.add_passed_over()

    # ---- decisions out

    def _advance_reasons(self) -> tuple[str, ...]:
        extras = not self._state.stay_by_regression
        early, trend = self.early and extras, self.trend and extras
        return advance_reasons(self._state.here, sequential=self._sequential, early=early, trend=trend)

    def _check(self) -> list[Decision]:
        state, here = self._state, self._state.here
        reasons = self._advance_reasons()
        failing = regress_reason(state, sequential=self._sequential, probes=self.probe > 0)
        verdict = state.last_verdict = {
            **here.figures(),
            "reasons": list(reasons),
            "failing": failing,
            "total": state.total,
            "outcome": "stays",
        }
        if reasons:
            if state.current + 1 < len(state.stages):
                here.passed = True
                return [self._move(state.current + 1, "advance", reasons)]
            verdict["outcome"] = "solved"
            if state.solved:
                return []
            state.solved = True
            return [self._decision("solved", reasons)]
        if failing is not None:
            return [self._move(state.current - 1, "regress", (failing,))]
        most = here.stage.max_episodes
        if most is not None and here.window.n >= most and not state.stalled:
            state.stalled = True
            verdict["outcome"] = "stalled"
            return [self._decision("stalled", (f"no move in {most} episodes",))]
        return []

    def _decision(self, kind: str, reasons: tuple[str, ...], to: str | None = None) -> Decision:
        here = self._state.here
        return Decision(kind, here.stage.name, to, reasons, self._state.total, here.figures())

    def _move(self, place: int, kind: str, reasons: tuple[str, ...]) -> Decision:
        decision = self._decision(kind, reasons, self.plan[place].name)
        if kind != "set_stage" and self._state.last_verdict is not None:
            self._state.last_verdict["outcome"] = f"{kind} to {decision.to}"
        self._enter(place, regression=kind == "regress")
        return decision

    def _enter(self, place: int, *, regression: bool) -> None:
        state = self._state
        if regression:
            state.here.totals["regressions"] += 1
        state.current = place
        state.stay_version = None
        state.stay_by_regression = regression
        state.stay_admitted = 0
        state.moved = True
        state.stalled = False
        state.here.begin_stay()
        for earlier in state.stages[:place]:
            earlier.regression.clear(armed=earlier.passed)

    # ---- commands

    def _place(self, stage: str) -> int:
        try:
            return self.plan.index(stage)
        except PlanError as error:
            raise CommandError(str(error)) from None

    def set_stage(self, stage: str) -> Decision | None:
        """Begin a stay in that stage; None, and nothing changes, if it is the current one."""
        place = self._place(stage)
        if place == self._state.current:
            return None
        decision = self._move(place, "set_stage", ())
        self._refresh(commanded=True)
        return decision

    def follow(self, decision: Decision) -> None:
        """Begin the stay that a logged decision began, whatever these rules say of it."""
        assert decision.to is not None
        self._enter(self.plan.index(decision.to), regression=decision.kind == "regress")
        self._refresh(commanded=True)

    def set_mixing_ratio(self, stage: str, ratio: float | None) -> None:
        """Fix a stage's mixing ratio; None gives it back to the rules."""
        place = self._place(stage)
        given: object = ratio
        if ratio is None:
            self._state.overrides.pop(place, None)
        elif isinstance(given, bool) or not isinstance(given, Real) or not 0 <= ratio <= 1:
            raise CommandError(f"mixing ratio of {stage!r}: expected a number from 0 to 1, got {ratio!r}")
        else:
            self._state.overrides[place] = float(ratio)
        self._refresh(commanded=True)

    def hold(self) -> None:
        """Keep counting, decide nothing."""
        self._state.held = True

    def release(self) -> None:
        """Decide again; the next check comes with the next episode that ends, if it is due."""
        self._state.held = False
        self._refresh()

    # ---- what is in force

    def _rule_ratios(self) -> list[float]:
        if not self.stage_mixing:
            return [0.0] * len(self.plan)
        return [counts.ratio if self.adaptive_mixing else BASE_RATIO for counts in self._state.stages]

    def _refresh(self, *, commanded: bool = False) -> None:
        """Renew what is in force; while held, only what a command changed."""
        state = self._state
        if not state.held:
            state.ratios = self._rule_ratios()
        if state.held and not commanded:
            return
        stage = state.here.stage.name
        ratios = tuple(state.overrides.get(i, ratio) for i, ratio in enumerate(state.ratios))
        mix = self._mix(ratios[state.current])
        old = self._directive
        if (
            old is None
            or old.stage != stage
            or old.ratios != ratios
            or old.mix != mix
            or old.probe != self.probe
        ):
            self._directive = Directive(self.plan.names, stage, ratios, mix, self.probe)

    def _mix(self, ratio: float) -> float:
        """The probability that workers draw with: the ratio itself, or the one that makes it a share of
        steps.
        """
        state = self._state
        if self.mix_by == "episodes" or state.current == 0:
            return ratio
        current = state.here.mean_length()
        previous = state.stages[state.current - 1].mean_length()
        if current is None or previous is None:
            return ratio
        return rules.steps_draw(ratio, current, previous)

    def directive(self) -> Directive:
        """What workers shall draw from; the same object as long as nothing in it changed."""
        if self._directive is None:
            self._refresh(commanded=True)
        assert self._directive is not None
        return self._directive

    def mixing_ratio(self, stage: str) -> float:
        """The mixing ratio of a stage, in force."""
        return self.directive().ratios[self._place(stage)]

    @property
    def stage(self) -> str:
        """The current stage."""
        return self._state.here.stage.name

    @property
    def solved(self) -> bool:
        """The last stage has met its own rule."""
        return self._state.solved

    @property
    def held(self) -> bool:
        """No decisions are taken."""
        return self._state.held

    @property
    def total(self) -> int:
        """Ended episodes so far, aborted ones not counted."""
        return self._state.total

    def progress(self) -> list[dict[str, Any]]:
        """One row per stage: success rate, outcomes, threshold, what is missing to advance, ratio, trend, how many
        outcomes are `waiting` for an older episode of the stage, `waiting_for` which env, …
        """
        ratios, met = self.directive().ratios, bool(self._advance_reasons())
        return progress_rows(self._state, ratios, sequential=self._sequential, met=met)

    def explain(self) -> str:
        """Why the last check came out as it did."""
        return explanation(self._state, sequential=self._sequential)

    # ---- state

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data; a replay needs them."""
        return {
            "strategy": "Staged",
            "stages": [stage.as_dict() for stage in self.plan],
            **{name: getattr(self, name) for name in _CONFIG},
            **({} if self.total_steps is None else {"total_steps": self.total_steps}),
        }

    def state_dict(self) -> dict[str, Any]:
        """Plain data, with a schema version."""
        return self._state.as_dict(self.window)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if it had not stopped. StateError, and nothing changed, if the state does not fit."""
        self._state = StagedState.from_dict(
            state, self.plan, self.window, StartOrder(self.start_order), self._steps
        )
        self._directive = None
