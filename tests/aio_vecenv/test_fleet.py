"""A fleet but for Ray: hosts in this process, whose calls can be lost, hang, or die; their workers are real."""
# edge: real workers

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import aio_vecenv as av
from aio_vecenv.core.batch import Episode, EpisodeStarted
from aio_vecenv.testing import FaultyEnv, StampEnv, check_episodes, stamp_envs

from .envs import Follows, Learns
from .fleet_helpers import LocalHandle, LocalTransport
from .harness import until
from .test_unrolls import same

pytestmark = pytest.mark.alternate_loops
QUICK = av.Liveness(ping=0.1, suspect=0.5, replace=2.0, lease=3.0)
LENGTHS = (3, 5, 8)


def make(env: int) -> StampEnv:
    return StampEnv(env, LENGTHS[env % 3])


def settings(**kwargs: Any) -> dict[str, Any]:
    return {
        "hosts": 2, "policy": Follows(), "unroll": 8, "backend": "inline", "transport": LocalTransport(), **kwargs
    }  # fmt: skip


def fleet(envs: Any = make, num_envs: int | None = 32, **kwargs: Any) -> av.RayFleet:
    return av.RayFleet(envs, num_envs, **settings(**kwargs))


def _process(env: Any) -> int:
    return os.getpid()


def handles(envs: av.RayFleet) -> list[LocalHandle]:
    transport: Any = envs._transport
    return list(transport.handles)


