"""Accelerators and clusters: every file loads, every figure has a source, every peak has a law, cuts keep hosts whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles import files
from profiles.efficiency import load_efficiency
from profiles.files import BadInput
from profiles.hardware import load_accelerator, load_cluster, with_links, with_num_gpus
from profiles.prices import default_price, prices

ACCELERATORS = files.catalog_names("accelerators")
CLUSTERS = files.catalog_names("clusters")

CLUSTER = """
name: Mine
accelerator: h100-80gb
gpus_per_node: 8
scale_up: {name: NVLink, bandwidth: {value: 450 GB/s, source: me}}
scale_out:
  name: IB
  bandwidth: {value: 400 Gb/s, source: me}
  latency: {value: 5 us, source: me}
  share: {value: 0.9, source: me}
"""


@pytest.mark.parametrize("name", ACCELERATORS)
def test_every_figure_has_a_source_and_every_peak_a_law(name: str) -> None:
    accelerator = load_accelerator(name)
    assert all(accelerator.sources.values())
    laws = load_efficiency(accelerator.laws)
    assert set(accelerator.peak_flop_per_s) <= set(laws.gemm.efficiency)
    assert all(law.source for law in (laws.gemm, laws.attention, laws.scan, laws.memory_bound, laws.scale_up, laws.scale_out))
    assert 1e9 < accelerator.memory_bytes_per_s < 1e14
    assert all(1e12 < peak < 1e17 for peak in accelerator.peak_flop_per_s.values())


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_cluster_loads_and_the_fast_link_is_the_faster(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.scale_up.source and cluster.scale_out.source
    assert cluster.scale_up.bytes_per_s >= cluster.scale_out.bytes_per_s


def test_the_peaks_of_one_die_agree() -> None:
    v100, a100, b200 = (load_accelerator(n).peak_flop_per_s for n in ("v100-32gb", "a100-80gb", "b200-180gb"))
    assert "bf16" not in v100 and v100["fp16"] == 125e12
    assert a100["fp16"] == a100["bf16"]
    assert b200["mxfp8"] == b200["fp8"] == 2 * b200["bf16"] and b200["nvfp4"] == 2 * b200["fp8"]


def test_a_lower_power_limit_slows_kernels_and_not_the_peak() -> None:
    limited, full = load_accelerator("h100-96gb-500w"), load_accelerator("h100-80gb")
    assert limited.peak_flop_per_s["bf16"] == full.peak_flop_per_s["bf16"]
    assert limited.sustained < full.sustained == 1


def test_cutting_a_cluster() -> None:
    cluster = load_cluster("dgx-h100:16")
    assert with_num_gpus(cluster, 64).num_nodes == 8
    assert with_num_gpus(cluster, 4).gpus_per_node == 4
    with pytest.raises(BadInput, match="gpus: 60 do not divide into whole nodes of 8; the next below is 56"):
        with_num_gpus(cluster, 60)
    with pytest.raises(BadInput, match="gpus: 256 are asked for"):
        with_num_gpus(cluster, 256)


@pytest.mark.parametrize(("gpus", "nodes", "per_node"), [(64, 1, 64), (72, 1, 72), (128, 2, 64), (256, 4, 64), (144, 2, 72)])
def test_racks_are_cut_into_alike_parts_of_whole_hosts(gpus: int, nodes: int, per_node: int) -> None:
    cut = with_num_gpus(load_cluster("gb200-nvl72:8"), gpus)
    assert (cut.num_nodes, cut.gpus_per_node) == (nodes, per_node)
    assert cut.gpus_per_node % cut.gpus_per_host == 0


def test_what_racks_cannot_be_cut_into() -> None:
    with pytest.raises(BadInput, match="gpus: 74 do not divide into equal parts of nodes of 72, made of hosts of 4"):
        with_num_gpus(load_cluster("gb200-nvl72:8"), 74)


def test_stated_links_replace_the_catalogue_s() -> None:
    cluster = with_links(load_cluster("dgx-a100"), scale_out_bytes_per_s=25e9, gpus_per_node=4, num_nodes=16, source="the run")
    assert cluster.scale_out.bytes_per_s == 25e9 and cluster.scale_out.source == "the run"
    assert cluster.scale_up == load_cluster("dgx-a100").scale_up
    assert (cluster.gpus_per_node, cluster.num_nodes) == (4, 16)
    with pytest.raises(BadInput, match="scale_out: must be more than zero"):
        with_links(cluster, scale_out_bytes_per_s=0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gpus_per_node: 8", "gpus_per_node: 8\ngpus_per_host: 3", "gpus_per_host: 3 does not divide gpus_per_node 8"),
        ("5 us", "5", "scale_out.latency: 5.0 is a bare number"),
        ("0.9", "0", "scale_out.share: must be more than zero"),
        ("0.9", "1.5", "scale_out.share.value: Input should be less than 1"),
    ],
)
def test_a_cluster_file_with_a_fault_names_the_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CLUSTER)
    assert load_cluster(str(path)).scale_out.latency_s == pytest.approx(5e-6)
    path.write_text(CLUSTER.replace(old, new))
    with pytest.raises(BadInput, match=message) as caught:
        load_cluster(str(path))
    assert "\n" not in str(caught.value)


def test_every_price_is_of_a_known_accelerator_and_has_one_default() -> None:
    for name in {row["accelerator"] for row in prices()}:
        assert name in ACCELERATORS
        assert sum(bool(row.get("default")) for row in prices() if row["accelerator"] == name) == 1
        price = default_price(load_accelerator(name))
        assert price is not None and 0.1 < price.usd_per_gpu_hour < 50 and price.source
