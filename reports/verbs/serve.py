"""`headway serve`."""

from __future__ import annotations

import socket
import sys
from typing import Annotated

import typer

from profiles.files import BadInput
from reports.console import console, status
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples("serve", "serve --port 0", "serve --host 0.0.0.0 --allow-host planner.example.org"))
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; only this machine reaches 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = 8765,
    allow_host: Annotated[list[str] | None, typer.Option(
        help="Also answer to this name, as browsers send it; may be repeated."
    )] = None,
    as_json: Json = False,
) -> None:
    """Serve a page on this machine: pick model and cluster, move sliders, see the plan change, download it."""
    try:
        from reports.serve import server
    except ModuleNotFoundError as e:
        if e.name not in ("starlette", "uvicorn"):
            raise
        raise BadInput(f"serve: {e.name} is not installed, and the page needs it; pip install 'headway[serve]'") from None
    sock = _bound(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{sock.getsockname()[1]}/"
    if as_json:
        print_json({"url": url})
        sys.stdout.flush()
    else:
        console.print(f"{url} (Ctrl-C ends it)", soft_wrap=True, highlight=False)
    is_open = host not in server.LOOPBACK
    if is_open:
        status.print("headway: whoever reaches this address can ask here: there is no password", soft_wrap=True)
    server.serve(sock, server.application((*server.LOOPBACK, host, *(allow_host or ())), any_address=is_open))


def _bound(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise BadInput(f"port: must be from 0 to 65535 (is {port})")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as e:
        raise BadInput(f"port: cannot listen on {host}:{port} ({e.strerror}); --port 0 takes any that is free") from None