def noise(rows: int, envs: int = 32, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((rows, envs), dtype=np.float32)


async def read(stream: av.EventStream) -> list[EpisodeStarted | Episode]:
    events: list[EpisodeStarted | Episode] = []
    while stream.behind:
        events += (await stream.next_batch()).events
    return events


async def play(envs: av.Source, chunks: int) -> Any:
    """Everything that a run shows: resets, chunks, events."""
    stream = envs.events()
    shown: tuple[Any, ...] = (await envs.reset(seed=7),)
    for number in range(chunks):
        if number % 3 == 1:
            envs.broadcast(number, topic="ab"[number % 2], apply="now")
        if number % 4 == 2:
            assert envs.set_policy(number) == number // 4 + 1
        chunk = await envs.unroll(noise(1 + number % 8, seed=number))
        fields = {name: getattr(chunk, name) for name in chunk.__dataclass_fields__}
        shown += ({**fields, "infos": tuple(fields["infos"]), "episodes": str(fields["episodes"])},)
    batches = []
    while stream.behind:
        batches.append(await stream.next_batch())
    return shown, str(batches), envs.statistics().executed_steps


@pytest.mark.asyncio
async def test_a_fleet_without_faults_is_one_vec_env_to_the_bit() -> None:
    """Resets, chunks, episodes, orders, watermarks, versions: as of one vec env of as many envs."""
    one = av.AsyncVecEnv(make, 32, num_workers=2, policy=Follows(), unroll=8)
    two = fleet(backend="process")
    async with one, two:
        source: av.Source = two
        assert isinstance(one, av.Source)
        assert isinstance(two, av.Source)
        one_shows, two_shows = await play(one, 20), await play(source, 20)
        same(one_shows, two_shows)
        assert [w.env_ids for w in two.statistics().workers] in ([], [range(16), range(16, 32)])


@pytest.mark.asyncio
async def test_calls_go_through_and_single_steps_are_refused() -> None:
    """Each env answers for itself, in the order asked for; arguments are checked before anything is sent."""
    async with fleet() as envs:
        await envs.reset(seed=1)
        assert await envs.call("echo", 5, env_ids=[20, 3]) == (5, 5)
        await envs.set_attr("length", list(range(9, 41)))
        assert await envs.get_attr("length", env_ids=[31, 0, 16]) == (40, 9, 25)
        assert await envs.apply(lambda env: env.unwrapped.env_index) == tuple(range(32))
        with pytest.raises(av.EnvError, match="raised AttributeError in call") as raised:
            await envs.call("nothing", env_ids=[0])
        assert "on host 0" in str(raised.value.__notes__)
        with pytest.raises(ValueError, match="use unroll"):
            await envs.step(np.zeros(32, np.int64))
        with pytest.raises(av.BadActions, match="all envs of a host"):
            envs.send_unroll(noise(2, 8), env_ids=range(8))
        with pytest.raises(av.BadActions, match="unroll=8 is the most"):
            envs.send_unroll(noise(9))
        with pytest.raises(ValueError, match="no chunk owed"):
            await envs.recv_unroll()
        envs.send_unroll(noise(2, 16), env_ids=range(16, 32))
        with pytest.raises(av.BusyError):
            await envs.reset(env_ids=[17])
        obs, _ = await envs.reset(env_ids=[2], seed=[99])
        assert obs[0, 0] == 2
        chunk = await envs.recv_unroll(1)
        assert chunk.env_ids.tolist() == list(range(16, 32))
        await envs.set_state({}, frozen=True)
        assert await envs.get_state() == {}


@pytest.mark.asyncio
async def test_an_update_that_is_overtaken_before_it_leaves_does_no_harm() -> None:
    """Hosts are told of the newest, with what it holds, alone and with a chunk."""
    async with fleet() as envs:
        await envs.reset(seed=1)
        wrong: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        receipts = [envs.broadcast(name) for name in ("near", "middle", "far")]
        await receipts[-1].wait(10)
        envs.send_unroll(noise(8))
        receipts = [envs.broadcast(name) for name in ("near", "far")]
        chunk = await envs.recv_unroll()
        assert set(chunk.versions[:, 0].tolist()) <= {0, 3, 4, 5}
        await receipts[-1].wait(10)
        gc.collect()
        assert not wrong


@pytest.mark.parametrize("told", ["asked", "set"])
@pytest.mark.asyncio
async def test_a_worker_that_a_host_replaces_goes_on_with_what_the_fleet_has_learned(told: str) -> None:
    """As one of a vec env does: with the newest state that was asked for, or set."""
    async with fleet(lambda env: Learns(env, 9), 18, num_workers=1, backend="process") as envs:
        await envs.reset(seed=1)
        await envs.unroll(noise(4, 18))
        if told == "asked":
            (learned,) = (await envs.get_state()).values()
            assert learned == 4 * 18
        else:
            (name,) = await envs.get_state()
            await envs.unroll(noise(4, 18))
            await envs.set_state({name: 4 * 18})
        (pid,) = await envs.apply(_process, env_ids=[17])
        os.kill(pid, signal.SIGKILL)
        chunk = await envs.unroll(noise(1, 18))
        assert chunk.first[0].tolist() == [False] * 16 + [True] * 2
        assert (await envs.get_attr("seen"))[16:] == (4 * 18, 4 * 18)


@pytest.mark.asyncio
async def test_a_broadcast_from_any_thread_holds_for_the_next_chunk() -> None:
    """Every episode that begins in a chunk sent after broadcast() returned begins under it; receipts count hosts."""
    async with fleet() as envs:
        await envs.reset(seed=1)
        receipts: list[av.Receipt] = []
        thread = threading.Thread(target=lambda: receipts.append(envs.broadcast("far", apply="now")))
        thread.start()
        thread.join()
        stream = envs.events()
        await envs.unroll(noise(8))
        begun = [event for event in await read(stream) if isinstance(event, EpisodeStarted)]
        assert begun
        assert {(event.version, event.task["stage"]) for event in begun} == {(1, "far")}
        await receipts[0].wait(10)
        assert receipts[0].taken == (0, 1)


@pytest.mark.asyncio
async def test_a_dead_host_costs_its_columns_once_and_is_replaced() -> None:
    """Its episodes are aborted once, its columns are first, the others never notice; its successor has the newest
    update, goes on counting, and full size comes back."""
    async with fleet() as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        await envs.unroll(noise(4))
        envs.broadcast("far")
        envs.send_unroll(noise(4))
        handles(envs)[0].kill()
        chunk = await envs.recv_unroll()
        assert chunk.first[:, :16].all()
        assert not chunk.rewards[:, :16].any()
        assert chunk.truncations[0, :16].sum() == sum(one.outcome == "aborted" for one in chunk.episodes) > 0
        assert {info["host_lost"] for _, env, info in chunk.infos if env < 16 and "host_lost" in info} == {
            "died"
        }
        assert not chunk.first[0, 16:].all()
        await until(lambda: envs._hosts.state.phase(0) == 3)
        whole = await envs.unroll(noise(4))
        assert not whole.first[:, :16].all()
        assert (whole.versions == 1).all()
        assert envs.statistics().restarts == 1
    check_episodes(await read(stream))


@pytest.mark.asyncio
async def test_an_answer_that_is_lost_is_asked_for_once_more_and_counts_once() -> None:
    """Nobody knows whether the chunk was made: the same command goes there again, and its report is given again."""
    async with fleet() as envs:
        await envs.reset(seed=1)
        for handle in handles(envs):
            handle.fail_next += ["run", "run"]
        chunk = await envs.unroll(noise(3))
        assert (chunk.obs[:, :, 3] == np.arange(4)[:, None]).all()
        assert envs.statistics().executed_steps == 96
        assert envs.statistics().restarts == 0


@pytest.mark.asyncio
async def test_a_silent_host_is_waited_for_then_replaced_and_closes_itself() -> None:
    """In lockstep nobody is passed over until the host is given up; without its driver it ends within its lease."""
    async with fleet(liveness=QUICK) as envs:
        await envs.reset(seed=1)
        await until(lambda: len(envs.statistics().workers) == 2)
        old = handles(envs)[1]
        old.spoken.clear()
        envs.send_unroll(noise(4))
        early = await envs.recv_unroll(16)
        assert early.env_ids.tolist() == list(range(16))
        await until(lambda: [worker.ready for worker in envs.statistics().workers] == [True, False])
        assert envs.statistics().restarts == 0, "it is suspected, and no more"
        late = await envs.recv_unroll()
        assert late.first.all()
        assert late.env_ids.tolist() == list(range(16, 32))
        assert "did not answer" in envs._hosts.state.losses(1)[0]
        await until(lambda: old.host._envs is None)


@pytest.mark.asyncio
async def test_a_host_that_is_not_told_that_it_was_given_up_ends_with_its_lease() -> None:
    """Nobody calls it any more: it closes its envs and leaves."""
    async with fleet(liveness=QUICK) as envs:
        handle = handles(envs)[0]
        envs._hosts._handles.pop((0, 0))  # no more pings, and nobody to be killed
        await until(handle.dead.is_set)
        assert handle.host._envs is None


@pytest.mark.asyncio
async def test_hosts_are_not_silent_where_this_process_stood_still_meanwhile() -> None:
    """Stopped, or suspended with its machine: nobody asked them anything, and they are asked again first."""
    async with fleet(liveness=av.Liveness(ping=0.1, suspect=0.5, replace=1.0, lease=60.0)) as envs:
        await envs.reset(seed=1)
        ctypes.PyDLL(None).poll(None, 0, 2000)  # ms; it keeps the interpreter lock: no thread goes on
        await envs.unroll(noise(4))
        await until(lambda: len(envs._hosts.state.live) == 2)
        assert envs.statistics().restarts == 0


@pytest.mark.asyncio
async def test_fewer_hosts_run_and_the_others_join() -> None:
    """It says so; columns of who is not there are first, and nothing else."""
    transport = LocalTransport(places=1)
    with pytest.warns(RuntimeWarning, match="1 of 2 hosts found a place"):
        envs = await av.RayFleet.open(make, 32, **settings(transport=transport))
    async with contextlib.aclosing(envs):
        obs, infos = await envs.reset(seed=1)
        assert obs[:16, 0].tolist() == list(range(16))
        assert not obs[16:].any()
        assert infos["_task"].tolist() == [True] * 16 + [False] * 16
        chunk = await envs.unroll(noise(2))
        assert chunk.first[:, 16:].all()
        assert not chunk.truncations[:, 16:].any()
        transport.handles[1].spoken.set()
        await until(lambda: envs._hosts.state.phase(1) == 3)
        chunk = await envs.unroll(noise(2))
        assert (chunk.obs[0, 16:, 0] == np.arange(16, 32)).all()
        assert (chunk.index[0] == 0).all()
    with pytest.raises(av.VecEnvError, match=r"1 of 2 hosts found a place within .* a host takes 2 CPUs"):
        await fleet(transport=LocalTransport(places=1), min_hosts=2).__aenter__()


@pytest.mark.asyncio
async def test_envs_that_raise_are_told_once_and_the_chunk_comes_next(tmp_path: Path) -> None:
    """As of one vec env; so is an env that cannot be made, at opening."""
    faulty = [*stamp_envs(31), lambda: FaultyEnv(31, "raise", at=2)]
    async with fleet(faulty, None) as envs:
        await envs.reset(seed=1)
        envs.send_unroll(noise(4))
        with pytest.raises(av.EnvError, match="raise"):
            await envs.recv_unroll()
        chunk = await envs.recv_unroll()
        assert chunk.first[2:, 31].all()
        assert not chunk.first[:, :31].all()
        await envs.reset(env_ids=[31])
        assert (await envs.unroll(noise(1))).first[0].sum() == 0
    with pytest.raises(av.EnvError, match="in make"):
        await fleet([*stamp_envs(31), lambda: FaultyEnv(31, "raise", op="make")], None).__aenter__()


@pytest.mark.asyncio
async def test_a_budget_that_is_spent_ends_it_and_so_does_closing() -> None:
    """Whoever waits is told, and every later call; what ran is aborted."""
    async with fleet(restart=None) as envs:
        stream = envs.events()
        await envs.reset(seed=1)
        handles(envs)[0].kill()
        await until(lambda: envs._hosts.state.over is not None)
        with pytest.raises(av.WorkerLost, match="budget of the fleet's hosts is spent: host 0 died"):
            await envs.unroll(noise(1))
    check_episodes(await read(stream))
    with pytest.raises(av.ClosedError):
        envs.send_unroll(noise(1))
    with pytest.raises(av.ClosedError):
        envs.broadcast(1)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"hosts": 3}, "work for 2 hosts"),
        ({"hosts": 0}, "hosts is 0"),
        ({"min_hosts": 3}, "min_hosts is 3"),
        ({"unroll": 0}, "unroll is 0"),
    ],
)
def test_what_cannot_be_a_fleet_is_refused_at_once(kwargs: dict[str, Any], says: str) -> None:
    """Before anything is started."""
    with pytest.raises(ValueError, match=says):
        fleet(**kwargs)


