"""The page: its HTML, script and style, made once when the server starts."""

from __future__ import annotations

from profiles import files
from reports.figures.palette import VARIABLES
from reports.page.html import environment

FIELDS = (
    ("what", "What is trained", (
        ("tokens", "Tokens", "1T"), ("seq_len", "Sequence, tokens", "8192"),
    )),
    ("where", "On what", (
        ("gpus", "GPUs", "64"), ("network", "Network per GPU", ""), ("price", "Price per GPU", ""),
    )),
    ("odds", "What goes wrong", (("failures", "Failures", "1"),)),
)
"""Groups of the form: key, title, and its sliders: name, label, first value (empty: the cluster's own)."""
MODEL, CLUSTER = "llama-3-8b", "dgx-h100"


def page_files() -> dict[str, tuple[str, str]]:
    """Return what the server hands out: path -> media type and text."""
    made = environment()
    page = made.get_template("serve.html.j2").render(
        groups=FIELDS, model=MODEL, cluster=CLUSTER, models=files.catalog_names("models"),
        clusters=[name for name in files.catalog_names("clusters")
                  if "gpus_per_node" in files.catalog_mapping("clusters", name)],
    )
    style = made.get_template("serve.css.j2").render(marks=VARIABLES.values())
    return {
        "/": ("text/html", page), "/page.js": ("text/javascript", made.get_template("serve.js").render()),
        "/page.css": ("text/css", style), "/icon.svg": ("image/svg+xml", ICON),
    }


ICON = ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0072b2"/>'
        '<path d="M3 11h3V8h3V5h4" fill="none" stroke="#fff" stroke-width="2"/></svg>')
