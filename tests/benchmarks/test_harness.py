"""The harness's pure parts: ratios, percentiles, tables; and that nobody drops out unseen."""
# pure, but for two tests: one starts a contender, one measures a little

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import psutil
import pytest

from benchmarks import latency
from benchmarks.contenders import CONTENDERS
from benchmarks.harness import (
    Failed,
    Floor,
    Options,
    Report,
    Series,
    Table,
    Turn,
    best,
    check_workloads,
    figure,
    interleave,
    percentile,
    ratio,
    series_table,
)
from benchmarks.throughput import CONTENDERS_OF, Name, floors
from benchmarks.waking import after_a_pause, pieces, round_trips
from benchmarks.workloads import WORKLOADS, HeavyTailEnv, ImageEnv, NullEnv, find


def series(name: str, *values: float, status: str = "ok", note: str = "") -> Series:
    return Series("w", name, name.upper(), "steps/s", list(values), status, note)


def test_a_ratio_is_the_median_of_the_rounds_that_both_took_part_in() -> None:
    # round by round 2, 3, 10; the medians alone would say 30 / 10
    assert ratio(series("a", 20, 30, 100), series("b", 10, 10, 10)) == 3
    assert ratio(series("a", 20, 30, 100), series("b", 10)) == 2
    assert ratio(series("a"), series("b", 10)) is None
    assert ratio(None, series("b", 10)) is None


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)])
def test_percentile(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == expected


def test_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (0.04567, "0.0457"), (0.4567, "0.457"), (4.567, "4.57"), (45.67, "45.7"),
     (456.7, "457"), (4567.8, "4,568"), (8.0, "8")],
)  # fmt: skip
def test_three_digits_say_enough(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_floors() -> None:
    assert Floor("speed", 2.0, 2.0).met is True
    assert Floor("speed", 2.0, 1.99).met is False
    assert Floor("memory", 60, 41, at_most=True).met is True
    assert Floor("memory", 60, 61, at_most=True).met is False
    assert Floor("speed", 2.0, None).met is None
    assert Floor("speed", 2.0, None).row() == ["speed", "≥ 2", "–", "not measured"]


def test_best_is_the_highest_median_of_those_that_ran() -> None:
    assert best([series("a", 1, 9), series("b", 6), series("c", status="missing")]) == series("b", 6)
    assert best([series("c", status="missing")]) is None


def test_who_did_not_run_is_in_the_table_with_the_reason() -> None:
    table = series_table(
        "T", [series("limit", 100), series("ours", 50), series("x", status="crashed", note="why")]
    )
    assert table.rows[0][:2] == ["LIMIT", "100"]
    assert table.rows[1][3:5] == ["0.500", "1"]
    assert table.rows[2][:2] == ["X", "*crashed*: why"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "| X | *crashed*: why |" in table.markdown()


def test_turns_are_interleaved_and_a_failure_ends_only_its_own() -> None:
    order: list[tuple[str, int]] = []

    def turn(name: str, rounds: int | None = None, fails_at: int | None = None) -> Turn:
        def take(number: int) -> float:
            order.append((name, number))
            if number == fails_at:
                raise Failed("crashed", "died")
            return float(number)

        return Turn(series(name), take, rounds=rounds)

    turns = [turn("a"), turn("b", fails_at=1), turn("slow", rounds=1)]
    interleave(turns, 3, lambda line: None)
    assert order == [("a", 0), ("b", 0), ("slow", 0), ("b", 1), ("a", 1), ("a", 2)]
    assert [t.series.values for t in turns] == [[0, 1, 2], [0], [0]]
    assert (turns[1].series.status, turns[1].series.note) == ("crashed", "died")


def test_a_report_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("b", {"json": tmp_path})
    report.series = [series("a", 3, 1, 2), series("m", status="missing", note="no module")]
    report.tables = [Table("T", ["x"], [["1"]])]
    report.floors = [Floor("f", 1, 2)]
    report.finish(Options(json=tmp_path / "deep" / "b.json"))
    found = json.loads((tmp_path / "deep" / "b.json").read_text())
    assert [(one["median"], one["min"], one["max"], one["status"]) for one in found["series"]] == [
        (2, 1, 3, "ok"),
        (None, None, None, "missing"),
    ]
    assert found["floors"][0]["met"] is True
    assert "### T" in capsys.readouterr().out


def test_every_workload_has_known_contenders_and_the_limit() -> None:
    assert set(CONTENDERS_OF) == set(WORKLOADS)
    for names in CONTENDERS_OF.values():
        assert names[0] == "limit"
        assert set(names) <= set(CONTENDERS)


def test_floors_that_cannot_be_measured_are_listed_all_the_same() -> None:
    rows = floors({"minigrid-32": [series("ours", 1)]}, {})
    assert [row.measured for row in rows] == [None, None, None]


def test_workloads_by_name() -> None:
    assert find("null-5").num_workers == 5
    assert (find("cartpole-64").num_envs, find("cartpole-64").name) == (64, "cartpole-64")
    assert find("tail-32").actions().shape == (1024, 32)
    assert get_args(Name) == (*WORKLOADS, "null")


@pytest.mark.parametrize("name", ["typo", "null", "tail-3", "cartpole-x", "cartpole-0"])
def test_an_unknown_workload_ends_it_in_one_line(name: str) -> None:
    with pytest.raises(SystemExit, match=f"no workload '{name}': there are cartpole-32"):
        check_workloads(["null-2", name])


def test_whom_nobody_could_open_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, name: str) -> None:
            self.ended = False

        def ask(self, what: str, **_options: object) -> object:
            raise Failed("crashed", f"no {what}")

        def end(self) -> None:
            self.ended = True

    monkeypatch.setattr(latency, "Process", Broken)
    found, table, promised = latency.publishing(latency.Arguments(workloads=("null-2",), payload_bytes=(64,)))
    assert [(one.contender, one.status, one.note) for one in found] == [
        (name, "crashed", "no open") for name in ("ours-quiet", "ours-clock", "ours-64")
    ]
    assert [row[1] for row in table.rows] == ["*crashed*: no open"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [floor.measured for floor in promised] == [None, None, None]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_however_a_benchmark_ends_its_contenders_end_too(number: signal.Signals, code: int) -> None:
    # "limit" starts forks that do not see its end
    options = "--workloads cartpole-32 --contenders limit ours --rounds 100000 --seconds 0.01"
    benchmark = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.throughput", *options.split()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert benchmark.stderr is not None
        assert benchmark.stderr.readline(), "a round was measured"
        below = psutil.Process(benchmark.pid).children(recursive=True)
        assert below
        benchmark.send_signal(number)
        benchmark.send_signal(signal.SIGTERM)  # as `make bench` does, on top of a terminal's Ctrl-C
        tables, progress = benchmark.communicate(timeout=60)
    finally:
        benchmark.kill()
    assert (benchmark.returncode, tables) == (code, "")
    assert "Traceback" not in progress
    gone, alive = psutil.wait_procs(below, timeout=30)
    assert not alive, gone


@pytest.mark.parametrize("make", [NullEnv, ImageEnv, HeavyTailEnv])
def test_envs_keep_to_their_spaces(make: Callable[[], NullEnv]) -> None:
    env = make()
    obs, info = env.reset(seed=1)
    assert env.observation_space.contains(obs)
    assert info == {}
    for _ in range(3):
        obs, reward, terminated, truncated, info = env.step(0)
        assert env.observation_space.contains(obs)
    assert (reward, terminated, truncated) == (1.0, False, False)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins processes to CPUs")
def test_waking_measures_and_leaves_everything_as_it_was() -> None:
    allowed = os.sched_getaffinity(0)
    for cpus in (None, (min(allowed), min(allowed))):
        trip_s, send_s = round_trips(5, cpus)
        assert len(trip_s) == len(send_s) == 5
        assert all(0 < send < trip for send, trip in zip(send_s, trip_s))
        assert os.sched_getaffinity(0) == allowed
    for work in pieces().values():
        assert min(after_a_pause(work, 3, 1e-6)) > 0
