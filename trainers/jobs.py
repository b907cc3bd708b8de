"""From a config to what is trained on: preset, the user's own env, plan and levels, each checked by name."""
# edge: imports the user's module and reads the user's files; every mistake is one `ConfigError`

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

import aio_vecenv as av
import curriculum as cu
from trainers.config import ConfigError, TrainConfig, coerce, did_you_mean, known
from trainers.learn.masks import MASK, METHOD, with_masks
from trainers.names import imported, named
from trainers.presets import Job, load_preset
from trainers.record.checkpoint import Checkpoint, CheckpointError
from trainers.record.env_errors import FAILED_RESETS

__all__ = [
    "has_no_plan",
    "levels_of",
    "make_envs",
    "make_strategy",
    "named",
    "planned",
    "resolve_job",
    "restore_curriculum",
    "restore_envs",
    "restore_what_fits",
    "success_of",
]

RESETS = 20  # so many in a row an env may fail: then it is not this level or that


def resolve_job(config: TrainConfig, *, render: bool = False) -> Job:
    """What `config` names; `render`: with envs that draw themselves. Raises `ConfigError` (or the curriculum's errors,
    with file and line).
    """
    if config.preset is None and config.env is None:
        raise ConfigError("nothing to train on: name a preset, or an env as MODULE:FACTORY or Gymnasium id")
    job = None if config.preset is None else load_preset(config.preset).job()
    plan: cu.StagePlan | None
    levels = cu.LevelSet.from_directory(config.levels) if config.levels is not None else None
    if config.plan is not None:
        plan = cu.StagePlan.from_toml(config.plan)
    elif levels is not None and levels.plan is not None:
        plan = levels.plan
    else:
        plan = job.plan if job is not None else None
    if config.env is not None:
        kwargs = config.env_kwargs
        if render and "rgb_array" in _render_modes(config.env):
            kwargs = {"render_mode": "rgb_array", **kwargs}  # some envs need to know when they are made
        make_env = _with_curriculum(config.env, _factory(config.env, kwargs), levels, plan)
        job = Job(plan if plan is not None else NO_PLAN, make_env)
    elif levels is not None:
        raise ConfigError("--levels needs --env: a preset brings its own levels")
    assert job is not None
    if render:
        job = replace(job, make_env=_drawing(job.make_env))
    job = replace(job, plan=plan if plan is not None else job.plan)
    return planned(job, config)


