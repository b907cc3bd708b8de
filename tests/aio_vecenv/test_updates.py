"""Versions, topics, newest-wins slots, against a model: G2 to G8 as invariants of any sequence of events."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aio_vecenv.core.framing import ProtocolError, dumps, loads
from aio_vecenv.core.messages import decode_update, encode_update
from aio_vecenv.core.updates import Frame, Inbox, Updates

TOPICS = ("a", "b", "c")
WORKERS = 3


class FakeWorker:
    """The child's side: takes frames in order, tells its one env at resets and before commands."""

    def __init__(self) -> None:
        self.inbox = Inbox(1)
        self.frames: list[Frame] = []  # on the pipe
        self.acks: list[int] = []  # on the way back
        self.heard: list[tuple[int, Any]] = []
        self.taken: dict[str, int] = {}
        self.silent: set[int] = set()  # acknowledged by a reply only
        self.replied = 0  # acknowledged by its newest reply
        self.born = 0  # versions published before it was there

    def take_one(self) -> None:
        frame = self.frames.pop(0)
        topic, payload = decode_update(frame.update.body)
        assert frame.update.version > self.taken.get(topic, 0), "an older one after a newer one of its topic"
        self.taken[topic] = frame.update.version
        self.inbox.take(frame.update.version, frame.covers, topic, loads(payload), now=frame.now)
        self.acks.append(frame.update.version)

    def hook(self, payload: Any, version: int) -> None:
        self.heard.append((version, payload))


