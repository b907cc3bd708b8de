"""The protocol's table, and any sequence of messages against it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aio_vecenv.core.framing import Kind, ProtocolError
from aio_vecenv.core.protocol import FROM_CHILD, MOVES, Conversation, State

COMMANDS = (Kind.STEP, Kind.RESET, Kind.CALL, Kind.UNROLL)


class AnySequence(RuleBasedStateMachine):
    """Whatever is said: a state of the table, or an error that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Conversation(incarnation=3)
        self.number = 0

    def attempt(self, act: Any, kind: Kind, legal: bool) -> None:
        before = self.talk.state, dict(self.talk.owed)
        try:
            act()
        except ProtocolError:
            assert not legal, f"{kind.name} was refused in {before[0].name}"
            assert (self.talk.state, self.talk.owed) == before
        else:
            assert legal, f"{kind.name} was taken in {before[0].name}"
            assert self.talk.state is MOVES[before[0], kind]

    @rule(kind=st.sampled_from(list(Kind)))
    def parent_says(self, kind: Kind) -> None:
        self.number += 1
        legal = kind not in FROM_CHILD and (self.talk.state, kind) in MOVES
        self.attempt(lambda: self.talk.sent(kind, self.number), kind, legal)

    @rule(kind=st.sampled_from(list(Kind)), late=st.booleans())
    def child_says(self, kind: Kind, late: bool) -> None:
        oldest = next(iter(self.talk.owed), None)
        legal = kind in FROM_CHILD and (self.talk.state, kind) in MOVES and not late
        answer = kind in (Kind.REPLY, Kind.PART)
        if answer and oldest is None:
            legal = False
        number = oldest if oldest is not None and answer else 0
        self.attempt(lambda: self.talk.received(kind, number, 2 if late else 3), kind, legal)

    @precondition(lambda self: len(self.talk.owed) > 1)
    @rule(kind=st.sampled_from([Kind.REPLY, Kind.PART]))
    def replies_overtake(self, kind: Kind) -> None:
        newest = list(self.talk.owed)[-1]
        self.attempt(lambda: self.talk.received(kind, newest), kind, False)

    @precondition(lambda self: bool(self.talk.owed))
    @rule()
    def a_reply_begins(self) -> None:
        owed = dict(self.talk.owed)
        legal = (self.talk.state, Kind.PART) in MOVES
        self.attempt(lambda: self.talk.received(Kind.PART, next(iter(owed)), 3), Kind.PART, legal)
        assert self.talk.owed == owed  # until it has come to its end

    @precondition(lambda self: bool(self.talk.owed))
    @rule(kind=st.sampled_from(COMMANDS))
    def a_number_twice(self, kind: Kind) -> None:
        self.attempt(lambda: self.talk.sent(kind, next(iter(self.talk.owed))), kind, False)

    @rule()
    def handshake(self) -> None:
        for act, kind in (
            (self.talk.received, Kind.HELLO),
            (self.talk.sent, Kind.SETUP),
            (self.talk.received, Kind.SPACES),
            (self.talk.sent, Kind.ATTACH),
            (self.talk.received, Kind.ATTACHED),
        ):
            if (self.talk.state, kind) in MOVES:
                act(kind)

    @invariant()
    def only_commands_are_owed(self) -> None:
        assert set(self.talk.owed.values()) <= set(COMMANDS)
        if self.talk.owed:
            assert self.talk.state in (State.READY, State.CLOSING, State.CLOSED, State.LOST)


AnySequence.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAnySequence = AnySequence.TestCase


def test_the_table_is_closed() -> None:
    states = {state for state, _ in MOVES}
    assert states | set(MOVES.values()) <= set(State)
    assert all(MOVES.get((state, kind)) is None for state in (State.CLOSED, State.LOST) for kind in Kind)


@pytest.mark.parametrize("kind", sorted(FROM_CHILD))
def test_each_side_says_only_its_own(kind: Kind) -> None:
    with pytest.raises(ProtocolError, match="never from the parent"):
        Conversation().sent(kind)
    for other in set(Kind) - FROM_CHILD:
        with pytest.raises(ProtocolError, match="never from a child"):
            Conversation().received(other)
