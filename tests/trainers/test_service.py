"""The page's routes, as documented: the snapshot, the stream, commands, refusals, metrics; on a real server."""
# edge: real clients, real workers

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import logging
import os
import re
import signal
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import httpx
import PIL.Image
import pytest
from starlette.applications import Starlette

import aio_vecenv as av
import curriculum as cu
from curriculum.replay import replay
from tests.aio_vecenv.harness import until
from tests.trainers.helpers import corridor_job, tiny
from tests.trainers.service_helpers import endless, events, served
from trainers import ConfigError, PPOConfig, load_preset, training
from trainers.jobs import resolve_job
from trainers.service import Page, make_app
from trainers.service.curves import curves
from trainers.service.frames import Frames
from trainers.service.snapshot import decision_row

pytestmark = pytest.mark.alternate_loops

QUICK = PPOConfig(num_steps=4, epochs=1, minibatches=1)  # many updates soon
ODD = '<img src=x onerror="alert(1)">'


def journal(run: Any, kind: str) -> list[dict[str, Any]]:
    lines = run.folder.journal.read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.asyncio
async def test_the_snapshot_says_what_the_run_says(tmp_path: Path) -> None:
    async with served(endless(tmp_path)) as page:
        await until(lambda: page.run.last_report)
        state = await page.state(points=100)
        run = page.run
        assert state["status"] == "running"
        assert state["outcome"] == ""
        assert [row["stage"] for row in state["progress"]] == ["one", "three"]
        assert state["run"]["subtitle"] == f"seed 0 · 4 envs in 2 workers · {run.folder.path}"
        assert [worker["envs"] for worker in state["workers"]] == ["0–1", "2–3"]
        assert [worker["ready"] for worker in state["workers"]] == [True, True]
        assert state["curves"][0]["update"] == 1
        assert set(state["curves"][0]) == set(state["report"])


@pytest.mark.asyncio
async def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    """A browser refuses NaN: one of them would take the whole page away."""
    async with served(endless(tmp_path)) as page:
        await until(lambda: page.run.last_report)
        with page.run.folder.metrics.open("a") as file:
            row = json.loads(page.run.folder.metrics.read_text().splitlines()[0])
            file.write(json.dumps({**row, "approx_kl": float("nan"), "entropy": float("inf")}) + "\n")
        state = await page.state(points=4000)  # refuses NaN
        assert any(point["approx_kl"] is None and point["entropy"] is None for point in state["curves"])


@pytest.mark.asyncio
async def test_commands_reach_every_worker_and_the_journal(tmp_path: Path) -> None:
    """Each with who and why, its receipt, and a journal that replays."""
    never = [cu.Stage(name, threshold=1.0, min_episodes=10**9) for name in ("one", "three")]
    job = replace(corridor_job(), plan=cu.StagePlan(never))
    async with served(endless(tmp_path, early=False), job) as page:
        coordinator, envs = page.run.coordinator, page.run.envs
        moved = (await page.command("set_stage", stage="three", why="to see")).json()
        assert moved["done"] == "stage one → three"
        assert moved["receipt"] == {
            "version": moved["receipt"]["version"],
            "taken": 2,
            "workers": 2,
            "pending": [],
        }
        again = (await page.command("set_stage", stage="three")).json()
        assert again == {"done": "three is the current stage already: nothing was changed"}
        fixed = (await page.command("set_mixing_ratio", stage="three", ratio=0.35)).json()
        assert fixed["receipt"]["taken"] == 2
        assert set(await envs.call("get_mixing_ratio", "three")) == {0.35}
        assert (await page.state())["fixed"] == {"three": 0.35}
        await page.command("set_mixing_ratio", stage="three", ratio=None)
        assert (await page.state())["fixed"] == {}
        await page.command("hold", why="a look")
        assert coordinator.held
        assert (await page.state())["held"] is True
        await page.command("release")
        assert not coordinator.held
        saved = (await page.command("checkpoint", why="before the weekend")).json()["done"]
        assert (page.run.folder.path / saved.removeprefix("saved ")).is_file()
        state = await page.state()
        assert [row["kind"] for row in state["decisions"] if row["by"]] == [
            "set_stage", "set_mixing_ratio", "set_mixing_ratio", "hold", "release", "checkpoint",
        ]  # fmt: skip
        assert state["decisions"][0]["title"] == "set stage: one → three"
        assert state["decisions"][0]["facts"].endswith("by ana · why: to see")
        await page.command("stop", why="done")
        await page.run.wait()
    commands = [(row["command"], row["by"], row["why"]) for row in journal(page.run, "command")]
    assert commands == [
        ("set_stage", "ana", "to see"),
        ("set_stage", "ana", None),
        ("set_mixing_ratio", "ana", None),
        ("set_mixing_ratio", "ana", None),
        ("hold", "ana", "a look"),
        ("release", "ana", None),
        ("checkpoint", "ana", "before the weekend"),
        ("stop", "ana", "done"),
    ]
    assert replay(page.run.folder.journal).same


