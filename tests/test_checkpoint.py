"""Checkpoints: on the same layout training goes on bit for bit, on another with the same losses; damaged ones are not used."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from parity import CORPUS, HALF, LEARNING_RATE, ONE, SPECS
from torch.distributed.tensor.parallel import loss_parallel

from executor.checkpoint import Checkpointer, load_state, newest_good
from executor.data import batch
from executor.launch import check_launch
from executor.manifest import (
    MANIFEST_FILE,
    check_same_training,
    checkpoint_path,
    checkpoints,
    damage,
    prune,
    read_manifest,
)
from executor.parallel import parallelise
from executor.pipeline import build_pipeline, run_step
from executor.record import Recorder
from executor.run import Job
from executor.train import update
from profiles.files import BadInput
from profiles.measure.leave import leave_group
from simulator.strategy import Strategy

STEPS, SAVED = 4, 2
DP2, DP4 = replace(ONE, dp=2, num_microbatches=2), replace(ONE, dp=4, num_microbatches=1)
PP2 = replace(ONE, pp=2)
LAYOUTS: dict[int, dict[str, tuple[str, Strategy]]] = {
    1: {"one": ("llama", ONE), "one tied": ("gpt2", ONE), "experts": ("mixtral", ONE)},
    2: {
        "dp2": ("llama", DP2), "zero1": ("llama", replace(DP2, zero=1)), "zero3": ("llama", replace(DP2, zero=3)),
        "tp2": ("llama", replace(ONE, tp=2)), "pp2": ("llama", PP2), "pp2 tied": ("gpt2", PP2),
        "half": ("llama", replace(HALF, dp=2, num_microbatches=2, zero=2)), "ep2": ("mixtral", replace(DP2, ep=2)),
        "cp2": ("llama", replace(ONE, cp=2, zero=2)),
    },
    4: {
        "dp4": ("llama", replace(DP4, zero=1)), "zero3 x tp2": ("llama", replace(DP2, zero=3, tp=2)),
        "dp2 x pp2": ("llama", replace(DP2, pp=2, zero=2)), "tp2 x pp2 tied": ("gpt2", replace(PP2, tp=2)),
        "ep2 x tp2": ("mixtral", replace(DP2, tp=2, ep=2, zero=3)),
        "V tied": ("gpt2", replace(PP2, dp=2, num_microbatches=2)), "half": ("llama", replace(HALF, dp=4, num_microbatches=1)),
    },
}
V_SHAPED: dict[str, Any] = {"schedule": "ZBV", "chunks": 2}
RESUMED: dict[int, list[tuple[str, str]]] = {
    1: [("zero3@2", "one"), ("V tied@4", "one tied"), ("ep2 x tp2@4", "experts")],
    2: [("one@1", "zero1"), ("zero3@2", "pp2"), ("zero3 x tp2@4", "dp2"), ("one tied@1", "pp2 tied"), ("zero1@2", "tp2"),
        ("experts@1", "ep2"), ("one@1", "cp2")],
    4: [("dp2@2", "zero3 x tp2"), ("tp2@2", "dp2 x pp2"), ("pp2 tied@2", "tp2 x pp2 tied"), ("one tied@1", "V tied"),
        ("zero1@2", "dp4"), ("half@2", "half")],
}
"""Which checkpoint (its layout) goes on under which layout, by world size of the second."""
FOUR = {**SPECS, "gpt2": replace(SPECS["gpt2"], pattern=(0,) * 4)}


def layout_of(world: int, name: str) -> tuple[str, Strategy]:
    spec, strategy = LAYOUTS[world][name]
    return spec, replace(strategy, **V_SHAPED) if name.startswith("V") else strategy


def job_of(folder: Path, spec: str, strategy: Strategy, **more: Any) -> Job:
    return Job(model=FOUR[spec], strategy=strategy, out=str(folder), num_steps=STEPS, **more)


def steps_of(job: Job, source: Path | None, group: Any, saves: bool = False) -> list[float]:
    """Train from the start, or from a checkpoint after `SAVED` steps; save there if asked; return this rank's losses."""
    parallel = parallelise(job.model, job.strategy, torch.device("cpu"), seed=0, learning_rate=LEARNING_RATE)
    if source is not None:
        load_state(parallel, source, SAVED, group)
    recorder = Recorder(dist.get_rank(), torch.device("cpu"))
    schedule = build_pipeline(parallel, recorder)
    checkpointer = Checkpointer(job, parallel, "data", group, lambda *_, **__: None)
    losses = []
    with loss_parallel() if job.strategy.tp > 1 else nullcontext():
        for step in range(0 if source is None else SAVED, STEPS):
            if saves and step == SAVED:
                checkpointer.save(step)
            inputs, targets = batch(CORPUS, job.strategy, seed=0, step=step, dp_rank=parallel.dp_rank)
            with recorder.step():
                loss = run_step(parallel, schedule, (torch.from_numpy(inputs), torch.from_numpy(targets)), recorder)
                update(parallel, recorder)
            losses += [] if loss is None else [float(loss)]
    checkpointer.finish()
    return losses


