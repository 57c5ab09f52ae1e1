"""Every way of splitting a step trains the same: losses and gradients against one process, on real process groups.

All cases of a world size run in one launch; the negative control shows that the check can see a fault. A rank
under gloo has once been aborted in malloc (SIGABRT), so each result is kept as soon as it is known, and what a signal
left out is asked for once more.
"""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from torch.distributed.tensor.parallel import loss_parallel  # noqa: E402

from executor.data import batch, open_corpus  # noqa: E402
from executor.parallel import build_mesh, parallelise  # noqa: E402
from executor.pipeline import build_pipeline, run_step  # noqa: E402
from executor.record import Recorder  # noqa: E402
from executor.train import update  # noqa: E402
from profiles.families.gpt2 import gpt2_spec  # noqa: E402
from profiles.families.llama import llama_spec  # noqa: E402
from profiles.measure.leave import leave_group  # noqa: E402
from simulator import layout  # noqa: E402
from simulator.schedules import build_schedule  # noqa: E402
from simulator.strategy import Strategy  # noqa: E402

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
ONE = Strategy(precision="fp32", seq_len=32, micro_batch=2, num_microbatches=4)
HALF = replace(ONE, precision="bf16")
DP, TP, PP = (replace(ONE, dp=2, num_microbatches=2), replace(ONE, tp=2), replace(ONE, pp=2))
NUM_STEPS, LEARNING_RATE = 5, 3e-3
CORPUS = open_corpus(__file__, "", ONE.seq_len)


@dataclass(frozen=True)
class Case:
    name: str
    spec: str
    strategy: Strategy
    broken: bool = False


TWO_RANKS = [
    Case("zero-0", "llama", DP), Case("zero-1", "llama", replace(DP, zero=1)),
    Case("zero-2", "llama", replace(DP, zero=2)), Case("zero-3", "llama", replace(DP, zero=3)),
    Case("zero-3-full", "llama", replace(DP, zero=3, recompute="full")),
    Case("tp", "llama", TP), Case("tp-selective", "llama", replace(TP, recompute="selective")),
    Case("1f1b", "llama", PP), Case("gpipe", "llama", replace(PP, schedule="GPipe")),
    Case("1f1b-full", "llama", replace(PP, recompute="full")),
    Case("1f1b-few", "llama", replace(PP, micro_batch=8, num_microbatches=1)),
    Case("tied-zero-0", "gpt2", DP), Case("tied-zero-3", "gpt2", replace(DP, zero=3)), Case("tied-tp", "gpt2", TP),
    Case("tied-1f1b", "gpt2", PP),
    Case("bf16-zero-0", "llama", replace(DP, precision="bf16")),
    Case("bf16-zero-2", "llama", replace(DP, precision="bf16", zero=2)),
    Case("bf16-1f1b", "llama", replace(PP, precision="bf16")),
    Case("no-sync", "llama", DP, broken=True),
]
FOUR_RANKS = [
    Case("dp-pp", "llama", replace(DP, pp=2)), Case("dp-pp-gpipe", "gpt2", replace(DP, pp=2, schedule="GPipe")),
    Case("dp-pp-zero-3", "llama", replace(DP, pp=2, zero=3)),
    Case("dp-pp-zero-2-gpipe", "gpt2", replace(DP, pp=2, zero=2, schedule="GPipe")),
    Case("dp-tp", "llama", replace(DP, tp=2)),
    Case("dp-tp-zero-3", "gpt2", replace(DP, tp=2, zero=3)),
    Case("tp-pp", "gpt2", replace(PP, tp=2, num_microbatches=4)),
]


