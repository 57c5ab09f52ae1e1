"""What it looked like: tables for the terminal, comparisons, figures and one page."""

from reports.compare import Comparison, compare_plan_run, compare_plans
from reports.page import write_page

__all__ = ["Comparison", "compare_plan_run", "compare_plans", "write_page"]
