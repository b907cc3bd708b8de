"""`python -m benchmarks.unroll`: unrolls against the policy limit and against the peers; the knob.

The *policy limit* is the same loop in two processes that tell nobody anything: the policy, in one call for all envs of
the process, then their steps. An executed action is a step, for every contender; resets are not. Contenders take turns;
a ratio is that of two turns that follow each other, given as the median with its 80 % bootstrap interval. CPU time is
that of the whole process tree, since two cores that other programs use, too, tell little by the clock.
"""
# edge: starts contenders as processes, prints Markdown tables

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.versions import interval_of_median

WORKERS = 2
KNOB = (1, 2, 4, 8, 16, 32, 128)


@dataclass(frozen=True)
class Arguments:
    """Unrolls: CPU time per executed step, and steps per second."""

    turns: int = 30
    """Turns of each contender in each comparison."""
    seconds: float = 0.3
    """Length of a turn."""
    only: tuple[str, ...] = ("bars", "peers", "updates", "knob", "delays", "split")
    """Which tables."""
    plot: Path = Path("unroll-knob.png")
    """Where the knob is drawn, after `knob` and `delays`."""


# -- envs and policies -------------------------------------------------------------------------------------------------


def make_env(name: str) -> Any:
    if name == "minigrid":
        from minigrid.wrappers import ImgObsWrapper

        return ImgObsWrapper(gym.make("MiniGrid-DoorKey-8x8-v0"))  # type: ignore[no-untyped-call]
    if name == "short":  # an end every 20 rows
        return gym.make("CartPole-v1", max_episode_steps=19)
    return gym.make("CartPole-v1")


class Dense:
    """Tanh layers of 64: an actor, and a critic beside it where `towers` is 2. Takes Gumbel noise."""

    def __init__(self, towers: int) -> None:
        rng = np.random.default_rng(0)
        self.noise, self.towers = (2, np.float32), towers
        self.outputs: dict[str, Any] = {"log_prob": ((), np.float32)}
        if towers == 2:
            self.outputs["value"] = ((), np.float32)
        self.layers = [
            [
                rng.standard_normal(size, dtype=np.float32) / np.float32(4)
                for size in ((4, 64), (64, 64), (64, out))
            ]
            for out in (2, 1)
        ]

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_exponential((*rows, 2), dtype=np.float32)

    def load(self, params: Any) -> None:
        self.layers = params

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        actor, critic = self.layers
        logits = np.tanh(np.tanh(obs @ actor[0]) @ actor[1]) @ actor[2]
        actions = (logits - np.log(noise)).argmax(1)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        outputs = {"log_prob": log_p[np.arange(len(log_p)), actions]}
        if self.towers == 2:
            outputs["value"] = (np.tanh(np.tanh(obs @ critic[0]) @ critic[1]) @ critic[2])[:, 0]
        return actions, outputs


class Patches:
    """A convolution of 2 × 2 by patches, and a layer, for MiniGrid's 7 × 7 × 3 pictures."""

    noise, outputs = (7, np.float32), {"value": ((), np.float32)}

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.filters = rng.standard_normal((12, 16), dtype=np.float32) / np.float32(8)
        self.head = rng.standard_normal((576, 8), dtype=np.float32) / np.float32(24)

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_exponential((*rows, 7), dtype=np.float32)

    def load(self, params: Any) -> None:
        self.filters, self.head = params

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        x = obs.astype(np.float32)
        corners = (x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:])
        hidden = np.maximum(np.concatenate(corners, 3) @ self.filters, 0).reshape(len(x), -1)
        out = hidden @ self.head
        return (out[:, :7] - np.log(noise)).argmax(1), {"value": out[:, 7].copy()}


def make_policy(name: str, towers: int) -> Any:
    return Patches() if name == "minigrid" else Dense(towers)


# -- contenders, each in a process of its own --------------------------------------------------------------------------


def tree_cpu_s() -> tuple[float, float]:
    """CPU time of this process, and of all below it, in seconds."""
    own, below, pending = 0, 0, [os.getpid()]
    while pending:
        pid = pending.pop()
        for task in Path(f"/proc/{pid}/task").iterdir():
            spent = int((task / "schedstat").read_text().split()[0])
            own, below = (own + spent, below) if pid == os.getpid() else (own, below + spent)
            pending += map(int, (task / "children").read_text().split())
    return own / 1e9, below / 1e9


