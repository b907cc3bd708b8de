"""Action masks: where they come from, and masks that allow nothing."""
# resource: small runs, inline and in a worker

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as S

import curriculum as cu
from tests.trainers.helpers import Corridor, tiny
from trainers import ConfigError, Job, load_policy, training
from trainers.evaluate import evaluate
from trainers.record.progress import PlainLines

pytestmark = pytest.mark.alternate_loops


class Turns(gym.Env[Any, Any]):
    """Six steps; which of the actions is allowed changes with every step. Illegal ones are an error. At the end nothing
    is allowed."""

    observation_space = S.Box(0, 6, (1,), np.float32)

    def __init__(self, actions: Any, how: str, stuck_at: int | None = None) -> None:
        self.action_space, self.how, self.stuck_at = actions, how, stuck_at
        self.sizes = [int(actions.n)] if isinstance(actions, S.Discrete) else actions.nvec.tolist()
        self.asked = 0

    def masks(self) -> Any:
        over = self.t >= 6 or self.t == self.stuck_at
        parts = [np.eye(size, dtype=bool)[self.t % size] for size in self.sizes]
        if over:
            parts[-1][:] = False  # one part is enough
        # one after another, or a list of them
        return np.concatenate(parts) if self.t % 2 or len(parts) == 1 else parts

    def action_masks(self) -> Any:
        assert self.how == "method", "an env that says it in its infos was asked"
        assert self.t < 6, "asked at the end, when no action follows"
        return [part.tolist() for part in self.masks()]

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.masks()} if self.how == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), self.info()

    def step(self, action: Any) -> Any:
        expected = [self.t % size for size in self.sizes]
        assert np.reshape(action, -1).tolist() == expected, "a masked action was taken"
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t >= 6, False, {**self.info(), "is_success": True}


PLAN = cu.StagePlan([cu.Stage("all")])


def job(actions: Any, how: str, stuck_at: int | None = None, wrapped: bool = False) -> Job:
    levels = cu.LevelSet([cu.Level(id="all", stage="all", data={})])

    def make() -> Any:
        env: Any = Turns(actions, how, stuck_at)
        if wrapped:
            env = gym.wrappers.TimeLimit(gym.wrappers.TransformReward(env, lambda reward: reward), 100)
        env = cu.CurriculumEnv(env, levels, load=lambda env, level: None)
        return gym.wrappers.TransformReward(env, lambda reward: reward) if wrapped else env

    return Job(PLAN, make)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("how", ["info", "method"])
@pytest.mark.parametrize("actions", [S.Discrete(3), S.MultiDiscrete([2, 3])], ids=str)
@pytest.mark.asyncio
async def test_no_masked_action_is_ever_taken(tmp_path: Path, actions: Any, how: str, wrapped: bool) -> None:
    """From infos, or by the method `action_masks` of an env behind wrappers: in training and in eval, and all may be
    forbidden once an episode has ended."""
    config = replace(tiny(tmp_path, name="run"), total_steps=128, on_env_error="raise")
    asked = job(actions, how, wrapped=wrapped)
    async with training(config, job=asked) as run:
        await run.wait()
        assert run._collector.learner.rollout.masks is not None
    (result,) = await evaluate(tmp_path / "run", episodes=8, job=asked)
    assert result.mean_return == 6


@pytest.mark.asyncio
async def test_masks_are_asked_for_in_the_worker(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path, name="run"), total_steps=64, backend="process", on_env_error="raise")
    async with training(config, job=job(S.Discrete(3), "method", wrapped=True)) as run:
        await run.wait()


@pytest.mark.parametrize("stuck_at", [0, 4])
@pytest.mark.parametrize("actions", [S.Discrete(3), S.MultiDiscrete([2, 3])], ids=str)
@pytest.mark.asyncio
async def test_a_mask_that_allows_nothing_is_an_error_that_names_env_and_step(
    tmp_path: Path, actions: Any, stuck_at: int
) -> None:
    async def go() -> None:
        async with training(tiny(tmp_path), job=job(actions, "info", stuck_at)) as run:
            await run.wait()

    with pytest.raises(
        ConfigError,
        match=rf"^env 0, after {stuck_at} steps of its episode, stage 'all', level 'all': the action",
    ):
        await go()


