"""What a network takes its two spaces to mean, as plain data: saved beside it, and compared where it is loaded."""
# pure: a network and a space in, plain data and words out

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from trainers.learn.actions import ActionHead
from trainers.learn.encoders import Encoder, Flat, Grid, Pixels
from trainers.learn.networks import ActorCritic, Network, leaf_spaces
from trainers.record.checkpoint import CheckpointError

__all__ = ["check_meaning", "differences", "meaning_of"]

SAME = 1e-5  # bounds that differ by less, relatively, do so by the rounding of their types


def meaning_of(model: Network, head: ActionHead, obs_space: gym.Space[Any]) -> dict[str, Any]:
    """What the numbers of both spaces mean to `model`: its leaves in their order, and what its actions become.

    Bounds of observations count only where an encoder uses them, types of numbers not at all. What a network of the
    user's own makes of a leaf is unknown: there, its kind and shape count.
    """
    leaves = leaf_spaces(obs_space)
    encoders = list(model.encoders) if isinstance(model, ActorCritic) else [None] * len(leaves)
    return {
        "observations": {
            path: _observation(leaf, read) for (path, leaf), read in zip(leaves.items(), encoders)
        },
        "actions": _actions(head),
    }


def _observation(leaf: gym.Space[Any], read: Encoder | Any) -> dict[str, Any]:
    shape = list(leaf.shape or ())
    if isinstance(leaf, (spaces.Discrete, spaces.MultiDiscrete)):
        sizes = leaf.n if isinstance(leaf, spaces.Discrete) else leaf.nvec
        return {"kind": "categories", "shape": shape, "sizes": _flat(sizes), "start": _flat(leaf.start)}
    meant: dict[str, Any] = {"kind": "numbers", "shape": shape}
    match read:
        case Flat():
            meant["factor"] = read.scale
        case Grid():
            meant |= {"factor": read.scale, "channels": "last" if read.channels_last else "first"}
        case Pixels():
            meant |= {"frames": read.picture.frames, "channels": read.picture.order, "largest": read.largest}
    return meant


def _actions(head: ActionHead) -> dict[str, Any]:
    plan = head.plan
    if plan["kind"] == "categorical":
        return {
            "kind": "categories", "shape": plan["shape"], "sizes": _flat(plan["sizes"]), "start": _flat(plan["start"])
        }  # fmt: skip
    middle, half = (np.asarray(head.constants[plan[key]]) for key in ("middle", "half"))
    return {
        "kind": "numbers", "shape": plan["shape"], "low": _flat(middle - half), "high": _flat(middle + half)
    }  # fmt: skip


def _flat(values: Any) -> list[Any]:
    plain: list[Any] = np.asarray(values).reshape(-1).tolist()
    return plain


def check_meaning(path: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where the spaces of the network that `path` holds meant something else. Checkpoints of
    before this was saved pass."""
    if saved and (changed := differences(saved, here)):
        raise CheckpointError(
            f"{path}: the saved network does not fit this config and env: {'; '.join(changed)}"
        )


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What `meaning_of` gave then and gives here, where it differs, in words; nothing where nothing was saved."""
    if not saved:
        return []
    before, now = saved["observations"], here["observations"]
    said = [f"there was {_called(path)}, here is none" for path in before if path not in now]
    said += [f"{_called(path)} is new" for path in now if path not in before]
    if not said and list(before) != list(now):
        said.append(f"the observation's parts were in the order {', '.join(before)}, here {', '.join(now)}")
    for path in now:
        if path in before:
            said += _changes(_called(path), before[path], now[path])
    return [*said, *_changes("actions", saved["actions"], here["actions"])]


def _called(path: str) -> str:
    return f"observation {path!r}" if path else "the observation"


def _changes(what: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The first change says enough where the kind or the shape is another: what follows from it goes unsaid."""
    for key in (*before, *(key for key in now if key not in before)):
        old, new = before.get(key), now.get(key)
        if not _same(old, new):
            yield f"{what}: {key} {_short(old)}, here {_short(new)}"
            if key in ("kind", "shape"):
                return


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=SAME, abs_tol=1e-12)
    return bool(old == new)


def _short(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(map(_short, value[:4]))
        return f"[{shown}, …]" if len(value) > 4 else f"[{shown}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
