"""Mazes by the thousand: `python -m trainers.presets.maze_levels --seed 0 --out mazes.npz` makes those of the preset.

A maze is a grid of cells within walls: corridors that a depth-first walk has dug between rooms, which makes each cell
reachable, and a few more openings. Start and goal are drawn so that the shortest path between them, its difficulty,
has a length within its stage's.
"""
# pure, but for the command at the end: a seed in, arrays out

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HELD_OUT", "LENGTHS", "PER_STAGE", "SIZE", "generate", "shortest_path"]

SIZE = 11  # cells of a side, the outer walls included
LENGTHS = {"short": (2, 9), "medium": (10, 18), "long": (19, 32)}  # steps of the shortest path
PER_STAGE, HELD_OUT = 1500, 100  # levels; the last ones are for testing
OPENINGS = 6  # at most, beside those that the walk has dug

Cell = tuple[int, int]
Walls = NDArray[np.bool_]


def generate(seed: int, per_stage: int = PER_STAGE) -> dict[str, NDArray[Any]]:
    """Levels stage by stage: `walls` (n, bytes), a bit per cell; `start` and `goal` (n, 2), row and column; `length`
    (n,) of the shortest path; all uint8. Level i depends on the seed, its stage and i alone."""
    levels = [
        _level(np.random.default_rng((seed, number, i)), lengths)
        for number, lengths in enumerate(LENGTHS.values())
        for i in range(per_stage)
    ]
    walls, starts, goals, lengths = zip(*levels)
    return {
        "walls": np.packbits(np.reshape(walls, (len(levels), -1)), axis=1),
        "start": np.array(starts, np.uint8),
        "goal": np.array(goals, np.uint8),
        "length": np.array(lengths, np.uint8),
    }


def _level(rng: np.random.Generator, lengths: tuple[int, int]) -> tuple[Walls, Cell, Cell, int]:
    wanted = int(rng.integers(lengths[0], lengths[1] + 1))
    while True:
        walls = _dig(rng)
        floor = [(int(i), int(j)) for i, j in np.argwhere(~walls)]
        start = floor[rng.integers(len(floor))]
        goals = [cell for cell, steps in _distances(walls, start).items() if steps == wanted]
        if goals:
            return walls, start, goals[rng.integers(len(goals))], wanted


def _dig(rng: np.random.Generator) -> Walls:
    walls = np.ones((SIZE, SIZE), np.bool_)
    rooms = range(1, SIZE, 2)
    way = [(int(rng.choice(rooms)), int(rng.choice(rooms)))]
    walls[way[0]] = False
    while way:
        i, j = way[-1]
        beside = [(i + a, j + b) for a, b in ((-2, 0), (2, 0), (0, -2), (0, 2))]
        closed = [(a, b) for a, b in beside if a in rooms and b in rooms and walls[a, b]]
        if not closed:
            way.pop()
            continue
        a, b = closed[rng.integers(len(closed))]
        walls[(i + a) // 2, (j + b) // 2] = walls[a, b] = False
        way.append((a, b))
    between = [(i, j) for i in range(1, SIZE - 1) for j in range(1, SIZE - 1) if (i + j) % 2 and walls[i, j]]
    for place in rng.permutation(len(between))[: rng.integers(OPENINGS + 1)]:
        walls[between[place]] = False
    return walls


def shortest_path(walls: Walls, start: Cell, goal: Cell) -> int | None:
    """Its number of steps; None: there is none."""
    return _distances(walls, start).get(goal)


def _distances(walls: Walls, start: Cell) -> dict[Cell, int]:
    steps, due = {start: 0}, deque([start])
    while due:
        i, j = due.popleft()
        for cell in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            if not walls[cell] and cell not in steps:
                steps[cell] = steps[i, j] + 1
                due.append(cell)
    return steps


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-stage", type=int, default=PER_STAGE, help="levels of each stage")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    given = parser.parse_args(argv)
    levels: Mapping[str, Any] = generate(given.seed, given.per_stage)
    np.savez_compressed(given.out, **levels)
    print(f"{len(levels['walls']):,} levels in {given.out}, {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
