"""The messages that cross a pipe, and their bytes; any chunking decodes the same.

A message is a fixed header and a payload of any size. The numeric data of a step is in shared memory, so the payload
of an ordinary step is empty. A receiver keeps what has come of one message; whether there is memory for it all is
asked by whoever sends it. Payloads are pickles between a parent and the children that it started itself, over
inherited descriptors; nothing here ever listens.
"""
# pure: bytes in, messages out; no loop, no process, no clock

from __future__ import annotations

import functools
import io
import pickle
import struct
import types
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import cloudpickle

__all__ = [
    "HEADER_BYTES",
    "LARGE_BYTES",
    "MAX_PAYLOAD",
    "Decoder",
    "Kind",
    "Message",
    "ProtocolError",
    "dumps",
    "encode",
    "loads",
    "new_message",
    "pieces",
]

MAX_PAYLOAD = 1 << 40  # bytes: more than any machine has; a header that claims it is none
# bytes: a payload of this size is not copied to go beside its header, or out of the buffer
LARGE_BYTES = 1 << 16
_MAGIC = 0xA5E1
_DEPTH = 16  # levels of a nest that are searched for what does not pickle
_HEADER = struct.Struct("<HBBIQQQ")  # magic, kind, flags, incarnation, payload bytes, number, version
_unpack_header = _HEADER.unpack_from
HEADER_BYTES = _HEADER.size


class ProtocolError(Exception):
    """Bytes that are no message, or a message where it may not be."""


class Kind(IntEnum):
    """Every message there is. Who may send what when is in `protocol`."""

    HELLO = 1  # child: the interpreter is up and has imported what it needs
    SETUP = 2  # parent: factories and settings
    SPACES = 3  # child: the envs are made; their spaces
    ATTACH = 4  # parent: the layout of the shared block
    ATTACHED = 5  # child: ready for commands
    STEP = 6  # parent: step (or autoreset) these envs
    RESET = 7  # parent: reset these envs, with seeds and options
    CALL = 8  # parent: call a method, read or set an attribute
    REPLY = 9  # child: what the command of this number gave
    CLOSE = 10  # parent: close the envs and exit
    GOODBYE = 11  # child: the envs are closed
    FAILED = 12  # child: set-up failed; the payload says why
    UPDATE = 13  # parent, updates pipe: a payload under a topic
    TAKEN = 14  # child, updates pipe: acknowledges the update of this version
    PART = 15  # child: the beginning of the reply of this number, which follows
    POLICY = 16  # parent: the policy's parameters, for the unrolls that follow; not answered
    UNROLL = 17  # parent: several steps of all envs, acted by the policy

    # an Enum hashes its name, in Python: messages are looked up in tables all the time
    __hash__ = int.__hash__


_KINDS = {int(kind): kind for kind in Kind}


class Message(NamedTuple):
    """One message. `number` pairs a reply with its command; (incarnation, number) is never used twice."""

    kind: Kind
    number: int = 0
    version: int = 0  # commands: the newest update at sending; replies: what the worker has taken
    payload: bytes | bytearray = b""
    flags: int = 0
    incarnation: int = 0


# As `Message(…)`, but all in C: a function of Python's costs microseconds when it was not called for a while.
new_message: Callable[[tuple[Kind, int, int, bytes | bytearray, int, int]], Message] = functools.partial(
    tuple.__new__, Message
)


def encode(message: Message) -> bytes:
    """The bytes of `message`."""
    kind, number, version, payload, flags, incarnation = message
    size = len(payload)
    header = _HEADER.pack(_MAGIC, kind, flags, incarnation, size, number, version)
    return header + payload if size else header


def pieces(message: Message) -> tuple[bytes | bytearray, ...]:
    """The same one after the other; a large payload is not copied."""
    if len(message.payload) < LARGE_BYTES:
        return (encode(message),)
    kind, number, version, payload, flags, incarnation = message
    return _HEADER.pack(_MAGIC, kind, flags, incarnation, len(payload), number, version), payload


