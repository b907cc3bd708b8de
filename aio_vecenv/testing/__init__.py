"""For your own tests: envs that misbehave on order, envs whose every row can be checked, and the backend contract.

`StampEnv` says in each observation which row of which episode it is, so any mix-up shows. `FaultyEnv` is a `StampEnv`
that does one of `FAULTS` at a chosen moment. `ScriptedBackend` is the inline backend, except that replies and deaths
come when the test says so. `BackendContract` is the suite that every backend must pass: subclass it and
say which. `check_policy` says whether a policy may act in workers.
"""
# public: used in tests only; neither pytest nor anything beyond the runtime's own dependencies is imported

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..backends.base import Backend, Listener, Loss
from ..backends.inline import InlineBackend, InlineWorker
from ..core.batch import Batch, Episode, EpisodeStarted
from ..core.framing import Message
from ..core.messages import Attachment, Setup, Spaces
from ..errors import BadActions, BusyError, ClosedError, EnvError
from ..vec_env import AsyncVecEnv
from .policies import check_policy

__all__ = [
    "FAULTS",
    "BackendContract",
    "FaultyEnv",
    "ScriptedBackend",
    "StampEnv",
    "check_aligned",
    "check_episodes",
    "check_policy",
    "stamp_envs",
]


# -- envs whose every row can be checked -------------------------------------------------------------------------------


class StampEnv(gym.Env[NDArray[np.int64], np.int64]):
    """Observation (env, life, episode, t): t counts steps and is the reward; info["applied_version"]: what it was told.

    An episode takes `length` steps (or `length(env, episode)`) and ends as `end` says. With a `folder`, each object
    made for an env is a new life, and one line is appended to `env-<i>.log` per episode end, before `step` returns.
    The action is not looked at.
    """

    def __init__(
        self,
        env: int,
        length: int | Callable[[int, int], int] = 5,
        *,
        end: Literal["terminated", "truncated"] = "terminated",
        folder: str | Path | None = None,
        width: int = 4,
    ) -> None:
        self.observation_space = gym.spaces.Box(-(2**62), 2**62, (width,), np.int64)
        self.action_space = gym.spaces.Discrete(1000)
        self.env_index, self.length, self.end = env, length, end
        self.episode, self.t, self._width = -1, 0, width
        self.version, self.payload = 0, None
        self.heard: list[tuple[int, Any]] = []
        self.seeds: list[int | None] = []
        self.actions: list[int] = []
        self.closed_times = 0
        self._log = None if folder is None else Path(folder) / f"env-{env}.log"
        self.life = 0
        if self._log is not None:
            self.life = self._append(f"life {os.getpid()}\n").count("life ") - 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.t = 0
        stage = str(self.payload) if isinstance(self.payload, (str, int)) else type(self.payload).__name__
        task = {"stage": stage, "env": self.env_index, "episode": self.episode}
        return self._obs(), {**self._info(), "task": task, "options": repr(options)}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.actions.append(int(action))
        length = self.length(self.env_index, self.episode) if callable(self.length) else self.length
        done = self.t >= length
        if done and self._log is not None:
            self._append(f"end {self.life} {self.episode} {self.t} {self.version}\n")
        return (
            self._obs(),
            float(self.t),
            done and self.end == "terminated",
            done and self.end == "truncated",
            self._info(),
        )

    def on_broadcast(self, payload: Any, version: int) -> None:
        """Remember the newest payload, and everything that was heard."""
        self.version, self.payload = version, payload
        self.heard.append((version, payload))

    def close(self) -> None:
        self.closed_times += 1

    def get_pid(self) -> int:
        """Of the process that this env lives in."""
        return os.getpid()

    def echo(self, value: Any) -> Any:
        """`value`, through the pipe and back."""
        return value

    def _obs(self) -> NDArray[np.int64]:
        obs = np.full(self._width, self.t, np.int64)
        obs[:3] = self.env_index, self.life, self.episode
        return obs

    def _info(self) -> dict[str, Any]:
        return {"applied_version": self.version, "stamp": self._obs()[:4]}

    def _append(self, line: str) -> str:
        assert self._log is not None
        with open(self._log, "a+") as file:
            file.write(line)
            file.flush()
            file.seek(0)
            return file.read()


def stamp_envs(count: int, *args: Any, **kwargs: Any) -> list[Callable[[], StampEnv]]:
    """`count` factories of `StampEnv`, each with its own index."""
    return [partial(StampEnv, index, *args, **kwargs) for index in range(count)]


