"""What the original takes, and what comes back for it: our adapters beside the libraries they stand in for."""
# edge: real worker processes, and the real libraries

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import aio_vecenv as av
from aio_vecenv.adapters.gymnasium import VectorEnv
from aio_vecenv.adapters.sb3 import VecEnv
from aio_vecenv.testing import ScriptedBackend, stamp_envs
from tests.adapters.envs import CountEnv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.vec_env import DummyVecEnv

LIMITED = partial(gym.wrappers.TimeLimit, max_episode_steps=5)


def _counters(count: int) -> list[Callable[[], Any]]:
    return [lambda i=i: LIMITED(CountEnv(3 + i)) for i in range(count)]  # type: ignore[misc]


# -- indices, and arguments without a meaning --------------------------------------------------------------------------


INDICES = [None, 0, 2, -1, [0, -1], (2, 0), [1, 1, -2, 1], [], range(1, 3), np.array([2, -3]), [np.int64(1)]]


@pytest.mark.parametrize("indices", INDICES, ids=repr)
def test_indices_pick_envs_as_they_do_in_the_original(indices: Any) -> None:
    """Indices count from the end where they are negative, and may repeat; whatever holds them, at every door."""
    ours, theirs = VecEnv(_counters(3), num_workers=2, backend="inline"), DummyVecEnv(_counters(3))
    asked: list[Callable[[Any], Any]] = [
        lambda venv: venv.set_attr("added", [7], indices),
        lambda venv: venv.get_attr("added", indices),
        lambda venv: venv.env_method("add", 1, b=2, indices=indices),
        lambda venv: venv.get_attr("max_count", indices),
        lambda venv: venv.env_is_wrapped(gym.wrappers.TimeLimit, indices),
        lambda venv: venv.env_is_wrapped(gym.wrappers.OrderEnforcing, indices=indices),
        lambda venv: venv.has_attr("added"),
    ]
    for ask in asked:
        assert ask(ours) == ask(theirs)
    for venv in (ours, theirs):
        for none in (3, [0, -4]):
            with pytest.raises(IndexError):
                venv.env_method("add", 1, indices=none)
        venv.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_start_method_is_accepted_and_said_to_have_no_meaning(method: str) -> None:
    """Arguments of the original that mean nothing here are taken; one warning says so, where it was written."""
    makers: list[Callable[[], Any]] = [
        lambda: VecEnv([CountEnv], start_method=method, backend="inline"),
        lambda: VectorEnv([CountEnv], context=method, backend="inline"),
    ]
    for make in makers:
        with pytest.warns(UserWarning, match=f"='{method}' has no meaning here") as caught:
            envs = make()
        envs.reset()
        envs.close()
        assert [warning.filename for warning in caught] == [__file__]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_once_the_restart_budget_is_spent_every_call_says_so() -> None:
    """What ended the vec env is what every further call raises, in both halves of each."""
    backend = ScriptedBackend(automatic=True)
    envs = VectorEnv(stamp_envs(2, 50), num_workers=1, backend=backend, restart=None)
    actions = np.zeros(2, np.int64)
    envs.reset()
    envs.step(actions)
    envs.step_async(actions)
    backend.lose(0)
    calls: list[Callable[[], Any]] = [
        envs.step_wait,
        partial(envs.step, actions),
        partial(envs.step, actions),
        partial(envs.step_async, actions),
        envs.step_wait,
        envs.reset,
        envs.reset_async,
        envs.reset_wait,
        envs.render,
        partial(envs.call, "render"),
        partial(envs.call_async, "render"),
        envs.call_wait,
        partial(envs.get_attr, "render_mode"),
        partial(envs.set_attr, "render_mode", None),
        partial(envs.broadcast, 1),
    ]
    for call in calls:
        with pytest.raises(av.WorkerLost, match="restarts are off"):
            call()
    envs.close()
    venv = VecEnv(
        stamp_envs(2, 50), num_workers=1, backend=(backend := ScriptedBackend(automatic=True)), restart=None
    )
    venv.reset()
    backend.lose(0)
    for call in (
        partial(venv.step, actions),
        partial(venv.step, actions),
        venv.reset,
        partial(venv.get_attr, "x"),
    ):
        with pytest.raises(av.WorkerLost, match="restarts are off"):
            call()
    venv.close()
