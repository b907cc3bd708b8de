"""`train --serve` in real processes: its link, its signals and exit codes, its one-line errors; and the example."""
# edge: subprocesses, signals, real clients

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.trainers.conftest import Here
from tests.trainers.test_cli import gone, read_until, run, started

ROOT = Path(__file__).parents[2]
LONG = (
    "train", "--serve", "--serve-port", "0", "--num-workers", "1", "--num-envs", "8", "--name", "long",
    "--solve-rate", "None", "--total-steps", "100000000",
)  # fmt: skip


def link_of(text: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith("watch and steer: ")]
    return line.removeprefix("watch and steer: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_mean_what_they_mean_without_the_page(tmp_path: Path, number: signal.Signals) -> None:
    """With somebody reading the events: a checkpoint, how to go on, ended by the signal, nothing on stderr."""
    with started(*LONG, cwd=tmp_path) as process:
        out = read_until(process, "steps/s")
        link = link_of(out)
        assert link.startswith("http://127.0.0.1:")
        children = psutil.Process(process.pid).children(recursive=True)
        with httpx.Client(timeout=60) as client:
            assert client.get(link).status_code == 200
            with client.stream("GET", link.partition("?")[0] + "api/events") as events:
                chunks = events.iter_text()
                assert "connected" in next(chunks)
                process.send_signal(number)
                rest = "".join(chunks)
        out, err = process.communicate(timeout=100)
    assert process.returncode == -number
    assert "event: end" in rest, "readers are told"
    assert f"stopped by {number.name}; go on with: python -m trainers train --resume runs/long" in out
    assert err == ""
    secret = link.partition("token=")[2].encode()
    assert not [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and secret in p.read_bytes()]
    assert gone(children)


def test_an_operator_ends_it_and_it_goes_on(tmp_path: Path) -> None:
    """Stop on the page: exit code 0, the summary, and how to go on; a resumed run remembers what was commanded."""
    with started(*LONG, cwd=tmp_path) as process:
        link = link_of(read_until(process, "steps/s"))
        with httpx.Client(base_url=link.partition("?")[0], timeout=60) as client:
            client.get(link)
            headers = {"x-command-token": client.get("api/session").json()["command_token"]}
            order = {"by": "ana", "why": "enough"}
            client.post("api/commands/hold", json=order, headers=headers)
            assert client.post("api/commands/stop", json=order, headers=headers).status_code == 200
        out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert "stopped by an operator; go on with: python -m trainers train --resume runs/long" in out
    resume = ("train", "--serve", "--serve-port", "0", "--resume", "runs/long", "--total-steps", "100000000")
    with started(*resume, cwd=tmp_path) as process:
        again = link_of(read_until(process, "steps/s"))
        with httpx.Client(base_url=again.partition("?")[0], timeout=60) as client:
            assert client.get("/", params={"token": link.partition("token=")[2]}).status_code == 401
            client.get(again)
            state = client.get("api/state?points=10").json()
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=100)
    assert state["held"] is True
    assert [row["title"] for row in state["decisions"] if row["by"]] == ["hold decisions", "stop"]
    assert state["curves"][0]["update"] == 1, "the curves begin where the run began"


def test_a_port_in_use_costs_no_run(tmp_path: Path, here: Here) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = here("train", "--serve", "--serve-port", port)
    assert (code, out) == (1, "")
    assert (
        err
        == f"error: --serve-port {port} is in use on 127.0.0.1: choose another, or 0 for any that is free\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("missing", ["uvicorn", "starlette", "plotly"])
def test_without_the_extra_it_is_one_clear_line(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Whichever of its packages is not there."""
    for name in list(sys.modules):
        if name.startswith("trainers.service."):  # imported again, as at its first use
            monkeypatch.delattr(name, raising=False)
        if name.startswith(("trainers.service.", f"{missing}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = here("train", "--serve")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "needs the extra: pip install 'aio-vecenv[service]'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_render_is_for_the_page(here: Here) -> None:
    code, _, err = here("train", "--render")
    assert (code, err) == (1, "error: --render draws for the page: it needs --serve\n")


def test_more_than_loopback_says_what_it_means_and_a_solved_run_ends(tmp_path: Path) -> None:
    """The page goes with its run: nobody is asked to close it."""
    args = ("--num-envs", "8", "--num-workers", "1", "--total-steps", "1024", "--solve-rate", "None")
    code, out, err = run(
        "train", "--serve", "--serve-host", "0.0.0.0", "--serve-port", "0", *args, cwd=tmp_path
    )
    assert (code, err) == (0, "")
    assert f"watch and steer: http://{socket.gethostname()}:" in out
    assert "warning: other machines can reach the page. Whoever has this link can steer the run" in out


PROGRAM = """
import sys
import uvicorn
from pathlib import Path
from examples.service import application
from tests.trainers.helpers import corridor_job, tiny
config = tiny(Path(sys.argv[1]), backend="process", total_steps=10_000_000, name="served")
uvicorn.Server(uvicorn.Config(application(config, corridor_job()), host="127.0.0.1", port=0)).run()
"""


def test_the_example_leaves_the_server_its_signals(tmp_path: Path) -> None:
    """SIGTERM reaches the server, which ends the run with a checkpoint: nothing of ours took a handler over."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "Uvicorn running on" in line:
                url = line.split("running on ")[1].split()[0]
                break
        assert httpx.get(f"{url}/train/", timeout=60).status_code == 200
        assert httpx.get(f"{url}/train/api/state", timeout=60).json()["status"] == "running"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
        assert "Application shutdown complete" in err
        assert "Traceback" not in err
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert list((tmp_path / "served" / "checkpoints").iterdir())
