"""The evidence: published runs near the plan, assumptions, sources, formulas with their numbers, commands, the plan itself."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from planner.question import Question
from profiles import files
from profiles.cost import peak_flop_per_s
from profiles.efficiency import load_efficiency
from profiles.families import num_params
from profiles.hardware import Cluster, Link
from profiles.units import show, significant
from reports.compare import per_cent, share, shown
from reports.figures import near
from reports.page.findings import Brief, Findings
from reports.page.values import Exhibit, Picture, Section, Table
from simulator.metrics import step_flop

Row = tuple[str, str, str]


def evidence(found: Findings, plan_text: str) -> Section:
    """Return what the figures rest on."""
    exhibits = [*([_near(found)] if found.near else []), _formulas(found)]
    assumed = tuple((line,) for line in found.question.assumptions)
    exhibits += [
        Exhibit(title="Assumptions", table=_words(("assumed",), assumed)),
        Exhibit(title="Inputs and their sources", table=_words(("input", "value", "source"), tuple(_inputs(found.question)))),
        Exhibit(title="Hashes of the inputs", table=_words(("input", "SHA-256"), tuple(found.plan.inputs.items()))),
        *_again(found, plan_text),
    ]
    return Section(key="evidence", title="Evidence", gist=evidence_gist(found), exhibits=tuple(exhibits))


def evidence_gist(found: Brief) -> str:
    """Return how far off published runs like the plan are predicted, in a sentence."""
    if not found.near:
        return "No published run was found to hold this plan against."
    errors = [abs(o.error or 0.0) for o in found.near]
    return (f"The step of the {len(errors)} nearest published runs is predicted within {share(max(errors))}, "
            f"{share(sum(errors) / len(errors))} on the average.")


def _words(head: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> Table:
    return Table(head=head, words=head, rows=rows, wide=True)


def _near(found: Findings) -> Exhibit:
    frame, rows = [], []
    for o in found.near:
        assert o.measured_s is not None
        frame.append((f"{o.model}\n{o.num_gpus:,} x {o.gpu}", o.predicted_s / o.measured_s, o.p10_s / o.measured_s,
                      o.p90_s / o.measured_s))
        rows.append((o.model, f"{o.num_gpus:,} x {o.gpu}", o.precision, o.strategy, shown(o.predicted_s, "s"),
                     shown(o.measured_s, "s"), per_cent(o.error), share(o.mfu), share(o.measured_mfu or 0.0),
                     f"{o.source} ({o.id})"))
    return Exhibit(
        title="Published runs nearest to this plan",
        prose=("Nearest by active parameters, accelerators, their peak, kind of model and precision, of the runs that ship "
               "with Headway; each predicted now by the laws that predict this plan. Laws were calibrated on such runs: "
               "`headway validate --leave-out` predicts each without its own source.",),
        picture=Picture(name="near", title="predicted over measured step time of published runs", figure=near(
            pd.DataFrame(frame, columns=["name", "ratio", "low", "high"]))),
        table=Table(head=("model", "machine", "type", "strategy", "predicted", "measured", "error", "MFU predicted",
                          "measured MFU", "source"),
                    words=("model", "machine", "type", "strategy", "source"), rows=tuple(rows), wide=True),
    )


def formulas(found: Findings) -> Iterator[Row]:
    """Return the arithmetic of the verdict: what, the formula in words, and the same with this plan's numbers."""
    q, s, p, bill = found.question, found.plan.strategy, found.prediction, found.bill
    num, peak = q.cluster.num_gpus, float(peak_flop_per_s(q.cluster.accelerator, s.matmul or s.dtype))
    tokens_per_step, flop = float(s.tokens_per_step), float(step_flop(q.model, s))
    yield ("tokens per step", "dp x micro-batch x micro-batches x sequence",
           f"{s.dp} x {s.micro_batch} x {s.num_microbatches} x {s.seq_len} = {tokens_per_step:.6g}")
    yield ("steps", "tokens / tokens per step",
           f"{q.tokens:.6g} / {tokens_per_step:.6g} = {q.tokens / tokens_per_step:.6g}")
    terms = [(t, v) for t, v in p.breakdown_s.items() if v > 1e-9]
    yield ("step time, s", " + ".join(t for t, _ in terms),
           f"{' + '.join(f'{v:.6g}' for _, v in terms)} = {p.step_time_s:.6g}")
    yield ("model FLOP per token", "model FLOP of a step / tokens per step; 6 for each parameter, and attention",
           f"{flop:.6g} / {tokens_per_step:.6g} = {flop / tokens_per_step:.6g}")
    yield ("MFU", "model FLOP of a step / (step time x accelerators x peak)",
           f"{flop:.6g} / ({p.step_time_s:.6g} x {num} x {peak:.6g}) = {p.mfu:.6g}")
    yield ("tokens/s", "tokens per step / step time", f"{tokens_per_step:.6g} / {p.step_time_s:.6g} = {p.tokens_per_s:.6g}")
    yield ("days, undisturbed", "steps x step time / 86400",
           f"{q.tokens / tokens_per_step:.6g} x {p.step_time_s:.6g} / 86400 = {p.days:.6g}")
    if bill.goodput is not None:
        goodput = p.days / float(bill.days.p50)
        yield ("days, with failures", "days, undisturbed / expected goodput (Daly 2006)",
               f"{p.days:.6g} / {goodput:.6g} = {float(bill.days.p50):.6g}")
    yield (f"{found.noun}-hours", "days x 24 x accelerators that are held",
           f"{float(bill.days.p50):.6g} x 24 x {bill.num_gpus} = {float(bill.gpu_hours.p50):.6g}")
    if bill.usd is not None and q.price is not None:
        yield ("cost, USD", f"{found.noun}-hours x price",
               f"{float(bill.gpu_hours.p50):.6g} x {q.price.usd_per_gpu_hour:.6g} = {float(bill.usd.p50):.6g}")
    parts = [(name, size) for name, size in p.memory_bytes.items() if size > 0]
    yield ("peak memory, bytes", " + ".join(name for name, _ in parts),
           f"{' + '.join(f'{size:.6g}' for _, size in parts)} = {p.peak_memory_bytes:.6g}")


