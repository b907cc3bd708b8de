"""The command line in real processes: what it leaves, its exit codes, its one-line errors, its signals."""
# edge: subprocesses, signals, a terminal

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.aio_vecenv.harness import wait_until
from tests.trainers.conftest import Here
from trainers import cli
from trainers.config import ConfigError
from trainers.foreground import draw_curve
from trainers.record.checkpoint import Checkpoints
from trainers.record.folder import RunFolder
from trainers.record.metrics import read_metrics

ROOT = Path(__file__).parents[2]
OWN_ENV = '''
import time
import curriculum as cu
import gymnasium as gym

class Hop(gym.Env):
    """Succeeds at once if the action is 1; the stage comes as the level."""
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.stage = options["level"]["stage"]
        assert self.stage in ("easy", "hard")
        return 0, {}

    def step(self, action):
        return 1, float(action), True, False, {"is_success": bool(action)}

def make():
    return Hop()

number = 3
'''
OWN_PLAN = """
[[stage]]
name = "easy"
threshold = 0.6
min_episodes = 20

[[stage]]
name = "hard"
"""


@contextmanager
def started(*args: str, cwd: Path, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """`python -m trainers` in a session of its own, with SIGINT as a terminal would leave it; gone afterwards."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " \
        "import sys; from trainers.cli import main; sys.exit(main())"  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program, *args],
        cwd=cwd, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(*args: str, cwd: Path) -> tuple[int, str, str]:
    with started(*args, cwd=cwd) as process:
        out, err = process.communicate(timeout=100)
        return process.returncode, out, err


def interrupted(process: subprocess.Popen[str]) -> None:
    """Send SIGINT; return once the process has it. Until then a second one would be one with it."""
    process.send_signal(signal.SIGINT)
    status = Path(f"/proc/{process.pid}/status")
    pending = re.compile(r"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)$", re.MULTILINE)
    wait_until(
        lambda: (
            not any(int(mask, 16) >> (signal.SIGINT - 1) & 1 for mask in pending.findall(status.read_text()))
        )
    )


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end, soon."""
    return not psutil.wait_procs(processes, timeout=20)[1]


def only_run(cwd: Path) -> Path:
    (folder,) = (cwd / "runs").iterdir()
    return folder


SMALL = ("--num-envs", "8", "--num-workers", "1", "--total-steps", "2048", "--solve-rate", "None")


def test_train_eval_plot_and_resume(tmp_path: Path, here: Here) -> None:
    """The default preset, cut short, through all commands."""
    code, out, err = here("train", "--seed", "3", *SMALL)
    assert (code, err) == (0, "")
    assert "frozenlake · seed 3 · 8 envs in 1 worker" in out
    assert "the budget is spent: 2,048 env steps" in out
    for fact in (
        "near @ 0",
        "success",
        "env steps/s",
        "published",
        "directives",
        "applied by every worker",
        "runs/frozenlake",
    ):
        assert fact in out
    folder = only_run(tmp_path)
    assert {entry.name for entry in folder.iterdir()} == {
        "config.toml", "metrics.jsonl", "journal.jsonl", "checkpoints", "summary.json", "curve.png",
    }  # fmt: skip
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "summary.json").read_text())["reason"] == "steps"
    assert [line["update"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(1, 9))

    code, out, err = here("train", "--resume", str(folder), "--total-steps", "2560")
    assert (code, err) == (0, "")
    assert "resumed at 2,048 env steps" in out
    assert [line["update"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(1, 11))

    code, out, err = here("eval", str(folder), "--episodes", "10")
    assert (code, err) == (0, "")
    assert re.search(r"^near +\d+\.\d% +\d+\.\d% … \d+\.\d% +16 ", out, re.MULTILINE), out
    assert [line.split()[0] for line in out.splitlines()] == ["stage", "near", "middle", "far"]

    newest, *_ = sorted((folder / "checkpoints").iterdir(), reverse=True)
    newest.write_bytes(newest.read_bytes()[:100])
    code, _, err = here("eval", str(folder), "--episodes", "1")
    assert code == 0
    assert f"{newest.name}: torn" in err
    assert "played instead: " in err

    code, out, _ = here("plot", str(folder), "--out", "here.png")
    assert (code, out) == (0, "here.png\n")
    assert (tmp_path / "here.png").exists()


def test_the_users_own_env_and_plan(tmp_path: Path, here: Here) -> None:
    (tmp_path / "my_game").mkdir()
    (tmp_path / "my_game" / "envs.py").write_text(OWN_ENV)
    (tmp_path / "my_plan.toml").write_text(OWN_PLAN)
    args = (
        "train",
        "--env",
        "my_game.envs:make",
        "--plan",
        "my_plan.toml",
        "--num-envs",
        "4",
        "--num-workers",
        "1",
    )
    code, out, err = run(
        *args, "--ppo.num-steps", "32", "--total-steps", "512", "--name", "mine", cwd=tmp_path
    )
    assert (code, err) == (0, "")
    assert "easy @ 0" in out
    assert 'env = "my_game.envs:make"' in (tmp_path / "runs" / "mine" / "config.toml").read_text()
    # and the same once more from what it saved
    code, _, err = here("train", "--config", "runs/mine/config.toml", "--name", "again")
    assert (code, err) == (0, "")


def test_solved_before_the_first_update_it_ends_with_its_summary(tmp_path: Path, here: Here) -> None:
    """There is nothing to plot then; that is no error of the run."""
    (tmp_path / "easy.py").write_text(OWN_ENV.replace("bool(action)", "True"))
    args = ("train", "--env", "easy:make", "--num-envs", "4", "--num-workers", "1", "--solve-rate", "0.9")
    (tmp_path / "plan.toml").write_text('[[stage]]\nname = "easy"\n')
    code, out, err = here(*args, "--plan", "plan.toml", "--name", "easy")
    assert (code, err) == (0, "")
    assert "solved at" in out
    assert "no curve.png: runs/easy: no metrics yet" in out


OWN_CURRICULUM = (
    OWN_ENV
    + """
def own():
    levels = cu.LevelSet([cu.Level(stage, stage, {"stage": stage}) for stage in ("easy", "hard")])
    return cu.CurriculumEnv(Hop(), levels)

class Broken(Hop):
    def reset(self, **_):
        raise OSError("no display")

def broken():
    return Broken()
"""
)


def test_the_stages_of_an_own_curriculum_env_need_no_plan(tmp_path: Path, here: Here) -> None:
    (tmp_path / "own.py").write_text(OWN_CURRICULUM)
    args = (
        "--env",
        "own:own",
        "--num-envs",
        "4",
        "--num-workers",
        "1",
        "--total-steps",
        "512",
        "--name",
        "own",
    )
    code, out, err = here("train", *args)
    assert (code, err) == (0, "")
    assert "easy @ 0" in out
    code, out, err = here("eval", "runs/own", "--episodes", "4")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["stage", "easy", "hard"]


def test_one_mistake_of_many_envs_is_one_message(tmp_path: Path, here: Here) -> None:
    (tmp_path / "own.py").write_text(OWN_CURRICULUM)
    args = ("--env", "own:broken", "--num-envs", "4", "--num-workers", "2")
    code, _, err = here("train", *args, "--on-env-error", "raise")
    assert code == 1
    assert err.count("no display") == 1
    assert "(and 3 more)" in err
    code, _, err = here("train", *args)  # tried again, until the budget is spent
    assert code == 1
    assert err.count("no display") == 1
    assert "times in a row" in err


ERRORS: list[tuple[Sequence[str], int, str]] = [
    (("train", "--env", "NoSuchEnv-v0"), 1, "unknown env 'NoSuchEnv-v0'"),
    (("train", "--env", "nowhere.envs:make"), 1, "no module named 'nowhere'"),
    (("train", "--env", "game:mak"), 1, "game has no 'mak'; did you mean 'make'?"),
    (("train", "--env", "game:number"), 1, "not callable but int"),
    (("train", "--env", "broken:make"), 1, "importing it failed: SyntaxError"),
    (("train", "--env", "game:make", "--plan", "bad.toml"), 1, "bad.toml:3"),
    (("train", "--env", "game:make", "--plan", "none.toml"), 1, "none.toml: cannot be read"),
    (("train", "--env", "game:make", "--levels", "none"), 1, "none: not a directory of levels"),
    (("train", "--preset", "cube"), 1, "unknown preset 'cube'; there are frozenlake, doorkey"),
    (("train", "--config", "none.toml"), 1, "none.toml: no such file"),
    (("train", "--resume", "runs/none"), 1, "runs/none: no such run folder"),
    (("train", "--resume", "torn"), 1, "torn, or not a checkpoint"),
    (
        ("train", "--resume", "torn", "--config", "easy.toml"),
        2,
        "--resume and --config: a run has settings of its own",
    ),
    (
        ("train", "--resume", "torn", "--name", "whole"),
        2,
        "--name is for a run that begins: torn stays where it is",
    ),
    (("train", "--resume", "torn", "--runs", "others"), 2, "--runs is for a run that begins"),
    (("train", "--preset", "None", "--env", "NoSuchEnv-v0"), 1, "unknown env 'NoSuchEnv-v0'"),
    (("train", "--resume", "None", "--config=None", "--preset", "cube"), 1, "unknown preset 'cube'"),
    (("eval", "runs/none"), 1, "runs/none: no such run folder"),
    (("plot", "torn"), 1, "no metrics yet"),
    (("train", "--num-envs", "0"), 2, "error: num_envs must be at least 1, got 0"),
    (("train", "--ppo.lr", "-1"), 2, "error: ppo.lr must be positive, got -1.0"),
    (("train", "--ppo.lr-schedule"), 2, "error: ppo.lr_schedule must be constant, linear, cosine, or pairs"),
    (("train", "--network.log-std", "99"), 2, "error: network.log_std must lie in [-20, 5], got 99.0"),
]


@pytest.mark.parametrize(("args", "code", "message"), ERRORS, ids=[" ".join(args) for args, _, _ in ERRORS])
def test_a_mistake_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    args: Sequence[str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "game.py").write_text(OWN_ENV)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "bad.toml").write_text('[[stage]]\nname = "easy"\nthreshold = 7\n')
    (tmp_path / "easy.toml").write_text("seed = 1\n")
    (tmp_path / "torn" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torn" / "config.toml").write_text('preset = "frozenlake"\n')
    (tmp_path / "torn" / "checkpoints" / "step-0000000001.pt").write_bytes(b"PK\x03\x04half")
    for name in ("game", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        got = cli.main(list(args))
    except SystemExit as error:
        got = int(error.code or 0)
    out, err = capsys.readouterr()
    assert got == code
    assert message in err
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--env", "NoSuchEnv-v0", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["fly"], ["train", "--sed", "1"], ["train", "--seed", "x"], ["eval"]])
def test_usage_errors_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "on"),
    [
        (["--network.normalise-obs"], True),
        (["--network.normalise_obs", "--seed", "3"], True),
        (["--network.normalise-obs", "False"], False),
        (["--network.no-normalise-obs"], False),
        (["--network.normalise-obs", "None"], None),
        ([], False),  # the preset's
    ],
)
def test_on_off_or_by_the_spaces_is_said_as_of_any_flag(args: list[str], on: bool | None) -> None:
    parsed = cli._parse(["train", "--preset", "frozenlake", *args])
    assert isinstance(parsed, cli.Train)
    assert parsed.settings.network.normalise_obs is on


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from trainers import cli\n"
        "try: cli.main(['train', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "--ppo.lr" in done.stdout


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["presets"]) == 0
    named = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert named == ["preset", "frozenlake", "doorkey", "doorkey16", "pendulum", "mazes", "atari"]


