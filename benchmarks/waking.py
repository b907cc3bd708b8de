"""`python -m benchmarks.waking`: what it costs on this machine to wake a process, and what it finds when it wakes.

Explains the distance between the limit and everything that waits for messages: on a virtual machine whose idle CPUs
halt, waking one takes longer than ten steps of CartPole, and what runs next runs on cold caches.
"""
# edge: starts a process, pins both to CPUs for the length of a measurement, prints Markdown tables

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks import harness
from benchmarks.harness import Options, Report, Table, figure, percentile
from benchmarks.workloads import make_cartpole

PAUSE_S = 200e-6  # about as long as a worker or the parent waits in a lockstep step


@dataclass
class Arguments(Options):
    """Round trips of one byte between two processes; small work with and without a pause before it."""

    trips: int = 1000
    """Round trips of a round."""
    pauses: int = 200
    """Repetitions of each piece of work in a round."""


_ECHO = """
import os, select, socket, sys
pipe = socket.socket(fileno=int(sys.argv[1]))
if len(sys.argv) > 2:
    os.sched_setaffinity(0, {int(sys.argv[2])})
poll = select.poll()
poll.register(pipe, select.POLLIN)
pipe.send(b"r")
while poll.poll() and pipe.recv(1) == b"s":
    pipe.send(b"d")
"""


def round_trips(trips: int, cpus: tuple[int, int] | None) -> tuple[list[float], list[float]]:
    """Seconds of each round trip, and of the sender's part of it. `cpus`: of this process and of the other.

    Both wait by `poll`, as parent and workers do: who only reads is also woken when what it sent is read.
    """
    here, there = socket.socketpair()
    arguments = [str(there.fileno()), *([str(cpus[1])] if cpus is not None else [])]
    other = subprocess.Popen([sys.executable, "-c", _ECHO, *arguments], pass_fds=[there.fileno()])
    there.close()
    allowed, poll = os.sched_getaffinity(0), select.poll()
    poll.register(here, select.POLLIN)
    trip_s: list[float] = []
    send_s: list[float] = []
    try:
        here.recv(1)
        if cpus is not None:
            os.sched_setaffinity(0, {cpus[0]})
        for _ in range(trips):
            began = time.perf_counter()
            here.send(b"s")
            sent = time.perf_counter()
            poll.poll()
            here.recv(1)
            trip_s.append(time.perf_counter() - began)
            send_s.append(sent - began)
    finally:
        os.sched_setaffinity(0, allowed)
        here.close()
        other.wait()
    return trip_s, send_s


def pieces() -> dict[str, Callable[[], object]]:
    """What a step is made of, in small."""
    env = make_cartpole()
    env.reset(seed=0)
    array, other = np.zeros(32), np.ones(32)
    header = struct.Struct("<HBBIIQQ")

    def step() -> None:
        if env.step(0)[2]:
            env.reset()

    return {
        "a step of CartPole": step,
        "np.add of 32 numbers": lambda: np.add(array, other, array),
        "a copy of 32 numbers": array.copy,
        "32 zeros": lambda: np.zeros(32, np.bool_),
        "packing a header": lambda: header.pack(1, 2, 3, 4, 5, 6, 7),
    }


def after_a_pause(work: Callable[[], object], times: int, pause_s: float) -> tuple[float, float]:
    """Median seconds of `work` after a sleep, and of the same again right after it."""
    first: list[float] = []
    again: list[float] = []
    for _ in range(times):
        time.sleep(pause_s)
        began = time.perf_counter()
        work()
        middle = time.perf_counter()
        work()
        first.append(middle - began)
        again.append(time.perf_counter() - middle)
    return percentile(first, 0.5), percentile(again, 0.5)


def main() -> None:
    arguments = harness.parse(Arguments, "waking")
    report = Report("waking", asdict(arguments))
    places: dict[str, tuple[int, int] | None] = {"wherever the kernel puts them": None}
    cpus = sorted(os.sched_getaffinity(0))
    places["both on one CPU"] = (cpus[0], cpus[0])
    if len(cpus) > 1:
        places["each on a CPU of its own"] = (cpus[0], cpus[1])
    trips = Table(
        "A byte to another process and back", ["where", "µs, p50", "p99", "of it sending, p50", "p99"]
    )
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in places}
    work = pieces()
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for number in range(arguments.rounds):
        for name, where in places.items():
            for all_s, some_s in zip(found[name], round_trips(arguments.trips, where), strict=True):
                all_s += some_s
        for name, piece in work.items():
            costs[name].append(after_a_pause(piece, arguments.pauses, PAUSE_S))
        harness.say(f"round {number + 1}/{arguments.rounds}")
    for name, (trip_s, send_s) in found.items():
        numbers = [1e6 * percentile(values, share) for values in (trip_s, send_s) for share in (0.5, 0.99)]
        trips.rows.append([name, *map(figure, numbers)])
    cold = Table(f"The same work after {1e6 * PAUSE_S:.0f} µs of sleep, and at once again",
                 ["work", "µs after the sleep", "again", "ratio"])  # fmt: skip
    for name, pairs in costs.items():
        first, again = (percentile([1e6 * pair[k] for pair in pairs], 0.5) for k in (0, 1))
        ratios = percentile([pair[0] / pair[1] for pair in pairs], 0.5)
        cold.rows.append([name, figure(first), figure(again), figure(ratios)])
    report.tables = [trips, cold]
    report.finish(arguments)


if __name__ == "__main__":
    main()
