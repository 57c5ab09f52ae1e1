"""Published measured runs as questions: a row becomes a model, a cluster and a strategy, or says why it cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from planner.question import Question
from planner.rules import illegal_reason
from profiles.files import BadInput
from reports.published_machine import CLUSTERS, cluster_of
from reports.published_model import model_of
from reports.published_software import software_of
from reports.rows import NEEDED, Row
from simulator.metrics import mfu
from simulator.strategy import PRECISIONS, RECOMPUTE, Strategy

PRICED_WORKLOADS = ("pretrain", "finetune", "lora")
TIME_TOLERANCE = 0.10
"""Relative difference between a row's step time and its tokens per second beyond which one of them is a slip."""
PLAUSIBLE_MFU = (0.005, 1.0)
GIB = 2.0**30
TOKENS = 1e12
"""Token budget of the question: it sets days only, which no row states."""
NOT_PRICED = (
    ("other_notes", r"CPU offload", "activations offloaded to the host are not priced"),
    ("other_notes", r"\bMuon\b", "the Muon optimizer is not priced"),
    ("other_notes", r"step fused into backward", "an optimizer step inside backward is not priced"),
)
"""Column, what it says, and why such a row is left out."""
PRECISION_NAMES = {
    "fp8-tensor-delayed": "fp8", "fp8-tensor-current": "fp8", "fp8-rowwise": "fp8", "fp8-mx": "mxfp8",
}
"""Where the row's name of a precision is another than Headway's."""
BLACKWELL = ("B200-SXM", "B300-SXM", "GB200", "GB300")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A row that is left out, and why, in one sentence."""

    id: str
    reason: str


def as_question(row: Row) -> tuple[Question, Strategy] | Skipped:
    """Return what to predict for a row, or why it is left out."""
    try:
        reason = _not_wanted(row) or _missing(row) or _impossible(row)
        if reason:
            return Skipped(id=row.id, reason=reason)
        model, cluster, strategy = model_of(row), cluster_of(row), strategy_of(row)
        question = Question(
            model=model, cluster=cluster, cluster_text=f"{row.text('n_gpus')} x {row.text('gpu')}", tokens=TOKENS,
            seq_len=strategy.seq_len, global_batch=row.whole("global_batch") or 1, precision=strategy.precision,
            software=strategy.software, price=None, lora_rank=strategy.lora_rank,
        )
        broken = illegal_reason(strategy, question)
        if broken:
            return Skipped(id=row.id, reason=f"layout: {broken}")
        reason = _slip(row, question, strategy)
    except BadInput as e:
        return Skipped(id=row.id, reason=str(e))
    return Skipped(id=row.id, reason=reason) if reason else (question, strategy)


def measured_step_s(row: Row) -> float | None:
    """Return the measured time of a step: as stated, else from tokens per second of one accelerator."""
    stated = row.number("step_time_s") or row.number("iteration_time_s")
    rate, tokens = row.number("tokens_per_s_per_gpu"), tokens_per_step(row)
    if stated or not rate or not tokens:
        return stated
    return tokens / (rate * float(row.whole("n_gpus") or 1))


def measured_peak_bytes(row: Row) -> float | None:
    """Return the measured peak memory of one accelerator."""
    peak = row.number("peak_mem_gib_per_gpu")
    return None if peak is None else peak * GIB


def tokens_per_step(row: Row) -> float:
    """Return the tokens of one step over all accelerators."""
    return float(row.whole("global_batch") or 0) * float(row.whole("seq_len") or 0)


def strategy_of(row: Row) -> Strategy:
    """Return the strategy that a row states."""
    dp, cp, tp = _dp(row), row.whole("cp") or 1, row.whole("tp") or 1
    chunks = (row.whole("vpp") or 1) if row.whole("pp") != 1 else 1
    micro_batch = row.whole("micro_batch") or 1
    precision = _precision(row)
    software = software_of(row, precision)
    return Strategy(
        dp=dp, tp=tp, cp=cp, pp=row.whole("pp") or 1, ep=row.whole("ep") or 1, etp=_etp(row),
        zero=(row.whole("zero_stage") or 0) if dp * cp > 1 else 0, shard_group=_shard_group(row),
        sequence_parallel=tp > 1 and bool(row.flag("sequence_parallel")), **_recompute(row), precision=precision,
        offload="optimizer" if re.search(r"CPU offload of optimizer", row.text("zero_detail")) else "none",
        context="all_gather" if software.name.startswith("torchtitan") else "ring",
        schedule="Interleaved1F1B" if chunks > 1 else "1F1B", chunks=chunks, micro_batch=micro_batch,
        num_microbatches=(row.whole("global_batch") or 1) // (dp * micro_batch), seq_len=row.whole("seq_len") or 1,
        lora_rank=_lora_rank(row), software=software,
    )


def _not_wanted(row: Row) -> str | None:
    if row.text("duplicate_of"):
        return f"repeats {row.text('duplicate_of')}"
    workload = row.text("workload") or "pretrain"
    if workload not in PRICED_WORKLOADS:
        return f"workload: {workload} is not priced"
    if measured_step_s(row) is None and measured_peak_bytes(row) is None:
        return "no measured step time or peak memory"
    return next((reason for column, says, reason in NOT_PRICED if re.search(says, row.text(column))), None)


def _missing(row: Row) -> str | None:
    """Return which columns a row leaves empty that a prediction needs."""
    experts = (row.whole("n_experts") or 1) > 1
    catalogued = "hybrid" in row.text("attn_type")
    shape = ("n_layers", "hidden", "n_heads", "ffn_hidden", "vocab", "gated_mlp")
    needed = [c for c in NEEDED if not (c in shape and catalogued) and not (c == "ffn_hidden" and experts)]
    if experts:
        needed += ["experts_topk", "ep"] + ([] if row.text("ffn_hidden") else ["moe_ffn_hidden"])
    if row.text("attn_type") not in ("mha", "mla") and not catalogued:
        needed.append("n_kv_heads")
    if (row.whole("pp") or 1) > 1:
        needed.append("vpp")
    if (row.whole("tp") or 1) > 1:
        needed.append("sequence_parallel")
    missing = [c for c in needed if not row.text(c)]
    return f"missing: {', '.join(missing)}" if missing else None


def _impossible(row: Row) -> str | None:
    """Return why a row's layout, time or memory cannot be."""
    num, tp, pp, cp, dp = (row.whole(c) or 1 for c in ("n_gpus", "tp", "pp", "cp", "dp"))
    if row.text("gpu") not in CLUSTERS:
        return f"gpu: {row.text('gpu')!r} has no reference cluster"
    if row.text("dp") and tp * pp * cp * dp != num:
        return f"layout: tp {tp} x pp {pp} x cp {cp} x dp {dp} = {tp * pp * cp * dp}, the row has {num} GPUs"
    if num % (tp * pp * cp):
        return f"layout: tp {tp} x pp {pp} x cp {cp} = {tp * pp * cp} does not divide {num} GPUs"
    ranks = (row.whole("micro_batch") or 1) * _dp(row)
    if (row.whole("global_batch") or 0) % ranks or not row.whole("global_batch"):
        return f"batch: {row.text('global_batch')} sequences do not divide by dp x micro-batch = {ranks}"
    ep, etp = row.whole("ep") or 1, _etp(row)
    if tp * cp * _dp(row) % (ep * etp):
        return f"layout: ep {ep} x expert tp {etp} does not divide the {tp * cp * _dp(row)} ranks of a stage"
    return _inconsistent(row)


