"""Text files as pieces of bounded size: .txt (a document a file), .jsonl (a document a line), packed with .gz or .zst."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from profiles.files import BadInput

PIECE_BYTES = 1 << 20
"""About what one process takes at a time; text is cut at line ends, so the tokens depend on it, but not on who makes them."""
KINDS, PACKED = (".txt", ".jsonl"), (".gz", ".zst")
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a text file: whole lines as bytes, the number of the first one, and whether the file ends with it.

    `read_bytes` is how much of the file was read for it.
    """

    path: str
    kind: str
    line: int
    data: bytes
    last: bool
    read_bytes: int


def find_texts(inputs: Sequence[str | Path]) -> tuple[list[Path], int]:
    """Return text files as given, those of folders sorted by path, and how many other files in folders were left out."""
    found: list[Path] = []
    others = 0
    for path in map(Path, inputs):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p.relative_to(path)))
            texts = [p for p in inside if kind_of(p)]
            others += len(inside) - len(texts)
            if not texts:
                raise BadInput(f"{path}: has no text in it; wanted are {_wanted()}")
            found += texts
        elif not path.exists():
            raise BadInput(f"{path}: no such file")
        elif not kind_of(path):
            raise BadInput(f"{path}: is no text that is known by its name; wanted are {_wanted()}")
        else:
            found.append(path)
    if not found:
        raise BadInput("texts: none given; name files or folders")
    return found, others


def _wanted() -> str:
    return f"{' and '.join(KINDS)}, also with {' or '.join(PACKED)} behind"


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def kind_of(path: Path) -> str:
    """Return '.txt' or '.jsonl' by a file's name, or nothing."""
    suffixes = path.suffixes[:-1] if path.suffix in PACKED else path.suffixes
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def pieces(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the pieces of a text file; one that cannot be read or unpacked is a `BadInput`."""
    kind, line, told = kind_of(path), 1, 0
    held = b""
    try:
        with path.open("rb") as file:
            for chunk in _unpacked(file, path):
                held += chunk
                cut = _cut(held, piece_bytes, kind)
                while cut:
                    at = file.tell()
                    yield Piece(path=str(path), kind=kind, line=line, data=held[:cut], last=False, read_bytes=at - told)
                    line, told, held = line + held.count(b"\n", 0, cut), at, held[cut:]
                    cut = _cut(held, piece_bytes, kind)
            yield Piece(path=str(path), kind=kind, line=line, data=held, last=True, read_bytes=file.tell() - told)
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror or e})") from None


def _cut(held: bytes, piece_bytes: int, kind: str) -> int:
    """Return where to cut: behind the last line end that a piece holds, or nowhere yet."""
    if len(held) <= piece_bytes:
        return 0
    end = held.rfind(b"\n", 0, piece_bytes) + 1
    if end or kind == ".jsonl":
        return end or held.find(b"\n") + 1
    end = piece_bytes
    # text without line ends: not inside a character
    while end > 1 and held[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _unpacked(file: BinaryIO, path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        yield from _unpacked_zstd(file, path)
        return
    source: Any = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    try:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise BadInput(f"{path}: is not a whole gzip file ({e})") from None


def _unpacked_zstd(file: BinaryIO, path: Path) -> Iterator[bytes]:
    zstd = zstandard()
    frame = zstd.ZstdDecompressor().decompressobj()
    begun = False
    try:
        while chunk := file.read(_CHUNK_BYTES):
            while chunk:
                if frame.eof:
                    frame = zstd.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                begun, chunk = True, frame.unused_data
    except zstd.ZstdError as e:
        raise BadInput(f"{path}: is not a zstd file ({e})") from None
    if begun and not frame.eof:
        raise BadInput(f"{path}: is not a whole zstd file: it ends in the middle")


def zstandard() -> Any:
    """Return the library that packs and unpacks zstd."""
    try:
        import zstandard
    except ImportError:
        raise BadInput("zstandard: is not installed, and shards and .zst files need it; pip install headway[data]") from None
    return zstandard
