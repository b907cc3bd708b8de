"""What a fleet costs its driver: milliseconds of CPU time per chunk of a host, with 4 and with 64 hosts.

`python -m benchmarks.fleet` drives the rules of a fleet over a network that is a list: 16 envs a host, chunks of 16
rows, an update per command, an episode's end every 20 rows. Only the driver's side is timed: sending, pings, reports,
their events in order. Medians of seven interleaved runs; the bar is 1 ms, and that it does not grow with the hosts.
"""
# edge: argv and stdout; no Ray and no process, so that only the rules are measured

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

from aio_vecenv.fleet.messages import Answer, Out, Report, Run, Tell
from aio_vecenv.fleet.state import split
from aio_vecenv.testing.fleet import FakeFleet, FakeHost, Faults

ENVS, ROWS, COMMANDS = 16, 16, 40
HOSTS = (4, 64)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description="CPU time of a fleet's driver per chunk of a host.")
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args(argv).runs
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
