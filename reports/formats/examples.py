"""A whole example of each file format: a file of the catalogue where there is one. Tests read each as the tool does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from executor.data.shards import IndexFile
from executor.manifest import Manifest
from executor.run import RunFile
from planner.plan import read_plan
from profiles import files
from profiles.accelerators import load_accelerator
from profiles.families import load_model
from profiles.hardware import load_cluster
from profiles.prices import PricesFile
from profiles.reliability import load_fleet
from profiles.storage_prices import StoragePricesFile
from profiles.tables import read_table
from simulator.data_stall import read_data_profile
from simulator.networks import build_fabric
from simulator.schedules import load_table
from simulator.software import load_software

LONGEST = 60
"""Lines of an example that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A file: its name (whose ending is its language), its text, and what reads it or says what is wrong."""

    file: str
    text: str
    read: Callable[[Path], Any]
    from_catalogue: bool = False

    @property
    def shown(self) -> str:
        """Return the example as a block of Markdown; lines that are too many are left out."""
        lines = self.text.rstrip().splitlines()
        more = [f"# ... {len(lines) - LONGEST} lines more"] if len(lines) > LONGEST else []
        language = {".csv": "csv", ".json": "json"}.get(Path(self.file).suffix, "yaml")
        where = f"`profiles/catalog/{self.file}`:" if self.from_catalogue else f"`{self.file}`:"
        return "\n".join([where, "", f"```{language}", *lines[:LONGEST], *more, "```"])


def _catalogue(name: str, read: Callable[[Path], Any]) -> Example:
    return Example(file=name, text=files.catalog_path(name).read_text(encoding="utf-8"), read=read, from_catalogue=True)


def _as(kind: type[Any]) -> Callable[[Path], Any]:
    return lambda path: files.validate(kind, files.read_mapping(path), str(path))


def _rows(name: str, kind: type[Any], num: int) -> Example:
    """Return the first rows of a catalogue's list of prices."""
    data = files.parse_mapping(files.catalog_path(name).read_text(encoding="utf-8"), name)
    text = yaml.safe_dump(data | {"prices": data["prices"][:num]}, sort_keys=False, width=120)
    return Example(file=name, text=text, read=_as(kind))


MODEL = {
    "name": "tiny", "family": "llama", "hidden": 1024, "vocab": 32000, "max_seq_len": 4096,
    "kinds": [
        {"name": "dense", "mixer": {"kind": "attention", "num_heads": 16, "num_kv_heads": 4, "head_dim": 64},
         "ffn": {"kind": "dense", "hidden": 4096}},
        {"name": "sparse", "mixer": {"kind": "attention", "num_heads": 16, "num_kv_heads": 4, "head_dim": 64},
         "ffn": {"kind": "experts", "num_experts": 8, "top_k": 2, "hidden": 2048}},
    ],
    "pattern": [0, 1, 0, 1, 0, 1, 0, 1],
}


def _dump(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, width=110, default_flow_style=None)


def _plan() -> str:
    question = {"model": asdict(load_model("gpt2")), "cluster": "dgx-h100:1", "num_gpus": 8, "tokens": 1e10}
    strategy = {"dp": 8, "zero": 1, "micro_batch": 16, "num_microbatches": 4, "seq_len": 1024}
    return _dump({"schema": "headway.plan/1", "question": {**question, "model": _plain(question["model"])},
                  "strategy": strategy, "prediction": {}})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


CLUSTER = """\
name: {name}
accelerator: h100-80gb
gpus_per_node: 8
num_nodes: {nodes}
scale_up: {{name: NVLink4, bandwidth: {{value: 450 GB/s, source: data sheet}}}}
scale_out: {{name: RoCE, bandwidth: {{value: 400 Gb/s, source: our order}}}}
network:
{network}"""