class Wrong(Corridor):
    """On a level that says so, the mask of the fourth step is `mask`; elsewhere it is one."""

    def __init__(self, mask: Any, how: str) -> None:
        super().__init__()
        self.wrong, self.how = mask, how

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.bad = options["level"]["bad"]
        obs, info = super().reset(seed=seed, options=options)
        return obs, {**info, "action_mask": [1, 1, 0]} if self.how == "info" else info

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return (*rest, {**info, "action_mask": self.mask()} if self.how == "info" else info)

    def mask(self) -> Any:
        if self.bad and self.t == 3:
            if isinstance(self.wrong, Exception):
                raise self.wrong
            return self.wrong
        return [1, 1, 0]


class Asked(Wrong):
    def action_masks(self) -> Any:
        return self.mask()


class Read(Wrong):
    @property
    def action_masks(self) -> Any:
        return self.mask()


WRONG = [
    (np.zeros(3), "the action mask allows no action"),
    ([1, 1], "an action mask has 2 entries, expected one per action: 3"),
    ([[1, 0], [1]], "an action mask must hold bools or numbers, one per action: 3; got"),
    (None, "an action mask must hold bools or numbers, one per action: 3; got None"),
    ("110", "an action mask must hold bools or numbers, one per action: 3; got '110'"),
    ({"a": [1, 1, 0]}, "an action mask must hold bools or numbers, one per action: 3; got"),
    ([1.0, np.nan, 0.0], "an action mask must hold bools or numbers, one per action: 3; got"),
]


def wrong_job(mask: Any, kind: type[Wrong], how: str) -> Job:
    levels = cu.LevelSet([cu.Level("all", f"level {n}", {"bad": n == 3, "goal": 12}) for n in range(4)])
    return Job(PLAN, lambda: cu.CurriculumEnv(kind(mask, how), levels))


@pytest.mark.parametrize("kind", [Asked, Read])
@pytest.mark.parametrize(
    ("mask", "text"),
    [*WRONG[:3], (ArithmeticError("no mask"), "no mask")],
    ids=["none", "short", "ragged", "raises"],
)
@pytest.mark.asyncio
async def test_what_is_wrong_with_a_mask_that_is_asked_for_is_an_error_of_its_env(
    tmp_path: Path, kind: type[Wrong], mask: Any, text: str
) -> None:
    config = replace(tiny(tmp_path), total_steps=256, strategy="uniform")
    async with training(config, job=wrong_job(mask, kind, "method")) as run:
        summary = await run.wait()
    assert list(summary.env_errors) == ["all/level 3"]
    assert len(run.warnings) == 1
    assert text in run.warnings[0]


@pytest.mark.parametrize(("mask", "text"), WRONG, ids=[str(mask) for mask, _ in WRONG])
@pytest.mark.asyncio
async def test_what_is_wrong_with_a_mask_in_the_infos_is_told_with_its_place(
    tmp_path: Path, mask: Any, text: str
) -> None:
    config = replace(tiny(tmp_path), total_steps=256, strategy="uniform")
    with pytest.raises(ConfigError) as caught:
        async with training(config, job=wrong_job(mask, Wrong, "info")) as run:
            await run.wait()
    assert re.match(
        r"env \d, after 3 steps of its episode, stage 'all', level 'level 3': ", str(caught.value)
    )
    assert text in str(caught.value)