def _inconsistent(row: Row) -> str | None:
    step_s, rate = measured_step_s(row), row.number("tokens_per_s_per_gpu")
    if step_s and rate:
        from_rate = tokens_per_step(row) / (rate * float(row.whole("n_gpus") or 1))
        if abs(step_s / from_rate - 1) > TIME_TOLERANCE:
            return f"time: a step of {step_s:g} s and {rate:g} tokens/s a GPU, which make {from_rate:.4g} s, disagree"
    return None


def _slip(row: Row, question: Question, strategy: Strategy) -> str | None:
    """Return why what was measured cannot be on this machine: a unit or a column that slipped."""
    step_s, peak, accelerator = measured_step_s(row), measured_peak_bytes(row), question.cluster.accelerator
    if step_s:
        reached = float(mfu(question.model, strategy, step_s, accelerator))
        if not PLAUSIBLE_MFU[0] <= reached <= PLAUSIBLE_MFU[1]:
            return f"time: {step_s:g} s a step would be an MFU of {100 * reached:.3g} %"
    if peak and peak > accelerator.memory_bytes * 1.02:
        return f"memory: {peak / GIB:.4g} GiB do not fit a {accelerator.title} of {accelerator.memory_bytes / GIB:.4g} GiB"
    return None


def _dp(row: Row) -> int:
    """Return the data-parallel degree: as stated, else what the other axes leave."""
    others = (row.whole("tp") or 1) * (row.whole("pp") or 1) * (row.whole("cp") or 1)
    return row.whole("dp") or (row.whole("n_gpus") or 1) // others


def _etp(row: Row) -> int:
    match = re.search(r"expert TP (\d+)", row.text("other_notes"))
    return row.whole("etp") or (int(match[1]) if match else 1)


def _shard_group(row: Row) -> int:
    """Return how many ranks share one copy of the states, where a row says that it is not all of them."""
    text = row.text("zero_detail")
    match = re.search(r"shard group (\d+)|within (\d+) GPUs|FSDP over (\d+) GPUs", text)
    if match:
        return int(next(g for g in match.groups() if g))
    return row.whole("gpus_per_node") or 0 if "HSDP" in text else 0


def _precision(row: Row) -> str:
    name = PRECISION_NAMES.get(row.text("precision"), row.text("precision"))
    if name == "fp8" and "128x128" in row.text("precision_detail"):
        return "mxfp8" if row.text("gpu") in BLACKWELL else "fp8-block"
    if name not in PRECISIONS:
        raise BadInput(f"precision: {name!r} is not known; known are {', '.join((*PRECISIONS, *PRECISION_NAMES))}")
    return name


def _lora_rank(row: Row) -> int:
    """Return the rank of the adapters of a LoRA row, which its model or its notes name; 0 where all weights are trained."""
    if row.text("workload") != "lora":
        return 0
    named = re.search(r"\brank (\d+)", f"{row.text('model')}; {row.text('other_notes')}")
    if not named:
        raise BadInput("model: a row of the workload 'lora' names the 'rank <number>' of its adapters in model or other_notes")
    return int(named[1])


def _recompute(row: Row) -> dict[str, Any]:
    """Return what is recomputed, and in which share of the layers."""
    detail, kind = row.text("recompute_detail"), row.text("recompute")
    if "every other layer" in detail:
        return {"recompute": "full", "recompute_share": 0.5}
    some = re.search(r"(\d+) layers only", detail)
    if some:
        layers = (row.whole("n_layers") or 1) / ((row.whole("pp") or 1) * (row.whole("vpp") or 1))
        return {"recompute": "full", "recompute_share": min(1.0, int(some[1]) / layers)}
    if kind not in RECOMPUTE:
        raise BadInput(f"recompute: {kind!r} is not known; known are {', '.join(RECOMPUTE)}")
    return {"recompute": kind}
