"""What the original takes, and what comes back for it: our adapters beside the libraries they stand in for."""
# edge: real worker processes, and the real libraries

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

import aio_vecenv as av
from aio_vecenv.adapters.gymnasium import VectorEnv
from aio_vecenv.adapters.sb3 import VecEnv
from aio_vecenv.testing import ScriptedBackend, stamp_envs
from tests.adapters.envs import Chatty, CountEnv, Echo, Ending, typed

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import A2C, PPO
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
        lambda: VecEnv([CountEnv], method, backend="inline"),
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


# -- values: what reaches the envs, and what comes back from them ------------------------------------------------------


ACTIONS: list[tuple[spaces.Space[Any], Any]] = [
    (spaces.Box(0, 1, (), np.float32), [0.1, 0.25]),
    (spaces.Box(0, 1, (), np.float32), np.array([0.1, 0.25])),
    (spaces.Box(0, 1, (), np.float64), (0.5, 1)),
    (spaces.Box(0, 1, (2,), np.float32), np.array([[0.1, 0.2], [0.3, 0.4]])),
    (spaces.Box(0, 1, (2,), np.float32), np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)),
    (spaces.Box(0, 1, (2,), np.float32), [[0.1, 0.2], (0.3, 1)]),
    (spaces.Box(0, 9, (2,), np.uint8), np.array([[1, 2], [3, 4]], np.int64)),
    (spaces.Discrete(3), np.array([1, 2])),
    (spaces.Discrete(3), np.array([1, 2], np.int32)),
    (spaces.Discrete(3), [1, 2]),
    (spaces.Discrete(3), np.array([1.0, 2.0], np.float32)),
    (spaces.MultiBinary(2), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)),
    (spaces.MultiBinary(2), np.array([[True, False], [False, True]])),
    (spaces.MultiDiscrete([3, 4]), np.array([[1.0, 0.0], [2.0, 3.0]])),
    (spaces.MultiDiscrete([3, 4]), [[1, 0], [2, 3]]),
    (spaces.Text(4), ("a", "bc")),
]
NESTED: list[tuple[spaces.Space[Any], Any]] = [
    (
        spaces.Dict(a=spaces.Discrete(3), b=spaces.Dict(c=spaces.Box(0, 1, (2,), np.float32))),
        {"a": [1, 2], "b": {"c": np.array([[0.1, 0.2], [0.3, 0.4]])}},
    ),
    (
        spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (), np.float64), spaces.Text(3))),
        (np.array([1, 0]), [0.1, 0.2], ["a", "b"]),
    ),
]


@pytest.mark.parametrize(("space", "actions"), ACTIONS + NESTED, ids=repr)
def test_actions_reach_the_envs_as_in_gymnasium(space: Any, actions: Any) -> None:
    """Values and their types: of a float64, a list, a whole float, an array of the space's own dtype."""
    ours = VectorEnv([partial(Echo, space)] * 2, num_workers=1, backend="inline")
    theirs = SyncVectorEnv([partial(Echo, space)] * 2)
    given = [envs.reset() and envs.step(actions)[4]["given"].tolist() for envs in (ours, theirs)]
    ours.close()
    theirs.close()
    assert given[0] == given[1]


