"""`PrioritisedReplay`: replay levels that still teach something (Jiang et al. 2021, arXiv:2010.03934)."""
# pure: deterministic given the order of its inputs

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curriculum.errors import PlanError, StateError
from curriculum.levels import LevelSet
from curriculum.strategies.base import EpisodeLike, Score, StartedLike, expect_number
from curriculum.strategies.weighted import Weighted

__all__ = ["PrioritisedReplay", "ScorePart", "prioritised_weights"]

Statistic = Literal["abs_advantage", "positive_advantage", "value"]
STATISTICS: dict[str, Statistic] = {
    "l1": "abs_advantage",
    "positive": "positive_advantage",
    "max_mc": "value",
}


class ScorePart(NamedTuple):
    """What the learner measured on one part of an episode (the part that fell into one rollout)."""

    env_id: int
    episode: int  # Episode.index
    steps: int  # of this part
    value: float  # mean over its steps of the statistic that the strategy asks for


@dataclass(slots=True)
class _Open:
    """An episode whose score is not complete yet."""

    level: int | None = None
    mean: float = 0.0
    steps: int = 0
    length: int | None = None  # once it has ended
    episode_return: float = 0.0
    drawn_before: int = 0  # the level's C_i before this draw


def prioritised_weights(
    scores: NDArray[np.float64],
    seen: NDArray[np.bool_],
    drawn_at: NDArray[np.int64],
    now: int,
    *,
    beta: float,
    rho: float,
) -> NDArray[np.float64]:
    """(levels,) `P = (1-ρ)·P_score + ρ·P_stale` over the seen levels; the others weigh 0.

    `P_score ∝ (1/rank)^(1/β)`, ranks by falling score, stable ties; `P_stale ∝ c - C_i`, uniform if all are 0.
    """
    numbers = np.flatnonzero(seen)
    ranks = np.empty(len(numbers))
    ranks[np.argsort(-scores[numbers], kind="stable")] = np.arange(1, len(numbers) + 1)
    by_score = ranks ** (-1 / beta)
    stale = (now - drawn_at[numbers]).astype(np.float64)
    total = stale.sum()
    by_staleness = stale / total if total > 0 else np.full(len(numbers), 1 / len(numbers))
    weights = np.zeros(len(scores))
    weights[numbers] = (1 - rho) * by_score / by_score.sum() + rho * by_staleness
    return weights


