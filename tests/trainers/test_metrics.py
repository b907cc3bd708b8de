"""Every reported number is explained, in its docstring and in the docs; intervals and curves are right."""
# pure + files

from __future__ import annotations

import ast
import dataclasses
import io
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

import curriculum as cu
from tests.trainers.helpers import corridor_job, tiny
from trainers import train
from trainers.config import ConfigError
from trainers.record.folder import RunFolder
from trainers.record.loggers import MetricsFile
from trainers.record.metrics import Report, StageReport, Timing, percentile, read_metrics
from trainers.record.plot import draw
from trainers.record.progress import LivePanel, PlainLines
from trainers.record.report_stream import ReportStream
from trainers.record.summary import StageEntry, Summary, wilson

pytestmark = pytest.mark.alternate_loops

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


def test_metrics_are_thinned_to_each_nth_update_and_the_ends(tmp_path: Path) -> None:
    """In a whole run; a resumed one goes on so, and the journal may do without episodes."""
    config = tiny(tmp_path, name="run", total_steps=64 * 8, metrics_every=3, journal="decisions")
    train(config, job=corridor_job())
    folder = RunFolder(tmp_path / "run")
    assert [line["update"] for line in read_metrics(folder.metrics)] == [1, 3, 6, 8]
    kinds = {record["kind"] for _, record in cu.read_journal(folder.journal)}
    assert "run" in kinds
    assert "batch" not in kinds
    with pytest.raises(ConfigError, match="metrics_every must be at least 1, got 0"):
        tiny(tmp_path, metrics_every=0)


def test_a_long_run_is_read_in_little_memory(tmp_path: Path) -> None:
    """20 MB of metrics: so many lines, evenly spread, the first and the newest among them, whatever the file's size."""
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for update in range(1, 20_004):
            file.write(json.dumps({"update": update, "rest": "x" * 1000}) + "\n")
        file.write('{"update": ')
    tracemalloc.start()
    try:
        lines = read_metrics(path, 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6
    updates = [line["update"] for line in lines]
    assert (updates[0], updates[-1]) == (1, 20_003)
    assert 50 <= len(updates) <= 102
    assert len({b - a for a, b in itertools.pairwise(updates[:-1])}) == 1
    assert [line["update"] for line in read_metrics(path)] == list(range(1, 20_004))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("record/metrics", Report),
        ("record/metrics", StageReport),
        ("record/metrics", Timing),
        ("record/summary", Summary),
        ("learn/ppo", None),
    ],
)
def test_every_reported_number_says_what_it_is(file: str, kind: type | None) -> None:
    from trainers.learn.ppo import UpdateStats

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


def report(name: str, ratio: float = 0.0) -> Report:
    """Of a run with one stage."""
    stage = StageReport(name, 0.5, 10, 20, ratio, 1.0, "")
    timing = Timing(1.0, 100.0, 0.5, 0.5, 0.1, 0.0, 0.0, 1, 1)
    return Report(
        update=1, env_steps=64, episodes=20, aborted=0, env_errors={}, worker_losses=0, stage=name, mixing_ratio=ratio,
        episode_return=None, episode_length=None, valid_rows=60, passes=4, stages=(stage,), timing=timing,
        policy_loss=0.1, value_loss=0.1, entropy=0.1, approx_kl=0.1, clip_fraction=0.1, grad_norm=0.1,
        explained_variance=0.1, learning_rate=0.1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def module_fonts() -> None:
    """matplotlib keeps the files of its fonts open."""
    figure = Figure()
    figure.suptitle("a")
    figure.savefig(io.BytesIO())


def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Report) -> Any:
    """The figure of a run with this one report."""
    figures: list[Any] = []
    save = Figure.savefig

    def watched(figure: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", watched)
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.write(shown)
    draw(RunFolder(tmp_path), tmp_path / "curve.png")
    return figures[0]


@pytest.mark.usefixtures("module_fonts")
def test_a_picture_shows_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between dollars matplotlib reads formulas."""
    figure = drawn(tmp_path, monkeypatch, report("$1 {to} $2_"))
    assert figure.axes[0].get_legend_handles_labels()[1] == [r"\$1 {to} \$2_"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("module_fonts")
def test_a_picture_shows_every_mixing_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(tmp_path, monkeypatch, report("near", 0.9)).axes[1].get_ylim()[1] >= 0.9


@pytest.mark.usefixtures("module_fonts")
def test_where_no_picture_can_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(tmp_path, monkeypatch, report("near"))
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/none/x\.png: cannot be written: No such file"):
        draw(RunFolder(tmp_path), tmp_path / "none" / "x.png")


def test_the_panel_shows_names_as_they_are() -> None:
    """Between brackets rich reads styles."""
    panel = LivePanel()
    panel._title = "[bold]game · seed 0"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(panel._panel(report("[red]near[/]")))
    text = console.export_text()
    assert "▸ [red]near[/]" in text
    assert "[bold]game · seed 0" in text


def test_the_panel_and_the_lines_say_how_many_outcomes_wait_and_for_which_env(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Kind: outcomes that are held back, and nothing says so."""
    shown = report("near")
    stage = dataclasses.replace(shown.stages[0], waiting=47, waiting_for=3)
    shown = dataclasses.replace(shown, stages=(stage,))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(LivePanel()._panel(shown))
    assert "47 for env 3" in console.export_text()
    PlainLines().show(shown)
    assert "47 outcomes wait for env 3" in capsys.readouterr().out
    PlainLines().show(report("near"))
    assert "wait" not in capsys.readouterr().out


@pytest.mark.asyncio
async def test_a_slow_reader_misses_the_oldest_and_delays_nobody() -> None:
    stream = ReportStream()
    reader = stream.read()
    stream.put(report("one"))  # nobody reads yet: readers see what comes after them
    first = anext(reader)
    import asyncio

    task = asyncio.ensure_future(first)
    await asyncio.sleep(0)
    for number in range(1, 1001):
        stream.put(dataclasses.replace(report("one"), update=number))
    stream.close()
    got = [report.update for report in [await task, *[report async for report in reader]]]
    assert got == list(range(745, 1001))
