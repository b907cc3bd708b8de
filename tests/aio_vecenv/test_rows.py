"""What is in a batch: spaces of every kind there and back, infos, copies, autoreset, VectorEnv factories, calls."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

from aio_vecenv import AsyncVecEnv, BadActions, EnvError, SpaceMismatch
from aio_vecenv.core.assignment import Assignment
from aio_vecenv.core.infos import batch_infos
from aio_vecenv.core.layout import Slab, SpaceTree, exact, layout
from aio_vecenv.testing import StampEnv, check_aligned, stamp_envs
from aio_vecenv.testing.faults import ReusesBuffer

pytestmark = pytest.mark.alternate_loops

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


# -- spaces ------------------------------------------------------------------------------------------------------------

_dtypes = st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float64])
_boxes = st.builds(
    lambda shape, dtype: spaces.Box(0 if dtype == np.uint8 else -100, 100, tuple(shape), dtype),
    st.lists(st.integers(1, 3), max_size=3),
    _dtypes,
)
_fixed = st.one_of(
    _boxes,
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 5), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.just((2, 3)))),
)
_pickled = st.one_of(
    st.builds(spaces.Text, st.integers(1, 6)),
    st.builds(lambda n: spaces.Sequence(spaces.Discrete(n)), st.integers(1, 5)),
    st.builds(lambda n: spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(n)), st.integers(1, 3)),
    st.builds(lambda n: spaces.OneOf((spaces.Discrete(n), spaces.Box(0, 1, (2,)))), st.integers(1, 3)),
)
any_space: st.SearchStrategy[Any] = st.recursive(
    st.one_of(_fixed, _pickled),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, spaces.GraphInstance):
        return all(same(a, b) for a, b in zip(left, right))
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right))
    if left is None or right is None:
        return left is right
    if isinstance(left, float) and np.isnan(left):
        return isinstance(right, float) and bool(np.isnan(right))
    return bool(np.array_equal(np.asarray(left), np.asarray(right)))


def row_of(space: gym.Space[Any], batch: Any, row: int) -> Any:
    """One env's observation out of a batch."""
    if isinstance(space, spaces.Dict):
        return {key: row_of(sub, batch[key], row) for key, sub in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(row_of(sub, batch[i], row) for i, sub in enumerate(space))
    return batch[row]


class Sampler(gym.Env[Any, Any]):
    """Shows samples of a space, and remembers what it showed and what it was sent."""

    def __init__(
        self, observation: gym.Space[Any], action: gym.Space[Any] | None = None, seed: int = 0
    ) -> None:
        self.observation_space = observation
        self.action_space = action if action is not None else spaces.Discrete(2)
        observation.seed(seed)
        self.shown: list[Any] = []
        self.sent: list[Any] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.sent.append(action)
        return self.show(), 0.0, len(self.sent) % 3 == 0, False, {}

    def show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]


@given(
    any_space,
    st.sampled_from([AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]),
    st.sampled_from(["auto", False]),
)
@settings(max_examples=60, deadline=None)
def test_any_observation_arrives_unchanged(space: gym.Space[Any], mode: AutoresetMode, shared: Any) -> None:
    async def main() -> None:
        envs = AsyncVecEnv(
            [partial(Sampler, space, None, seed) for seed in (1, 2)],
            num_workers=1,
            backend="inline",
            autoreset=mode,
            shared_memory=shared,
        )
        async with envs:
            obs, _ = await envs.reset()
            seen: list[list[Any]] = [[row_of(space, obs, row)] for row in (0, 1)]
            for _ in range(4):
                batch = await envs.step(zeros(2))
                for row in (0, 1):
                    if mode is AutoresetMode.SAME_STEP and batch.terminations[row]:
                        seen[row].append(row_of(space, batch.final_obs, row))
                    seen[row].append(row_of(space, batch.obs, row))
            for row, shown in enumerate(await envs.get_attr("shown")):
                assert len(shown) == len(seen[row])
                assert all(same(a, b) for a, b in zip(shown, seen[row]))

    asyncio.run(main())


@given(any_space)
@settings(max_examples=60, deadline=None)
def test_any_action_arrives_unchanged(space: gym.Space[Any]) -> None:
    async def main() -> None:
        envs = AsyncVecEnv(
            [partial(Sampler, spaces.Discrete(3), space, seed) for seed in (1, 2)],
            num_workers=1,
            backend="inline",
            autoreset=AutoresetMode.DISABLED,
        )
        async with envs:
            await envs.reset()
            envs.action_space.seed(0)
            actions = envs.action_space.sample()
            await envs.step(actions)
            for row, sent in enumerate(await envs.get_attr("sent")):
                assert same(sent[0], row_of(space, actions, row))

    asyncio.run(main())


