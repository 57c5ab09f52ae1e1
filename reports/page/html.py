"""A report as one HTML page that loads nothing: inline SVG, one style, one script."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from reports.figures import svg
from reports.figures.palette import css, css_variables
from reports.page.values import Picture, Report, Table


def html(report: Report) -> str:
    """Return the page; the same report gives the same text."""
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters |= {"said": said, "drawn": drawn, "css": css}
    environment.tests["word"] = is_word
    return environment.get_template("page.html.j2").render(
        report=report, verdict=report.verdict, colours=css_variables(), dark_colours=css_variables(dark=True),
    ) + "\n"


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
