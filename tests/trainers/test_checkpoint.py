"""Checkpoints are whole or absent; what is torn or foreign is refused by name, and the previous one is used."""
# resource: real files; faults at every step of writing

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.record.checkpoint import Checkpoint, CheckpointError, Checkpoints, load

STATE = Checkpoint(
    model={"weight": torch.arange(6.0)},
    optimiser={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    curriculum={"schema": 1, "strategy": {"stage": "far", "window": [True, False, None, 0.5, 2**70]}},
    tally={"updates": 3, "timeline": [{"stage": "near", "env_steps": 0}]},
    env_steps=1024,
    train_time_s=1.5,
    sizes={"metrics.jsonl": 10},
)


def save(folder: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(replace(STATE, env_steps=step))
    return checkpoints


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path / "new").save(STATE)
    got = load(path)
    assert path.name == "step-0000001024.pt"
    assert torch.equal(got.model["weight"], STATE.model["weight"])
    assert replace(got, model={}, optimiser={}) == replace(STATE, model={}, optimiser={})
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing else is left"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 10, 20, 9_999_999_999, 10_000_000_000, keep=2)
    assert [path.name for path in checkpoints.paths()] == ["step-9999999999.pt", "step-10000000000.pt"]


def test_a_run_that_goes_on_from_an_older_one_keeps_what_it_saves(tmp_path: Path) -> None:
    """The newer ones, which were refused, neither cost it its own checkpoints nor are they its to remove."""
    refused = save(tmp_path, 100, 200).paths()
    for path in refused:
        path.write_bytes(b"torn")
    for step in (20, 30, 40):
        checkpoints = save(tmp_path, step, keep=2)
        assert checkpoints.load_newest()[0].env_steps == step
    assert [path.name for path in checkpoints.paths()] == [
        "step-0000000030.pt", "step-0000000040.pt", *(path.name for path in refused),
    ]  # fmt: skip
    assert save(tmp_path, 150, keep=1).load_newest()[0].env_steps == 150


def test_a_torn_one_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    checkpoints = save(tmp_path, 10, 20)
    newest = checkpoints.paths()[-1]
    whole = newest.read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        newest.write_bytes(whole[:end])
        state, path, refused = checkpoints.load_newest()
        assert (state.env_steps, path.name) == (10, "step-0000000010.pt")
        assert len(refused) == 1
        assert str(newest) in refused[0]


def test_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10).paths()[0]
    whole = bytearray(path.read_bytes())
    weights = whole.find(STATE.model["weight"].numpy().tobytes())
    whole[weights + 5] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"step-0000000010\.pt: damaged at"):
        load(path)


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "torn, or not a checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "torn, or not a checkpoint"),
        (lambda path: torch.save({"weights": 1}, path), "not a checkpoint of this program"),
        (lambda path: torch.save([1, 2], path), "not a checkpoint of this program"),
        (lambda path: torch.save(Exploit(), path), "not a checkpoint of this program"),
        (
            lambda path: torch.save({"schema": "aio-vecenv trainer checkpoint", "version": 99}, path),
            "has format 99, this program reads 1",
        ),
        (
            lambda path: torch.save(
                {"schema": "aio-vecenv trainer checkpoint", "version": 1, "model": {}}, path
            ),
            "wrong content",
        ),
    ],
)
def test_a_foreign_file_is_refused_by_name_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "step-0000000001.pt"
    write(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "exploited").exists()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        Checkpoints(tmp_path).load_newest()


def test_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        Checkpoints(tmp_path / "nothing").load_newest()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    checkpoints = save(tmp_path, 10)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 20)
    monkeypatch.undo()
    assert checkpoints.load_newest()[0].env_steps == 10
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    """/dev/full refuses every write: torch reports that as a RuntimeError."""
    (tmp_path / "step-0000000020.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError):
        save(tmp_path, 20)
    assert list(tmp_path.iterdir()) == []


KILL_SAVES = """
import itertools, os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from tests.trainers.test_checkpoint import STATE
from trainers.record.checkpoint import Checkpoints

torch.set_num_threads(1)
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
checkpoints = Checkpoints(folder)
state = replace(STATE, model={"weight": torch.zeros(200_000)})
took = []
for step in range(5):
    began = time.perf_counter()
    checkpoints.save(replace(state, env_steps=step))
    took.append(time.perf_counter() - began)
middle = saved = 0
chance = random.Random(7)
for _ in range(kills):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for step in itertools.count(saved + 1):
            os.write(writing, b"s")
            checkpoints.save(replace(state, env_steps=step))
    for _ in range(chance.randrange(1, 4)):
        os.read(reading, 1)  # a save begins
    time.sleep(chance.uniform(0, sorted(took)[2]))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(reading), os.close(writing)
    middle += any(folder.glob("*.tmp"))
    newest, path, refused = checkpoints.load_newest()
    assert not refused, refused
    assert newest.env_steps >= saved, (saved, newest.env_steps)
    assert torch.equal(newest.model["weight"], state.model["weight"])
    saved = newest.env_steps
checkpoints.save(replace(state, env_steps=saved + 1))
assert not list(folder.glob("*.tmp")), "what the killed ones left half-written"
print(middle)
"""


def kill_saves(folder: Path, kills: int) -> int:
    """A process that saves all the time is killed again and again; how often a file was half-written then."""
    done = subprocess.run(
        [sys.executable, "-c", KILL_SAVES, folder, str(kills)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_in_the_middle_of_a_save_the_run_still_loads(tmp_path: Path) -> None:
    assert kill_saves(tmp_path, 30) > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_killed_in_the_middle_of_five_hundred_saves(tmp_path: Path) -> None:
    in_the_middle = kill_saves(tmp_path, 1500)
    assert in_the_middle >= 500, f"of 1500 kills {in_the_middle} came in the middle of a save"