class PrioritisedReplay(Weighted):
    """Draws seen levels by the learner's scores and by staleness, and unseen ones with what is left.

    `by`: "l1" (mean |A|), "positive" (mean max(A, 0)), or "max_mc" (highest return so far - mean V). The learner
    hands over one `ScorePart` per episode and rollout, with the mean of `statistic` over that part; parts merge
    weighted by steps, so a score does not depend on where rollouts cut the episode. A level has been seen
    once one of its episodes has a complete score. `replay`: probability of a seen level, or "proportionate".
    `waiting`: episodes per env that may be incomplete at a time, as many as can end in one rollout; beyond it the
    oldest get no score.
    """

    def __init__(
        self,
        levels: LevelSet | Sequence[str],
        *,
        by: Literal["l1", "positive", "max_mc"] = "l1",
        beta: float = 0.1,
        rho: float = 0.1,
        replay: float | Literal["proportionate"] = 0.8,
        every: int = 50,
        waiting: int = 64,
        score: Score | None = None,
    ) -> None:
        super().__init__(levels, every=every, score=score)
        if by not in STATISTICS:
            raise PlanError(f"by: expected one of {', '.join(STATISTICS)}, got {by!r}")
        expect_number("beta", beta, lambda x: x > 0, "a number above 0")
        expect_number("rho", rho, lambda x: 0 <= x <= 1, "a number from 0 to 1")
        if replay != "proportionate":
            expect_number("replay", replay, lambda x: 0 <= x <= 1, "a probability or 'proportionate'")
        expect_number("waiting", waiting, lambda n: n >= 1 and n == int(n), "a whole number of at least 1")
        self.by, self.beta, self.rho, self.replay = by, beta, rho, replay
        self.statistic: Statistic = STATISTICS[by]
        self.scores = np.zeros(self.size)
        self.seen = np.zeros(self.size, np.bool_)
        self.best_return = np.full(self.size, -np.inf)
        self.drawn_at = np.zeros(self.size, np.int64)  # C_i, the global draw count at the level's last draw
        self.draws = 0  # c
        self._open: OrderedDict[tuple[int, int], _Open] = OrderedDict()
        self._waiting = waiting
        self._room = 1024

    def attached(self, num_envs: int) -> None:
        """Other envs: episodes that are not complete never will be; those that still ran count as never drawn.

        So a run that goes on from a state saved right after a reset, and begins with that reset, counts its draws once.
        """
        for opened in reversed(self._open.values()):
            if opened.level is not None and opened.length is None:
                self.drawn_at[opened.level] = opened.drawn_before
                self.draws -= 1
        self._open.clear()
        self._room = max(1024, self._waiting * num_envs)

    def started(self, event: StartedLike) -> None:
        """A level was drawn."""
        self._drawn(event)

    def _drawn(self, event: StartedLike) -> _Open:
        number = self._number(event)
        opened = self._open.setdefault((event.env_id, event.index), _Open())
        opened.level, opened.drawn_before = number, int(self.drawn_at[number])
        self.draws += 1
        self.drawn_at[number] = self.draws
        if len(self._open) > self._room:  # the learner scores no more; the oldest will stay incomplete
            self._open.popitem(last=False)
        return opened

    def observe(self, episode: EpisodeLike) -> None:
        """An episode ended; it is scored once the learner's parts cover it."""
        super().observe(episode)
        key = (episode.env_id, episode.index)
        opened = self._open.get(key)
        if opened is None or opened.level is None:
            opened = self._drawn(episode)
        if episode.outcome == "aborted":
            del self._open[key]
            return
        opened.length, opened.episode_return = episode.length, episode.episode_return
        self._commit(key, opened)

    def record_scores(self, parts: Iterable[ScorePart | tuple[int, int, int, float]]) -> None:
        """Merge the parts: `m ← m + (s - m)·n/N`, n steps of this part, N steps so far including it."""
        for env_id, index, steps, value in parts:
            if steps < 1 or not np.isfinite(value):
                raise ValueError(
                    f"env {env_id}: episode {index}: expected steps ≥ 1 and a finite value, got {steps}, {value}"
                )
            key = (int(env_id), int(index))
            opened = self._open.setdefault(key, _Open())
            opened.steps += int(steps)
            opened.mean += (float(value) - opened.mean) * int(steps) / opened.steps
            self._commit(key, opened)

    def _commit(self, key: tuple[int, int], opened: _Open) -> None:
        if opened.length is None or opened.level is None or opened.steps < opened.length:
            return
        if opened.steps > opened.length:
            raise ValueError(
                f"env {key[0]}: episode {key[1]} has {opened.length} steps, but parts of {opened.steps} were scored"
            )
        del self._open[key]
        level = opened.level
        self.best_return[level] = max(self.best_return[level], opened.episode_return)
        self.scores[level] = self.best_return[level] - opened.mean if self.by == "max_mc" else opened.mean
        self.seen[level] = True

    def _weights(self) -> NDArray[np.float64] | None:
        count = int(self.seen.sum())
        if count == 0:
            return None
        replayed = prioritised_weights(
            self.scores, self.seen, self.drawn_at, self.draws, beta=self.beta, rho=self.rho
        )
        unseen = self.size - count
        if unseen == 0:
            return replayed
        share = count / self.size if self.replay == "proportionate" else float(self.replay)
        return np.asarray(share * replayed + (1 - share) * ~self.seen / unseen)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "scores": self.scores,
            "seen": self.seen,
            "drawn_at": self.drawn_at,
        }

    def _numbers(self) -> dict[str, int]:
        return {"draws": self.draws}

    def _extra(self) -> Any:
        return {
            "best_return": [None if value == -np.inf else value for value in self.best_return.tolist()],
            "open": [[*key, *astuple(opened)] for key, opened in self._open.items()],
        }

    def _load_extra(self, extra: Any, where: str) -> None:
        try:
            best = np.array(
                [-np.inf if value is None else value for value in extra["best_return"]], np.float64
            )
            opened = OrderedDict(((row[0], row[1]), _Open(*row[2:])) for row in extra["open"])
        except (TypeError, KeyError, ValueError, IndexError) as error:
            raise StateError(f"{where}: extra: expected best_return and open, as saved: {error}") from error
        if best.shape != (self.size,):
            raise StateError(f"{where}: best_return: expected {self.size} numbers, got {len(best)}")
        self.best_return, self._open = best, opened
