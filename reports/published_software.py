"""A published row's training software: the framework that its source names, and what the row says besides.

Each row of `FRAMEWORKS` reads the documented columns (source, zero_detail, other_notes); the generation is the latest
of the catalogue that is not younger than the row. `SETTINGS` then overrides single fields where a row states them.
A file's own column `software` (a catalogue name or a YAML file) goes before both.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

from profiles import files
from reports.rows import Row
from simulator.software import REPEATED, Software, load_software

FRAMEWORKS: tuple[tuple[str, str], ...] = (
    (r"modded-nanogpt", "modded-nanogpt"),
    (r"torchtune", "torchtune"),
    (r"torchtitan", "torchtitan"),
    (r"nanotron", "nanotron"),
    (r"llm-foundry|Composer", "llm-foundry"),
    (r"InternEvo|InternLM", "internevo"),
    (r"TinyLlama|lit-gpt", "lit-gpt"),
    (r"SimuMax", "simumax"),
    (r"fms-fsdp", "fms-fsdp"),
    (r"ColossalAI", "colossalai"),
    (r"MaxText|Paxml|\bPAX\b|\bJAX\b|PaLM|Levanter", "jax"),
    (r"MLPerf.*lora", "mlperf-lora"),
    (r"MLPerf", "mlperf"),
    (r"Megatron-Bridge", "megatron-bridge"),
    (r"Megatron-DeepSpeed|BigScience|BLOOM|vTrain|GPT-NeoX|GLM-130B|AuroraGPT|MT-NLG|Megatron-Turing", "megatron-deepspeed"),
    (r"NeMo|DGX Cloud|Nemotron", "nemo"),
    (r"Megatron-LM CI", "megatron-lm-tests"),
    (r"Megatron|2205\.05198|MegaScale|Primus", "megatron-lm"),
    (r"DeepSpeed", "deepspeed"),
    (r"FSDP|FairScale", "fsdp"),
)
"""What a source says of how it was run -> family of frameworks in the catalogue; the first that matches."""

SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("other_notes", r"torch\.compile|\+ compile\b", {"kernels": "fused"}),
    ("other_notes", r"(?:^|; )eager(?:$|;)", {"kernels": "eager"}),
    ("other_notes", r"chunked cross entropy", {"fp32_logits": False}),
    ("other_notes", r"\basync TP\b", {"tp_overlap": True}),
    ("other_notes", r"without async communication", {"tp_backward": False, "tp_overlap": False}),
    ("attn_type", r"hybrid", {"tp_overlap": False}),
    ("other_notes", r"CUDA graphs (?:on|transformer_engine)[^;]*\bmoe_router\b", {"graphs": "router"}),
    ("other_notes", r"CUDA graphs (?:on|transformer_engine)[^;]*\b(?:attn|mamba|mlp)\b", {"graphs": "dense"}),
    ("other_notes", r"step \"(?:CUDA graphs|CPU-side optimisation|HybridEP|final)\"", {"graphs": "dense"}),
    ("other_notes", r"CUDA graphs(?: local)?(?:;|$)", {"graphs": "all"}),
    ("other_notes", r"CUDA graphs(?: local)? full_iteration", {"graphs": "all", "expert_kernels": "fused"}),
    ("other_notes", r"MoE all-to-all overlap on|(?<!no )EP overlap(?! off)", {"ep_overlap": True}),
    ("other_notes", r"no EP overlap|EP overlap off", {"ep_overlap": False}),
    ("other_notes", r"MoE dispatcher (?:hybridep|deepep)|HybridEP|DeepEP", {"sends_once": True}),
    ("other_notes", r"no overlap of p2p", {"pp_overlap": False}),
    ("other_notes", r"gradients reduced at end|use_gradient_bucket \[False\]", {"grad_reduce": False}),
    ("other_notes", r"use_gradient_bucket \[True\]", {"grad_reduce": True}),
    ("other_notes", r"grad reduce and param gather overlapped", {"grad_reduce": True, "param_gather": True}),
    ("zero_detail", r"bf16 moments", {"moment_bytes": 4.0}),
    ("precision_detail", r"FSDP PURE", {"reduce_bytes": 2.0}),
    ("precision_detail", r"FSDP DEFAULT", {"reduce_bytes": 4.0}),
    ("precision_detail", r"fp32 grad accumulation", {"grad_bytes": 4.0, "reduce_bytes": 4.0}),
    ("precision_detail", r"fp8 all-gather", {"gather_bytes": 1.0}),
    ("precision_detail", r"weights, gradients and AdamW states in bf16",
     {"master_bytes": 0.0, "grad_bytes": 2.0, "reduce_bytes": 2.0, "moment_bytes": 4.0}),
    ("recompute_detail", r"moe_act|layernorm", {"selective": "pointwise"}),
    ("recompute_detail", r"core_attn", {"selective": "attention"}),
    ("flash_attention", r"^0$", {"attention": "unfused"}),
)
"""Column, what it says, and the fields of the software that this states; later ones win."""
LATEST = 9999
"""Year of a row that states none."""
SENDS_WAIT_ALONE = ("megatron-lm", "megatron-lm-tests", "megatron-bridge", "nemo", "mlperf", "mlperf-lora")
"""Megatron-Core overlaps sends with interleaved stages only (arguments.py: overlap_p2p_comm)."""


ASSUMED = " (assumed)"
"""What follows the name of a framework that no column of a row names."""


def software_of(row: Row, precision: str = "") -> Software:
    """Return what a row's framework does in a precision; one that nothing in the row names is assumed, and so named."""
    own = row.text("software")
    named = "" if own else _family(row)
    family = named or ("" if own else _assumed(row))
    # Megatron-Core runs the exchange beside another micro-batch, and graphs whole steps with experts, for its GPT models
    # only (core/pipeline_parallel/combined_1f1b.py)
    precision = "" if "hybrid" in row.text("attn_type") else precision
    software = load_software(own, precision) if own else _loaded(family, _release(row), precision)
    if software.attention == "unfused" and row.flag("flash_attention"):
        software = replace(software, attention="flash2")
    modules = ",".join(m for m in REPEATED if re.search(rf"\b{m}\b", row.text("recompute_detail")))
    if modules:
        software = replace(software, repeats=modules)
    if family in SENDS_WAIT_ALONE and (row.whole("vpp") or 1) == 1:
        software = replace(software, pp_overlap=False)
    stated: dict[str, Any] = {}
    for column, says, fields in SETTINGS:
        if re.search(says, row.text(column)):
            stated |= fields
    if family and not named:
        stated["name"] = software.name + ASSUMED
    return replace(software, **stated) if stated else software