def nested() -> spaces.Dict:
    return spaces.Dict(
        {
            "image": spaces.Box(0, 255, (4, 4), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(5), spaces.Text(4))),
            "bits": spaces.MultiBinary(3),
            "many": spaces.MultiDiscrete([2, 3]),
            "list": spaces.Sequence(spaces.Discrete(3)),
        }
    )


@both
@pytest.mark.asyncio
async def test_a_nested_space_over_both_backends(backend: Backend) -> None:
    envs = AsyncVecEnv(
        [partial(Sampler, nested(), nested(), seed) for seed in range(4)], num_workers=2, backend=backend
    )
    async with envs:
        obs, _ = await envs.reset()
        assert obs["image"].shape == (4, 4, 4)
        assert obs["image"].dtype == np.uint8
        envs.action_space.seed(0)
        actions = envs.action_space.sample()
        batch = await envs.step(actions)
        shown, sent = await envs.get_attr("shown"), await envs.get_attr("sent")
        for row in range(4):
            assert same(shown[row][1], row_of(envs.single_observation_space, batch.obs, row))
            assert same(sent[row][0], row_of(envs.single_action_space, actions, row))
        envs.send(row_pick(envs.single_action_space, actions, [2, 0]), [2, 0])  # order of env_ids
        batch = await envs.recv()
        assert batch.env_ids.tolist() == [0, 2]
        for row, env_id in enumerate([0, 2]):
            (last,) = await envs.get_attr("sent", env_ids=[env_id])
            assert same(last[-1], row_of(envs.single_action_space, actions, env_id))
            (seen,) = await envs.get_attr("shown", env_ids=[env_id])
            assert same(seen[-1], row_of(envs.single_observation_space, batch.obs, row))


def row_pick(space: gym.Space[Any], batch: Any, rows: Sequence[int]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: row_pick(sub, batch[key], rows) for key, sub in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(row_pick(sub, batch[i], rows) for i, sub in enumerate(space))
    return batch[rows] if isinstance(batch, np.ndarray) else tuple(batch[row] for row in rows)


def test_shared_memory_true_insists() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="no fixed size"):
            await AsyncVecEnv.open(partial(Sampler, nested()), backend="inline", shared_memory=True)

    asyncio.run(main())


@given(_fixed, st.integers(1, 5), st.data())
@settings(max_examples=80, deadline=None)
def test_rows_of_the_block_do_not_overlap(space: gym.Space[Any], n: int, data: st.DataObject) -> None:
    tree = SpaceTree(spaces.Dict({"x": space, "y": spaces.Box(0, 1, (3,), np.float32)}))
    fields, size = layout(tree, tree, n, final_obs=True)
    assert size >= sum(field.size_bytes for field in fields)
    block = np.zeros(size, np.uint8)
    slab = Slab(block, fields, tree, tree)
    for name, array in slab.arrays.items():
        before = {other: a.copy() for other, a in slab.arrays.items() if other != name}
        array[...] = 1
        assert all((slab.arrays[other] == kept).all() for other, kept in before.items())


@given(
    st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float64]),
    st.one_of(
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=True, allow_infinity=True),
        st.booleans(),
        st.none(),
        st.text(max_size=2),
        st.lists(st.integers(-300, 300), min_size=1, max_size=2),
        st.builds(lambda d, v: np.array(v % 100, d), _dtypes, st.integers(0, 1000)),
    ),
)
def test_a_cast_never_loses_data(dtype: Any, value: Any) -> None:
    leaf = SpaceTree(spaces.Box(0, 100, (), dtype)).leaves[0]
    fitting = exact(leaf, value)
    if fitting is None:
        return
    column = np.zeros(1, dtype)
    with np.errstate(all="ignore"):
        column[0] = fitting
    given = np.asarray(value)
    if given.dtype.kind == "f" and not isinstance(value, np.ndarray):
        assert np.isnan(column[0]) == np.isnan(given)
        assert np.isinf(column[0]) == np.isinf(given)
    else:
        assert column[0] == given


# -- infos -------------------------------------------------------------------------------------------------------------

_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.one_of(st.integers(-(2**50), 2**50), st.just(2**70)),  # what a float64 holds, or an object must
        st.floats(),
        st.text(max_size=3),
        st.lists(st.one_of(st.integers(0, 5), st.lists(st.integers(0, 3), max_size=2)), max_size=3),
        st.builds(lambda n: np.arange(n), st.integers(0, 3)),
        st.builds(np.float32, st.floats(-5, 5)),
    ),
    lambda inner: st.dictionaries(st.sampled_from(["x", "y"]), inner, max_size=2),
    max_leaves=4,
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["a", "b", "final_obs"]), _values, max_size=3), min_size=1, max_size=4
    )
)
@settings(max_examples=300, deadline=None)
def test_any_infos_can_be_batched(infos: list[dict[str, Any]]) -> None:
    ids = np.arange(10, 10 + len(infos))
    batched = batch_infos(ids, {int(i): info for i, info in zip(ids, infos)})
    for row, info in enumerate(infos):
        for key, value in info.items():
            assert batched[f"_{key}"][row]
            if not isinstance(batched[key], dict):
                got = batched[key][row]
                assert same(got, value) or (isinstance(value, float) and np.isnan(value) and np.isnan(got))
    for key, mask in batched.items():
        if key.startswith("_"):
            assert mask.shape == (len(infos),)
            assert mask.tolist() == [key[1:] in info for info in infos]


