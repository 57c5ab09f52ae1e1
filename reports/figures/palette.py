"""The colours of every figure, once: those of Okabe and Ito, which colour-blind readers can tell apart.

Color Universal Design (jfly.uni-koeln.de/color); the grey is dark enough to be no green. In a page each is a CSS variable, so
that dark pages lift what would sink.
"""

from __future__ import annotations

ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILLION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#666666"
INK = "#010203"
"""Stands for the page's text colour: `currentColor` in an SVG, all but black elsewhere."""
VARIABLES = {
    ORANGE: "orange", SKY: "sky", GREEN: "green", YELLOW: "yellow", BLUE: "blue", VERMILLION: "vermillion", PURPLE: "purple",
    GREY: "grey",
}
"""What CSS calls each colour."""
DARK = {"blue": "#1f7fc0", "vermillion": "#e8701a"}
"""Colours that are lighter on a dark page."""
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
WHITE_ON = (BLUE, VERMILLION, GREEN, GREY)
"""Colours on which text is white; on the others it is black."""


def ink_on(colour: str) -> str:
    """Return the colour of text on a colour."""
    return "white" if colour in WHITE_ON else "black"


def css(colour: str) -> str:
    """Return a colour as a page's variable, with the colour itself where no page defines it."""
    return f"var(--{VARIABLES[colour]},{colour})" if colour in VARIABLES else colour


def css_variables(dark: bool = False) -> str:
    """Return the declarations of the variables."""
    return " ".join(f"--{name}: {DARK.get(name, colour) if dark else colour};" for colour, name in VARIABLES.items())
