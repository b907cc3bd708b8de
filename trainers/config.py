"""What a run is made from: frozen dataclasses whose field docstrings are the command line's help."""
# pure: no torch, no files, no clock; every config checks itself at birth

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

import numpy as np

__all__ = [
    "UNSET",
    "ConfigError",
    "EvalConfig",
    "FleetConfig",
    "NetworkConfig",
    "PPOConfig",
    "Rates",
    "Schedule",
    "TrainConfig",
    "coerce",
    "did_you_mean",
    "from_mapping",
    "known",
    "to_mapping",
    "to_toml",
]

C = TypeVar("C")
T = TypeVar("T")
FLEET_BLOCK = 16  # envs that a policy acts in at once; a host has whole ones
UNSET = "none"  # TOML has no None; left out, a setting would be filled from the preset
NOTHING = {"none": True}  # None inside a table of the user's, where the word is a text like others
Schedule = Literal["constant", "linear", "cosine"] | tuple[tuple[float, float], ...]
StrategyName = Literal[
    "staged", "ladder", "uniform", "learning_progress", "learnability", "prioritised_replay"
]


class ConfigError(ValueError):
    """A setting, or something that a setting names, cannot be used. The message is all a user needs."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check(config: Any, prefix: str = "") -> None:
    """Bring every field of a frozen config to its type; refuse what does not fit, not-a-number, and the word that
    stands for None in a file."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        given = getattr(config, item.name)
        _require(
            not isinstance(given, str) or given != UNSET,
            f"{prefix}{item.name} must not be {UNSET!r}: that says None in a config file",
        )
        value = coerce(given, hints[item.name], f"{prefix}{item.name}")
        _require(
            not (isinstance(value, float) and math.isnan(value)),
            f"{prefix}{item.name} must be a number, got nan",
        )
        object.__setattr__(config, item.name, value)


def known(value: T | None, name: str) -> T:
    """A setting that may be left to the env's spaces, once those are known. Raises `ConfigError` before that."""
    if value is None:
        raise ConfigError(f"{name} is chosen by the env's spaces, which are not known yet")
    return value


