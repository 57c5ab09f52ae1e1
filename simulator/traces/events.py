"""Trace files, event by event: a file of any size is read in little memory, and a cut or damaged one is refused."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from profiles.files import BadInput

Event = dict[str, Any]

PIECE = 1 << 22
"""Characters read at once."""
LONGEST = 1 << 25
"""Characters that one event, or one field beside the events, may have."""
_GZIP = b"\x1f\x8b"
_decode = json.JSONDecoder(strict=False).raw_decode
_blank = re.compile(r"\s*")
_comma = re.compile(r"\s*,\s*")


def read_events(path: str | Path, take: Callable[[Event], None]) -> dict[str, Any]:
    """Hand every event of a trace (JSON object form of the Trace Event Format, gzip or not) to `take`, in order.

    Returns the fields beside `traceEvents`. A file that is not such a trace, or ends too early, is a `BadInput`.
    """
    with opened(path) as file:
        return _Reader(file, str(path)).document(take)


@contextmanager
def opened(path: str | Path) -> Iterator[IO[str]]:
    """Yield the text of a trace file, unpacked where it is gzip; what cannot be read is a `BadInput`."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == _GZIP
        # names of kernels may hold anything; only structure matters here
        with (gzip.open if packed else open)(path, "rt", encoding="utf-8", errors="replace") as file:
            yield file
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder, a trace file is needed") from None
    except PermissionError:
        raise BadInput(f"{path}: not readable") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise BadInput(f"{path}: the gzip file is cut or damaged; copy it again") from None


class _Reader:
    """The text of a file, of which a piece is held, and a place in it."""

    def __init__(self, file: IO[str], path: str) -> None:
        self.file, self.path = file, path
        self.text, self.at, self.passed, self.num_events, self.ended = "", 0, 0, 0, False

    def document(self, take: Callable[[Event], None]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if self.next() != "{":
            raise BadInput(f"{self.path}: is no trace: JSON with the field traceEvents is needed, as torch.profiler writes")
        self.at += 1
        found = False
        while self.next() != "}":
            key = self.value()
            self.step(":")
            if key == "traceEvents":
                self.events(take)
                found = True
            else:
                fields[str(key)] = self.value()
            if self.next() != "}":
                self.step(",")
        if not found:
            raise BadInput(f"{self.path}: is no trace: it has no field traceEvents")
        return fields

    def events(self, take: Callable[[Event], None]) -> None:
        self.step("[")
        if self.next() == "]":
            self.at += 1
            return
        while True:
            event = self.value()
            if not isinstance(event, dict):
                raise BadInput(f"{self.path}: event {self.num_events} is {event!r:.40}, a mapping is needed")
            take(event)
            self.num_events += 1
            if comma := _comma.match(self.text, self.at):
                self.at = comma.end()
            elif self.next() == "]":
                self.at += 1
                return
            else:
                self.step(",")

    def value(self) -> Any:
        """Return the JSON value at this place, and go behind it."""
        self.next()
        while True:
            try:
                value, end = _decode(self.text, self.at)
            except json.JSONDecodeError as e:
                if self.ended or len(self.text) - self.at > LONGEST:
                    raise self.fault(e) from None
            else:
                # a number may go on behind the piece that is held
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            self.more()

    def next(self) -> str:
        """Return the next character that is no blank, and stop in front of it."""
        while True:
            blank = _blank.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                raise self.cut()
            self.more()

    def step(self, character: str) -> None:
        if self.next() != character:
            raise self.fault(json.JSONDecodeError(f"Expecting {character!r}", self.text, self.at))
        self.at += 1

    def more(self) -> None:
        piece = self.file.read(PIECE)
        self.passed += self.at
        self.text, self.at, self.ended = self.text[self.at :] + piece, 0, not piece

    def fault(self, e: json.JSONDecodeError) -> BadInput:
        if self.ended and (e.msg.startswith("Unterminated string") or e.pos >= len(self.text.rstrip()) - 4):
            return self.cut()
        return BadInput(f"{self.path}: not JSON at character {self.passed + e.pos}, in event {self.num_events}: {e.msg}")

    def cut(self) -> BadInput:
        if self.passed + len(self.text) == 0:
            return BadInput(f"{self.path}: is empty, a trace is needed")
        return BadInput(
            f"{self.path}: is cut: it ends after {self.num_events} whole events, without the end of traceEvents; "
            "export it again, and let the export finish"
        )


def number(event: Event, key: str, path: str, index: int) -> float:
    """Return a number of an event, in microseconds; anything else, or a duration below 0, is a `BadInput`."""
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadInput(f"{path}: event {index} ({event.get('name')!r}): {key}: a number is needed (is {value!r})")
    if key == "dur" and value < 0:
        raise BadInput(f"{path}: event {index} ({event.get('name')!r}): dur: is {value}, a duration is 0 or more")
    return value