def test_infos_are_batched_as_gymnasium_does() -> None:
    infos: list[dict[str, Any]] = [
        {"a": 1, "b": 2.5, "c": np.array([1, 2]), "d": {"e": "text"}, "f": True},
        {},
        {"a": 3, "c": np.array([3, 4]), "d": {"e": "other", "g": 1}},
    ]

    class Env(gym.Env[Any, Any]):
        observation_space = spaces.Discrete(2)
        action_space = spaces.Discrete(2)

    class Vec(gym.vector.VectorEnv[Any, Any, Any]):
        num_envs = 3

    vec = Vec()
    theirs: dict[str, Any] = {}
    for row, info in enumerate(infos):
        theirs = vec._add_info(theirs, info, row)
    ours = batch_infos(np.arange(3), dict(enumerate(infos)))

    def check(left: Any, right: Any) -> None:
        assert left.keys() == right.keys()
        for key in left:
            if isinstance(left[key], dict):
                check(left[key], right[key])
            else:
                assert left[key].dtype == right[key].dtype, key
                assert left[key].tolist() == right[key].tolist()

    check(ours, theirs)


@pytest.mark.parametrize(
    ("wanted", "middle", "edge"),
    [
        ("all", {"applied_version", "stamp"}, {"applied_version", "stamp"}),
        ("episode", set(), {"applied_version", "stamp"}),
        (["stamp"], {"stamp"}, {"stamp"}),
        ([], set(), set()),
    ],
)
@both
@pytest.mark.asyncio
async def test_the_info_filter_never_touches_task_and_final_info(
    backend: Backend, wanted: Any, middle: set[str], edge: set[str]
) -> None:
    async with AsyncVecEnv(stamp_envs(2, 3), num_workers=1, backend=backend, info=wanted) as envs:
        await envs.reset(seed=1)
        batch = await envs.step(zeros(2))
        assert {key for key in batch.infos if not key.startswith("_")} == middle
        await envs.step(zeros(2))
        batch = await envs.step(zeros(2))
        assert {key for key in batch.infos if not key.startswith("_")} == edge
        for episode in batch.episodes:
            assert episode.task["episode"] == 0
            assert episode.final_info["stamp"].tolist()[3] == 3
            assert "applied_version" in episode.final_info


# -- rows --------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_copy_true_is_the_callers_and_copy_false_a_view_until_the_next_send(backend: Backend) -> None:
    for copy in (True, False):
        async with AsyncVecEnv(stamp_envs(3, 9), num_workers=1, backend=backend, copy=copy) as envs:
            await envs.reset(seed=1)
            batch = await envs.step(zeros(3))
            kept = batch.obs.copy()
            later = await envs.step(zeros(3))
            assert (batch.obs == kept).all() == copy
            assert later.obs[:, 3].tolist() == [2, 2, 2]
            later.obs[:] = 0  # the caller may do so
            assert (await envs.step(zeros(3))).obs[:, 3].tolist() == [3, 3, 3]
    assert batch.rewards.tolist() == [1.0] * 3


@both
@pytest.mark.asyncio
async def test_v06_same_step_final_obs_of_an_env_that_reuses_its_buffers(backend: Backend) -> None:
    envs = AsyncVecEnv(
        [partial(ReusesBuffer, i, length=2) for i in range(2)],
        num_workers=1,
        backend=backend,
        autoreset=AutoresetMode.SAME_STEP,
    )
    async with envs:
        await envs.reset(seed=1)
        await envs.step(zeros(2))
        batch = await envs.step(zeros(2))
        assert batch.final_obs[:, 3].tolist() == [2, 2]
        assert batch.obs[:, 3].tolist() == [0, 0]
        assert batch.final_infos["stamp"][:, 3].tolist() == [2, 2]
        assert batch.infos["stamp"][:, 3].tolist() == [0, 0]
        assert [e.final_info["stamp"][3] for e in batch.episodes] == [2, 2]
        assert [e.task["episode"] for e in batch.episodes] == [0, 0]


