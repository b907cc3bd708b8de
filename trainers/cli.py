"""The command line: train, eval, plot, export, record, presets. Its arguments are the config's dataclasses."""
# edge: argv, signals, the terminal, exit codes: 0 done, 1 error, 2 usage; a signal ends it as signals do

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from trainers.config import ConfigError, TrainConfig
from trainers.endings import die_by, message
from trainers.presets import DEFAULT, NAMES, load_preset
from trainers.record.folder import RunFolder, load_config
from trainers.record.seeds import SeedRuns, parse_seeds

__all__ = ["main"]

ABOUT = "Train on a moving curriculum, and look at what came of it."
OPTIONAL_FLAGS = ("ppo.normalise-rewards", "network.normalise-obs")
Flat = tyro.conf.arg(name="")  # its fields are arguments of their own


@dataclass(frozen=True)
class Train:
    """Train: a preset (the default: frozenlake), your own env (--env, --plan, --levels), or go on with a run."""

    settings: Annotated[TrainConfig, Flat]
    config: Path | None = None
    """Settings from a TOML file, such as a run folder's config.toml; arguments beside it win. Not with --resume."""
    resume: Path | None = None
    """Go on with this run folder, or folder of several seeds, under its own settings; arguments beside it win."""
    seeds: str | None = None
    """One run per seed, one after another, in one folder: 0-4, or 0,3,7. Ends with a table and a curve over all."""
    serve: bool = False
    """Serve a page on which one watches and steers the run, and print its link (extra `service`)."""
    serve_host: str = "127.0.0.1"
    """Where the page listens. Anything but this machine's own loopback lets others who have the link reach it, over
    plain HTTP; 0.0.0.0: every address of this machine."""
    serve_port: int = 8765
    """Its port; 0: any that is free."""
    render: bool = False
    """Make envs that draw themselves, so that one can be watched on the page."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Eval:
    """Success rate of a run's newest checkpoint on every stage: frozen weights, equal episodes, intervals."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or a checkpoint file in one."""
    episodes: int = 100
    """Episodes per stage, rounded up to the same number for every env."""
    greedy: bool = False
    """Take the most probable action instead of sampling."""
    seed: int = 0
    """Of the episodes played."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Plot:
    """Draw a run: success per stage, stage timeline, mixing ratio, return, steps/s (extra `plots`)."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or folder of several seeds."""
    out: Path | None = None
    """The PNG to write; None: curve.png in the run folder."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Export:
    """Write a run's policy as one file that plays without torch: policy.npz (numpy) or policy.onnx (extra `onnx`)."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or a checkpoint file in one."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write; its ending says which kind."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Record:
    """Write a video of a run's policy (extra `video`)."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, or a checkpoint file in one."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write, such as out.mp4."""
    stage: str | None = None
    """The stage to play; None: the last one."""
    episodes: int = 1
    """How many, one after another."""
    greedy: bool = False
    """Take the most probable action instead of sampling."""
    seed: int = 0
    """Of the episodes played."""
    fps: int | None = None
    """Frames per second; None: as the env says, else 30."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Presets:
    """List the presets."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class _Source:
    """Where the defaults of `train` come from; read before the rest."""

    preset: str | None = None
    env: str | None = None
    config: Path | None = None
    resume: Path | None = None


Command = Train | Eval | Plot | Export | Record | Presets


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Usage errors end in `SystemExit(2)`."""
    args = list(sys.argv[1:] if argv is None else argv)
    _load_ours()
    if (here := os.getcwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # --env my_game.envs:make is found where one stands, as with python -m
    if isinstance(sys.stdout, io.TextIOWrapper):  # an encoding that lacks our letters ends nothing
        sys.stdout.reconfigure(errors="replace")
    try:
        command = _parse(args)
        return _COMMANDS[type(command)](command)
    except KeyboardInterrupt:
        die_by(signal.SIGINT)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if "--debug" in args:
            traceback.print_exc()
        else:
            print(f"error: {message(error)}", file=sys.stderr)
        return 1


def _load_ours() -> None:
    """Load the two packages beside this one, now: a curriculum.py in the user's folder would be found before ours."""
    root = str(Path(__file__).parents[1])
    sys.path.insert(0, root)
    try:
        for name in ("aio_vecenv", "curriculum"):
            importlib.import_module(name)
    finally:
        sys.path.remove(root)


def _parse(args: list[str]) -> Command:
    default = Train(settings=TrainConfig())
    if args and args[0] == "train":
        source = _source(args[1:])
        default = Train(_settings(source), config=source.config, resume=source.resume)
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", default=default)]
        | Annotated[Eval, tyro.conf.subcommand("eval")]
        | Annotated[Plot, tyro.conf.subcommand("plot")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Record, tyro.conf.subcommand("record")]
        | Annotated[Presets, tyro.conf.subcommand("presets")]
    )
    try:
        parsed: Command = _plainly(
            lambda: tyro.cli(
                commands, prog="aio-vecenv", args=_spelt_out(args), description=ABOUT, registry=_TABLES
            )
        )
        if isinstance(parsed, Train) and parsed.config is not None and parsed.resume is not None:
            raise ConfigError(
                "--resume and --config: a run has settings of its own; change them by arguments"
            )
        if isinstance(parsed, Train):
            _check_place(parsed)
            _check_seeds(parsed, args)
    except ConfigError as error:  # a value that cannot be, whatever its type
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return parsed


