"""The accuracy of predictions as a report, which is written as one HTML page and as Markdown; its rows as a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from reports.accuracy import GROUPINGS, Accuracy, Group, MemoryGroup, Outcome
from reports.accuracy_summary import WITHIN, LeftOut, Summary, Worst, summary_of
from reports.choice import Sweep
from reports.compare import per_cent, share, shown
from reports.figures.accuracy import colour_of, histogram, scatter, spans
from reports.headline import Headline
from reports.page.values import Exhibit, Fact, Picture, Report, Section, Table, Verdict

DRAWN_GROUPINGS = ("accelerator", "source")
FIGURES = ("MAPE", "median", "P90", "bias", "coverage of P10 to P90", "tau", "MAPE, source left out", "worst")
"""Figures of a set's step times, in the order of their columns."""
MEANINGS = (
    "An error is predicted / measured - 1. MAPE is the mean of its size, median and P90 are quantiles of its size, bias is its "
    "mean; coverage is the share of runs whose measured time lies from the predicted P10 to P90; tau is Kendall's rank "
    "correlation of layouts of one model on one machine. Source left out: predicted by numbers fitted without the row's source."
)


def accuracy_report(accuracy: Accuracy, title: str) -> Report:
    """Return the report of an accuracy."""
    summary, timed = summary_of(accuracy), accuracy.timed
    sections = [
        short_section((summary,)), *([time_section(summary, timed), groups_section(summary, timed), worst_section(summary)]
                                     if timed else []),
        *([choice_section(summary)] if summary.sweeps else []), *([memory_section(summary)] if summary.memory else []),
        *([left_out_section(summary)] if summary.left_out else []),
    ]
    return Report(verdict=verdict(summary, f"Predicted against measured: {title}"), sections=tuple(sections))


def verdict(summary: Summary, title: str) -> Verdict:
    """Return the answer in short: how many runs, how far off, how many targets are met."""
    judged = [h for h in summary.headlines if h.met is not None]
    num_met = sum(bool(h.met) for h in judged)
    line = (f"{summary.num_predicted} runs are predicted, {summary.num_timed} of them with a measured step time; "
            f"{summary.num_skipped} are left out, each with its reason below.")
    facts = tuple(Fact(name=h.set, value=share(h.reached), note=f"{h.figure} of {h.n} runs, target {target(h)}")
                  for h in judged if h.figure in ("MAPE", "median") and h.target is not None)
    word = f"{num_met} of {len(judged)} targets met" if judged else "No target is set for these runs"
    return Verdict(title=title, word=word, good=num_met == len(judged), line=line, facts=facts)


def value(headline: Headline, number: float | None) -> str:
    """Return a figure of a headline, or its target, as people read it."""
    if number is None or headline.figure.startswith("tau"):
        return ratio(number)
    return per_cent(number) if headline.figure == "bias" else share(number)


def target(headline: Headline) -> str:
    """Return the target of a headline, or a dash; a bias may lie on either side."""
    sign = "±" if headline.figure == "bias" and headline.target is not None else ""
    return sign + value(headline, headline.target).removeprefix("+" if sign else "")


def ratio(number: float | None, digits: int = 2) -> str:
    """Return a plain ratio, or a dash."""
    return "-" if number is None else f"{number:.{digits}f}"


def short_section(summaries: Sequence[Summary]) -> Section:
    """Return the figures of every set, and the targets beside what is reached."""
    found = [h for s in summaries for h in s.headlines]
    targets = tuple((h.set, str(h.n), h.figure, value(h, h.reached), target(h), "met" if h.met else "not met")
                    for h in found if h.met is not None)
    sets = Exhibit(title="Step time, by set of runs (a run may be in several)", table=set_table(found))
    reached = Exhibit(title="Targets", table=Table(
        head=("set", "n", "figure", "reached", "target", ""), rows=targets, words=("set", "figure", ""), wide=True,
    ))
    return Section(key="short", title="In short", gist=MEANINGS,
                   exhibits=tuple(e for e in (sets, reached) if e.table is not None and e.table.rows))


