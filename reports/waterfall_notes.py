"""What each term of a waterfall means and what a person can do about it, in one sentence with the numbers of both sides."""

from __future__ import annotations

import math
from collections.abc import Callable

from profiles.hardware import Cluster, Link
from profiles.units import show, significant
from reports.compare import share, shown
from reports.sides import Side
from simulator.layout import ranks_per_node, size

AIMED_BUBBLE = 0.05
"""The share of a step that a bubble may have, where a note says how many micro-batches leave no more."""
LARGE_BUBBLE = 0.07


def note(term: str, first: Side, second: Side) -> str:
    """Return the sentence of a term."""
    return NOTES[term](first, second)


def pair(first: Side, second: Side, say: Callable[[Side], object]) -> str:
    """Return what both sides say, once where it is the same."""
    one, other = str(say(first)), str(say(second))
    return one if one == other else f"{one} -> {other}"


def _share(term: str, what: str, a: Side, b: Side) -> str:
    """Return a term's share of both steps, and what it is."""
    return f"{share(a.about(term))} -> {share(b.about(term))} of the step{what}"


def _model(a: Side, b: Side) -> str:
    flop = pair(a, b, lambda s: f"{show(s.about('model_work') / 1e9, 'count')} GFLOP a token")
    return f"{flop}: {pair(a, b, lambda s: f'{s.model.name}, sequences of {s.strategy.seq_len}')}"


def _extra(a: Side, b: Side) -> str:
    experts = any(s.strategy.imbalance > 1 for s in (a, b))
    cause = pair(a, b, lambda s: f"busiest expert rank with {significant(s.strategy.imbalance)} times the mean tokens") \
        if experts else f"what {pair(a, b, _axes)} does not cut is computed by each rank"
    done = pair(a, b, lambda s: significant(s.about("extra_work"), 4))
    return f"{done} times the model's FLOP are computed: {cause}" + ("; balance the router" if experts else "")


def _axes(s: Side, axes: tuple[str, ...] = ("tp", "cp")) -> str:
    return " ".join(f"{a}={getattr(s.strategy, a)}" for a in axes if getattr(s.strategy, a) > 1) or f"{axes[0]}=1"


def _machine(s: Side) -> str:
    return s.cluster.accelerator.title if s.cluster else "this machine"


def _peak(a: Side, b: Side) -> str:
    rate = pair(a, b, lambda s: shown(s.about("peak"), "FLOP/s", 4))
    return f"{rate} on the mean of the model's FLOP: {pair(a, b, lambda s: f'{_machine(s)} in {s.strategy.precision}')}"


def _bandwidth(a: Side, b: Side) -> str:
    return f"{pair(a, b, lambda s: show(s.about('bandwidth'), 'bytes_per_s'))} of memory: {pair(a, b, _machine)}"


def _rows(s: Side) -> str:
    tokens = int(s.strategy.micro_batch) * int(s.strategy.seq_len) // int(s.strategy.cp)
    return f"{tokens:,} tokens a pass, tp={s.strategy.tp}, {s.strategy.precision}"


def _efficiency(term: str, advice: str) -> Callable[[Side, Side], str]:
    def say(a: Side, b: Side) -> str:
        return f"{share(a.about(term))} -> {share(b.about(term))} of peak at {pair(a, b, _rows)}: {advice}"

    return say


def _attention(a: Side, b: Side) -> str:
    kernels = pair(a, b, lambda s: f"{s.strategy.software.attention} over {s.strategy.seq_len} tokens")
    return (f"{share(a.about('attention'))} -> {share(b.about('attention'))} of peak, a causal mask's skipped half counted as "
            f"done: {kernels}; a newer kernel is what helps")


def _recompute(a: Side, b: Side) -> str:
    policy = pair(a, b, lambda s: s.strategy.recompute if s.strategy.recompute == "none" or s.strategy.recompute_share == 1
                  else f"{s.strategy.recompute} in {share(s.strategy.recompute_share)} of the layers")
    where = "of backward's FLOP" if "backward" in b.step.about else "of the step"
    return (f"{share(a.about('recompute'))} -> {share(b.about('recompute'))} {where} computed again (recompute {policy}); "
            "less of it needs room in memory")


def _group(axis: str) -> Callable[[Side], str]:
    """Return where the groups of an axis sit: inside a node or over several, and how fast the wire is."""
    def say(s: Side) -> str:
        n = int(size(s.strategy, axis))
        name = {"shard": "dp"}.get(axis, axis)
        if s.cluster is None or n == 1:
            return f"{name}={n}"
        inside = int(ranks_per_node(s.strategy, axis, s.cluster.gpus_per_node))
        link, where = _wire(s.cluster, n <= inside), "inside a node" if n <= inside else f"over {math.ceil(n / inside)} nodes"
        return f"{name}={n} {where}, {link.name} {show(link.bytes_per_s, 'bytes_per_s')}"

    return say


def _wire(cluster: Cluster, inside: bool) -> Link:
    return cluster.scale_up if inside else cluster.scale_out


def _exposed(axis: str, group: str, advice: str) -> Callable[[Side, Side], str]:
    def say(a: Side, b: Side) -> str:
        return f"{_share(f'exposed_{axis}', '', a, b)} waits for it: {pair(a, b, _group(group))}; {advice}"

    return say


