"""A network is loaded for the spaces that it was trained for: those whose tensors agree, but not their meaning, too."""
# async: pure tables, and one short run, inline

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import curriculum as cu
from tests.trainers.helpers import LEVELS, PLAN, Corridor, tiny
from trainers import CheckpointError, Job, NetworkConfig, TrainConfig, load_policy, training
from trainers.evaluate import evaluate
from trainers.export import export
from trainers.learn.actions import action_head
from trainers.learn.defaults import for_spaces
from trainers.learn.meaning import differences, meaning_of
from trainers.learn.own_networks import make_network
from trainers.record.checkpoint import Checkpoints, load

pytestmark = pytest.mark.alternate_loops

THREE = Discrete(3)
PLAIN = NetworkConfig(hidden=(8,))
UNSCALED = NetworkConfig(hidden=(8,), scale_actions=False)


def meaning(obs: Any, actions: Any = THREE, network: NetworkConfig = PLAIN) -> dict[str, Any]:
    chosen = for_spaces(TrainConfig(network=network), obs, actions).network
    head = action_head(actions, chosen)
    return meaning_of(make_network(obs, head, chosen, seed=0), head, obs)


VECTOR = Box(-1, 1, (3,))
PICTURE = (12, 12, 3)


@pytest.mark.parametrize(
    ("before", "here", "said"),
    [
        ((VECTOR, Box(-1, 1, (2,))), (VECTOR, Box(-3, 1, (2,))), ["actions: low [-1, -1], here [-3, -3]"]),
        ((VECTOR, Discrete(3)), (VECTOR, Discrete(3, start=1)), ["actions: start [0], here [1]"]),
        ((VECTOR, MultiDiscrete([2, 3])), (VECTOR, MultiDiscrete([3, 2])), ["actions: sizes [2, 3], here [3, 2]"]),
        ((Discrete(4),), (Discrete(4, start=-1),), ["the observation: start [0], here [-1]"]),
        ((MultiDiscrete([2, 3]),), (Discrete(5),), ["the observation: shape [2], here []"]),
        ((Box(0, 255, (3,)),), (Box(0, 100, (3,)),), ["the observation: factor 0.00392157, here 1"]),
        ((Box(0, 255, PICTURE, np.uint8),), (Box(0, 1, PICTURE),), ["the observation: largest 255, here 1"]),
        (
            (Dict(flags=MultiBinary(2), pos=VECTOR),),
            (Dict(zflags=MultiBinary(2), pos=VECTOR),),
            ["there was observation 'flags', here is none", "observation 'zflags' is new"],
        ),
        (
            (Dict([("a", VECTOR), ("b", VECTOR)]),),
            (Dict([("b", VECTOR), ("a", VECTOR)]),),
            ["the observation's parts were in the order a, b, here b, a"],
        ),
        # what the network does not use may change
        ((VECTOR,), (Box(-9, 9, (3,), np.float64),), []),
        ((VECTOR, Box(-0.1, 0.1, (2,))), (VECTOR, Box(-0.1, 0.1, (2,), np.float64)), []),
        ((VECTOR, Box(-1, 1, (2,)), UNSCALED), (VECTOR, Box(-3, 3, (2,)), UNSCALED), []),
    ],
)  # fmt: skip
def test_every_change_of_meaning_is_named(before: Any, here: Any, said: list[str]) -> None:
    assert differences(meaning(*before), meaning(*here)) == said
    assert differences(meaning(*here), meaning(*here)) == []


class Pusher(Corridor):
    """`Corridor` by a force."""

    def __init__(self, force: float) -> None:
        super().__init__()
        self.action_space = Box(-force, force, (1,), np.float32)

    def step(self, action: Any) -> Any:
        return super().step(int(action[0] > 0))


def pushed(force: float) -> Job:
    return Job(PLAN, lambda: cu.CurriculumEnv(Pusher(force), cu.LevelSet(LEVELS)))


@pytest.mark.asyncio
async def test_every_door_refuses_actions_that_mean_something_else(tmp_path: Path) -> None:
    """Resumed, judged, exported, played: an error that names them. Begun with: said. Of before: as before."""
    async with training(tiny(tmp_path, total_steps=64), job=pushed(1.0)) as run:
        await run.wait()
    folder, strong = run.folder.path, pushed(3.0)
    refused = (
        r"step-\d+\.pt: the saved network does not fit .*: actions: low \[-1\], here \[-3\]; actions: high"
    )
    with pytest.raises(CheckpointError, match=refused):
        load_policy(folder, Pusher(3.0))
    for door in (
        evaluate(folder, episodes=1, job=strong),
        export(folder, tmp_path / "p.npz", job=strong),
    ):
        with pytest.raises(CheckpointError, match=refused):
            await door
    with pytest.raises(CheckpointError, match=refused):
        async with training(resume=folder, job=strong):
            pass
    async with training(tiny(tmp_path, init_from=folder, total_steps=64), job=strong) as begun:
        assert any("trained for other spaces: actions: low [-1], here [-3]" in said for said in begun.choices)
    path = run.folder.checkpoints / "best.pt"
    saved = replace(load(Checkpoints(run.folder.checkpoints).paths()[-1]), spaces={})
    Checkpoints(path.parent).save_best(saved)
    load_policy(path, Pusher(3.0))
