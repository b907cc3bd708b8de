"""Action masks: what they may be, the wrapper that asks envs for theirs, and where masks are that nobody looks at."""
# pure: numpy and Gymnasium only, so that workers may import it

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from trainers.config import ConfigError

__all__ = [
    "MASK",
    "METHOD",
    "NOTHING_ALLOWED",
    "ActionMasks",
    "MaskError",
    "ignored",
    "lookalikes",
    "misplaced",
    "read_mask",
    "sizes_of",
    "with_masks",
]

MASK = "action_mask"  # the info, or the leaf of a Dict observation
METHOD = "action_masks"  # sb3-contrib's convention
NOTHING_ALLOWED = (
    "the action mask allows no action; an episode in which nothing can be done must end (terminated)"
)
_NAME = re.compile(r"(^|_)(masks?|legal|valid|allowed|avail|available)(_|$)")  # of leaves that may be one

Bools = NDArray[np.bool_]


class MaskError(ConfigError):
    """What an env gave as an action mask is none. `row`: its place in a batch."""

    row = 0


def sizes_of(space: gym.Space[Any]) -> tuple[int, ...]:
    """How many actions each dimension has; () where actions cannot be masked."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    return tuple(space.nvec.reshape(-1).tolist()) if isinstance(space, spaces.MultiDiscrete) else ()


def read_mask(mask: Any, sizes: Sequence[int], *, acting: bool = False) -> Bools:
    """One mask as (sum of `sizes`,): bools or numbers of any shape, or a sequence of one such mask per dimension.

    Raises MaskError if it is none; with `acting` also if it leaves no action.
    """
    apart = isinstance(mask, (list, tuple)) or (isinstance(mask, np.ndarray) and mask.dtype == object)
    if apart and len(sizes) > 1 and len(mask) == len(sizes):
        parts = [_flat(part, size) for part, size in zip(mask, sizes)]
        flat = np.concatenate(parts)
    else:
        flat = _flat(mask, sum(sizes))
    if acting:
        start = 0
        for size in sizes:
            if not flat[start : start + size].any():
                raise MaskError(NOTHING_ALLOWED)
            start += size
    return flat


def _flat(mask: Any, width: int) -> Bools:
    try:
        array = np.asarray(mask)
        readable = array.dtype.kind in "biuf" and not (array.dtype.kind == "f" and np.isnan(array).any())
    except Exception:  # ragged, or of a type of the env's own
        readable = False
    if not readable:
        shown = " ".join(repr(mask).split())
        raise MaskError(
            f"an action mask must hold bools or numbers, one per action: {width}; got {shown:.80}"
        )
    if array.size != width:
        raise MaskError(f"an action mask has {array.size} entries, expected one per action: {width}")
    return array.reshape(-1).astype(np.bool_)


class ActionMasks(gym.Wrapper[Any, Any, Any, Any]):
    """Asks an env for its masks, `action_masks()`, after each reset and step, and puts them into the infos.

    Not at an episode's end: no action follows. Where the info has a mask, that is the one. What is wrong with what the
    method gives is an error of this env.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._sizes = sizes_of(env.action_space)
        get: Callable[[], Any] = partial(env.get_wrapper_attr, METHOD)
        try:
            found = get()
        except Exception:  # a property that knows nothing yet
            found = None
        self._ask = found if callable(found) else get

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, self._masked(info)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated):
            info = self._masked(info)
        return obs, reward, terminated, truncated, info

    def _masked(self, info: Any) -> Any:
        if not isinstance(info, dict) or MASK in info:
            return info
        asked = self._ask()
        try:
            return {**info, MASK: read_mask(asked, self._sizes, acting=True)}
        except MaskError as error:
            raise MaskError(f"{METHOD}(): {error}") from None


def with_masks(env: Any) -> Any:
    """`env`, in an `ActionMasks` if it has the method, its actions can be masked, and no mask is in its observation."""
    if not isinstance(env, gym.Env) or not sizes_of(env.action_space):
        return env
    shown = env.observation_space
    if isinstance(shown, spaces.Dict) and MASK in shown.spaces:
        return env
    return ActionMasks(env) if _has_method(env) else env


def _has_method(env: gym.Env[Any, Any]) -> bool:
    """Whether it, or what it wraps, has `action_masks`; a property is not read: it may know nothing yet."""
    layer: Any = env
    while not hasattr(type(layer), METHOD):
        if not isinstance(layer, gym.Wrapper):
            return env.has_wrapper_attr(METHOD)
        layer = layer.env
    return True


def ignored(what: str) -> str:
    """The warning that something looks like a mask, and is none."""
    return (
        f"{what} looks like an action mask and is not used: masks are looked for in info[{MASK!r}], at reset and "
        f"in each step, in a leaf {MASK!r} of a Dict observation, and in a method {METHOD}()"
    )


def lookalikes(space: gym.Space[Any], sizes: Sequence[int]) -> list[str]:
    """Leaves of an observation that are called like a mask, have one entry per action, and hold 0 and 1."""
    width = sum(sizes)
    return [
        f"the observation's {path}"
        for path, key, leaf in _leaves(space)
        if width and path != f"[{MASK!r}]" and _NAME.search(key.lower()) and _is_binary(leaf, width)
    ]


def _leaves(space: gym.Space[Any], path: str = "", name: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        whole = isinstance(space, spaces.Dict)
        for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces):
            yield from _leaves(part, f"{path}[{key!r}]", str(key) if whole else name)
    else:
        yield path, name, space


def _is_binary(leaf: Any, width: int) -> bool:
    if isinstance(leaf, spaces.MultiBinary):
        return int(np.prod(leaf.shape)) == width
    if isinstance(leaf, spaces.MultiDiscrete):
        return leaf.nvec.size == width and bool((leaf.nvec == 2).all())
    if isinstance(leaf, spaces.Box):
        return leaf.low.size == width and bool((leaf.low >= 0).all() and (leaf.high <= 1).all())
    return False


def misplaced(infos: Mapping[str, Any]) -> Iterator[str]:
    """Masks in infos of a run that heeds none."""
    if MASK in infos:
        yield f"info[{MASK!r}], which is not there at reset,"
    if METHOD in infos:
        yield f"info[{METHOD!r}]"
