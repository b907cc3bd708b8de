"""What Gymnasium's own suite asks of `AsyncVectorEnv`, asked of our `VectorEnv`."""
# edge: real worker processes

from __future__ import annotations

import multiprocessing
import re
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_differing_spaces

import aio_vecenv as av
from aio_vecenv.adapters.gymnasium import VectorEnv, make_vec
from aio_vecenv.adapters.sb3 import VecEnv
from aio_vecenv.testing import ScriptedBackend, stamp_envs
from tests.adapters.envs import CountEnv, CustomSpaceEnv, Faulty, RandomEnv

CARTPOLE = partial(gym.make, "CartPole-v1")
MODES = list(AutoresetMode)

SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (3, 2), np.float32),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "discrete": spaces.Discrete(7, start=-2),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(5),
    "dict": spaces.Dict(a=spaces.Box(0, 1, (2,), np.float64), b=spaces.Dict(c=spaces.Discrete(3))),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32))),
    "text": spaces.Text(8),
    "nested text": spaces.Dict(words=spaces.Text(5), n=spaces.Discrete(3)),
    "sequence": spaces.Sequence(spaces.Discrete(4)),
    "oneof": spaces.OneOf((spaces.Discrete(3), spaces.Box(0, 1, (2,), np.float32))),
}


@pytest.fixture
def counters() -> Iterator[VectorEnv]:
    envs = VectorEnv([partial(CountEnv, 3 + i) for i in range(3)], num_workers=1)
    yield weakref.proxy(envs)  # pytest keeps what it is given until later than the leak check
    envs.close()


# -- the same transitions as Gymnasium's own ---------------------------------------------------------------------------


def _same(ours: Any, theirs: Any) -> bool:
    """Equal, and of the same structure and types of array."""
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(theirs, np.ndarray) and theirs.dtype == object:
        return ours.dtype == object and all(map(_same, ours, theirs))
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and bool((ours == theirs).all())
    return bool(ours == theirs)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize("kind", ["box", "discrete", "dict", "tuple", "multidiscrete", "text", "nested text"])
def test_the_first_1000_transitions_are_those_of_sync_vector_env(kind: str, mode: AutoresetMode) -> None:
    space = SPACES[kind]
    actions = space if kind in ("box", "discrete", "dict", "tuple", "multidiscrete") else None
    factories = [partial(RandomEnv, space, actions)] * 4
    backend: Any = "process" if kind in ("box", "discrete", "dict", "tuple") else "inline"
    ours = VectorEnv(factories, num_workers=1 + (kind == "dict"), autoreset_mode=mode, backend=backend)
    theirs = SyncVectorEnv(factories, autoreset_mode=mode)
    try:
        assert ours.observation_space == theirs.observation_space
        assert ours.single_observation_space == theirs.single_observation_space
        assert ours.action_space == theirs.action_space
        assert ours.single_action_space == theirs.single_action_space
        assert ours.metadata == theirs.metadata
        assert _same(ours.reset(seed=5), theirs.reset(seed=5))
        ours.action_space.seed(3)
        for _ in range(250):  # of 4 envs: 1,000 transitions
            action = ours.action_space.sample()
            mine, other = ours.step(action), theirs.step(action)
            assert _same(mine, other), (mine, other)
            if mode is AutoresetMode.DISABLED and (done := mine[2] | mine[3]).any():
                assert _same(
                    ours.reset(options={"reset_mask": done}), theirs.reset(options={"reset_mask": done})
                )
    finally:
        ours.close()


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_env_equal(shared_memory: bool, mode: AutoresetMode) -> None:
    ours = VectorEnv([CARTPOLE] * 4, shared_memory=shared_memory, autoreset_mode=mode, num_workers=2)
    theirs = SyncVectorEnv([CARTPOLE] * 4, autoreset_mode=mode)
    assert data_equivalence(ours.reset(seed=0), theirs.reset(seed=0))
    ours.action_space.seed(0)
    for _ in range(100):
        action = ours.action_space.sample()
        assert data_equivalence(ours.step(action), theirs.step(action))
    ours.close()
    theirs.close()


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("kind", SPACES)
def test_vector_obs_action_spaces(kind: str, shared_memory: bool) -> None:
    space = SPACES[kind]
    envs = VectorEnv([partial(RandomEnv, space)] * 3, shared_memory=shared_memory, backend="inline")
    obs, _ = envs.reset(seed=0)
    assert obs in envs.observation_space
    obs, *_ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space
    envs.close()


