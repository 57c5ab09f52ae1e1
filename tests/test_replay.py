"""The replay of schedule tables against closed forms and an independent max-plus recurrence."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_cases import ONE_CHUNK

from simulator.estimate import send_delay_s
from simulator.replay import replay_table
from simulator.schedules import Action, build_schedule
from simulator.software import Software
from simulator.strategy import Strategy

names = st.sampled_from(ONE_CHUNK)


@given(names, st.integers(1, 8), st.integers(1, 16), st.integers(1, 64), st.integers(1, 64))
def test_uniform_stages_take_the_closed_form(name: str, p: int, m: int, forward: int, backward: int) -> None:
    """(p - 1 + m)(t_f + t_b), exactly (arXiv 2104.04473, section 2.2); eighths are exact in binary."""
    t_f, t_b = forward / 8, backward / 8
    spans = replay_table(build_schedule(name, p, m), lambda a: t_f if a.pass_ == "F" else t_b)
    assert max(s.end_s for s in spans) == (p - 1 + m) * (t_f + t_b)


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 6), st.sampled_from([1, 2, 3, 4]), st.integers(1, 64),
       st.integers(1, 64), st.integers(0, 4))
def test_chunks_cut_the_bubble(p: int, rounds: int, v: int, forward: int, backward: int, send: int) -> None:
    """(m v + p - 1) passes of a chunk, so the bubble is (p - 1) / (v m) of the work (arXiv 2104.04473, section 2.2.2), and
    a send for each way between two of the p v stages, there and back."""
    m, t_f, t_b, t_s = rounds * p, forward / 8 + 0.5, backward / 8 + 0.5, send / 8
    table = build_schedule("Interleaved1F1B", p, m, v)
    spans = replay_table(table, lambda a: t_f if a.pass_ == "F" else t_b, t_s)
    work = m * v * (t_f + t_b)
    strategy = Strategy(pp=p, chunks=v, num_microbatches=m, schedule="Interleaved1F1B")
    assert float(send_delay_s(strategy, t_s)) == (2 * (p * v - 1) * t_s if p > 1 else 0.0)
    bubble = max(s.end_s for s in spans) - work - 2 * (p * v - 1) * t_s
    assert bubble == (p - 1) * (t_f + t_b)
    assert bubble / work == pytest.approx((p - 1) / (v * m))


@given(st.sampled_from(["1F1B", "GPipe", "Interleaved1F1B"]), st.integers(2, 8), st.integers(1, 4), st.sampled_from([2, 3, 4]),
       st.integers(1, 16))
def test_ranks_that_wait_for_what_they_send_are_busy_with_it(name: str, p: int, rounds: int, v: int, send: int) -> None:
    m, v, t_s = rounds * p, v if name == "Interleaved1F1B" else 1, send / 128
    table = build_schedule(name, p, m, v)
    spans = replay_table(table, lambda a: 1.0 if a.pass_ == "F" else 2.0, t_s, waits=True)
    found = (max(s.end_s for s in spans) - 3.0 * (m * v + p - 1)) / t_s
    strategy = Strategy(pp=p, chunks=v, num_microbatches=m, schedule=name, software=Software(pp_overlap=False))
    expected = float(send_delay_s(strategy, 1.0))
    assert expected - (m + 3 * p if v > 1 else 0) <= found <= expected


def max_plus_end(name: str, p: int, m: int, seconds: dict[tuple[int, str], float], send: float) -> float:
    """Return the end of a schedule by recurrence over (stage, micro-batch), with no events and no table.

    An action starts when its stage's previous action and its neighbour's output are there. The previous action is
    written down from the definition of each schedule.
    """
    forward, backward = np.full((p, m), np.nan), np.full((p, m), np.nan)

    def f(s: int, i: int) -> float:
        if np.isnan(forward[s, i]):
            if name == "GPipe":
                before = f(s, i - 1) if i else 0.0
            else:
                before = (f(s, i - 1) if i else 0.0) if i < p - s else b(s, i - (p - s))
            arrived = f(s - 1, i) + send if s else 0.0
            forward[s, i] = max(before, arrived) + seconds[s, "F"]
        return float(forward[s, i])

    def b(s: int, i: int) -> float:
        if np.isnan(backward[s, i]):
            last = min(m - 1, i + p - s - 1) if name == "1F1B" else m - 1
            before = max(f(s, last), b(s, i - 1) if i else 0.0)
            arrived = b(s + 1, i) + send if s < p - 1 else 0.0
            backward[s, i] = max(before, arrived) + seconds[s, "B"]
        return float(backward[s, i])

    return max(b(s, m - 1) for s in range(p))


@given(names, st.integers(1, 6), st.integers(1, 10), st.integers(0, 3), st.data())
def test_uneven_stages_equal_the_max_plus_recurrence(name: str, p: int, m: int, send: int, data: st.DataObject) -> None:
    ticks = data.draw(st.lists(st.integers(1, 9), min_size=2 * p, max_size=2 * p))
    seconds = {(s, pass_): ticks[2 * s + i] / 4 for s in range(p) for i, pass_ in enumerate("FB")}
    spans = replay_table(build_schedule(name, p, m), lambda a: seconds[a.stage, a.pass_], send / 4)
    assert max(s.end_s for s in spans) == max_plus_end(name, p, m, seconds, send / 4)


def interleaved_end(p: int, m: int, v: int, seconds: dict[tuple[int, str], float], send: float) -> float:
    """Return the end of interleaved 1F1B by recurrence over a rank's k-th forward and backward.

    Micro-batches go round the chunks p at a time; a rank runs (v - 1) p + 2 (p - 1 - rank) forwards, then one forward
    and one backward in turn (arXiv 2104.04473, section 2.2.2; Megatron-LM's get_model_chunk_id).
    """
    total = m * v

    def number(chunk: int, microbatch: int) -> int:
        """Return when in a rank's order a chunk, counted from where the pass begins, sees a micro-batch."""
        return microbatch // p * p * v + chunk * p + microbatch % p

    def which(k: int) -> tuple[int, int]:
        return k % (p * v) // p, k // (p * v) * p + k % p

    def warm_up(rank: int) -> int:
        return min(total, (v - 1) * p + 2 * (p - 1 - rank))

    @cache
    def f(rank: int, k: int) -> float:
        warm, (chunk, microbatch) = warm_up(rank), which(k)
        before = (f(rank, k - 1) if k else 0.0) if k <= warm else b(rank, k - warm - 1)
        stage, arrived = chunk * p + rank, 0.0
        if stage:
            arrived = f((rank - 1) % p, number(chunk - (rank == 0), microbatch)) + send
        return max(before, arrived) + seconds[stage, "F"]

    @cache
    def b(rank: int, k: int) -> float:
        warm, (chunk, microbatch) = warm_up(rank), which(k)
        before = f(rank, warm + k) if warm + k < total else (b(rank, k - 1) if k else f(rank, total - 1))
        stage, arrived = (v - 1 - chunk) * p + rank, 0.0
        if stage < p * v - 1:
            arrived = b((rank + 1) % p, number(chunk - (rank == p - 1), microbatch)) + send
        return max(before, arrived) + seconds[stage, "B"]

    return max(b(rank, total - 1) for rank in range(p))


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.data())
def test_uneven_chunks_equal_the_max_plus_recurrence(p: int, rounds: int, v: int, send: int, data: st.DataObject) -> None:
    m = rounds * p
    ticks = data.draw(st.lists(st.integers(1, 9), min_size=2 * p * v, max_size=2 * p * v))
    seconds = {(s, pass_): ticks[2 * s + i] / 4 for s in range(p * v) for i, pass_ in enumerate("FB")}
    spans = replay_table(build_schedule("Interleaved1F1B", p, m, v), lambda a: seconds[a.stage, a.pass_], send / 4)
    assert max(s.end_s for s in spans) == interleaved_end(p, m, v, seconds, send / 4 * (p > 1))


def test_the_recurrence_sees_a_wrong_table() -> None:
    """Negative control: one forward moved before its turn changes the end."""
    table = build_schedule("1F1B", 3, 6)
    seconds = {(s, q): 1.0 + s for s in range(3) for q in "FB"}
    row = table[2]
    row.insert(0, row.pop(row.index(Action(2, "F", 3))))
    end = max(s.end_s for s in replay_table(table, lambda a: seconds[a.stage, a.pass_]))
    assert end != max_plus_end("1F1B", 3, 6, seconds, 0.0)


@given(names, st.integers(2, 8), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16), st.integers(0, 4))
def test_sends_of_uniform_stages_are_their_closed_form(
    name: str, p: int, m: int, forward: int, backward: int, send: int
) -> None:
    """Exact where a send takes no longer than the passes that it hides behind."""
    t_f, t_b, t_s = forward + 4.0, backward + 4.0, float(send)
    spans = replay_table(build_schedule(name, p, m), lambda a: t_f if a.pass_ == "F" else t_b, t_s)
    strategy = Strategy(pp=p, num_microbatches=m, schedule=name)
    assert max(s.end_s for s in spans) == (p - 1 + m) * (t_f + t_b) + float(send_delay_s(strategy, t_s))
