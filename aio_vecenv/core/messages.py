"""What parent and worker tell each other: every command and reply as a tuple, encoded and decoded here alone.

What users made (options, arguments, actions, updates) is pickled on its own and stays so in the tuple: unpickling it
runs their code, which may raise, and then it must be known which envs it was for.

A reply is a list of notes (env, t, kind, value): what an env's row says that does not lie in the shared block. Several
notes of one kind and env may stand in one reply, one per row. A reply that is larger than PART_BYTES travels in parts.
"""
# pure: tuples in, bytes out, and back

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from .env_state import EnvState
from .framing import Kind, Message, ProtocolError, dumps, loads, new_message
from .layout import Field, SharedMemory
from .log_levels import LogLevels
from .options import Settings

__all__ = [
    "END_INFO",
    "ERROR",
    "FINAL_INFO",
    "FINAL_OBS",
    "GIVEN_OBS",
    "INFO",
    "NOTHING",
    "NOW",
    "OBS",
    "PART_BYTES",
    "POLICY_FAILED",
    "RESTARTED",
    "RESULT",
    "TASK",
    "URGENT",
    "WARNING",
    "Attachment",
    "Call",
    "Encoded",
    "Failed",
    "Note",
    "Packed",
    "Reset",
    "Setup",
    "Spaces",
    "Step",
    "Unrolled",
    "Unrolling",
    "by_kind",
    "decode",
    "decode_joined",
    "decode_notes",
    "decode_update",
    "encode",
    "encode_notes",
    "encode_update",
    "failed",
    "joined",
    "update_message",
]

# of a reply, read and unpickled at one go: other workers are heard in between
PART_BYTES = 1 << 20
Packed = bytes | list[bytes]  # pickles: one for all envs of a call, or one per env
Encoded = tuple[bytes, int]  # payload and flags of a message


class Unrolling(NamedTuple):
    """What a worker needs to act by itself."""

    worker: int  # its index
    policy: bytes  # pickled


class Setup(NamedTuple):
    """What a worker is told first. Children never import the user's `__main__`; cloudpickle brings what lives there."""

    factories: list[Callable[[], Any]]
    env_ids: list[int]  # for messages: the index of each factory
    settings: Settings
    shared_memory: SharedMemory
    logs: LogLevels | None = None  # of the parent
    state: tuple[EnvState, int, bool] | None = None  # of a replacement's envs: for `env_state.restore`
    # where it is renewed: what each env had last, for `env_state.put_back`
    own: list[list[dict[str, tuple[Any, bool | None]]]] | None = None


class Spaces(NamedTuple):
    """What a worker answers: the spaces that all of its envs share, and how many rows each factory has."""

    observation: Any
    action: Any
    metadata: dict[str, Any]
    spec: Any
    rows: list[int]
    vectorised: bool


class Failed(NamedTuple):
    """The set-up failed."""

    env_id: int | None  # None: nobody knows which
    report: Any  # an ErrorReport


class Attachment(NamedTuple):
    """Where the worker's rows are in the shared block."""

    first: int
    num_envs: int
    fields: tuple[Field, ...]
    size_bytes: int
    restart_seeds: list[int | None] | None  # seeds of the envs of a replacement
    unrolling: Unrolling | None = None


class Step(NamedTuple):
    """Step (or autoreset) envs, which are named by their index among the worker's own."""

    envs: Sequence[int] | None = None  # None: all
    actions: bytes | None = None  # pickled: per leaf that is not in the block, one value per env


class Reset(NamedTuple):
    """Reset envs, each with its seed."""

    envs: Sequence[int]
    seeds: Sequence[int | None]
    options: bytes | None  # pickled; each env unpickles its own


class Unrolled(NamedTuple):
    """Several steps of all envs, whose noise and first observations lie in a buffer of the block."""

    length: int  # rows
    buffer: int
    policy_version: int
    held: bool = False  # an env whose episode has ended begins no other: its further rows are idle


class Call(NamedTuple):
    """Call a method, read or set an attribute, apply a function."""

    op: str  # call, get, set, apply
    name: str
    envs: Sequence[int]
    values: Packed


# -- notes -------------------------------------------------------------------------------------------------------------

Note = tuple[int, int, int, Any]  # env id (of a call: the position in it), row in the command, kind, value
INFO: Final = 0  # a dict
FINAL_INFO: Final = 1  # of the episode that ended, under SAME_STEP
OBS: Final = 2  # the leaves of an observation that do not lie in the block
FINAL_OBS: Final = 3
END_INFO: Final = 4  # all of an end's info, where INFO is filtered
TASK: Final = 5  # the "task" of a beginning's info, where INFO is filtered
ERROR: Final = (
    6  # an ErrorReport: the env, or a call of it, has failed. First in the reply of a step or reset
)
WARNING: Final = 7  # what it is about (a tuple of texts), and a text. First, too
RESTARTED: Final = 8  # an ErrorReport: the env failed, and began a new episode in this row
RESULT: Final = 9  # of a call
GIVEN_OBS: Final = 10  # SAME_STEP, casting="unsafe": a last observation whose row holds it in other types
POLICY_FAILED: Final = 11  # an ErrorReport, of a chunk: from this row on its worker has not acted
_KINDS = 12
URGENT: Final = (ERROR, WARNING)  # stand before all others
NOTHING: Final = (b"",)  # the payloads of a reply without notes


