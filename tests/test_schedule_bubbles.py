"""How long a table leaves ranks idle, and what it holds, against the published formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from held_laws import most_held
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.schedules import SCHEDULES, Action, Table, build_schedule, needs, passes, results

ticks = st.integers(1, 32)
ranks = st.sampled_from([1, 2, 3, 4, 8])


@dataclass
class Played:
    """Per rank: when it starts, when it ends, how long it works."""

    starts: list[float]
    ends: list[float]
    works: list[float]

    @property
    def bubble(self) -> float:
        """The most that a rank is idle from the first start to the last end."""
        return max(self.ends) - min(self.works)

    @property
    def idle_inside(self) -> float:
        """The most that a rank is idle between its own start and end."""
        return max(e - s - w for s, e, w in zip(self.starts, self.ends, self.works, strict=True))


def play(table: Table, num_stages: int, seconds: Callable[[Action], float]) -> Played:
    """Run each action as soon as its rank is free and what it needs is there."""
    there: dict[Action, float] = {}
    position, free = [0] * len(table), [0.0] * len(table)
    starts, works = [-1.0] * len(table), [0.0] * len(table)
    while any(i < len(row) for i, row in zip(position, table, strict=True)):
        for rank, row in enumerate(table):
            while position[rank] < len(row):
                action = row[position[rank]]
                if not all(n in there for n in needs(action, num_stages)):
                    break
                start = max([free[rank], *(there[n] for n in needs(action, num_stages))])
                starts[rank] = start if starts[rank] < 0 else starts[rank]
                free[rank] = start + seconds(action)
                works[rank] += seconds(action)
                there.update(dict.fromkeys(results(action), free[rank]))
                position[rank] += 1
    return Played(starts, free, works)


def played(name: str, p: int, m: int, v: int, f: float, i: float, w: float, pair: float = 0.0) -> Played:
    """Play a schedule whose passes take f, i, w and i + w; a pair `pair`."""
    seconds = {"F": f, "I": i, "W": w, "B": i + w, "OVERLAP_F_B": pair}
    return play(build_schedule(name, p, m, v), p * v, lambda a: seconds[a.pass_])


@given(st.sampled_from(["GPipe", "1F1B"]), ranks, st.integers(1, 20), ticks, ticks)
def test_bubble_of_one_stage_a_rank(name: str, p: int, m: int, f: int, b: int) -> None:
    """(p - 1) / (m + p - 1) of the step (arXiv 2104.04473, section 2.2.1), whatever F and B take."""
    done = played(name, p, m, 1, f, b, 0)
    assert done.bubble / max(done.ends) == pytest.approx((p - 1) / (m + p - 1))


@given(st.sampled_from(["Interleaved1F1B", "LoopedBFS"]), ranks, st.integers(1, 4), st.integers(1, 4), ticks, ticks)
def test_chunks_cut_the_bubble(name: str, p: int, rounds: int, v: int, f: int, b: int) -> None:
    """(p - 1) / (v m + p - 1) of the step (arXiv 2104.04473, section 2.2.2; arXiv 2211.05953)."""
    m = rounds * p
    done = played(name, p, m, v, f, b, 0)
    assert done.bubble / max(done.ends) == pytest.approx((p - 1) / (v * m + p - 1))


@given(ranks, st.integers(1, 4), st.integers(1, 4), ticks, ticks, ticks)
def test_weight_gradients_fill_the_bubble(p: int, rounds: int, v: int, f: int, i: int, w: int) -> None:
    """(p - 1) (F + I - W) (arXiv 2401.10241, for one chunk), of passes of a chunk: 1/v as long for v chunks."""
    name, m = ("ZBH1" if v == 1 else "InterleavedZeroBubble"), rounds * p
    assume(w <= f and w <= i)
    assert played(name, p, m, v, f, i, w).bubble == (p - 1) * (f + i - w)


@given(ranks, st.integers(0, 9), ticks)
def test_zbv_has_no_bubble_inside(p: int, more: int, t: int) -> None:
    """Where F, I and W take equally long and micro-batches are enough (arXiv 2401.10241, section 6)."""
    done = played("ZBV", p, 2 * p - 1 + more, 2, t, t, t)
    assert done.idle_inside == 0
    assert done.bubble == (p - 1) * t


@given(ranks, st.integers(0, 9), ticks, ticks, st.data())
def test_bubble_of_dual_pipe_v(p: int, more: int, f: int, w: int, data: st.DataObject) -> None:
    """(p - 1) (F&B + B - 3 W), p being half of the stages (github.com/deepseek-ai/DualPipe), where I takes as long as F."""
    assume(w <= f)
    pair = data.draw(st.integers(f + w, 2 * f + w))
    done = played("DualPipeV", p, 2 * p + more, 2, f, f, w, pair)
    assert max(max(done.ends) - work for work in done.works) == (p - 1) * (pair + (f + w) - 3 * w)


@given(st.sampled_from(sorted(SCHEDULES)), ranks, st.integers(1, 40), st.integers(1, 4))
def test_most_held_is_what_is_published(name: str, p: int, m: int, v: int) -> None:
    """Micro-batches in a chunk. All: arXiv 1811.06965, 2211.05953. Interleaved: Megatron-LM's warm-up, and one. Zero bubble:
    the p of the first rank of 1F1B on all (arXiv 2401.10241), 2 p halves for a V (section 6), and one more for
    DualPipeV (github.com/deepseek-ai/DualPipe). Fewer where there are too few micro-batches."""
    v = SCHEDULES[name].chunks or v
    assume(SCHEDULES[name].suits(p, m, v))
    group = m // max(1, m // p)
    published = {
        "GPipe": lambda r: m,
        "LoopedBFS": lambda r: m * v,
        "1F1B": lambda r: min(m, p - r),
        "Interleaved1F1B": lambda r: min(m * v, (v - 1) * group + 2 * (p - 1 - r) + 1),
        "ZBH1": lambda r: min(m, p),
        "InterleavedZeroBubble": lambda r: min(m * v, (v - 1) * group + p),
        "ZBV": lambda r: min(2 * m, m + 1 + r, 2 * p),
        "DualPipeV": lambda r: 2 * p + 1,
    }
    assert most_held(build_schedule(name, p, m, v)) == [published[name](r) for r in range(p)]


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.data())
def test_most_held_weighs_stages_and_what_weight_gradients_need(
    name: str, p: int, m: int, v: int, data: st.DataObject
) -> None:
    """Against a count by sets, which knows nothing of sums."""
    v = SCHEDULES[name].chunks or v
    if not SCHEDULES[name].suits(p, m, v):
        m = 2 * p * m
    sizes = st.lists(st.integers(0, 9), min_size=p * v, max_size=p * v)
    whole, rest = data.draw(sizes), data.draw(sizes)
    table = build_schedule(name, p, m, v)
    for rank, row in enumerate(table):
        before: set[tuple[int, int]] = set()
        after: set[tuple[int, int]] = set()
        peak = 0
        for action in (a for slot in row for a in passes(slot)):
            key = (action.stage, action.microbatch)
            if action.pass_ == "F":
                before.add(key)
            elif action.pass_ == "W":
                after.remove(key)
            else:
                before.remove(key)
                after |= {key} if action.pass_ == "I" else set()
            peak = max(peak, sum(whole[s] for s, _ in before) + sum(rest[s] for s, _ in after))
        assert not before and not after
        assert most_held(table, whole, rest)[rank] == peak


def test_what_weight_gradients_need_is_less() -> None:
    """Were nothing kept for W, ZB-H1 would hold what 1F1B holds."""
    assert most_held(build_schedule("ZBH1", 4, 9), rest=[0] * 4) == [4, 3, 2, 1]
