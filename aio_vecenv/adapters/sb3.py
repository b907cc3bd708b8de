"""Stable-Baselines3's `VecEnv` on top of `AsyncVecEnv`: `SubprocVecEnv` with the class swapped.

The contract is kept by duck typing: Stable-Baselines3 is looked for when the first `VecEnv` is made, and told that
this class is one of its own; without it everything here works all the same.
"""
# async: synchronous outside; every call is driven by `driver`

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ..backends.base import Backend
from ..core.actions import check_declared, columns_of
from ..core.batch import Batch
from ..core.limits import RestartBudget, Timeouts
from ..errors import BadActions
from ..vec_env import AsyncVecEnv
from .driver import LoopChoice
from .rows import class_names, has_attr, row_of
from .session import BeforeStep, Native, Session, as_theirs, env_errors, original, warn_of_context

__all__ = ["VecEnv"]

Indices = None | int | Iterable[int]
Factory = Callable[..., Any]
StepReturn = tuple[Any, NDArray[np.float64], NDArray[np.bool_], list[dict[str, Any]]]

_TIMEOUTS = Timeouts()
_BUDGET = RestartBudget()


class VecEnv(Native):
    """Stable-Baselines3's vec env over worker processes, with a broadcast channel.

    Args:
        env_fns: one factory per env, as for `SubprocVecEnv`; or an env id, an `EnvSpec` or one factory, and `num_envs`.
        start_method: any of multiprocessing's; without a meaning here, which a warning says.
        num_workers, timeouts, restart, info, on_env_error, check, spares, backend: as for `AsyncVecEnv`.
        loop: "auto": in place, in the caller's thread, unless a loop is running there; "thread": in a background
            thread, where acknowledgements, deadlines and restarts go on while the learner computes.
        before_step: awaited before each step's actions are sent, such as a coordinator's `settled`.

    Episodes restart within the step that ends them, with `terminal_observation` and `TimeLimit.truncated` in that
    step's info. `native` is the `AsyncVecEnv` inside. `broadcast` may be called from any thread at any moment;
    `env_method`, `get_attr` and `set_attr` work while a step is pending.

    A worker that is lost and replaced ends the episodes of its envs as truncated: the info has `worker_lost`, and the
    `terminal_observation` is the last one that was seen, as the caller left it.
    """

    def __init__(
        self,
        env_fns: str | EnvSpec | Factory | Sequence[Factory],
        num_envs: int | str | None = None,
        *,
        start_method: str | None = None,
        num_workers: int | Literal["per env"] | None = None,
        timeouts: Timeouts = _TIMEOUTS,
        restart: RestartBudget | None = _BUDGET,
        info: Literal["all", "episode"] | Sequence[str] = "all",
        on_env_error: Literal["raise", "reset"] = "raise",
        check: Literal["finite"] | None = None,
        spares: int = 0,
        backend: Literal["process", "inline"] | Backend = "process",
        loop: LoopChoice = "auto",
        before_step: BeforeStep | None = None,
    ) -> None:
        if isinstance(num_envs, str):  # where the original has its start method
            num_envs, start_method = None, num_envs
        warn_of_context("start_method", start_method)
        _introduce(type(self))
        self.native = AsyncVecEnv(
            env_fns,
            num_envs,
            num_workers=num_workers,
            backend=backend,
            autoreset=AutoresetMode.SAME_STEP,
            info=info,
            timeouts=timeouts,
            restart=restart,
            on_env_error=on_env_error,
            check=check,
            spares=spares,
            casting="unsafe",
        )
        try:
            self._session = Session(self, self.native, loop, before_step)
        except Exception as error:
            if found := env_errors(error):
                raise original(found[-1])  # noqa: B904 - it brings its own cause
            raise
        self.closed = False
        self.num_envs = self.native.num_envs
        self.observation_space = self.native.single_observation_space
        self.action_space = self.native.single_action_space
        self.reset_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._seeds: list[int | None] = [None] * self.num_envs
        self._options: dict[str, Any] | list[dict[str, Any]] = {}  # of all envs, or of each
        self._last_obs: Any = None  # what the envs of a lost worker showed last
        self.render_mode = self._common_render_mode()
        modes = ["human", "rgb_array"] if self.render_mode == "rgb_array" else [self.render_mode]
        self.metadata = {"render_modes": [] if self.render_mode is None else modes}

    def _common_render_mode(self) -> str | None:
        modes: list[str | None] = self.get_attr("render_mode") if self.has_attr("render_mode") else [None]
        if any(mode != modes[0] for mode in modes):
            self.close()
            raise ValueError(f"render_mode should be the same for all environments, not {modes}")
        return modes[0]

    # -- stepping --------------------------------------------------------------------------------------------------

    def reset(self) -> Any:
        """Reset all envs with the seeds and options set before, once; their observations. Gives up a pending step."""
        seeds, options = self._seeds, self._options
        self._seeds = [None] * self.num_envs
        self._options = {}
        obs, infos = self._guarded(self._resetting(seeds, options))
        self.reset_infos = [infos.get(i, {}) for i in range(self.num_envs)]
        self._last_obs = obs
        return obs

    async def _resetting(
        self, seeds: list[int | None], options: dict[str, Any] | list[dict[str, Any]]
    ) -> tuple[Any, dict[Any, dict[str, Any]]]:
        reset = self._session.reset
        if isinstance(options, dict):
            return await reset(seed=seeds, options=options or None)
        infos: dict[Any, dict[str, Any]] = {}
        for i in range(self.num_envs):  # a command carries one set of options
            _, info = await reset(seed=[seeds[i]], options=options[i] or None, env_ids=[i])
            infos.update(info)
        return self.native.observations(), infos

    def step_async(self, actions: Any) -> None:
        """Send one action to each env, out of anything that holds one per env, or a dict of batches.

        Raises BadActions (a ValueError) if they do not fit; nothing was sent then.
        """
        try:
            self._session.send(self._batched(actions))
        except BadActions as error:
            raise self._misuse(error, actions) from None

    def step_wait(self) -> StepReturn:
        """What `step_async` brought about: (observations, rewards, dones, infos)."""
        try:
            batch = self._session.recv()
        except Exception as error:
            raise self._translated(error)  # noqa: B904 - it brings its own cause
        return self._unpack(batch)

    def step(self, actions: Any) -> StepReturn:
        """One step of all envs: (observations, rewards, dones, infos)."""
        try:
            batch = self._session.step(self._batched(actions))
        except BadActions as error:
            raise self._misuse(error, actions) from None
        except Exception as error:
            raise self._translated(error)  # noqa: B904 - it brings its own cause
        return self._unpack(batch)

    def _batched(self, actions: Any) -> Any:
        """Actions as the native env takes them, which has Dict and Tuple spaces batched leaf by leaf."""
        space = self.action_space
        if isinstance(actions, Mapping):
            check_declared(space, actions)
            return actions
        if not isinstance(space, (spaces.Dict, spaces.Tuple)):
            return actions
        each = list(actions) if isinstance(actions, Iterable) else []
        if len(each) != self.num_envs:
            got = f"{len(each)} actions" if isinstance(actions, Iterable) else type(actions).__name__
            raise BadActions(
                f"actions: expected one per env, {self.num_envs}, got {got}; nothing was sent",
                expected=f"{self.num_envs} actions",
                got=got,
            )
        return columns_of(space, each)

    def _misuse(self, error: BadActions, actions: Any) -> BadActions:
        return as_theirs(error, lambda: list(zip(range(self.num_envs), actions, strict=True)))

    def _unpack(self, batch: Batch) -> StepReturn:
        rows: dict[Any, dict[str, Any]] = batch.infos
        dones = batch.terminations | batch.truncations
        infos: list[dict[str, Any]]
        if rows:
            infos = [{**rows.get(i, {}), "TimeLimit.truncated": False} for i in range(self.num_envs)]
        else:
            infos = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if ended := dones.nonzero()[0].tolist():
            finals: dict[Any, dict[str, Any]] = batch.final_infos
            given = self._session.given_obs
            for i in ended:
                self.reset_infos[i] = rows.get(i, {})
                lost = bool(batch.first[i])  # nobody saw how it ended
                final = rows.get(i, {}) if lost else finals.get(i, {})
                last = self._last_obs if lost else batch.final_obs
                infos[i] = {
                    **final,
                    "TimeLimit.truncated": not batch.terminations[i],
                    "terminal_observation": given[i]
                    if i in given
                    else row_of(self.observation_space, last, i),
                }
        self._last_obs = batch.obs
        return batch.obs, batch.rewards, dones, infos

    def seed(self, seed: int | None = None) -> list[int | None]:
        """The seeds of the next reset: env i gets `seed + i`. None: seeds from entropy."""
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._seeds = [seed + i for i in range(self.num_envs)]
        return self._seeds

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """The options of the next reset: the same for all envs, or a list with one dict each."""
        if isinstance(options, list):
            if len(options) != self.num_envs:
                raise ValueError(f"{len(options)} options for {self.num_envs} envs")
            self._options = deepcopy(options) if any(options) else {}
        else:
            self._options = deepcopy(options or {})

    # -- asking ----------------------------------------------------------------------------------------------------

    def env_method(self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any) -> list[Any]:
        """Call a method of each env, through wrappers. Also while a step is pending."""
        return self._ask(indices, lambda ids: self.native.call(method_name, *args, env_ids=ids, **kwargs))

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of each env, found through wrappers. Also while a step is pending."""
        return self._ask(indices, lambda ids: self.native.get_attr(attr_name, env_ids=ids))

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Set an attribute of each env, on the wrapper or env that has it. Also while a step is pending."""

        def setting(ids: list[int] | None) -> Any:
            n = self.num_envs if ids is None else len(ids)
            values = [value] * n if isinstance(value, (list, tuple)) else value  # natively, one per env
            return self.native.set_attr(attr_name, values, env_ids=ids)

        self._ask(indices, setting)

    def has_attr(self, attr_name: str) -> bool:
        """Whether every env has the attribute."""
        return all(self._guarded(self.native.apply(partial(has_attr, attr_name)), step=False))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Indices = None) -> list[bool]:
        """Whether each env has a wrapper of that class around it. The class itself is not imported by the workers."""
        name = f"{wrapper_class.__module__}.{wrapper_class.__qualname__}"
        found = self._ask(indices, lambda ids: self.native.apply(class_names, env_ids=ids))
        return [any(name in bases for bases in wrappers) for wrappers in found]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One frame per env, where the render mode is rgb_array."""
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return list(self._guarded(self.native.render(), step=False))

    def render(self, mode: str | None = None) -> NDArray[np.uint8] | None:
        """The frames of all envs as the tiles of one image; shown if `mode` is "human"."""
        if (
            mode is not None
            and mode != self.render_mode
            and (mode, self.render_mode) != ("human", "rgb_array")
        ):
            warnings.warn(
                f"render(mode={mode!r}), but the envs were made with render_mode={self.render_mode!r}",
                stacklevel=2,
            )
            return None
        mode = mode or self.render_mode
        if mode is None:
            warnings.warn(
                "You tried to call render() but no `render_mode` was passed to the env constructor.",
                stacklevel=2,
            )
            return None
        if self.render_mode != "rgb_array":  # each env shows itself
            self.env_method("render")
            return None
        image = _tile([frame for frame in self.get_images() if frame is not None])
        if mode == "human":
            cv2 = importlib.import_module("cv2")
            cv2.imshow("vecenv", image[:, :, ::-1])
            cv2.waitKey(1)
            return None
        return image

    @property
    def unwrapped(self) -> VecEnv:
        """This: it wraps nothing."""
        return self

    def getattr_depth_check(self, name: str, already_found: bool) -> str | None:
        """The class that hides an attribute which a wrapper has too; for Stable-Baselines3's wrappers."""
        if hasattr(self, name) and already_found:
            return f"{type(self).__module__}.{type(self).__name__}"
        return None

    # -- closing and inside ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the envs and their workers; can be called twice, and after any failure."""
        if not self.closed:
            self.closed = True
            self._session.close()

    def __enter__(self) -> VecEnv:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<VecEnv for Stable-Baselines3 on {self.native!r}>"

    def _ask(self, indices: Indices, ask: Callable[[list[int] | None], Any]) -> list[Any]:
        """One result per index, as `[envs[i] for i in indices]` would pick them: from the end where negative, and
        asked again where an env is named again."""
        if indices is None:
            return list(self._guarded(ask(None), step=False) or ())
        wanted = list(self._get_indices(indices))
        results: dict[int, Any] = {}  # by position in `wanted`
        while len(results) < len(wanted):
            positions: dict[int, int] = {}  # env id -> the first position of it that has no result
            for position, env_id in enumerate(wanted):
                if position not in results:
                    positions.setdefault(env_id, position)
            found = self._guarded(ask(list(positions)), step=False)
            results.update(zip(positions.values(), found or [None] * len(positions)))
        return [results[position] for position in range(len(wanted))]

    def _get_indices(self, indices: Indices) -> Iterable[int]:
        """The env ids that `indices` names. Raises IndexError for one that no env has."""
        everyone = range(self.num_envs)
        if indices is None:
            return everyone
        given = [indices] if isinstance(indices, (int, np.integer)) else indices
        try:
            return [everyone[index] for index in given]
        except IndexError:
            raise IndexError(f"indices {indices!r}: there are envs 0 to {self.num_envs - 1}") from None

    def _guarded(self, coroutine: Any, *, step: bool = True) -> Any:
        try:
            return self._session.run(coroutine)
        except Exception as error:
            raise self._translated(error, step=step)  # noqa: B904 - it brings its own cause

    def _translated(self, error: Exception, *, step: bool = True) -> BaseException:
        """What to raise instead: the env's own exception. The other envs can be used on."""
        found = env_errors(error)
        if not found:
            return error
        if step:
            self._session.discard()
        return original(found[0])


def _introduce(kind: type) -> None:
    """Tell Stable-Baselines3, if it is installed, that this is a VecEnv."""
    try:
        base = importlib.import_module("stable_baselines3.common.vec_env.base_vec_env")
    except ImportError:
        return
    base.VecEnv.register(kind)


def _tile(frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Frames (n, height, width, channels) as one image, as square as can be."""
    count = len(frames)
    high = int(np.ceil(np.sqrt(count)))
    wide = int(np.ceil(count / high))
    padded = np.stack([*frames, *[np.zeros_like(frames[0])] * (high * wide - count)])
    _, height, width, channels = padded.shape
    grid = padded.reshape(high, wide, height, width, channels).transpose(0, 2, 1, 3, 4)
    image: NDArray[np.uint8] = grid.reshape(high * height, wide * width, channels)
    return image
