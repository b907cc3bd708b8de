"""What a fleet costs its driver: milliseconds of CPU time per chunk of a host, with 4 and with 64 hosts.

`python -m benchmarks.fleet` drives the rules of a fleet over a network that is a list: 16 envs a host, chunks of 16
rows, an update per command, an episode's end every 20 rows. Only the driver's side is timed: sending, pings, reports,
their events in order. Medians of seven interleaved runs; the bar is 1 ms, and that it does not grow with the hosts.

`python -m benchmarks.fleet --ray` compares steps/s of 32 CartPoles: two hosts with one worker each, on a local Ray, and
one vec env with two workers, in chunks of 128 rows, taking turns.
"""
# edge: argv and stdout; without --ray no Ray and no process, so that only the rules are measured

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import aio_vecenv as av
from aio_vecenv.fleet.messages import Answer, Out, Report, Run, Tell
from aio_vecenv.fleet.state import split
from aio_vecenv.testing.fleet import FakeFleet, FakeHost, Faults

ENVS, ROWS, COMMANDS = 16, 16, 40
HOSTS = (4, 64)
LONG = 128  # rows of a chunk, over Ray
BAR_MS = 1.0


def measure(hosts: int) -> float:
    """Milliseconds of the driver's CPU time per chunk of one host."""
    fleet = FakeFleet(0, split(hosts * ENVS, hosts, ENVS), Faults(), ends=0.05)
    fleet.reset()
    fleet.until(lambda: fleet.settled)
    state, players = fleet.state, fleet.hosts
    spent_s = 0.0
    for command in range(COMMANDS):
        fleet.now += 0.1
        began = time.process_time()
        state.publish("curriculum", "now", fleet.now)
        state.send(list(range(hosts)), ROWS, fleet.now)
        sent = state.take_outbox()
        spent_s += time.process_time() - began
        answers, reports = play(players, sent)
        began = time.process_time()
        for answer in answers:
            state.answered(answer, fleet.now, fleet.now)
        for report in reports:
            state.reported(report, fleet.now)
        state.tick(fleet.now)
        ready = state.ready()
        assert ready is not None, command
        state.collect(ready)
        state.take_outbox()
        spent_s += time.process_time() - began
    return spent_s / (COMMANDS * hosts) * 1e3


def play(players: dict[tuple[int, int], FakeHost], sent: Sequence[Out]) -> tuple[list[Answer], list[Report]]:
    """What the hosts answer, and report."""
    answers: list[Answer] = []
    reports: list[Report] = []
    for out in sent:
        host = players[out.slot, out.incarnation]
        if isinstance(out, Run):
            report = host.run(out)
            assert report is not None
            reports.append(report)
        elif isinstance(out, Tell):
            host.take(out)
            answers.append(host.state.answer())
    return answers, reports


class Pushes:
    """Pushes the cart the way its pole falls, mostly."""

    noise = ((), np.float32)
    outputs: Mapping[str, Any] = MappingProxyType({"p": ((), np.float32)})

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.random(rows, dtype=np.float32)

    def load(self, params: Any) -> None:
        pass

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, dict[str, NDArray[Any]]]:
        return (obs[:, 2] + noise > 0.5).astype(np.int64), {"p": noise}


async def compare(rounds: int, seconds: float = 1.0) -> list[tuple[float, float]]:
    """Steps/s of a fleet and of a vec env, round by round."""
    settings: dict[str, Any] = {"policy": Pushes(), "unroll": LONG}
    found: list[tuple[float, float]] = []
    async with (
        av.RayFleet("CartPole-v1", 32, hosts=2, **settings) as many,
        av.AsyncVecEnv("CartPole-v1", 32, num_workers=2, **settings) as one,
    ):
        for _ in range(rounds):
            speeds: list[float] = []
            for envs in (many, one):
                await envs.reset(seed=0)
                speeds.append(await speed(envs, seconds))
            found.append((speeds[0], speeds[1]))
    return found


async def speed(envs: av.Source, seconds: float) -> float:
    rng, steps, began = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        chunk = await envs.unroll(rng.random((LONG, envs.num_envs), dtype=np.float32))
        steps += int((~chunk.first).sum())
    return steps / (time.perf_counter() - began)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description="CPU time of a fleet's driver per chunk of a host.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--ray", action="store_true", help="steps/s over a local Ray instead")
    arguments = parser.parse_args(argv)
    runs = arguments.runs
    if arguments.ray:
        found_s = av.run(compare(runs))
        many, one = (statistics.median(column) for column in zip(*found_s))
        ratio = statistics.median(a / b for a, b in found_s)
        print(f"2 hosts × 1 worker {many:,.0f} steps/s, one vec env × 2 workers {one:,.0f}: {ratio:.2f}")
        return 0
    found: dict[int, list[float]] = {hosts: [] for hosts in HOSTS}
    for _ in range(runs):
        for hosts in HOSTS:
            found[hosts].append(measure(hosts))
    medians = {hosts: statistics.median(values) for hosts, values in found.items()}
    for hosts, median in medians.items():
        print(f"{hosts:3d} hosts × {ENVS} envs × {ROWS} rows: {median:.3f} ms of the driver's CPU per chunk")
    return int(max(medians.values()) > BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
