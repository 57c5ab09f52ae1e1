"""What the executor's own loop costs beside a bare torch loop, and how long checkpoints stall training.

`pytest -m benchmark -s tests/test_benchmark_executor.py`
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist

import executor.train
from executor import data
from executor.journal import read_journal
from executor.model import token_loss
from executor.parallel import parallelise
from executor.run import Job
from executor.train import train, update
from executor.vitals import Vitals
from profiles.families.llama import llama_spec
from simulator.strategy import Strategy

pytestmark = pytest.mark.benchmark

SPEC = llama_spec(name="bench", num_layers=4, hidden=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_hidden=768, vocab=512,
                  max_seq_len=256)
STRATEGY = Strategy(precision="fp32", seq_len=128, micro_batch=2, num_microbatches=2)
CPU = torch.device("cpu")
STEPS, ROUNDS = 40, 6


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def job_in(folder: Path, **more: Any) -> Job:
    folder.mkdir(parents=True)
    return Job(**{"model": SPEC, "strategy": STRATEGY, "out": str(folder), "num_steps": STEPS, "data": data.FAKE} | more)


def bare(job: Job) -> list[float]:
    """Return the processor seconds of each step of the loop that one would write by hand."""
    parallel = parallelise(job.model, job.strategy, CPU, seed=0, learning_rate=job.learning_rate)
    source = data.open_data(job.data, job.out, seq_len=job.strategy.seq_len, vocab=job.model.vocab)
    num, ends = int(job.strategy.num_microbatches), []
    for inputs, targets in data.batches(source, job.strategy, seed=0, dp_rank=0, num_steps=job.num_steps):
        parts = zip(torch.from_numpy(inputs).chunk(num), torch.from_numpy(targets).chunk(num), strict=True)
        total = 0.0
        for part, target in parts:
            loss = token_loss(parallel.modules[0](part), target) / num
            loss.backward()
            total += loss.item()
        parallel.optimizer.step()
        parallel.optimizer.zero_grad()
        ends.append(time.process_time())
    return [later - earlier for earlier, later in pairwise(ends)]


def ours(job: Job) -> list[float]:
    """Return the processor seconds from the update of each step to that of the next, of all threads."""
    ends: list[float] = []

    def noted(*arguments: Any) -> None:
        update(*arguments)
        ends.append(time.process_time())

    with patch.object(executor.train, "update", noted):
        train(job, CPU, Vitals(job.out, 0))
    return [later - earlier for earlier, later in pairwise(ends)]


def test_the_loop_beside_a_bare_one(tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    """In processor time, which other programs on the machine disturb least."""
    times: dict[Any, list[float]] = {bare: [], ours: []}
    for index in range(ROUNDS):
        for loop in (bare, ours) if index % 2 else (ours, bare):
            times[loop].append(median(loop(job_in(tmp_path / f"{index}{loop.__name__}", log_every=10))[5:]))
    # of a step of next to nothing, what is left is the loop itself
    small = replace(SPEC, hidden=64, pattern=(0,))
    extra = []
    for index in range(ROUNDS):
        spent = [median(loop(job_in(tmp_path / f"small{index}{loop.__name__}", model=small, num_steps=200, log_every=10))[5:])
                 for loop in (ours, bare)]
        extra.append(spent[0] - spent[1])
    ratios = [mine / its for mine, its in zip(times[ours], times[bare], strict=True)]
    with capsys.disabled():
        print(f"\na step of {median(times[bare]) * 1e3:.1f} ms in a bare loop takes {median(ratios):.4f} times that in the "
              f"executor's ({min(ratios):.4f} to {max(ratios):.4f} over {ROUNDS} rounds; of the quickest rounds "
              f"{min(times[ours]) / min(times[bare]):.4f}); the loop itself costs {median(extra) * 1e3:.2f} ms a step, "
              f"{median(extra) / median(times[bare]):.2%} of that step")


def test_how_long_checkpoints_stall(tmp_path: Path, alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    spec = replace(SPEC, hidden=512, pattern=(0,) * 8)
    stalls: dict[bool, list[float]] = {False: [], True: []}
    sizes = set()
    for index in range(3):
        for beside in stalls:
            job = job_in(tmp_path / f"{index}{beside}", model=spec, num_steps=20, checkpoint_every=5, async_checkpoint=beside,
                         num_warmup_steps=0)
            train(job, CPU, Vitals(job.out, 0))
            saved = [line for line in read_journal(job.out) if line.get("event") == "checkpoint"]
            # the first one makes its memory; the last is waited for at the end
            stalls[beside] += [line["stall_s"] for line in saved[1:-1]]
            sizes |= {line["bytes"] for line in saved}
    sync, beside_s = median(stalls[False]), median(stalls[True])
    with capsys.disabled():
        print(f"\na checkpoint of {max(sizes) / 2**20:.0f} MiB stalls training {sync * 1e3:.0f} ms; beside training "
              f"{beside_s * 1e3:.1f} ms, {beside_s / sync:.1%} of it")
