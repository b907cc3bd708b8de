"""The journal and what is read from it: exact replay, other rules, explanations, and errors with file and line."""
# pure + files under tmp_path; the channel is scripted

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from curriculum import Coordinator, Journal, JournalError, Stage, Staged, StagePlan, read_journal
from curriculum.__main__ import main
from curriculum.replay import other_rules, replay
from tests.curriculum.helpers import Channel, Started, episode, stamp

pytestmark = pytest.mark.alternate_loops

PLAN = StagePlan(
    [Stage("near", 0.60, 50), Stage("middle", 0.65, 60, floor=0.40), Stage("far", 0.70, 80, floor=0.45)]
)


async def write(
    path: Path | Journal, staged: Staged, steps: int = 400, seed: int = 1, state: Any = None
) -> dict[str, Any]:
    """A run of 8 envs with slow failures, an operator, a hold, an abort now and then."""
    rng = random.Random(seed)
    channel = Channel(num_envs=8)
    coordinator = Coordinator(staged, channel, journal=path)
    if state is not None:
        coordinator.load_state_dict(state)
    task = asyncio.create_task(coordinator.run())
    running: dict[int, tuple[int, int, int, str, bool]] = {}
    for step in range(steps):
        events: list[Any] = []
        for env in range(8):
            if env not in running:
                good = rng.random() < (0.75 if step % 200 < 140 else 0.2)
                order, stage = step * 8 + env, str(coordinator.stage)
                running[env] = (order, step + (1 if good else 4), channel.version, stage, good)
                events.append(Started(env, order, order, channel.version, stamp(stage)))
        for env, (order, end, version, stage, good) in sorted(running.items()):
            if end == step:
                outcome = "aborted" if rng.random() < 0.03 else "truncated"
                events.append(episode(order, stage, good, version=version, outcome=outcome, env_id=env))
                del running[env]
        channel.hand_out(events, min(order for order, *_ in running.values()) if running else 1 << 40)
        await coordinator.settled()
        if step == 250:
            coordinator.set_stage("near", by="operator", why="to see it again")
            coordinator.set_mixing_ratio("middle", 0.3, by="operator")
            coordinator.record("near", True)
        if step == 310:
            coordinator.note("checkpoint", by="operator", why="before lunch")
        if step in (300, 320):
            (coordinator.hold if step == 300 else coordinator.release)(why="pause")
    saved = coordinator.state_dict()
    channel.closed = True
    channel._signal.set()
    await task
    return saved


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "options",
    [
        {"success": lambda episode: episode.final_info.get("is_success") or None},
        {"window": "completed"},
        {"rules": "sequential", "probe": 0.02},
    ],
)
async def test_a_journal_replays_to_the_same_decisions(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    saved = await write(path, Staged(PLAN, **options))
    result = replay(path)
    kinds = [decision.kind for decision in result.logged]
    assert {"advance", "set_stage", "set_mixing_ratio", "hold", "release", "checkpoint"} <= set(kinds)
    assert result.same
    assert result.total == saved["strategy"]["total"]
    assert [d.as_dict() for d in result.logged] == saved["decisions"]
    for stay in other_rules(
        path, {"rules": options.get("rules", "reference"), "window": options.get("window", "started")}
    ):
        logged = stay.logged
        # the rules' own moves, found again stay by stay
        if logged is not None and logged.kind != "set_stage":
            assert stay.other is not None
            assert (stay.other.kind, stay.other.to, stay.other.total) == (
                logged.kind,
                logged.to,
                logged.total,
            )
        else:
            assert stay.other is None


@pytest.mark.asyncio
async def test_without_episodes_it_explains_and_does_not_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same decisions, commands and counts in a fraction of the size; `replay` says in one line why it cannot."""
    full, thin = tmp_path / "full.jsonl", tmp_path / "thin.jsonl"
    await write(full, Staged(PLAN))
    with Journal(thin, episodes=False) as journal:
        await write(journal, Staged(PLAN))
    kinds = {record["kind"] for _, record in read_journal(thin)}
    assert kinds == {"run", "published", "command", "decision"}
    said = []
    for path in (full, thin):
        assert main(["explain", str(path)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["replay", str(thin)]) == main(["replay", str(thin), "--no-early"]) == 1
    wrong = f"error: {thin}:1: written without episodes: it cannot be replayed; explain reads its decisions\n"
    assert capsys.readouterr().err == 2 * wrong


def test_a_long_journal_is_read_in_little_memory(tmp_path: Path) -> None:
    """1.5 MB: what `explain` and `replay` keep does not grow with it."""
    path = tmp_path / "journal.jsonl"
    asyncio.run(write(path, Staged(PLAN, early=False, trend=False, window="completed"), steps=60))
    batches = "".join(line for line in path.read_text().splitlines(keepends=True) if '"kind":"batch"' in line)
    with path.open("a") as file:
        for _ in range(1_500_000 // len(batches)):
            file.write(batches)
    tracemalloc.start()
    try:
        for command in ("explain", "replay"):
            main([command, str(path)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 7e5


@pytest.mark.asyncio
async def test_a_resumed_journal_replays_too_and_a_torn_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    saved = await write(path, Staged(PLAN))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"kind":"batch","numb')  # a crash in the middle of a line
    assert len(list(read_journal(path))) == whole.count(b"\n")
    await write(path, Staged(PLAN), seed=2, state=saved)
    assert path.read_bytes().startswith(whole + b'{"kind":"run"')
    assert replay(path).same
    assert len(replay(path).logged) > len(saved["decisions"])


@pytest.mark.asyncio
async def test_a_resume_does_not_split_a_stay(tmp_path: Path) -> None:
    """A resume notes two run lines: the first is of a strategy that has not loaded its state."""
    path = tmp_path / "journal.jsonl"
    saved = await write(path, Staged(PLAN), steps=150)
    assert saved["strategy"]["current"] > 0
    before = other_rules(path, {"rules": "sequential"})
    await write(path, Staged(PLAN), steps=0, state=saved)
    kinds = [record["kind"] for _, record in read_journal(path)]
    assert kinds[-2:] == ["run", "run"]
    assert other_rules(path, {"rules": "sequential"}) == before
    await write(path, Staged(PLAN), steps=0)  # refused before its state was loaded
    assert other_rules(path, {"rules": "sequential"}) == before
    await write(path, Staged(PLAN), steps=10, seed=3, state=saved)
    assert [stay.stage for stay in other_rules(path, {})] == [stay.stage for stay in before]


@pytest.mark.asyncio
async def test_replay_notices_a_journal_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    await write(path, Staged(PLAN))
    text = path.read_text()
    path.write_text(text.replace('"kind":"advance"', '"kind":"regress"', 1))
    assert not replay(path).same
    assert main(["replay", str(path)]) == 1
    assert "does not replay" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_the_command_line_replays_compares_and_explains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    await write(path, Staged(PLAN))
    count = len(replay(path).logged)
    assert main(["replay", str(path)]) == 0
    assert f"{count} decisions: replayed exactly" in capsys.readouterr().out
    assert main(["replay", str(path), "--rules", "sequential", "--threshold", "near=.99"]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("near")]
    assert all(line.endswith("no move") for line in rows)
    assert "drawn under the logged directives" in out
    assert main(["explain", str(path)]) == 0
    out = capsys.readouterr().out
    assert "advance   near → middle  (" in out
    assert "by operator: to see it again" in out
    assert f"{count} decisions" in out
    capsys.readouterr()
    for code, flag, value, message in (
        (
            2,
            "--threshold",
            "near=x",
            "curriculum replay: --threshold: expected a number, or STAGE=X, got 'near=x'\n",
        ),
        (2, "--min-episodes", "9.5", "--min-episodes: expected a whole number, or STAGE=X, got '9.5'\n"),
        (1, "--threshold", "2", "error: stage 'near': threshold: expected a number in (0, 1], got 2.0\n"),
    ):
        assert main(["replay", str(path), flag, value]) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.endswith(message)
    for both in (["near=.9", ".5"], [".5", "near=.9"]):
        capsys.readouterr()
        assert main(["replay", str(path), *(arg for value in both for arg in ("--threshold", value))]) == 2
        assert "--threshold: expected one value for all stages, or STAGE=X" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_runs_in_one_journal_are_explained_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    saved = await write(path, Staged(PLAN))
    first = len(saved["decisions"])
    assert main(["explain", str(path)]) == 0
    assert "line " not in capsys.readouterr().out
    await write(path, Staged(PLAN), steps=100, seed=2)
    await write(path, Staged(PLAN), steps=0, state=saved)  # went on, to no decision
    await write(path, Staged(PLAN), steps=10, seed=3, state=saved)
    assert main(["explain", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    begins = [i for i, line in enumerate(lines) if line.startswith("line ")]
    assert lines[0] == "line 1: a run begins"
    assert lines[begins[1]].endswith(": a run begins")
    assert lines[begins[2]].endswith(f": a run goes on after {saved['strategy']['total']} episodes")
    assert len(begins) == 3
    assert sum(line.startswith("after") for line in lines[: begins[1]]) == first


@pytest.mark.asyncio
async def test_sequential_rules_move_later_than_the_reference_on_the_same_episodes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    await write(path, Staged(PLAN))
    first = other_rules(path, {"rules": "sequential"})[0]
    assert first.logged is not None
    assert first.other is None or first.other.total > first.logged.total


LINES = [
    {
        "kind": "run",
        "schema": 1,
        "num_envs": 1,
        "config": Staged(PLAN).config(),
        "state": Staged(PLAN).state_dict(),
    },
    {"kind": "batch", "number": 0, "watermark": 5, "started": [], "ended": []},
]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r":3: not valid JSON"),
        ("[]", r":3: kind: expected one of run, batch"),
        ('{"kind": "guess"}', r":3: kind: expected one of run, batch, .*, got 'guess'"),
        ('{"kind": "batch", "number": 1}', r":3: a batch line needs the key 'watermark'"),
        (
            '{"kind":"batch","number":1,"watermark":1,"started":[[1]],"ended":[]}',
            r":3: started: expected \[env_id",
        ),
        (
            '{"kind":"batch","number":1,"watermark":1,"started":[],"ended":[[1]]}',
            r":3: ended: expected \[env_id",
        ),
        (
            '{"kind":"command","command":"fly","arguments":[],"by":null,"why":null}',
            r":3: command: unknown .* 'fly'",
        ),
        (
            '{"kind":"command","command":"set_stage","arguments":["moon"],"by":null,"why":null}',
            r":3: set_stage: stage: unknown stage 'moon'",
        ),
        ('{"kind":"decision","decision":{}}', r":3: decision: expected kind, stage"),
        ('{"kind":"run","schema":7,"num_envs":1,"config":{},"state":{}}', r":3: schema: expected 1, got 7"),
        (
            '{"kind":"run","schema":1,"num_envs":1,"config":{"strategy":"Other"},"state":{}}',
            r":3: config: only journals of Staged",
        ),
    ],
)
def test_a_broken_journal_names_file_and_line(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in LINES) + line + "\n")
    with pytest.raises(JournalError, match=message):
        replay(path)
    assert main(["replay", str(path)]) == 1
    assert f"error: {path}:3: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: expected a run line, the file is empty"),
        (json.dumps(LINES[1]) + "\n", ":1: expected a run line first, got batch"),
    ],
)
def test_a_journal_begins_with_a_run(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    with pytest.raises(JournalError, match=message):
        list(read_journal(path))


def test_a_journal_that_is_not_there_or_closed(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="nowhere: cannot be read"):
        list(read_journal(tmp_path / "nowhere"))
    journal = Journal(tmp_path / "j")
    journal.close()
    journal.close()
    with pytest.raises(JournalError, match="the journal is closed"):
        journal.write("published", version=1)


def test_a_journal_that_waits_leaves_its_file_alone_until_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"torn')
    Journal(path, wait=True).write("published", version=1)
    assert path.read_text() == '{"torn'
    with Journal(path, wait=True) as journal:
        journal.write("published", version=1)
        journal.begin()
        journal.begin()
        journal.write("published", version=2)
    assert [json.loads(line)["version"] for line in path.read_text().splitlines()] == [1, 2]


def test_the_command_line_is_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user starts it: a real process, its exit codes and streams."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "curriculum", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    (tmp_path / "near").mkdir()
    (tmp_path / "plan.toml").write_text('[[stage]]\nname = "near"\n')
    (tmp_path / "near" / "walk.jsonl").write_text('{"id": "a", "data": {}}\n')
    good = run("check", str(tmp_path))
    assert (good.returncode, good.stderr) == (0, "")
    assert "1 levels in 1 stages" in good.stdout
    bad = run("explain", str(tmp_path / "nowhere"))
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: ")
    assert "Traceback" not in bad.stderr
    assert run("fly").returncode == 2
    (tmp_path / "plan.toml").write_text('[[stage]]\nname = "nähe"\n', encoding="utf-8")
    (tmp_path / "near").rename(tmp_path / "nähe")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    plain = run("check", str(tmp_path))
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout.startswith("n?he ")


def test_the_example_strategy_runs() -> None:
    command = [sys.executable, "examples/custom_strategy.py"]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONPATH": "."}
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    easy, hard, _ = ran.stdout.splitlines()
    assert int(hard.split()[1]) > 5 * int(easy.split()[1])
