"""A strategy applied to a stage: mesh, tensor parallelism, data parallelism, optimizer.

Order of application: build on meta, tp, compile, shard over dp, materialise. Data parallelism is DDP where DDP can
(fp32, neither tp nor pp: its reducer counts on one backward after each forward and knows no sharded weights), else
FSDP2, sharded (ZeRO-2 and 3) or replicated, which keeps a working copy of the weights beside the trained ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate  # private; FSDP2's own data parallelism
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from executor.model import Norm, Stage, materialise
from profiles.model import ModelSpec, ParamSpec
from simulator import layout
from simulator.strategy import Strategy

Engine = Literal["plain", "ddp", "replicate", "fsdp"]
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """One rank's part of a model: its place in the mesh, its stage, what runs that (DDP or itself), its optimizer."""

    strategy: Strategy
    mesh: DeviceMesh
    stage: Stage
    module: nn.Module
    optimizer: torch.optim.Optimizer
    tied_group: dist.ProcessGroup | None

    @property
    def sums_late(self) -> bool:
        """Return whether some gradients are only summed after the last backward: over tp (norms) or pp (tied)."""
        plain_tp = self.strategy.tp > 1 and engine_of(self.strategy) == "plain"
        return plain_tp or self.tied_group is not None

    @property
    def pp_rank(self) -> int:
        """Return the index of this rank's stage."""
        return self.mesh.get_local_rank("pp")

    @property
    def dp_rank(self) -> int:
        """Return which share of the global batch this rank trains on."""
        return self.mesh.get_local_rank("dp")


def build_mesh(strategy: Strategy, device_type: str) -> DeviceMesh:
    """Return the device mesh [pp, dp, cp, tp] of `simulator.layout`."""
    return DeviceMesh(device_type, torch.from_numpy(layout.mesh(strategy)), mesh_dim_names=layout.ORDER[::-1])


def engine_of(strategy: Strategy) -> Engine:
    """Return what carries the data parallelism of a strategy: FSDP2 sharded or replicated, DDP, or nothing."""
    if strategy.zero >= 2 and strategy.dp > 1:
        return "fsdp"
    if strategy.precision == "bf16" or (strategy.dp > 1 and (strategy.tp > 1 or strategy.pp > 1)):
        return "replicate"
    return "ddp" if strategy.dp > 1 else "plain"


def parallelise(
    spec: ModelSpec, strategy: Strategy, device: torch.device, *, seed: int, learning_rate: float,
) -> Parallel:
    """Build this rank's stage of a model under a strategy, with its weights and its optimizer."""
    mesh = build_mesh(strategy, device.type)
    engine = engine_of(strategy)
    with torch.device("meta"):
        stage = build_stage(spec, strategy, mesh.get_local_rank("pp"))
    if strategy.tp > 1:
        _shard_over_tp(stage, mesh["tp"])
    if strategy.kernels == "fused":
        # block by block: a whole layer does not compile under tensor parallelism
        for _, layer in stage.each_layer():
            layer.attn.compile()
            layer.ffn.compile()
    if engine in ("replicate", "fsdp"):
        _apply_fsdp(stage, strategy, engine, mesh["dp"])
    materialise(stage, device, seed, lambda param, x: _piece(param, x, mesh, sharded=engine == "fsdp"))
    module: nn.Module = stage
    if engine == "ddp":
        module = DistributedDataParallel(stage, process_group=mesh.get_group("dp"), gradient_as_bucket_view=True)
    return Parallel(
        strategy=strategy, mesh=mesh, stage=stage, module=module,
        optimizer=_optimizer(stage, strategy, mesh, learning_rate), tied_group=_tied_group(spec, strategy),
    )


def build_stage(spec: ModelSpec, strategy: Strategy, pp_rank: int) -> Stage:
    """Return the stage of a pipeline rank; layers are split as `simulator.layout.stage_layers` says."""
    counts = layout.stage_layers(spec.num_layers, strategy.pp)
    first = sum(counts[:pp_rank])
    return Stage(
        spec, layers=range(first, first + counts[pp_rank]), is_first=pp_rank == 0, is_last=pp_rank == strategy.pp - 1,
        seq_len=strategy.seq_len, recompute=strategy.recompute,
    )


def _shard_over_tp(stage: Stage, mesh: DeviceMesh) -> None:
    """Split matmuls over tp and the residual stream over the sequence (Korthikanti et al., arXiv 2205.05198)."""
    plan: dict[str, Any] = {}
    if stage.is_first:
        plan["embed"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        stage.sequence_start = mesh.get_local_rank() * stage.seq_len // mesh.size()
        if hasattr(stage, "positions"):
            distribute_module(stage.positions, mesh)
    if stage.is_last:
        plan["head"] = ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False)
    for name, layer in stage.each_layer():
        at, num_tables = f"layers.{name}", 0 if stage.spec.learned_positions else 2
        tables = (None,) * num_tables
        plan[f"{at}.attn"] = PrepareModuleInput(
            input_layouts=(Shard(1), *tables), desired_input_layouts=(Replicate(), *tables)
        )
        plan[f"{at}.ffn"] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        columns = ("attn.wq", "attn.wk", "attn.wv", "ffn.w1") + (("ffn.w3",) if layer.ffn.w3 is not None else ())
        plan |= {f"{at}.{column}": ColwiseParallel() for column in columns}
        plan |= {f"{at}.{row}": RowwiseParallel(output_layouts=Shard(1)) for row in ("attn.wo", "ffn.w2")}
    for module in stage.modules():
        if isinstance(module, Norm):
            distribute_module(module, mesh)
    # weights are filled in by name later, so nothing is to be scattered now
    parallelize_module(stage, mesh, plan, src_data_rank=None)
    stage.tie()


def _apply_fsdp(stage: Stage, strategy: Strategy, engine: Engine, mesh: DeviceMesh) -> None:
    half = strategy.precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
    )
    for module in (*stage.layers.values(), stage):
        if engine == "replicate":
            replicate(module, mesh=mesh, mp_policy=policy)
        else:
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=strategy.zero == 3)


def _piece(param: ParamSpec, x: Tensor, mesh: DeviceMesh, *, sharded: bool) -> Tensor:
    """Return this rank's piece of a whole parameter: its tp slice, and of that its slice of dim 0 over dp."""
    if param.tp_dim is not None:
        x = x.chunk(mesh["tp"].size(), dim=param.tp_dim)[mesh.get_local_rank("tp")]
    if sharded:
        pieces, rank = x.chunk(mesh["dp"].size(), dim=0), mesh.get_local_rank("dp")
        x = pieces[rank] if rank < len(pieces) else x[:0]
    return x


def _optimizer(
    stage: Stage, strategy: Strategy, mesh: DeviceMesh, learning_rate: float
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": learning_rate, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "fused": True}
    if strategy.zero == 1 and strategy.dp > 1:
        return ZeroRedundancyOptimizer(
            stage.parameters(), torch.optim.AdamW, process_group=mesh.get_group("dp"), **options
        )
    return torch.optim.AdamW(stage.parameters(), **options)


def _tied_group(spec: ModelSpec, strategy: Strategy) -> dist.ProcessGroup | None:
    """Return the group of this rank in which a tied head and its embedding, on different stages, sum gradients."""
    if not spec.tied_embeddings or strategy.pp == 1:
        return None
    mine = None
    for ranks in layout.groups(strategy, "pp"):
        ends = [int(ranks[0]), int(ranks[-1])]
        group = dist.new_group(ends)  # every rank must take part in making every group
        mine = group if dist.get_rank() in ends else mine
    return mine