def everyone(losses: list[float]) -> list[list[float]]:
    """Return the losses of the ranks that have some."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, losses)
    return [mine for mine in gathered if mine]


def save_all(folder: Path, world: int, group: Any) -> dict[str, Any]:
    """Return the losses under each layout of a world size, trained through, and again from the checkpoint on the way."""
    found = {}
    for index, name in enumerate(LAYOUTS[world]):
        job = job_of(folder / name_of(world, name), *layout_of(world, name), async_checkpoint=index % 2 == 0)
        through = everyone(steps_of(job, None, group, saves=True))
        found[name] = (through, everyone(steps_of(job, checkpoint_path(job.out, SAVED), group)))
    return found


def resume_all(folder: Path, world: int, group: Any) -> dict[str, Any]:
    """Return the losses of training that goes on under another layout than it began."""
    return {
        f"{source} to {name}": everyone(steps_of(
            job_of(folder / "none", *layout_of(world, name)), checkpoint_path(folder / source, SAVED), group))
        for source, name in RESUMED[world]
    }


def name_of(world: int, name: str) -> str:
    return f"{name}@{world}"


def work(rank: int, world: int, folder: Path, phases: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}{phases[0]}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    group = dist.new_group(backend="gloo")
    for phase in phases:
        found = (save_all if phase == "save" else resume_all)(folder, world, group)
        if rank == 0:
            (folder / f"{phase}{world}.json").write_text(json.dumps(found))
    if world > 1:
        leave_group()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all checkpoints and results."""
    folder = tmp_path_factory.mktemp("checkpoints")
    work(0, 1, folder, ("save",))
    mp.spawn(work, args=(2, folder, ("save",)), nprocs=2)
    mp.spawn(work, args=(4, folder, ("save", "resume")), nprocs=4)
    mp.spawn(work, args=(2, folder, ("resume",)), nprocs=2)
    work(0, 1, folder, ("resume",))
    return folder


