"""The success window against a slow twin."""
# pure: hypothesis, no loop

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curriculum import StateError
from curriculum.windows import Window


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
