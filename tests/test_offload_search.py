"""Offload as an axis of the search: its winner against brute force, what it leaves out, and how it is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_planner import everything

from planner.fit import fit
from planner.predict import predict_replayed
from planner.question import Question, ask
from planner.rules import MEMORY_RULE, OFFLOAD_RULE, first_broken, illegal_reason
from planner.search import search
from planner.space import Axes, axes_texts, brief_space, narrowed, whole_space
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster, with_num_gpus
from simulator.memory import lacking_bytes, peak_memory
from simulator.part_bytes import pieces_of
from simulator.software import Software, load_software
from simulator.strategy import Strategy
from simulator.workload import build_workload

MODEL = load_model("llama-3-8b")


def asked(gpus: int = 4, software: Software | None = None, cluster: str = "rtx4090-node:1") -> Question:
    return ask(MODEL, with_num_gpus(load_cluster(cluster), gpus), tokens=1e12, seq_len=2048, global_batch=16,
               software=software or load_software("megatron-lm-2025"))


def small(question: Question, **axes: object) -> Axes:
    return brief_space(question) | {"micro_batch": (1, 4), "cp": (1,), "zero": ((0, 0), (1, 0)), "chunks": (1, 2)} | axes  # type: ignore[return-value]


WAYS = (("none", 1.0), ("states", 1.0), ("optimizer", 0.5), ("optimizer", 1.0))


@pytest.mark.parametrize("ways", [WAYS, WAYS[1:]])
def test_the_winner_and_all_counts_are_those_of_brute_force(ways: tuple[tuple[str, float], ...]) -> None:
    question = asked(8)
    axes = small(question, offload=ways, micro_batch=(1,), recompute=(("none", 1.0), ("full", 1.0)))
    found = search(question, axes=axes)
    fitting: dict[tuple[object, ...], list[Strategy]] = {}
    total = illegal = not_fitting = 0
    for batch in everything(question, axes):
        legal = np.flatnonzero(np.broadcast_to(first_broken(batch, question), (len(batch),)) < 0)
        total, illegal = total + len(batch), illegal + len(batch) - len(legal)
        for one in (batch.pick(int(i)) for i in legal):
            if bool(peak_memory(build_workload(MODEL, one), question.cluster.accelerator).fits):
                plain = replace(one, offload="none", offload_share=1.0)
                fitting.setdefault(tuple(getattr(plain, f) for f in plain.__slots__ if f != "software"), []).append(one)
            else:
                not_fitting += 1
    best = min(predict_replayed(question, s)[0].step_time_s for some in fitting.values() for s in some)
    assert found.best is not None and found.best.step_time_s == pytest.approx(best, rel=1e-12)
    assert found.strategies_total == total
    with_none = [some for some in fitting.values() if any(s.offload == "none" for s in some)]
    left_out = sum(len(some) - 1 for some in with_none)
    pruned = found.rejected.get(OFFLOAD_RULE, 0)
    # some of what fits plainly could not be offloaded, or would not fit offloaded: it is not asked
    assert pruned >= left_out and (pruned > 0) == (ways is WAYS)
    assert found.strategies_total == found.strategies_priced + sum(
        num for rule, num in found.rejected.items() if rule != MEMORY_RULE)
    assert found.rejected[MEMORY_RULE] <= not_fitting
    if ways is not WAYS:
        assert found.rejected[MEMORY_RULE] == not_fitting and found.strategies_priced == total - illegal


def test_offload_is_in_the_usual_space_where_framework_and_hosts_have_it() -> None:
    megatron, jax = asked(), asked(software=load_software("jax-2023"))
    assert whole_space(megatron)["offload"] == (("none", 1.0), ("states", 1.0), ("optimizer", 1.0))
    assert whole_space(jax)["offload"] == (("none", 1.0),)
    no_host = replace(megatron, cluster=replace(megatron.cluster, host=None))
    assert whole_space(no_host)["offload"] == (("none", 1.0),)
    assert axes_texts(whole_space(megatron))["offload"] == ["none", "states", "optimizer"]
    assert narrowed(whole_space(megatron), ["offload=none,optimizer:0.5"], megatron)["offload"] == (
        ("none", 1.0), ("optimizer", 0.5))
    with pytest.raises(BadInput, match="offload 'disk' is not known"):
        narrowed(whole_space(megatron), ["offload=disk"], megatron)


def test_what_fits_is_not_offloaded() -> None:
    question = asked(8, cluster="dgx-h100:1")
    found = search(question, axes=small(question))
    assert found.best is not None and found.best.strategy.offload == "none"
    assert found.rejected[OFFLOAD_RULE] > 0
    assert any(r.rule == OFFLOAD_RULE and r.strategy.offload != "none" for r in found.rejected_examples)


def test_fit_proposes_it() -> None:
    question = asked(8, cluster="rtx4090-node:1")
    strategy = Strategy(dp=2, tp=4, zero=1, seq_len=2048, num_microbatches=8, software=question.software)
    assert illegal_reason(strategy, question) is None
    titles = [change.title for change in fit(question, strategy).changes]
    assert any("offload none -> optimizer" in title for title in titles)


@settings(max_examples=10)
@given(st.floats(0.3, 1.5), st.sampled_from([("megatron-lm-2025", "1F1B"), ("megatron-lm-2025", "Interleaved1F1B"),
                                             ("torchtitan-2025", "ZBH1"), ("torchtitan-2025", "ZBV")]))
def test_what_is_lacking_is_that_of_the_fullest_rank(memory: float, how: tuple[str, str]) -> None:
    """Exact where a strategy fits; else more than nothing, and no more than the fullest lacks."""
    question = asked(8, load_software(how[0]))
    kind = replace(question.cluster.accelerator, memory_bytes=question.cluster.accelerator.memory_bytes * memory)
    for batch in everything(question, small(question, schedule=(how[1],), offload=(("none", 1.0),), pp=(4,))):
        legal = np.flatnonzero(first_broken(batch, question) < 0)
        if len(legal):
            workload = build_workload(MODEL, batch.pick(legal))
            lacks = lacking_bytes(MODEL, workload.strategy, pieces_of(workload), kind)
            whole = peak_memory(workload, kind).peak_bytes - kind.memory_bytes
            fits = whole <= 0
            assert (lacks[fits] == whole[fits]).all()
            assert (lacks[~fits] > 0).all() and (lacks[~fits] <= whole[~fits]).all()