def make_envs(config: TrainConfig, job: Job, **options: Any) -> Any:
    """The envs of a run, on one machine or several, to be opened; `options` of `AsyncVecEnv` win over those that the
    config says. Raises `ConfigError` without Ray, where a fleet is asked for.
    """
    settings = _settings(config)
    make_env, fleet = _with_masks(job.make_env), config.fleet
    if not fleet.on:
        return av.AsyncVecEnv(make_env, config.num_envs, **{**settings, **options})
    budget = av.RestartBudget(config.restarts, config.restart_period_s)
    settings |= {
        "num_workers": config.num_workers or 1,
        "host_restart": settings.pop("restart"),
        "restart": budget,
    }
    options = {name: value for name, value in options.items() if name != "copy"}
    try:
        return av.RayFleet(
            make_env, config.num_envs, hosts=fleet.hosts, address=fleet.address, min_hosts=fleet.min_hosts,
            **settings, **options,
        )  # fmt: skip
    except ImportError as error:
        raise ConfigError(str(error)) from None


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Those that vec envs and fleets have in common."""
    return {
        "num_workers": config.num_workers,
        "backend": config.backend,
        # what else envs say stays with them; tasks and final infos always come
        # (METHOD: a mask in the wrong place, to be warned of)
        "info": [MASK, METHOD, FAILED_RESETS],
        "check": "finite",
        "timeouts": av.Timeouts(reset=config.step_timeout_s, step=config.step_timeout_s),
        "on_env_error": config.on_env_error,
        "restart": av.RestartBudget(config.restarts, config.restart_period_s, RESETS),
        "renew_after": _renew_after(config),
        "spares": config.spares,
    }


def _renew_after(config: TrainConfig) -> av.RenewAfter | None:
    episodes, megabytes = config.renew_after_episodes, config.renew_after_mb
    return None if episodes is megabytes is None else av.RenewAfter(episodes, megabytes)


def restore_curriculum(coordinator: cu.Coordinator, saved: Checkpoint, path: Path) -> None:
    """Give a curriculum the state that it had when `saved` was written. Raises `CheckpointError` if that is the state
    of another plan or strategy."""
    try:
        coordinator.load_state_dict(saved.curriculum)
    except cu.CurriculumError as error:
        raise CheckpointError(
            f"{path}: the curriculum in it does not fit this plan and strategy: {error}"
        ) from error


async def restore_envs(
    envs: av.AsyncVecEnv, saved: Checkpoint, path: Path, *, frozen: bool
) -> dict[str, Any]:
    """Give the envs what their wrappers had learned when `saved` was written, and ask what they have now: the same.

    Before their first reset. `frozen`: they learn no more. Raises `CheckpointError` if it does not fit the envs.
    """
    try:
        await envs.set_state(saved.envs, frozen=frozen)
    except (LookupError, ValueError) as error:
        raise CheckpointError(
            f"{path}: what its envs had learned does not fit these envs: {error}"
        ) from error
    found = await envs.get_state()
    if new := sorted(set(found) - set(saved.envs)):
        warnings.warn(
            f"{path} does not hold the state of {', '.join(new)}: what the policy sees is not what it learned from",
            stacklevel=2,
        )
    return found


async def restore_what_fits(envs: av.AsyncVecEnv, state: dict[str, Any]) -> list[str]:
    """Give the envs' wrappers what others had learned, before their first reset; what no wrapper can take, and why."""
    left = []
    for name, learned in state.items():
        try:
            await envs.set_state({name: learned})
        except (LookupError, ValueError) as error:
            left.append(f"{name} of its envs ({error})")
    return left


async def levels_of(envs: av.AsyncVecEnv) -> Any:
    """The levels that the envs draw from, asked of the first; None if it has none."""
    try:
        return (await envs.get_attr("levels", env_ids=[0]))[0]
    except av.EnvError:
        return None


def has_no_plan(job: Job) -> bool:
    """Nobody has said which stages there are; the envs' own levels may."""
    return job.plan is NO_PLAN


def planned(job: Job, config: TrainConfig, levels: Any = None) -> Job:
    """`job` with the stages that are played: where there is no plan, those of the envs' own `levels`; without a
    curriculum, only the last one."""
    if has_no_plan(job) and isinstance(levels, cu.LevelSet) and NO_STAGES not in levels.stages:
        plan = levels.plan or cu.StagePlan([cu.Stage(name) for name in levels.stages])
        job = replace(job, plan=plan)
    if config.curriculum or has_no_plan(job):
        return job
    return replace(job, plan=cu.StagePlan([job.plan.stages[-1]], success=job.plan.success))


def success_of(job: Job, config: TrainConfig) -> Callable[[Any], bool]:
    """Whether an episode succeeded: the job's own function, or as `config`, else the plan, says."""
    if job.success is not None:
        if config.success is not None:
            raise ConfigError(f"the job has a success of its own, and the config asks for {config.success!r}")
        return job.success
    ever = (config.success or job.plan.success) == "ever"
    return cu.ever_success if ever else cu.is_success


def make_strategy(config: TrainConfig, job: Job, levels: Any = None) -> Any:
    """The job's own strategy, or the one that `config` names, over the job's plan; all but "staged" draw from `levels`,
    the envs' own.

    Raises `ConfigError` where the levels are not those of the plan.
    """
    try:
        return _strategy(config, job, levels)
    except cu.CurriculumError as error:
        if any(name in str(error) for name in config.strategy_options):
            raise ConfigError(f"strategy_options: {error}") from None
        raise


