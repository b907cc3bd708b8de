"""Levels from a list, a function and a directory: numbering, laziness, and errors with file and line."""
# pure + files under tmp_path

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curriculum import Level, LevelError, LevelSet
from curriculum.__main__ import main

PLAN = '[[stage]]\nname = "near"\nthreshold = 0.6\n\n[[stage]]\nname = "far"\n'


def write(root: Path, per_file: int = 3) -> Path:
    root.mkdir(exist_ok=True)
    (root / "plan.toml").write_text(PLAN)
    for stage, generator in (("near", "walk"), ("near", "jump"), ("far", "run")):
        (root / stage).mkdir(exist_ok=True)
        lines = [
            json.dumps({"id": f"{stage}-{generator}-{i}", "data": {"i": i}, "tags": ["t"]})
            for i in range(per_file)
        ]
        (root / stage / f"{generator}.jsonl").write_text("\n".join(lines) + "\n")
    np.savez(root / "far" / "maze.npz", big=np.arange(12).reshape(3, 4), small=np.zeros(2))
    return root


def test_a_directory_is_numbered_by_stage_generator_and_line(tmp_path: Path) -> None:
    levels = LevelSet.from_directory(write(tmp_path / "levels"))
    assert levels.counts() == {"near": {"jump": 3, "walk": 3}, "far": {"maze": 2, "run": 3}}
    assert len(levels) == 11
    assert levels[0] == Level("near", "near-jump-0", {"i": 0}, "jump", ("t",))
    assert levels.index("far-run-2") == 10
    assert list(levels.ids())[6] == "big"
    assert np.array_equal(levels[levels.index("big")].data, np.arange(12).reshape(3, 4))
    assert levels.of_stage("far") == range(6, 11)
    assert levels.of_generator("near", "walk") == range(3, 6)
    assert levels.place(7) == ("far", "maze")
    assert levels.plan is not None
    assert levels.plan.names == ("near", "far")


def test_c11_a_directory_travels_as_its_path_and_is_read_level_by_level(tmp_path: Path) -> None:
    small, large = write(tmp_path / "a", 3), write(tmp_path / "b", 3000)
    sizes = [len(pickle.dumps(LevelSet.from_directory(root))) for root in (small, large)]
    assert sizes[1] < sizes[0] + 64
    assert sizes[1] < 1024
    levels = LevelSet.from_directory(large, cache=4)
    there = pickle.loads(pickle.dumps(levels))
    assert there.counts() == levels.counts()
    assert there[5000] == levels[5000]
    for number in range(100):
        there[number]
    assert list(there._cache) == [96, 97, 98, 99]


def _edited(root: Path) -> None:
    file = root / "near/walk.jsonl"
    file.write_text(file.read_text().replace('{"i": 0}', '{"i": 9}'))


def _recast(root: Path) -> None:
    np.savez(root / "far/maze.npz", big=np.arange(1, 13).reshape(3, 4), small=np.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "near/walk.jsonl").write_text(""),
            r"walk\.jsonl: changed after .* bytes then, 0 now",
        ),
        (_edited, r"walk\.jsonl: changed after it was checked \(as long as then, with other contents"),
        (_recast, r"maze\.npz: changed after it was checked \(as long as then"),
        (
            lambda root: (root / "near/walk.jsonl").unlink(),
            r"levels: changed after it was checked \(near/walk\.jsonl then, far/maze\.npz now",
        ),
        (
            lambda root: (root / "far/zoo.jsonl").write_text("{}"),
            r"changed .* \(no more files then, far/zoo\.jsonl now",
        ),
    ],
)
def test_a_file_that_changed_after_it_was_checked_is_refused_by_the_worker(
    tmp_path: Path, change: Any, message: str
) -> None:
    levels = LevelSet.from_directory(write(tmp_path / "levels"))
    frozen = pickle.dumps(levels)
    change(tmp_path / "levels")
    with pytest.raises(LevelError, match=message):
        pickle.loads(frozen)


def _jsonl(text: str) -> Any:
    return lambda root: (root / "near/walk.jsonl").write_text(text)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pickle-was-loaded",))


def _objects(root: Path) -> None:
    np.savez(root / "far/maze.npz", evil=np.array([_Payload()], dtype=object), allow_pickle=True)


def _damaged(save: Any) -> Any:
    """Every tenth byte of a large array's file is another one; its directory at the end is whole."""

    def spoil(root: Path) -> None:
        save(root / "far/maze.npz", big=np.arange(5000))
        whole = bytearray((root / "far/maze.npz").read_bytes())
        for i in range(200, len(whole) - 200, 10):
            whole[i] ^= 0x55
        (root / "far/maze.npz").write_bytes(whole)

    return spoil


