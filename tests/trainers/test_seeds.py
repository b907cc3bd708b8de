"""Several seeds: one folder, one table, one picture; one that breaks, a signal between two, bad input."""
# edge: the command line in this process, real runs inline

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager

from trainers import cli
from trainers.config import ConfigError, TrainConfig
from trainers.foreground import Foreground
from trainers.record.estimates import interval, iqm
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics
from trainers.record.seeds import SeedRuns, parse_seeds, seed_curves, seed_table

pytestmark = pytest.mark.alternate_loops

ENV = """
import os, signal
from pathlib import Path
import gymnasium as gym

class Coin(gym.Env):
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        group = Path("runs/g")
        if Path("broken").exists() and (group / "seed-1").exists() and not (group / "seed-2").exists():
            raise OSError("the simulator has gone")
        return 1, float(action), True, False, {"is_success": bool(action)}

    def close(self):
        if Path("interrupt").exists():
            Path("interrupt").unlink()
            os.kill(os.getpid(), signal.SIGINT)
"""
ARGS = (
    "--env", "coin:Coin", "--backend", "inline", "--num-envs", "4", "--ppo.num-steps", "16", "--ppo.minibatches", "2",
    "--network.hidden", "8", "--on-env-error", "raise", "--name", "g",
)  # fmt: skip


@pytest.fixture
def coin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "coin.py").write_text(ENV)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("coin", None)
    yield tmp_path
    sys.modules.pop("coin", None)
    font_manager._get_font.cache_clear()  # type: ignore[attr-defined]  # matplotlib keeps fonts open for each thread that has drawn


