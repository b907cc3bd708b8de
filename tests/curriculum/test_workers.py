"""The rows of the defect table in which workers play a part, on real worker processes."""
# async: two worker processes; waits for states, never for a duration

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from aio_vecenv import AsyncVecEnv, Batch, EnvError, SpaceMismatch
from curriculum import (
    Coordinator,
    CurriculumEnv,
    Directive,
    Level,
    LevelSet,
    Stage,
    Staged,
    StagePlan,
    Strategy,
)
from curriculum.replay import replay
from tests.curriculum.helpers import PLAN, ActionEnv, Flash, level_set

pytestmark = pytest.mark.alternate_loops

Backend = Literal["process", "inline"]


def factory(plan: StagePlan = PLAN, length: int = 1) -> Callable[[], CurriculumEnv]:
    levels = level_set(plan)
    return lambda: CurriculumEnv(ActionEnv(length), levels)


@contextlib.asynccontextmanager
async def deciding(
    strategy: Strategy,
    make: Callable[[], Any],
    num_envs: int,
    *,
    backend: Backend = "process",
    num_workers: int = 2,
    autoreset: AutoresetMode = AutoresetMode.NEXT_STEP,
    journal: Path | None = None,
) -> AsyncIterator[tuple[AsyncVecEnv, Coordinator]]:
    envs = AsyncVecEnv(make, num_envs, num_workers=num_workers, backend=backend, autoreset=autoreset)
    async with envs:
        coordinator = Coordinator(strategy, envs, journal=journal)
        task = asyncio.create_task(coordinator.run())
        try:
            yield envs, coordinator
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # what ended it has reached settled()


async def step(envs: AsyncVecEnv, coordinator: Coordinator, action: int) -> Batch:
    batch = await envs.step(np.full(envs.num_envs, action))
    await coordinator.settled()
    return batch


def recorded() -> Staged:
    staged = Staged()
    for i in range(30):
        staged.record("simplest", i < 12)
    return staged


@pytest.mark.asyncio
async def test_c01_every_worker_answers_with_the_ratio_of_outcomes_from_before_it_existed() -> None:
    """The defect that this project began with: 12 of 30 successes of *simplest*; elsewhere .20 or stale."""
    async with deciding(recorded(), factory(StagePlan()), 4) as (envs, coordinator):
        await envs.reset(seed=7)
        assert await envs.call("get_mixing_ratio", "simplest") == (0.40,) * 4
        assert coordinator.mixing_ratio("simplest") == 0.40


@pytest.mark.asyncio
async def test_c01_the_ratio_in_the_workers_follows_the_success_rate_without_a_stage_change() -> None:
    """And while training: from 40 % to 5 % while training."""
    plan = StagePlan([Stage("simplest", 1.0, 10_000), Stage("simpler")])
    staged = Staged(plan, early=False, trend=False)
    seen = []
    async with deciding(staged, factory(plan), 4) as (envs, coordinator):
        await envs.reset(seed=7)
        for action in [0] * 20 + [1] * 40:
            await step(envs, coordinator, action)
            answers = await envs.call("get_mixing_ratio", "simplest")
            assert set(answers) == {coordinator.mixing_ratio("simplest")}  # all workers, after every step
            seen.append(answers[0])
    # four outcomes are too few to say anything; then it follows
    assert [ratio for i, ratio in enumerate(seen) if i == 0 or ratio != seen[i - 1]] == [
        0.20,
        0.40,
        0.25,
        0.15,
        0.05,
    ]
    assert coordinator.stage == "simplest"
    assert coordinator.decisions == []


class Deaf(CurriculumEnv):
    """The reference bug, rebuilt: it keeps the first directive it ever got."""

    def on_broadcast(self, payload: Any, version: int) -> None:
        if self._directive is None:
            super().on_broadcast(payload, version)


@pytest.mark.asyncio
async def test_c13_the_check_of_the_ratio_fails_on_a_worker_that_is_stale() -> None:
    levels = level_set(StagePlan())
    async with deciding(Staged(), lambda: Deaf(ActionEnv(), levels), 4) as (envs, coordinator):
        await envs.reset(seed=7)
        for _ in range(10):
            await step(envs, coordinator, 0)
        assert coordinator.mixing_ratio("simplest") == 0.40
        assert await envs.call("get_mixing_ratio", "simplest") == (0.20,) * 4