def test_a_decision_says_what_it_was_taken_on() -> None:
    """By the measure of its stage: success, return or steps; and decisions of runs before these were kept."""
    counts: dict[str, Any] = {"k": 26, "length": 50, "n": 60, "threshold": 0.5}
    told = {
        "after 1,200 episodes · 26 of the newest 50 succeeded, threshold 50% · rule: standard": counts,
        "after 1,200 episodes · mean return 12.5 of the newest 50, threshold 12 · rule: standard": {
            **counts, "measure": "return", "value": 12.5, "threshold": 12.0,
        },
        "after 1,200 episodes · 5,000 of 5,000 steps in the stage · rule: standard": {
            **counts, "measure": "steps", "value": 5000, "steps": 5000,
        },
    }  # fmt: skip
    for text, figures in told.items():
        row = decision_row(7, cu.Decision("advance", "a", "b", ("standard",), 1200, figures))
        assert (row["number"], row["title"], row["facts"]) == (7, "advance: a → b", text)


@pytest.mark.asyncio
async def test_bad_commands_are_one_clear_error_and_change_nothing(tmp_path: Path) -> None:
    async with served(endless(tmp_path)) as page:
        bad: list[tuple[str, dict[str, Any], int, str]] = [
            ("set_stage", {"stage": "nowhere"}, 400, "unknown stage 'nowhere'"),
            ("set_stage", {"stage": 3}, 400, "'stage' is the name of a stage, got 3"),
            ("set_stage", {}, 400, "set_stage: 'stage' is missing"),
            (
                "set_stage",
                {"stage": "three", "by": " "},
                400,
                "set_stage: 'by' is missing: who gives the command?",
            ),
            (
                "set_stage",
                {"stage": "three", "name": 1},
                400,
                "unknown argument 'name'; it takes by, why, stage",
            ),
            ("set_mixing_ratio", {"stage": "one", "ratio": 1.5}, 400, "1.5"),
            ("set_mixing_ratio", {"stage": "one", "ratio": "x"}, 400, "'x'"),
            ("hold", {"why": 3}, 400, "'why' is text, got 3"),
            ("hold", {"why": "x" * 501}, 400, "at most 500 characters"),
            (
                "dance",
                {},
                404,
                "unknown command 'dance'; there are set_stage, set_mixing_ratio, hold, release",
            ),
        ]
        for name, arguments, status, text in bad:
            answer = await page.command(name, **arguments)
            assert (answer.status_code, text in answer.json()["error"]) == (status, True), answer.text
        assert [row for row in (await page.state())["decisions"] if row["by"]] == []
        assert journal(page.run, "command") == []
        await page.run.stop()
        late = await page.command("set_stage", stage="three")
        assert late.status_code == 409
        assert "set_stage: the run has ended (stopped at " in late.json()["error"]
        state = await page.state(points=10)
        assert state["status"] == "stopped"
        assert state["outcome"].startswith("stopped at ")
        assert state["run"]["notes"] == ["The run has ended: there is nothing to command any more."]