# -- spaces and modes --------------------------------------------------------------------------------------------------


def test_invalid_observation_mode() -> None:
    message = "Invalid `observation_mode`, expected: 'same' or 'different' or tuple of single and batch"
    with pytest.raises(ValueError, match=re.escape(message)):
        VectorEnv([CARTPOLE], observation_mode="invalid")
    with pytest.raises(TypeError, match="to be Spaces"):
        VectorEnv([CARTPOLE], observation_mode=(1, 2))  # type: ignore[arg-type]


def _boxes(*shapes_and_highs: tuple[int, float]) -> list[Any]:
    return [partial(RandomEnv, spaces.Box(0, high, (size,), np.float32)) for size, high in shapes_and_highs]


@pytest.mark.parametrize("workers", [1, 2])
def test_obs_mode_same_refuses_different_spaces(workers: int) -> None:
    message = "the sub-environments observation spaces are not equivalent. .*If this is intentional, use"
    with pytest.raises(RuntimeError, match=message):
        VectorEnv(_boxes((2, 1), (2, 2), (2, 3)), num_workers=workers, backend="inline")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("custom", [False, True])
def test_obs_mode_different_batches_different_bounds(custom: bool, workers: int) -> None:
    singles = [spaces.Box(0, high, (5,), np.float32) for high in (1, 2, 3)]
    batched = batch_differing_spaces(singles)
    envs = VectorEnv(
        [partial(RandomEnv, space) for space in singles],
        observation_mode=(batched, singles[0]) if custom else "different",
        num_workers=workers,
    )
    assert envs.observation_space == batched
    assert envs.single_observation_space == singles[0]
    envs.reset()
    obs, *_ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space
    envs.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "mode", ["different", (spaces.Box(0, 4, (3, 5), np.float32), spaces.Box(0, 4, (5,), np.float32))]
)
def test_obs_mode_different_refuses_different_shapes(mode: Any, workers: int) -> None:
    with pytest.raises(RuntimeError, match="do not share a common shape and dtype"):
        VectorEnv(
            _boxes((1, 1), (2, 1), (3, 1)), observation_mode=mode, num_workers=workers, backend="inline"
        )


def test_a_custom_single_space_must_fit_the_envs() -> None:
    mode = (spaces.Box(0, 4, (3, 5), np.float32), spaces.Box(0, 4, (5,), np.float32))
    with pytest.raises(RuntimeError, match="do not share a common shape and dtype"):
        VectorEnv(_boxes((2, 1), (2, 1)), observation_mode=mode, backend="inline")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["same", "different"])
def test_mixed_observation_spaces(mode: str, workers: int) -> None:
    kinds = [SPACES["box"], SPACES["discrete"], SPACES["dict"]]
    with pytest.raises(RuntimeError):
        VectorEnv(
            [partial(RandomEnv, kind) for kind in kinds],
            observation_mode=mode,
            num_workers=workers,
            backend="inline",
        )


def test_action_spaces_must_be_equal() -> None:
    kinds = [spaces.Discrete(2), spaces.Discrete(3)]
    with pytest.raises(RuntimeError, match="an action space different from"):
        VectorEnv([partial(RandomEnv, SPACES["box"], kind) for kind in kinds], backend="inline")


@pytest.mark.parametrize("shared_memory", [True, False])
def test_custom_spaces_travel_pickled(shared_memory: bool) -> None:
    envs = VectorEnv([CustomSpaceEnv] * 2, shared_memory=shared_memory)
    assert envs.reset()[0] == ("reset", "reset")
    assert isinstance(envs.action_space, spaces.Tuple)
    assert envs.step(("a", "b"))[0] == ("step(a)", "step(b)")
    envs.close()


def test_metadata_is_not_shared_between_envs() -> None:
    first = VectorEnv([CARTPOLE], autoreset_mode=AutoresetMode.NEXT_STEP, backend="inline")
    second = VectorEnv([CARTPOLE], autoreset_mode="SameStep", backend="inline")
    assert first.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert second.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert "autoreset_mode" not in gym.make("CartPole-v1").metadata
    first.close()
    second.close()


