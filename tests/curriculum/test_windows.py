"""Windows against slow twins: by completion, and by start order behind a watermark."""
# pure: hypothesis, no loop

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import StateError
from curriculum.windows import Entry, StartOrder, Window


@given(st.lists(st.booleans(), max_size=160))
def test_a_window_equals_a_list(outcomes: list[bool]) -> None:
    window = Window()
    for outcome in outcomes:
        window.add(outcome)
    newest = outcomes[-50:]
    assert (list(window.outcomes), window.successes, window.n) == (newest, sum(newest), len(outcomes))
    assert window.first_half == sum(newest[: len(newest) // 2])


def test_c16_halves_are_in_time_order_when_the_window_has_wrapped() -> None:
    window = Window()
    for i in range(75):  # fifty failures, then twenty-five successes: improving
        window.add(i >= 50)
    assert window.first_half == 0
    assert window.successes == 25


@given(st.lists(st.booleans(), max_size=120))
def test_a_window_survives_its_state(outcomes: list[bool]) -> None:
    window, again = Window(), Window()
    for outcome in outcomes:
        window.add(outcome)
    again.load(window.state(), "w")
    assert (list(again.outcomes), again.successes, again.n) == (
        list(window.outcomes),
        window.successes,
        window.n,
    )


@pytest.mark.parametrize("state", [None, ["012", 3], ["01", 1], ["01", 3], ["0" * 51, 60], ["0"], [0, "0"]])
def test_a_torn_window_is_refused(state: object) -> None:
    with pytest.raises(StateError, match="here: expected"):
        Window().load(state, "here")


def _entry(order: int, success: bool | None) -> Entry:
    return Entry(0, "current", order, success, 1)


@given(st.data(), st.integers(1, 5), st.integers(1, 40))
def test_started_order_equals_its_slow_twin(data: st.DataObject, num_envs: int, patience: int) -> None:
    """Twin: keep every episode for ever; admit the longest prefix by start of those that ended
    or were passed.
    """
    order = StartOrder()
    running: list[int | None] = [None] * num_envs
    ended: dict[int, bool | None] = {}
    begun: list[int] = []
    passed: set[int] = set()
    twin: list[tuple[int, bool | None, bool]] = []
    got: list[tuple[int, bool | None, bool]] = []
    done = 0  # how many of `begun` the twin has dealt with
    for step in range(data.draw(st.integers(1, 60))):
        for env in range(num_envs):
            action = data.draw(st.sampled_from(["nothing", "success", "failure", "aborted"]))
            current = running[env]
            if current is None:
                running[env] = number = step * num_envs + env
                begun.append(number)
                assert order.start(number, _entry(number, None)) is None
            elif action != "nothing":
                running[env] = None
                ended[current] = {"success": True, "failure": False, "aborted": None}[action]
                assert order.end(current, _entry(current, ended[current])) is (current not in passed)
        unfinished = [number for number in running if number is not None]
        watermark = min(unfinished, default=(step + 1) * num_envs)
        while done < len(begun):
            oldest = begun[done]
            if oldest in ended:
                if ended[oldest] is not None:
                    twin.append((oldest, ended[oldest], False))
            elif sum(other in ended for other in begun[done + 1 :]) >= patience:
                passed.add(oldest)
                twin.append((oldest, None, True))
            else:
                break
            done += 1
        admitted = order.release(watermark, patience)
        got += [(entry.version, entry.success, was_passed) for entry, was_passed in admitted]
        assert got == twin
        assert len(order.state()["waiting"]) < patience
        copy = StartOrder()
        copy.load(order.state(), 1, "o")
        assert copy.state() == order.state()
        order = copy


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
