"""What this engine can and cannot run; importable without torch, so that a plan is refused before a process starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal

from profiles.model import Experts, FeedForward, ModelSpec, SelfAttention
from simulator.layout import stage_parts
from simulator.schedules import SCHEDULES, Table, homes, passes, table_shape
from simulator.software import MODES
from simulator.strategy import CONTEXT, RECOMPUTE, Strategy

FAMILIES = ("gpt2", "llama", "mixtral", "qwen3", "qwen3_moe")
"""Families whose layers are what their fields say, and no more: no scaled embeddings, no other choice of experts."""
PRECISIONS = ("bf16", "fp32", "fp8")
NUM_BYTES = 256
"""Tokens are bytes, so the vocabulary must hold them all."""


Engine = Literal["plain", "ddp", "replicate", "fsdp"]


def engine_of(model: ModelSpec, strategy: Strategy) -> Engine:
    """Return what carries the data parallelism of a strategy: FSDP2 sharded or replicated, DDP, or nothing."""
    if strategy.zero >= 1 and strategy.shards > 1:
        return "fsdp"
    apart = strategy.replicas > 1 and (strategy.tp > 1 or strategy.pp > 1)
    if strategy.precision != "fp32" or apart or spreads_experts(model, strategy):
        return "replicate"
    return "ddp" if strategy.replicas > 1 else "plain"


def spreads_experts(model: ModelSpec, strategy: Strategy) -> bool:
    """Return whether ranks share experts otherwise than dense weights: where ep cuts them or ranks of tp hold copies."""
    return any(isinstance(k.ffn, Experts) for k in model.kinds) and bool(strategy.ep > 1 or strategy.tp > 1)


def refusal(strategy: Strategy, model: ModelSpec, device_type: str, table: Table | None = None) -> str | None:
    """Return one sentence why this engine cannot run a strategy, or None if it can.

    A `table`, which must be whole, takes the place of the strategy's schedule.
    """
    return next(_reasons(strategy, model, device_type, table), None)


def _reasons(strategy: Strategy, model: ModelSpec, device_type: str, table: Table | None) -> Iterator[str]:
    if device_type not in ("cpu", "cuda"):
        yield f"device {device_type!r} is not known to the engine, which runs on cpu and cuda"
    if len(strategy) != 1:
        yield f"the engine runs one strategy at a time, and this is a batch of {len(strategy)}"
        return
    for field, value, known in (
        ("precision", strategy.precision, PRECISIONS), ("kernels", strategy.kernels, MODES),
        ("recompute", strategy.recompute, RECOMPUTE), ("schedule", strategy.schedule, SCHEDULES),
        ("zero", strategy.zero, (0, 1, 2, 3)), ("context", strategy.context, CONTEXT),
        ("model family", model.family, FAMILIES),
    ):
        if value not in known:
            yield f"{field} {value!r} is not known to the engine, which runs {', '.join(map(str, known))}"
    if strategy.etp != 1:
        yield f"etp={strategy.etp}: the engine cuts no expert (expert tensor parallelism), only etp=1"
    if model.family not in FAMILIES:
        return
    if strategy.shard_group and strategy.replicas % strategy.shard_group:
        yield f"shard_group={strategy.shard_group} does not divide dp x cp = {strategy.replicas} ranks"
    if not strategy.sequence_parallel and strategy.tp > 1:
        yield "sequence_parallel: the engine runs tensor parallelism with sequence parallelism only"
    if strategy.lora_rank:
        yield f"lora_rank={strategy.lora_rank}: the engine trains all weights and has no adapters"
    if strategy.recompute != "none" and strategy.recompute_share != 1:
        yield f"recompute_share={strategy.recompute_share}: the engine recomputes all layers or none"
    if strategy.offload != "none":
        yield f"offload={strategy.offload}: the engine keeps its optimizer's states on the device"
    yield from _blocks(model)
    yield from _sizes(strategy, model)
    yield from _pipeline(strategy, model, table)
    yield from _kernels(strategy, model, device_type)


def _kernels(strategy: Strategy, model: ModelSpec, device_type: str) -> Iterator[str]:
    """Yield which kernels do not go together, or not with this device."""
    if strategy.cp > 1 and strategy.context != "ulysses" and device_type == "cuda" and strategy.dtype == "fp32":
        yield (f"context={strategy.context!r}: blocks of attention are merged by the sums of the flash kernel, and CUDA has "
               "none in fp32; ulysses or bf16 runs there")
    if strategy.matmul == "fp8":
        yield from _fp8(strategy, model, device_type)
    if strategy.recompute == "selective" and spreads_experts(model, strategy):
        yield ("recompute='selective': experts are gathered by themselves inside a layer, which torch's selective checkpoint "
               "cannot repeat; full recomputation runs there")
    if strategy.kernels == "fused" and strategy.cp > 1:
        yield f"kernels='fused': torch compiles no exchange of keys between ranks (cp={strategy.cp}); eager kernels run there"
    if strategy.kernels == "fused" and any(isinstance(kind.ffn, Experts) for kind in model.kinds):
        yield "kernels='fused': how many tokens go to an expert is no constant to compile with; eager kernels run there"
    if strategy.kernels == "fused" and strategy.recompute == "selective":
        yield ("selective recomputation needs eager kernels: inside a compiled block torch cannot tell which "
               "outputs to keep")


def _fp8(strategy: Strategy, model: ModelSpec, device_type: str) -> Iterator[str]:
    if device_type == "cpu":
        yield "precision 'fp8': no CPU multiplies in it; bf16 runs there"
    if strategy.tp > 1:
        yield f"precision 'fp8': torch's tensors that are cut over tp={strategy.tp} do not multiply in it; bf16 runs there"
    if any(isinstance(kind.ffn, Experts) for kind in model.kinds):
        yield "precision 'fp8': the matmuls of experts are bf16 only; bf16 runs there"
    if strategy.kernels == "fused":
        yield "precision 'fp8': its scales are found by eager kernels; eager kernels run there"
    rows = strategy.micro_batch * strategy.seq_len // strategy.cp
    mixer = model.kinds[0].mixer
    heads = (mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim) if isinstance(mixer, SelfAttention) else ()
    channels = [kind.ffn.hidden for kind in model.kinds if isinstance(kind.ffn, FeedForward)]
    for size in (rows, model.hidden, *heads, *channels):
        if size % 16:
            yield f"precision 'fp8': its kernel takes multiples of 16 tokens and channels, and a map here has {size}"


HEEDED: dict[str, tuple[str, ...]] = {
    "mixer": ("kind", "num_heads", "num_kv_heads", "head_dim", "positions", "qkv_bias", "out_bias", "qk_norm"),
    "ffn": ("kind", "hidden", "activation", "bias"), "experts": ("kind", "num_experts", "top_k", "hidden", "activation"),
    "layer": ("name", "mixer", "ffn"),
    "model": ("name", "family", "hidden", "vocab", "max_seq_len", "kinds", "pattern", "norm", "norm_bias", "norm_eps",
              "rope_theta", "learned_positions", "tied_embeddings", "source"),
}
"""Fields of blocks, layer and model that the engine heeds; it runs all others at their defaults only."""


def _blocks(model: ModelSpec) -> Iterator[str]:
    for layer in model.kinds:
        mixer, ffn = layer.mixer, layer.ffn
        for name, block, known in (("mixer", mixer, ("attention",)), ("ffn", ffn, ("dense", "experts"))):
            kind = "none" if block is None else block.kind
            if kind not in known:
                yield f"{name} {kind!r} of {model.name} is not known to the engine, which runs {', '.join(known)}"
        if not (isinstance(mixer, SelfAttention) and isinstance(ffn, FeedForward | Experts)):
            return
        parts: dict[str, Any] = {"mixer": mixer, "experts" if isinstance(ffn, Experts) else "ffn": ffn, "layer": layer,
                                 "model": model}
        for name, part in parts.items():
            for field in fields(part):
                value = getattr(part, field.name)
                if field.name not in HEEDED[name] and value != field.default:
                    yield f"{field.name}={value!r} of {model.name}: the engine runs {field.name}={field.default!r} only"
        for name, word, words in (
            ("activation", ffn.activation, ("swiglu", "gelu")), ("qk_norm", mixer.qk_norm, ("none", "head")),
            ("positions", mixer.positions, ("learned",) if model.learned_positions else ("rotary",)),
            ("norm", model.norm, ("layer_norm",) if model.norm_bias else ("rms_norm",)),
        ):
            if word not in words:
                yield f"{name} {word!r} of {model.name} is not known to the engine, which runs {', '.join(words)}"
    if len({kind.mixer for kind in model.kinds}) > 1:
        yield f"{model.name} has layers of unlike attention, and the engine runs models whose attention is all alike"


def _sizes(strategy: Strategy, model: ModelSpec) -> Iterator[str]:
    for field in ("dp", "tp", "cp", "pp", "ep", "chunks", "micro_batch", "num_microbatches", "seq_len"):
        if getattr(strategy, field) < 1:
            yield f"{field}={getattr(strategy, field)} is less than 1"
            return
    mixer = model.kinds[0].mixer
    if not isinstance(mixer, SelfAttention):
        return
    tp, cp, ep = strategy.tp, strategy.cp, strategy.ep
    ulysses = cp > 1 and strategy.context == "ulysses"
    pieces = cp if ulysses else 2 * cp
    sizes = [
        (f"tp={tp}", tp, mixer.num_heads, "heads"), (f"tp={tp}", tp, mixer.num_kv_heads, "key-value heads"),
        *((f"tp={tp}", tp, k.ffn.hidden, "FFN channels") for k in model.kinds if isinstance(k.ffn, FeedForward)),
        (f"tp={tp}", tp, model.vocab, "vocabulary entries"),
    ]
    if cp > 1:
        sizes.append((f"cp={cp} in {pieces} pieces", pieces, strategy.seq_len, "sequence positions"))
    sizes.append((f"tp={tp} x cp={cp}" if cp > 1 else f"tp={tp}", tp * cp, strategy.seq_len, "sequence positions"))
    if ulysses:
        sizes += [(f"tp={tp} x cp={cp} (ulysses)", tp * cp, mixer.num_heads, "heads"),
                  (f"tp={tp} x cp={cp} (ulysses)", tp * cp, mixer.num_kv_heads, "key-value heads")]
    if ep > 1:
        experts = [k.ffn.num_experts for k in model.kinds if isinstance(k.ffn, Experts)]
        if not experts:
            yield f"ep={ep}: {model.name} has no experts"
        sizes += [*((f"ep={ep}", ep, num, "experts") for num in experts),
                  (f"ep={ep}", ep, tp * cp * strategy.dp, "ranks of dp x cp x tp")]
    for divisor, by, size, what in sizes:
        if size % by:
            yield f"{divisor} does not divide the {size} {what}"
    if strategy.seq_len > model.max_seq_len:
        yield f"seq_len={strategy.seq_len} is longer than the {model.max_seq_len} positions of {model.name}"
    if model.vocab < NUM_BYTES:
        yield f"the training data are bytes, which need a vocabulary of {NUM_BYTES}; {model.name} has {model.vocab}"


def _pipeline(strategy: Strategy, model: ModelSpec, table: Table | None) -> Iterator[str]:
    if table is not None:
        yield from _own_table(strategy, table)
    elif strategy.pp == 1:
        if strategy.chunks != 1:
            yield f"chunks={strategy.chunks}: without a pipeline (pp=1) a rank has one stage"
        return
    elif why := SCHEDULES[strategy.schedule].reason(strategy.pp, strategy.num_microbatches, strategy.chunks):
        yield f"schedule: {why}"
    stages = stage_parts(model, strategy.pp, strategy.chunks, strategy.split)
    if [] in stages:
        yield (f"pp={strategy.pp} x {strategy.chunks} chunks = {len(stages)} stages: stage {stages.index([])} gets none of the "
               f"{model.num_layers} layers of {model.name}")
    if table is None and strategy.splits_backward:
        yield from _split_backward(strategy, f"schedule {strategy.schedule}")
    elif table is not None and table_shape(table).splits_backward:
        yield from _split_backward(strategy, "the schedule table")


def _own_table(strategy: Strategy, table: Table) -> Iterator[str]:
    shape = table_shape(table)
    if shape.num_ranks == 1:
        yield "the schedule table has one rank, and a pipeline needs two or more"
    for field, held in (("pp", shape.num_ranks), ("chunks", shape.chunks), ("num_microbatches", shape.num_microbatches)):
        if getattr(strategy, field) != held:
            yield f"{field}={getattr(strategy, field)}, and the schedule table is for {held}"
    last, home = shape.num_stages - 1, homes(table)
    turns = [a.microbatch for slot in table[home[last]] for a in passes(slot) if (a.stage, a.pass_) == (last, "F")]
    if turns != sorted(turns):
        yield (f"the schedule table sends micro-batches forward through the last stage in the order {turns}; torch takes their "
               "losses in turn, so there they must be in order")


def _split_backward(strategy: Strategy, schedule: str) -> Iterator[str]:
    """Yield what torch does wrong or not at all where gradients of inputs (I) and of weights (W) are made apart."""
    if strategy.zero == 3 and strategy.shards > 1:
        yield (f"zero=3: {schedule} splits backward, and torch loses gradients without an error where FSDP gives weights back "
               "between I and W; ZeRO-2 runs there")
    if strategy.recompute == "selective":
        yield (f"recompute='selective': {schedule} splits backward, and torch's selective checkpoint lets only one backward "
               "through a layer; full recomputation runs there")
    if strategy.kernels == "fused":
        yield (f"kernels='fused': {schedule} splits backward, and a compiled block makes all gradients in one backward, which "
               "torch refuses to repeat; eager kernels run there")
