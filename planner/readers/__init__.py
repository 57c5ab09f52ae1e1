"""Runs that people already have, as other tools write them down: Megatron-LM, torchtitan, DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from planner.readers import deepspeed, megatron, torchtitan
from planner.readers.reading import Reading, completed, software_of
from profiles import files
from profiles.files import BadInput

__all__ = ["READERS", "SUFFIXES", "Reading", "completed", "read_config", "software_of"]

READERS: dict[str, Callable[[str, str, bool], Reading]] = {
    "megatron": megatron.read, "torchtitan": torchtitan.read, "deepspeed": deepspeed.read,
}
"""Framework -> reader of a file's text; it is told the file's name, and whether the model has to be found in the file."""
SUFFIXES = {".toml": "torchtitan", ".json": "deepspeed", **dict.fromkeys((".sh", ".txt", ".args", ".yaml", ".yml"), "megatron")}
"""How a file's name ends -> whose it is."""


def read_config(path: str | Path, with_model: bool = True) -> Reading:
    """Return the run that a file of another tool states; whose it is follows from its suffix."""
    path = Path(path)
    if path.suffix == ".py":
        raise BadInput(f"{path}: Python is not run here; torchtitan's configurations are read as TOML, or give the options")
    if path.suffix not in SUFFIXES:
        raise BadInput(f"{path}: whose file this is follows from its name: .sh, .txt or .yaml (Megatron-LM), .toml "
                       "(torchtitan) or .json (DeepSpeed)")
    return READERS[SUFFIXES[path.suffix]](files.read_text(path), str(path), with_model)
