"""The table of rooms: which files there are, what colour they have, whom they may import."""
# pure: reads the sources with ast

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
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
    "aio_vecenv/fleet/node_host.py": {"ray"},
    "aio_vecenv/fleet/ray_transport.py": {"ray"},
    "trainers/record/loggers.py": {"tensorboard", "wandb"},
    "trainers/export.py": {"onnx"},
    "trainers/video.py": {"av"},
    "trainers/record/plot.py": {"matplotlib"},
    "trainers/presets/atari.py": {"ale_py"},
    "trainers/presets/doorkey.py": {"minigrid"},
    "trainers/service/access.py": {"starlette"},
    "trainers/service/app.py": {"starlette"},
    "trainers/service/frames.py": {"starlette"},
    "trainers/service/prometheus.py": {"prometheus_client"},
    "trainers/service/server.py": {"uvicorn"},
}

ROOMS: dict[str, set[str]] = {
    "aio_vecenv": {"__init__", "blas", "chaos", "deadline", "errors", "loop", "memory", "source", "vec_env"},
    "aio_vecenv/core": {
        "__init__", "actions", "assembly", "assignment", "batch", "chunk", "chunks", "command", "env_state", "episodes",
        "factories", "framing", "infos", "layout", "limits", "log_levels", "messages", "options", "policy", "pool",
        "protocol", "report", "spaces", "statistics", "updates", "waiting",
    },
    "aio_vecenv/worker": {"__init__", "env_group", "env_groups", "lifeline", "main", "rows", "unroll", "vector_group"},
    "aio_vecenv/backends": {"__init__", "base", "inline", "launcher", "process"},
    "aio_vecenv/runtime": {
        "__init__", "calls", "collector", "env_states", "events", "opening", "policies", "publisher", "renewal",
        "supervisor", "unrolls",
    },
    "aio_vecenv/adapters": {"__init__", "driver", "gymnasium", "rows", "sb3", "session"},
    "aio_vecenv/fleet": {
        "__init__", "columns", "episodes", "host_state", "hosts", "messages", "node_host", "opening", "ray_fleet",
        "ray_transport", "state", "statistics", "transport",
    },
    "aio_vecenv/testing": {"__init__", "contract", "envs", "faults", "fleet", "policies", "scripted"},
    "curriculum": {
        "__init__", "__main__", "adapters", "coordinator", "curriculum_env", "decision_stream", "directive", "errors",
        "journal", "level_files", "levels", "replay", "rules", "stages", "start_order", "windows",
    },
    "curriculum/strategies": {
        "__init__", "base", "ladder", "learnability", "learning_progress", "prioritised_replay", "stage_counts",
        "staged", "staged_progress", "staged_state", "verdict", "weighted",
    },
    "trainers": {
        "__init__", "__main__", "callbacks", "cli", "config", "endings", "evaluate", "evaluation", "export",
        "foreground", "jobs", "loop_monitor", "malloc", "names", "opening", "run", "trained", "twin", "video",
    },
    "trainers/collect": {"__init__", "collector", "observations", "unroller"},
    "trainers/learn": {
        "__init__", "actions", "defaults", "encoders", "learner", "masks", "meaning", "moments", "networks",
        "own_networks", "policy", "ppo", "rollout", "thread", "twins",
    },
    "trainers/record": {
        "__init__", "checkpoint", "complaints", "env_errors", "estimates", "folder", "loggers", "metrics", "outcomes",
        "pictures", "plot", "progress", "report_stream", "seeds", "summary",
    },
    "trainers/presets": {
        "__init__", "atari", "doorkey", "doorkey16", "frozenlake", "maze_levels", "mazes", "pendulum",
    },
    "trainers/service": {
        "__init__", "access", "app", "commands", "curves", "frames", "live", "prometheus", "server", "snapshot",
        "stream",
    },
}  # fmt: skip