def test_constructor_arguments_without_a_meaning_are_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="cannot find context for 'knife'"):
        VectorEnv([CARTPOLE], context="knife")
    with pytest.raises(ValueError, match="A custom `worker` must accept 8 arguments"):
        VectorEnv([CARTPOLE], worker=lambda a: None)
    with pytest.raises(ValueError, match="cannot be used here"):
        VectorEnv([CARTPOLE], worker=lambda *args: None)
    for limit in (2.5, "2", 2.0):
        with pytest.raises(ValueError, match="`max_concurrency` must be an integer or None, got"):
            VectorEnv([CARTPOLE], max_concurrency=limit)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`max_concurrency` must be a positive or None, got"):
        VectorEnv([CARTPOLE], max_concurrency=0)
    envs = VectorEnv([CARTPOLE] * 3, daemon=False, max_concurrency=1)
    assert envs.native.num_workers == 1
    envs.close()


# -- resets, seeds, calls ----------------------------------------------------------------------------------------------


def test_seeds(counters: VectorEnv) -> None:
    counters.reset(seed=42)
    assert counters.np_random_seed == (42, 43, 44)
    counters.reset()
    assert counters.np_random_seed == (42, 43, 44)
    obs, _ = counters.reset(seed=[1, None, 3])
    assert obs.ravel().tolist() == [1, 0, 3]
    assert all(isinstance(one, np.random.Generator) for one in counters.np_random)
    with pytest.raises(ValueError, match="must match num_envs=3 but got length=2"):
        counters.reset(seed=[1, 2])


def test_partial_reset(counters: VectorEnv) -> None:
    counters.reset()
    counters.step([0, 0, 0])
    mask = np.array([True, False, False])
    options = {"reset_mask": mask, "level": 3}
    obs, infos = counters.reset(seed=[5, 6, 7], options=options)
    assert obs.ravel().tolist() == [5, 1, 1]
    assert infos == {}
    assert counters.get_attr("options") == ({"level": 3}, None, None)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        ([True, True, False], TypeError),
        (np.array([True]), ValueError),
        (np.array([[True, True, True]]), ValueError),
        (np.array([1, 1, 0]), TypeError),
        (np.array([False, False, False]), ValueError),
    ],
)
def test_partial_reset_failure(counters: VectorEnv, mask: Any, error: type[Exception]) -> None:
    counters.reset(options={"reset_mask": np.array([True, True, True])})
    with pytest.raises(error, match="reset_mask"):
        counters.reset(options={"reset_mask": mask})


def test_calls_attributes_and_rendering() -> None:
    envs = VectorEnv([partial(CountEnv, i, "rgb_array") for i in (1, 2)])
    assert envs.render_mode == "rgb_array"
    assert envs.call("add", 5, b=1) == (7, 8)
    assert envs.get_attr("max_count") == (1, 2)
    envs.set_attr("max_count", [8, 9])
    assert envs.get_attr("max_count") == (8, 9)
    envs.set_attr("max_count", 4)
    assert envs.get_attr("max_count") == (4, 4)
    with pytest.raises(ValueError, match="Got `3` values for 2 environments"):
        envs.set_attr("max_count", [1, 2, 3])
    frames = envs.render()
    assert frames is not None
    assert [frame.shape for frame in frames] == [(4, 6, 3), (4, 6, 3)]
    envs.call_async("add", 1)
    with pytest.raises(AlreadyPendingCallError):
        envs.call_async("add", 1)
    assert envs.call_wait() == (5, 5)
    with pytest.raises(NoAsyncCallError):
        envs.call_wait()
    for name in ("reset", "step", "close"):
        with pytest.raises(ValueError, match=f"use `{name}` directly"):
            envs.call(name)
    envs.close()


@pytest.mark.parametrize("copy", [True, False])
def test_copy(copy: bool) -> None:
    envs = VectorEnv([CountEnv] * 2, copy=copy)
    first, _ = envs.reset()
    kept = first.copy()
    second, *_ = envs.step([0, 0])
    assert (first == kept).all() == copy
    assert np.shares_memory(first, second) != copy
    envs.close()


# -- the two halves of a call ------------------------------------------------------------------------------------------


