"""The terrain toy: ten grades of terrain; how many episodes until the steepest is walked?

`python -m benchmarks.terrain [--seeds 20] [--envs 64]` prints a row per strategy, where all envs have one kind of
terrain, and where there are four that are learned at different speeds: the median over seeds, its 80 % interval
(bootstrap), and the ratio to `Staged`, seed by seed; then the bytes of a directive for 4,096 envs.
"""
# edge: argv and stdout; the simulation is pure, through the strategies and draws of the package

from __future__ import annotations

import argparse
import math
import pickle
import sys
from collections.abc import Callable, Sequence

import numpy as np

from curriculum import (
    DomainRandomisation,
    FinishedEpisode,
    Ladder,
    Level,
    LevelSet,
    Stage,
    Staged,
    StagePlan,
    Strategy,
)
from curriculum.directive import Draws

GRADES = 10
RATES = {1: (0.004,), 4: (0.008, 0.004, 0.002, 0.001)}  # by kinds: what an episode teaches at most
MOST = 200_000  # episodes; nobody looks further
PLAN = StagePlan([Stage(f"grade {i}", 0.70, 50) for i in range(GRADES)])
LEVELS = LevelSet([Level(name, name) for name in PLAN.names])

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "Staged": lambda: Staged(PLAN),
    "Ladder": lambda: Ladder(PLAN),
    "DomainRandomisation": lambda: DomainRandomisation(LEVELS),
}


def episodes_until_walked(strategy: Strategy, kinds: int, num_envs: int, seed: int) -> int:
    """Episodes until the skill on every kind reaches the steepest grade; MOST if it does not.

    Env i has the terrain of kind i mod `kinds`. On grade g a skill s succeeds with p = 1 / (1 + exp(2(g - s))), and
    learns most where p is a half: s += rate · 4p(1 - p). All envs end an episode at each turn, and each draws the next
    by the newest directive.
    """
    rng = np.random.default_rng(seed)
    draws = [Draws(int(key)) for key in rng.integers(0, 2**63, num_envs)]
    settle = getattr(strategy, "settle", None)
    attached = getattr(strategy, "attached", None)
    if attached is not None:
        attached(num_envs)
    skills, rates = [0.0] * kinds, RATES[kinds]
    played, version, directive = 0, 1, strategy.directive()
    published = getattr(strategy, "published", None)
    if published is not None:
        published(version)
    for turn in range(MOST // num_envs):
        if strategy.directive() is not directive:
            directive, version = strategy.directive(), version + 1
            if published is not None:
                published(version)
        drawn = [draw.next(directive, LEVELS, env_id) for env_id, draw in enumerate(draws)]
        for env_id, (number, stage, generator, role) in enumerate(drawn):
            kind = env_id % kinds
            p = 1 / (1 + math.exp(2 * (number - skills[kind])))
            good = bool(rng.random() < p)
            skills[kind] += rates[kind] * 4 * p * (1 - p)
            played += 1
            if min(skills) >= GRADES - 1:
                return played
            task = {"stage": stage, "level": LEVELS[number].id, "generator": generator, "role": role}
            order = turn * num_envs + env_id
            strategy.observe(
                FinishedEpisode(
                    env_id, turn, order, 1, 0.0, "terminated", version, task, {"is_success": good}
                )
            )
        if settle is not None:
            settle((turn + 1) * num_envs)
    return MOST


def interval(values: Sequence[float], rng: np.random.Generator) -> tuple[float, float]:
    """80 % interval of the median, by bootstrap."""
    medians = np.median(rng.choice(np.array(values), (10_000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.1, 0.9])
    return float(low), float(high)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Ladder, Staged and uniform draws on a toy of terrains.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--envs", type=int, default=64)
    arguments = parser.parse_args(argv)
    print("| kinds | strategy | episodes, median | 80 % interval | ratio to Staged | 80 % interval |")
    print("|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for kinds in RATES:
        seeds = range(arguments.seeds)
        found = {
            name: [episodes_until_walked(make(), kinds, arguments.envs, seed) for seed in seeds]
            for name, make in STRATEGIES.items()
        }
        for name, values in found.items():
            ratios = [value / staged for value, staged in zip(values, found["Staged"])]
            (low, high), (least, most) = interval(values, rng), interval(ratios, rng)
            print(
                f"| {kinds} | {name} | {np.median(values):,.0f} | {low:,.0f}-{high:,.0f} "
                f"| {np.median(ratios):.2f} | {least:.2f}-{most:.2f} |"
            )
    ladder = Ladder(PLAN)
    ladder.attached(4096)
    size = len(pickle.dumps(ladder.directive(), protocol=5))
    print(f"{arguments.seeds} seeds, {arguments.envs} envs. A directive for 4,096 envs: {size:,} bytes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