LONG = ("train", "--num-workers", "2", "--solve-rate", "None", "--total-steps", "50000000", "--name", "long")


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended before {text!r}: {seen} {process.stderr and process.stderr.read()}")


@pytest.mark.parametrize(("number", "whom"), [(signal.SIGINT, "group"), (signal.SIGTERM, "parent")])
def test_a_signal_finishes_the_step_saves_and_ends_as_signals_do(
    tmp_path: Path, number: signal.Signals, whom: str
) -> None:
    """Ctrl-C of a terminal and `docker stop`: exit by the signal, a fresh checkpoint, how to go on, nobody left."""
    with started(*LONG, cwd=tmp_path) as process:
        read_until(process, "steps/s")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2
        if whom == "group":
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=100)
    assert process.returncode == -number
    assert f"stopped by {number.name}; go on with: python -m trainers train --resume runs/long" in out
    assert err == ""
    state, _, refused = Checkpoints(tmp_path / "runs" / "long" / "checkpoints").load_newest()
    assert not refused
    done = read_metrics(tmp_path / "runs" / "long" / "metrics.jsonl")
    assert state.tally["updates"] == done[-1]["update"]
    assert json.loads((tmp_path / "runs" / "long" / "summary.json").read_text())["reason"] == "stopped"
    assert gone(children)


