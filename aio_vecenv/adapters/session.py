"""An `AsyncVecEnv` for a synchronous caller: opened, stepped, told and closed through a driver."""
# async: owns the driver and what runs beside the stepping

from __future__ import annotations

import asyncio
import multiprocessing
import os
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from ..core.batch import Batch
from ..core.updates import Apply
from ..errors import BadActions, EnvError, SpaceMismatch, VecEnvError
from ..runtime.publisher import Receipt
from ..vec_env import AsyncVecEnv
from .driver import Driver, LoopChoice

__all__ = ["BeforeStep", "Native", "Session", "as_theirs", "env_errors", "original", "warn_of_context"]

T = TypeVar("T")
BeforeStep = Callable[[], Awaitable[None]]


class Session:
    """What a Gymnasium `VectorEnv` and an SB3 `VecEnv` have in common.

    `owner` is the adapter: when it is collected, or at exit, the vec env is closed at once.
    """

    def __init__(
        self, owner: object, native: AsyncVecEnv, loop: LoopChoice, before_step: BeforeStep | None
    ) -> None:
        self.native = native
        self.before_step = before_step
        self._told: BaseException | None = None  # of what runs beside: raised by a step already
        self.beside_tasks: list[asyncio.Task[Any]] = []
        self.driver = Driver(loop)
        try:
            self.driver.run(native.__aenter__())
        except BaseException:
            self.driver.close()
            raise
        self.driver.moved = native._adopt
        self._end = weakref.finalize(owner, _finalize, self.driver, native, os.getpid())

    # -- beside the stepping ---------------------------------------------------------------------------------------

    def beside(self, make: Callable[[AsyncVecEnv], T]) -> T:
        """Call `make(native)` on the loop; what it returns runs beside the stepping from now on.

        Its `run()`, if it has one, becomes a task that lives until the adapter is closed. Its `settled()`, if it has
        one, is awaited before each step (G9); in place that is outside of any task, so without `asyncio.timeout`.
        Made for a coordinator, of which nothing is known here.
        """
        made = self.driver.call(make, self.native)
        run = getattr(made, "run", None)
        if callable(run):
            self.driver.call(self._spawn, run)
        settled = getattr(made, "settled", None)
        if callable(settled):
            self.before_step = settled
        return made

    def _spawn(self, run: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.beside_tasks.append(asyncio.get_running_loop().create_task(run(), name="beside the stepping"))

    # -- stepping --------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the native env to its end."""
        return self.driver.run(coroutine)

    def send(self, actions: Any) -> None:
        """Send one action to every env, once whoever must be heard before has settled."""
        if self.before_step is not None:
            self.driver.quick(self._settle(self.before_step))
        self.driver.call(self.native.send, actions)

    def step(self, actions: Any) -> Any:
        """One step of all envs: the batch."""
        if self.before_step is not None:
            return self.driver.quick(self._settled_step(self.before_step, actions))
        return self.driver.quick(self._step(actions))

    def recv(self) -> Any:
        """What all envs owe: the batch."""
        return self.driver.quick(self.receive())

    async def _settled_step(self, before_step: BeforeStep, actions: Any) -> Any:
        await self._settle(before_step)
        return await self._step(actions)

    async def _step(self, actions: Any) -> Batch:
        self.native.send(actions)
        return await self.native._collector.recv(join=_unjoined)

    async def receive(self) -> Batch:
        """The batch that all envs owe, its infos by env id as the workers sent them: each adapter shapes them."""
        self.native._check_open()
        return await self.native._collector.recv(join=_unjoined)

    async def reset(self, **kwargs: Any) -> tuple[Any, dict[Any, Any]]:
        """As of the native env, the infos by env id."""
        batch = await self.native._reset(**kwargs, join=_unjoined)
        return batch.obs, batch.infos

    async def _settle(self, before_step: BeforeStep) -> None:
        try:
            await before_step()
        except Exception as error:
            self._told = error
            raise

    @property
    def failure(self) -> VecEnvError | None:
        """What ended the vec env: the restart budget is spent. Every further call raises it."""
        return self.native._supervisor.failure

    @property
    def given_obs(self) -> Mapping[int, Any]:
        """Of the newest batch, by env id: last observations whose types their rows have lost."""
        return self.native._pool.given_obs

    @property
    def owed(self) -> int:
        """How many envs have a command whose row was not handed out."""
        return self.native._pool.owed

    def discard(self) -> None:
        """After an error: take the healthy rows of that command off, so that the envs can be used again."""
        with suppress(ValueError):  # nothing is owed
            self.driver.quick(self.native.recv())

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self, limit_s: float | None = None) -> None:
        """Close everything; after `limit_s` seconds, without grace. Raises what ran beside ended with."""
        if self._end.detach() is None:
            return
        try:
            self.driver.run(_goodbye(self.native, limit_s, self.beside_tasks))
        finally:
            self.driver.close()
        for task in self.beside_tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None and error is not self._told:
                raise error


