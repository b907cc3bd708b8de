"""Stable-Baselines3 on top of our `VecEnv`: its contract, its algorithms, its wrappers, and a curriculum beside it."""
# edge: real worker processes, and the real library

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import aio_vecenv as av
from aio_vecenv.adapters.sb3 import VecEnv
from curriculum import CurriculumEnv, Stage, Staged, StagePlan
from curriculum.adapters import CurriculumVecEnvWrapper
from tests.adapters.envs import CountEnv, Faulty, RandomEnv, curriculum_env

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import (
        DummyVecEnv,
        VecEnvWrapper,
        VecFrameStack,
        VecMonitor,
        VecNormalize,
        is_vecenv_wrapped,
        sync_envs_normalization,
    )
    from stable_baselines3.common.vec_env import VecEnv as TheirVecEnv

CARTPOLE = partial(gym.make, "CartPole-v1")


@pytest.fixture(autouse=True, scope="module")
def module_threads() -> Iterator[None]:
    """One thread for torch: more would fight with the workers over a test's few microseconds of work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cartpoles() -> Iterator[Any]:
    with VecEnv("CartPole-v1", 4, num_workers=1) as venv:
        yield venv


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, dict):
        return set(ours) == set(theirs) and all(_equal(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (tuple, list)):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    return bool(np.array_equal(ours, theirs))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Discrete(4),
        spaces.Dict(a=spaces.Box(0, 1, (2,), np.float32), b=spaces.Discrete(3)),
        spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,), np.float32))),
    ],
    ids=["box", "discrete", "dict", "tuple"],
)
def test_the_first_transitions_are_those_of_dummy_vec_env(space: Any) -> None:
    factories = [partial(RandomEnv, space)] * 3
    ours, theirs = VecEnv(factories, num_workers=2), DummyVecEnv([lambda f=f: f() for f in factories])  # type: ignore[misc]
    assert isinstance(ours, TheirVecEnv)
    ours.seed(4), theirs.seed(4)
    ours.set_options({"x": 1}), theirs.set_options({"x": 1})
    assert _equal(ours.reset(), theirs.reset())
    assert _equal(ours.reset_infos, theirs.reset_infos)
    random = np.random.default_rng(0)
    for _ in range(150):
        actions = random.integers(0, 5, 3)
        mine, other = ours.step(actions), theirs.step(actions)
        assert _equal(mine[0], other[0])
        assert np.allclose(mine[1], other[1])
        assert _equal(mine[2], other[2])
        assert _equal(mine[3], other[3])
        assert _equal(ours.reset_infos, theirs.reset_infos)
    ours.close()


def test_the_rest_of_the_contract() -> None:
    venv = VecEnv(
        [partial(gym.wrappers.TimeLimit, CountEnv(i + 3, "rgb_array"), 2) for i in range(3)], num_workers=2
    )
    assert venv.metadata == {"render_modes": ["human", "rgb_array"]}
    assert venv.env_method("add", 1, b=2) == [6, 7, 8]
    assert venv.env_method("add", 1, indices=[2, 0]) == [6, 4]
    assert venv.get_attr("max_count", 1) == [4]
    venv.set_attr("max_count", [7], indices=[0])  # the value, not one per env
    assert venv.get_attr("max_count") == [[7], 4, 5]
    assert venv.has_attr("max_count")
    assert not venv.has_attr("max_cuont")
    with pytest.raises(AttributeError, match="max_cuont"):
        venv.get_attr("max_cuont")
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert venv.env_is_wrapped(gym.wrappers.OrderEnforcing, indices=0) == [False]
    assert [frame.shape for frame in venv.get_images() if frame is not None] == [(4, 6, 3)] * 3
    tiles = venv.render()
    assert tiles is not None
    assert tiles.shape == (8, 12, 3)
    with pytest.warns(UserWarning, match="made with render_mode='rgb_array'"):
        assert venv.render("ansi") is None
    venv.set_options([{"a": 1}, {}, {"a": 2}])
    venv.seed(3)
    assert venv.reset().ravel().tolist() == [3, 4, 5]
    assert venv.get_attr("options") == [{"a": 1}, None, {"a": 2}]
    venv.step([0, 0, 0])
    _, _, dones, infos = venv.step([0, 0, 0])
    assert dones.tolist() == [True, True, True]
    assert infos[2]["TimeLimit.truncated"] is True
    assert infos[2]["terminal_observation"].tolist() == [7]
    venv.close()
    venv.close()
    with pytest.raises(av.ClosedError):
        venv.step([0, 0, 0])


def test_options_that_cannot_be_compared() -> None:
    venv = VecEnv([CountEnv] * 2, num_workers=1)
    start = {"start": np.array([1.0, 2.0])}
    cases: list[tuple[Any, list[Any]]] = [
        (start, [start] * 2),
        ([start, {"start": np.zeros(2)}], [start, {"start": np.zeros(2)}]),
        ([{}, {}], [None, None]),
        (None, [None, None]),
    ]
    for options, given in cases:
        venv.set_options(options)
        venv.reset()
        assert _equal(venv.get_attr("options"), given)
    venv.set_options(start)
    venv.reset()
    venv.reset()  # once
    assert venv.get_attr("options") == [None, None]
    venv.close()


def test_bad_input_and_errors_of_envs() -> None:
    with pytest.raises(ValueError, match="cannot find context for 'knife'"):
        VecEnv("CartPole-v1", 2, start_method="knife")
    with pytest.raises(av.SpaceMismatch):
        VecEnv([CARTPOLE, CountEnv])
    venv = VecEnv([Faulty] * 3, num_workers=2)
    venv.reset()
    with pytest.raises(ValueError, match="nothing was sent"):
        venv.step([1, 2])
    with pytest.raises(ValueError, match="Error in step"):  # V12: not EOFError
        venv.step([0, 1, 0])
    venv.reset()
    venv.step_async([0, 0, 0])
    assert venv.env_method("add", 1) == [101] * 3  # V13: not the step's reply
    with pytest.raises(av.BusyError):
        venv.step_async([0, 0, 0])
    assert venv.step_wait()[0].ravel().tolist() == [1, 1, 1]
    obs, rewards, dones, infos = venv.step([0, 3, 0])  # V15: the worker died, and is replaced
    assert dones.tolist() == [False, True, True]
    assert "SIGKILL" in infos[1]["worker_lost"]
    assert infos[1]["TimeLimit.truncated"]
    assert infos[1]["terminal_observation"].tolist() == [1]
    assert obs.ravel().tolist() == [2, 0, 0]
    assert rewards.tolist() == [0, 0, 0]
    venv.close()


def test_v16_set_attr_reaches_the_env_that_has_the_attribute(cartpoles: Any) -> None:
    cartpoles.set_attr("gravity", 1.5)
    assert cartpoles.env_method("get_wrapper_attr", "unwrapped") is not None
    assert [env.gravity for env in cartpoles.get_attr("unwrapped")] == [1.5] * 4


def test_algorithms_and_wrappers(cartpoles: Any) -> None:
    stacked = VecFrameStack(VecNormalize(VecMonitor(cartpoles)), n_stack=2)
    assert is_vecenv_wrapped(stacked, VecMonitor)
    model = PPO("MlpPolicy", stacked, n_steps=32, batch_size=64, n_epochs=1, seed=1, device="cpu")
    model.learn(256)
    assert model.ep_info_buffer
    mean, _ = evaluate_policy(model, stacked, n_eval_episodes=4, warn=False)
    assert float(np.mean(mean)) > 0
    dqn = DQN("MlpPolicy", cartpoles, learning_starts=16, buffer_size=500, train_freq=4, seed=1, device="cpu")
    dqn.learn(64)


def test_dict_observations() -> None:
    space = spaces.Dict(a=spaces.Box(0, 1, (2,), np.float32), b=spaces.Discrete(3))
    with VecEnv([partial(RandomEnv, space)] * 2, num_workers=1) as venv:
        model = PPO("MultiInputPolicy", VecMonitor(venv), n_steps=16, batch_size=16, n_epochs=1, device="cpu")  # type: ignore[arg-type]
        model.learn(32)


# -- a curriculum beside it ------------------------------------------------------------------------------------------

PLAN = StagePlan([Stage("simplest", 0.60, 10), Stage("simpler", 0.60, 10)])


def test_the_reference_acceptance_test() -> None:
    strategy = Staged(PLAN)
    for i in range(30):
        strategy.record("simplest", i < 12)
    venv = CurriculumVecEnvWrapper(VecEnv(curriculum_env, 4, num_workers=2), strategy)
    venv.reset()
    assert venv.env_method("get_mixing_ratio", "simplest") == [0.40] * 4
    for _ in range(40):
        venv.record_episode("simplest", True)
    assert (
        venv.env_method("get_mixing_ratio", "simplest") == [venv.mixing_ratio("simplest")] * 4 == [0.05] * 4
    )
    venv.close()


@pytest.mark.parametrize("loop", ["auto", "thread"])
def test_a_curriculum_advances_during_sb3_training(loop: Any) -> None:
    inner = VecEnv(curriculum_env, 4, num_workers=2, loop=loop)
    venv = CurriculumVecEnvWrapper(VecMonitor(inner), Staged(PLAN))  # type: ignore[arg-type]
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, device="cpu", ent_coef=0.0)  # type: ignore[arg-type]
    model.learn(64)
    # 32 steps end 4 episodes each; only those of the last may not be folded yet
    assert 124 <= sum(row["outcomes"] for row in venv.progress()) <= 128
    venv.set_stage("simpler", by="operator")
    assert venv.stage == "simpler"
    stages: set[str] = set()
    for _ in range(10):  # a step's four episodes may all be drawn from the previous stage
        _, _, dones, _ = venv.step(np.ones(4, np.int64))
        assert dones.all()
        stages |= {info["task"]["stage"] for info in inner.reset_infos if info["task"]["role"] == "current"}
    assert stages == {"simpler"}
    venv.close()


def test_an_exception_in_the_strategy_ends_the_training() -> None:
    strategy = Staged(PLAN)
    venv = CurriculumVecEnvWrapper(VecEnv(curriculum_env, 2, num_workers=1), strategy)
    venv.reset()

    def broken(episode: Any) -> None:
        raise RuntimeError("no such rule")

    strategy.observe = broken  # type: ignore[method-assign]
    venv.step(np.ones(2, np.int64))  # its episodes are folded before the next
    with pytest.raises(RuntimeError, match="no such rule"):
        venv.step(np.ones(2, np.int64))
    venv.close()


def beside(venv: Any) -> Any:
    return CurriculumVecEnvWrapper(venv, Staged(PLAN))


CHAINS: dict[str, Callable[[Any], Any]] = {
    "inside": lambda venv: VecNormalize(beside(VecMonitor(venv))),
    "outside": lambda venv: beside(VecNormalize(VecMonitor(venv))),
    "innermost": lambda venv: VecNormalize(VecMonitor(beside(venv))),
    "one more": lambda venv: VecNormalize(beside(VecMonitor(Further(venv)))),
}


class Further(VecEnvWrapper):
    """A wrapper of the user's own."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def evaluated_env() -> gym.Env[Any, Any]:
    """For evaluation: with a strategy of its own, so no coordinator."""
    env = curriculum_env()
    assert isinstance(env, CurriculumEnv)
    return CurriculumEnv(env.env, env.levels, strategy=Staged(PLAN))


