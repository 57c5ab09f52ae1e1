"""Legality: each rule against dealing out what it divides, its sentence with both numbers, and what really ran."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from executor.engine import FAMILIES, refusal
from executor.launch import check_launch
from executor.run import Job
from planner.question import Question, ask
from planner.rules import RULES, first_broken, illegal_reason
from profiles import files
from profiles.families import load_model
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from profiles.hardware import load_cluster
from profiles.model import Experts, LinearAttention, ModelSpec, SelfAttention, StateSpace
from reports.published import Skipped, as_question
from reports.rows import read_rows
from simulator.strategy import Strategy

DENSE = load_model("llama-3-8b")
LAYER = DENSE.kinds[0]
SPARSE = replace(DENSE, kinds=(replace(LAYER, ffn=Experts(num_experts=8, top_k=2, hidden=768)),))
STATE = replace(DENSE, kinds=(
    replace(LAYER, mixer=StateSpace(num_heads=48, head_dim=64, state=128, groups=4, conv=4)),))
DELTA = replace(DENSE, kinds=(
    replace(LAYER, mixer=LinearAttention(num_key_heads=16, num_value_heads=32, key_dim=64, value_dim=64, conv=4)),))
NODE = load_cluster("dgx-h100:1")
RULE = {rule.name: rule for rule in RULES}


def asked(strategy: Strategy, model: ModelSpec = DENSE) -> Question:
    """Return a question that a strategy answers in numbers: its accelerators, batch and sequence."""
    cluster = replace(NODE, gpus_per_node=max(1, int(strategy.world_size)))
    batch = max(1, int(strategy.global_batch))
    return replace(ask(model, cluster, tokens=1e12, seq_len=4096), global_batch=batch, seq_len=strategy.seq_len)


def holds(name: str, model: ModelSpec = DENSE, **fields: Any) -> bool:
    strategy = Strategy(**({"seq_len": 4096} | fields))
    return bool(RULE[name].holds(strategy, asked(strategy, model)))


def evenly(items: int, takers: int) -> bool:
    """Deal items out one by one; return whether all takers have as many, or where items are fewer, items as many takers."""
    dealt = np.zeros(takers, int)
    for i in range(items):
        dealt[i % takers] += 1
    served = np.zeros(max(items, 1), int)
    for i in range(takers):
        served[i % max(items, 1)] += 1
    return len(set(dealt)) == 1 or (items < takers and len(set(served)) == 1)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 40))
def test_shard_groups_are_all_of_one_size(dp: int, cp: int, group: int) -> None:
    sizes = {len(range(dp * cp)[i : i + group]) for i in range(0, dp * cp, group)} if group else {0}
    assert holds("shard groups divide", dp=dp, cp=cp, zero=1, shard_group=group) == (sizes == {group})


@given(st.sampled_from([(32, 8), (12, 4), (24, 1), (16, 16)]), st.integers(1, 8), st.integers(1, 8))
def test_ulysses_cuts_heads_and_copies_those_of_keys(heads: tuple[int, int], tp: int, cp: int) -> None:
    mixer = SelfAttention(num_heads=heads[0], num_kv_heads=heads[1], head_dim=128)
    model = replace(DENSE, kinds=(replace(LAYER, mixer=mixer),))
    rule, fields = "ulysses divides heads", {"tp": tp, "cp": cp}
    whole = heads[0] % (tp * cp) == 0 and evenly(heads[1], tp * cp)
    assert holds(rule, model, context="ulysses", **fields) == (whole or cp == 1)
    assert holds(rule, model, context="ring", **fields) and holds(rule, model, context="all_gather", **fields)


@given(st.integers(1, 16), st.integers(1, 8))
def test_blocks_with_a_state_are_cut_by_heads(tp: int, cp: int) -> None:
    rule = "ranks divide recurrent heads"
    assert holds(rule, STATE, tp=tp, cp=cp) == (48 % (tp * cp) == 0 and evenly(4, tp * cp))
    assert holds(rule, DELTA, tp=tp, cp=cp) == (16 % (tp * cp) == 0)
    assert holds(rule, DENSE, tp=tp, cp=cp)


@given(st.integers(1, 1000))
def test_experts_are_cut_into_whole_channels(etp: int) -> None:
    assert holds("etp divides experts", SPARSE, etp=etp) == (768 % etp == 0)
    assert holds("etp divides experts", DENSE, etp=etp)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_experts_over_tp_need_tokens_that_differ(tp: int, ep: int, etp: int, sequence_parallel: bool) -> None:
    """Ranks are laid out tp first, experts over the same ranks etp and ep first: two of one tp group meet where tp > 1."""
    allowed = holds("experts over tp need sequence parallelism", SPARSE, dp=4, tp=tp, ep=ep, etp=etp,
                    sequence_parallel=sequence_parallel)
    one_tp_group = {rank // tp for rank in range(min(ep * etp, 2))} == {0} and ep * etp > 1 and tp > 1
    assert allowed == (sequence_parallel or not one_tp_group)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 300), st.sampled_from(["ring", "all_gather", "ulysses"]))
def test_sequences_are_cut_into_whole_pieces(tp: int, cp: int, seq_len: int, context: str) -> None:
    same = {"tp": tp, "cp": cp, "seq_len": seq_len, "context": context}
    pieces = cp if context == "ulysses" else 2 * cp
    assert holds("cp divides sequence", **same) == (cp == 1 or seq_len % pieces == 0)
    assert holds("tp divides sequence", **same) == (tp == 1 or seq_len % (tp * cp) == 0)
    assert holds("tp divides sequence", **same, sequence_parallel=False)


@pytest.mark.parametrize(
    ("model", "changes", "sentence"),
    [
        (DENSE, {"dp": 8, "zero": 3, "shard_group": 3}, "shard_group 3 does not divide dp x cp = 8 ranks"),
        (DENSE, {"dp": 4, "cp": 2, "zero": 3, "shard_group": 16}, "shard_group 16 does not divide dp x cp = 8 ranks"),
        (DENSE, {"tp": 4, "cp": 3, "context": "ulysses", "seq_len": 3072},
         "ulysses: tp 4 x cp 3 = 12 does not divide 32 heads and 8 key-value heads"),
        (STATE, {"tp": 2, "cp": 16}, "tp 2 x cp 16 = 32 does not divide 48 heads with a state and 4 groups of them"),
        (SPARSE, {"dp": 5, "etp": 5}, "etp 5 does not divide the experts' width of 768"),
        (SPARSE, {"tp": 2, "dp": 4, "ep": 4, "sequence_parallel": False},
         "ep 4 x etp 1 lays experts over the 2 ranks of tp, which all hold the same tokens without sequence_parallel"),
        (DENSE, {"recompute": "full", "recompute_share": 1.5},
         "recompute_share 1.5 is no share of the layers: it is from 0 to 1"),
        (DENSE, {"recompute": "full", "recompute_share": -0.1}, "recompute_share -0.1 is no share"),
        (DENSE, {"imbalance": 0.9}, "imbalance 0.9 must be a number of at least 1"),
        (DENSE, {"imbalance": float("nan")}, "imbalance nan must be a number of at least 1"),
        (DENSE, {"dp": 8, "zero": 4}, "ZeRO-4 is no level: they are 0 to 3"),
        (DENSE, {"tp": 4, "cp": 2, "seq_len": 4100}, "tp 4 does not divide the sequence of 4100 over cp 2"),
        (DENSE, {"dp": 2, "cp": 4, "seq_len": 4098, "context": "ulysses"},
         "cp 4: the sequence of 4098 does not divide into 4 pieces"),
        (DENSE, {"dp": -2, "tp": -4}, "dp is -2, and must be a whole number of at least 1"),
        (DENSE, {"tp": 0}, "tp is 0, and must be a whole number of at least 1"),
        (DENSE, {"micro_batch": 1.5}, "micro_batch is 1.5, and must be a whole number of at least 1"),
        (DENSE, {"recompute": "some"}, "recompute 'some' is not known; known are none, selective, full"),
        (DENSE, {"context": "mail"}, "context 'mail' is not known; known are ring, all_gather, ulysses"),
        (DENSE, {"schedule": "2F2B"}, "schedule '2F2B' is not known; known are 1F1B, GPipe"),
    ],
)
def test_what_is_refused_says_why(model: ModelSpec, changes: dict[str, Any], sentence: str) -> None:
    strategy = Strategy(**({"seq_len": 4096} | changes))
    reason = illegal_reason(strategy, asked(strategy, model))
    assert reason is not None and reason.startswith(sentence) and "\n" not in reason


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (DENSE, {"dp": 8, "zero": 3, "shard_group": 4}), (DENSE, {"dp": 4, "cp": 2, "zero": 3, "shard_group": 8}),
        (DENSE, {"tp": 4, "cp": 4, "context": "ulysses"}), (DENSE, {"cp": 4, "seq_len": 4100, "context": "ulysses"}),
        (STATE, {"tp": 4, "cp": 4}), (STATE, {"tp": 2, "cp": 4}), (SPARSE, {"dp": 2, "tp": 4, "ep": 4, "etp": 2}),
        (SPARSE, {"dp": 2, "tp": 4, "sequence_parallel": False}), (DENSE, {"tp": 4, "sequence_parallel": False}),
        (DENSE, {"recompute": "full", "recompute_share": 0.0}), (DENSE, {"imbalance": 1.0}),
    ],
)
def test_what_can_be_laid_out_is_not_refused(model: ModelSpec, changes: dict[str, Any]) -> None:
    strategy = Strategy(**({"seq_len": 4096} | changes))
    assert illegal_reason(strategy, asked(strategy, model)) is None


@given(st.sampled_from([DENSE, SPARSE, STATE, DELTA]), st.data())
def test_a_batch_is_its_members(model: ModelSpec, data: st.DataObject) -> None:
    n = 6
    degree, some = st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([0, 1, 3, 4, 8])
    fields = {name: np.array(data.draw(st.lists(kind, min_size=n, max_size=n), label=name)) for name, kind in (
        ("dp", degree), ("tp", degree), ("cp", degree), ("ep", degree), ("etp", degree), ("shard_group", some),
        ("zero", st.sampled_from([0, 1, 3, 5])), ("sequence_parallel", st.booleans()),
        ("recompute_share", st.sampled_from([0.0, 0.5, 1.5])), ("recompute", st.sampled_from(["none", "full", "some"])),
    )}
    batch = Strategy(**fields, context=data.draw(st.sampled_from(["ring", "ulysses"])), seq_len=6144)
    question = asked(batch.pick(0), model)
    broken = first_broken(batch, question)
    for i in range(n):
        alone = batch.pick(i)
        reason = illegal_reason(alone, question)
        assert (reason is None) == (broken[i] < 0)
        if reason is not None:
            assert reason == RULES[int(broken[i])].reason(alone, question)
            assert re.search(r"\d", reason) or "is not known" in reason


@given(st.sampled_from([DENSE, SPARSE]), st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 3))
def test_what_is_legal_shards_into_whole_parts(model: ModelSpec, dp: int, cp: int, group: int, zero: int) -> None:
    strategy = Strategy(dp=dp, cp=cp, zero=zero, shard_group=group, seq_len=5040)
    assume(illegal_reason(strategy, asked(strategy, model)) is None)
    assert float(strategy.replicas / strategy.shards).is_integer()


def test_no_published_run_is_refused_for_its_layout() -> None:
    """They ran."""
    read = [as_question(row) for row in read_rows(files.catalog_path("published_runs.csv"))]
    assert len(read) > 100
    assert [s for s in read if isinstance(s, Skipped) and s.reason.startswith("layout")] == []


def test_every_rule_has_a_name_of_its_own() -> None:
    assert len(RULE) == len(RULES)


TINY = llama_spec(name="tiny", num_layers=2, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=128, vocab=256,
                  max_seq_len=64)
ALIKE = TINY.kinds[0]


def made(**changes: Any) -> ModelSpec:
    return replace(TINY, kinds=(replace(ALIKE, **changes),))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (made(ffn=Experts(num_experts=4, top_k=2, hidden=32, shared_hidden=8)),
         "shared_hidden=8 of tiny: the engine runs shared_hidden=0 only"),
        (made(mixer=StateSpace(num_heads=4, head_dim=16, state=16, groups=1, conv=4)),
         "mixer 'mamba2' of tiny is not known to the engine, which runs attention"),
        (made(ffn=None), "ffn 'none' of tiny is not known to the engine, which runs dense, experts"),
        (made(mixer=replace(ALIKE.mixer, window=16)), "window=16 of tiny: the engine runs window=0 only"),
        (made(mixer=replace(ALIKE.mixer, positions="alibi")),
         "positions 'alibi' of tiny is not known to the engine, which runs rotary"),
        (made(ffn=replace(ALIKE.ffn, activation="geglu")),
         "activation 'geglu' of tiny is not known to the engine, which runs swiglu, gelu"),
        (made(parallel=True), "parallel=True of tiny: the engine runs parallel=False only"),
        (replace(TINY, norm="layer_norm"), "norm 'layer_norm' of tiny is not known to the engine, which runs rms_norm"),
        (replace(TINY, mtp_layers=1), "mtp_layers=1 of tiny: the engine runs mtp_layers=0 only"),
        (replace(TINY, kinds=(ALIKE, replace(ALIKE, name="b", mixer=replace(ALIKE.mixer, num_kv_heads=4))), pattern=(0, 1)),
         "tiny has layers of unlike attention, and the engine runs models whose attention is all alike"),
    ],
)
def test_a_model_that_the_engine_cannot_build_is_one_line(model: ModelSpec, reason: str, tmp_path: Path) -> None:
    """A plan's model may be made by hand, so its family alone does not say what is in it."""
    pytest.importorskip("torch")
    strategy = Strategy(precision="fp32", seq_len=32)
    assert refusal(strategy, TINY, "cpu") is None
    with pytest.raises(BadInput) as caught:
        check_launch(Job(model=model, strategy=strategy, out=str(tmp_path), num_steps=5))
    assert str(caught.value) == f"strategy: {reason}"


@pytest.mark.parametrize("name", files.catalog_names("models"))
def test_models_of_known_families_are_built_as_their_families_say(name: str) -> None:
    model = load_model(name)
    if model.family in FAMILIES:
        strategy = Strategy(precision="fp32", seq_len=32)
        assert refusal(strategy, model, "cpu") is None