def failed(notes: Sequence[Note]) -> bool:
    """Whether the reply of a step or reset says that an env has failed."""
    return bool(notes) and notes[0][2] == ERROR


def by_kind(replies: Sequence[Sequence[Note]]) -> list[dict[int, Any]]:
    """The notes of one row of each env: per kind a dict by env id."""
    found: list[dict[int, Any]] = [{} for _ in range(_KINDS)]
    for notes in replies:
        for env_id, _, kind, value in notes:
            found[kind][env_id] = value
    return found


def encode_notes(notes: Sequence[Note], name: str) -> bytes:
    """The payload of a reply, or of a part of one. Raises TypeError naming what cannot be pickled."""
    try:
        return dumps(notes, name)
    except TypeError:
        for _, _, _, value in notes:
            dumps(value, name)
        raise


def decode_notes(payload: bytes | bytearray) -> list[Note]:
    """Undo `encode_notes`. Raises whatever the unpickling of what users made raises."""
    if not payload:
        return []
    notes: list[Note] = loads(payload)
    return notes


def decode_joined(payload: bytes | bytearray) -> list[Note]:
    """Undo `encode_notes` and `joined`: of several payloads in a row, which takes three times as long per payload."""
    if not payload:
        return []
    stream = io.BytesIO(payload)
    notes: list[Note] = pickle.load(stream)
    while stream.tell() < len(payload):
        notes += pickle.load(stream)
    return notes


def joined(payloads: Sequence[bytes]) -> Sequence[bytes]:
    """The payloads of the rows of a chunk as those of one reply, in few parts."""
    parts: list[bytes] = []
    together: list[bytes] = []
    size_bytes = 0
    for payload in payloads:
        if together and size_bytes + len(payload) > PART_BYTES:
            parts.append(b"".join(together))
            together, size_bytes = [], 0
        together.append(payload)
        size_bytes += len(payload)
    if together:
        parts.append(b"".join(together))
    return parts or NOTHING


# -- commands ----------------------------------------------------------------------------------------------------------

Body = Setup | Spaces | Failed | Attachment | Step | Reset | Call | Unrolled

_SUBSET = 1  # flag of a STEP: the payload is the envs, uint32
_PICKLED = 2  # flag of a STEP: the payload is pickled
NOW: Final = 1  # flag of an UPDATE: envs are told before their next command
_ALL: Encoded = (b"", 0)
_UNROLL = struct.Struct("<IBQ?")
_new_step: Callable[[tuple[Any, Any]], Step] = partial(tuple.__new__, Step)
_TYPES: dict[Kind, Any] = {
    Kind.SETUP: Setup,
    Kind.SPACES: Spaces,
    Kind.FAILED: Failed,
    Kind.ATTACH: Attachment,
    Kind.RESET: Reset,
    Kind.CALL: Call,
}
_NAMES: dict[type, str] = {Setup: "envs", Spaces: "the env's spaces"}


def encode(body: Body) -> Encoded:
    """Payload and flags. Raises TypeError naming what cannot be pickled."""
    if type(body) is Step:
        if body.actions is not None:
            return dumps(tuple(body)), _PICKLED
        return _ALL if body.envs is None else (np.asarray(body.envs, np.uint32).tobytes(), _SUBSET)
    if type(body) is Unrolled:
        return _UNROLL.pack(*body), 0
    try:
        return dumps(tuple(body), _NAMES.get(type(body), "object")), 0
    except TypeError:
        if type(body) is Setup:
            for env_id, factory in zip(body.env_ids, body.factories):
                dumps(factory, f"envs[{env_id}]")
        raise


def decode(message: Message) -> Any:
    """The body of a message that `encode` made. Raises whatever the unpickling of what users made raises."""
    payload, flags = message.payload, message.flags
    if message.kind is Kind.STEP:
        if not flags:
            return Step()
        if flags & _SUBSET:
            return _new_step((np.frombuffer(payload, np.uint32).tolist(), None))
        return _new_step(loads(payload))
    if message.kind is Kind.UNROLL:
        return Unrolled(*_UNROLL.unpack(payload))
    kind = _TYPES.get(message.kind)
    if kind is None:
        raise ProtocolError(f"{message.kind.name} where a command was expected")
    return tuple.__new__(kind, loads(payload))


# -- updates -----------------------------------------------------------------------------------------------------------

_TOPIC = struct.Struct("<H")  # bytes of the topic's name


def encode_update(topic: str, payload: bytes) -> bytes:
    """The body of an update, as it travels to every worker."""
    name = topic.encode()
    return _TOPIC.pack(len(name)) + name + payload


def update_message(version: int, covers: int, body: bytes, now: bool, incarnation: int) -> Message:
    """An update for one worker, which lacks none up to `covers` once it has taken it."""
    return new_message((Kind.UPDATE, covers, version, body, NOW if now else 0, incarnation))


def decode_update(body: bytes | bytearray) -> tuple[str, bytes | memoryview]:
    """Topic and pickled payload. Raises ProtocolError."""
    try:
        (size,) = _TOPIC.unpack_from(body)
        start = _TOPIC.size
        if len(body) < start + size:
            raise ProtocolError("an update without its topic")
        return bytes(body[start : start + size]).decode(), memoryview(body)[start + size :]
    except (struct.error, UnicodeDecodeError) as error:
        raise ProtocolError(f"an update without its topic: {error}") from None
