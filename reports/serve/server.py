"""The server: one page, its script and style, and the endpoints that they ask; JSON in, JSON out, no file by its path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Collection
from functools import partial
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from profiles.files import BadInput
from reports.serve import answer as jobs
from reports.serve.asked import Asked, asked_from
from reports.serve.guard import LOOPBACK, Guard, Refused, body_of
from reports.serve.page import page_files
from reports.serve.state import State
from reports.serve.worker import Busy, Stopped

__all__ = ["LOOPBACK", "application", "serve", "server_of"]

T = TypeVar("T")


def application(hosts: Collection[str] = LOOPBACK, any_address: bool = False) -> Starlette:
    """Return the application, which answers requests to these hosts; with `any_address` also to addresses as such."""
    state = State()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # started now: the first answer need not wait for them
        state.quick.start()
        state.later.start()
        try:
            yield
        finally:
            state.kill()

    pages = [Route(path, partial(_file, text=text, kind=kind)) for path, (kind, text) in page_files().items()]
    return Starlette(
        routes=[
            *pages,
            Route("/api/controls", partial(_controls, state), methods=["POST"]),
            Route("/api/answer", partial(_answer, state), methods=["POST"]),
            Route("/api/sizes", partial(_sizes, state), methods=["POST"]),
            Route("/api/plan", partial(_plan, state), methods=["POST"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts, any_address=any_address)], lifespan=lifespan,
        exception_handlers={
            BadInput: lambda request, e: _error(422, str(e)), Stopped: lambda request, e: _error(422, f"question: {e}"),
            Refused: lambda request, e: _error(e.status, e.line),
            Busy: lambda request, e: _error(429, "server: too many questions wait already; ask again in a while"),
            HTTPException: lambda request, e: _error(e.status_code, e.detail),
            ClientDisconnect: lambda request, e: Response(status_code=499),
            Exception: lambda request, e: _error(500, "server: a fault of Headway's own; its terminal says which"),
        },
    )


def serve(sock: socket.socket, app: Starlette) -> None:
    """Answer on a socket that is bound, until it is stopped."""
    if threading.current_thread() is threading.main_thread():
        # ended by SIGTERM, the workers are tidied up as they are by Ctrl-C
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    server_of(app).run(sockets=[sock])


def server_of(app: Starlette) -> uvicorn.Server:
    """Return the server of an application, with the limits of its connections."""
    return uvicorn.Server(uvicorn.Config(
        app, http="h11", ws="none", loop="asyncio", lifespan="on", log_level="warning", access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=128, timeout_keep_alive=10, timeout_graceful_shutdown=2,
    ))


def _error(status: int, line: str) -> JSONResponse:
    return JSONResponse({"error": line}, status)


async def _file(request: Request, text: str, kind: str) -> Response:
    return Response(text, media_type=kind)


async def _controls(state: State, request: Request) -> Response:
    given = await body_of(request)
    asked = asked_from(given, needs={"gpus": 1, "tokens": "1B"})
    return JSONResponse(await _while_there(request, state.quick.run(jobs.controls, asked)))


async def _answer(state: State, request: Request) -> Response:
    return JSONResponse(await _while_there(request, state.answer(await _asked(request))))


async def _sizes(state: State, request: Request) -> Response:
    return JSONResponse(await _while_there(request, state.sizes(await _asked(request))))


async def _asked(request: Request) -> Asked:
    return asked_from(await body_of(request))


async def _plan(state: State, request: Request) -> Response:
    """Answer with lines of JSON: how far the search is, and at the end the files, or why there are none."""
    asked = await _asked(request)
    said: asyncio.Queue[float] = asyncio.Queue()
    job = asyncio.ensure_future(_while_there(request, state.plans.run(jobs.whole_plan, asked, tell=said.put_nowait)))
    first = asyncio.ensure_future(said.get())
    await asyncio.wait([job, first], return_when=asyncio.FIRST_COMPLETED)
    if job.done() and job.exception() is not None:
        first.cancel()
        # what is wrong with the question has a status of its own
        await job
    return StreamingResponse(_lines(job, first, said), media_type="application/x-ndjson")


async def _lines(
    job: asyncio.Future[dict[str, Any]], first: asyncio.Future[float], said: asyncio.Queue[float]
) -> AsyncIterator[str]:
    next_one = first
    try:
        while not job.done():
            either: list[asyncio.Future[Any]] = [job, next_one]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if next_one.done():
                yield json.dumps({"share": next_one.result()}) + "\n"
                next_one = asyncio.ensure_future(said.get())
        yield json.dumps({"error": str(job.exception())} if job.exception() else job.result()) + "\n"
    finally:
        next_one.cancel()
        job.cancel()


async def _while_there(request: Request, work: Awaitable[T]) -> T:
    """Return what work gives; it is given up where whoever asked has left, as a page does with a question out of date."""
    job = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([job, left], return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        left.cancel()
        if not job.done():
            job.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await job


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
