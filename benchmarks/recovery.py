"""`python -m benchmarks.recovery`: how long a worker's envs are gone where it is killed, or renewed as planned.

Workers are killed by SIGKILL, one at a time, while their envs are stepped at full speed or the vec env idles. The time
is from the signal until the next step of all envs has returned; what making the envs took in the child is measured
there, and shown apart. Of a planned renewal it is the time for which commands of that worker wait.
"""
# edge: argv and stdout; signals to its own workers

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import aio_vecenv as av
from benchmarks.harness import Table, percentile

_SETTLE_S = 1.0  # between two kills: more than a spare needs to start


@dataclass(frozen=True)
class Arguments:
    """Recovery of a killed worker."""

    env: str = "CartPole-v1"
    """Env id."""
    num_envs: int = 32
    workers: int = 4
    kills: int = 40
    """Per row of the table; 0: none."""
    renewals: int = 40
    """Planned ones, per row of the table."""
    renew_after: int = 2000
    """Episodes of a worker's envs."""


class Timed:
    """A factory that notes on its env how long making it took."""

    def __init__(self, env_id: str) -> None:
        self.env_id = env_id

    def __call__(self) -> gym.Env[Any, Any]:
        began = time.perf_counter()
        env = gym.make(self.env_id)
        env.unwrapped.made_s = time.perf_counter() - began  # type: ignore[attr-defined]
        return env


async def recoveries(arguments: Arguments, *, spares: int, stepping: bool) -> tuple[list[float], list[float]]:
    """Seconds of each recovery, and of making the envs of that worker."""
    share = arguments.num_envs // arguments.workers
    took: list[float] = []
    made: list[float] = []
    async with av.AsyncVecEnv(
        [Timed(arguments.env)] * arguments.num_envs,
        num_workers=arguments.workers,
        spares=spares,
        restart=av.RestartBudget(arguments.kills + 1, per_s=3600),
    ) as envs:
        await envs.reset(seed=0)
        actions = np.zeros(
            (arguments.num_envs, *envs.single_action_space.shape), envs.single_action_space.dtype
        )
        for kill in range(arguments.kills):
            settled = time.monotonic() + _SETTLE_S
            while time.monotonic() < settled:
                await (envs.step(actions) if stepping else asyncio.sleep(0.05))
            worker = kill % arguments.workers
            began = time.perf_counter()
            os.kill(envs.statistics().workers[worker].pid, signal.SIGKILL)
            while envs.statistics().restarts == kill:
                await (envs.step(actions) if stepping else asyncio.sleep(0))
            await envs.step(actions)
            took.append(time.perf_counter() - began)
            mine = range(worker * share, (worker + 1) * share)
            made.append(sum(await envs.get_attr("made_s", env_ids=mine)))
    return took, made


async def renewals(arguments: Arguments, *, spares: int) -> list[float]:
    """Seconds for which commands waited, of each planned renewal, stepping at full speed; median and 99 %."""
    async with av.AsyncVecEnv(
        arguments.env,
        arguments.num_envs,
        num_workers=arguments.workers,
        spares=spares,
        restart=None,
        renew_after=arguments.renew_after,
    ) as envs:
        await envs.reset(seed=0)
        envs.action_space.seed(0)
        while envs.statistics().renewals < arguments.renewals:
            for _ in range(100):
                await envs.step(envs.action_space.sample())
        statistics = envs.statistics()
        assert statistics.aborted == 0
        return [statistics.renewal.p50_s, statistics.renewal.p99_s]


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.recovery")
    columns = [
        "",
        "times",
        "p50, ms",
        "p99, ms",
        "longest, ms",
        "of it making envs: p50",
        "p99 without that, ms",
    ]
    heading = f"{arguments.env}: {arguments.num_envs} envs in {arguments.workers} workers"
    table = Table(heading, columns)
    for spares in (0, 1):
        if arguments.renewals:
            figures = [f"{1e3 * seconds:.0f}" for seconds in asyncio.run(renewals(arguments, spares=spares))]
            name = f"renewed as planned, {spares} spares"
            table.rows.append([name, str(arguments.renewals), *figures, "", "", ""])
        for stepping in (True, False) if arguments.kills else ():
            took, made = asyncio.run(recoveries(arguments, spares=spares, stepping=stepping))
            rest = [whole - part for whole, part in zip(took, made)]
            name = (
                f"{'a warm spare' if spares else 'cold'}, {'stepping at full speed' if stepping else 'idle'}"
            )
            columns_s = (
                percentile(took, 0.5), percentile(took, 0.99), max(took), percentile(made, 0.5), percentile(rest, 0.99)
            )  # fmt: skip
            table.rows.append([name, str(len(took)), *(f"{1e3 * seconds:.0f}" for seconds in columns_s)])
    print(table.markdown())


if __name__ == "__main__":
    main()
