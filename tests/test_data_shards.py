"""Shards: what is written is what was read, byte for byte the same, whole or not at all; damage is found and named."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("zstandard")
import zstandard

from executor.data.check import faults
from executor.data.prepare import prepare
from executor.data.shards import INDEX_FILE, Shards, decode_block, fetch_block, open_shards, pack
from executor.data.tokens import Tokenizer, decode, load_tokenizer
from profiles.files import BadInput

BYTES = load_tokenizer("bytes")
DOCUMENTS = ["first\nof all", "zweites: äöü 🙂", "", "x" * 3000, "end\n\n", *(f"number {i} " * (i % 7) for i in range(300))]


def folder_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def stream(shards: Shards) -> np.ndarray:
    size = shards.index.block_tokens
    blocks = [decode_block(shards, i, fetch_block(shards, i))[:size] for i in range(shards.num_blocks)]
    return np.concatenate(blocks)


def documents(shards: Shards) -> list[str]:
    tokens = stream(shards)
    ends = np.flatnonzero(tokens == shards.index.end_of_document)
    assert ends[-1] == len(tokens) - 1
    return [decode(shards.tokenizer, part) for part in np.split(tokens, ends + 1)[:-1]]


def jsonl(path: Path, texts: list[str] = DOCUMENTS, key: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, key: text}) + "\n" for i, text in enumerate(texts)))
    return path


def made(tmp_path: Path, texts: Any = None, **given: Any) -> Shards:
    options: dict[str, Any] = {"block_tokens": 512, "shard_bytes": 600, "piece_bytes": 1000, "workers": 1} | given
    return prepare([texts or jsonl(tmp_path / "texts.jsonl")], tmp_path / "shards", options.pop("tokenizer", BYTES), **options)


def bpe(path: Path, **more: Any) -> Tokenizer:
    """Train a small tokenizer and write its file, as Hugging Face's library does."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    tokenizer.enable_truncation(16)  # as fine-tuned models leave it behind
    tokenizer.save(str(path))
    return load_tokenizer(str(path), **more)


def test_documents_come_back(tmp_path: Path) -> None:
    shards = made(tmp_path)
    wanted = [text for text in DOCUMENTS if text]
    assert documents(shards) == wanted
    assert shards.index.num_documents == len(wanted) and shards.index.dtype == "uint8"
    assert shards.index.text_bytes == sum(len(text.encode()) for text in wanted)
    assert shards.index.num_tokens == shards.index.text_bytes + len(wanted) == len(stream(shards))
    assert len(shards.index.shards) > 2 and shards.num_blocks > 4 and not faults(shards)


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst"])
def test_packed_and_plain_files(tmp_path: Path, suffix: str) -> None:
    text = "line one\nline two äöü\n" * 200 + "no line end"
    data = text.encode() if ".txt" in suffix else jsonl(tmp_path / "a", [text, "b"]).read_bytes()
    # two members behind one another, as cat makes them
    pack_ = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(suffix[-4:].lstrip("tl"), bytes)
    path = tmp_path / f"text{suffix}"
    path.write_bytes(pack_(data[:700]) + pack_(data[700:]))
    assert documents(made(tmp_path, path)) == ([text] if ".txt" in suffix else [text, "b"])


def test_text_without_line_ends_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("äöü🙂" * 2000)
    assert documents(made(tmp_path, tmp_path / "a.txt")) == ["äöü🙂" * 2000]


def test_folders_are_read_in_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/c.jsonl", ".hidden.txt", "picture.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(json.dumps({"text": name}) if name.endswith("jsonl") else name)
    assert documents(made(tmp_path, tmp_path / "in")) == ["a/c.jsonl", "a/z.txt", "b.txt"]


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, kind: str) -> None:
    tokenizer = BYTES if kind == "bytes" else bpe(tmp_path / "tokenizer.json")
    texts = jsonl(tmp_path / "texts.jsonl")
    for workers in (1, 2):
        prepare([texts], tmp_path / str(workers), tokenizer, workers=workers, block_tokens=512, shard_bytes=600,
                piece_bytes=1000)
    assert folder_of(tmp_path / "1") == folder_of(tmp_path / "2")


