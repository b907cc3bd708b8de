"""Training over a fleet is training on one machine. Its hosts live in this process here; Ray has tests of its own."""
# edge: whole runs

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculum.replay import replay
from trainers import ConfigError, FleetConfig, TrainConfig, training
from trainers.cli import _parse
from trainers.presets import load_preset

sys.path.append(str(Path(__file__).parents[1] / "aio_vecenv"))  # the fleet's own tests
LocalTransport = importlib.import_module("fleet_helpers").LocalTransport


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fleets find their hosts in this process; how they were reached."""
    made: list[Any] = []

    def here(address: str | None) -> Any:
        made.append(LocalTransport())
        return made[-1]

    monkeypatch.setattr("aio_vecenv.fleet.ray_fleet._ray", here)
    return made


def frozenlake(runs: Path, name: str, **kwargs: Any) -> TrainConfig:
    settings: dict[str, Any] = {"collect": "unroll", "backend": "inline", "deterministic": True, **kwargs}
    return replace(load_preset("frozenlake").config, runs=runs, name=name, **settings)


def journal(run: Any) -> list[Any]:
    return [json.loads(line) for line in run.folder.journal.read_text().splitlines()][1:]


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_preset_over_two_hosts_is_solved_as_on_one_machine(
    tmp_path: Path, transports: list[Any]
) -> None:
    """The same episodes and decisions, line by line; they replay; what it leaves is resumed on one machine."""
    async with training(frozenlake(tmp_path, "one")) as one:
        assert (await one.wait()).reason == "solved"
    async with training(frozenlake(tmp_path, "two", fleet=FleetConfig(hosts=2))) as two:
        summary = await two.wait()
        assert summary.reason == "solved"
        assert len(two.envs.statistics().workers) == 2
    assert journal(one) == journal(two)
    assert replay(two.folder.journal).same
    assert len(transports[0].handles) == 2
    alone = replace(two.config, fleet=FleetConfig(), total_steps=2 * two.env_steps)
    async with training(alone, resume=two.folder.path) as again:
        assert (await again.wait()).reason == "solved"


@pytest.mark.asyncio
@pytest.mark.alternate_loops
async def test_a_host_that_dies_is_no_end_of_a_run(tmp_path: Path, transports: list[Any]) -> None:
    """Its rows are learned from nothing and not counted as steps; the run goes on and is solved."""
    config = frozenlake(tmp_path, "run", deterministic=False, fleet=FleetConfig(hosts=2))
    steps = [0]
    async with training(config) as run:
        async for report in run.reports():
            steps.append(report.env_steps)
            if report.update == 2:
                transports[0].handles[0].kill()
        summary = await run.wait()
    assert summary.reason == "solved"
    assert min(np.diff(steps)) < run.config.batch_size
    assert replay(run.folder.journal).same


def test_the_command_line_names_hosts_and_refuses_what_a_fleet_cannot(tmp_path: Path) -> None:
    """One clear line each: another way to collect, too few envs for the hosts, more hosts wanted than there are."""
    train: Any = _parse(["train", "--collect", "unroll", "--fleet", "2", "--fleet.address", "auto"])
    assert train.settings.fleet == FleetConfig(hosts=2, address="auto")
    assert _parse(["train", "--collect", "unroll", "--fleet=2"]).settings.fleet.hosts == 2  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="a fleet collects by unrolls, not by lockstep"):
        TrainConfig(collect="lockstep", fleet=FleetConfig(hosts=2))
    with pytest.raises(
        ConfigError, match="needs num_envs above 48: every host has at least one block of 16, got 32"
    ):
        TrainConfig(num_envs=32, fleet=FleetConfig(hosts=4))
    with pytest.raises(ConfigError, match=r"min_hosts must lie in 1 … fleet\.hosts"):
        FleetConfig(hosts=2, min_hosts=3)
