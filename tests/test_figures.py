"""Figures: each shows the data that it is given, has units on its axes, and nothing in it overlaps or is cut."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from profiles.units import UNITS
from reports import figures
from reports.figures import accuracy, palette
from reports.figures.drawing import brief
from simulator.timeline import COLUMNS

GIB = UNITS["bytes"]["GiB"]
LONG = "a rather long name of a thing, 16,384 x GB300-NVL72"
WATERFALL = pd.DataFrame({"term": ["compute", "bubble", "exposed_dp", "optimizer"],
                          "name": ["compute", "pipeline bubble", "exposed dp communication", "optimizer"],
                          "seconds": [3.0, 0.5, 0.002, 0.001]})
MEMORY = pd.DataFrame({"part": ["weights", "gradients", "optimizer", "activations", "framework"],
                       "bytes": [10 * GIB, 20 * GIB, 9 * GIB, 0.1 * GIB, 1.5 * GIB]})
ALTERNATIVES = pd.DataFrame({"p10_s": [0.9, 1.0], "step_time_s": [1.0, 1.1], "p90_s": [1.1, 1.3]})
POINTS = pd.DataFrame([("dgx-h100, on-demand", 32, 576.0, 534.0, 621.0, 1.30e6, False, True, False),
                       ("dgx-h100, on-demand", 64, 289.0, 268.0, 312.0, 1.31e6, True, True, True),
                       (LONG, 128, 146.0, 136.0, 158.0, 1.4e6, False, False, False)], columns=list(figures.PARETO_COLUMNS))
SCALING = pd.DataFrame({"num_gpus": [4096, 8192, 16384, 32768], "tokens_per_s": [3e5, 5.9e5, 1.1e6, 2e6],
                        "cost_per_token": [87.0, 88.0, 90.0, 99.0], "is_change": [False, True, False, True],
                        "is_chosen": [False, False, True, False]})
MATMULS = pd.DataFrame({"pass": ["F", "B", "W", "F"], "flop_per_byte": [2000.0, 1900.0, 300.0, 20.0],
                        "flop_per_s": [6e14, 6.1e14, 4e14, 3e13], "seconds": [1.0, 1.0, 2.0, 0.1]})
DAYS = pd.DataFrame({"days": np.linspace(80.0, 120.0, 101)})
PARTS = pd.DataFrame({"part": ["productive", "redone", "checkpoint", "waiting"],
                      "name": ["new steps", "steps done again", "writing checkpoints", "waiting for nodes"],
                      "share": [0.9, 0.06, 0.0399, 0.0001]})
BARS = pd.DataFrame({"title": ["slow_rank", "network", "a_very_long_name_of_an_input"], "low_text": ["1", "200 Gb/s", "0.7252"],
                     "high_text": ["1.22", "800 Gb/s", "1,069 TFLOP/s"], "at_low": [100.0, 110.0, 108.0],
                     "at_high": [122.0, 96.0, 104.0]})
NEAR = pd.DataFrame({"name": ["mpt-7b\n256 x H100-80GB-SXM", f"{LONG}\n{LONG}"], "ratio": [0.98, 1.2], "low": [0.9, 1.1],
                     "high": [1.05, 1.3]})
STEPS = pd.DataFrame({"step": range(1, 8), "step_time_s": [3.0, 1.0, 1.1, 1.0, 1.2, 1.0, 1.0],
                      "is_warm_up": [True] + [False] * 6})
LOSS = pd.DataFrame({"step": [1, 2, 3], "loss": [10.0, 9.5, 9.2]})
SIDES = pd.DataFrame({"term": ["compute", "bubble"], "predicted_s": [1.0, 0.2], "measured_s": [1.1, 0.4]})
BETWEEN = pd.DataFrame({"name": ["matmul", "exposed dp communication", "attention"], "seconds": [0.3, -0.1, 0.05]})
ERRORS = pd.DataFrame({"group": ["A100", LONG, "A100"], "error": [0.1, -0.3, 0.9]})
RUNS = pd.DataFrame({"gpu": ["H100-80GB-SXM", "A100-80GB-SXM"], "measured_s": [1.0, 20.0], "predicted_s": [1.1, 19.0],
                     "error": [0.1, -0.05]})
LINES = pd.DataFrame({"x": [100.0, 200.0, 400.0], "text": ["100", "200", "400"], "y": [1.0, 0.8, 0.7],
                      "fits": [True, True, False], "line": "step"})


def timeline(num_ranks: int, num_microbatches: int) -> pd.DataFrame:
    rows = []
    for rank, batch in itertools.product(range(num_ranks), range(num_microbatches)):
        for i, pass_ in enumerate("FB"):
            start = rank + 3.0 * batch + i
            rows.append((rank, "compute", start, start + 1.0 + 0.5 * i, "layer", pass_, 0, batch, 0.0, "predicted"))
            rows.append((rank, "dp", start + 0.2, start + 0.4, "reduce", pass_, 0, batch, 1e6, "predicted"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


REPLAYS = pd.DataFrame([(what, ranks, 4 * ranks * m, each_s * 4 * ranks * m) for what, each_s in (("table", 1e-5), (LONG, 2e-5))
                        for ranks in (4, 32) for m in (32, 256)], columns=["what", "ranks", "actions", "seconds"])

DRAWN: dict[str, Callable[[], Figure]] = {
    "waterfall": lambda: figures.waterfall(WATERFALL),
    "memory": lambda: figures.memory_stack(MEMORY, 79.6 * GIB),
    "memory that does not fit": lambda: figures.memory_stack(MEMORY, 15 * GIB),
    "alternatives": lambda: figures.alternatives(ALTERNATIVES),
    "pareto": lambda: figures.pareto(POINTS, "USD"),
    "pareto of much": lambda: figures.pareto(POINTS.assign(cost=[1e5, 1e6, 3e7]), "USD", {"deadline": 200.0, "budget": 2e6}),
    "scaling": lambda: figures.scaling(SCALING, "USD per 1 B tokens"),
    "scaling of one": lambda: figures.scaling(SCALING.iloc[:1], "GPU-hours per 1 B tokens"),
    "roofline": lambda: figures.roofline(MATMULS, {"bf16": 989.4e12, "fp8": 1978.9e12}, 3.35e12),
    "fan": lambda: figures.fan(DAYS, 15e12, 79.0),
    "goodput": lambda: figures.goodput_bar(PARTS),
    "goodput of a run that loses nothing": lambda: figures.goodput_bar(PARTS.iloc[:1].assign(share=1.0)),
    "tornado": lambda: figures.tornado(BARS, 105.0, "days with failures", "days"),
    "near": lambda: figures.near(NEAR),
    "steps": lambda: figures.step_times(STEPS, (0.9, 1.0, 1.15)),
    "loss": lambda: figures.loss_curve(LOSS),
    "sides": lambda: figures.side_by_side(SIDES),
    "between": lambda: figures.between(BETWEEN, ("A", "B"), (1.0, 1.25), "time of a step"),
    "gantt": lambda: figures.gantt(timeline(2, 4), 14.0),
    "gantt of many": lambda: figures.gantt(timeline(40, 30), 140.0, [(0.0, 20.0), (120.0, 140.0)]),
    "sweep": lambda: figures.sweep_lines(LINES, figures.Axis("network between nodes, Gb/s", True), "step, s",
                                         [(300.0, "fits")]),
    "scatter": lambda: accuracy.scatter(RUNS),
    "histogram": lambda: accuracy.histogram(RUNS),
    "spans": lambda: accuracy.spans(ERRORS),
    "replay": lambda: figures.replay_cost(REPLAYS),
}


def words(figure: Figure) -> list[Text]:
    """Return the texts that are seen."""
    texts = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        # the ticks that are drawn; an axis keeps others
        texts += [tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()]  # type: ignore[attr-defined]
    return [text for text in texts if text.get_visible() and text.get_text().strip()]


def faults(figure: Figure) -> list[str]:
    """Return what is cut at the edge of a figure, and which texts overlap."""
    FigureCanvasAgg(figure).draw()
    found, boxes = [], [(text.get_text(), text.get_window_extent()) for text in words(figure)]
    for name, box in boxes:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1:
            found.append(f"{name!r} is cut")
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > 1 and high > 2:
            found.append(f"{one!r} overlaps {other!r}")
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_overlaps_and_nothing_is_cut(name: str) -> None:
    assert faults(DRAWN[name]()) == []


def test_what_overlaps_or_is_cut_is_found() -> None:
    figure = DRAWN["waterfall"]()
    axes = figure.axes[0]
    axes.text(1.0, 1.0, "one"), axes.text(1.01, 1.0, "two")
    axes.annotate("cut", (0, 0), xycoords="figure pixels", xytext=(-20, 20), textcoords="figure pixels")
    assert {"'cut' is cut", "'one' overlaps 'two'"} <= set(faults(figure))


UNIT = re.compile(r"(, (s|ms|us|%|GiB|Gb/s|TFLOP/s|T|B|nats per token|FLOP per byte moved))|days|USD|GPU-hours|GPUs|tokens/s|"
                  r"step|runs|measured step time")


@pytest.mark.parametrize("name", DRAWN)
def test_every_axis_of_numbers_says_what_it_is_with_its_unit(name: str) -> None:
    for axes in DRAWN[name]().axes:
        shared = axes.get_shared_x_axes().get_siblings(axes)
        assert any(UNIT.search(a.get_xlabel()) for a in shared), name
        texts = [t.get_text() for t in axes.get_yticklabels()]
        if texts and all(re.fullmatch(r"[\d.,−e+]*", t) for t in texts) and len(axes.get_yticks()) and "gantt" not in name:
            assert UNIT.search(axes.get_ylabel()) or name in ("alternatives",), name


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_the_same_bytes_each_time_and_all_its_colours_are_the_palettes(name: str) -> None:
    first, second = (figures.svg(DRAWN[name](), "x", "a title") for _ in range(2))
    assert first == second and 'aria-label="a title"' in first
    hexes = set(re.findall(r"#[0-9a-f]{6}\b", first)) - set(palette.VARIABLES) - {"#ffffff", "#000000"}
    assert not hexes, hexes
    assert "font-family" not in first and 'font-family="serif"' in figures.svg(DRAWN[name](), "x", "t", font="serif")


def bars(figure: Figure, axes: int = 0) -> list[tuple[float, float]]:
    """Return where each bar begins and how long it is, in the order in which they were drawn."""
    return [(p.get_x(), p.get_width()) for p in figure.axes[axes].patches if hasattr(p, "get_width")]


def test_a_waterfall_adds_up_to_the_step() -> None:
    drawn = bars(figures.waterfall(WATERFALL))
    assert [b for b, _ in drawn] == pytest.approx([0.0, 3.0, 3.5, 3.502, 0.0])
    assert drawn[-1][1] == pytest.approx(WATERFALL["seconds"].sum())


def test_the_memory_stack_ends_at_the_peak_and_marks_what_is_usable() -> None:
    figure = figures.memory_stack(MEMORY, 79.6 * GIB)
    begin, length = bars(figure)[-1]
    assert begin + length == pytest.approx(40.6)
    assert figure.axes[0].lines[0].get_xdata()[0] == pytest.approx(79.6)


def test_the_scaling_curve_has_the_rates_the_linear_line_and_its_marks() -> None:
    upper, lower = figures.scaling(SCALING, "USD per 1 B tokens").axes
    linear, curve, changes, chosen = (line.get_ydata() for line in upper.lines)
    assert list(curve) == list(SCALING["tokens_per_s"]) and linear[-1] == pytest.approx(8 * 3e5)
    assert list(changes) == [5.9e5, 2e6] and list(chosen) == [1.1e6]
    assert list(lower.lines[0].get_ydata()) == list(SCALING["cost_per_token"])


def test_the_roof_is_bandwidth_then_peak_and_no_dot_lies_above_it() -> None:
    axes = figures.roofline(MATMULS, {"bf16": 989.4e12}, 3.35e12).axes[0]
    x, roof = (np.asarray(v, dtype=float) for v in axes.lines[0].get_data())
    assert roof.max() == pytest.approx(989.4)
    assert roof[x < 200] == pytest.approx(x[x < 200] * 3.35)
    dots = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])
    assert len(dots) == len(MATMULS) and (dots[:, 1] <= np.interp(dots[:, 0], x, roof)).all()


def test_the_cost_of_replays_lies_on_its_line_where_all_actions_cost_as_much() -> None:
    axes = figures.replay_cost(REPLAYS).axes[0]
    for line, num in zip(axes.lines[:2], (4, 2), strict=True):
        actions, seconds = np.array(line.get_data(), dtype=float)
        assert (seconds / actions).tolist() == pytest.approx([1e-5] * num)


def test_the_fan_ends_at_the_percentiles() -> None:
    axes = figures.fan(DAYS, 15e12, 79.0).axes[0]
    ends = [tuple(p.get_xy()[1:3, 0]) for p in axes.patches]
    assert ends == [pytest.approx((82.0, 118.0)), pytest.approx((84.0, 116.0)), pytest.approx((90.0, 110.0))]
    assert {p.get_xy()[1, 1] for p in axes.patches} == {15.0}
    # runs that do not end leave the bands out that they would be the end of
    unending = figures.fan(pd.DataFrame({"days": [90.0] * 70 + [math.inf] * 30}), 15e12, 79.0).axes[0]
    assert len(unending.patches) == 0 and len(unending.lines) == 2


def test_the_goodput_bar_shows_each_loss() -> None:
    figure = figures.goodput_bar(PARTS)
    assert [w for _, w in bars(figure)] == pytest.approx([90.0, 10.0])
    assert [w for _, w in bars(figure, 1)] == pytest.approx([6.0, 3.99, 0.01])


def test_the_tornado_reaches_from_now_to_each_end() -> None:
    drawn = bars(figures.tornado(BARS, 105.0, "days with failures", "days"))
    assert drawn == [(105.0, -5.0), (105.0, 17.0), (105.0, 5.0), (105.0, -9.0), (105.0, 3.0), (105.0, -1.0)]


def test_pareto_marks_the_front_the_changes_and_the_choice() -> None:
    lines = {line.get_label(): list(line.get_xdata()) for line in figures.pareto(POINTS, "USD").axes[0].lines}
    assert lines["nothing is faster and cheaper"] == [289.0, 576.0] and lines["chosen"] == [289.0]
    assert lines["another strategy than with fewer GPUs"] == [289.0] and lines[brief(LONG)] == [146.0]


def test_published_runs_stand_at_their_ratio() -> None:
    axes = figures.near(NEAR).axes[0]
    assert [list(line.get_xdata()) for line in axes.lines[:4]] == [[0.9, 1.05], [0.98], [1.1, 1.3], [1.2]]


def test_the_steps_of_a_run_stand_over_the_prediction() -> None:
    axes = figures.step_times(STEPS, (0.9, 1.0, 1.15)).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["measured"] == list(STEPS["step_time_s"][1:]) and lines["warm-up, beyond the axis"] == [3.0]


def test_two_stacks_and_a_fall_have_the_length_of_their_steps() -> None:
    drawn = bars(figures.side_by_side(SIDES))
    assert [b + w for b, w in drawn] == pytest.approx([1.0, 1.2, 1.1, 1.5])
    fall = bars(figures.between(BETWEEN, ("A", "B"), (1.0, 1.25), "time of a step"))
    assert [w for _, w in fall[2:]] == pytest.approx([0.3, -0.1, 0.05])


def test_a_gantt_has_a_bar_for_each_action() -> None:
    axes = figures.gantt(timeline(2, 4), 14.0).axes[0]
    # an outline of each pass and of each stream, a rank; five corners a bar
    assert [len(p.get_path().vertices) / 5 for p in axes.patches] == [8, 4, 4] * 2
    assert {t.get_text() for t in axes.texts} == {f"{p}{m}" for p in "FB" for m in range(4)}


# what an eye sees of red, green and blue light (linear): Machado et al., doi 10.1109/TVCG.2009.113, severity 1
EYES = {
    "all colours": np.eye(3),
    "no red cones": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                              [-0.003882, -0.048116, 1.051998]]),
    "no green cones": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                                [-0.011820, 0.042940, 0.968881]]),
}


def lab(colour: str, eye: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return CIE L*a*b* (D65) of a colour as an eye sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(eye @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_that_stand_together_are_told_apart_by_every_eye(eye: str, dark: bool) -> None:
    """Passes, streams, parts of the memory and terms of the step: at least 12 apart in L*a*b* (2.3 is just noticed)."""
    def of(colours: Sequence[str]) -> list[str]:
        return [palette.DARK.get(palette.VARIABLES[c], c) if dark else c for c in dict.fromkeys(colours)]

    for group in (palette.PASS_COLOURS, palette.STREAM_COLOURS, palette.MEMORY_COLOURS):
        for one, other in itertools.combinations(of(list(group.values())), 2):
            assert np.linalg.norm(lab(one, EYES[eye]) - lab(other, EYES[eye])) > 12, (one, other)