def test_tokenizer_files(tmp_path: Path) -> None:
    """Tokens are the library's own, in two bytes; a text that spells the end of a document does not end one."""
    tokenizer = bpe(tmp_path / "tokenizer.json")
    texts = ["a number 3 number", "<|endoftext|> is no end", DOCUMENTS[3], "🙂"]
    shards = made(tmp_path, jsonl(tmp_path / "t.jsonl", texts), tokenizer=tokenizer)
    assert shards.index.dtype == "uint16" and shards.index.vocab == 400 and shards.index.num_documents == 4
    assert documents(shards) == texts
    from tokenizers import Tokenizer as Library
    library = Library.from_file(str(shards.folder / "tokenizer.json"))
    library.no_truncation()
    assert stream(shards)[: len(library.encode(texts[0]).ids)].tolist() == library.encode(texts[0]).ids
    assert shards.tokenizer.path == str(shards.folder / "tokenizer.json")


def test_a_file_in_pieces_is_one_document(tmp_path: Path) -> None:
    text = "some words on a line\n" * 500
    (tmp_path / "a.txt").write_text(text)
    shards = made(tmp_path, tmp_path / "a.txt", tokenizer=bpe(tmp_path / "tokenizer.json"))
    assert documents(shards) == [text] and shards.index.num_documents == 1


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 30))
def test_pack_keeps_the_stream(sizes: list[int], block_tokens: int) -> None:
    whole = np.arange(sum(sizes))
    blocks = list(pack(np.split(whole, np.cumsum(sizes)), block_tokens))
    assert len(blocks) == -(-len(whole) // block_tokens)
    for i, block in enumerate(blocks):
        assert block.tolist() == whole[i * block_tokens : (i + 1) * block_tokens + 1].tolist()


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_found_and_named(tmp_path_factory: pytest.TempPathFactory, place: float, change: int) -> None:
    tmp_path = tmp_path_factory.mktemp("damaged")
    shards = made(tmp_path, jsonl(tmp_path / "t.jsonl", DOCUMENTS[:40]))
    at = int(place * shards.stored_bytes)
    block = int(np.searchsorted(np.cumsum(shards.size), at, side="right"))
    shard = shards.index.shards[int(shards.shard[block])]
    data = bytearray((shards.folder / shard.file).read_bytes())
    inside = at - int(shards.size[shards.shard < shards.shard[block]].sum())
    data[inside] ^= change
    (shards.folder / shard.file).write_bytes(data)
    found = faults(open_shards(shards.folder))
    number = block - int((shards.shard < shards.shard[block]).sum())
    assert len(found) == 1 and f"{shard.file}: block {number}: has the checksum" in found[0]
    assert f"the index says {shards.crc32[block]:08x}" in found[0]
    with pytest.raises(BadInput, match=f"block {number}"):
        decode_block(shards, block, fetch_block(shards, block))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


@pytest.mark.parametrize(("name", "damage", "says"), [
    ("shard-000001", cut, r"shard-000001: has \d+ bytes, the index says \d+"),
    ("shard-000001", Path.unlink, "shard-000001: is missing"),
    (INDEX_FILE, Path.unlink, "holds no shards"), (INDEX_FILE, cut, "not JSON"),
    (INDEX_FILE, lambda p: p.write_text(p.read_text().replace('"level": 3', '"level": 4')), "fingerprint"),
    (INDEX_FILE, lambda p: p.write_text(p.read_text().replace("shards/1", "shards/2")), "schema"),
])
def test_damaged_folders(tmp_path: Path, name: str, damage: Callable[[Path], object], says: str) -> None:
    shards = made(tmp_path)
    damage(shards.folder / name)
    with pytest.raises(BadInput, match=says):
        open_shards(shards.folder)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    shards = made(tmp_path)
    cut(shards.folder / shards.index.shards[-1].file)
    last = shards.num_blocks - 1
    with pytest.raises(BadInput, match=r"of \d+ bytes"):
        decode_block(shards, last, fetch_block(shards, last))


def test_nothing_is_overwritten_and_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    shards = made(tmp_path)
    before = folder_of(shards.folder)
    with pytest.raises(BadInput, match=r"out: .* is there already"):
        made(tmp_path)
    assert folder_of(shards.folder) == before
    shutil.rmtree(shards.folder)
    bad = jsonl(tmp_path / "bad.jsonl")
    bad.write_text(bad.read_text() + '{"id": 1}\n')
    tokenizer = bpe(tmp_path / "tokenizer.json")
    for more in ({}, {"workers": 2, "tokenizer": tokenizer}):
        with pytest.raises(BadInput, match=f"line {len(DOCUMENTS) + 1}: has id; .*'text'"):
            made(tmp_path, bad, **more)
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "bad.jsonl", "tokenizer.json"}