def _strategy(config: TrainConfig, job: Job, levels: Any) -> Any:
    success = success_of(job, config)
    if job.strategy is not None:
        if config.strategy != "staged" or not config.curriculum:
            asked = f"strategy={config.strategy!r}" if config.curriculum else "curriculum=False"
            raise ConfigError(f"the job brings a strategy of its own, and the config asks for {asked}")
        if config.strategy_options:
            raise ConfigError("the job brings a strategy of its own, which strategy_options do not reach")
        return job.strategy(job.plan, levels)
    if config.strategy == "staged":
        own: dict[str, Any] = {
            "window": config.window, "rules": config.rules, "early": config.early, "trend": config.trend,
            "success": success, "total_steps": config.total_steps,
        }  # fmt: skip
        return cu.Staged(job.plan, **own, **_options(cu.Staged, config, own))
    name = f"strategy={config.strategy!r}"
    if not isinstance(levels, cu.LevelSet):
        raise ConfigError(
            f"{name} draws from levels, and the envs have none: they need a CurriculumEnv inside"
        )
    if set(levels.stages) != set(job.plan.names):
        raise ConfigError(
            f"{name} draws from all levels: expected levels for the plan's stages {', '.join(job.plan.names)}, "
            f"got {', '.join(levels.stages)}"
        )
    if len(levels) < 2:
        raise ConfigError(f"{name} needs at least two levels to choose from, and there is one")

    for stage in job.plan.stages if config.strategy in _BY_SUCCESS and job.success is None else ():
        if stage.measure != "success":
            raise ConfigError(
                f"stage {stage.name!r}: measure = {stage.measure!r}, and {name} goes by success: take "
                "strategy='staged', which moves on by it, or measure success"
            )

    def scored(episode: Any) -> float:
        return float(bool(success(episode)))

    score: Any = scored
    if success in (cu.is_success, cu.ever_success):
        score = cu.success_score if success is cu.is_success else cu.ever_success_score
    if config.strategy == "ladder":
        own = {"success": success, "seed": config.seed}
        return cu.Ladder(job.plan, **own, **_options(cu.Ladder, config, own))
    kind, own = _WEIGHTED[config.strategy], {"score": score}
    if config.strategy == "learnability":
        own["seed"] = config.seed
    elif config.strategy == "prioritised_replay":
        rows = known(config.ppo.num_steps, "ppo.num_steps")
        own.update(by=config.replay_score, waiting=max(64, rows))
    return kind(levels, **own, **_options(kind, config, own))


_BY_SUCCESS = ("ladder", "learning_progress", "learnability")  # the others ask nothing of a plan's stages
_WEIGHTED: dict[str, Any] = {
    "uniform": cu.DomainRandomisation,
    "learning_progress": cu.LearningProgress,
    "learnability": cu.Learnability,
    "prioritised_replay": cu.PrioritisedReplay,
}


def _options(kind: Any, config: TrainConfig, own: dict[str, Any]) -> dict[str, Any]:
    """`strategy_options` for this class. Raises `ConfigError` for what it does not take, or a setting says."""
    known = [
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in own
    ]
    for name in config.strategy_options:
        if name not in known:
            raise ConfigError(
                f"strategy_options: {config.strategy} takes no {name!r}{did_you_mean(name, known)}; it takes "
                f"{', '.join(known)}"
            )
    hints = typing.get_type_hints(kind.__init__)
    return {
        name: _fitting(value, hints[name], f"strategy_options: {config.strategy}'s {name}")
        for name, value in config.strategy_options.items()
    }