@pytest.mark.asyncio
async def test_c02_after_a_resume_workers_and_coordinator_say_the_same() -> None:
    staged = Staged()
    for _ in range(30):
        staged.record("simplest", True)
    state = json.loads(
        json.dumps({"schema": 1, "held": False, "decisions": [], "strategy": staged.state_dict()})
    )
    async with deciding(Staged(), factory(StagePlan()), 4) as (envs, coordinator):
        coordinator.load_state_dict(state)
        await envs.reset(seed=7)
        assert coordinator.mixing_ratio("simplest") == 0.05
        assert await envs.call("get_mixing_ratio", "simplest") == (0.05,) * 4


DECIDES = StagePlan([Stage("near", 0.6, 16), Stage("middle", 1.0, 10_000), Stage("far")])


async def begun_after_the_decision(
    autoreset: AutoresetMode, backend: Backend
) -> tuple[Counter[str], Counter[str]]:
    """16 envs, episodes of 5 steps, all end in the step that decides. Stages of the episodes that begin with or after
    that step: the first of each env, and all later ones.
    """
    staged = Staged(DECIDES, early=False, trend=False, stage_mixing=False)
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    make = factory(DECIDES, 5)
    async with deciding(staged, make, 16, autoreset=autoreset, backend=backend) as (envs, coordinator):
        stream = envs.events()
        await envs.reset(seed=7)
        assert len((await stream.next_batch()).events) == 16
        for t in range(18):
            await step(envs, coordinator, 1)
            assert coordinator.stage == ("near" if t < 4 else "middle")
        while stream.behind:
            for event in (await stream.next_batch()).events:
                if not hasattr(event, "outcome"):
                    (first if event.index == 1 else later)[event.task["stage"]] += 1
    return first, later


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["process", "inline"])
@pytest.mark.both_loops
async def test_c05_c19_g09_no_env_begins_another_episode_on_the_old_stage(backend: Backend) -> None:
    first, later = await begun_after_the_decision(AutoresetMode.NEXT_STEP, backend)
    assert first == {"middle": 16}  # elsewhere 16 of 16 on the old stage
    assert later == {"middle": 32}


@pytest.mark.asyncio
async def test_c05_under_same_step_each_env_has_begun_one_before_anybody_could_decide() -> None:
    first, later = await begun_after_the_decision(AutoresetMode.SAME_STEP, "process")
    assert first == {"near": 16}  # inside the deciding step itself: the documented count, one per env
    assert later == {"middle": 32}


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_c06_a_command_is_in_force_for_the_very_next_resets() -> None:
    async with deciding(Staged(PLAN, stage_mixing=False), factory(), 8) as (envs, coordinator):
        stream = envs.events()
        await envs.reset(seed=7)
        await step(envs, coordinator, 0)  # all episodes end; their envs reset with the next step
        receipt = coordinator.set_stage("far", by="callback", why="a second controller")
        for _ in range(10):
            await step(envs, coordinator, 0)
        assert receipt.version == coordinator.receipt.version == 2
        begun = []
        while stream.behind:
            begun += [event for event in (await stream.next_batch()).events if not hasattr(event, "outcome")]
    assert [event.task["stage"] for event in begun] == ["near"] * 8 + ["far"] * 40
    assert {event.version >= receipt.version for event in begun[8:]} == {True}


@pytest.mark.asyncio
async def test_c17_forty_envs_advance_like_one() -> None:
    async with deciding(Staged(PLAN), factory(), 40) as (envs, coordinator):
        await envs.reset(seed=7)
        for _ in range(12):
            await step(envs, coordinator, 1)
        assert [decision.to for decision in coordinator.decisions][:2] == ["middle", "far"]


@pytest.mark.asyncio
async def test_c08_a_level_that_cannot_be_loaded_stops_the_run_with_its_name() -> None:
    def load(env: Any, level: Level) -> None:
        raise FileNotFoundError(f"{level.id}.map")

    levels = level_set()
    make = lambda: CurriculumEnv(ActionEnv(), levels, load=load)  # noqa: E731
    async with deciding(Staged(PLAN), make, 1, num_workers=1) as (envs, coordinator):
        with pytest.raises(EnvError) as caught:
            await envs.reset(seed=7)
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        assert "while starting level 'near-" in str(caught.value) + "".join(caught.value.__notes__)
        assert coordinator.folded == 0