@pytest.mark.asyncio
async def test_what_is_refused(tmp_path: Path) -> None:
    """No token, a wrong one, another site, a foreign name, a climbing path, a body of a megabyte: nothing happens."""
    async with served(endless(tmp_path)) as page, httpx.AsyncClient(base_url=page.url) as stranger:
        for path in ("/", "/api/state", "/api/events", "/api/session", "/static/app.js", "/metrics"):
            assert (await stranger.get(path)).status_code == 401, path
        for token in ("wrong", "", page.token[:-1], page.token + "x", "é"):
            assert (await stranger.get("/", params={"token": token})).status_code == 401
            bearer = {b"authorization": f"Bearer {token}!".encode()}
            assert (await stranger.get("/api/state", headers=bearer)).status_code == 401
        assert not stranger.cookies
        mine = {"authorization": f"Bearer {page.token}"}
        assert (await stranger.get("/api/state", headers=mine)).status_code == 200

        for host in (
            "evil.example",
            "evil.example:8765",
            "127.0.0.1.evil.example",
            "",
            "10.0.0.1",
            "[::2]:80",
        ):
            answer = await page.client.get("/api/state", headers={"host": host})
            assert answer.status_code == 403, host
        for host in ("localhost", f"127.0.0.1:{page.page.port}", "[::1]:1", "LocalHost:9"):
            assert (await page.client.get("/api/state", headers={"host": host})).status_code == 200, host

        good = await page.headers()
        order = {"by": "mallory"}
        url = "/api/commands/hold"
        refused = [
            await page.client.post(url, json=order),
            await page.client.post(url, json=order, headers={"x-command-token": "x"}),
            await page.client.post(url, json=order, headers={"x-command-token": page.token}),
            await page.client.post(url, json=order, headers={**good, "origin": "http://evil.example"}),
            await page.client.post(url, json=order, headers={**good, "origin": "null"}),
            await stranger.post(url, json=order, headers=good),
        ]
        assert [answer.status_code for answer in refused] == [403] * 5 + [401]
        form = await page.client.post(url, content="by=m", headers={**good, "content-type": "text/plain"})
        assert form.status_code == 415
        assert (
            await page.client.post(url, content=b"{", headers={**good, "content-type": "application/json"})
        ).json() == {"error": "hold: the body is not JSON"}
        large = {"by": "m", "why": "x" * 1_000_000}
        assert (await page.client.post(url, json=large, headers=good)).status_code == 413

        async def drip() -> Any:
            for _ in range(20):
                yield b" " * 1024

        chunked = {**good, "content-type": "application/json"}
        assert (await page.client.post(url, content=drip(), headers=chunked)).status_code == 413
        assert not page.run.coordinator.held

        for path in (
            "/static/..%2fapp.py",
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/static/app.css%00",
            "/static/",
        ):
            answer = await page.client.get(path)
            assert answer.status_code == 404, path
            assert "starlette" not in answer.text
        assert (await page.client.get("/api/state", params={"points": "-1"})).status_code == 400
        assert (await page.client.get("/api/commands/hold")).status_code == 405
        assert (await page.client.get("/api/state")).status_code == 200, "it goes on serving"


@pytest.mark.asyncio
async def test_what_every_answer_carries_and_what_the_cookie_is(tmp_path: Path) -> None:
    async with served(endless(tmp_path)) as page, httpx.AsyncClient(base_url=page.url) as fresh:
        landing = await fresh.get("/", params={"token": page.token})
        cookie = landing.headers["set-cookie"]
        name, value = cookie.split(";")[0].split("=")
        assert re.fullmatch(rf"aio-vecenv-{page.page.port}-[0-9a-f]{{8}}", name)
        assert cookie.split("; ")[1:] == ["Path=/", "HttpOnly", "SameSite=Strict"]
        assert value != page.token
        secret = (await fresh.get("/api/session")).json()["command_token"]
        assert len({secret, value, page.token}) == 3
        refused = await fresh.get("/api/state", headers={"host": "evil.example"})
        for answer in (landing, await fresh.get("/api/state"), await fresh.get("/static/plotly.js"), refused):
            policy = answer.headers["content-security-policy"]
            assert "script-src 'self';" in policy
            assert "default-src 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert "server" not in answer.headers
        everything = b"".join(path.read_bytes() for path in page.run.folder.path.rglob("*") if path.is_file())
        for word in (secret, value, page.token):
            assert word.encode() not in everything


