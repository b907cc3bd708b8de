"""Small envs, each with one property that a trainer may stumble on; any `--env benchmarks.tasks:NAME` takes them."""
# pure: Gymnasium envs of a few lines

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

__all__ = ["Bounds", "Guess", "Integers", "Quarters"]


class Bounds(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Actions whose bounds are far from -1 … 1 and from 0; the best one is 500, each of 10 steps."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, low: float = 30, high: float = 1017) -> None:
        self.action_space = spaces.Box(low, high, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(1, np.float32), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._t += 1
        space: Any = self.action_space
        off = abs(float(action[0]) - 500) / float(space.high[0] - space.low[0])
        return np.zeros(1, np.float32), -off, False, self._t >= 10, {}


class Guess(gym.Env[Any, np.int64]):
    """One of four answers is right at each of 20 steps, and the observation says which: 20 is perfect, 5 is chance."""

    action_space = spaces.Discrete(4)
    hit: ClassVar[float] = 1.0
    miss: ClassVar[float] = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return self._next(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = self.hit if action == self._right else self.miss
        self._t += 1
        return self._next(), reward, False, self._t >= 20, {}

    def _next(self) -> Any:
        self._right = int(self.np_random.integers(4))
        return self.show(self._right)

    def show(self, right: int) -> Any:
        raise NotImplementedError


class Quarters(Guess):
    """Noise of 90 … 129, and one quarter of the picture is brighter by 25."""

    def __init__(
        self, height: int = 16, width: int = 16, kind: Literal["bytes", "float255", "float1"] = "bytes"
    ) -> None:
        self._shape = (height, width, 3)
        high, self._dtype = {
            "bytes": (255, np.uint8),
            "float255": (255, np.float32),
            "float1": (1, np.float32),
        }[kind]
        self._scale = high / 255
        self.observation_space = spaces.Box(0, high, self._shape, self._dtype)

    def show(self, right: int) -> Any:
        picture = self.np_random.integers(90, 130, size=self._shape)
        (down, across), (height, width) = divmod(right, 2), (self._shape[0] // 2, self._shape[1] // 2)
        picture[down * height : (down + 1) * height, across * width : (across + 1) * width] += 25
        return (picture * self._scale).astype(self._dtype)


class Integers(Guess):
    """Numbers like time stamps: large ones, and what tells them apart is small."""

    def __init__(self, dtype: str = "int64") -> None:
        self.observation_space = spaces.Box(0, 2_000_000_000, (2,), np.dtype(dtype).type)

    def show(self, right: int) -> Any:
        return np.array([1_700_000_000 + 100 * right, right], self.observation_space.dtype)


class Rewards(Guess):
    """The same small task under rewards of any size: ± `size`."""

    observation_space = spaces.Box(0, 1, (4,), np.float32)

    def __init__(self, size: float = 1.0) -> None:
        self.hit, self.miss = size, -size  # type: ignore[misc]

    def show(self, right: int) -> Any:
        return np.eye(4, dtype=np.float32)[right]