def check_aligned(batch: Batch) -> None:
    """Raise AssertionError unless every row of a batch of `StampEnv`s belongs together."""
    for row, env_id in enumerate(batch.env_ids.tolist()):
        stamp = batch.obs[row]
        t = int(stamp[3])
        assert stamp[0] == env_id, f"row of env {env_id} holds {stamp}"
        assert (stamp[4:] == t).all(), f"a torn row: {stamp}"
        assert batch.rewards[row] == t, f"env {env_id} at {stamp}: reward {batch.rewards[row]}"
        ended = bool(batch.terminations[row] or batch.truncations[row])
        if batch.first[row]:
            assert t == 0, f"env {env_id}: first row of an episode at {stamp}"
            assert not batch.terminations[row]
        else:
            assert t > 0, f"env {env_id}: an executed step at {stamp}"
        if "stamp" in batch.infos and batch.infos["_stamp"][row]:
            assert (batch.infos["stamp"][row] == stamp[:4]).all(), (
                f"info and observation of env {env_id} differ"
            )
        if "worker_lost" in batch.infos and batch.infos["_worker_lost"][row]:
            assert batch.first[row]
            assert ended


def check_episodes(events: Sequence[EpisodeStarted | Episode], *, finished: bool = True) -> None:
    """Raise AssertionError unless each episode began once, ended at most once, and per env one follows the other.

    With `finished`, also unless every episode that began has ended.
    """
    running: dict[int, EpisodeStarted] = {}
    newest: dict[int, int] = {}
    for event in events:
        if isinstance(event, EpisodeStarted):
            assert event.env_id not in running, f"env {event.env_id} began twice: {event}"
            assert event.index == newest.get(event.env_id, -1) + 1, f"an episode is missing before {event}"
            newest[event.env_id] = event.index
            running[event.env_id] = event
        else:
            began = running.pop(event.env_id, None)
            assert began is not None, f"an end without a beginning: {event}"
            for name in ("index", "order", "version", "task", "seed"):
                assert getattr(began, name) == getattr(event, name), f"{name} of {began} and {event} differ"
    assert not finished or not running, f"never reported as ended: {running}"


# -- envs that misbehave -----------------------------------------------------------------------------------------------


