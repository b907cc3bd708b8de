"""The cube toy: 100 levels that unlock each other; which strategy masters them in 20,000 episodes?

`python -m benchmarks.cube_toy [--plot PNG]` prints a table, one row per strategy and seed, and checks the bars of the
design: uniform below 10 %, LearningProgress and Learnability at 95 % or more, for every seed.
"""
# edge: argv and stdout; the simulation itself is pure

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from curriculum import (
    DomainRandomisation,
    FinishedEpisode,
    Learnability,
    LearningProgress,
    Level,
    LevelSet,
    PrioritisedReplay,
    Strategy,
)
from curriculum.directive import Draws

SIDE = 10
EPISODES = 20_000
SEEDS = range(5)
MASTERED = 75  # C above it
EVERY = 200  # episodes between two points of the plot


def competence(episode: FinishedEpisode) -> float:
    """The observed score: C/100, not a coin flip."""
    return float(episode.final_info["score"])


STRATEGIES: dict[str, Callable[[LevelSet], Strategy]] = {
    "uniform": DomainRandomisation,
    "LearningProgress": lambda levels: LearningProgress(levels, score=competence),
    "Learnability": lambda levels: Learnability(levels, score=competence),
    "PrioritisedReplay": lambda levels: PrioritisedReplay(levels, by="max_mc", score=competence),
}
BARS: dict[str, Callable[[float], bool]] = {
    "uniform": lambda share: share < 0.10,
    "LearningProgress": lambda share: share >= 0.95,
    "Learnability": lambda share: share >= 0.95,
}


def cubes() -> LevelSet:
    """Level (i, j) has the number 10·i + j."""
    return LevelSet([Level("cubes", f"{i},{j}") for i in range(SIDE) for j in range(SIDE)])


def simulate(strategy: Strategy, levels: LevelSet, seed: int, episodes: int = EPISODES) -> list[float]:
    """Share mastered, every 200 episodes and at the end. (0, 0) is unlocked; another iff a neighbour towards it is
    mastered; a visit to an unlocked cube adds 1 to its C, up to 100.
    """
    skill = np.zeros((SIDE, SIDE), np.int64)
    draws = Draws(seed)
    curve = []
    for order in range(episodes):
        number, stage, generator, role = draws.next(strategy.directive(), levels)
        i, j = divmod(number, SIDE)
        towards = ((i - 1, j), (i, j - 1), (i - 1, j - 1))
        unlocked = (i, j) == (0, 0) or any(a >= 0 and b >= 0 and skill[a, b] > MASTERED for a, b in towards)
        before = int(skill[i, j])
        if unlocked:
            skill[i, j] = min(before + 1, 100)
        score = float(skill[i, j]) / 100
        task = {"stage": stage, "level": f"{i},{j}", "generator": generator, "role": role}
        strategy.observe(FinishedEpisode(0, order, order, 1, score, "terminated", 0, task, {"score": score}))
        # the toy's learner: the value of a cube is what it was before
        if isinstance(strategy, PrioritisedReplay):
            strategy.record_scores([(0, order, 1, before / 100)])
        if (order + 1) % EVERY == 0:
            curve.append(float((skill > MASTERED).mean()))
    return curve


def run(names: Sequence[str], seeds: Sequence[int]) -> dict[str, list[list[float]]]:
    """Curves by strategy, one per seed."""
    levels = cubes()
    return {name: [simulate(STRATEGIES[name](levels), levels, seed) for seed in seeds] for name in names}


def plot(curves: dict[str, list[list[float]]], path: Path) -> None:
    """Share mastered over episodes: a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for colour, (name, lines) in enumerate(curves.items()):
        for seed, line in enumerate(lines):
            steps = np.arange(1, len(line) + 1) * EVERY
            axes.plot(
                steps, 100 * np.array(line), color=f"C{colour}", alpha=0.8, label=name if seed == 0 else None
            )
    axes.set_xlabel("episodes")
    axes.set_ylabel("cubes mastered, %")
    axes.set_title(f"Cube toy, {len(next(iter(curves.values())))} seeds each")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description="The cube toy: share of 100 cubes mastered in 20,000 episodes."
    )
    parser.add_argument("--plot", type=Path, help="write the curves to this PNG")
    arguments = parser.parse_args(argv)
    curves = run(list(STRATEGIES), list(SEEDS))
    print(f"{'mastered, %':<20}" + "".join(f"seed {seed:>2}  " for seed in SEEDS))
    missed = False
    for name, lines in curves.items():
        ends = [line[-1] for line in lines]
        bar = BARS.get(name)
        verdict = ""
        if bar is not None:
            met = all(map(bar, ends))
            missed |= not met
            verdict = "ok" if met else "MISSED"
        print(f"{name:<20}" + "".join(f"{100 * end:7.0f}  " for end in ends) + verdict)
    if arguments.plot is not None:
        plot(curves, arguments.plot)
        print(f"wrote {arguments.plot}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
