"""The operator's commands: what each takes, what it does with the run, and what it answers."""
# async: a command waits for its receipt, for a bounded time

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aio_vecenv as av
import curriculum as cu
from trainers.run import Run
from trainers.service.access import Refused
from trainers.service.snapshot import is_over, outcome

__all__ = ["COMMANDS", "execute"]

RECEIPT_S = 5.0  # for all workers to take it; a stuck one takes it later, and the answer says so
MOST_TEXT = 500  # characters of who and why


@dataclass(frozen=True)
class Order:
    """One command: who gives it and why, and its other arguments."""

    by: str
    why: str | None
    arguments: Mapping[str, Any]


async def execute(run: Run, name: str, data: Any) -> dict[str, Any]:
    """Carry a command out. Returns `done` (one line) and, where something was published, `receipt` (`version`, `taken`,
    `workers`, `pending`). Raises Refused, and nothing has changed. Cancelling it takes nothing back.
    """
    if name not in COMMANDS:
        raise Refused(404, f"unknown command {name!r}; there are {', '.join(COMMANDS)}")
    takes, carry_out = COMMANDS[name]
    order = _order(name, takes, data)
    if is_over(run):
        raise Refused(
            409, f"{name}: the run has ended ({outcome(run)}): there is nothing to command any more"
        )
    try:
        return await carry_out(run, order)
    except cu.CoordinatorError as error:  # it is ending just now
        raise Refused(409, str(error)) from None
    except cu.CurriculumError as error:
        raise Refused(400, str(error)) from None


def _order(name: str, takes: tuple[str, ...], data: Any) -> Order:
    if not isinstance(data, dict):
        raise Refused(400, f"{name}: expected a JSON object, got {type(data).__name__}")
    known = ("by", "why", *takes)
    for key in data:
        if key not in known:
            raise Refused(400, f"{name}: unknown argument {key!r}; it takes {', '.join(known)}")
    for key in takes:
        if key not in data:
            raise Refused(400, f"{name}: {key!r} is missing")
    by, why = data.get("by"), data.get("why")
    if not isinstance(by, str) or not by.strip():
        raise Refused(400, f"{name}: 'by' is missing: who gives the command?")
    if why is not None and not isinstance(why, str):
        raise Refused(400, f"{name}: 'why' is text, got {why!r:.60}")
    if max(len(by), len(why or "")) > MOST_TEXT:
        raise Refused(400, f"{name}: 'by' and 'why' have at most {MOST_TEXT} characters")
    return Order(by.strip(), (why or "").strip() or None, {key: data[key] for key in takes})


async def _set_stage(run: Run, order: Order) -> dict[str, Any]:
    stage, before = _stage(order), run.stage
    receipt = run.coordinator.set_stage(stage, by=order.by, why=order.why)
    if stage == before:
        return {"done": f"{stage} is the current stage already: nothing was changed"}
    return await _taken(run, receipt, f"stage {before} → {stage}")


async def _set_mixing_ratio(run: Run, order: Order) -> dict[str, Any]:
    stage, ratio = _stage(order), order.arguments["ratio"]
    receipt = run.coordinator.set_mixing_ratio(stage, ratio, by=order.by, why=order.why)
    if ratio is None:
        return await _taken(run, receipt, f"the rules set the mixing ratio of {stage} again")
    return await _taken(run, receipt, f"the mixing ratio of {stage} is fixed at {ratio:g}")


async def _hold(run: Run, order: Order) -> dict[str, Any]:
    held = run.coordinator.held
    run.coordinator.hold(by=order.by, why=order.why)
    return {"done": "decisions were on hold already" if held else "decisions are on hold; training goes on"}


async def _release(run: Run, order: Order) -> dict[str, Any]:
    held = run.coordinator.held
    receipt = run.coordinator.release(by=order.by, why=order.why)
    return await _taken(run, receipt, "the rules decide again") if held else {"done": "nothing was on hold"}


async def _checkpoint(run: Run, order: Order) -> dict[str, Any]:
    run.coordinator.note("checkpoint", by=order.by, why=order.why)
    try:
        path = await run.checkpoint()
    except OSError as error:
        raise Refused(500, f"the checkpoint was not written, the previous one stands: {error}") from None
    return {"done": f"saved {path.relative_to(run.folder.path)}"}


async def _stop(run: Run, order: Order) -> dict[str, Any]:
    run.coordinator.note("stop", by=order.by, why=order.why)
    run.request_stop()
    return {"done": "the run finishes its env step, saves a checkpoint and ends"}


def _stage(order: Order) -> str:
    stage = order.arguments["stage"]
    if not isinstance(stage, str):
        raise Refused(400, f"'stage' is the name of a stage, got {stage!r:.60}")
    return stage


async def _taken(run: Run, receipt: Any, done: str) -> dict[str, Any]:
    with contextlib.suppress(TimeoutError, av.ClosedError):  # `pending` says who has not
        await receipt.wait(RECEIPT_S)
    taken, pending = list(receipt.taken), list(receipt.pending)  # by worker, of a fleet by host
    return {
        "done": done,
        "receipt": {
            "version": receipt.version,
            "taken": len(taken),
            "workers": len(taken) + len(pending),
            "pending": pending,
        },
    }


Carry = Callable[[Run, Order], Awaitable[dict[str, Any]]]
COMMANDS: dict[str, tuple[tuple[str, ...], Carry]] = {
    "set_stage": (("stage",), _set_stage),
    "set_mixing_ratio": (("stage", "ratio"), _set_mixing_ratio),
    "hold": ((), _hold),
    "release": ((), _release),
    "checkpoint": ((), _checkpoint),
    "stop": ((), _stop),
}
