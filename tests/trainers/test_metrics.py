"""Every reported number is explained, in its docstring and in the docs; intervals and curves are right."""
# pure + files

from __future__ import annotations

import ast
import dataclasses
import itertools
from pathlib import Path

import pytest

from trainers.feed import Feed
from trainers.metrics import Report, StageReport, Timing, percentile, read_metrics
from trainers.summary import StageEntry, Summary, wilson

ROOT = Path(__file__).parents[2]


def explained(path: Path, name: str) -> set[str]:
    """Fields of a class that are followed by a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (body,) = [node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    found = set()
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            assert isinstance(field.target, ast.Name)
            found.add(field.target.id)
    return found


@pytest.mark.parametrize(
    ("file", "kind"),
    [("metrics", Report), ("metrics", StageReport), ("metrics", Timing), ("summary", Summary), ("ppo", None)],
)
def test_every_reported_number_says_what_it_is(file: str, kind: type | None) -> None:
    from trainers.ppo import UpdateStats

    kind = kind or UpdateStats
    names = {item.name for item in dataclasses.fields(kind)} - {"stage"}
    assert names <= explained(ROOT / "trainers" / f"{file}.py", kind.__name__) | {"stage"}


def test_the_docs_explain_every_number() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for kind in (Report, StageReport, Timing, Summary):
        for item in dataclasses.fields(kind):
            assert f"`{item.name}`" in text, f"{kind.__name__}.{item.name} is not in docs/training.md"


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"update": 2}\n{"upda')
    assert read_metrics(path) == [{"update": 1}, {"update": 2}]


def test_wilson_intervals() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-4)
    assert high == pytest.approx(0.5962, abs=1e-4)
    assert wilson(100, 100)[0] == pytest.approx(0.9630, abs=1e-4)
    assert wilson(100, 100)[1] == 1.0


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 99) == 0.0
    assert percentile([1.0, 2.0, 3.0], 50) == 2.0


def test_stage_entries_are_plain() -> None:
    assert dataclasses.asdict(StageEntry("far", 3, 1)) == {"stage": "far", "env_steps": 3, "update": 1}


@pytest.mark.asyncio
async def test_a_slow_reader_misses_the_oldest_and_delays_nobody() -> None:
    feed: Feed[int] = Feed()
    reader = feed.read()
    feed.put(0)  # nobody reads yet: readers see what comes after them
    first = anext(reader)
    import asyncio

    task = asyncio.ensure_future(first)
    await asyncio.sleep(0)
    for number in range(1, 1001):
        feed.put(number)
    feed.close()
    got = [await task, *[number async for number in reader]]
    assert got == list(range(745, 1001))
