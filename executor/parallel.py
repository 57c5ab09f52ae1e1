"""A strategy applied to the stages of a rank: mesh, tensor parallelism, data parallelism, optimizer.

Order of application: build on meta, cp, ep, tp, compile, shard over dp x cp, materialise. Data parallelism is DDP where
DDP can (fp32, neither tp nor pp nor experts apart: its reducer counts on one backward after each forward and knows no
sharded weights), else FSDP2, sharded (ZeRO-1 to 3) or replicated, which keeps a working copy of the weights beside the
trained ones. Experts are shared by ranks of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate  # private; FSDP2's own data parallelism
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from executor.blocks import Fp8Linear, Norm
from executor.context import attend_over, token_places
from executor.engine import Engine, engine_of, spreads_experts
from executor.mesh import build_mesh, expert_mesh, replica_mesh
from executor.model import Read, Stage, materialise
from executor.moe import Experts, Mixture, Stacked
from profiles.model import ModelSpec
from simulator import layout
from simulator.inside import NAMES
from simulator.schedules import Table, build_schedule, homes
from simulator.strategy import Strategy

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
        plain_tp = self.strategy.tp > 1 and not any(isinstance(stage, FSDPModule) for stage in self.stages.values())
        return plain_tp or bool(self.tied_weights)

    @property
    def places(self) -> NDArray[np.int64]:
        """Return where in the whole sequence the tokens stand that this rank trains on."""
        s = self.strategy
        return token_places(int(s.seq_len), s.context, self.mesh.get_local_rank("cp"), int(s.cp))

    @property
    def dp_rank(self) -> int:
        """Return which share of the global batch this rank trains on."""
        return self.mesh.get_local_rank("dp")


def parallelise(
    spec: ModelSpec, strategy: Strategy, device: torch.device, *, seed: int, learning_rate: float,
    table: Table | None = None, read: Read | None = None,
) -> Parallel:
    """Build this rank's stages of a model under a strategy, with their weights and optimizer.

    A `table` takes the place of the strategy's schedule; it says which stages a rank holds. Weights are initial ones of
    the seed, or what `read` returns.
    """
    mesh = build_mesh(strategy, device.type)
    table = table or table_of(strategy)
    home = homes(table)
    stages = {index: build_stage(spec, strategy, index) for index in sorted(home) if home[index] == mesh.get_local_rank("pp")}
    _apply(spec, stages, strategy, mesh)
    for stage in stages.values():
        materialise(stage, device, seed, read)
    modules: dict[int, nn.Module] = dict(stages)
    if engine_of(spec, strategy) == "ddp":
        group = replica_mesh(mesh, strategy).get_group()
        modules = {i: DistributedDataParallel(s, process_group=group, gradient_as_bucket_view=True) for i, s in stages.items()}
    return Parallel(
        strategy=strategy, mesh=mesh, table=table, stages=stages, modules=modules,
        optimizer=_optimizer(stages.values(), learning_rate),
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


def _apply(spec: ModelSpec, stages: dict[int, Stage], strategy: Strategy, mesh: DeviceMesh) -> None:
    """Spread the stages of a rank, still on meta, over the mesh."""
    engine = engine_of(spec, strategy)
    replicas = replica_mesh(mesh, strategy)
    experts = expert_mesh(mesh, strategy) if spreads_experts(spec, strategy) else None
    for stage in stages.values():
        if strategy.cp > 1:
            _spread_over_cp(stage, strategy, mesh["cp"])
        if experts is not None:
            _spread_over_ep(stage, strategy, experts["ep"])
        if strategy.tp > 1:
            _shard_over_tp(stage, mesh["tp"])
        if strategy.matmul == "fp8":
            for _, layer in stage.each_layer():
                for linear in (m for m in layer.modules() if type(m) is nn.Linear):
                    linear.__class__ = Fp8Linear  # the same weights by another kernel
        if strategy.kernels == "fused":
            # block by block: a whole layer does not compile under tensor parallelism
            for _, layer in stage.each_layer():
                layer.attn.compile()
                layer.ffn.compile()
        if engine in ("replicate", "fsdp"):
            _apply_fsdp(stage, strategy, engine, replicas, experts)


def _spread_over_cp(stage: Stage, strategy: Strategy, mesh: DeviceMesh) -> None:
    stage.places = token_places(stage.seq_len, strategy.context, mesh.get_local_rank(), mesh.size())
    attend = attend_over(strategy.context, mesh.get_group())
    for _, layer in stage.each_layer():
        layer.attn.attend = attend


def _spread_over_ep(stage: Stage, strategy: Strategy, mesh: DeviceMesh) -> None:
    """Give each rank its experts. Their gradients will be averaged over the copies, but have tokens of all ranks of ep."""
    mixtures = [layer.ffn for _, layer in stage.each_layer() if isinstance(layer.ffn, Mixture)]
    for mixture in mixtures:
        mixture.experts.gradient_scale = float(strategy.expert_replicas / strategy.replicas)
        if mesh.size() == 1:
            continue
        mixture.group = mesh.get_group()
        for stacked in mixture.experts.modules():
            if isinstance(stacked, Stacked):
                num, *shape = stacked.weight.shape
                piece = torch.empty(num // mesh.size(), *shape, device="meta")
                stacked.weight = nn.Parameter(DTensor.from_local(piece, mesh, [Shard(0)], run_check=False))


def _shard_over_tp(stage: Stage, mesh: DeviceMesh) -> None:
    """Split matmuls over tp and the residual stream over the sequence (Korthikanti et al., arXiv 2205.05198)."""
    plan: dict[str, Any] = {}
    if stage.is_first:
        plan["embed"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        stage.tp_piece = (mesh.get_local_rank(), mesh.size())
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
        plan |= {f"{at}.attn.{column}": ColwiseParallel() for column in ("wq", "wk", "wv")}
        plan[f"{at}.attn.wo"] = RowwiseParallel(output_layouts=Shard(1))
        if isinstance(layer.ffn, Mixture):
            # each rank routes the tokens that it holds
            distribute_module(layer.ffn.router, mesh)
            continue
        plan[f"{at}.ffn"] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        plan |= {f"{at}.ffn.{column}": ColwiseParallel() for column in ("w1", "w3")[: 1 + (layer.ffn.w3 is not None)]}
        plan[f"{at}.ffn.w2"] = RowwiseParallel(output_layouts=Shard(1))
    for module in stage.modules():
        if isinstance(module, Norm):
            distribute_module(module, mesh)
    # weights are filled in by name later, so nothing is to be scattered now
    parallelize_module(stage, mesh, plan, src_data_rank=None)
    stage.tie()


def _apply_fsdp(stage: Stage, strategy: Strategy, engine: Engine, replicas: DeviceMesh, experts: DeviceMesh | None) -> None:
    half = strategy.dtype == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
    )
    apart = [] if experts is None else [(m, experts["edp"]) for m in stage.modules() if isinstance(m, Experts)]
    for module, mesh in (*apart, *((m, replicas) for m in (*stage.layers.values(), stage))):
        if engine == "replicate":
            replicate(module, mesh=mesh, mp_policy=policy)
        else:
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=strategy.zero == 3)


def _optimizer(stages: Iterable[Stage], learning_rate: float) -> torch.optim.Optimizer:
    """Return AdamW over all weights; a fused kernel takes the weights of one mesh at a time."""
    by_mesh: dict[Any, list[nn.Parameter]] = {}
    for weight in (p for stage in stages for p in stage.parameters()):
        by_mesh.setdefault(weight.device_mesh if isinstance(weight, DTensor) else None, []).append(weight)
    return torch.optim.AdamW(
        [{"params": weights} for weights in by_mesh.values()], lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY,
        fused=True,
    )


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