@pytest.mark.asyncio
async def test_under_unrolls_too_the_place_of_a_mask_that_allows_nothing_is_told(tmp_path: Path) -> None:
    """Also where another episode has begun before the chunk is in."""

    class Inside(Wrong):
        def __init__(self) -> None:
            super().__init__(np.zeros(3, np.int8), "leaf")
            self.observation_space = S.Dict({"x": self.observation_space, "action_mask": S.MultiBinary(3)})

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            obs, info = super().reset(seed=seed, options=options)
            return {"x": obs, "action_mask": np.array(self.mask(), np.int8)}, info

        def step(self, action: Any) -> Any:
            obs, reward, terminated, _, info = super().step(action)
            return (
                {"x": obs, "action_mask": np.array(self.mask(), np.int8)},
                reward,
                terminated,
                self.t == 5,
                info,
            )

    levels = cu.LevelSet([cu.Level("all", f"level {n}", {"bad": n == 3, "goal": 12}) for n in range(4)])
    config = replace(tiny(tmp_path), total_steps=256, strategy="uniform", collect="unroll", unroll=16)
    with pytest.raises(
        ConfigError, match=r"^env \d, after 3 steps of its episode, stage 'all', level 'level 3': "
    ):
        async with training(config, job=Job(PLAN, lambda: cu.CurriculumEnv(Inside(), levels))) as run:
            await run.wait()


class Elsewhere(Corridor):
    """Its masks are where nobody looks."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, mask = where, S.MultiBinary(3)
        inside: dict[str, Any] = {
            "nested": S.Dict({"in": S.Dict({"action_mask": mask})}), "leaf": S.Dict({"valid_moves": mask}),
        }  # fmt: skip
        self.observation_space = inside.get(where, self.observation_space)

    def shown(self, obs: Any, info: Any) -> Any:
        mask = np.array([1, 1, 0], np.int8)
        obs = {"nested": {"in": {"action_mask": mask}}, "leaf": {"valid_moves": mask}}.get(self.where, obs)
        if self.where == "plural":
            info = {**info, "action_masks": mask}
        return obs, {**info, "action_mask": mask} if self.where == "late" and self.t else info

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.shown(*super().reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        obs, *rest, info = super().step(action)
        obs, info = self.shown(obs, info)
        return obs, *rest, info


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("nested", "the observation's ['in']['action_mask'] looks"),
        ("leaf", "the observation's ['valid_moves'] looks"),
        ("late", "info['action_mask'], which is not there at reset, looks"),
        ("plural", "info['action_masks'] looks"),
    ],
)
@pytest.mark.parametrize("collect", ["lockstep", "unroll"])
@pytest.mark.asyncio
async def test_masks_where_nobody_looks_are_warned_of_once(
    tmp_path: Path, where: str, named: str, collect: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """And told, even if an error ends the run before its first report."""
    levels = cu.LevelSet([cu.Level(id="all", stage="all", data={"goal": 2})])
    config, shown = replace(tiny(tmp_path), total_steps=128, collect=collect), PlainLines()
    async with training(config, job=Job(PLAN, lambda: cu.CurriculumEnv(Elsewhere(where), levels))) as run:
        shown.start(run)
        await run.wait()
    shown.__exit__(ValueError, ValueError(), None)
    assert capsys.readouterr().out.count("like an action mask") == 1
    (warning,) = run.warnings
    assert warning.startswith(
        f"{named} like an action mask and is not used: masks are looked for in info['action_mask']"
    )


@pytest.mark.asyncio
async def test_a_loaded_policy_refuses_such_a_mask(tmp_path: Path) -> None:
    config = replace(tiny(tmp_path, name="run"), total_steps=64)
    async with training(config, job=job(S.Discrete(3), "info")) as run:
        await run.wait()
    policy = load_policy(tmp_path / "run", Turns(S.Discrete(3), "info"))
    obs = np.zeros(1, np.float32)
    assert policy.act(obs, {"action_mask": [False, True, False]}) == 1
    for mask, text in WRONG[:3] + WRONG[4:]:  # None: no mask
        with pytest.raises(ConfigError, match=re.escape(text)):
            policy.act(obs, {"action_mask": mask})
