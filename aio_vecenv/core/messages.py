"""What parent and worker tell each other: every command and reply as a tuple of its own."""
# pure: plain data; bytes are `framing`'s

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .env_state import EnvState
from .layout import Field, SharedMemory
from .options import Settings

__all__ = ["Attachment", "Setup", "Spaces"]


class Setup(NamedTuple):
    """What a worker is told first. Children never import the user's `__main__`; cloudpickle brings what lives there."""

    factories: list[Callable[[], Any]]
    env_ids: list[int]  # for messages: the index of each factory
    settings: Settings
    shared_memory: SharedMemory
    state: tuple[EnvState, int, bool] | None = None  # of a replacement's envs: for `env_state.restore`


class Spaces(NamedTuple):
    """What a worker answers: the spaces that all of its envs share, and how many rows each factory has."""

    observation: Any
    action: Any
    metadata: dict[str, Any]
    spec: Any
    rows: list[int]
    vectorised: bool


class Attachment(NamedTuple):
    """Where the worker's rows are in the shared block."""

    first: int
    num_envs: int
    fields: tuple[Field, ...]
    size_bytes: int
    reborn: list[int | None] | None  # seeds of the envs of a replacement
