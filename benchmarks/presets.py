"""`python -m benchmarks.presets NAME`: a preset over several seeds, beside what it is to be judged by; a table.

docs/presets.md holds the tables. frozenlake and doorkey have benchmarks of their own names.
"""
# edge: trains, writes results as they come, prints a Markdown table

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv

from aio_vecenv.adapters.gymnasium import VectorEnv
from benchmarks.learned import Results, Row, ours, sb3, show, trained
from trainers import TrainConfig, load_preset
from trainers.jobs import resolve_job
from trainers.presets.mazes import held_out

ZOO = {  # rl-baselines3-zoo, hyperparams/ppo.yml, Pendulum-v1; what it does not name is SB3's default
    "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 1e-3,
    "clip_range": 0.2,
}  # fmt: skip
GSDE = {"use_sde": True, "sde_sample_freq": 4}
ZOO_ENVS = 4
FACTOR = 1e4

# ---- pendulum


def pendulum(steps: int | None) -> list[Row]:
    config = load_preset("pendulum").config
    make, steps = partial(gym.make, "Pendulum-v1"), steps or config.total_steps
    config = replace(config, total_steps=steps)
    scaled = TrainConfig(
        env="benchmarks.presets:make_scaled_pendulum", num_envs=config.num_envs, total_steps=steps,
        ppo=config.ppo, network=config.network,
    )  # fmt: skip
    plain = replace(scaled, ppo=replace(config.ppo, normalise_rewards=False))
    return [
        Row("SB3, the Zoo's settings without gSDE", partial(sb3, make, ZOO_ENVS, steps, ZOO)),
        Row("the preset", partial(ours, config)),
        Row("the preset, rewards × 10,000", partial(ours, scaled, unit=FACTOR)),
        Row("rewards × 10,000, not normalised", partial(ours, plain, unit=FACTOR)),
        Row("SB3, the Zoo's settings", partial(sb3, make, ZOO_ENVS, steps, {**ZOO, **GSDE})),
    ]


def make_scaled_pendulum() -> Any:
    return gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: FACTOR * float(reward))


# ---- mazes

ROUNDS = 10  # episodes on each held-out level
STRATEGIES = {
    "uniform": "`DomainRandomisation`: all 4,200 alike",
    "prioritised_replay": "`PrioritisedReplay`, by the size of advantages",
    "learnability": "`Learnability`",
}


@dataclass(frozen=True)
class HeldOut:
    """A policy on the levels that training never drew; actions sampled."""

    success: float
    """Mean over the 300 levels."""
    cvar: float
    """Mean over the tenth of the levels that did worst in the first half of the rounds, in the second half: chosen and
    measured on the same episodes it would come out too low (Rutherford et al. 2024)."""
    longest: float
    """Mean over the 100 levels of the stage long."""
    parameters: int
    steps_per_s: float


def mazes(steps: int | None) -> list[Row]:
    config = load_preset("mazes").config
    config = replace(config, total_steps=steps or config.total_steps)
    return [
        Row(words, partial(_maze, replace(config, strategy=strategy)))  # type: ignore[arg-type]
        for strategy, words in STRATEGIES.items()
    ]


def _maze(config: TrainConfig, seed: int) -> HeldOut:
    with trained(config, seed) as run:
        make, policy = held_out().make_env, run.policy(greedy=False)
        levels = make().levels
        envs: list[Any] = [make().unwrapped for _ in range(len(levels))]
        won = np.array([_round(envs, levels, policy.act_batch) for _ in range(ROUNDS)])
        first, second = won[: ROUNDS // 2].mean(axis=0), won[ROUNDS // 2 :].mean(axis=0)
        worst = np.argsort(first, kind="stable")[: len(levels) // 10]
        long = levels.of_stage("long")
        longest = won[:, long.start : long.stop].mean()
        return HeldOut(
            float(won.mean()), float(second[worst].mean()), float(longest), run.parameters, run.steps_per_s
        )


def _round(envs: list[Any], levels: Any, act: Callable[[Any], Any]) -> list[bool]:
    """One episode on each level: which were won."""
    seen = [env.reset(options={"level": levels[i].data})[0] for i, env in enumerate(envs)]
    won, running = [False] * len(envs), list(range(len(envs)))
    while running:
        obs = {key: np.stack([seen[i][key] for i in running]) for key in seen[0]}
        for i, action in zip(list(running), act(obs)):
            seen[i], _, terminated, truncated, info = envs[i].step(int(action))
            won[i] = info["is_success"]
            if terminated or truncated:
                running.remove(i)
    return won


# ---- atari: how fast, not how well


def atari(seconds: float = 2.0, rounds: int = 5) -> list[str]:
    """Steps/s (of four frames) of the preset's envs under one action each, by turns with Gymnasium's vec env."""
    config = load_preset("atari").config
    with_curriculum, n = resolve_job(config).make_env, config.num_envs

    def make_env() -> Any:
        return with_curriculum().env

    speeds: list[tuple[float, float]] = []
    for _ in range(rounds):
        envs: list[Any] = [VectorEnv([make_env] * n), AsyncVectorEnv([make_env] * n)]
        try:
            speeds.append((_steps_per_s(envs[0], seconds), _steps_per_s(envs[1], seconds)))
        finally:
            for each in envs:
                each.close()
    ours, theirs = (statistics.median(column) for column in zip(*speeds))
    ratio = statistics.median(a / b for a, b in speeds)
    return [
        f"| {n} envs of four frames | steps/s, median | ÷ Gymnasium's |",
        "|---|---|---|",
        f"| ours, {os.cpu_count()} CPUs | {ours:,.0f} | {ratio:.2f} |",
        f"| Gymnasium's AsyncVectorEnv | {theirs:,.0f} | 1 |",
    ]


def _steps_per_s(envs: Any, seconds: float) -> float:
    envs.reset(seed=0)
    actions = envs.action_space.sample()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        envs.step(actions)
        steps += 1
    return steps * int(envs.num_envs) / (time.perf_counter() - began)


# ---- the command


@dataclass(frozen=True)
class Table:
    rows: Callable[[int | None], list[Row]]
    figures: tuple[str, ...]
    anchor: str
    digits: int
    relative: bool


TABLES = {
    "pendulum": Table(pendulum, ("sampled", "greedy"), "SB3, the Zoo's settings without gSDE", 0, True),
    "mazes": Table(mazes, ("success", "cvar", "longest"), STRATEGIES["uniform"], 3, False),
}


@dataclass(frozen=True)
class Arguments:
    """A preset's table; interquartile means over the seeds, with their intervals."""

    name: tyro.conf.Positional[Literal["pendulum", "mazes", "atari"]]
    """Which."""
    seeds: int = 5
    """Seeds 0, 1, 2 …"""
    total_steps: int | None = None
    """Env steps of each training; None: as the preset says."""
    only: str | None = None
    """Just the rows whose name contains this."""
    results: Path | None = None
    """Written after each training, and not repeated from there; None: preset-NAME.json."""


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.presets")
    if arguments.name == "atari":
        print("\n".join(atari()))
        return
    table = TABLES[arguments.name]
    rows = [
        row
        for row in table.rows(arguments.total_steps)
        if arguments.only is None or arguments.only in row.name
    ]
    results = Results(arguments.results or Path(f"preset-{arguments.name}.json"))
    results.measure(rows, range(arguments.seeds))
    lines = show(
        results, rows, table.figures, anchor=table.anchor, digits=table.digits, relative=table.relative
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
