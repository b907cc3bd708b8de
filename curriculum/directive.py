"""`Directive`, the curriculum's update, and drawing a task from it with a counter-based generator."""
# pure: the same directive, levels, seed and number of resets give the same task, on any worker

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.errors import DirectiveError
from curriculum.levels import LevelSet

__all__ = ["Directive", "Draws"]

_KEY_MASK = (1 << 128) - 1
_PER_RESET = 1 << 64  # of the counter; a draw uses one
_ROUNDS = 1 << 192  # where in the counter the shuffled rounds of generators stand, beside the draws


@dataclass(frozen=True, eq=False)
class Directive:
    """What every worker draws its tasks from; published whole, replaced whole.

    With a `stage`, tasks come from that stage, from the previous one with probability `mix`, from any earlier
    one with probability `probe`. With `stage=None` they come from all levels. `weights`, one number per level
    of the whole level set, in its order, weighs levels against each other; None weighs them equally. `rungs`, the
    place of a stage for each env, gives every env a stage of its own. The generators of a stage take turns, whatever
    their levels weigh; where all of one's levels weigh 0, its turn is drawn equally from them.
    """

    stages: tuple[str, ...]
    stage: str | None
    ratios: tuple[float, ...] = ()  # mixing ratio per stage, as reported
    # probability of drawing from the previous stage: the current stage's ratio, unless mix_by="steps"
    mix: float = 0.0
    probe: float = 0.0
    weights: NDArray[np.float32] | None = None
    rungs: NDArray[Any] | None = None  # of the smallest unsigned type: a byte per env, with up to 256 stages

    def __post_init__(self) -> None:
        if self.stage is not None and self.stage not in self.stages:
            raise DirectiveError(f"stage: expected one of {', '.join(self.stages)}, got {self.stage!r}")
        if self.stage is not None and len(self.ratios) != len(self.stages):
            raise DirectiveError(
                f"ratios: expected one per stage ({len(self.stages)}), got {len(self.ratios)}"
            )
        for key, values in (("ratios", self.ratios), ("mix", (self.mix,)), ("probe", (self.probe,))):
            for value in values:
                if not 0.0 <= value <= 1.0:
                    raise DirectiveError(f"{key}: expected numbers from 0 to 1, got {value!r}")
        if self.weights is not None:
            weights = np.array(self.weights, dtype=np.float32)
            if (
                weights.ndim != 1
                or not np.isfinite(weights).all()
                or (weights < 0).any()
                or not weights.any()
            ):
                raise DirectiveError(
                    "weights: expected one finite number ≥ 0 per level, not all 0, "
                    f"got an array of shape {weights.shape}"
                )
            weights.setflags(write=False)
            object.__setattr__(self, "weights", weights)
        if self.rungs is not None:
            self._check_rungs(np.asarray(self.rungs))

    def _check_rungs(self, given: NDArray[Any]) -> None:
        whole = given.ndim == 1 and given.dtype.kind in "iu" and len(given) > 0
        if self.stage is not None or not whole or given.min() < 0 or given.max() >= len(self.stages):
            raise DirectiveError(
                f"rungs: expected the place of a stage (0 to {len(self.stages) - 1}) for each env, and no stage for all"
            )
        # a copy: the strategy goes on with its own
        rungs = given.astype(np.min_scalar_type(len(self.stages) - 1))
        rungs.setflags(write=False)
        object.__setattr__(self, "rungs", rungs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Directive):
            return NotImplemented
        same = self._plain() == other._plain()
        if not same or self.weights is None or other.weights is None:
            return same and self.weights is other.weights
        return bool(np.array_equal(self.weights, other.weights))

    def __hash__(self) -> int:
        return hash(self._plain())

    def _plain(self) -> tuple[Any, ...]:
        rungs = None if self.rungs is None else self.rungs.tobytes()
        return (self.stages, self.stage, self.ratios, self.mix, self.probe, rungs)

    def __reduce__(self) -> tuple[Any, ...]:  # without what cumulative() keeps
        return (Directive, (*self._plain()[:-1], self.weights, self.rungs))

    def mixing_ratio(self, stage: str) -> float:
        """The mixing ratio of a stage; DirectiveError for an unknown one."""
        if stage not in self.stages or not self.ratios:
            raise DirectiveError(f"unknown stage {stage!r}; the directive has {', '.join(self.stages)}")
        return self.ratios[self.stages.index(stage)]

    def check_fits(self, levels: LevelSet) -> None:
        """DirectiveError unless every stage has levels and every level a weight."""
        missing = [stage for stage in self.stages if stage not in levels.stages]
        if missing:
            raise DirectiveError(
                f"the directive has stage {missing[0]!r}, "
                f"but there are levels only for {', '.join(levels.stages)}"
            )
        if self.weights is not None and len(self.weights) != len(levels):
            raise DirectiveError(
                f"the directive weighs {len(self.weights)} levels, but the env has {len(levels)}"
            )

    def cumulative(self) -> NDArray[np.float64] | None:
        """(levels + 1,) sums of the weights from 0, made once per directive and process: O(log n) per draw
        after it.
        """
        made: NDArray[np.float64] | None = self.__dict__.get("_cumulative")
        if made is None and self.weights is not None:
            made = np.concatenate(([0.0], np.cumsum(self.weights, dtype=np.float64)))
            self.__dict__["_cumulative"] = made
        return made


