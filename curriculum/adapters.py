"""`CurriculumVecEnvWrapper`: a coordinator beside any Stable-Baselines3 training, behind SB3's own interface.

It lives here, with the one who decides, and knows its vec env by two methods only: `beside(make)`, which calls
`make(envs)` on the event loop and lets what it returns run beside the stepping, and `on_loop(function, *args)`.
So neither package imports the other.

Stable-Baselines3 walks chains of wrappers side by side (training's and evaluation's, for `VecNormalize`) and asks each
what it is. So this one is no link of its own: it passes for the vec env it was given, whichever wrapper that is.
"""
# async: nothing here waits; the coordinator runs on the loop of the vec env inside

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curriculum.coordinator import Coordinator
from curriculum.journal import Journal
from curriculum.strategies.base import Strategy

__all__ = ["CurriculumVecEnvWrapper"]

_OWN = ("_venv", "_inner", "coordinator")  # attributes of the wrapper; all others are those of what it wraps


class CurriculumVecEnvWrapper:
    """Puts a `Coordinator(strategy)` beside the training on `venv`, and passes everything else on to `venv`.

    Args:
        venv: `aio_vecenv.adapters.sb3.VecEnv`, or SB3's wrappers around one. Its envs are `CurriculumEnv`s.
        strategy: what decides, such as `Staged(plan)`.
        journal: as for `Coordinator`.

    Make it before the first reset. A decision is published through the broadcast channel before the next step is
    sent, not by calling a method of each env. SB3 wants the next episode's first observation from the step that ends
    an episode, so the envs that ended in the deciding step have begun their next episode by then: it runs under the
    directive that it reports, and no rule counts it for the new stay. All others begin under the new directive.
    An exception in the strategy ends the training: the next step raises it.

    In a chain of SB3's wrappers it may stand anywhere, and the evaluation's chain goes without it: `isinstance` and
    `.venv` answer as `venv` would, and attributes that are set on it are set on `venv`.
    """

    def __init__(self, venv: Any, strategy: Strategy, *, journal: Journal | str | Path | None = None) -> None:
        inner = venv
        while not hasattr(type(inner), "beside"):
            if not hasattr(inner, "venv"):
                raise TypeError(
                    f"{type(inner).__name__} has no broadcast channel: make the envs with "
                    "aio_vecenv.adapters.sb3.VecEnv in the place of SubprocVecEnv or DummyVecEnv"
                )
            inner = inner.venv
        self._venv = venv
        self._inner = inner
        self.coordinator: Coordinator = inner.beside(
            lambda envs: Coordinator(strategy, envs, journal=journal)
        )

    @property  # type: ignore[misc]  # `object` lets it be set, too
    def __class__(self) -> type:
        """As `isinstance` sees it: that of the vec env it was given."""
        return type(self._venv) if "_venv" in vars(self) else CurriculumVecEnvWrapper

    @property
    def venv(self) -> Any:
        """What the vec env it was given wraps; the vec env itself if that wraps nothing."""
        return getattr(self._venv, "venv", self._venv)

    # -- the curriculum --------------------------------------------------------------------------------------------

    def record_episode(self, stage: str, success: bool) -> Any:
        """Count an outcome without an episode, at once; returns the receipt of the directive in force."""
        return self._inner.on_loop(self.coordinator.record, stage, success)

    def set_stage(self, name: str, *, by: str | None = None, why: str | None = None) -> Any:
        """Begin a stay in that stage, now; returns the broadcast receipt. Allowed between two steps."""
        return self._inner.on_loop(lambda: self.coordinator.set_stage(name, by=by, why=why))

    def set_mixing_ratio(
        self, stage: str, ratio: float | None, *, by: str | None = None, why: str | None = None
    ) -> Any:
        """Fix a stage's mixing ratio, or with None give it back to the rules; returns the broadcast receipt."""
        return self._inner.on_loop(lambda: self.coordinator.set_mixing_ratio(stage, ratio, by=by, why=why))

    @property
    def stage(self) -> str | None:
        """The current stage."""
        return self.coordinator.stage

    def mixing_ratio(self, stage: str) -> float:
        """The mixing ratio of a stage, as published."""
        return self.coordinator.mixing_ratio(stage)

    def progress(self) -> Sequence[dict[str, Any]]:
        """One row per stage: success rate, outcomes, what is missing to advance, ratio, trend."""
        return self.coordinator.progress()

    # -- SB3's contract: everything is the vec env's ------------------------------------------------------------------

    def reset(self) -> Any:
        """Reset all envs; their observations."""
        return self._venv.reset()

    def step(self, actions: Any) -> Any:
        """One step of all envs, under what was decided after the last: (observations, rewards, dones, infos)."""
        return self._venv.step(actions)

    def step_async(self, actions: Any) -> None:
        """Send one action to each env, once every decision has been published."""
        self._venv.step_async(actions)

    def step_wait(self) -> Any:
        """What `step_async` brought about."""
        return self._venv.step_wait()

    def close(self) -> None:
        """Close the envs, and with them the coordinator."""
        self._venv.close()

    @property
    def unwrapped(self) -> Any:
        """The vec env inside everything."""
        return self._venv.unwrapped

    def getattr_depth_check(self, name: str, already_found: bool) -> str | None:
        """For SB3's wrappers around this one: which class hides an attribute."""
        mine = name in vars(self) or hasattr(type(self), name)
        if mine and already_found:
            return f"{type(self).__module__}.{type(self).__name__}"
        found: str | None = self._venv.getattr_depth_check(name, already_found or mine)
        return found

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not set yet, as while unpickling
            raise AttributeError(name)
        return getattr(self._venv, name)

    def getattr_recursive(self, name: str) -> Any:
        """For SB3's wrappers around this one: an attribute of it, or of what it was given."""
        if name in vars(self) or hasattr(type(self), name) or not hasattr(self._venv, "getattr_recursive"):
            return getattr(self, name)
        return self._venv.getattr_recursive(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self._venv, name, value)