@pytest.mark.parametrize(("space", "actions"), ACTIONS + NESTED, ids=repr)
def test_actions_reach_the_envs_as_in_stable_baselines3(space: Any, actions: Any) -> None:
    """One per env, in whatever holds them: dicts and tuples, too."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        space.seed(4)
        actions = [space.sample() for _ in range(2)]
    with VecEnv([partial(Echo, space)] * 2, num_workers=2, backend="inline") as ours:
        ours.reset()
        infos = ours.step(actions)[3]
        ours.step_async(tuple(actions) if isinstance(actions, list) else actions)
        ours.step_wait()
    assert [info["given"] for info in infos] == [typed(action) for action in actions]


SCALARS = st.one_of(
    st.builds(
        lambda dtype, shape: spaces.Box(0, 100, tuple(shape), dtype),
        st.sampled_from([np.float32, np.float64, np.uint8, np.int16, np.int64]),
        st.lists(st.integers(1, 3), max_size=2),
    ),
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-3, 3)),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.Text, st.integers(1, 4)),
)
SPACES = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(spaces.Dict, st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3))
        | st.builds(lambda parts: spaces.Tuple(tuple(parts)), st.lists(inner, min_size=1, max_size=3))
    ),
    max_leaves=4,
)


@given(observed=SPACES, acted=SPACES, mode=st.sampled_from(["NextStep", "SameStep"]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_spaces_come_and_go_as_in_gymnasium(observed: Any, acted: Any, mode: str, seed: int) -> None:
    """Observations, actions, infos and last observations, with their types, over any nest of spaces."""
    observed.seed(seed)
    factories = [partial(Ending if i else Echo, acted, observed, observed.sample()) for i in range(2)]
    ours = VectorEnv(factories, num_workers=1, backend="inline", autoreset_mode=mode)
    theirs = SyncVectorEnv(factories, autoreset_mode=mode)
    try:
        theirs.action_space.seed(seed)
        assert typed(ours.reset(seed=1)) == typed(theirs.reset(seed=1))
        for _ in range(3):
            actions = theirs.action_space.sample()
            mine, other = ours.step(actions), theirs.step(actions)
            assert typed(mine[:4]) == typed(other[:4])
            assert mine[4].keys() == other[4].keys()
            for key, column in other[4].items():
                if isinstance(column, np.ndarray):
                    assert [typed(one) for one in mine[4][key]] == [typed(one) for one in column]
    finally:
        ours.close()
        theirs.close()


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (spaces.Discrete(3), 0),
        (spaces.Discrete(3), None),
        (spaces.Discrete(3), [1]),
        (spaces.Box(0, 1, (2,), np.float32), 0.5),
        (spaces.Dict(a=spaces.Discrete(3)), 0),
        (spaces.Dict(a=spaces.Discrete(3)), {"b": [0, 0]}),
        (spaces.Dict(a=spaces.Discrete(3)), [{"a": 0}, {"a": 0}]),
        (spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2))), ([0, 0],)),
        (spaces.Tuple((spaces.Discrete(3),)), 0),
    ],
    ids=repr,
)
def test_actions_that_the_original_refuses_are_an_error_of_its_type(space: Any, actions: Any) -> None:
    """And one of ours: nothing was sent, and the next step is as if nothing had been."""
    ours = VectorEnv([partial(Echo, space)] * 2, num_workers=1, backend="inline")
    theirs = SyncVectorEnv([partial(Echo, space)] * 2)
    ours.reset(), theirs.reset()
    with pytest.raises((TypeError, KeyError, IndexError, ValueError)) as refused:
        theirs.step(actions)
    for step in (ours.step, ours.step_async):
        with pytest.raises(av.BadActions) as caught:
            step(actions)
        assert isinstance(caught.value, refused.type)
    ours.step(ours.action_space.sample())
    ours.close()


def test_values_that_are_none_of_the_space_are_refused_at_both_doors() -> None:
    for make in (VectorEnv, VecEnv):
        for space, wrong in (
            (spaces.Discrete(3), [0.5, 1.0]),
            (spaces.MultiBinary(2), np.array([[0.5, 1], [1, 1]])),
            (spaces.MultiBinary(2), np.array([[np.nan, 1], [1, 1]])),
            (spaces.Box(0, 1, (2,), np.float32), np.zeros((2, 3))),
            (spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2))), [(0, 1), 3]),
        ):
            envs: Any = make([partial(Echo, space)] * 2, num_workers=1, backend="inline")
            envs.reset()
            with pytest.raises(av.BadActions, match="nothing was sent"):
                envs.step(wrong)
            envs.close()


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_algorithms_that_give_actions_as_floats(algorithm: Any) -> None:
    """MultiBinary actions are floats in Stable-Baselines3."""
    with VecEnv([partial(Echo, spaces.MultiBinary(4))] * 2, num_workers=1, backend="inline") as venv:
        more = {"batch_size": 16} if algorithm is PPO else {}
        algorithm("MlpPolicy", venv, n_steps=8, device="cpu", seed=1, **more).learn(16)


def test_float64_actions_give_the_same_transitions() -> None:
    """Nothing is rounded on the way: Pendulum to its end, bit for bit."""
    ours, theirs = (make([partial(gym.make, "Pendulum-v1")] * 2) for make in (VectorEnv, SyncVectorEnv))
    obs = [envs.reset(seed=3)[0] for envs in (ours, theirs)]
    random = np.random.default_rng(1)
    for _ in range(199):
        actions = random.uniform(-2, 2, (2, 1))
        (mine, reward, *_), (other, expected, *_) = ours.step(actions), theirs.step(actions)
        assert np.array_equal(mine, other)
        assert np.array_equal(reward, expected)
    ours.close()
    theirs.close()
    assert np.array_equal(*obs)


def test_keys_of_an_action_that_its_space_does_not_declare_are_an_error_that_names_them() -> None:
    """At any depth. An env of the original would see them, ours cannot; Gymnasium drops them, and its adapter, too."""
    space = spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple((spaces.Dict(c=spaces.Discrete(2)),)))
    good = {"a": 1, "b": ({"c": 0},)}
    batch = {"a": [1, 1], "b": ({"c": [0, 0], "d": [0, 0]},), "e": [0, 0]}
    factories = [partial(Echo, space)] * 2
    with VecEnv(factories, num_workers=1, backend="inline") as venv:
        venv.reset()
        for wrong, what in [
            (
                [good, {"a": 1, "b": ({"c": 0, "d": 0},), "e": 2}],
                r"the action of env 1 holds \['e'\], \['b'\]\[0\]\['d'\]",
            ),
            (batch, r"the actions hold \['e'\], \['b'\]\[0\]\['d'\]"),
        ]:
            with pytest.raises(av.BadActions, match=what + ", which Dict.* does not have; nothing was sent"):
                venv.step(wrong)
        venv.step([good, good])
    with pytest.raises(av.BadActions, match=r"the actions hold \['e'\]"):
        av.run(_step(factories, batch))
    envs = VectorEnv(factories, num_workers=1, backend="inline")
    envs.reset()
    envs.step(batch)
    envs.close()


async def _step(factories: Any, actions: Any) -> None:
    async with av.AsyncVecEnv(factories, num_workers=1, backend="inline") as envs:
        await envs.reset()
        await envs.step(actions)


WIDE: list[tuple[spaces.Space[Any], Any, str]] = [
    (
        spaces.Box(-9, 9, (2,), np.float32),
        np.array([0.1, 0.2]),
        "obs is float64 where its space says float32",
    ),
    (spaces.Box(0, 255, (2,), np.uint8), np.array([1, 300]), "obs is int64 where its space says uint8"),
    (spaces.Discrete(5), 2.0, "obs is float64 where its space says int64"),
    (
        spaces.Dict(a=spaces.Box(-9, 9, (), np.float32), b=spaces.Discrete(3)),
        {"a": np.float64(0.1), "b": 1},
        r'obs\["a"\] is float64 where its space says float32',
    ),
]


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize(("space", "shown", "text"), WIDE, ids=repr)
def test_observations_of_another_width_are_cast_with_one_warning(
    space: Any, shown: Any, text: str, shared_memory: bool
) -> None:
    """As Gymnasium's shared memory casts them, and Stable-Baselines3's buffers; natively nothing is."""
    factories = [partial(Echo, spaces.Discrete(2), space, shown)] * 3
    backend: Any = "process" if shared_memory and isinstance(space, spaces.Dict) else "inline"
    theirs = DummyVecEnv([lambda f=f: f() for f in factories])  # type: ignore[misc]
    makers: list[Callable[[], Any]] = [
        lambda: VectorEnv(factories, num_workers=2, shared_memory=shared_memory, backend=backend),
        lambda: VecEnv(factories, num_workers=2, backend=backend),
    ]
    for make in makers:
        envs = make()
        with pytest.warns(UserWarning, match=rf"env \d: {text}: it is cast") as caught:
            obs = _through(envs)
        assert len(caught) == 1
        expected = theirs.reset()
        for mine, other in zip(_leaves(obs), _leaves(expected)):
            assert mine.dtype == other.dtype
            assert np.array_equal(mine, other)
    with pytest.raises(ExceptionGroup) as refused:
        av.run(_reset(factories, backend="inline"))
    assert all(isinstance(error, av.SpaceMismatch) for error in refused.value.exceptions)


def _leaves(obs: Any) -> list[Any]:
    return list(obs.values()) if isinstance(obs, dict) else [obs]


async def _reset(factories: Any, **options: Any) -> Any:
    async with av.AsyncVecEnv(factories, num_workers=2, **options) as envs:
        obs, _ = await envs.reset()
        await envs.step(np.zeros(envs.num_envs, np.int64))
        return obs


LAST: list[tuple[spaces.Space[Any], Any]] = [
    (spaces.Discrete(5), 2),
    (spaces.Discrete(5), np.int64(2)),
    (spaces.Box(-9, 9, (), np.float32), np.float32(0.5)),
    (spaces.Box(-9, 9, (2,), np.float32), np.array([0.5, 1.0], np.float32)),
    (spaces.MultiBinary(2), np.array([1, 0], np.int8)),
    (spaces.Tuple((spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2))), (20, 10, 0)),
    (
        spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(0, 1, (2,), np.float32)),
        {"a": 1, "b": np.ones(2, np.float32)},
    ),
    (spaces.Text(4), "abc"),
]


@pytest.mark.parametrize(("space", "shown"), LAST, ids=repr)
def test_the_last_observation_is_of_the_types_that_the_env_gave(space: Any, shown: Any) -> None:
    """`2` where it says `2`, at any depth, in `final_obs` and in `terminal_observation`."""
    factories = [partial(Ending, spaces.Discrete(2), space, shown)] * 2
    ours = VectorEnv(factories, num_workers=1, backend="inline", autoreset_mode="SameStep")
    theirs = SyncVectorEnv(factories, autoreset_mode="SameStep")
    finals = [envs.reset() and envs.step(np.zeros(2, np.int64))[4]["final_obs"] for envs in (ours, theirs)]
    ours.close()
    theirs.close()
    assert [typed(one) for one in finals[0]] == [typed(one) for one in finals[1]] == [typed(shown)] * 2
    with VecEnv(factories, num_workers=1, backend="inline") as venv:
        venv.reset()
        infos = venv.step(np.zeros(2, np.int64))[3]
        assert [typed(info["terminal_observation"]) for info in infos] == [typed(shown)] * 2


DECLARED = spaces.Dict(a=spaces.Discrete(3), b=spaces.Dict(c=spaces.Box(0, 1, (2,), np.float32)))
TOLD = {"a": 1, "more": "x", "b": {"c": np.ones(2, np.float32), "d": np.zeros(3)}}


def _through(envs: Any) -> Any:
    with contextlib.closing(envs):
        obs = envs.reset()
        envs.step(np.zeros(envs.num_envs, np.int64))
        return obs[0] if isinstance(obs, tuple) else obs


def _echoes(observed: Any, shown: Any) -> list[Any]:
    return [partial(Echo, spaces.Discrete(2), observed, shown)] * 3


DOORS: dict[str, Callable[[Any, Any], Any]] = {
    "native": lambda *shown: av.run(_reset(_echoes(*shown))),
    "inline": lambda *shown: av.run(_reset(_echoes(*shown), backend="inline")),
    "VectorEnv factories": lambda *shown: av.run(_reset([partial(Chatty, *shown)] * 2)),
    "Gymnasium": lambda *shown: _through(VectorEnv(_echoes(*shown), num_workers=2, backend="inline")),
    "Stable-Baselines3": lambda *shown: _through(VecEnv(_echoes(*shown), num_workers=2, backend="inline")),
}


@pytest.mark.parametrize("door", DOORS)
def test_keys_that_a_space_does_not_declare_are_dropped_with_one_warning(door: str) -> None:
    """At any depth; the warning names them all. A key that is missing stays an error, which names it."""
    with pytest.warns(UserWarning, match=r'declare obs\["more"\], obs\["b"\]\["d"\]: dropped') as caught:
        obs = DOORS[door](DECLARED, TOLD)
    assert len(caught) == 1
    assert obs.keys() == {"a", "b"}
    assert obs["b"].keys() == {"c"}
    less = {"a": 1, "more": "x", "b": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((av.SpaceMismatch, ExceptionGroup)) as caught_errors:
            DOORS[door](DECLARED, less)
    for error in getattr(caught_errors.value, "exceptions", [caught_errors.value]):
        assert isinstance(error, av.SpaceMismatch)
        assert """obs["b"]: missing keys ['c']""" in str(error)


def test_keys_that_change_all_the_time_are_not_warned_of_for_ever() -> None:
    """An env whose observations have new keys at every step: some warnings, and no memory that grows."""

    class Growing(Echo):
        def step(self, action: Any) -> Any:
            self.shown = {"a": 1, f"unit {len(self.seen)}": 0.0, **{f"part {i}": 0 for i in range(20)}}
            self.seen.append(1)
            return super().step(action)

        seen: list[int] = []  # noqa: RUF012

    async def main() -> int:
        space = spaces.Dict(a=spaces.Discrete(3))
        async with av.AsyncVecEnv(
            [partial(Growing, spaces.Discrete(2), space, {"a": 1})], backend="inline"
        ) as envs:
            await envs.reset()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(60):
                    await envs.step(np.zeros(1, np.int64))
            assert "and 13 more: dropped" in str(caught[0].message)
            return len(caught)

    assert 1 <= av.run(main()) <= 32


def test_vector_envs_behind_an_adapter_cast_and_take_actions_as_they_are() -> None:
    """Factories of VectorEnvs keep the same promises: float64 rows, float actions with whole values."""
    observed = spaces.Box(-9, 9, (2,), np.float32)
    with pytest.warns(UserWarning, match="is float64 where its space says float32: it is cast"):
        assert (
            _through(VectorEnv([partial(Chatty, observed, np.array([0.1, 0.2]))] * 2, backend="inline")).dtype
            == np.float32
        )
    envs = VectorEnv(
        [partial(Chatty, observed, np.zeros(2, np.float32))] * 2, num_workers=1, backend="inline"
    )
    envs.reset()
    assert envs.step([1.0, 0.0, 1.0, 0.0])[0].shape == (4, 2)
    envs.close()


def test_what_an_env_says_wrong_is_told_with_its_shape() -> None:
    """A reward of shape (1,) is a number in the wrong shape."""

    class Boxed(Echo):
        def step(self, action: Any) -> Any:
            obs, _, *rest = super().step(action)
            return obs, np.array([0.5]), *rest

    with pytest.raises(ExceptionGroup) as caught:
        av.run(_reset([partial(Boxed, spaces.Discrete(2))] * 2, backend="inline"))
    for error in caught.value.exceptions:
        assert isinstance(error, av.SpaceMismatch)
        assert "the reward: expected a number, got an array of shape (1,)" in str(error)


def test_the_state_of_wrappers_is_there_at_both_doors() -> None:
    """Read, merged over all envs, and put back."""
    for adapter in (VectorEnv, VecEnv):
        factories = [lambda: gym.wrappers.NormalizeObservation(Echo(spaces.Discrete(2)))] * 2
        envs: Any = adapter(factories, num_workers=1, backend="inline")
        envs.reset()
        state = envs.get_state()
        rms = state["NormalizeObservation"]["running statistics"]["obs_rms"]
        assert rms["count"] == pytest.approx(2, abs=1e-3)
        envs.set_state(state)
        kept = envs.get_state()  # in the precision of the envs' own
        envs.set_state(kept, frozen=True)
        envs.reset()
        assert envs.get_state() == kept
        for part in ("mean", "var", "count"):
            assert kept["NormalizeObservation"]["running statistics"]["obs_rms"][part] == pytest.approx(
                rms[part]
            )
        envs.close()


@pytest.mark.parametrize(
    "empty", [spaces.Dict({}), spaces.Tuple(()), spaces.Dict(a=spaces.Tuple(()))], ids=repr
)
def test_spaces_without_a_single_number(empty: Any) -> None:
    """An empty Dict or Tuple: nothing to see, and envs that are stepped all the same."""
    nothing = empty.sample()

    async def main() -> None:
        async with av.AsyncVecEnv(
            [partial(Echo, empty, empty, nothing)] * 3, num_workers=2, check="finite"
        ) as envs:
            assert (await envs.reset())[0] == nothing
            batch = await envs.step(envs.action_space.sample())
            assert batch.obs == nothing
            assert batch.infos["given"].tolist() == [typed(nothing)] * 3

    av.run(main())