def _folder(name: str) -> Any:
    return lambda root: (root / name).mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_jsonl('{"id": "x", "data": {}}\n{"id": "y", \n'), r"near/walk.jsonl:2: not valid JSON"),
        (_jsonl('\n{"id": "x"}\n'), r"near/walk.jsonl:2: data: expected an object, got None"),
        (_jsonl('{"id": 3, "data": {}}\n'), r"walk.jsonl:1: id: expected a non-empty string, got 3"),
        (_jsonl('{"id": "x", "data": {}, "tags": "t"}\n'), r"walk.jsonl:1: tags: expected a list of strings"),
        (
            _jsonl('{"id": "x", "data": {}, "date": 3}\n'),
            r"walk.jsonl:1: unknown key 'date'; expected id, data, tags",
        ),
        (_jsonl("[]\n"), r"walk.jsonl:1: expected an object"),
        (
            _jsonl('{"id": "far-run-1", "data": {}}\n'),
            r"far/run.jsonl:2: id 'far-run-1' occurs twice, first in .*walk",
        ),
        (_jsonl(""), r"near/walk\.jsonl: stage 'near': generator 'walk' has no levels"),
        (lambda root: (root / "middle").mkdir(), "middle: unknown stage 'middle'; plan.toml has near, far"),
        (
            lambda root: (root / "plan.toml").write_text(PLAN.replace("far", "near")),
            r"plan.toml:6: .*occurs twice",
        ),
        (
            lambda root: (root / "plan.toml").write_text(PLAN + '[[stage]]\nname="x"\n'),
            r"levels/x: stage 'x' has no levels",
        ),
        (
            lambda root: (root / "near/a.pkl").write_bytes(b"x"),
            r"a.pkl: expected a .jsonl or .npz file; .* never",
        ),
        (lambda root: (root / "near/walk.npz").write_bytes(b"x"), r"generator 'walk' already has a file"),
        (lambda root: (root / "far/maze.npz").write_bytes(b"x"), r"maze.npz: not an .npz file"),
        (_damaged(np.savez_compressed), r"far/maze\.npz: damaged: "),
        (_folder("near/a.jsonl"), r"near/a\.jsonl: expected a file"),
        (_folder("near/a.npz"), r"near/a\.npz: expected a file"),
        (_objects, r"maze.npz: 'evil': expected numbers, got an object array, which only pickle"),
    ],
)
def test_a_broken_directory_is_an_error_with_file_and_line(
    tmp_path: Path,
    spoil: Any,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path / "levels")
    spoil(root)
    with (
        pytest.raises(LevelError, match=message) if "plan.toml:" not in message else pytest.raises(ValueError)
    ):
        LevelSet.from_directory(root)
    assert main(["check", str(root)]) == 1  # and the command line says the same, in one line
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("pickle-was-loaded").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_that_was_damaged_after_it_was_checked_is_named(tmp_path: Path, save: Any) -> None:
    root = write(tmp_path / "levels")
    save(root / "far/maze.npz", big=np.arange(5000))
    levels = LevelSet.from_directory(root)
    _damaged(save)(root)
    with pytest.raises(LevelError, match=r"far/maze\.npz: 'big': cannot be read"):
        levels[levels.index("big")]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_check_reads_every_level(tmp_path: Path, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path / "levels")
    _damaged(save)(root)
    assert main(["check", str(root)]) == 1
    assert "far/maze.npz: " in capsys.readouterr().err


def test_check_counts_per_stage_and_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write(tmp_path / "levels"))]) == 0
    out = capsys.readouterr().out.split()
    for name, count in (("near", "6"), ("walk", "3"), ("maze", "2"), ("far", "5")):
        assert out[out.index(name) + 1] == count


def test_lists_and_functions() -> None:
    levels = LevelSet([Level("b", "x"), Level("a", "y", generator="g"), Level("b", "z")], stages=["a", "b"])
    assert list(levels.ids()) == ["y", "x", "z"]
    made = LevelSet.from_function(lambda stage, i: (stage, i), ["a", "b"])
    assert made[2**31 + 5] == Level("b", "b-5", ("b", 5))
    assert len(made) == 2**32


MAPPING: Any = {"a": 3}


def make(stage: str, i: int) -> int:
    return i


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LevelSet([]), "at least one level"),
        (lambda: LevelSet([Level("a", "x"), Level("b", "x")]), "id 'x' occurs twice"),
        (
            lambda: LevelSet([Level("a", 3)]),  # type: ignore[arg-type]
            "level 3 of stage 'a': id: expected a non-empty string, got 3",
        ),
        (lambda: LevelSet.from_function(make, ["a"], count=0), "count: expected a whole number"),
        (lambda: LevelSet([Level("c", "x")], stages=["a"]), "level 'x': unknown stage 'c'; known are a"),
        (lambda: LevelSet([Level("a", "x")], stages=["a", "b"]), "stage 'b' has no levels"),
        (
            lambda: LevelSet([Level("a", "x")]).of_stage("b"),
            "no levels for stage 'b'; there are levels for a",
        ),
        (lambda: LevelSet([Level("a", "x")]).index("y"), "unknown level 'y'"),
        (
            lambda: LevelSet.from_function(make, MAPPING),
            r"stages: expected a sequence of names, got {'a': 3}",
        ),
        (lambda: LevelSet.from_function(make, "near"), "stages: expected a sequence of names, got 'near'"),
        (lambda: LevelSet.from_directory("/nowhere"), "/nowhere: not a directory of levels"),
    ],
)
def test_c08_a_level_that_is_not_there_is_an_error_that_names_it(build: Any, message: str) -> None:
    with pytest.raises(LevelError, match=message):
        build()
