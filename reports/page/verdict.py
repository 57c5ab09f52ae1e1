"""The verdict: fits or not, accelerators, days, dollars, MFU, what binds; and the bill behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from planner.bill import Bill, TermCost
from planner.economics import Band
from planner.predict import Prediction, fit_odds
from planner.question import Question
from profiles.units import show, significant
from reports.compare import per_cent, share, shown, span
from reports.page.findings import Brief, Findings
from reports.page.values import Exhibit, Fact, Section, Table, Verdict
from reports.page.words import binding, days, noun_of, plural, three, usd
from simulator.run.outcome import Outcomes


def verdict(found: Brief) -> Verdict:
    """Return the answer of a report; runs that were simulated stand in it."""
    p, runs = found.prediction, found.runs if isinstance(found, Findings) else None
    said = replace(verdict_of(found.question, p, found.bill, runs), warnings=tuple(_warnings(found)))
    if found.run is None:
        return said
    error = p.step_time_s / found.run.step_time_s - 1
    measured = (f" Measured: {shown(found.run.step_time_s, 's')} a step, {shown(found.run.tokens_per_s, 'tokens/s')}; the "
                f"predicted step is off by {per_cent(error)}.")
    return replace(said, line=said.line + measured)


def verdict_of(question: Question, p: Prediction, bill: Bill, runs: Outcomes | None = None) -> Verdict:
    """Return the answer of a prediction and its bill, with simulated runs where there are any."""
    cluster = question.cluster
    where = cluster.machines
    return Verdict(
        title=f"{question.model.name} on {where}", word="Fits" if p.fits else "Does not fit", good=p.fits,
        line=_line(question, p, bill), facts=tuple(_facts(question, p, bill, runs)),
    )


def _line(question: Question, p: Prediction, bill: Bill) -> str:
    low, middle, high = three(bill.days)
    odds = fit_odds(p.memory_bytes, p.usable_memory_bytes)
    said = (
        f"{shown(p.peak_memory_bytes, 'bytes')} of {shown(p.usable_memory_bytes, 'bytes')} usable on the fullest rank "
        f"({share(p.peak_memory_bytes / p.usable_memory_bytes)}; it fits with odds of {share(odds)}). "
        f"{show(question.tokens, 'count')} tokens on {plural(question.cluster.num_gpus, noun_of(question))} "
        f"{'take' if p.fits else 'would take'} {days(middle)} "
        f"(P10 {days(low)}, P90 {days(high)})"
    )
    if bill.usd is None or question.price is None:
        said += "; no price known."
    else:
        low, middle, high = three(bill.usd)
        price = question.price
        said += (f" and cost {usd(middle)} (P10 {usd(low)}, P90 {usd(high)}) at {significant(price.usd_per_gpu_hour)} USD per "
                 f"GPU-hour, {price.term}, as of {price.date}.")
    return said


def _facts(question: Question, p: Prediction, bill: Bill, runs: Outcomes | None) -> Iterator[Fact]:
    s, noun = p.strategy, noun_of(question)
    yield Fact(name="strategy", value=s.describe(), note=f"{s.precision}, {s.kernels} kernels, sequence {s.seq_len}, global "
               f"batch {plural(int(s.global_batch), 'sequence')}")
    low, middle, high = three(bill.days)
    yield Fact(name="duration", value=days(middle), note=f"P10 {days(low)}, P90 {days(high)}; {days(p.days)} undisturbed")
    if bill.usd is not None and question.price is not None:
        low, middle, high = three(bill.usd)
        dated = f"price of {question.price.date}"
        yield Fact(name="cost", value=usd(middle), note=f"P10 {usd(low)}, P90 {usd(high)}; {dated}")
    yield Fact(name="step time", value=shown(p.step_time_s, "s"), note=f"P10 to P90: {span(p.p10_s, p.p90_s, 's')}")
    yield Fact(name="throughput", value=shown(p.tokens_per_s, "tokens/s"),
               note=f"{shown(p.tokens_per_s_per_gpu, 'tokens/s')} per {noun}")
    yield Fact(name="MFU / HFU", value=f"{share(p.mfu)} / {share(p.hfu)}", note=f"of the dense {s.precision} peak")
    what, then = binding(p)
    yield Fact(name="what binds", value=what, note=then)
    if bill.goodput is not None:
        simulated = f", {share(runs.goodput)} simulated with all else" if runs is not None else ""
        yield Fact(name="goodput", value=share(float(bill.goodput.p50)), note=f"failures and checkpoints{simulated}")


def _warnings(found: Brief) -> Iterator[str]:
    """Return what a reader must know before the figures: where they are not those of the plan file."""
    p, timeline = found.prediction, found.timeline
    if found.edited:
        yield (f"The plan file was edited after its prediction was made: {found.edited}. What is shown here is predicted "
               "anew.")
    if abs(timeline.step_time_s / p.step_time_s - 1) > 1e-3:
        yield (f"The plan states a step of {shown(p.step_time_s, 's', 4)}; replayed now it takes "
               f"{shown(timeline.step_time_s, 's', 4)}. The plan was made with other inputs or another version.")


def bill_section(found: Findings) -> Section:
    """Return what the run takes and costs, on every known term."""
    bill = found.bill
    exhibits = [Exhibit(table=_bill_table(bill, found.noun))]
    if bill.terms:
        exhibits.append(Exhibit(title="The same hours at other prices", table=_terms_table(bill)))
    assumed = tuple((line,) for line in bill.assumptions)
    exhibits.append(Exhibit(title="What the bill assumes", folded=True,
                            table=Table(head=("assumed",), words=("assumed",), rows=assumed, wide=True)))
    return Section(key="bill", title="What it takes", gist=bill_gist(bill, found.noun), exhibits=tuple(exhibits))


def bill_gist(bill: Bill, noun: str) -> str:
    """Return what a run takes, in a sentence."""
    told = f"{show(float(bill.gpu_hours.p50), 'count', 4)} {noun}-hours"
    if bill.usd is not None:
        told += f", {usd(float(bill.usd.p50))}"
    if bill.energy is not None:
        told += (f", {significant(float(bill.energy.facility_kwh.p50) / 1000)} MWh and "
                 f"{significant(float(bill.energy.carbon_t.p50))} t CO2e")
    return told + "."


def _bill_table(bill: Bill, noun: str) -> Table:
    rows = [_row("days", bill.days, lambda v: significant(v, 4)),
            _row(f"{noun}-hours on {bill.num_gpus:,}", bill.gpu_hours, lambda v: show(v, "count", 4))]
    if bill.goodput is not None:
        rows.append(_row("goodput", bill.goodput, lambda v: f"{v:.3f}"))
    rows.append(_row("cost", bill.usd, usd) if bill.usd is not None else ("cost", "no price known", "", ""))
    if bill.energy is not None:
        rows += [_row("energy, whole building", bill.energy.facility_kwh, lambda v: f"{significant(v / 1000)} MWh"),
                 _row(f"CO2e, {bill.energy.grid.name}", bill.energy.carbon_t, lambda v: f"{significant(v)} t")]
    rows.append(_row(f"storage, {bill.storage.price.name}", bill.storage.usd, usd))
    return Table(head=("", "P10", "P50", "P90"), words=("",), rows=tuple(rows))


def _row(name: str, band: Band, text: object) -> tuple[str, ...]:
    assert callable(text)
    return (name, *(text(v) for v in three(band)))


def _terms_table(bill: Bill) -> Table:
    shown_terms: list[TermCost] = []
    for _, group in groupby(sorted(bill.terms, key=lambda t: (t.price.term, t.price.usd_per_gpu_hour)), lambda t: t.price.term):
        of_term = list(group)
        shown_terms += of_term if len(of_term) < 3 else [of_term[0], of_term[-1]]
    return Table(
        head=("term", "USD per GPU-hour", "P10", "P50", "P90", "provider", "as of", "source"),
        words=("term", "provider", "as of", "source"), wide=True,
        rows=tuple((t.price.term, f"{t.price.usd_per_gpu_hour:.2f}", *(usd(v) for v in three(t.usd)), t.price.provider,
                    t.price.date, t.price.source) for t in shown_terms),
    )