RANDOM_TEXT = random.Random(0).randbytes(500)  # the names of the tests below hold it: all workers must collect the same


@pytest.mark.parametrize(("name", "data", "says"), [
    ("a.txt", b"good\nb\xffd\n", "line 2: is not UTF-8"), ("a.jsonl", b'\n{"text": "a"}\n{"text"\n', "line 3: is not JSON"),
    ("a.jsonl", b'["text"]\n', "line 1: is a list"), ("a.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
    ("a.txt.gz", gzip.compress(b"abc" * 50, mtime=0)[:-9], "whole gzip"), ("a.txt.gz", b"abc", "whole gzip"),
    ("a.txt", b"", "no text"),
    ("a.txt.zst", zstandard.ZstdCompressor().compress(RANDOM_TEXT)[:-9], "whole zstd"), ("a.txt.zst", b"abcdefgh", "no"),
    ("a.pdf", b"abc", "known by its name"),
])
def test_bad_texts(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=says):
        made(tmp_path, tmp_path / name)


def test_bad_options(tmp_path: Path) -> None:
    for change, says in (({"level": 0}, "level"), ({"block_tokens": 0}, "block_tokens"), ({"workers": 0}, "workers")):
        with pytest.raises(BadInput, match=says):
            made(tmp_path, **change)
    for inputs, says in (([], "none given"), ([tmp_path / "none.txt"], "no such file")):
        with pytest.raises(BadInput, match=says):
            prepare(inputs, tmp_path / "out", BYTES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="has no text in it"):
        prepare([tmp_path / "empty"], tmp_path / "out", BYTES)


def test_bad_tokenizers(tmp_path: Path) -> None:
    good = bpe(tmp_path / "tokenizer.json", end_of_document="<|endoftext|>")
    assert good == load_tokenizer(str(tmp_path))
    with pytest.raises(BadInput, match="'</doc>' is not in it"):
        load_tokenizer(good.path, "</doc>")
    Path(good.path).write_text(Path(good.path).read_text().replace("<|endoftext|>", "<|other|>"))
    shutil.copy(good.path, tmp_path / "other.json")
    with pytest.raises(BadInput, match="none of the usual"):
        load_tokenizer(str(tmp_path / "other.json"))
    (tmp_path / "broken.json").write_text("{}")
    for name, says in (("broken.json", "no file of the tokenizers"), ("none.json", "cannot be read")):
        with pytest.raises(BadInput, match=says):
            load_tokenizer(str(tmp_path / name))
    with pytest.raises(BadInput, match="goes with a tokenizer file"):
        load_tokenizer("bytes", "</s>")


@pytest.mark.parametrize("library", ["zstandard", "tokenizers"])
def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    texts, path = jsonl(tmp_path / "t.jsonl"), bpe(tmp_path / "tokenizer.json").path
    shutil.copy(path, tmp_path / "again.json")
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(BadInput, match=rf"{library}: is not installed.*pip install headway\[data\]"):
        prepare([texts], tmp_path / "out", BYTES if library == "zstandard" else load_tokenizer(str(tmp_path / "again.json")))
