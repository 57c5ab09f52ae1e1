"""Reading this rank's pieces of weights from a Hugging Face folder, and writing a trained model as one."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from executor.model import Piece, Read
from executor.parallel import Parallel
from executor.pretrained import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, config_of, file_of, place_of, tensor_files
from profiles.families import all_params
from profiles.files import make_folder, write_text
from profiles.model import ModelSpec


def reader(folder: str, spec: ModelSpec) -> Read:
    """Return what reads a piece of a parameter by its name; only that piece is read from the disk."""
    present, opened = tensor_files(folder), dict[str, Any]()
    has_experts = {p.name for p in all_params(spec) if p.expert}

    def tensor(name: str, piece: Piece) -> Tensor:
        known, file = file_of(name, present)
        if file not in opened:
            opened[file] = safe_open(Path(folder) / file, "pt")
        found: Tensor = opened[file].get_slice(known)[piece]
        return found

    def read(name: str, piece: Piece) -> Tensor:
        sizes = [part.stop - part.start for part in piece]
        if 0 in sizes:
            return torch.empty(sizes)
        place = place_of(spec, name)
        if name in has_experts:
            return torch.stack([tensor(place.name.format(e), piece[1:]) for e in range(piece[0].start, piece[0].stop)])
        first = slice(piece[0].start + place.begin, piece[0].stop + place.begin)
        return tensor(place.name, (piece[1], first)).T if place.swapped else tensor(place.name, (first, *piece[1:]))

    return read


@torch.no_grad()
def write_weights(parallel: Parallel, folder: str) -> None:
    """Write the model as a folder that `transformers` reads: a file for each pipeline rank, in fp32. All ranks take part."""
    spec, mesh = next(iter(parallel.stages.values())).spec, parallel.mesh
    writes = all(mesh.get_local_rank(axis) == 0 for axis in ("dp", "cp", "tp"))
    parts: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    swapped: set[str] = set()
    for stage in parallel.stages.values():
        for name, weight in stage.named_parameters():
            if name == "head.weight" and spec.tied_embeddings:
                continue
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            if not writes:
                continue
            place = place_of(spec, name)
            swapped |= {place.name} if place.swapped else set()
            for index, tensor in enumerate(whole.cpu() if "{}" in place.name else (whole.cpu(),)):
                parts[place.name.format(index)].append((place.begin, tensor))
    tensors = {name: _joined(found, name in swapped) for name, found in parts.items()}
    num, index = mesh["pp"].size(), mesh.get_local_rank("pp")
    file = WEIGHTS_FILE if num == 1 else f"model-{index + 1:05d}-of-{num:05d}.safetensors"
    if writes:
        path = make_folder(folder) / file
        temporary = path.with_name(f".{file}")
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, {name: (file, tensor.nbytes) for name, tensor in tensors.items()})
    if dist.get_rank() == 0:
        found = {name: place for mine in everyone for name, place in mine.items()}
        _write_index(Path(folder), found, num)
        write_text(Path(folder) / CONFIG_FILE, json.dumps(config_of(spec), indent=2) + "\n")


def _joined(parts: list[tuple[int, Tensor]], swapped: bool) -> Tensor:
    whole = torch.cat([tensor for _, tensor in sorted(parts, key=lambda part: part[0])])
    return (whole.T if swapped else whole).contiguous()


def _write_index(folder: Path, places: dict[str, tuple[str, int]], num_files: int) -> None:
    (folder / INDEX_FILE).unlink(missing_ok=True)  # of a run before, whose files may be gone
    if num_files == 1:
        return
    total = sum(size for _, size in places.values())
    index = {"metadata": {"total_size": total}, "weight_map": {name: file for name, (file, _) in sorted(places.items())}}
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