def train(case: Case) -> dict[str, Any]:
    """Return losses of all steps, gradients of the first, and the order of passes of a step."""
    strategy = case.strategy
    parallel = parallelise(SPECS[case.spec], strategy, torch.device("cpu"), seed=0, learning_rate=LEARNING_RATE)
    if case.broken:
        parallel = replace(parallel, module=parallel.stage)
    where = layout.coordinates(strategy, dist.get_rank())
    assert {axis: parallel.mesh.get_local_rank(axis) for axis in layout.ORDER} == where
    recorder = Recorder(dist.get_rank(), torch.device("cpu"))
    schedule = build_pipeline(parallel, recorder)
    losses: list[float] = []
    gradients: dict[str, Any] = {}
    with loss_parallel() if strategy.tp > 1 else nullcontext():
        for step in range(NUM_STEPS):
            inputs, targets = (
                torch.from_numpy(t) for t in batch(CORPUS, strategy, seed=0, step=step, dp_rank=parallel.dp_rank)
            )
            with recorder.step():
                loss = run_step(parallel, schedule, (inputs, targets), recorder)
                if step == 0:
                    gradients = {n: whole(p.grad) for n, p in parallel.stage.named_parameters()}
                update(parallel, recorder)
            losses += [] if loss is None else [float(loss)]
    passes = [f"{where['pp']}{row['pass']}{row['microbatch']}" for row in recorder.rows if row["microbatch"] >= 0]
    return {"losses": losses, "gradients": gradients, "passes": passes[: len(passes) // NUM_STEPS]}


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what one process gets."""
    path = tmp_path_factory.mktemp("parity")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}/store1", rank=0, world_size=1)
    try:
        torch.save({
            (spec, s.precision): train(Case("one", spec, s)) for spec in SPECS for s in (ONE, HALF)
        }, path / "expected.pt")
    finally:
        dist.destroy_process_group()
    return path


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


def fake(fault: str, rank: int, world: int, folder: Path, cases: list[Case], attempt: int) -> None:
    """Keep the results of some of the cases, then end as `fault` says."""
    for case in cases[: 1 if "half" in fault else None]:
        keep(folder, world, case, {"attempt": attempt})
    if "error" in fault:
        raise ValueError("a wrong shape")
    if "status" in fault:
        os._exit(3)
    if attempt == 0 or "twice" in fault:
        os.kill(os.getpid(), signal.SIGABRT)
    for case in cases[1:]:
        keep(folder, world, case, {"attempt": attempt})


@pytest.mark.distributed
@pytest.mark.parametrize(("fault", "attempts"), [("signal, all kept", [0, 0, 0]), ("signal, half kept", [0, 1, 1])])
def test_a_signal_loses_no_result(fault: str, attempts: list[int], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="signal SIGABRT"):
        results = results_of(tmp_path, 1, FOUR_RANKS[:3], partial(fake, fault))
    # a kept case is not run again
    assert [results[case.name]["attempt"] for case in FOUR_RANKS[:3]] == attempts


@pytest.mark.distributed
@pytest.mark.parametrize(("fault", "raised"), [
    ("signal twice, half kept", mp.ProcessExitedException), ("error, half kept", mp.ProcessRaisedException),
    ("error, all kept", mp.ProcessRaisedException), ("status, all kept", mp.ProcessExitedException),
])
@pytest.mark.filterwarnings("ignore:.*SIGABRT")
def test_a_fault_is_never_forgiven(fault: str, raised: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(raised):
        results_of(tmp_path, 1, FOUR_RANKS[:3], partial(fake, fault))


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> dict[str, Any]:
    return results_of(folder, 2, TWO_RANKS)


@pytest.fixture(scope="module")
def four_ranks(folder: Path) -> dict[str, Any]:
    return results_of(folder, 4, FOUR_RANKS)


def check(case: Case, result: dict[str, Any], folder: Path) -> None:
    expected = torch.load(folder / "expected.pt")[case.spec, case.strategy.precision]
    off = float(np.abs(np.subtract(result["losses"], expected["losses"])).max())
    if case.broken:
        assert off > 1e-3
        assert result["gradient_error"] > 1e-2
        return
    half = case.strategy.precision == "bf16"
    assert off <= (1e-3 if half else 1e-4)
    assert result["gradient_error"] <= (1e-2 if half else 1e-5)
    if case.strategy.pp > 1:
        table = build_schedule(case.strategy.schedule, case.strategy.pp, case.strategy.num_microbatches)
        for rank, passes in enumerate(result["passes"]):
            assert passes == [str(a) for a in table[layout.coordinates(case.strategy, rank)["pp"]]]


@pytest.mark.distributed
@pytest.mark.parametrize("case", TWO_RANKS, ids=lambda c: c.name)
def test_two_ranks_train_as_one(case: Case, two_ranks: dict[str, Any], folder: Path) -> None:
    check(case, two_ranks[case.name], folder)


@pytest.mark.distributed
@pytest.mark.parametrize("case", FOUR_RANKS, ids=lambda c: c.name)
def test_four_ranks_train_as_one(case: Case, four_ranks: dict[str, Any], folder: Path) -> None:
    check(case, four_ranks[case.name], folder)


@pytest.mark.parametrize("rank", range(0, 24, 5))
def test_mesh_is_the_layout(rank: int) -> None:
    """Torch's mesh puts a rank of pp4 dp3 tp2 where `simulator.layout` does (a fake process group of 24)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    strategy = Strategy(pp=4, dp=3, tp=2)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=24)
    try:
        mesh = build_mesh(strategy, "cpu")
        assert {a: mesh.get_local_rank(a) for a in layout.ORDER} == layout.coordinates(strategy, rank)
        for axis in layout.ORDER:
            members = dist.get_process_group_ranks(mesh.get_group(axis))
            assert members in layout.groups(strategy, axis).tolist()
    finally:
        dist.destroy_process_group()
