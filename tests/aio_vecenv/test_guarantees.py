"""G1 to G6 and G8 to G11, inline and on real worker processes, on both loops. (G7, G12: files of their own.)"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from aio_vecenv import AsyncVecEnv, Batch, ClosedError, Episode, EpisodeStarted
from aio_vecenv.testing import ScriptedBackend, check_aligned, check_episodes, stamp_envs

from .envs import Dice, Gated, lengths
from .harness import until

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


@both
@pytest.mark.asyncio
async def test_g01_broadcast_does_not_wait_for_a_stuck_worker(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        pids = [worker.pid for worker in envs.statistics().workers]
        if backend == "process":
            os.kill(pids[0], signal.SIGSTOP)
        payload = bytes(4096)
        receipts = [envs.broadcast(payload) for _ in range(2000)]  # 8 MB: more than any pipe holds
        assert receipts[-1].version == 2000
        if backend == "process":
            assert 0 in receipts[-1].pending
            os.kill(pids[0], signal.SIGCONT)
        await receipts[-1].wait(60)
        assert receipts[0].pending == ()  # a newer one counts
        heard = await envs.get_attr("heard")
        assert all(len(each) == 0 for each in heard)  # apply="reset": told at the next reset
        await envs.reset()
        assert [each[-1][0] for each in await envs.get_attr("heard")] == [2000] * 4


class Stopper(threading.Thread):
    """Stops and continues one of the processes, over and over."""

    def __init__(self, pids: Sequence[int], seed: int) -> None:
        super().__init__(daemon=True)
        self.pids, self.random, self.stops, self.done = pids, random.Random(seed), 0, threading.Event()
        self.stopped = threading.Semaphore(0)

    def run(self) -> None:
        while not self.done.wait(self.random.uniform(0.001, 0.02)):
            pid = self.random.choice(self.pids)
            os.kill(pid, signal.SIGSTOP)
            self.done.wait(self.random.uniform(0.001, 0.02))
            os.kill(pid, signal.SIGCONT)
            self.stops += 1
            self.stopped.release()


async def under_load(updates: int, size: int, *, stop: bool = False, seed: int = 0) -> None:
    """G2, G3, G4: `updates` broadcasts from a thread at random moments, while 4 workers step."""
    # version, send calls that had happened when broadcast() returned
    returned: list[tuple[int, int]] = [(0, 0)]
    sends = 0
    done = threading.Event()
    async with AsyncVecEnv(stamp_envs(8, lengths), num_workers=4, info=["applied_version"]) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        payload = bytes(size)

        def publish() -> None:
            dice = random.Random(seed)
            for number in range(updates):
                if stop and number % (updates // 8) == 0:
                    assert stopper.stopped.acquire(timeout=60)  # some updates between any two stops
                receipt = envs.broadcast(payload)
                returned.append((receipt.version, sends))
                if dice.random() < 0.5:
                    done.wait(dice.uniform(0, 0.001))

        thread = threading.Thread(target=publish, daemon=True)
        stopper = Stopper([worker.pid for worker in envs.statistics().workers], seed)
        thread.start()
        if stop:
            stopper.start()
        newest_at_send: list[int] = [0]  # index: number of the send call; 0 is the reset
        newest_seen = np.zeros(8, np.int64)
        begun = 0
        while thread.is_alive():
            newest_at_send.append(returned[-1][0])
            sends += 1
            batch = await envs.step(zeros(8))
            assert (batch.versions >= newest_seen).all(), "a version went back"
            newest_seen = batch.versions
            due = newest_at_send[-1]
            assert (batch.versions[batch.first] >= due).all()
        thread.join()
        stopper.done.set()
        if stop:
            stopper.join()
        last = returned[-1][0]
        assert last == updates
        await envs.step(zeros(8))
        await envs.broadcast(b"last").wait(60)  # the newest always arrives
        await envs.reset()
        assert set(await envs.get_attr("version")) == {updates + 1}
        pending = stream.behind
        events = [await anext(stream) for _ in range(pending)]
        for event in events:
            if isinstance(event, EpisodeStarted):
                begun += 1
                call = event.order // 8
                if call < len(newest_at_send):
                    assert event.version >= newest_at_send[call]
        assert begun > 8
        for versions in await envs.apply(lambda env: [version for version, _ in env.heard]):
            assert versions == sorted(set(versions))  # G4
        if stop:
            assert stopper.stops > 5


@pytest.mark.asyncio
async def test_g02_g03_g04_under_load() -> None:
    await under_load(800, 100)


@pytest.mark.asyncio
async def test_g02_g03_g04_with_large_updates() -> None:
    await under_load(40, 1 << 20)


@pytest.mark.asyncio
async def test_g02_g03_g04_with_stopped_workers() -> None:
    await under_load(250, 100, stop=True)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("updates", "size", "stop"), [(10_000, 100, False), (1000, 1 << 20, False), (10_000, 4096, True)]
)
@pytest.mark.asyncio
async def test_g02_g03_g04_ten_thousand(updates: int, size: int, stop: bool) -> None:
    await under_load(updates, size, stop=stop, seed=7)


@both
@pytest.mark.asyncio
async def test_g02_a_worker_busy_with_a_long_step_sees_the_version_at_its_reset(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2, 1), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(2))  # both have ended: the next command resets
        envs.send(zeros(2))  # on its way
        version = envs.broadcast("late").version
        batch = await envs.recv()
        assert batch.first.all()
        assert set(batch.versions.tolist()) <= {0, version}
        await envs.step(zeros(2))
        batch = await envs.step(zeros(2))
        assert batch.first.all()
        assert batch.versions.tolist() == [version, version]


@pytest.mark.parametrize("size", [10, 4 << 20])
@pytest.mark.asyncio
async def test_g02_a_reset_looks_for_what_was_published_after_its_command_was_sent(
    size: int, tmp_path: Path
) -> None:
    """Env 0's step is under way, env 1's reset comes after it in the same command, the update in between."""
    factories = [partial(Gated, i, tmp_path, length=[9, 1][i]) for i in range(2)]
    async with AsyncVecEnv(factories, num_workers=1) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(2))  # env 1 has ended
        envs.send(zeros(2))
        await until((tmp_path / "begun").exists)
        version = envs.broadcast(bytes(size)).version
        (tmp_path / "go on").touch()
        batch = await envs.recv()
        assert batch.first.tolist() == [False, True]
        assert batch.versions.tolist() == [0, version]


@pytest.mark.asyncio
async def test_g03_also_for_an_update_that_arrives_after_the_command() -> None:
    """4 MiB do not fit the pipe: the command overtakes the update."""
    async with AsyncVecEnv(stamp_envs(2, 10), num_workers=2) as envs:
        await envs.reset(seed=1)
        for _ in range(3):
            version = envs.broadcast(bytes(4 << 20), apply="now").version
            batch = await envs.step(zeros(2))
            assert batch.infos["applied_version"].tolist() == [version] * 2


@both
@pytest.mark.asyncio
async def test_g03_a_decision_between_recv_and_send_holds_for_that_step(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4, 10), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        for k in range(30):
            version = envs.broadcast({"k": k}, apply="now").version
            batch = await envs.step(zeros(4))
            assert batch.infos["applied_version"].tolist() == [version] * 4


@both
@pytest.mark.asyncio
async def test_g04_topics_are_independent_and_newest_wins(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2, 3), num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        for k in range(5):
            envs.broadcast(("a", k), topic="a")
            envs.broadcast(("b", k), topic="b")
        await envs.reset()
        for heard in await envs.get_attr("heard"):
            versions = [version for version, _ in heard]
            assert versions == sorted(versions)
            assert heard[-2:] == [(9, ("a", 4)), (10, ("b", 4))]


@both
@pytest.mark.asyncio
async def test_apply_reset_reaches_each_env_at_its_own_reset_and_now_all_at_once(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(3, lambda env, _: 1 + env), num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        version = envs.broadcast("slow").version
        told: list[list[int]] = []
        for _ in range(4):
            batch = await envs.step(zeros(3))
            told.append(batch.infos["applied_version"].tolist())
        assert told[0] == [0, 0, 0]
        assert told[1] == [version, 0, 0]  # V19: not all in the same step
        assert told[2] == [version, version, 0]
        assert told[3] == [version, version, version]
        now = envs.broadcast("fast", apply="now").version
        batch = await envs.step(zeros(3))
        assert batch.infos["applied_version"].tolist() == [now] * 3
        assert (batch.versions < now)[~batch.first].all()  # G6: the episode keeps the version it began under


@both
@pytest.mark.asyncio
async def test_an_update_that_replaces_an_untaken_now_is_itself_now(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(1, 50), num_workers=1, backend=backend) as envs:
        await envs.reset(seed=1)
        pid = envs.statistics().workers[0].pid
        if backend == "process":
            os.kill(pid, signal.SIGSTOP)
        envs.broadcast("on its way")
        envs.broadcast("now", apply="now")
        last = envs.broadcast("replaces it").version
        if backend == "process":
            os.kill(pid, signal.SIGCONT)
        batch = await envs.step(zeros(1))
        assert batch.infos["applied_version"].tolist() == [last]


@both
@pytest.mark.asyncio
async def test_g05_receipts(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        receipt = envs.broadcast("one")
        assert await receipt is receipt
        assert (receipt.taken, receipt.pending, receipt.version) == ((0, 1), (), 1)
        with pytest.warns(DeprecationWarning, match="taken"):
            assert receipt.applied == receipt.taken
        if backend == "inline":
            return
        os.kill(envs.statistics().workers[1].pid, signal.SIGSTOP)
        stuck = envs.broadcast("two")
        await until(lambda: stuck.taken == (0,))
        with pytest.raises(TimeoutError, match=r"workers \[1\]"):
            await stuck.wait(0.05)
        assert (stuck.taken, stuck.pending) == ((0,), (1,))
        newer = envs.broadcast("three")
        os.kill(envs.statistics().workers[1].pid, signal.SIGCONT)
        await newer
        await stuck  # a newer one of its topic counts


@pytest.mark.asyncio
async def test_g05_aclose_ends_pending_receipts() -> None:
    envs = await AsyncVecEnv.open(stamp_envs(2), num_workers=2)
    await envs.reset(seed=1)
    os.kill(envs.statistics().workers[0].pid, signal.SIGSTOP)
    waiting = asyncio.ensure_future(envs.broadcast("one").wait())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(envs.aclose())
    with pytest.raises(ClosedError):
        await waiting
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(ClosedError):
        envs.broadcast("too late")


@both
@pytest.mark.asyncio
async def test_g06_an_episode_reports_the_version_it_began_under(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(3, lengths), num_workers=2, backend=backend) as envs:
        began: dict[tuple[int, int], int] = {}
        stream = envs.events()
        await envs.reset(seed=1)
        for _ in range(40):
            envs.broadcast("x", apply="now")
            await envs.step(zeros(3))
        for _ in range(stream.behind):
            event = await anext(stream)
            key = event.env_id, event.index
            if isinstance(event, EpisodeStarted):
                began[key] = event.version
            else:
                assert event.version == began[key]
                assert int(event.final_info["applied_version"]) >= event.version
        assert len(set(began.values())) > 10


@both
@pytest.mark.parametrize("autoreset", list(AutoresetMode))
@pytest.mark.asyncio
async def test_g08_every_episode_is_reported_exactly_once(backend: Backend, autoreset: AutoresetMode) -> None:
    dice = random.Random(3)
    envs = AsyncVecEnv(stamp_envs(6, lengths), num_workers=2, backend=backend, autoreset=autoreset)
    in_batches: list[Episode] = []
    async with envs:
        streams = [envs.events(), envs.events()]
        await envs.reset(seed=1)
        owing: set[int] = set()
        ended: set[int] = set()
        rounds = 0
        while rounds < 60 or len(in_batches) <= 20:  # how many end in a round is up to the workers
            rounds += 1
            if autoreset is AutoresetMode.DISABLED and ended - owing:
                again = sorted(ended - owing)
                await envs.reset(env_ids=again)
                ended -= set(again)
            free = [i for i in range(6) if i not in owing and i not in ended and dice.random() < 0.8]
            if free:
                envs.send(zeros(len(free)), free)
                owing |= set(free)
            if owing and dice.random() < 0.7:
                batch = await envs.recv(min_envs=dice.randint(1, 6))
                owing -= set(batch.env_ids.tolist())
                in_batches += batch.episodes
                if autoreset is AutoresetMode.DISABLED:
                    ended |= {e.env_id for e in batch.episodes}
            if dice.random() < 0.05 and not owing:
                await envs.reset(env_ids=[2, 4])
                ended -= {2, 4}
        if owing:
            in_batches += (await envs.recv(min_envs=len(owing))).episodes
        await envs.reset()
        await envs.reset(env_ids=[1, 3])  # two ends by a reset, six by closing: the dice alone promise none
    logs = [[event async for event in stream] for stream in streams]
    assert logs[0] == logs[1]
    check_episodes(logs[0])
    ends = [event for event in logs[0] if isinstance(event, Episode)]
    assert [e for e in ends if e.outcome != "aborted" and e.batch in {b.batch for b in in_batches}] == [
        e for e in in_batches if e.outcome != "aborted"
    ]
    for episode in ends:
        if episode.outcome == "terminated":
            assert episode.length == lengths(episode.env_id, episode.index)
            assert episode.episode_return == sum(range(1, episode.length + 1))
            assert episode.task["episode"] == episode.index
            assert episode.final_info["stamp"][3] == episode.length
    assert sum(episode.outcome == "terminated" for episode in ends) > 20
    assert [(e.env_id, e.outcome) for e in ends[-8:]] == [(i, "aborted") for i in (1, 3, 0, 1, 2, 3, 4, 5)]


@both
@pytest.mark.asyncio
async def test_g09_no_env_begins_another_episode_under_the_older_version(backend: Backend) -> None:
    """16 episodes of equal length that all end in the deciding step: 0 of 16 begin another one on the old stage."""
    async with AsyncVecEnv(stamp_envs(16, 4), num_workers=2, backend=backend) as envs:
        envs.broadcast("old")
        await envs.reset(seed=1)
        stream = envs.events()
        decided = 0
        for _ in range(12):
            batch = await envs.step(zeros(16))
            if batch.episodes and not decided:
                assert len(batch.episodes) == 16
                decided = envs.broadcast("new", apply="now").version
        started = [await anext(stream) for _ in range(stream.behind)]
        after = [e for e in started if isinstance(e, EpisodeStarted)]
        assert len(after) >= 32
        assert [e for e in after if e.version < decided] == []
        assert {e.task["stage"] for e in after} == {"new"}


@both
@pytest.mark.asyncio
async def test_g09_same_step_begins_one_more_episode_each_as_documented(backend: Backend) -> None:
    async with AsyncVecEnv(
        stamp_envs(16, 4), num_workers=2, backend=backend, autoreset=AutoresetMode.SAME_STEP
    ) as envs:
        envs.broadcast("old")
        await envs.reset(seed=1)
        stream = envs.events()
        for _ in range(12):
            batch = await envs.step(zeros(16))
            if batch.number == 4:
                assert len(batch.episodes) == 16
                envs.broadcast("new", apply="now")
        started = [await anext(stream) for _ in range(stream.behind)]
        old = [e for e in started if isinstance(e, EpisodeStarted) and e.task["stage"] == "old"]
        assert len(old) == 16  # they began inside the deciding step itself


def plain(batch: Batch) -> Any:
    """A batch in comparable form."""

    def freeze(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: freeze(v) for k, v in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    return {name: freeze(getattr(batch, name)) for name in Batch._fields if name != "episodes"} | {
        "episodes": [freeze_episode(e) for e in batch.episodes]
    }


def freeze_episode(event: Any) -> Any:
    return repr(event)


async def trajectory(backend: Backend, workers: int, autoreset: AutoresetMode) -> list[Any]:
    log: list[Any] = []
    factories = [partial(Dice, i, lengths) for i in range(8)]
    envs = AsyncVecEnv(factories, num_workers=workers, backend=backend, autoreset=autoreset)
    async with envs:
        stream = envs.events()
        obs, _ = await envs.reset(seed=11)
        log.append(obs.tolist())
        dice = random.Random(5)
        for t in range(40):
            if t % 7 == 3:
                envs.broadcast(t, apply="now" if t % 2 else "reset")
            batch = await envs.step(np.array([dice.randrange(10) for _ in range(8)]))
            log.append(plain(batch))
        obs, _ = await envs.reset(seed=[*range(4)], env_ids=[6, 0, 3, 5])
        log.append(obs.tolist())
    return [*log, *[repr(event) async for event in stream]]


_first: dict[AutoresetMode, list[Any]] = {}


@pytest.mark.parametrize(
    ("backend", "workers", "autoreset"),
    [
        *((b, w, AutoresetMode.NEXT_STEP) for b in ("inline", "process") for w in (1, 2, 4)),
        ("inline", 2, AutoresetMode.SAME_STEP),
        ("process", 2, AutoresetMode.SAME_STEP),
    ],
)
@pytest.mark.asyncio
async def test_g10_the_same_batches_and_events_however_it_runs(
    backend: Backend, workers: int, autoreset: AutoresetMode
) -> None:
    """Every combination, on both loops, is compared with the first one that ran."""
    got = await trajectory(backend, workers, autoreset)
    assert len(got) > 60
    assert got == _first.setdefault(autoreset, got)


@both
@pytest.mark.asyncio
async def test_g11_after_a_failure_no_stale_reply(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(4, 50), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        t = 0
        for kind in ("too few", "shape", "dtype", "busy", "attribute", "cancel", "nothing owed"):
            match kind:
                case "too few":
                    with pytest.raises(ValueError, match="expected"):
                        await envs.step(zeros(3))
                case "shape":
                    with pytest.raises(ValueError, match="expected"):
                        await envs.step(np.zeros((4, 1), np.int64))
                case "dtype":
                    with pytest.raises(ValueError, match="expected"):
                        await envs.step(np.zeros(4))
                case "busy":
                    envs.send(zeros(4))
                    with pytest.raises(Exception, match="owe a reply"):
                        envs.send(zeros(4))
                    t += 1
                    check_aligned(await envs.recv())
                case "attribute":
                    with pytest.raises(ExceptionGroup):
                        await envs.get_attr("no_such_thing")
                case "cancel":
                    task = asyncio.ensure_future(envs.step(zeros(4)))
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    t += 1
                    if task.cancelled():
                        check_aligned(await envs.recv())
                case _:
                    with pytest.raises(ValueError, match="nothing owed"):
                        await envs.recv()
            t += 1
            batch = await envs.step(zeros(4))
            check_aligned(batch)
            assert batch.obs[:, 3].tolist() == [t] * 4


@pytest.mark.asyncio
async def test_the_watermark_is_exact() -> None:
    """Every episode with a smaller order had ended; and the one at the watermark had not."""
    dice = random.Random(1)
    async with AsyncVecEnv(stamp_envs(6, lengths), num_workers=3, backend="inline") as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        running: set[int] = set()
        low = -1
        marks: list[tuple[int, set[int]]] = []
        owing: set[int] = set()
        for _ in range(200):
            free = [i for i in range(6) if i not in owing and dice.random() < 0.6]
            if free:
                envs.send(zeros(len(free)), free)
                owing |= set(free)
            if not owing:
                continue
            batch = await envs.recv(min_envs=dice.randint(1, len(owing)))
            owing -= set(batch.env_ids.tolist())
            while stream.behind:
                event = await anext(stream)
                if isinstance(event, EpisodeStarted):
                    assert event.order >= low, "an episode began below an earlier watermark"
                    running.add(event.order)
                else:
                    running.discard(event.order)
            assert batch.watermark >= low
            assert all(order >= batch.watermark for order in running)
            low = batch.watermark
            marks.append((low, set(running)))
        assert len({mark for mark, _ in marks}) > 20


@pytest.mark.asyncio
async def test_what_is_beginning_is_told_with_each_batch_of_events() -> None:
    """No episode begins below one that was seen, unless its order was told: all of them, not just the oldest."""
    dice = random.Random(2)
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(stamp_envs(6, lengths), num_workers=6, backend=backend) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        backend.automatic = False
        told: set[int] = set()
        most, highest = 0, -1
        owing: set[int] = set()
        for _ in range(300):
            free = [i for i in range(6) if i not in owing and dice.random() < 0.8]
            if free:
                envs.send(zeros(len(free)), free)
                owing |= set(free)
            # three owe their reply at a time
            for env_id in dice.sample(sorted(owing), max(1, len(owing) - 3)):
                backend.deliver(env_id)
            batch = await envs.recv(min_envs=1)
            owing -= set(batch.env_ids.tolist())
            while stream.behind:
                events = await stream.next_batch()
                begun = [event.order for event in events.events if isinstance(event, EpisodeStarted)]
                assert all(order in told or order > highest for order in begun)
                highest = max(highest, *(event.order for event in events.events))
                told, most = set(events.beginning), max(most, len(events.beginning))
        assert most >= 2


@pytest.mark.asyncio
async def test_a_reset_that_was_cancelled_is_beginning_no_more() -> None:
    backend = ScriptedBackend(automatic=True)
    async with AsyncVecEnv(stamp_envs(2, 3), num_workers=2, backend=backend) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        backend.automatic = False
        resetting = asyncio.ensure_future(envs.reset(env_ids=[0]))  # in the middle of its episode
        await asyncio.sleep(0)
        resetting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resetting
        seen = []
        for _ in range(8):  # env 1 ends an episode, and begins one
            envs.send(zeros(1), [1])
            backend.deliver(0)
            backend.deliver(1)
            await envs.recv()
            while stream.behind:
                seen.append((await stream.next_batch()).beginning)
        assert seen == [()] * 5


@both
@pytest.mark.asyncio
async def test_a_running_episode_is_what_will_be_reported_so_far(backend: Backend) -> None:
    """Its index, length and return agree with the rows that were received; between two episodes there is none."""
    async with AsyncVecEnv(stamp_envs(4, length=lengths), num_workers=2, backend=backend) as envs:
        assert envs.running_episode(0) is None
        await envs.reset(seed=1)
        steps, rewards, between = np.zeros(4, int), np.zeros(4), 0
        for _ in range(30):
            batch = await envs.step(zeros(4))
            steps = np.where(batch.first, 0, steps + 1)
            rewards = np.where(batch.first, 0.0, rewards + batch.rewards)
            ended = {episode.env_id: episode for episode in batch.episodes}
            for env_id in range(4):
                found = envs.running_episode(env_id)
                if env_id in ended:
                    assert found is None
                    between += 1
                    continue
                assert found is not None
                assert (found.env_id, found.length, found.episode_return) == (
                    env_id,
                    steps[env_id],
                    rewards[env_id],
                )
        assert between > 10
        with pytest.raises(IndexError, match="env 4: there are 4"):
            envs.running_episode(4)


@both
@pytest.mark.asyncio
async def test_first_ready_hands_out_what_is_there(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(6, lengths), num_workers=3, backend=backend) as envs:
        await envs.reset(seed=1)
        steps = zeros(6)
        envs.send(zeros(6))
        for _ in range(60):
            batch = await envs.recv(min_envs=2)
            assert len(batch.env_ids) >= 2
            assert (np.diff(batch.env_ids) > 0).all()
            check_aligned(batch)
            steps[batch.env_ids] += 1
            envs.send(zeros(len(batch.env_ids)), batch.env_ids)
        check_aligned(batch := await envs.recv())
        steps[batch.env_ids] += 1
        assert steps.min() > 0  # of a worker that was never among the first, too


@pytest.mark.asyncio
async def test_a_stopped_worker_does_not_hold_the_others_up() -> None:
    async with AsyncVecEnv(stamp_envs(4), num_workers=2) as envs:
        await envs.reset(seed=1)
        pid = envs.statistics().workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        envs.send(zeros(4))
        for _ in range(20):
            batch = await envs.recv(min_envs=2)
            assert batch.env_ids.tolist() == [2, 3]
            envs.send(zeros(2), [2, 3])
        os.kill(pid, signal.SIGCONT)
        seen: set[int] = set()
        while not seen >= {0, 1}:
            seen |= set((await envs.recv(min_envs=1)).env_ids.tolist())


@both
@pytest.mark.asyncio
async def test_an_idle_worker_takes_an_update_without_a_command(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        receipt = envs.broadcast("x")
        await until(lambda: not receipt.pending)


@both
@pytest.mark.asyncio
async def test_broadcast_from_a_thread(backend: Backend) -> None:
    async with AsyncVecEnv(stamp_envs(2, 2), num_workers=2, backend=backend) as envs:
        await envs.reset(seed=1)
        receipt = await asyncio.to_thread(envs.broadcast, bytes(1 << 20))
        await receipt.wait(60)
        assert receipt.taken == (0, 1)
