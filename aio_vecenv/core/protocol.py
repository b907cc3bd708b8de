"""What may follow what, for one worker. Every legal move is a row of MOVES; nothing else changes state."""
# pure: no asyncio, no os, no clock. Messages come in as arguments, states go out as return values.

from __future__ import annotations

from enum import IntEnum, auto

from .framing import Kind, ProtocolError

__all__ = ["FROM_CHILD", "MOVES", "Conversation", "State"]


class State(IntEnum):
    """Where the conversation with one worker stands, seen from the parent."""

    STARTING = auto()  # the interpreter was started
    IDLE = auto()  # it said hello: warm, knows nothing of any env
    MAKING = auto()  # it was told its factories
    MADE = auto()  # it told its spaces
    ATTACHING = auto()  # it was told the layout of the shared block
    READY = auto()  # commands and replies
    CLOSING = auto()  # it was told to close; what is still under way may be answered
    CLOSED = auto()  # it said goodbye
    LOST = auto()  # end-of-file, a timeout, or bytes that were no message

    __hash__ = int.__hash__  # see wire.Kind


MOVES: dict[tuple[State, Kind], State] = {
    (State.STARTING, Kind.HELLO): State.IDLE,
    (State.IDLE, Kind.SETUP): State.MAKING,
    (State.MAKING, Kind.SPACES): State.MADE,
    (State.MAKING, Kind.FAILED): State.LOST,
    (State.MADE, Kind.ATTACH): State.ATTACHING,
    (State.ATTACHING, Kind.ATTACHED): State.READY,
    (State.ATTACHING, Kind.FAILED): State.LOST,
    (State.READY, Kind.STEP): State.READY,
    (State.READY, Kind.RESET): State.READY,
    (State.READY, Kind.CALL): State.READY,
    (State.READY, Kind.POLICY): State.READY,
    (State.READY, Kind.UNROLL): State.READY,
    (State.READY, Kind.PART): State.READY,
    (State.READY, Kind.REPLY): State.READY,
    (State.READY, Kind.TAKEN): State.READY,
    (State.CLOSING, Kind.PART): State.CLOSING,
    (State.CLOSING, Kind.REPLY): State.CLOSING,
    (State.CLOSING, Kind.TAKEN): State.CLOSING,
    (State.CLOSING, Kind.GOODBYE): State.CLOSED,
    **{
        (state, Kind.CLOSE): State.CLOSING
        for state in (State.STARTING, State.IDLE, State.MAKING, State.MADE, State.ATTACHING, State.READY)
    },
    # A worker that is told to close while it is being set up may still finish that first.
    (State.CLOSING, Kind.HELLO): State.CLOSING,
    (State.CLOSING, Kind.SPACES): State.CLOSING,
    (State.CLOSING, Kind.ATTACHED): State.CLOSING,
    (State.CLOSING, Kind.FAILED): State.CLOSING,
}

FROM_CHILD = frozenset(
    {Kind.HELLO, Kind.SPACES, Kind.ATTACHED, Kind.PART, Kind.REPLY, Kind.GOODBYE, Kind.FAILED, Kind.TAKEN}
)


_REPLY, _PART = Kind.REPLY, Kind.PART
_COMMANDS = frozenset({Kind.STEP, Kind.RESET, Kind.CALL, Kind.UNROLL})


class Conversation:
    """One incarnation of one worker: its state, and the commands it still owes a reply, oldest first."""

    def __init__(self, incarnation: int = 0) -> None:
        self.incarnation = incarnation
        self.state = State.STARTING
        self.owed: dict[int, Kind] = {}  # command number -> kind; replies come in the order of the commands

    def sent(self, kind: Kind, number: int = 0) -> None:
        """A message leaves for the child. Raises ProtocolError, and changes nothing, if it may not."""
        if kind in FROM_CHILD:
            raise ProtocolError(f"{kind.name} comes from a child, never from the parent")
        state = MOVES.get((self.state, kind))
        if state is None:
            raise self._illegal(kind)
        if kind in _COMMANDS:
            if number in self.owed:
                raise ProtocolError(f"command {number} was sent already")
            self.owed[number] = kind
        self.state = state

    def received(self, kind: Kind, number: int = 0, incarnation: int | None = None) -> None:
        """A message came from the child. Raises ProtocolError, and changes nothing, if it may not."""
        if kind not in FROM_CHILD:
            raise ProtocolError(f"{kind.name} comes from the parent, never from a child")
        if incarnation is not None and incarnation != self.incarnation:
            raise ProtocolError(f"a message of incarnation {incarnation} in incarnation {self.incarnation}")
        state = MOVES.get((self.state, kind))
        if state is None:
            raise self._illegal(kind)
        if kind is _REPLY or kind is _PART:
            oldest = next(iter(self.owed), None)
            if number != oldest:
                raise ProtocolError(f"a reply to command {number} where {oldest} is owed")
            if kind is _REPLY:
                del self.owed[number]
        self.state = state

    def lost(self) -> None:
        """The worker is gone, whatever the state."""
        self.state = State.LOST

    def _illegal(self, kind: Kind) -> ProtocolError:
        return ProtocolError(f"{kind.name} may not come in state {self.state.name}")
