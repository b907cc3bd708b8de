"""V1 to V11: what Gymnasium's AsyncVectorEnv gets wrong, and what happens here instead."""
# edge: real worker processes, real kills

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces
from gymnasium.error import AlreadyPendingCallError
from gymnasium.vector import AutoresetMode

import aio_vecenv as av
from aio_vecenv.adapters.gymnasium import VectorEnv
from tests.adapters.envs import CountEnv, Faulty, Heeding, RandomEnv, TwoArguments
from tests.aio_vecenv.harness import alive, wait_until


def test_v1_a_timeout_forgets_no_reply(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    envs = VectorEnv([partial(Faulty, str(gate))] * 2, num_workers=2)
    envs.reset()
    envs.step_async([4, 0])
    with pytest.raises(multiprocessing.TimeoutError, match=r"timed out after 0\.01 second"):
        envs.step_wait(timeout=0.01)
    with pytest.raises(AlreadyPendingCallError):  # not the stale result of the step before
        envs.step([0, 0])
    gate.touch()
    obs, rewards, *_ = envs.step_wait()
    assert (obs.ravel().tolist(), rewards.tolist()) == ([1, 1], [4.0, 0.0])
    obs, rewards, *_ = envs.step([0, 4])
    assert (obs.ravel().tolist(), rewards.tolist()) == ([2, 2], [0.0, 4.0])
    envs.close()


def test_v1_a_reset_gives_up_what_timed_out(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    envs = VectorEnv([partial(Faulty, str(gate))] * 2, num_workers=2)
    envs.reset()
    envs.step_async([4, 0])
    with pytest.raises(multiprocessing.TimeoutError):
        envs.step_wait(timeout=0.01)
    for reset in (envs.reset, envs.reset_async):  # of all envs, or of none
        with pytest.raises(AlreadyPendingCallError, match="pending call to `step`"):
            reset(options={"reset_mask": np.array([False, True])})
    gate.touch()
    assert envs.step_wait()[0].ravel().tolist() == [1, 1]
    gate.unlink()
    envs.step_async([4, 0])
    with pytest.raises(multiprocessing.TimeoutError):
        envs.step_wait(timeout=0.01)
    gate.touch()
    assert envs.reset(seed=3)[0].ravel().tolist() == [3, 4]
    assert envs.step([0, 0])[0].ravel().tolist() == [4, 5]
    gate.unlink()
    envs.reset_async(seed=[14, 0])
    with pytest.raises(multiprocessing.TimeoutError):
        envs.reset_wait(timeout=0.01)
    gate.touch()
    assert envs.reset_wait()[0].ravel().tolist() == [14, 0]
    gate.unlink()
    envs.call_async("wait")
    with pytest.raises(multiprocessing.TimeoutError):
        envs.call_wait(timeout=0.01)
    gate.touch()
    assert envs.call_wait() == ("waited", "waited")
    envs.close()


def test_v2_too_few_actions_send_nothing() -> None:
    envs = VectorEnv([CountEnv] * 3, num_workers=1)
    envs.reset()
    for wrong in ([1], [1, 2, 3, 4], 7, [0.5, 1.0, 2.0], [[1, 2, 3]]):
        with pytest.raises(ValueError, match="nothing was sent"):
            envs.step(wrong)
    assert envs.step([1, 2, 3])[1].tolist() == [1.0, 2.0, 3.0]
    envs.close()


def test_v3_closing_after_a_worker_was_killed() -> None:
    envs = VectorEnv([CountEnv] * 2, num_workers=2, restart=None)
    envs.reset()
    workers = [psutil.Process(worker.pid) for worker in envs.native.statistics().workers]
    workers[0].kill()
    envs.close()
    assert not any(worker.is_running() for worker in workers)


def test_v3_a_killed_worker_is_replaced() -> None:
    envs = VectorEnv([Faulty] * 2, num_workers=2, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.reset(seed=5)
    obs, rewards, terminations, truncations, infos = envs.step([3, 2 - 2])
    assert truncations.tolist() == [True, False]
    assert not terminations.any()
    assert rewards.tolist() == [0.0, 0.0]
    assert "SIGKILL" in infos["worker_lost"][0]
    assert infos["final_obs"][0].tolist() == [5]  # the last one that was seen
    assert obs[1].tolist() == [7]
    assert envs.step([0, 0])[2].tolist() == [False, False]
    envs.close()


def test_v4_a_typo_leaves_the_envs_usable() -> None:
    envs = VectorEnv([CountEnv] * 2, num_workers=2)
    envs.reset()
    with pytest.raises(AttributeError, match="max_cuont"):
        envs.get_attr("max_cuont")
    envs.step_async([0, 0])
    with pytest.raises(AttributeError, match="max_cuont"):
        envs.call("max_cuont")
    assert envs.step_wait()[0].ravel().tolist() == [1, 1]
    assert envs.get_attr("max_count") == (3, 3)
    envs.close()


@pytest.mark.parametrize("shared_memory", [True, False])
def test_v5_a_manual_reset_clears_the_pending_autoreset(shared_memory: bool) -> None:
    envs = VectorEnv([partial(CountEnv, 1)], shared_memory=shared_memory)
    envs.reset()
    assert envs.step([0])[2].tolist() == [True]
    envs.reset(seed=5)
    assert envs.step([2])[1].tolist() == [2.0]  # the action was executed
    envs.close()


def test_v6_the_final_observation_is_a_snapshot() -> None:
    envs = VectorEnv([partial(CountEnv, 2)] * 2, autoreset_mode=AutoresetMode.SAME_STEP, num_workers=1)
    envs.reset()
    envs.step([0, 0])
    obs, _, _, _, infos = envs.step([0, 0])
    assert obs.ravel().tolist() == [0, 0]
    assert [one.tolist() for one in infos["final_obs"]] == [[2], [2]]  # CountEnv reuses its buffer
    envs.close()


@pytest.mark.parametrize("space", [spaces.Text(6), spaces.OneOf((spaces.Discrete(9), spaces.Discrete(3)))])
def test_v7_text_and_oneof_do_not_freeze(space: Any) -> None:
    envs = VectorEnv([partial(RandomEnv, space)] * 2, shared_memory=True, num_workers=1)
    first, _ = envs.reset(seed=0)
    seen = {repr(first)} | {repr(envs.step([0, 0])[0]) for _ in range(5)}
    assert len(seen) > 3
    envs.close()


def test_v8_the_callers_options_stay_as_they_are() -> None:
    envs = VectorEnv([CountEnv] * 2, num_workers=1)
    options = {"reset_mask": np.array([True, False]), "level": 1}
    envs.reset()
    envs.reset(options=options)
    assert options.keys() == {"reset_mask", "level"}
    assert options["reset_mask"].tolist() == [True, False]  # type: ignore[attr-defined]
    envs.close()


def _broken() -> gym.Env[Any, Any]:
    raise TwoArguments(3, "no such map")


def test_v9_errors_arrive_as_what_they_are() -> None:
    with pytest.raises(TwoArguments, match="no such map") as caught:
        VectorEnv([CountEnv, _broken], num_workers=2)
    assert "env 1" in str(caught.value.__cause__)
    envs = VectorEnv([Faulty] * 2, num_workers=1)
    envs.reset()
    with pytest.warns(UserWarning, match="ERROR"), pytest.raises(TwoArguments) as caught:
        envs.step([0, 2])
    assert (caught.value.code, caught.value.reason) == (7, "because")
    assert "env 1" in str(caught.value.__cause__)
    envs.close()


PARENT = """
import sys
from functools import partial
from aio_vecenv.adapters.gymnasium import VectorEnv
from tests.adapters.envs import Faulty
envs = VectorEnv([partial(Faulty, sys.argv[1])] * 2, num_workers=2)
envs.reset()
envs.step_async([4, 4])
print(*[shift.worker.pid for shift in envs.native._supervisor.slots], flush=True)
envs.step_wait()
"""


def test_v10_workers_inside_step_end_with_their_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "never")], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_v11_control_while_a_step_is_pending(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    envs = VectorEnv([Heeding, partial(Faulty, str(gate), 5)], num_workers=2)
    envs.reset()
    envs.step_async([0, 4])
    receipt = envs.broadcast(3.5, apply="now")
    other = threading.Thread(target=envs.broadcast, args=(4.5,), kwargs={"apply": "now"})
    other.start()
    other.join()
    gate.touch()
    envs.set_attr("max_count", [8, 9])
    assert envs.get_attr("max_count") == (8, 9)
    assert envs.call("add", 1) == (9, 10)
    assert envs.step_wait()[0].ravel().tolist() == [1, 1]
    assert envs.step([0, 0])[1].tolist()[0] == 4.5
    envs.wait_for(receipt, timeout=20)
    assert sorted(receipt.taken) == [0, 1]
    envs.close()


def test_v20_an_env_registered_only_here_exists_in_the_workers() -> None:
    gym.register("OnlyHere-v0", lambda **kwargs: CountEnv(**kwargs), max_episode_steps=5)
    try:
        envs = av.make_vec("OnlyHere-v0", 2)
        envs.reset()
        envs.close()
    finally:
        del gym.registry["OnlyHere-v0"]
