"""Gymnasium's `VectorEnv` on top of `AsyncVecEnv`: `gymnasium.vector.AsyncVectorEnv` with the class swapped."""
# async: synchronous outside; every call is driven by `driver`

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import Space, logger
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError, ResetNeeded
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_differing_spaces, batch_space, iterate
from numpy.typing import NDArray

from ..backends.base import Backend
from ..core.batch import Batch
from ..core.factories import MakeSpec, resolve
from ..core.infos import batch_infos
from ..core.limits import RenewAfter, RestartBudget, Timeouts
from ..errors import BadActions, SpaceMismatch
from ..vec_env import AsyncVecEnv
from .driver import LoopChoice, Pending
from .rows import row_of
from .session import BeforeStep, Native, Session, as_theirs, env_errors, original, warn_of_context

__all__ = ["VectorEnv", "make_vec"]

Step = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]

_TIMEOUTS = Timeouts()
_BUDGET = RestartBudget()


class VectorEnv(Native, gym.vector.VectorEnv[Any, Any, Any]):
    """Gymnasium's vector env over worker processes, with a broadcast channel.

    Args:
        env_fns: one factory per env, as for `gymnasium.vector.AsyncVectorEnv`.
        shared_memory: True: observations of a fixed size travel in shared memory, the others (those of custom spaces,
            too) pickled; False: all pickled.
        copy: whether observations are the caller's own; else views, valid until the next call.
        context: any of multiprocessing's; without a meaning here, which a warning says.
        daemon: either; workers end with this process, and may have children of their own.
        worker: refused: the conversation with a worker is not Gymnasium's.
        observation_mode: "same", "different", or (batched space, single space).
        autoreset_mode: Gymnasium's `AutoresetMode`, or its value.
        max_concurrency: at most so many envs at work at once; a worker steps its envs in turn, so it bounds
            `num_workers`.
        num_workers, timeouts, restart, renew_after, info, on_env_error, check, spares, backend: as for `AsyncVecEnv`.
            `renew_after` needs num_workers="per env" (ValueError).
        loop: "auto": in place, in the caller's thread, unless a loop is running there; "thread": in a background
            thread, where acknowledgements, deadlines and restarts go on while the caller computes.
        before_step: awaited before each step's actions are sent, such as a coordinator's `settled`.

    `native` is the `AsyncVecEnv` inside. `broadcast` may be called from any thread at any moment. `call`, `get_attr`,
    `set_attr` and `render` work while a step is pending.

    After a timeout the call is still pending: the same `…_wait` gives its result, `reset` gives it up.
    After an env raised, it accepts only a reset (all, or with a `reset_mask`); the others can be stepped on.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[..., Any]],
        shared_memory: bool = True,
        copy: bool = True,
        context: str | None = None,
        daemon: bool = True,
        worker: Callable[..., None] | None = None,
        observation_mode: str | tuple[Space[Any], Space[Any]] = "same",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        max_concurrency: int | None = None,
        *,
        num_workers: int | Literal["per env"] | None = None,
        timeouts: Timeouts = _TIMEOUTS,
        restart: RestartBudget | None = _BUDGET,
        renew_after: RenewAfter | int | None = None,
        info: Literal["all", "episode"] | Sequence[str] = "all",
        on_env_error: Literal["raise", "reset"] = "raise",
        check: Literal["finite"] | None = None,
        spares: int = 0,
        backend: Literal["process", "inline"] | Backend = "process",
        loop: LoopChoice = "auto",
        before_step: BeforeStep | None = None,
    ) -> None:
        warn_of_context("context", context)
        _check_worker(worker)
        _check_concurrency(max_concurrency)
        _check_mode(observation_mode)
        self.env_fns = env_fns
        self.shared_memory, self.copy, self.context, self.daemon = shared_memory, copy, context, daemon
        self.worker, self.max_concurrency = worker, max_concurrency
        self.observation_mode = observation_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self._call: Pending | None = None
        self._doing: Literal["reset", "step"] | None = None
        self._late = False  # a wait for what we are doing timed out
        self._reset: Pending | None = None
        native = AsyncVecEnv(
            list(env_fns),
            num_workers=max_concurrency if num_workers is None else num_workers,
            backend=backend,
            autoreset=self.autoreset_mode,
            info=info,
            copy=copy,
            shared_memory="auto" if shared_memory else False,
            timeouts=timeouts,
            restart=restart,
            renew_after=renew_after,
            on_env_error=on_env_error,
            check=check,
            spares=spares,
            casting="unsafe",
            spaces="equal" if observation_mode == "same" else "equivalent",
        )
        _check_renewal(renew_after, native)
        try:
            self._session = Session(self, native, loop, before_step)
        except SpaceMismatch as mismatch:
            raise _spaces_differ(mismatch, observation_mode) from mismatch
        except Exception as error:
            if found := env_errors(error):
                raise original(found[-1])  # noqa: B904 - it brings its own cause
            raise
        self.native = native
        self._last_obs: Any = None  # SAME_STEP: what the lost worker's envs showed last
        try:
            self._take_spaces(native)
        except BaseException:
            self.close(terminate=True)
            raise

    def _take_spaces(self, native: AsyncVecEnv) -> None:
        self.num_envs = native.num_envs
        self.metadata = dict(native.metadata)
        self.render_mode = self.get_attr("render_mode")[0]
        self.single_action_space = native.single_action_space
        self.action_space = native.action_space
        single = native.single_observation_space
        if isinstance(self.observation_mode, tuple):
            self.observation_space, self.single_observation_space = self.observation_mode
            if not _equivalent(self.single_observation_space, single):
                raise _shapes_differ(f"they have {single}, not {self.single_observation_space}")
        elif self.observation_mode == "different":
            self.single_observation_space = single
            self.observation_space = batch_differing_spaces(list(self.get_attr("observation_space")))
        else:
            self.single_observation_space = single
            self.observation_space = batch_space(single, self.num_envs)

    # -- stepping --------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all envs, or those of `options["reset_mask"]`; (observations of all, infos)."""
        work = self._begin_reset(seed, options)
        self._reset, self._doing = None, None
        with self._env_errors():
            result: tuple[Any, dict[str, Any]] = self._session.run(work)
        self._late = False
        return result

    def reset_async(
        self, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Begin a reset. Raises AlreadyPendingCallError while another call is pending, unless that one timed out."""
        work = self._begin_reset(seed, options)
        self._reset = self._session.driver.start(work)
        self._doing, self._late = "reset", False

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """The result of `reset_async`. After multiprocessing.TimeoutError it may be called again."""
        self._check_running()
        if self._doing != "reset" or self._reset is None:
            raise NoAsyncCallError("Calling `reset_wait` without any prior call to `reset_async`.", "reset")
        with self._env_errors():
            result: tuple[Any, dict[str, Any]] = self._wait(self._reset, "reset_wait", timeout)
        return result

    def step(self, actions: Any) -> Step:
        """One step of all envs: (observations, rewards, terminations, truncations, infos)."""
        self._check_free("step_async")
        try:
            return self._unpack(self._session.step(actions))
        except BadActions as error:
            raise self._misuse(error, actions) from None
        except BaseException as error:
            self._after(error)

    def step_async(self, actions: Any) -> None:
        """Send one action to each env. Raises BadActions (a ValueError) if they do not fit; nothing was sent then."""
        self._check_free("step_async")
        try:
            self._session.send(actions)
        except BadActions as error:
            raise self._misuse(error, actions) from None
        self._doing, self._late = "step", False

    def step_wait(self, timeout: float | None = None) -> Step:
        """The result of `step_async`. After multiprocessing.TimeoutError it may be called again."""
        self._check_running()
        if self._doing != "step":
            raise NoAsyncCallError("Calling `step_wait` without any prior call to `step_async`.", "step")
        with self._env_errors():
            if timeout is None:
                batch = self._session.recv()
                self._doing, self._late = None, False
            else:
                receiving = self._session.driver.start(self._session.receive())
                try:
                    batch = self._wait(receiving, "step_wait", timeout)
                except multiprocessing.TimeoutError:
                    self._session.driver.drop(receiving)  # the replies stay owed
                    raise
        return self._unpack(batch)

    def _wait(self, pending: Pending, name: str, timeout: float | None) -> Any:
        try:
            result = self._session.driver.wait(pending, timeout)
        except TimeoutError as error:
            if pending.done():
                self._doing = None
                raise
            self._late = True
            raise multiprocessing.TimeoutError(
                f"The call to `{name}` has timed out after {timeout} second(s)."
            ) from error
        except BaseException:
            self._doing = None
            raise
        self._doing, self._late = None, False
        return result

    def _begin_reset(self, seed: int | Sequence[int | None] | None, options: dict[str, Any] | None) -> Any:
        """The coroutine of a reset whose arguments have been checked."""
        self._check_running()
        if seed is None:
            seeds: list[int | None] = [None] * self.num_envs
        elif isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"If seeds are passed as a list the length must match num_envs={self.num_envs} "
                f"but got length={len(seeds)}."
            )
        if self._doing is not None and not self._late:
            raise _already_pending("reset_async", self._doing)
        mask = None
        if options is not None and "reset_mask" in options:
            options = dict(options)  # the caller's own stays as it is
            mask = options.pop("reset_mask")
            _check_mask(mask, self.num_envs)
            mask = None if mask.all() else mask
        # what timed out is given up for all envs, or for none
        if mask is not None and self._doing is not None:
            raise _already_pending("reset_async", self._doing)
        if self._reset is not None:  # it timed out, and this one takes its place
            self._session.driver.drop(self._reset)
            self._reset = None
        return self._resetting(seeds, options, mask)

    async def _resetting(
        self, seeds: list[int | None], options: dict[str, Any] | None, mask: NDArray[np.bool_] | None
    ) -> tuple[Any, dict[str, Any]]:
        reset, everyone = self._session.reset, np.arange(self.num_envs)
        if mask is None:
            obs, infos = await reset(seed=seeds, options=options)
        else:
            chosen = np.flatnonzero(mask)
            chosen_seeds = [seeds[i] for i in chosen]
            _, infos = await reset(seed=chosen_seeds, options=options, env_ids=chosen)
            obs = self.native.observations()
        self._keep(obs)
        return obs, batch_infos(everyone, infos)

    def _unpack(self, batch: Batch) -> Step:
        infos: dict[Any, Any] = batch.infos
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            done = batch.terminations | batch.truncations
            if b"\1" in done.tobytes():  # a quarter of what any() takes
                infos = self._with_finals(batch, np.flatnonzero(done).tolist())
            self._keep(batch.obs)
        joined = batch_infos(batch.env_ids, infos) if infos else {}
        return batch.obs, batch.rewards, batch.terminations, batch.truncations, joined

    def _keep(self, obs: Any) -> None:
        """What was seen last; a view of the workers' rows will show something else."""
        self._last_obs = obs if self.copy else deepcopy(obs)

    def _with_finals(self, batch: Batch, done: list[int]) -> dict[int, dict[str, Any]]:
        """SAME_STEP: what ended goes under `final_obs` and `final_info`, beside the infos of the new episodes."""
        infos: dict[Any, dict[str, Any]] = dict(batch.infos)
        finals: dict[Any, Any] = batch.final_infos
        given = self._session.given_obs
        for i in done:
            last = self._last_obs if batch.first[i] else batch.final_obs  # lost: nobody saw how it ended
            final = {
                "final_info": finals.get(i, {}),
                "final_obs": given[i] if i in given else row_of(self.single_observation_space, last, i),
            }
            infos[i] = {**final, **infos.get(i, {})}
        return infos

    # -- asking ----------------------------------------------------------------------------------------------------

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of each env, or read an attribute. Also while a step or reset is pending."""
        self._check_call(name)
        with self._env_errors(quiet=True):
            return self._session.run(self.native.call(name, *args, **kwargs))

    def call_async(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Begin a call. Raises AlreadyPendingCallError while another `call_async` is pending."""
        self._check_call(name)
        if self._call is not None:
            raise _already_pending("call_async", "call")
        self._call = self._session.driver.start(self.native.call(name, *args, **kwargs))

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """The result of `call_async`. After multiprocessing.TimeoutError it may be called again."""
        self._check_running()
        if self._call is None:
            raise NoAsyncCallError("Calling `call_wait` without any prior call to `call_async`.", "call")
        pending = self._call
        with self._env_errors(quiet=True):
            try:
                result: tuple[Any, ...] = self._session.driver.wait(pending, timeout)
            except TimeoutError as error:
                if pending.done():
                    self._call = None
                    raise
                raise multiprocessing.TimeoutError(
                    f"The call to `call_wait` has timed out after {timeout} second(s)."
                ) from error
            except BaseException:
                self._call = None
                raise
        self._call = None
        return result

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each env; a method is called, as Gymnasium does."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each env; a list or tuple gives one value per env. Also while a step is pending."""
        self._check_running()
        if isinstance(values, (list, tuple)) and len(values) != self.num_envs:
            raise ValueError(
                "Values must be a list or tuple with length equal to the number of environments. "
                f"Got `{len(values)}` values for {self.num_envs} environments."
            )
        with self._env_errors(quiet=True):
            self._session.run(self.native.set_attr(name, values))

    def render(self) -> tuple[Any, ...] | None:
        """One frame per env."""
        return self.call("render")

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        """The random generator of each env: a copy."""
        return self.call("np_random")

    @property
    def np_random_seed(self) -> Any:
        """The seed of each env's random generator."""
        return self.call("np_random_seed")

    # -- closing ---------------------------------------------------------------------------------------------------

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Close the envs and their workers; without grace after `timeout` seconds, or at once with `terminate`."""
        session = getattr(self, "_session", None)
        if session is None:
            return
        doing = self._doing if not self._late else None
        if doing is None and self._call is not None:
            doing = "call"  # type: ignore[assignment]
        if doing is not None:
            logger.warn(f"Calling `close` while waiting for a pending call to `{doing}` to complete.")
        self.closed = True
        session.close(0 if terminate else timeout)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError(
                f"Trying to operate on `{type(self).__name__}`, after a call to `close()`."
            )
        if (failure := self._session.failure) is not None:
            raise failure

    def _check_free(self, name: str) -> None:
        self._check_running()
        if self._doing is not None:
            raise _already_pending(name, self._doing)

    def _check_call(self, name: str) -> None:
        self._check_running()
        if name in ("reset", "step", "close", "_setattr", "_check_spaces"):
            raise ValueError(f"Trying to call function `{name}` with `call`, use `{name}` directly instead.")

    def _misuse(self, error: BadActions, actions: Any) -> Exception:
        if "was never reset" in str(error):
            return ResetNeeded("Cannot call `step` before `reset`: " + str(error))
        return as_theirs(
            error, lambda: list(zip(range(self.num_envs), iterate(self.action_space, actions), strict=True))
        )

    @contextmanager
    def _env_errors(self, *, quiet: bool = False) -> Iterator[None]:
        """Raise what an env raised as Gymnasium does: logged, then the last one, of its own type."""
        try:
            yield
        except multiprocessing.TimeoutError:
            raise
        except BaseException as error:
            self._after(error, quiet=quiet)

    def _after(self, error: BaseException, *, quiet: bool = False) -> NoReturn:
        found = env_errors(error)
        if not found:
            if self._session.owed and not quiet:
                # interrupted: it goes on, for `step_wait`, or `reset` gives it up
                self._doing, self._late = "step", True
            raise error
        if not quiet:  # a call leaves everything as it was
            self._doing, self._late = None, False
            self._session.discard()
            for one in found:
                index = getattr(one, "env_id", -1)
                logger.error(
                    "%s", f"Received the following error from env {index}, which now waits for a reset"
                )
                logger.error("%s", _remote_traceback(one))
            logger.error("Raising the last exception back to the main process.")
        raise original(found[-1])


# -- checks, and Gymnasium's messages --------------------------------------------------------------------------------


def _already_pending(name: str, doing: str) -> AlreadyPendingCallError:
    return AlreadyPendingCallError(
        f"Calling `{name}` while waiting for a pending call to `{doing}` to complete", doing
    )


def _remote_traceback(error: BaseException) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return "\n".join(notes).removeprefix("the traceback in the worker:\n") or str(error)


def _check_worker(worker: Callable[..., None] | None) -> None:
    if worker is None:
        return
    try:
        inspect.signature(worker).bind(*(None,) * 8)
    except TypeError as error:
        raise ValueError(
            f"A custom `worker` must accept 8 arguments. Got the signature {inspect.signature(worker)}."
        ) from error
    raise ValueError(
        "a custom `worker` cannot be used here: workers do not speak over a multiprocessing pipe. What it changes "
        "about resets belongs into `autoreset_mode` or a wrapper of the env"
    )


def _check_concurrency(limit: int | None) -> None:
    if limit is None:
        return
    if not isinstance(limit, (int, np.integer)):
        raise ValueError(f"`max_concurrency` must be an integer or None, got {type(limit)}.")
    if limit < 1:
        raise ValueError(f"`max_concurrency` must be a positive or None, got {limit}.")


def _check_mode(mode: Any) -> None:
    if isinstance(mode, tuple) and len(mode) == 2:
        if not all(isinstance(space, Space) for space in mode):
            raise TypeError(
                f"Expected both elements of observation_mode to be Spaces, got {type(mode[0])} and {type(mode[1])}"
            )
    elif not isinstance(mode, str) or mode not in ("same", "different"):
        raise ValueError(
            "Invalid `observation_mode`, expected: 'same' or 'different' or tuple of single and batch observation "
            f"space, actual got {mode}"
        )


def _check_renewal(renew_after: RenewAfter | int | None, native: AsyncVecEnv) -> None:
    """Raise ValueError where some rows would say that their envs wait."""
    if renew_after is not None and native.num_workers < native.num_envs:
        raise ValueError(
            f"renew_after with {native.num_envs} envs in {native.num_workers} workers: an env would have to wait for "
            "the others of its worker, which Gymnasium's interface cannot say; num_workers='per env'"
        )


def _check_mask(mask: Any, num_envs: int) -> None:
    name = "`options['reset_mask']`"
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(mask)}")
    if mask.shape != (num_envs,):
        raise ValueError(f"{name} must have shape `({num_envs},)`, got {mask.shape}")
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must have `dtype=np.bool_`, got {mask.dtype}")
    if not mask.any():
        raise ValueError(
            f"{name} must contain a boolean array with at least one True value, got reset_mask={mask}"
        )


def _spaces_differ(mismatch: SpaceMismatch, mode: Any) -> RuntimeError:
    if "action space" in str(mismatch):
        return RuntimeError(
            f"Some environments have an action space different from `{mismatch.expected}`: {mismatch}. "
            "In order to batch actions, the action spaces from all environments must be equal."
        )
    if mode == "same":
        return RuntimeError(
            "VectorEnv(..., observation_mode='same') however some of the sub-environments observation spaces are not "
            f"equivalent. {mismatch}. If this is intentional, use `observation_mode='different'` instead."
        )
    return _shapes_differ(str(mismatch))


def _shapes_differ(how: str) -> RuntimeError:
    return RuntimeError(
        "VectorEnv(..., observation_mode='different' or custom space) however the sub-environments observation "
        f"spaces do not share a common shape and dtype: {how}"
    )


def _equivalent(given: Space[Any], found: Space[Any]) -> bool:
    return given == found or (type(given) is type(found) and bool(is_space_dtype_shape_equiv(given, found)))


# -- make_vec --------------------------------------------------------------------------------------------------------


_OPTIONS = frozenset(inspect.signature(VectorEnv).parameters) - {"env_fns"}


def make_vec(
    id_or_spec: str | EnvSpec,
    num_envs: int = 1,
    *,
    vector_kwargs: dict[str, Any] | None = None,
    wrappers: Sequence[Callable[[Any], Any]] = (),
    **kwargs: Any,
) -> VectorEnv:
    """A `VectorEnv` of `num_envs` envs, as `gymnasium.make_vec` makes one.

    Keyword arguments that `VectorEnv` knows (`num_workers`, `autoreset_mode`, `loop`, …) go there, and so does
    `vector_kwargs`; everything else goes to `gymnasium.make`. `wrappers` go around each env. The `spec` of what is made
    holds all of it, as Gymnasium's does, and makes the same again.

    As a vector entry point, so that `gymnasium.make_vec` uses it (Gymnasium does not tell an entry point which env
    is meant, so it is said here):

        gym.register("Mine-v0", entry_point=Mine, vector_entry_point=partial(aio_vecenv.make_vec, "Mine-v0"))
    """
    if not isinstance(id_or_spec, (str, EnvSpec)):
        raise gym.error.Error(f"Invalid id type: {type(id_or_spec)}. Expected `str` or `EnvSpec`")
    options = {name: kwargs.pop(name) for name in list(kwargs) if name in _OPTIONS}
    found: MakeSpec = resolve(id_or_spec, 1)[0]  # type: ignore[assignment]
    spec = deepcopy(found.spec)
    made = spec.kwargs  # of a vector env's spec, as gymnasium.make_vec reads it
    num_envs, wrappers = made.pop("num_envs", num_envs), made.pop("wrappers", wrappers)
    options = {**made.pop("vector_kwargs", {}), **options, **(vector_kwargs or {})}
    made.pop("vectorization_mode", None)
    kwargs = {**made, **kwargs}
    spec.kwargs = {}  # some of them are `gymnasium.make`'s own, which takes the others, too
    envs = VectorEnv([MakeSpec(spec, kwargs, tuple(wrappers), found.module)] * num_envs, **options)
    envs.spec = deepcopy(spec)
    more = {"num_envs": num_envs if num_envs != 1 else None, "vector_kwargs": options, "wrappers": wrappers}
    envs.spec.kwargs.update(kwargs, **{name: value for name, value in more.items() if value})
    return envs