class Publishing(RuleBasedStateMachine):
    """Push, kill, drop or delay an acknowledgement, step, reset; in any order."""

    @initialize()
    def begin(self) -> None:
        self.updates = Updates()
        self.published: list[tuple[int, str, str]] = []  # version, topic, apply
        self.workers: dict[int, FakeWorker | None] = dict.fromkeys(range(WORKERS))
        for index in range(WORKERS):
            self.start(index)

    def start(self, index: int) -> None:
        worker = self.workers[index] = FakeWorker()
        worker.born = self.updates.version
        self.updates.join(index)
        self.run_pending(index)

    def run_pending(self, index: int) -> None:
        worker = self.workers[index]
        while worker is not None and (frame := self.updates.next_frame(index)):
            worker.frames.append(frame)

    def newest(self, topic: str) -> int:
        return max((v for v, t, _ in self.published if t == topic), default=0)

    def catch_up(self, index: int) -> None:
        """What a worker does before a reset: take until nothing is missing. The parent goes on meanwhile."""
        worker = self.workers[index]
        assert worker is not None
        for _ in range(50):
            if worker.inbox.taken_up_to >= self.updates.version:
                return
            if worker.frames:
                worker.take_one()
            else:
                assert worker.acks, "the worker waits, and nothing is on its way in either direction"
                self.deliver_acks(index)
        raise AssertionError("catching up does not end")

    def deliver_acks(self, index: int) -> None:
        worker = self.workers[index]
        assert worker is not None
        for version in worker.acks:
            self.updates.acknowledge(index, version)
        worker.acks.clear()
        self.run_pending(index)

    @rule(topic=st.sampled_from(TOPICS), apply=st.sampled_from(["reset", "now"]))
    def publish(self, topic: str, apply: Any) -> None:
        body = encode_update(topic, dumps((topic, len(self.published) + 1)))
        update = self.updates.publish(topic, apply, body, 0.0)
        assert update.version == len(self.published) + 1
        self.published.append((update.version, topic, apply))
        for index in range(WORKERS):
            self.run_pending(index)

    @rule(index=st.integers(0, WORKERS - 1))
    def take(self, index: int) -> None:
        worker = self.workers[index]
        if worker is not None and worker.frames:
            worker.take_one()

    @rule(index=st.integers(0, WORKERS - 1))
    def acks_arrive(self, index: int) -> None:
        if self.workers[index] is not None:
            self.deliver_acks(index)

    @rule(index=st.integers(0, WORKERS - 1), silent=st.booleans())
    def a_reply_arrives(self, index: int, silent: bool) -> None:
        """It acknowledges what it covers; a message that says so, too, may come later, or was never sent."""
        worker = self.workers[index]
        if worker is None:
            return
        acknowledged = worker.replied = worker.inbox.taken_up_to
        for update in self.updates.acknowledge_up_to(index, acknowledged):
            assert worker.taken[update.topic] >= update.version
        if silent:
            worker.silent.update(version for version in worker.acks if version <= acknowledged)
            worker.acks = [version for version in worker.acks if version > acknowledged]
        self.run_pending(index)

    @rule(index=st.integers(0, WORKERS - 1))
    def reset_env(self, index: int) -> None:
        """G2, G7: the episode begins under the newest of every topic."""
        worker = self.workers[index]
        if worker is None:
            return
        self.catch_up(index)
        worker.inbox.deliver(0, worker.hook)
        assert worker.inbox.taken_up_to == self.updates.version
        told = {payload[0]: version for version, payload in worker.heard}
        for topic in TOPICS:
            assert told.get(topic, 0) == self.newest(topic)

    @rule(index=st.integers(0, WORKERS - 1))
    def before_command(self, index: int) -> None:
        worker = self.workers[index]
        if worker is None:
            return
        self.catch_up(index)  # G3: a command names the newest version
        worker.inbox.has_now = False
        worker.inbox.deliver_now(0, worker.hook)
        told = {payload[0]: version for version, payload in worker.heard}
        for topic in TOPICS:
            # A new worker's envs begin with a reset, at which they are told everything.
            last_now = max(
                (v for v, t, a in self.published if t == topic and a == "now" and v > worker.born), default=0
            )
            assert told.get(topic, 0) >= last_now

    @rule(index=st.integers(0, WORKERS - 1))
    def die(self, index: int) -> None:
        self.workers[index] = None
        self.updates.leave(index)

    @precondition(lambda self: any(worker is None for worker in self.workers.values()))
    @rule()
    def restart(self) -> None:
        self.start(next(i for i, worker in self.workers.items() if worker is None))

    @rule(version=st.integers(-3, 60), index=st.integers(0, WORKERS - 1))
    def a_wrong_ack(self, version: int, index: int) -> None:
        worker = self.workers[index]
        on_the_way = (
            set()
            if worker is None
            else {f.update.version for f in worker.frames} | set(worker.acks) | worker.silent
        )
        late = worker is not None and 0 < version <= worker.replied
        if version not in on_the_way and not late:
            with pytest.raises(ProtocolError):
                self.updates.acknowledge(index, version)

    @invariant()
    def one_slot_per_topic(self) -> None:
        for worker in getattr(self, "workers", {}).values():
            if worker is not None:
                sent = [frame.update.topic for frame in worker.frames]
                assert len(sent) == len(set(sent)), "two updates of a topic on their way to one worker"

    @invariant()
    def heard_in_order(self) -> None:
        for worker in getattr(self, "workers", {}).values():
            if worker is not None:
                for topic in TOPICS:
                    versions = [version for version, payload in worker.heard if payload[0] == topic]
                    assert versions == sorted(set(versions))

    @invariant()
    def receipts_are_true(self) -> None:
        for version, topic, _ in getattr(self, "published", [])[-3:]:
            live = {i for i, worker in self.workers.items() if worker is not None}
            applied, pending = self.updates.taken_by(topic, version), self.updates.pending(topic, version)
            assert set(applied) | set(pending) == live
            assert not set(applied) & set(pending)
            for index in applied:
                worker = self.workers[index]
                assert worker is not None
                assert worker.taken[topic] >= version

    @invariant()
    def covered_means_covered(self) -> None:
        """A worker that says it covers v lacks no update up to v: of each topic it has that one or a newer one."""
        for worker in getattr(self, "workers", {}).values():
            if worker is not None:
                for topic in TOPICS:
                    due = max(
                        (v for v, t, _ in self.published if t == topic and v <= worker.inbox.taken_up_to),
                        default=0,
                    )
                    assert worker.taken.get(topic, 0) >= due

    def teardown(self) -> None:
        for index, worker in getattr(self, "workers", {}).items():  # the newest always arrives
            if worker is not None:
                self.catch_up(index)
                assert {t: v for t in TOPICS if (v := self.newest(t))} == worker.taken


Publishing.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
TestPublishing = Publishing.TestCase


@given(st.text(max_size=20), st.binary(max_size=50))
def test_an_update_round_trips(topic: str, payload: bytes) -> None:
    assert decode_update(encode_update(topic, payload)) == (topic, payload)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_update_or_a_protocol_error(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_update(body)
