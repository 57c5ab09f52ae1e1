"""Figures as SVG text for the page: the same values give the same bytes, and text takes the colour of the page.

matplotlib is imported when the first figure is drawn, since it takes longer to load than a plan to make.
Colours are those of Okabe and Ito (Color Universal Design, jfly.uni-koeln.de/color), safe for colour-blind readers.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.units import UNITS, show
from reports.compare import share, shown
from simulator.pricing import IN_LINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILLION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#8c8c8c"
INK = "#010203"
"""Stands for the page's text colour; `currentColor` in the SVG."""
TERM_COLOURS = {
    "compute": BLUE, "bubble": GREY, "exposed_tp": ORANGE, "exposed_pp": PURPLE, "exposed_dp": VERMILLION,
    "exposed_cp": YELLOW, "exposed_ep": SKY, "optimizer": GREEN, "data": SKY, "other": GREY,
    "passes": BLUE, "waiting": GREY,
}
MEMORY_COLOURS = {
    "weights": BLUE, "gradients": SKY, "optimizer": GREEN, "gathered": YELLOW, "activations": VERMILLION,
    "transient": ORANGE, "framework": GREY, "slack": PURPLE,
}
PASS_COLOURS = {"F": SKY, "B": BLUE, "W": YELLOW, "U": GREEN}
STREAM_COLOURS = {"tp": ORANGE, "cp": YELLOW, "ep": SKY, "dp": VERMILLION, "pp": PURPLE}
"""Communication; what the host waits for is left blank, like every wait."""
WHITE_ON = (BLUE, VERMILLION, GREEN)
"""Colours on which text is white; on the others it is black."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "figure.dpi": 72,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False, "axes.titlesize": 10,
}
PIXELS_PER_INCH = 96
GANTT_WIDTH = 10.8


def _svg(name: str, title: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> str:
    """Return the SVG of a figure of so many inches; `name` keeps its ids apart from those of other figures."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return _inline(text.getvalue(), title, size[0])


def _inline(svg: str, title: str, width: float) -> str:
    """Return an SVG for the inside of a page: no prolog, no metadata, no ids but those it refers to."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</defs>", r"font-family: [^;\"]*;? ?"):
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace(INK, "currentColor")
    body = re.sub(r' d="[^"]*"', lambda d: re.sub(r"\d+\.\d{3,}", lambda x: f"{float(x[0]):.2f}", d[0]), body)
    # a box in the short words of SVG: horizontal and vertical lines
    body = re.sub(r"M (\S+) (\S+)\sL (\S+) \2\sL \3 (\S+)\sL \1 \4\sz", r"M\1 \2H\3V\4H\1z", body)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert box is not None
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" '
        f'role="img" aria-label="{escape(title)}" style="max-width: {width * PIXELS_PER_INCH:.0f}px" '
        f'stroke-linejoin="round">{body}'
    )


def _scale(seconds: float) -> tuple[float, str]:
    """Return a unit in which so many seconds read well, and its seconds."""
    unit = shown(seconds, "s").split()[1]
    return UNITS["s"][unit], unit


def waterfall(parts_s: dict[str, float], names: dict[str, str]) -> str:
    """Return where a step's time goes: one bar for each term, beginning where the one before ends."""
    terms = [term for term, seconds in parts_s.items() if seconds > 0]
    total = sum(parts_s[term] for term in terms)
    factor, unit = _scale(total)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        begin = 0.0
        for row, term in enumerate(terms):
            length = parts_s[term] / factor
            axes.barh(row, length, left=begin, height=0.7, color=TERM_COLOURS[term])
            _value_label(axes, (begin, length), total / factor, row, TERM_COLOURS[term], share(parts_s[term] / total))
            begin += length
        axes.barh(len(terms), begin, height=0.7, color="none", edgecolor=INK, linewidth=0.8)
        axes.text(begin / 2, len(terms), shown(total, "s"), ha="center", va="center")
        axes.set_yticks(range(len(terms) + 1), [*(_short(names[term]) for term in terms), "step"])
        axes.set_xlabel(f"time from the start of the step, {unit}")
        _bare(axes)
        axes.invert_yaxis()

    return _svg("waterfall", "where the step's time goes", (5.4, 0.75 + 0.36 * (len(terms) + 1)), draw)


def _short(name: str) -> str:
    return name.replace(" communication", "").replace("pipeline ", "")


