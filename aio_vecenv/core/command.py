"""One command to one worker, and how the episodes begin that its rows begin."""
# pure: plain data; no loop, no process, no clock

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .assignment import EnvIds, rows_of
from .episodes import EpisodeTracker
from .framing import Kind
from .messages import Note
from .report import ErrorReport

__all__ = ["NO_BEGINS", "WAITS", "Begin", "Command", "Unroll", "part_of", "where"]


class Begin(NamedTuple):
    """How an env's next episode begins."""

    seed: int | None = None  # that its reset gets
    key: str = ""  # of the info that says why the episode before it is cut off: worker_lost, env_error; "": it is not
    reason: str = ""  # what that info says


# Nothing begins and nothing is done in this row.
WAITS = Begin(
    None,
    "worker_renewal",
    "the env waits: its worker is renewed once all envs in it have ended their episodes",
)
NO_BEGINS: Mapping[int, Begin] = MappingProxyType({})


class Command:
    """One command to one worker, from its sending until its rows are taken."""

    # what few commands have stands here once: they are made all the time
    sequence: int = 0  # number of the message: replies are matched by it
    version: int = 0  # the newest update at sending
    sent_at: float = 0.0  # seconds, for deadlines
    asked: Mapping[int, int | None] = MappingProxyType({})  # RESET: the seeds that its caller gave, by env
    # RESET: those that it is sent with; of an unroll, those of the resets that are its last row
    seeds: Mapping[int, int | None] = MappingProxyType({})
    options: bytes | None = None  # RESET, pickled
    dropped: bool = False  # its caller does not wait any more: its rows never come up
    notes: Sequence[Note] = ()  # of the reply, as far as it is in
    unread: ErrorReport | None = None  # why notes could not be unpickled
    begins: Mapping[int, Begin] = NO_BEGINS  # once its reply is in: the rows that begin an episode, by env
    of: Unroll | None = None  # RESET: the unroll whose last row it makes

    def __init__(
        self,
        kind: Kind,
        number: int,
        worker: int,
        env_ids: EnvIds,
        rows: Any,
        payload: bytes = b"",
        flags: int = 0,
    ) -> None:
        self.kind = kind
        self.number = number  # of the send or reset call
        self.worker = worker
        self.env_ids = env_ids  # sorted
        self.rows = rows  # as `rows_of(env_ids)`
        self.payload = payload
        self.flags = flags


class Unroll(Command):
    """A command of several rows, acted by the worker's policy."""

    length: int  # rows
    buffer: int  # which of the block's two it fills
    policy_version: int
    params: bytes | None = None  # of that version, pickled; None: version 0
    held: bool = False  # no env begins an episode in it: its worker is to be renewed
    replied: bool = False
    again: int = 0  # envs that the parent resets, whose last row is missing
    policy_error: ErrorReport | None = None  # why rows were not acted
    told: bool = False  # whether the caller knows of the errors
    # env: the row in which it failed, and what that says
    cuts: Mapping[int, tuple[int, Begin]] = MappingProxyType({})


C = TypeVar("C", bound=Command)


def part_of(command: C, mask: NDArray[np.bool_]) -> C:
    """The part of a replied command that `mask` picks; it may be empty."""
    if mask.all():
        return command
    part = copy(command)
    part.env_ids = command.env_ids[mask]
    part.rows = rows_of(part.env_ids)
    keep = set(part.env_ids.tolist())
    part.notes = [note for note in command.notes if note[0] in keep]
    part.begins = {env_id: begin for env_id, begin in command.begins.items() if env_id in keep}
    return part


def where(command: Command, env_id: int, op: str, episodes: EpisodeTracker) -> str:
    """Which episode and step it was whose `op` raised under `command`, for the message."""
    if command.kind is Kind.RESET:
        return f", with seed {command.seeds.get(env_id)}"
    index, length, seed = episodes.index(env_id), episodes.totals(env_id)[0], episodes.seed[env_id]
    if index < 0:
        return ""
    if op == "reset":  # an autoreset: the episode before it did not fail
        return f", in the reset after episode {index}"
    return f", episode {index}, after {length} steps, seed {seed}"