def test_reset_out_of_order(counters: VectorEnv) -> None:
    with pytest.raises(
        NoAsyncCallError, match="Calling `reset_wait` without any prior call to `reset_async`"
    ):
        counters.reset_wait()
    counters.reset()
    counters.step_async([0, 0, 0])
    with pytest.raises(AlreadyPendingCallError, match="pending call to `step` to complete"):
        counters.reset_async()
    with pytest.warns(UserWarning, match="Calling `close` while waiting for a pending call to `step`"):
        counters.close(terminate=True)


def test_step_out_of_order(counters: VectorEnv) -> None:
    with pytest.raises(ResetNeeded):
        counters.step([0, 0, 0])
    with pytest.raises(NoAsyncCallError, match="Calling `step_wait` without any prior call to `step_async`"):
        counters.step_wait()
    counters.reset_async(seed=1)
    with pytest.raises(AlreadyPendingCallError, match="pending call to `reset` to complete"):
        counters.step_async([0, 0, 0])
    with pytest.warns(UserWarning, match="Calling `close` while waiting for a pending call to `reset`"):
        counters.close(terminate=True)


def test_the_two_halves_give_what_the_whole_gives(counters: VectorEnv) -> None:
    counters.reset_async(seed=1)
    obs, infos = counters.reset_wait(timeout=20)
    assert obs.ravel().tolist() == [1, 2, 3]
    assert infos == {}
    counters.step_async([2, 3, 4])
    obs, rewards, *_ = counters.step_wait(timeout=20)
    assert obs.ravel().tolist() == [2, 3, 4]
    assert rewards.tolist() == [2.0, 3.0, 4.0]


def test_already_closed(counters: VectorEnv) -> None:
    counters.reset()
    counters.close()
    counters.close()
    assert counters.closed
    for call in (
        counters.reset,
        counters.reset_wait,
        counters.step_wait,
        counters.call_wait,
        counters.render,
        partial(counters.step, [0, 0, 0]),
        partial(counters.step_async, [0, 0, 0]),
        partial(counters.get_attr, "max_count"),
        partial(counters.set_attr, "max_count", 1),
        partial(counters.call_async, "add", 1),
    ):
        with pytest.raises(ClosedEnvironmentError, match=r"after a call to `close\(\)`"):
            call()
    with pytest.raises(av.ClosedError):
        counters.broadcast(1)


def test_a_failing_factory_raises_its_own_exception() -> None:
    with pytest.raises(ValueError, match="no room"):
        VectorEnv([CountEnv, partial(_no_room, 1)])


def _no_room(n: int) -> Any:
    raise ValueError("no room")


@pytest.mark.parametrize("terminate", [True, False])
def test_close_with_a_limit_ends_a_stuck_worker(tmp_path: Any, terminate: bool) -> None:
    envs = VectorEnv([partial(Faulty, str(tmp_path / "never"))] * 2, num_workers=1)
    envs.reset()
    envs.step_async([4, 0])
    with pytest.raises(multiprocessing.TimeoutError):
        envs.step_wait(timeout=0.01)
    envs.close(timeout=0.05, terminate=terminate)


# -- errors of envs ----------------------------------------------------------------------------------------------------


def test_an_env_error_in_reset_keeps_its_type() -> None:
    envs = VectorEnv([Faulty] * 2)
    envs.reset(seed=[0, 0])
    with (
        pytest.warns(UserWarning, match="ERROR") as caught,
        pytest.raises(ValueError, match="Error in reset"),
    ):
        envs.reset(seed=[13, 0])
    texts = [str(one.message) for one in caught]
    assert len(texts) == 3
    assert "Received the following error from env 0, which now waits for a reset" in texts[0]
    assert 'raise ValueError("Error in reset")\nValueError: Error in reset' in texts[1]
    assert "Raising the last exception back to the main process." in texts[2]
    assert envs.reset(seed=1)[0].ravel().tolist() == [1, 2]
    envs.close()


def test_env_errors_in_step_raise_the_last_and_leave_the_others() -> None:
    envs = VectorEnv([Faulty] * 3, num_workers=2)
    envs.reset()
    with (
        pytest.warns(UserWarning, match="ERROR") as caught,
        pytest.raises(ValueError, match="Error in step with 1 at 100%"),
    ):
        envs.step([0, 1, 1])
    assert len(caught) == 5
    with pytest.raises(av.BadActions, match="env 1 raised ValueError in step"):
        envs.step([0, 0, 0])
    obs, _ = envs.reset(options={"reset_mask": np.array([False, True, True])})
    assert obs.ravel().tolist() == [1, 0, 0]
    assert envs.step([0, 0, 0])[0].ravel().tolist() == [2, 1, 1]
    envs.close()