TORUS = CLUSTER.format(name="a torus of nodes", nodes=16, network="""\
  nics_per_node: 1
  scale_out: {kind: torus, dims: [4, 4], link_bandwidth: 800 Gb/s, source: our cabling}
""")
LINKS = CLUSTER.format(name="two switches", nodes=4, network="""\
  nics_per_node: 1
  scale_out:
    kind: links
    switches: [left, right]
    links:
    - {ends: [node0, left], bandwidth: 400 Gb/s}
    - {ends: [node1, left], bandwidth: 400 Gb/s}
    - {ends: [node2, right], bandwidth: 400 Gb/s}
    - {ends: [node3, right], bandwidth: 400 Gb/s}
    - {ends: [left, right], bandwidth: 400 Gb/s}
    source: our cabling
""")
POOL = """\
name: what we have
parts:
- {cluster: dgx-a100, num_nodes: 8}
- {cluster: dgx-h100, num_nodes: 8}
wire: {name: RoCE between halls, bandwidth: {value: 100 Gb/s, source: our order}}
"""
PROFILE = """\
# schema: headway.profile/1
# name: this-machine
# date: '2026-11-01'
# num_ranks: 2
# peak_flop_per_s: {fp32: 60000000000.0}
# memory_bytes_per_s: 9000000000.0
# memory_bytes: 8000000000
# framework_bytes: 400000000
# backend: gloo
# environment: {torch: 2.11.0, device: two cores}
kind,pass,dtype,mode,size_0,size_1,size_2,size_3,group_size,bytes,median_s,p10_s,p90_s,num_samples
gemm,F,fp32,eager,512,512,512,,,,0.0045,0.0044,0.0048,20
all_reduce,,fp32,eager,,,,,2,1048576,0.0009,0.0008,0.0012,20
memory_copy,,,,,,,,,16777216,0.0019,0.0018,0.0021,20
"""
DATA_PROFILE = """\
schema: headway.data-profile/1
storage_bytes_per_s: 250000000.0
memory_bytes_per_s: 2000000000.0
decompress_bytes_per_s: 700000000.0
prepare_tokens_per_s: 120000000.0
num_tokens: 1000000000
token_bytes: 2
block_tokens: 262144
stored_bytes_per_token: 1.1
window: 64
depth: 8
source: measured on our storage, 2026-11-01
"""
INDEX = """\
{"schema": "headway.shards/1", "tokenizer": {"name": "bytes", "sha256": ""}, "vocab": 256, "end_of_document": 255,
 "dtype": "uint8", "num_tokens": 400000, "num_documents": 12, "text_bytes": 399988, "block_tokens": 262144, "level": 3,
 "zstd": "1.5.6", "shards": [{"file": "shard-00000", "bytes": [61000, 32000], "crc32": [2774302941, 91838332]}],
 "fingerprint": "5f0c..."}
"""
MANIFEST = """\
{"schema": "headway.checkpoint/1", "step": 200, "next_sample": 3200, "global_batch": 16, "seq_len": 1024, "seed": 0,
 "model": "8b1e...", "data": "5f0c...", "strategy": "dp=2, ZeRO-3", "world_size": 2, "date": "2026-11-01", "torch": "2.11.0",
 "files": {".metadata": {"bytes": 40213, "sha256": "77aa..."}, "__0_0.distcp": {"bytes": 30000128, "sha256": "c01d..."}},
 "fingerprint": "e2f9..."}
"""
RUN = """\
{"job": {"num_steps": 3}, "environment": {"torch": "2.11.0"}, "step_time_s": 0.51, "p10_s": 0.5, "p90_s": 0.53,
 "tokens_per_s": 32125.5, "step_times_s": [0.9, 0.51, 0.51], "losses": [5.6, 5.1, 4.8], "next_sample": 48,
 "data_wait_s": 0.0004, "idle_memory_bytes": [310000000, 310000000], "peak_memory_bytes": [910000000, 905000000],
 "reserved_memory_bytes": [910000000, 905000000], "timeline_rows": 84, "first_step": 0}
"""
SCHEDULE = "0F0,0F1,,,0B0,,0B1\n,1F0,1B0,1F1,1B1,,\n"


def _wired(path: Path) -> Any:
    return build_fabric(load_cluster(str(path)))


def examples() -> dict[str, tuple[Example, ...]]:
    """Return the examples of each format, by its title."""
    return {
        "Model": (Example(file="tiny.yaml", text=_dump(MODEL), read=lambda path: load_model(str(path))),),
        "Plan": (Example(file="plan.yaml", text=_plan(), read=read_plan),),
        "Cluster": (_catalogue("clusters/dgx-h100.yaml", lambda path: load_cluster(str(path))),),
        "Networks of a cluster": (
            _catalogue("clusters/h100-roce3200.yaml", _wired), Example(file="torus.yaml", text=TORUS, read=_wired),
            Example(file="links.yaml", text=LINKS, read=_wired),
        ),
        "Pool": (Example(file="pool.yaml", text=POOL, read=lambda path: load_cluster(str(path))),),
        "Accelerator": (_catalogue("accelerators/h100-80gb.yaml", lambda path: load_accelerator(str(path))),),
        "Software": (_catalogue("software/torchtitan-2025.yaml", lambda path: load_software(str(path))),),
        "Fleet": (_catalogue("reliability/mpt-7b.yaml", lambda path: load_fleet(str(path))),),
        "Prices": (_rows("prices.yaml", PricesFile, 2), _rows("storage_prices.yaml", StoragePricesFile, 1)),
        "Profile": (Example(file="profile.csv", text=PROFILE, read=read_table),),
        "Data profile": (Example(file="data.yaml", text=DATA_PROFILE, read=read_data_profile),),
        "Shards": (Example(file="index.json", text=INDEX, read=_as(IndexFile)),),
        "Schedule": (Example(file="own.csv", text=SCHEDULE, read=load_table),),
        "Run folder": (Example(file="run.json", text=RUN, read=_as(RunFile)),),
        "Checkpoint": (Example(file="manifest.json", text=MANIFEST, read=_as(Manifest)),),
    }
