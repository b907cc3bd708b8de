"""Who may ask, and for what: host names, the token and what it is traded for, and what every answer carries."""
# edge: HTTP headers; secrets stay in memory

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Iterable
from typing import Literal

from starlette.datastructures import URL, Headers, MutableHeaders, QueryParams
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["COMMAND_HEADER", "LOOPBACK", "Access", "Guard", "Refused"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
COMMAND_HEADER = "x-command-token"
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A request that is not answered, with the status and one clear line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text

    def response(self, headers: Headers) -> Response:
        if headers.get("accept", "").startswith("text/html"):  # a person looks at it
            return PlainTextResponse(self.text, self.status)
        return JSONResponse({"error": self.text}, self.status)


class Access:
    """The secrets of one start, and the names under which the page is served.

    `token` (None with auth="none") stands in the printed link, and is traded for a cookie; `command_token` is what
    every command must carry in a header, which no other site can read or send.
    """

    def __init__(self, hosts: Iterable[str], auth: Literal["token", "none"], run: str) -> None:
        if auth not in ("token", "none"):
            raise ValueError(f"auth is {auth!r}, not 'token' or 'none'")
        self.hosts = {*LOOPBACK, *(host.strip("[]").lower() for host in hosts)}
        self.token = secrets.token_urlsafe(24) if auth == "token" else None
        self.command_token = secrets.token_urlsafe(24)
        self._cookie = secrets.token_urlsafe(24)
        self._run = hashlib.sha256(run.encode()).hexdigest()[:8]

    def check_host(self, headers: Headers) -> None:
        """Raise Refused unless the Host is one of ours. "*" among the hosts stands for every address, but for no
        other name: an attacker's name may be made to lead here, an address cannot.
        """
        name = _host_name(headers.get("host", ""))
        if name not in self.hosts and not ("*" in self.hosts and _is_address(name)):
            raise Refused(403, "this page is not served under that host name")

    def check_login(self, scope: Scope, headers: Headers) -> str | None:
        """Raise Refused unless the caller has the token, or what it was traded for. Returns the Set-Cookie header where
        the link's token is to be traded.
        """
        if self.token is None:
            return None
        given = QueryParams(scope.get("query_string", b"")).get("token")
        if given is not None:
            if not _same(given, self.token):
                raise Refused(401, "wrong token: use the link that this start of the run has printed")
            return self._set_cookie(scope)
        bearer = headers.get("authorization", "")
        if bearer[:7].lower() == "bearer " and _same(bearer[7:].strip(), self.token):
            return None
        if not _same(_cookies(headers).get(self._cookie_name(scope), ""), self._cookie):
            raise Refused(401, "no token: use the link that this start of the run has printed")
        return None

    def check_command(self, scope: Scope, headers: Headers) -> None:
        """Raise Refused unless a command comes from the page itself, or from a program that has read `/api/session`."""
        origin = headers.get("origin")
        if origin is not None and URL(origin).netloc.lower() != headers.get("host", "").lower():
            raise Refused(403, "a command from another site")
        if not _same(headers.get(COMMAND_HEADER, ""), self.command_token):
            raise Refused(
                403, f"a command needs the header {COMMAND_HEADER}, with what GET api/session gives"
            )
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "a command's arguments are JSON: content-type application/json")

    def _cookie_name(self, scope: Scope) -> str:
        server = scope.get("server") or ("", 0)
        return f"aio-vecenv-{server[1]}-{self._run}"  # a browser sends cookies to every port of a host

    def _set_cookie(self, scope: Scope) -> str:
        path = scope.get("root_path", "").rstrip("/") + "/"
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        return f"{self._cookie_name(scope)}={self._cookie}; Path={path}; HttpOnly; SameSite=Strict{secure}"


class Guard:
    """Lets nothing through to the application that `Access` refuses, and adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cookie: str | None = None

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if cookie is not None:
                    headers.append("set-cookie", cookie)
            await send(message)

        headers, access = Headers(scope=scope), self._access
        try:
            access.check_host(headers)
            cookie = access.check_login(scope, headers)
            if scope["method"] not in ("GET", "HEAD"):
                access.check_command(scope, headers)
        except Refused as refused:
            await refused.response(headers)(scope, receive, sending)
            return
        await self._app(scope, receive, sending)


def _host_name(host: str) -> str:
    """A Host header without its port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(), secret.encode())


def _cookies(headers: Headers) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        found[name] = value
    return found
