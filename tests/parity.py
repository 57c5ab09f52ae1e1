"""Training under a strategy on real process groups, and what it gave: shared by the tests that hold it to one process.

All cases of a world size run in one launch. A rank under gloo has once been aborted in malloc (SIGABRT), so each result is
kept as soon as it is known, and what a signal left out is asked for once more.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel

from executor import pipeline
from executor.data import batch, open_corpus
from executor.gradients import accumulating
from executor.parallel import parallelise
from executor.pipeline import build_pipeline, run_step
from executor.record import Recorder
from executor.train import update
from profiles import kernels
from profiles.families.gpt2 import gpt2_spec
from profiles.families.llama import llama_spec
from profiles.measure.leave import leave_group
from profiles.model import Experts
from simulator import layout
from simulator.schedules import Table
from simulator.strategy import Strategy

# three layers, so that two pipeline stages are not alike
SPECS = {
    "llama": llama_spec(
        name="llama", num_layers=3, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=128, vocab=256,
        max_seq_len=32,
    ),
    "gpt2": gpt2_spec(
        name="gpt2", num_layers=3, hidden=64, num_heads=4, num_kv_heads=4, head_dim=16, ffn_hidden=256, vocab=256,
        max_seq_len=32,
    ),
}
# enough for the eight stages of four ranks
SPECS["mixtral"] = replace(SPECS["llama"], name="mixtral", family="mixtral", kinds=(replace(
    SPECS["llama"].kinds[0], ffn=Experts(num_experts=4, top_k=2, hidden=64)),))
SPECS["deep"] = replace(SPECS["llama"], name="deep", pattern=(0,) * 7)
ONE = Strategy(precision="fp32", seq_len=32, micro_batch=2, num_microbatches=4)
HALF = replace(ONE, precision="bf16")
NUM_STEPS, LEARNING_RATE = 5, 3e-3
CORPUS = open_corpus(__file__, "", ONE.seq_len)


@dataclass(frozen=True)
class Case:
    """A strategy to train a model with; `table` takes the place of its schedule, `broken` says what is left out.

    dp: no gradient is summed over dp; stage: those of the last stage are not; weight: one W of one stage does not run;
    keys: those of other cp ranks are not met; scale: gradients of experts are what torch's mean makes of them.
    """

    name: str
    spec: str
    strategy: Strategy
    broken: str = ""
    table: Table | None = None


def train(case: Case) -> dict[str, Any]:
    """Return losses of all steps, gradients of the first, and the order of passes of a step."""
    strategy = case.strategy
    parallel = parallelise(
        SPECS[case.spec], strategy, torch.device("cpu"), seed=0, learning_rate=LEARNING_RATE, table=case.table
    )
    if case.broken == "dp":
        parallel = replace(parallel, modules=dict(parallel.stages))
    for stage in parallel.stages.values():
        for _, layer in stage.each_layer():
            if case.broken == "keys":
                layer.attn.attend = kernels.attention
            if case.broken == "scale":
                layer.ffn.experts.gradient_scale = 1.0
    where = layout.coordinates(strategy, dist.get_rank())
    assert {axis: parallel.mesh.get_local_rank(axis) for axis in layout.ORDER} == where
    recorder = Recorder(dist.get_rank(), torch.device("cpu"))
    schedule = build_pipeline(parallel, recorder)
    if case.broken == "weight":
        for actions in schedule.pipeline_order_with_comms.values():
            actions[:] = [action for action in actions if str(action) != "1W2"]
    losses: list[float] = []
    gradients: dict[str, Any] = {}
    due = never_due_at_the_last_stage if case.broken == "stage" else accumulating
    with loss_parallel() if strategy.tp > 1 else nullcontext(), patch.object(pipeline, "accumulating", due):
        for step in range(NUM_STEPS):
            inputs, targets = (
                torch.from_numpy(t) for t in batch(CORPUS, strategy, seed=0, step=step, dp_rank=parallel.dp_rank)
            )
            with recorder.step():
                loss = run_step(parallel, schedule, (inputs, targets), recorder)
                if step == 0:
                    named = [named for stage in parallel.stages.values() for named in stage.named_parameters()]
                    gradients = {n: whole(torch.zeros_like(p) if p.grad is None else p.grad) for n, p in named}
                update(parallel, recorder)
            losses += [] if loss is None else [float(loss)]
    passes = [
        f"{row['op'].removeprefix('stage ')}{row['pass']}{row['microbatch']}" for row in recorder.rows if row["microbatch"] >= 0
    ]
    return {"losses": losses, "gradients": gradients, "passes": passes[: len(passes) // NUM_STEPS]}


def never_due_at_the_last_stage(strategy: Strategy, stage: Any, *, is_last: bool) -> AbstractContextManager[None]:
    return accumulating(strategy, stage, is_last=is_last and not stage.is_last)


def whole(gradient: Any) -> Any:
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()


def worst_gradient(mine: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest error of a gradient, relative to the largest entry of its parameter.

    Parameters whose gradient is zero but for rounding (key biases) are measured against the largest of all.
    """
    top = max(float(g.abs().max()) for g in expected.values())
    return max(
        float((g - expected[n]).abs().max()) / max(float(expected[n].abs().max()), 1e-3 * top)
        for n, g in mine.items() if n in expected
    )


def work(rank: int, world: int, folder: Path, cases: list[Case], attempt: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}.{attempt}", rank=rank, world_size=world)
    expected = torch.load(folder / "expected.pt")
    for case in cases:
        mine = train(case)
        error = worst_gradient(mine["gradients"], expected[case.spec, case.strategy.precision]["gradients"])
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, (mine["losses"], error, mine["passes"]))
        if rank == 0:
            keep(folder, world, case, {
                "losses": np.mean([losses for losses, _, _ in everyone if losses], axis=0).tolist(),
                "gradient_error": max(error for _, error, _ in everyone),
                "passes": [passes for _, _, passes in everyone],
            })
    leave_group()


def keep(folder: Path, world: int, case: Case, result: dict[str, Any]) -> None:
    with (folder / f"results{world}.jsonl").open("a") as file:
        file.write(json.dumps({case.name: result}) + "\n")


def kept(folder: Path, world: int) -> dict[str, Any]:
    path = folder / f"results{world}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: result for line in lines for name, result in json.loads(line).items()}


def results_of(folder: Path, world: int, cases: list[Case], work: Callable[..., None] = work) -> dict[str, Any]:
    """Return results by case; what is missing when a signal ends a rank is asked for once more, in fresh processes."""
    for attempt in range(2):
        missing = [case for case in cases if case.name not in kept(folder, world)]
        if not missing:
            break
        try:
            mp.spawn(work, args=(world, folder, missing, attempt), nprocs=world)
        except mp.ProcessExitedException as e:
            num_missing = len({case.name for case in cases} - set(kept(folder, world)))
            if e.signal_name is None or (num_missing and attempt):
                raise
            warnings.warn(f"{e}; {num_missing} of {len(cases)} cases are missing", stacklevel=2)
    results = kept(folder, world)
    assert set(results) == {case.name for case in cases}
    return results