def set_table(found: Sequence[Headline]) -> Table:
    """Return the figures of the sets of runs with a measured time, a set a row."""
    times = [h for h in found if h.figure in FIGURES and not h.set.startswith("peak memory")]
    used = [f for f in FIGURES if any(h.figure == f for h in times)]
    sets: dict[tuple[str, int], dict[str, Headline]] = {}
    for h in times:
        sets.setdefault((h.set, h.n), {})[h.figure] = h
    rows = ((name, str(n), *(value(of[f], of[f].reached) if f in of else "-" for f in used)) for (name, n), of in sets.items())
    return Table(head=("set", "n", *used), rows=tuple(rows), words=("set",), wide=True)


def time_section(summary: Summary, timed: Sequence[Outcome] = ()) -> Section:
    """Return how errors of the step's time are spread; with pictures where the runs are at hand."""
    table = Table(head=("an error of at most", "share of runs"),
                  rows=tuple((share(most), share(reached)) for most, reached in zip(WITHIN, summary.within, strict=True)))
    exhibits: tuple[Exhibit, ...] = (Exhibit(table=table),)
    if timed:
        rows = pd.DataFrame([{"gpu": o.gpu, "measured_s": o.measured_s, "predicted_s": o.predicted_s, "error": o.error}
                             for o in timed])
        dots = Picture(name="scatter", title="predicted over measured step time, a dot a run; the band is ±10 %",
                       figure=scatter(rows))
        bars = Picture(name="errors", title="distribution of errors", figure=histogram(rows))
        exhibits = (Exhibit(picture=dots, legend=legend(timed)), Exhibit(picture=bars, table=table))
    return Section(key="time", title="Step time", gist=f"The errors of {summary.num_timed} runs' step time.", exhibits=exhibits)


def legend(outcomes: Sequence[Outcome]) -> tuple[tuple[str, str], ...]:
    """Return colour and accelerators of that colour, in the order of the palette."""
    names: dict[str, list[str]] = {}
    for gpu in sorted({o.gpu for o in outcomes}):
        names.setdefault(colour_of(gpu), []).append(gpu)
    return tuple((colour, ", ".join(of)) for colour, of in names.items())


def groups_section(summary: Summary, timed: Sequence[Outcome] = ()) -> Section:
    """Return the errors of each group of runs; with pictures where the runs are at hand."""
    exhibits = []
    for by in GROUPINGS:
        drawn = timed and by in DRAWN_GROUPINGS
        picture = Picture(name=f"spans-{by}", title=f"errors by {by}", figure=spans(_errors(by, timed))) if drawn else None
        table = group_table(by, [g for g in summary.groups if g.by == by])
        exhibits.append(Exhibit(title=f"By {by}", picture=picture, table=table))
    return Section(key="groups", title="Groups", gist="The same runs, by what they share.", exhibits=tuple(exhibits))


def group_table(by: str, groups: Sequence[Group]) -> Table:
    """Return groups of one kind as a table; the column of left-out sources where there is one."""
    left_out = any(g.loso_mape is not None for g in groups)
    head = (by, "n", "MAPE", "median", "P90", "bias", "coverage", "tau", *(("MAPE, source left out",) if left_out else ()))
    rows = ((g.key, str(g.n), share(g.mape), share(g.median), share(g.p90), per_cent(g.bias), share(g.coverage), ratio(g.tau),
             *(("-" if g.loso_mape is None else share(g.loso_mape),) if left_out else ())) for g in groups)
    return Table(head=head, rows=tuple(rows), words=(by,), wide=True)


