"""What this engine can and cannot run; importable without torch, so that a plan is refused before a process starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from profiles.model import FeedForward, ModelSpec, SelfAttention
from simulator.layout import stage_parts
from simulator.schedules import SCHEDULES, Table, homes, passes, table_shape
from simulator.software import MODES
from simulator.strategy import RECOMPUTE, Strategy

FAMILIES = ("gpt2", "llama")
PRECISIONS = ("bf16", "fp32")
NUM_BYTES = 256
"""Tokens are bytes, so the vocabulary must hold them all."""


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
        ("zero", strategy.zero, (0, 1, 2, 3)), ("model family", model.family, FAMILIES),
    ):
        if value not in known:
            yield f"{field} {value!r} is not known to the engine, which runs {', '.join(map(str, known))}"
    for axis in ("cp", "ep", "etp"):
        if getattr(strategy, axis) != 1:
            yield f"{axis}={getattr(strategy, axis)}: the engine does not run {_AXIS_NAMES[axis]} yet, only {axis}=1"
    if model.family not in FAMILIES:
        return
    if strategy.shard_group not in (0, strategy.replicas):
        yield (f"shard_group={strategy.shard_group}: the engine shards over all dp={strategy.dp} ranks, not over groups "
               "of them")
    if not strategy.sequence_parallel and strategy.tp > 1:
        yield "sequence_parallel: the engine runs tensor parallelism with sequence parallelism only"
    if strategy.lora_rank:
        yield f"lora_rank={strategy.lora_rank}: the engine trains all weights and has no adapters"
    if strategy.recompute != "none" and strategy.recompute_share != 1:
        yield f"recompute_share={strategy.recompute_share}: the engine recomputes all layers or none"
    yield from _blocks(model)
    yield from _sizes(strategy, model)
    yield from _pipeline(strategy, model, table)
    if strategy.zero == 1 and strategy.dp > 1 and (strategy.tp > 1 or strategy.pp > 1 or strategy.precision != "fp32"):
        yield ("ZeRO-1 runs with tp=1, pp=1 and fp32 only (torch's ZeroRedundancyOptimizer knows neither sharded nor "
               f"half-precision weights), not with tp={strategy.tp}, pp={strategy.pp} and {strategy.precision}; "
               "ZeRO-2 runs there")
    if strategy.kernels == "fused" and strategy.recompute == "selective":
        yield ("selective recomputation needs eager kernels: inside a compiled block torch cannot tell which "
               "outputs to keep")


_AXIS_NAMES = {
    "cp": "context parallelism", "ep": "expert parallelism", "etp": "expert tensor parallelism",
}


HEEDED: dict[str, tuple[str, ...]] = {
    "mixer": ("kind", "num_heads", "num_kv_heads", "head_dim", "positions", "qkv_bias", "out_bias"),
    "ffn": ("kind", "hidden", "activation", "bias"), "layer": ("name", "mixer", "ffn"),
    "model": ("name", "family", "hidden", "vocab", "max_seq_len", "kinds", "pattern", "norm", "norm_bias", "norm_eps",
              "rope_theta", "learned_positions", "tied_embeddings", "source"),
}
"""Fields of blocks, layer and model that the engine heeds; it runs all others at their defaults only."""


def _blocks(model: ModelSpec) -> Iterator[str]:
    if len(model.kinds) > 1:
        yield f"{model.name} has {len(model.kinds)} kinds of layers, and the engine runs models whose layers are all alike"
    layer = model.kinds[0]
    mixer, ffn = layer.mixer, layer.ffn
    for name, block, known in (("mixer", mixer, "attention"), ("ffn", ffn, "dense")):
        kind = "none" if block is None else block.kind
        if kind != known:
            yield f"{name} {kind!r} of {model.name} is not known to the engine, which runs {known}"
    if not (isinstance(mixer, SelfAttention) and isinstance(ffn, FeedForward)):
        return
    parts: dict[str, Any] = {"mixer": mixer, "ffn": ffn, "layer": layer, "model": model}
    for name, part in parts.items():
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name not in HEEDED[name] and value != field.default:
                yield f"{field.name}={value!r} of {model.name}: the engine runs {field.name}={field.default!r} only"
    for name, word, words in (
        ("activation", ffn.activation, ("swiglu", "gelu")),
        ("positions", mixer.positions, ("learned",) if model.learned_positions else ("rotary",)),
        ("norm", model.norm, ("layer_norm",) if model.norm_bias else ("rms_norm",)),
    ):
        if word not in words:
            yield f"{name} {word!r} of {model.name} is not known to the engine, which runs {', '.join(words)}"


def _sizes(strategy: Strategy, model: ModelSpec) -> Iterator[str]:
    for field in ("dp", "tp", "pp", "chunks", "micro_batch", "num_microbatches", "seq_len"):
        if getattr(strategy, field) < 1:
            yield f"{field}={getattr(strategy, field)} is less than 1"
    mixer, ffn = model.kinds[0].mixer, model.kinds[0].ffn
    if not (isinstance(mixer, SelfAttention) and isinstance(ffn, FeedForward)):
        return
    for name, size in (
        ("heads", mixer.num_heads), ("key-value heads", mixer.num_kv_heads), ("FFN channels", ffn.hidden),
        ("vocabulary entries", model.vocab), ("sequence positions", strategy.seq_len),
    ):
        if size % strategy.tp:
            yield f"tp={strategy.tp} does not divide the {size} {name}"
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
    if strategy.zero == 3 and strategy.dp > 1:
        yield (f"zero=3: {schedule} splits backward, and torch loses gradients without an error where FSDP gives weights back "
               "between I and W; ZeRO-2 runs there")
    if strategy.recompute == "selective":
        yield (f"recompute='selective': {schedule} splits backward, and torch's selective checkpoint lets only one backward "
               "through a layer; full recomputation runs there")
    if strategy.kernels == "fused":
        yield (f"kernels='fused': {schedule} splits backward, and a compiled block makes all gradients in one backward, which "
               "torch refuses to repeat; eager kernels run there")
