"""A run's bill as tables: what it takes, and what it costs on every known term."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from rich.table import Table

from planner.bill import Bill, bill
from planner.economics import Band
from planner.plan import Plan
from profiles.units import show, significant
from reports.run_command import RunOptions, run_case


def plan_bill(plan: Plan) -> Bill:
    """Return the bill of a plan, with failures and checkpoints in closed form."""
    case, _, _ = run_case(plan, plan.prediction, RunOptions())
    return bill(plan.question, plan.strategy, plan.prediction, case=case)


def bill_tables(bill: Bill) -> list[Table]:
    """Return the tables of a bill: the terms only where a price is known."""
    return [bill_table(bill), terms_table(bill)] if bill.terms else [bill_table(bill)]


def bill_table(bill: Bill) -> Table:
    """Return days, money, energy, carbon and storage with their percentiles."""
    table = Table(title="The bill", title_justify="left")
    for name in ("", "P50", "P10", "P90"):
        table.add_column(name, style="bold" if not name else "", justify="right" if name else "left")
    _add(table, "days", bill.days, lambda v: significant(v, 4))
    _add(table, f"GPU-hours on {bill.num_gpus:,}", bill.gpu_hours, lambda v: show(v, "count", 4))
    _add(table, "goodput", bill.goodput, lambda v: f"{v:.3f}")
    _add(table, "cost", bill.usd, lambda v: show(v, "usd"), missing="no price known")
    energy = bill.energy
    _add(table, "energy", energy.facility_kwh if energy else None, lambda v: f"{significant(v / 1000)} MWh", "no power known")
    if energy is not None:
        _add(table, "  accelerators at their rated power", energy.accelerator_kwh, lambda v: f"{significant(v / 1000)} MWh")
        _add(table, f"CO2e, {energy.grid.name}", energy.carbon_t, lambda v: f"{significant(v)} t")
    _add(table, f"storage, {bill.storage.price.name}", bill.storage.usd, lambda v: show(v, "usd"))
    return table


def terms_table(bill: Bill) -> Table:
    """Return what the run costs by term: the lowest and the highest offer of each, with provider, date and source."""
    table = Table(title="Cost by term", title_justify="left")
    for name in ("term", "USD/GPU-hour", "P50", "P10", "P90", "provider", "as of", "source"):
        table.add_column(name, justify="left" if name in ("term", "provider", "as of", "source") else "right")
    by_term = sorted(bill.terms, key=lambda t: (t.price.term, t.price.usd_per_gpu_hour))
    for _, group in groupby(by_term, key=lambda t: t.price.term):
        offers = list(group)
        for offer in offers if len(offers) < 3 else (offers[0], offers[-1]):
            p = offer.price
            table.add_row(p.term, f"{p.usd_per_gpu_hour:.2f}", *(show(float(v), "usd") for v in (
                offer.usd.p50, offer.usd.p10, offer.usd.p90)), p.provider, p.date, p.source)
    return table


def _add(table: Table, name: str, band: Band | None, text: Callable[[float], str], missing: str = "") -> None:
    if band is not None:
        table.add_row(name, *(text(float(v)) for v in (band.p50, band.p10, band.p90)))
    elif missing:
        table.add_row(name, missing, "", "")
