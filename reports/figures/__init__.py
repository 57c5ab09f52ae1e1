"""Figures: functions from a table of rows to a matplotlib figure, for pages and notebooks; one palette, units on every axis."""

from reports.figures.choice import PARETO_COLUMNS, alternatives, pareto
from reports.figures.drawing import svg
from reports.figures.gantt import action_spans, gantt
from reports.figures.replay_cost import replay_cost
from reports.figures.risk import fan, goodput_bar, near, tornado
from reports.figures.run import loss_curve, step_times
from reports.figures.scaling import roofline, scaling
from reports.figures.step import between, memory_stack, side_by_side, waterfall
from reports.figures.sweep import Axis, sweep_lines

__all__ = [
    "PARETO_COLUMNS", "Axis", "action_spans", "alternatives", "between", "fan", "gantt", "goodput_bar", "loss_curve",
    "memory_stack", "near", "pareto", "replay_cost", "roofline", "scaling", "side_by_side", "step_times", "svg",
    "sweep_lines", "tornado", "waterfall",
]
