"""docs/accuracy.md: how far off predictions are, made from records of `headway validate` that the repository holds.

The rows of the whole collection are not part of the repository; the summaries of their predictions are (docs/accuracy/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from profiles import files
from profiles.hardware import load_cluster
from profiles.units import significant
from reports.accuracy_page import (
    choice_section,
    groups_section,
    left_out_section,
    memory_section,
    set_table,
    short_section,
    time_section,
    verdict,
    worst_section,
)
from reports.accuracy_summary import Summary, read_summary, record_text, summary_of, summary_text, with_notes
from reports.local_report import cases_section, read_local
from reports.page.markdown import markdown
from reports.page.values import Exhibit, Report, Section, Table
from reports.published_machine import CLUSTERS
from reports.run_facts import Compared, compare_facts
from reports.validate_command import validate

TITLE = "How far off predictions are"
MADE = "<!-- Made by scripts/docs of the records in docs/accuracy/: change reports/accuracy_document.py, not this page. -->"
RECORDS = {"catalogue": "", "collection": "runs.csv", "one-node": "vtrain_single_node.csv"}
"""Name of a record of published steps -> the file of the collection that it is made of; none: the catalogue's."""
FACTS, LOCAL_RUNS, NOTES = "whole-runs.json", "local.json", "notes.yaml"
FEW = 5
"""Fewer runs than this say little of an accelerator."""


def accuracy_document(folder: Path) -> str:
    """Return the page of accuracy in Markdown, made of the records in a folder."""
    whole, one_node, catalogue = (read_summary(folder / f"{name}.json") for name in ("collection", "one-node", "catalogue"))
    whole = with_notes(whole, files.read_mapping(folder / NOTES))
    local = read_local(folder / LOCAL_RUNS)
    facts = [Compared(**fact) for fact in files.read_mapping(folder / FACTS)["facts"]]
    sections = (
        about(), _with_catalogue(short_section((whole, one_node, summary_of(local.accuracy))), catalogue),
        time_section(whole), groups_section(whole), worst_section(whole), choice_section(whole), memory_section(whole),
        cases_section(local), facts_section(facts), left_out_section(whole), not_covered(whole),
    )
    head, _, rest = markdown(Report(verdict=verdict(whole, TITLE), sections=sections)).partition("\n\n")
    return f"{head}\n\n{MADE}\n\n{rest}"


def about() -> Section:
    """Return where the runs come from, and how this page is made again."""
    gist = (
        "Steps of training runs that others measured and published: a collection of 949 rows of papers, benchmark tables and "
        "logs, each with its source, of which 156 lie in the catalogue (`profiles/catalog/published_runs.csv`); and 1,440 runs "
        "of small models in one node (vTrain). The collection is not part of the repository, the summary of its predictions is "
        "(`docs/accuracy/`)."
    )
    prose = (
        "The catalogue's rows are predicted again by `headway validate`, and any CSV with the columns of "
        "[validate.md](validate.md#columns) by `headway validate FILE --leave-out`, which writes the same page for it; whole "
        "runs by `headway validate --reliability`, this machine's by `headway validate --local`.",
        "A dozen numbers for each generation of accelerators are fitted on all its published runs; no row and no model has "
        "a number of its own. *Source left out* is refitted without the row's source: what a run of one's own is to the fit.",
    )
    return Section(key="about", title="What was compared", gist=gist, exhibits=(Exhibit(prose=prose),))


def _with_catalogue(short: Section, catalogue: Summary) -> Section:
    title = f"Step time, the catalogue's {catalogue.num_predicted} rows alone"
    return replace(short, exhibits=(*short.exhibits, Exhibit(title=title, table=set_table(catalogue.headlines))))


def facts_section(facts: Sequence[Compared]) -> Section:
    """Return published facts of whole runs beside what is predicted for them."""
    held = [f for f in facts if f.met is not None]
    out = [f for f in held if f.use == "held out"]
    gist = (f"Failures, goodput, checkpoints: {sum(bool(f.met) for f in held)} of {len(held)} predictions lie inside their "
            f"bounds; of facts that no fleet was fitted on {sum(bool(f.met) for f in out)} of {len(out)}.")
    rows = tuple((
        f.id, f.what, significant(f.published), significant(f.predicted),
        "-" if f.high is None else f"{significant(f.low or 0.0)} to {significant(f.high)}", f.unit, f.use,
        {True: "inside", False: "outside", None: "-"}[f.met], f.source,
    ) for f in facts)
    table = Table(head=("id", "fact", "published", "predicted", "bounds", "unit", "use", "verdict", "source"), rows=rows,
                  words=("id", "fact", "bounds", "unit", "use", "verdict", "source"), wide=True)
    notes = ("Fitted: the fact's own number is in the fleet that predicts it; held out: it is in none; spread: the bounds are "
             "P10 and P90 of the other fleets.",)
    return Section(key="whole-runs", title="Whole runs", gist=gist, exhibits=(Exhibit(table=table, notes=notes),))


def not_covered(whole: Summary) -> Section:
    """Return what no published run, or hardly one, speaks for."""
    runs = {g.key: g.n for g in whole.groups if g.by == "accelerator"}
    seen = {load_cluster(f"{CLUSTERS[gpu]}:1").accelerator.name for gpu in runs}
    unseen = sorted(set(files.catalog_names("accelerators")) - seen)
    few = ", ".join(f"{gpu} ({n})" for gpu, n in runs.items() if n < FEW)
    sizes = {g.key: g.n for g in whole.groups if g.by == "gpus"}
    prose = (
        f"Accelerators of the catalogue of which no run is predicted: {', '.join(unseen)}.",
        f"Accelerators with fewer than {FEW} runs: {few}.",
        f"Large runs are few: {sizes.get('1025 and more', 0)} of {whole.num_timed} are on more than 1024 accelerators.",
        "Pools of unlike accelerators have no published run. What is not priced at all stands above, among the rows left out. "
        "Days, dollars and energy are held to three runs only ([examples](../examples/README.md)).",
    )
    return Section(key="not-covered", title="What is not covered", exhibits=(Exhibit(prose=prose),),
                   gist="Predictions are made there, too, but no published run, or hardly one, speaks for them.")


def record_steps(folder: Path, collection: Path | None) -> None:
    """Predict the published steps anew and write their records; those of the collection where it is at hand."""
    for name, file in RECORDS.items():
        if not file:
            files.write_text(folder / f"{name}.json", summary_text(summary_of(validate(None))))
        elif collection is not None:
            found = validate(collection / file, leave_out=name == "collection")
            files.write_text(folder / f"{name}.json", summary_text(summary_of(found)))


def record_facts(folder: Path) -> None:
    """Predict the published facts of whole runs anew and write their record."""
    files.write_text(folder / FACTS, facts_text(compare_facts()))


def facts_text(compared: Sequence[Compared]) -> str:
    """Return the text of the record of whole runs."""
    return record_text({"facts": [asdict(c) for c in compared]})
