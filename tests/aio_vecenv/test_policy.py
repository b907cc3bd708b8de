"""Policies: blocks give the same bits for any cut, everything returned is checked, faults are named."""
# edge: real workers where bits are compared with theirs; else without a loop

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import aio_vecenv as av
from aio_vecenv.blas import _openblas, same_threads_as_workers
from aio_vecenv.core import framing as wire
from aio_vecenv.core.assignment import assign
from aio_vecenv.core.policy import BLOCK, PolicyRunner, rows_in_blocks
from aio_vecenv.testing import check_policy

from .envs import TwoTowers, weights

pytestmark = pytest.mark.alternate_loops

OBS = spaces.Box(-np.inf, np.inf, (4,), np.float32)
ACTIONS = spaces.Discrete(2)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "runtime.md"
Arrays = dict[str, NDArray[Any]]


class Einsum(TwoTowers):
    """The same by einsum, whose bits depend on the layout of its operands; BLAS copies some layouts first."""

    def through(self, layers: list[NDArray[np.float32]], x: NDArray[Any]) -> NDArray[np.float32]:
        for layer in layers[:-1]:
            x = np.tanh(np.einsum("ni,io->no", x, layer))
        out: NDArray[np.float32] = np.einsum("ni,io->no", x, layers[-1])
        return out