def _family(row: Row) -> str:
    """Return the family of frameworks that a row names, or nothing; the source's name goes before what its notes mention."""
    for columns in (("source",), ("zero_detail", "other_notes")):
        text = "; ".join(row.text(c) for c in columns)
        for says, family in FRAMEWORKS:
            if re.search(says, text, re.IGNORECASE):
                return family
    return ""


def _assumed(row: Row) -> str:
    """Return the family that most runs of such a layout are of: torch's FSDP where weights are sharded (torchtitan from 2024
    on), Megatron-LM otherwise."""
    if row.whole("zero_stage") == 3:
        return "torchtitan" if (row.whole("year") or LATEST) >= 2024 else "fsdp"
    return "megatron-lm"


def _release(row: Row) -> tuple[int, int]:
    """Return year and month of the release that a row's source names (26.08), else the end of the row's year."""
    named = re.search(r"\b(2\d)\.(0[1-9]|1[0-2])\b", row.text("source"))
    return (2000 + int(named[1]), int(named[2])) if named else (row.whole("year") or LATEST, 12)


@cache
def _loaded(family: str, release: tuple[int, int], precision: str) -> Software:
    """Return the latest generation of a family that is not younger than a release, else the oldest."""
    names = {n: re.fullmatch(rf"{family}-(\d+)(?:\.(\d+))?", n) for n in files.catalog_names("software")}
    dates = sorted(((int(m[1]), int(m[2] or 1)), n) for n, m in names.items() if m)
    return load_software(max((d for d in dates if d[0] <= release), default=dates[0])[1], precision)