class Decoder:
    """Turns a stream of bytes, cut anywhere, into messages.

    Holds at most one unfinished message, as much of it as has come. After a ProtocolError the stream has no meaning
    any more, and every further call raises it again.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._broken: ProtocolError | None = None

    @property
    def mid_message(self) -> bool:
        """Whether an end of the stream now would cut a message in two."""
        return bool(self._buffer)

    def feed(self, data: bytes | bytearray, size: int | None = None) -> list[Message]:
        """The messages that `data` (its first `size` bytes) completes, in order.

        Raises ProtocolError on anything that is none.
        """
        if size is None:
            size = len(data)
        if not self._buffer and size >= HEADER_BYTES and self._broken is None:
            magic, kind, flags, incarnation, length, number, version = _unpack_header(data)
            if length == size - HEADER_BYTES <= MAX_PAYLOAD and magic == _MAGIC and kind in _KINDS:
                # one whole message, as nearly always
                payload = bytes(memoryview(data)[HEADER_BYTES:size]) if length else b""
                return [new_message((_KINDS[kind], number, version, payload, flags, incarnation))]
        self._buffer += memoryview(data)[:size]
        return list(self._drain())

    def _drain(self) -> Iterator[Message]:
        if self._broken is not None:
            raise self._broken
        while len(self._buffer) >= HEADER_BYTES:
            message, size = self._header(self._buffer[:HEADER_BYTES])
            end = HEADER_BYTES + size
            if len(self._buffer) < end:
                return
            yield message._replace(payload=self._take(end))

    def _take(self, end: int) -> bytes | bytearray:
        """The payload of the first message, which ends there; a large one is not copied."""
        buffer = self._buffer
        if end < LARGE_BYTES:
            payload = bytes(memoryview(buffer)[HEADER_BYTES:end])
            del buffer[:end]
            return payload
        self._buffer = buffer[end:]
        del buffer[end:], buffer[:HEADER_BYTES]
        return buffer

    def _header(self, data: bytes | bytearray) -> tuple[Message, int]:
        magic, kind, flags, incarnation, size, number, version = _HEADER.unpack(data)
        if magic != _MAGIC or kind not in _KINDS or size > MAX_PAYLOAD:
            self._buffer.clear()
            self._broken = ProtocolError(f"not a message: magic {magic:#06x}, kind {kind}, {size} bytes")
            raise self._broken
        return Message(_KINDS[kind], number, version, b"", flags, incarnation), size


def dumps(value: Any, name: str = "object") -> bytes:
    """Pickle `value`; by value what lives in `__main__`, since the other side does not import that.

    Raises TypeError naming the path of the part that cannot be pickled, as in `infos["a"]["b"]`; MemoryError.
    """
    try:
        data = pickle.dumps(value, protocol=5)
        if b"__main__" not in data:
            return data
    except MemoryError:
        raise MemoryError(f"{name}: not enough memory to pickle it") from None
    except Exception:  # a plain pickle was the cheap attempt
        pass
    try:
        return _by_value(value)
    except MemoryError:
        raise MemoryError(f"{name}: not enough memory to pickle it") from None
    except Exception as error:
        path, part = _culprit(value, name)
        raise TypeError(f"{path} cannot be pickled ({type(part).__name__}): {error}") from error


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's; code keeps the name of its file, so that tracebacks from the other side show file and line, and
    a function of `__main__` under `functools.cache` travels as any other."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, functools._lru_cache_wrapper) and obj.__module__ == "__main__":
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if isinstance(obj, types.CodeType) and types.CodeType in self.dispatch_table:
            make, arguments = self.dispatch_table[types.CodeType](obj)
            return make, tuple(obj.co_filename if part == "<dynamic-code>" else part for part in arguments)
        return super().reducer_override(obj)


def _by_value(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(value)
    return file.getvalue()


def loads(data: bytes | bytearray | memoryview) -> Any:
    """Undo `dumps`. Raises whatever the pickle raises."""
    return pickle.loads(data)


def _culprit(value: Any, path: str) -> tuple[str, Any]:
    """The smallest part of a nest of dicts, lists and tuples that does not pickle, with its path."""
    for _ in range(_DEPTH):
        parts: Iterable[tuple[str, Any]]
        if isinstance(value, dict):
            parts = ((f"{path}[{_repr(key)}]", part) for key, part in value.items())
        elif isinstance(value, (list, tuple)):
            parts = ((f"{path}[{index}]", part) for index, part in enumerate(value))
        else:
            break
        for part_path, part in parts:
            try:
                _by_value(part)
            except Exception:
                path, value = part_path, part
                break
        else:
            break
    return path, value


def _repr(key: Any) -> str:
    try:
        return repr(key).replace("'", '"')[:80]
    except Exception:  # the user's own
        return "…"
