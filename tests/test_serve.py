"""The server of the page: what it answers agrees with the planner; what is hostile is refused, and it stays up."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import mistake
from hypothesis import given
from hypothesis import strategies as st
from served import ASKED, ask, serving

import planner
from planner.bill import bill
from planner.counts import searched
from planner.space import brief_space
from profiles import files
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.serve.answer import NUM_REPLAYED, controls
from reports.serve.asked import Asked, asked_from, command_of, question_of
from reports.serve.parts import plain

CONFIG = json.dumps(files.catalog_mapping("models", "gpt2")["config"])
MODELS, CLUSTERS = files.catalog_names("models"), files.catalog_names("clusters")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Return the port of a server for all tests of the module."""
    with serving() as found:
        yield found


def test_an_answer_is_what_the_planner_says(port: int) -> None:
    answer = ask(port, "/api/answer", ASKED | {"failures": 0.0}).json
    question = planner.ask(load_model("gpt2"), load_cluster("dgx-h100:1"), tokens=1e9, cluster_text="dgx-h100:1")
    best = searched(question, None, brief_space, num_replayed=NUM_REPLAYED).prediction
    assert best is not None
    assert answer["prediction"] == json.loads(json.dumps(best.as_dict()))
    assert answer["bill"]["usd"] == bill(question, best.strategy, best.as_dict()).as_dict()["usd"]
    assert answer["command"] == "headway plan gpt2 dgx-h100:1 --tokens 1B"


def test_a_step_that_is_known_makes_another_run(port: int) -> None:
    """Tokens, price and failures need no search; what they give is what a search would have given."""
    first = ask(port, "/api/answer", ASKED | {"failures": 0.0}).json
    more = ask(port, "/api/answer", ASKED | {"failures": 0.0, "tokens": "3B", "price": "1.5 USD/h"}).json
    assert more["prediction"]["step_time_s"] == first["prediction"]["step_time_s"]
    assert more["prediction"]["days"] == pytest.approx(3 * first["prediction"]["days"], rel=1e-12)
    assert more["prediction"]["usd"] == pytest.approx(more["prediction"]["gpu_hours"] * 1.5, rel=1e-12)
    long = ASKED | {"tokens": "10T"}
    days = [ask(port, "/api/answer", long | {"failures": f}).json["bill"]["days"]["p50"] for f in (0.0, 1.0, 8.0)]
    assert days == sorted(days) and days[0] < days[2]


def test_more_sizes_are_the_answers_of_other_counts(port: int) -> None:
    found = ask(port, "/api/sizes", ASKED).json["points"]
    assert [p["num_gpus"] for p in found] == [2, 4, 8, 16, 32]
    assert [p["is_chosen"] for p in found] == [False, False, True, False, False]
    there = ask(port, "/api/answer", ASKED | {"gpus": 16, "global_batch": 4096}).json
    assert found[3]["days"] == there["bill"]["days"] and found[3]["strategy"] == there["strategy"]


@pytest.mark.parametrize("given", [
    {}, {"tokens": "2.5B", "seq_len": 512, "price": "1.5 USD/h", "network": "100 Gb/s", "model": "mine.json", "config": CONFIG},
], ids=["plain", "changed"])
def test_the_plan_is_that_of_the_command_line(
    port: int, run: Any, tmp_path: Path, given: dict[str, Any],
) -> None:
    reply = ask(port, "/api/plan", ASKED | {"gpus": 2} | given)
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert reply.status == 200 and all(0 <= line["share"] <= 1 for line in lines[:-1])
    written = lines[-1]["files"]
    for name in set(written) - {"plan.yaml"}:
        (tmp_path / name).write_text(written[name])
    assert run(*shlex.split(lines[-1]["command"])[1:]).code == 0
    assert (tmp_path / "plan.yaml").read_bytes() == written["plan.yaml"].encode()


def test_nothing_that_fits_is_an_answer(port: int) -> None:
    reply = ask(port, "/api/answer", ASKED | {"model": "gpt3-175b", "gpus": 1})
    assert reply.status == 200 and reply.json["prediction"] is None
    assert "usable on" in reply.json["reason"] and "Does not fit" in reply.json["html"]["verdict"]
    refused = ask(port, "/api/plan", ASKED | {"model": "gpt3-175b", "gpus": 1})
    assert "nothing fits" in refused.body.decode()


