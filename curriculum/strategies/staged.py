"""`Staged`: one stage after the other, by success windows or by sequential tests."""
# pure: deterministic given the order of its inputs; it never waits and draws nothing

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from curriculum import rules
from curriculum.directive import Directive
from curriculum.errors import CommandError, PlanError, StampError
from curriculum.rules import BASE_RATIO, CHECK_EVERY
from curriculum.stages import FloatOverride, IntOverride, Stage, StagePlan
from curriculum.strategies.base import (
    Decision,
    EpisodeLike,
    StartedLike,
    Success,
    is_success,
    task_of,
)
from curriculum.strategies.report import explanation, progress_rows
from curriculum.strategies.staged_state import load_staged, staged_config, staged_state
from curriculum.strategies.tally import Tally
from curriculum.windows import Entry, StartOrder

__all__ = ["Staged"]

_PATIENCE = 20  # later-started episodes per env that may end before the oldest unfinished one is passed over


class Staged:
    """Counts outcomes per stage, moves one stage at a time, and sets how much of the previous stage is mixed
    in.

    `threshold=`, `min_episodes=`, `floor=`, `max_episodes=` override the plan's stages: one value replaces
    **all** stages' own settings, a mapping such as `{"far": .9}` just those it names; unset, the stages' own
    hold.

    `rules`: "reference", or "sequential" (only with window="started"). `window`: "started" admits outcomes in
    the order in which their episodes started, "completed" as they end. Switches, all on: `early` (nine of ten
    of at least 30 outcomes advance, whatever the stage's threshold and minimum), `trend`, `adaptive_mixing`
    (off: ratio .20), `stage_mixing` (off: ratio 0). `probe`: probability of an episode of any earlier stage;
    `mix_by="steps"` makes the ratio the share of steps instead of episodes. `success`: episode → bool.
    """

    def __init__(
        self,
        plan: StagePlan | Iterable[Stage] | None = None,
        *,
        rules: Literal["reference", "sequential"] = "reference",
        window: Literal["started", "completed"] = "started",
        early: bool = True,
        trend: bool = True,
        adaptive_mixing: bool = True,
        stage_mixing: bool = True,
        probe: float = 0.0,
        mix_by: Literal["episodes", "steps"] = "episodes",
        success: Success = is_success,
        threshold: FloatOverride = None,
        min_episodes: IntOverride = None,
        floor: FloatOverride = None,
        max_episodes: IntOverride = None,
    ) -> None:
        for key, value, allowed in (
            ("rules", rules, ("reference", "sequential")),
            ("window", window, ("started", "completed")),
            ("mix_by", mix_by, ("episodes", "steps")),
        ):
            if value not in allowed:
                raise PlanError(f"{key}: expected {' or '.join(map(repr, allowed))}, got {value!r}")
        if rules == "sequential" and window == "completed":
            raise PlanError(
                'rules="sequential" needs window="started": over completed episodes it advances falsely '
                "in 95 % of runs (256 envs, failures ten times as long as successes)"
            )
        if not 0 <= probe < 1:
            raise PlanError(f"probe: expected a probability below 1, got {probe!r}")
        if not callable(success):
            raise PlanError(f"success: expected a function of the episode, got {success!r}")
        if not (plan is None or isinstance(plan, (StagePlan, Iterable))):
            raise PlanError(f"plan: expected a StagePlan or stages, got {plan!r:.60}")
        self.plan = (plan if isinstance(plan, StagePlan) else StagePlan(plan)).override(
            threshold=threshold, min_episodes=min_episodes, floor=floor, max_episodes=max_episodes
        )
        self.rules, self.window, self.mix_by, self.probe = rules, window, mix_by, float(probe)
        self.early, self.trend = early, trend
        self.adaptive_mixing, self.stage_mixing = adaptive_mixing, stage_mixing
        self.success = success
        self._sequential = rules == "sequential"
        self._places = {name: place for place, name in enumerate(self.plan.names)}
        self._tallies = [Tally(stage, BASE_RATIO) for stage in self.plan]
        self._order = StartOrder()
        self._num_envs = 1
        self._current = 0
        self._stay_version: int | None = None  # the version that began the stay; None: not published yet
        self._stay_by_regression = False
        self._stay_admitted = 0  # outcomes of any stage since the last move
        self._moved = False  # the stay was begun by a move, not by the start of the run
        self._stalled = False
        self._solved = False
        self._held = False
        self._total = 0
        self._last_check = 0
        self._ended_now = 0  # episodes that ended since the last settle, aborted ones not counted
        self._overrides: dict[int, float] = {}  # an operator's mixing ratios
        self._ratios = [self._rule_ratio(tally) for tally in self._tallies]  # in force, before overrides
        self._draw: float | None = None  # in force with mix_by="steps"
        self._directive: Directive | None = None
        self._last_verdict: dict[str, Any] | None = None

    # ---- episodes in

    def attached(self, num_envs: int) -> None:
        """Other envs from here on: what ran in the old ones is gone, all that waited for it is admitted."""
        self._num_envs = num_envs
        for entry in self._order.restart():
            self._admit(entry)
        self._stay_version = None
        self._refresh()

    def published(self, version: int) -> None:
        """The newest directive is out under this version; the first after a move is the one that began the
        stay.
        """
        if self._stay_version is None:
            self._stay_version = version

    def started(self, event: StartedLike) -> None:
        """An episode began."""
        if self.window == "started":
            late = self._order.start(event.order, self._entry(event))
            if late is not None:
                self._pass_over(late)

    def observe(self, episode: EpisodeLike) -> None:
        """An episode ended. It counts for the stage it was stamped with, once it is admitted."""
        if episode.outcome == "aborted":
            entry = self._entry(episode)
            self._tallies[entry.stage].totals["aborted"] += 1
        else:
            entry = self._entry(episode, success=bool(self.success(episode)), length=episode.length)
            totals = self._tallies[entry.stage].totals
            totals["ended"] += 1
            totals["succeeded"] += entry.success is True
            self._total += 1
            self._ended_now += 1
        if self.window == "completed":
            if entry.success is not None:
                self._admit(entry)
        elif not self._order.end(episode.order, entry) and entry.success is not None:
            self._tallies[entry.stage].totals["late"] += 1

    def record(self, stage: str, success: bool) -> None:
        """Count an outcome without an episode, at once."""
        place = self._place(stage)
        self._admit(Entry(place, "current", self._stay_version or 0, bool(success)), recorded=True)
        self._refresh()

    def settle(self, watermark: int | None = None) -> Sequence[Decision]:
        """All events of one hand-out are in: admit what may be admitted, check if one is due, renew the
        directive.

        `watermark`: every episode with a smaller order had ended; None: all had.
        """
        if self.window == "started":
            for entry, passed_over in self._order.release(watermark, _PATIENCE * self._num_envs):
                if passed_over:
                    self._pass_over(entry)
                else:
                    self._admit(entry)
        decisions: Sequence[Decision] = ()
        if self._ended_now and not self._held and self._total >= self._last_check + CHECK_EVERY:
            self._last_check = self._total
            decisions = self._check()
        self._ended_now = 0
        self._refresh()
        return decisions

    def _entry(self, event: StartedLike, *, success: bool | None = None, length: int = 0) -> Entry:
        task = task_of(event)
        place = self._places.get(task["stage"])
        if place is None:
            raise StampError(
                f"env {event.env_id}: episode {event.index} is stamped with the unknown stage "
                f"{task['stage']!r}; the plan has {', '.join(self.plan.names)}"
            )
        return Entry(place, task.get("role", "current"), event.version, success, length)

    def _in_stay(self, version: int) -> bool:
        return self._stay_version is None or version >= self._stay_version

    def _admit(self, entry: Entry, *, recorded: bool = False) -> None:
        tally, success = self._tallies[entry.stage], entry.success is True
        self._stay_admitted += 1
        if not recorded:
            tally.lengths.append(entry.length)
        in_stay = self._in_stay(entry.version)
        if entry.stage != self._current:
            tally.add(success, sequential=self._sequential)
            if in_stay and entry.stage < self._current and entry.role in ("previous", "probe"):
                tally.guard.add(success, 4 * tally.min_episodes)
        elif in_stay:
            tally.add(success, sequential=self._sequential)
            if tally.guard.floor is not None:
                tally.guard.add(success, 4 * tally.min_episodes)
        else:
            tally.totals["earlier_stay"] += 1

    def _pass_over(self, entry: Entry) -> None:
        tally = self._tallies[entry.stage]
        tally.totals["passed_over"] += 1
        if entry.stage == self._current and self._in_stay(entry.version):
            tally.add_passed_over()

    # ---- decisions out

    def _check(self) -> list[Decision]:
        tally = self._tallies[self._current]
        reasons = self._advance_reasons(tally)
        failing = self._failing(tally)
        self._last_verdict = {
            **self._counts(tally),
            "reasons": list(reasons),
            "failing": failing,
            "total": self._total,
            "outcome": "stays",
        }
        if reasons:
            if self._current + 1 < len(self._tallies):
                tally.passed = True
                return [self._move(self._current + 1, "advance", reasons)]
            self._last_verdict["outcome"] = "solved"
            if self._solved:
                return []
            self._solved = True
            return [self._decision("solved", reasons, tally)]
        if failing is not None:
            return [self._move(self._current - 1, "regress", (failing,))]
        most = tally.stage.max_episodes
        if most is not None and tally.window.n >= most and not self._stalled:
            self._stalled = True
            self._last_verdict["outcome"] = "stalled"
            return [self._decision("stalled", (f"no move in {most} episodes",), tally)]
        return []

    def _advance_reasons(self, tally: Tally) -> tuple[str, ...]:
        k, length, n = tally.window.successes, len(tally.window), tally.window.n
        minimum, extras = tally.min_episodes, not self._stay_by_regression
        fast = self.early and extras and rules.early(k, length, n)
        if self._sequential:
            if tally.statistic < tally.test.limit:
                return ()
            return ("sequential",) * (n >= minimum) + ("early",) * fast
        reasons = ("standard",) * rules.standard(k, length, n, tally.threshold, minimum) + ("early",) * fast
        if self.trend and extras:
            bonus = rules.trend_bonus(k, length, n, tally.window.first_half, tally.threshold, minimum)
            reasons += ("trend",) * bonus
        return reasons

    def _failing(self, tally: Tally) -> str | None:
        """Why to go one stage back, if there is a reason."""
        if self._current == 0 or (self._moved and self._stay_admitted < rules.COOLDOWN * tally.factor):
            return None
        if tally.guard.fails(self._sequential):
            return "below its floor"
        if self.probe:
            for earlier in self._tallies[: self._current]:
                if earlier.guard.fails(self._sequential):
                    return f"{earlier.stage.name} was forgotten"
        return None

    def _counts(self, tally: Tally) -> dict[str, Any]:
        window = tally.window
        return {
            "stage": tally.stage.name,
            "k": window.successes,
            "length": len(window),
            "n": window.n,
            "first_half": window.first_half,
            "statistic": tally.statistic,
            "threshold": tally.stage.threshold,
            "min_episodes": tally.min_episodes,
            "passed_over": tally.totals["passed_over"],
        }

    def _decision(self, kind: str, reasons: tuple[str, ...], tally: Tally, to: str | None = None) -> Decision:
        return Decision(kind, tally.stage.name, to, reasons, self._total, self._counts(tally))

    def _move(self, place: int, kind: str, reasons: tuple[str, ...]) -> Decision:
        decision = self._decision(kind, reasons, self._tallies[self._current], self.plan[place].name)
        if self._last_verdict is not None:
            self._last_verdict["outcome"] = f"{kind} to {decision.to}"
        self._enter(place, regression=kind == "regress")
        return decision

    def _enter(self, place: int, *, regression: bool) -> None:
        """Begin a stay."""
        if regression:
            self._tallies[self._current].totals["regressions"] += 1
        self._current = place
        self._stay_version = None
        self._stay_by_regression = regression
        self._stay_admitted = 0
        self._moved = True
        self._stalled = False
        self._tallies[place].begin_stay()
        for earlier in self._tallies[:place]:
            earlier.guard.clear(armed=earlier.passed)

    # ---- commands

    def _place(self, stage: str) -> int:
        try:
            return self.plan.index(stage)
        except PlanError as error:
            raise CommandError(str(error)) from None

    def set_stage(self, stage: str) -> Decision | None:
        """Begin a stay in that stage; None, and nothing changes, if it is the current one."""
        place = self._place(stage)
        if place == self._current:
            return None
        decision = self._move(place, "set_stage", ())
        self._refresh(commanded=True)
        return decision

    def set_mixing_ratio(self, stage: str, ratio: float | None) -> None:
        """Fix a stage's mixing ratio; None gives it back to the rules."""
        place = self._place(stage)
        given: object = ratio
        if ratio is None:
            self._overrides.pop(place, None)
        elif isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= ratio <= 1:
            raise CommandError(f"mixing ratio of {stage!r}: expected a number from 0 to 1, got {ratio!r}")
        else:
            self._overrides[place] = float(ratio)
        self._refresh(commanded=True)

    def hold(self) -> None:
        """Keep counting, decide nothing."""
        self._held = True

    def release(self) -> None:
        """Decide again; the next check comes with the next episode that ends, if it is due."""
        self._held = False
        self._refresh()

    # ---- what is in force

    def _rule_ratio(self, tally: Tally) -> float:
        if not self.stage_mixing:
            return 0.0
        return tally.ratio if self.adaptive_mixing else BASE_RATIO

    def _refresh(self, *, commanded: bool = False) -> None:
        """Renew what is in force; while held, only what a command changed."""
        if not self._held:
            self._ratios = [self._rule_ratio(tally) for tally in self._tallies]
        if self._held and not commanded:
            return
        stage = self.plan[self._current].name
        ratios = tuple(self._overrides.get(i, ratio) for i, ratio in enumerate(self._ratios))
        mix = self._mix(ratios[self._current])
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
        if self.mix_by == "episodes" or self._current == 0:
            return ratio
        current = self._tallies[self._current].mean_length()
        previous = self._tallies[self._current - 1].mean_length()
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
        return self.plan[self._current].name

    @property
    def solved(self) -> bool:
        """The last stage has met its own rule."""
        return self._solved

    @property
    def held(self) -> bool:
        """No decisions are taken."""
        return self._held

    @property
    def total(self) -> int:
        """Ended episodes so far, aborted ones not counted."""
        return self._total

    def progress(self) -> list[dict[str, Any]]:
        """One row per stage: success rate, outcomes, threshold, what is missing to advance,
        ratio, trend, …
        """
        return progress_rows(self)

    def explain(self) -> str:
        """Why the last check came out as it did."""
        return explanation(self._last_verdict, self)

    # ---- state

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data; a replay needs them."""
        return staged_config(self)

    def state_dict(self) -> dict[str, Any]:
        """Plain data, with a schema version."""
        return staged_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if it had not stopped. StateError, and nothing changed, if the state does not fit."""
        load_staged(self, state)