def _bubble(a: Side, b: Side) -> str:
    def pipe(s: Side) -> str:
        if s.strategy.pp == 1:
            return "no pipeline"
        chunks = f" of {s.strategy.chunks} chunks" if s.strategy.chunks > 1 else ""
        return f"{s.strategy.num_microbatches} micro-batches on {s.strategy.pp} stages{chunks}"

    worse = max((b, a), key=lambda s: s.about("bubble"))
    text = f"{_share('bubble', '', a, b)}: {pair(a, b, pipe)}"
    part = worse.about("bubble")
    if worse.strategy.pp == 1 or not LARGE_BUBBLE < part < 1:
        return text
    # the bubble lasts as long however many micro-batches fill the rest of the step
    times = part / (1 - part) * (1 - AIMED_BUBBLE) / AIMED_BUBBLE
    stages = int(worse.strategy.pp)
    needed = math.ceil(times * int(worse.strategy.num_microbatches) / stages) * stages
    return f"{text}; {needed} micro-batches would leave about {share(AIMED_BUBBLE)}"


def _imbalance(a: Side, b: Side) -> str:
    def stages(s: Side) -> str:
        if s.strategy.pp == 1:
            return "no pipeline"
        return f"{s.strategy.pp} stages" + (f" of {s.strategy.layers} layers" if s.strategy.layers else "")

    return (f"the busiest stage computes {share(a.about('imbalance'))} -> {share(b.about('imbalance'))} of the step more than "
            f"the mean one ({pair(a, b, stages)}); fewer layers beside the head even them out")


def _kernels(s: Side) -> str:
    return f"{s.strategy.kernels} kernels"


def _nodes(s: Side) -> str:
    n = 1 if s.cluster is None else math.ceil(int(s.strategy.world_size) / s.cluster.gpus_per_node)
    return f"{n} node" + ("s" if n > 1 else "")


def _plain(term: str, advice: str, say: Callable[[Side], str] | None = None) -> Callable[[Side, Side], str]:
    """Return a note of a share of the step, what differs, and advice."""
    def sentence(a: Side, b: Side) -> str:
        return f"{_share(term, '', a, b)}" + (f" ({pair(a, b, say)})" if say else "") + (f": {advice}" if advice else "")

    return sentence


def _measured(term: str, what: str) -> Callable[[Side, Side], str]:
    """Return a note of a step's seconds: shares of steps that differ as a whole would not tell them apart."""
    def sentence(a: Side, b: Side) -> str:
        seconds = pair(a, b, lambda s: shown(s.about(term) * s.step.gpu_s_per_token * s.tokens_per_gpu, "s"))
        return f"{seconds} a step, {share(a.about(term))} -> {share(b.about(term))} of it: {what}"

    return sentence


def _pipe(s: Side) -> str:
    return f"{s.strategy.num_microbatches} micro-batches, pp={s.strategy.pp}"


def _tokens(s: Side) -> str:
    return f"{s.tokens_per_gpu:,.0f} tokens a step and GPU"


def _experts(s: Side) -> str:
    return f"ep={s.strategy.ep}, {s.strategy.software.expert_kernels} experts"


NOTES: dict[str, Callable[[Side, Side], str]] = {
    "model_work": _model, "extra_work": _extra, "peak": _peak, "bandwidth": _bandwidth,
    "matmul": _efficiency("matmul", "larger micro-batches or less tp make larger matmuls"),
    "grouped_matmul": _efficiency("grouped_matmul", "more tokens for each expert of a rank make larger matmuls"),
    "attention": _attention, "scan": _efficiency("scan", "longer chunks of a recurrence make larger matmuls"),
    "pointwise": _plain("pointwise", "norms, positions, activations, adds; fused kernels move fewer bytes", _kernels),
    "routing": _plain("routing", "choosing experts and sorting their tokens; fused kernels launch less", _experts),
    "vocabulary": _plain("vocabulary", "embedding and loss; tp cuts them", lambda s: f"tp={s.strategy.tp}"),
    "casts": _plain("casts", "quantising what matmuls read; fused kernels write it narrow", lambda s: s.strategy.precision),
    "copies": _plain("copies", "adding gradients of micro-batches and copying sharded weights; larger micro-batches need fewer",
                     lambda s: f"{s.strategy.num_microbatches} micro-batches, ZeRO-{s.strategy.zero}"),
    "recompute": _recompute, "imbalance": _imbalance,
    "launch": _plain("launch", "the GPU waits for the host to launch kernels; CUDA graphs or larger micro-batches help",
                     lambda s: f"{show(s.strategy.software.host_launch_s, 's')} a launch"),
    "slowed": _plain("slowed", "computation is slower while communication runs beside it",
                     lambda s: f"{_axes(s, ('dp', 'tp', 'ep'))}, ZeRO-{s.strategy.zero}"),
    "forward": _measured("forward", "forward passes, with the communication inside"),
    "backward": _measured("backward", "backward passes, with the communication inside"),
    "exposed_tp": _exposed("tp", "tp", "keep tp inside a node, or as small as memory allows"),
    "exposed_cp": _exposed("cp", "cp", "less cp, or longer sequences, hide more of it"),
    "exposed_ep": _exposed("ep", "ep", "keep experts' exchange inside a node, or overlap it"),
    "exposed_pp": _exposed("pp", "pp", "sends that wait for no other pass hide (fewer chunks, larger micro-batches)"),
    "exposed_dp": _exposed("dp", "shard", "more tokens a step and GPU hide gradients and weights on their way"),
    "bubble": _bubble,
    "optimizer": _plain("optimizer", "more tokens a step, or states sharded over dp (ZeRO-1), make it smaller", _tokens),
    "stragglers": _plain("stragglers", "ranks wait for the slowest of all", _nodes),
    "waiting": lambda a, b: _measured("waiting", f"bubble, sends and host ({pair(a, b, _pipe)})")(a, b),
    "data": _plain("data", "the loader is late; more of its workers or a faster store help"),
    "other": _plain("other", "what no kernel of a step sees", lambda s: f"{show(s.strategy.software.step_s, 's')} a step"),
}
