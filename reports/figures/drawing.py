"""How every figure is drawn, and made into SVG: a figure is a function from a table of rows to a matplotlib figure.

matplotlib is imported when the first figure is drawn, since it takes longer to load than a plan to make. In a notebook the
figures show themselves; a page takes them as SVG whose letters and colours are the page's, the same bytes each time.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from profiles.units import UNITS
from reports.compare import shown
from reports.figures.palette import INK, VARIABLES, css

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "figure.dpi": 72,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False, "axes.titlesize": 10,
}
PIXELS_PER_INCH = 96
SHORT_SPAN = 4.0
"""An axis whose numbers span less than so many times is not logarithmic: it would have too few numbers written on it."""


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Return a drawing function whose figure has the style of all."""
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        from matplotlib import style

        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return styled


def sheet(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, whose parts make room for each other."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, name: str, title: str, font: str = "") -> str:
    """Return a figure as the SVG element of a page; `name` keeps its ids apart from those of other figures.

    A file of its own has no page to take its letters from: it names a `font`.
    """
    from matplotlib import style

    text = io.StringIO()
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure.savefig(text, format="svg", metadata={"Date": None})
    inline = _inline(text.getvalue(), title, figure.get_figwidth())
    return inline.replace("<svg ", f'<svg color="#16191d" font-family="{font}" ', 1) if font else inline


def _inline(text: str, title: str, width: float) -> str:
    """Return an SVG for the inside of a page: no prolog, no metadata, no ids but those it refers to."""
    body = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</defs>", r"font-family: [^;\"]*;? ?"):
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace(INK, "currentColor")
    body = re.sub("|".join(VARIABLES), lambda colour: css(colour[0]), body)
    body = re.sub(r' d="[^"]*"', lambda d: re.sub(r"\d+\.\d{3,}", lambda x: f"{float(x[0]):.2f}", d[0]), body)
    # a box in the short words of SVG: horizontal and vertical lines
    body = re.sub(r"M (\S+) (\S+)\sL (\S+) \2\sL \3 (\S+)\sL \1 \4\sz", r"M\1 \2H\3V\4H\1z", body)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box[1]}" '
        f'role="img" aria-label="{escape(title)}" style="max-width: {width * PIXELS_PER_INCH:.0f}px" '
        f'stroke-linejoin="round">{body}'
    )


def scale(seconds: float) -> tuple[float, str]:
    """Return a unit in which so many seconds read well, and its seconds."""
    unit = shown(seconds, "s").split()[1]
    return UNITS["s"][unit], unit


def brief(name: str, most: int = 34) -> str:
    """Return a name with its lines cut where they are longer than a figure has room for."""
    return "\n".join(line if len(line) <= most else f"{line[: most - 1].rstrip()}…" for line in name.split("\n"))


def bare(axes: Axes) -> None:
    """Leave an axis for the values only."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def plain_numbers(axes: Axes, which: str = "both") -> None:
    """Make axes logarithmic where their numbers span more than a few times, with plain numbers, also between powers of ten."""
    for name in ("x", "y") if which == "both" else (which,):
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        if low <= 0 or high < SHORT_SPAN * low:
            axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
            continue
        getattr(axes, f"set_{name}scale")("log")
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.set_minor_formatter(_minor if np.log10(high / low) < 2.2 else lambda value, _: "")
    axes.grid(which="both", color=INK, alpha=0.1, linewidth=0.6)


def _minor(value: float, _: object) -> str:
    """Return numbers that begin with 2, 3 or 5: as many labels as a short axis has room for."""
    return f"{value:,.10g}" if round(value / 10 ** np.floor(np.log10(value))) in (2, 3, 5) else ""
