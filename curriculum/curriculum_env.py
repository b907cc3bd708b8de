"""`CurriculumEnv`: the Gymnasium wrapper that draws its task at reset from the newest directive."""
# child: synchronous; under a vec env it only draws, it never counts and never decides

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from curriculum.directive import Directive, Draws
from curriculum.errors import DirectiveError, LevelError
from curriculum.levels import Level, LevelSet
from curriculum.strategies.base import (
    SUCCESS_EVER,
    SUCCESS_UNCLEAR,
    FinishedEpisode,
    Strategy,
    said_success,
    unclear_said,
    unclear_success,
)

__all__ = ["CurriculumEnv"]


class CurriculumEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Draws a task at each reset, loads its level, and stamps the episode with it.

    `load(env, level)` puts a level into the env inside; without it the level is passed on as
    `reset(options={"level": level.data})`. The reset info gets `task` (stage, level, generator, role) and the
    flat keys `curriculum_stage` and `curriculum_level_id`; the last step's info gets the flat keys again, and
    `curriculum_success_ever`: whether any step's info said `is_success` (else `success`); None where none said either.

    Under a vec env, directives come from the coordinator; what is broadcast and is not a directive is handed
    to the env inside. Alone, with `strategy=`, it is the only one who counts: it tracks its own episodes, and
    the strategy checks every 10 of them.

    `index`: which env this is, for strategies that give every env a stage of its own; `AsyncVecEnv` tells it.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        levels: LevelSet,
        *,
        load: Callable[[gym.Env[Any, Any], Level], object] | None = None,
        strategy: Strategy | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(env)
        self.index = 0 if index is None and strategy is not None else index
        self.levels = levels
        self.strategy = strategy
        self._load = load
        self._draws = Draws(secrets.randbits(64))
        self._directive: Directive | None = None
        self._version = 0
        self._task: dict[str, str] = {}
        self._seed: int | None = None  # the newest that a reset brought
        # (stage, level, error) of resets that raised since the last one that did not: its info says so
        self._failed_resets: list[tuple[str, str, str]] = []
        self._told: list[tuple[str, str, str]] = []  # those that the newest reset's info said
        # what the newest reset drew, until a step is played; and whether it raised inside, and is among those
        self._drawn: dict[str, str] | None = None
        self._noted = False
        # whether a step of the episode that runs succeeded; None: none said
        self._succeeded: bool | None = None
        self._unclear: str | None = None  # the first that one of them said which is neither yes nor no
        # index, length, return, version; while one runs, and only with a strategy of its own to tell them to
        self._episode: tuple[int, int, float, int] | None = None
        self._episodes = 0
        self._warned = False  # of a success that cannot be read
        if strategy is not None:
            self._call("attached", 1)
            self._publish()

    # ---- updates

    def on_index(self, index: int) -> None:
        """Which env of the vec env this is, unless it was said when it was made."""
        if self.index is None:
            self.index = index
        if self.env.has_wrapper_attr("on_index"):
            self.env.get_wrapper_attr("on_index")(index)

    def on_broadcast(self, payload: Any, version: int) -> None:
        """Store a directive for the next reset; hand anything else to the env inside."""
        if not isinstance(payload, Directive):
            if self.env.has_wrapper_attr("on_broadcast"):
                self.env.get_wrapper_attr("on_broadcast")(payload, version)
            return
        if self.strategy is not None:
            raise DirectiveError(
                "a directive arrived, but this env has a strategy of its own: "
                "give the strategy to the Coordinator only"
            )
        payload.check_fits(self.levels)
        self._directive, self._version = payload, version

    @property
    def directive(self) -> Directive:
        """What the next task is drawn from; DirectiveError before any has arrived."""
        if self._directive is None:
            raise DirectiveError(
                "no directive has arrived: make a Coordinator on the vec env before its first reset, or give this "
                "env a strategy of its own; if there is a Coordinator, a wrapper around this env has an on_broadcast "
                "that keeps what is not its own"
            )
        return self._directive

    def get_mixing_ratio(self, stage: str) -> float:
        """The mixing ratio that this env uses for a stage."""
        return self.directive.mixing_ratio(stage)

    @property
    def task(self) -> dict[str, str]:
        """The stamp of the episode that runs; empty before the first reset."""
        return dict(self._task)

    # ---- episodes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw a task, load its level, reset the env inside, stamp the info.

        Where resets raised since the last one that did not, its `failed_resets` lists stage, level and error of each.
        Tried again with the same seed, the next level is drawn, and the env inside gets a seed derived from it.
        """
        self._end("aborted", {})
        self._told, self._drawn, self._noted = [], None, False
        directive = self.directive
        if seed is not None and self._failed_resets and seed == self._seed:
            # tried again: the same level under the same seed would only fail again
            seed = int(np.random.SeedSequence([seed, len(self._failed_resets)]).generate_state(1)[0])
        elif seed is not None:
            self._seed = int(seed)
            self._draws = Draws(self._seed)
        number, stage, generator, role = self._draws.next(directive, self.levels, self.index)
        level = self.levels[number]
        self._drawn = task = {"stage": stage, "level": level.id, "generator": generator, "role": role}
        try:
            if self._load is not None:
                self._load(self.env, level)
                obs, info = self.env.reset(seed=seed, options=options)
            else:
                obs, info = self.env.reset(seed=seed, options={**(options or {}), "level": level.data})
        except LevelError:
            raise
        except Exception as error:
            error.add_note(f"while starting level {level.id!r} of stage {stage!r} ({generator})")
            self._note_failure(error)
            raise
        self._succeeded = self._unclear = None
        self._task = task
        if self.strategy is not None:
            self._episode = (self._episodes, 0, 0.0, self._version)
            self._episodes += 1
            self._call("started", self._finished("", {}))
        info = self._checked(info, "reset")
        if self._failed_resets:
            info = {**info, "failed_resets": self._failed_resets}
            self._told, self._failed_resets = self._failed_resets, []
        return obs, {**info, "task": self.task, **self._flat()}

    def on_failed_reset(self, error: Exception) -> dict[str, str] | None:
        """A vec env's worker says so where a reset raised, here or in a wrapper around, or gave what does not fit.

        Returns the stamp of what it had drawn; None if it had not come so far. The next reset's info lists it.
        """
        drawn = self._drawn
        if drawn is not None and not self._noted:
            self._failed_resets = [*self._told, *self._failed_resets]  # that info was lost
            self._note_failure(error)
        self._told, self._drawn = [], None
        return drawn

    def _note_failure(self, error: Exception) -> None:
        assert self._drawn is not None
        try:
            text = f"{type(error).__name__}: {error}"
        except Exception:  # of its own __str__
            text = type(error).__name__
        self._failed_resets.append((self._drawn["stage"], self._drawn["level"], text))
        self._noted = True

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the env inside; the last step's info names stage and level."""
        self._drawn = None
        try:
            result = self.env.step(action)
        except Exception as error:
            error.add_note(f"while playing {self._where()}")
            raise
        obs, reward, terminated, truncated, info = result
        if self._episode is not None:
            index, length, total, version = self._episode
            self._episode = (index, length + 1, total + float(reward), version)
        ended = terminated or truncated
        if not ended and not info and not self._succeeded:
            return result
        info = self._checked(info, "step")
        if not self._succeeded:
            self._read_success(info)
        if ended:
            info = {**info, **self._flat(), SUCCESS_EVER: self._succeeded}
            if self._unclear is not None:
                info[SUCCESS_UNCLEAR] = self._unclear
            self._end("terminated" if terminated else "truncated", info)
        elif self._succeeded:  # a wrapper around this one may end the episode here
            info = {**info, SUCCESS_EVER: True}
        return obs, reward, terminated, truncated, info

    def _read_success(self, info: dict[str, Any]) -> None:
        """Take in what a step's info says of success."""
        said = said_success(info)
        if said is not None:
            self._succeeded = said
        elif self._unclear is None:
            self._unclear = unclear_said(info)

    def _where(self) -> str:
        if not self._task:
            return "before the first reset"
        return f"level {self._task['level']!r} of stage {self._task['stage']!r} ({self._task['generator']})"

    def _checked(self, info: Any, op: str) -> dict[str, Any]:
        if isinstance(info, dict):
            return info
        raise TypeError(f"{op} of {self.env}: the info: expected a dict, got {info!r:.60} ({self._where()})")

    def _flat(self) -> dict[str, str]:
        return {"curriculum_stage": self._task["stage"], "curriculum_level_id": self._task["level"]}

    # ---- alone

    def _finished(self, outcome: str, info: dict[str, Any]) -> FinishedEpisode:
        assert self._episode is not None
        index, length, total, version = self._episode
        return FinishedEpisode(0, index, index, length, total, outcome, version, self._task, info)

    def _end(self, outcome: str, info: dict[str, Any]) -> None:
        """Without a strategy of its own, nothing is counted here: the coordinator is the only
        one who counts.
        """
        if self._episode is None or self.strategy is None:
            return
        episode = self._finished(outcome, info)
        if not self._warned and (text := unclear_success(episode)) is not None:
            self._warned = True
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        self.strategy.observe(episode)
        self._call("settle", None)
        self._publish()
        self._episode = None

    def _publish(self) -> None:
        assert self.strategy is not None
        directive = self.strategy.directive()
        if directive is not self._directive and directive != self._directive:
            directive.check_fits(self.levels)
            self._directive = directive
            self._version += 1
            self._call("published", self._version)

    def _call(self, name: str, *arguments: Any) -> None:
        method = getattr(self.strategy, name, None)
        if method is not None:
            method(*arguments)
