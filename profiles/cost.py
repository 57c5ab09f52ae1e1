"""Seconds of an operator or a collective, with spread and source: the only home of time.

Where a measured table is at hand it is interpolated (time over roofline, by shape); else the fitted laws of the
accelerator's efficiency file hold. Sizes may be arrays; the result then is an array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.collectives import Collective, traffic_factor
from profiles.efficiency import Efficiency, ScaleUpLaw, load_efficiency
from profiles.files import BadInput
from profiles.hardware import Accelerator, Cluster
from profiles.interpolation import (
    DRIFT_SPREAD,
    collective_points,
    interpolate_collective,
    interpolate_kernel,
    kernel_points,
)
from profiles.ops import Kernel, Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds, how far they may be off, and where they come from.

    `spread` is what all costs of one source share (a fit's error, a machine's drift), `noise` what this cost has
    alone (a median of few samples, a gap between measured shapes); each one standard deviation of the logarithm.
    """

    seconds: Num
    spread: Num
    noise: Num = 0.0
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """What operators and collectives cost on a cluster: by `efficiency` laws, or by the cluster's measured table."""

    cluster: Cluster
    efficiency: Efficiency | None

    @property
    def overlaps(self) -> bool:
        """Return whether communication hides behind computation.

        Not on CPU: gloo's threads use the cores that compute (measured: hiding gains nothing).
        """
        return self.cluster.accelerator.device != "cpu"

    def kernel(self, kernel: Kernel) -> Cost:
        """Return the cost of a kernel, never below its roofline."""
        if self.cluster.table is not None:
            return _measured_kernel(self, kernel)
        assert self.efficiency is not None
        return _law_kernel(self.cluster.accelerator, self.efficiency, kernel)

    def collective(self, collective: Collective, ranks_per_node: Num) -> Cost:
        """Return the cost of a collective whose group has `ranks_per_node` members in each node; 0 for a group of one."""
        if self.cluster.table is not None:
            return _measured_collective(self, collective)
        assert self.efficiency is not None
        return _law_collective(self.cluster, self.efficiency, collective, ranks_per_node)


def cost_model(cluster: Cluster) -> CostModel:
    """Return the cost model of a cluster: measured where it has a table, else its accelerator's fitted laws."""
    if cluster.table is not None:
        return CostModel(cluster=cluster, efficiency=None)
    return CostModel(cluster=cluster, efficiency=load_efficiency(cluster.accelerator.laws))


def peak_flop_per_s(accelerator: Accelerator, dtype: str) -> float:
    """Return the dense peak of a dtype; one that the accelerator lacks is a `BadInput`."""
    if dtype not in accelerator.peak_flop_per_s:
        known = ", ".join(accelerator.peak_flop_per_s)
        raise BadInput(f"precision: {dtype!r} has no peak on {accelerator.title}; it states {known}")
    return accelerator.peak_flop_per_s[dtype]


def roofline_s(accelerator: Accelerator, kernel: Kernel) -> Num:
    """Return max(flop / peak, bytes / bandwidth). Williams et al., doi 10.1145/1498765.1498785."""
    compute = kernel.flop / peak_flop_per_s(accelerator, kernel.dtype)
    return np.maximum(compute, kernel.moved_bytes / accelerator.memory_bytes_per_s)


def _law_kernel(accelerator: Accelerator, laws: Efficiency, kernel: Kernel) -> Cost:
    memory_s = kernel.moved_bytes / accelerator.memory_bytes_per_s
    if kernel.kind == "gemm":
        gemm = laws.gemm
        share = gemm.efficiency * (gemm.weight_gradient_factor if kernel.pass_ == "W" else 1.0)
        compute_s = kernel.flop / (peak_flop_per_s(accelerator, kernel.dtype) * share)
        seconds = gemm.overhead_s + np.maximum(compute_s, memory_s / gemm.memory_efficiency)
        return Cost(seconds=seconds, spread=gemm.spread, source=f"fitted: {gemm.source}")
    if kernel.kind == "attention":
        law = laws.attention
        share = law.efficiency * (law.backward_speed if kernel.pass_ == "B" else 1.0)
        compute_s = kernel.flop / (peak_flop_per_s(accelerator, kernel.dtype) * share)
        seconds = law.overhead_s + np.maximum(compute_s * (1 + law.half_length / kernel.size[2]), memory_s)
        return Cost(seconds=seconds, spread=law.spread, source=f"fitted: {law.source}")
    memory = laws.memory_bound
    seconds = kernel.launches * memory.overhead_s + memory_s / memory.efficiency
    return Cost(seconds=seconds, spread=memory.spread, source=f"fitted: {memory.source}")