@pytest.mark.asyncio
async def test_the_stream_tells_reports_decisions_and_workers(tmp_path: Path) -> None:
    """And a killed worker, with its reason; and the end."""
    async with served(endless(tmp_path)) as page:
        stream = events(page.client)
        kinds: dict[str, Any] = {}
        async for kind, _, data in stream:
            kinds[kind] = data
            if {"report", "workers"} <= set(kinds):
                break
        assert kinds["report"]["env_steps"] > 0
        target = "one" if page.run.stage == "three" else "three"
        page.run.coordinator.set_stage(target, by="ana", why="now")
        async for kind, _, data in stream:
            if kind == "decision" and data["by"]:
                assert (data["to"], data["why"]) == (target, "now")
                break
        os.kill(page.run.envs.statistics().workers[0].pid, signal.SIGKILL)
        async for kind, _, data in stream:
            if kind == "workers" and data[0]["restarts"]:
                break
        assert "killed" in data[0]["losses"][0] or "SIGKILL" in data[0]["losses"][0]
        page.run.request_stop()
        last = [(kind, data) async for kind, _, data in stream][-1]
        assert (last[0], last[1]["status"]) == ("end", "stopped")
        assert last[1]["outcome"] == f"stopped at {page.run.env_steps:,} env steps"
        late = [(kind, data) async for kind, _, data in events(page.client)]
        assert late == [("end", last[1])], "who comes after the end is told so"


@pytest.mark.asyncio
async def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    """Last-Event-ID: nothing twice, nothing left out; from another start, `missed` comes first."""
    async with served(endless(tmp_path)) as page:
        seen: list[int] = []
        last = ""
        for _ in range(4):
            stream = events(page.client, last or None)
            async for kind, number, data in stream:
                assert kind != "missed"
                last = number
                if kind == "report":
                    seen.append(data["update"])
                if len(seen) % 5 == 4:
                    break
            await stream.aclose()
        assert seen == list(range(seen[0], seen[0] + len(seen)))
        name, _, number = last.partition("-")
        for foreign in (f"other-{number}", "nonsense", f"{name}-99999999", f"{name}-x"):
            stream = events(page.client, foreign)
            assert (await anext(stream))[0] == "missed"
            await stream.aclose()


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_the_run_fails_and_the_page_says_why_and_takes_nothing_from_its_owner(tmp_path: Path) -> None:
    """The error that ends a run is still raised to whoever owns it, although the page has shown it."""
    job = corridor_job()
    config = endless(tmp_path, backend="inline", num_workers=1)

    def broken(plan: Any, levels: Any) -> Any:
        strategy = cu.Staged(plan)
        settle = strategy.settle

        def settling(watermark: int | None = None) -> Any:
            if strategy.total > 200:
                raise ZeroDivisionError("the rule divides by nothing")
            return settle(watermark)

        strategy.settle = settling  # type: ignore[method-assign]
        return strategy

    with pytest.raises(ZeroDivisionError, match="divides by nothing"):  # noqa: PT012
        async with served(config, replace(job, strategy=broken)) as page:
            told = [(kind, data) async for kind, _, data in events(page.client)]
            assert told[-1][0] == "end"
            assert told[-1][1]["status"] == "failed"
            assert (
                told[-1][1]["outcome"] == "ended by an error: ZeroDivisionError: the rule divides by nothing"
            )
            assert (await page.state())["status"] == "failed"


@pytest.mark.asyncio
async def test_nobody_connected_wakes_nothing(tmp_path: Path) -> None:
    """Over 100 updates no task that is not the run's own, or this test's, takes a turn."""
    loop = asyncio.get_running_loop()
    turns: dict[Any, int] = {}  # of tasks

    class Counted:
        def __init__(self, coro: Any) -> None:
            self.coro, self.task = coro, None

        def __await__(self) -> Any:
            value: Any = None
            while True:
                turns[self.task] = turns.get(self.task, 0) + 1
                try:
                    waited = self.coro.send(value)
                except StopIteration as stop:
                    return stop.value
                try:
                    value = yield waited
                except BaseException as error:
                    turns[self.task] += 1
                    try:
                        value = yield self.coro.throw(error)
                    except StopIteration as stop:
                        return stop.value

    async def through(counted: Counted) -> Any:
        return await counted

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        counted = Counted(coro)
        task: Any = asyncio.Task(through(counted), loop=loop, **options)
        counted.task = task
        return task

    loop.set_task_factory(factory)
    try:
        async with served(endless(tmp_path, backend="inline", num_workers=1, ppo=QUICK)) as page:
            await until(lambda: page.run.last_report)
            mine = asyncio.current_task()
            own = {"trainers.run", "trainers.coordinator", "trainers.lag", "trainers.loop_monitor"}
            own.add(mine.get_name() if mine else "")
            before, since, woken = dict(turns), 0, set()
            async for report in page.run.reports():
                woken = {task.get_name() for task, count in turns.items() if count != before.get(task, 0)}
                # the page's answer to `served` is still under way
                if not woken <= own and report.update < 300:
                    before, since = dict(turns), report.update
                elif report.update >= since + 100:
                    break
            assert "trainers.run" in woken, "the count counts"
            assert woken <= own, woken
    finally:
        loop.set_task_factory(None)