@pytest.mark.asyncio
async def test_c11_workers_read_levels_from_disk_by_themselves(tmp_path: Path) -> None:
    for name in PLAN.names:
        (tmp_path / name).mkdir()
        lines = [json.dumps({"id": f"{name}{i}", "data": {"length": 1 + i % 3}}) for i in range(40)]
        (tmp_path / name / "walk.jsonl").write_text("\n".join(lines))
    (tmp_path / "plan.toml").write_text(PLAN.to_toml())
    levels = LevelSet.from_directory(tmp_path)
    async with deciding(Staged(PLAN), lambda: CurriculumEnv(ActionEnv(), levels), 8) as (envs, coordinator):
        await envs.reset(seed=7)
        lengths = set()
        for _ in range(30):
            batch = await step(envs, coordinator, 1)
            for episode in batch.episodes:
                assert levels[levels.index(episode.task["level"])].data["length"] == episode.length
                lengths.add(episode.length)
        assert lengths == {1, 2, 3}


async def _story(backend: Backend, num_workers: int) -> list[Any]:
    """Everything that happened in 120 steps: what each episode was, and each decision."""
    happened: list[Any] = []
    staged = Staged(PLAN, probe=0.1)
    rng = np.random.default_rng(3)
    async with deciding(staged, factory(length=3), 8, backend=backend, num_workers=num_workers) as (
        envs,
        coordinator,
    ):
        await envs.reset(seed=11)
        for _ in range(120):
            batch = await envs.step((rng.random(8) < 0.8).astype(np.int64))
            await coordinator.settled()
            happened += [(e.env_id, e.index, e.order, e.version, e.task, e.outcome) for e in batch.episodes]
        happened += [decision.as_dict() for decision in coordinator.decisions]
    return happened


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_c10_g10_draws_and_decisions_do_not_depend_on_workers_or_backend() -> None:
    story = await _story("inline", 1)
    assert len({event[4]["level"] for event in story if isinstance(event, tuple)}) == 9
    assert any(isinstance(event, dict) and event["kind"] == "advance" for event in story)
    assert await _story("process", 1) == story
    assert await _story("process", 2) == story


class Failing(Staged):
    def settle(self, watermark: int | None = None) -> Any:
        if self.total >= 8:
            raise ArithmeticError("the rule is broken")
        return super().settle(watermark)


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_c12_c21_a_strategy_that_raises_ends_the_run_at_once_with_its_own_exception() -> None:
    async with deciding(Failing(PLAN), factory(), 4) as (envs, coordinator):
        await envs.reset(seed=7)
        with pytest.raises(ArithmeticError, match="the rule is broken"):  # noqa: PT012
            for _ in range(10):
                await step(envs, coordinator, 1)
        assert coordinator.strategy.total == 8  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_a_directive_over_100_000_levels_reaches_the_workers_and_is_drawn_from() -> None:
    class Last(Staged):
        def directive(self) -> Directive:
            weights = np.zeros(100_000, np.float32)
            weights[-5:] = 1
            return Directive(("all",), None, weights=weights)

    levels = LevelSet.from_function(lambda stage, i: {"i": i}, ["all"], count=100_000)
    strategy = Last(StagePlan([Stage("all")]))
    async with deciding(strategy, lambda: CurriculumEnv(ActionEnv(), levels), 4) as (envs, coordinator):
        await envs.reset(seed=1)
        ids = set()
        for _ in range(40):
            ids |= {e.task["level"] for e in (await step(envs, coordinator, 1)).episodes}
        assert ids == {f"all-{i}" for i in range(99_995, 100_000)}


