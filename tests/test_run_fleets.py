"""Fleets: the catalogue's files, what people may write, and one clear line for every mistake in one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiles.files import BadInput, catalog_names
from profiles.hardware import load_accelerator
from profiles.reliability import load_fleet, parse_rate
from profiles.storage import default_storage, host_copy
from reports.run_facts import read_facts

DAY_S = 86400.0


@pytest.mark.parametrize("name", catalog_names("reliability"))
def test_every_fleet_of_the_catalogue_says_where_its_figures_are_from(name: str) -> None:
    fleet = load_fleet(name)
    assert {"detection", "restart", "replacement", "repair", "replaced"} <= set(fleet.sources)
    for thing in (*fleet.causes, *fleet.planned):
        assert len(thing.source) > 10 and fleet.sources[thing.name] == thing.source
    assert fleet.failures_per_s(16384, 2048) > 0 or name == "none"


def test_llama_3_has_the_419_interruptions_of_its_table() -> None:
    fleet = load_fleet("llama-3-405b")
    assert fleet.failures_per_s(16384, 2048) * 54 * DAY_S == pytest.approx(419.0)
    # 63 of software do not grow with the nodes, and switches take two at once
    assert fleet.failures_per_s(8192, 1024) * 54 * DAY_S == pytest.approx(63 + 356 / 2)
    assert {c.num_nodes for c in fleet.causes if c.scope == "domain"} == {2}
    assert sum(54 * DAY_S / p.every_s for p in fleet.planned) == pytest.approx(47, rel=1e-4)


def test_the_published_fleets_together_have_the_median_and_the_spread_of_the_nine_rates() -> None:
    rates = [float(f.published) for f in read_facts() if f.quantity == "rate"]
    logs = [math.log(r) for r in rates]
    mean = sum(logs) / len(logs)
    fleet = load_fleet("published")
    hardware = fleet.failures_per_s(8000, 1000) * DAY_S - 0.13
    assert hardware == pytest.approx(math.exp(mean), rel=0.01) and len(rates) == 9
    assert fleet.spread == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in logs) / 8), abs=0.005)
    for f in read_facts():
        if f.quantity == "rate" and f.key not in ("llama-3-405b", "meta-rsc-1"):
            assert load_fleet(f.key).failures_per_s(8000, 1000) * DAY_S == pytest.approx(float(f.published), rel=0.01)


def test_new_accelerators_die_early_on_top_of_what_all_do() -> None:
    new, old = load_fleet("new-generation"), load_fleet("published")
    assert new.failures_per_s(800, 100) == old.failures_per_s(800, 100)
    assert new.early_failures(800, 100, 1e9) == pytest.approx(80.0) and old.early_failures(800, 100, 1e9) == 0.0


@pytest.mark.parametrize(("text", "per_s", "scope"), [
    ("6.5 per 1000 node-days", 6.5e-3 / DAY_S, "node"), ("2e-5 per GPU-hour", 2e-5 / 3600, "gpu"),
    ("54 per 54 job-days", 1 / DAY_S, "job"), ("1 per domain-week", 1 / (7 * DAY_S), "domain"),
    ("0 per node-year", 0.0, "node"),
])
def test_rates_as_people_write_them(text: str, per_s: float, scope: str) -> None:
    rate, found = parse_rate(text)
    assert rate == pytest.approx(per_s) and found == scope


@pytest.mark.parametrize("text", ["6.5", "-2 per node-day", "6.5 per 0 node-days", "x per node-day", "nan per node-day",
                                  "1 per inf node-days", "3 per rack-day", "3 per node-second", "1 per -5 node-days"])
def test_what_is_no_rate_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(BadInput) as e:
        parse_rate(text, "mine.yaml: causes.GPU.rate")
    assert str(e.value).startswith("mine.yaml: causes.GPU.rate: ") and repr(text) in str(e.value)
    assert "\n" not in str(e.value)


PLAIN: dict[str, Any] = {
    "name": "mine", "replaced": {"value": 0.5, "source": "us"}, "detection": {"value": "2 min", "source": "us"},
    "restart": {"value": "3 min", "source": "us"}, "replacement": {"value": "1 min", "source": "us"},
    "repair": {"median": "4 h", "spread": 1.0, "source": "us"},
    "causes": [{"cause": "GPU", "rate": "5 per 1000 node-days", "source": "us"}],
}


def written(tmp_path: Path, **change: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(PLAIN | change))
    return str(path)


def test_a_fleet_of_ones_own(tmp_path: Path) -> None:
    power = {"cause": "power", "rate": "2 per domain-year", "nodes": 32, "replaced": 0, "detection": "1 min", "source": "us"}
    loader = {"cause": "loader", "rate": "1 per job-day", "pause": "10 min", "shape": 0.7, "spread": 0.5, "source": "us"}
    young = {"cause": "young", "early": {"share": 0.05, "of": "GPU", "decay": "2w"}, "source": "us"}
    firmware = {"cause": "firmware", "every": "4w", "lasts": "6h", "source": "us"}
    fleet = load_fleet(written(tmp_path, causes=[*PLAIN["causes"], power, loader, young], planned=[firmware]))
    assert fleet.name == "mine" and fleet.repair_s == 4 * 3600
    assert fleet.mean_repair_s == pytest.approx(4 * 3600 * math.exp(0.5))
    assert [c.replaced for c in fleet.causes] == [0.5, 0.0, 0.5, 0.5]
    assert fleet.causes[1].num_nodes == 32 and fleet.causes[1].detection_s == 60.0
    assert fleet.causes[2].pause_s == 600.0 and fleet.causes[2].shape == 0.7 and fleet.causes[2].spread == 0.5
    assert fleet.causes[3].early_decay_s == 14 * DAY_S
    # pauses and early deaths are no steady interruptions
    assert fleet.failures_per_s(256, 32) * DAY_S == pytest.approx(5 * 32 / 1000 + 2 / 365.25)
    assert fleet.planned[0].lasts_s == 6 * 3600


def cause(**change: Any) -> dict[str, Any]:
    return {"causes": [PLAIN["causes"][0] | change]}


@pytest.mark.parametrize(("change", "parts"), [
    (cause(rate="-5 per 1000 node-days"), ("causes.GPU.rate", "at least 0")),
    (cause(rate=None), ("causes.GPU", "either a rate or early mortality")),
    (cause(rate=5), ("causes.0.rate", "string")),
    (cause(source=""), ("causes.0.source", "at least 1")),
    (cause(rate="5 per domain-day"), ("causes.GPU.nodes", "several nodes")),
    (cause(rate=None, early={"share": 0.1, "of": "rack", "decay": "3w"}), ("early.of", "gpu, node", "'rack'")),
    (cause(rate=None, early={"share": 1.1, "of": "GPU", "decay": "3w"}), ("early.share", "1.1")),
    (cause(rate=None, early={"share": 0.1, "of": "GPU", "decay": "0 s"}), ("early.decay", "more than zero")),
    (cause(replaced=2), ("replaced", "is 2")), (cause(shape=0), ("shape", "is 0")), (cause(nodes=0), ("nodes", "is 0")),
    (cause(pause="soon"), ("causes.GPU.pause", "'soon'")), (cause(mtbf="3h"), ("mtbf",)),
    ({"causes": PLAIN["causes"] * 2}, ("'GPU' stands there twice",)),
    ({"detection": {"value": "5", "source": "us"}}, ("detection", "unit is needed")),
    ({"repair": {"median": "-1 h", "spread": 0, "source": "us"}}, ("repair.median", "negative")),
    ({"planned": [{"cause": "x", "every": "0 h", "lasts": "1 h", "source": "us"}]}, ("planned.x.every", "more than zero")),
])
def test_mistakes_in_a_fleet_are_one_line_that_names_the_field(
    change: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as e:
        load_fleet(written(tmp_path, **change))
    message = str(e.value)
    assert "mine.yaml" in message and "\n" not in message
    for part in parts:
        assert part in message, message


def test_an_unknown_fleet_lists_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"fleet: 'ours' is neither in the catalogue nor a YAML file; .*ant.*skt-b200"):
        load_fleet("ours")
    with pytest.raises(BadInput, match="no such file"):
        load_fleet("ours.yaml")


def test_storage_and_host_copies_have_rates_and_sources() -> None:
    assert default_storage().bytes_per_s == 1e8 and "BLOOM" in default_storage().source
    rates = [host_copy(load_accelerator(n)).bytes_per_s for n in ("v100-32gb", "a100-80gb", "h100-80gb", "b200-180gb")]
    assert rates == [12e9, 26.3e9, 52e9, 52e9]
