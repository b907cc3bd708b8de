"""What a user adds by name: loggers, callbacks, parameters of the strategy; each mistake is one clear error."""
# async: real runs, inline

from __future__ import annotations

import asyncio
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.helpers import corridor_job, tiny
from trainers import CallbackError, ConfigError, TrainConfig, training
from trainers.cli import _parse
from trainers.config import from_mapping, to_toml
from trainers.record.folder import load_config
from trainers.record.loggers import LoggerError
from trainers.record.metrics import read_metrics

pytestmark = pytest.mark.alternate_loops

MINE = """
closed = []
class Dots:
    def __init__(self, folder, config):
        self.seed, self.file = config.seed, (folder / "dots.txt").open("a")
    def write(self, report):
        self.file.write(f"{report.env_steps} {self.seed}\\n")
        if report.update == 3 and self.seed == 7:
            raise OSError("no connection")
    def close(self):
        self.file.close()
        closed.append(self.seed)
number = 3
def nothing(folder, config):
    return number
"""
BESIDE = """
import asyncio
seen = []
async def watch(run):
    async for report in run.reports():
        seen.append(report.update)
        if report.update == 2:
            seen.append((await run.checkpoint()).name)
    await asyncio.to_thread(seen.append, (await run.wait()).reason)

async def endless(run):
    try:
        await asyncio.Event().wait()
    finally:
        seen.append("cancelled")

async def breaks(run):
    async for report in run.reports():
        if report.update == 3:
            [][run.env_steps]

class Stops:
    async def __call__(self, run):
        await run.stop()
stops = Stops()

def plain(run):
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "logging_of_mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text(BESIDE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("logging_of_mine", None)
    sys.modules.pop("beside", None)


@pytest.mark.asyncio
async def test_a_logger_of_the_user_s_own_gets_every_report_and_is_closed(mine: Path) -> None:
    config = tiny(mine / "runs", logger=["logging_of_mine:Dots"], seed=5)
    async with training(config, job=corridor_job()) as run:
        await run.wait()
    lines = (run.folder.path / "dots.txt").read_text().splitlines()
    assert lines == [f"{line['env_steps']} 5" for line in read_metrics(run.folder.metrics)]
    assert sys.modules["logging_of_mine"].closed == [5]
    assert load_config(run.folder.path / "config.toml").logger == ("logging_of_mine:Dots",)


@pytest.mark.asyncio
async def test_what_a_logger_raises_ends_the_run_and_it_is_closed(mine: Path) -> None:
    config = tiny(mine / "runs", logger=("logging_of_mine:Dots",), seed=7)
    with pytest.raises(
        LoggerError, match=r"logger logging_of_mine:Dots: OSError: no connection \(logging_of_mine"
    ):
        async with training(config, job=corridor_job()) as run:
            await run.wait()
    assert sys.modules["logging_of_mine"].closed == [7]


@pytest.mark.asyncio
async def test_a_logger_that_is_none_is_named(mine: Path) -> None:
    config = tiny(mine / "runs", logger=("logging_of_mine:nothing",))
    with pytest.raises(
        ConfigError, match=r"logger logging_of_mine:nothing: expected .* write and close\(\), got int"
    ):
        async with training(config, job=corridor_job()):
            pass


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_callback_gets_the_run_and_comes_to_its_own_end(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every report, commands of its own, and its last lines once the run has ended; one without an end is cancelled."""
    monkeypatch.setattr("trainers.callbacks.GRACE_S", 0.0)
    async with training(tiny(mine / "runs", callback=["beside:endless"]), job=corridor_job()):
        pass
    assert sys.modules["beside"].seen == ["cancelled"]
    monkeypatch.setattr("trainers.callbacks.GRACE_S", 60.0)
    async with training(tiny(mine / "runs", callback=["beside:watch"]), job=corridor_job()):
        pass
    assert sys.modules["beside"].seen[-1] == "stopped"
    sys.modules["beside"].seen.clear()
    config = tiny(mine / "runs", callback=["beside:watch"])
    async with training(config, job=corridor_job()) as run:
        await run.wait()
    assert sys.modules["beside"].seen == [1, 2, "step-0000000192.pt", 3, 4, 5, 6, "steps"]
    assert run.folder.config().callback == ("beside:watch",)