@asynccontextmanager
async def ours(
    env: str, n: int, towers: int, length: int, updates: int
) -> AsyncIterator[Callable[[float], Any]]:
    import aio_vecenv as av

    policy, rng = make_policy(env, towers), np.random.default_rng(0)

    async def publish(envs: av.AsyncVecEnv) -> None:
        payload = os.urandom(4096)
        while True:
            envs.broadcast(payload)
            await asyncio.sleep(1 / updates)

    async with av.AsyncVecEnv(
        partial(make_env, env), n, num_workers=WORKERS, policy=policy, unroll=length, copy=False
    ) as envs:
        await envs.reset(seed=0)
        publishing = asyncio.create_task(publish(envs)) if updates else None

        async def turn(seconds: float) -> int:
            end, executed = time.perf_counter() + seconds, 0
            while time.perf_counter() < end:
                chunk = await envs.unroll(policy.draw(rng, (length, n)))
                executed += chunk.first.size - int(np.count_nonzero(chunk.first))
            return executed

        yield turn
        if publishing is not None:
            publishing.cancel()
            with suppress(asyncio.CancelledError):
                await publishing


def loop(env: str, n: int, towers: int, length: int, index: int) -> None:
    """One process of the limit: a line with seconds in, executed steps out."""
    envs, policy, rng = (
        [make_env(env) for _ in range(n)],
        make_policy(env, towers),
        np.random.default_rng(index),
    )
    space = envs[0].observation_space
    obs = np.zeros((length + 1, n, *space.shape), space.dtype)
    rewards, ended = np.zeros((length, n)), np.zeros((length, n, 2), np.bool_)
    for i, one in enumerate(envs):
        obs[length, i], _ = one.reset(seed=index * n + i)
    due = [False] * n
    print(0, flush=True)
    for line in sys.stdin:
        end, executed = time.perf_counter() + float(line), 0
        while time.perf_counter() < end:
            obs[0] = obs[length]
            noise = policy.draw(rng, (length, n))
            for t in range(length):
                actions, _ = policy.act(obs[t], noise[t])
                for i, action in enumerate(actions.tolist()):
                    if due[i]:
                        obs[t + 1, i], _ = envs[i].reset()
                        due[i] = False
                        continue
                    obs[t + 1, i], rewards[t, i], terminated, truncated, _ = envs[i].step(action)
                    ended[t, i] = terminated, truncated
                    due[i] = terminated or truncated
                    executed += 1
        print(executed, flush=True)


def start_loops(*arguments: str) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.unroll", "loop", *arguments]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, str(index)], env=environment, **pipes) for index in range(WORKERS)]


