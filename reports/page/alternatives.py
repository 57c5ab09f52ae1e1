"""The alternatives: cost against time of more and fewer accelerators, what came next, and why the others lost."""

from __future__ import annotations

import math

import pandas as pd

from planner.goals import front, runs
from planner.predict import Prediction
from profiles.units import show, significant
from reports.compare import TERMS, per_cent, prediction_from_dict, share, shown, span
from reports.figures import PARETO_COLUMNS, pareto
from reports.figures import alternatives as draw_alternatives
from reports.page.findings import FLEET, Brief, Findings
from reports.page.values import Exhibit, Picture, Section, Table
from reports.page.words import days, three, usd


def alternatives(found: Findings) -> Section:
    """Return what else could be done."""
    exhibits = [_pareto(found), _considered(found, _others(found))]
    if found.plan.rejected:
        exhibits += _rejected(found)
    return Section(key="alternatives", title="Alternatives", gist=alternatives_gist(found), exhibits=tuple(exhibits))


def alternatives_gist(found: Brief) -> str:
    """Return how the runners-up stand to the plan, in a sentence or two."""
    others, p = _others(found), found.prediction
    if not others:
        return "This plan holds one strategy and no runners-up."
    close = sum(o.p10_s <= p.p90_s for o in others)
    return (f"Fastest of {found.plan.strategies_priced:,} priced strategies; the next is "
            f"{share(max(0.0, others[0].step_time_s / p.step_time_s - 1))} slower. {close} of the {len(others)} runners-up "
            f"{'has' if close == 1 else 'have'} a P10 below the chosen one's P90: where spreads overlap, measure before "
            "you choose.")


def _others(found: Brief) -> list[Prediction]:
    return [prediction_from_dict(data, f"plan: runners_up.{i}") for i, data in enumerate(found.plan.runners_up)]


def _pareto(found: Findings) -> Exhibit:
    """Return the points that run: cost against time, and what changes from one to the next."""
    able = [p for p in found.points if runs(p)]
    priced = any(p.usd is not None for p in able)
    best = front(able)
    rows, lines = [], []
    for p in able:
        cost = p.usd if priced else p.gpu_hours
        assert p.days is not None and cost is not None and p.gpu_hours is not None and p.sized.prediction is not None
        low, middle, high = three(p.days)
        rows.append((f"{found.question.cluster.name}, {p.offer.term}", p.num_gpus, middle, low,
                     high if math.isfinite(high) else middle, float(cost.p50), p.sized.change is not None, p in best,
                     p is found.own))
        lines.append((
            f"{p.num_gpus:,}", significant(middle), significant(low), significant(high), show(float(p.gpu_hours.p50), "count"),
            usd(None if p.usd is None else float(p.usd.p50)), "yes" if p in best else "no",
            p.sized.prediction.strategy.describe(),
        ))
    left_out = tuple(f"Left out, {reason}." for reason in found.left_out)
    if not rows:
        return Exhibit(title="Cost against time", notes=("No count comes to its end on this fleet.", *left_out))
    own = next((i for i, p in enumerate(able) if p is found.own), None)
    return Exhibit(
        title="Cost against time",
        prose=(f"More and fewer {found.noun}s at the same price and global batch, each with the best of a small space around "
               "the plan's strategy; this plan's own count keeps its strategy. `headway plan --deadline 30d` or `--budget 5M` "
               "searches for a goal.",),
        picture=Picture(name="pareto", title="cost against days", figure=pareto(
            pd.DataFrame(rows, columns=list(PARETO_COLUMNS)), "USD" if priced else "GPU-hours")),
        table=Table(head=(f"{found.noun}s", "days", "P10", "P90", f"{found.noun}-hours", "cost", "front", "strategy"),
                    words=("front", "strategy"), rows=tuple(lines), strong=() if own is None else (own,), wide=True),
        notes=(f"Days with failures of fleet '{FLEET}' and checkpoints in closed form. On the front: nothing is both faster "
               "and cheaper.", *left_out),
    )


def _considered(found: Findings, others: list[Prediction]) -> Exhibit:
    p, noun = found.prediction, found.noun
    rows = []
    for i, o in enumerate((p, *others)):
        rows.append((
            "chosen" if i == 0 else str(i), o.strategy.describe(), shown(o.step_time_s, "s"), span(o.p10_s, o.p90_s, "s"),
            significant(o.tokens_per_s_per_gpu, 4), share(o.mfu), shown(o.peak_memory_bytes, "bytes"), days(o.days), usd(o.usd),
            "-" if i == 0 else per_cent(o.step_time_s / p.step_time_s - 1), _reason(o, p) if i else "fastest of those that fit"
            if others else "given",
        ))
    frame = pd.DataFrame([(o.p10_s, o.step_time_s, o.p90_s) for o in (p, *others)], columns=["p10_s", "step_time_s", "p90_s"])
    return Exhibit(
        title="Considered",
        picture=Picture(name="alternatives", title="step time of the alternatives", figure=draw_alternatives(frame))
        if others else None,
        table=Table(head=("", "strategy", "step time", "P10 to P90", f"tokens/s per {noun}", "MFU", "peak memory",
                          "undisturbed", "cost", "slower", "reason"),
                    words=("", "strategy", "reason"), rows=tuple(rows), strong=(0,), wide=True),
    )


def _reason(other: Prediction, chosen: Prediction) -> str:
    """Return the term of the step by which a strategy loses most."""
    more = {t: s - chosen.breakdown_s.get(t, 0.0) for t, s in other.breakdown_s.items()}
    term = max(more, key=lambda t: more[t])
    return f"{shown(more[term], 's')} more {TERMS[term]}" if more[term] > 1e-4 * chosen.step_time_s else "as fast"


def _rejected(found: Findings) -> list[Exhibit]:
    plan = found.plan
    counts = Table(head=("rule that was broken", "strategies"), words=("rule that was broken",),
                   rows=tuple((rule, f"{count:,}") for rule, count in plan.rejected.items()))
    examples = Table(head=("strategy", "rule", "reason"), words=("strategy", "rule", "reason"), wide=True,
                     rows=tuple((r["strategy"], r["rule"], r["reason"]) for r in plan.rejected_examples))
    return [Exhibit(title=f"Left out, of {plan.strategies_total:,} strategies", table=counts),
            Exhibit(title=f"The first {len(plan.rejected_examples)}, with their reason", table=examples, folded=True)]
