"""Small envs for the tests of the adapters; importable in the workers."""
# pure: envs of a few lines

from __future__ import annotations

import os
import signal
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from curriculum import CurriculumEnv, Level, LevelSet

__all__ = [
    "Chatty",
    "CountEnv",
    "CustomSpace",
    "CustomSpaceEnv",
    "Echo",
    "Ending",
    "Faulty",
    "Heeding",
    "OneStep",
    "RandomEnv",
    "TwoArguments",
    "curriculum_env",
    "typed",
]

Reset = tuple[Any, dict[str, Any]]
Step = tuple[Any, Any, bool, bool, dict[str, Any]]


class RandomEnv(gym.Env[Any, Any]):
    """Samples observations of any space; ends at random; its infos have all shapes."""

    def __init__(self, space: spaces.Space[Any], actions: spaces.Space[Any] | None = None) -> None:
        self.observation_space = deepcopy(space)  # it is seeded
        self.action_space = spaces.Discrete(5) if actions is None else actions
        self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {"begun": float(self.np_random.random()), "who": "reset"}

    def step(self, action: Any) -> Step:
        self.t += 1
        number = float(np.sum(np.asarray(spaces.flatten(self.action_space, action))))
        info: dict[str, Any] = {}
        if self.t % 3 == 0:
            info = {"t": self.t, "nested": {"x": np.arange(2) + self.t}, "text": f"step {self.t}"}
        terminated = bool(self.np_random.random() < 0.05)
        return self.observation_space.sample(), number + self.t, terminated, self.t >= 40, info


class CountEnv(gym.Env[Any, Any]):
    """The observation counts steps, the reward is the action; ends at `max_count`. Reuses its buffer."""

    def __init__(self, max_count: int = 3, render_mode: str | None = None) -> None:
        self.action_space = spaces.Discrete(5)
        self.observation_space = spaces.Box(0, 100, (1,), np.int64)
        self.metadata = {"render_modes": ["rgb_array"]}
        self.max_count, self.render_mode = max_count, render_mode
        self.buffer = np.zeros(1, np.int64)
        self.options: dict[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        self.options = options
        self.buffer[0] = 0 if seed is None else seed
        return self.buffer, {}

    def step(self, action: Any) -> Step:
        self.buffer[0] += 1
        return self.buffer, action, bool(self.buffer[0] == self.max_count), False, {}

    def render(self) -> Any:
        return np.full((4, 6, 3), self.max_count, np.uint8)

    def add(self, a: int, *, b: int = 0) -> int:
        return self.max_count + a + b


class CustomSpace(spaces.Space[str]):
    """Nobody's space but ours."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CustomSpace)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)


class CustomSpaceEnv(gym.Env[str, str]):
    """Observations and actions that are strings."""

    def __init__(self) -> None:
        self.observation_space = CustomSpace()
        self.action_space = CustomSpace()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        return "reset", {}

    def step(self, action: str) -> Step:
        return f"step({action})", 0.0, False, False, {}


class TwoArguments(Exception):
    """Cannot be rebuilt from its message."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Faulty(CountEnv):
    """What the action says: 0 nothing, 1 ValueError, 2 TwoArguments, 3 die, 4 wait until `gate` exists."""

    def __init__(self, gate: str = "", max_count: int = 100) -> None:
        super().__init__(max_count)
        self.gate = gate

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        if seed == 13:
            raise ValueError("Error in reset")
        if seed == 14:
            self._wait()
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Step:
        if action == 1:
            raise ValueError(f"Error in step with {action} at 100%")
        if action == 2:
            raise TwoArguments(7, "because")
        if action == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if action == 4:
            self._wait()
        return super().step(action)

    def wait(self) -> str:
        self._wait()
        return "waited"

    def _wait(self) -> None:
        # the test lets the fault end; polled, since it is another process
        while not Path(self.gate).exists():
            time.sleep(0.001)


class Heeding(CountEnv):
    """Its reward is the newest payload that it was told."""

    told: float = 0.0

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.told = payload

    def step(self, action: Any) -> Step:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, self.told, terminated, truncated, info


class OneStep(gym.Env[Any, Any]):
    """Succeeds at once if the action says so."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 9, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Step:
        return np.zeros(1, np.float32), float(action), True, False, {"success": bool(action)}


class Echo(gym.Env[Any, Any]):
    """Its info says what it was given, types included; `shown` is what it observes."""

    def __init__(
        self, actions: spaces.Space[Any], observed: spaces.Space[Any] | None = None, shown: Any = None
    ) -> None:
        self.action_space = actions
        self.observation_space = spaces.Box(-9, 9, (1,), np.float32) if observed is None else observed
        self.shown = np.zeros(1, np.float32) if observed is None else shown

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.shown, {}

    def step(self, action: Any) -> Any:
        return self.shown, 0.0, False, False, {"given": typed(action)}


def typed(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(typed, value))})"
    return f"{type(value).__name__} {getattr(value, 'dtype', '')} {value}"


class Ending(Echo):
    """Every step is the last."""

    def step(self, action: Any) -> Step:
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, True, truncated, info


class Chatty(gym.vector.VectorEnv[Any, Any, Any]):
    """Two rows that observe `shown`."""

    def __init__(self, observed: spaces.Space[Any], shown: Any) -> None:
        self.num_envs, self.shown = 2, shown
        self.single_observation_space, self.single_action_space = observed, spaces.Discrete(2)
        self.observation_space, self.action_space = (
            batch_space(observed, 2),
            batch_space(spaces.Discrete(2), 2),
        )
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return _twice(self.shown), {}

    def step(self, actions: Any) -> Any:
        return _twice(self.shown), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {}


def _twice(value: Any) -> Any:
    return (
        {key: _twice(part) for key, part in value.items()}
        if isinstance(value, dict)
        else np.stack([value] * 2)
    )


def curriculum_env() -> gym.Env[Any, Any]:
    """Two stages of two levels each, which make no difference."""
    stages = ("simplest", "simpler")
    levels = LevelSet([Level(stage, f"{stage}-{i}", data={"n": i}) for stage in stages for i in (0, 1)])
    return CurriculumEnv(OneStep(), levels)