class TwoArguments(Exception):
    """Cannot be rebuilt from its `args` alone."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} and {right}")
        self.left, self.right = left, right


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class BadText(Exception):
    """Raises in its own `__str__`."""

    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Unloadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_explode, ())


def _explode() -> None:
    raise RuntimeError("this object does not want to be unpickled")


Result = tuple[Any, ...]  # what reset or step returned


def _raise(error: Callable[[], BaseException]) -> Callable[[FaultyEnv, Result], Result]:
    def fault(env: FaultyEnv, result: Result) -> Result:
        raise error()

    return fault


def _info(value: Callable[[], Any]) -> Callable[[FaultyEnv, Result], Result]:
    return lambda env, result: (*result[:-1], {**result[-1], "a": {"b": value()}})


def _obs(change: Callable[[Any], Any]) -> Callable[[FaultyEnv, Result], Result]:
    return lambda env, result: (change(result[0]), *result[1:])


def _reward(value: Any) -> Callable[[FaultyEnv, Result], Result]:
    return lambda env, result: (result[0], value, *result[2:]) if len(result) == 5 else result


def _hang(env: FaultyEnv, result: Result) -> Result:
    while True:
        pass


def _wait(env: FaultyEnv, result: Result) -> Result:
    threading.Event().wait()
    return result


def _hang_in_c(env: FaultyEnv, result: Result) -> Result:
    mutex = ctypes.create_string_buffer(128)  # zeros: an unlocked mutex
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)  # PyDLL keeps the interpreter lock; no signal ends this
    return result


def _segfault(env: FaultyEnv, result: Result) -> Result:
    ctypes.string_at(0)
    return result


def _print(env: FaultyEnv, result: Result) -> Result:
    sys.stdout.write("x" * 100_000)
    return result


def _close_standard_files(env: FaultyEnv, result: Result) -> Result:
    for fd in (0, 1, 2):
        os.close(fd)
    return result


def _grandchild(env: FaultyEnv, result: Result) -> Result:
    env.helper = subprocess.Popen(["sleep", "1000"])
    return result


def _fork(env: FaultyEnv, result: Result) -> Result:
    if not os.fork():
        time.sleep(1000)  # a fork holds every descriptor of its parent
        os._exit(0)
    return result


def _signal_handlers(env: FaultyEnv, result: Result) -> Result:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return result


def _kill(number: int) -> Callable[[FaultyEnv, Result], Result]:
    def fault(env: FaultyEnv, result: Result) -> Result:
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # a stop takes effect at once, a death too; neither comes back here
        return result

    return fault


FAULTS: dict[str, Callable[[Any, Result], Result]] = {
    "raise": _raise(lambda: ValueError("the env is broken")),
    "raise two arguments": _raise(lambda: TwoArguments("one", "two")),
    "raise unpicklable": _raise(lambda: HoldsALock("an exception with a lock")),
    "raise without text": _raise(BadText),
    "raise group": _raise(lambda: ExceptionGroup("several", [ValueError("a"), KeyError("b")])),
    "raise 10 MB": _raise(lambda: ValueError("x" * 10_000_000)),
    "raise 100 kB": _raise(lambda: ValueError("x" * 100_000)),
    "raise unicode": _raise(lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")),
    "hang": _hang,
    "wait": _wait,
    "hang in c": _hang_in_c,
    "segfault": _segfault,
    "sys.exit": _raise(lambda: SystemExit(3)),
    "os._exit": lambda env, result: os._exit(3),
    "sigkill": _kill(signal.SIGKILL),
    "sigstop": _kill(signal.SIGSTOP),
    "huge info": _info(lambda: bytes(17 << 20)),
    "unpicklable info": _info(threading.Lock),
    "unloadable info": _info(Unloadable),
    "wrong shape": _obs(lambda obs: obs[:1]),
    "wrong dtype": _obs(lambda obs: obs.astype(np.float64) + 0.5),
    "no observation": _obs(lambda obs: None),
    "nan reward": _reward(float("nan")),
    "infinite reward": _reward(float("inf")),
    "no reward": _reward(None),
    "four results": lambda env, result: result[:4] if len(result) == 5 else result[:1],
    "prints": _print,
    "closes standard files": _close_standard_files,
    "child": _grandchild,
    "fork": _fork,
    "signal handlers": _signal_handlers,
}


class FaultyEnv(StampEnv):
    """A `StampEnv` that does FAULTS[fault] at its `at`-th call (0, 1, …) of `op`: make, reset, step or close.

    With `once`, a path, only the first of all lives does: the fault leaves that file behind.
    """

    helper: subprocess.Popen[bytes] | None = None

    def __init__(
        self,
        env: int,
        fault: str,
        *,
        op: Literal["make", "reset", "step", "close"] = "step",
        at: int = 2,
        once: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(env, **kwargs)
        self.fault, self.op, self.at, self.once = fault, op, at, once
        self.calls = 0
        if op == "make":
            self.at = 0
            self._perhaps("make", ())

    def reset(self, **kwargs: Any) -> Any:
        return self._perhaps("reset", super().reset(**kwargs))

    def step(self, action: np.int64) -> Any:
        return self._perhaps("step", super().step(action))

    def close(self) -> None:
        super().close()
        if self.op == "close":
            self.at = 0
        self._perhaps("close", ())

    def _perhaps(self, op: str, result: Result) -> Any:
        if op != self.op:
            return result
        self.calls += 1
        if self.calls != self.at + 1:
            return result
        if self.once is not None:
            try:
                Path(self.once).touch(exist_ok=False)
            except FileExistsError:
                return result
        return FAULTS[self.fault](self, result)


class ReusesBuffer(StampEnv):
    """Returns the same array every time, and the same info dict."""

    def __init__(self, env: int, **kwargs: Any) -> None:
        super().__init__(env, **kwargs)
        self._buffer = np.zeros(self.observation_space.shape or (), np.int64)
        self._dict: dict[str, Any] = {}

    def _obs(self) -> NDArray[np.int64]:
        if not hasattr(self, "_buffer"):
            return super()._obs()
        self._buffer[:] = super()._obs()
        return self._buffer

    def _info(self) -> dict[str, Any]:
        self._dict.clear()
        self._dict.update(super()._info())
        return self._dict


# -- a backend under the test's control --------------------------------------------------------------------------------


class ScriptedBackend:
    """The inline backend, except that replies and acknowledgements wait until they are delivered, and workers can die.

    While `automatic` (default False), replies are delivered as soon as the loop turns, those that wait already too.
    """

    block_fd = -1
    in_thread = True

    def __init__(self, *, automatic: bool = False) -> None:
        self._inline = InlineBackend()
        self._automatic = automatic
        self.workers: dict[int, ScriptedWorker] = {}
        self.refuse: Exception | None = None  # raised by the next workers' `make`

    @property
    def automatic(self) -> bool:
        """Whether replies come by themselves."""
        return self._automatic

    @automatic.setter
    def automatic(self, value: bool) -> None:
        self._automatic = value
        for worker in self.workers.values():
            worker.hurry()

    def worker(self, index: int, incarnation: int, listener: Listener) -> ScriptedWorker:
        """The newest incarnation of each worker is in `workers`."""
        worker = self.workers[index] = ScriptedWorker(self, index, incarnation, listener)
        return worker

    def start_spares(self) -> None:
        """There are none."""

    def allocate(self, size_bytes: int) -> Any:
        return self._inline.allocate(size_bytes)

    @property
    def block(self) -> Any:
        return self._inline.block

    def close(self) -> None:
        self._inline.close()

    def deliver(self, index: int) -> bool:
        """Let worker `index` do its oldest command and reply; whether it had one."""
        return self.workers[index].deliver()

    def lose(self, index: int, reason: str = "was killed by the script") -> None:
        """Worker `index` is gone, as if its process had died."""
        self.workers[index].lose(reason)


class ScriptedWorker(InlineWorker):
    """One worker of a `ScriptedBackend`. `hold_acks` keeps acknowledgements back."""

    def __init__(self, backend: ScriptedBackend, index: int, incarnation: int, listener: Listener) -> None:
        super().__init__(backend._inline, index, incarnation, listener)
        self._script = backend
        self.lost = False
        self.hold_acks = False

    async def make(self, setup: Setup) -> Spaces:
        if self._script.refuse is not None:
            raise self._script.refuse
        return await super().make(setup)

    async def attach(self, attachment: Attachment) -> None:
        await super().attach(attachment)

    def send(self, message: Message) -> None:
        if not self.lost:
            super().send(message)
            self.hurry()

    def hurry(self) -> None:
        """Deliver everything at the loop's next turn, if replies come by themselves."""
        if self._script.automatic and not self.lost:
            self._loop.call_soon(self._deliver_all)

    def _deliver_all(self) -> None:
        while self._script.automatic and self.deliver():
            pass

    def push(self, message: Message) -> None:
        if not self.lost:
            super().push(message)

    def run_pending(self) -> bool:
        return False

    def deliver(self) -> bool:
        """Do the oldest command and reply."""
        return not self.lost and super().run_pending()

    def kill(self, reason: str, *, stack: bool = False) -> None:
        self.lose(reason)

    def lose(self, reason: str) -> None:
        """Never answer again; the listener hears of it at the loop's next turn, as from a pipe."""
        if self.lost:
            return
        self.lost = True
        self._queue.clear()
        self._updates.clear()
        self.conversation.lost()
        self._loop.call_soon(self._listener.lost, self, Loss(reason, -9))

    def _take_all(self) -> None:
        if not self.hold_acks and not self.lost:
            super()._take_all()


