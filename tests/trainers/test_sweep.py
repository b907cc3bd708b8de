"""Optuna's example: trials that are pruned, and two sweeps in one process that leave nothing behind."""
# edge: real worker processes, one run after another in this process

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib.util
import threading
from pathlib import Path

import optuna
import psutil
import pytest

from trainers import TrainConfig, load_preset
from trainers.record.metrics import read_metrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "optuna_sweep.py"


def tasks() -> int:
    gc.collect()
    return sum(issubclass(type(thing), asyncio.Task) for thing in gc.get_objects())


def test_two_sweeps_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks, threads, workers (descriptors and shared memory: every test's own check); pruned trials ended early. Both
    sweeps are in the same place."""
    spec = importlib.util.spec_from_file_location("optuna_sweep", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before, children = tasks(), set(psutil.Process().children())  # another module's fixtures may own some
    preset: TrainConfig = load_preset("frozenlake").config

    def newest() -> Path:
        return max(tmp_path.iterdir())

    values = {0: 5.0, 1: 0.0}  # by trial: the second is below the other from the start
    monkeypatch.setattr(example, "progress", lambda report: values[len(list(newest().iterdir())) - 1])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for _sweep in range(2):
        base = dataclasses.replace(
            preset, runs=tmp_path, num_envs=4, num_workers=1, total_steps=4 * 8 * 8, solve_rate=None,
            ppo=dataclasses.replace(preset.ppo, num_steps=8),
        )  # fmt: skip
        study = example.sweep(base, 2, startup=1)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
        updates = [len(read_metrics(newest() / f"trial-{n}" / "metrics.jsonl")) for n in range(2)]
        assert updates[0] == 8
        assert 3 <= updates[1] < 8, "it went on after it was pruned"
        assert study.best_value == 5.0
        assert set(psutil.Process().children()) <= children
        assert tasks() <= before
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("trainers.")]
