"""Files of a what-if: its page, its figure, its rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from planner.tornado import Tornado
from planner.whatif import METRICS
from profiles import files
from profiles.files import BadInput
from profiles.units import UNITS
from reports.figures import Axis, svg, sweep_lines, tornado
from reports.figures.palette import css_variables
from reports.whatif_command import WhatIf, point_json, tornado_json
from reports.whatif_tables import LEFT, sweep_rows, tornado_rows

SUFFIXES = (".html", ".svg", ".csv")
MOST_LINES = 8
"""Lines of a figure; of a larger grid the first ones are drawn."""


def rows_frame(found: WhatIf) -> pd.DataFrame:
    """Return every point of the sweeps (or every bar of the tornado) as a row in SI."""
    if found.tornado is not None:
        return pd.DataFrame(tornado_json(found.tornado)["bars"])
    rows = []
    for name, swept in zip(found.names, found.sweeps, strict=True):
        for point in swept.points:
            data = point_json(point, swept.base)
            parts = {f"{k}_s": v for k, v in data.pop("breakdown_s", {}).items()}
            rows.append({"plan": name} | data.pop("values") | data | parts)
    return pd.DataFrame(rows)


def figure_of(found: WhatIf, font: str = "") -> str:
    """Return the figure as SVG, for a page or with a `font` of its own: the tornado, or the sweep."""
    if found.tornado is not None:
        by = found.tornado.by
        drawn = tornado(bars_frame(found.tornado), found.tornado.base.metric(by), METRICS[by], by)
        return svg(drawn, "tornado", f"what moves the {METRICS[by]} most", font)
    rows, axis, y_title, marks = _lines(found)
    return svg(sweep_lines(rows, axis, y_title, marks), "sweep", f"{y_title} over {axis.title}", font)


def bars_frame(found: Tornado) -> pd.DataFrame:
    """Return the rows of a tornado's figure."""
    return pd.DataFrame([{
        "title": bar.name, "low_text": bar.texts[1], "high_text": bar.texts[2], "at_low": bar.at_low.metric(found.by),
        "at_high": bar.at_high.metric(found.by),
    } for bar in found.bars], columns=["title", "low_text", "high_text", "at_low", "at_high"])


def _lines(found: WhatIf) -> tuple[pd.DataFrame, Axis, str, list[tuple[float, str]]]:
    """Return the rows of the figure: x, its text, the line and its height; what x and y are; and marks on x."""
    settings = found.sweeps[0].settings
    along = max(settings, key=lambda s: (s.input.is_continuous, len(s.values)))
    given, others = along.input, [s for s in settings if s is not along]
    unit = "" if along.are_factors else given.unit
    scale = UNITS[given.dimension][unit] if unit else 1.0
    step = len(found.plans) == 1
    rows = []
    for name, swept in zip(found.names, found.sweeps, strict=True):
        for p in swept.points:
            if p.prediction is None:
                continue
            value = p.values[along.name]
            line = ", ".join(f"{s.name} {s.text(p.values[s.name])}" for s in others) or ("step" if step else name)
            whole = {"x": value / scale if given.is_continuous else value, "text": along.text(value), "fits": p.fits}
            rows.append(whole | {"line": line, "y": p.prediction.step_time_s if step else p.metric(found.options.by)})
            if step and not others:
                rows += [whole | {"line": term, "y": seconds} for term, seconds in p.prediction.breakdown_s.items()]
    frame = pd.DataFrame(rows, columns=["x", "text", "fits", "line", "y"])
    shown = frame[frame["line"].isin(list(dict.fromkeys(frame["line"]))[: MOST_LINES if others else None])]
    axis = Axis(title=given.title + (f", {unit}" if unit else ", over the plan's" if along.are_factors else ""),
                is_continuous=given.is_continuous)
    marks = [(b.value / scale, b.kind) for b in found.break_evens if given.is_continuous]
    return shown, axis, "step, s" if step else METRICS[found.options.by], marks


def whatif_target(path: Path) -> Path:
    """Return where the answer will be written, if it can be: before long work."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f"out: {path}: must end with {', '.join(SUFFIXES)}")
    return files.check_target(path)


def write_whatif(found: WhatIf, path: Path) -> Path:
    """Write the answer by the ending of a file's name: a page, the figure or the rows."""
    if path.suffix == ".csv":
        return files.write_text(path, rows_frame(found).to_csv(index=False, lineterminator="\n"))
    if path.suffix == ".svg":
        return files.write_text(path, figure_of(found, font="sans-serif"))
    return files.write_text(path, _page(found))


def _page(found: WhatIf) -> str:
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )
    tables = [tornado_rows(found.tornado)] if found.tornado else [
        sweep_rows(found, i) for i in range(len(found.sweeps))]
    return environment.get_template("whatif.html.j2").render(
        found=found, tables=tables, names=found.names, left=LEFT, figure=Markup(figure_of(found)),
        colours=css_variables(), dark_colours=css_variables(dark=True))
