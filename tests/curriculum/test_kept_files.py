"""Journals and states that version 0.1.0 wrote: they load, replay, and go on exactly as they did there."""
# pure: files of `data/`, made by scripted envs; a state goes on by its journal's later lines

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curriculum import Coordinator, Stage, Staged, StagePlan, read_journal
from curriculum.journal import episode_of, started_of
from curriculum.replay import replay
from tests.curriculum.helpers import Channel

DATA = Path(__file__).parent / "data"
NAMES = ("reference", "sequential", "completed")


def journal_of(name: str) -> Path:
    return DATA / f"staged_0_1_0.{name}.jsonl"


def saved_of(name: str) -> Any:
    """The coordinator's state at a line of the journal and at its end, with what was shown there."""
    return json.loads((DATA / f"staged_0_1_0.{name}.json").read_text("utf-8"))


def staged_of(name: str) -> Staged:
    _, run = next(read_journal(journal_of(name)))
    config = dict(run["config"])
    del config["strategy"]
    stages = [Stage(**stage) for stage in config.pop("stages")]
    return Staged(StagePlan(stages), **config, start_order="run")


def state_of(staged: Staged) -> Any:
    """As version 0.1.0 wrote it: without what states say since."""
    state = staged.state_dict()
    assert state["order"].pop("by") == "run"
    del state["order"]["ended"]
    return state


def go_on(staged: Staged, name: str, line: int) -> None:
    """Fold what the journal has after this line."""
    for number, record in read_journal(journal_of(name)):
        if number <= line:
            continue
        if record["kind"] == "batch":
            for row in record["started"]:
                staged.started(started_of(row, ""))
            for episode in sorted((episode_of(row, "") for row in record["ended"]), key=lambda e: e.order):
                staged.observe(episode)
            staged.settle(record["watermark"])
        elif record["kind"] == "published":
            staged.published(record["version"])
        elif record["kind"] == "command":
            getattr(staged, record["command"])(*record["arguments"])


@pytest.mark.parametrize("name", NAMES)
def test_a_journal_of_0_1_0_replays_to_the_same_decisions(name: str) -> None:
    result = replay(journal_of(name))
    assert result.same
    kinds = {decision.kind for decision in result.logged}
    assert kinds >= {"advance", "set_stage", "set_mixing_ratio", "hold", "release"}
    assert name == "completed" or "regress" in kinds


def table_of(staged: Staged) -> list[dict[str, Any]]:
    """As version 0.1.0 showed it: without the columns that came since."""
    new = {"waiting", "waiting_for", "measure", "value"}
    return [{key: value for key, value in row.items() if key not in new} for row in staged.progress()]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_0_1_0_shows_and_becomes_what_it_did(name: str) -> None:
    saved, staged = saved_of(name), staged_of(name)
    if name != "completed":
        assert all(saved["coordinator"]["strategy"]["order"].values())  # some wait, run, were passed over
    staged.load_state_dict(saved["coordinator"]["strategy"])
    assert state_of(staged) == saved["coordinator"]["strategy"]
    assert table_of(staged) == saved["progress"]
    assert saved["explain"].endswith(staged.explain())
    go_on(staged, name, saved["line"])
    assert state_of(staged) == saved["end"]["strategy"]
    assert table_of(staged) == saved["end_progress"]
    assert saved["end_explain"].endswith(staged.explain())


@pytest.mark.parametrize("name", NAMES)
def test_a_coordinator_s_state_of_0_1_0_loads(name: str) -> None:
    saved, channel = saved_of(name), Channel(4)
    coordinator = Coordinator(staged_of(name), channel)
    coordinator.load_state_dict(saved["coordinator"])
    assert [decision.as_dict() for decision in coordinator.decisions] == saved["coordinator"]["decisions"]
    assert (
        channel.newest.stage
        == saved["coordinator"]["strategy"]["stages"][saved["coordinator"]["strategy"]["current"]]
    )
