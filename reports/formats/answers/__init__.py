"""What each verb prints with `--json`: one object, whose keys these models state."""

from __future__ import annotations

from reports.formats.answers.asking import CatalogAnswer, FitAnswer, SizeAnswer, WhatifAnswer
from reports.formats.answers.measuring import (
    CalibrateAnswer,
    DataBenchAnswer,
    DataCheckAnswer,
    DataInfoAnswer,
    ProfileAnswer,
    QuickstartAnswer,
    ReliabilityAnswer,
    ShardsAnswer,
    ValidateAnswer,
    ValidateLocalAnswer,
)
from reports.formats.answers.planning import Answer, EstimateAnswer, GoalAnswer, PlanAnswer
from reports.formats.answers.running import (
    CompareAnswer,
    CompareRunAnswer,
    CompareTraceAnswer,
    DryRunAnswer,
    ExportAnswer,
    NodesAnswer,
    ReportAnswer,
    RunAnswer,
    ServeAnswer,
    SimulateAnswer,
    SimulateRunAnswer,
)

ANSWERS: dict[str, type[Answer]] = {
    "catalog": CatalogAnswer, "profile": ProfileAnswer, "estimate": EstimateAnswer, "size": SizeAnswer, "plan": PlanAnswer,
    "plan with a goal": GoalAnswer, "fit": FitAnswer, "simulate": SimulateAnswer, "simulate --run": SimulateRunAnswer,
    "run": RunAnswer, "run --dry-run": DryRunAnswer, "run --nodes": NodesAnswer, "export": ExportAnswer,
    "compare of two plans or runs": CompareAnswer, "compare of a plan and its run": CompareRunAnswer,
    "compare of a plan and traces": CompareTraceAnswer, "whatif": WhatifAnswer, "report": ReportAnswer, "serve": ServeAnswer,
    "validate": ValidateAnswer, "validate --local": ValidateLocalAnswer, "validate --reliability": ReliabilityAnswer,
    "validate --calibrate": CalibrateAnswer, "data prepare": ShardsAnswer, "data check": DataCheckAnswer,
    "data info": DataInfoAnswer, "data bench": DataBenchAnswer, "quickstart": QuickstartAnswer,
}
"""Verb, and what is asked of it -> its answer."""
