"""One training, ours or Stable-Baselines3's, and what its policy is worth; results kept as they come; their table."""
# edge: trains in this process, reads and writes a file of results

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import curriculum as cu
from benchmarks.estimates import difference, interval, iqm
from trainers import TrainConfig, TrainedPolicy, load_policy, train
from trainers.jobs import resolve_job
from trainers.learn.actions import action_head
from trainers.learn.defaults import for_spaces
from trainers.learn.networks import ActorCritic

__all__ = ["Learned", "Results", "Row", "Score", "Trained", "ours", "sb3", "show", "trained"]

EVALUATED = 30  # episodes, of each kind
FIRST_SEED = 1_000_000  # of the episodes that judge; training does not see them


@dataclass(frozen=True)
class Score:
    """What the policy of one training is worth: mean returns over 30 episodes of its own seeds."""

    sampled: float
    """Actions drawn as in training."""
    greedy: float
    """The most probable action, or the mean."""
    parameters: int
    steps_per_s: float
    """Env steps per second of wall time, learning included."""


@dataclass(frozen=True)
class Row:
    """A row of a table: a name, and what trains under a seed and returns a dataclass of figures."""

    name: str
    train: Callable[[int], Any]


@dataclass(frozen=True)
class Learned:
    """One training of a row."""

    row: str
    seed: int
    score: dict[str, float]


@dataclass
class Results:
    """What was measured so far, in a file that is written after each training; what it holds is not repeated."""

    path: Path
    found: list[Learned] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.found = [Learned(**row) for row in json.loads(self.path.read_text("utf-8"))]

    def measure(self, rows: Sequence[Row], seeds: Sequence[int]) -> None:
        """All rows of a seed before the next seed, so that a run that is cut short compares alike."""
        known = {(each.row, each.seed) for each in self.found}
        for seed in seeds:
            for row in rows:
                if (row.name, seed) in known:
                    continue
                began = time.monotonic()
                score = row.train(seed)
                self.found.append(Learned(row.name, seed, asdict(score)))
                temporary = self.path.with_name(self.path.name + ".tmp")
                temporary.write_text(json.dumps([asdict(each) for each in self.found], indent=1), "utf-8")
                os.replace(temporary, self.path)
                print(
                    f"{row.name}, seed {seed}: {score}, {time.monotonic() - began:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )

    def of(self, row: str, figure: str) -> list[float]:
        """A figure of a row, by seed."""
        return [each.score[figure] for each in sorted(self.found, key=lambda it: it.seed) if each.row == row]


@dataclass(frozen=True)
class Trained:
    """A run that has ended, while its folder is there."""

    run: Path
    env: Any
    """One of its envs, without its curriculum."""
    steps_per_s: float
    parameters: int

    def policy(self, *, greedy: bool) -> TrainedPolicy:
        return load_policy(self.run, self.env, greedy=greedy)


@contextmanager
def trained(config: TrainConfig, seed: int) -> Iterator[Trained]:
    """Train as `config` says, in this process and with one torch thread."""
    job = resolve_job(config)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            config, seed=seed, backend="inline", num_workers=1, torch_threads=1, device="cpu",
            runs=Path(folder), name="run", checkpoint_every=1 << 30,
        )  # fmt: skip
        began = time.monotonic()
        summary = train(config, job=job)
        took_s = time.monotonic() - began
        env = job.make_env()
        env = env.env if isinstance(env, cu.CurriculumEnv) else env  # which would wait for a directive
        network = for_spaces(config, env.observation_space, env.action_space).network
        model = ActorCritic(env.observation_space, action_head(env.action_space, network), network, seed=0)
        parameters = sum(p.numel() for p in model.parameters())
        yield Trained(Path(folder) / "run", env, summary.env_steps / took_s, parameters)
        env.close()


def ours(config: TrainConfig, seed: int, *, unit: float = 1.0) -> Score:
    """Train, and judge the policy; returns in multiples of `unit`."""
    with trained(config, seed) as run:
        sampled, greedy = (_play(run.env, run.policy(greedy=on).act) / unit for on in (False, True))
        return Score(sampled, greedy, run.parameters, run.steps_per_s)


def sb3(make_env: Callable[[], Any], num_envs: int, steps: int, settings: dict[str, Any], seed: int) -> Score:
    """Train Stable-Baselines3's PPO: its `MlpPolicy`, two tanh layers of 64 each for policy and value, as ours."""
    library: Any = import_module("stable_baselines3")
    vec_env: Any = import_module("stable_baselines3.common.vec_env")
    torch.set_num_threads(1)
    model = library.PPO(
        "MlpPolicy", vec_env.DummyVecEnv([make_env] * num_envs), seed=seed, device="cpu", **settings
    )
    began = time.monotonic()
    model.learn(steps)
    took_s = time.monotonic() - began
    env = make_env()

    def act(greedy: bool) -> Callable[[Any], Any]:
        return lambda obs: model.predict(obs, deterministic=greedy)[0]

    sampled, greedily = (_play(env, act(greedy)) for greedy in (False, True))
    env.close()
    parameters = sum(p.numel() for p in model.policy.parameters())
    return Score(sampled, greedily, parameters, model.num_timesteps / took_s)


def _play(env: Any, act: Callable[[Any], Any]) -> float:
    total = 0.0
    for episode in range(EVALUATED):
        obs, _ = env.reset(seed=FIRST_SEED + episode)
        ended = False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total += float(reward)
            ended = terminated or truncated
    return total / EVALUATED


def show(
    results: Results,
    rows: Sequence[Row],
    figures: Sequence[str],
    *,
    anchor: str | None = None,
    digits: int = 0,
    relative: bool = True,
) -> list[str]:
    """Markdown: a row each, interquartile means with intervals; against the `anchor`'s row, too, if there is one."""
    against = ", against the anchor" if anchor else ""
    heads = [*(f"{figure}: IQM [95 %]{against}" for figure in figures), f"seed by seed ({figures[0]})"]
    lines = [f"| | {' | '.join(heads)} | parameters | steps/s |", "|---" * (len(heads) + 3) + "|"]
    for row in rows:
        cells = []
        for figure in figures:
            if not (values := results.of(row.name, figure)):
                break
            low, high = interval(values)
            cell = f"**{iqm(values):,.{digits}f}** [{low:,.{digits}f}, {high:,.{digits}f}]"
            if anchor not in (None, row.name) and (theirs := results.of(anchor or "", figure)):
                form = "+.0%" if relative else f"+.{digits}f"
                by, least, most = (f"{x:{form}}" for x in difference(values, theirs, relative=relative))
                cell += f", {by} [{least}, {most}]"
            cells.append(cell)
        if not cells:
            continue
        cells += [", ".join(f"{value:,.{digits}f}" for value in results.of(row.name, figures[0]))]
        cells += [f"{results.of(row.name, 'parameters')[0]:,.0f}"]
        cells += [f"{max(results.of(row.name, 'steps_per_s')):,.0f}"]  # others' work only slows it down
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return lines