def test_one_that_breaks_keeps_no_other_from_its_end_and_is_gone_on_with(
    coin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of one seed's env, in the middle; mended, the same folder is gone on with."""
    (coin / "broken").touch()
    assert cli.main(["train", *ARGS, "--seeds", "0-2", "--total-steps", "256"]) == 1
    out, err = capsys.readouterr()
    assert "error: seed 1: " in err
    assert "the simulator has gone" in err
    assert err.splitlines()[-1] == (
        "error: 1 of 3 seeds broke (1); go on with: python -m trainers train --resume runs/g"
    )
    assert re.search(r"^1 +unfinished +–", out, re.MULTILINE), out
    first = (coin / "runs/g/seed-0/metrics.jsonl").read_bytes()

    (coin / "broken").unlink()
    assert cli.main(["train", "--resume", "runs/g"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("seed 0: done\ncoin:Coin · seed 1 ")
    assert "seed 2: done" in out
    assert (coin / "runs/g/seed-0/metrics.jsonl").read_bytes() == first
    rows = [line.split() for line in (coin / "runs/g/table.txt").read_text().splitlines()]
    assert [row[:3] for row in rows[1:4]] == [[str(seed), "steps", "256"] for seed in range(3)]
    rates = [
        read_metrics(coin / f"runs/g/seed-{n}/metrics.jsonl")[-1]["stages"][0]["success_rate"]
        for n in range(3)
    ]
    assert rows[4][-1] == f"{np.mean(rates):.1%}"
    assert (coin / "runs/g/curve.png").read_bytes().startswith(b"\x89PNG")

    runs = SeedRuns.open(Path("runs/g"))
    assert runs.done(0)
    assert not replace(runs, config=replace(runs.config, total_steps=257)).done(0), (
        "it goes on with more steps"
    )
    assert cli.main(["plot", "runs/g", "--out", "all.png"]) == 0
    assert capsys.readouterr().out.endswith("all.png\n")
    assert cli.main(["eval", "runs/g"]) == 1
    assert (
        capsys.readouterr().err
        == "error: runs/g holds the runs of several seeds: name one of its folders seed-…\n"
    )


@pytest.mark.asyncio
async def test_a_signal_between_two_begins_no_other(coin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (coin / "interrupt").touch()  # when the first seed's envs are closed
    parsed: Any = cli._parse(["train", *ARGS, "--total-steps", "64", "--seeds", "5,3"])
    runs = SeedRuns.create(parsed.settings, parsed.seeds)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    foreground = Foreground()
    await foreground.train_seeds(runs)
    assert foreground.received == [signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert {path.name for path in runs.path.iterdir()} == {"seeds.toml", "seed-5"}
    assert "--resume runs/g" in capsys.readouterr().out
    again = SeedRuns.open(runs.path)
    assert (again.seeds, again.done(5), again.done(3), again.begun(3)) == ((5, 3), True, False, None)


def test_what_cannot_begin_leaves_nothing(coin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same mistake of every seed is told once."""
    assert cli.main(["train", "--env", "coin:Con", "--seeds", "0-2", "--name", "g"]) == 1
    assert capsys.readouterr().err == "error: env coin:Con: coin has no 'Con'; did you mean 'Coin'?\n"
    assert not list((coin / "runs").iterdir())


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", (0, 1, 2, 3, 4)), ("0,3,7", (0, 3, 7)), ("7, 0-1", (7, 0, 1))]
)
def test_seeds_are_ranges_and_numbers(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "a"], "--seeds a: expected seeds and ranges such as 0-4 or 0,3,7, got 'a'"),
        (["--seeds", ""], "got ''"),
        (["--seeds", "0,,2"], "got ''"),
        (["--seeds=-1"], "got '-1'"),
        (["--seeds", "1.5"], "got '1.5'"),
        (["--seeds", "4-0"], "4-0 ends before it begins"),
        (["--seeds", "0-3,2"], "seed 2 is named twice"),
        (["--seeds", "0-99999999999"], "more than 1000 seeds"),
        (["--seeds", "0-1", "--seed", "3"], "--seed beside several seeds"),
        (["--seeds", "0-1", "--serve"], "--serve shows one run"),
        (["--seeds", "0-1", "--resume", "runs/none"], "no such run folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):
        assert cli.main(["train", *args]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_of_seeds_is_named(tmp_path: Path) -> None:
    (tmp_path / "seeds.toml").write_text('seeds = [0, "one"]\n')
    with pytest.raises(
        ConfigError, match=r"seeds\.toml: seeds: expected a list of whole numbers, got \[0, 'one'\]"
    ):
        SeedRuns.open(tmp_path)


def test_the_interquartile_mean_and_its_interval() -> None:
    assert iqm([8, 1, 100, 3, 4, 5, 6, -50]) == np.mean([3, 4, 5, 6])
    assert iqm([1, 2, 9]) == 4
    assert interval([2.5, 2.5, 2.5]) == (2.5, 2.5)
    values = np.random.default_rng(1).normal(3, 1, 40)
    low, high = interval(list(values))
    assert low < iqm(list(values)) < high
    assert 0.3 < high - low < 1.2  # ± 1.96 × about 1.1/√40


def test_curves_keep_the_last_value_of_runs_that_have_ended_only(tmp_path: Path) -> None:
    """A solved seed stays solved; one that broke counts as far as it came. Rows are as wide as the table's head."""
    runs = SeedRuns(tmp_path, TrainConfig(total_steps=30), (0, 1, 2, 3))
    for seed, reason, rates in ((0, "solved", (0.0, 1.0)), (1, "steps", (0.0, 0.2, 0.4)), (2, None, (0.6,))):
        folder = RunFolder(tmp_path / f"seed-{seed}")
        folder.path.mkdir()
        for i, rate in enumerate(rates, start=1):
            with folder.metrics.open("a") as file:
                line = f'{{"env_steps": {10 * i}, "episode_return": null, "stages": '
                file.write(f'{line}[{{"name": "a", "success_rate": {rate}, "outcomes": {i - 1}}}]}}\n')
        if reason is not None:
            stages_at_end = f'[{{"name": "a", "success_rate": {rate}}}]'
            folder.summary.write_text(f'{{"reason": "{reason}", "env_steps": 30, "stages": {stages_at_end}}}')
    stages, total = seed_curves(runs)
    assert (stages["a"].steps, stages["a"].mean) == ([20, 30], [0.6, 0.7])  # (1.0 + 0.2) / 2, (1.0 + 0.4) / 2
    assert total.steps == []
    headings, rows = seed_table(runs)
    assert headings == ["seed", "ended", "env steps", "return", "a"]
    assert [row[:2] + row[-1:] for row in rows[:5]] == [
        ["0", "solved", "100.0%"], ["1", "steps", "40.0%"], ["2", "unfinished", "60.0%"], ["3", "unfinished", "–"],
        ["all", "interquartile mean", "70.0%"],
    ]  # fmt: skip
    assert {len(row) for row in rows} == {5}