@pytest.mark.asyncio
async def test_curves_cost_by_the_point(tmp_path: Path) -> None:
    """First and last line, evenly between them, whole lines only; the same effort for a thousand times as many."""
    path = tmp_path / "metrics.jsonl"
    assert curves(path, 10) == []
    lines = [json.dumps({"update": i, "pad": "x" * (i % 7)}) for i in range(5000)]
    path.write_text("\n".join(lines) + '\n{"update": 5000, "pa')
    few = [json.loads(line)["update"] for line in curves(path, 100)]
    assert few[0] == 0
    assert few[-1] == 4999
    assert 90 <= len(few) <= 101
    assert few == sorted(set(few))
    assert max(b - a for a, b in pairwise(few)) < 200
    assert [json.loads(line)["update"] for line in curves(path, 4000)][-1] == 4999
    path.write_text(lines[0] + "\n")
    assert [json.loads(line)["update"] for line in curves(path, 100)] == [0]


@pytest.mark.asyncio
async def test_metrics(tmp_path: Path) -> None:
    """Prometheus' text form, from a registry of its own, with odd names escaped."""
    async with served(endless(tmp_path)) as page:
        await until(lambda: page.run.last_report)
        answer = await page.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        text = answer.text
        assert re.search(r"^aio_vecenv_env_steps_total [0-9.e+]+$", text, re.M)
        assert 'aio_vecenv_stage_current{stage="' in text
        assert 'aio_vecenv_worker_up{worker="1"} 1.0' in text
        assert "python_info" not in text


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_mounted_it_leaves_everything_to_its_host(tmp_path: Path) -> None:
    """Signals, logging and lifespan are the host's; auth="none" leaves the asking to it; commands still need theirs."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    logs = {name: (log.handlers[:], log.level) for name, log in _loggers().items()}
    async with training(endless(tmp_path), job=corridor_job()) as run:
        host = Starlette()
        host.mount("/train", make_app(run, hosts=["host.example"], auth="none"))
        transport = httpx.ASGITransport(host)
        async with httpx.AsyncClient(transport=transport, base_url="http://host.example") as client:
            page = await client.get("/train/")
            assert page.status_code == 200
            assert "set-cookie" not in page.headers
            assert (await client.get("/train/static/app.js")).status_code == 200
            assert (await client.get("/train/api/state")).json()["status"] == "running"
            assert (await client.post("/train/api/commands/hold", json={"by": "x"})).status_code == 403
            token = (await client.get("/train/api/session")).json()["command_token"]
            headers = {"x-command-token": token}
            assert (
                await client.post("/train/api/commands/hold", json={"by": "x"}, headers=headers)
            ).status_code == 200
            assert (await client.get("/train/", headers={"host": "other.example"})).status_code == 403
        with pytest.raises(ValueError, match="auth is 'off', not 'token' or 'none'"):
            make_app(run, auth="off")  # type: ignore[arg-type]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert {name: (log.handlers[:], log.level) for name, log in _loggers().items() if name in logs} == logs


def _loggers() -> dict[str, logging.Logger]:
    named = {n: log for n, log in logging.root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    return {"root": logging.root, **named}


@pytest.mark.asyncio
async def test_with_a_token_mounted_the_cookie_stays_under_its_path(tmp_path: Path) -> None:
    async with training(tiny(tmp_path, total_steps=10_000_000), job=corridor_job()) as run:
        host, app = Starlette(), make_app(run)
        host.mount("/a/train", app)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(host), base_url="https://localhost"
        ) as client:
            landing = await client.get("/a/train/", params={"token": app.state.access.token})
            assert "Path=/a/train/; HttpOnly; SameSite=Strict; Secure" in landing.headers["set-cookie"]
            assert (await client.get("/a/train/api/state")).status_code == 200


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_readers_that_come_and_go_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred that connect and break off: the tasks that serve the stream end after the last one."""
    monkeypatch.setattr("trainers.service.live.LINGER_S", 0.05)
    async with served(endless(tmp_path)) as page:
        for _ in range(20):
            streams = [events(page.client) for _ in range(5)]
            await asyncio.gather(*(anext(stream) for stream in streams))
            for stream in streams:
                await stream.aclose()
        await until(
            lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("trainers.service.l")]
        )
        await until(lambda: len(asyncio.all_tasks()) < 12)
        stream = events(page.client)
        assert (await anext(stream))[0] in ("report", "workers", "decision"), "and it begins again"
        await stream.aclose()