@pytest.mark.asyncio
async def test_chunks_without_room_are_refused_with_the_number_that_fits() -> None:
    """The object store's size is known before the first chunk."""
    with pytest.raises(MemoryError, match=r"and the object store of .*: unroll=[1-7] is the most"):
        await fleet(transport=LocalTransport(store_bytes=20_000)).__aenter__()


def test_ray_is_loaded_once_a_fleet_is_constructed_and_named_where_it_is_missing() -> None:
    """Importing the package imports no Ray; without it, one clear line."""
    code = (
        "import sys, aio_vecenv as av; fleet = av.RayFleet; assert 'ray' not in sys.modules\n"
        "sys.modules['ray'] = None\n"
        "from aio_vecenv.testing import StampEnv\n"
        "class Policy:\n"
        "    noise, outputs = ((), 'f4'), {}\n"
        "    draw = load = act = lambda *given: None\n"
        "try: fleet(StampEnv, 32, hosts=2, policy=Policy(), unroll=4)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("RayFleet needs the extra: pip install 'aio-vecenv[ray]'")


@pytest.mark.asyncio
async def test_hosts_are_not_late_where_the_loop_stood_still_meanwhile() -> None:
    """Who blocks it while they start, as the user's own call might, is a factory here."""

    def slow(env: int) -> StampEnv:
        time.sleep(0.8)
        return make(env)

    async with fleet(slow, 1, hosts=1, timeouts=av.Timeouts(start=0.4)) as envs:
        assert envs.statistics().restarts == 0


@pytest.mark.asyncio
async def test_a_fleet_that_is_dropped_says_so_and_ends_its_hosts() -> None:
    """Nobody closed it: a ResourceWarning, and no host lives on."""
    transport = LocalTransport()
    held = [await av.RayFleet.open(make, 32, **settings(transport=transport))]
    await held[0].reset(seed=1)

    def drop() -> None:
        held.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="RayFleet 32 envs on 2 hosts, open> was not closed"):
        drop()
    assert all(handle.dead.is_set() for handle in transport.handles)
    await transport.close()
