"""`Ladder`: a rung per env, up after a success, down after a failure, as curricula of terrains for legged robots do."""
# pure: deterministic given its inputs; the order in which envs come makes no difference

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.directive import Directive
from curriculum.errors import CommandError, PlanError, StampError, StateError
from curriculum.levels import LevelSet
from curriculum.stages import StagePlan, SuccessRule
from curriculum.strategies.base import (
    Decision,
    EpisodeLike,
    Success,
    expect_success,
    need,
    success_function,
    task_of,
)

__all__ = ["Ladder"]

_WHERE = "Ladder state"
_TOTALS = ("ended", "succeeded", "aborted")


class Ladder:
    """Each env plays the stage of its own rung (Rudin et al. 2021, arXiv:2109.11978).

    After a success on its rung an env goes one up, after a failure one down; who succeeds on the top rung goes on at
    a random one, so that none is forgotten. Only an episode that was played on the env's rung moves it; an aborted
    one moves nothing.

    `stages`: the rungs, lowest first: a plan, a level set, or names. `success`: as for `Staged`. `down`: which episodes
    go down, a function; None: all that do not go up. `start`: the highest rung that envs begin on, evenly spread from
    the lowest on. `seed`: of the random rungs.
    """

    def __init__(
        self,
        stages: StagePlan | LevelSet | Sequence[str],
        *,
        success: Success | SuccessRule | None = None,
        down: Success | None = None,
        start: int = 0,
        seed: int = 0,
    ) -> None:
        plan = stages.plan if isinstance(stages, LevelSet) else stages
        if isinstance(plan, StagePlan):
            if not callable(success):
                expect_success(plan, "Ladder", "success=, a function of the episode, which episodes go up")
            success = plan.success if success is None else success
        if isinstance(stages, StagePlan):
            names = stages.names
        else:
            names = tuple(stages.stages if isinstance(stages, LevelSet) else stages)
        if not names or len(set(names)) < len(names):
            raise PlanError(f"stages: expected at least one name, each once, got {names!r:.80}")
        if not (isinstance(start, int) and 0 <= start < len(names)):
            raise PlanError(f"start: expected a rung from 0 to {len(names) - 1}, got {start!r}")
        if down is not None and not callable(down):
            raise PlanError(f"down: expected a function of the episode, got {down!r}")
        self.stages, self.down, self.start, self.seed = names, down, start, seed
        self.success = success_function("last" if success is None else success)
        self.total = 0  # ended episodes, aborted ones not counted
        self.rungs: NDArray[np.int64] = self._begin(1)
        self._places = {name: place for place, name in enumerate(names)}
        self._totals = {key: np.zeros(len(names), np.int64) for key in _TOTALS}
        self._held = False
        self._directive: Directive | None = None

    def _begin(self, num_envs: int) -> NDArray[np.int64]:
        return np.arange(num_envs, dtype=np.int64) % (self.start + 1)

    # ---- episodes in

    def attached(self, num_envs: int) -> None:
        """Other envs from here on. As many as before keep their rungs; more or fewer begin anew on the lowest ones."""
        if num_envs != len(self.rungs):
            kept = self.rungs[:num_envs]
            self.rungs = self._begin(num_envs)
            self.rungs[: len(kept)] = kept
            self._directive = None

    def observe(self, episode: EpisodeLike) -> None:
        """Take in a finished episode."""
        task, env_id = task_of(episode), episode.env_id
        place = self._places.get(task["stage"])
        if place is None or not 0 <= env_id < len(self.rungs):
            raise StampError(
                f"env {env_id}: episode {episode.index} is stamped with the stage {task['stage']!r}; the ladder has "
                f"{', '.join(self.stages)}, for {len(self.rungs)} envs"
            )
        if episode.outcome == "aborted":
            self._totals["aborted"][place] += 1
            return
        up = bool(self.success(episode))
        self._totals["ended"][place] += 1
        self._totals["succeeded"][place] += up
        self.total += 1
        if place != self.rungs[env_id] or self._held:
            return
        if up:
            top = place == len(self.stages) - 1
            self._move(env_id, self._any(env_id, episode.index) if top else place + 1)
        elif place and (self.down is None or self.down(episode)):
            self._move(env_id, place - 1)

    def _any(self, env_id: int, index: int) -> int:
        chance = np.random.Generator(np.random.Philox(key=self.seed, counter=(env_id << 64) + index))
        return int(chance.integers(len(self.stages)))

    def _move(self, env_id: int, rung: int) -> None:
        if rung != self.rungs[env_id]:
            self.rungs[env_id] = rung
            self._directive = None

    # ---- what is in force

    def directive(self) -> Directive:
        """The rung of every env; the same object while no env has moved."""
        if self._directive is None:
            self._directive = Directive(self.stages, None, rungs=self.rungs)
        return self._directive

    def set_stage(self, stage: str) -> Decision:
        """Put every env on that rung."""
        place = self._places.get(stage)
        if place is None:
            raise CommandError(f"unknown stage {stage!r}; the ladder has {', '.join(self.stages)}")
        self.rungs[:] = place
        self._directive = None
        return Decision("set_stage", None, stage, total=self.total)

    def hold(self) -> None:
        """Keep counting, move nobody."""
        self._held = True

    def release(self) -> None:
        """Move again."""
        self._held = False

    @property
    def mean_rung(self) -> float:
        """Mean over the envs; 0 is the lowest."""
        return float(self.rungs.mean())

    def progress(self) -> list[dict[str, Any]]:
        """One row per rung: envs on it, episodes that ended there, their success rate, share of the draws."""
        envs = np.bincount(self.rungs, minlength=len(self.stages))
        rows = []
        for place, name in enumerate(self.stages):
            totals = {key: int(values[place]) for key, values in self._totals.items()}
            rate = totals["succeeded"] / totals["ended"] if totals["ended"] else None
            rows.append(
                {
                    "stage": name,
                    "envs": int(envs[place]),
                    "outcomes": totals["ended"],
                    "success_rate": rate,
                    "share": float(envs[place] / len(self.rungs)),
                    **totals,
                }
            )
        return rows

    def explain(self) -> str:
        """Where the envs are."""
        envs = ", ".join(f"{row['stage']} {row['envs']}" for row in self.progress() if row["envs"])
        held = "; moves are on hold" if self._held else ""
        return f"mean rung {self.mean_rung:.2f} of 0 to {len(self.stages) - 1}; envs on each: {envs}{held}"

    # ---- state

    def config(self) -> dict[str, Any]:
        """What a journal says of it."""
        return {"strategy": "Ladder", "stages": list(self.stages), "start": self.start, "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """Plain data, with a schema version."""
        return {
            "schema": 1,
            "strategy": "Ladder",
            "stages": list(self.stages),
            "rungs": self.rungs.tolist(),
            "total": self.total,
            "held": self._held,
            "totals": {key: values.tolist() for key, values in self._totals.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if it had not stopped. StateError, and nothing changed, if the state does not fit."""
        schema, strategy = need(state, "schema", int, _WHERE), need(state, "strategy", str, _WHERE)
        if (schema, strategy) != (1, "Ladder"):
            raise StateError(f"{_WHERE}: expected schema 1 of Ladder, got {schema} of {strategy}")
        if need(state, "stages", list, _WHERE) != list(self.stages):
            raise StateError(f"{_WHERE}: stages: expected {list(self.stages)!r}, got {state['stages']!r}")
        rungs = need(state, "rungs", list, _WHERE)
        if not rungs or not all(type(rung) is int and 0 <= rung < len(self.stages) for rung in rungs):
            raise StateError(f"{_WHERE}: rungs: expected one from 0 to {len(self.stages) - 1} per env")
        totals = need(state, "totals", dict, _WHERE)
        counted = {key: need(totals, key, list, f"{_WHERE}: totals") for key in _TOTALS}
        for key, values in counted.items():
            if len(values) != len(self.stages) or not all(type(value) is int for value in values):
                raise StateError(f"{_WHERE}: totals: {key}: expected {len(self.stages)} whole numbers")
        total, held = need(state, "total", int, _WHERE), need(state, "held", bool, _WHERE)
        self.total, self._held = total, held
        self.rungs = np.array(rungs, np.int64)
        self._totals = {key: np.array(values, np.int64) for key, values in counted.items()}
        self._directive = None
