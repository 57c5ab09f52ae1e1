"""Fitted laws: seconds of kernels and collectives from the numbers of an efficiency file. The formulas' only home.

Sizes and law numbers may both be arrays, so nothing here branches on a value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from profiles.collectives import reached, traffic_factor
from profiles.efficiency import AttentionLaw, GemmLaw, MemoryLaw, ScaleOutLaw, ScaleUpLaw, ScanLaw
from profiles.files import BadInput
from profiles.hardware import Accelerator, Cluster, Link
from profiles.ops import Kernel, Num

TILE = (128, 256)
"""Rows and columns of the output that one unit computes; 64 to 256 a side fit within 0.4 points of each other."""

BLEND = 4.0
"""How sharply computing and moving take turns: (c^h + b^h)^(1/h); 3 to 6 fit within 0.3 points of each other."""

QUERY_ROWS = 128
"""Query rows of one block of fused attention (FlashAttention-2 and 3; arXiv 2307.08691, 2407.08608)."""

FLASH1_SHARE = 0.55
"""Rate of the first FlashAttention (and of its Triton form) over the second's: 1.7 to 3 times slower forward and backward
on A100 (Dao, arXiv 2307.08691, figures 4 to 6)."""

ALIGNED = 8
UNALIGNED_SHARE = 0.08
"""Rate of a batched matmul whose depth or width is no multiple of eight elements, over that of one whose are: 16-byte
loads, which tensor cores are fed by, do not fit it (NVIDIA, Matrix Multiplication Background, tensor core requirements).
From heads of 108 channels against 144 and 216 in BigScience's tuning runs of BLOOM (four runs, unfused attention)."""

MATMULS = ("gemm", "grouped_gemm", "batched_gemm")
COMPUTED = (*MATMULS, "attention", "scan")
"""Kinds whose FLOP may bind; memory binds all others."""


def peak_flop_per_s(accelerator: Accelerator, dtype: str) -> float:
    """Return the dense peak of a dtype; one that the accelerator lacks is a `BadInput`."""
    if dtype not in accelerator.peak_flop_per_s:
        known = ", ".join(accelerator.peak_flop_per_s)
        raise BadInput(f"precision: {dtype!r} has no peak on {accelerator.title}; it states {known}")
    return accelerator.peak_flop_per_s[dtype]


def matmul_s(accelerator: Accelerator, law: GemmLaw, kernel: Kernel) -> Num:
    """Return t0 + ((flop q (1 + k0/k) / (peak e))^h + (bytes / (bandwidth b))^h)^(1/h), q of the waves of tiles.

    q = 1 + g (outputs of whole waves / outputs - 1). Filling and draining the pipeline of a tile takes a time, not
    FLOP: k0 is that of 16 bits and grows with the peak.
    """
    if kernel.dtype not in law.efficiency:
        raise BadInput(f"precision: {kernel.dtype!r} has no matmul efficiency for {accelerator.title}; add it to its laws")
    grouped = kernel.kind == "grouped_gemm"
    groups, (m, n, k) = (1.0, kernel.size) if kernel.kind == "gemm" else (kernel.size[0], kernel.size[1:])
    peak = peak_flop_per_s(accelerator, kernel.dtype)
    share: Num = law.efficiency[kernel.dtype] * law.sustained * accelerator.sustained
    share = share * (law.weight_gradient_factor if kernel.pass_ == "W" else 1.0)
    share = share * (law.grouped_factor if grouped else 1.0)
    # rows are dealt unevenly to groups: the last tile of a group is half empty on average
    rows = m + TILE[0] / 2 if grouped else m
    row_tiles = rows / TILE[0] if grouped else np.ceil(m / TILE[0])
    waves = np.ceil(groups * row_tiles * np.ceil(n / TILE[1]) / accelerator.num_sms)
    if kernel.kind == "batched_gemm":
        share = share * np.where((n % ALIGNED == 0) & (k % ALIGNED == 0), 1.0, UNALIGNED_SHARE)
    whole = waves * accelerator.num_sms * TILE[0] * TILE[1]
    stretch = (1 - law.wave_share) * rows / m + law.wave_share * whole / (groups * m * n)
    half_depth = law.half_depth * peak / accelerator.peak_flop_per_s.get("bf16", accelerator.peak_flop_per_s.get("fp16", peak))
    compute_s = kernel.flop * stretch * (1 + half_depth / k) / (peak * share)
    memory_s = kernel.moved_bytes / (accelerator.memory_bytes_per_s * law.memory_efficiency)
    return law.overhead_s + (compute_s**BLEND + memory_s**BLEND) ** (1 / BLEND)


def attention_s(accelerator: Accelerator, law: AttentionLaw, kernel: Kernel) -> Num:
    """Return t0 + max(flop (1 + s0/s) idle / (peak e d/(d + d0)), bytes / bandwidth), idle units where blocks are few."""
    batch, heads, seq_len, head_dim = kernel.size
    share = law.efficiency * law.sustained * accelerator.sustained * _version_share(law, kernel.version)
    share = share * (law.backward_speed if kernel.pass_ == "B" else 1.0)
    blocks = batch * heads * np.ceil(seq_len / QUERY_ROWS)
    idle = np.maximum(1.0, accelerator.num_sms / blocks) ** law.occupancy_power
    narrow = 1 + law.half_head_dim / head_dim
    peak_s = kernel.flop / peak_flop_per_s(accelerator, kernel.dtype)
    compute_s = peak_s * narrow * (1 + law.half_length / seq_len) * idle / share
    return law.overhead_s + np.maximum(compute_s, kernel.moved_bytes / accelerator.memory_bytes_per_s)


