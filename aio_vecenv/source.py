"""`Source`: what a trainer and a coordinator ask of whoever makes experience, one machine or several."""
# public: definitions only

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
from numpy.typing import NDArray

from .core.assignment import EnvIds
from .core.chunk import Chunk
from .core.statistics import Statistics
from .core.updates import Apply
from .runtime.events import EventStream
from .runtime.publisher import Receipt

__all__ = ["Source"]


@runtime_checkable
class Source(Protocol):
    """`AsyncVecEnv` with a policy, and `RayFleet`. Each method is as of `AsyncVecEnv`."""

    num_envs: int
    num_workers: int
    single_observation_space: gym.Space[Any]
    single_action_space: gym.Space[Any]

    async def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        env_ids: Sequence[int] | EnvIds | None = None,
    ) -> tuple[Any, dict[str, Any]]: ...

    def set_policy(self, params: Any) -> int: ...

    async def unroll(self, noise: NDArray[Any]) -> Chunk: ...

    def send_unroll(self, noise: NDArray[Any], env_ids: Sequence[int] | EnvIds | None = None) -> None: ...

    async def recv_unroll(self, min_envs: int | None = None) -> Chunk: ...

    def events(self) -> EventStream: ...

    def broadcast(self, payload: Any, *, topic: str = "default", apply: Apply = "reset") -> Receipt: ...

    async def call(
        self, name: str, *args: Any, env_ids: Sequence[int] | EnvIds | None = None, **kwargs: Any
    ) -> tuple[Any, ...]: ...

    async def get_attr(
        self, name: str, *, env_ids: Sequence[int] | EnvIds | None = None
    ) -> tuple[Any, ...]: ...

    async def get_state(self) -> dict[str, Any]: ...

    async def set_state(
        self, state: Mapping[str, Any], *, frozen: bool = False, anew: bool = False
    ) -> None: ...

    def statistics(self) -> Statistics: ...