class Rates(NamedTuple):
    """What the schedules say of one update."""

    lr: float
    clip: float
    entropy: float


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017), with the details of Huang et al. 2022. What is None is
    chosen by the env's spaces when a run starts (`trainers.learn.defaults`), and saved with the run."""

    num_steps: int | None = None
    """Rows that every env contributes to each update (T). None: by the env's spaces."""
    lr: float | None = None
    """Adam's learning rate at the start. None: by the env's spaces."""
    anneal_lr: bool = True
    """Lower the learning rate linearly, to 0 at `total_steps`; see `lr_schedule`."""
    lr_schedule: Schedule | None = None
    """How the learning rate moves: constant, linear or cosine (both to 0 at `total_steps`), or pairs of (share of the
    run, value) between which it moves linearly. None: as `anneal_lr` says, linear or constant."""
    epochs: int | None = None
    """Passes over each rollout. None: by the env's spaces."""
    minibatches: int | None = None
    """Minibatches per pass. None: by the env's spaces."""
    gamma: float = 0.99
    """Discount factor."""
    gae_lambda: float = 0.95
    """λ of generalised advantage estimation (Schulman et al. 2016)."""
    clip: float = 0.2
    """The probability ratio is clipped to 1 ± clip."""
    clip_schedule: Schedule = "constant"
    """How `clip` moves; see `lr_schedule`."""
    clip_value: float | None = None
    """Keep the new value within ± this of the old one in the value loss; None: no value clipping."""
    normalise_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1, per minibatch."""
    normalise_rewards: bool | None = None
    """Divide rewards by the running deviation of the discounted return, and clip them to ± 10, for learning only;
    what is reported is not scaled. None: by the env's spaces."""
    entropy: float | None = None
    """Weight of the entropy bonus. None: by the env's spaces."""
    entropy_schedule: Schedule = "constant"
    """How `entropy` moves; see `lr_schedule`."""
    value: float | None = None
    """Weight of the value loss, which is half the mean squared error: 1.0 here is vf_coef=0.5 in Stable-Baselines3,
    whose loss is not halved; CleanRL halves it, too. None: by the env's spaces."""
    max_grad_norm: float = 0.5
    """The gradient's norm is clipped to this."""
    target_kl: float | None = None
    """End an update before its next pass once the approximate KL divergence exceeds this; None: never."""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """A truncated episode bootstraps from its final observation, or, where the limit is part of the task,
    ends like a terminated one."""

    def __post_init__(self) -> None:
        _check(self, "ppo.")
        for name in ("num_steps", "epochs", "minibatches"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"ppo.{name} must be at least 1, got {value}")
        for name in ("lr", "entropy", "value"):
            value = getattr(self, name)
            _require(value is None or math.isfinite(value), f"ppo.{name} must be finite, got {value}")
        _require(self.lr is None or self.lr > 0, f"ppo.lr must be positive, got {self.lr}")
        _require(0 <= self.gamma <= 1, f"ppo.gamma must lie in [0, 1], got {self.gamma}")
        _require(0 <= self.gae_lambda <= 1, f"ppo.gae_lambda must lie in [0, 1], got {self.gae_lambda}")
        _require(self.clip > 0, f"ppo.clip must be positive, got {self.clip}")
        for name in ("clip_value", "target_kl"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"ppo.{name} must be positive, got {value}")
        for name in ("entropy", "value"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"ppo.{name} must not be negative, got {value}")
        _require(self.max_grad_norm > 0, f"ppo.max_grad_norm must be positive, got {self.max_grad_norm}")
        for name in ("lr_schedule", "clip_schedule", "entropy_schedule"):
            _check_schedule(getattr(self, name), f"ppo.{name}")

    def rates(self, progress: float) -> Rates:
        """Learning rate, clip and weight of the entropy bonus at this share of the run, in [0, 1]."""
        lr_schedule = self.lr_schedule or ("linear" if self.anneal_lr else "constant")
        return Rates(
            lr=_scheduled(known(self.lr, "ppo.lr"), lr_schedule, progress),
            clip=_scheduled(self.clip, self.clip_schedule, progress),
            entropy=_scheduled(known(self.entropy, "ppo.entropy"), self.entropy_schedule, progress),
        )


def _check_schedule(schedule: Schedule | None, name: str) -> None:
    if schedule is None or isinstance(schedule, str):
        return
    _require(
        len(schedule) > 0, f"{name} must be constant, linear, cosine, or pairs of (share, value), got none"
    )
    _require(
        all(math.isfinite(value) and value >= 0 for _share, value in schedule),
        f"{name}: its values must be numbers of at least 0, got {schedule!r}",
    )
    shares = [share for share, _value in schedule]
    _require(
        all(0 <= share <= 1 for share in shares) and all(a < b for a, b in pairwise(shares)),
        f"{name}: its shares of the run must rise within [0, 1], got {schedule!r}",
    )


def _scheduled(start: float, schedule: Schedule, progress: float) -> float:
    match schedule:
        case "constant":
            return start
        case "linear":
            return start * max(0.0, 1 - progress)
        case "cosine":
            return start * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    before = [pair for pair in schedule if pair[0] <= progress]
    after = [pair for pair in schedule if pair[0] > progress]
    if not before or not after:  # its first value holds before its first share, its last one after the last
        return (before[-1:] or after)[0][1]
    (left, old), (right, new) = before[-1], after[0]
    return old + (new - old) * (progress - left) / (right - left)