@asynccontextmanager
async def limit(
    env: str, n: int, towers: int, length: int, updates: int
) -> AsyncIterator[Callable[[float], Any]]:
    loops = start_loops(env, str(n // WORKERS), str(towers), str(length))

    def answers() -> int:
        return sum(int(one.stdout.readline() if one.stdout else 0) for one in loops)

    async def turn(seconds: float) -> int:
        for one in loops:
            assert one.stdin is not None
            one.stdin.write(f"{seconds}\n")
            one.stdin.flush()
        return answers()

    answers()
    yield turn
    for one in loops:
        one.communicate("")


@asynccontextmanager
async def peer(
    kind: str, env: str, n: int, towers: int, length: int, updates: int
) -> AsyncIterator[Callable[[float], Any]]:
    """A peer's vectorised env, with the policy in the parent."""
    policy, rng = make_policy(env, towers), np.random.default_rng(0)
    makers: list[Any] = [partial(make_env, env) for _ in range(n)]
    envs: Any
    if kind.startswith("gymnasium"):
        vector = gym.vector.SyncVectorEnv if kind == "gymnasium-sync" else gym.vector.AsyncVectorEnv
        envs = vector(makers)
        obs, _ = envs.reset(seed=0)
    else:
        from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

        envs = (DummyVecEnv if kind == "sb3-dummy" else SubprocVecEnv)(makers)
        obs = envs.reset()

    async def turn(seconds: float) -> int:
        nonlocal obs
        end, executed = time.perf_counter() + seconds, 0
        ended = np.zeros(n, np.bool_)
        while time.perf_counter() < end:
            actions, _ = policy.act(obs, policy.draw(rng, (n,)))
            if kind.startswith("gymnasium"):
                executed += n - int(np.count_nonzero(ended))  # the next step of one that ended resets it
                obs, _, terminated, truncated, _ = envs.step(actions)
                ended = terminated | truncated
            else:
                obs, _, _, _ = envs.step(actions)
                executed += n
        return executed

    yield turn
    envs.close()


PEERS = ("gymnasium-sync", "gymnasium-async", "sb3-dummy", "sb3-subproc")


async def serve(kind: str, env: str, n: int, towers: int, length: int, updates: int) -> None:
    contender: Any = {"ours": ours, "limit": limit}.get(kind) or partial(peer, kind)
    async with contender(env, n, towers, length, updates) as turn:
        print("{}", flush=True)
        lines = asyncio.get_running_loop()
        while line := await lines.run_in_executor(None, sys.stdin.readline):
            wall, cpu_s = time.perf_counter(), tree_cpu_s()
            steps = await turn(float(line))
            own_s, below_s = (after - before for after, before in zip(tree_cpu_s(), cpu_s))
            answer = {
                "steps": steps,
                "own_s": own_s,
                "below_s": below_s,
                "wall_s": time.perf_counter() - wall,
            }
            print(json.dumps(answer), flush=True)


# -- comparisons -------------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """Seconds per executed step: CPU time of the contender's own process, and of those below it; by the clock."""

    own_s: float
    below_s: float
    wall_s: float

    @property
    def cpu_s(self) -> float:
        return self.own_s + self.below_s


class Contender:
    """A contender's process, seen from here."""

    def __init__(
        self, kind: str, env: str, n: int, towers: int = 2, length: int = 16, updates: int = 0
    ) -> None:
        arguments = [kind, env, *map(str, (n, towers, length, updates))]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.unroll", "child", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a contender ended with {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def turn(self, seconds: float) -> Turn:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        answer = self._answer()
        return Turn(*(answer[name] / answer["steps"] for name in Turn._fields))


@contextmanager
def together(*contenders: Contender) -> Iterator[None]:
    try:
        yield
    finally:
        for one in contenders:
            one.process.communicate("")


class Compared(NamedTuple):
    """Left ÷ right, turn by turn."""

    cpu: list[float]  # CPU time per step
    wall: list[float]  # steps per second
    rate: list[float]  # steps per second of the left one

    def row(self, name: str) -> str:
        low, high = interval_of_median(self.cpu)
        slow, fast = interval_of_median(self.wall)
        return (
            f"| {name} | {statistics.median(self.cpu):.3f} | {low:.3f} to {high:.3f} "
            f"| {statistics.median(self.wall):.3f} | {slow:.3f} to {fast:.3f} | {statistics.median(self.rate):,.0f} |"
        )


def compare(left: Contender, right: Contender, turns: int, seconds: float) -> Compared:
    compared = Compared([], [], [])
    with together(left, right):
        for turn in range(turns + 1):
            order = (left, right) if turn % 2 else (right, left)
            answers = {one: one.turn(seconds) for one in order}
            if turn:  # the first warms up
                compared.cpu.append(answers[left].cpu_s / answers[right].cpu_s)
                compared.wall.append(answers[right].wall_s / answers[left].wall_s)
                compared.rate.append(1 / answers[left].wall_s)
    return compared


def show_split(turns: int, seconds: float) -> None:
    """Who takes it: the loops alone, our workers, the parent. Prints a table."""
    print("\nWho takes it, µs per executed step of 32 CartPoles (medians)\n")
    print("| T | CPU: loops alone | our workers | our parent | by the clock: loops alone | ours |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    for length in (16, 128):
        alone, our = (Contender(kind, "cartpole", 32, 2, length) for kind in ("limit", "ours"))
        with together(alone, our):
            pairs = [(alone.turn(seconds), our.turn(seconds)) for _ in range(turns + 1)][1:]
        (_, loops, clock), (parent, workers, our_clock) = (
            [1e6 * statistics.median(column) for column in zip(*turns_of)] for turns_of in zip(*pairs)
        )
        print(
            f"| {length} | {loops:.1f} | {workers:.1f} | {parent:.1f} | {clock:.1f} | {our_clock:.1f} |",
            flush=True,
        )


class Stamps(gym.Wrapper[Any, Any, Any, Any]):
    """Says when each of its episodes began."""

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return obs, {**info, "began": time.monotonic()}


async def delays_s(length: int, updates: int) -> list[float]:
    """From `broadcast()`, at some moment of a chunk, to the first episode under it, of 32 CartPoles that end every 20
    rows."""
    import aio_vecenv as av

    policy, rng = make_policy("short", 2), np.random.default_rng(0)
    found: list[float] = []
    async with av.AsyncVecEnv(
        lambda: Stamps(make_env("short")),
        32,
        num_workers=WORKERS,
        policy=policy,
        unroll=length,
        info=["began"],
    ) as envs:
        await envs.reset(seed=0)
        took_s = 0.0
        for _ in range(updates + 10):
            began = time.monotonic()
            envs.send_unroll(policy.draw(rng, (length, 32)))
            await asyncio.sleep(took_s * rng.random())
            published = time.monotonic()
            version, first = envs.broadcast(0).version, 0.0
            while not first:
                chunk = await envs.recv_unroll()
                took_s = took_s or time.monotonic() - began
                began_under = [
                    info["began"] for t, env_id, info in chunk.infos if chunk.versions[t, env_id] >= version
                ]
                first = min(began_under, default=0.0)
                if not first:
                    envs.send_unroll(policy.draw(rng, (length, 32)))
            found.append(first - published)
    return found[10:]


def show_delays(updates: int) -> dict[int, float]:
    """Prints a table; the medians by T, in ms."""
    medians: dict[int, float] = {}
    print("\nFrom `broadcast()` to the first episode under it, ms\n")
    print("| T | median | 90 % | worst |\n|---|--:|--:|--:|", flush=True)
    for length in KNOB:
        found = sorted(1e3 * delay for delay in asyncio.run(delays_s(length, updates)))
        median, most = statistics.median(found), found[int(0.9 * len(found))]
        print(f"| {length} | {median:.2f} | {most:.2f} | {found[-1]:.2f} |", flush=True)
        medians[length] = median
    return medians


HEAD = "| {} | CPU per step, ours ÷ its | 80 % | steps/s, ours ÷ its | 80 % | steps/s |\n|---|--:|---|--:|---|--:|"


def plot(rates: dict[int, float], delays: dict[int, float], out: Path) -> None:
    """The knob: how fast it runs, and how soon an update acts, by T."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(7, 4), layout="constrained")
    left.plot(list(rates), list(rates.values()), "o-", color="tab:blue")
    left.set(xscale="log", xlabel="T, rows of a chunk", ylabel="steps/s", ylim=(0, None))
    left.set_xticks(KNOB, [str(length) for length in KNOB])
    right = left.twinx()
    right.plot(list(delays), list(delays.values()), "s--", color="tab:orange")
    right.set(ylabel="median delay of an update (dashed), ms", ylim=(0, None))
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main() -> None:
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.unroll")
    rates: dict[int, float] = {}
    delays: dict[int, float] = {}

    def row(name: str, ours_: tuple[Any, ...], its: tuple[Any, ...], turns: int = 0) -> Compared:
        compared = compare(Contender(*ours_), Contender(*its), turns or arguments.turns, arguments.seconds)
        print(compared.row(name), flush=True)
        return compared

    if "bars" in arguments.only:
        print("Against the policy limit\n\n" + HEAD.format("workload, T = 16"), flush=True)
        for name, workload in (
            ("CartPole × 32, two towers", ("cartpole", 32, 2)),
            ("CartPole × 256, actor only", ("cartpole", 256, 1)),
            ("CartPole × 256, two towers", ("cartpole", 256, 2)),
            ("MiniGrid DoorKey × 32", ("minigrid", 32)),
        ):
            row(name, ("ours", *workload), ("limit", *workload))
    if "peers" in arguments.only:
        print(
            "\nAgainst peers, the same policy in the parent\n\n" + HEAD.format("CartPole × 32, T = 16"),
            flush=True,
        )
        for name in PEERS:
            row(name, ("ours", "cartpole", 32), (name, "cartpole", 32))
    if "updates" in arguments.only:
        print(
            "\n500 updates/s of 4 KiB, an end every 20 rows, against none\n\n" + HEAD.format("CartPole × 32"),
            flush=True,
        )
        row("T = 16", ("ours", "short", 32, 2, 16, 500), ("ours", "short", 32, 2, 16))
    if "knob" in arguments.only:
        print("\nThe knob, against the policy limit\n\n" + HEAD.format("CartPole × 32, T"), flush=True)
        for length in KNOB:
            its, turns = ("limit", "cartpole", 32), max(1, arguments.turns // 3)
            compared = row(str(length), ("ours", "cartpole", 32, 2, length), its, turns)
            rates[length] = statistics.median(compared.rate)
    if "split" in arguments.only:
        show_split(arguments.turns, arguments.seconds)
    if "delays" in arguments.only:
        delays = show_delays(10 * arguments.turns)
    if rates and delays:
        plot(rates, delays, arguments.plot)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        asyncio.run(serve(*sys.argv[2:4], *map(int, sys.argv[4:])))  # type: ignore[arg-type]
    elif sys.argv[1:2] == ["loop"]:
        loop(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        main()
