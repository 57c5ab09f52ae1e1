"""Every way of splitting a step trains the same: losses and gradients against one process, on real process groups.

The negative controls show that the check can see a fault.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from parity import HALF, ONE, SPECS, Case, keep, results_of, train  # noqa: E402

from executor.mesh import build_mesh  # noqa: E402
from simulator import layout  # noqa: E402
from simulator.schedules import Action, Table, build_schedule, passes  # noqa: E402
from simulator.software import Software  # noqa: E402
from simulator.strategy import Strategy  # noqa: E402

DP, TP, PP = (replace(ONE, dp=2, num_microbatches=2), replace(ONE, tp=2), replace(ONE, pp=2))
CP, EP = replace(ONE, cp=2), replace(DP, ep=2)
DP_PP, FOUR = replace(DP, pp=2), replace(ONE, dp=4, num_microbatches=1)
INTERLEAVED, BFS, ZBH1, IZB, ZBV, DUAL = (
    {"schedule": name, "chunks": chunks}
    for name, chunks in (("Interleaved1F1B", 2), ("LoopedBFS", 2), ("ZBH1", 1), ("InterleavedZeroBubble", 2), ("ZBV", 2),
                         ("DualPipeV", 2))
)
MANY = {"micro_batch": 1, "num_microbatches": 4}
"""A replica's share in so many micro-batches that DualPipeV has a steady state."""


def halved() -> Table:
    """Return 1F1B with each stage cut in two, both on its rank, and of the second half the backward split."""
    def halves(a: Action) -> list[Action]:
        first, second, m = 2 * a.stage, 2 * a.stage + 1, a.microbatch
        if a.pass_ == "F":
            return [Action(first, "F", m), Action(second, "F", m)]
        return [Action(second, "I", m), Action(first, "B", m), Action(second, "W", m)]

    return [[half for action in row for half in halves(action)] for row in build_schedule("1F1B", 2, 4)]


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
    Case("interleaved", "llama", replace(PP, **INTERLEAVED)), Case("looped-bfs", "llama", replace(PP, **BFS)),
    Case("looped-bfs-few", "llama", replace(PP, **BFS, micro_batch=8, num_microbatches=1)),
    Case("zbh1", "llama", replace(PP, **ZBH1)), Case("interleaved-zero-bubble", "llama", replace(PP, **IZB)),
    Case("zbv", "llama", replace(PP, **ZBV)), Case("dual-pipe-v", "llama", replace(PP, **DUAL)),
    Case("tied-zbv", "gpt2", replace(PP, **ZBV)), Case("tied-zbh1-full", "gpt2", replace(PP, **ZBH1, recompute="full")),
    Case("interleaved-selective", "llama", replace(PP, **INTERLEAVED, recompute="selective")),
    Case("zbv-late", "llama", replace(PP, **ZBV, software=Software(layer_split="late"))),
    Case("bf16-zbv", "llama", replace(PP, **ZBV, precision="bf16")),
    Case("own-table", "llama", replace(PP, chunks=2), table=halved()),
    Case("bf16-zero-1", "llama", replace(DP, precision="bf16", zero=1)),
    Case("ring-zero-3", "llama", replace(CP, zero=3)), Case("ring", "gpt2", CP),
    Case("ring-selective", "llama", replace(CP, recompute="selective")),
    Case("bf16-ring", "llama", replace(CP, precision="bf16")),
    Case("all-gather-zero-1-full", "llama", replace(CP, context="all_gather", zero=1, recompute="full")),
    Case("ulysses", "llama", replace(CP, context="ulysses")),
    Case("ulysses-zero-2", "gpt2", replace(CP, context="ulysses", zero=2)),
    Case("experts-dp-selective", "mixtral", replace(DP, recompute="selective")), Case("ep", "mixtral", EP),
    Case("ep-zero-3-full", "mixtral", replace(EP, zero=3, recompute="full")), Case("experts-tp", "mixtral", TP),
    Case("ep-over-tp", "mixtral", replace(TP, ep=2)), Case("ep-over-cp", "mixtral", replace(CP, ep=2)),
    Case("experts-zbv", "mixtral", replace(PP, **ZBV)), Case("bf16-ep", "mixtral", replace(EP, precision="bf16", zero=1)),
    Case("no-other-keys", "llama", CP, broken="keys"), Case("no-scale", "mixtral", TP, broken="scale"),
    Case("no-sync", "llama", DP, broken="dp"), Case("no-weight", "llama", replace(PP, **ZBH1), broken="weight"),
]
FOUR_RANKS = [
    Case("dp-pp", "llama", DP_PP), Case("dp-pp-gpipe", "gpt2", replace(DP_PP, schedule="GPipe")),
    Case("dp-pp-zero-3", "llama", replace(DP_PP, zero=3)),
    Case("dp-pp-zero-2-gpipe", "gpt2", replace(DP_PP, zero=2, schedule="GPipe")),
    Case("dp-tp", "llama", replace(DP, tp=2)),
    Case("dp-tp-zero-3", "gpt2", replace(DP, tp=2, zero=3)),
    Case("tp-pp", "gpt2", replace(PP, tp=2, num_microbatches=4)),
    Case("dp-interleaved", "llama", replace(DP_PP, **INTERLEAVED)),
    Case("dp-interleaved-zero-3", "llama", replace(DP_PP, **INTERLEAVED, zero=3)),
    Case("dp-interleaved-zero-bubble-zero-2", "llama", replace(DP_PP, **IZB, zero=2)),
    Case("dp-zbv", "llama", replace(DP_PP, **ZBV)), Case("dp-tied-zbv-zero-2", "gpt2", replace(DP_PP, **ZBV, zero=2)),
    Case("dp-dual-pipe-v-zero-2", "llama", replace(DP_PP, **DUAL, **MANY, zero=2)),
    Case("bf16-dp-zbv", "llama", replace(DP_PP, **ZBV, precision="bf16")),
    Case("tp-zbv-full", "llama", replace(PP, **ZBV, tp=2, recompute="full")),
    Case("four-zbv", "deep", replace(PP, pp=4, **ZBV)),
    Case("four-dual-pipe-v", "deep", replace(PP, pp=4, **DUAL, micro_batch=1, num_microbatches=8)),
    Case("cp-dp-zero-2", "llama", replace(DP, cp=2, zero=2)), Case("ring-of-four", "llama", replace(ONE, cp=4)),
    Case("all-gather-of-four", "llama", replace(ONE, cp=4, context="all_gather")),
    Case("cp-tp", "gpt2", replace(TP, cp=2)), Case("cp-zbv", "llama", replace(PP, **ZBV, cp=2)),
    Case("hsdp-zero-3", "llama", replace(FOUR, zero=3, shard_group=2)),
    Case("hsdp-cp-zero-1", "llama", replace(DP, cp=2, zero=1, shard_group=2)),
    Case("hsdp-experts", "mixtral", replace(FOUR, ep=2, zero=2, shard_group=2)),
    Case("zero-1-tp", "llama", replace(DP, tp=2, zero=1)), Case("zero-1-zbh1", "gpt2", replace(DP_PP, **ZBH1, zero=1)),
    Case("ep-dp", "mixtral", replace(FOUR, ep=2)), Case("ep-over-dp-tp-zero-3", "mixtral", replace(DP, tp=2, ep=4, zero=3)),
    Case("ep-zbh1", "mixtral", replace(EP, pp=2, **ZBH1)), Case("laid-out", "llama", replace(DP, cp=2, order="dp-tp-cp-pp")),
    Case("no-sync-of-a-stage", "llama", replace(DP_PP, **ZBV), broken="stage"),
]
EIGHT_RANKS = [
    Case("dp-tp", "llama", replace(FOUR, tp=2)), Case("dp-pp", "llama", replace(FOUR, pp=2)),
    Case("tp-pp", "deep", replace(TP, pp=4)), Case("cp-dp", "llama", replace(DP, cp=4)),
    Case("fsdp-tp-pp", "llama", replace(DP_PP, tp=2, zero=3)),
    Case("hsdp-tp", "llama", replace(FOUR, tp=2, zero=3, shard_group=2)),
    Case("fsdp-tp-pp-zero-bubble", "gpt2", replace(DP_PP, **IZB, **MANY, tp=2, zero=2)),
    Case("ep-dp", "mixtral", replace(FOUR, dp=8, micro_batch=1, ep=4, zero=2)),
    Case("ep-dp-tp-pp", "mixtral", replace(DP_PP, tp=2, ep=4, zero=3)),
    Case("cp-tp-pp", "llama", replace(PP, cp=2, tp=2, **ZBV)),
]


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
def eight_ranks(folder: Path) -> dict[str, Any]:
    return results_of(folder, 8, EIGHT_RANKS)