def _errors(by: str, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(GROUPINGS[by](outcome), []).append(outcome)
    ordered = sorted(members.items(), key=lambda x: (-len(x[1]), x[0]))
    return pd.DataFrame([{"group": key, "error": o.error or 0.0} for key, of in ordered for o in of])


def worst_section(summary: Summary) -> Section:
    """Return the largest errors, each with what is known of it."""
    columns: Mapping[str, Callable[[Worst], str]] = {
        "id": lambda w: w.id, "run": lambda w: f"{w.model}, {w.num_gpus} x {w.gpu}, {w.precision}",
        "source": lambda w: w.source, "strategy": lambda w: f"{w.strategy} ({w.software})",
        "measured": lambda w: shown(w.measured_s, "s"), "predicted": lambda w: shown(w.predicted_s, "s"),
        "error": lambda w: per_cent(w.error), "in P10 to P90": lambda w: "yes" if w.inside else "no",
        "MFU, both": lambda w: f"{'-' if w.measured_mfu is None else share(w.measured_mfu)}, {share(w.mfu)}",
        "what is known of it": lambda w: w.reason,
    }
    gist = "What is known of each begins with the largest part of the predicted step, and goes on with what other rows say."
    table = _table(columns, summary.worst, ("id", "run", "source", "strategy", "in P10 to P90", "what is known of it"))
    return _section("worst", f"The {len(summary.worst)} largest errors", gist, table)


def choice_section(summary: Summary) -> Section:
    """Return whether the right layout would have been chosen, sweep by sweep."""
    columns: Mapping[str, Callable[[Sweep], str]] = {
        "sweep": lambda s: s.key, "layouts": lambda s: str(s.n), "tau": lambda s: ratio(s.tau),
        "regret": lambda s: share(s.regret), "predicted fastest": lambda s: s.picked, "fastest": lambda s: s.best,
    }
    few, many = len(summary.sweeps), summary.num_sweeps
    gist = ("Runs of one source that share model, machine, precision and batch. Regret is what the layout predicted fastest "
            f"took longer than the fastest.{f' The {few} largest of {many} sweeps.' if many > few else ''}")
    table = _table(columns, summary.sweeps, ("sweep", "predicted fastest", "fastest"))
    return _section("choice", "Would the right layout have been chosen?", gist, table)


def memory_section(summary: Summary) -> Section:
    """Return the errors of peak memory, by counter."""
    columns: Mapping[str, Callable[[MemoryGroup], str]] = {
        "counter": lambda m: m.key, "n": lambda m: str(m.n), "MAPE": lambda m: share(m.mape),
        "median": lambda m: share(m.median), "P90": lambda m: share(m.p90), "bias": lambda m: per_cent(m.bias),
    }
    unfit = summary.share_not_fitting
    said = "" if unfit is None else f" {share(unfit)} of all runs, which ran, are predicted not to fit."
    gist = ("Compared with the part of the predicted peak that each counter sees: allocated leaves out context and allocator "
            f"slack, reserved leaves out the context.{said}")
    return _section("memory", "Peak memory", gist, _table(columns, summary.memory, ("counter",)))


def left_out_section(summary: Summary) -> Section:
    """Return what was left out, by reason."""
    columns: Mapping[str, Callable[[LeftOut], str]] = {
        "rows": lambda r: str(r.rows), "reason": lambda r: r.reason, "for example": lambda r: r.first,
    }
    return _section("left-out", f"Left out: {summary.num_skipped} rows",
                    "Rows that cannot be predicted without guessing; they are in no figure.",
                    _table(columns, summary.left_out, ("reason", "for example")))


def _section(key: str, title: str, gist: str, table: Table) -> Section:
    return Section(key=key, title=title, gist=gist, exhibits=(Exhibit(table=table),))


def _table(columns: Mapping[str, Callable[..., str]], items: Sequence[object], words: tuple[str, ...]) -> Table:
    rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
    return Table(head=tuple(columns), rows=rows, words=words, wide=True)


def rows_csv(accuracy: Accuracy) -> str:
    """Return every row as CSV, the parts of the predicted step as columns of their own."""
    text = io.StringIO()
    flat = [
        {k: v for k, v in o.as_dict().items() if k != "breakdown_s"} | {f"{k}_s": v for k, v in o.breakdown_s.items()}
        for o in accuracy.outcomes
    ]
    if flat:
        writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return text.getvalue()