@both
@pytest.mark.asyncio
async def test_seeds_and_options(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4, 2), num_workers=2, backend=backend) as envs:
        _, infos = await envs.reset(seed=10, options={"level": 3})
        assert infos["options"].tolist() == ["{'level': 3}"] * 4
        await envs.reset(seed=[7, None], env_ids=[3, 1])
        for _ in range(3):
            await envs.step(zeros(4))
        await envs.reset()
        assert await envs.get_attr("seeds") == (
            [10, None, None],
            [11, None, None, None],
            [12, None, None],
            [13, 7, None, None],
        )
        with pytest.raises(ValueError, match="2 seeds for 4"):
            await envs.reset(seed=[1, 2])


@both
@pytest.mark.asyncio
async def test_reset_rows_come_in_the_order_of_env_ids(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4, 2), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        obs, infos = await envs.reset(env_ids=[2, 0, 3])
        assert obs[:, 0].tolist() == [2, 0, 3]
        assert infos["stamp"][:, 0].tolist() == [2, 0, 3]


class _Numbered(gym.Env[Any, Any]):
    """Every leaf of its observation says which env it is of."""

    action_space = spaces.Box(-1, 1, (), np.float32)

    def __init__(self, env: int, space: gym.Space[Any]) -> None:
        self.env_index, self.observation_space = env, space
        self.bag: list[Any] = []
        self.actions: list[Any] = []

    def _value(self, space: gym.Space[Any]) -> Any:
        if isinstance(space, spaces.Tuple):
            return tuple(map(self._value, space))
        if isinstance(space, spaces.Text):
            return str(self.env_index)
        if isinstance(space, spaces.Sequence):
            return np.full((3, 1), self.env_index, np.float32)
        return np.full(space.shape or (), self.env_index, space.dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        if options:
            options["left"].pop()
            self.bag = options["left"]
        return self._value(self.observation_space), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return self._value(self.observation_space), 0.0, False, False, {}

    def add(self, value: Any) -> int:
        value.append(1)
        return len(value)


_BOX = spaces.Box(-9, 9, (1,), np.float32)


@pytest.mark.parametrize(
    ("space", "batch"),
    [
        (spaces.Tuple((spaces.Tuple((_BOX, _BOX)), _BOX)), [[[[2], [0], [1]]] * 2, [[2], [0], [1]]]),
        (spaces.Tuple((_BOX, spaces.Text(1))), [[[2], [0], [1]], ["2", "0", "1"]]),
        (spaces.Sequence(_BOX, stack=True), [[[2]] * 3, [[0]] * 3, [[1]] * 3]),
        (spaces.Text(1), ["2", "0", "1"]),
    ],
)
@both
@pytest.mark.asyncio
async def test_reset_orders_rows_not_leaves(backend: Backend, space: gym.Space[Any], batch: Any) -> None:
    def plain(value: Any) -> Any:
        return [plain(part) for part in value] if isinstance(value, (tuple, np.ndarray)) else value

    factories = [partial(_Numbered, i, space) for i in range(3)]
    async with AsyncVecEnv(factories, num_workers=1, backend=backend) as envs:
        await envs.reset()
        obs, _ = await envs.reset(env_ids=[2, 0, 1])
        assert plain(obs) == batch


@pytest.mark.parametrize("workers", [1, 2])
@both
@pytest.mark.asyncio
async def test_envs_of_one_worker_share_nothing_that_is_sent_to_them(backend: Backend, workers: int) -> None:
    """What comes back depends on nothing that another env did: the same for any number of workers."""
    factories = [partial(_Numbered, i, _BOX) for i in range(2)]
    async with AsyncVecEnv(factories, num_workers=workers, backend=backend) as envs:
        await envs.reset(options={"left": [1, 2, 3]})
        assert await envs.get_attr("bag") == ([1, 2], [1, 2])
        assert await envs.call("add", []) == (1, 1)
        seen: list[Any] = []

        def count(env: Any) -> int:
            seen.append(env)
            return len(seen)

        assert await envs.apply(count) == (1, 1)
        values: list[list[Any]] = [[], [[], []]]
        for value in values:
            await envs.set_attr("bag", value if value else {"n": []})
            await envs.apply(lambda env: (env.bag["n"] if isinstance(env.bag, dict) else env.bag).append(1))
            assert await envs.get_attr("bag") == (({"n": [1]},) * 2 if not value else ([1], [1]))


class _Bags(SyncVectorEnv):
    bag: Any = None

    def add(self, value: Any) -> int:
        value.append(1)
        return len(value)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        if options:
            options["left"].pop()
            self.bag = options["left"]
        return super().reset(seed=seed)


@both
@pytest.mark.asyncio
async def test_vector_envs_of_one_worker_share_nothing_either(backend: Backend) -> None:
    def make() -> _Bags:
        return _Bags([partial(StampEnv, 0, 9)] * 2)

    async with AsyncVecEnv([make, make], num_workers=1, backend=backend) as envs:
        await envs.reset(options={"left": [1, 2, 3]})
        assert await envs.get_attr("bag") == ([1, 2], [1, 2])
        assert await envs.call("add", []) == (1, 1)
        await envs.set_attr("bag", {"n": []})
        await envs.apply(lambda env: env.bag["n"].append(1))
        assert await envs.get_attr("bag") == ({"n": [1]}, {"n": [1]})


@pytest.mark.parametrize("workers", [1, 2])
@both
@pytest.mark.asyncio
async def test_whatever_pickles_travels(backend: Backend, workers: int) -> None:
    """Some of it cannot be copied."""
    keys = {"near": 1}.keys()
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=workers, backend=backend) as envs:
        _, infos = await envs.reset(options={"levels": keys, "module": np})
        assert all("dict_keys(['near'])" in text for text in infos["options"])
        assert await envs.apply(lambda env: (list(keys), np.__name__)) == ((["near"], "numpy"),) * 2
        await envs.set_attr("marker", keys)
        assert envs.statistics().restarts == 0


