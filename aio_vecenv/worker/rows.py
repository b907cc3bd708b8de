"""What a worker's reply carries beside the block, made ready to travel: in parts where it is large."""
# pure: notes in, payloads out

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.framing import dumps
from ..core.messages import FINAL_OBS, NOTHING, OBS, PART_BYTES, RESULT, Note, encode_notes

__all__ = ["Refuse", "pack"]

Refuse = Callable[[Note, Exception], None]


def pack(notes: list[Note], refuse: Refuse, left: Callable[[], int | None]) -> Sequence[bytes]:
    """The payloads of the reply's parts, in order. `left()`: the bytes of memory that are left, None if not known.

    A note that cannot be pickled is refused alone: `refuse` takes it out of `notes` and may put an error in. So are, if
    the parent has no memory for the whole reply, those that are more than an even share of what there is.
    """
    if not notes:
        return NOTHING
    try:
        payload = encode_notes(notes, "infos")
        if len(payload) <= PART_BYTES:
            return (payload,)
        del payload
    except (TypeError, MemoryError):
        pass  # one by one, then
    pickles = {id(note): pickle for note in list(notes) if (pickle := _pickle(note, refuse)) is not None}
    room = left()
    if room is not None and 2 * sum(map(len, pickles.values())) > room:
        share = room // 2 // len(pickles)
        for note in [note for note in notes if len(pickles.get(id(note), b"")) > share]:
            refuse(note, _too_large(note, len(pickles[id(note)]), share))
    return _parts(notes, pickles)


def _pickle(note: Note, refuse: Refuse) -> bytes | None:
    try:
        return encode_notes([note], _name(note))
    except (TypeError, MemoryError) as error:
        refuse(note, error)
        return None


def _parts(notes: Sequence[Note], pickles: dict[int, bytes]) -> list[bytes]:
    """Small notes together, up to PART_BYTES; a large one alone."""
    parts: list[bytes] = []
    together: list[Note] = []
    size_bytes = 0
    for note in notes:
        pickle = pickles.get(id(note)) or encode_notes([note], "an error")
        if together and size_bytes + len(pickle) > PART_BYTES:
            parts.append(encode_notes(together, "infos"))
            together, size_bytes = [], 0
        if len(pickle) > PART_BYTES:
            parts.append(pickle)
        else:
            together.append(note)
            size_bytes += len(pickle)
    if together:
        parts.append(encode_notes(together, "infos"))
    return parts


def _name(note: Note) -> str:
    kind = note[2]
    return "observation" if kind in (OBS, FINAL_OBS) else "the result" if kind == RESULT else "infos"


def _too_large(note: Note, size_bytes: int, share: int) -> ValueError:
    where, value = _name(note), note[3]
    if isinstance(value, dict):
        key: Any = max(value, key=lambda key: len(dumps(value[key])))
        where = f'{where}["{key}"]'
    return ValueError(
        f"{where} is too large: {size_bytes} bytes pickled, where memory is left for {share}. Return less, or give the "
        "container more memory"
    )