def _value_label(axes: Axes, bar: tuple[float, float], total: float, row: float, colour: str, text: str) -> None:
    """Write a bar's value where there is room, inside or beside it; a bar is where it begins and its length."""
    begin, length = bar
    if length > 0.14 * total:
        ink = "white" if colour in WHITE_ON else "black"
        axes.text(begin + length / 2, row, text, ha="center", va="center", color=ink)
    elif begin > 0.5 * total:
        axes.text(begin - 0.01 * total, row, text, ha="right", va="center")
    else:
        axes.text(begin + length + 0.01 * total, row, text, ha="left", va="center")


def _bare(axes: Axes) -> None:
    """Leave an axis for the values only."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def memory_stack(parts_bytes: dict[str, float], usable_bytes: float) -> str:
    """Return the bytes of the fullest rank in one stack, against what is usable."""
    gib = UNITS["bytes"]["GiB"]
    peak, usable = sum(parts_bytes.values()) / gib, usable_bytes / gib

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        begin = 0.0
        for name, size in parts_bytes.items():
            length, colour = size / gib, MEMORY_COLOURS[name]
            axes.barh(0, length, left=begin, height=0.8, color=colour)
            if length > 0.13 * max(peak, usable):
                text = "white" if colour in WHITE_ON else "black"
                axes.text(begin + length / 2, 0, f"{name}\n{show(size, 'bytes')}", ha="center", va="center", color=text,
                          fontsize=9)
            begin += length
        axes.axvline(usable, color=INK, linewidth=1.6, linestyle=(0, (4, 2)))
        left = usable >= peak / 2
        axes.annotate(f"usable {show(usable_bytes, 'bytes')}", (usable, 0.56), (-5 if left else 5, 0),
                      textcoords="offset points", ha="right" if left else "left")
        axes.set(xlabel="memory of the fullest rank, GiB", yticks=[], ylim=(-0.45, 0.9),
                 xlim=(0, 1.02 * max(peak, usable)))
        _bare(axes)

    return _svg("memory", "peak memory of the fullest rank", (5.4, 1.75), draw)


def alternatives(steps_s: Sequence[tuple[float, float, float]]) -> str:
    """Return the step times (P10, P50, P90) of the chosen strategy and of those that came next."""
    factor, unit = _scale(max(s[1] for s in steps_s))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, (low, middle, high) in enumerate(steps_s):
            colour = BLUE if row == 0 else GREY
            axes.plot([low / factor, high / factor], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot(middle / factor, row, "o", color=colour, markersize=8)
        axes.axvline(steps_s[0][1] / factor, color=BLUE, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(steps_s)), ["chosen", *map(str, range(1, len(steps_s)))])
        axes.set_xlabel(f"step time, {unit}: median and P10 to P90")
        axes.set_ylim(len(steps_s) - 0.4, -0.6)
        _bare(axes)

    return _svg("alternatives", "step time of the alternatives", (6.8, 0.75 + 0.27 * len(steps_s)), draw)


def gantt(rows: dict[str, pd.DataFrame], step_time_s: float, windows_s: Sequence[tuple[float, float]]) -> str:
    """Return one step by rank in these windows of time, from the rows of each: passes, and communication below them."""
    factor, unit = _scale(step_time_s)
    row_height = float(np.clip(5.5 / len(rows), 0.14, 0.55))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(windows_s), sharey=True, squeeze=False)[0]
        for axes, window in zip(grid, windows_s, strict=True):
            for row, of_rank in enumerate(rows.values()):
                _gantt_row(axes, row, of_rank, window, factor, GANTT_WIDTH / len(windows_s))
            axes.set(xlim=(window[0] / factor, window[1] / factor), ylim=(len(rows) - 0.5, -0.5),
                     xlabel=f"time from the start of the step, {unit}")
            _bare(axes)
        labelled = range(0, len(rows), math.ceil(len(rows) / 24))
        grid[0].set_yticks(labelled, [name for i, name in enumerate(rows) if i in labelled])

    return _svg("gantt", "one step, rank by rank", (GANTT_WIDTH, 1.0 + row_height * len(rows)), draw)


def action_spans(rows: pd.DataFrame) -> pd.DataFrame:
    """Return when each action of a rank begins and ends, its layers together: pass, microbatch, start_s, end_s.

    A rank with chunks runs a pass of a micro-batch several times, with others between.
    """
    busy = rows[rows["stream"].isin(("compute", *IN_LINE))].sort_values("start_s", kind="stable")
    action = busy[["pass", "microbatch"]]
    number = (action != action.shift()).any(axis=1).cumsum()
    return busy.groupby(number).agg(**{
        "pass": ("pass", "first"), "microbatch": ("microbatch", "first"), "start_s": ("start_s", "min"),
        "end_s": ("end_s", "max"),
    })


def _gantt_row(
    axes: Axes, row: int, rows: pd.DataFrame, window: tuple[float, float], factor: float, inches: float
) -> None:
    """Draw a rank in one window that is so many inches wide."""
    rows = rows[(rows["end_s"] > window[0]) & (rows["start_s"] < window[1])]
    width = window[1] - window[0]
    for stream, part in rows[rows["stream"].isin(STREAM_COLOURS)].groupby("stream"):
        spans = _joined(part[["start_s", "end_s"]].to_numpy(float), width / (150 * inches))
        _boxes(axes, np.clip(spans, *window) / factor, (row + 0.20, row + 0.40), STREAM_COLOURS[str(stream)])
    actions = action_spans(rows)
    for pass_, part in actions.groupby("pass"):
        spans = np.clip(part[["start_s", "end_s"]].to_numpy(float), *window)
        # a hairline between neighbours
        spans[:, 1] -= np.minimum(width / (100 * inches), 0.15 * (spans[:, 1] - spans[:, 0]))
        _boxes(axes, spans / factor, (row - 0.42, row + 0.16), PASS_COLOURS[str(pass_)])
    for name, microbatch, start, end in actions.itertuples(index=False):
        text, room = f"{name}{microbatch}", (end - start) / width * inches
        if microbatch >= 0 and room > 0.1 + 0.08 * len(text) and window[0] <= start and end <= window[1]:
            axes.text((start + end) / 2 / factor, row - 0.13, text, ha="center", va="center", fontsize=8,
                      color="white" if PASS_COLOURS[name] in WHITE_ON else "black")


def _joined(spans: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return spans [n, 2] with those made one that have no more than a gap between them."""
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > reach[:-1] + gap])
    last = np.concatenate([first[1:], [True]])
    return np.stack([spans[first, 0], reach[last]], axis=1)