@both
@pytest.mark.asyncio
async def test_an_action_without_axes_keeps_its_dtype(backend: Backend) -> None:
    factories = [partial(_Numbered, i, _BOX) for i in range(2)]
    async with AsyncVecEnv(factories, num_workers=1, backend=backend) as envs:
        await envs.reset()
        await envs.step(np.array([0.25, 0.5], np.float32))
        envs.send(np.array([0.75], np.float32), [1])
        await envs.recv()
        actions = await envs.get_attr("actions")
    assert actions == ([0.25], [0.5, 0.75])
    assert {type(action).__name__ for row in actions for action in row} == {"float32"}


@both
@pytest.mark.asyncio
async def test_options_that_are_no_dict_are_not_sent(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        wrong: Any
        for wrong in ("hard", [1, 2]):
            with pytest.raises(TypeError, match=r"options is .*, not a dict; nothing was sent"):
                await envs.reset(options=wrong)
        assert (await envs.step(zeros(2))).obs[:, 3].tolist() == [1, 1]  # the episodes go on
        assert envs.statistics().restarts == 0


@both
@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_reset_discards_owed_rows_but_not_their_events(backend: Backend) -> None:
    factories = stamp_envs(2, lambda env, _: 1 if env == 0 else 5)
    async with AsyncVecEnv(factories, num_workers=2, backend=backend) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        envs.send(zeros(2))
        await envs.reset()
        outcomes = []
        for _ in range(stream.behind):
            event = await anext(stream)
            outcomes.append((event.env_id, getattr(event, "outcome", "began")))
        assert outcomes == [
            (0, "began"),
            (1, "began"),
            (0, "terminated"),
            (0, "began"),
            (1, "aborted"),
            (1, "began"),
        ]
        assert (await envs.step(zeros(2))).obs[:, 3].tolist() == [1, 1]


@pytest.mark.parametrize(
    "actions",
    [
        zeros(3),
        zeros(1),
        np.zeros((2, 1), np.int64),
        np.zeros(2, np.float64),
        np.array(["a", "b"]),
        [0, None],
        None,
        [[0], [1, 2]],
    ],
    ids=str,
)
@both
@pytest.mark.asyncio
async def test_v02_f33_bad_actions_send_nothing(backend: Backend, actions: Any) -> None:
    async with AsyncVecEnv(stamp_envs(2, 9), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        with pytest.raises(BadActions):
            await envs.step(actions)
        assert await envs.get_attr("actions") == ([], [])
        batch = await envs.step(np.array([7, 8]))
        assert batch.obs[:, 3].tolist() == [1, 1]
        assert await envs.get_attr("actions") == ([7], [8])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.asyncio
async def test_f33_actions_that_are_no_numbers(value: float) -> None:
    space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    async with AsyncVecEnv(partial(Sampler, space, space), 2, backend="inline") as envs:
        await envs.reset()
        actions = np.full((2, 2), value, np.float32)
        if np.isnan(value):
            with pytest.raises(BadActions, match="NaN"):
                envs.send(actions)
        with pytest.raises(BadActions):
            envs.send(np.zeros((2, 2), np.complex64))
        await envs.step(np.zeros((2, 2), np.float64))  # float64 into float32, as a policy gives it


@both
@pytest.mark.asyncio
async def test_bad_arguments(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(3), num_workers=1, backend=backend) as envs:
        with pytest.raises(BadActions, match="never reset"):
            envs.send(zeros(3))
        await envs.reset(seed=1)
        for ids in ([3], [-1], [0, 0], [], [0.5], [[0]]):
            with pytest.raises(ValueError, match="env_ids"):
                envs.send(zeros(len(ids)), ids)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="min_envs"):
            await envs.recv(min_envs=0)
        with pytest.raises(ValueError, match="apply"):
            envs.broadcast(1, apply="soon")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="cannot be pickled"):
            envs.broadcast({"a": threading.Lock()})
        assert envs.statistics().version == 0
        with pytest.raises(ValueError, match="values for 3 envs"):
            await envs.set_attr("length", [1, 2])
        with pytest.raises(TypeError, match="the arguments of 'echo'"):
            await envs.call("echo", threading.Lock())
        check_aligned(await envs.step(zeros(3)))


