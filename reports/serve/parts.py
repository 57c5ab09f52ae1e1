"""The pieces of the page that an answer fills: verdict, figures with their tables, as HTML without any inline style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from planner.economics import Band
from planner.offers import Point
from planner.predict import Prediction
from planner.question import Question
from profiles.units import show, significant
from reports import figures
from reports.compare import ROUNDING_S, TERMS, share, shown, span
from reports.goal_figures import COLUMNS, pareto
from reports.page import MEMORY_NAMES
from reports.page import _days as days_text


@cache
def environment() -> Environment:
    """Return where the templates of the page are found."""
    return Environment(loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True)


def of_answer(point: Point, question: Question) -> dict[str, str]:
    """Return verdict, time and memory of a point as HTML."""
    p = point.sized.prediction
    made = environment().get_template("serve_parts.html.j2").module
    said = _verdict(point, question)
    found = {"verdict": str(made.verdict(said)), "short": said["short"]}  # type: ignore[attr-defined]
    if p is not None:
        found["time"] = str(made.exhibit(_time(p)))  # type: ignore[attr-defined]
        found["memory"] = str(made.exhibit(_memory(p)))  # type: ignore[attr-defined]
    return found


def of_sizes(points: Sequence[Point], best: Sequence[Point], num_gpus: int) -> str:
    """Return days against dollars on several numbers of accelerators as HTML; nothing where the run ends on none."""
    priced = any(p.usd is not None for p in points)
    rows, lines = [], []
    for p in points:
        cost, prediction = p.usd if priced else p.gpu_hours, p.sized.prediction
        if p.days is None or cost is None or prediction is None:
            continue
        low, middle, high = _three(p.days)
        rows.append(("accelerators", p.num_gpus, middle, low, min(high, 1e9), float(cost.p50), False, p in best,
                     p.num_gpus == num_gpus))
        lines.append((f"{p.num_gpus:,}", days_text(middle), show(float(cost.p50), "usd") if priced else
                      f"{significant(float(cost.p50), 4)} h", share(prediction.mfu), prediction.strategy.describe()))
    if not rows:
        return ""
    figure = pareto(pd.DataFrame(rows, columns=list(COLUMNS)), "USD" if priced else "GPU-hours", {})
    made: Any = environment().get_template("serve_parts.html.j2").module
    return str(made.exhibit({
        "figure": plain(figure), "head": ("GPUs", "days", "cost", "MFU", "strategy"), "rows": lines, "colours": (),
        "strong": [i for i, row in enumerate(rows) if row[-1]],
    }))


def plain(svg: str) -> Markup:
    """Return an SVG whose styles are attributes of their own, as a strict Content-Security-Policy wants them."""
    def attributes(style: re.Match[str]) -> str:
        pairs = (pair.split(":", 1) for pair in style[1].split(";") if ":" in pair)
        return " ".join(f'{"width" if k.strip() == "max-width" else k.strip()}="{v.strip().removesuffix("px")}"'
                        for k, v in pairs)

    return Markup(re.sub(r'style="([^"]*)"', attributes, svg))


def _verdict(point: Point, question: Question) -> dict[str, Any]:
    p, price, bill = point.sized.prediction, question.price, point.bill
    if p is None:
        return {"good": False, "word": "Does not fit", "short": "Does not fit", "line": point.reason, "facts": ()}
    if bill is None:
        return {"good": False, "word": "Does not end", "short": "Does not end", "line": point.reason, "facts": ()}
    low, middle, high = (days_text(v) for v in _three(bill.days))
    line = (f"{shown(p.peak_memory_bytes, 'bytes')} of {shown(p.usable_memory_bytes, 'bytes')} usable. "
            f"{show(question.tokens, 'count')} tokens on {question.cluster.num_gpus:,} GPUs take {middle} "
            f"(P10 {low}, P90 {high})")
    short = f"Fits · {middle}"
    if bill.usd is not None and price is not None:
        low, middle, high = (show(v, "usd") for v in _three(bill.usd))
        line += f" and cost {middle} (P10 {low}, P90 {high})"
        short += f" · {middle}"
    facts = [
        ("strategy", p.strategy.describe(), f"{p.strategy.precision}, sequence {p.strategy.seq_len:,}, global batch "
         f"{int(p.strategy.global_batch):,}"),
        ("step time", shown(p.step_time_s, "s"), f"P10 to P90: {span(p.p10_s, p.p90_s, 's')}"),
        ("throughput", shown(p.tokens_per_s, "tokens/s"), f"{shown(p.tokens_per_s_per_gpu, 'tokens/s')} per GPU"),
        ("MFU / HFU", f"{share(p.mfu)} / {share(p.hfu)}", f"of the dense {p.strategy.precision} peak"),
        ("goodput", share(float(bill.goodput.p50)) if bill.goodput else "100 %", "failures and checkpoints"),
        ("GPU-hours", significant(float(bill.gpu_hours.p50), 4), f"{days_text(p.days)} undisturbed"),
    ]
    return {"good": True, "word": "Fits", "line": line + ".", "short": short, "facts": facts}


def _three(band: Band) -> tuple[float, float, float]:
    return float(band.p10), float(band.p50), float(band.p90)


def _time(p: Prediction) -> dict[str, Any]:
    terms = {t: s for t, s in p.breakdown_s.items() if s > ROUNDING_S}
    rows = [(TERMS[t], shown(s, "s"), share(s / p.step_time_s)) for t, s in terms.items()]
    return {"figure": plain(figures.waterfall(terms, TERMS)), "head": ("part of the step", "time", "share"),
            "rows": [*rows, ("step", shown(p.step_time_s, "s"), "100.0 %")], "strong": [len(rows)],
            "colours": [figures.TERM_COLOURS[t] for t in terms]}


def _memory(p: Prediction) -> dict[str, Any]:
    memory = {name: size for name, size in p.memory_bytes.items() if size > 0}
    usable, peak = p.usable_memory_bytes, p.peak_memory_bytes
    rows = [(MEMORY_NAMES[n], shown(size, "bytes"), share(size / usable)) for n, size in memory.items()]
    return {"figure": plain(figures.memory_stack(memory, usable)), "head": ("held by", "memory", "share of usable"),
            "rows": [*rows, ("peak", shown(peak, "bytes"), share(peak / usable)),
                     ("free", shown(usable - peak, "bytes"), share(1 - peak / usable))], "strong": [len(rows)],
            "colours": [figures.MEMORY_COLOURS[n] for n in memory]}
