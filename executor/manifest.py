"""What makes a folder a checkpoint: a manifest with the checksum of each file, and what the files were trained on.

A run's folder has `checkpoints/step-N` (N steps trained) with DCP's files and `manifest.json`. A checkpoint is written beside
its place and renamed when it is whole and on the disk; a folder without a valid manifest is none. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from executor.data.shards import fingerprint
from executor.run import Job
from profiles import files
from profiles.files import BadInput
from profiles.model import ModelSpec

FOLDER, MANIFEST_FILE = "checkpoints", "manifest.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SavedFile(_Strict):
    """A file of a checkpoint as it must be."""

    bytes: NonNegativeInt
    sha256: str


class Manifest(_Strict):
    """A checkpoint's facts; `fingerprint` is the SHA-256 of all else in it."""

    schema_: Literal["headway.checkpoint/1"] = Field(alias="schema")
    step: NonNegativeInt = Field(description="steps trained")
    next_sample: NonNegativeInt = Field(description="where the data go on")
    global_batch: int
    seq_len: int
    seed: int
    model: str = Field(description="SHA-256 of its shapes and mathematics")
    data: str = Field(description="fingerprint of what was trained on")
    strategy: str = Field(description="in words; another one may go on")
    world_size: int
    date: str
    torch: str = Field(description="its version")
    files: dict[str, SavedFile] = Field(description="every file of the folder")
    fingerprint: str


def model_fingerprint(model: ModelSpec) -> str:
    """Return what tells a model from one of other shapes or other mathematics, whatever it is called."""
    return fingerprint({k: v for k, v in json.loads(json.dumps(asdict(model))).items() if k not in ("name", "source")})


def checkpoint_path(run: str | Path, step: int) -> Path:
    """Return where the checkpoint of a run after so many steps lies."""
    return Path(run) / FOLDER / f"step-{step:09d}"


def checkpoints(run: str | Path) -> list[Path]:
    """Return what may be checkpoints in a run's folder, the newest first."""
    return sorted((Path(run) / FOLDER).glob("step-*"), reverse=True)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint whose files all have their size; anything else is a `BadInput`."""
    path = folder / MANIFEST_FILE
    data = files.read_mapping(path)
    manifest = files.validate(Manifest, data, str(path))
    if fingerprint(data) != manifest.fingerprint:
        raise BadInput(f"{path}: fingerprint: is {manifest.fingerprint[:16]}, of what is there it would be "
                       f"{fingerprint(data)[:16]}; the manifest is damaged")
    for name, saved in manifest.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != saved.bytes:
            fault = "is missing" if found is None else f"has {found:,} bytes"
            raise BadInput(f"{file}: {fault}, the manifest says {saved.bytes:,}; the checkpoint is damaged")
    return manifest


def damage(folder: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """Return what is wrong with a checkpoint, or None; each of several ranks reads its share of the files."""
    try:
        manifest = read_manifest(folder)
        for name in sorted(manifest.files)[rank::world_size]:
            found = checksum(folder / name)
            if found != manifest.files[name].sha256:
                return (f"{folder / name}: has the checksum {found[:16]}, the manifest says "
                        f"{manifest.files[name].sha256[:16]}; the checkpoint is damaged")
    except (BadInput, OSError) as e:
        return str(e)
    return None


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_same_training(folder: Path, manifest: Manifest, job: Job, data: str) -> None:
    """Refuse a checkpoint that another training wrote; layout, precision and length may differ."""
    s = job.strategy
    for field, saved, mine, says in (
        ("model", manifest.model, model_fingerprint(job.model), "another model"),
        ("data", manifest.data, data, "other data"),
        ("seed", manifest.seed, job.seed, "another order of samples"),
        ("seq_len", manifest.seq_len, int(s.seq_len), "other samples"),
        ("global_batch", manifest.global_batch, int(s.global_batch), "other steps"),
    ):
        if saved != mine:
            raise BadInput(f"resume: {folder}: {field}: is {_short(saved)} there and {_short(mine)} here, so it is of {says}")
    if manifest.step > job.num_steps:
        raise BadInput(f"resume: {folder} has {manifest.step} steps behind it; num_steps={job.num_steps} leaves none to train")


def _short(value: object) -> str:
    return str(value)[:16]


def commit(partial: Path, manifest: Manifest) -> Path:
    """Make a checkpoint of a folder of files that are on the disk: write the manifest, then rename."""
    data = manifest.model_dump(by_alias=True)
    with (partial / MANIFEST_FILE).open("w") as file:
        file.write(json.dumps(data | {"fingerprint": fingerprint(data)}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    target = partial.parent / f"step-{manifest.step:09d}"
    _sync_folder(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _sync_folder(partial.parent)
    return target


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint, so that it is none, and is not kept in the place of a good one."""
    target = folder.with_name(f".{folder.name}.damaged")
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def drop_partial(run: str | Path) -> None:
    """Delete what was being written when an attempt ended."""
    for folder in (Path(run) / FOLDER).glob(".step-*.partial"):
        shutil.rmtree(folder, ignore_errors=True)


def prune(run: str | Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints whose manifests are valid, and those older than them that are not."""
    good = 0
    for folder in checkpoints(run):
        if good >= keep:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        try:
            read_manifest(folder)
            good += 1
        except BadInput:
            pass


def _sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk (fsync(2): those of a new file are not, else)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
