"""A server of the page in a process of its own, and how the tests talk to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ASKED = {"model": "gpt2", "cluster": "dgx-h100", "gpus": 8, "tokens": "1B"}


class Reply(NamedTuple):
    """A status with what came with it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


@contextmanager
def serving(*options: str) -> Iterator[int]:
    """Yield the port of `headway serve`, which must end by itself when it is asked to."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.environ.get("HEADWAY_WHEEL", str(ROOT))}
    process = subprocess.Popen([sys.executable, "-m", "headway", "serve", "--port", "0", *options], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        found = re.search(r":(\d+)/ ", process.stdout.readline())
        assert found, process.communicate()
        yield int(found[1])
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert "Traceback" not in said and "leaked" not in said, said


def ask(port: int, path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
    """Return the reply to a request; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        given = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        line.request(method or ("GET" if data is None else "POST"), path, data, given)
        reply = line.getresponse()
        return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
    finally:
        line.close()
