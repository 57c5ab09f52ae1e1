"""Seconds: never below the roofline, never slower with more bandwidth, and measured points returned as measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles import files
from profiles.attention import Attention, UnfusedAttention
from profiles.collectives import Collective, traffic_factor
from profiles.cost import CostModel, cost_model, roofline_s
from profiles.efficiency import load_efficiency
from profiles.files import BadInput
from profiles.hardware import Cluster, cluster_from_table, load_accelerator, load_cluster
from profiles.matmul import Gemm, GroupedGemm
from profiles.ops import Kernel, Op
from profiles.optimizer import AdamW
from profiles.pointwise import POINTWISE, Pointwise
from profiles.scan import Scan
from profiles.tables import MeasuredTable, table_from_rows
from profiles.vocabulary import CrossEntropy, Embedding

CLUSTERS = files.catalog_names("clusters")
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")


def laws_of(cluster: Cluster) -> CostModel:
    """Return the cost model by fitted laws alone, without what training runs add."""
    return CostModel(cluster=cluster, efficiency=load_efficiency(cluster.accelerator.laws))


def every_op(dtype: str, narrow: str) -> list[Op]:
    """Return one operator of every kind, small and large."""
    ops: list[Op] = []
    for tokens in (64, 4096):
        ops += [
            Gemm(name="x", m=tokens, k=1024, n=4096, dtype=dtype, matmul=narrow),
            GroupedGemm(name="x", groups=8, m=tokens / 7, k=1024, n=512, dtype=dtype, matmul=narrow),
            Attention(name="x", batch=2, heads=16, kv_heads=4, seq_len=tokens, head_dim=64, dtype=dtype),
            UnfusedAttention(name="x", batch=2, heads=16, kv_heads=16, seq_len=tokens, head_dim=64, dtype=dtype),
            Scan(name="x", tokens=tokens, heads=16, head_dim=64, state=128, dtype=dtype),
            Embedding(name="x", tokens=tokens, hidden=1024, vocab=32000, dtype=dtype),
            CrossEntropy(name="x", tokens=tokens, vocab=32000, dtype=dtype), AdamW(name="x", params=tokens * 1e4),
            *(Pointwise(name="x", kind=kind, rows=tokens, cols=1024, dtype=dtype, mode=mode) for kind, mode in POINTWISE),
        ]
    return ops


@pytest.mark.parametrize("name", CLUSTERS)
def test_no_kernel_beats_its_roofline(name: str) -> None:
    cost = laws_of(load_cluster(name))
    dtypes = list(cost.cluster.accelerator.peak_flop_per_s)
    wide = [d for d in dtypes if d in ("bf16", "fp16")]
    for dtype, narrow in [(d, "") for d in (*wide, "fp32") if d in dtypes] + [(wide[0], d) for d in dtypes if d not in wide]:
        for op in every_op(dtype, narrow):
            for pass_ in ("F", "B", "W", "U"):
                for kernel in op.kernels(pass_):  # type: ignore[arg-type]
                    if kernel.dtype in dtypes:
                        seconds = cost.kernel(kernel).seconds
                        assert seconds >= roofline_s(cost.cluster.accelerator, kernel), kernel


@given(st.sampled_from(CLUSTERS), st.sampled_from(KINDS), st.floats(1, 1e11), st.sampled_from([2, 4, 8, 16, 64]),
       st.sampled_from([1, 2, 8]), st.floats(1.0, 16.0))
def test_more_bandwidth_is_never_slower(
    name: str, kind: str, size: float, group: int, per_node: int, faster: float
) -> None:
    cluster = load_cluster(name, None)
    quick = replace(
        cluster, scale_up=replace(cluster.scale_up, bytes_per_s=cluster.scale_up.bytes_per_s * faster),
        scale_out=replace(cluster.scale_out, bytes_per_s=cluster.scale_out.bytes_per_s * faster),
    )
    collective = Collective(name="x", kind=kind, axis="dp", bytes=size, group_size=group)
    per_node = min(per_node, group)
    slow = cost_model(cluster).collective(collective, per_node).seconds
    assert cost_model(quick).collective(collective, per_node).seconds <= slow * (1 + 1e-9)


@given(st.floats(1, 1e11), st.floats(1.0, 100.0), st.sampled_from(KINDS), st.sampled_from([2, 8, 32]))
def test_more_bytes_are_never_faster(size: float, more: float, kind: str, group: int) -> None:
    cost = cost_model(load_cluster("dgx-h100:4"))

    def seconds(bytes_: float) -> float:
        c = Collective(name="x", kind=kind, axis="dp", bytes=bytes_, group_size=group)
        return float(cost.collective(c, min(group, 8)).seconds)

    assert seconds(size * more) >= seconds(size) * (1 - 1e-12)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_group_of_one_sends_nothing(kind: str) -> None:
    c = Collective(name="x", kind=kind, axis="dp", bytes=1e9, group_size=np.array([1, 2]))
    assert c.wire_bytes[0] == 0 and c.wire_bytes[1] > 0
    seconds = cost_model(load_cluster("dgx-h100")).collective(c, np.array([1, 2])).seconds
    assert seconds[0] == 0 and seconds[1] > 0


def test_wire_bytes_are_conserved() -> None:
    """An all-reduce is a reduce-scatter and an all-gather; every rank receives what it lacks."""
    for n in (2, 3, 8, 64):
        assert traffic_factor("all_reduce", n) == pytest.approx(
            traffic_factor("reduce_scatter", n) + traffic_factor("all_gather", n)
        )
        assert traffic_factor("all_gather", n) * n == pytest.approx(n - 1)


def test_large_all_reduce_in_a_node_reaches_published_bus_bandwidth() -> None:
    """nccl-tests on 8 H100 with NVLS: about 480 GB/s bus bandwidth at gigabytes (published range 450 to 490)."""
    c = Collective(name="x", kind="all_reduce", axis="dp", bytes=8e9, group_size=8)
    seconds = laws_of(load_cluster("dgx-h100")).collective(c, 8).seconds
    assert 450e9 < c.wire_bytes / seconds < 490e9


def test_large_gemm_runs_at_the_sustained_rate() -> None:
    kernel = Gemm(name="x", m=16384, k=16384, n=16384, dtype="bf16").kernels("F")[0]
    law = load_efficiency("h100-80gb").gemm
    seconds = laws_of(load_cluster("dgx-h100")).kernel(kernel).seconds
    rate = kernel.flop / seconds / load_accelerator("h100-80gb").peak_flop_per_s["bf16"]
    assert rate == pytest.approx(law.efficiency["bf16"] * law.sustained, rel=0.02)


def measured(rows: list[dict[str, object]], num_ranks: int = 2) -> MeasuredTable:
    head = {"name": "test", "date": "2026-01-01", "num_ranks": num_ranks, "peak_flop_per_s": {"fp32": 1e11},
            "memory_bytes_per_s": 1e10, "memory_bytes": 8e9, "framework_bytes": 3e8, "backend": "gloo",
            "environment": {}}
    common = {"dtype": "fp32", "mode": "eager", "num_samples": 5}
    filled = [common | {"p10_s": 0.9 * r["median_s"], "p90_s": 1.1 * r["median_s"]} | r for r in rows]  # type: ignore[operator]
    return table_from_rows(head, filled)


def gemm_row(m: int, n: int, k: int, seconds: float) -> dict[str, object]:
    return {"kind": "gemm", "pass": "F", "size_0": m, "size_1": n, "size_2": k, "median_s": seconds}


def kernel_of(m: int, n: int, k: int) -> Kernel:
    return Gemm(name="x", m=m, k=k, n=n, dtype="fp32").kernels("F")[0]


TABLE = measured([gemm_row(64, 64, 64, 2e-5), gemm_row(256, 256, 256, 5e-4), gemm_row(1024, 256, 512, 4e-3)])


@pytest.mark.parametrize(("shape", "seconds"), [((64, 64, 64), 2e-5), ((256, 256, 256), 5e-4), ((1024, 256, 512), 4e-3)])
def test_a_measured_shape_returns_its_measurement(shape: tuple[int, int, int], seconds: float) -> None:
    found = cost_model(cluster_from_table(TABLE)).kernel(kernel_of(*shape))
    assert found.seconds == pytest.approx(seconds, rel=1e-6)
    assert found.source.startswith("measured")


@given(st.integers(64, 1024), st.integers(64, 256), st.integers(64, 512))
def test_between_measured_shapes_time_stays_near_the_rates_seen(m: int, n: int, k: int) -> None:
    found = cost_model(cluster_from_table(TABLE)).kernel(kernel_of(m, n, k))
    rates = [2 * 64**3 / 2e-5, 2 * 256**3 / 5e-4, 2 * 1024 * 256 * 512 / 4e-3]
    assert 2 * m * n * k / found.seconds <= max(rates) * 1.5
    assert found.seconds >= 2 * m * n * k / 1e11


def test_interpolated_arrays_equal_scalars() -> None:
    cost = cost_model(cluster_from_table(TABLE))
    m = np.array([64, 100, 1024, 64])
    together = cost.kernel(kernel_of(m, 200, 300)).seconds  # type: ignore[arg-type]
    assert together == pytest.approx([cost.kernel(kernel_of(int(x), 200, 300)).seconds for x in m])


def test_measured_collectives_between_and_beyond() -> None:
    rows = [{"kind": "all_reduce", "bytes": b, "group_size": 2, "median_s": s} for b, s in ((1e3, 1e-4), (1e6, 1e-3))]
    cost = cost_model(cluster_from_table(measured(rows)))

    def seconds(size: float) -> float:
        c = Collective(name="x", kind="all_reduce", axis="dp", bytes=size, group_size=2)
        return float(cost.collective(c, 2).seconds)

    assert seconds(1e3) == pytest.approx(1e-4) and seconds(1e6) == pytest.approx(1e-3)
    assert 1e-4 < seconds(3e4) < 1e-3
    assert seconds(1e7) == pytest.approx(1e-2)
    assert seconds(10) == pytest.approx(1e-4)


def test_a_kernel_that_was_not_measured_is_an_error() -> None:
    cost = cost_model(cluster_from_table(TABLE))
    with pytest.raises(BadInput, match="profile: no gemm of pass W in fp32 was measured"):
        cost.kernel(Gemm(name="x", m=8, k=8, n=8, dtype="fp32").kernels("W")[0])


ACCELERATOR = """
name: Mine
vendor: Me
year: 2026
memory: {value: 80 GiB, source: me}
memory_bandwidth: {value: 3 TB/s, source: me}
peak: {bf16: {value: 900 TFLOP/s, source: me}}
framework_memory: {value: 1 GiB, source: me}
allocator_slack: {value: 0.0, source: me}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("80 GiB", "80", "memory: 80.0 is a bare number; the unit is needed"),
        ("80 GiB", "-80 GiB", "memory: '-80 GiB' must not be negative"),
        ("3 TB/s", "3 TB", "memory_bandwidth: '3 TB' is unknown unit 'TB'"),
        ("vendor: Me", "vendr: Me", "vendor: is missing"),
        ("900 TFLOP/s", "0 TFLOP/s", "peak.bf16: must be more than zero"),
        ("80 GiB, source: me", "80 GiB", "memory.source: is missing"),
    ],
)
def test_an_accelerator_file_with_a_fault_names_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(ACCELERATOR.replace(old, new))
    with pytest.raises(BadInput, match=message) as caught:
        load_accelerator(str(path))
    assert "\n" not in str(caught.value)