def _law_collective(cluster: Cluster, laws: Efficiency, collective: Collective, ranks_per_node: Num) -> Cost:
    n = np.asarray(collective.group_size, dtype=float)
    per_node = np.asarray(ranks_per_node, dtype=float)
    nodes = np.maximum(1.0, n / per_node)
    inside = _scale_up_s(cluster, laws.scale_up, collective.kind, collective.bytes, n)
    across = _scale_out_s(cluster, laws, collective.kind, collective.bytes, n, per_node, nodes)
    crosses = nodes > 1
    seconds = np.where(n > 1, np.where(crosses, across, inside), 0.0)
    spread = np.where(crosses, laws.scale_out.spread, laws.scale_up.spread)
    return Cost(seconds=seconds if seconds.ndim else float(seconds), spread=spread if spread.ndim else float(spread),
                source=f"fitted: {laws.scale_up.source}; {laws.scale_out.source}")


def _scale_up_s(cluster: Cluster, law: ScaleUpLaw, kind: str, size: Num, n: NDArray[np.float64]) -> Num:
    """Return the fastest protocol's time inside a node; S is the whole buffer as in nccl-tests."""
    speed = cluster.scale_up.bytes_per_s / law.reference_bytes_per_s
    if kind in ("send", "broadcast"):
        return law.send.fixed_s + size / (law.send.bytes_per_s * speed)
    steps = 2 * (n - 1) if kind == "all_reduce" else np.where(n > 1, 1.0, 0.0) if kind == "all_to_all" else n - 1
    factor, full = traffic_factor(kind, n), 2.0 if kind == "all_reduce" else 1.0
    best: Num = np.inf
    for p in law.protocols[kind]:
        moved = size * (p.copy_share * full + (1 - p.copy_share) * factor)
        best = np.minimum(best, p.fixed_s + p.step_s * steps + moved / (p.bytes_per_s * speed))
    if kind == "all_reduce" and law.nvls:
        in_switch = law.nvls.fixed_s + size / (law.nvls.bytes_per_s * speed)
        best = np.minimum(best, np.where(n >= law.nvls.min_group, in_switch, np.inf))
    return best


def _scale_out_s(cluster: Cluster, laws: Efficiency, kind: str, size: Num, n: Num, per_node: Num, nodes: Num) -> Num:
    """Return the time over nodes: a ring enters and leaves each node once for every member that it has there."""
    law = laws.scale_out
    nic = cluster.scale_out.bytes_per_s
    if kind in ("send", "broadcast"):
        return law.send_fixed_s + size / (nic * law.send_share)
    wire = size * traffic_factor(kind, n)
    inside = np.where(per_node > 1, _scale_up_s(cluster, laws.scale_up, kind, size, per_node), 0.0)
    ring_s = wire / (nic * law.nic_share * (1.0 if kind == "all_to_all" else per_node))
    if kind == "all_reduce":
        hops = law.all_reduce_hop_s * np.log2(nodes)
        seconds = hops + ring_s + law.all_reduce_ramp * np.sqrt(ring_s * hops)
    else:
        seconds = law.ring_fixed_s + law.ring_step_s * (n - nodes) + law.ring_node_step_s * (nodes - 1) + ring_s
    return np.maximum(seconds, inside)


def _measured_kernel(model: CostModel, kernel: Kernel) -> Cost:
    assert model.cluster.table is not None
    accelerator = model.cluster.accelerator
    points = kernel_points(model.cluster.table, kernel.kind, kernel.pass_, kernel.dtype)
    if points is None:
        raise BadInput(
            f"profile: no {kernel.kind} of pass {kernel.pass_} in {kernel.dtype} was measured; "
            "run `headway profile` again"
        )
    seconds, noise, exact = interpolate_kernel(points, kernel.size)
    # the table's own best GEMM rate is the peak, so only the compute side of the roofline binds: caches beat DRAM
    floor = kernel.flop / peak_flop_per_s(accelerator, kernel.dtype)
    source = "measured" if exact else "interpolated"
    return Cost(seconds=np.maximum(seconds, floor), spread=DRIFT_SPREAD, noise=noise,
                source=f"{source} {model.cluster.table.head['date']}")


def _measured_collective(model: CostModel, collective: Collective) -> Cost:
    assert model.cluster.table is not None
    if np.all(np.asarray(collective.group_size) == 1):
        return Cost(seconds=0.0 * np.asarray(collective.bytes), spread=0.0, source="a group of one sends nothing")
    points = collective_points(model.cluster.table, collective.kind)
    if points is None:
        raise BadInput(f"profile: no {collective.kind} was measured; run `headway profile --ranks 2` or more")
    seconds, noise = interpolate_collective(points, collective)
    return Cost(seconds=seconds, spread=DRIFT_SPREAD, noise=noise, source=f"interpolated {model.cluster.table.head['date']}")


