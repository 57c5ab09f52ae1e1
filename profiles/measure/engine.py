"""Timing what torch's own parallel engines add to kernels and bare collectives, on CPU, where their host time counts.

Tensor parallelism goes through DTensor, ZeRO-2 and 3 through FSDP2: Python in front of and behind every collective,
copies, hooks. The very modules that train are run beside the same maps on plain tensors; the difference is the cost.

- mode `tp F`, `tp B`: an all-gather with the norm weight and the column-parallel maps around it, a reduce-scatter with
  its row-parallel map, forward and backward (where the kinds are mirrored);
- mode `fsdp`: the all-gather of a module's weights with its copies and hooks, and the reduce-scatter of its gradients;
- `adamw` in mode `tp` and `fsdp`: a part's share of an update of distributed tensors; under tp with the sums of the
  gradients of norms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

from profiles.measure.others import quieter, usage
from profiles.measure.rounds import agreed, disturbance, goes_on
from profiles.measure.wires import LEAST_S, Call, in_line_piece

WIDTH, NARROW = 256, 16
"""Channels of the residual stream, and of a map's other side on each rank: so few that the maps cost little."""
TP_BYTES = (1 << 16, 1 << 19, 1 << 21)
FSDP_BYTES = (1 << 16, 1 << 20, 1 << 22, 1 << 24)
NUM_COLUMNS = (3, 2)
"""Column-parallel maps behind a gather: query, key and value; gate and up."""
NUM_BLOCKS = 4
PARAMS = (10_000, 100_000, 400_000)
NUM_PARTS, NUM_MATRICES, NUM_NORMS = 8, 7, 2
"""Parts (layers) that an optimizer updates, and tensors in each."""
MIN_ROUNDS, MAX_ROUNDS, SAMPLES_A_VISIT = 2, 30, 2

Key = tuple[str, int]
Timed = Callable[[], tuple[float, ...]]
"""Runs forward and backward, or an update, and returns the seconds of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """A measured row: a collective of `bytes`, or an update of `params`, through an engine."""

    kind: str
    mode: str
    bytes: int | None = None
    params: int | None = None
    seconds: list[float] = field(default_factory=list)


class _Maps(nn.Module):
    def __init__(self, num: int, out: int) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Linear(WIDTH, out, bias=False) for _ in range(num))

    def forward(self, x_BSC: Tensor) -> list[Tensor]:
        return [w(x_BSC) for w in self.columns]


class _Column(nn.Module):
    """A norm's weight, the gather, and the maps behind it; without an engine the maps read `whole_BSC`."""

    def __init__(self, num: int, out: int, whole_BSC: Tensor | None) -> None:
        super().__init__()
        self.scale, self.maps, self.whole_BSC = nn.Parameter(torch.ones(WIDTH)), _Maps(num, out), whole_BSC

    def forward(self, x_BSC: Tensor) -> list[Tensor]:
        weight: Tensor = self.scale
        if isinstance(weight, DTensor):
            return list(self.maps(x_BSC * weight.to_local(grad_placements=[Partial()])))
        return [x_BSC * weight, *self.maps(self.whole_BSC)]


class _Row(nn.Module):
    def __init__(self, inp: int) -> None:
        super().__init__()
        self.row = nn.Linear(inp, WIDTH, bias=False)

    def forward(self, x_BSC: Tensor) -> list[Tensor]:
        return [self.row(x_BSC)]


def engine_rows(num_ranks: int, budget_s: float, on_round: Callable[[float], None]) -> list[EngineRow]:
    """Return the rows of both engines over all ranks, measured in rounds that interleave engine and plain tensors."""
    mesh = DeviceMesh("cpu", torch.arange(num_ranks), mesh_dim_names=("all",))
    piece = in_line_piece()
    calls: dict[Key, tuple[Timed, ...]] = {}
    for size in TP_BYTES:
        calls["column", size] = _column_passes(mesh, size, piece), _column_passes(None, size, piece, num_ranks)
        calls["row", size] = _row_passes(mesh, size, piece), _row_passes(None, size, piece, num_ranks)
    for size in FSDP_BYTES:
        calls["fsdp", size] = _module_passes(mesh, size, piece), _module_passes(None, size, piece)
    for engine in ("tp", "fsdp"):
        calls |= {(f"adamw {engine}", params): (_update(mesh, engine, params),) for params in PARAMS}
    return [row for key, samples in _samples(calls, budget_s, on_round).items() for row in _rows_of(*key, samples)]


