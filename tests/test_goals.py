"""Goals: deadlines, budgets, the front of days against dollars, counts of accelerators, offers and spot nodes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import headway
from planner.counts import Sized, changed, gpu_counts, on_count, searched, sweep
from planner.differences import differences
from planner.economics import Band
from planner.goals import NEAR, Goal, best, binding, front, nearest, runs, settled
from planner.offers import Offer, Point, break_even_preemptions, offers_of, point, preempted, why_not
from planner.predict import predict
from planner.question import Question, ask
from planner.space import Axes, brief_space, narrowed
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.goals_command import cases_of
from simulator.run.interval_curve import expected_goodput
from simulator.run.intervals import expected_s

ODDS = st.sampled_from(("p10", "p50", "p90"))
NARROW = ("pp=1,2", "zero=2,3", "recompute=none,full", "micro_batch=1,2", "order=tp-cp-dp-pp", "fewer=0/0", "schedule=1F1B",
          "context=ring")


@dataclass(frozen=True)
class Made:
    """A made-up point; `whole_days` is what a whole search would find."""

    num_gpus: int
    days: Band | None
    gpu_hours: Band | None
    usd: Band | None
    is_whole: bool = False
    whole_days: float = math.inf


def made(num: int, days: float, usd: float | None, spread: float = 1.2) -> Made:
    def band(value: float) -> Band:
        return Band(p10=value / spread, p50=value, p90=value * spread)

    return Made(num, band(days), band(days * 24 * num), None if usd is None else band(usd))


numbers = st.integers(1, 40)
made_points = st.lists(st.builds(made, st.integers(1, 64), numbers, numbers), min_size=1, max_size=12)


@given(made_points, ODDS)
def test_the_front_is_what_no_point_beats(points: list[Made], odds: str) -> None:
    def pair(p: Made) -> tuple[float, float]:
        return getattr(p.days, odds), getattr(p.usd, odds)

    def beats(a: Made, b: Made) -> bool:
        return all(x <= y for x, y in zip(pair(a), pair(b), strict=True)) and pair(a) != pair(b)

    unbeaten = {pair(p) for p in points if not any(beats(q, p) for q in points)}
    found = front(points, odds)
    assert [pair(p) for p in found] == sorted(unbeaten)


@given(made_points, numbers, numbers, ODDS)
def test_a_tighter_deadline_never_gives_fewer_accelerators(points: list[Made], one: int, other: int, odds: str) -> None:
    tight, loose = sorted((one, other))
    few, many = (best(points, Goal(deadline_days=d, odds=odds), "fewest") for d in (loose, tight))
    if many is not None:
        assert few is not None and few.num_gpus <= many.num_gpus


@given(made_points, numbers, numbers, st.one_of(st.none(), numbers))
def test_a_larger_budget_never_makes_the_best_slower(points: list[Made], one: int, other: int, deadline: int | None) -> None:
    small, large = (best(points, Goal(budget_usd=b, deadline_days=deadline), "fastest") for b in sorted((one, other)))
    if small is not None:
        assert large is not None and large.days is not None and small.days is not None
        assert large.days.p50 <= small.days.p50


@given(made_points, st.one_of(st.none(), numbers), st.one_of(st.none(), numbers), ODDS)
def test_the_best_meets_the_goal_and_the_nearest_breaks_least(
    points: list[Made], deadline: int | None, budget: int | None, odds: str
) -> None:
    goal = Goal(deadline_days=deadline, budget_usd=budget, odds=odds)

    def meets(p: Made) -> bool:
        return (deadline is None or getattr(p.days, odds) <= deadline) and (budget is None or getattr(p.usd, odds) <= budget)

    meeting = [p for p in points if meets(p)]
    for wanted in ("fewest", "cheapest", "fastest"):
        found = best(points, goal, wanted)
        assert (found in meeting) if meeting else (found is None)
    close = nearest(points, goal)
    assert close is not None
    if meeting:
        assert meets(close)
    else:
        assert len(goal.excess(close)) == min(len(goal.excess(p)) for p in points)
        said = binding(points, goal)
        alone = [best(points, g, "fastest") for g in (replace(goal, budget_usd=None), replace(goal, deadline_days=None))]
        assert ("deadline" in said) == (deadline is not None and (alone[0] is None or "together" in said))
        assert ("budget" in said) == (budget is not None and (alone[1] is None or "together" in said))


@given(made_points, numbers)
def test_better_odds_never_take_fewer_accelerators(points: list[Made], deadline: int) -> None:
    even, safe = (best(points, Goal(deadline_days=deadline, odds=odds), "fewest") for odds in ("p50", "p90"))
    if safe is not None:
        assert even is not None and even.num_gpus <= safe.num_gpus


@given(st.lists(st.tuples(st.floats(18, 22), st.floats(1 - NEAR / 2, 1.0)), min_size=1, max_size=8), st.floats(18, 22))
@example([(20.2, 0.98), (19.0, 1.0)], 20.0)
def test_whole_searches_decide_as_if_all_were_searched_whole(found: list[tuple[float, float]], deadline: float) -> None:
    points = [replace(made(i + 1, days, 1.0), whole_days=days * share) for i, (days, share) in enumerate(found)]

    def whole(p: Made) -> Made:
        return replace(made(p.num_gpus, p.whole_days, 1.0), is_whole=True)

    def refine(one: Made, now: Sequence[Made]) -> Sequence[Made]:
        assert not one.is_whole
        return [whole(p) if p is one else p for p in now]

    goal = Goal(deadline_days=deadline)
    decided = best(settled(points, goal, "fewest", refine), goal, "fewest")
    oracle = best([whole(p) for p in points], goal, "fewest")
    assert (decided.num_gpus if decided else None) == (oracle.num_gpus if oracle else None)


def test_points_without_a_price_are_ranked_by_hours_behind_those_with_one() -> None:
    dear, free, slow = made(8, 10, 99.0), made(8, 10, None), made(8, 20, None)
    assert best([free, dear], Goal(), "cheapest") is dear
    assert best([slow, free], Goal(), "cheapest") is free
    assert front([free, dear]) == (dear,) and front([free, slow]) == (free,)
    assert best([free], Goal(budget_usd=1e9), "fastest") is None
    assert not runs(Made(8, None, None, None))


@pytest.mark.parametrize(("name", "most", "counts"), [
    ("dgx-h100:16", None, (8, 16, 24, 32, 48, 64, 96, 128)), ("dgx-h100:16", 40, (8, 16, 24, 32, 40)),
    ("dgx-h100:1", None, (8,)), ("dgx-h100:16", 4, (4,)), ("dgx-h100:5", 999, (8, 16, 24, 32, 40)),
])
def test_counts_are_whole_nodes(name: str, most: int | None, counts: tuple[int, ...]) -> None:
    assert gpu_counts(load_cluster(name), most) == counts


def test_given_counts_are_taken_as_they_are() -> None:
    assert gpu_counts(load_cluster("dgx-h100:4"), None, (16, 8, 16)) == (8, 16)
    with pytest.raises(BadInput, match="counts: 64 accelerators"):
        gpu_counts(load_cluster("dgx-h100:4"), None, (64,))


def question(name: str = "dgx-h100:8", model: str = "llama-3-8b") -> Question:
    return ask(load_model(model), load_cluster(name), tokens=1e12, seq_len=4096, global_batch=256)


def small(q: Question) -> Axes:
    return narrowed(brief_space(q), list(NARROW), q)


@pytest.fixture(scope="module")
def swept() -> tuple[Sized, ...]:
    return sweep(question(), (8, 16, 24, 32, 64), None, small)


def test_the_batch_stays_at_every_count(swept: tuple[Sized, ...]) -> None:
    running = [s for s in swept if s.prediction is not None]
    assert [s.num_gpus for s in running] == [8, 16, 32, 64]
    for s in running:
        assert s.prediction is not None
        assert s.prediction.strategy.global_batch == 256 and s.prediction.strategy.world_size == s.num_gpus
        assert s.prediction.gpu_hours == pytest.approx(s.prediction.days * 24 * s.num_gpus)


def test_a_count_at_which_nothing_divides_says_so(swept: tuple[Sized, ...]) -> None:
    assert swept[2].prediction is None
    assert swept[2].reason == "nothing divides: dp 24 x micro-batch 1 = 24 does not divide the global batch of 256"


def test_a_count_at_which_nothing_fits_says_by_how_much() -> None:
    found = searched(on_count(question(model="llama-3.1-405b"), 8), None, small)
    assert found.prediction is None
    assert found.reason.startswith("does not fit: needs ") and "79.6 GiB usable on H100-SXM5-80GB" in found.reason


def test_a_change_of_strategy_says_what_keeping_it_would_cost(swept: tuple[Sized, ...]) -> None:
    after = swept[4]
    assert after.prediction is not None
    other = searched(on_count(question(), 16), None, lambda q: narrowed(small(q), ["tp=4", "recompute=full"], q))
    assert other.prediction is not None
    change = changed(other.prediction, after.prediction, after.question)
    assert change is not None and "tp 4 -> 1" in change.what and "recompute full -> none" in change.what
    old = other.prediction.strategy
    dp = 64 // int(old.tp * old.cp * old.pp)
    kept = replace(old, dp=dp, num_microbatches=256 // (dp * int(old.micro_batch)))
    there = predict(after.question, kept)
    assert change.slower == pytest.approx(there.step_time_s / after.prediction.step_time_s - 1, rel=0.05)
    growth = {term: there.breakdown_s[term] - after.prediction.breakdown_s[term] for term in there.breakdown_s}
    assert change.kept_s - change.now_s == pytest.approx(max(growth.values()), rel=0.1)
    busy = replace(after.prediction, breakdown_s=after.prediction.breakdown_s | {"compute": 10.0})
    change = changed(other.prediction, busy, after.question)
    assert change is not None and change.term == "exposed_tp"
    assert changed(after.prediction, after.prediction, after.question) is None


def test_a_strategy_that_cannot_be_kept_says_the_rule(swept: tuple[Sized, ...]) -> None:
    first = swept[0].prediction
    assert first is not None
    wide = replace(first, strategy=replace(first.strategy, tp=8, dp=1, micro_batch=1))
    change = changed(wide, first, on_count(question(), 24))
    assert change is not None and change.reason.startswith("dp 3 x micro-batch 1 = 3 does not divide")
    thick = replace(first, strategy=replace(first.strategy, tp=1, pp=5, dp=1))
    change = changed(thick, first, on_count(question(), 24))
    assert change is not None and change.reason == "tp 1 x cp 1 x pp 5 = 5 does not divide 24 accelerators"
    assert differences(first.strategy, replace(first.strategy, dp=99, num_microbatches=1)) == ""


def test_a_provider_s_own_machine_has_its_own_prices() -> None:
    aws = offers_of("p5:2", load_cluster("p5:2"), (), None, 1.0)
    assert {o.term for o in aws} >= {"on-demand", "reserved-3y"} and all("AWS" in o.price.provider for o in aws if o.price)
    anyone = offers_of("dgx-h100:2", load_cluster("dgx-h100:2"), (), None, 2.0)
    assert {o.term for o in anyone} >= {"on-demand", "reserved-3y", "contract", "spot"}
    assert [o.preemptions_per_node_day for o in anyone if o.term == "spot"] == [2.0]
    assert sum(o.preemptions_per_node_day for o in anyone) == 2.0
    assert [o.price.usd_per_gpu_hour for o in anyone if o.term == "on-demand" and o.price] == [2.95]
    assert [o.term for o in offers_of("p5", load_cluster("p5"), ("reserved",), None, 1.0)] == ["reserved-3y"]
    assert offers_of("p5", load_cluster("p5"), ("spot",), None, 1.0) == ()
    assert [o.price for o in offers_of("frontier", load_cluster("frontier"), ("spot",), None, 1.0)] == [None]


def test_preemptions_lower_goodput_by_daly_s_closed_form(swept: tuple[Sized, ...]) -> None:
    sized, cases = swept[1], cases_of("none")
    assert sized.prediction is not None
    case = preempted(cases(sized.question, sized.prediction), 3.0)
    t, c = case.training, case.checkpoints
    # 2.5 min until processes run again, 2 min for another node: the fleet 'published'
    interval_s = c.interval_steps * t.undisturbed_s / t.num_steps
    whole = expected_s(t.undisturbed_s, interval_s, c.stall_s, 270.0 + c.load_s, 86400 / 3 / 2)
    assert expected_goodput(t, c, case.fleet, c.interval_steps) == pytest.approx(t.num_steps * t.step_time_s / whole)
    assert preempted(case, 0.0) is case


def test_a_spot_offer_pays_up_to_its_break_even(swept: tuple[Sized, ...]) -> None:
    offer = next(o for o in offers_of("dgx-h100:8", load_cluster("dgx-h100:8"), ("spot",), None, 1.0))
    cases = cases_of("none")
    costs = [point(replace(offer, preemptions_per_node_day=rate), swept[1], cases) for rate in (0.1, 1.0, 10.0)]
    usd = [float(p.usd.p50) for p in costs if p.usd is not None]
    assert len(usd) == 3 and usd == sorted(usd) and usd[0] < usd[2]
    rate = break_even_preemptions(costs[0], usd[1], "p50", cases)
    assert rate == pytest.approx(1.0, rel=1e-2)
    assert break_even_preemptions(costs[0], usd[0] / 2, "p50", cases) is None
    lost = point(replace(offer, preemptions_per_node_day=1e4), swept[1], cases)
    assert not runs(lost) and "does not come to its end: interrupted every" in lost.reason


def test_a_loser_says_why_with_a_number(swept: tuple[Sized, ...]) -> None:
    cases = cases_of("none")
    cluster = load_cluster("dgx-h100:8")
    demand, spot = (offers_of("dgx-h100:8", cluster, (term,), None, 0.0)[0] for term in ("on-demand", "spot"))
    cheap, dear, slow = point(spot, swept[3], cases), point(demand, swept[3], cases), point(demand, swept[0], cases)
    assert demand.price and spot.price
    more = demand.price.usd_per_gpu_hour / spot.price.usd_per_gpu_hour - 1
    assert why_not(dear, cheap, Goal(), "cheapest") == f"{more:.0%} dearer"
    assert slow.days is not None and dear.usd is not None
    assert why_not(slow, dear, Goal(deadline_days=float(slow.days.p50) - 12), "cheapest") == "12 days late"
    assert why_not(dear, cheap, Goal(budget_usd=float(dear.usd.p50) - 1e4), "fastest") == "10 kUSD over the budget"
    unpriced = point(Offer(cluster="x", price=None), swept[3], cases)
    assert why_not(unpriced, cheap, Goal(), "cheapest").startswith("no price known: ")
    unfit = Point(offer=demand, sized=swept[2], reason=swept[2].reason)
    assert why_not(unfit, cheap, Goal(), "cheapest") == swept[2].reason


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        headway.main(arguments)
    out, err = capfd.readouterr()
    return int(stopped.value.code or 0), out, err


ASKED = ("--tokens", "1T", "--seq-len", "4096", "--global-batch", "256", *(w for text in NARROW for w in ("--search", text)))
JOB = ("plan", "llama-3-8b", "dgx-h100:4", *ASKED)


def test_a_deadline_makes_a_plan_on_the_fewest(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capfd, *JOB, "--deadline", "90d", "--page", "--json")
    data = json.loads(out)
    assert code == 0 and data["is_met"] and data["goal"]["wanted"] == "fewest"
    counts = {p["num_gpus"]: p["days"]["p50"] for p in data["points"] if p["days"]}
    assert data["chosen"]["num_gpus"] == min(n for n, days in counts.items() if days <= 90)
    assert data["best"]["days"] == pytest.approx(data["chosen"]["days"]["p50"], rel=1e-6)
    plan = yaml.safe_load((tmp_path / "plan.yaml").read_text())
    assert plan["question"]["num_gpus"] == data["chosen"]["num_gpus"]
    figure = (tmp_path / "plan.svg").read_text()
    assert "chosen" in figure and "another strategy" in figure
    again = json.loads(run(capfd, *JOB, "--deadline", "90d", "--page", "--json")[1])
    assert again.pop("search_seconds") > 0 and data.pop("search_seconds") > 0
    assert again == data and (tmp_path / "plan.svg").read_text() == figure
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text()) == plan


def test_a_budget_below_the_cheapest_is_answered_with_the_nearest(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, *JOB, "--budget", "10k", "--deadline", "100d", "--json")
    data = json.loads(out)
    assert code == 1 and not data["is_met"]
    assert data["binding"].startswith("budget: 10 kUSD is less than the cheapest plan costs")
    assert err.count("\n") == 1 and "budget" in err
    inside = [p for p in data["points"] if p["days"] and p["days"]["p50"] <= 100]
    assert data["chosen"]["usd"]["p50"] == min(p["usd"]["p50"] for p in inside)
    code, out, _ = run(capfd, *JOB, "--budget", "10k")
    assert code == 1 and "Not possible: budget" in out and "The nearest plan: " in out


def test_machines_stand_side_by_side_with_the_reason_each_lost(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    several = ("plan", "llama-3-8b", "--clusters", "dgx-h100:2,p5:2,frontier:2", *ASKED, "--preemptions-per-day", "1")
    code, out, _ = run(capfd, *several, "--json")
    data = json.loads(out)
    rows = data["considered"]
    assert code == 0 and {r["cluster"] for r in rows} == {"dgx-h100:2", "p5:2", "frontier:2"}
    priced = [r for r in rows if r["usd"]]
    assert data["chosen"]["usd"]["p50"] == min(r["usd"]["p50"] for r in priced)
    assert all(("dearer" in r["reason"]) != r["is_chosen"] for r in priced)
    free = next(r for r in rows if not r["usd"])
    assert free["cluster"] == "frontier:2" and free["gpu_hours"]["p50"] > 0 and "no price known" in free["reason"]
    code, out, _ = run(capfd, *several, "--terms", "reserved,spot", "--verbose")
    assert code == 0 and "Considered" in out and "no price known" in out
    assert "on-demand" not in out.split("Assumed")[0]
    code, out, _ = run(capfd, "plan", "llama-3-8b", "frontier:2", *ASKED, "--max-gpus", "16")
    assert code == 0 and "no price known" in out and "GPU-hours" in out


@pytest.mark.parametrize(("given", "says"), [
    (("dgx-h100:2", "--deadline", "30"), "deadline: '30'"), (("dgx-h100:2", "--budget", "5 EUR"), "budget: '5 EUR'"),
    (("dgx-h100:2", "--max-gpus", "0"), "max_gpus"), (("dgx-h100:2", "--counts", "8,x"), "counts"),
    (("dgx-h100:2", "--counts", "99"), "counts: 99"), ((), "cluster: is missing"),
    (("dgx-h100:2", "--terms", "weekly"), "terms: 'weekly'"),
    (("dgx-h100:2", "--odds", "p95", "--budget", "1M"), "odds: 'p95'"),
    (("dgx-h100:2", "--odds", "p90"), "odds: goes with"), (("frontier:2", "--budget", "1M"), "budget: no price known"),
    (("--clusters", "dgx-h100:2,p5:2", "--price", "2 USD/h"), "price: '2 USD/h'"),
    (("--clusters", "dgx-h100:2,nowhere"), "'nowhere'"), (("dgx-h100:2", "--search", "tq=1"), "search: 'tq'"),
    (("dgx-h100:2", "--deadline", "9d", "--failures", "nobody"), "fleet: 'nobody'"),
    (("dgx-h100:2", "--terms", "spot", "--preemptions-per-day", "-1"), "preemptions_per_day"),
])
def test_a_mistake_is_one_line(
    given: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, "plan", "llama-3-8b", *given, "--tokens", "1T")
    assert code == 2 and says in err and err.count("\n") == 1 and not out
    assert not list(tmp_path.iterdir())
