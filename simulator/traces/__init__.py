"""Traces of others, and our own, as timelines; `simulator.timeline` writes them."""

from simulator.traces.read import PROFILER, is_trace, read_trace

__all__ = ["PROFILER", "is_trace", "read_trace"]