def test_constructor_arguments() -> None:
    for kwargs, match in [
        ({"num_workers": 0}, "num_workers"),
        ({"num_envs": 0}, "num_envs"),
        ({"backend": "threads"}, "backend"),
        ({"info": "some"}, "info"),
        ({"on_env_error": "ignore"}, "on_env_error"),
        ({"check": "nan"}, "check"),
        ({"spares": -1}, "spares"),
        ({"shared_memory": "yes"}, "shared_memory"),
    ]:
        with pytest.raises(ValueError, match=match):
            AsyncVecEnv("CartPole-v1", **kwargs)  # type: ignore[arg-type]
    with pytest.raises(gym.error.Error):
        AsyncVecEnv("NoSuchEnv-v0")
    for envs in (3, [], [None]):
        with pytest.raises(TypeError):
            AsyncVecEnv(envs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="factories"):
        AsyncVecEnv(stamp_envs(2), 3)


@pytest.mark.parametrize("workers", [1, 2])
@both
@pytest.mark.asyncio
async def test_spaces_that_differ(backend: Backend, workers: int) -> None:
    factories: list[Callable[[], Any]] = [partial(StampEnv, 0), partial(StampEnv, 1, width=5)]
    with pytest.raises(SpaceMismatch) as caught:
        await AsyncVecEnv.open(factories, num_workers=workers, backend=backend)
    assert caught.value.env_id == 1
    assert "(5,)" in str(caught.value)


# -- VectorEnv factories -----------------------------------------------------------------------------------------------


