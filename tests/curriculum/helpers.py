"""What the curriculum's tests share: a scripted channel in place of a vec env, episodes by
hand, a tiny env.
"""
# pure + async: the channel is the runtime's contract in forty lines; nothing here starts a process

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from curriculum import Directive, FinishedEpisode, Level, LevelSet, Stage, StagePlan

PLAN = StagePlan([Stage("near", 0.60, 50), Stage("middle", 0.65, 60), Stage("far", 0.70, 80)])


@dataclass(frozen=True)
class Started:
    env_id: int
    index: int
    order: int
    version: int
    task: Any


@dataclass(frozen=True)
class Handout:
    number: int
    watermark: int
    events: tuple[Any, ...]


@dataclass(frozen=True)
class Receipt:
    version: int


@dataclass
class Channel:
    """A vec env as the coordinator sees it, driven by hand."""

    num_envs: int = 1
    published: list[tuple[int, Directive]] = field(default_factory=list)
    unread: deque[Handout] = field(default_factory=deque)
    closed: bool = False
    number: int = 0
    __hash__ = object.__hash__

    def events(self) -> Channel:
        self._signal = asyncio.Event()
        return self

    @property
    def behind(self) -> int:
        return len(self.unread)

    def broadcast(self, payload: Any, *, topic: str = "default", apply: Any = "reset") -> Receipt:
        assert (topic, apply) == ("curriculum", "now")
        self.published.append((len(self.published) + 1, payload))
        return Receipt(len(self.published))

    async def next_batch(self) -> Handout:
        while not self.unread:
            if self.closed:
                raise StopAsyncIteration
            self._signal.clear()
            await self._signal.wait()
        return self.unread.popleft()

    async def aclose(self) -> None:
        self.closed = True
        self._signal.set()

    def hand_out(self, events: Sequence[Any], watermark: int = 1 << 60) -> None:
        self.unread.append(Handout(self.number, watermark, tuple(events)))
        self.number += 1
        self._signal.set()

    @property
    def version(self) -> int:
        return len(self.published)

    @property
    def newest(self) -> Directive:
        return self.published[-1][1]


def stamp(stage: str, role: str = "current", level: str = "l") -> dict[str, str]:
    return {"stage": stage, "level": level, "generator": "default", "role": role}


def episode(
    order: int,
    stage: str = "near",
    success: bool = True,
    *,
    version: int = 1 << 30,
    outcome: str = "terminated",
    length: int = 10,
    role: str = "current",
    env_id: int = 0,
    level: str = "l",
) -> FinishedEpisode:
    return FinishedEpisode(
        env_id,
        order,
        order,
        length,
        float(success),
        outcome,
        version,
        stamp(stage, role, level),
        {"is_success": success},
    )


def level_set(plan: StagePlan = PLAN, per_stage: int = 3) -> LevelSet:
    return LevelSet([Level(name, f"{name}-{i}", {"i": i}) for name in plan.names for i in range(per_stage)])


class LevelEnv(gym.Env[Any, Any]):
    """Every episode has `length` steps; the last one says what the level says: success, or not."""

    def __init__(self, length: int = 1, success: bool = True) -> None:
        self.observation_space = gym.spaces.Discrete(1000)
        self.action_space = gym.spaces.Discrete(2)
        self.length, self.success, self.t = length, success, 0
        self.options: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.options, self.t = options, 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.t += 1
        ended = self.t >= self.length
        return self.t, 1.0, ended, False, {"is_success": self.success} if ended else {}


class ActionEnv(LevelEnv):
    """Succeeds iff its last action was 1; a level may ask for its own length."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        self.length = (options or {}).get("level", {}).get("length", self.length)
        return super().reset(seed=seed, options=options)

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.success = bool(action)
        return super().step(action)


class Flash(gym.Env[Any, Any]):
    """Says success (under `key`) at the steps in `at`, of `length`; what it returns as infos can be given."""

    observation_space = gym.spaces.Discrete(1000)
    action_space = gym.spaces.Discrete(2)

    def __init__(
        self, at: tuple[int, ...] = (4, 5), length: int = 10, key: str = "success", **infos: Any
    ) -> None:
        self.at, self.length, self.key, self.infos, self.t = at, length, key, infos, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, Any]:
        self.t = 0
        return 0, self.infos.get("reset", {})

    def step(self, action: int) -> tuple[int, float, bool, bool, Any]:
        self.t += 1
        if self.t == self.infos.get("raises"):
            raise RuntimeError("boom")
        info = self.infos.get("step", {self.key: self.t in self.at})
        return self.t, 1.0, self.t == self.length, False, info

    def boom(self) -> None:
        raise RuntimeError("boom")
