"""What a user reads when envs raise: once where many say the same, with file and line, wherever the env is defined."""
# edge: scripts in processes of their own

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aio_vecenv.core.report import describe, raise_all, rebuild
from aio_vecenv.errors import VecEnvError

ROOT = Path(__file__).parents[2]
SCRIPT = """
import gymnasium as gym, numpy as np, aio_vecenv as av
class Bad(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        return self.inside()
    def inside(self):
        return 1 / 0  # here it is
async def main():
    async with av.AsyncVecEnv(lambda: Bad(), 64, num_workers=2) as envs:
        await envs.reset(seed=1)
        await envs.step(np.zeros(64, int))
av.run(main())
"""


def test_the_traceback_of_an_env_of_the_script_names_its_file_and_lines(tmp_path: Path) -> None:
    """What travels by value keeps its place; 64 envs that raise the same do not print it 64 times."""
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f'File "{script}", line 10, in inside' in done.stderr
    assert done.stderr.count("return 1 / 0  # here it is") == 1
    assert "dynamic-code" not in done.stderr
    assert "64 envs raised: env 0 (" in done.stderr
    assert "ZeroDivisionError in step: division by zero, and 63 more alike" in done.stderr
    assert len(done.stderr.splitlines()) < 100


def error(env_id: int, kind: type[Exception], text: str) -> VecEnvError:
    return rebuild(describe(kind(text), "step"), env_id, 0)


def test_alike_errors_refer_to_the_first_and_nothing_is_lost() -> None:
    """Alike but for numbers; the last one, which adapters raise alone, is whole."""
    errors = [
        error(0, ValueError, "a 1"),
        error(1, KeyError, "b"),
        *(error(i, ValueError, f"a {i}") for i in (2, 3, 4)),
    ]
    with pytest.raises(ExceptionGroup, match=r"^a step: 5 envs raised \(5|^a step: 5 envs raised$") as caught:
        raise_all(errors, "a step")
    assert [getattr(one, "env_id", None) for one in caught.value.exceptions] == [0, 1, 2, 3, 4]
    notes = ["".join(one.__notes__) for one in errors]
    assert [note.startswith("the traceback in the worker:\n") for note in notes] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert notes[2] == "the traceback in the worker: as that of env 0, above"
    assert errors[2].__cause__ is errors[0].__cause__ is not errors[4].__cause__
    with pytest.raises(ExceptionGroup, match=r"2 envs raised: env 7 .*: a 7, and 1 more alike"):
        raise_all([error(7, ValueError, "a 7"), error(8, ValueError, "a 8")], "a step")
    with pytest.raises(VecEnvError, match="env 7"):
        raise_all([error(7, ValueError, "a 7")], "a step")