def vector(count: int, first: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> SyncVectorEnv:
    return SyncVectorEnv([partial(StampEnv, first + i, 3) for i in range(count)], autoreset_mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@both
@pytest.mark.asyncio
async def test_vector_env_factories(backend: Backend, mode: AutoresetMode) -> None:
    factories = [partial(vector, 3, 0, mode), partial(vector, 2, 3, mode)]
    async with AsyncVecEnv(factories, num_workers=2, backend=backend, autoreset=mode) as envs:
        assert envs.num_envs == 5
        stream = envs.events()
        obs, _ = await envs.reset(seed=4)
        assert obs[:, 0].tolist() == [0, 1, 2, 3, 4]
        ended = 0
        for _ in range(9):
            batch = await envs.step(zeros(5))
            if mode is AutoresetMode.NEXT_STEP:
                check_aligned(batch)
            ended += len(batch.episodes)
        assert ended == (10 if mode is AutoresetMode.NEXT_STEP else 15)
        assert stream.behind > ended
        with pytest.raises(BadActions, match="stepped together"):
            envs.send(zeros(1), [1])
        envs.send(zeros(2), [3, 4])
        assert (await envs.recv()).env_ids.tolist() == [3, 4]
        obs, _ = await envs.reset(env_ids=[1])
        assert obs[0, 0] == 1


@pytest.mark.asyncio
async def test_vector_env_with_another_autoreset_mode() -> None:
    with pytest.raises(EnvError, match="autoreset"):
        await AsyncVecEnv.open([partial(vector, 2, 0, AutoresetMode.DISABLED)], backend="inline")


@both
@pytest.mark.asyncio
async def test_vector_envs_that_cannot_lie_in_shared_memory(backend: Backend) -> None:
    with pytest.raises(ValueError, match="shared_memory=False, but rows of VectorEnvs"):
        await AsyncVecEnv.open([partial(vector, 2, 0)], backend=backend, shared_memory=False)
    number, text = spaces.Discrete(2), spaces.Text(3)
    for observation, action, what in (
        (spaces.Dict({"a": text}), number, r'observation space\["a"\]'),
        (number, text, "action space"),
    ):
        sampler = partial(Sampler, observation, action)
        with pytest.raises(ValueError, match=f"the {what} of a VectorEnv has no fixed size"):
            await AsyncVecEnv.open([lambda sampler=sampler: SyncVectorEnv([sampler])], backend=backend)


def cart_poles(count: int) -> Any:
    return gym.make_vec("CartPole-v1", num_envs=count, vectorization_mode="vector_entry_point")


@both
@pytest.mark.asyncio
async def test_a_vector_env_that_takes_one_seed_gets_that_of_its_first_row(backend: Backend) -> None:
    async with AsyncVecEnv([partial(cart_poles, 3)] * 2, num_workers=1, backend=backend) as envs:
        obs, _ = await envs.reset(seed=7)
        assert (obs == np.concatenate([cart_poles(3).reset(seed=s)[0] for s in (7, 10)])).all()
        with pytest.raises(ExceptionGroup, match="6 envs raised") as caught:
            await envs.reset(seed=[5, 3, 1, 6, 4, 2])
        assert "Seed must be a python integer" in str(caught.value.exceptions[0])
        await envs.reset()


@both
@pytest.mark.asyncio
async def test_a_vector_env_with_a_seed_per_row_gets_them_all(backend: Backend) -> None:
    async with AsyncVecEnv([partial(vector, 3, 0)], num_workers=1, backend=backend) as envs:
        await envs.reset(seed=4)
        await envs.reset(seed=[9, None, 2])
        await envs.reset(seed=[0, 8], env_ids=[1, 2])
        await envs.reset(seed=6, env_ids=[2])
        seeds = await envs.apply(lambda env: [one.unwrapped.seeds for one in env.envs])
        assert seeds == ([[4, 9], [5, None, 0], [6, 2, 8, 8]],)


class Told(SyncVectorEnv):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__([partial(StampEnv, i, 3) for i in range(2)])
        self.told: list[Any] = []
        self.speed = 1

    def on_broadcast(self, payload: Any, version: int) -> None:
        self.told.append((payload, version))


class Layer(VectorWrapper[Any, Any, Any, Any, Any]):
    """Adds nothing but a layer, and one attribute."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.depth = 1


@both
@pytest.mark.asyncio
async def test_updates_and_calls_reach_through_vector_wrappers(backend: Backend) -> None:
    async with AsyncVecEnv([lambda: Layer(Layer(Told()))], num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        envs.broadcast("news")
        await envs.step(zeros(2))
        assert await envs.get_attr("told") == ([("news", 1)],)
        await envs.set_attr("speed", 5)
        await envs.set_attr("depth", 2)
        await envs.set_attr("nobodys", 3)
        layers = lambda env: (env.env.env.speed, env.depth, env.env.depth, env.nobodys)  # noqa: E731
        assert await envs.apply(layers) == ((5, 2, 1, 3),)
        assert await envs.call("on_broadcast", "again", 2) == (None,)
        with pytest.raises(EnvError, match="'Layer' object has no attribute 'spede'"):
            await envs.get_attr("spede")


# -- calls -------------------------------------------------------------------------------------------------------------


class Wrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Adds nothing but a layer."""


def wrapped(env: int) -> gym.Env[Any, Any]:
    return Wrapper(Wrapper(StampEnv(env, 9)))


@both
@pytest.mark.asyncio
async def test_v16_set_attr_reaches_the_env_that_has_the_attribute(backend: Backend) -> None:
    async with AsyncVecEnv([partial(wrapped, i) for i in range(2)], num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        await envs.set_attr("length", 2)
        await envs.step(zeros(2))
        assert (await envs.step(zeros(2))).terminations.all()
        assert await envs.call("echo", value=5) == (5, 5)


@both
@pytest.mark.asyncio
async def test_v04_a_typo_in_get_attr_raises_and_leaves_everything_usable(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        with pytest.raises(ExceptionGroup) as caught:
            await envs.get_attr("lenght")
        for error in caught.value.exceptions:
            assert isinstance(error, EnvError)
            assert isinstance(error.__cause__, AttributeError)
        with pytest.raises(EnvError, match="lenght"):
            await envs.get_attr("lenght", env_ids=[1])
        assert await envs.get_attr("length") == (5, 5)
        check_aligned(await envs.step(zeros(2)))


@both
@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_v11_v13_calls_while_a_step_is_pending(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4, 99), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        for t in range(1, 6):
            envs.send(zeros(4))
            answers = await asyncio.gather(envs.call("echo", t), envs.get_attr("t", env_ids=[3]))
            assert answers[0] == (t, t, t, t)
            assert answers[1] == (t,)  # between two of its commands: after the one that was sent before
            assert (await envs.recv()).obs[:, 3].tolist() == [t] * 4


@both
@pytest.mark.asyncio
async def test_large_results_and_results_that_do_not_travel(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        big = await envs.call("echo", bytes(1 << 20))
        assert len(big[1]) == 1 << 20
        with pytest.raises(ExceptionGroup):
            await envs.get_attr("step.__self__.nothing")
        check_aligned(await envs.step(zeros(2)))


def test_a_column_that_becomes_one_of_objects_has_none_where_nothing_was() -> None:
    batched = batch_infos(np.arange(4), {1: {"a": 1}, 2: {"a": "x"}})
    assert batched["a"].tolist() == [None, 1, "x", None]
    assert batched["_a"].tolist() == [False, True, True, False]


class SubclassOfDict(dict[str, Any]):
    """As some wrappers return."""


class OddTypesEnv(StampEnv):
    """Gives what is right in another type than most envs."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, np.float32(reward), np.bool_(terminated), np.bool_(truncated), SubclassOfDict(info)


@both
@pytest.mark.asyncio
async def test_rows_of_unusual_types_are_as_any_other(backend: Backend) -> None:
    factories: list[Any] = [partial(OddTypesEnv, 0, 3), partial(StampEnv, 1, 3)]
    async with AsyncVecEnv(factories, num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        for _ in range(9):
            batch = await envs.step(np.zeros(2, np.int64))
            check_aligned(batch)
            assert batch.terminations[0] == batch.terminations[1]
            assert batch.infos["_stamp"].all()


@pytest.mark.parametrize("rows", [[1] * 6, [3, 3], [2, 4]])
def test_envs_are_dealt_alike_however_they_are_named(rows: list[int]) -> None:
    assignment = Assignment(rows)
    for ids in ([0, 1, 2, 3, 4, 5], [2, 3], [1, 2, 3, 4], [5], [0, 2, 5], [4, 1, 3]):
        named = [
            assignment.select(ids),
            assignment.select(np.array(ids)),
            assignment.select(np.array(ids, np.int32)),
        ]
        for selection in named:
            assert selection.env_ids.tolist() == sorted(ids)
            assert assignment.everyone[selection.rows].tolist() == sorted(ids)
            assert assignment.everyone[selection.given].tolist() == ids
            assert [e for part in selection.parts for e in part.env_ids.tolist()] == sorted(ids)
            for worker, mine, picked, local, _ in selection.parts:
                assert assignment.everyone[picked].tolist() == mine.tolist()
                whole = mine.tolist() == list(assignment.rows[worker])
                assert (local is None) == whole
                if local is not None:
                    assert (local + assignment.rows[worker].start).tolist() == mine.tolist()


class Shows(gym.Env[Any, Any]):
    """Its second observation is `shown`."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: gym.Space[Any], good: Any, shown: Any) -> None:
        self.observation_space, self._good, self._shown = space, good, shown

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._good, {}

    def step(self, action: Any) -> Any:
        return self._shown, 0.0, False, False, {}


GOOD = {"a": np.ones(2, np.float32), "b": 3, "c": np.zeros((2, 2), np.uint8), "d": "word"}
SHOWN: dict[str, Any] = {
    "as it should": GOOD,
    "numpy's int": {**GOOD, "b": np.int64(-4)},
    "another of numpy's": {**GOOD, "b": np.int8(-4)},
    "numpy's int for pictures": {**GOOD, "c": np.uint8(1)},
    "an int too large": {**GOOD, "b": 1 << 70},
    "a bool": {**GOOD, "b": True},
    "a float": {**GOOD, "b": 3.0},
    "float64": {**GOOD, "a": np.ones(2)},
    "a list": {**GOOD, "a": [1.0, 2.0]},
    "shape": {**GOOD, "a": np.ones(3, np.float32)},
    "NaN": {**GOOD, "a": np.array([1, np.nan], np.float32)},
    "negative": {**GOOD, "c": np.full((2, 2), -1)},
    "missing": {key: GOOD[key] for key in "acd"},
    "another": {**{key: GOOD[key] for key in "acd"}, "e": 1},
    "one more": {**GOOD, "e": 1},
    "no text": {**GOOD, "d": None},
    "a tuple": tuple(GOOD.values()),
    "numbers for keys": dict(enumerate(GOOD.values())),
    "None": None,
}


@pytest.mark.parametrize("nest", ["dict", "tuple"])
@pytest.mark.parametrize("case", SHOWN)
def test_the_quick_look_at_an_observation_and_the_closer_one_agree(
    monkeypatch: pytest.MonkeyPatch, case: str, nest: str
) -> None:
    """What comes of a row of several leaves, values, warnings and errors, is the same for both."""
    leaves = (
        spaces.Box(-9, 9, (2,), np.float32),
        spaces.Discrete(9, start=-4),
        spaces.Box(0, 255, (2, 2), np.uint8),
    )
    parts: dict[str, Any] = dict(zip("abcd", (*leaves, spaces.Text(9))))
    space: Any = spaces.Dict(parts) if nest == "dict" else spaces.Tuple(tuple(parts.values()))

    def nested(value: Any) -> Any:
        words = isinstance(value, dict) and "a" in value
        return tuple(value.values()) if nest == "tuple" and words else value

    async def outcome() -> Any:
        env = partial(Shows, space, nested(GOOD), nested(SHOWN[case]))
        async with AsyncVecEnv([env], backend="inline", check="finite") as envs:
            await envs.reset()
            try:
                batch = await envs.step(zeros(1))
            except (SpaceMismatch, EnvError) as error:
                return str(error).partition("the traceback")[0]
            return str(batch.obs), batch.rewards, batch.infos

    outcomes = []
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr("aio_vecenv.worker.rows._plain_leaves", lambda *_: None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            outcomes.append((asyncio.run(outcome()), [str(warning.message) for warning in said]))
    assert str(outcomes[0]) == str(outcomes[1])
