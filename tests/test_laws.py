"""The laws against measurements that they were and were not fitted on, and what must hold for any size."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from profiles import efficiency, files
from profiles.attention import Attention
from profiles.collectives import Collective, traffic_factor
from profiles.cost import CostModel
from profiles.efficiency import load_efficiency, with_attention_version, with_law_number
from profiles.files import BadInput
from profiles.fitting import fit
from profiles.hardware import load_accelerator, load_cluster
from profiles.laws import attention_s, matmul_s, node_wire_bytes
from profiles.matmul import Gemm, GroupedGemm, matmul_kernel
from profiles.ops import Kernel

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


@pytest.fixture(scope="module")
def fitting_script() -> ModuleType:
    """Return scripts/fit_laws as a module, or skip where only the wheel is tested."""
    path = ROOT / "scripts" / "fit_laws"
    if not path.exists():
        pytest.skip("scripts/ is absent")
    loader = SourceFileLoader("fit_laws", str(path))
    spec = importlib.util.spec_from_loader("fit_laws", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def model_of(name: str) -> CostModel:
    cluster = load_cluster(name)
    return CostModel(cluster=cluster, efficiency=load_efficiency(cluster.accelerator.laws))


def mean_error(found: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    return float(np.abs(found / measured - 1).mean())


HELD_OUT = {
    "a100-80gb": {"bf16": 7.5, "bf16 sustained": 12}, "a100-80gb-pcie": {"bf16": 5}, "h100-80gb": {"bf16": 6, "fp8": 4.5},
    "h200-141gb": {"bf16": 6, "bf16 sustained": 5, "fp8": 4.5},
    "b200-180gb": {"bf16": 7, "bf16 sustained": 8, "fp8": 5.5, "mxfp8": 7, "nvfp4": 10},
    "b300-288gb": {"bf16": 9, "fp8": 6, "nvfp4": 14}, "gb200-186gb": {"bf16": 8, "bf16 sustained": 6, "fp8": 6, "nvfp4": 11},
    "gb300-288gb": {"bf16": 6.5, "fp8": 5, "nvfp4": 13}, "l40s-48gb": {"bf16": 10},
}
"""Mean absolute error in per cent on the half of the matmuls that a fit did not see: as reached, with a little room."""


@pytest.mark.parametrize("name", HELD_OUT)
def test_matmuls_that_a_fit_did_not_see(name: str, shared: Path, fitting_script: ModuleType) -> None:
    found = fitting_script.fit_gemm(shared / "hardware", name)
    assert set(found["held"]) == set(HELD_OUT[name])
    assert all(found["held"][d] <= bound for d, bound in HELD_OUT[name].items()), found["held"]
    in_file = load_efficiency(name).gemm
    for dtype, value in found["numbers"]["efficiency"].items():
        assert in_file.efficiency[dtype] == pytest.approx(value, rel=0.02), "run scripts/fit_laws --write"


@pytest.mark.parametrize(("name", "bound"), [("a100-80gb", 6), ("h100-80gb", 7.5), ("b200-180gb", 15)])
def test_attention_that_a_fit_did_not_see(name: str, bound: float, shared: Path, fitting_script: ModuleType) -> None:
    found = fitting_script.fit_attention(shared / "hardware", name)
    assert found["report"]["held_out"] <= bound
    assert load_efficiency(name).attention.efficiency == pytest.approx(found["numbers"]["efficiency"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "kind", "bound"),
    [("a100-80gb", "all_reduce", 10), ("a100-80gb", "all_gather", 14), ("h100-80gb", "all_reduce", 10),
     ("h100-80gb", "reduce_scatter", 9), ("b200-180gb", "all_gather", 11), ("b200-180gb", "all_to_all", 15)],
)
def test_collectives_that_a_fit_did_not_see(
    name: str, kind: str, bound: float, shared: Path, fitting_script: ModuleType
) -> None:
    assert fitting_script.fit_collective(shared / "hardware", name, kind)[2]["held_out"] <= bound


@pytest.mark.parametrize(
    ("name", "dtype", "sid", "bound"),
    [("a100-80gb", "fp16", "g54", 0.06), ("h100-80gb", "fp8", "g58", 0.04), ("h200-141gb", "fp8", "g55", 0.03),
     ("h100-80gb", "bf16", "g05", 0.13)],
)
def test_large_matmuls_of_another_source(
    name: str, dtype: str, sid: str, bound: float, shared: Path, fitting_script: ModuleType
) -> None:
    """Azure's cuBLASLt after 10,000 warm-ups (8-bit without casts, on H100 and H200 never fitted), vLLM's bursts on H100."""
    table = pd.read_csv(shared / "hardware" / "gemm.csv")
    rows = table[(table["sid"] == sid) & (table[["M", "N", "K"]].min(axis=1) >= 2048)]
    found = matmul_s(load_accelerator(name), load_efficiency(name).gemm, fitting_script.gemm_kernel(rows, dtype))
    assert mean_error(found, rows["time_us"].to_numpy() * 1e-6) <= bound


@pytest.mark.parametrize(("name", "rate", "bound"), [("h200-141gb", 447e12, 0.08), ("b200-180gb", 834e12, 0.1)])
def test_attention_inside_a_training_step(name: str, rate: float, bound: float) -> None:
    """Llama-3.1-8B at 8,192 tokens, forward and backward: stas00/ml-engineering@744d01e when-to-upgrade-gpus/README.md."""
    op = Attention(name="x", batch=1, heads=32, kv_heads=8, seq_len=8192, head_dim=128, dtype="bf16")
    law, accelerator = load_efficiency(name).attention, load_accelerator(name)
    kernels = [*op.kernels("F"), *op.kernels("B")]
    found = sum(k.flop for k in kernels) / sum(attention_s(accelerator, law, k) for k in kernels)
    assert found == pytest.approx(rate, rel=bound)


@pytest.mark.parametrize(
    ("cluster", "hardware", "fabric", "least", "per_node", "bound"),
    [("dgx-h100", "H100-SXM5-80GB", "IB NDR 8x400G", 4e6, 8, 0.07), ("p6-b200", "B200-SXM p6", "EFAv4", 1e6, 8, 0.08),
     ("h100-roce3200", "H100-SXM5-80GB BM", "RoCEv2", 1e9, 8, 0.09), ("p4de", "A100-SXM4-80GB p4de", "EFA", 1e8, 8, 0.2),
     ("gb200-nvl72", "GB200-NVL72", "single rack", 1e6, 72, 0.15)],
)
def test_all_reduce_over_nodes(
    cluster: str, hardware: str, fabric: str, least: float, per_node: int, bound: float, shared: Path
) -> None:
    table = pd.read_csv(shared / "hardware" / "collectives.csv")
    rows = table[table["hardware"].str.startswith(hardware) & table["fabric"].str.contains(fabric, regex=False)
                 & (table["collective"] == "all_reduce") & (table["bytes"] >= least) & (table["n_nodes"] > 1)
                 & ~table["library"].astype(str).str.contains("older")]
    collective = Collective(name="x", kind="all_reduce", axis="dp", bytes=rows["bytes"].to_numpy(float),
                            group_size=rows["n_gpus"].to_numpy(float))
    found = model_of(cluster).collective(collective, per_node).seconds
    assert len(rows) >= 5
    assert mean_error(found, rows["time_us"].to_numpy() * 1e-6) <= bound


SIZES = st.floats(1, 65536)
NAMES = st.sampled_from(files.catalog_names("clusters"))


def bf16_or_fp16(model: CostModel) -> str:
    return "bf16" if "bf16" in model.cluster.accelerator.peak_flop_per_s else "fp16"


@given(NAMES, SIZES, SIZES, SIZES, st.floats(1, 16), st.sampled_from([1.0, 4.0, 64.0]))
def test_a_larger_matmul_is_never_faster(name: str, m: float, n: float, k: float, more: float, groups: float) -> None:
    model = model_of(name)
    dtype = bf16_or_fp16(model)

    def seconds(m: float, n: float, k: float) -> float:
        op = Gemm(name="x", m=m, k=k, n=n, dtype=dtype) if groups == 1 else \
            GroupedGemm(name="x", groups=groups, m=m, k=k, n=n, dtype=dtype)  # type: ignore[arg-type]
        return float(model.kernel(op.kernels("F")[0]).seconds)

    least = seconds(m, n, k) * (1 - 1e-9)
    assert min(seconds(m * more, n, k), seconds(m, n * more, k), seconds(m, n, k * more)) >= least


@given(NAMES, st.integers(1, 64), st.integers(1, 128), st.floats(16, 131072), st.sampled_from([64, 80, 128, 192, 256]))
def test_attention_is_never_faster_than_the_peak_and_backward_never_than_forward(
    name: str, batch: int, heads: int, seq_len: float, head_dim: int
) -> None:
    model = model_of(name)
    dtype = bf16_or_fp16(model)
    op = Attention(name="x", batch=batch, heads=heads, kv_heads=heads, seq_len=seq_len, head_dim=head_dim, dtype=dtype)
    forward, backward = op.kernels("F")[0], op.kernels("B")[0]
    peak = model.cluster.accelerator.peak_flop_per_s[dtype]
    assert model.kernel(forward).seconds >= forward.flop / peak
    assert model.kernel(backward).seconds >= model.kernel(forward).seconds


@given(NAMES, st.sampled_from(KINDS), st.floats(1, 1e11), st.sampled_from([1, 2, 4, 8]), st.integers(1, 64), st.integers(2, 8))
def test_more_nodes_are_never_faster_for_the_same_buffer(
    name: str, kind: str, size: float, per_node: int, nodes: int, times: int
) -> None:
    model = model_of(name)

    def seconds(nodes: int) -> float:
        c = Collective(name="x", kind=kind, axis="dp", bytes=size, group_size=per_node * nodes)
        return float(model.collective(c, per_node).seconds)

    assert seconds(nodes * times) >= seconds(nodes) * (1 - 1e-9)


@given(NAMES, st.sampled_from(KINDS), st.floats(1, 1e11), st.sampled_from([1, 2, 4, 8]), st.integers(1, 64))
def test_no_collective_beats_its_wire(name: str, kind: str, size: float, per_node: int, nodes: int) -> None:
    model, n = model_of(name), per_node * nodes
    if n == 1:
        return
    seconds = model.collective(Collective(name="x", kind=kind, axis="dp", bytes=size, group_size=n), per_node).seconds
    if nodes > 1:
        wire = node_wire_bytes(kind, size, n, nodes) / (per_node * model.cluster.scale_out.bytes_per_s)
    else:
        # a switch that reduces takes a buffer from each rank once and gives it back once
        share = 1.0 if kind == "all_reduce" else traffic_factor(kind, n)
        wire = size * share / model.cluster.scale_up.bytes_per_s
    assert seconds >= wire * (1 - 1e-9)


def test_two_nodes_swap_the_buffer_once() -> None:
    assert node_wire_bytes("all_reduce", 1e9, 16, 2) == 1e9
    assert node_wire_bytes("all_reduce", 1e9, 32, 4) == pytest.approx(1e9 * 2 * 31 / 32)
    assert node_wire_bytes("all_to_all", 1e9, 16, 2) == pytest.approx(8 * 1e9 / 2)


def test_a_slower_message_lengthens_hops_and_not_the_wire() -> None:
    fast = model_of("p5")
    slow = replace(fast, cluster=replace(fast.cluster, scale_out=replace(fast.cluster.scale_out, latency_s=3e-5)))
    for size, least, most in ((1e3, 1.5, 3.0), (6.4e10, 1.0, 1.02)):
        c = Collective(name="x", kind="all_reduce", axis="dp", bytes=size, group_size=64)
        assert least <= slow.collective(c, 8).seconds / fast.collective(c, 8).seconds <= most


def test_a_law_s_number_may_be_an_array() -> None:
    model, rates = model_of("dgx-h100"), np.array([0.5, 0.6, 0.7])
    kernel = Gemm(name="x", m=4096, k=4096, n=np.array([[512], [8192]]), dtype="bf16").kernels("F")[0]  # type: ignore[arg-type]
    assert model.efficiency is not None
    batch = replace(model, efficiency=with_law_number(model.efficiency, "gemm.efficiency.bf16", rates)).kernel(kernel).seconds
    assert batch.shape == (2, 3)
    for i, rate in enumerate(rates):
        one = replace(model, efficiency=with_law_number(model.efficiency, "gemm.efficiency.bf16", rate))
        assert batch[:, i] == pytest.approx(one.kernel(kernel).seconds[:, 0])
    with pytest.raises(BadInput, match=r"'gemm.efficency' names no number"):
        with_law_number(model.efficiency, "gemm.efficency", 1.0)


def test_attention_of_an_older_version_is_slower() -> None:
    laws = load_efficiency("h100-80gb")
    older = with_attention_version(laws, "fa2")
    assert older.attention.efficiency == pytest.approx(0.6 * laws.attention.efficiency)
    with pytest.raises(BadInput, match="attention: 'fa9' has no factor for h100-80gb; known: fa3, fa2, cudnn"):
        with_attention_version(laws, "fa9")


def test_experts_with_few_rows_run_slower_than_one_large_matmul() -> None:
    model = model_of("dgx-h100")
    whole = model.kernel(Gemm(name="x", m=8192, k=4096, n=4096, dtype="bf16").kernels("F")[0]).seconds
    few = model.kernel(GroupedGemm(name="x", groups=8, m=1024, k=4096, n=4096, dtype="bf16").kernels("F")[0]).seconds
    many = model.kernel(GroupedGemm(name="x", groups=128, m=64, k=4096, n=4096, dtype="bf16").kernels("F")[0]).seconds
    assert whole < few < 1.3 * whole < many


def test_experts_in_an_op_profile() -> None:
    """40 experts of 616 rows on A100-PCIe at 197 TFLOP/s: MooreThreads/SimuMax@4dcaae5 a100_pcie."""
    kernel = GroupedGemm(name="x", groups=40, m=616, k=5120, n=3072, dtype="bf16").kernels("F")[0]
    seconds = model_of("a100-pcie").kernel(kernel).seconds
    assert kernel.flop / seconds == pytest.approx(197e12, rel=0.05)


@pytest.mark.parametrize("name", ["dgx-h100", "gb300-nvl72"])
def test_a_row_more_is_never_faster(name: str) -> None:
    rows = np.arange(1.0, 4000.0)
    for kernel in (Gemm(name="x", m=rows, k=512, n=2048, dtype="bf16").kernels("F")[0],  # type: ignore[arg-type]
                   GroupedGemm(name="x", groups=4, m=rows, k=512, n=2048, dtype="bf16").kernels("F")[0]):  # type: ignore[arg-type]
        assert np.diff(model_of(name).kernel(kernel).seconds).min() >= -1e-15


def test_a_dtype_without_a_law_says_so() -> None:
    model = model_of("dgx-a100")
    kernel = Kernel(kind="gemm", pass_="F", dtype="fp8", size=(8, 8, 8), flop=1024, read_bytes=1, written_bytes=1)
    with pytest.raises(BadInput, match="precision: 'fp8' has no matmul efficiency for A100-SXM4-80GB"):
        model.kernel(kernel)


def test_a_file_that_borrows_from_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = {"a": {"accelerator": "a", "gemm": "b"}, "b": {"accelerator": "b", "gemm": "a"}}
    monkeypatch.setattr(efficiency.files, "catalog_mapping", lambda kind, name: yaml.safe_load(yaml.safe_dump(circle[name])))
    with pytest.raises(BadInput, match="borrows from itself by way of a, b"):
        load_efficiency("a")


@given(st.floats(0.1, 5.0), st.floats(-2.0, 2.0), st.floats(-50.0, 50.0))
def test_a_fit_bends_little_to_a_wild_point(rate: float, offset: float, wild: float) -> None:
    x = np.linspace(0.1, 4.0, 40)
    measured = rate * x + offset
    exact = fit(lambda v: v[0] * x + v[1] - measured, np.array([1.0, 0.0]))
    assert exact.values == pytest.approx([rate, offset], rel=1e-4, abs=1e-6)
    measured[3] += wild
    found = fit(lambda v: v[0] * x + v[1] - measured, np.array([1.0, 0.0]), width=0.1)
    assert found.values == pytest.approx([rate, offset], abs=0.02)
    assert found.covariance.shape == (2, 2)


def test_a_fit_of_a_curve() -> None:
    x = np.linspace(0.1, 4.0, 40)
    found = fit(lambda v: np.log(np.exp(-v[0] * x) + v[1]) - np.log(np.exp(-1.7 * x) + 0.3), np.array([0.5, 1.0]),
                lower=np.array([0.01, 0.01]), width=0.1)
    assert found.values == pytest.approx([1.7, 0.3], rel=1e-3)


def test_a_fit_stays_within_its_bounds() -> None:
    found = fit(lambda v: v - np.array([3.0, -1.0]), np.array([0.5, 0.5]), lower=0.0, upper=2.0)
    assert found.values == pytest.approx([2.0, 0.0])


@given(st.integers(8, 32), st.integers(1, 8))
def test_heads_that_no_load_fits_are_slow_without_flash_attention(head_dim: int, batch: int) -> None:
    """16-byte loads take eight elements: a head of 108 is slower than one of 112."""
    a100 = load_accelerator("a100-80gb")
    law = load_efficiency("a100-80gb").gemm

    def seconds(n: int) -> float:
        kernel = matmul_kernel("batched_gemm", "F", 16 * batch, 2048, 2048, n, dtype="bf16", out="bf16")
        return float(matmul_s(a100, law, kernel))

    aligned = seconds(8 * head_dim)
    assert seconds(8 * head_dim + 1) > 2 * aligned
    assert seconds(8 * head_dim + 8) < 1.2 * aligned
