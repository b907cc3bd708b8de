"""State that lives in envs and their wrappers, such as running means: read, merged, shared out and put back."""
# pure: walks wrappers and computes; runs where the envs live, without torch

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers.utils import RunningMeanStd

__all__ = ["EnvState", "merge", "put_back", "read", "read_own", "restore", "restore_state", "uncarried"]

EnvState = dict[str, Any]  # by wrapper; plain data: dicts, lists, strings, numbers, bools, None
_STATISTICS = "running statistics"  # what marks the state of a wrapper that this file knows
# Gymnasium's statistics begin as if of so many samples of mean 0 and variance 1. All envs together begin so once: where
# observations lie far from 0, more would show. How much of it a part still holds is noted on the object itself.
_PRIOR = 1e-4
_NOTED = "_aio_vecenv_prior"


def restore_state(env: Any, state: Mapping[str, Any], *, frozen: bool = False) -> None:
    """Give an env, or a Gymnasium `VectorEnv`, the state that `AsyncVecEnv.get_state` returned.

    `frozen`: the wrappers' statistics stay what they are from now on (`update_running_mean = False`).
    Raises LookupError if `env` lacks a wrapper that `state` is of, ValueError if they do not fit.
    """
    if missing := sorted(set(state) - restore(env, state, parts=1, frozen=frozen)):
        raise LookupError(f"there is state of {', '.join(missing)}, but the env has no such wrapper")


def read(env: Any) -> list[EnvState]:
    """The state of an env's wrappers and of the env itself, by name; several where it holds envs of its own."""
    return [{name: _get(layer) for name, layer in layers.items()} for layers in _stateful(env)]


def restore(env: Any, state: Mapping[str, Any], *, parts: int, frozen: bool, anew: bool = False) -> set[str]:
    """Put the merged `state` of `parts` envs back into one of them. The names of those that it has.

    Each of them gets its share, so that merging them again counts nothing twice.
    """
    everywhere = _stateful(env)
    count = {name: sum(name in layers for layers in everywhere) for name in state}
    for layers in everywhere:
        for name, layer in layers.items():
            if name in state:
                try:
                    _set(layer, _share(layer, state[name], parts * count[name]))
                except Exception as error:
                    error.add_note(f"while the state of {name} was put back")
                    raise
                if frozen and hasattr(layer, "update_running_mean"):
                    layer.update_running_mean = False
                # of `NormalizeReward`; it runs on over resets
                if anew and hasattr(layer, "discounted_reward"):
                    layer.discounted_reward = np.zeros_like(layer.discounted_reward)
    return {name for name, found in count.items() if found}


def read_own(env: Any) -> list[dict[str, tuple[Any, bool | None]]]:
    """As `read`, for `put_back`: with each state whether it goes on learning, where that can be said."""
    return [
        {name: (_get(layer), getattr(layer, "update_running_mean", None)) for name, layer in layers.items()}
        for layers in _stateful(env)
    ]


def put_back(env: Any, states: Sequence[Mapping[str, tuple[Any, bool | None]]]) -> None:
    """Give an env what `read_own` said of another one that the same factory made."""
    for layers, state in zip(_stateful(env), states):
        for name, layer in layers.items():
            if name in state:
                known, learns = state[name]
                _set(layer, known)
                if learns is not None:
                    layer.update_running_mean = learns


def merge(states: Mapping[str, Sequence[Any]], env: Any) -> EnvState:
    """The states of each name as one, of the names that `env` has."""
    layers = {name: layer for found in _stateful(env) for name, layer in found.items()}
    return {name: _merged(layers[name], list(found)) for name, found in states.items() if name in layers}


def uncarried(env: Any) -> list[str]:
    """What is known to have a state that cannot be carried, and why."""
    found: list[str] = []
    for layer in _layers(env):
        name = type(layer).__name__
        wraps = isinstance(layer, (gym.Wrapper, gym.vector.VectorWrapper))
        if isinstance(layer, gym.vector.AsyncVectorEnv):
            found.append(f"{name}: its envs live in processes of their own")
        elif wraps and _has(layer, "get_state", "set_state") and not _has(layer, "merge_states"):
            found.append(f"{name}: it has get_state and set_state, but no merge_states")
    return found


# -- one layer ---------------------------------------------------------------------------------------------------------


def _layers(env: Any) -> Iterator[Any]:
    """An env and what it wraps, from the outside in."""
    seen: set[int] = set()  # an env may hold on to one that is not inside
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        yield env
        env = getattr(env, "__dict__", {}).get("env")


