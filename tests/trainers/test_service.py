"""The example service: it trains, answers meanwhile, and takes an operator's set_stage; under a real server, too."""
# edge: a real client

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from examples.service import make_app
from tests.trainers.helpers import corridor_job, tiny

ROOT = Path(__file__).parents[2]


@pytest.mark.asyncio
async def test_it_answers_while_it_trains_and_takes_commands(tmp_path: Path) -> None:
    app = make_app(tiny(tmp_path, backend="process", num_workers=2, total_steps=10_000_000), corridor_job())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        run = app.state.run
        seen = run.reports()
        await anext(seen)
        first = (await client.get("/")).json()
        assert first["state"] == "running"
        answers = await asyncio.gather(*(client.get("/") for _ in range(20)))
        assert all(answer.status_code == 200 for answer in answers)

        bad = await client.post("/stage", params={"name": "nowhere"})
        assert bad.status_code == 400
        assert "unknown stage 'nowhere'" in bad.json()["error"]
        assert run.stage != "nowhere"

        moved = await client.post("/stage", params={"name": "three", "by": "ana", "why": "to see"})
        assert moved.json()["stage"] == "three"
        assert set(await run.envs.call("get_mixing_ratio", "three")) == {
            run.coordinator.mixing_ratio("three")
        }
        async for report in seen:
            if report.stage == "three":
                break
        last = (await client.get("/")).json()
        assert last["env_steps"] > first["env_steps"], "it went on training"

        stopped = (await client.post("/stop")).json()
        assert stopped["reason"] == "stopped"
        late = await client.post("/stage", params={"name": "one"})
        assert late.status_code == 400
        assert (await client.get("/")).json()["state"] == "stopped"
    assert run.envs.closed
    decisions = [d for d in run.coordinator.decisions if d.kind == "set_stage"]
    assert [(d.by, d.why) for d in decisions] == [("ana", "to see")]


@pytest.mark.asyncio
async def test_reports_stream(tmp_path: Path) -> None:
    app = make_app(tiny(tmp_path), corridor_job())
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as client,
    ):
        text = (await client.get("/reports")).text  # ends with the run
    updates = [json.loads(line.removeprefix("data: "))["update"] for line in text.split("\n\n") if line]
    assert updates == sorted(updates)
    assert updates[-1] == 6


PROGRAM = """
import sys
import uvicorn
from pathlib import Path
from examples.service import make_app
from tests.trainers.helpers import corridor_job, tiny
app = make_app(tiny(Path(sys.argv[1]), backend="process", total_steps=10_000_000, name="served"), corridor_job())
config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="info")
uvicorn.Server(config).run()
"""


def test_the_server_keeps_its_signals(tmp_path: Path) -> None:
    """SIGTERM reaches the server, which ends the run with a checkpoint: the library took no handler over."""
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
        assert httpx.get(url).json()["state"] == "running"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert "Application shutdown complete" in err
        assert "Traceback" not in err
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert list((tmp_path / "served" / "checkpoints").iterdir())
