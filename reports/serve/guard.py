"""What stands before the server: which hosts and origins are answered, how large a body may be, what a browser may load."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 2**19
MAX_DRAINED_BYTES = 2**28
"""Of a body that is too large so much is read and thrown away, so that its sender can read the refusal."""
BODY_S = 30.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
}


class Refused(Exception):
    """A request that is refused, with its status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class Guard:
    """Answers known hosts only, so that no foreign name can be made to point here (DNS rebinding), and no foreign page."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], any_address: bool) -> None:
        self.app, self.hosts, self.any_address = app, frozenset(h.lower() for h in hosts), any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        if line := self._foreign(Headers(scope=scope)):
            await JSONResponse({"error": line}, 421)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)

    def _foreign(self, headers: Headers) -> str:
        """Return why a request is not for this server, or nothing."""
        named = headers.getlist("host")
        if len(named) != 1 or not self._is_known(host := _name(named[0])):
            return f"host: {', '.join(named)[:80]!r} is not answered here; `headway serve --allow-host NAME` adds a name"
        origin = headers.get("origin")
        if origin is not None and (_name(urlsplit(origin).netloc) != host or "null" in origin):
            return f"origin: pages of {origin[:80]!r} are not answered"
        return ""

    def _is_known(self, host: str) -> bool:
        if host in self.hosts:
            return True
        try:
            # an address cannot be made to point elsewhere
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return self.any_address


def _name(netloc: str) -> str:
    """Return the host of 'host:port', an IPv6 address without its brackets."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""


async def body_of(request: Request) -> bytes:
    """Return the JSON text of a request, or refuse it: 415 for another type, 413 for too much, 408 for too slow."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refused(415, "content-type: must be application/json")
    try:
        async with asyncio.timeout(BODY_S):
            return await _read(request)
    except TimeoutError:
        raise Refused(408, f"body: did not come within {BODY_S:g} s") from None


async def _read(request: Request) -> bytes:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            chunks.append(chunk)
        elif size > MAX_DRAINED_BYTES:
            break
        else:
            chunks.clear()
    if size > MAX_BODY_BYTES:
        raise Refused(413, f"body: must be at most {MAX_BODY_BYTES:,} bytes")
    return b"".join(chunks)
