"""Does it fit, the largest that fits, and what would make it fit: against one strategy priced at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import tiny_profile

from planner.fit import Fit, fewest_gpus, fit, fits, largest_dividing_micro_batch, largest_micro_batch, largest_seq_len
from planner.predict import predict
from planner.question import Question, ask
from planner.rules import illegal_reason
from planner.search import search
from profiles.families import load_model
from profiles.hardware import load_cluster
from simulator.strategy import Strategy


def asked(model: str = "llama-3-8b", cluster: str = "dgx-a100:1", global_batch: int = 64, seq_len: int = 2048,
          **fields: object) -> tuple[Question, Strategy]:
    """Return a question and a strategy on all of its cluster."""
    question = ask(load_model(model), load_cluster(cluster), tokens=1e12, seq_len=seq_len, global_batch=global_batch)
    s = Strategy(software=question.software, seq_len=seq_len, **fields)  # type: ignore[arg-type]
    dp = question.cluster.num_gpus // (s.tp * s.cp * s.pp)
    return question, replace(s, dp=dp, num_microbatches=max(1, global_batch // (dp * s.micro_batch)))


def on(question: Question, num_gpus: int) -> Question:
    """Return the question on whole nodes, or a part of one."""
    node = min(num_gpus, question.cluster.gpus_per_node)
    return replace(question, cluster=replace(question.cluster, gpus_per_node=node, num_nodes=num_gpus // node))


def peak(question: Question, strategy: Strategy) -> float:
    return predict(question, strategy).peak_memory_bytes


@settings(max_examples=12)
@given(zero=st.sampled_from([0, 1, 3]), tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2]),
       recompute=st.sampled_from(["none", "selective", "full"]), model=st.sampled_from(["gpt2-xl", "llama-3-8b"]))
def test_the_largest_that_fit_are_those_of_a_walk(zero: int, tp: int, pp: int, recompute: str, model: str) -> None:
    question, strategy = asked(model, seq_len=1024, zero=zero, tp=tp if model != "gpt2-xl" else 1, pp=pp, recompute=recompute)
    strategy = replace(strategy, zero=zero if strategy.dp > 1 else 0)
    usable = question.cluster.accelerator.memory_bytes

    def walks(size: int) -> bool:
        return peak(question, replace(strategy, micro_batch=size)) <= usable

    largest = largest_micro_batch(question, strategy)
    assert largest == 0 or walks(largest)
    assert not walks(largest + 1)
    share = question.global_batch // strategy.dp
    dividing = [m for m in range(1, share + 1) if share % m == 0
                and peak(question, replace(strategy, micro_batch=m, num_microbatches=share // m)) <= usable]
    assert largest_dividing_micro_batch(question, strategy) == max(dividing, default=0)


@settings(max_examples=8)
@given(zero=st.sampled_from([1, 3]), tp=st.sampled_from([1, 2, 8]), recompute=st.sampled_from(["none", "full"]))
def test_the_longest_sequence_is_on_the_edge(zero: int, tp: int, recompute: str) -> None:
    question, strategy = asked(zero=zero if tp < 8 else 0, tp=tp, recompute=recompute)
    longest, usable = largest_seq_len(question, strategy, 128), question.cluster.accelerator.memory_bytes
    assert longest % 128 == 0
    assert longest == 0 or peak(question, replace(strategy, seq_len=longest)) <= usable
    assert peak(question, replace(strategy, seq_len=longest + 128)) > usable


def test_learned_positions_bound_the_sequence() -> None:
    question, strategy = asked("gpt2", seq_len=1024, global_batch=8)
    assert largest_seq_len(question, strategy, 128) == 1024


SHORT = [
    {}, {"model": "llama-3-70b", "cluster": "dgx-h100:8", "tp": 8, "pp": 2, "global_batch": 512, "seq_len": 8192},
    {"model": "llama-3-70b", "cluster": "dgx-h100:1", "tp": 8, "global_batch": 512, "seq_len": 8192},
    {"model": "mixtral-8x7b", "cluster": "dgx-h100:2", "ep": 8, "zero": 1, "seq_len": 4096},
    {"micro_batch": 16, "zero": 3, "global_batch": 512, "seq_len": 8192},
]


@pytest.mark.parametrize("case", SHORT, ids=["8b", "70b", "70b on a node", "experts", "micro-batch"])
def test_what_is_offered_fits_at_the_price_that_is_shown(case: dict[str, object]) -> None:
    question, strategy = asked(**case)  # type: ignore[arg-type]
    found = fit(question, strategy)
    assert not found.prediction.fits and found.room_bytes < 0
    assert found.changes, "something helps in each of these"
    for change in [*found.changes, found.fewest_gpus]:
        assert change is not None
        where = on(question, change.num_gpus)
        assert illegal_reason(change.strategy, where) is None
        alone = predict(where, change.strategy)
        assert alone.fits
        assert change.peak_memory_bytes == pytest.approx(alone.peak_memory_bytes)
        assert change.step_time_s == pytest.approx(alone.step_time_s)
        assert change.tokens_per_s_change == pytest.approx(alone.tokens_per_s / found.prediction.tokens_per_s - 1)
        assert change.strategy.global_batch == question.global_batch
        assert change.strategy != strategy and change.title


@pytest.mark.parametrize("case", SHORT, ids=["8b", "70b", "70b on a node", "experts", "micro-batch"])
def test_the_cheapest_comes_first_and_own_accelerators_before_more(case: dict[str, object]) -> None:
    question, strategy = asked(**case)  # type: ignore[arg-type]
    found = fit(question, strategy)
    keys = [(c.num_gpus > question.cluster.num_gpus, -c.tokens_per_s / c.num_gpus) for c in found.changes]
    assert keys == sorted(keys)
    assert len({c.strategy for c in found.changes}) == len(found.changes)


def test_single_changes_that_help_are_among_those_offered() -> None:
    question, strategy = asked(global_batch=64)
    found = {c.strategy for c in fit(question, strategy).changes}
    for change in ({"zero": 2}, {"zero": 3}, {"tp": 2, "dp": 4, "num_microbatches": 16}, {"recompute": "full"}):
        other = replace(strategy, **change)  # type: ignore[arg-type]
        assert (other in found) == predict(question, other).fits, change


def test_pairs_are_tried_where_single_changes_are_too_few() -> None:
    question, strategy = asked(**SHORT[2])  # type: ignore[arg-type]
    changes = fit(question, strategy).changes
    assert any(c.strategy.recompute == "full" and c.num_gpus == 16 for c in changes), "neither alone is enough"


def fewest(question: Question, strategy: Strategy) -> int:
    found = fewest_gpus(question, predict(question, strategy))
    return found.num_gpus if found else 0


@pytest.mark.parametrize(("model", "cluster"), [("llama-3-8b", "dgx-a100:1"), ("llama-3-70b", "dgx-h100:1")])
def test_on_fewer_than_the_fewest_the_planner_finds_nothing(model: str, cluster: str) -> None:
    """Of the larger one states lie in host memory, which the smaller one's machine does not state."""
    question, strategy = asked(model, cluster)
    if model == "llama-3-8b":
        question = replace(question, cluster=replace(question.cluster, host=None))
    num = fewest(question, strategy)
    assert num > 1
    assert search(on(question, num // 2)).best is None
    assert search(on(question, num)).best is not None


def test_more_memory_needs_no_more_accelerators() -> None:
    question, strategy = asked("llama-2-13b", "dgx-h100:1")
    roomy, same = asked("llama-2-13b", "dgx-h200:1")
    assert fewest(roomy, same) <= fewest(question, strategy)


def test_a_machine_that_cannot_grow_may_have_nothing(tmp_path: Path) -> None:
    cluster = load_cluster("local", tiny_profile(tmp_path / "profile.csv"))
    question = ask(load_model("bytes-5m"), cluster, tokens=1e6, seq_len=256, global_batch=8)
    strategy = Strategy(dp=2, num_microbatches=4, seq_len=256, precision="fp32", software=question.software)
    small = replace(question, cluster=replace(cluster, accelerator=replace(cluster.accelerator, memory_bytes=3.2e8)))
    found: Fit = fit(small, strategy)
    assert not found.prediction.fits
    assert found.changes == () and found.fewest_gpus is None and found.largest_micro_batch == 0


def test_what_fits_has_room_and_needs_no_help() -> None:
    question, strategy = asked(zero=3, recompute="full")
    found = fit(question, strategy)
    assert found.prediction.fits and found.changes == () and found.fewest_gpus is None
    assert found.room_bytes == found.prediction.usable_memory_bytes - sum(found.prediction.memory_bytes.values())
    assert found.largest_micro_batch >= found.largest_dividing_micro_batch >= 1


def test_a_batch_says_what_each_says() -> None:
    question, strategy = asked(zero=3)
    sizes = np.arange(1, 9)
    each = [predict(question, replace(strategy, micro_batch=int(m))).fits for m in sizes]
    assert list(fits(question, replace(strategy, micro_batch=sizes))) == each and True in each and False in each
