"""TensorBoard and Weights & Biases get every report and every evaluation: their files are read back."""
# async: real runs, inline; real files

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.helpers import corridor_job, tiny
from trainers import ConfigError, EvalConfig, training
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics

pytestmark = pytest.mark.alternate_loops


async def trained(runs: Path, **changes: Any) -> RunFolder:
    config = tiny(runs, total_steps=64 * 4, eval=EvalConfig(every=2, episodes=4), **changes)
    async with training(config, job=corridor_job()) as run:
        await run.wait()
    return run.folder


def expected(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Some of the curves that both must hold, from the files of our own."""
    lines, evaluations = read_metrics(folder.metrics), read_metrics(folder.evaluations)
    assert (len(lines), len(evaluations)) == (4, 2)
    return {
        "entropy": [(line["env_steps"], line["entropy"]) for line in lines],
        "stages/one/success_rate": [(line["env_steps"], line["stages"][0]["success_rate"]) for line in lines],
        "timing/wall_s": [(line["env_steps"], line["timing"]["wall_s"]) for line in lines],
        "eval/stages/three/mean_return": [
            (line["env_steps"], line["stages"][1]["mean_return"]) for line in evaluations
        ],
    }


@pytest.mark.asyncio
async def test_tensorboard_holds_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = await trained(tmp_path, logger=("tensorboard",), tensorboard=True)
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    for name, curve in expected(folder).items():
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert read == [(step, pytest.approx(value)) for step, value in curve], name


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As a user would say it; afterwards its service, which goes on until this process ends, is gone."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    import wandb

    wandb.teardown()


def records(folder: RunFolder) -> list[Any]:
    """What the one offline run in a folder holds: W&B's records, in LevelDB's log format."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    wandb.teardown()  # it writes behind us
    (path,) = (folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    data, at, found, record = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(record))
            record = b""
    return found


@pytest.mark.asyncio
async def test_weights_and_biases_holds_every_number(tmp_path: Path, offline: None) -> None:
    folder = await trained(tmp_path, logger=("wandb",))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]
    for name, curve in expected(folder).items():
        step = "eval/env_steps" if name.startswith("eval/") else "env_steps"
        assert [(row[step], row[name]) for row in rows if name in row] == curve, name
    begun = next(record.run for record in records(folder) if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.display_name) == ("aio-vecenv", folder.path.name)
    assert {item.key: json.loads(item.value_json) for item in begun.config.update}["num_envs"] == 4


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
async def test_an_extra_that_is_missing_is_one_clear_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ConfigError, match=rf"^logger {name} needs the extra: pip install 'aio-vecenv\[{name}\]'$"
    ):
        async with training(tiny(tmp_path, logger=(name,)), job=corridor_job()):
            pass
    assert os.listdir(tmp_path) == []