def results(folder: Path, phase: str, world: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{phase}{world}.json").read_text())
    return found


def mean(losses: list[list[float]]) -> list[float]:
    return [sum(step) / len(step) for step in zip(*losses, strict=True)]


def expected(folder: Path, spec: str) -> list[float]:
    return mean(results(folder, "save", 1)[{"llama": "one", "gpt2": "one tied", "mixtral": "experts"}[spec]][0])


@pytest.mark.distributed
def test_the_same_layout_goes_on_bit_for_bit(folder: Path) -> None:
    for world in LAYOUTS:
        for name, (through, again) in results(folder, "save", world).items():
            assert [mine[SAVED:] for mine in through] == again, (world, name)


@pytest.mark.distributed
def test_another_layout_goes_on_with_the_same_losses(folder: Path) -> None:
    for world in LAYOUTS:
        for name, losses in results(folder, "resume", world).items():
            spec, strategy = layout_of(world, name.split(" to ")[1])
            allowed = 2e-5 if strategy.precision == "fp32" else 2e-2
            assert mean(losses) == pytest.approx(expected(folder, spec)[SAVED:], rel=allowed), (world, name)


@pytest.mark.distributed
def test_a_checkpoint_says_what_it_is_and_damage_is_found(folder: Path) -> None:
    path = checkpoint_path(folder / "zero3@2", SAVED)
    manifest = read_manifest(path)
    assert (manifest.step, manifest.next_sample, manifest.world_size) == (SAVED, SAVED * 8, 2)
    assert len(manifest.files) == 3 and damage(path) is None
    job = job_of(folder, "llama", ONE)
    check_same_training(path, manifest, job, "data")
    for change, data, says in (
        ({"model": FOUR["gpt2"]}, "data", "of another model"), ({}, "other", "of other data"), ({"seed": 1}, "data", "seed"),
        ({"strategy": replace(ONE, num_microbatches=8)}, "data", "global_batch: is 8 there and 16 here"),
        ({"num_steps": 1, "num_warmup_steps": 0}, "data", "has 2 steps behind it; num_steps=1"),
    ):
        with pytest.raises(BadInput, match=says):
            check_same_training(path, manifest, replace(job, **change), data)
    check_same_training(path, manifest, replace(job, model=replace(FOUR["llama"], name="other")), "data")
    file = next(path.glob("__1_*"))
    whole = file.read_bytes()
    for content, says in ((whole[:-1], "bytes, the manifest says"), (None, "is missing"),
                          (bytes([*whole[:100], whole[100] ^ 1, *whole[101:]]), "checksum")):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        assert says in str(damage(path))
        # of two ranks each reads its share, and sizes are seen by both
        num_seen = sum(damage(path, rank, 2) is not None for rank in range(2))
        assert num_seen == (1 if says == "checksum" else 2)
    file.write_bytes(whole)
    assert damage(path) is None
    manifest_text = (path / MANIFEST_FILE).read_text()
    (path / MANIFEST_FILE).write_text(manifest_text.replace('"step": 2', '"step": 3'))
    assert "manifest is damaged" in str(damage(path))
    (path / MANIFEST_FILE).write_text(manifest_text[:-20])
    assert "not JSON" in str(damage(path))
    (path / MANIFEST_FILE).unlink()
    assert "no such file" in str(damage(path))
    (path / MANIFEST_FILE).write_text(manifest_text)
    assert damage(path) is None


@pytest.mark.distributed
def test_the_newest_good_one_is_taken_and_the_last_are_kept(folder: Path, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        shutil.copytree(checkpoint_path(folder / "one@1", SAVED), checkpoint_path(tmp_path, step))
    (checkpoint_path(tmp_path, 3) / MANIFEST_FILE).unlink()
    (checkpoint_path(tmp_path, 3).parent / ".step-000000004.partial").mkdir()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    said: list[dict[str, Any]] = []
    try:
        found = newest_good([str(tmp_path)], dist.group.WORLD, lambda event, **facts: said.append(facts))
    finally:
        dist.destroy_process_group()
    assert found is not None and found[0] == checkpoint_path(tmp_path, 2)
    assert [Path(s["checkpoint"]).name for s in said] == ["step-000000003"] and "no such file" in said[0]["reason"]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002", "step-000000001"]
    assert (checkpoint_path(tmp_path, 2).parent / ".step-000000003.damaged").is_dir()
    assert not list(tmp_path.glob("*/.*.partial"))
    # a folder without a manifest is none, and does not count among those that are kept
    (checkpoint_path(tmp_path, 4)).mkdir()
    prune(tmp_path, 1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000004", "step-000000002"]


@pytest.mark.distributed
def test_what_cannot_be_resumed_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    source = folder / "zero3@2"
    job = replace(job_of(tmp_path / "run", "llama", ONE), num_warmup_steps=0, resume=str(source))
    check_launch(job)
    for change, says in (
        ({"resume": str(tmp_path)}, "holds no good checkpoint"), ({"seed": 3}, "seed: is 0 there and 3 here"),
        ({"num_steps": SAVED}, f"num_steps: {SAVED} are trained already"), ({"out": str(source), "resume": ""}, "--resume"),
    ):
        with pytest.raises(BadInput, match=says):
            check_launch(replace(job, **change))
