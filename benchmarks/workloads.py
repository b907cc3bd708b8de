"""The envs that are stepped: real ones, and ones whose cost is known."""
# pure: envs and factories; imported by every contender's children, so nothing heavy is imported before it is needed

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

__all__ = ["MINIGRID", "WORKLOADS", "HeavyTailEnv", "ImageEnv", "NullEnv", "Workload", "find", "null"]

MINIGRID = "MiniGrid-DoorKey-8x8-v0"
Step = tuple[Any, float, bool, bool, dict[str, Any]]


class _Plain(gym.Env[Any, Any]):
    """An env whose episodes last `length` steps and whose observations are ready-made."""

    length = 1000  # steps; long, so that resets hardly count

    def __init__(self) -> None:
        self.action_space = gym.spaces.Discrete(2)
        self._at = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = 0
        return self._observation(), {}

    def step(self, action: Any) -> Step:
        self._at += 1
        return self._observation(), 1.0, False, self._at >= self.length, {}

    def _observation(self) -> NDArray[Any]:
        raise NotImplementedError


class NullEnv(_Plain):
    """Does nothing: what is left is the runtime's own cost."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self._obs = np.zeros(4, np.float32)

    def _observation(self) -> NDArray[Any]:
        return self._obs


class ImageEnv(_Plain):
    """84×84×4 uint8 frames; a step computes for 50 µs of this thread's own time.

    Processor time, not wall time: an env that waits for a core must not seem to have done its work meanwhile.
    """

    step_s = 50e-6

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
        self._frames = np.random.default_rng(0).integers(0, 256, (8, 84, 84, 4), np.uint8)

    def step(self, action: Any) -> Step:
        until = time.thread_time() + self.step_s
        while time.thread_time() < until:
            pass
        return super().step(action)

    def _observation(self) -> NDArray[Any]:
        frame: NDArray[Any] = self._frames[self._at % 8]
        return frame


class HeavyTailEnv(_Plain):
    """A step waits 1 ms, as for a simulator elsewhere; one in twenty waits 20 ms."""

    usual_s, rare_s, rare = 1e-3, 20e-3, 0.05

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
        self._obs = np.zeros(4, np.float32)
        self._draw = np.random.default_rng(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:  # envs must not be slow in unison
            self._draw = np.random.default_rng(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        time.sleep(self.rare_s if self._draw.random() < self.rare else self.usual_s)
        return super().step(action)

    def _observation(self) -> NDArray[Any]:
        return self._obs


def make_cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


def make_minigrid() -> gym.Env[Any, Any]:
    """The image alone: the mission is text, which not every peer can carry."""
    wrappers: Any = import_module("minigrid.wrappers")  # registers the envs
    env: gym.Env[Any, Any] = wrappers.ImgObsWrapper(gym.make(MINIGRID))
    return env


@dataclass(frozen=True)
class Workload:
    """Envs, how many of them, in how many workers where a contender groups them."""

    name: str
    make: Callable[[], gym.Env[Any, Any]]
    num_envs: int
    num_workers: int
    min_envs: int
    """First-N-ready: act once this many are ready."""
    num_actions: int
    says: str
    """What it is, for the table's caption."""
    gym_id: str | None = None
    """For contenders that bring their own implementation of the env."""

    @property
    def factories(self) -> list[Callable[[], gym.Env[Any, Any]]]:
        return [self.make] * self.num_envs

    def actions(self) -> NDArray[np.int64]:
        """A table of random actions (1024, num_envs): drawing them is no contender's work."""
        return np.random.default_rng(7).integers(self.num_actions, size=(1024, self.num_envs))


def null(num_envs: int) -> Workload:
    """One null env per worker."""
    return Workload(
        f"null-{num_envs}", NullEnv, num_envs, num_envs, max(1, num_envs // 4), 2,
        f"a null env in each of {num_envs} workers",
    )  # fmt: skip


_CARTPOLE = partial(Workload, make=make_cartpole, num_actions=2, gym_id="CartPole-v1")

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        _CARTPOLE("cartpole-32", num_envs=32, num_workers=2, min_envs=16, says="CartPole-v1, 32 envs"),
        _CARTPOLE("cartpole-256", num_envs=256, num_workers=2, min_envs=128, says="CartPole-v1, 256 envs"),
        Workload("minigrid-32", make_minigrid, 32, 2, 16, 7, "MiniGrid-DoorKey-8x8, 32 envs"),
        Workload("image-32", ImageEnv, 32, 2, 16, 2, "84×84×4 uint8, 50 µs a step, 32 envs"),
        Workload("tail-32", HeavyTailEnv, 32, 32, 8, 2,
                 "heavy tail: a step waits 1 ms, one in twenty 20 ms; 32 envs in 32 workers"),
    )
}  # fmt: skip


def find(name: str) -> Workload:
    """By name; `null-W`, `cartpole-N` and `minigrid-N` for any number. Raises ValueError if there is none such."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    kind, _, number = name.rpartition("-")
    if kind not in ("null", "cartpole", "minigrid") or not number.isdecimal() or int(number) < 1:
        raise ValueError(
            f"no workload {name!r}: there are {', '.join(WORKLOADS)}, null-W, cartpole-N and minigrid-N"
        )
    if kind == "null":
        return null(int(number))
    return replace(WORKLOADS[f"{kind}-32"], name=name, num_envs=int(number))
