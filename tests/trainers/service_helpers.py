"""A served run, and clients for it: what the page's tests share."""
# async: real workers, a real server

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.trainers.helpers import corridor_job, tiny
from trainers import Job, Run, TrainConfig, training
from trainers.service import Page, serving


@dataclass
class Served:
    """A run in progress, its page, and who may look at it."""

    run: Run
    page: Page
    link: str
    client: httpx.AsyncClient  # has traded the token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.page.port}"

    @property
    def token(self) -> str:
        return self.link.partition("token=")[2]

    async def headers(self) -> dict[str, str]:
        """What a command carries."""
        session = (await self.client.get("/api/session")).json()
        return {"x-command-token": session["command_token"]}

    async def command(self, name: str, /, **arguments: Any) -> httpx.Response:
        return await self.client.post(
            f"/api/commands/{name}", json={"by": "ana", **arguments}, headers=await self.headers()
        )

    async def state(self, points: int = 0) -> Any:
        answer = await self.client.get("/api/state", params={"points": points})
        return json.loads(answer.text, parse_constant=_no_such_number)


def _no_such_number(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def endless(runs: Path, **changes: Any) -> TrainConfig:
    """Two workers that train until somebody stops them."""
    config = {
        "backend": "process",
        "num_workers": 2,
        "total_steps": 10_000_000,
        "deterministic": False,
        "checkpoint_every": 1000,
        **changes,
    }
    return tiny(runs, **config)


@contextlib.asynccontextmanager
async def served(
    config: TrainConfig, job: Job | None = None, resume: Path | None = None
) -> AsyncIterator[Served]:
    """A run with its page, on a free port. In processes it leaves CPU time to whoever looks at it."""
    job = corridor_job(delay_s=0.002 if config.backend == "process" else 0.0) if job is None else job
    page = Page("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.service.commands.RECEIPT_S", 60.0)  # a busy machine is no stuck worker
        async with training(config, job=job, resume=resume) as run, serving(run, page) as link:
            base = f"http://127.0.0.1:{page.port}"
            async with httpx.AsyncClient(base_url=base, timeout=60) as client:
                assert (await client.get(link)).status_code == 200
                yield Served(run, page, link, client)


async def events(
    client: httpx.AsyncClient, last: str | None = None, **query: Any
) -> AsyncGenerator[tuple[str, str, Any], None]:
    """(event, id, data) of the stream."""
    headers = {} if last is None else {"last-event-id": last}
    async with client.stream("GET", "/api/events", headers=headers, params=query) as answer:
        assert answer.status_code == 200, await answer.aread()
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "event" in fields:
                yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}