NESTED = b'{"model":' + b"[" * 100_000
HOSTILE: dict[str, tuple[int, dict[str, Any]]] = {
    "no JSON": (422, {"body": b"{"}), "a list": (422, {"body": b"[]"}), "deeply nested": (422, {"body": NESTED}),
    "nothing": (422, {"body": b""}), "not UTF-8": (422, {"body": b"\xff\xfe{}"}),
    "infinite": (422, {"body": json.dumps(ASKED | {"failures": float("inf")})}),
    "no number": (422, {"body": json.dumps(ASKED | {"failures": float("nan")})}),
    "huge whole": (422, {"body": json.dumps(ASKED | {"gpus": 10**400})}),
    "longer than Python reads": (422, {"body": b'{"gpus": ' + b"9" * 10_000 + b"}"}),
    "huge tokens": (422, {"body": ASKED | {"tokens": "1e300T"}}), "no tokens": (422, {"body": ASKED | {"tokens": "0"}}),
    "text for a number": (422, {"body": ASKED | {"gpus": "8"}}), "a flag": (422, {"body": ASKED | {"gpus": True}}),
    "negative": (422, {"body": ASKED | {"gpus": -8}}), "null": (422, {"body": ASKED | {"model": None}}),
    "an unknown field": (422, {"body": ASKED | {"profile": "/etc/passwd"}}),
    "a path as model": (422, {"body": ASKED | {"model": "../../etc/passwd"}}),
    "a file as model": (422, {"body": ASKED | {"model": "pyproject.json"}}),
    "a path as cluster": (422, {"body": ASKED | {"cluster": "/etc/passwd.yaml"}}),
    "a path that stays": (422, {"body": ASKED | {"cluster": "..%2f..%2fetc"}}),
    "a pool": (422, {"body": ASKED | {"cluster": "dgx-h100+dgx-a100"}}),
    "GPUs that do not divide": (422, {"body": ASKED | {"gpus": 12}}),
    "no rate": (422, {"body": ASKED | {"network": "0 Gb/s"}}),
    "a rate of YAML": (422, {"body": ASKED | {"network": "{a: b}"}}),
    "a dear price": (422, {"body": ASKED | {"price": "1e30 USD/h"}}),
    "a sequence too long": (422, {"body": ASKED | {"seq_len": 1_000_000}}),
    "a billion layers": (422, {"body": ASKED | {"model": "x.json", "config": CONFIG.replace(": 12", ": 1000000000")}}),
    "a config of lists": (422, {"body": ASKED | {"model": "x.json", "config": "[" * 50_000}}),
    "a config in YAML": (422, {"body": ASKED | {"model": "x.yaml", "config": "a: &a [x]\nb: [*a, *a]"}}),
    "a form": (415, {"body": b"model=gpt2", "content_type": "application/x-www-form-urlencoded"}),
    "text": (415, {"body": json.dumps(ASKED).encode(), "content_type": "text/plain"}),
    "100 MB": (413, {"body": b'{"model": "' + b"x" * 100_000_000}), "1 MB": (413, {"body": b" " * 2**20}),
    "a foreign host": (421, {"body": ASKED, "host": "evil.example"}),
    "a host that begins so": (421, {"body": ASKED, "host": "localhost.evil.example"}),
    "no host's name": (421, {"body": ASKED, "host": "[::"}),
    "an address of others": (421, {"body": ASKED, "host": "192.0.2.1"}),
    "a foreign page": (421, {"body": ASKED, "origin": "https://evil.example"}),
    "no page": (421, {"body": ASKED, "origin": "null"}),
    "a path": (404, {"path": "/../../etc/passwd"}), "an encoded path": (404, {"path": "/%2e%2e/%2e%2e/etc/passwd"}),
    "a file of ours": (404, {"path": "/server.py"}), "another method": (405, {"path": "/api/answer", "method": "PUT"}),
    "reading an endpoint": (405, {"path": "/api/plan"}), "a long path": (404, {"path": "/" + "a" * 5000}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused(port: int, name: str) -> None:
    status, told = HOSTILE[name]
    given = dict(told)
    reply = ask(port, given.pop("path", "/api/answer"), **given)
    line = reply.json["error"]
    assert (reply.status, line.count("\n")) == (status, 0), reply
    assert len(line) < 500 and "Traceback" not in line and "root:" not in line


def test_the_server_stays_up(port: int) -> None:
    """Requests that are broken off, or never finished, leave it answering."""
    for said in (b"", b"GET", b"\x00" * 1000, b"POST /api/answer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{",
                 b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
                 b"POST /api/answer HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                 b"content-length: 71\r\n\r\n" + json.dumps(ASKED | {"tokens": "7B"}).encode()):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(said)
    assert ask(port, "/api/answer", ASKED).status == 200


def test_the_page_may_load_nothing_from_elsewhere(port: int) -> None:
    for path in ("/", "/page.js", "/page.css", "/icon.svg"):
        reply = ask(port, path)
        assert reply.status == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert b"https://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
    answer = ask(port, "/api/answer", ASKED).json
    assert "style=" not in "".join(answer["html"].values()) and "<script" not in "".join(answer["html"].values())


def test_other_hosts_where_asked_for() -> None:
    with serving("--host", "0.0.0.0", "--allow-host", "planner.example") as port:
        assert ask(port, "/", host="planner.example:80").status == 200
        assert ask(port, "/", host="192.0.2.1").status == 200
        assert ask(port, "/", host="evil.example").status == 421


def test_without_the_extra(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("reports.serve.server", "reports.serve.guard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    mistake(run("serve"), "serve: uvicorn is not installed", "pip install 'headway[serve]'")


def test_ports_that_cannot_be(run: Any) -> None:
    mistake(run("serve", "--port", "70000"), "port: must be from 0 to 65535 (is 70000)")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        mistake(run("serve", "--port", str(taken.getsockname()[1])), "port: cannot listen on 127.0.0.1:", "--port 0")


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_what_the_sliders_say_at_first_changes_nothing(cluster: str) -> None:
    """A cluster's own network, price and sequence, sent as the page sends them, are no options."""
    asked = Asked(model="llama-3-8b", cluster=cluster, gpus=1, tokens="1B")
    found = controls(asked, tell=lambda share: None)
    own, num = found["own"], found["values"]["gpus"][-1]
    told = Asked(model="llama-3-8b", cluster=cluster, gpus=num, tokens="1T", seq_len=own["seq_len"], network=own["network"],
                 price=own["price"] or None, precision=own["precision"])
    node = files.catalog_mapping("clusters", cluster)["gpus_per_node"]
    precision = "" if own["precision"] == "bf16" else f" --precision {own['precision']}"
    assert command_of(told) == f"headway plan llama-3-8b {cluster}:{num // node} --tokens 1T{precision}"
    for num in found["values"]["gpus"]:
        assert question_of(told.model_copy(update={"gpus": num})).cluster.num_gpus == num
    for name in ("network", "price"):
        for text in found["values"][name]:
            question_of(told.model_copy(update={name: text, "gpus": node}))


typed = ["1T", "400 Gb/s", "2 USD/h", "1e99 B", "-1", "gpt2", "dgx-h100", "a.json", "{}"]
texts = st.text(max_size=50) | st.sampled_from(typed)
values = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts, max_size=2)


@given(st.dictionaries(st.sampled_from([*Asked.model_fields, "x"]), values), st.booleans())
def test_whatever_is_asked_is_a_question_or_one_line(data: dict[str, Any], whole: bool) -> None:
    try:
        question_of(asked_from(json.dumps(data | ASKED if whole else ASKED | data).encode()))
    except BadInput as e:
        assert str(e)


def test_styles_become_attributes() -> None:
    assert plain('<path style="fill: none; stroke-width: 2"/>') == '<path fill="none" stroke-width="2"/>'
    assert plain('<svg style="max-width: 518px">') == '<svg width="518">'
    assert plain('<i style="background: var(--blue,#0072b2)"></i>') == '<i class="mark blue"></i>'
