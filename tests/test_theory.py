"""The numbers of docs/theory.md are those of the repository's functions, and those in bold also reckoned by hand."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from planner.economics import run_days
from profiles.collectives import Collective
from profiles.cost import cost_model, peak_flop_per_s
from profiles.families import load_model, num_params
from profiles.hardware import load_cluster
from profiles.matmul import Gemm
from simulator.estimate import estimate
from simulator.memory import peak_memory
from simulator.metrics import hfu, mfu, step_flop
from simulator.run.intervals import best_s, young_s
from simulator.run.states import checkpoint_bytes
from simulator.states import state_bytes
from simulator.strategy import Strategy
from simulator.workload import build_workload

PAGE = Path(__file__).resolve().parent.parent / "docs" / "theory.md"
ROW = re.compile(r"^\| ([^|]+) \| [^|]* \| (\*\*)?([\d,.e+-]+)(?:\*\*)?[^|]*\|$", flags=re.MULTILINE)
FITTED = 0.1
"""How far numbers of fits may be from the page before it is stale: a new fit moves them by a little."""
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")


def printed(bold: bool) -> dict[str, float]:
    """Return the numbers of the page's last table: those in bold, or the others."""
    table = PAGE.read_text().rpartition("\n## ")[2]
    return {row[1]: float(row[3].replace(",", "")) for row in ROW.finditer(table) if bool(row[2]) == bold}


def computed() -> dict[str, float]:
    """Return the numbers of the example by the repository's functions."""
    model, cluster = load_model("llama-3-8b"), load_cluster("dgx-h100:2")
    strategy = Strategy(dp=16, zero=1, recompute="full", micro_batch=1, num_microbatches=4, seq_len=8192)
    cost, accelerator, params = cost_model(cluster), cluster.accelerator, num_params(model)
    workload = build_workload(model, strategy)
    step = float(estimate(workload, cost).step_time_s)
    (up,) = Gemm(name="up", m=8192, k=4096, n=14336, dtype="bf16").kernels("F")
    scatter = Collective(name="gradients", kind="reduce_scatter", axis="dp", bytes=4 * params, group_size=16)
    reduce = replace(scatter, kind="all_reduce", bytes=2 * params)
    return {
        "parameters": params, "tokens of a step": strategy.tokens_per_step,
        "model FLOP of a token": step_flop(model, strategy) / strategy.tokens_per_step,
        "model FLOP of a step": step_flop(model, strategy),
        "states of a rank": float(sum(state_bytes(strategy, params).values())),
        "checkpoint": checkpoint_bytes(model, strategy), "FLOP of one up projection, forward": up.flop,
        "its roofline": up.flop / peak_flop_per_s(accelerator, "bf16"), "its price": float(cost.kernel(up).seconds),
        "gradients sent by a rank, fp32": float(scatter.wire_bytes),
        "their reduce-scatter": float(cost.collective(scatter, 8).seconds),
        "all-reduce of bf16 gradients": float(cost.collective(reduce, 8).seconds),
        "peak memory of a rank": float(peak_memory(workload, accelerator).peak_bytes), "step": step,
        "MFU": float(mfu(model, strategy, step, accelerator)), "HFU": float(hfu(model, strategy, step, accelerator)),
        "days for 1T tokens": float(run_days(1e12, strategy.tokens_per_step, step)),
        "interval, first order": float(young_s(10.0, 50 * 3600.0)), "interval, exact": best_s(10.0, 50 * 3600.0),
    }


def by_hand() -> dict[str, float]:
    """Return the numbers in bold without the repository: Llama-3-8B on 16 H100, with 10 s of stall and 50 h to a failure."""
    h, s, layers, vocab, ffn = 4096, 8192, 32, 128256, 14336
    matmuls = vocab * h + layers * (h * 128 * (2 * 32 + 2 * 8) + 3 * h * ffn)
    params, tokens = matmuls + vocab * h + (2 * layers + 1) * h, 16 * 4 * s
    per_token = 6 * matmuls + 12 * layers * h * s
    low, high = 0.0, 50 * 3600.0
    for _ in range(100):
        middle = (low + high) / 2
        x = middle / (50 * 3600.0)
        low, high = (middle, high) if (1 - x) * math.exp(x) > math.exp(-10 / (50 * 3600.0)) else (low, middle)
    return {
        "parameters": params, "tokens of a step": tokens, "model FLOP of a token": per_token,
        "model FLOP of a step": per_token * tokens, "states of a rank": params * (2 + 4 + 4 / 16 + 8 / 16),
        "checkpoint": params * (2 + 4 + 8), "FLOP of one up projection, forward": 2.0 * s * ffn * h,
        "its roofline": 2.0 * s * ffn * h / 989.4e12, "gradients sent by a rank, fp32": params * 4 * 15 / 16,
        "interval, first order": math.sqrt(2 * 10 * 50 * 3600), "interval, exact": low,
    }


def test_the_page_has_every_number() -> None:
    assert printed(bold=True).keys() == by_hand().keys()
    assert printed(bold=True).keys() | printed(bold=False).keys() == computed().keys()


def test_what_is_reckoned_by_hand_is_what_the_functions_and_the_page_say() -> None:
    found, page = computed(), printed(bold=True)
    for name, value in by_hand().items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
        assert page[name] == pytest.approx(value, rel=6e-4), name


def test_what_is_fitted_is_about_what_the_page_says() -> None:
    found = computed()
    for name, value in printed(bold=False).items():
        assert found[name] == pytest.approx(value, rel=FITTED), f"{name}: the page is stale"


def test_files_that_the_page_names_are_there() -> None:
    root = PAGE.parent.parent
    names = re.findall(r"`([\w/*]+(?:\.py|\.yaml|/))`", PAGE.read_text())
    assert len(names) > 40
    for name in names:
        assert any(list(place.glob(name)) for place in (root, root / "profiles")) or list(root.glob(f"*/**/{name}")), name
