"""The pieces of the page that an answer fills: those of the report, without any inline style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from planner.offers import Point
from planner.question import Question
from profiles.units import significant
from reports.compare import share
from reports.figures import PARETO_COLUMNS, pareto
from reports.page.html import environment
from reports.page.values import Exhibit, Picture, Table, Verdict
from reports.page.verdict import verdict_of
from reports.page.why import memory_of, time_of
from reports.page.words import days, three, usd

LATEST_DAYS = 1e6
"""Where a bar ends whose P90 does not."""


def of_answer(point: Point, question: Question) -> dict[str, str]:
    """Return verdict, time and memory of a point as HTML, and the verdict in a few words."""
    p, bill = point.sized.prediction, point.bill
    if p is None or bill is None:
        word = "Does not fit" if p is None else "Does not end"
        said = Verdict(title="", word=word, good=False, line=f"{point.reason}.", facts=())
    else:
        said = verdict_of(question, p, bill)
    short = [days(float(bill.days.p50)), usd(float(bill.usd.p50)) if bill.usd else ""] if bill else []
    found = {"verdict": _html("answer", said), "short": " · ".join(filter(None, [said.word, *short]))}
    return found if p is None else found | {"time": _html("exhibit", time_of(p)), "memory": _html("exhibit", memory_of(p))}


def of_sizes(points: Sequence[Point], best: Sequence[Point], num_gpus: int) -> str:
    """Return days against dollars on several numbers of accelerators as HTML; nothing where the run ends on none."""
    priced = any(p.usd is not None for p in points)
    rows, lines = [], []
    for p in points:
        cost, prediction = p.usd if priced else p.gpu_hours, p.sized.prediction
        if p.days is None or cost is None or prediction is None:
            continue
        low, middle, high = three(p.days)
        paid = float(cost.p50)
        rows.append((p.offer.cluster.split(":")[0], p.num_gpus, middle, low, min(high, LATEST_DAYS), paid, False, p in best,
                     p.num_gpus == num_gpus))
        lines.append((f"{p.num_gpus:,}", days(middle), usd(paid) if priced else f"{significant(paid, 4)} h",
                      share(prediction.mfu), prediction.strategy.describe()))
    if not rows:
        return ""
    unit = "USD" if priced else "GPU-hours"
    return _html("exhibit", Exhibit(
        picture=Picture(name="sizes", title=f"days against {unit}",
                        figure=pareto(pd.DataFrame(rows, columns=list(PARETO_COLUMNS)), unit)),
        table=Table(head=("GPUs", "days", "cost", "MFU", "strategy"), words=("strategy",), rows=tuple(lines), wide=True,
                    strong=tuple(i for i, row in enumerate(rows) if row[-1])),
    ))


def _html(macro: str, value: Any) -> str:
    """Return a value of the report as HTML that a strict Content-Security-Policy lets pass."""
    return plain(str(getattr(environment().get_template("exhibit.html.j2").module, macro)(value)))


def plain(html: str) -> str:
    """Return HTML whose styles are attributes of SVG or, where they colour a mark in a table, the class of the colour."""
    def attributes(style: re.Match[str]) -> str:
        pairs = [pair.strip().split(": ", 1) for pair in style[1].split(";") if ": " in pair]
        found = []
        for name, value in pairs:
            if name == "background":
                colour = re.search(r"--(\w+)", value)
                found.append(f'class="mark {colour[1]}"' if colour else "")
            else:
                found.append(f'width="{value.removesuffix("px")}"' if name == "max-width" else f'{name}="{value}"')
        return " ".join(found)

    return re.sub(r'style="([^"]*)"', attributes, html)