def _samples(
    calls: dict[Key, tuple[Timed, ...]], budget_s: float, on_round: Callable[[float], None]
) -> dict[Key, list[tuple[float, ...]]]:
    """Return the samples that others disturbed least; each is the slowest rank's seconds, call after call."""
    found: dict[Key, list[tuple[float, ...]]] = {key: [] for key in calls}
    others: dict[Key, list[float]] = {key: [] for key in calls}
    start_s = time.perf_counter()
    for number in range(1, MAX_ROUNDS + 1):
        for key, some in calls.items():
            for call in some:
                call()  # the first after a switch is slow
            before = usage()
            found[key] += [tuple(s for call in some for s in _longest(call)) for _ in range(SAMPLES_A_VISIT)]
            others[key] += [disturbance(before)] * SAMPLES_A_VISIT
        spent_s = agreed(time.perf_counter() - start_s)
        on_round(min(1.0, spent_s / budget_s))
        if not goes_on(number, MIN_ROUNDS, spent_s, budget_s, others.values()):
            break
    return {key: quieter(samples, others[key]) for key, samples in found.items()}


def _rows_of(name: str, size: int, samples: list[tuple[float, ...]]) -> list[EngineRow]:
    """Return the rows of an update, or of a pair: what the engine took more than plain tensors, a block or a module."""
    if name.startswith("adamw"):
        return [EngineRow(kind="adamw", mode=name.split()[1], params=size, seconds=[seconds for (seconds,) in samples])]
    forward_s, backward_s = (
        [(s[i] - median(t[i + 2] for t in samples)) / NUM_BLOCKS for s in samples] for i in (0, 1)
    )
    kinds = ("all_gather", "reduce_scatter") if name != "row" else ("reduce_scatter", "all_gather")
    modes = ("tp F", "tp B")
    if name == "fsdp":
        # backward gathers again before it scatters
        gather_s, modes = median(forward_s), ("fsdp", "fsdp")
        backward_s = [s - gather_s for s in backward_s]
    return [
        EngineRow(kind=kind, mode=mode, bytes=size, seconds=[max(LEAST_S, s) for s in seconds])
        for kind, mode, seconds in zip(kinds, modes, (forward_s, backward_s), strict=True)
    ]


def _longest(passes: Timed) -> tuple[float, ...]:
    """Return the seconds of the slowest rank, pass by pass."""
    dist.barrier()
    seconds = torch.tensor(passes(), dtype=torch.float64)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return tuple(seconds.tolist())


def _passes(blocks: list[nn.Module], x: Tensor, piece: Call) -> Timed:
    """Return passes through blocks in a row, each behind a piece of computation."""
    parameters = [p for block in blocks for p in block.parameters()]

    def run() -> tuple[float, float]:
        outputs: list[list[Tensor]] = []
        inputs = [x.detach().requires_grad_() for _ in blocks]
        start_s = time.perf_counter()
        for block, tensor in zip(blocks, inputs, strict=True):
            piece()
            outputs.append(block(tensor))
        forward_s = time.perf_counter() - start_s
        grads = [[torch.ones_like(t) for t in some] for some in outputs]
        dist.barrier()
        start_s = time.perf_counter()
        for some, given in zip(reversed(outputs), reversed(grads), strict=True):
            piece()
            torch.autograd.backward(some, given)
        backward_s = time.perf_counter() - start_s
        for p in parameters:
            p.grad = None
        return forward_s, backward_s

    return run


