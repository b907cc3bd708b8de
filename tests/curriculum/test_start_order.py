"""The start order against a slow twin: stage by stage, behind resets under way, with stragglers passed over."""
# pure: hypothesis, no loop

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import StateError
from curriculum.start_order import Entry, StartOrder


def _entry(order: int, success: bool | None, stage: int = 0) -> Entry:
    return Entry(stage, "current", order, success, 1)


class Twin:
    """Keeps every episode for ever, and looks at all of them each time."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.stage: dict[int, int | None] = {}  # by order; None: its reset is under way
        self.ended: dict[int, bool | None] = {}
        self.passed: set[int] = set()
        self.out: set[int] = set()  # admitted or handed out as passed over

    def _holds_up(self, order: int, stage: int) -> bool:
        """Whether an unfinished episode holds up that stage."""
        unfinished = order not in self.ended and order not in self.passed
        return unfinished and (self.by == "run" or self.stage[order] in (stage, None))

    def release(self, patience: int) -> list[tuple[int, bool | None, bool]]:
        got: list[tuple[int, bool | None, bool]] = []
        for order in sorted(self.stage):
            if order not in self.ended and sum(other > order for other in self.ended) >= patience:
                new = order not in self.passed
                self.passed.add(order)
                if new and self.stage[order] is not None:
                    got.append((order, None, True))
        for order, success in sorted(self.ended.items()):
            stage = self.stage[order]
            assert stage is not None
            waits = any(self._holds_up(other, stage) for other in self.stage if other < order)
            if order not in self.out and order not in self.passed and not waits:
                self.out.add(order)
                got += [(order, success, False)] if success is not None else []
        return sorted(got)


@given(st.data(), st.integers(1, 5), st.integers(1, 30), st.sampled_from(["stage", "run"]))
def test_started_order_equals_its_slow_twin(
    data: st.DataObject, num_envs: int, patience: int, by: Literal["stage", "run"]
) -> None:
    order, twin = StartOrder(by), Twin(by)
    playing: list[int | None] = [None] * num_envs
    for step in range(data.draw(st.integers(1, 60))):
        for env in range(num_envs):
            action = data.draw(st.sampled_from(["nothing", "success", "failure", "aborted"]))
            current = playing[env]
            if current is None:  # its reset is sent
                playing[env] = step * num_envs + env
                twin.stage[step * num_envs + env] = None
            elif action == "nothing":
                continue
            elif twin.stage[current] is None:  # and its reply comes
                stage = twin.stage[current] = data.draw(st.integers(0, 2))
                late = order.start(current, _entry(current, None, stage))
                assert (late is not None) is (current in twin.passed)
            else:
                playing[env] = None
                success = {"success": True, "failure": False, "aborted": None}[action]
                twin.ended[current] = success
                in_time = order.end(current, _entry(current, success, twin.stage[current] or 0))
                assert in_time is (current not in twin.passed)
        unfinished = [number for number in playing if number is not None]
        beginning = [number for number in unfinished if twin.stage[number] is None]
        watermark = min(unfinished, default=(step + 1) * num_envs)
        admitted = order.release(watermark, patience, beginning)
        got = [(entry.version, entry.success, was_passed) for entry, was_passed in admitted]
        assert got == twin.release(patience)
        assert len(order.state()["waiting"]) < patience
        copy = StartOrder(by)
        copy.load(order.state(), 3, "o")
        assert copy.state() == order.state()
        copy.release(watermark, 10**9, beginning)  # which are beginning is told anew each time
        assert copy.waits() == order.waits()
        order = copy


def test_a19_a_long_episode_of_one_stage_holds_up_no_other() -> None:
    """Kind: outcomes held back for ever, and no word about it, by an episode that says nothing about them."""
    by_stage, by_run = StartOrder(), StartOrder("run")
    for order in (by_stage, by_run):
        order.start(0, _entry(0, None, stage=0))  # mixed in, and runs for ever
        for number in range(1, 48):
            order.start(number, _entry(number, None, stage=1))
            order.end(number, _entry(number, True, stage=1))
    assert len(by_stage.release(0, 10**6)) == 47
    assert by_run.release(0, 10**6) == []
    assert by_stage.waits() == {}
    assert by_run.waits() == {1: (47, 0)}


def test_outcomes_wait_for_a_second_reset_under_way_behind_one_that_was_passed_over() -> None:
    """Kind: the watermark tells of the oldest reset only; the others may be of any stage, too."""
    order = StartOrder()
    for number in (1, 2, 4, 5):  # 0 and 3 are begun by commands whose replies are still owed
        order.start(number, _entry(number, None))
        order.end(number, _entry(number, True))
    admitted = order.release(0, 4, beginning=[0, 3])  # 0 is passed over, 3 is not: two have ended since
    assert [entry.version for entry, _ in admitted] == [1, 2]
    assert order.waits() == {0: (2, 3)}
    assert order.start(3, _entry(3, None)) is None
    assert order.end(3, _entry(3, False))
    assert [entry.version for entry, _ in order.release(0, 4, beginning=[0])] == [3, 4, 5]


def test_a_reset_that_takes_for_ever_does_not_hold_up_the_others() -> None:
    order = StartOrder()
    for number in range(1, 6):  # order 0 was begun by a command whose reply is still owed: never announced
        order.start(number, _entry(number, None))
        order.end(number, _entry(number, True))
        admitted = order.release(0, 5)
    assert [entry.version for entry, _ in admitted] == [1, 2, 3, 4, 5]
    late = order.start(0, _entry(0, None))
    assert late is not None  # passed over before it began: it counts as a failure now that its stage is known
    assert order.end(0, _entry(0, True)) is False


def test_other_envs_take_nothing_of_the_old_ones_order() -> None:
    order = StartOrder()
    order.start(0, _entry(0, None))
    order.end(1, _entry(1, True, stage=1))
    order.end(2, _entry(2, True))
    assert order.release(0, 10, beginning=[]) == [(_entry(1, True, stage=1), False)]
    assert order.restart() == [_entry(2, True)]
    assert order.state() == StartOrder().state()


@pytest.mark.parametrize(
    "state", [{}, {"waiting": [[1, 5, "current", 1, True, 1]], "running": [], "passed": []}]
)
def test_a_torn_order_is_refused(state: object) -> None:
    with pytest.raises(StateError, match="here: expected"):
        StartOrder().load(state, 2, "here")  # type: ignore[arg-type]
