"""What the synchronous adapters cost per step, beside native `AsyncVecEnv`: `python benchmarks/adapters.py`.

Every contender steps its own 32 envs in 2 workers; short rounds are interleaved in random order. Two figures each, and
how much they are over native `AsyncVecEnv` on asyncio in the same autoreset mode: the median time per call, and the CPU
time that the calling process spends per call, which a busy machine disturbs less. `null` is an env that does nothing.
"""
# edge: prints a table

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

import aio_vecenv as av
from aio_vecenv.adapters.gymnasium import VectorEnv
from aio_vecenv.adapters.sb3 import VecEnv
from aio_vecenv.core.infos import batch_infos

Measure = Callable[[int], list[float]]  # calls -> seconds per call


class Null(gym.Env[Any, Any]):
    """Does nothing, as fast as can be."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)
    _obs = np.zeros(4, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self._obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._obs, 0.0, False, False, {}


def _synchronous(step: Callable[[Any], Any], actions: Any) -> Measure:
    def measure(calls: int) -> list[float]:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            step(actions)
            times.append(time.perf_counter() - began)
        return times

    return measure


def _native(runner: asyncio.Runner, envs: av.AsyncVecEnv, actions: Any) -> Measure:
    async def stepping(calls: int) -> list[float]:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            await envs.step(actions)
            times.append(time.perf_counter() - began)
        return times

    return lambda calls: runner.run(stepping(calls))


def compare(
    factory: Callable[[], Any], num_envs: int, workers: int, calls: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Seconds and CPU seconds per step call, by contender."""
    factories = [factory] * num_envs
    actions = np.zeros(num_envs, np.int64)
    contenders: dict[str, Measure] = {}
    closers: list[Callable[[], Any]] = []

    async def settled() -> None:
        """What a coordinator does when nothing is unread."""

    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"native, asyncio": asyncio.new_event_loop}
    try:
        import uvloop
    except ImportError:
        pass
    else:
        loops["native, uvloop"] = uvloop.new_event_loop
    for name, loop in loops.items():
        for mode in (gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP):
            runner = asyncio.Runner(loop_factory=loop)
            native = runner.run(av.AsyncVecEnv.open(factories, num_workers=workers, autoreset=mode))
            runner.run(native.reset(seed=0))
            contenders[f"{name}, {mode.value}"] = _native(runner, native, actions)
            closers += [partial(_close_native, runner, native)]
    for name, options in {
        "gymnasium adapter": {},
        "gymnasium adapter, before_step": {"before_step": settled},
        "gymnasium adapter, thread": {"loop": "thread"},
    }.items():
        envs = VectorEnv(factories, num_workers=workers, **options)  # type: ignore[arg-type]
        envs.reset(seed=0)
        contenders[name] = _synchronous(envs.step, actions)
        closers.append(envs.close)
    for name, options in {
        "sb3 adapter": {},
        "sb3 adapter, before_step": {"before_step": settled},
        "sb3 adapter, thread": {"loop": "thread"},
    }.items():
        venv = VecEnv(factories, num_workers=workers, **options)  # type: ignore[arg-type]
        venv.seed(0)
        venv.reset()
        contenders[name] = _synchronous(venv.step, actions)
        closers.append(venv.close)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            began = time.process_time()
            times[name] += contenders[name](calls)
            cpu[name].append((time.process_time() - began) / calls)
    for close in closers:
        close()
    return {name: (statistics.median(times[name]), statistics.median(cpu[name])) for name in contenders}


def _close_native(runner: asyncio.Runner, envs: av.AsyncVecEnv) -> None:
    runner.run(envs.aclose())
    runner.close()


def learn(seed: int, steps: int) -> float:
    """Train Stable-Baselines3's PPO on CartPole-v1 on our `VecEnv`; the mean return of 20 episodes afterwards.

    The hyperparameters are those of RL Zoo.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecMonitor

    with VecEnv("CartPole-v1", 8, num_workers=2) as inner:
        venv = VecMonitor(inner)  # type: ignore[arg-type]
        model = PPO(
            "MlpPolicy", venv, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20,
            learning_rate=lambda left: 1e-3 * left, clip_range=lambda left: 0.2 * left, seed=seed, device="cpu",
        )  # fmt: skip
        model.learn(steps)
        mean, _ = evaluate_policy(model, venv, n_eval_episodes=20)
    return float(np.mean(mean))


def infos(keys: int, num_envs: int, rounds: int) -> dict[str, float]:
    """By kind of value: the time that joining the infos of all envs takes, in units of Gymnasium's `_add_info`."""

    class Theirs(gym.vector.VectorEnv[Any, Any, Any]):
        def join(self, given: dict[int, Any]) -> None:
            joined: dict[str, Any] = {}
            for env_id, info in given.items():
                joined = self._add_info(joined, info, env_id)

    theirs = Theirs()
    theirs.num_envs = num_envs
    ids = np.arange(num_envs)
    mixed = [1, 2.5, True, "text", np.float32(1), np.zeros(3), {"a": 1, "b": 2.0}, None, np.int64(3), [1, 2]]
    kinds: dict[str, Callable[[int], Any]] = {
        "floats": float,
        "np.float64": np.float64,
        "arrays": lambda _: np.zeros(3),
        "ten kinds": lambda key: mixed[key % len(mixed)],
    }
    ratios: dict[str, float] = {}
    for kind, value in kinds.items():
        given = {i: {f"key{key}": value(key) for key in range(keys)} for i in range(num_envs)}
        times: dict[Callable[[], Any], list[float]] = {
            partial(batch_infos, ids, given): [],
            partial(theirs.join, given): [],
        }
        for _ in range(rounds):
            for join, taken in times.items():
                began = time.perf_counter()
                join()
                taken.append(time.perf_counter() - began)
        ours, other = map(statistics.median, times.values())
        ratios[kind] = ours / other
    return ratios


def main() -> None:
    """Print the table; with `--learn` what an agent learns, with `--infos` what infos cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learn", action="store_true", help="train SB3's PPO on CartPole-v1 instead")
    parser.add_argument("--infos", action="store_true", help="join infos of 55 keys and 8 envs instead")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --learn")
    parser.add_argument("--steps", type=int, default=100_000, help="of --learn")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--calls", type=int, default=20, help="per contender and round")
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    if args.learn:
        for seed in args.seeds:
            began = time.perf_counter()
            mean = learn(seed, args.steps)
            print(
                f"seed {seed}: mean return {mean:.1f} after {args.steps} steps, {time.perf_counter() - began:.0f} s"
            )
        return
    if args.infos:
        for kind, ratio in infos(55, 8, 10 * args.rounds).items():
            print(f"{kind:12s} {ratio:.2f} of the time that Gymnasium's _add_info takes")
        return
    kinds: dict[str, Callable[[], Any]] = {"CartPole-v1": partial(gym.make, "CartPole-v1"), "null": Null}
    for kind, factory in kinds.items():
        medians = compare(factory, args.envs, args.workers, args.calls, args.rounds)
        print(f"\n{kind}, {args.envs} envs, {args.workers} workers; µs per step call (over native asyncio)")
        print(f"  {'':34s}{'time, median':>22s}{'CPU of this process':>24s}")
        for name, figures in medians.items():
            mode = "SameStep" if name.startswith("sb3") or "SameStep" in name else "NextStep"
            base = medians[f"native, asyncio, {mode}"]
            columns = [f"{mine * 1e6:12.1f} ({(mine - of) * 1e6:+7.1f})" for mine, of in zip(figures, base)]
            print(f"  {name:34s}{columns[0]:>22s}{columns[1]:>24s}")


if __name__ == "__main__":
    main()
