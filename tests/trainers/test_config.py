"""Configs check themselves, survive TOML, and name what is wrong with file and key."""
# pure: text in, configs out

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.config import (
    ConfigError,
    EvalConfig,
    FleetConfig,
    NetworkConfig,
    PPOConfig,
    TrainConfig,
    from_mapping,
    to_toml,
)
from trainers.record.folder import RunFolder, load_config


def test_a_config_survives_its_toml() -> None:
    config = TrainConfig(
        preset="frozenlake",
        env='a "quoted" \\ name:ä',
        plan=Path("x/plan.toml"),
        seed=3,
        solve_rate=0.9,
        ppo=PPOConfig(lr=1e-7, target_kl=0.02, clip_value=None, num_steps=32),
        network=NetworkConfig(hidden=(64, 32)),
    )
    assert from_mapping(TrainConfig, tomllib.loads(to_toml(config)), source="x") == config


def test_what_toml_has_no_word_for_survives_it_too() -> None:
    config = TrainConfig(
        name="\x7f", levels=Path("none"), step_timeout_s=math.inf, ppo=PPOConfig(max_grad_norm=math.inf)
    )
    assert from_mapping(TrainConfig, tomllib.loads(to_toml(config)), source="x") == config


def test_what_a_preset_sets_can_be_turned_off_in_a_file(tmp_path: Path) -> None:
    """Saved, a setting that is None stays so, whatever is laid under the file."""
    base = TrainConfig(solve_rate=0.9, ppo=PPOConfig(target_kl=0.1))
    config = replace(base, solve_rate=None, ppo=replace(base.ppo, target_kl=None))
    (tmp_path / "run.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "run.toml", base) == config


def test_every_setting_has_its_help() -> None:
    for kind in (TrainConfig, PPOConfig, NetworkConfig, EvalConfig, FleetConfig):
        source = Path(__file__).parents[2] / "trainers" / "config.py"
        text = source.read_text(encoding="utf-8")
        for item in dataclasses.fields(kind):
            if item.name not in ("ppo", "network", "eval", "fleet"):
                assert re.search(rf'\n    {item.name}: .*\n    """', text), f"{item.name} has no docstring"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1", "run.toml: unknown setting 'sed'"),
        ("seed = 'x'", "run.toml: seed: expected int, got 'x'"),
        ("seed = true", "run.toml: seed: expected int, got True"),
        ("seed = -1", "run.toml: seed must not be negative, got -1"),
        ("seed = ", "run.toml: not valid TOML: Invalid value (at "),
        ("[ppo]\nlr = '1'", "run.toml: ppo: lr: expected float, got '1'"),
        ("[ppo]\nlr = 0", "run.toml: ppo: ppo.lr must be positive, got 0.0"),
        ("ppo = 3", "run.toml: ppo: expected a table, got 3"),
        (
            "collect = 'no'",
            "run.toml: collect: expected one of 'lockstep', 'first_ready', 'unroll', got 'no'",
        ),
        ("[network]\nhidden = 3", "run.toml: network: hidden: expected a list, got 3"),
        ("[network]\nhidden = ['a']", "run.toml: network: hidden: expected int, got 'a'"),
        ("num_envs = 0", "run.toml: num_envs must be at least 1, got 0"),
        ("deterministic = true\ncollect = 'first_ready'", "deterministic=True needs collect='lockstep'"),
        ("rules = 'sequential'\nwindow = 'completed'", "rules='sequential' needs window='started'"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_a_file_names_are_looked_for_beside_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then from where one stands, as those of an argument. Where neither is, the name stays as it was written."""
    (tmp_path / "sub" / "levels").mkdir(parents=True)
    for name in ("sub/plan.toml", "plan.toml", "run-a"):
        (tmp_path / name).touch()
    (tmp_path / "sub" / "run.toml").write_text(
        "env = 'x'\nplan = 'plan.toml'\nlevels = './levels'\ninit_from = 'run-a'\nruns = 'runs'\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("sub/run.toml"))
    assert (config.plan, config.levels) == (Path("sub/plan.toml"), Path("sub/levels"))
    assert (config.init_from, config.runs) == (Path("run-a"), Path("runs"))


def test_a_file_is_laid_over_its_base(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 4\n[ppo]\nlr = 1\n", encoding="utf-8")
    base = TrainConfig(num_envs=7, ppo=PPOConfig(num_steps=5))
    assert load_config(path, base) == replace(base, seed=4, ppo=PPOConfig(num_steps=5, lr=1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"min_envs": 33},
        {"total_steps": 0},
        {"solve_rate": 1.5},
        {"solve_window": 51},
        {"keep_checkpoints": 0},
        {"step_timeout_s": math.nan},
        {"step_timeout_s": 0.0},
        {"torch_threads": 0},
        {"seed": 2**63},
        {"name": "none"},
    ],
)
def test_values_that_cannot_be_are_refused_at_birth(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TrainConfig(**changes)


@pytest.mark.parametrize("name", ["entropy", "value", "clip_value", "target_kl"])
def test_no_weight_or_bound_is_negative(name: str) -> None:
    changes: dict[str, Any] = {name: -0.1}
    with pytest.raises(ConfigError, match=rf"ppo\.{name} must (be positive|not be negative), got -0\.1"):
        PPOConfig(**changes)


@pytest.mark.parametrize("name", ["entropy", "value", "clip_value", "target_kl", "lr"])
def test_no_setting_is_nan(name: str) -> None:
    changes: dict[str, Any] = {name: math.nan}
    with pytest.raises(ConfigError, match=rf"ppo\.{name} must be a number, got nan"):
        PPOConfig(**changes)


def test_derived_sizes() -> None:
    config = TrainConfig(num_envs=4, total_steps=129, ppo=PPOConfig(num_steps=16))
    assert (config.batch_size, config.num_updates) == (64, 3)


def test_the_progress_counts_env_steps_not_updates_of_another_size() -> None:
    config = TrainConfig(num_envs=4, total_steps=1000, ppo=PPOConfig(num_steps=16))
    fresh = [config.progress(64 * update) for update in range(config.num_updates)]
    assert fresh == [update / config.num_updates for update in range(config.num_updates)], "bit for bit"
    assert replace(config, num_envs=8).progress(512) == 512 / 1024
    assert config.progress(1024) == 1.0


def test_a_run_folder_s_config_names_files_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(env="CartPole-v1", plan=Path("plan.toml"), levels=Path("../levels"), runs=tmp_path)
    saved = RunFolder.create(config).config()
    assert (saved.plan, saved.levels) == (tmp_path / "plan.toml", tmp_path / "../levels")
    assert replace(saved, plan=config.plan, levels=config.levels) == config


def test_run_folders_are_made_once(tmp_path: Path) -> None:
    config = TrainConfig(env="my_game.envs:make", runs=tmp_path)
    first, second = RunFolder.create(config), RunFolder.create(config)
    assert first.path != second.path
    assert first.path.name.startswith("my_game-envs-make-seed0-")
    assert first.config() == config
    named = replace(config, name="mine")
    RunFolder.create(named)
    with pytest.raises(ConfigError, match=r"mine exists: .* --resume"):
        RunFolder.create(named)
    with pytest.raises(ConfigError, match="no such run folder"):
        RunFolder.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "best.pt").touch()
    with pytest.raises(ConfigError, match=r"best\.pt: neither a run folder nor a checkpoint in one"):
        RunFolder.around(tmp_path / "best.pt")
    with pytest.raises(ConfigError, match=r"not a run folder: it has no config\.toml"):
        RunFolder.open(tmp_path / "empty")


def test_what_python_and_numpy_write_is_brought_to_its_type() -> None:
    """One check for files, arguments and Python: a path may be a string, a number NumPy's."""
    hidden: Any = np.array([8, 4])
    given: Any = {
        "runs": "runs", "plan": "plan.toml", "seed": np.int64(3), "total_steps": 1e6, "num_envs": np.uint8(4),
        "tensorboard": np.bool_(True), "ppo": {"lr": np.float32(0.5), "clip": 1},
        "network": NetworkConfig(hidden=hidden),
        "env": "x:y", "env_kwargs": {"size": np.int32(8), "names": ("a", "b")},
    }  # fmt: skip
    config = TrainConfig(**given)
    assert (config.runs, config.plan) == (Path("runs"), Path("plan.toml"))
    assert [type(value) for value in (config.seed, config.total_steps, config.num_envs, config.tensorboard)] == [
        int, int, int, bool,
    ]  # fmt: skip
    assert (config.ppo.lr, config.ppo.clip, config.network.hidden) == (0.5, 1.0, (8, 4))
    assert config.env_kwargs == {"size": 8, "names": ["a", "b"]}
    assert from_mapping(TrainConfig, tomllib.loads(to_toml(config)), source="x") == config


def test_tables_survive_their_toml() -> None:
    table = {"a": 1, "b c": [True, "x\x7f", {"d": 0.5, "é": []}], "n": {"none": "none"}}
    config = TrainConfig(env="x", env_kwargs=table)
    assert from_mapping(TrainConfig, tomllib.loads(to_toml(config)), source="x") == config


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            NetworkConfig,
            {"activation": "gelu"},
            "network.activation: expected one of 'tanh', 'relu', got 'gelu'",
        ),
        (NetworkConfig, {"hidden": 8}, "network.hidden: expected a list, got 8"),
        (PPOConfig, {"lr": "1e-3"}, "ppo.lr: expected float, got '1e-3'"),
        (TrainConfig, {"strategy": "stagd"}, "got 'stagd'; did you mean 'staged'?"),
        (TrainConfig, {"ppo": 3}, "ppo: expected PPOConfig, got 3"),
        (TrainConfig, {"ppo": {"lrr": 3}}, "ppo: unknown setting 'lrr'; did you mean 'lr'?"),
        (TrainConfig, {"num_envs": 2.5}, "num_envs: expected int, got 2.5"),
        (TrainConfig, {"num_envs": True}, "num_envs: expected int, got True"),
        (TrainConfig, {"num_workers": "2"}, "num_workers: expected int or 'per env', got '2'"),
        (TrainConfig, {"num_workers": 2.5}, "num_workers: expected int or 'per env', got 2.5"),
        (PPOConfig, {"lr": math.inf}, "ppo.lr must be finite, got inf"),
        (PPOConfig, {"entropy": math.inf}, "ppo.entropy must be finite, got inf"),
        (PPOConfig, {"value": math.inf}, "ppo.value must be finite, got inf"),
        (TrainConfig, {"seed": None}, "seed: expected int, got None"),
        (TrainConfig, {"runs": 3}, "runs: expected Path, got 3"),
        (TrainConfig, {"env": "x", "env_kwargs": 3}, "env_kwargs: expected a table, got 3"),
        (TrainConfig, {"env": "x", "env_kwargs": {"f": len}}, "env_kwargs.f: expected a string, number"),
        (TrainConfig, {"env_kwargs": {"f": 1}}, "env_kwargs needs env"),
        (TrainConfig, {"max_error_share": 1.5}, "max_error_share must lie in [0, 1]"),
        (TrainConfig, {"restarts": -1}, "restarts must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused_at_birth_by_name(
    kind: Any, changes: dict[str, Any], message: str
) -> None:
    """Not as a TypeError or KeyError from far away; a typo comes with a suggestion."""
    with pytest.raises(ConfigError) as caught:
        kind(**changes)
    assert message in str(caught.value)