# -- make_vec ----------------------------------------------------------------------------------------------------------


def test_make_vec() -> None:
    envs = make_vec("CartPole-v1", 3, num_workers=1, autoreset_mode="SameStep", max_episode_steps=7)
    assert repr(envs) == "VectorEnv(CartPole-v1, num_envs=3)"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert [spec.max_episode_steps for spec in envs.get_attr("spec")] == [7, 7, 7]
    envs.close()
    envs = av.make_vec(
        gym.spec("CartPole-v1"), wrappers=[wrappers.FlattenObservation, wrappers.TimeAwareObservation]
    )
    assert envs.reset()[0].shape == (1, 5)
    envs.close()
    with pytest.raises(gym.error.NameNotFound):
        make_vec("NoSuchEnv-v0", 2)
    with pytest.raises(gym.error.Error, match="Invalid id type"):
        make_vec(7, 2)  # type: ignore[arg-type]


def test_the_spec_of_make_vec_says_how_it_was_made() -> None:
    given: dict[str, Any] = {"render_mode": "rgb_array", "wrappers": (wrappers.TimeAwareObservation,)}
    envs = make_vec("CartPole-v1", 2, num_workers=1, backend="inline", **given)
    theirs = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync", **given)
    assert envs.spec is not None
    assert theirs.spec is not None
    options = {"num_workers": 1, "backend": "inline"}
    assert {**envs.spec.kwargs, "vectorization_mode": "sync"} == {
        **theirs.spec.kwargs,
        "vector_kwargs": options,
    }
    for spec in (envs.spec, theirs.spec):
        again = make_vec(spec, backend="inline")
        assert (again.num_envs, again.render_mode, again.single_observation_space.shape) == (
            2,
            "rgb_array",
            (5,),
        )
        again.close()
    assert gym.spec("CartPole-v1").kwargs == {}
    envs.close()
    theirs.close()
    one = make_vec("CartPole-v1", backend="inline", max_episode_steps=7)
    assert one.spec is not None
    again = make_vec(one.spec, backend="inline")
    again.reset(seed=0)
    again.close()
    assert one.spec is not None
    assert one.spec.kwargs == {"max_episode_steps": 7, "vector_kwargs": {"backend": "inline"}}
    one.close()


def _counting(**kwargs: Any) -> CountEnv:
    return CountEnv(**kwargs)


def test_make_vec_as_a_vector_entry_point() -> None:
    entry_point = partial(av.make_vec, "Counting-v0")
    gym.register("Counting-v0", _counting, vector_entry_point=entry_point, max_episode_steps=9)
    try:
        envs = gym.make_vec("Counting-v0", 2, num_workers=1, max_count=5)
        assert isinstance(envs, VectorEnv)
        assert envs.get_attr("max_count") == (5, 5)
        assert envs.spec is not None
        assert envs.spec.id == "Counting-v0"
        envs.reset()
        envs.close()
    finally:
        del gym.registry["Counting-v0"]


# -- wrappers ----------------------------------------------------------------------------------------------------------