@pytest.fixture(scope="module")
def four_ranks(folder: Path) -> dict[str, Any]:
    return results_of(folder, 4, FOUR_RANKS)


def check(case: Case, result: dict[str, Any], folder: Path) -> None:
    expected = torch.load(folder / "expected.pt")[case.spec, case.strategy.precision]
    off = float(np.abs(np.subtract(result["losses"], expected["losses"])).max())
    if case.broken:
        assert off > 1e-3 or case.broken == "scale"  # AdamW does not see a scale
        assert result["gradient_error"] > 2e-2
        return
    half = case.strategy.precision == "bf16"
    assert off <= (1e-3 if half else 1e-4)
    assert result["gradient_error"] <= (2e-2 if half else 1e-5)
    if case.strategy.pp > 1:
        table = case.table or build_schedule(
            *(getattr(case.strategy, f) for f in ("schedule", "pp", "num_microbatches", "chunks")))
        for rank, ran in enumerate(result["passes"]):
            row = table[layout.coordinates(case.strategy, rank)["pp"]]
            assert ran == [str(a).replace("I", "B") for slot in row for a in passes(slot)]


@pytest.mark.distributed
@pytest.mark.parametrize("case", TWO_RANKS, ids=lambda c: c.name)
def test_two_ranks_train_as_one(case: Case, two_ranks: dict[str, Any], folder: Path) -> None:
    check(case, two_ranks[case.name], folder)


@pytest.mark.distributed
@pytest.mark.parametrize("case", FOUR_RANKS, ids=lambda c: c.name)
def test_four_ranks_train_as_one(case: Case, four_ranks: dict[str, Any], folder: Path) -> None:
    check(case, four_ranks[case.name], folder)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("case", EIGHT_RANKS, ids=lambda c: c.name)
def test_eight_ranks_train_as_one(case: Case, eight_ranks: dict[str, Any], folder: Path) -> None:
    check(case, eight_ranks[case.name], folder)


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
