"""A report as one HTML page that loads nothing: inline SVG, one style, one script."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reports.figures import svg
from reports.figures.palette import css, css_variables
from reports.page.values import Picture, Report, Table


def html(report: Report) -> str:
    """Return the page; the same report gives the same text."""
    return environment().get_template("page.html.j2").render(report=report, verdict=report.verdict) + "\n"


@cache
def environment() -> Environment:
    """Return where templates are found, with what all of them use."""
    made = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )
    made.filters |= {"said": said, "drawn": drawn, "css": css}
    made.tests["word"] = is_word
    made.globals |= {"colours": css_variables(), "dark_colours": css_variables(dark=True)}
    return made


def said(text: str) -> Markup:
    """Return prose as HTML: what stands between back quotes as code, [words](address) as a link."""
    text = str(escape(text))
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    return Markup(re.sub(r"\[([^\]]*)\]\(([^)\s]*)\)", r'<a href="\2" rel="noreferrer">\1</a>', text))


def drawn(picture: Picture) -> Markup:
    """Return a picture as an element of the page."""
    return Markup(svg(picture.figure, picture.name, picture.title))


def is_word(column: str, table: Table) -> bool:
    """Return whether a column holds words."""
    return column in table.words