class Draws:
    """One env's draws: keyed by the last seed it was reset with and the number of resets since.

    Generators of a stage take turns: every round plays each of them once, in an order shuffled per env and
    round and offset by the env's seed.
    """

    def __init__(self, seed: int) -> None:
        self._key = seed & _KEY_MASK
        # at the counter of the next reset: to go on to it costs a quarter of a new generator
        self._bits = np.random.Philox(key=self._key, counter=0)
        self._chances = np.random.Generator(self._bits)
        self._taken: dict[str, int] = {}  # stage → its draws since the seed
        self._round: dict[str, list[int]] = {}  # stage → the order of the round that is being played

    def next(
        self, directive: Directive, levels: LevelSet, index: int | None = None
    ) -> tuple[int, str, str, str]:
        """(level number, stage, generator, role) of the next episode. `index`: which env this is, for its rung."""
        chance = self._chances.random(4)  # one count
        self._bits.advance(_PER_RESET - 1)
        if directive.rungs is not None:
            place = _rung(directive.rungs, index)
            stage = directive.stages[place]
            generator = self._turn(stage, place, levels.generators(stage))
            number = _level(directive, levels.of_generator(stage, generator), float(chance[3]))
            return number, stage, generator, "current"
        if directive.stage is None:
            number = _level(directive, range(len(levels)), float(chance[3]))
            stage, generator = levels.place(number)
            return number, stage, generator, "current"
        current = directive.stages.index(directive.stage)
        place, role = current, "current"
        if current and chance[0] < directive.probe:
            place, role = min(int(chance[1] * current), current - 1), "probe"
        elif current and chance[2] < directive.mix:
            place, role = current - 1, "previous"
        stage = directive.stages[place]
        generator = self._turn(stage, place, levels.generators(stage))
        number = _level(directive, levels.of_generator(stage, generator), float(chance[3]))
        return number, stage, generator, role

    def _turn(self, stage: str, place: int, generators: Sequence[str]) -> str:
        taken = self._taken.get(stage, 0)
        self._taken[stage] = taken + 1
        if len(generators) == 1:
            return generators[0]
        played, position = divmod(taken, len(generators))
        order: Sequence[int] = self._round.get(stage, ())
        if position == 0 or len(order) != len(generators):
            counter = _ROUNDS + (place << 128) + (played << 64)
            shuffle = np.random.Generator(np.random.Philox(key=self._key, counter=counter))
            order = self._round[stage] = shuffle.permutation(len(generators)).tolist()
        return generators[order[(position + self._key) % len(generators)]]


def _rung(rungs: NDArray[Any], index: int | None) -> int:
    if index is None or index >= len(rungs):
        which = "does not know which it is" if index is None else f"is the one of index {index}"
        raise DirectiveError(
            f"the directive has a rung for each of {len(rungs)} envs, and this env {which}: say "
            "CurriculumEnv(…, index=…)"
        )
    return int(rungs[index])


def _level(directive: Directive, numbers: range, chance: float) -> int:
    """A level of a range of numbers, by weight; O(log n)."""
    sums, weights = directive.cumulative(), directive.weights
    if sums is None or weights is None or sums[numbers.stop] <= sums[numbers.start]:
        return min(numbers.start + int(chance * len(numbers)), numbers.stop - 1)
    low, high = sums[numbers.start], sums[numbers.stop]
    found = int(np.searchsorted(sums, low + chance * (high - low), side="right")) - 1
    found = min(max(found, numbers.start), numbers.stop - 1)
    while weights[found] == 0:  # rounding at the upper end
        found -= 1
    return found