def _stateful(env: Any) -> list[dict[str, Any]]:
    """The layers that have a state, by name, of an env; then those of each env that it holds.

    Counted from the inside: a wrapper more around it changes no name.
    """
    found: dict[str, Any] = {}
    layers = list(_layers(env))
    for layer in reversed(layers):
        if _is_hooked(layer) or _statistics(layer):
            name = base = type(layer).__name__
            number = 1
            while name in found:
                number += 1
                name = f"{base} {number}"
            found[name] = layer
    inside = layers[-1].envs if isinstance(layers[-1], gym.vector.SyncVectorEnv) else ()
    held = [below for one in inside for below in _stateful(one)]
    return [found, *({f"envs: {name}": layer for name, layer in below.items()} for below in held)]


def _is_hooked(layer: Any) -> bool:
    return _has(layer, "get_state", "set_state", "merge_states")


def _has(layer: Any, *names: str) -> bool:
    return all(callable(getattr(layer, name, None)) for name in names)


def _statistics(layer: Any) -> dict[str, Any]:
    """The attributes that are running statistics as Gymnasium's `RunningMeanStd` is: mean, var, count."""
    return {name: value for name, value in getattr(layer, "__dict__", {}).items() if _is_statistics(value)}


def _is_statistics(value: Any) -> bool:
    parts = [getattr(value, part, None) for part in ("mean", "var", "count")]
    return all(map(_is_number, parts))  # an array's mean is a method


def _is_number(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.number, float, int)) and np.asarray(value).dtype.kind in "fiu"


def _get(layer: Any) -> Any:
    if _is_hooked(layer):
        state = layer.get_state()
        _check_plain(state, f"{type(layer).__name__}.get_state()")
        return state
    return {
        _STATISTICS: {
            name: {
                "mean": np.asarray(value.mean).tolist(),
                "var": np.asarray(value.var).tolist(),
                "count": float(value.count),
                "prior": getattr(value, _NOTED, _PRIOR if isinstance(value, RunningMeanStd) else 0.0),
                "dtype": np.asarray(value.mean).dtype.name,
            }
            for name, value in _statistics(layer).items()
        }
    }


def _set(layer: Any, state: Any) -> None:
    if _is_hooked(layer):
        layer.set_state(state)
        return
    for name, value in _statistics(layer).items():
        given = state[_STATISTICS][name]
        mean, var = (np.array(given[part], given["dtype"]) for part in ("mean", "var"))
        if mean.shape != np.shape(value.mean):
            raise ValueError(f"its {name} has shape {np.shape(value.mean)}, the state {mean.shape}")
        value.mean, value.var, value.count = mean, var, given["count"]
        if given.get("prior"):  # it is not in states of before
            setattr(value, _NOTED, given["prior"])


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError unless it is plain data, which any file can hold and no reader needs to trust."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(part, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _check_plain(part, f"{where}[{index}]")
    elif type(value) not in (str, bytes, int, float, bool, type(None)):
        raise TypeError(
            f"{where} is {type(value).__module__}.{type(value).__name__}, not plain data: dicts, lists, strings and "
            "Python's own numbers (of an array: tolist())"
        )


def _share(layer: Any, state: Any, parts: int) -> Any:
    """What each of `parts` envs gets of a merged state."""
    if _is_hooked(layer):
        return layer.split_state(state, parts) if _has(layer, "split_state") else state
    statistics = {}
    for name, one in state[_STATISTICS].items():
        divided = {part: one[part] / parts for part in ("count", "prior") if part in one}
        statistics[name] = {**one, **divided}
    return {_STATISTICS: statistics}


def _merged(layer: Any, states: list[Any]) -> Any:
    if _is_hooked(layer):
        merge_states: Callable[[list[Any]], Any] = layer.merge_states
        return merge_states(states)
    names = states[0][_STATISTICS]
    return {_STATISTICS: {name: _pooled([state[_STATISTICS][name] for state in states]) for name in names}}


def _pooled(statistics: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and variance over all samples, from those of their parts (Chan, Golub and LeVeque 1983)."""
    counts = np.array([one["count"] for one in statistics])
    total = float(counts.sum())
    if len(statistics) == 1 or total == 0.0:
        return statistics[0]
    weights = counts / total
    means = np.array([one["mean"] for one in statistics], np.float64)
    variances = np.array([one["var"] for one in statistics], np.float64)
    mean = np.tensordot(weights, means, 1)
    var = np.tensordot(weights, variances + np.square(means - mean), 1)
    prior = sum(one["prior"] for one in statistics)
    surplus = max(prior - _PRIOR, 0.0)
    if surplus and total > surplus:  # taken out as it was put in: samples of mean 0 and variance 1
        rest = total - surplus
        mean = mean * (total / rest)
        var = np.maximum((var * total - surplus - np.square(mean) * (rest * surplus / total)) / rest, 0.0)
        total, prior = rest, _PRIOR
    return {
        "mean": mean.tolist(),
        "var": var.tolist(),
        "count": total,
        "prior": prior,
        "dtype": statistics[0]["dtype"],
    }
