"""What happens if: one strategy in, one timeline out."""

from simulator.estimate import Estimate, estimate
from simulator.memory import Memory, peak_memory
from simulator.replay import replay
from simulator.strategy import Strategy
from simulator.timeline import Timeline, write_trace
from simulator.workload import Workload, build_workload

__all__ = ["Estimate", "Memory", "Strategy", "Timeline", "Workload", "build_workload", "estimate",
           "peak_memory", "replay", "write_trace"]
