"""Presets are what the design says, and their envs run in children that know nothing of the trainer."""
# edge: real workers

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aio_vecenv as av
import curriculum as cu
from trainers import ConfigError, Job, TrainConfig, load_preset, training
from trainers.jobs import make_envs, resolve_job
from trainers.presets import DEFAULT, NAMES, maze_levels, mazes

pytestmark = pytest.mark.alternate_loops


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_is_whole(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == preset.config.preset == name
    job = resolve_job(preset.config)
    assert len(job.plan) == {"pendulum": 1, "atari": 1, "doorkey16": 4}.get(name, 3)
    only = resolve_job(replace(preset.config, curriculum=False))
    assert only.plan.names == (job.plan.names[-1],)


def test_frozenlake_is_what_the_table_says() -> None:
    assert DEFAULT == "frozenlake"
    config = load_preset("frozenlake").config
    ppo = config.ppo
    assert (config.num_envs, ppo.num_steps, ppo.lr, ppo.entropy) == (32, 32, 1e-3, 0.01)
    assert (ppo.epochs, ppo.minibatches, ppo.gamma, ppo.gae_lambda, ppo.time_limit) == (
        4,
        4,
        0.99,
        0.95,
        "terminal",
    )
    assert (config.network.hidden, config.network.activation) == ((64, 64), "tanh")
    assert (config.solve_rate, config.solve_window) == (1.0, 50)
    assert [stage.name for stage in resolve_job(config).plan] == ["near", "middle", "far"]


def test_the_maps_come_with_their_source() -> None:
    path = Path(__file__).parents[2] / "trainers" / "presets" / "frozenlake_maps.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    assert "ray-project/ray" in data["source"]
    assert data["env"] == {"id": "FrozenLake-v1", "is_slippery": False, "max_episode_steps": 16}
    goals = {stage["name"]: "".join(stage["map"]).index("G") for stage in data["stages"]}
    assert goals == {"near": 18, "middle": 44, "far": 63}


@pytest.mark.parametrize("name", ["doorkey", "doorkey16", "atari"])
def test_a_missing_extra_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("atari", "doorkey"):
        monkeypatch.setattr(f"trainers.presets.{module}.find_spec", lambda _name: None)
    needed = name.removesuffix("16").replace("doorkey", "minigrid")
    with pytest.raises(ConfigError, match=rf"needs the extra: pip install 'aio-vecenv\[{needed}\]'$"):
        resolve_job(load_preset(name).config)


def test_the_mazes_are_those_that_their_command_makes_and_can_be_solved() -> None:
    """By shortest paths of the length that is their difficulty, within their stage's; no test level is trained on."""
    with np.load(mazes.FILE, allow_pickle=False) as file:
        shipped = dict(file)
    total = len(shipped["walls"])
    assert total == 3 * maze_levels.PER_STAGE
    made = maze_levels.generate(0, per_stage=4)
    for k, (low, high) in enumerate(maze_levels.LENGTHS.values()):
        first = k * maze_levels.PER_STAGE
        for name, column in made.items():
            np.testing.assert_array_equal(column[4 * k : 4 * k + 4], shipped[name][first : first + 4])
        assert low <= shipped["length"][first : first + maze_levels.PER_STAGE].min()
        assert shipped["length"][first : first + maze_levels.PER_STAGE].max() <= high
    for i in range(0, total, 50):
        walls = np.unpackbits(shipped["walls"][i], count=maze_levels.SIZE**2).reshape(-1, maze_levels.SIZE)
        start, goal = (tuple(shipped[name][i].tolist()) for name in ("start", "goal"))
        assert maze_levels.shortest_path(walls.astype(bool), start, goal) == shipped["length"][i]
    practised, tested = (
        {str(job.make_env().levels[i].data) for i in numbers}
        for job, numbers in ((resolve_job(mazes.PRESET.config), range(4200)), (mazes.held_out(), range(300)))
    )
    assert (len(practised), len(tested), len(practised & tested)) == (4200, 300, 0)


def test_a_maze_is_walked_and_left() -> None:
    """Walls hold, steps cost, the goal ends it; where one has been is seen."""
    env = mazes.held_out().make_env().unwrapped
    # one corridor of four cells
    walls = [int(not (i == 1 and 0 < j < 5)) for i in range(11) for j in range(11)]
    obs, _ = env.reset(options={"level": {"walls": walls, "start": [1, 1], "goal": [1, 4]}})
    seen = obs["seen"]
    assert seen[:25].reshape(5, 5)[2].tolist() == [1, 1, 0, 0, 0]
    assert seen[25:50].reshape(5, 5)[2].tolist() == [0, 0, 0.25, 0, 0]
    assert seen[50:].tolist() == pytest.approx([0, 3 / 11])
    assert obs["action_mask"].tolist() == [0, 0, 0, 1]
    rewards = [env.step(action)[1:] for action in (0, 3, 3, 3)]  # into the wall above; then right
    assert [(reward, over, info["is_success"]) for reward, over, _, info in rewards] == [
        (0.0, False, False),
        (0.0, False, False),
        (0.0, False, False),
        (1 - 0.9 * 4 / 80, True, True),
    ]
    env.reset(options={"level": {"walls": walls, "start": [1, 1], "goal": [1, 4]}})
    assert [env.step(0)[3] for _ in range(80)] == [False] * 79 + [True]


@pytest.mark.asyncio
@pytest.mark.parametrize("name", [name for name in NAMES if name != "doorkey16"])
async def test_a_presets_env_plays_each_stage_in_a_child_without_torch_or_trainers(name: str) -> None:
    job = resolve_job(load_preset(name).config)
    make_env = job.make_env

    def spying() -> Any:
        import sys

        env = make_env()

        def loaded(module: str) -> bool:
            return module in sys.modules

        env.loaded = loaded  # reached by call()
        return env

    async with av.AsyncVecEnv(spying, 2, num_workers=1) as envs:
        for stage in job.plan.names:
            none = (0.0,) * len(job.plan)
            directive = cu.Directive(stages=job.plan.names, stage=stage, ratios=none)
            await envs.broadcast(directive, topic="curriculum", apply="now")
            _, infos = await envs.reset(seed=1)
            assert list(infos["curriculum_stage"]) == [stage, stage]
            for _ in range(40):
                await envs.step(envs.action_space.sample())
        assert await envs.call("loaded", "torch") == (False, False)
        assert await envs.call("loaded", "trainers") == (False, False)


@pytest.mark.asyncio
async def test_doorkey_changes_its_size() -> None:
    """A command of the curriculum reaches the grids: their width, walls, step limit and what the agent sees."""
    job = resolve_job(load_preset("doorkey").config)
    sizes = {"5x5": 5, "6x6": 6, "8x8": 8}
    async with av.AsyncVecEnv(job.make_env, 2, backend="inline") as envs:
        coordinator = cu.Coordinator(cu.Staged(job.plan, stage_mixing=False), envs)
        async with asyncio.TaskGroup() as tasks:
            deciding = tasks.create_task(coordinator.run())
            seen = {}
            for stage in ("5x5", "8x8", "6x6"):
                if stage != coordinator.stage:
                    await coordinator.set_stage(stage)
                obs, infos = await envs.reset(seed=3)
                assert list(infos["curriculum_stage"]) == [stage, stage]
                assert await envs.apply(_measure) == (sizes[stage],) * 2
                assert (await envs.get_attr("max_steps")) == (10 * sizes[stage] ** 2,) * 2
                assert obs["image"].shape == (2, 7, 7, 3)
                seen[stage] = obs["image"]
            assert not any((seen["5x5"] == seen[stage]).all() for stage in ("6x6", "8x8"))
            deciding.cancel()


@pytest.mark.asyncio
async def test_doorkey_draws_all_sizes_where_levels_are_drawn() -> None:
    job = resolve_job(load_preset("doorkey").config)
    async with av.AsyncVecEnv(job.make_env, 12, backend="inline") as envs:
        levels = (await envs.get_attr("levels"))[0]
        await envs.broadcast(cu.DomainRandomisation(levels).directive(), topic="curriculum", apply="now")
        _, infos = await envs.reset(seed=1)
        assert await envs.apply(_measure) == tuple(int(stage[0]) for stage in infos["curriculum_stage"])
        assert set(infos["curriculum_stage"]) == {"5x5", "6x6", "8x8"}


def _measure(env: Any) -> int:
    """The side of the square that the outer walls make, with a locked door in it and one key."""
    grid = env.unwrapped.grid
    side: int = grid.width
    assert (grid.height, len(grid.grid)) == (side, side * side)
    edge = (0, side - 1)
    kinds = {
        (x, y): cell.type for x in range(side) for y in range(side) if (cell := grid.get(x, y)) is not None
    }
    assert all(kinds[x, y] == "wall" for x in range(side) for y in range(side) if x in edge or y in edge)
    found = sorted(kind for kind in kinds.values() if kind != "wall")
    assert found == ["door", "goal", "key"]
    assert kinds[side - 2, side - 2] == "goal"
    return side


@pytest.mark.asyncio
async def test_a_gymnasium_id_without_a_plan_is_one_stage(tmp_path: Path) -> None:
    config = TrainConfig(env="CartPole-v1", num_envs=4, num_workers=1, total_steps=512, runs=tmp_path)
    async with training(config) as run:
        summary = await run.wait()
    assert [stage.name for stage in summary.stages] == ["all"]
    assert summary.stages[0].episodes > 10


def test_levels_bring_their_plan_and_a_plan_file_wins(tmp_path: Path) -> None:
    stages = tmp_path / "levels"
    for stage in ("a", "b"):
        (stages / stage).mkdir(parents=True)
        (stages / stage / "some.jsonl").write_text(
            f'{{"id": "{stage}1", "data": {{"low": 0.0, "high": 0.01}}}}\n'
        )
    (stages / "plan.toml").write_text('[[stage]]\nname = "a"\n\n[[stage]]\nname = "b"\n')
    config = TrainConfig(env="CartPole-v1", levels=stages)
    assert resolve_job(config).plan.names == ("a", "b")
    plan = tmp_path / "own.toml"
    plan.write_text('[[stage]]\nname = "b"\n')
    assert resolve_job(replace(config, plan=plan)).plan.names == ("b",)
    with pytest.raises(ConfigError, match="a preset brings its own levels"):
        resolve_job(TrainConfig(preset="frozenlake", levels=stages))


def test_an_own_curriculum_env_is_left_as_it_is() -> None:
    from tests.trainers.helpers import LEVELS, Corridor

    job: Job = resolve_job(TrainConfig(env="tests.trainers.helpers:Corridor"))
    env = job.make_env()
    assert isinstance(env, cu.CurriculumEnv)
    assert isinstance(env.env, Corridor)
    assert LEVELS
    nested = resolve_job(TrainConfig(env="tests.trainers.test_presets:make_nested")).make_env()
    assert isinstance(nested, cu.CurriculumEnv)
    assert isinstance(nested.env, Corridor)


def make_nested() -> Any:
    from tests.trainers.helpers import LEVELS, Corridor

    return cu.CurriculumEnv(Corridor(), cu.LevelSet(LEVELS))


@pytest.mark.asyncio
async def test_a_factory_that_takes_an_argument_gets_its_envs_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under the `CurriculumEnv` that the trainer puts around it."""
    (tmp_path / "by_index.py").write_text(
        "from aio_vecenv.testing import StampEnv\ndef make(index): return StampEnv(index)\nclass Made(StampEnv): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("make", "Made"):
        config = TrainConfig(
            env=f"by_index:{name}", num_envs=3, num_workers=2 if name == "make" else "per env"
        )
        async with make_envs(config, resolve_job(config)) as envs:
            assert await envs.get_attr("env_index") == (0, 1, 2)
            assert envs.num_workers == (2 if name == "make" else 3)