def rows_of(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    noise = rng.standard_exponential((count, 2), dtype=np.float32)
    return rng.standard_normal((count, 4), dtype=np.float32), noise


def runner(policy: Any, **kwargs: Any) -> PolicyRunner:
    return PolicyRunner(wire.dumps(policy), OBS, ACTIONS, **kwargs)


def act(one: PolicyRunner, env_ids: Any, obs: Any, noise: Any) -> Arrays:
    rows = rows_in_blocks(env_ids)
    actions, outputs = one.empty(len(rows.env_ids))
    one.act(rows, [obs], noise, actions, outputs)
    return {"actions": actions[0], **outputs}


def differ(left: Arrays, right: Arrays) -> bool:
    return any((left[key] != right[key]).any() for key in left)


def joined(parts: list[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


# -- blocks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    num_envs=st.integers(1, 70),
    workers=st.sampled_from([1, 2, 3, 5]),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bits_do_not_depend_on_how_envs_are_cut(
    num_envs: int, workers: int, transposed: bool, seed: int
) -> None:
    policy = TwoTowers(weights(seed, transposed=transposed))
    obs, noise = rows_of(num_envs, seed)
    whole = act(runner(policy), range(num_envs), obs, noise)
    cut = [run for run in assign(num_envs, min(workers, num_envs)) if len(run)]
    parts = [act(runner(policy), run, obs[run.start : run.stop], noise[run.start : run.stop]) for run in cut]
    assert not differ(whole, joined(parts))
    shuffled = np.random.default_rng(seed).permutation(num_envs)
    # all envs of a block in another order, and some of them
    for order in (shuffled, shuffled[: num_envs // 2 + 1]):
        some = act(runner(policy), order, obs[order], noise[order])
        assert not differ({key: column[order] for key, column in whole.items()}, some)


def test_without_blocks_they_would() -> None:
    policy = TwoTowers(weights())
    obs, noise = rows_of(70)

    def bare(run: range) -> Arrays:
        actions, outputs = policy.act(obs[run.start : run.stop], noise[run.start : run.stop])
        return {"actions": actions, **outputs}

    whole = bare(range(70))
    if not any(differ(whole, joined([bare(run) for run in assign(70, n)])) for n in (2, 3, 5, 70)):
        pytest.skip("on this machine products of matrices have the same bits for any number of rows")


def test_the_layout_of_parameters_is_what_a_pickle_makes_of_it() -> None:
    """The caller's matrices may be views with steps; the parent acts with the copy that workers get, too."""
    big = [np.repeat(np.repeat(w, 2, 0), 2, 1) for w in weights()]
    views = [w[::2, ::2] for w in big]
    obs, noise = rows_of(BLOCK)
    one, other = runner(Einsum(weights())), runner(Einsum(weights(1)))
    for version, params in enumerate((views, weights(transposed=True), weights()), 1):
        pickled = wire.dumps(params)
        one.load(version, pickled)
        other.load(version, pickled)
        assert one.version == version
        assert not differ(act(one, range(BLOCK), obs, noise), act(other, range(BLOCK), obs, noise))
    plain, turned = Einsum(weights()), Einsum(weights(transposed=True))
    if (plain.act(obs, noise)[1]["value"] == turned.act(obs, noise)[1]["value"]).all():
        pytest.skip("on this machine einsum has the same bits for any layout")


def test_full_blocks_are_what_is_asked_and_copies_fill_the_rest() -> None:
    seen: list[NDArray[Any]] = []

    class Watches(TwoTowers):
        def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
            assert obs.flags.c_contiguous
            assert len(obs) == len(noise) == BLOCK
            seen.append(obs.copy())
            return super().act(obs, noise)

    one = runner(TwoTowers(weights()))
    one._policy = Watches(weights())
    obs, noise = rows_of(30)
    act(one, range(5, 35), obs, noise)
    assert len(seen) == 3
    assert (seen[0][5:] == obs[:11]).all()
    assert (seen[0][:5] == obs[0]).all()
    assert (seen[1] == obs[11:27]).all()
    assert (seen[2][:3] == obs[27:]).all()
    assert (seen[2][3:] == obs[27]).all()


@pytest.mark.asyncio
async def test_dict_observations_and_actions_come_as_their_spaces_say() -> None:
    class Copies(TwoTowers):
        noise: Any = (2, np.float64)

        def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
            return np.zeros((*rows, 2))

        outputs: Any = {"twice": ((2,), np.float64)}  # noqa: RUF012

        def act(self, obs: Any, noise: NDArray[Any]) -> tuple[Any, Any]:
            place = obs.pop("place")  # what a policy does to its dict is gone with it
            action = {"go": place % 3, "how": (obs["x"][:, :1].astype(np.float32).clip(-1, 1),)}
            obs["x"] *= 2
            return action, {"twice": obs["x"]}

    observation = spaces.Dict({"place": spaces.Discrete(9), "x": spaces.Box(-9, 9, (2,), np.float64)})
    action = spaces.Dict(
        {"go": spaces.Discrete(3), "how": spaces.Tuple((spaces.Box(-1, 1, (1,), np.float32),))}
    )

    class Env(gym.Env[Any, Any]):
        observation_space, action_space = observation, action

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            observation.seed(seed)
            return observation.sample(), {}

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            return observation.sample(), 0.0, False, False, {}

    policy = Copies([])
    check_policy(policy, observation, action)
    async with av.AsyncVecEnv(Env, 20, num_workers=2, policy=policy) as envs:
        obs, _ = await envs.reset(seed=3)
        for _ in range(3):
            actions, outputs = envs.act(obs, np.zeros((20, 2)))
            assert (outputs["twice"] == 2 * obs["x"]).all()
            assert (actions["go"] == obs["place"] % 3).all()
            obs = (await envs.step(actions)).obs


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["process", "inline"])
@pytest.mark.asyncio
async def test_single_steps_with_the_policy_in_the_parent(backend: Literal["process", "inline"]) -> None:
    """Versions count what was loaded; rows of some envs have the bits of the same rows of all."""
    policy, rng = TwoTowers(weights()), np.random.default_rng(0)
    async with av.AsyncVecEnv("CartPole-v1", 37, num_workers=2, backend=backend, policy=policy) as envs:
        obs, _ = await envs.reset(seed=7)
        before = envs.act(obs, np.ones((37, 2), np.float32))[1]["value"]
        policy.params[0][:] = 0  # its copy is its own
        assert (envs.act(obs, np.ones((37, 2), np.float32))[1]["value"] == before).all()
        assert [envs.set_policy(weights(seed)) for seed in (1, 2)] == [1, 2]
        assert (envs.act(obs, np.ones((37, 2), np.float32))[1]["value"] != before).all()
        for _ in range(30):
            noise = policy.draw(rng, (37,))
            actions, outputs = envs.act(obs, noise)
            some = rng.permutation(37)[:11]
            few, said = envs.act(obs[some], noise[some], some)
            assert (few == actions[some]).all()
            assert all((said[key] == outputs[key][some]).all() for key in outputs)
            obs = (await envs.step(actions)).obs
    with pytest.raises(av.ClosedError):
        envs.act(obs, noise)


@pytest.mark.parametrize("hidden", [64, 512])
@pytest.mark.asyncio
async def test_the_parent_acts_with_the_bits_of_a_worker(
    hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the parent's BLAS would compute with several threads, and cut its products elsewhere."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    pickled, params = wire.dumps(TwoTowers(weights(hidden=hidden))), wire.dumps(weights(3, hidden))
    obs, noise = rows_of(48)

    def in_worker(env: Any) -> tuple[Arrays, int]:
        one = PolicyRunner(pickled, OBS, ACTIONS)
        one.load(1, params)
        calls = _openblas()
        return act(one, range(48), obs, noise), calls[0]() if calls else 1

    calls = _openblas()
    threads = calls[0]() if calls else 0
    async with av.AsyncVecEnv(
        "CartPole-v1", 48, num_workers=2, policy=TwoTowers(weights(hidden=hidden))
    ) as envs:
        assert envs.set_policy(weights(3, hidden)) == 1
        actions, outputs = envs.act(obs, noise)
        (theirs, their_threads), *_ = await envs.apply(in_worker, env_ids=[0])
    assert not differ({"actions": actions, **outputs}, theirs)
    assert their_threads == 1
    if calls:
        assert calls[0]() == threads, "the number of threads was not put back"
        with same_threads_as_workers():
            assert calls[0]() == 1
        assert calls[0]() == threads


@pytest.mark.asyncio
async def test_a_load_that_fails_leaves_the_version_before() -> None:
    class Picky(TwoTowers):
        def load(self, params: Any) -> None:
            self.params = [np.zeros((4, 1), np.float32)] * 6
            if len(params) != 6:
                raise ValueError(f"{len(params)} arrays, not 6")
            super().load(params)

    obs, noise = rows_of(2)
    async with av.AsyncVecEnv("CartPole-v1", 2, backend="inline", policy=Picky(weights())) as envs:
        for version, last in ((0, weights()), (1, weights(1))):
            if version:
                assert envs.set_policy(last) == version
            before = envs.act(obs, noise)[1]["value"]
            with pytest.raises(
                av.PolicyError, match=r"version .*\) raised ValueError: 1 arrays, not 6 in load"
            ) as failed:
                envs.set_policy(weights()[:1])
            assert isinstance(failed.value.__cause__, ValueError)
            assert (failed.value.op, failed.value.type_name) == ("load", "ValueError")
            with pytest.raises(TypeError, match=r"params\[1\] cannot be pickled"):
                envs.set_policy([1, (x for x in [0])])
            assert (envs.act(obs, noise)[1]["value"] == before).all()


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obs", "noise", "says"),
    [
        (np.zeros((3, 4), np.float32), np.zeros((3, 3), np.float32), r"noise: expected float32 \(3, 2\), got float32"),
        (np.zeros((3, 4), np.float32), np.zeros((3, 2)), r"noise: expected float32 \(3, 2\), got float64"),
        (np.zeros((3, 4), np.float32), None, r"noise: expected float32 \(3, 2\), got NoneType"),
        (np.zeros((2, 4), np.float32), np.zeros((3, 2), np.float32), r"obs: .* float32 \(3, 4\), got float32 \(2, 4\)"),
        (np.zeros((3, 4)), np.zeros((3, 2), np.float32), r"obs: expected float32 \(3, 4\), got float64"),
        ([0.0], np.zeros((3, 2), np.float32), r"obs: expected float32 \(3, 4\), got list"),
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_what_the_caller_gives_is_checked(obs: Any, noise: Any, says: str) -> None:
    async with av.AsyncVecEnv("CartPole-v1", 3, backend="inline", policy=TwoTowers(weights())) as envs:
        with pytest.raises(av.BadActions, match=says):
            envs.act(obs, noise)
        with pytest.raises(ValueError, match="there are envs 0 to 2"):
            envs.act(*rows_of(1), [3])


@pytest.mark.asyncio
async def test_without_a_policy_there_is_nothing_to_act() -> None:
    envs = av.AsyncVecEnv("CartPole-v1", 2, backend="inline", policy=TwoTowers(weights()))
    with pytest.raises(av.ClosedError):
        envs.set_policy(weights())
    async with av.AsyncVecEnv("CartPole-v1", 2, backend="inline") as envs:
        for call in (lambda: envs.act(*rows_of(2)), lambda: envs.set_policy(weights())):
            with pytest.raises(ValueError, match=r"without a policy: construct the vec env with policy="):
                call()


@pytest.mark.asyncio
async def test_a_policy_may_be_made_once_the_spaces_are_known() -> None:
    """A function of the two spaces: its policy acts, is checked as one that was given, and may be none."""
    seen: list[Any] = []

    def make(observation: Any, action: Any) -> Any:
        seen.append((observation, action))
        return TwoTowers(weights())

    async with av.AsyncVecEnv("CartPole-v1", 2, backend="inline", policy=make) as envs:
        assert seen == [(envs.single_observation_space, envs.single_action_space)]
        assert envs.act(*rows_of(2))[0].shape == (2,)
    async with av.AsyncVecEnv("CartPole-v1", 2, backend="inline", policy=lambda o, a: None) as envs:
        with pytest.raises(ValueError, match="without a policy"):
            envs.act(*rows_of(2))
    with pytest.raises(av.PolicyError, match="declares noise = 2"):
        async with av.AsyncVecEnv("CartPole-v1", 2, backend="inline", policy=lambda o, a: changed(noise=2)):
            pass


@pytest.mark.asyncio
async def test_a_space_without_a_fixed_size_is_refused_at_opening() -> None:
    class Words(gym.Env[Any, Any]):
        observation_space = spaces.Dict({"x": OBS, "said": spaces.Text(5)})
        action_space = ACTIONS

    with pytest.raises(ValueError, match=r'no policy for the observation space\["said"\]: Text'):
        async with av.AsyncVecEnv(Words, 2, backend="inline", policy=TwoTowers(weights())):
            pass


def changed(**attributes: Any) -> Any:
    policy: Any = TwoTowers(weights())
    for name, value in attributes.items():
        setattr(policy, name, value)
    return policy


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (object(), r"the policy object has no method act\(\)"),
        (changed(load=None), r"no method load\(\)"),
        (changed(draw=3), r"no method draw\(\)"),
        (changed(state=np.zeros(3)), "`state`: that name is reserved for recurrent policies"),
        (changed(noise=2), r"declares noise = 2, not the shape and dtype of a row"),
        (changed(noise=(-1, np.float32)), "declares noise"),
        (changed(noise=(1.5, np.float32)), "declares noise"),
        (changed(noise=(2, "nothing")), "declares noise"),
        (changed(noise=(2, None)), "declares noise"),
        (changed(noise=(2, object)), "declares noise"),
        (changed(outputs=[("log_prob", ((), np.float32))]), r"declares outputs = \[.*, not a dict of names"),
        (changed(outputs={1: ((), np.float32)}), "not a dict of names"),
        (changed(outputs={"log_prob": np.float32}), r"declares outputs\['log_prob'\] = "),
    ],
)
def test_what_a_policy_declares_is_checked_before_anything_starts(policy: Any, says: str) -> None:
    with pytest.raises(av.PolicyError, match=says) as failed:
        av.AsyncVecEnv("CartPole-v1", policy=policy)
    assert failed.value.op == "declare"
    with pytest.raises(av.PolicyError, match=says):
        check_policy(policy, OBS)


def test_a_policy_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(TypeError, match=r"policy cannot be pickled \(TwoTowers\)"):
        av.AsyncVecEnv("CartPole-v1", policy=changed(lines=(x for x in [0])))


class Returns(TwoTowers):
    """What `change` makes of the result."""

    def __init__(self, change: Callable[[NDArray[Any], Arrays], Any]) -> None:
        super().__init__(weights())
        self.change = change

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> Any:
        return self.change(*super().act(obs, noise))


def put(array: NDArray[Any], value: Any, row: int = 3) -> NDArray[Any]:
    array[row] = value
    return array


def fail(actions: Any, outputs: Any) -> Any:
    raise KeyError("no such layer")


WRONG: list[tuple[Callable[[Any, Any], Any], str]] = [
    (fail, r"raised KeyError: 'no such layer' in act\(\)"),
    (lambda a, o: a, r"act must return \(actions, outputs\), outputs a dict, got ndarray"),
    (lambda a, o: (a, o, {}), "act must return"),
    (lambda a, o: (a, None), "act must return"),
    (lambda a, o: (a.astype(np.int32), o), r"actions: expected int64 \(16,\), got int32 \(16,\)"),
    (lambda a, o: (a[:, None], o), r"actions: expected int64 \(16,\), got int64 \(16, 1\)"),
    (lambda a, o: (a[:5], o), r"actions: expected int64 \(16,\), got int64 \(5,\)"),
    (lambda a, o: (a.tolist(), o), r"actions: expected int64 \(16,\), got list"),
    (lambda a, o: (put(a, 2), o), r"actions of env 3: 2 is not in Discrete\(2\)"),
    (lambda a, o: (put(a, -1), o), r"actions of env 3: -1 is not in Discrete\(2\)"),
    (lambda a, o: (a, {"value": o["value"]}), r"outputs: expected \['log_prob', 'value'\], got \['value'\]"),
    (lambda a, o: (a, {**o, "more": a}), r"outputs: expected .* got \['log_prob', 'more', 'value'\]"),
    (lambda a, o: (a, {**o, "value": o["value"].astype(float)}), r"outputs\['value'\]: expected float32 .* float64"),
    (lambda a, o: (a, {**o, "value": o["value"][:, None]}), r"outputs\['value'\]: expected float32 \(16,\), got"),
    (lambda a, o: (a, {**o, "value": put(o["value"], np.nan)}), r"outputs\['value'\] of env 3 is NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[says for _, says in WRONG])
@pytest.mark.asyncio
async def test_what_a_policy_returns_is_checked(change: Callable[[Any, Any], Any], says: str) -> None:
    """The text names the policy and its version; what went wrong leaves the envs usable."""
    async with av.AsyncVecEnv("CartPole-v1", 7, backend="inline", policy=Returns(change)) as envs:
        obs, _ = await envs.reset(seed=1)
        with pytest.raises(av.PolicyError, match=rf"the policy Returns \(version 0\)[ :]+{says}") as failed:
            envs.act(obs, np.ones((7, 2), np.float32))
        assert (failed.value.op, failed.value.worker) == ("act", -1)
        await envs.step(np.zeros(7, np.int64))
    with pytest.raises(av.PolicyError):
        check_policy(Returns(change), OBS, ACTIONS)


@pytest.mark.parametrize(
    ("space", "good", "bad"),
    [
        (spaces.Discrete(3, start=-1), [-1, 1], [-2, 2]),
        (spaces.MultiDiscrete([2, 3], start=[0, 5]), [[0, 5], [1, 7]], [[0, 4], [2, 5], [1, 8]]),
        (spaces.MultiBinary(2), [[0, 1]], [[0, 2], [-1, 0]]),
        (spaces.Box(-1, np.array([1, np.inf], np.float32)), [[1, 9], [-1, np.inf]], [[1.5, 0], [0, -2], [0, np.nan]]),
        (spaces.Box(-np.inf, np.inf, (1,), np.float64), [[1e300]], [[np.nan]]),
        (spaces.Box(0, 255, (2,), np.uint8), [[0, 255]], []),
        (spaces.Box(0, 1, (0,), np.float32), [[]], []),
    ],
    ids=str,
)  # fmt: skip
def test_an_action_outside_its_space_is_named(space: gym.Space[Any], good: Any, bad: Any) -> None:
    def say(value: Any) -> None:
        policy = Returns(lambda a, o: (np.repeat(np.array([value], space.dtype), len(a), 0), o))
        one = PolicyRunner(wire.dumps(policy), OBS, space)
        actions, outputs = one.empty(4)
        one.act(rows_in_blocks(range(20, 24)), [rows_of(4)[0]], rows_of(4)[1], actions, outputs)
        assert space.contains(actions[0][0])

    for value in good:
        say(value)
    for value in bad:
        with pytest.raises(av.PolicyError, match=r"actions of env 20: .* is not in"):
            say(value)


# -- check_policy ------------------------------------------------------------------------------------------------------


def test_check_policy_accepts_good_ones() -> None:
    check_policy(TwoTowers(weights()), OBS, ACTIONS, params=[weights(1), weights(2, transposed=True)])
    check_policy(TwoTowers(weights()), OBS)


@pytest.mark.asyncio
async def test_the_policy_of_the_docs_is_one() -> None:
    (program,) = re.findall(r"```python\n(class Linear:.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"av": av, "np": np}
    exec(program, names)
    check_policy(
        names["policy"], OBS, ACTIONS, params=[(np.ones((4, 2), np.float32), np.ones(2, np.float32))]
    )
    await names["main"]()


class BatchNorm(TwoTowers):
    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        return super().act(obs - obs.mean(0), noise)


class Counts(TwoTowers):
    calls = 0

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        self.calls += 1
        return super().act(obs + np.float32(0.01 * self.calls), noise)


class OwnDice(TwoTowers):
    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        return super().act(obs, np.random.default_rng().standard_exponential(noise.shape, np.float32))


class ByPlace(TwoTowers):
    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        return super().act(obs * np.arange(len(obs), dtype=np.float32)[:, None], noise)


class Remembers(TwoTowers):
    def load(self, params: Any) -> None:
        self.params = [0.5 * a + 0.5 * b for a, b in zip(getattr(self, "params", params), params)]


class DrawsWide(TwoTowers):
    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_exponential(rows, dtype=np.float32)


class DrawsNothing(TwoTowers):
    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        raise ZeroDivisionError


class DrawsDouble(TwoTowers):
    def draw(self, rng: np.random.Generator, rows: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_exponential((*rows, 2))


class Changes(TwoTowers):
    """Another copy is another one."""

    shift = np.float32(0)

    def __setstate__(self, state: Any) -> None:
        self.__dict__ |= {**state, "shift": np.random.default_rng().random(dtype=np.float32)}

    def act(self, obs: NDArray[Any], noise: NDArray[Any]) -> tuple[Any, Any]:
        return super().act(obs + self.shift, noise)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (BatchNorm, "a row depends on its neighbours"),
        (Counts, "when it acts a second time on the same rows"),
        (OwnDice, "when it acts a second time on the same rows"),
        (Changes, "in another copy that came through a pickle"),
        (ByPlace, "at another place of its block"),
        (Remembers, "what was loaded first still has a part in it"),
        (DrawsNothing, r"draw\(rng, \(53,\)\) raised ZeroDivisionError"),
        (DrawsWide, r"draw\(rng, \(53,\)\) gave \(53,\), not \(53, 2\)"),
        (DrawsDouble, r"draw\(rng, \(53,\)\) gave float64, not float32, as `noise` declares"),
    ],
)
def test_check_policy_names_what_is_wrong(kind: type[TwoTowers], says: str) -> None:
    with pytest.raises(av.PolicyError, match=says):
        check_policy(kind(weights()), OBS, ACTIONS, params=[weights(1), weights(2)])
    with pytest.raises(av.PolicyError, match=says):
        check_policy(kind(weights()), OBS, params=[weights(1), weights(2)])