# -- the contract of a backend -----------------------------------------------------------------------------------------


E = TypeVar("E", bound=BaseException)


@contextmanager
def _raising(kind: type[E]) -> Iterator[list[E]]:
    """The block must raise `kind`; the exception is in the list afterwards."""
    caught: list[E] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


class BackendContract:
    """What every backend must do. Subclass it in a test module, and say how to make the backend:

        class TestMine(BackendContract):
            def backend(self): return MyBackend()

    Each test runs in a loop of its own, made by `loop_factory` (None: asyncio's).
    """

    loop_factory: ClassVar[Callable[[], asyncio.AbstractEventLoop] | None] = None
    limit_s: ClassVar[float] = 30.0  # of one test

    def backend(self) -> Backend | Literal["process", "inline"]:
        """A new backend for one vec env."""
        raise NotImplementedError("say which backend this contract is for")

    def make(self, envs: Any, **kwargs: Any) -> AsyncVecEnv:
        """A vec env over that backend."""
        return AsyncVecEnv(envs, backend=self.backend(), **kwargs)

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run one test."""

        async def bounded() -> None:
            async with asyncio.timeout(self.limit_s):
                await main

        with asyncio.Runner(loop_factory=type(self).loop_factory) as runner:
            runner.run(bounded())

    # each of these is one promise

    def test_rows_stay_with_their_envs(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(5, 3), num_workers=2) as envs:
                obs, _ = await envs.reset(seed=1)
                assert obs[:, 0].tolist() == [0, 1, 2, 3, 4]
                for _ in range(12):
                    check_aligned(await envs.step(np.zeros(5, np.int64)))

        self.run(main())

    def test_autoreset_modes(self) -> None:
        async def main(mode: AutoresetMode) -> None:
            async with self.make(stamp_envs(2, 2), num_workers=2, autoreset=mode) as envs:
                await envs.reset(seed=1)
                actions = np.zeros(2, np.int64)
                assert not (await envs.step(actions)).terminations.any()
                batch = await envs.step(actions)
                assert batch.terminations.all()
                if mode is AutoresetMode.SAME_STEP:
                    assert batch.obs[:, 3].tolist() == [0, 0]
                    assert batch.final_obs[:, 3].tolist() == [2, 2]
                    assert batch.rewards.tolist() == [2.0, 2.0]
                    assert not batch.first.any()
                else:
                    assert batch.obs[:, 3].tolist() == [2, 2]
                if mode is AutoresetMode.NEXT_STEP:
                    batch = await envs.step(actions)
                    assert batch.first.all()
                    assert batch.rewards.tolist() == [0.0, 0.0]
                if mode is AutoresetMode.DISABLED:
                    with _raising(BadActions):
                        envs.send(actions)
                    await envs.reset(env_ids=[0, 1])
                assert (await envs.step(actions)).obs[:, 3].tolist() == [1, 1]

        for mode in AutoresetMode:
            self.run(main(mode))

    def test_broadcast_reaches_the_next_reset(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(4, 3), num_workers=2) as envs:
                await envs.reset(seed=1)
                published = 0
                for t in range(20):
                    batch = await envs.step(np.zeros(4, np.int64))
                    assert (batch.versions[batch.first] >= published).all()
                    published = envs.broadcast({"t": t}).version
                receipt = envs.broadcast("last")
                await receipt
                assert receipt.pending == ()
                assert receipt.taken == (0, 1)

        self.run(main())

    def test_every_episode_is_reported_once(self) -> None:
        async def main() -> None:
            envs = self.make(stamp_envs(3, lambda env, episode: 1 + (env + episode) % 4), num_workers=2)
            async with envs:
                stream = envs.events()
                await envs.reset(seed=1)
                for t in range(25):
                    await envs.step(np.zeros(3, np.int64))
                    if t == 10:
                        await envs.reset(env_ids=[1])
            events = [event async for event in stream]
            check_episodes(events)
            assert len([event for event in events if isinstance(event, Episode)]) > 10

        self.run(main())

    def test_partial_sends_and_first_ready(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(4, 5), num_workers=2) as envs:
                await envs.reset(seed=1)
                envs.send(np.zeros(2, np.int64), [3, 0])
                with _raising(BusyError):
                    envs.send(np.zeros(1, np.int64), [3])
                seen: list[int] = []
                while len(seen) < 2:
                    batch = await envs.recv(min_envs=1)
                    check_aligned(batch)
                    assert (np.diff(batch.env_ids) > 0).all()
                    seen += batch.env_ids.tolist()
                assert sorted(seen) == [0, 3]

        self.run(main())

    def test_an_error_stays_with_its_env(self) -> None:
        async def main() -> None:
            factories: list[Any] = stamp_envs(4)
            factories[1] = partial(FaultyEnv, 1, "raise", at=1)
            async with self.make(factories, num_workers=2) as envs:
                await envs.reset(seed=1)
                await envs.step(np.zeros(4, np.int64))
                with _raising(EnvError) as caught:
                    await envs.step(np.zeros(4, np.int64))
                assert caught[0].env_id == 1
                assert "the env is broken" in str(caught[0])
                batch = await envs.recv()
                assert batch.env_ids.tolist() == [0, 2, 3]
                check_aligned(batch)
                await envs.reset(env_ids=[1])
                check_aligned(await envs.step(np.zeros(4, np.int64)))

        self.run(main())

    def test_calls_between_commands(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(3), num_workers=2) as envs:
                await envs.reset(seed=1)
                envs.send(np.zeros(3, np.int64))
                assert await envs.get_attr("env_index") == (0, 1, 2)
                assert await envs.call("echo", "x", env_ids=[2, 0]) == ("x", "x")
                await envs.set_attr("length", [7, 8, 9])
                assert await envs.get_attr("length") == (7, 8, 9)
                check_aligned(await envs.recv())

        self.run(main())

    def test_a_cancelled_recv_loses_nothing(self) -> None:
        async def main() -> None:
            async with self.make(stamp_envs(2), num_workers=2) as envs:
                await envs.reset(seed=1)
                for _ in range(5):
                    envs.send(np.zeros(2, np.int64))
                    task = asyncio.ensure_future(envs.recv())
                    await asyncio.sleep(0)
                    task.cancel()
                    try:
                        batch = await task
                    except asyncio.CancelledError:
                        batch = await envs.recv()
                    check_aligned(batch)

        self.run(main())

    def test_closing_twice_and_use_after_close(self) -> None:
        async def main() -> None:
            envs = self.make(stamp_envs(2), num_workers=2)
            async with envs:
                await envs.reset(seed=1)
                envs.send(np.zeros(2, np.int64))
            await envs.aclose()
            with _raising(ClosedError):
                await envs.recv()

        self.run(main())