def _plainly(parse: Callable[[], Any]) -> Any:
    """What `parse` gives. A `ConfigError` of nested settings comes out as it was raised: tyro prints it under a name of
    its own making, and exits; what it says of anything else is left to it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as left:
        why: BaseException | None = left
        while why is not None and not isinstance(why, ConfigError):
            why = why.__context__
        if why is not None:
            said.truncate(0)
            raise why from None
        raise
    finally:
        sys.stderr.write(said.getvalue())


def _check_place(command: Train) -> None:
    """Raise `ConfigError` for another place of a run that has one."""
    if command.resume is None:
        return
    before = _settings(_Source(resume=command.resume))
    for name in ("runs", "name"):
        if getattr(command.settings, name) != getattr(before, name):
            raise ConfigError(f"--{name} is for a run that begins: {command.resume} stays where it is")


def _check_seeds(command: Train, args: list[str]) -> None:
    """Raise `ConfigError` for what cannot be done with several seeds."""
    if command.seeds is not None:
        parse_seeds(command.seeds)
        if command.resume is not None:
            raise ConfigError(
                "--seeds and --resume: --seeds begins new runs; a folder of them is gone on with as it is"
            )
    elif command.resume is None or not SeedRuns.holds(command.resume):
        return
    if any(arg == "--seed" or arg.startswith("--seed=") for arg in args):
        raise ConfigError("--seed beside several seeds: each run has one of them")
    if command.serve:
        raise ConfigError("--serve shows one run, not several seeds")


def _spelt_out(args: list[str]) -> list[str]:
    """Settings that are on, off or chosen by the spaces take a value; on and off are also said as of other settings:
    `--network.normalise-obs` and `--network.no-normalise-obs`. `--fleet 4` says how many hosts; `--network NAME` is
    `--network.factory NAME`."""
    for table in ("--env-kwargs", "--strategy-options"):  # the last one would win
        if sum(arg.partition("=")[0].replace("_", "-") == table for arg in args) > 1:
            raise ConfigError(f"{table} is said twice: say all its NAME=VALUE after one")
    args = [
        arg.replace("--network", "--network.factory", 1) if arg.split("=")[0] == "--network" else arg
        for arg in args
    ]
    flags = {f"--{name}": [f"--{name}", "True"] for name in OPTIONAL_FLAGS}
    flags |= {f"--{name.replace('.', '.no-')}": [f"--{name}", "False"] for name in OPTIONAL_FLAGS}
    spelt: list[str] = []
    for arg, following in zip(args, [*args[1:], "--"]):
        bare = arg.replace("_", "-")
        valued = bare in flags and ".no-" not in bare and following in ("True", "False", "None")
        if bare.partition("=")[0] == "--fleet":
            arg = bare.replace("--fleet", "--fleet.hosts", 1)
        spelt += flags[bare] if bare in flags and not valued else [arg]
    return spelt


_TABLES = tyro.constructors.ConstructorRegistry()


@_TABLES.primitive_rule
def _table(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Tables are written NAME=VALUE …, each name once; a value is one of TOML's or Python's, else text."""
    if info.type != dict[str, Any]:
        return None

    def read(words: list[str]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        if not words:
            raise ValueError("expected NAME=VALUE, got nothing")
        for word in words:
            name, equals, text = word.partition("=")
            if not equals or not name:
                raise ValueError(f"expected NAME=VALUE, got {word!r}")
            if name in table:
                raise ValueError(f"{name!r} is said twice")
            table[name] = _value(text)
        return table

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda table: [f"{name}={_written(value)}" for name, value in table.items()],
    )


def _value(text: str) -> Any:
    """What a word means: a value of TOML's (true, 1e-3, [1, 2]), else a literal of Python's (True, None, .3), else
    text. So are dates, which settings have none of."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        try:
            with warnings.catch_warnings(action="ignore"):  # of what only looks like Python
                value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text
    return value if isinstance(value, (str, bool, int, float, list, tuple, dict, type(None))) else text


def _written(value: Any) -> str:
    """A word that means `value`."""
    return value if isinstance(value, str) and _value(value) == value else repr(value)


def _source(args: list[str]) -> _Source:
    """The four arguments that decide the others' defaults. They are checked when everything is parsed."""
    found: dict[str, Any] = {}
    for i, arg in enumerate(args):
        name, equals, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in ("preset", "env", "config", "resume"):
            if not equals and i + 1 < len(args) and not args[i + 1].startswith("-"):
                value = args[i + 1]
            if value and value != "None":
                found[name] = Path(value) if name in ("config", "resume") else value
    return _Source(**found)


