"""The wire: any chunking decodes the same; any bytes give messages or a ProtocolError, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aio_vecenv.core import framing as wire
from aio_vecenv.core.framing import (
    HEADER_BYTES,
    LARGE_BYTES,
    MAX_PAYLOAD,
    Decoder,
    Kind,
    Message,
    ProtocolError,
    dumps,
    encode,
    loads,
    pieces,
)
from aio_vecenv.core.log_levels import LogLevels
from aio_vecenv.core.messages import (
    PART_BYTES,
    RESULT,
    Attachment,
    Call,
    Failed,
    Note,
    Reset,
    Setup,
    Spaces,
    Step,
    decode,
    decode_notes,
)
from aio_vecenv.core.messages import encode as encode_body
from aio_vecenv.core.options import Settings
from aio_vecenv.testing.faults import Unloadable
from aio_vecenv.worker.rows import pack

# some payloads are large: those take ways of their own through the decoder
payloads = st.binary(max_size=300) | st.builds(
    lambda size, tail: bytes(size) + tail,
    st.integers(LARGE_BYTES - 2 * HEADER_BYTES, LARGE_BYTES + 20),
    st.binary(max_size=20),
)
messages = st.builds(
    Message,
    st.sampled_from(list(Kind)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    payloads,
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 2000) | st.integers(0, 200_000), max_size=12))
def test_any_chunking_decodes_the_same(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(encode(message) for message in sent)
    assert data == b"".join(piece for message in sent for piece in pieces(message))
    decoder = Decoder()
    got = [message for chunk in chunks(data, cuts) for message in decoder.feed(chunk)]
    assert got == sent
    assert not decoder.mid_message


def test_one_byte_at_a_time() -> None:
    sent = [Message(Kind.REPLY, 7, 3, b"payload", 1, 2), Message(Kind.STEP, 8)]
    decoder = Decoder()
    got = [m for byte in b"".join(map(encode, sent)) for m in decoder.feed(bytes([byte]))]
    assert got == sent


@given(st.lists(messages, max_size=3), st.binary(max_size=400), st.lists(st.integers(0, 1500), max_size=8))
def test_any_bytes_give_messages_or_a_protocol_error(
    before: list[Message], noise: bytes, cuts: list[int]
) -> None:
    data = b"".join(map(encode, before)) + noise
    decoder = Decoder()
    try:
        for chunk in chunks(data, cuts):
            for message in decoder.feed(chunk):
                assert isinstance(message.kind, Kind)
                assert len(message.payload) <= MAX_PAYLOAD
    except ProtocolError:
        with pytest.raises(ProtocolError):  # and for good
            decoder.feed(encode(Message(Kind.STEP)))
        with pytest.raises(ProtocolError):
            decoder.feed(b"")


@given(st.data())
def test_a_changed_byte_never_raises_anything_else(data: st.DataObject) -> None:
    sent = data.draw(st.lists(messages, min_size=1, max_size=4))
    raw = bytearray(b"".join(map(encode, sent)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    decoder = Decoder()
    with contextlib.suppress(ProtocolError):
        decoder.feed(bytes(raw))


@pytest.mark.parametrize("cut", range(HEADER_BYTES + 7))
def test_a_stream_cut_anywhere_delivers_nothing_of_the_torn_message(cut: int) -> None:
    whole = encode(Message(Kind.REPLY, 1, payload=b"payload"))
    decoder = Decoder()
    assert decoder.feed(encode(Message(Kind.STEP)) + whole[:cut]) == [Message(Kind.STEP)]
    assert decoder.mid_message is (cut > 0)


def test_a_message_that_claims_to_be_huge_is_refused_before_it_is_buffered() -> None:
    header = bytearray(encode(Message(Kind.STEP)))
    header[8:16] = (MAX_PAYLOAD + 1).to_bytes(8, "little")
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        decoder.feed(bytes(header))
    assert not decoder.mid_message  # nothing is kept


def test_a_large_payload_is_handed_on_without_a_copy() -> None:
    sent = [Message(Kind.REPLY, 1, payload=bytes(3 << 20)), Message(Kind.STEP, 2)]
    decoder = Decoder()
    got = decoder.feed(b"".join(map(encode, sent)))
    assert got == sent
    assert type(got[0].payload) is bytearray
    assert pieces(sent[0])[1] is sent[0].payload


envs = st.lists(st.integers(0, 2**32 - 1), max_size=9)
packed = st.binary(max_size=40)


@given(
    st.builds(Step, st.none() | envs, st.none() | packed)
    | st.builds(Reset, envs, st.lists(st.none() | st.integers()), st.none() | packed)
    | st.builds(Call, st.sampled_from(["call", "set"]), st.text(), envs, packed | st.lists(packed))
    | st.builds(Failed, st.none() | st.integers(0), st.text())
    | st.builds(
        Setup,
        st.just([dict]),
        envs,
        st.just(Settings()),
        st.just("auto"),
        st.none() | st.just(LogLevels({"": 20}, 0, None)),
        st.none() | st.just(({"Counter": {"steps": 1}}, 4, True)),
        st.none() | st.just([[{"Counter": {"steps": 1}}], [{}]]),
    )
    | st.builds(Spaces, st.text(), st.text(), st.just({}), st.none(), envs, st.booleans())
    | st.builds(Attachment, st.integers(0), st.integers(1), st.just(()), st.integers(1), st.none() | envs)
)
def test_every_command_is_decoded_as_it_was_encoded(body: Any) -> None:
    kinds = {
        Step: Kind.STEP, Reset: Kind.RESET, Call: Kind.CALL, Failed: Kind.FAILED, Setup: Kind.SETUP,
        Spaces: Kind.SPACES, Attachment: Kind.ATTACH,
    }  # fmt: skip
    payload, flags = encode_body(body)
    got = decode(Message(kinds[type(body)], payload=payload, flags=flags))
    assert (type(got), got) == (type(body), body)


def test_a_message_that_is_no_command_is_not_decoded() -> None:
    with pytest.raises(ProtocolError, match="TAKEN where a command was expected"):
        decode(Message(Kind.TAKEN))


def test_a_factory_that_cannot_be_pickled_is_named_by_its_env() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"^envs\[7\] cannot be pickled"):
        encode_body(Setup([dict, lambda: lock], [6, 7], Settings(), "auto"))


sizes = st.lists(st.integers(0, 300) | st.integers(PART_BYTES // 3, PART_BYTES + 300), max_size=8)


@given(sizes)
@settings(max_examples=40)
def test_a_reply_in_parts_says_the_same(sizes: list[int]) -> None:
    notes: list[Note] = [(env, 0, RESULT, bytes(size)) for env, size in enumerate(sizes)]
    parts = pack(list(notes), _never, lambda: None)
    assert [note for part in parts for note in decode_notes(part)] == notes
    for part in parts:
        assert len(part) <= PART_BYTES + 1000 or len(decode_notes(part)) == 1


def _never(note: Note, error: Exception) -> None:
    raise error


def test_only_what_finds_no_memory_is_refused_with_the_numbers() -> None:
    notes: list[Note] = [(0, 0, RESULT, bytes(3 << 20)), (1, 0, RESULT, b"x"), (2, 0, RESULT, bytes(1 << 19))]
    refused: list[tuple[int, str]] = []

    def refuse(note: Note, error: Exception) -> None:
        refused.append((note[0], str(error)))
        notes.remove(note)

    left = 6 << 20
    assert [n[0] for part in pack(notes, refuse, lambda: left) for n in decode_notes(part)] == [1, 2]
    ((env, text),) = refused
    assert env == 0
    assert str(left // 2 // 3) in text
    assert str(3 << 20)[:4] in text


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": {"b": threading.Lock()}}, 'infos["a"]["b"]'),
        ([1, (2, threading.Lock())], "infos[1][1]"),
        (threading.Lock(), "infos"),
    ],
)
def test_what_cannot_be_pickled_is_named(value: Any, path: str) -> None:
    with pytest.raises(TypeError) as caught:
        wire.dumps(value, "infos")
    assert str(caught.value).startswith(f"{path} cannot be pickled")


def test_a_lambda_travels_and_what_refuses_to_be_rebuilt_raises() -> None:
    assert wire.loads(wire.dumps(lambda x: x + 1))(2) == 3
    with pytest.raises(RuntimeError, match="does not want"):
        wire.loads(wire.dumps(Unloadable()))


def test_functions_of_the_script_under_a_cache_travel_as_any_other() -> None:
    """By value, with what the cache was told, also where they call themselves."""
    script: dict[str, Any] = {"__name__": "__main__"}
    exec(
        """
from functools import cache, lru_cache

@cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@lru_cache(maxsize=3, typed=True)
def table(n):
    return [n]

def use():
    return fibonacci(20), table(1) is table(1), table.cache_parameters()
""",
        script,
    )
    assert loads(dumps(script["use"]))() == (6765, True, {"maxsize": 3, "typed": True})
