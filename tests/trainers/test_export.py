"""Exported policies: torch's numbers, from a file, without torch."""
# edge: run folders, files, a fresh interpreter; onnxruntime

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces

from tests.trainers.helpers import Corridor, corridor_job, tiny
from tests.trainers.test_actions import SPACES as ACTIONS
from tests.trainers.test_networks import SPACES as OBSERVATIONS
from tests.trainers.test_twin import batch_of, built, tensors, twin
from trainers import ConfigError, TwinError, cli, load_policy, read_twin, train
from trainers.config import NetworkConfig
from trainers.export import _write_onnx, export

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
ROWS = 1000
CASES = [
    (space, actions, config)
    for space in OBSERVATIONS
    for actions, config in (
        (ACTIONS[1], {}),
        (ACTIONS[5], {"shared": True, "activation": "relu", "normalise_obs": True}),
    )
    if not ("action_mask" in str(space) and actions is ACTIONS[5])
] + [(OBSERVATIONS[0], actions, {}) for actions in ACTIONS]


def reader() -> str:
    (program,) = re.findall(r"```python\n(import json\n.*?)```", PAGE.read_text(), re.DOTALL)
    return str(program)


def some(batch: Any, rows: Any) -> Any:
    if isinstance(batch, dict):
        return {key: some(part, rows) for key, part in batch.items()}
    return tuple(some(part, rows) for part in batch) if isinstance(batch, tuple) else batch[rows]


@pytest.mark.parametrize(("space", "actions", "config"), CASES, ids=str)
def test_files_hold_what_torch_computes(space: Any, actions: Any, config: Any, tmp_path: Path) -> None:
    """The lines in the docs, and an ONNX runtime: 1,000 observations (of pictures 100), in batches of 32 and of 1."""
    model, head = built(space, actions, **config)
    count = ROWS if "255" not in str(space) else 100
    batch = batch_of(space, count)
    model.observe(tensors(space, batch))
    leaves = tensors(space, batch)
    masks = leaves.pop("action_mask").bool().numpy() if "action_mask" in leaves else None
    with torch.no_grad():
        params = model(leaves)[0].numpy()
    if masks is not None:
        params = np.where(masks, params, np.float32(-1e8))
    expected = head.to_env(head.mode(params, None))
    one = twin(model, head, space)
    one.write(tmp_path / "policy.npz")
    names: dict[str, Any] = {}
    exec(reader(), names)
    exported = names["Exported"](tmp_path / "policy.npz")
    _write_onnx(one, space, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    outputs = [output.name for output in session.get_outputs()]
    assert outputs in (["action", "logits"], ["action", "mean", "log_std"])
    for rows in [slice(i, i + 32) for i in range(0, count, 32)] + [
        slice(i, i + 1) for i in range(0, count, 50)
    ]:
        part = some(batch, rows)
        by_numpy = exported.act(part)
        feeds = {item.name: np.asarray(at(part, item.name.split("/")[1:])) for item in session.get_inputs()}
        said = dict(zip(outputs, session.run(None, feeds)))
        for action in (by_numpy, said["action"]):
            assert action.dtype == actions.dtype
            np.testing.assert_allclose(action, expected[rows], rtol=1e-5, atol=1e-5)
        if "logits" in said:
            np.testing.assert_allclose(said["logits"], params[rows], rtol=1e-5, atol=1e-5)
        else:
            width = params.shape[1] // 2
            np.testing.assert_allclose(said["mean"], params[rows, :width], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(said["log_std"], params[0, width:], rtol=1e-5, atol=1e-5)


def at(part: Any, path: list[str]) -> Any:
    for key in path:
        part = part[int(key)] if isinstance(part, tuple) else part[key]
    return part


def test_an_observation_may_have_the_name_of_an_output(tmp_path: Path) -> None:
    inside = spaces.Dict({"action": spaces.Discrete(3), "a/b": spaces.Box(-1, 1, (2,), np.float32)})
    model, head = built(inside, ACTIONS[0])
    _write_onnx(twin(model, head, inside), inside, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert [item.name for item in session.get_inputs()] == ["obs/a~1b", "obs/action"]


@pytest.mark.parametrize("kind", ["vector", "dict", "dict_mask"])
def test_a_run_is_exported_as_it_plays(kind: str, tmp_path: Path) -> None:
    """The newest checkpoint, with its statistics: the file plays as `load_policy` does."""
    network = NetworkConfig(hidden=(16,), normalise_obs=True)
    train(tiny(tmp_path, name="run", network=network), job=corridor_job(kind))
    job = corridor_job(kind)
    told: Any = lambda env_id, make=job.make_env: make()  # noqa: E731 - a factory may be told which env it makes
    job = replace(job, make_env=told)
    asyncio.run(export(tmp_path / "run", tmp_path / "policy.npz", job=job))
    env = Corridor(kind)
    loaded, one = load_policy(tmp_path / "run", env), read_twin(tmp_path / "policy.npz", greedy=True)
    rows = batch_of(env.observation_space, 64)
    assert (one.act(rows, np.empty((64, 0), np.float32))[0] == loaded.act_batch(rows)).all()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "policy.npz"}


def test_the_command_writes_files_that_play_without_torch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(tmp_path, name="run", env="CartPole-v1"))
    for name in ("policy.npz", "policy.onnx"):
        assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / name)
    program = f"""{reader()}
import sys
policy = Exported("policy.npz")
print(policy.act(np.zeros((2, 4), np.float32)).shape)
import onnxruntime
(action,) = onnxruntime.InferenceSession("policy.onnx").run(["action"], {{"obs": np.zeros((2, 4), np.float32)}})
print(action.shape, "torch" in sys.modules, "trainers" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(2,)", "(2,) False False"]


def test_what_cannot_be_exported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(tmp_path, name="run", env="CartPole-v1"))
    run = str(tmp_path / "run")
    for args, says in (
        ([run, "policy.txt"], "export to policy.txt: expected a name that ends in .npz or .onnx"),
        ([run, str(tmp_path / "nowhere" / "policy.npz")], "cannot write .*: No such file or directory"),
        ([str(tmp_path), "policy.npz"], "no run folder|config.toml"),
    ):
        assert cli.main(["export", *args]) == 1
        err = capsys.readouterr().err
        assert re.search(says, err), err
        assert len(err.splitlines()) == 1
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    assert cli.main(["export", run, str(tmp_path / "policy.npz")]) == 0
    err = capsys.readouterr().err
    assert f"checkpoint refused: {newest}" in err
    assert "played instead" in err


def test_without_the_extra_it_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, head = built(OBSERVATIONS[0], ACTIONS[0])
    one = twin(model, head, OBSERVATIONS[0])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"pip install 'aio-vecenv\[onnx\]'"):
        _write_onnx(one, OBSERVATIONS[0], tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
    assert issubclass(TwinError, ValueError)
