"""A strategy applied to the stages of a rank: mesh, tensor parallelism, data parallelism, optimizer.

Order of application: build on meta, tp, compile, shard over dp, materialise. Data parallelism is DDP where DDP can
(fp32, neither tp nor pp: its reducer counts on one backward after each forward and knows no sharded weights), else
FSDP2, sharded (ZeRO-2 and 3) or replicated, which keeps a working copy of the weights beside the trained ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
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
from simulator.inside import NAMES
from simulator.schedules import Table, build_schedule, homes
from simulator.strategy import Strategy

Engine = Literal["plain", "ddp", "replicate", "fsdp"]
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """One rank's part of a model: its place in the mesh, its stages, what runs each (DDP or itself), their optimizer.

    Stages go by their index in the model, in its order; `table` is the schedule that they follow.
    """

    strategy: Strategy
    mesh: DeviceMesh
    table: Table
    stages: dict[int, Stage]
    modules: dict[int, nn.Module]
    optimizer: torch.optim.Optimizer
    tied_group: dist.ProcessGroup | None

    @property
    def home(self) -> dict[int, int]:
        """Return the pipeline rank of each stage of the model."""
        return homes(self.table)

    @property
    def tied_weights(self) -> list[Tensor]:
        """Return this rank's copies of an embedding that is the head, too, on another stage."""
        apart = [s for s in self.stages.values() if s.spec.tied_embeddings and s.is_first != s.is_last]
        return [s.embed.weight if s.is_first else s.head.weight for s in apart]

    @property
    def sums_late(self) -> bool:
        """Return whether some gradients are only summed after the last backward: over tp (norms) or pp (tied)."""
        plain_tp = self.strategy.tp > 1 and engine_of(self.strategy) == "plain"
        return plain_tp or bool(self.tied_weights)

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
    table: Table | None = None,
) -> Parallel:
    """Build this rank's stages of a model under a strategy, with their weights and optimizer.

    A `table` takes the place of the strategy's schedule; it says which stages a rank holds.
    """
    mesh = build_mesh(strategy, device.type)
    table = table or table_of(strategy)
    home = homes(table)
    stages = {index: build_stage(spec, strategy, index) for index in sorted(home) if home[index] == mesh.get_local_rank("pp")}
    modules = {index: _apply(stage, strategy, mesh, device, seed) for index, stage in stages.items()}
    return Parallel(
        strategy=strategy, mesh=mesh, table=table, stages=stages, modules=modules,
        optimizer=_optimizer([p for s in stages.values() for p in s.parameters()], strategy, mesh, learning_rate),
        tied_group=_tied_group(spec, strategy, home),
    )


def table_of(strategy: Strategy) -> Table:
    """Return the table that the simulator replays; without a pipeline micro-batches take their turns."""
    name = strategy.schedule if strategy.pp > 1 else "1F1B"
    return build_schedule(name, int(strategy.pp), int(strategy.num_microbatches), int(strategy.chunks))


def build_stage(spec: ModelSpec, strategy: Strategy, index: int) -> Stage:
    """Return a stage of the model, on meta; layers are split as `simulator.layout.stage_parts` says."""
    parts = layout.stage_parts(spec, int(strategy.pp), int(strategy.chunks), strategy.split)
    counts = [sum(num for part, num in stage if part not in NAMES) for stage in parts]
    end = list(accumulate(counts))[index]
    with torch.device("meta"):
        return Stage(
            spec, layers=range(end - counts[index], end), is_first=index == 0, is_last=index == len(parts) - 1,
            seq_len=strategy.seq_len, recompute=strategy.recompute,
        )


def _apply(stage: Stage, strategy: Strategy, mesh: DeviceMesh, device: torch.device, seed: int) -> nn.Module:
    """Spread a stage over the mesh, fill it with weights, and return what runs it."""
    engine = engine_of(strategy)
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
    if engine != "ddp":
        return stage
    return DistributedDataParallel(stage, process_group=mesh.get_group("dp"), gradient_as_bucket_view=True)


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
    weights: Iterable[nn.Parameter], strategy: Strategy, mesh: DeviceMesh, learning_rate: float
) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": learning_rate, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "fused": True}
    if strategy.zero == 1 and strategy.dp > 1:
        return ZeroRedundancyOptimizer(weights, torch.optim.AdamW, process_group=mesh.get_group("dp"), **options)
    return torch.optim.AdamW(weights, **options)


def _tied_group(spec: ModelSpec, strategy: Strategy, home: dict[int, int]) -> dist.ProcessGroup | None:
    """Return the group of this rank in which a tied head and its embedding, on different ranks, sum gradients."""
    first, last = home[0], home[max(home)]
    if not spec.tied_embeddings or first == last:
        return None
    mine = None
    for ranks in layout.groups(strategy, "pp"):
        ends = [int(ranks[first]), int(ranks[last])]
        group = dist.new_group(ends)  # every rank must take part in making every group
        mine = group if dist.get_rank() in ends else mine
    return mine
