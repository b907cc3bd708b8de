"""The fleet's rules without Ray: on a network that drops, delays, reorders, doubles, kills and falsely suspects."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aio_vecenv.core.limits import RestartBudget
from aio_vecenv.fleet.messages import Liveness
from aio_vecenv.fleet.state import FleetState, split
from aio_vecenv.testing.fleet import FakeFleet, Faults

HISTORIES = 200  # in the suite; the soak has 10,000
LINK = {"drop": 0.1, "double": 0.1, "delay": 2.0}


def live(seed: int, hosts: int, faults: Faults, min_envs: bool) -> FakeFleet:
    """One history: a driver that steps, publishes and collects, while things go wrong; then it is calm."""
    rng = random.Random(seed)
    slots = split(hosts * 4 - rng.randrange(3), hosts, 4)
    fleet = FakeFleet(seed, slots, faults, min_hosts=rng.randint(1, hosts))
    fleet.reset()
    sent: set[int] = set()
    for _ in range(rng.randint(3, 25)):
        if rng.random() < 0.5:
            fleet.publish(rng.choice("ab"))
        free = [slot for slot in range(hosts) if slot not in sent]
        if free and (not min_envs or rng.random() < 0.7 or not sent):
            going = free if not min_envs else rng.sample(free, rng.randint(1, len(free)))
            fleet.send(going, rng.randint(1, 4))
            sent.update(going)
        need = rng.randint(1, hosts * 4) if min_envs else None
        fleet.until(partial(fleet.can_collect, need))
        collected = fleet.collect(need)
        assert collected is not None
        came = {*(report.slot for report in collected.reports), *collected.absent}
        assert came <= sent, "a column that nobody owed"
        sent -= came
        fleet.advance(rng.choice((0.0, 0.1, 3.0)))
    fleet.publish("b")  # no command follows that would carry it
    fleet.advance(3.0)
    fleet.calm()
    while sent:
        fleet.until(fleet.can_collect)
        collected = fleet.collect()
        assert collected is not None
        sent -= {*(report.slot for report in collected.reports), *collected.absent}
    fleet.until(lambda: fleet.settled)
    fleet.send(list(range(hosts)), 2)
    fleet.until(fleet.can_collect)
    fleet.collect()
    fleet.close()
    fleet.check()
    return fleet


faults = st.builds(
    Faults,
    drop=st.sampled_from((0.0, 0.05, 0.3)),
    double=st.sampled_from((0.0, 0.3)),
    delay=st.sampled_from((0.0, 0.5, 8.0)),
    kill=st.sampled_from((0.0, 0.02, 0.1)),
    freeze=st.sampled_from((0.0, 0.02, 0.1)),
)


def histories(count: int) -> None:
    @settings(max_examples=count, derandomize=count == HISTORIES)  # the suite's are the same each time
    # rows of a lost host, returned after those of later commands
    @example(0, 2, Faults(drop=0.05, double=0.3, delay=0.5, kill=0.1, freeze=0.1), True)
    @given(st.integers(0, 2**32), st.integers(1, 4), faults, st.booleans())
    def run(seed: int, hosts: int, faults: Faults, min_envs: bool) -> None:
        live(seed, hosts, faults, min_envs)

    run()


def test_nothing_is_lost_or_doubled_and_every_host_ends_on_the_newest_version() -> None:
    """Whatever the network does to messages, hosts and the driver's idea of them."""
    histories(HISTORIES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ten_thousand_histories() -> None:
    """The same, at length: `python -m pytest -m soak tests/aio_vecenv/test_fleet_state.py`."""
    histories(10_000)


def calm(hosts: int, **options: int) -> FakeFleet:
    """A fleet in which nothing goes wrong, after its first reset."""
    fleet = FakeFleet(0, split(4 * hosts, hosts, 4), Faults(deaf=1.0), **options)
    fleet.reset()
    return fleet


def test_a_silent_host_is_suspected_then_replaced_and_what_it_still_says_is_refused() -> None:
    """A false alarm costs the columns under way and the running episodes, each of them once."""
    fleet = calm(2)
    fleet.until(lambda: fleet.settled)
    old = fleet.hosts[0, 0]
    old.frozen_until = fleet.now + 12
    fleet.send([0, 1], 3)
    fleet.advance(5)
    assert fleet.state.suspects(fleet.now) == [0]
    assert not fleet.can_collect(), "nobody is passed over"
    assert fleet.can_collect(4), "a straggler like any other"
    fleet.until(fleet.can_collect)
    collected = fleet.collect()
    assert collected is not None
    assert [report.slot for report in collected.reports] == [1]
    assert collected.absent == (0,)
    assert collected.aborted == {0, 1, 2, 3}
    fleet.until(lambda: fleet.settled)
    fleet.advance(10)
    assert old.made[4:], "the old one went on"
    fleet.close()
    fleet.check()


def test_fewer_hosts_than_asked_for_run_and_the_others_join_when_they_come() -> None:
    """Bounded by `min_hosts`: with fewer, a command waits."""
    fleet = calm(3, min_hosts=2)
    fleet.until(lambda: fleet.settled)
    for slot in (0, 1):
        fleet.state.lost(slot, 0, "died", fleet.now)
    fleet.send([0, 1, 2], 2)
    fleet.advance(0.1)
    assert not fleet.can_collect(), "one host is there"
    fleet.until(fleet.can_collect)
    first = fleet.collect()
    assert first is not None
    assert set(first.absent) == {0, 1}, "their episodes were cut off: these columns say so"
    fleet.until(lambda: fleet.settled)
    fleet.send([0, 1, 2], 2)
    fleet.until(fleet.can_collect)
    second = fleet.collect()
    assert second is not None
    assert not second.absent
    fleet.close()
    fleet.check()


def test_a_budget_that_is_spent_starts_no_more_hosts() -> None:
    """The restart budget is the fleet's own, as the workers' is."""
    state = FleetState([range(4)], Liveness(), RestartBudget(1, 60.0))
    for incarnation in range(2):
        state.tick(0.0)
        assert state.up(0, incarnation, 0.0)
        assert state.lost(0, incarnation, "died", 0.0)
    state.take_outbox()
    state.tick(1.0)
    assert state.take_outbox() == []
    assert state.over == "host 0 died; host 0 died"


def test_the_envs_of_a_slot_begin_where_a_block_does() -> None:
    """Env ids belong to slots for good; fewer blocks than hosts is an error that says what would do."""
    assert split(40, 2, 16) == [range(16), range(16, 40)]
    assert split(512, 4, 16) == [range(128), range(128, 256), range(256, 384), range(384, 512)]
    with pytest.raises(ValueError, match="work for 1 host; take num_envs > 16, or fewer hosts"):
        split(16, 2, 16)