SLOW_ENV = OWN_ENV.replace(
    "def step(self, action):",
    "def step(self, action):\n        print('in the step', flush=True)\n        time.sleep(60)",
)


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """The step never ends: the first signal waits for it, the second does not."""
    (tmp_path / "slow.py").write_text(SLOW_ENV)
    args = ("train", "--env", "slow:make", "--plan", "plan.toml", "--num-envs", "1", "--num-workers", "1")
    (tmp_path / "plan.toml").write_text(OWN_PLAN)
    with started(*args, cwd=tmp_path) as process:
        read_until(process, "in the step")
        children = psutil.Process(process.pid).children(recursive=True)
        interrupted(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it waits for the step
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    assert gone(children)


def test_a_terminal_shows_a_live_panel(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    try:
        with started("train", *SMALL, cwd=tmp_path, stdout=follower) as process:
            os.close(follower)
            seen = b""
            while True:
                try:
                    part = os.read(leader, 65536)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                seen += part
            assert process.wait() == 0
    finally:
        os.close(leader)
    text = seen.decode()
    for fact in ("missing to advance", "▸ near", "steps/s", "directives applied", "╭", "the budget is spent"):
        assert fact in text


def test_the_second_signal_gives_the_terminal_its_cursor_back(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_ENV)
    (tmp_path / "plan.toml").write_text(OWN_PLAN)
    args = ("train", "--env", "slow:make", "--plan", "plan.toml", "--num-envs", "1", "--num-workers", "1")
    leader, follower = pty.openpty()
    try:
        with started(*args, cwd=tmp_path, stdout=follower) as process:
            os.close(follower)
            seen = b""
            while b"in the step" not in seen or b"\x1b[?25l" not in seen:
                seen += os.read(leader, 65536)
            interrupted(process)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)  # it waits for the step
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == -signal.SIGINT
            while b"\x1b[?25h" not in seen:
                seen += os.read(leader, 65536)  # an error once nothing is left
    finally:
        os.close(leader)
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")


def test_an_output_that_knows_no_such_letters_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, out, err = run("train", *SMALL, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "frozenlake ? seed 0 ? 8 envs in 1 worker" in out


def test_nothing_that_goes_wrong_in_drawing_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise LookupError("no such font")

    monkeypatch.setattr("trainers.foreground.draw", broken)
    assert draw_curve(RunFolder(tmp_path)) == ["no curve.png: no such font"]


def test_the_command_line_lets_its_process_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def keep() -> bool:
        called.append("keep_freed_memory")
        return True

    def training(*_: object, **__: object) -> None:
        raise ConfigError("enough")

    monkeypatch.setattr("trainers.malloc.keep_freed_memory", keep)
    monkeypatch.setattr("trainers.foreground.training", training)
    assert cli.main(["train"]) == 1
    assert called == ["keep_freed_memory"]
