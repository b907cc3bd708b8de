"""A sweep with Optuna that prunes what falls behind. `pip install optuna; python examples/optuna_sweep.py --trials 20`

Each trial is one call of `trainers.train`. What `on_report` raises ends the run, closes its workers and saves what was
learned; Optuna's `TrialPruned` is such an exception.
"""
# edge: prints

from __future__ import annotations

import argparse
import dataclasses
from datetime import datetime
from pathlib import Path

import optuna

from trainers import Report, TrainConfig, load_preset, train


def objective(trial: optuna.Trial, base: TrainConfig) -> float:
    """The success rate of the last stage that was reached, plus the number of stages before it."""
    ppo = dataclasses.replace(
        base.ppo,
        lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True),
        entropy=trial.suggest_float("entropy", 1e-3, 3e-2, log=True),
    )
    newest = 0.0

    def on_report(report: Report) -> None:
        nonlocal newest
        newest = progress(report)
        trial.report(newest, report.update)
        if trial.should_prune():
            raise optuna.TrialPruned

    train(dataclasses.replace(base, ppo=ppo, name=f"trial-{trial.number}"), on_report=on_report)
    return newest


def progress(report: Report) -> float:
    names = [stage.name for stage in report.stages]
    place = names.index(report.stage)
    return place + report.stages[place].success_rate


def sweep(base: TrainConfig, trials: int, *, startup: int = 3, seed: int = 0) -> optuna.Study:
    """Trials one after another, since each uses all CPUs, in a new folder in `base.runs`, named by the date; after
    `startup` trials, one below the median is pruned."""
    base = dataclasses.replace(base, runs=base.runs / f"sweep-{datetime.now():%Y%m%d-%H%M%S-%f}")
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=3)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner
    )
    study.optimize(lambda trial: objective(trial, base), n_trials=trials)
    return study


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--trials", type=int, default=20)
    arguments.add_argument("--total-steps", type=int, default=40_000)
    asked = arguments.parse_args()
    config = dataclasses.replace(
        load_preset("frozenlake").config, total_steps=asked.total_steps, runs=Path("runs")
    )
    study = sweep(config, asked.trials)
    pruned = sum(trial.state is optuna.trial.TrialState.PRUNED for trial in study.trials)
    print(
        f"{len(study.trials)} trials, {pruned} pruned; best {study.best_value:.2f} with {study.best_params}"
    )