def _fitting(value: Any, hint: Any, where: str) -> Any:
    """`value` as the first of the types that `hint` allows. Raises `ConfigError` if it fits none of them."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not type(None)]
    if value is None and len(kinds) < len(typing.get_args(hint)):
        return None
    wanted = []
    for kind in kinds:
        origin, options = typing.get_origin(kind), typing.get_args(kind)
        with contextlib.suppress(ConfigError):
            if origin is Mapping and isinstance(value, dict):
                return {key: coerce(item, options[1], where) for key, item in value.items()}
            if origin is None or origin is typing.Literal:
                return coerce(value, kind, where)
        wanted.append(_KINDS.get(kind) or _KINDS.get(origin) or " or ".join(map(repr, options)))
    raise ConfigError(f"{where}: expected {' or '.join(wanted)}, got {value!r}")


_KINDS: dict[Any, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    Callable: "a function, which only Python can give",
    Mapping: "a table of these by stage",
}
NO_STAGES = "all"  # the one stage of an env that was given no plan
NO_PLAN = cu.StagePlan([cu.Stage(NO_STAGES)])  # this very object: a plan of the user's may look the same


def _with_curriculum(name: str, factory: Callable[..., Any], levels: Any, plan: Any) -> Callable[[], Any]:
    """`factory`, that of env `name`, wrapped in a `CurriculumEnv` unless it makes one itself."""
    plain = levels is None and plan is None
    if levels is None:
        names = [NO_STAGES] if plan is None else plan.names
        levels = cu.LevelSet([cu.Level(id=stage, stage=stage, data={"stage": stage}) for stage in names])

    def make_env(*index: int) -> Any:  # travels by value: what it needs it imports where it runs
        import gymnasium

        import curriculum

        env = factory(*index)
        if not isinstance(env, gymnasium.Env):
            raise TypeError(f"env {name!r} made {type(env).__name__}, not a gymnasium.Env")
        inner: Any = env
        while inner is not None:
            if isinstance(inner, curriculum.CurriculumEnv):
                return env
            inner = getattr(inner, "env", None)
        if plain:  # nothing to load: the env is reset as it always was
            return curriculum.CurriculumEnv(env, levels, load=lambda env, level: None)
        return curriculum.CurriculumEnv(env, levels)

    make_env.__wrapped__ = factory  # type: ignore[attr-defined]  # it takes its env's index if that does
    return make_env


def _with_masks(factory: Callable[..., Any]) -> Callable[..., Any]:
    """`factory`, whose envs' method `action_masks()` (sb3-contrib's convention) is called in the worker, so that its
    masks travel in the infos like any others. An env that gives `info["action_mask"]` itself, or has it as a leaf of
    its observation, is left alone."""
    if not callable(factory):
        return factory

    def make_env(*index: int) -> Any:
        return with_masks(factory(*index))

    make_env.__wrapped__ = factory  # type: ignore[attr-defined]  # it takes its env's index if that does
    return make_env


def _drawing(make_env: Callable[[], Any]) -> Callable[[], Any]:
    """`make_env`, whose envs draw themselves where they can and nothing else was asked of them."""

    def make() -> Any:  # travels by value: what it needs it imports where it runs
        import os

        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # frames are wanted, no window
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it would greet on stdout
        env = make_env()
        inner = getattr(env, "unwrapped", env)
        modes = (getattr(inner, "metadata", None) or {}).get("render_modes", ())
        if getattr(inner, "render_mode", None) is None and "rgb_array" in modes:
            inner.render_mode = "rgb_array"
        return env

    return make


def _render_modes(name: str) -> Sequence[str]:
    """What the envs of a registered id can draw; nothing for any other name."""
    if name not in gym.registry:
        return ()
    entry = gym.spec(name).entry_point
    made: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    modes: Sequence[str] = (getattr(made, "metadata", None) or {}).get("render_modes", ())
    return modes


def _factory(name: str, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """The factory that MODULE:FACTORY, a Gymnasium id or MODULE:ID names, with its arguments."""
    module_name, _, attribute = name.rpartition(":")
    if ":" not in name:
        return _registered(name, None, kwargs)
    if not module_name or not attribute:
        raise ConfigError(f"env {name}: expected MODULE:FACTORY")
    imported("env", module_name, attribute)
    if attribute in gym.registry and not hasattr(sys.modules[module_name], attribute):
        return _registered(attribute, module_name, kwargs)
    factory = named("env", name, gym.registry)
    made: Callable[[], Any] = partial(factory, **kwargs) if kwargs else factory
    return made


def _registered(env_id: str, module_name: str | None, kwargs: dict[str, Any]) -> Callable[[], Any]:
    """A registered env; `module_name`: who registers it, and perhaps others that it makes itself."""
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        raise ConfigError(f"unknown env {env_id!r}: {error}") from None

    def make() -> Any:
        import gymnasium

        if module_name is not None:
            importlib.import_module(module_name)
        return gymnasium.make(spec, disable_env_checker=True, **kwargs)

    return make
