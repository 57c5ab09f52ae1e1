"""What to choose: the question, the rules, the search, money and days, the plan file."""

from planner.plan import Plan, plan_from_prediction, plan_from_search, read_plan, write_plan
from planner.predict import Prediction, predict
from planner.question import Question, ask
from planner.search import Found, search

# last: the function takes the name of the module `plan` here, whose names come from `planner.plan`
from planner.api import frame, plan  # isort: skip

__all__ = ["Found", "Plan", "Prediction", "Question", "ask", "frame", "plan", "plan_from_prediction", "plan_from_search",
           "predict", "read_plan", "search", "write_plan"]
