"""The whole run: steps, checkpoints, failures, repairs and spares, from the first token to the last."""

from simulator.run.interval_curve import best_interval, interval_curve
from simulator.run.monte_carlo import Case, one_run, simulate_runs
from simulator.run.outcome import PARTS, Outcome, Outcomes, percentiles
from simulator.run.spares import best_spares, spare_curve
from simulator.run.training import Checkpoints, Reserve, Training, checkpoint_costs

__all__ = ["PARTS", "Case", "Checkpoints", "Outcome", "Outcomes", "Reserve", "Training", "best_interval", "best_spares",
           "checkpoint_costs", "interval_curve", "one_run", "percentiles", "simulate_runs", "spare_curve"]
