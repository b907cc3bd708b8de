"""`--env` and ids elsewhere: MODULE:ID whose module registers on import, arguments for the env, the user's files."""
# edge: packages on disk, processes of their own

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import aio_vecenv as av
from aio_vecenv.adapters.gymnasium import make_vec
from aio_vecenv.adapters.sb3 import VecEnv
from trainers import ConfigError, TrainConfig, training
from trainers.jobs import resolve_job
from trainers.record.folder import load_config

pytestmark = pytest.mark.alternate_loops

ROOT = Path(__file__).parents[2]
PACKAGE = {
    "__init__.py": """
import gymnasium
gymnasium.register("Registered-v0", entry_point="registering.envs:Outer", max_episode_steps=5)
gymnasium.register("Inner-v0", entry_point="registering.envs:Inner")
""",
    "envs.py": """
import gymnasium as gym, numpy as np
class Inner(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 9, (1,), np.float32), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None): return np.full(1, self.size, np.float32), {}
    def step(self, action): return np.full(1, self.size, np.float32), 1.0, False, False, {}
class Outer(gym.Wrapper):
    "Made of another env that its package registers."
    def __init__(self, size=3, deep=None, render_mode=None):
        super().__init__(gym.make("Inner-v0"))
        self.unwrapped.size = size
        assert deep in (None, {"a": [1, "x"]})
def make(size=3):
    return Outer(size)
def forgets(size=3):
    Outer(size)
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that nobody has imported yet."""
    (tmp_path / "registering").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "registering" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "registering"
    for name in ("Registered-v0", "Inner-v0"):
        gym.registry.pop(name, None)
    for name in [name for name in sys.modules if name.split(".")[0] == "registering"]:
        del sys.modules[name]


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_a_module_and_id_is_an_id_natively(package: str, backend: Any) -> None:
    """In the children too, which import the module before they make the env."""
    async with av.AsyncVecEnv(f"{package}:Registered-v0", 2, num_workers=2, backend=backend) as envs:
        obs, _ = await envs.reset(seed=1)
        assert obs.tolist() == [[3.0], [3.0]]


def test_a_module_and_id_is_an_id_in_the_adapters(package: str) -> None:
    envs = make_vec(f"{package}:Registered-v0", 2, num_workers=1, size=5)
    try:
        assert envs.reset(seed=1)[0].tolist() == [[5.0], [5.0]]
        again = make_vec(envs.spec, num_workers=1)  # type: ignore[arg-type]
        try:
            assert again.reset(seed=1)[0].tolist() == [[5.0], [5.0]]
        finally:
            again.close()
    finally:
        envs.close()
    with VecEnv(f"{package}:Registered-v0", 2, num_workers=1) as venv:
        assert venv.reset().tolist() == [[3.0], [3.0]]
        assert [spec.id for spec in venv.get_attr("spec")] == ["Registered-v0"] * 2


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["registering:Registered-v0", "registering.envs:make"])
async def test_the_trainer_takes_it_with_arguments(package: str, tmp_path: Path, name: str) -> None:
    kwargs: dict[str, Any] = {"size": np.int64(4)}
    if "Registered" in name:
        kwargs["deep"] = {"a": [1, "x"]}
    config = TrainConfig(
        env=name, env_kwargs=kwargs, num_envs=2, num_workers=1, total_steps=2 * 128, runs=tmp_path
    )
    async with training(config) as run:
        assert run.envs.observations().tolist() == [[4.0], [4.0]]
        await run.wait()
    saved = load_config(run.folder.path / "config.toml")
    assert saved.env_kwargs == config.env_kwargs
    assert resolve_job(saved).make_env().reset


def test_an_id_that_its_module_does_not_register_is_named(package: str) -> None:
    with pytest.raises(
        ConfigError, match=r"registering has no 'Registerd-v0'; did you mean 'Registered-v0'\?"
    ):
        resolve_job(TrainConfig(env=f"{package}:Registerd-v0"))
    with pytest.raises(ConfigError, match="no module named 'nowhere'"):
        resolve_job(TrainConfig(env="nowhere:Registered-v0"))


def test_a_factory_that_makes_no_env_is_named(package: str) -> None:
    make_env = resolve_job(TrainConfig(env=f"{package}.envs:forgets")).make_env
    with pytest.raises(
        TypeError, match=r"env 'registering.envs:forgets' made NoneType, not a gymnasium\.Env"
    ):
        make_env()


@pytest.mark.parametrize("program", ["aio-vecenv", "python -m trainers"])
def test_files_of_the_user_that_are_called_as_ours_do_no_harm(
    package: str, tmp_path: Path, program: str
) -> None:
    """On the command line and in its workers, ours are found first; arguments keep their types."""
    script = tmp_path / "bin" / "aio-vecenv"
    script.parent.mkdir()
    script.write_text("import sys\nfrom trainers.cli import main\nsys.exit(main())")
    called = [script] if program == "aio-vecenv" else ["-m", "trainers"]
    for name in ("curriculum", "aio_vecenv", *(["trainers"] if program == "aio-vecenv" else [])):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user')")
    done = subprocess.run(
        [
            sys.executable, *called, "train", "--env", f"{package}:Registered-v0", "--num-envs", "2",
            "--num-workers", "1",
            "--total-steps", "256", "--name", "run", "--env-kwargs", "size=7", 'deep={a=[1,"x"]}',
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "success" not in done.stdout, "nothing says whether an episode succeeded: its return is shown"
    assert "return     5 (mean of the last update)" in done.stdout
    saved = load_config(tmp_path / "runs" / "run" / "config.toml")
    assert saved.env_kwargs == {"size": 7, "deep": {"a": [1, "x"]}}
