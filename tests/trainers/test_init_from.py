"""A run that begins with another one's network: what fits is taken over, what is left out is said by name."""
# async: real runs, inline

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import pytest_asyncio
import torch

import curriculum as cu
from tests.trainers.helpers import LEVELS, PLAN, Corridor, corridor_job, tiny
from trainers import CheckpointError, ConfigError, Job, NetworkConfig, TrainConfig, training
from trainers.record.checkpoint import Checkpoint, Checkpoints, load
from trainers.record.folder import RunFolder

pytestmark = pytest.mark.alternate_loops


class MoreDoors(Corridor):
    """Two actions more than `Corridor`."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(5)

    def step(self, action: Any) -> Any:
        return super().step(min(int(action), 2))


def normalised() -> Any:
    return cu.CurriculumEnv(gym.wrappers.NormalizeObservation(Corridor()), cu.LevelSet(LEVELS))


async def begun(config: TrainConfig, job: Job) -> tuple[Checkpoint, str]:
    """What a run begins with, and what it says about that."""
    async with training(config, job=job) as run:
        await run.checkpoint()
        await run.stop()
    first = Checkpoints(run.folder.checkpoints)
    return load(first.paths()[0]), next(said for said in run.choices if "left out" in said)


def counts(state: Checkpoint) -> list[float]:
    """How much the wrappers in the envs have seen."""
    return [one["count"] for layer in state.envs.values() for part in layer.values() for one in part.values()]


@pytest_asyncio.fixture(loop_scope="function")
async def trained(tmp_path: Path) -> RunFolder:
    config = tiny(
        tmp_path / "old", total_steps=64 * 4, network=NetworkConfig(hidden=(16,), normalise_obs=True)
    )
    async with training(config, job=Job(PLAN, normalised)) as run:
        await run.wait()
    return run.folder


@pytest.mark.asyncio
async def test_the_network_is_taken_over_and_nothing_else(trained: RunFolder, tmp_path: Path) -> None:
    """From a run folder or a file in one; observation statistics too, in the network and in the envs."""
    old, path, _ = Checkpoints(trained.checkpoints).load_newest()
    config = tiny(
        tmp_path / "new", network=NetworkConfig(hidden=(16,), normalise_obs=True), keep_checkpoints=9
    )
    for source in (trained.path, path):
        new, said = await begun(replace(config, init_from=source), Job(PLAN, normalised))
        assert said == f"begins with {len(old.model)} tensors of {path}; left out: nothing"
        assert all(torch.equal(new.model[name], value) for name, value in old.model.items())
        assert new.optimiser["state"] == {}
        assert (new.env_steps, new.tally["updates"], new.curriculum["strategy"]["total"]) == (0, 0, 0)
        assert counts(new) == pytest.approx(counts(old))
        assert min(counts(old)) > 100


@pytest.mark.asyncio
async def test_what_does_not_fit_is_left_out_by_name(trained: RunFolder, tmp_path: Path) -> None:
    """Other actions, another wrapper: their part begins anew, the rest is taken over."""
    old, _, _ = Checkpoints(trained.checkpoints).load_newest()
    config = tiny(
        tmp_path / "new", init_from=trained.path, keep_checkpoints=9, network=NetworkConfig(hidden=(16,))
    )
    job = Job(PLAN, lambda: cu.CurriculumEnv(MoreDoors(), cu.LevelSet(LEVELS)))
    new, said = await begun(config, job)
    for part in (
        "actor.2.weight ((3, 16), here (5, 16))", "actor.2.bias ((3,), here (5,))",
        "encoders.0.mean (unknown here)", "NormalizeObservation of its envs",
    ):  # fmt: skip
        assert part in said
    assert torch.equal(new.model["actor.0.weight"], old.model["actor.0.weight"])
    assert np.shape(new.model["actor.2.weight"]) == (5, 16)


@pytest.mark.asyncio
async def test_what_cannot_be_begun_with_is_one_clear_error(trained: RunFolder, tmp_path: Path) -> None:
    runs = tmp_path / "new"
    other = tiny(runs, init_from=trained.path, network=NetworkConfig(hidden=(8, 8)))
    with pytest.raises(CheckpointError, match="not one parameter of its network fits this env and config"):
        async with training(other, job=corridor_job("image")):
            pass
    with pytest.raises(ConfigError, match="none: no such run folder"):
        async with training(tiny(runs, init_from=tmp_path / "none"), job=corridor_job()):
            pass
    assert not runs.exists() or not list(runs.iterdir())
    again = replace(trained.config(), init_from=trained.path)
    with pytest.raises(
        ConfigError, match="init_from is where a run begins: a resumed one goes on from its own"
    ):
        async with training(again, resume=trained.path, job=Job(PLAN, normalised)):
            pass
