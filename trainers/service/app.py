"""The page as an ASGI application: routes and their answers."""
# edge: HTTP; every route answers from the run's public face

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from pathlib import Path
from typing import Literal

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trainers.config import ConfigError
from trainers.run import Run
from trainers.service.access import Access, Guard, Refused
from trainers.service.commands import execute
from trainers.service.curves import MOST_POINTS, curves
from trainers.service.frames import Frames
from trainers.service.live import Live
from trainers.service.snapshot import snapshot

__all__ = ["make_app"]

STATIC = Path(__file__).with_name("static")
MOST_BODY = 16 * 1024  # bytes of a command
MOST_READERS = 512
log = logging.getLogger("trainers")


def make_app(run: Run, *, hosts: Iterable[str] = (), auth: Literal["token", "none"] = "token") -> Starlette:
    """The page of `run`, to be served or mounted: `app.mount("/train", make_app(run, hosts=[…], auth="none"))`.

    `hosts`: the names it is reached under, besides the loopback names; a request under any other is refused.
    `auth="token"`: lets in whoever has `app.state.access.token`, in the link `…/?token=…` or as a bearer token.
    `auth="none"`: whoever can reach it can steer the run; say so only behind a host application that asks who it is.

    It takes over no signals, no logging and no lifespan. Its tasks live while somebody reads the events, and end with
    the run. Raises `ConfigError` where a package of the extra `service` is missing.
    """
    access = Access(hosts, auth, str(run.folder.path))
    routes = Routes(run, access)
    app = Starlette(
        routes=[
            Route("/", routes.page),
            Route("/static/{name}", routes.static),
            Route("/api/session", routes.session),
            Route("/api/state", routes.state),
            Route("/api/events", routes.events),
            Route("/api/commands/{name}", routes.command, methods=["POST"]),
            Route("/metrics", routes.metrics),
        ],
        middleware=[Middleware(Guard, access=access)],
        exception_handlers={HTTPException: _refusal, Refused: _refusal, Exception: _failure},
    )
    app.state.access, app.state.live = access, routes.live
    return app


class Routes:
    """One method per route."""

    def __init__(self, run: Run, access: Access) -> None:
        self.live = Live(run)
        self._run, self._access, self._frames = run, access, Frames(run)
        self._files = {
            "app.css": STATIC / "app.css",
            "app.js": STATIC / "app.js",
            "plotly.js": plotly_script(),
        }

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-store"})

    async def static(self, request: Request) -> Response:
        file = self._files.get(request.path_params["name"])
        if file is None:
            raise Refused(404, "no such file")
        return FileResponse(file, headers={"cache-control": "no-cache"})

    async def session(self, request: Request) -> Response:
        return JSONResponse({"command_token": self._access.command_token})

    async def state(self, request: Request) -> Response:
        points = _number(request, "points", MOST_POINTS)
        text = json.dumps(snapshot(self._run), ensure_ascii=False).encode()
        if points:
            lines = await run_in_threadpool(curves, self._run.folder.metrics, points)
            text = text[:-1] + b', "curves": [' + b",".join(lines) + b"]}"
        return Response(text, media_type="application/json")

    async def events(self, request: Request) -> Response:
        if self.live.ring.readers >= MOST_READERS:
            raise Refused(503, f"{MOST_READERS} readers are connected already")
        if "watch" in request.query_params:
            events = self._frames.watch(_number(request, "watch", 2**31))
        else:
            events = self.live.read(request.headers.get("last-event-id"))
        return StreamingResponse(_begun(events), media_type="text/event-stream")

    async def command(self, request: Request) -> Response:
        name = request.path_params["name"]
        body = await _body(request)
        try:
            data = json.loads(body)
        except ValueError:
            raise Refused(400, f"{name}: the body is not JSON") from None
        return JSONResponse(await execute(self._run, name, data))

    async def metrics(self, request: Request) -> Response:
        try:
            from trainers.service.prometheus import CONTENT_TYPE, exposition
        except ImportError:
            raise Refused(501, "metrics need the extra: pip install 'aio-vecenv[metrics]'") from None
        return Response(exposition(self._run), media_type=CONTENT_TYPE)


async def _begun(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The headers go out with a first comment: a run may have nothing to say for a while."""
    yield b"retry: 1000\n: connected\n\n"
    # a reader that breaks off is gone at once, not when somebody collects it
    async with contextlib.aclosing(events):
        async for chunk in events:
            yield chunk


async def _body(request: Request) -> bytes:
    """Raises Refused as soon as it is known to be too long: nothing is kept that is not wanted."""
    if (length := request.headers.get("content-length", "0")).isdecimal() and int(length) > MOST_BODY:
        raise Refused(413, f"a command has at most {MOST_BODY} bytes")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            raise Refused(413, f"a command has at most {MOST_BODY} bytes")
    return body


def _number(request: Request, name: str, most: int) -> int:
    text = request.query_params.get(name, "0")
    if not text.isdecimal() or int(text) > most:
        raise Refused(400, f"{name} is a number from 0 to {most}, got {text!r:.60}")
    return int(text)


async def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return error.response(request.headers)
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)


def plotly_script() -> Path:
    """The script in plotly's wheel, found without importing plotly. Raises `ConfigError` if it is not there."""
    spec = importlib.util.find_spec("plotly")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        script = Path(place) / "package_data" / "plotly.min.js"
        if script.is_file():
            return script
    raise ConfigError("the page needs the extra: pip install 'aio-vecenv[service]' (plotly is missing)")