def _formulas(found: Findings) -> Exhibit:
    return Exhibit(title="Formulas, with this plan's numbers", table=_words(
        ("quantity", "formula", "with numbers"), tuple(formulas(found))))


def _inputs(question: Question) -> Iterator[Row]:
    model = question.model
    yield (f"model {model.name}", f"{show(num_params(model), 'count', 4)} parameters: {model.num_layers} layers, hidden "
           f"{model.hidden}, {model.describe_layers()}, vocabulary {model.vocab}, context {model.max_seq_len}", model.source)
    for part in question.cluster.kinds:
        yield from _machine(part)
    if question.cluster.parts:
        yield _wire("between the parts", question.cluster.scale_out)
    if question.price is not None:
        price = question.price
        yield ("price", f"{show(price.usd_per_gpu_hour, 'usd_per_hour')} per GPU, {price.term}, {price.provider}",
               f"{price.source}, as of {price.date}")
    for part in question.cluster.kinds:
        yield from _costs(part)


def _machine(cluster: Cluster) -> Iterator[Row]:
    accelerator, sources = cluster.accelerator, cluster.accelerator.sources
    yield f"{accelerator.title}: usable memory", show(accelerator.memory_bytes, "bytes"), sources["memory"]
    yield "memory bandwidth", show(accelerator.memory_bytes_per_s, "bytes_per_s"), sources["memory_bandwidth"]
    for dtype, peak in accelerator.peak_flop_per_s.items():
        yield f"peak {dtype}, dense", show(peak, "flop_per_s", 4), sources[f"peak.{dtype}"]
    yield "framework memory", show(accelerator.framework_bytes, "bytes"), sources["framework_memory"]
    yield "allocator slack", f"{100 * accelerator.allocator_slack:.1f} %", sources["allocator_slack"]
    links = [("inside the node", cluster.scale_up), ("between nodes", cluster.scale_out)]
    for name, link in links if cluster.num_nodes > 1 else links[:1]:
        yield _wire(name, link)


def _wire(name: str, link: Link) -> Row:
    rate = f"{show(link.bytes_per_s, 'bytes_per_s')} ({significant(link.bytes_per_s * 8e-9, 4)} Gb/s)"
    return f"link {name}, per accelerator and direction: {link.name}", rate, link.source


def _costs(cluster: Cluster) -> Iterator[Row]:
    """Return what the seconds come from: the measured table, or the fitted laws with their spread."""
    table = cluster.table
    if table is not None:
        head = table.head
        yield ("measured table", f"{len(table.rows)} rows, {head['num_ranks']} ranks busy, {head['backend']}",
               f"headway profile, {head['date']}")
        return
    laws = load_efficiency(cluster.accelerator.laws)
    for name, law in (("GEMM", laws.gemm), ("attention", laws.attention), ("memory-bound kernels", laws.memory_bound)):
        rates = law.efficiency if isinstance(law.efficiency, dict) else {"": law.efficiency}
        shares = ", ".join(f"{100 * rate:.0f} % {kind}".rstrip() for kind, rate in rates.items())
        yield f"efficiency of {name}", f"{shares} of peak, spread {100 * law.spread:.0f} %", law.source
    for name, link in (("inside a node", laws.scale_up), ("between nodes", laws.scale_out)):
        yield f"collectives {name}", f"fitted law, spread {100 * link.spread:.0f} %", link.source


def _again(found: Findings, plan_text: str) -> list[Exhibit]:
    commands = ["headway report page.html                 # this page again, from the page alone",
                "headway simulate page.html --trace trace.json", "headway run page.html --out run",
                "headway compare page.html run", "headway report page.html run"]
    profile = found.plan.profile
    exhibits = [
        Exhibit(title="Do it again", text="\n".join(commands), prose=(
            "The plan is in this page: every command that takes a plan file takes the page (`page.html`) in its place.",)),
        Exhibit(title="plan.yaml", text=plan_text, key="plan", folded=True),
    ]
    if profile is not None:
        exhibits.append(Exhibit(title=profile.name, text=files.read_text(profile), key="profile", folded=True))
    return exhibits
