"""What strategies over single levels share: level numbers, scores, when to renew weights, state; and the baseline."""
# pure: deterministic given the order of its inputs

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.directive import Directive
from curriculum.errors import PlanError, StampError, StateError
from curriculum.levels import LevelSet
from curriculum.strategies.base import (
    EpisodeLike,
    Score,
    StartedLike,
    ever_success_score,
    expect_number,
    expect_success,
    need,
    success_score,
    task_of,
)

__all__ = ["DomainRandomisation", "Weighted", "array_of"]


_MOST = 10_000_000


class Weighted:
    """Draws from all levels by a weight each, renewed every `every` observed episodes.

    `levels`: the level set the envs draw from, or the ids of its levels in their order. `score`: episode → [0, 1];
    None: 1 for a success, else 0, by the last step or by any, as the plan of the level set says. Aborted episodes are
    counted and otherwise ignored. Subclasses say how a score is taken in (`_take`) and what the weights are
    (`_weights`, probabilities that sum to 1; None for uniform).
    """

    _BY_SCORE = False  # whether the scores decide what is drawn

    def __init__(
        self, levels: LevelSet | Sequence[str], *, every: int = 50, score: Score | None = None
    ) -> None:
        expect_number("every", every, lambda n: n >= 1 and n == int(n), "a whole number of at least 1")
        if score is None:
            plan = levels.plan if isinstance(levels, LevelSet) else None
            score = ever_success_score if plan is not None and plan.success == "ever" else success_score
            if self._BY_SCORE:
                expect_success(plan, type(self).__name__, "score=, a function of the episode, how good it is")
        if not callable(score):
            raise PlanError(f"score: expected a function of the episode, got {score!r}")
        self.every, self.score = every, score
        self._levels = levels if isinstance(levels, LevelSet) else None
        self._ids = None if isinstance(levels, LevelSet) else {name: i for i, name in enumerate(levels)}
        self.size = len(levels)
        if self.size > _MOST:
            raise PlanError(
                f"levels: expected at most {_MOST:,}, each with a weight of its own, got {self.size:,}"
            )
        if self.size < 1 or (self._ids is not None and len(self._ids) < self.size):
            raise PlanError("levels: expected at least one id, each once")
        self.counts: NDArray[np.int64] = np.zeros(self.size, np.int64)  # observed episodes by level
        self.sums: NDArray[np.float64] = np.zeros(self.size)  # of their scores
        self.total = 0
        self.aborted = 0
        self._since = 0
        self._held = False
        self._directive: Directive | None = None
        self._crc: int | None = None

    def _fingerprint(self) -> int:
        """Of the levels' ids in their order: a state of other levels is refused."""
        if self._crc is None:
            crc = 0
            for name in self._levels.ids() if self._levels is not None else self._ids or ():
                crc = zlib.crc32(name.encode() + b"\0", crc)
            self._crc = crc
        return self._crc

    def _number(self, event: StartedLike) -> int:
        level = task_of(event)["level"]
        number = self._levels.index(level) if self._levels is not None else (self._ids or {}).get(level)
        if number is None:
            raise StampError(
                f"env {event.env_id}: episode {event.index} is stamped with the unknown level {level!r}"
            )
        return number

    def observe(self, episode: EpisodeLike) -> None:
        """Take in a finished episode."""
        number = self._number(episode)
        if episode.outcome == "aborted":
            self.aborted += 1
            return
        given: object = self.score(episode)
        try:
            score = float(given)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            score = math.nan
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"env {episode.env_id}: score: expected a number from 0 to 1, got {given!r:.60}")
        self.counts[number] += 1
        self.sums[number] += score
        self.total += 1
        self._take(number, score)
        self._since += 1
        self._renew()

    def _renew(self) -> None:
        if self._since >= self.every and not self._held:
            self._since = 0
            self._directive = None

    def hold(self) -> None:
        """Keep counting; the weights stay what they are."""
        self.directive()
        self._held = True

    def release(self) -> None:
        """Renew the weights again, at once if that is due."""
        self._held = False
        self._renew()

    def _take(self, number: int, score: float) -> None:
        """Take in the score of one episode of that level."""

    def _weights(self) -> NDArray[np.float64] | None:
        """(levels,) probabilities."""
        return None

    def directive(self) -> Directive:
        """What workers shall draw from; renewed every `every` episodes."""
        if self._directive is None:
            weights = self._weights()
            stages = () if self._levels is None else self._levels.stages
            self._directive = Directive(
                stages, None, weights=None if weights is None else weights.astype(np.float32)
            )
        return self._directive

    def progress(self) -> list[dict[str, Any]]:
        """One row per stage: levels, how many were seen, mean score, share of the draws."""
        if self._levels is None:
            groups = {"all": range(self.size)}
        else:
            groups = {stage: self._levels.of_stage(stage) for stage in self._levels.stages}
        weights = self.directive().weights
        rows = []
        for name, group in groups.items():
            part = slice(group.start, group.stop)
            outcomes = int(self.counts[part].sum())
            share = len(group) / self.size
            if weights is not None:
                share = float(weights[part].sum(dtype=np.float64) / weights.sum(dtype=np.float64))
            rows.append(
                {
                    "stage": name,
                    "levels": len(group),
                    "seen": int((self.counts[part] > 0).sum()),
                    "outcomes": outcomes,
                    "success_rate": float(self.sums[part].sum()) / outcomes if outcomes else None,
                    "share": share,
                }
            )
        return rows

    # ---- state

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """What a subclass keeps per level, by name; load_state_dict assigns to the same attributes."""
        return {}

    def _numbers(self) -> dict[str, int]:
        """What a subclass keeps beside, by name."""
        return {}

    def _extra(self) -> Any:
        """Anything else that a subclass keeps, as plain data."""
        return None

    def _load_extra(self, extra: Any, where: str) -> None:
        """Take over what `_extra` gave."""

    def _all_arrays(self) -> dict[str, NDArray[Any]]:
        return {"counts": self.counts, "sums": self.sums, **self._arrays()}

    def config(self) -> dict[str, Any]:
        """What a journal says of it."""
        return {"strategy": type(self).__name__, "levels": self.size, "every": self.every}

    def state_dict(self) -> dict[str, Any]:
        """Plain data, with a schema version. Weights in force are kept too: they are not renewed at once."""
        weights = self.directive().weights
        return {
            "schema": 1,
            "strategy": type(self).__name__,
            "levels": self.size,
            "ids": self._fingerprint(),
            "total": self.total,
            "aborted": self.aborted,
            "since": self._since,
            "held": self._held,
            "arrays": {name: array.tolist() for name, array in self._all_arrays().items()},
            "numbers": self._numbers(),
            "extra": self._extra(),
            "weights": None if weights is None else weights.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue as if it had not stopped. StateError, and nothing changed, if the state does not fit."""
        mine = type(self).__name__
        where = f"{mine} state"
        if need(state, "schema", int, where) != 1 or need(state, "strategy", str, where) != mine:
            raise StateError(
                f"{where}: expected schema 1 of {mine}, got {state['schema']} of {state['strategy']}"
            )
        if need(state, "levels", int, where) != self.size:
            raise StateError(f"{where}: levels: expected {self.size}, got {state['levels']}")
        if need(state, "ids", int, where) != self._fingerprint():
            raise StateError(f"{where}: ids: it was saved over other levels, or in another order")
        saved = need(state, "arrays", dict, where)
        arrays = {
            name: array_of(need(saved, name, list, f"{where}: arrays"), array, f"{where}: {name}")
            for name, array in self._all_arrays().items()
        }
        numbers = need(state, "numbers", dict, where)
        numbers = {name: need(numbers, name, int, f"{where}: numbers") for name in self._numbers()}
        own = {key: need(state, key, int, where) for key in ("total", "aborted", "since")}
        held = need({"held": False, **state}, "held", bool, where)  # 0.1 kept none
        weights = need(state, "weights", (list, type(None)), where)
        kept = None
        if weights is not None:
            kept = array_of(weights, np.zeros(self.size, np.float32), f"{where}: weights")
        directive = Directive(self.directive().stages, None, weights=kept)
        self._load_extra(state.get("extra"), where)
        for name, array in arrays.items():
            setattr(self, name, array)
        for name, number in numbers.items():
            setattr(self, name, number)
        self.total, self.aborted, self._since = own["total"], own["aborted"], own["since"]
        self._held = held
        self._directive = directive


def array_of(values: Any, like: NDArray[Any], where: str) -> NDArray[Any]:
    """A list as an array of the same shape and dtype; StateError if it is not that."""
    try:
        array = np.array(values, dtype=like.dtype)
    except (TypeError, ValueError) as error:
        raise StateError(f"{where}: expected {len(like)} numbers: {error}") from error
    if array.shape != like.shape:
        raise StateError(f"{where}: expected {len(like)} numbers, got shape {array.shape}")
    return array


class DomainRandomisation(Weighted):
    """Uniform over all levels: the baseline that every curriculum has to beat."""
