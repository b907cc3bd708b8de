"""What other vectorised envs get wrong, as far as no other file here tests it: the same situation, our result."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from aio_vecenv import AsyncVecEnv, EnvError, WorkerLost
from aio_vecenv.memory import SharedBlock, available_bytes, machine_bytes, oom_kills
from aio_vecenv.testing import FaultyEnv, StampEnv, check_aligned, stamp_envs

pytestmark = pytest.mark.alternate_loops

both = pytest.mark.parametrize("backend", ["inline", "process"])
Backend = Literal["inline", "process"]


def zeros(n: int) -> np.ndarray[Any, Any]:
    return np.zeros(n, np.int64)


@pytest.mark.parametrize("shared", ["auto", False])
@both
@pytest.mark.asyncio
async def test_v05_a_manual_reset_after_a_terminal_step_clears_the_pending_autoreset(
    backend: Backend, shared: Any
) -> None:
    async with AsyncVecEnv(stamp_envs(2, 2), num_workers=1, backend=backend, shared_memory=shared) as envs:
        await envs.reset(seed=1)
        await envs.step(zeros(2))
        assert (await envs.step(zeros(2))).terminations.all()
        await envs.reset(env_ids=[0])
        batch = await envs.step(np.array([7, 8]))
        assert batch.first.tolist() == [False, True]  # env 0 was reset already: its action counts
        assert batch.obs[:, 3].tolist() == [1, 0]
        assert (await envs.get_attr("actions"))[0][-1] == 7


class Speaker(gym.Env[Any, Any]):
    """Text and OneOf observations that change with every step."""

    observation_space = spaces.Dict(
        {
            "text": spaces.Text(10),
            "one": spaces.OneOf((spaces.Discrete(99), spaces.Box(0, 99, (1,), np.float32))),
        }
    )
    action_space = spaces.Discrete(2)
    t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = 0
        return self.show(), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.show(), 0.0, False, False, {}

    def show(self) -> Any:
        return {"text": f"t{self.t}", "one": (0, np.int64(self.t))}


@both
@pytest.mark.asyncio
async def test_v07_text_and_one_of_do_not_freeze(backend: Backend) -> None:
    async with AsyncVecEnv(Speaker, 2, num_workers=2, backend=backend) as envs:
        await envs.reset()
        for t in range(1, 4):
            batch = await envs.step(zeros(2))
            assert batch.obs["text"] == (f"t{t}", f"t{t}")
            assert [int(value[1]) for value in batch.obs["one"]] == [t, t]


@pytest.mark.asyncio
async def test_v08_the_callers_options_are_not_changed() -> None:
    def vector() -> SyncVectorEnv:
        return SyncVectorEnv(
            [partial(StampEnv, i, 3) for i in range(2)], autoreset_mode=AutoresetMode.NEXT_STEP
        )

    options = {"level": 1}
    async with AsyncVecEnv([vector], backend="inline") as envs:
        await envs.reset(seed=1, options=options)
        await envs.reset(env_ids=[1], options=options)
    assert options == {"level": 1}


@pytest.mark.parametrize("fault", ["sigkill", "segfault", "os._exit"])
@pytest.mark.asyncio
async def test_v15_a_death_is_told_with_env_and_reason(fault: str) -> None:
    factories: list[Any] = stamp_envs(4)
    factories[2] = partial(FaultyEnv, 2, fault, at=0)
    async with AsyncVecEnv(factories, num_workers=2, restart=None) as envs:
        await envs.reset(seed=1)
        with pytest.raises(WorkerLost) as caught:
            await envs.step(zeros(4))
    assert (caught.value.worker, caught.value.env_ids) == (1, (2, 3))
    assert {"sigkill": "SIGKILL", "segfault": "SIGSEGV", "os._exit": "status 3"}[fault] in str(caught.value)


@pytest.mark.asyncio
async def test_v18_every_env_can_be_given_the_same_number_of_steps() -> None:
    """First-N-ready with a column per env: who has had its share is simply not sent to any more."""
    async with AsyncVecEnv(stamp_envs(4, lambda env, _: 1 + env), num_workers=2) as envs:
        await envs.reset(seed=1)
        left = np.full(4, 20)
        envs.send(zeros(4))
        owed = 4
        while owed:
            batch = await envs.recv(min_envs=1)
            check_aligned(batch)
            owed -= len(batch.env_ids)
            left[batch.env_ids] -= 1
            more = batch.env_ids[left[batch.env_ids] > 0]
            if len(more):
                envs.send(zeros(len(more)), more)
                owed += len(more)
        assert left.tolist() == [0, 0, 0, 0]


@pytest.mark.asyncio
async def test_v20_an_env_registered_only_in_the_parent() -> None:
    make: Any = partial(StampEnv, 0, 3)
    gym.register("OnlyInThisTest-v0", entry_point=make, max_episode_steps=2)
    try:
        for envs in ("OnlyInThisTest-v0", gym.spec("OnlyInThisTest-v0")):
            async with AsyncVecEnv(envs, 2, num_workers=2) as vec:
                await vec.reset(seed=1)
                await vec.step(zeros(2))
                assert (await vec.step(zeros(2))).truncations.all()  # its time limit came along
    finally:
        del gym.registry["OnlyInThisTest-v0"]


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_two_vec_envs_at_once_share_nothing() -> None:
    async with (
        AsyncVecEnv(stamp_envs(2), num_workers=1) as left,
        AsyncVecEnv(stamp_envs(3), num_workers=1) as right,
    ):
        await asyncio.gather(left.reset(seed=1), right.reset(seed=2))
        left.broadcast("left")
        for _ in range(8):
            batches = await asyncio.gather(left.step(zeros(2)), right.step(zeros(3)))
            for batch in batches:
                check_aligned(batch)
        assert await right.get_attr("heard") == ([], [], [])


# -- memory ------------------------------------------------------------------------------------------------------------


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/\n", {"memory.max": "max", "memory.current": "5"}, None),
        ("0::/a/b\n", {"a/b/memory.max": "100", "a/b/memory.current": "30"}, 70),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "100",
                "a/b/memory.current": "30",
                "a/memory.max": "90",
                "a/memory.current": "80",
            },
            10,
        ),
        (
            "0::/a\n",
            {"a/memory.max": "100", "a/memory.current": "90", "a/memory.stat": "anon 1\ninactive_file 40\n"},
            50,
        ),
        ("0::/a\n", {"a/memory.max": "100", "a/memory.current": "130"}, 0),
        (
            "5:cpu,memory:/x\n0::/\n",
            {"memory/x/memory.limit_in_bytes": "64", "memory/x/memory.usage_in_bytes": "60"},
            4,
        ),
        (
            "5:memory:/x/y\n",
            {
                "memory/x/y/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/x/y/memory.usage_in_bytes": "1",
                "memory/x/memory.limit_in_bytes": "1000",
                "memory/x/memory.usage_in_bytes": "1",
            },
            999,
        ),
        ("3:cpu:/x\n", {}, None),
        ("", {}, None),
    ],
)
def test_f27_the_memory_that_is_left(
    tmp_path: Path, cgroup: str, files: dict[str, str], left: int | None
) -> None:
    tree(tmp_path / "fs", files)
    (tmp_path / "cgroup").write_text(cgroup)
    assert available_bytes(tmp_path / "fs", tmp_path / "cgroup") == left


def test_f27_what_the_machine_has(tmp_path: Path) -> None:
    tree(tmp_path, {"meminfo": "MemTotal:  64 kB\nMemAvailable:   32 kB\n", "odd": "MemTotal: 3 kB\n"})
    assert machine_bytes(tmp_path / "meminfo") == 32 * 1024
    assert machine_bytes(tmp_path / "odd") is None
    assert machine_bytes(tmp_path / "nothing") is None


def test_oom_kills_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/a\n")
    assert oom_kills(tmp_path, tmp_path / "cgroup") == 0
    tree(tmp_path, {"a/memory.events": "low 0\noom 2\noom_kill 3\n"})
    assert oom_kills(tmp_path, tmp_path / "cgroup") == 3
    assert available_bytes(tmp_path, tmp_path / "nothing") is None
    assert oom_kills(tmp_path, tmp_path / "nothing") == 0


class Huge(gym.Env[Any, Any]):
    """Observations that no machine holds."""

    observation_space = spaces.MultiBinary((1 << 20, 1 << 24))
    action_space = spaces.Discrete(2)


@pytest.mark.asyncio
async def test_f27_no_room_is_an_error_at_opening_that_says_how_much_was_needed() -> None:
    with pytest.raises(MemoryError, match=r"needs \d{14,} bytes"):
        await AsyncVecEnv.open(Huge, 4, num_workers=1)


def test_f27_a_block_is_reserved_not_promised() -> None:
    block = SharedBlock()
    memory = block.allocate(1 << 20)
    try:
        assert Path(f"/proc/self/fd/{block.fd}").stat().st_blocks * 512 >= 1 << 20
        memory[-1:] = b"x"
    finally:
        memory.close()
        block.close()
        block.close()


@both
@pytest.mark.asyncio
async def test_f01_the_error_names_env_episode_step_and_seed(backend: Backend) -> None:
    factories: list[Any] = stamp_envs(3, 2)
    factories[2] = partial(FaultyEnv, 2, "raise", at=2, length=2)
    async with AsyncVecEnv(factories, num_workers=1, backend=backend) as envs:
        await envs.reset(seed=10)
        for _ in range(3):
            await envs.step(zeros(3))
        place = r"env 2 \(worker 0, episode 1, after 0 steps, seed None, stage 'NoneType', env 2, episode 1\)"
        with pytest.raises(EnvError, match=place):  # with the task that its reset has said
            await envs.step(zeros(3))
