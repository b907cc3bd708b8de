"""The table of rooms: which files there are, what colour they have, whom they may import."""
# pure: reads the sources with ast

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COLOURS = ("pure", "resource", "async", "edge", "child", "public", "data", "the door")
FORBIDDEN_TO_PURE = {"asyncio", "subprocess", "socket", "select", "signal", "multiprocessing"}

# Third-party packages per top-level package; anything else needs a decision, made here.
MAY_IMPORT: dict[str, set[str]] = {
    "aio_vecenv": {"numpy", "gymnasium", "cloudpickle"},
    "curriculum": {"numpy", "gymnasium"},
    "trainers": {"numpy", "gymnasium", "torch", "tyro", "rich", "aio_vecenv", "curriculum"},
}
# Rooms with a reason to import more.
EXTRA: dict[str, set[str]] = {
    "aio_vecenv/loop.py": {"uvloop"},
    "aio_vecenv/adapters/sb3.py": {"stable_baselines3"},
    "trainers/record/loggers.py": {"tensorboard"},
    "trainers/export.py": {"onnx"},
    "trainers/record/plot.py": {"matplotlib"},
    "trainers/presets/doorkey.py": {"minigrid"},
}

ROOMS: dict[str, set[str]] = {
    "aio_vecenv": {"__init__", "chaos", "errors", "loop", "memory", "vec_env"},
    "aio_vecenv/core": {
        "__init__", "actions", "assignment", "batch", "env_state", "episodes", "factories", "framing", "infos",
        "layout", "limits", "messages", "options", "policy", "pool", "protocol", "report", "spaces", "statistics",
        "updates",
    },
    "aio_vecenv/worker": {"__init__", "env_group", "env_groups", "main", "rows", "vector_group"},
    "aio_vecenv/backends": {"__init__", "base", "inline", "launcher", "process"},
    "aio_vecenv/runtime": {"__init__", "blas", "calls", "env_states", "events", "policies", "publisher", "supervisor"},
    "aio_vecenv/adapters": {"__init__", "driver", "gymnasium", "rows", "sb3", "session"},
    "aio_vecenv/testing": {"__init__", "policies"},
    "curriculum": {
        "__init__", "__main__", "adapters", "coordinator", "curriculum_env", "decision_stream", "directive", "errors",
        "journal", "level_files", "levels", "replay", "rules", "stages", "start_order", "windows",
    },
    "curriculum/strategies": {
        "__init__", "base", "learnability", "learning_progress", "prioritised_replay", "stage_counts", "staged",
        "staged_progress", "staged_state", "verdict", "weighted",
    },
    "trainers": {
        "__init__", "__main__", "cli", "config", "evaluate", "export", "jobs", "loop_monitor", "malloc", "opening",
        "run", "trained", "twin",
    },
    "trainers/collect": {"__init__", "collector", "observations"},
    "trainers/learn": {"__init__", "actions", "learner", "networks", "policy", "ppo", "rollout", "thread", "twins"},
    "trainers/record": {
        "__init__", "checkpoint", "env_errors", "folder", "loggers", "metrics", "outcomes", "plot", "progress",
        "report_stream", "summary",
    },
    "trainers/presets": {"__init__", "doorkey", "frozenlake"},
}  # fmt: skip


def _files() -> list[Path]:
    return [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imports(path: Path) -> set[str]:
    """The absolute modules that a file imports, anywhere in it; relative ones are resolved."""
    found: set[str] = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join((*base, *(node.module or "").split("."))).strip("."))
    return found


def _colour(path: Path) -> str:
    comments = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    return comments[0][2:] if comments else ""


def test_every_file_says_what_it_is_and_has_a_colour() -> None:
    for path in _files():
        source = path.read_text()
        if source.strip():
            assert ast.get_docstring(ast.parse(source)), (
                f"{_name(path)}: the first line says what the file is"
            )
            assert _colour(path).startswith(COLOURS), f"{_name(path)}: {_colour(path)!r} is no colour"


def test_every_file_is_in_the_table() -> None:
    for path in _files():
        folder = path.relative_to(ROOT).parent.as_posix()
        assert folder in ROOMS, f"a new folder {folder}: add it to the table, with a reason"
        assert path.stem in ROOMS[folder], f"a new room {_name(path)}: add it to the table, with a reason"


def test_imports_point_to_producers_only() -> None:
    for path in _files():
        package = path.relative_to(ROOT).parts[0]
        allowed = MAY_IMPORT[package] | EXTRA.get(_name(path), set()) | {package}
        for module in _imports(path):
            top = module.split(".")[0]
            assert top in allowed or top in sys.stdlib_module_names, f"{_name(path)} imports {module}"


def test_consumers_use_only_the_doors() -> None:
    for path in _files():
        package = path.relative_to(ROOT).parts[0]
        for module in _imports(path):
            top, _, inside = module.partition(".")
            if top in MAY_IMPORT and top != package:
                assert not inside, f"{_name(path)} imports {module}: use what {top} exports"


def test_pure_files_touch_no_loop_and_no_process() -> None:
    for path in _files():
        if _colour(path).startswith("pure") and path.name != "errors.py":
            touched = {module.split(".")[0] for module in _imports(path)} & FORBIDDEN_TO_PURE
            assert not touched, f"{_name(path)} is pure and imports {touched}"


def test_the_table_has_no_rooms_that_are_gone() -> None:
    for folder, names in ROOMS.items():
        there = {path.stem for path in (ROOT / folder).glob("*.py")}
        assert names <= there, f"{folder}: {sorted(names - there)}"


def test_every_exported_name_exists() -> None:
    import aio_vecenv
    import curriculum
    import trainers

    for door in (aio_vecenv, curriculum, trainers):
        for name in door.__all__:
            assert getattr(door, name) is not None
        assert sorted(set(door.__all__)) == sorted(door.__all__)
