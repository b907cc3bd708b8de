"""What a user adds by name: loggers of their own, parameters of the strategy; each mistake is one clear error."""
# async: real runs, inline

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.helpers import corridor_job, tiny
from trainers import ConfigError, training
from trainers.cli import _parse
from trainers.record.folder import load_config
from trainers.record.metrics import read_metrics

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
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "logging_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("logging_of_mine", None)


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
    with pytest.raises(OSError, match="no connection"):
        async with training(config, job=corridor_job()) as run:
            await run.wait()
    assert sys.modules["logging_of_mine"].closed == [7]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logger": ("logging_of_mine:Dot",)}, "logger logging_of_mine:Dot: .* did you mean 'Dots'"),
        ({"logger": ("logging_of_mine:number",)}, "logger logging_of_mine:number: not callable but int"),
        ({"logger": ("nowhere:Dots",)}, "logger nowhere:Dots: no module named 'nowhere'"),
        ({"logger": ("Dots",)}, "logger Dots: expected MODULE:FACTORY"),
        ({"strategy_options": {"prob": 0.1}}, "staged takes no 'prob'; did you mean 'probe'"),
        ({"strategy_options": {"window": "started"}}, "staged takes no 'window'"),
        ({"strategy": "prioritised_replay", "strategy_options": {"rh": 0.3}}, "did you mean 'rho'"),
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
        ]
    )
    assert command.settings.strategy_options == {"rho": 0.3}
    assert command.settings.logger == ("a:b", "c:d")