@pytest.mark.asyncio
@pytest.mark.both_loops
async def test_a_reader_that_never_reads_holds_up_nobody(tmp_path: Path) -> None:
    """It misses the oldest; what is kept for it does not grow; the others and the run go on; the end does not wait."""
    async with served(endless(tmp_path, backend="inline", num_workers=1, ppo=QUICK)) as page:
        _, writer = await asyncio.open_connection("127.0.0.1", page.page.port)
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        head = f"GET /api/events HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {page.token}\r\n\r\n"
        writer.write(head.encode())
        await until(lambda: page.run.last_report)
        began = page.run.last_report
        assert began is not None
        last = None
        stream = events(page.client)
        async for kind, _, data in stream:
            if kind == "report":
                assert last in (None, data["update"] - 1), "the other one misses nothing"
                last = data["update"]
                if last > began.update + 300:
                    break
        await stream.aclose()
        writer.transport.abort()
        gc.collect()


@pytest.mark.asyncio
async def test_watching_an_env(tmp_path: Path) -> None:
    """Frames of the one that is asked for, with what it plays; refused with the reason where that cannot be."""
    async with served(endless(tmp_path)) as page:
        assert await _refusal(page.client, 1) == "env 1 has no render(): it cannot draw itself"
        assert await _refusal(page.client, 4) == "there is no env 4"
    async with served(tiny(tmp_path, total_steps=10_000_000)) as page:
        assert (await _refusal(page.client, 1)).startswith("deterministic=True: ")
    lake = replace(
        load_preset("frozenlake").config, runs=tmp_path, num_envs=4, solve_rate=None, total_steps=10**8
    )
    async with served(lake, resolve_job(lake)) as page:
        assert "start the run with --render" in await _refusal(page.client, 2)
    async with served(lake, resolve_job(lake, render=True)) as page:
        began_s, frames = asyncio.get_running_loop().time(), []
        async for kind, _, data in events(page.client, watch=2):
            assert kind == "frame"
            frames.append(data)
            if len(frames) == 5:
                break
        assert asyncio.get_running_loop().time() - began_s >= 4 * 0.1 * 0.9, "at most ten a second"
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(frames[-1]["png"])))
        picture.load()
        assert picture.size == (512, 512)
        assert len(picture.getcolors(maxcolors=1 << 18) or ()) > 5
        assert re.match(
            r"stage \w+ · level \w+ · episode \d+, step \d+ · return so far [01]$", frames[0]["text"]
        )
        assert frames[-1]["delay_s"] > 0
        await page.run.stop()


@pytest.mark.asyncio
async def test_watching_rows_of_a_vector_env_is_refused(tmp_path: Path) -> None:
    """They can only be asked all together."""
    summary = SimpleNamespace(reason="running")

    def make() -> Any:
        return gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")

    async with av.AsyncVecEnv(make, 1, backend="inline") as envs:
        run: Any = SimpleNamespace(config=tiny(tmp_path, deterministic=False), envs=envs, error=None)
        run.summary = lambda: summary
        (told,) = [chunk async for chunk in Frames(run).watch(1)]
        assert b"a call of VectorEnvs goes to all of them" in told


async def _refusal(client: httpx.AsyncClient, env: int) -> str:
    async with client.stream("GET", "/api/events", params={"watch": env}) as answer:
        text = "".join([line async for line in answer.aiter_text()])
    found = re.search(r"event: refused\ndata: (.*)\n", text)
    assert found, text
    return str(json.loads(found[1]))


def test_a_port_that_cannot_be_had_is_one_clear_line() -> None:
    with contextlib.closing(Page("127.0.0.1", 0).socket) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--serve-port {port} is in use on 127.0.0.1: choose another"):
            Page("127.0.0.1", port)
    with pytest.raises(ConfigError, match="a port is a number from 0 to 65535"):
        Page("127.0.0.1", 70_000)
    with pytest.raises(ConfigError, match=r"--serve-host no\.such\.host\.invalid: cannot listen there"):
        Page("no.such.host.invalid", 0)
