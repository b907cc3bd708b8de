"""A fleet over a real Ray cluster of one machine: the same bits, and real deaths of actors, nodes and the driver."""
# edge: drivers are processes of their own, so that Ray's threads and sockets end with them

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from .harness import Parent, alive, wait_until

pytestmark = pytest.mark.timeout(400)  # the first one starts the cluster

COMMON = """
address = sys.argv[1]
class Follows:
    noise = ((), np.float32)
    outputs = {"noise": ((), np.float32)}
    def draw(self, rng, rows): return rng.random(rows, dtype=np.float32)
    def load(self, params): self.params = params
    def act(self, obs, noise): return obs[:, 3] % 1000, {"noise": noise + np.float32(1)}
def make(env): return StampEnv(env, (3, 5, 8)[env % 3])
def noise(rows, seed=0): return np.random.default_rng(seed).random((rows, 32), dtype=np.float32)
def fleet(**kwargs):
    settings = {"hosts": 2, "policy": Follows(), "unroll": 8, "address": address, **kwargs}
    return av.RayFleet(settings.pop("envs", make), 32, **settings)
def hosts(envs): return [envs._hosts.opened[slot].pid if slot in envs._hosts.opened else 0 for slot in (0, 1)]
def up(envs):
    phases = [envs._hosts.state.phase(slot) for slot in (0, 1)]
    return phases == [3, 3] and all(os.path.exists(f"/proc/{pid}") for pid in hosts(envs))
async def full_size(envs):
    while not up(envs): await asyncio.sleep(.02)
"""

BITS = (
    COMMON
    + """
async def play(envs):
    stream, shown = envs.events(), []
    obs, infos = await envs.reset(seed=7)
    shown.append((obs.tobytes(), repr(infos)))
    for number in range(60):
        if number % 3 == 1: envs.broadcast(number, topic="ab"[number % 2], apply="now")
        if number % 4 == 2: envs.set_policy(number)
        chunk = await envs.unroll(noise(1 + number % 8, number))
        arrays = [chunk.env_ids, chunk.obs, chunk.actions, chunk.rewards, chunk.terminations, chunk.truncations,
                  chunk.first, chunk.index, chunk.versions, chunk.watermarks, chunk.outputs["noise"]]
        shown.append(([(a.dtype, a.shape, a.tobytes()) for a in arrays], chunk.policy_version, chunk.number,
                      repr(chunk.episodes), repr(list(chunk.infos))))
    while stream.behind: shown.append(repr(await stream.next_batch()))
    return shown
async def main():
    async with av.AsyncVecEnv(make, 32, num_workers=2, policy=Follows(), unroll=8) as envs:
        one = await play(envs)
    async with fleet() as envs:
        await full_size(envs)
        two = await play(envs)
        nodes = {node.name for _, node in await envs._hosts.nodes([0, 1])}
    different = [i for i, (a, b) in enumerate(zip(one, two)) if a != b]
    print("READY", len(one) == len(two) > 120, different or "same", len(nodes), flush=True)
av.run(main())
"""
)

FAULTS = (
    COMMON
    + """
async def main():
    seen = []
    liveness = av.Liveness(ping=0.5, suspect=2, replace=6, lease=10)
    async with fleet(restart=av.RestartBudget(20), liveness=liveness) as envs:
        stream = envs.events()
        await envs.reset(seed=7)
        versions, chunks = 0, 0
        async def go_on(until, limit_s=120):
            nonlocal versions, chunks
            began = time.monotonic()
            while not until() or time.monotonic() < began + 1:
                assert time.monotonic() < began + limit_s, [envs._hosts.state.losses(slot) for slot in (0, 1)]
                versions = envs.broadcast(chunks, apply="now").version
                chunk = await envs.unroll(noise(4, chunks))
                chunks += 1
                while stream.behind: seen.extend((await stream.next_batch()).events)
                await asyncio.sleep(0.02)
            return time.monotonic() - began
        await go_on(lambda: up(envs))
        for kill in range(int(sys.argv[2])):
            before = hosts(envs)
            print("READY", *before, flush=True)
            await go_on(lambda: hosts(envs) != before and up(envs))
        print("READY", flush=True)
        await go_on(lambda: os.path.exists(sys.argv[3]) and up(envs))
        receipt = envs.broadcast("last", apply="now")
        await receipt.wait(30)
        chunk = await envs.unroll(noise(8, 1))
        newest = [envs._hosts.state.levels(slot)["default"] for slot in (0, 1)] == [receipt.version] * 2
        whole = not chunk.first.all(axis=0).any()
    while stream.behind: seen.extend((await stream.next_batch()).events)
    check_episodes(seen)
    aborted = sum(getattr(event, "outcome", "") == "aborted" for event in seen)
    print("READY", newest, whole, chunks, aborted, flush=True)
av.run(main())
"""
)