@dataclass(frozen=True)
class NetworkConfig:
    """The actor-critic network. Pictures get a CNN in front, chosen by their size; `docs/training.md` says which."""

    factory: str | None = None
    """A network of your own, MODULE:FACTORY (also: --network MODULE:FACTORY): a callable (space, head, config, *, seed)
    that gives a torch.nn.Module; see docs/training.md. The settings below are then for it to heed."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    shared: bool = False
    """Policy and value share the hidden layers, or have layers of their own."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Non-linearity of the hidden layers."""
    normalise_obs: bool | None = None
    """Normalise vectors of numbers, integers too, by their running mean and deviation (part of the model).
    None: by the env's spaces."""
    channels: Literal["auto", "first", "last"] = "auto"
    """Which axis of a picture holds its channels; auto: the one that leaves a square or nearly one, else the one of up
    to 4 entries. What was chosen is said when a run starts."""
    vectors: tuple[str, ...] = ()
    """Observations that are no pictures though they have the shape of one, by their path in a Dict or Tuple (a/b);
    `*`: none is a picture."""
    scale_actions: bool = True
    """Box actions: the policy's -1 … 1 is what lies between finite bounds, in each dimension. Off: its numbers are the
    env's own, clipped to the bounds."""
    log_std: float = 0.0
    """Box actions: logarithm of the policy's standard deviation at the start."""
    encoders: Literal[1, 2] = 2
    """Which generation of encoders reads the observations; 1 is for runs that began under version 0.1."""

    def __post_init__(self) -> None:
        _check(self, "network.")
        _require(all(width >= 1 for width in self.hidden), f"network.hidden must be positive: {self.hidden}")
        _require(-20 <= self.log_std <= 5, f"network.log_std must lie in [-20, 5], got {self.log_std}")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation while training: frozen parameters, workers and seeds of its own; training does not depend on it."""

    every: int | None = None
    """Updates between evaluations; None: there are none."""
    episodes: int = 32
    """Episodes per stage, rounded up to the same number for every env."""
    workers: int = 1
    """Worker processes beside those that train."""
    greedy: bool = False
    """Take the most probable action instead of sampling."""
    best: Literal["success_rate", "mean_return", "cvar"] = "success_rate"
    """checkpoints/best.pt is the evaluated one with the highest mean of this over the stages; then of the return."""
    stop_success: float | None = None
    """End the run once the last stage is evaluated with this success rate; training waits for each evaluation."""
    stop_return: float | None = None
    """End the run once the last stage is evaluated with this mean return; training waits for each evaluation."""

    def __post_init__(self) -> None:
        _check(self, "eval.")
        for name in ("every", "episodes", "workers"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"eval.{name} must be at least 1, got {value}")
        _require(
            self.stop_success is None or 0 < self.stop_success <= 1,
            f"eval.stop_success must lie in (0, 1], got {self.stop_success}",
        )
        _require(
            self.every is not None or not self.stops, "eval.stop_success and eval.stop_return need eval.every"
        )

    @property
    def stops(self) -> bool:
        """Whether an evaluation may end the run."""
        return self.stop_success is not None or self.stop_return is not None


@dataclass(frozen=True)
class FleetConfig:
    """Several machines, over Ray (extra `ray`), see `docs/fleet.md`. `--fleet 4` is short for `--fleet.hosts 4`."""

    hosts: int | None = None
    """Hosts that share the envs, each with `num_workers` workers (None: one). None: no fleet; with an address, one host
    for each node that has room."""
    address: str | None = None
    """Of a running Ray cluster, auto: the one of this machine. None: as it runs here, else one for this run."""
    min_hosts: int = 1
    """With fewer, the run waits for more."""

    def __post_init__(self) -> None:
        _check(self, "fleet.")
        _require(self.hosts is None or self.hosts >= 1, f"fleet.hosts must be at least 1, got {self.hosts}")
        _require(
            1 <= self.min_hosts <= (self.hosts or self.min_hosts),
            f"fleet.min_hosts must lie in 1 … fleet.hosts ({self.hosts}), got {self.min_hosts}",
        )

    @property
    def on(self) -> bool:
        """Whether there is one."""
        return self.hosts is not None or self.address is not None


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Saved as config.toml in its folder, and runs again from there."""

    preset: str | None = None
    """Where env, plan and levels come from unless given below; None: `env` alone says it."""
    env: str | None = None
    """Your own env: MODULE:FACTORY, a Gymnasium id, or MODULE:ID where importing MODULE registers it."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the env: NAME=VALUE …, a value as TOML or Python writes it, else text; in a file the table
    [env_kwargs]."""
    plan: Path | None = None
    """Stage plan (TOML)."""
    levels: Path | None = None
    """Folder of levels by stage; without it reset gets options={"level": {"stage": NAME}}."""
    curriculum: bool = True
    """Practise what `strategy` says; off: only the last stage is played, from the start."""
    strategy: StrategyName = "staged"
    """Stage after stage (staged); or a stage per env, up after a success and down after a failure (ladder); or levels
    of all stages: uniformly (domain randomisation), by how fast success moves (learning_progress), by how uncertain it
    is (learnability), or by PPO's advantages (prioritised_replay)."""
    replay_score: Literal["l1", "positive", "max_mc"] = "l1"
    """prioritised_replay: score levels by mean |A|, by mean max(A, 0), or by the highest return so far - mean V."""
    strategy_options: dict[str, Any] = field(default_factory=dict)
    """Other parameters of the strategy's class, written like `env_kwargs`; in a file the table [strategy_options]."""
    window: Literal["started", "completed"] = "started"
    """Count outcomes in the order in which episodes started, or in which they ended."""
    rules: Literal["reference", "sequential"] = "reference"
    """staged: advance by success windows, or by a sequential test that seldom advances by luck."""
    early: bool = True
    """staged: 27 successes among 30 outcomes advance too, whatever the stage's own threshold and minimum."""
    success: Literal["last", "ever"] | None = None
    """An episode succeeded if its last step did, or if any step did; None: as the plan says, else the last."""
    trend: bool = True
    """staged: a success rate that rises and has nearly reached the threshold advances, too."""
    init_from: Path | None = None
    """Begin with the network of this run folder, or of a checkpoint file in one, as far as it fits."""
    seed: int = 0
    """Every random stream of the run derives from it."""
    total_steps: int = 1_000_000
    """Env steps (rows, reset rows included) after which the run ends, rounded up to whole updates."""
    solve_rate: float | None = None
    """Stop once the newest `solve_window` outcomes of the last stage reach this success rate."""
    solve_window: int = 50
    """See `solve_rate`; at most 50, the window's size."""

    num_envs: int = 32
    """Environments."""
    num_workers: int | Literal["per env"] | None = None
    """Worker processes; None: as many as this process may use CPUs; "per env": one for each, for envs that cannot
    share a process."""
    backend: Literal["process", "inline"] = "process"
    """Step the envs in worker processes, or in this one, for debugging."""
    collect: Literal["lockstep", "first_ready", "unroll"] | None = None
    """All envs step together; or whoever is ready goes on, each until its share of the update is full; or the policy
    acts in the workers, `unroll` steps per command. None: unroll, where numpy computes the network and action masks are
    not in infos; else lockstep."""
    unroll: int = 8
    """unroll: steps per command. More are faster; what the curriculum decides takes effect after them."""
    min_envs: int | None = None
    """first_ready: act once this many envs are ready; None: a quarter of them."""
    step_timeout_s: float | None = None
    """A step or reset that takes longer costs the worker its life; None: no limit."""
    on_env_error: Literal["reset", "raise"] = "reset"
    """An env that raises is reset: its episode is aborted and counted, and the run goes on; or the run ends."""
    max_error_share: float = 0.5
    """on_env_error="reset": more than this share of the newest 100 episodes failing with an error ends the run."""
    restarts: int = 10
    """Workers that died, or envs that failed to reset 20 times in a row, in any `restart_period_s`; one more ends the
    run."""
    restart_period_s: float = 600.0
    """See `restarts`."""
    renew_after_episodes: int | None = None
    """For envs that leak: a worker gives way to a fresh process once its envs have ended so many episodes, together,
    and none is in one. `restarts` does not count it."""
    renew_after_mb: float | None = None
    """The same once its process holds so much memory (10⁶ bytes; Linux)."""
    spares: int = 0
    """Processes kept ready to take the place of workers that die."""

    deterministic: bool = False
    """One torch thread, not first_ready: same seed, same metrics, bit for bit, for any number of workers."""
    exact_resume: bool = False
    """Reset all envs at each checkpoint, so that a resumed run equals an uninterrupted one, bit for bit."""
    device: str = "auto"
    """Where torch computes; auto: CUDA for image observations where there is one, else the CPU."""
    torch_threads: int | None = None
    """None: one, or for image observations all CPUs while learning, and those that the workers leave while acting."""

    runs: Path = Path("runs")
    """Folder of run folders."""
    name: str | None = None
    """Name of the run folder; None: preset or env, seed and date."""
    checkpoint_every: int = 50
    """Updates between checkpoints; one is also written at the start and at the end."""
    keep_checkpoints: int = 3
    """Older ones are removed."""
    metrics_every: int = 1
    """Updates per line of metrics.jsonl; the first and the newest always have one. Loggers get every report."""
    journal: Literal["full", "decisions"] = "full"
    """decisions: journal.jsonl has no episodes: a thousandth of the size, explained as before, and never replayed."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `tensorboard`)."""
    logger: tuple[str, ...] = ()
    """Also give every report to these: tensorboard, wandb (extras), or loggers of your own, MODULE:FACTORY …, called
    with the run's folder and its config."""

    callback: tuple[str, ...] = ()
    """Coroutines of your own beside the run: MODULE:FACTORY …, each an `async def` that is given the run."""

    ppo: PPOConfig = field(default_factory=PPOConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)

    def __post_init__(self) -> None:
        _check(self)
        _require(
            not self.env_kwargs or self.env is not None,
            "env_kwargs needs env: a preset makes its envs itself",
        )
        _require(self.num_envs >= 1, f"num_envs must be at least 1, got {self.num_envs}")
        _require(
            not isinstance(self.num_workers, int) or self.num_workers >= 1,
            f"num_workers must be at least 1, got {self.num_workers}",
        )
        _require(self.total_steps >= 1, f"total_steps must be at least 1, got {self.total_steps}")
        _require(self.seed >= 0, f"seed must not be negative, got {self.seed}")
        _require(self.seed < 2**63, f"seed must lie below 2**63, got {self.seed}")
        _require(
            self.step_timeout_s is None or self.step_timeout_s > 0,
            f"step_timeout_s must be positive, got {self.step_timeout_s}",
        )
        self._check_faults()
        _require(
            self.torch_threads is None or self.torch_threads >= 1,
            f"torch_threads must be at least 1, got {self.torch_threads}",
        )
        _require(
            self.solve_rate is None or 0 < self.solve_rate <= 1,
            f"solve_rate must lie in (0, 1], got {self.solve_rate}",
        )
        _require(1 <= self.solve_window <= 50, f"solve_window must lie in 1 … 50, got {self.solve_window}")
        _require(
            self.min_envs is None or 1 <= self.min_envs <= self.num_envs,
            f"min_envs must lie in 1 … num_envs ({self.num_envs}), got {self.min_envs}",
        )
        _require(
            self.checkpoint_every >= 1, f"checkpoint_every must be at least 1, got {self.checkpoint_every}"
        )
        _require(self.metrics_every >= 1, f"metrics_every must be at least 1, got {self.metrics_every}")
        _require(
            self.keep_checkpoints >= 1, f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}"
        )
        _require(
            not (self.deterministic and self.collect == "first_ready"),
            "deterministic=True needs collect='lockstep' or 'unroll': who is ready first depends on time",
        )
        _require(self.unroll >= 1, f"unroll must be at least 1, got {self.unroll}")
        self._check_fleet()
        _require(
            not (self.rules == "sequential" and self.window == "completed"),
            "rules='sequential' needs window='started'",
        )
        _require(
            self.curriculum or self.strategy == "staged",
            f"curriculum=False plays the last stage only: strategy={self.strategy!r} has nothing to choose",
        )
        if self.ppo.num_steps is not None and self.ppo.minibatches is not None:
            _require(
                self.ppo.minibatches <= self.batch_size,
                f"ppo.minibatches ({self.ppo.minibatches}) exceeds the rows of an update ({self.batch_size})",
            )

    def _check_fleet(self) -> None:
        _require(
            not self.fleet.on or self.collect in (None, "unroll"),
            f"a fleet collects by unrolls, not by {self.collect}: say collect='unroll' (--collect unroll)",
        )
        least = FLEET_BLOCK * ((self.fleet.hosts or 1) - 1)
        _require(
            self.num_envs > least,
            f"fleet.hosts={self.fleet.hosts} needs num_envs above {least}: every host has at least one block of "
            f"{FLEET_BLOCK}, got {self.num_envs}",
        )

    def _check_faults(self) -> None:
        _require(
            0 <= self.max_error_share <= 1, f"max_error_share must lie in [0, 1], got {self.max_error_share}"
        )
        _require(
            0 < self.restart_period_s < math.inf,
            f"restart_period_s must be positive and finite, got {self.restart_period_s}",
        )
        for name in ("renew_after_episodes", "renew_after_mb"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"{name} must be positive, got {value}")
            _require(
                value is None or not (self.deterministic or self.exact_resume),
                f"{name} excludes deterministic and exact_resume: which episodes a process plays depends on more than "
                "the seed",
            )
            _require(value is None or self.backend == "process", f"{name} needs backend='process'")
        for name in ("restarts", "spares"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")

    @property
    def batch_size(self) -> int:
        """Rows of one update: num_envs × ppo.num_steps."""
        return self.num_envs * known(self.ppo.num_steps, "ppo.num_steps")

    @property
    def num_updates(self) -> int:
        """Updates after which `total_steps` is reached."""
        return -(-self.total_steps // self.batch_size)

    def progress(self, env_steps: int) -> float:
        """Share of the run that is behind it after so many env steps. What is left is counted in whole updates of
        today's size: the steps before a resume may have come in others."""
        left = max(0, -(-(self.total_steps - env_steps) // self.batch_size))
        return env_steps / (env_steps + left * self.batch_size) if left else 1.0

    @property
    def title(self) -> str:
        """What is trained, in a word that can be part of a file name."""
        return (self.preset or self.env or "run").replace(":", "-").replace("/", "-").replace(".", "-")


def to_mapping(config: Any) -> dict[str, Any]:
    """The config as nested plain data, as TOML and JSON take it; None is the string "none"."""
    plain: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value is None:
            plain[item.name] = UNSET
        elif dataclasses.is_dataclass(value):
            plain[item.name] = to_mapping(value)
        else:
            plain[item.name] = _path_text(value) if isinstance(value, Path) else _lists(value)
    return plain


def _lists(value: Any) -> Any:
    """Tuples as lists, in any depth."""
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _path_text(path: Path) -> str:
    """The path as text; one that is called as None is written says that it is a path."""
    return f"./{path}" if str(path) == UNSET else str(path)


def to_toml(config: Any) -> str:
    """The config as TOML: plain settings first, then one table per nested config."""
    plain = to_mapping(config)
    lines = [f"{key} = {_toml_value(value)}" for key, value in plain.items() if not isinstance(value, dict)]
    for name, table in plain.items():
        if isinstance(table, dict):
            lines += [
                "",
                f"[{name}]",
                *(f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items()),
            ]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # JSON's strings (but for DEL), integers, booleans and arrays are TOML's; floats keep their shortest exact form
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # inf, -inf: JSON would say Infinity
    if value is None:
        value = NOTHING
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def from_mapping(kind: type[C], data: Mapping[str, Any], *, source: str, base: C | None = None) -> C:
    """Build a config from plain data; what `data` does not name is taken from `base`, else from the defaults.

    Raises `ConfigError` that names `source`, the key, and what was expected.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(data) - set(hints), key=str)
    if unknown:
        raise ConfigError(
            f"{source}: unknown setting {unknown[0]!r}{did_you_mean(unknown[0], hints)}; known: {', '.join(hints)}"
        )
    values: dict[str, Any] = {}
    for name, value in data.items():
        where = f"{source}: {name}"
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _network_table(hint, value)
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: expected a table, got {value!r}")
            inner = getattr(base, name) if base is not None else None
            values[name] = from_mapping(typing.cast(type[Any], hint), value, source=where, base=inner)
        else:
            values[name] = coerce(value, hint, where)
    try:
        return kind(**values) if base is None else dataclasses.replace(typing.cast(Any, base), **values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` asks, without losing anything; else `ConfigError`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        value = _network_table(hint, value)
        if isinstance(value, Mapping):
            return from_mapping(typing.cast(type[Any], hint), value, source=where)
        if not isinstance(value, typing.cast(type[Any], hint)):
            raise ConfigError(f"{where}: expected {typing.cast(Any, hint).__name__}, got {value!r}")
        return value
    if isinstance(value, np.generic):  # a number of NumPy's is a number
        value = value.item()
    if origin in (Union, types.UnionType):
        if type(None) in options and (value is None or (isinstance(value, str) and value == UNSET)):
            return None
        kinds = [option for option in options if option is not type(None)]
        shape = tuple if isinstance(value, (list, tuple)) else Literal if isinstance(value, str) else None
        fits = [kind for kind in kinds if typing.get_origin(kind) is shape]
        try:
            return coerce(value, (fits or kinds)[0], where)
        except ConfigError:
            if kinds[0] not in (int, float) or len(kinds) == 1:
                raise
            words = [kinds[0].__name__, *map(repr, typing.get_args(kinds[1]))]
            raise ConfigError(f"{where}: expected {' or '.join(words)}, got {value!r}") from None
    if origin is Literal:
        if type(value) is not type(options[0]) or value not in options:
            raise ConfigError(
                f"{where}: expected one of {', '.join(map(repr, options))}, got {value!r}{did_you_mean(value, options)}"
            )
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return _plain(value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if options[-1] is not Ellipsis:
            if len(value) != len(options):
                raise ConfigError(f"{where}: expected {len(options)} values, got {value!r}")
            return tuple(coerce(item, option, where) for item, option in zip(value, options))
        return tuple(coerce(item, options[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():  # 1e6
        return int(value)
    if hint is Path and isinstance(value, (str, os.PathLike)):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _network_table(hint: Any, value: Any) -> Any:
    """`network = "MODULE:FACTORY"` names a network of the user's own, with all other settings as they are."""
    return {"factory": value} if hint is NetworkConfig and isinstance(value, str) else value


def _plain(value: Any, where: str) -> Any:
    """`value` as TOML can hold it: tables, lists, strings, numbers, booleans; and None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, Mapping) and value == NOTHING):
        return None
    if not isinstance(value, (Mapping, list, tuple, str, bool, int, float)):
        raise ConfigError(f"{where}: expected a string, number, boolean, None, list or table, got {value!r}")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    return [_plain(item, where) for item in value] if isinstance(value, (list, tuple)) else value


def did_you_mean(value: object, known: Iterable[object]) -> str:
    """ "; did you mean …?", where something known looks alike."""
    near = difflib.get_close_matches(str(value), list(map(str, known)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