def test_an_accelerator_without_laws_says_what_to_add(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(ACCELERATOR)
    cluster = replace(load_cluster("dgx-h100"), accelerator=load_accelerator(str(path)))
    with pytest.raises(BadInput, match="efficiency: 'mine' is neither in the catalogue"):
        cost_model(cluster)
    path.write_text(ACCELERATOR + "laws: h100-80gb\n")
    cost_model(replace(cluster, accelerator=load_accelerator(str(path))))


@pytest.mark.parametrize("text", ["dgx-h100:0", "dgx-h100:-1", "dgx-h100:many", "dgx-h101", "local"])
def test_a_cluster_that_is_none(text: str) -> None:
    with pytest.raises(BadInput, match=r"^cluster: "):
        load_cluster(text)


def test_noise_is_that_of_the_median_and_grows_between_measured_shapes() -> None:
    cost = cost_model(cluster_from_table(TABLE))
    exact, between = cost.kernel(kernel_of(256, 256, 256)), cost.kernel(kernel_of(200, 100, 300))
    assert exact.spread == between.spread == 0.05
    assert 0 < exact.noise < between.noise
    many = measured([gemm_row(64, 64, 64, 2e-5) | {"num_samples": 10_000}])
    assert cost_model(cluster_from_table(many)).kernel(kernel_of(64, 64, 64)).noise < exact.noise / 10


def test_the_weight_gradient_is_as_much_slower_as_its_factor_says() -> None:
    op = Gemm(name="x", m=8192, k=8192, n=8192, dtype="bf16")
    cost, law = laws_of(load_cluster("dgx-h100")), load_efficiency("h100-80gb").gemm
    forward, weight = (cost.kernel(op.kernels(p)[0]).seconds - law.overhead_s for p in ("F", "W"))  # type: ignore[arg-type]
    assert forward / weight == pytest.approx(law.weight_gradient_factor, rel=1e-3)