@pytest.mark.asyncio
async def test_what_a_callback_raises_ends_the_run_and_names_it(mine: Path) -> None:
    """After a checkpoint; `wait()` gives the run as far as it came."""
    with pytest.raises(CallbackError, match=r"^callback beside:breaks: IndexError: .* \(beside.py:\d+\)$"):
        async with training(tiny(mine / "runs", callback=["beside:breaks"]), job=corridor_job()) as run:
            summary = await run.wait()
    assert (summary.reason, summary.updates) == ("stopped", 3)
    assert (run.folder.path / summary.checkpoint).exists()


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_callback_may_stop_the_run_and_hides_none_of_its_errors(mine: Path) -> None:
    """An error of the run passes through a reader's `reports()`: it is the run's, and whoever opened it sees it."""
    config = tiny(mine / "runs", callback=["beside:watch"], logger=["logging_of_mine:Dots"], seed=7)
    with pytest.raises(LoggerError, match="no connection"):
        async with training(config, job=corridor_job()) as run:
            await asyncio.wait([run._task])
    config = tiny(mine / "runs", callback=["beside:stops"], total_steps=10**6)
    async with training(config, job=corridor_job()) as run:
        assert (await run.wait()).reason == "stopped"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logger": ("logging_of_mine:Dot",)}, "logger logging_of_mine:Dot: .* did you mean 'Dots'"),
        ({"logger": ("logging_of_mine:number",)}, "logger logging_of_mine:number: not callable but int"),
        ({"logger": ("nowhere:Dots",)}, "logger nowhere:Dots: no module named 'nowhere'"),
        ({"logger": ("Dots",)}, "logger Dots: expected MODULE:FACTORY"),
        ({"callback": ("beside:wach",)}, "callback beside:wach: .* did you mean 'watch'"),
        ({"callback": ("beside:plain",)}, r"callback beside:plain: expected .* `async def plain\(run\)`"),
        ({"callback": ("nowhere:f",)}, "callback nowhere:f: no module named 'nowhere'"),
        ({"strategy_options": {"prob": 0.1}}, "staged takes no 'prob'; did you mean 'probe'"),
        ({"strategy_options": {"window": "started"}}, "staged takes no 'window'"),
        ({"strategy": "prioritised_replay", "strategy_options": {"rh": 0.3}}, "did you mean 'rho'"),
        ({"strategy_options": {"probe": "x"}}, "staged's probe: expected a number, got 'x'"),
        (
            {"strategy_options": {"adaptive_mixing": 1}},
            "staged's adaptive_mixing: expected true or false, got 1",
        ),
        (
            {"strategy_options": {"threshold": {"one": "x"}}},
            "expected a number or a table of these by stage, got {",
        ),
        ({"strategy_options": {"mix_by": None}}, "mix_by: expected 'episodes' or 'steps', got None"),
        (
            {"strategy": "ladder", "strategy_options": {"start": 0.5}},
            "start: expected a whole number, got 0.5",
        ),
        (
            {"strategy": "ladder", "strategy_options": {"down": "f"}},
            "down: expected a function, which only Python",
        ),
        (
            {"strategy": "prioritised_replay", "strategy_options": {"replay": True}},
            "replay: expected a number or 'proportionate', got True",
        ),
    ],
)
async def test_what_is_not_there_is_one_clear_error(
    mine: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        async with training(tiny(mine / "runs", **changes), job=corridor_job()):
            pass
    assert not (mine / "runs").exists() or not list((mine / "runs").iterdir())


@pytest.mark.asyncio
async def test_every_strategy_takes_its_own_parameters(tmp_path: Path) -> None:
    for strategy, options in (
        ("staged", {"probe": 0.05}), ("uniform", {"every": 7}), ("learning_progress", {"floor": 0.2}),
        ("learnability", {"decay": 0.5}), ("prioritised_replay", {"rho": 0.3, "every": 20}), ("ladder", {"start": 1}),
    ):  # fmt: skip
        config = tiny(tmp_path, strategy=strategy, strategy_options=options, total_steps=64)
        async with training(config, job=corridor_job()) as run:
            for name, value in options.items():
                if name not in ("floor", "start"):
                    assert getattr(run.coordinator.strategy, name) == value, strategy
            await run.wait()
        assert run.folder.config().strategy_options == options


def test_words_of_a_table_are_read_as_toml_or_python_writes_them(capfd: pytest.CaptureFixture[str]) -> None:
    """Booleans, None and numbers in both spellings, else text; a name twice, or nothing at all, is an error."""
    read: dict[str, Any] = {
        "False": False, "true": True, "None": None, ".3": 0.3, "1e-3": 1e-3, "(1,2)": [1, 2], "{'x':None}": {"x": None},
        "hard": "hard", "none": "none", "2020-01-01": "2020-01-01", "'True'": "True", "": "",
    }  # fmt: skip
    words = [f"a{i}={word}" for i, word in enumerate(read)]
    command: Any = _parse(["train", "--env", "x:y", "--env-kwargs", *words])
    assert list(command.settings.env_kwargs.values()) == list(read.values())
    assert from_mapping(TrainConfig, tomllib.loads(to_toml(command.settings)), source="x") == command.settings
    for wrong, said in (
        (["--env-kwargs"], "NAME=VALUE, got nothing"), (["--strategy-options"], "NAME=VALUE, got nothing"),
        (["--env-kwargs", "a=1", "a=2"], "'a' is said twice"),
        (["--env-kwargs", "a=1", "--env_kwargs", "b=2"], "--env-kwargs is said twice"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            _parse(["train", "--env", "x:y", *wrong])
        assert said in " ".join(capfd.readouterr().err.split())


def test_the_command_line_takes_them() -> None:
    command: Any = _parse(
        [
            "train",
            "--strategy",
            "prioritised_replay",
            "--strategy-options",
            "rho=0.3",
            "--logger",
            "a:b",
            "c:d",
            "--callback",
            "e:f",
        ]
    )
    assert command.settings.strategy_options == {"rho": 0.3}
    assert command.settings.logger == ("a:b", "c:d")
    assert command.settings.callback == ("e:f",)
