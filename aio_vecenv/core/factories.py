"""What a user may pass as `envs`, as a list of factories that take nothing."""
# pure: looks up specs; makes no env

from __future__ import annotations

import dis
import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

__all__ = ["MakeSpec", "check_own", "resolve", "takes_index", "usable_cpus"]


@dataclass(frozen=True)
class MakeSpec:
    """Makes an env from its whole spec, so that it need not be registered where it is made."""

    spec: EnvSpec
    kwargs: dict[str, Any] = field(default_factory=dict)  # for gymnasium.make
    wrappers: tuple[Callable[[Any], Any], ...] = ()  # innermost first
    module: str = ""  # who registers it, and perhaps others that it makes itself

    def __call__(self) -> Any:
        if self.module:
            importlib.import_module(self.module)
        env: Any = gym.make(self.spec, **self.kwargs)
        for wrapper in self.wrappers:
            env = wrapper(env)
        return env


def resolve(envs: Any, num_envs: int | None) -> list[Callable[[], Any]]:
    """One factory per env. One that takes an argument is given its index.

    Raises gymnasium.error.Error for an unknown id, TypeError, ValueError.
    """
    if num_envs is not None and (isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1):
        raise ValueError(f"num_envs is {num_envs!r}, not a whole number ≥ 1")
    if isinstance(envs, str):
        spec, module = _find(envs)
        envs = MakeSpec(spec, module=module)
    elif isinstance(envs, EnvSpec):
        envs = MakeSpec(envs)
    if callable(envs):
        return _bound([envs] * (1 if num_envs is None else num_envs))
    if not isinstance(envs, Sequence) or not envs:
        raise TypeError(f"envs is {envs!r}, not an env id, an EnvSpec, a factory or a list of factories")
    for index, factory in enumerate(envs):
        if not callable(factory):
            raise TypeError(f"envs[{index}] is {factory!r}, not a factory (a callable that makes an env)")
    if num_envs is not None and num_envs != len(envs):
        raise ValueError(f"num_envs is {num_envs}, but envs has {len(envs)} factories")
    return _bound(list(envs))


def takes_index(factory: Callable[..., Any]) -> bool:
    """Whether a factory takes the index of its env: it has exactly one positional parameter without a default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some callables of C's have none to show
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in parameters) == 1


def _bound(given: list[Callable[..., Any]]) -> list[Callable[[], Any]]:
    """Factories that take nothing. Raises ValueError if two of them are seen to return one object."""
    want = {
        id(factory): takes_index(factory) for factory in {id(factory): factory for factory in given}.values()
    }
    bound = [partial(one, index) if want[id(one)] else one for index, one in enumerate(given)]
    owners: dict[int, int] = {}
    for index, factory in enumerate(bound):
        env = _returned(factory)
        if isinstance(env, (gym.Env, gym.vector.VectorEnv)):
            first = owners.setdefault(id(env.unwrapped), index)
            if first != index:
                raise ValueError(
                    f"envs[{first}] and envs[{index}] return one and the same env, {env}: {_ADVICE}"
                )
    return bound


_ADVICE = "a factory must make a new env each time it is called (lambda: make(), not lambda: env)"
_NO_WORK = frozenset({"RESUME", "COPY_FREE_VARS", "NOP"})


def _returned(factory: Callable[..., Any]) -> Any:
    """What a function that only returns a variable returns, such as `lambda: env`; None of all others.

    Seen before anything is pickled: what arrives in two workers is two copies, which nobody can tell from two envs.
    """
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while isinstance(factory, partial):
        arguments, keywords = (*factory.args, *arguments), {**factory.keywords, **keywords}
        factory = factory.func
    if type(factory) is not FunctionType:
        return None
    work = [one for one in dis.get_instructions(factory) if one.opname not in _NO_WORK]
    if len(work) != 2 or work[1].opname != "RETURN_VALUE" or not isinstance(work[0].argval, str):
        return None
    name = work[0].argval
    try:
        known = inspect.getclosurevars(factory)
        call = inspect.signature(factory).bind(*arguments, **keywords)
    except (TypeError, ValueError):  # it could not be called, or its closure is not filled yet
        return None
    call.apply_defaults()
    return {**known.globals, **known.nonlocals, **call.arguments}.get(name)


def check_own(env: Any, env_id: int, owners: dict[int, int]) -> None:
    """Raise ValueError if an env that was made is the object that another one is. `owners`: env ids by `id(object)`."""
    objects = [env.unwrapped if hasattr(env, "unwrapped") else env]
    if isinstance(env, gym.vector.VectorEnv):
        objects += [one.unwrapped for one in getattr(objects[0], "envs", ()) if isinstance(one, gym.Env)]
    for one in objects:
        owner = owners.setdefault(id(one), env_id)
        if owner != env_id:
            raise ValueError(f"its factory returned {env}, which env {owner} is already: {_ADVICE}")
    if len({id(one) for one in objects}) < len(objects):
        raise ValueError(f"two sub-envs of {env} are one and the same object: {_ADVICE}")


def _find(env_id: str) -> tuple[EnvSpec, str]:
    """The spec of an id or MODULE:ID, and the module. Raises ImportError, gymnasium.error.Error."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # registers it
    return gym.spec(name), module


def usable_cpus() -> int:
    """How many CPUs this process may use: its affinity, where the platform knows it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover - macOS
