"""Envs and policies of several tests, beside those of `aio_vecenv.testing`: what workers load of the tests.

Neither pytest nor hypothesis nor asyncio is imported here, which would double the time that a worker takes to start.
"""
# pure: envs and policies that compute, and do what the tests ask for

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from aio_vecenv.testing import StampEnv

MiB = 1 << 20


class Learns(StampEnv):
    """Has learned how many steps it has seen."""

    seen = 0

    def step(self, action: Any) -> Any:
        self.seen += 1
        return super().step(action)

    def get_state(self) -> int:
        return self.seen

    def set_state(self, state: int) -> None:
        self.seen = state

    @staticmethod
    def merge_states(states: list[int]) -> int:
        return sum(states)


def lengths(env: int, episode: int) -> int:
    """Episodes of uneven length, the same on every backend."""
    return 1 + (7 * env + 3 * episode) % 5


class Gated(StampEnv):
    """Its second step says that it has begun, and goes on when it may."""

    def __init__(self, env: int, folder: Path, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self.folder_of_gate = folder

    def step(self, action: Any) -> Any:
        if self.env_index == 0 and self.t == 1:
            (self.folder_of_gate / "begun").touch()
            from .harness import wait_until

            wait_until((self.folder_of_gate / "go on").exists)
        return super().step(action)


class Dice(StampEnv):
    """Its course depends on its own generator, its actions and the newest payload only."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        luck = float(self.np_random.random())
        reward += luck + 0.1 * int(action) + (self.payload or 0)
        return obs, reward, bool(terminated or luck < 0.1), truncated, info


class Scripted(gym.Env[Any, Any]):
    """Observation (env, episode, t, version), reward t; what its script says for (episode, t) happens there.

    Of a `once …`: only in the first life of the env. "waits" says that it is there and goes on when it is told.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = spaces.Discrete(100)
    version, episode, t = 0, -1, 0

    def __init__(self, index: int, script: dict[tuple[int, int], str], folder: Path) -> None:
        self.index, self.script, self.folder = index, script, folder
        self.told: list[tuple[int, int, int]] = []
        self.resets_fail = 0
        self.life = len(list(folder.glob(f"life-{index}-*")))
        (folder / f"life-{index}-{self.life}").touch()

    def on_broadcast(self, payload: Any, version: int) -> None:
        if payload == "Ctrl-C":
            raise KeyboardInterrupt
        self.version = version
        self.told.append((version, self.episode, self.t))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if self.resets_fail:
            self.resets_fail -= 1
            raise RuntimeError("a reset that raises")
        self.episode, self.t = self.episode + 1, 0
        self._play()
        return self._obs(), {"task": (self.life, self.episode)}

    def step(self, action: Any) -> Any:
        self.t += 1
        what = self._play()
        obs = self._obs() * (np.nan if what == "nan" else 1.0)
        info = {"t": self.t if what != "unpicklable" else (x for x in [0])} if what else {}
        return obs, float(self.t), what == "terminates", what == "truncates", info

    def _play(self) -> str:
        what = self.script.get((self.episode, self.t), "")
        if what.startswith("once "):
            what = "" if self.life else what.removeprefix("once ")
        if what == "raises":
            raise RuntimeError("a step that raises")
        if what.startswith("raises twice"):
            self.resets_fail = 2 if what.endswith("and again") else 1
            raise RuntimeError("a step that raises")
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hangs":
            time.sleep(3600)
        if what.startswith("sleeps"):
            time.sleep(float(what.split()[1]))
        if what.startswith("waits"):
            (self.folder / f"here-{self.index}").touch()
            from .harness import wait_until

            wait_until((self.folder / f"go-{self.index}").exists)
            what = what.removeprefix("waits").strip()
        return what

    def _obs(self) -> NDArray[np.float64]:
        return np.array([self.index, self.episode, self.t, self.version], np.float64)


class Acts:
    """The action is the step that it follows; says its noise and its parameters. Fails where its parameters say so."""

    noise = ((), np.float32)
    outputs: Any = {"noise": ((), np.float32), "params": ((), np.int64)}  # noqa: RUF012
    params: Any = 0

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.random(rows, dtype=np.float32)

    def load(self, params: Any) -> None:
        if params == "never loads":
            raise ValueError("no such parameters")
        self.params = params

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        number = self.params if isinstance(self.params, int) else 1
        actions: Any = obs[:, 2].astype(np.int64)
        outputs = {"noise": noise.copy(), "params": np.full(len(obs), number)}
        match self.params:
            case (env, t, what) if ((obs[:, 0] == env) & (obs[:, 2] == t)).any():
                if what == "raises":
                    raise KeyError("an act that raises")
                if what == "hangs":
                    time.sleep(3600)
                if what == "shape":
                    actions = actions[:-1]
                if what == "dtype":
                    outputs["noise"] = outputs["noise"].astype(np.float64)
                if what == "nan":
                    outputs["noise"][obs[:, 0] == env] = np.nan
                if what == "outside":
                    actions[obs[:, 0] == env] = 100
        return actions, outputs


class Interrupted(Acts):
    """Ctrl-C comes in the `at`-th call of `load` of all its copies, half way through it."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at = folder, at

    def load(self, params: Any) -> None:
        calls = len(list(self.folder.glob("load-*"))) + 1
        (self.folder / f"load-{calls}").touch()
        if calls == self.at:
            self.params = -7
            raise KeyboardInterrupt
        self.params = params


class Follows:
    """For `StampEnv`: the action is the step that it follows; says that and its noise."""

    noise = ((), np.float32)
    outputs: Any = {"t": ((), np.int64), "noise": ((), np.float32)}  # noqa: RUF012

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.random(rows, dtype=np.float32)

    def load(self, params: Any) -> None:
        self.params = params

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        return obs[:, 3] % 1000, {"t": obs[:, 3].copy(), "noise": noise.copy()}


class Talks(gym.Env[Any, Any]):
    """A dict for an observation, a tuple for an action, infos of every kind, ends of both kinds."""

    observation_space = spaces.Dict({"place": spaces.Discrete(9), "x": spaces.Box(-9, 9, (2,), np.float64)})
    action_space = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (1,), np.float32)))
    count, version = -1, 0

    def __init__(self, index: int) -> None:
        self.length = 2 + index

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.version = version

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.count, self.t = self.count + 1, 0
        return self._obs(), {"task": (self.count, self.version), "seed": seed}

    def step(self, action: Any) -> Any:
        self.t += 1
        assert type(action[0]) is int
        done = self.t == self.length + action[0]
        info = {"t": self.t} if self.t % 2 or done else {}
        return self._obs(), float(self.np_random.random()), done and self.t % 2 == 0, done, info

    def _obs(self) -> Any:
        return {"place": self.count % 9, "x": self.np_random.random(2)}


class TalksBack(Follows):
    def act(self, obs: Any, noise: NDArray[Any]) -> tuple[Any, Any]:
        place = obs["place"]
        return (place % 3, np.float32(obs["x"][:, :1])), {"t": place * 2, "noise": noise + np.float32(1)}


def length(env: int, episode: int) -> int:
    """Of the episodes: 1 to 6 steps, never in step with those of another env."""
    return 1 + (5 * env + 7 * episode + env * episode) % 6


class Zeros:
    """A policy whose actions are zeros."""

    noise = ((), np.float32)
    outputs: Any = {}  # noqa: RUF012

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> Any:
        return np.zeros(rows, np.float32)

    def load(self, params: Any) -> None:
        pass

    def act(self, obs: Any, noise: Any) -> Any:
        return np.zeros(len(obs), np.int64), {}


class Wanders(gym.Env[Any, Any]):
    """Its observations are draws of its generator, its episodes 4 steps; it keeps `leak` bytes with each."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, leak: int, folder: Path) -> None:
        self._leak, self._folder, self.kept = leak, folder, []  # type: ignore[var-annotated]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._t = 0
        return self.np_random.random(2), {}

    def step(self, action: Any) -> Any:
        self._t += 1
        self.kept.append(np.ones(self._leak, np.uint8))
        return self.np_random.random(2), 1.0, self._t == 4, False, {}

    def close(self) -> None:
        (self._folder / f"closed-{os.getpid()}").touch()


class Sure(Zeros):
    """Says 1 of every row that it acts on."""

    outputs: Any = {"one": ((), np.int64)}  # noqa: RUF012

    def act(self, obs: Any, noise: Any) -> Any:
        actions, _ = super().act(obs, noise)
        return actions, {"one": np.ones(len(actions), np.int64)}


class Pictured(StampEnv):
    """Has a picture once it was reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.picture = os.getpid()
        return super().reset(**kwargs)


class Once(StampEnv):
    """Can be made once, as what holds a port."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0, 2)
        (folder / "made").touch(exist_ok=False)


class Unclosable(StampEnv):
    def close(self) -> None:
        raise OSError("busy")


class Large(StampEnv):
    """Says `size_bytes` bytes of its own index in each info, and gives as many when asked."""

    def __init__(self, env: int, size_bytes: int = 0, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self.size_bytes, self.table = size_bytes, b""

    def _info(self) -> dict[str, Any]:
        return {**super()._info(), "large": bytes([self.env_index]) * self.size_bytes, "life": self.life}

    def give(self, size_bytes: int) -> bytes:
        """So many bytes of its own index."""
        return bytes([self.env_index]) * size_bytes

    def size(self) -> int:
        """Of what was given."""
        return len(self.table)

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.version, self.table = version, payload


def large_envs(count: int, size_bytes: int = 0, **kwargs: Any) -> list[Callable[[], Large]]:
    return [partial(Large, index, size_bytes, length=50, **kwargs) for index in range(count)]


class Talker(gym.Env[str, str]):
    """Says back what it is told."""

    observation_space = spaces.Text(1 << 30)
    action_space = spaces.Text(1 << 30)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return "r", {"options": 0 if options is None else len(options["x"])}

    def step(self, action: str) -> Any:
        return action, 1.0, False, False, {"big": bytes(9 * MiB)} if len(action) > 9 else {}


class TwoTowers:
    """An actor and a critic of two tanh layers each, with heads of width 2 and 1."""

    noise = (2, np.float32)
    outputs: Any = {"log_prob": ((), np.float32), "value": ((), np.float32)}  # noqa: RUF012

    def __init__(self, params: list[NDArray[np.float32]]) -> None:
        self.load(params)

    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_exponential((*rows, 2), dtype=np.float32)

    def load(self, params: list[NDArray[np.float32]]) -> None:
        self.params = params

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        logits, value = self.through(self.params[:3], obs), self.through(self.params[3:], obs)
        actions = (logits - np.log(noise)).argmax(1)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        return actions, {"log_prob": log_p[np.arange(len(log_p)), actions], "value": value[:, 0]}

    def through(self, layers: list[NDArray[np.float32]], x: NDArray[Any]) -> NDArray[np.float32]:
        return np.tanh(np.tanh(x @ layers[0]) @ layers[1]) @ layers[2]


def weights(seed: int = 0, hidden: int = 64, *, transposed: bool = False) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    sizes = [(4, hidden), (hidden, hidden), (hidden, 2), (4, hidden), (hidden, hidden), (hidden, 1)]
    drawn: list[Any] = [rng.standard_normal(size, dtype=np.float32) / np.float32(4) for size in sizes]
    return [np.ascontiguousarray(w.T).T for w in drawn] if transposed else drawn