def _boxes(axes: Axes, spans: NDArray[np.float64], edges: tuple[float, float], colour: str) -> None:
    """Draw spans [n, 2] as one outline: a thousand bars are one element of the SVG."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    low, high = edges
    corners = [[(a, low), (b, low), (b, high), (a, high), (a, low)] for a, b in spans.tolist()]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(spans)
    outline = Outline(np.array(corners).reshape(-1, 2), codes)
    axes.add_artist(PathPatch(outline, facecolor=colour, edgecolor="none"))


def loss_curve(losses: Sequence[float]) -> str:
    """Return the loss of each step."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=1.6, marker="o" if len(losses) < 3 else "")
        axes.set(xlabel="step", ylabel="loss, nats per token")
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)

    return _svg("loss", "loss of each step", (5.4, 2.6), draw)


def step_times(steps_s: Sequence[float], num_warmup_steps: int, predicted_s: tuple[float, float, float]) -> str:
    """Return the measured time of each step over the predicted median and P10 to P90."""
    low, middle, high = predicted_s
    factor, unit = _scale(max(middle, float(np.median(steps_s))))
    numbers, times = np.arange(1, len(steps_s) + 1), np.array(steps_s) / factor

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axhspan(low / factor, high / factor, color=ORANGE, alpha=0.3, linewidth=0, label="predicted P10 to P90")
        axes.axhline(middle / factor, color=ORANGE, linewidth=1.6, label="predicted")
        warm = numbers > num_warmup_steps
        marks: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4}
        axes.plot(numbers[warm], times[warm], color=BLUE, label="measured", **marks)
        # an axis from zero, whose end leaves warm-up steps outside where they would press the others flat
        top = 1.15 * max(times[warm].max(), high / factor)
        if num_warmup_steps:
            beyond = ", beyond the axis" if times[~warm].min() > top else ""
            axes.plot(numbers[~warm], times[~warm], color=GREY, label=f"warm-up{beyond}", **marks)
        axes.set_ylim(0, top)
        axes.set(xlabel="step", ylabel=f"step time, {unit}")
        axes.locator_params(axis="x", integer=True)
        figure.legend(loc="outside upper center", ncols=2)

    return _svg("steps", "time of each step", (5.4, 2.9), draw)


def side_by_side(predicted_s: dict[str, float], measured_s: dict[str, float]) -> str:
    """Return the parts of a step, predicted over measured, as two stacks."""
    factor, unit = _scale(max(sum(side.values()) for side in (predicted_s, measured_s)))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, side in enumerate((predicted_s, measured_s)):
            begin = 0.0
            for term, seconds in side.items():
                axes.barh(row, seconds / factor, left=begin, height=0.7, color=TERM_COLOURS[term])
                begin += seconds / factor
        axes.set_yticks((0, 1), ("predicted", "measured"))
        axes.set_xlabel(f"time, {unit}")
        axes.set_ylim(1.5, -0.5)
        _bare(axes)

    return _svg("sides", "parts of the step, predicted and measured", (5.4, 1.7), draw)
