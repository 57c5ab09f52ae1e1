"""One decoder for the families of `profiles/families`, cut into pipeline stages; math from `profiles/kernels.py`.

Shapes: B batch, S sequence (a shard of it under tensor parallelism), H heads, D head dim, C channels, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from executor.blocks import Attention, FeedForward, stream_norm, whole
from executor.moe import Mixture
from profiles import kernels
from profiles.families import all_params
from profiles.model import Experts, LayerSpec, ModelSpec, SelfAttention
from profiles.model import FeedForward as FeedForwardSpec

aten = torch.ops.aten
Piece = tuple[slice, ...]
Read = Callable[[str, Piece], Tensor]
"""Returns a piece of a whole parameter by its name."""
KEPT_BY_SELECTIVE = frozenset({
    aten.mm.default, aten.addmm.default, aten._scaled_mm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default, aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
})
"""Kernels whose outputs selective recomputation keeps: `kept_by_selective` of `profiles/ops.py`, in torch's names."""


class Layer(nn.Module):
    """One transformer layer, pre-norm, with its recomputation."""

    def __init__(self, spec: ModelSpec, kind: LayerSpec, recompute: str) -> None:
        super().__init__()
        assert isinstance(kind.mixer, SelfAttention) and isinstance(kind.ffn, (FeedForwardSpec, Experts))
        self.recompute = recompute
        self.attn_norm = stream_norm(spec)
        self.attn = Attention(spec, kind.mixer)
        self.ffn_norm = stream_norm(spec)
        self.ffn: FeedForward | Mixture = (
            Mixture(spec, kind.ffn) if isinstance(kind.ffn, Experts) else FeedForward(spec, kind.ffn)
        )

    def forward(self, x_BSC: Tensor, *rotary: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        if self.recompute == "none":
            return self._run(x_BSC, *rotary)
        more: dict[str, Any] = {"context_fn": _keep_matmuls} if self.recompute == "selective" else {}
        # dropout-free, so there is no random state to restore
        out: Tensor = checkpoint(self._run, x_BSC, *rotary, use_reentrant=False, preserve_rng_state=False, **more)
        return out

    def _run(self, x_BSC: Tensor, *rotary: Tensor) -> Tensor:
        x_BSC = x_BSC + self.attn(self.attn_norm(x_BSC), *rotary)
        out: Tensor = x_BSC + self.ffn(self.ffn_norm(x_BSC))
        return out


def _keep(_context: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT_BY_SELECTIVE else CheckpointPolicy.PREFER_RECOMPUTE


_keep_matmuls = partial(create_selective_checkpoint_contexts, _keep)


class Stage(nn.Module):
    """A range of layers, with the embedding if it is the first stage, with final norm and head if it is the last.

    Parameters have the names and shapes of `profiles.families.all_params`, whatever the stage. `places` says where in
    the whole sequence the tokens stand that this rank is given; of them its residual stream holds a piece (`tp_piece`:
    index, count).
    """

    def __init__(
        self, spec: ModelSpec, *, layers: range | None = None, is_first: bool = True, is_last: bool = True,
        seq_len: int | None = None, recompute: str = "none",
    ) -> None:
        super().__init__()
        self.spec, self.is_first, self.is_last = spec, is_first, is_last
        self.seq_len = seq_len or spec.max_seq_len
        self.places = np.arange(self.seq_len)
        self.tp_piece = (0, 1)
        if is_first:
            self.embed = nn.Embedding(spec.vocab, spec.hidden)
            if spec.learned_positions:
                self.positions = nn.Embedding(spec.learned_positions, spec.hidden)
        layers = range(spec.num_layers) if layers is None else layers
        self.layers = nn.ModuleDict({str(i): Layer(spec, spec.kinds[spec.pattern[i]], recompute) for i in layers})
        if is_last:
            self.norm = stream_norm(spec)
            self.head = nn.Linear(spec.hidden, spec.vocab, bias=False)
        self.rotary: tuple[Tensor, ...] = ()
        self.rows = torch.empty(0, dtype=torch.long)
        self.tie()
        self.fill_tables()

    def each_layer(self) -> list[tuple[str, Layer]]:
        """Return the layers of this stage by their index in the whole model."""
        return [(name, cast(Layer, layer)) for name, layer in self.layers.items()]

    def tie(self) -> None:
        """Share the embedding with the head where both are on this stage; needed again after each re-allocation."""
        if self.spec.tied_embeddings and self.is_first and self.is_last:
            self.head.weight = self.embed.weight

    def fill_tables(self) -> None:
        """Compute rotary tables (cos and sin, each [S, D]), or rows of the position table, on the parameters' device."""
        device = next(self.parameters()).device
        if self.spec.learned_positions:
            index, num = self.tp_piece
            self.rows = torch.tensor(np.split(self.places, num)[index], device=device)
            return
        mixer = self.spec.kinds[0].mixer
        assert isinstance(mixer, SelfAttention)
        tables = kernels.rope_tables(self.seq_len, mixer.head_dim, self.spec.rope_theta, device)
        self.rotary = tuple(table[torch.tensor(self.places, device=device)] for table in tables)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, S, V] (last stage) or the residual stream, from token ids [B, S] or a residual stream."""
        if self.is_first:
            x = self.embed(x)
            if self.spec.learned_positions:
                x = x + F.embedding(self.rows, whole(self.positions.weight))
        # cast once here: a cast in each layer would keep a copy of the tables a layer
        rotary = tuple(table.to(x.dtype) for table in self.rotary)
        for _, layer in self.each_layer():
            x = layer(x, *rotary)
        return self.head(self.norm(x)) if self.is_last else x


def token_loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """Return the mean token loss as a plain tensor; logits may be sharded over the vocabulary."""
    loss = kernels.cross_entropy(logits_BSV, targets_BS)
    return loss.to_local() if isinstance(loss, DTensor) else loss


def initial_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Return the initial value of a whole parameter, a function of its name and the seed alone.

    Norms 1, biases 0, all else normal with deviation 0.02 (Radford et al. 2019).
    """
    if name.endswith("bias"):
        return torch.zeros(shape)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(shape).normal_(std=0.02, generator=generator)


@torch.no_grad()
def materialise(
    stage: Stage, device: torch.device | str, seed: int, read: Read | None = None,
) -> None:
    """Give a stage built on meta its memory and weights: of each parameter this rank's piece, initial or as `read` says."""
    stage.to_empty(device=device)
    stage.tie()
    stage.fill_tables()
    shapes = {p.name: p.shape for p in all_params(stage.spec)}
    for name, parameter in stage.named_parameters():
        # on a stage of its own a tied head is a second copy of the embedding
        known = name if name in shapes else "embed.weight"
        piece = piece_of(parameter)
        value = read(known, piece) if read else initial_weight(known, shapes[known], seed)[piece]
        (parameter.to_local() if isinstance(parameter, DTensor) else parameter).copy_(value)


def piece_of(parameter: Tensor) -> Piece:
    """Return which part of a whole parameter this rank holds."""
    if not isinstance(parameter, DTensor):
        return tuple(slice(0, size) for size in parameter.shape)
    sizes, offsets = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