def driver(code: str, cluster: Any, *arguments: object) -> Parent:
    return Parent("import ray\n" + code, cluster.address, *map(str, arguments))


def test_sixty_chunks_over_two_nodes_are_those_of_one_vec_env_to_the_bit(ray_cluster: Any) -> None:
    """Observations, rewards, episodes, orders, watermarks, versions, outputs; a host on each node."""
    with driver(BITS, ray_cluster) as parent:
        assert parent.ready() == ["True", "same", "2"]


def test_an_actor_and_a_raylet_killed_and_one_stopped_lose_and_double_nothing(
    ray_cluster: Any, tmp_path: Path
) -> None:
    """Updates all the while: every host ends on the newest one, and the fleet has its full size again."""
    go_on = tmp_path / "stopped"
    with driver(FAULTS, ray_cluster, 2, go_on) as parent:
        hosts = parent.ready()
        os.kill(int(hosts[0]), signal.SIGKILL)
        parent.ready()
        os.kill(ray_cluster.raylets.pop(0), signal.SIGKILL)
        ray_cluster.add_node()
        parent.ready()
        raylet = ray_cluster.raylets[0]
        os.kill(raylet, signal.SIGSTOP)
        time.sleep(3)  # long enough to be suspected
        os.kill(raylet, signal.SIGCONT)
        go_on.touch()
        newest, whole, _, aborted = parent.ready()
        assert (newest, whole) == ("True", "True")
        assert int(aborted) >= 32
    ray_cluster.settle()


def test_the_driver_is_killed_and_nothing_is_left(ray_cluster: Any) -> None:
    """Hosts and their workers are gone within the lease and two seconds."""
    code = COMMON + (
        "async def main():\n"
        "    async with fleet() as envs:\n"
        "        await full_size(envs)\n"
        "        await envs.reset(seed=1)\n"
        "        workers = set(await envs.call('get_pid'))\n"
        "        print('READY', *workers, *[one.pid for one in envs._hosts.opened.values()], flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "av.run(main())\n"
    )
    with driver(code, ray_cluster) as parent:
        pids = list(map(int, parent.ready()))
        assert len(pids) == 4
        parent.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), 17)


def test_what_is_missing_is_said_in_one_line(ray_cluster: Any) -> None:
    """A host without the user's module, a cluster without room, chunks beyond the object store."""
    code = COMMON + (
        "import types\n"
        "nowhere = types.ModuleType('nowhere')\n"
        "exec('def make(): return 1', nowhere.__dict__)\n"
        "sys.modules['nowhere'] = nowhere\n"
        "async def says(**kwargs):\n"
        "    try:\n"
        "        await fleet(**kwargs).__aenter__()\n"
        "    except Exception as error:\n"
        "        print('READY', type(error).__name__, str(error).replace(chr(10), '|'), flush=True)\n"
        "async def main():\n"
        "    await says(envs=nowhere.make)\n"
        "    await says(num_workers='per env')\n"
        "    await says(unroll=30_000)\n"
        "av.run(main())\n"
    )
    with driver(code, ray_cluster) as parent:
        lacks = " ".join(parent.ready())
        assert lacks.startswith("ModuleNotFoundError the Python of the node ")
        assert "has no module 'nowhere', which the envs need: install it there" in lacks
        full = " ".join(parent.ready())
        assert full.startswith("VecEnvError 0 of 2 hosts found a place")
        assert "a host takes 17 CPUs" in full
        assert "on 3 nodes of at most 2" in full
        large = " ".join(parent.ready())
        assert large.startswith("MemoryError two chunks of 30000 rows of 32 envs take ")
        assert "has 83.9 MB: unroll=" in large


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_kill_every_twenty_seconds_for_three_minutes(ray_cluster: Any, tmp_path: Path) -> None:
    """Actors and raylets in turn; full size within 15 s of a node being there."""
    kills, done = 9, tmp_path / "done"
    done.touch()
    with driver(FAULTS, ray_cluster, kills, done) as parent:
        hosts = parent.ready()
        for kill in range(kills):
            began = time.monotonic()
            if kill % 2:
                os.kill(ray_cluster.raylets.pop(0), signal.SIGKILL)
                ray_cluster.add_node()
            else:
                os.kill(int(hosts[0]), signal.SIGKILL)
            there = time.monotonic()
            hosts = parent.ready()
            print(f"kill {kill}: full size {time.monotonic() - there:.1f} s after a node was there")
            time.sleep(max(0.0, 20 - (time.monotonic() - began)))
        assert parent.ready()[:2] == ["True", "True"]
    ray_cluster.settle()
