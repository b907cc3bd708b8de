"""What the page costs the run it shows: `python -m benchmarks.page`. Turns with and without readers, in one process.

Readers live in another process. Printed: CPU time of the training process (without its workers) per env step with
one reader over that without, and how late the event loop is with 200 readers and one that never reads, with the memory.
"""
# edge: a run, its page, clients in a process of their own

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import aio_vecenv as av
from trainers import Run, load_preset, training
from trainers.service import Page, live, serving

READERS = r"""
import asyncio, socket, sys

async def read(reader):
    while await reader.read(65536):
        pass

async def main(port, token):
    tasks, writers, stuck = [], [], []
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    request = f"GET /api/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n".encode()
    while line := (await lines.readline()).split():
        if line[0] == b"open":
            for _ in range(int(line[1])):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                await reader.readuntil(b"connected")
                writers.append(writer)
                tasks.append(asyncio.create_task(read(reader)))
            for _ in range(int(line[2])):
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.send(request)
                stuck.append(client)
        else:
            for task in tasks:
                task.cancel()
            for writer in writers:
                writer.close()
            for client in stuck:
                client.close()
            tasks, writers, stuck = [], [], []
        print("ok", flush=True)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


class Readers:
    """Clients of the stream, in a process of their own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, port: int, token: str) -> Readers:
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", READERS, str(port), token, stdin=pipe, stdout=pipe
            )
        )

    async def tell(self, line: str) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{line}\n".encode())
        assert (await process.stdout.readline()) == b"ok\n"

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


async def main(turns: int, turn_s: float) -> None:
    live.LINGER_S = 0.0  # a turn without readers is one without what serves them
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            load_preset("frozenlake").config, runs=Path(folder), solve_rate=None, total_steps=10**9
        )
        page = Page("127.0.0.1", 0)
        async with training(config) as run, serving(run, page) as link:
            readers = await Readers.start(page.port, link.partition("token=")[2])
            await anext(aiter(run.reports()))
            await _cpu(run, readers, turns, turn_s)
            await _crowd(run, readers, turns // 3, turn_s)
            await readers.stop()
            run.request_stop()


async def _cpu(run: Run, readers: Readers, turns: int, turn_s: float) -> None:
    def spent() -> tuple[float, int]:
        return time.process_time(), run.env_steps

    async def turn() -> float:
        cpu_s, steps = spent()
        await asyncio.sleep(turn_s)
        now_s, now = spent()
        return 1e6 * (now_s - cpu_s) / (now - steps)

    ratios, alone_us = [], []
    for _ in range(turns):
        alone = await turn()
        await readers.tell("open 1 0")
        watched = await turn()
        await readers.tell("close")
        ratios.append(watched / alone)
        alone_us.append(alone)
    low, middle, high = np.percentile([_median_of(ratios) for _ in range(2000)], (10, 50, 90))
    print(f"CPU time per env step alone    {statistics.median(alone_us):.1f} µs (median of {turns} turns)")
    print(
        f"with one reader, over alone    × {middle:.3f} (80 % interval of the median: {low:.3f} … {high:.3f})"
    )


_rng = np.random.default_rng(0)


def _median_of(values: list[float]) -> float:
    return float(np.median(_rng.choice(values, len(values))))


async def _crowd(run: Run, readers: Readers, turns: int, turn_s: float) -> None:
    late: dict[str, list[float]] = {"alone": [], "crowd": []}
    memory: list[float] = []
    for _ in range(turns):
        late["alone"] += await _lateness(turn_s)
        await readers.tell("open 200 1")
        memory.append(_resident_mib())
        late["crowd"] += await _lateness(turn_s)
        memory.append(_resident_mib())
        await readers.tell("close")
    for name, seen in late.items():
        p50, p99 = 1000 * np.percentile(seen, (50, 99))
        print(f"loop lag, {name}  p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(seen)} ticks)")
    print(f"memory with 200 readers and one that never reads: {' → '.join(f'{m:.0f}' for m in memory)} MiB")


async def _lateness(for_s: float) -> list[float]:
    """How late a 10 ms ticker is, in seconds."""
    loop, seen = asyncio.get_running_loop(), []
    end_s = loop.time() + for_s
    while (due_s := loop.time() + 0.010) < end_s:
        await asyncio.sleep(0.010)
        seen.append(max(0.0, loop.time() - due_s))
    return seen


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--turn-s", type=float, default=2.0)
    asked = parser.parse_args()
    av.run(main(asked.turns, asked.turn_s))