def _settings(source: _Source) -> TrainConfig:
    if source.resume is not None:
        if SeedRuns.holds(source.resume):
            return SeedRuns.open(source.resume).config
        return RunFolder.open(source.resume).config()
    base = None
    if source.config is not None:
        name = source.preset or load_config(source.config).preset
        base = load_preset(name).config if name is not None else None
        return load_config(source.config, base)
    if source.preset is not None or source.env is None:
        return load_preset(source.preset or DEFAULT).config
    return TrainConfig(env=source.env)


def _train(command: Train) -> int:
    import aio_vecenv as av
    from trainers.foreground import Foreground
    from trainers.jobs import resolve_job
    from trainers.malloc import keep_freed_memory

    if command.render and not command.serve:
        raise ConfigError("--render draws for the page: it needs --serve")
    page = _page(command) if command.serve else None
    keep_freed_memory()
    logging.getLogger("trainers").addHandler(logging.NullHandler())  # the progress and the summary say it
    config = command.settings
    try:
        foreground = Foreground(page, resolve_job(config, render=True) if command.render else None)
        if (runs := _seed_runs(command)) is not None:
            av.run(foreground.train_seeds(runs))
        else:
            av.run(foreground.train(config, command.resume))
    finally:
        if page is not None:
            page.socket.close()
    if foreground.received:
        die_by(foreground.received[0])
    return 0


def _seed_runs(command: Train) -> SeedRuns | None:
    """The runs of several seeds, begun now or gone on with; None: it is one run."""
    if command.seeds is not None:
        return SeedRuns.create(command.settings, command.seeds)
    if command.resume is None or not SeedRuns.holds(command.resume):
        return None
    runs = replace(SeedRuns.open(command.resume), config=command.settings)
    runs.save()
    return runs


def _page(command: Train) -> Any:
    """The page's port, taken before anything is opened. Raises `ConfigError` where it cannot be had."""
    try:
        from trainers.service import Page
    except ImportError:
        raise ConfigError("--serve needs the extra: pip install 'aio-vecenv[service]'") from None
    return Page(command.serve_host, command.serve_port)


def _eval(command: Eval) -> int:
    import aio_vecenv as av
    from trainers.evaluate import evaluate
    from trainers.record.progress import print_table

    rows = av.run(
        evaluate(
            command.run,
            episodes=command.episodes,
            greedy=command.greedy,
            seed=command.seed,
            on_refused=_say_refused,
        )
    )
    print_table(
        ("stage", "success", "95 % interval", "episodes", "mean return", "mean length"),
        [
            (
                row.stage,
                f"{row.success_rate:.1%}",
                f"{row.low:.1%} … {row.high:.1%}",
                str(row.episodes),
                f"{row.mean_return:.3g}",
                f"{row.mean_length:.1f}",
            )
            for row in rows
        ],
    )
    return 0


def _say_refused(played: Path, refused: Sequence[str]) -> None:
    """An older policy than the run's newest is about to be used: that must not go unsaid."""
    for reason in refused:
        print(f"warning: checkpoint refused: {reason}", file=sys.stderr)
    print(f"warning: played instead: {played}", file=sys.stderr, flush=True)


def _plot(command: Plot) -> int:
    from trainers.foreground import show_seeds
    from trainers.record.plot import draw, draw_seeds

    out = command.out or command.run / "curve.png"
    try:
        if SeedRuns.holds(command.run):
            runs = SeedRuns.open(command.run)
            draw_seeds(runs, out)
            show_seeds(runs)
        else:
            draw(RunFolder.open(command.run), out)
    except ImportError:
        raise ConfigError("plot needs the extra: pip install 'aio-vecenv[plots]'") from None
    print(out)
    return 0


def _export(command: Export) -> int:
    import aio_vecenv as av
    from trainers.export import export

    def say(left_out: str) -> None:
        print(f"warning: {left_out}", file=sys.stderr, flush=True)

    av.run(export(command.run, command.out, on_refused=_say_refused, on_left_out=say))
    print(command.out)
    return 0


def _record(command: Record) -> int:
    import aio_vecenv as av
    from trainers.video import record

    row = av.run(
        record(
            command.run, command.out, stage=command.stage, episodes=command.episodes, greedy=command.greedy,
            seed=command.seed, fps=command.fps, on_refused=_say_refused,
        )
    )  # fmt: skip
    played = f"{row.episodes} episodes of {row.stage}, success {row.success_rate:.0%}, return {row.mean_return:.3g}"
    print(f"{command.out}: {played}")
    return 0


def _presets(command: Presets) -> int:
    from trainers.record.progress import print_table

    print_table(("preset", "what"), [(name, load_preset(name).summary) for name in NAMES])
    return 0


_COMMANDS: dict[type, Callable[[Any], int]] = {
    Train: _train,
    Eval: _eval,
    Plot: _plot,
    Export: _export,
    Record: _record,
    Presets: _presets,
}
