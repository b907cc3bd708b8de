"""The coordinator over a scripted channel: folding, publishing, settling, commands, one writer, errors."""
# async: both loops; waits for states, never for a duration

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculum import (
    CommandError,
    Coordinator,
    CoordinatorError,
    Directive,
    DirectiveError,
    FinishedEpisode,
    Staged,
    StampError,
    StateError,
)
from curriculum.decision_stream import KEPT, DecisionStream
from tests.curriculum.helpers import PLAN, Channel, Started, episode, stamp


@contextlib.asynccontextmanager
async def running(coordinator: Coordinator) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(coordinator.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_the_first_directive_is_out_before_anything_runs() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    assert channel.newest == Directive(PLAN.names, "near", (0.2, 0.2, 0.2), 0.2)
    assert (coordinator.stage, coordinator.receipt.version, coordinator.solved) == ("near", 1, False)


@pytest.mark.asyncio
async def test_a_directive_is_published_when_it_changes_and_never_unchanged() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    async with running(coordinator):
        for order in range(30):
            channel.hand_out([episode(order, "near", True, version=channel.version)])
            await coordinator.settled()
            assert coordinator.folded == order + 1
    ratios = [directive.ratios[0] for _, directive in channel.published]
    assert ratios == [0.20, 0.05, 0.05]  # first, after five outcomes, and with the stage
    assert [directive.stage for _, directive in channel.published] == ["near", "near", "middle"]
    assert [decision.kind for decision in coordinator.decisions] == ["advance"]


@pytest.mark.asyncio
async def test_settled_returns_without_a_turn_of_the_loop_when_there_is_nothing_to_fold() -> None:
    coordinator = Coordinator(Staged(PLAN), Channel())
    step = coordinator.settled()
    with pytest.raises(StopIteration):
        step.send(None)  # finished at the first step: it never gave the loop a turn


@pytest.mark.asyncio
async def test_c20_the_next_directive_takes_every_finished_episode_into_account() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    async with running(coordinator):
        for first in range(0, 30, 3):
            for order in range(first, first + 3):  # three batches at once
                channel.hand_out([episode(order, "near", True, version=1)])
            await coordinator.settled()
            assert channel.behind == 0
        assert channel.newest.stage == "middle"


@pytest.mark.asyncio
async def test_one_hand_out_is_folded_in_start_order_and_checked_once() -> None:
    folded: list[int] = []

    class Recorder(Staged):
        def observe(self, episode: Any) -> None:
            folded.append(episode.order)
            super().observe(episode)

    channel = Channel(num_envs=40)
    coordinator = Coordinator(Recorder(PLAN), channel)
    async with running(coordinator):
        channel.hand_out(
            [episode(order, "near", True, version=1, env_id=order) for order in (3, 1, 2, 0, *range(4, 40))]
        )
        await coordinator.settled()
    assert folded == list(range(40))
    assert coordinator.decisions[0].total == 40


@pytest.mark.asyncio
async def test_c06_there_is_exactly_one_writer() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    with pytest.raises(CoordinatorError, match="already have a coordinator"):
        Coordinator(Staged(PLAN), channel)
    async with running(coordinator):
        await asyncio.sleep(0)
        with pytest.raises(CoordinatorError, match="already"):
            await coordinator.run()
    channel.closed = False
    Coordinator(Staged(PLAN), channel)  # the first one ended: these envs are free again
    with pytest.raises(CoordinatorError, match="run\\(\\) has ended"):
        coordinator.set_stage("far")
    with pytest.raises(CoordinatorError, match="run\\(\\) has ended"):
        await coordinator.run()


@pytest.mark.asyncio
async def test_a_coordinator_that_was_dropped_does_not_hold_the_envs() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    del coordinator
    gc.collect()
    Coordinator(Staged(PLAN), channel)


@pytest.mark.asyncio
async def test_a_strategy_whose_directive_is_none_is_named_and_leaves_the_envs_to_another(
    tmp_path: Path,
) -> None:
    channel, strategy = Channel(), Alternating()
    strategy.directive = lambda: None  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(
        DirectiveError, match=r"Alternating\.directive\(\): expected a Directive, .*, got None"
    ):
        Coordinator(strategy, channel, journal=tmp_path / "journal.jsonl")
    del strategy.directive
    coordinator = Coordinator(strategy, channel)
    async with running(coordinator):
        channel.hand_out([episode(0)])
        await coordinator.settled()
    assert coordinator.published == 2


class Broken(Staged):
    def observe(self, episode: Any) -> None:
        if episode.order == 3:
            raise ZeroDivisionError("in the rule")
        super().observe(episode)


@pytest.mark.asyncio
async def test_c12_c21_an_exception_in_a_strategy_ends_the_run_with_itself() -> None:
    channel = Channel()
    coordinator = Coordinator(Broken(PLAN), channel)
    task = asyncio.create_task(coordinator.run())
    for order in range(3):
        channel.hand_out([episode(order)])
        await coordinator.settled()
    channel.hand_out([episode(3)])
    with pytest.raises(ZeroDivisionError, match="in the rule"):
        await coordinator.settled()
    with pytest.raises(ZeroDivisionError, match="in the rule"):
        await task
    with pytest.raises(ZeroDivisionError):
        await coordinator.settled()  # and it stays ended
    assert channel.closed  # nobody waits for a reader that is gone


@pytest.mark.asyncio
async def test_an_episode_without_a_stamp_ends_the_run_and_names_the_env() -> None:
    channel = Channel(num_envs=8)
    coordinator = Coordinator(Staged(PLAN), channel)
    task = asyncio.create_task(coordinator.run())
    channel.hand_out([Started(7, 0, 7, 1, None)])
    with pytest.raises(StampError, match="env 7: episode 0 has no task stamp"):
        await coordinator.settled()
    with pytest.raises(StampError):
        await task


@pytest.mark.asyncio
async def test_settled_says_so_when_run_is_not_running() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    channel.hand_out([episode(0)])
    with pytest.raises(CoordinatorError, match="run\\(\\) is not running"):
        await coordinator.settled()
    async with running(coordinator):
        await coordinator.settled()
        assert coordinator.folded == 1
    with pytest.raises(CoordinatorError, match="was cancelled"):
        await coordinator.settled()


@pytest.mark.asyncio
async def test_cancelling_settled_loses_nothing() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    async with running(coordinator):
        await asyncio.sleep(0)
        channel.hand_out([episode(0)])
        waiting = asyncio.create_task(coordinator.settled())
        await asyncio.sleep(0)
        waiting.cancel()
        await coordinator.settled()
        assert coordinator.folded == 1


@pytest.mark.asyncio
async def test_run_ends_when_the_envs_are_closed() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    channel.hand_out([episode(0)])
    channel.closed = True
    await coordinator.run()
    assert coordinator.folded == 1
    await coordinator.settled()


# ---- commands


@pytest.mark.asyncio
async def test_commands_publish_at_once_and_return_the_receipt() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    assert coordinator.set_stage("far", by="operator", why="demo").version == 2
    assert channel.newest.stage == "far"
    assert coordinator.set_stage("far").version == 2  # a no-op: the receipt of what is in force
    assert coordinator.set_mixing_ratio("far", 0.5).version == 3
    assert (channel.newest.mix, coordinator.mixing_ratio("far")) == (0.5, 0.5)
    assert coordinator.set_mixing_ratio("far", None).version == 4
    assert coordinator.hold(by="operator").version == 4
    assert coordinator.held
    assert coordinator.release().version == 4
    kinds = [(d.kind, d.by) for d in coordinator.decisions]
    assert kinds[0] == ("set_stage", "operator")
    assert [kind for kind, _ in kinds] == [
        "set_stage",
        "set_mixing_ratio",
        "set_mixing_ratio",
        "hold",
        "release",
    ]
    assert "set_stage near → far  by operator" in coordinator.explain()


@pytest.mark.asyncio
async def test_commands_that_are_not_valid_are_refused_and_not_noted() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    with pytest.raises(CommandError, match="unknown stage 'moon'; the plan has near, middle, far"):
        coordinator.set_stage("moon")
    with pytest.raises(CommandError, match="expected a number from 0 to 1, got 2"):
        coordinator.set_mixing_ratio("near", 2)
    with pytest.raises(CommandError, match="note: expected 'checkpoint' or 'stop', got 'dance'"):
        coordinator.note("dance")  # type: ignore[arg-type]
    told: Any = OSError("an operator's reason is text")
    for command in (
        lambda **said: coordinator.set_stage("far", **said),
        lambda **said: coordinator.set_mixing_ratio("near", 0.5, **said),
        lambda **said: coordinator.record("near", True, **said),
        lambda **said: coordinator.note("stop", **said),
        coordinator.hold,
        coordinator.release,
    ):
        for key in ("by", "why"):
            with pytest.raises(CommandError, match=f"{key}: expected a string, got OSError"):
                command(**{key: told})
    for value in ("no", None, [True, False]):
        with pytest.raises(CommandError, match="success: expected a bool or a number, got"):
            coordinator.record("near", value)  # type: ignore[arg-type]
    assert (coordinator.stage, coordinator.held) == ("near", False)
    assert (coordinator.decisions, channel.version, coordinator.progress()[0]["outcomes"]) == ([], 1, 0)
    for number in (np.float32(0.5), np.int64(1)):
        coordinator.set_mixing_ratio("near", number)  # type: ignore[arg-type]
    assert [decision.counts["ratio"] for decision in coordinator.decisions] == [0.5, 1.0]
    coordinator.record("near", np.nan)  # type: ignore[arg-type]
    assert coordinator.progress()[0]["successes"] == 0


@pytest.mark.asyncio
async def test_a_command_does_not_change_what_the_last_check_is_said_to_have_come_to() -> None:
    strategy = Staged(PLAN)
    for order in range(10):
        strategy.observe(episode(order))
    strategy.settle()
    strategy.set_stage("far")
    assert strategy.explain().startswith("after 10 episodes, in near: stays\n")


@pytest.mark.asyncio
async def test_hold_keeps_counting_and_publishes_nothing() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    async with running(coordinator):
        coordinator.hold()
        for order in range(100):
            channel.hand_out([episode(order, "near", True, version=1)])
        await coordinator.settled()
        assert (channel.version, coordinator.progress()[0]["outcomes"]) == (1, 100)
        coordinator.release()
        assert channel.newest.ratios[0] == 0.05
        channel.hand_out([episode(100, "near", True, version=1)])
        await coordinator.settled()
        assert coordinator.stage == "middle"


@pytest.mark.asyncio
async def test_c06_a_command_from_another_coroutine_reaches_the_workers_and_begins_a_stay() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    async with running(coordinator):
        receipt = coordinator.set_stage("middle", by="callback")
        for order in range(60):  # still under the first version: they began before the command
            channel.hand_out([episode(order, "middle", True, version=1)])
        await coordinator.settled()
        assert coordinator.stage == "middle"
        for order in range(60, 90):
            channel.hand_out([episode(order, "middle", True, version=receipt.version)])
        await coordinator.settled()
        assert coordinator.stage == "far"


# ---- a custom strategy, four methods


class Alternating:
    """As small as a strategy can be: the stages in turn, an episode each."""

    def __init__(self) -> None:
        self.seen = 0

    def observe(self, episode: FinishedEpisode) -> None:
        self.seen += 1

    def directive(self) -> Directive:
        return Directive(PLAN.names, PLAN.names[self.seen % 3], (0.0, 0.0, 0.0))

    def state_dict(self) -> dict[str, Any]:
        return {"schema": 1, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


@pytest.mark.asyncio
async def test_a_custom_strategy_needs_four_methods() -> None:
    channel = Channel()
    coordinator = Coordinator(Alternating(), channel)
    async with running(coordinator):
        channel.hand_out([Started(0, 0, 0, 1, stamp("near")), episode(0)])
        await coordinator.settled()
        assert channel.newest.stage == "middle"
        coordinator.hold()  # works for every strategy: nothing is published
        channel.hand_out([episode(1)])
        await coordinator.settled()
        assert channel.newest.stage == "middle"
        coordinator.release()
        assert channel.newest.stage == "far"
        with pytest.raises(CommandError, match="Alternating has no set_stage"):
            coordinator.set_stage("near")
    state = coordinator.state_dict()
    again = Coordinator(Alternating(), Channel())
    again.load_state_dict(json.loads(json.dumps(state)))
    assert again.mixing_ratio("near") == 0.0
    assert again.state_dict()["strategy"] == {"schema": 1, "seen": 2}


# ---- state


@pytest.mark.asyncio
async def test_c02_c23_a_resumed_run_continues_and_tells_the_workers_at_once() -> None:
    def play(coordinator: Coordinator, channel: Channel, orders: range) -> None:
        for order in orders:
            good = order % 10 < 4 + order // 40
            channel.hand_out([episode(order, str(coordinator.stage), good, version=channel.version)])

    async def through(coordinator: Coordinator, channel: Channel, begin: int, end: int) -> None:
        async with running(coordinator):
            for order in range(begin, end):
                play(coordinator, channel, range(order, order + 1))
                await coordinator.settled()

    whole = Coordinator(Staged(PLAN), one := Channel())
    await through(whole, one, 0, 300)

    half = Coordinator(Staged(PLAN), two := Channel())
    await through(half, two, 0, 137)
    state = json.loads(json.dumps(half.state_dict()))
    resumed = Coordinator(Staged(PLAN), three := Channel())
    resumed.load_state_dict(state)
    assert three.newest == two.newest  # what the workers of the new run get first is what was in force
    await through(resumed, three, 137, 300)
    assert [d.as_dict() for d in resumed.decisions] == [d.as_dict() for d in whole.decisions]
    assert len(whole.decisions) >= 2
    assert three.newest == one.newest


@pytest.mark.asyncio
async def test_a_state_that_does_not_fit_changes_nothing() -> None:
    coordinator = Coordinator(Staged(PLAN), channel := Channel())
    good = coordinator.state_dict()
    for change, message in (
        ({"schema": 9}, "schema: expected 1, got 9"),
        ({"held": None}, "held: expected bool"),
        ({"decisions": [{}]}, "decisions"),
        ({"strategy": {}}, "expected a key 'schema'"),
    ):
        with pytest.raises(StateError, match=message):
            coordinator.load_state_dict({**good, **change})
    assert (coordinator.state_dict(), channel.version) == (good, 1)


# ---- decisions as a stream


async def _read(stream: DecisionStream) -> list[str]:
    return [decision.kind async for decision in stream]


@pytest.mark.asyncio
async def test_every_reader_of_decided_gets_every_decision_in_order_and_ends_with_the_run() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    coordinator.hold(by="before any reader")
    readers = [asyncio.create_task(_read(coordinator.decided())) for _ in range(2)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(coordinator.run())
        coordinator.release()
        for order in range(30):
            channel.hand_out([episode(order, "near", True, version=channel.version)])
            await coordinator.settled()
        coordinator.set_stage("near", by="operator")
        await channel.aclose()
    assert [await reader for reader in readers] == [["release", "advance", "set_stage"]] * 2
    assert coordinator.decisions[0].kind == "hold"
    assert await _read(coordinator.decided()) == []  # nobody decides any more: it ends at once


@pytest.mark.asyncio
async def test_readers_end_when_a_strategy_raises_and_the_exception_is_where_it_was() -> None:
    channel = Channel()
    coordinator = Coordinator(Staged(PLAN), channel)
    reading = asyncio.create_task(_read(coordinator.decided()))
    running = asyncio.create_task(coordinator.run())
    coordinator.set_stage("far")
    channel.hand_out([FinishedEpisode(3, 0, 0, 1, 0.0, "terminated", 1, None)])
    with pytest.raises(StampError):
        await running
    assert await reading == ["set_stage"]


@pytest.mark.asyncio
async def test_a_slow_reader_misses_the_oldest_and_is_told_how_many() -> None:
    coordinator = Coordinator(Staged(PLAN), Channel())
    slow, closed = coordinator.decided(), coordinator.decided()
    await closed.aclose()
    for i in range(KEPT + 10):
        coordinator.set_mixing_ratio("near", i / 1000)
    assert (slow.missed, closed.missed) == (10, 0)
    assert (await anext(slow)).counts["ratio"] == 0.010
    with pytest.raises(StopAsyncIteration):
        await anext(closed)


@pytest.mark.asyncio
async def test_cancelling_a_read_of_decisions_loses_nothing() -> None:
    coordinator = Coordinator(Staged(PLAN), Channel())
    stream = coordinator.decided()
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)  # it waits
    with pytest.raises(RuntimeError, match="two tasks"):
        await anext(stream)
    coordinator.hold()
    reading.cancel()  # together with the decision it was waiting for
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (await anext(stream)).kind == "hold"


@pytest.mark.asyncio
async def test_a_dropped_stream_is_forgotten() -> None:
    coordinator = Coordinator(Staged(PLAN), Channel())
    stream = weakref.ref(coordinator.decided())
    gc.collect()
    assert stream() is None
    coordinator.hold()