WRAPPERS: dict[str, Any] = {
    "RecordEpisodeStatistics": wrappers.vector.RecordEpisodeStatistics,
    "NormalizeObservation": wrappers.vector.NormalizeObservation,
    "NormalizeReward": wrappers.vector.NormalizeReward,
    "DictInfoToList": wrappers.vector.DictInfoToList,
    "ClipReward": partial(wrappers.vector.ClipReward, min_reward=0, max_reward=0.5),
    "TransformReward": partial(wrappers.vector.TransformReward, func=lambda r: 2 * r),
    "FlattenObservation": wrappers.vector.FlattenObservation,
    "TransformObservation": partial(wrappers.vector.TransformObservation, func=lambda obs: obs * 2),
    "DtypeObservation": partial(wrappers.vector.DtypeObservation, dtype=np.float64),
    "TransformAction": partial(wrappers.vector.TransformAction, func=lambda action: action),
    "VectorizeTransformObservation": partial(
        wrappers.vector.VectorizeTransformObservation,
        wrapper=wrappers.TransformObservation,
        func=lambda obs: obs + 1,
        observation_space=spaces.Box(-9, 9, (4,), np.float32),
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_give_what_they_give_on_sync_vector_env(name: str) -> None:
    ours = WRAPPERS[name](VectorEnv([CARTPOLE] * 2, backend="inline"))
    theirs = WRAPPERS[name](SyncVectorEnv([CARTPOLE] * 2))
    try:
        assert str(ours.reset(seed=1)) == str(theirs.reset(seed=1))
        for step in range(40):
            action = np.array([step % 3 == 0, step % 2], np.int64)
            mine, other = ours.step(action), theirs.step(action)
            for item in (mine, other):  # the time that an episode took
                item[4].get("episode", {}).pop("t", None) if isinstance(item[4], dict) else None
            assert str(mine) == str(other)
    finally:
        ours.close()
        theirs.close()


def test_a_call_that_cannot_be_sent_leaves_a_pending_reset_pending() -> None:
    envs = VectorEnv(stamp_envs(2, 50), num_workers=1)
    try:
        envs.reset(seed=1)
        envs.reset_async(seed=3)
        with pytest.raises(TypeError, match="cannot be pickled"):
            envs.call("echo", threading.Lock())
        obs, _ = envs.reset_wait()
        assert obs[:, 3].tolist() == [0, 0]
    finally:
        envs.close()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("copy", [True, False])
def test_the_last_observation_of_a_lost_worker_is_the_one_that_was_seen(copy: bool, steps: int) -> None:
    """SAME_STEP: nobody saw how the episode ended; without copies, too."""
    backend = ScriptedBackend(automatic=True)
    envs = VectorEnv(stamp_envs(2, 50), num_workers=1, copy=copy, autoreset_mode="SameStep", backend=backend)
    try:
        for _ in range(2):  # the new one's first observation is of its first episode
            obs, _ = envs.reset(seed=1)
        for _ in range(steps):
            obs, *_ = envs.step(np.zeros(2, np.int64))
        seen = obs.tolist()
        backend.lose(0)
        _, _, _, truncations, infos = envs.step(np.zeros(2, np.int64))
        assert truncations.all()
        assert [last.tolist() for last in infos["final_obs"]] == seen
    finally:
        envs.close()


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_native_is_as_documented_inside_an_adapter(backend: Any) -> None:
    """Its infos are Gymnasium's, whatever shape the adapter gives them."""
    factories: list[Any] = stamp_envs(3, 1)
    adapters: list[VectorEnv | VecEnv] = [
        VectorEnv(factories, num_workers=2, backend=backend, autoreset_mode="SameStep"),
        VecEnv(factories, num_workers=2, backend=backend),
    ]
    for envs in adapters:
        try:
            envs.reset()
            envs.step(np.zeros(3, np.int64))
            obs, infos = envs._session.run(envs.native.reset(env_ids=[2, 0], seed=3))
            assert obs[:, 0].tolist() == infos["stamp"][:, 0].tolist() == [2, 0]
            batch = envs._session.run(envs.native.step(np.zeros(3, np.int64)))
            assert batch.infos["_stamp"].all()
            assert batch.final_infos["stamp"][:, 3].tolist() == [1, 1, 1]
            with pytest.raises(av.EnvError):
                envs._session.run(envs.native.call("nothing", env_ids=[1]))
            envs.step(np.zeros(3, np.int64))
        finally:
            envs.close()


def test_workers_are_renewed_where_no_env_waits_for_another() -> None:
    """Every end is followed by one row of a reset, as ever."""
    with pytest.raises(ValueError, match=r"renew_after with 2 envs in 1 workers: .* num_workers='per env'"):
        VectorEnv([CARTPOLE] * 2, num_workers=1, renew_after=1)
    envs = VectorEnv(stamp_envs(2, 2), num_workers="per env", renew_after=1, restart=None)
    envs.reset(seed=1)
    steps = 0
    while (
        envs.native.statistics().renewals < 2
    ):  # one worker after the other, once the old process has closed
        steps += 1
        obs, _, terminations, _, _ = envs.step(np.zeros(2, np.int64))
        assert (obs[:, 3] == steps % 3).all()
        assert (terminations == (steps % 3 == 2)).all()
    assert steps >= 6
    envs.close()
