"""Risk: the fan of ends, where the time of a run goes, and what moves it most."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from planner.economics import SECONDS_PER_DAY, gpu_hours, run_usd
from planner.tornado import Tornado
from planner.whatif import METRICS
from profiles.units import show, significant
from reports.compare import per_cent
from reports.figures import fan, goodput_bar
from reports.figures import tornado as draw_tornado
from reports.page.findings import FLEET, Brief, Findings
from reports.page.values import Exhibit, Picture, Section, Table
from reports.page.words import days, plural, usd
from reports.run_tables import WORDS
from reports.whatif_page import bars_frame
from reports.whatif_tables import LEFT, tornado_rows
from simulator.run.interval_curve import mttf_s
from simulator.run.outcome import PRODUCTIVE, Outcomes

NOTHING = "A plan that does not fit has no run to simulate."
QUANTILES = (0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95)


def risk(found: Findings) -> Section:
    """Return what may happen to the run."""
    title = "Risk"
    if found.runs is None:
        return Section(key="risk", title=title, gist=NOTHING)
    exhibits, said = [_fan(found, found.runs)], []
    exhibits.append(_goodput(found.runs, len(found.runs.elapsed_s)))
    ends = _days(found.runs)
    said.append(f"{len(ends)} simulated runs end after {days(_at(ends, 0.1))} (P10), {days(_at(ends, 0.5))} (P50), "
                f"{days(_at(ends, 0.9))} (P90); goodput {found.runs.goodput:.3f}.")
    if found.tornado is not None and found.tornado.bars:
        exhibits.append(_tornado(found.tornado))
        bar = found.tornado.bars[0]
        said.append(f"{bar.name} moves it most: {per_cent(bar.swing / found.tornado.base.metric(found.tornado.by))}.")
    return Section(key="risk", title=title, gist=" ".join(said), exhibits=tuple(exhibits))


def closed_gist(found: Brief) -> str:
    """Return what is to be expected of failures by the closed form, in a sentence."""
    if not found.prediction.fits:
        return NOTHING
    t, case = found.case.training, found.case
    every, written_s = mttf_s(t, case.fleet), case.checkpoints.interval_steps * t.step_time_s
    often = "no failures" if math.isinf(every) else f"a failure every {show(every, 's')}"
    return (f"Expected of fleet '{FLEET}': {often}. A checkpoint every {show(written_s, 's')} and "
            f"{plural(case.reserve.num_spares, 'spare node')} pay.")


def _days(runs: Outcomes) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the days of each run, infinite where it does not end."""
    return np.where(runs.finished, runs.elapsed_s, np.inf) / SECONDS_PER_DAY


def _at(values: np.ndarray[tuple[int], np.dtype[np.float64]], share: float) -> float:
    return float(np.quantile(values, share, method="higher"))


def _fan(found: Findings, runs: Outcomes) -> Exhibit:
    ends, question = _days(runs), found.question
    t, spares = found.case.training, found.case.reserve.num_spares
    num, rows = (t.num_nodes + spares) * t.gpus_per_node, []
    for q in QUANTILES:
        value = _at(ends, q)
        hours = float(gpu_hours(value, num))
        paid = run_usd(hours, question.price) if np.isfinite(value) else None
        rows.append((f"P{100 * q:.0f}", days(value), show(hours, "count"), usd(None if paid is None else float(paid))))
    closed = found.bill.days
    return Exhibit(
        title="When it ends",
        prose=(f"{len(ends)} runs of the whole job with {plural(spares, 'spare node')}, each with its own failures of fleet "
               f"'{FLEET}' and its own error of the predicted step. The closed form of the verdict says "
               f"{days(float(closed.p10))}, {days(float(closed.p50))} and {days(float(closed.p90))} (P10, P50, P90).",),
        picture=Picture(name="fan", title="tokens trained over days", figure=fan(
            pd.DataFrame({"days": ends}), question.tokens, t.undisturbed_s / SECONDS_PER_DAY)),
        table=Table(head=("", "ends after", f"{found.noun}-hours", "cost"), words=("",), rows=tuple(rows),
                    strong=(QUANTILES.index(0.5),)),
        notes=("`headway simulate plan.yaml --run` simulates more runs, spare nodes and other checkpoints.",),
    )


def _goodput(runs: Outcomes, num: int) -> Exhibit:
    parts = runs.shares
    names = [PRODUCTIVE, *sorted((k for k in parts if k != PRODUCTIVE and parts[k] > 5e-6), key=lambda k: -parts[k])]
    frame = pd.DataFrame([(k, WORDS[k], parts[k]) for k in names], columns=["part", "name", "share"])
    stops = float((runs.strikes.sum(axis=1) + runs.stops.sum(axis=1)).mean())
    return Exhibit(
        title="Where the time of the run goes",
        picture=Picture(name="goodput", title="shares of the time of a run", figure=goodput_bar(frame)),
        table=Table(head=("part", "share"), words=("part",), strong=(0,),
                    rows=tuple((WORDS[k], f"{100 * parts[k]:.2f} %") for k in names)),
        notes=(f"Mean of {num} runs, each interrupted {significant(stops)} times, planned stops with them. Goodput is the "
               "share of new steps.",),
    )


def _tornado(found: Tornado) -> Exhibit:
    head, rows = tornado_rows(found)
    by = found.by
    return Exhibit(
        title=f"What moves the {METRICS[by]} most",
        picture=Picture(name="tornado", title=f"what moves the {METRICS[by]} most", figure=draw_tornado(
            bars_frame(found), found.base.metric(by), METRICS[by], by)),
        table=Table(head=tuple(head), words=LEFT, rows=tuple(map(tuple, rows)), wide=True),
        notes=(f"{found.num_tried} inputs, each moved alone from the low to the high end of its plausible range. "
               "`headway whatif plan.yaml` moves any of them.",),
    )
