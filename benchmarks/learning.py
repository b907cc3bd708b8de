"""`python -m benchmarks.learning TABLE`: what is learned of envs that trainers stumble on, over five seeds.

docs/learning.md holds the tables. Every row is a training that the command line does, too: its env is one of
`benchmarks.tasks`, with 8 envs and 20,000 steps; other settings are the defaults, but for the learning rate of the
discrete tasks, which is 1e-3, and what the row says.
"""
# edge: trains, writes results as they come, prints a Markdown table

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import tyro

from benchmarks.learned import Results, Row, ours, sb3, show
from trainers import NetworkConfig, PPOConfig, TrainConfig

SB3_DEFAULTS = PPOConfig(  # as stable_baselines3.PPO has them; its vf_coef 0.5 weighs the whole error, ours half of it
    num_steps=2048, lr=3e-4, lr_schedule="constant", epochs=10, minibatches=32, entropy=0.0, value=1.0,
    normalise_rewards=False,
)  # fmt: skip
QUICK = PPOConfig(lr=1e-3)


def bounds() -> list[Row]:
    return [
        _row(f"bounds {low} … {high}{words}", "Bounds", {"low": low, "high": high}, network=network)
        for low, high in ((30, 1017), (499, 502))
        for words, network in (
            ("", NetworkConfig()),
            (", `scale_actions` off", NetworkConfig(scale_actions=False)),
        )
    ]


def pictures() -> list[Row]:
    sizes = [(n, n) for n in (8, 16, 32, 35, 36)] + [(16, 64), (84, 84), (210, 160)]
    rows = [_row(f"{h}×{w}×3", "Quarters", {"height": h, "width": w}, ppo=QUICK) for h, w in sizes]
    for kind, words in (("float255", "floats, bounds 0 … 255"), ("float1", "floats, bounds 0 … 1")):
        rows.append(
            _row(f"35×35×3, {words}", "Quarters", {"height": 35, "width": 35, "kind": kind}, ppo=QUICK)
        )
    return rows


def integers() -> list[Row]:
    return [
        _row(
            f"{dtype}, `normalise_obs` {'on' if on else 'off'}", "Integers", {"dtype": dtype}, ppo=QUICK,
            network=NetworkConfig(normalise_obs=on),
        )
        for dtype, on in (("int64", True), ("float64", True), ("int64", False))
    ]  # fmt: skip


def rewards() -> list[Row]:
    return [
        _row(
            f"± {size:g}, `normalise_rewards` {'on' if on else 'off'}", "Rewards", {"size": size}, unit=size,
            ppo=replace(QUICK, normalise_rewards=on),
        )
        for size, on in ((1.0, True), (1e4, True), (1e4, False))
    ]  # fmt: skip


def hopper() -> list[Row]:
    if find_spec("mujoco") is None:
        raise SystemExit("hopper needs MuJoCo: pip install 'gymnasium[mujoco]'")
    steps, env = 100_000, "Hopper-v5"
    ours_as_theirs = TrainConfig(
        env=env, total_steps=steps, num_envs=1, ppo=SB3_DEFAULTS, network=NetworkConfig(normalise_obs=False)
    )
    return [
        Row("SB3, its defaults", partial(sb3, partial(gym.make, env), 1, steps, {})),
        Row("ours, our defaults", partial(ours, TrainConfig(env=env, total_steps=steps))),
        Row("ours, SB3's default values", partial(ours, ours_as_theirs)),
    ]


def _row(
    name: str, env: str, kwargs: dict[str, Any], *, ppo: PPOConfig | None = None,
    network: NetworkConfig | None = None, unit: float = 1.0,
) -> Row:  # fmt: skip
    config = TrainConfig(
        env=f"benchmarks.tasks:{env}", env_kwargs=kwargs, num_envs=8, total_steps=20_000, ppo=ppo or PPOConfig(),
        network=network or NetworkConfig(),
    )  # fmt: skip
    return Row(name, partial(ours, config, unit=unit))


@dataclass(frozen=True)
class Table:
    """How a table is measured and shown."""

    rows: Callable[[], list[Row]]
    figures: tuple[str, ...] = ("sampled", "greedy")
    anchor: str | None = None
    digits: int = 1


TABLES = {
    "bounds": Table(bounds, digits=3),
    "pictures": Table(pictures),
    "integers": Table(integers),
    "rewards": Table(rewards),
    "hopper": Table(hopper, anchor="SB3, its defaults", digits=0),
}


@dataclass(frozen=True)
class Arguments:
    """Trainings of one table, one after another; prints interquartile means with their intervals."""

    table: tyro.conf.Positional[Literal["bounds", "pictures", "integers", "rewards", "hopper"]]
    """Which."""
    seeds: int = 5
    """Seeds 0, 1, 2 …"""
    only: str | None = None
    """Just the rows whose name contains this."""
    results: Path | None = None
    """Written after each training, and not repeated from there; None: learning-TABLE.json."""


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.learning")
    table = TABLES[arguments.table]
    rows = [row for row in table.rows() if arguments.only is None or arguments.only in row.name]
    results = Results(arguments.results or Path(f"learning-{arguments.table}.json"))
    results.measure(rows, range(arguments.seeds))
    print("\n".join(show(results, rows, table.figures, anchor=table.anchor, digits=table.digits)))


if __name__ == "__main__":
    main()
