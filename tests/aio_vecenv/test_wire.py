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
from aio_vecenv.core.framing import HEADER_BYTES, MAX_PAYLOAD, Decoder, Kind, Message, ProtocolError, encode
from aio_vecenv.testing import Unloadable

messages = st.builds(
    Message,
    st.sampled_from(list(Kind)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 2000), max_size=12))
def test_any_chunking_decodes_the_same(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(encode(message) for message in sent)
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
@settings(max_examples=300)
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
@settings(max_examples=300)
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
    header[8:12] = (MAX_PAYLOAD + 1).to_bytes(4, "little")
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        decoder.feed(bytes(header))
    assert not decoder.mid_message  # nothing is kept


def test_the_sender_refuses_what_a_receiver_would() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        encode(Message(Kind.UPDATE, payload=bytes(MAX_PAYLOAD + 1)))
    assert Decoder().feed(encode(Message(Kind.UPDATE, payload=bytes(MAX_PAYLOAD))))[0].kind is Kind.UPDATE


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
