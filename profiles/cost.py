"""Seconds of an operator or a collective, with spread and source: the only home of time.

Where a measured table is at hand it is interpolated (time over roofline, by shape); else the fitted laws of the
accelerator's efficiency file hold. Sizes may be arrays; the result then is an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from profiles.calibration import NONE, Calibration, load_calibration, worst
from profiles.collectives import Collective
from profiles.efficiency import AttentionLaw, Efficiency, GemmLaw, MemoryLaw, ScanLaw, load_efficiency
from profiles.files import BadInput
from profiles.hardware import Accelerator, Cluster
from profiles.interpolation import (
    DRIFT_SPREAD,
    collective_points,
    interpolate_collective,
    interpolate_kernel,
    kernel_points,
)
from profiles.laws import COMPUTED, MATMULS, attention_s, matmul_s, peak_flop_per_s, scale_out_s, scale_up_s, scan_s, stream_s
from profiles.ops import Kernel, Num

__all__ = ["Cost", "CostModel", "cost_model", "peak_flop_per_s", "roofline_s"]


UNSURE = ("grouped_gemm", "permute", "route", "scan")
"""Kernels whose rate in training varies most between software generations: experts and recurrences."""


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
    """What operators and collectives cost on a cluster: by `efficiency` laws, or by the cluster's measured table.

    `eager`: pointwise kernels are not fused; `age_years`: years from the accelerator's launch to the software's release.
    `parts` are the models of a pool's parts; an operator that runs on several of them takes as long as on the slowest.
    """

    cluster: Cluster
    efficiency: Efficiency | None
    calibration: Calibration = NONE
    eager: bool = False
    age_years: float = 4.0
    parts: tuple[CostModel, ...] = ()

    def over(self, places: tuple[int, ...]) -> CostModel:
        """Return the model of what runs over some parts of a pool, by index: a part's own, or the slowest of several."""
        if len(places) == 1:
            return self.parts[places[0]]
        return replace(self, parts=tuple(self.parts[place] for place in places))

    @property
    def overlaps(self) -> bool:
        """Return whether communication hides behind computation.

        Not on CPU: gloo's threads use the cores that compute (measured: hiding gains nothing).
        """
        return self.cluster.accelerator.device != "cpu"

    def kernel(self, kernel: Kernel) -> Cost:
        """Return the cost of a kernel, never below its roofline."""
        if self.parts:
            return _slowest([part.kernel(kernel) for part in self.parts])
        if self.cluster.table is not None:
            return _measured_kernel(self, kernel)
        assert self.efficiency is not None
        cost = _law_kernel(self.cluster.accelerator, self.efficiency, kernel)
        seconds = cost.seconds * self._training_factor(kernel.kind)
        if kernel.kind in COMPUTED:
            # a calibrated rate may rise above the fitted one, but not above the data sheet's
            seconds = np.maximum(seconds, kernel.flop / peak_flop_per_s(self.cluster.accelerator, kernel.dtype))
        if self.calibration is NONE:
            return replace(cost, seconds=seconds)
        return replace(cost, seconds=seconds, spread=self.calibration.expert_spread if kernel.kind in UNSURE else 0.0)

    def _training_factor(self, kind: str) -> Num:
        """Return what a kernel of this kind takes in a training run over what it takes alone."""
        c = self.calibration
        young = 1 + c.maturing * 0.5 ** (self.age_years - 1)
        if kind in (*MATMULS, "scan"):
            return c.matmul * young * (c.experts if kind in UNSURE else 1.0)
        if kind == "attention":
            return c.attention * young
        if kind == "adamw":
            return 1.0
        fused = c.casts if kind == "quantise" else 1.0
        return c.memory * (c.experts if kind in UNSURE else 1.0) * (c.eager if self.eager else fused)

    @property
    def gathers_with_copies(self) -> bool:
        """Return whether collectives through FSDP are measured with the copies that it makes around them."""
        table = self.cluster.table
        return table is not None and collective_points(table, "all_gather", "fsdp") is not None

    def update(self, kernel: Kernel, engine: str = "") -> Cost:
        """Return the cost of a part's update of plain tensors, or of those of an engine (`tp`, `fsdp`)."""
        if self.cluster.table is None or not engine:
            return self.kernel(kernel)
        return _measured_update(self, kernel, engine)

    def collective(
        self, collective: Collective, ranks_per_node: Num, engine: str = "", contention: tuple[Num, Num] = (1.0, 1.0)
    ) -> Cost:
        """Return the cost of a collective whose group has `ranks_per_node` members in each node; 0 for a group of one.

        `contention`: how many times longer its bytes take on links that groups share, inside and between nodes. Where the
        machine is measured, those over tp, and over dp through an `engine` (`fsdp`), include what it adds.
        """
        if self.parts:
            wire = self.cluster.scale_out
            joint = (replace(part, cluster=replace(part.cluster, scale_out=wire)) for part in self.parts)
            return _slowest([part.collective(collective, ranks_per_node, engine, contention) for part in joint])
        if self.cluster.table is not None:
            return _measured_collective(self, collective, engine)
        assert self.efficiency is not None
        cost = _law_collective(self.cluster, self.efficiency, collective, ranks_per_node, contention)
        crosses = np.asarray(collective.group_size) > np.asarray(ranks_per_node)
        factor = np.where(crosses, self.calibration.scale_out, self.calibration.scale_up)
        seconds = cost.seconds * factor
        if self.calibration is NONE:
            return replace(cost, seconds=seconds)
        experts = collective.axis in ("ep", "etp")
        spread = self.calibration.expert_spread if experts else self.calibration.comm_spread
        return replace(cost, seconds=seconds, spread=spread)


