"""What the catalogue holds, as tables."""

from __future__ import annotations

from profiles import files
from profiles.families import load_model, num_active_params, num_params
from profiles.hardware import Accelerator, load_accelerator, load_cluster
from profiles.prices import prices
from profiles.reliability import load_fleet
from profiles.units import show, significant


def _peak(accelerator: Accelerator) -> str:
    peaks = accelerator.peak_flop_per_s
    return show(peaks["bf16"], "flop_per_s", 4) if "bf16" in peaks else "-"


KINDS = ("models", "accelerators", "clusters", "software", "fleets", "prices")
"""What the catalogue lists."""
GPUS_A_NODE = 8
"""On how many accelerators a node the failures of fleets are shown."""


def catalog_rows(kind: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of one kind of the catalogue."""
    if kind == "models":
        models = [load_model(name) for name in files.catalog_names("models")]
        return ["model", "parameters", "active", "layers", "hidden", "a layer", "vocab", "context", "source"], [
            [m.name, show(num_params(m), "count", 4), show(num_active_params(m), "count", 4), str(m.num_layers),
             str(m.hidden), m.describe_layers(), str(m.vocab), str(m.max_seq_len), m.source] for m in models
        ]
    if kind == "accelerators":
        found = [load_accelerator(name) for name in files.catalog_names("accelerators")]
        return ["accelerator", "title", "usable memory", "bandwidth", "peak bf16 (dense)", "power", "source"], [
            [a.name, a.title, show(a.memory_bytes, "bytes"), show(a.memory_bytes_per_s, "bytes_per_s"),
             _peak(a), show(a.power_w, "w") if a.power_w else "-", a.sources["memory_bandwidth"]] for a in found
        ]
    if kind == "clusters":
        clusters = [load_cluster(name) for name in files.catalog_names("clusters")]
        return ["cluster", "node", "accelerator", "GPUs a node", "inside the node, per GPU", "between nodes, per GPU"], [
            [c.name, c.title, c.accelerator.name, str(c.gpus_per_node),
             f"{c.scale_up.name} {show(c.scale_up.bytes_per_s, 'bytes_per_s')}",
             f"{c.scale_out.name} {show(c.scale_out.bytes_per_s, 'bytes_per_s')}"] for c in clusters
        ]
    if kind == "software":
        from simulator.software import load_software

        software = [load_software(name) for name in files.catalog_names("software")]
        return ["software", "framework", "year", "kernels", "attention", "source"], [
            [s.name, s.framework, str(s.year), s.kernels, s.attention, s.source] for s in software
        ]
    if kind == "fleets":
        fleets = [load_fleet(name) for name in files.catalog_names("reliability")]
        return ["fleet", "title", "causes", "failures a 1,000 node-days", "noticed in", "started again in", "repaired in"], [
            [f.name, f.title, str(len(f.causes)), significant(f.failures_per_s(1000 * GPUS_A_NODE, 1000) * 86400.0),
             show(f.detection_s, "s"), show(f.restart_s, "s"), show(f.repair_s, "s")] for f in fleets
        ]
    head = ["accelerator", "provider", "sku", "term", "price", "date", "source", "default"]
    return head, [[str(row.get(k, "")).replace("True", "yes") for k in head] for row in prices()]
