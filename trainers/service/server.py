"""The page, served from the run's own event loop by uvicorn, without its signal handlers."""
# edge: a listening socket; it handles no signal and configures no logging

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from trainers.config import ConfigError
from trainers.run import Run
from trainers.service.access import LOOPBACK
from trainers.service.app import make_app, plotly_script

__all__ = ["Page", "serving"]

GRACE_S = 3  # for answers under way, once the run has ended


class Page:
    """A bound port, held before anything is started: a port in use costs no run."""

    def __init__(self, host: str, port: int) -> None:
        """Raises `ConfigError` where the address cannot be used, or a package of the extra is missing."""
        plotly_script()
        if not 0 <= port <= 65_535:
            raise ConfigError(f"--serve-port {port}: a port is a number from 0 to 65535")
        self.host = host
        try:
            self.socket = _bind(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"--serve-port {port} is in use on {host}: choose another, or 0 for any that is free"
                ) from None
            raise ConfigError(
                f"--serve-host {host}: cannot listen there: {error.strerror or error}"
            ) from None
        self.port: int = self.socket.getsockname()[1]

    def hosts(self) -> list[str]:
        """The names that it is reached under."""
        if not self.everywhere:
            return [self.host]
        return ["*", socket.gethostname(), socket.getfqdn()]

    @property
    def everywhere(self) -> bool:
        """It listens on every address of this machine."""
        return self.host in ("0.0.0.0", "::", "")

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.host in LOOPBACK:
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    def link(self, token: str) -> str:
        name = socket.gethostname() if self.everywhere else self.host
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}/?token={token}"


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


class _Server(uvicorn.Server):
    """uvicorn, without its signal handlers, and asleep while nobody asks (it would look around ten times a second)."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.ending.wait()


@contextlib.asynccontextmanager
async def serving(run: Run, page: Page) -> AsyncIterator[str]:
    """Serve `run` on `page`; gives the link, with its token. Leaving ends the readers, then closes the socket."""
    app = make_app(run, hosts=page.hosts())
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, date_header=False, server_header=False,
        timeout_graceful_shutdown=GRACE_S, timeout_keep_alive=30,
    )  # fmt: skip
    server: Any = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[page.socket]), name="trainers.service.server")
    try:
        yield page.link(app.state.access.token)
    finally:
        await app.state.live.aclose()
        server.ending.set()
        await task
