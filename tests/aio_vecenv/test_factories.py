"""Factories: each makes an env of its own, and may be told which; one process per env where they share too much."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import aio_vecenv.adapters.gymnasium as av_gymnasium
import aio_vecenv.adapters.sb3 as av_sb3
from aio_vecenv import AsyncVecEnv, EnvError
from aio_vecenv.core.factories import takes_index
from aio_vecenv.core.messages import Setup
from aio_vecenv.core.options import Settings
from aio_vecenv.testing import StampEnv
from aio_vecenv.worker.main import make_envs

pytestmark = pytest.mark.alternate_loops

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]
Factories = list[Callable[[], Any]]


class Layer(gym.Wrapper[Any, Any, Any, Any]):
    """Adds nothing but a layer."""


class Holder:
    """Gives what it holds."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def get(self) -> Any:
        return self.env

    def __call__(self) -> Any:
        return self.env


def identity(env: Any) -> Any:
    return env


# -- one object as several envs ----------------------------------------------------------------------------------------


def same_lambda() -> Factories:
    env = StampEnv(0)
    return [lambda: env] * 4


def late_binding() -> Factories:
    envs = [StampEnv(index) for index in range(4)]
    return [lambda: e for e in envs]  # noqa: B023


def layers_apart() -> Factories:
    env = StampEnv(0)
    one, other = Layer(env), Layer(Layer(env))
    return [lambda: one, lambda: StampEnv(1), lambda: StampEnv(2), lambda: other]


def bound_late() -> Factories:
    env = StampEnv(0)
    return [partial(identity, env) for _ in range(4)]


def default_value() -> Factories:
    env = StampEnv(0)
    return [lambda env=env: env for _ in range(4)]  # type: ignore[misc]


def bound_method() -> Factories:
    holder = Holder(StampEnv(0))
    return [holder.get] * 4


def callable_object() -> Factories:
    return [Holder(StampEnv(0))] * 4


def wrapped_anew() -> Factories:
    env = StampEnv(0)
    return [lambda: Layer(env)] * 4


SEEN_IN_THE_PARENT = [same_lambda, late_binding, layers_apart, bound_late, default_value]
SEEN_WHERE_THEY_ARE_MADE = [bound_method, callable_object, wrapped_anew]


@pytest.mark.parametrize("make", SEEN_IN_THE_PARENT)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_one_object_as_several_envs_is_seen_before_anything_starts(
    make: Callable[[], Factories], workers: int
) -> None:
    """Also where each copy would live in a worker of its own."""
    with pytest.raises(ValueError, match=r"envs\[0\] and envs\[\d\] return one and the same env"):
        AsyncVecEnv(make(), num_workers=workers)
    with pytest.raises(ValueError, match=r"envs\[0\] and envs\[\d\]"):
        av_gymnasium.VectorEnv(make(), num_workers=workers)


@pytest.mark.parametrize("make", SEEN_WHERE_THEY_ARE_MADE)
@both
@pytest.mark.asyncio
async def test_one_object_as_several_envs_is_seen_where_they_are_made(
    backend: Backend, make: Callable[[], Factories]
) -> None:
    with pytest.raises(
        EnvError, match=r"env [13] .*which env [02] is already: a factory must make a new env"
    ):
        await AsyncVecEnv.open(make(), num_workers=2, backend=backend)


@pytest.mark.asyncio
async def test_inline_workers_share_a_process_so_they_share_objects() -> None:
    with pytest.raises(EnvError, match=r"which env 0 is already"):
        await AsyncVecEnv.open(bound_method(), num_workers=4, backend="inline")


@both
@pytest.mark.asyncio
async def test_sub_envs_of_vector_envs_that_are_one_object(backend: Backend) -> None:
    env = StampEnv(0)

    def vector() -> Any:
        return SyncVectorEnv([lambda: env] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)

    def single() -> Any:
        return SyncVectorEnv([lambda: Layer(env)], autoreset_mode=AutoresetMode.NEXT_STEP)

    with pytest.raises(EnvError, match=r"two sub-envs of .* are one and the same object"):
        await AsyncVecEnv.open([vector], backend=backend)
    with pytest.raises(EnvError, match="which env 0 is already"):
        await AsyncVecEnv.open([single, single], num_workers=1, backend=backend)