def _column_passes(mesh: DeviceMesh | None, size: int, piece: Call, num_ranks: int = 1) -> Timed:
    ranks = mesh.size() if mesh else num_ranks
    tokens = size // (4 * WIDTH) // ranks * ranks
    whole = None if mesh else torch.ones(1, tokens, WIDTH, requires_grad=True)
    blocks: list[nn.Module] = []
    for i in range(NUM_BLOCKS):
        num = NUM_COLUMNS[i % len(NUM_COLUMNS)]
        block = _Column(num, NARROW * (ranks if mesh else 1), whole)
        if mesh:
            block.scale = nn.Parameter(DTensor.from_local(block.scale.detach(), mesh, [Replicate()], run_check=False))
            parallelize_module(block, mesh, {
                "maps": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
            } | {f"maps.columns.{c}": ColwiseParallel() for c in range(num)})
        blocks.append(block)
    return _passes(blocks, torch.ones(1, tokens // ranks, WIDTH), piece)


def _row_passes(mesh: DeviceMesh | None, size: int, piece: Call, num_ranks: int = 1) -> Timed:
    ranks = mesh.size() if mesh else num_ranks
    tokens = size // (4 * WIDTH) // ranks * ranks
    blocks: list[nn.Module] = []
    for _ in range(NUM_BLOCKS):
        block = _Row(NARROW * (ranks if mesh else 1))
        if mesh:
            parallelize_module(block, mesh, {"row": RowwiseParallel(output_layouts=Shard(1))})
        blocks.append(block)
    return _passes(blocks, torch.ones(1, tokens, NARROW), piece)


class _Busy(torch.autograd.Function):
    """Computes a piece in both passes, and hands its input on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, piece: Call) -> Tensor:
        ctx.piece = piece
        piece()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.piece()
        return grad, None


class _Module(nn.Module):
    """As many tensors as a layer has, of that many bytes together, in a forward that costs next to nothing."""

    def __init__(self, size: int, piece: Call) -> None:
        super().__init__()
        rows = max(2, size // (4 * WIDTH * NUM_MATRICES))
        self.maps = nn.ModuleList(nn.Linear(WIDTH, rows, bias=False) for _ in range(NUM_MATRICES))
        self.norms = nn.ParameterList(torch.ones(WIDTH) for _ in range(NUM_NORMS))
        self.piece = piece

    def forward(self, x: Tensor) -> Tensor:
        x = _Busy.apply(x, self.piece)  # type: ignore[no-untyped-call]
        for norm in self.norms:
            x = x * norm
        return x + 1e-9 * sum((w(x).sum() for w in self.maps), torch.zeros(()))


def _module_passes(mesh: DeviceMesh | None, size: int, piece: Call) -> Timed:
    root = nn.Sequential(*(_Module(size, piece) for _ in range(NUM_BLOCKS)))
    if mesh:
        for module in (*root, root):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    x = torch.ones(1, WIDTH, requires_grad=True)

    def run() -> tuple[float, float]:
        start_s = time.perf_counter()
        out = root(x)
        forward_s = time.perf_counter() - start_s
        dist.barrier()
        start_s = time.perf_counter()
        out.backward(torch.ones_like(out))
        backward_s = time.perf_counter() - start_s
        for p in root.parameters():
            p.grad = None
        return forward_s, backward_s

    return run


def _update(mesh: DeviceMesh, mode: str, params: int) -> Timed:
    """Return a step of an optimizer over several parts of `params` elements on this rank, in seconds a part."""
    tensors = list(_part_tensors(mesh, mode, params))
    optimizer = torch.optim.AdamW([t for t, _ in tensors], lr=1e-4, fused=True)

    def step() -> tuple[float]:
        for tensor, placement in tensors:
            tensor.grad = DTensor.from_local(
                torch.full_like(tensor.to_local(), 1e-3), mesh, [placement], run_check=False
            )
        dist.barrier()
        start_s = time.perf_counter()
        for tensor, placement in tensors:
            if placement.is_partial():
                tensor.grad = tensor.grad.redistribute(placements=tensor.placements)
        optimizer.step()
        optimizer.zero_grad()
        return ((time.perf_counter() - start_s) / NUM_PARTS,)

    return step


def _part_tensors(mesh: DeviceMesh, mode: str, params: int) -> Iterator[tuple[Any, Placement]]:
    """Yield the tensors of all parts, each with the placement in which backward leaves its gradient."""
    for _ in range(NUM_PARTS):
        for _ in range(NUM_MATRICES):
            local = torch.zeros(max(1, params // NUM_MATRICES // NARROW), NARROW)
            yield nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)], run_check=False)), Shard(0)
        for _ in range(NUM_NORMS):
            at, after = (Replicate(), Partial()) if mode == "tp" else (Shard(0), Shard(0))
            yield nn.Parameter(DTensor.from_local(torch.zeros(WIDTH), mesh, [at], run_check=False)), after