# Which folders, or single modules, a folder's files may import beside their own folder: at the top of a file, in a
# function, or for the type checker alone. Doors (`__init__`) re-export and are not held to it.
FOLDERS: dict[str, set[str]] = {
    "aio_vecenv": {
        "aio_vecenv/adapters", "aio_vecenv/backends", "aio_vecenv/core", "aio_vecenv/fleet", "aio_vecenv/runtime",
        "aio_vecenv/testing",
    },
    "aio_vecenv/core": {"aio_vecenv.errors"},
    "aio_vecenv/worker": {"aio_vecenv.errors", "aio_vecenv.memory", "aio_vecenv/core"},
    "aio_vecenv/backends": {
        "aio_vecenv.blas", "aio_vecenv.deadline", "aio_vecenv.errors", "aio_vecenv.memory", "aio_vecenv/core",
        "aio_vecenv/worker",
    },
    "aio_vecenv/runtime": {
        "aio_vecenv.blas", "aio_vecenv.deadline", "aio_vecenv.errors", "aio_vecenv.memory", "aio_vecenv/core",
        "aio_vecenv.backends.base",
    },
    "aio_vecenv/adapters": {
        "aio_vecenv.errors", "aio_vecenv.vec_env", "aio_vecenv/core", "aio_vecenv/runtime", "aio_vecenv.backends.base",
    },
    "aio_vecenv/fleet": {
        "aio_vecenv.deadline", "aio_vecenv.errors", "aio_vecenv.vec_env", "aio_vecenv/core", "aio_vecenv/runtime",
    },
    "aio_vecenv/testing": {
        "aio_vecenv.errors", "aio_vecenv.vec_env", "aio_vecenv/backends", "aio_vecenv/core", "aio_vecenv/fleet",
    },
    "curriculum": {"curriculum/strategies"},
    "curriculum/strategies": {"curriculum"},
    "trainers": {"trainers/collect", "trainers/learn", "trainers/presets", "trainers/record", "trainers/service"},
    "trainers/collect": {"trainers.config", "trainers/learn"},
    "trainers/learn": {"trainers.config", "trainers.names", "trainers.twin", "trainers.record.checkpoint"},
    "trainers/record": {
        "trainers.config", "trainers.names", "trainers.run", "trainers.learn.masks", "trainers.learn.ppo",
        "trainers.learn.thread",
    },
    "trainers/presets": {"trainers.config"},
    "trainers/service": {
        "trainers.config", "trainers.run", "trainers.record.metrics", "trainers.record.pictures",
    },
}  # fmt: skip
# Files that may import of their own package inside a function: they decide at run time what is needed.
LAZY = {
    "aio_vecenv/fleet/ray_fleet.py",
    "aio_vecenv/vec_env.py",
    "aio_vecenv/runtime/opening.py",
    "trainers/cli.py",
    "trainers/foreground.py",
    "trainers/service/app.py",
}


@cache
def _files() -> list[Path]:
    return [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _imports(path: Path) -> set[str]:
    """The absolute modules that a file imports, anywhere in it; relative ones are resolved."""
    return {module for module, _ in _import_statements(path)}


@cache
def _import_statements(path: Path) -> tuple[tuple[str, bool], ...]:
    """Each imported module, absolute, and whether a function imports it."""
    package = path.relative_to(ROOT).parent.parts

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, in_function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join((*base, *(child.module or "").split("."))).strip(".")
                for alias in child.names:
                    name = f"{module}.{alias.name}"
                    yield (name if name in _modules() else module), in_function
            else:
                yield from visit(
                    child, in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                )

    return tuple(visit(ast.parse(path.read_text()), False))


@cache
def _modules() -> dict[str, Path]:
    """Every module of the project by its absolute name."""
    return {
        _name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in _files()
    }


@cache
def _own_imports(module: str) -> frozenset[str]:
    """The modules of the project that a module imports, doors of other packages aside."""
    return frozenset(name for name in _imports(_modules()[module]) if name in _modules() and name != module)


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


def test_folders_import_only_the_folders_that_they_may() -> None:
    for module, path in _modules().items():
        folder = path.relative_to(ROOT).parent.as_posix()
        if path.name == "__init__.py":
            continue
        for name in _own_imports(module):
            target = _modules()[name].relative_to(ROOT).parent.as_posix()
            if name.split(".")[0] == module.split(".")[0] and target != folder:
                assert FOLDERS.get(folder, set()) & {target, name}, (
                    f"{_name(path)} imports {name}: its folder may not"
                )


def test_no_circle_of_imports() -> None:
    """Type checkers' imports count: a circle that only they see is still two files that cannot be read apart."""
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for name in _own_imports(module):
                if name not in MAY_IMPORT:  # a door is whoever imports it from outside
                    walk(name, (*path, module))
            done.add(module)

    for module in _modules():
        if module not in MAY_IMPORT:
            walk(module, ())


def test_functions_import_of_their_own_package_only_where_they_choose() -> None:
    for module, path in _modules().items():
        if path.name == "__init__.py" or _name(path) in LAZY:
            continue
        for name, in_function in _import_statements(path):
            own = name.split(".")[0] == module.split(".")[0] and name in _modules()
            assert not (in_function and own), f"{_name(path)} imports {name} inside a function"


def test_pure_files_touch_no_loop_and_no_process() -> None:
    """Nor does what they import, however far down."""

    def reached(module: str, seen: set[str]) -> set[str]:
        if module not in seen and module not in MAY_IMPORT:
            seen.add(module)
            for name in _own_imports(module):
                reached(name, seen)
        return seen

    for module, path in _modules().items():
        if not _colour(path).startswith("pure"):
            continue
        for name in reached(module, set()):
            other = _modules()[name]
            if other.name != "errors.py":  # it derives from multiprocessing's TimeoutError
                touched = {each.split(".")[0] for each in _imports(other)} & FORBIDDEN_TO_PURE
                assert not touched, (
                    f"{_name(path)} is pure and reaches {_name(other)}, which imports {touched}"
                )
                assert not _colour(other).startswith(("async", "edge")), (
                    f"{_name(path)} is pure and reaches {_name(other)}, which is not"
                )


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
