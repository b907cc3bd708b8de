"""One env's part of a batch of observations, and what can be asked about an env from outside."""
# pure: no loop, no process; a worker imports this file and little else

from __future__ import annotations

from typing import Any

from gymnasium import Space, Wrapper, spaces

__all__ = ["class_names", "has_attr", "row_of"]


def row_of(space: Space[Any], batch: Any, row: int) -> Any:
    """The observation of one env out of a batch, as a copy; `space` is that of one env."""
    if isinstance(space, spaces.Dict):
        return {key: row_of(sub, batch[key], row) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(row_of(sub, part, row) for sub, part in zip(space.spaces, batch))
    if isinstance(space, spaces.Box):
        return batch[row, ...].copy()  # of shape () too: an array, as the env gave it
    value = batch[row]
    return value.copy() if hasattr(value, "copy") else value


def class_names(env: Any) -> list[list[str]]:
    """Of each wrapper around an env, outermost first: the qualified names of its class and its bases.

    Names, since a class is pickled by value where it lives in `__main__`, and another object then.
    """
    names: list[list[str]] = []
    while isinstance(env, Wrapper):
        names.append([f"{base.__module__}.{base.__qualname__}" for base in type(env).__mro__])
        env = env.env
    return names


def has_attr(name: str, env: Any) -> bool:
    """Whether an env, or what it wraps, has the attribute."""
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True
