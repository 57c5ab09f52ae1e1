"""Why: where the step's time goes, and what fills the memory of the worst rank."""

from __future__ import annotations

import pandas as pd

from planner.predict import Prediction
from reports.compare import ROUNDING_S, TERMS, share, shown
from reports.figures import memory_stack, waterfall
from reports.figures.palette import MEMORY_COLOURS, TERM_COLOURS
from reports.page.findings import Findings
from reports.page.values import Exhibit, Picture, Section, Table
from reports.page.words import MEMORY_NAMES, losses


def why(found: Findings) -> Section:
    """Return where time and memory go."""
    p = found.prediction
    return Section(key="why", title="Where the time and the memory go", gist=why_gist(p), exhibits=(time_of(p), memory_of(p)))


def why_gist(p: Prediction) -> str:
    """Return where time and memory go, in a sentence or two."""
    parts = [f"{name} {share(ratio)}" for name, ratio in losses(p)[:2]]
    return (f"{share(p.breakdown_s['compute'] / p.step_time_s)} of the step is compute"
            f"{', ' + ', '.join(parts) if parts else ''}. "
            f"The fullest rank {'has' if p.fits else 'lacks'} "
            f"{shown(abs(p.usable_memory_bytes - p.peak_memory_bytes), 'bytes')}{' to spare' if p.fits else ''}.")


def time_of(p: Prediction) -> Exhibit:
    """Return where a step's time goes."""
    terms = [(t, TERMS[t], s) for t, s in p.breakdown_s.items() if s > ROUNDING_S]
    nothing = [TERMS[t] for t, s in p.breakdown_s.items() if s <= ROUNDING_S]
    frame = pd.DataFrame(terms, columns=["term", "name", "seconds"])
    rows = [(name, shown(s, "s"), share(s / p.step_time_s)) for _, name, s in terms]
    notes = ["Communication is counted where nothing is computed beside it (exposed)."]
    if nothing:
        notes.append(f"Nothing is spent on: {', '.join(nothing)}.")
    return Exhibit(
        title="Time of one step",
        picture=Picture(name="waterfall", title="where the step's time goes", figure=waterfall(frame)),
        table=Table(head=("part of the step, busiest stage", "time", "share"), words=("part of the step, busiest stage",),
                    rows=(*rows, ("step", shown(p.step_time_s, "s"), "100.0 %")), strong=(len(rows),),
                    colours=tuple(TERM_COLOURS[t] for t, _, _ in terms)),
        notes=(" ".join(notes),),
    )


def memory_of(p: Prediction) -> Exhibit:
    """Return what the fullest rank holds."""
    parts = [(name, MEMORY_NAMES[name], size) for name, size in p.memory_bytes.items() if size > 0]
    frame = pd.DataFrame(parts, columns=["part", "name", "bytes"])
    usable, peak = p.usable_memory_bytes, p.peak_memory_bytes
    rows = [(name, shown(size, "bytes"), share(size / usable)) for _, name, size in parts]
    return Exhibit(
        title="Peak memory of the fullest rank",
        picture=Picture(name="memory", title="peak memory of the fullest rank", figure=memory_stack(frame, usable)),
        table=Table(
            head=("held by", "memory", "share of usable"), words=("held by",), strong=(len(rows),),
            rows=(*rows, ("peak", shown(peak, "bytes"), share(peak / usable)),
                  ("free" if p.fits else "missing", shown(abs(usable - peak), "bytes"), share(abs(1 - peak / usable)))),
            colours=tuple(MEMORY_COLOURS[name] for name, _, _ in parts),
        ),
    )