@pytest.mark.parametrize("order", CHAINS)
def test_a5_the_curriculum_s_wrapper_stands_anywhere_in_a_chain_that_is_walked_beside_another(
    order: str, tmp_path: Path
) -> None:
    """Kind: SB3 walks the wrappers of training and evaluation side by side; the curriculum is in one of them only."""
    venv = CHAINS[order](VecEnv(curriculum_env, 4, num_workers=2, backend="inline"))
    evaluation: Any = VecEnv(evaluated_env, 2, num_workers=1, backend="inline")
    if order == "one more":
        evaluation = Further(evaluation)
    eval_venv: Any = VecNormalize(VecMonitor(evaluation), training=False)
    callback = EvalCallback(eval_venv, n_eval_episodes=4, eval_freq=16, log_path=str(tmp_path), verbose=0)
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, device="cpu")
    model.learn(256, callback=callback)
    normalise: Any = model.get_vec_normalize_env()
    assert normalise is not None
    assert eval_venv.obs_rms.count == normalise.obs_rms.count > 100
    assert eval_venv.ret_rms.mean == normalise.ret_rms.mean
    sync_envs_normalization(venv, eval_venv)
    assert is_vecenv_wrapped(venv, VecMonitor)
    assert is_vecenv_wrapped(venv, VecNormalize)
    normalise.training = False  # reaches the one who normalises, also through the curriculum's wrapper
    before = normalise.obs_rms.count
    venv.step(np.ones(4, np.int64))
    assert normalise.obs_rms.count == before
    normalise.save(str(tmp_path / "statistics.pkl"))
    assert (tmp_path / "evaluations.npz").exists()
    wrapped = venv
    while type(wrapped) is not CurriculumVecEnvWrapper:
        wrapped = vars(wrapped)["venv"]
    assert wrapped.coordinator.folded > 10
    venv.set_stage("simpler")  # found through the wrappers around it
    assert venv.stage == "simpler"
    venv.close()
    eval_venv.close()


def test_a_vec_env_without_a_channel_is_refused() -> None:
    with pytest.raises(TypeError, match="no broadcast channel"):
        CurriculumVecEnvWrapper(DummyVecEnv([curriculum_env]), Staged(PLAN))


def test_workers_do_not_import_torch(cartpoles: Any) -> None:
    cartpoles.env_is_wrapped(stable_baselines3.common.monitor.Monitor)
    pid = cartpoles.native._supervisor.slots[0].worker.pid
    with open(f"/proc/{pid}/maps") as maps:
        assert "libtorch" not in maps.read()
    assert pid != os.getpid()
