"""Checkpoints with torch.distributed.checkpoint: by names that no layout changes, whole or not at all.

What is saved is `weights.NAME`, `exp_avg.NAME` and `exp_avg_sq.NAME` of each parameter by its name in the whole model; how
ranks share them is torch's to find out, from DTensors. A tied head has the embedding's name.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from executor.manifest import (
    FOLDER,
    Manifest,
    SavedFile,
    checkpoints,
    checksum,
    commit,
    damage,
    drop_partial,
    model_fingerprint,
    prune,
    read_manifest,
    set_aside,
)
from executor.parallel import Parallel
from executor.run import Job
from profiles.families import all_params

T = TypeVar("T")
MOMENTS = ("exp_avg", "exp_avg_sq")
Say = Callable[..., None]
"""Reports an event by name and facts."""


def named_state(parallel: Parallel) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's weights and moments by name, shards as DTensors; a name comes twice where a rank has two copies."""
    state = parallel.optimizer.state
    for stage in parallel.stages.values():
        shapes = {p.name: tuple(p.shape) for p in all_params(stage.spec)}
        for name, weight in stage.named_parameters():
            name = "embed.weight" if name == "head.weight" and stage.spec.tied_embeddings else name
            # a plain piece of a parameter would be saved as the whole of it
            assert tuple(weight.shape) == shapes[name], f"{name} is a piece that does not say of what"
            yield f"weights.{name}", weight.detach()
            for moment in MOMENTS:
                if weight in state:
                    yield f"{moment}.{name}", state[weight][moment]


@torch.no_grad()
def load_state(parallel: Parallel, folder: Path, step: int, group: dist.ProcessGroup) -> None:
    """Fill weights and moments from a checkpoint after `step` steps, whatever layout wrote it."""
    adam = parallel.optimizer
    for weight in (w for part in adam.param_groups for w in part["params"]):
        adam.state[weight] = {"step": torch.tensor(float(step), device=weight.device)} | {
            moment: torch.zeros_like(weight, memory_format=torch.preserve_format) for moment in MOMENTS
        }
    mine = list(named_state(parallel))
    state = dict(mine)
    load(state, storage_reader=FileSystemReader(folder), process_group=group)
    for name, tensor in mine:
        if tensor is not state[name]:
            tensor.copy_(state[name])


def newest_good(runs: list[str], group: dist.ProcessGroup, say: Say) -> tuple[Path, Manifest] | None:
    """Return the newest checkpoint, of the first of some run folders that has one, whose checksums hold. Every rank asks.

    In the first folder, which is the run's own, what is damaged or was never finished is put away.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    candidates = [[folder for run in runs for folder in checkpoints(run)]]
    dist.broadcast_object_list(candidates, src=0, group=group)
    if rank == 0:
        drop_partial(runs[0])
    for folder in candidates[0]:
        found: list[Any] = [None] * world
        dist.all_gather_object(found, damage(folder, rank, world), group=group)
        faults = [fault for fault in found if fault]
        if not faults:
            return folder, read_manifest(folder)
        say("damaged", checkpoint=str(folder), reason=faults[0])
        if rank == 0 and folder.parent.parent == Path(runs[0]):
            set_aside(folder)
    return None


class Checkpointer:
    """Writes checkpoints of a job into its folder; its group is its own, as two threads must not share one."""

    def __init__(self, job: Job, parallel: Parallel, data: str, group: dist.ProcessGroup, say: Say) -> None:
        self.job, self.parallel, self.data, self.group, self.say = job, parallel, data, group, say
        self._thread: threading.Thread | None = None
        self._copies: dict[str, Tensor] = {}

    def save(self, step: int) -> None:
        """Save what was trained in `step` steps; asynchronous: copy it, and write while training goes on."""
        begun_s, at_s = time.perf_counter(), time.time()
        self.finish()
        state = dict(named_state(self.parallel))
        if not self.job.async_checkpoint:
            self._write(state, step, begun_s, at_s)
            return
        self._copy(state)
        stall_s = time.perf_counter() - begun_s
        arguments = (self._copies, step, begun_s, at_s, stall_s)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for a checkpoint that is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @torch.no_grad()
    def _copy(self, state: dict[str, Tensor]) -> None:
        """Copy the state into memory of its own on the CPU, which is kept: new memory costs more than the copy."""
        for name, tensor in state.items():
            if name in self._copies:
                self._copies[name].copy_(tensor)
            else:
                self._copies[name] = tensor.to("cpu", copy=True)

    def _write(self, state: dict[str, Tensor], step: int, begun_s: float, at_s: float, stall_s: float | None = None) -> None:
        """Write a checkpoint; what fails on one rank fails on all, leaves the ones before as they are, and is said."""
        partial = Path(self.job.out) / FOLDER / f".step-{step:09d}.partial"
        try:
            self._together(lambda: _empty(partial) if dist.get_rank() == 0 else None)
            save(state, storage_writer=FileSystemWriter(partial), process_group=self.group)
            saved = self._together(lambda: _saved(partial, dist.get_rank()))
            self._together(lambda: self._commit(partial, step, saved) if dist.get_rank() == 0 else None)
        except (CheckpointException, OSError, RuntimeError) as e:
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
                self.say("checkpoint_failed", step=step, at_s=at_s, stall_s=_since(begun_s, stall_s), reason=_reason(e))
            return
        if dist.get_rank() == 0:
            self.say("checkpoint", step=step, at_s=at_s, stall_s=_since(begun_s, stall_s), written_s=_since(begun_s, None),
                     bytes=sum(file.bytes for mine in saved for file in mine.values()))

    def _commit(self, partial: Path, step: int, saved: list[dict[str, SavedFile]]) -> None:
        job, s = self.job, self.job.strategy
        commit(partial, Manifest(
            schema="headway.checkpoint/1", step=step, next_sample=job.first_sample + step * int(s.global_batch),
            global_batch=int(s.global_batch), seq_len=int(s.seq_len), seed=job.seed, model=model_fingerprint(job.model),
            data=self.data, strategy=s.describe(), world_size=int(s.world_size),
            date=datetime.now(UTC).isoformat(timespec="seconds"), torch=torch.__version__,
            files={name: file for mine in saved for name, file in mine.items()}, fingerprint="",
        ))
        prune(job.out, job.keep)

    def _together(self, do: Callable[[], T]) -> list[T]:
        """Do something on every rank and return what all of them got; the failure of one is that of all."""
        mine: tuple[Any, str] = (None, "")
        try:
            mine = (do(), "")
        except OSError as e:
            mine = (None, str(e))
        everyone: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(everyone, mine, group=self.group)
        if faults := [f"rank {rank}: {fault}" for rank, (_, fault) in enumerate(everyone) if fault]:
            raise OSError(faults[0])
        return [got for got, _ in everyone]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _saved(folder: Path, rank: int) -> dict[str, SavedFile]:
    """Return the files that a rank wrote, as they lie there."""
    mine = [*folder.glob(f"__{rank}_*"), *([folder / ".metadata"] if rank == 0 else [])]
    return {file.name: SavedFile(bytes=file.stat().st_size, sha256=checksum(file)) for file in mine}


def _since(begun_s: float, known_s: float | None) -> float:
    return time.perf_counter() - begun_s if known_s is None else known_s


def _reason(error: BaseException) -> str:
    """Return the first cause of a failure in a line."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(sorted(error.failures.items())))
        return f"rank {rank}: {cause}".splitlines()[0]
    return str(error).splitlines()[0]