class Native:
    """What both adapters have beyond the interface that they keep: the `AsyncVecEnv` inside is told and asked."""

    native: AsyncVecEnv
    _session: Session

    def _check_running(self) -> None:
        """Raise what the interface says of an env that is closed, if it says anything."""

    def get_state(self) -> dict[str, Any]:
        """The state of the envs' wrappers, merged over all envs. See `AsyncVecEnv.get_state`."""
        self._check_running()
        return self._session.run(self.native.get_state())

    def set_state(self, state: Mapping[str, Any], *, frozen: bool = False) -> None:
        """Give all envs a state that `get_state` returned. See `AsyncVecEnv.set_state`."""
        self._check_running()
        self._session.run(self.native.set_state(state, frozen=frozen))

    def broadcast(self, payload: Any, *, topic: str = "default", apply: Apply = "reset") -> Receipt:
        """Tell every worker `payload`; never waits; allowed from any thread, also while another one steps.

        See `AsyncVecEnv.broadcast`.
        """
        return self.native.broadcast(payload, topic=topic, apply=apply)

    def wait_for(self, receipt: Receipt, timeout: float | None = None) -> Receipt:
        """Wait until every worker has taken an update. Raises TimeoutError; nothing is lost then."""
        return self._session.run(receipt.wait(timeout))

    def beside(self, make: Callable[[AsyncVecEnv], T]) -> T:
        """Call `make(native)`, and let what it returns run beside the stepping: a coordinator. See `Session.beside`.

        coordinator = envs.beside(lambda native: Coordinator(Staged(plan), native))
        """
        self._check_running()
        return self._session.beside(make)

    def on_loop(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` in the thread of the loop: for commands to what runs beside."""
        self._check_running()
        return self._session.driver.call(function, *args)

    @property
    def before_step(self) -> BeforeStep | None:
        """Awaited before each step's actions are sent."""
        return self._session.before_step

    @before_step.setter
    def before_step(self, function: BeforeStep | None) -> None:
        self._session.before_step = function


async def _goodbye(native: AsyncVecEnv, limit_s: float | None, beside: list[asyncio.Task[Any]]) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await native.aclose()
    except TimeoutError:
        pass  # its workers were killed: cancelling skips the grace
    if beside:  # the end of the events ends them; whoever does not read events is cancelled
        _, going = await asyncio.wait(beside, timeout=1.0)
        for task in going:
            task.cancel()
        if going:
            await asyncio.wait(going)


def _finalize(driver: Driver, native: AsyncVecEnv, pid: int) -> None:
    """The adapter was collected, or the interpreter ends: no grace, and nobody to raise to."""
    if os.getpid() == pid:
        with suppress(Exception):
            driver.close(_goodbye(native, 0, []))


def _unjoined(env_ids: Any, infos: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return infos


def env_errors(error: BaseException) -> list[VecEnvError]:
    """The errors of single envs that a call raised, by env id; empty if it was something else."""
    if isinstance(error, ExceptionGroup):
        return [one for one in error.exceptions if isinstance(one, (EnvError, SpaceMismatch))]
    if isinstance(error, (EnvError, SpaceMismatch)) and not isinstance(error, BadActions):
        return [error]
    return []


def as_theirs(error: BadActions, ask: Callable[[], object]) -> BadActions:
    """`error`, so that it is also of the type that the original raises for such actions, which is what `ask` raises."""
    try:
        ask()
    except (TypeError, KeyError, IndexError) as theirs:
        kinds = (BadActions, type(theirs))
        both: type[BadActions] = type(
            "BadActions", kinds, {"__str__": BadActions.__str__, "__module__": __name__}
        )
        return both(str(error), expected=error.expected, got=error.got)
    except Exception:  # of a type that ours has
        pass
    return error


def original(error: VecEnvError) -> BaseException:
    """The env's own exception where it survived the trip, with the place and remote traceback as its cause."""
    cause = error.__cause__
    if cause is None:
        return error
    error.__cause__ = None
    cause.__cause__ = error
    return cause


def warn_of_context(name: str, method: str | None) -> None:
    """Say that multiprocessing's start methods have no meaning here. Raises ValueError for what is none of them."""
    if method is not None:
        multiprocessing.get_context(method)
        warnings.warn(
            f"{name}={method!r} has no meaning here: workers are fresh interpreters that inherit nothing, and "
            "factories travel by cloudpickle, also lambdas and what is defined in the script. Leave it out",
            stacklevel=3,
        )
