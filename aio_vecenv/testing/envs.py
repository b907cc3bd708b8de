"""Envs whose every row can be checked, and the checks: `StampEnv`, `check_aligned`, `check_episodes`."""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ..core.batch import Batch, Episode, EpisodeStarted


class StampEnv(gym.Env[NDArray[np.int64], np.int64]):
    """Observation (env, life, episode, t): t counts steps and is the reward; info["applied_version"]: what it was told.

    An episode takes `length` steps (or `length(env, episode)`) and ends as `end` says. With a `folder`, each object
    made for an env is a new life, and one line is appended to `env-<i>.log` per episode end, before `step` returns.
    The action is not looked at.
    """

    def __init__(
        self,
        env: int,
        length: int | Callable[[int, int], int] = 5,
        *,
        end: Literal["terminated", "truncated"] = "terminated",
        folder: str | Path | None = None,
        width: int = 4,
    ) -> None:
        self.observation_space = gym.spaces.Box(-(2**62), 2**62, (width,), np.int64)
        self.action_space = gym.spaces.Discrete(1000)
        self.env_index, self.length, self.end = env, length, end
        self.episode, self.t, self._width = -1, 0, width
        self.version, self.payload = 0, None
        self.heard: list[tuple[int, Any]] = []
        self.seeds: list[int | None] = []
        self.actions: list[int] = []
        self.closed_times = 0
        self._log = None if folder is None else Path(folder) / f"env-{env}.log"
        self.life = 0
        if self._log is not None:
            self.life = self._append(f"life {os.getpid()}\n").count("life ") - 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.t = 0
        stage = str(self.payload) if isinstance(self.payload, (str, int)) else type(self.payload).__name__
        task = {"stage": stage, "env": self.env_index, "episode": self.episode}
        return self._obs(), {**self._info(), "task": task, "options": repr(options)}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.actions.append(int(action))
        length = self.length(self.env_index, self.episode) if callable(self.length) else self.length
        done = self.t >= length
        if done and self._log is not None:
            self._append(f"end {self.life} {self.episode} {self.t} {self.version}\n")
        return (
            self._obs(),
            float(self.t),
            done and self.end == "terminated",
            done and self.end == "truncated",
            self._info(),
        )

    def on_broadcast(self, payload: Any, version: int) -> None:
        """Remember the newest payload, and everything that was heard."""
        self.version, self.payload = version, payload
        self.heard.append((version, payload))

    def close(self) -> None:
        self.closed_times += 1

    def get_pid(self) -> int:
        """Of the process that this env lives in."""
        return os.getpid()

    def echo(self, value: Any) -> Any:
        """`value`, through the pipe and back."""
        return value

    def _obs(self) -> NDArray[np.int64]:
        obs = np.full(self._width, self.t, np.int64)
        obs[:3] = self.env_index, self.life, self.episode
        return obs

    def _info(self) -> dict[str, Any]:
        return {"applied_version": self.version, "stamp": self._obs()[:4]}

    def _append(self, line: str) -> str:
        assert self._log is not None
        with open(self._log, "a+") as file:
            file.write(line)
            file.flush()
            file.seek(0)
            return file.read()


def stamp_envs(count: int, *args: Any, **kwargs: Any) -> list[Callable[[], StampEnv]]:
    """`count` factories of `StampEnv`, each with its own index."""
    return [partial(StampEnv, index, *args, **kwargs) for index in range(count)]


def check_aligned(batch: Batch) -> None:
    """Raise AssertionError unless every row of a batch of `StampEnv`s belongs together."""
    for row, env_id in enumerate(batch.env_ids.tolist()):
        stamp = batch.obs[row]
        t = int(stamp[3])
        assert stamp[0] == env_id, f"row of env {env_id} holds {stamp}"
        assert (stamp[4:] == t).all(), f"a torn row: {stamp}"
        if "worker_renewal" in batch.infos and batch.infos["_worker_renewal"][row]:
            assert batch.first[row]
            assert (batch.rewards[row], batch.terminations[row], batch.truncations[row]) == (0, False, False)
            continue
        assert batch.rewards[row] == t, f"env {env_id} at {stamp}: reward {batch.rewards[row]}"
        ended = bool(batch.terminations[row] or batch.truncations[row])
        if batch.first[row]:
            assert t == 0, f"env {env_id}: first row of an episode at {stamp}"
            assert not batch.terminations[row]
        else:
            assert t > 0, f"env {env_id}: an executed step at {stamp}"
        if "stamp" in batch.infos and batch.infos["_stamp"][row]:
            assert (batch.infos["stamp"][row] == stamp[:4]).all(), (
                f"info and observation of env {env_id} differ"
            )
        if "worker_lost" in batch.infos and batch.infos["_worker_lost"][row]:
            assert batch.first[row]
            assert ended


def check_episodes(events: Sequence[EpisodeStarted | Episode], *, finished: bool = True) -> None:
    """Raise AssertionError unless each episode began once, ended at most once, and per env one follows the other.

    With `finished`, also unless every episode that began has ended.
    """
    running: dict[int, EpisodeStarted] = {}
    newest: dict[int, int] = {}
    for event in events:
        if isinstance(event, EpisodeStarted):
            assert event.env_id not in running, f"env {event.env_id} began twice: {event}"
            assert event.index == newest.get(event.env_id, -1) + 1, f"an episode is missing before {event}"
            newest[event.env_id] = event.index
            running[event.env_id] = event
        else:
            began = running.pop(event.env_id, None)
            assert began is not None, f"an end without a beginning: {event}"
            for name in ("index", "order", "version", "task", "seed"):
                assert getattr(began, name) == getattr(event, name), f"{name} of {began} and {event} differ"
    assert not finished or not running, f"never reported as ended: {running}"
