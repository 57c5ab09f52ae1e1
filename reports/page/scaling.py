"""Scaling: tokens per second and cost per token over accelerators, and the roofline of the matmuls."""

from __future__ import annotations

import numpy as np
import pandas as pd

from planner.counts import Change
from planner.goals import runs
from planner.offers import Point
from profiles.cost import peak_flop_per_s
from profiles.units import show, significant
from reports.compare import TERMS, share, shown
from reports.figures import roofline
from reports.figures import scaling as draw_scaling
from reports.figures.scaling import PASSES
from reports.matmuls import matmuls
from reports.page.findings import FLEET, Findings
from reports.page.values import Exhibit, Picture, Section, Table

MOST_MATMULS = 12
COST_TOKENS = 1e9
"""Tokens of which the curve states the cost."""


def scaling(found: Findings) -> Section:
    """Return what more accelerators give, and how near the matmuls come to what the machine can do."""
    first, last = found.points[0], found.points[-1]
    told = f"One count of {found.noun}s can be had."
    if first is not last:
        more, rate = last.num_gpus / first.num_gpus, _rate(last) / _rate(first)
        told = (f"From {first.num_gpus:,} to {last.num_gpus:,} {found.noun}s tokens/s grow {significant(rate)} times: "
                f"{share(rate / more)} of linear.")
    exhibits, rows = [_curve(found)], matmuls(found.question, found.plan.strategy)
    if len(rows):
        told += f" {matmuls_gist(rows)}"
        exhibits.append(_roofline(found, rows))
    return Section(key="scaling", title="Scaling", gist=told, exhibits=tuple(exhibits))


def matmuls_gist(rows: pd.DataFrame) -> str:
    """Return how near the matmuls of a step come to their peak, in a sentence."""
    peak_s = (rows["seconds"] * rows["share_of_peak"]).sum()
    return f"The matmuls reach {share(float(peak_s / rows['seconds'].sum()))} of their peak while they run."


def _rate(point: Point) -> float:
    assert point.sized.prediction is not None
    return point.sized.prediction.tokens_per_s


def _cost_per_token(point: Point) -> float | None:
    """Return dollars of a token (without a price accelerator-hours), failures with them; None where the run does not end."""
    cost = point.usd or point.gpu_hours
    return None if cost is None or not runs(point) else float(cost.p50) / point.sized.question.tokens


def _curve(found: Findings) -> Exhibit:
    noun, frame, lines = found.noun, [], []
    points = [p for p in found.points if _cost_per_token(p) is not None]
    unit = "USD" if any(p.usd is not None for p in points) else f"{noun}-hours"
    for p in points:
        prediction, cost = p.sized.prediction, _cost_per_token(p)
        assert prediction is not None and cost is not None
        frame.append((p.num_gpus, prediction.tokens_per_s, cost * COST_TOKENS, p.sized.change is not None, p is found.own))
        linear = _rate(p) / _rate(points[0]) * points[0].num_gpus / p.num_gpus
        lines.append((f"{p.num_gpus:,}", shown(prediction.tokens_per_s, "tokens/s"), share(linear), share(prediction.mfu),
                      significant(cost * COST_TOKENS), prediction.strategy.describe(), _change(p.sized.change)))
    columns = ["num_gpus", "tokens_per_s", "cost_per_token", "is_change", "is_chosen"]
    return Exhibit(
        title="Throughput and cost per token",
        picture=Picture(name="scaling", title="tokens per second and cost per token", figure=draw_scaling(
            pd.DataFrame(frame, columns=columns), f"{unit} per {show(COST_TOKENS, 'count')} tokens",
            f"{noun}s")) if frame else None,
        table=Table(
            head=(f"{noun}s", "tokens/s", "of linear", "MFU", f"{unit} per {show(COST_TOKENS, 'count')} tokens", "strategy",
                  "what changes"),
            words=("strategy", "what changes"), rows=tuple(lines), wide=True,
            strong=tuple(i for i, p in enumerate(points) if p is found.own),
        ),
        notes=(f"The same global batch at every count. Searched at each: the plan's schedule, degrees up to four times as "
               f"large or small, all recomputation. Tokens/s are those of an undisturbed step; cost is with failures of fleet "
               f"'{FLEET}'.", *(f"Left out, {reason}." for reason in found.left_out)),
    )


def _change(change: Change | None) -> str:
    """Return what differs from the strategy of the count before, and why that one is not kept."""
    if change is None:
        return ""
    if change.reason:
        return f"{change.what}: the one before {change.reason}"
    if change.slower <= 0:
        return f"{change.what}: the one before would be {share(-change.slower)} faster here, so more was to be found"
    return f"{change.what}: the one before is {share(change.slower)} slower, most in {TERMS.get(change.term, change.term)}"


def _roofline(found: Findings, rows: pd.DataFrame) -> Exhibit:
    accelerator = found.question.cluster.accelerator
    peaks = {str(t): peak_flop_per_s(accelerator, str(t)) for t in dict.fromkeys(rows["dtype"])}
    total = float(rows["seconds"].sum())
    lines = []
    for row in rows.head(MOST_MATMULS).to_dict("records"):
        shape = " x ".join(f"{row[name]:,.0f}" for name in ("groups", "m", "n", "k") if name != "groups" or row["groups"] != 1)
        lines.append((f"{row['part']}, {row['op']}", PASSES[row["pass"]], row["dtype"], shape, f"{row['times']:,.0f}",
                      significant(row["flop_per_byte"]), show(row["flop_per_s"], "flop_per_s"), share(row["share_of_peak"]),
                      share(row["seconds"] / total)))
    roof = np.minimum([peaks[t] for t in rows["dtype"]], rows["flop_per_byte"] * accelerator.memory_bytes_per_s)
    cached = " A dot above the slope finds its operands in caches." if (rows["flop_per_s"] > 1.001 * roof).any() else ""
    more = f"The {len(lines)} longest of {len(rows)} matmuls. " if len(rows) > len(lines) else ""
    return Exhibit(
        title="Roofline of the matmuls",
        picture=Picture(name="roofline", title="rate of each matmul over its intensity",
                        figure=roofline(rows, peaks, accelerator.memory_bytes_per_s)),
        table=Table(head=("matmul", "pass", "type", "m x n x k", "layers", "FLOP/byte", "rate", "of peak", "share of matmuls"),
                    words=("matmul", "pass", "type"), rows=tuple(lines), wide=True),
        notes=(f"{more}Shapes are those of one rank and one micro-batch, with their groups in front where there are several; "
               f"rates are those that every prediction is made of.{cached}",),
    )