def cost_model(cluster: Cluster) -> CostModel:
    """Return the cost model of a cluster: measured where it has a table, else its accelerator's fitted laws."""
    if cluster.table is not None:
        return CostModel(cluster=cluster, efficiency=None)
    if cluster.parts:
        parts = tuple(cost_model(part) for part in cluster.parts)
        return CostModel(cluster=cluster, efficiency=None, parts=parts, calibration=worst([p.calibration for p in parts]))
    return CostModel(
        cluster=cluster, efficiency=load_efficiency(cluster.accelerator.laws),
        calibration=load_calibration(cluster.accelerator.name),
    )


def _slowest(costs: Sequence[Cost]) -> Cost:
    """Return the longest of the costs of one operator on several parts of a pool."""
    longest = costs[0]
    for cost in costs[1:]:
        slower = np.asarray(cost.seconds) > np.asarray(longest.seconds)
        longest = Cost(
            seconds=np.maximum(longest.seconds, cost.seconds), spread=np.where(slower, cost.spread, longest.spread),
            noise=np.where(slower, cost.noise, longest.noise),
            source=longest.source if cost.source in longest.source else f"{longest.source}; {cost.source}",
        )
    return longest


def roofline_s(accelerator: Accelerator, kernel: Kernel) -> Num:
    """Return max(flop / peak, bytes / bandwidth). Williams et al., doi 10.1145/1498765.1498785."""
    compute = kernel.flop / peak_flop_per_s(accelerator, kernel.dtype)
    return np.maximum(compute, kernel.moved_bytes / accelerator.memory_bytes_per_s)


def _law_kernel(accelerator: Accelerator, laws: Efficiency, kernel: Kernel) -> Cost:
    law: GemmLaw | AttentionLaw | ScanLaw | MemoryLaw
    if kernel.kind in MATMULS:
        law, seconds = laws.gemm, matmul_s(accelerator, laws.gemm, kernel)
    elif kernel.kind == "attention":
        law, seconds = laws.attention, attention_s(accelerator, laws.attention, kernel)
    elif kernel.kind == "scan":
        law, seconds = laws.scan, scan_s(accelerator, laws.scan, kernel)
    else:
        law, seconds = laws.memory_bound, stream_s(accelerator, laws.memory_bound, kernel)
    return Cost(seconds=seconds, spread=law.spread, source=f"fitted: {law.source}")


def _law_collective(
    cluster: Cluster, laws: Efficiency, collective: Collective, ranks_per_node: Num, contention: tuple[Num, Num]
) -> Cost:
    n = np.asarray(collective.group_size, dtype=float)
    per_node = np.asarray(ranks_per_node, dtype=float)
    inside = scale_up_s(cluster.scale_up, laws.scale_up, collective.kind, collective.bytes, n, contention[0])
    across = scale_out_s(cluster, laws.scale_out, laws.scale_up, collective.kind, collective.bytes, n, per_node,
                         collective.copies, contention)
    crosses = n > per_node
    seconds = np.where(n > 1, np.where(crosses, across, inside), 0.0)
    spread = np.where(crosses, laws.scale_out.spread, laws.scale_up.spread)
    return Cost(seconds=seconds if seconds.ndim else float(seconds), spread=spread if spread.ndim else float(spread),
                source=f"fitted: {laws.scale_up.source}; {laws.scale_out.source}")


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


def _measured_update(model: CostModel, kernel: Kernel, engine: str) -> Cost:
    """Return an update of an engine's tensors: what plain ones take, and what the engine adds a part."""
    assert model.cluster.table is not None
    plain = _measured_kernel(model, kernel)
    points = kernel_points(model.cluster.table, kernel.kind, None, kernel.dtype, engine)
    bare = kernel_points(model.cluster.table, kernel.kind, kernel.pass_, kernel.dtype)
    if points is None or bare is None:
        return plain
    return replace(plain, seconds=plain.seconds + max(0.0, points.fixed_s - bare.fixed_s))


def _measured_collective(model: CostModel, collective: Collective, engine: str) -> Cost:
    table = model.cluster.table
    assert table is not None
    if np.all(np.asarray(collective.group_size) == 1):
        return Cost(seconds=0.0 * np.asarray(collective.bytes), spread=0.0, source="a group of one sends nothing")
    if collective.axis == "tp":
        engine = "tp B" if collective.is_backward else "tp F"
    points = (engine and collective_points(table, collective.kind, engine)) or collective_points(table, collective.kind)
    if points is None:
        raise BadInput(f"profile: no {collective.kind} was measured; run `headway profile --ranks 2` or more")
    seconds, noise = interpolate_collective(points, collective)
    return Cost(seconds=seconds, spread=DRIFT_SPREAD, noise=noise, source=f"interpolated {table.head['date']}")