@pytest.mark.asyncio
async def test_a19_a_long_episode_that_is_mixed_in_holds_back_nothing_of_the_current_stage(
    tmp_path: Path,
) -> None:
    """Kind: outcomes of the current stage wait for an env that plays another one, and nothing says so."""
    lengths = {"near": 10**6, "middle": 2, "far": 2}
    levels = LevelSet([Level(name, name, {"length": length}) for name, length in lengths.items()])
    journal = tmp_path / "journal.jsonl"
    strategy = Staged(PLAN, early=False, min_episodes=10**6)
    async with deciding(
        strategy, lambda: CurriculumEnv(ActionEnv(), levels), 4, backend="inline", journal=journal
    ) as (envs, coordinator):
        coordinator.set_stage("middle")
        coordinator.set_mixing_ratio("middle", 0.1)
        await envs.reset(seed=1)
        await coordinator.settled()
        while not any(task["stage"] == "near" for task in await envs.call("get_wrapper_attr", "task")):
            await step(envs, coordinator, 1)
        coordinator.set_mixing_ratio("middle", 0.0)
        for _ in range(150):
            await step(envs, coordinator, 1)
        near, middle, _ = coordinator.progress()
        assert (near["outcomes"], near["waiting"]) == (0, 0)
        assert middle["outcomes"] == middle["ended"] >= 40
        assert (middle["waiting"], middle["waiting_for"]) == (0, None)
    result = replay(journal)
    assert result.same
    assert [d.kind for d in result.logged] == ["set_stage", "set_mixing_ratio", "set_mixing_ratio"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("backend", "info"), [("inline", "all"), ("inline", "episode"), ("inline", []), ("process", "episode")]
)
@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
async def test_a10_success_in_the_middle_counts_where_the_plan_says_so(
    backend: Backend, info: Any, autoreset: AutoresetMode
) -> None:
    """Kind: what the steps in between said is filtered on its way; the last info brings it all the same."""
    plan = StagePlan(PLAN, success="ever")
    levels = level_set(plan)

    def make() -> CurriculumEnv:
        return CurriculumEnv(Flash(), levels)

    async with AsyncVecEnv(make, 4, num_workers=2, backend=backend, info=info, autoreset=autoreset) as envs:
        coordinator = Coordinator(Staged(plan), envs)
        task = asyncio.create_task(coordinator.run())
        await envs.reset(seed=1)
        for _ in range(34):
            await step(envs, coordinator, 1)
        row = coordinator.progress()[0]
        assert row["ended"] == row["succeeded"] == 12
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_a10_success_that_is_never_said_at_the_end_is_warned_of_once() -> None:
    """Kind: 0 % for ever, and no warning."""
    levels = level_set()
    warned: list[str] = []
    async with AsyncVecEnv(lambda: CurriculumEnv(Flash(), levels), 4, backend="inline") as envs:
        coordinator = Coordinator(Staged(PLAN), envs, warn=warned.append)
        task = asyncio.create_task(coordinator.run())
        await envs.reset(seed=1)
        for _ in range(60):
            await step(envs, coordinator, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(warned) == 1
    assert 'say success = "ever"' in warned[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("at", [(10,), ()])
async def test_a10_who_succeeds_at_the_end_or_never_is_not_warned(at: tuple[int, ...]) -> None:
    levels = level_set()
    async with deciding(Staged(PLAN), lambda: CurriculumEnv(Flash(at), levels), 4, backend="inline") as (
        envs,
        coordinator,
    ):
        await envs.reset(seed=1)
        for _ in range(60):  # a RuntimeWarning would be an error here
            await step(envs, coordinator, 1)
        assert coordinator.progress()[0]["ended"] == 20


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["process", "inline"])
async def test_b8_every_error_of_an_env_names_stage_and_level(backend: Backend) -> None:
    """Kind: an error without its place: of step, of a call, of an observation that does not fit its space."""
    levels = level_set()
    place = r"stage 'near', level 'near-\d'"

    async with deciding(
        Staged(PLAN), lambda: CurriculumEnv(Flash(raises=2), levels), 1, backend=backend, num_workers=1
    ) as (envs, coordinator):
        await envs.reset(seed=1)
        with pytest.raises(EnvError, match=place):
            await envs.call("boom")
        await step(envs, coordinator, 1)
        with pytest.raises(EnvError, match=rf"episode 0, after 1 steps, seed \d+, {place}"):
            await envs.step(np.zeros(1, np.int64))

    async with deciding(
        Staged(PLAN), lambda: CurriculumEnv(Late(), levels), 1, backend=backend, num_workers=1
    ) as (envs, coordinator):
        await envs.reset(seed=1)
        await step(envs, coordinator, 1)  # ends the first episode
        with pytest.raises(SpaceMismatch, match=rf"in the reset after episode 0, {place}"):
            await envs.step(np.zeros(1, np.int64))


class Late(Flash):
    """Its second reset returns what does not fit."""

    def __init__(self) -> None:
        super().__init__(length=1)
        self.resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.resets += 1
        return (np.zeros(3) if self.resets == 2 else 0), {}


@pytest.mark.asyncio
async def test_a_coordinator_whose_run_was_never_started_says_so_when_it_is_dropped() -> None:
    """Kind: a coordinator that stays silent for ever."""
    levels = level_set()
    async with AsyncVecEnv(lambda: CurriculumEnv(Flash(), levels), 2, backend="inline") as envs:
        coordinator = Coordinator(Staged(PLAN), envs)
        await envs.reset(seed=1)
        dropped = [coordinator]
        del coordinator
        with pytest.warns(ResourceWarning, match=r"run\(\) was never started"):
            dropped.clear()
