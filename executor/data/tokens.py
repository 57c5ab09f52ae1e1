"""Text to tokens and back: bytes, or a tokenizer file of Hugging Face's `tokenizers`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from executor.data.texts import Piece
from profiles.files import BadInput

BYTES = "bytes"
BYTE_VOCAB = 256
END_BYTE = 0xFF
"""Ends a document of bytes: it is in no UTF-8 text (RFC 3629, section 1)."""
TOKENIZER_FILE = "tokenizer.json"
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")
"""What tokenizers call the end of a document."""
Tokens = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """How text becomes tokens: `bytes`, or a file; tokens are below `vocab`, and a document ends with one of them."""

    name: str
    vocab: int
    end_of_document: int
    path: str = ""
    sha256: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the smallest unsigned type that holds all tokens."""
        return np.min_scalar_type(self.vocab - 1)


def load_tokenizer(name: str, end_of_document: str | None = None) -> Tokenizer:
    """Return the tokenizer of bytes, or that of a file or of a folder with a `tokenizer.json`."""
    if name == BYTES:
        if end_of_document is not None:
            raise BadInput(f"end_of_document: {end_of_document!r}: goes with a tokenizer file; bytes end with {END_BYTE:#x}")
        return Tokenizer(name=BYTES, vocab=BYTE_VOCAB, end_of_document=END_BYTE)
    path = Path(name) / TOKENIZER_FILE if Path(name).is_dir() else Path(name)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise BadInput(f"tokenizer: {name!r} cannot be read ({e.strerror}); give '{BYTES}' or a {TOKENIZER_FILE}") from None
    ids: dict[str, int] = _library(str(path)).get_vocab()
    return Tokenizer(
        name=path.name, vocab=max(ids.values()) + 1, end_of_document=_end(ids, end_of_document, str(path)), path=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _end(ids: dict[str, int], given: str | None, origin: str) -> int:
    names = [given] if given is not None else [name for name in END_NAMES if name in ids]
    if len(names) != 1 or names[0] not in ids:
        found = f"{names[0]!r} is not in it" if given is not None else f"has {', '.join(names) or 'none of the usual ones'}"
        raise BadInput(f"end_of_document: {origin}: {found}; name the token that ends a document (--end-of-document)")
    return ids[names[0]]


@lru_cache(maxsize=4)
def _library(path: str) -> Any:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise BadInput("tokenizers: is not installed, and tokenizer files need it; pip install headway[data]") from None
    try:
        library = Library.from_file(path)
    except Exception as e:  # the library raises nothing narrower
        raise BadInput(f"tokenizer: {path} is no file of the tokenizers library ({str(e).splitlines()[0]})") from None
    # a file may carry what its model was fine-tuned with, and a text may hold the names of special tokens
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Return the tokens of each text, without an end."""
    if tokenizer.name == BYTES:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]
    found = _library(tokenizer.path).encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(one.ids, dtype=tokenizer.dtype) for one in found]


def decode(tokenizer: Tokenizer, tokens: Tokens) -> str:
    """Return the text of tokens, ends of documents left out."""
    kept = tokens[tokens != tokenizer.end_of_document]
    if tokenizer.name == BYTES:
        return bytes(kept.astype(np.uint8)).decode()
    return str(_library(tokenizer.path).decode(kept.tolist(), skip_special_tokens=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """The tokens of a piece of text, ends included, the documents that end in it and the bytes of its text."""

    tokens: Tokens
    num_documents: int
    text_bytes: int
    read_bytes: int


def encode_piece(tokenizer: Tokenizer, field: str, piece: Piece) -> Encoded:
    """Return the tokens of a piece; what is not UTF-8, or no document, is a `BadInput` with its line."""
    texts = _documents(piece, field) if piece.kind == ".jsonl" else [_text(piece)]
    end = np.array([tokenizer.end_of_document], dtype=tokenizer.dtype)
    parts: list[Tokens] = []
    num_documents = 0
    for tokens in encode(tokenizer, texts):
        closed = piece.kind == ".jsonl" or piece.last
        # an empty line is no document, but the last piece of a text ends what came before it, even without a token
        if len(tokens) or (piece.kind == ".txt" and piece.data):
            parts += [tokens, end] if closed else [tokens]
            num_documents += closed
    return Encoded(
        tokens=np.concatenate(parts) if parts else end[:0], num_documents=num_documents, read_bytes=piece.read_bytes,
        text_bytes=sum(len(text.encode()) for text in texts),
    )


def _text(piece: Piece) -> str:
    try:
        return piece.data.decode()
    except UnicodeDecodeError as e:
        line = piece.line + piece.data.count(b"\n", 0, e.start)
        raise BadInput(f"{piece.path}: line {line}: is not UTF-8 ({e.reason})") from None


def _documents(piece: Piece, field: str) -> list[str]:
    found = []
    for number, line in enumerate(piece.data.split(b"\n"), piece.line):
        if line.strip():
            found.append(_document(line, field, f"{piece.path}: line {number}"))
    return found


def _document(line: bytes, field: str, origin: str) -> str:
    try:
        data = json.loads(line)
    except ValueError as e:
        raise BadInput(f"{origin}: is not JSON ({e})") from None
    if not isinstance(data, dict) or not isinstance(data.get(field), str):
        has = f"has {', '.join(map(str, data))}" if isinstance(data, dict) else f"is a {type(data).__name__}"
        raise BadInput(f"{origin}: {has}; an object with text in {field!r} is needed (--field)")
    text: str = data[field]
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{origin}: {field}: has half of a surrogate pair in it, which is no text") from None
    return text