def _version_share(law: AttentionLaw, version: str) -> float:
    """Return the rate of a version of fused attention over the fitted one."""
    second = law.versions.get("fa2", 1.0)
    return {"flash1": FLASH1_SHARE * second, "flash2": second}.get(version, 1.0)


def scan_s(accelerator: Accelerator, law: ScanLaw, kernel: Kernel) -> Num:
    """Return launches t0 + max(flop / (peak e), bytes / (bandwidth b)) of a chunked recurrence."""
    compute_s = kernel.flop / (peak_flop_per_s(accelerator, kernel.dtype) * law.efficiency)
    memory_s = kernel.moved_bytes / (accelerator.memory_bytes_per_s * law.memory_efficiency)
    return kernel.launches * law.overhead_s + np.maximum(compute_s, memory_s)


def stream_s(accelerator: Accelerator, law: MemoryLaw, kernel: Kernel) -> Num:
    """Return launches t0 + bytes / (bandwidth e) of a kernel that memory binds; e by kind and pass, by kind, or of all."""
    share = law.kinds.get(f"{kernel.kind}.{kernel.pass_}", law.kinds.get(kernel.kind, law.efficiency))
    return kernel.launches * law.overhead_s + kernel.moved_bytes / (accelerator.memory_bytes_per_s * share)


def scale_up_s(
    link: Link, law: ScaleUpLaw, kind: str, size: Num, n: NDArray[np.float64], contention: Num = 1.0
) -> Num:
    """Return the fastest protocol's time inside a node; S is the whole buffer as in nccl-tests.

    `contention`: how many times longer bytes take where groups share links beyond their own ports.
    """
    speed = link.bytes_per_s * link.share / law.reference_bytes_per_s / contention
    if kind in ("send", "broadcast"):
        return link.latency_s + law.send.fixed_s + size / (law.send.bytes_per_s * speed)
    steps = 2 * (n - 1) if kind == "all_reduce" else np.where(n > 1, 1.0, 0.0) if kind == "all_to_all" else n - 1
    factor, full = traffic_factor(kind, n), 2.0 if kind == "all_reduce" else 1.0
    best: Num = np.inf
    for p in law.protocols[kind]:
        moved = size * (p.copy_share * full + (1 - p.copy_share) * factor)
        best = np.minimum(best, p.fixed_s + p.step_s * steps + moved / (p.bytes_per_s * speed))
    if kind == "all_reduce" and law.nvls:
        in_switch = law.nvls.fixed_s + size / (law.nvls.bytes_per_s * speed)
        best = np.minimum(best, np.where(n >= law.nvls.min_group, in_switch, np.inf))
    return link.latency_s + best


def node_wire_bytes(kind: str, size: Num, n: Num, nodes: Num, copies: int = 0) -> Num:
    """Return the bytes that leave a node for a collective over `nodes` nodes of n ranks in all.

    A ring crosses each node's edge with what one rank sends. A tree over two nodes swaps the buffer once, each node
    the root of one of two trees (Sanders et al. 2009, doi 10.1016/j.parco.2009.09.001); measured: the bus bandwidth of
    two nodes is up to 1.3 times that of more. All-to-all sends to all ranks outside, or each item once to every node that
    its copies go to (DeepEP, arXiv 2412.19437, section 3.2.2; forwarded there by the fast link).
    """
    if kind == "all_to_all" and copies:
        return size * reached(nodes, copies) / reached(n, copies) * (nodes - 1) / nodes * n / nodes
    if kind == "all_reduce":
        return np.where(nodes <= 2, size, size * traffic_factor(kind, n))
    if kind == "all_to_all":
        return size * (nodes - 1) / nodes * n / nodes
    return size * traffic_factor(kind, n)


def scale_out_s(
    cluster: Cluster, law: ScaleOutLaw, up: ScaleUpLaw, kind: str, size: Num, n: Num, per_node: Num, copies: int = 0,
    contention: tuple[Num, Num] = (1.0, 1.0),
) -> Num:
    """Return the time over nodes: the bytes that leave a node over the NICs of its members, and the algorithm's hops.

    Hops were fitted on InfiniBand, where a message takes `send_fixed_s`; on a slower link they are longer in proportion
    (80 us for a tree's hop on InfiniBand, 170 us on AWS p4de, whose messages take 25 us longer).
    """
    nodes = np.maximum(n / per_node, 1.0)
    link = cluster.scale_out
    nic, slower = link.bytes_per_s * link.share / contention[1], 1 + link.latency_s / law.send_fixed_s
    if kind in ("send", "broadcast"):
        return law.send_fixed_s * slower + size / (nic * law.send_share)
    inside = np.where(per_node > 1, scale_up_s(cluster.scale_up, up, kind, size, per_node, contention[0]), 0.0)
    wire_s = node_wire_bytes(kind, size, n, nodes, copies) / (nic * law.nic_share * per_node)
    if kind == "all_reduce":
        hops_s = law.all_reduce_hop_s * slower * np.log2(nodes)
        seconds = hops_s + wire_s + law.all_reduce_ramp * np.sqrt(wire_s * hops_s)
    else:
        steps_s = law.ring_step_s * (n - nodes) + law.ring_node_step_s * slower * (nodes - 1)
        seconds = law.ring_fixed_s + steps_s + wire_s
    return np.maximum(seconds, inside)
