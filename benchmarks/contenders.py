"""One class per contender: open, step, close. Each runs in a process of its own, driven by the harness.

A *step* is an executed action, for all of them: rows of an autoreset are not counted.
"""
# edge: `python -m benchmarks.contenders NAME` answers one line of JSON for each line of JSON

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.bounds import Bare, BareFirst, Limit, StartLimit, Told
from benchmarks.contender import Contender, Unfit, loop_factory
from benchmarks.workloads import Workload

__all__ = ["CONTENDERS"]

T = TypeVar("T")


# -- ours --------------------------------------------------------------------------------------------------------


class Ours(Contender):
    title = "aio-vecenv, lockstep"
    module = "aio_vecenv"

    def _open(self, workload: Workload) -> None:
        import aio_vecenv as av

        self._runner = asyncio.Runner(loop_factory=loop_factory())
        self.envs = av.AsyncVecEnv(workload.factories, num_workers=workload.num_workers)
        self._do(self._start())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _start(self) -> None:
        await self.envs.__aenter__()
        await self.envs.reset(seed=0)

    def run(self, seconds: float) -> dict[str, float]:
        return self._do(self._run(seconds))

    def latencies(self, seconds: float) -> list[float]:
        return self._do(self._latencies(seconds))

    async def _run(self, seconds: float) -> dict[str, float]:
        envs, calls = self.envs, 0
        before = envs.statistics().executed_steps
        began = now = time.perf_counter()
        while now - began < seconds:
            await envs.step(self._next_actions())
            calls += 1
            now = time.perf_counter()
        steps = envs.statistics().executed_steps - before
        return {"steps": steps, "calls": calls, "seconds": now - began}

    async def _latencies(self, seconds: float) -> list[float]:
        taken: list[float] = []
        began = now = time.perf_counter()
        while now - began < seconds:
            before = now
            await self.envs.step(self._next_actions())
            now = time.perf_counter()
            taken.append(now - before)
        return taken

    def updates(self, seconds: float, rate: float, payload_bytes: int | None) -> dict[str, Any]:
        """Step while publishing `rate` updates a second; 0: none. Without a payload only the publisher's clock runs:
        it wakes as often, and publishes nothing."""
        payload = None if payload_bytes is None else bytes(payload_bytes)
        return self._do(self._updates(seconds, rate, payload))

    async def _updates(self, seconds: float, rate: float, payload: bytes | None) -> dict[str, Any]:
        costs: list[float] = []
        applied: list[float] = []
        publisher = asyncio.ensure_future(self._publish(rate, payload, costs, applied)) if rate else None
        result: dict[str, Any] = await self._run(seconds)
        if publisher is not None:
            publisher.cancel()
            await asyncio.wait([publisher])
        commands = [worker.step_time for worker in self.envs.statistics().workers]
        return {
            **result,
            "costs_s": costs,
            "applied_s": applied,
            "command_p50_s": max(command.p50_s for command in commands),
            "command_p99_s": max(command.p99_s for command in commands),
        }

    async def _publish(
        self, rate: float, payload: bytes | None, costs: list[float], applied: list[float]
    ) -> None:
        """At an even pace. Every fourth receipt is waited for, as seen by the caller."""
        watchers: set[asyncio.Task[None]] = set()

        async def watch(receipt: Any, since: float) -> None:
            await receipt
            applied.append(time.perf_counter() - since)

        began, number = time.perf_counter(), 0
        while True:
            if (wait := began + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            number += 1
            if payload is None:
                continue
            before = time.perf_counter()
            receipt = self.envs.broadcast(payload)
            costs.append(time.perf_counter() - before)
            if number % 4 == 0:
                task = asyncio.ensure_future(watch(receipt, before))
                watchers.add(task)
                task.add_done_callback(watchers.discard)

    def close(self) -> None:
        self._do(self.envs.aclose())
        self._runner.close()


class OursFirstReady(Ours):
    title = "aio-vecenv, first-N-ready"

    async def _run(self, seconds: float) -> dict[str, float]:
        envs, calls, quorum = self.envs, 0, self.workload.min_envs
        before = envs.statistics().executed_steps
        began = now = time.perf_counter()
        envs.send(self._next_actions())
        while True:
            batch = await envs.recv(quorum)
            calls += 1
            now = time.perf_counter()
            if now - began >= seconds:
                break
            envs.send(self._next_actions()[batch.env_ids], batch.env_ids)
        steps = envs.statistics().executed_steps - before
        with contextlib.suppress(ValueError):  # nothing is owed
            await envs.recv()  # the next round begins with nothing under way
        return {"steps": steps, "calls": calls, "seconds": now - began}


class OursInline(Ours):
    title = "aio-vecenv, inline"
    parallel = False
    note = "no processes"

    def _open(self, workload: Workload) -> None:
        import aio_vecenv as av

        self._runner = asyncio.Runner()
        self.envs = av.AsyncVecEnv(workload.factories, backend="inline", num_workers=1)
        self._do(self._start())


# -- peers ---------------------------------------------------------------------------------------------------------


class GymnasiumAsync(Contender):
    title = "Gymnasium AsyncVectorEnv"
    module = "gymnasium.vector"

    def _open(self, workload: Workload) -> None:
        from gymnasium.vector import AsyncVectorEnv

        self.envs: Any = AsyncVectorEnv(workload.factories, shared_memory=True)
        self.envs.reset(seed=0)
        self._resets = 0  # rows of the next step that only reset

    def step(self) -> int:
        _, _, terminated, truncated, _ = self.envs.step(self._next_actions())
        executed = self.workload.num_envs - self._resets
        self._resets = int(np.count_nonzero(terminated | truncated))
        return executed

    def close(self) -> None:
        self.envs.close()


class GymnasiumSync(GymnasiumAsync):
    title = "Gymnasium SyncVectorEnv"
    note = "serial"
    parallel = False

    def _open(self, workload: Workload) -> None:
        from gymnasium.vector import SyncVectorEnv

        self.envs = SyncVectorEnv(workload.factories)
        self.envs.reset(seed=0)
        self._resets = 0


class StableBaselines3(Contender):
    title = "SB3 SubprocVecEnv"
    module = "stable_baselines3"
    note = "start method fork"
    start_method = "fork"

    def _open(self, workload: Workload) -> None:
        vec_env = import_module("stable_baselines3.common.vec_env")
        self.envs: Any = vec_env.SubprocVecEnv(workload.factories, start_method=self.start_method)
        self.envs.seed(0)
        self.envs.reset()

    def step(self) -> int:
        self.envs.step(self._next_actions())  # it resets within the step: every row is an executed action
        return self.workload.num_envs

    def close(self) -> None:
        self.envs.close()


class StableBaselines3Default(StableBaselines3):
    title = "SB3 SubprocVecEnv (forkserver)"
    note = "its default start method: every child imports torch"
    start_method = "forkserver"


class Tianshou(Contender):
    title = "Tianshou ShmemVectorEnv"
    module = "tianshou.env"

    def _open(self, workload: Workload) -> None:
        self.envs: Any = import_module("tianshou.env").ShmemVectorEnv(workload.factories, **self._options())
        self.envs.seed(0)
        self.envs.reset()

    def _options(self) -> dict[str, Any]:
        return {}

    def step(self) -> int:
        _, _, terminated, truncated, _ = self.envs.step(self._next_actions())
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            self.envs.reset(ended)  # as its Collector does
        return self.workload.num_envs

    def close(self) -> None:
        self.envs.close()


class TianshouAsync(Tianshou):
    title = "Tianshou ShmemVectorEnv, wait_num"

    def _open(self, workload: Workload) -> None:
        super()._open(workload)
        self._ready: NDArray[np.int64] = np.arange(workload.num_envs)

    def _options(self) -> dict[str, Any]:
        return {"wait_num": self.workload.min_envs}

    def step(self) -> int:
        actions = self._next_actions()[self._ready]
        _, _, terminated, truncated, infos = self.envs.step(actions, self._ready)
        self._ready = np.array([info["env_id"] for info in infos])
        ended = self._ready[terminated | truncated]
        if len(ended):
            self.envs.reset(ended)
        return len(self._ready)


class TorchRL(Contender):
    title = "TorchRL ParallelEnv"
    module = "torchrl.envs"
    note = "start method fork"

    def _open(self, workload: Workload) -> None:
        self._torch = import_module("torch")
        library = import_module("torchrl.envs")

        def make() -> Any:
            return library.GymWrapper(workload.make(), categorical_action_encoding=True)

        self.envs: Any = self._group(library, make)
        self.envs.set_seed(0)
        self._state = self.envs.reset()

    def _group(self, library: Any, make: Callable[[], Any]) -> Any:
        return library.ParallelEnv(self.workload.num_envs, make, mp_start_method="fork")

    def step(self) -> int:
        actions = self._torch.from_numpy(self._next_actions().reshape(self._state.batch_size))
        _, self._state = self.envs.step_and_maybe_reset(self._state.set("action", actions))
        return self.workload.num_envs

    def close(self) -> None:
        self.envs.close()


class TorchRLGrouped(TorchRL):
    title = "TorchRL ParallelEnv of SerialEnv"
    note = "W workers; start method fork"

    def _group(self, library: Any, make: Callable[[], Any]) -> Any:
        share = self.workload.num_envs // self.workload.num_workers
        workers = self.workload.num_workers
        return library.ParallelEnv(workers, lambda: library.SerialEnv(share, make), mp_start_method="fork")


class EnvPool(Contender):
    title = "envpool"
    module = "envpool"
    note = "its own C++ env, not the Python one"
    parallel = False

    def _open(self, workload: Workload) -> None:
        if workload.gym_id is None:
            raise Unfit("has only envs of its own")
        self.envs: Any = import_module("envpool").make(
            workload.gym_id,
            env_type="gymnasium",
            num_envs=workload.num_envs,
            num_threads=workload.num_workers,
        )
        self.envs.reset()

    def step(self) -> int:
        infos = self.envs.step(self._next_actions())[4]
        return int(np.count_nonzero(infos["elapsed_step"]))  # 0: the row of a reset

    def close(self) -> None:
        self.envs.close()


CONTENDERS: dict[str, type[Contender]] = {
    "limit": Limit,
    "told": Told,
    "bare": Bare,
    "bare-first": BareFirst,
    "start-limit": StartLimit,
    "ours": Ours,
    "ours-first": OursFirstReady,
    "ours-inline": OursInline,
    "gymnasium": GymnasiumAsync,
    "gymnasium-sync": GymnasiumSync,
    "sb3": StableBaselines3,
    "sb3-forkserver": StableBaselines3Default,
    "tianshou": Tianshou,
    "tianshou-async": TianshouAsync,
    "torchrl": TorchRL,
    "torchrl-grouped": TorchRLGrouped,
    "envpool": EnvPool,
}


if __name__ == "__main__":
    from benchmarks import contenders  # pickled by this name, not as __main__
    from benchmarks.host import Host, serve

    serve(Host(contenders.CONTENDERS[sys.argv[1]]()))