@pytest.mark.asyncio
async def test_an_object_of_its_own_per_env_is_taken_and_one_env_may_be_any_object() -> None:
    envs = [StampEnv(index) for index in range(3)]
    async with AsyncVecEnv([lambda e=e: e for e in envs], num_workers=1) as vec:
        assert await vec.get_attr("env_index") == (0, 1, 2)
    env = StampEnv(7)
    async with AsyncVecEnv(lambda: env, backend="inline") as vec:
        assert await vec.get_attr("env_index") == (7,)
    template = StampEnv(4)
    async with AsyncVecEnv(lambda: StampEnv(template.env_index), 2, num_workers=1) as vec:
        assert await vec.get_attr("env_index") == (4, 4)


# -- the index ---------------------------------------------------------------------------------------------------------


def indexed(index: int, length: int = 5) -> StampEnv:
    return StampEnv(index, length)


def any_defaults(index: int = 9) -> StampEnv:
    return StampEnv(index)


class ByIndex:
    """A callable object."""

    def __call__(self, index: int) -> StampEnv:
        return StampEnv(index)

    def make(self, index: int) -> StampEnv:
        return StampEnv(index)


class Indexed(StampEnv):
    """A class that is its own factory."""

    def __init__(self, index: int) -> None:
        super().__init__(index)


TAKE_INDEX: Any = [
    indexed,
    partial(indexed, length=3),
    lambda index: StampEnv(index),
    Indexed,
    StampEnv,
    ByIndex(),
    ByIndex().make,
    lambda index, /, *more, **others: StampEnv(index),
]


@pytest.mark.parametrize("factory", TAKE_INDEX)
@pytest.mark.asyncio
async def test_a_factory_that_takes_an_argument_gets_its_index(factory: Callable[[int], Any]) -> None:
    for given in ((factory, 3), ([factory] * 3,)):
        async with AsyncVecEnv(*given, num_workers=2, backend="inline") as envs:
            assert await envs.get_attr("env_index") == (0, 1, 2)


@pytest.mark.asyncio
async def test_factories_of_every_kind_get_their_index_in_workers() -> None:
    async with AsyncVecEnv(TAKE_INDEX, num_workers=2) as envs:
        assert await envs.get_attr("env_index") == tuple(range(8))


@pytest.mark.parametrize(
    "factory",
    [any_defaults, partial(indexed, 9), lambda *index: StampEnv(9), lambda *, index=9: StampEnv(index)],
)
@pytest.mark.asyncio
async def test_a_factory_whose_parameters_all_have_defaults_gets_nothing(factory: Callable[[], Any]) -> None:
    assert not takes_index(factory)
    async with AsyncVecEnv(factory, 2, backend="inline") as envs:
        assert await envs.get_attr("env_index") == (9, 9)


def two(a: int, b: int) -> StampEnv:
    return StampEnv(a + b)


@pytest.mark.asyncio
async def test_a_factory_of_two_arguments_is_an_error_as_ever() -> None:
    with pytest.raises(EnvError, match="missing 2 required positional arguments"):
        await AsyncVecEnv.open(two, backend="inline")


@pytest.mark.asyncio
async def test_a_replacement_has_the_index_that_it_had() -> None:
    async with AsyncVecEnv(indexed, 4, num_workers=2) as envs:
        await envs.reset(seed=1)
        os.kill(envs.statistics().workers[1].pid, signal.SIGKILL)
        await envs.step(np.zeros(4, np.int64))
        assert await envs.get_attr("env_index") == (0, 1, 2, 3)


def test_the_index_through_the_adapters() -> None:
    envs = av_gymnasium.VectorEnv([indexed] * 3, num_workers=2)
    try:
        assert envs.get_attr("env_index") == (0, 1, 2)
    finally:
        envs.close()
    sb3 = av_sb3.VecEnv([indexed] * 3, num_workers=2)
    try:
        assert sb3.get_attr("env_index") == [0, 1, 2]
    finally:
        sb3.close()


# -- one process per env -----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_process_for_each_env() -> None:
    async with AsyncVecEnv(indexed, 3, num_workers="per env") as envs:
        pids = await envs.call("get_pid")
        assert len(set(pids)) == 3
        assert envs.num_workers == 3
    with pytest.raises(ValueError, match="num_workers is 'per worker', not a whole number ≥ 1 or 'per env'"):
        AsyncVecEnv(indexed, 3, num_workers="per worker")  # type: ignore[arg-type]


def test_an_env_at_the_address_of_one_that_is_gone_is_an_env_of_its_own() -> None:
    """A replaced inline worker: what its envs were before owns nothing, also where another env lies there by now."""
    env = gym.make("CartPole-v1")
    setup = Setup([lambda: env, lambda: gym.make("CartPole-v1")], [0, 1], Settings(), "auto")
    envs, _ = make_envs(setup, {id(env.unwrapped): 1})
    assert envs[0] is env
    for made in envs:
        made.close()
