"""The report of a plan and its run: what it says, that it loads nothing, that the page alone can be replayed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_reports import PIPED, PLAIN, plan_of, run_of

import headway
from executor.goodput import Goodput
from planner.plan import plan_from_prediction, plan_from_search, read_plan, write_plan
from planner.predict import predict_replayed
from planner.question import ask
from planner.search import search
from planner.space import brief_space
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.compare import current_prediction, shown
from reports.matmuls import matmuls
from reports.nearest import distance, nearest
from reports.page import Findings, brief, gather, html, markdown, render_page, report_of, summary, write_page
from reports.page.evidence import formulas
from reports.page.measured import drift
from reports.page.values import Exhibit, Report
from reports.page.verdict import verdict
from simulator.strategy import Strategy


@pytest.fixture(scope="module")
def found() -> Findings:
    model, cluster = load_model("llama-3-8b"), load_cluster("dgx-h100:16")
    asked = ask(model, cluster, tokens=15e12, cluster_text="dgx-h100:16")
    return gather(brief(plan_from_search(asked, search(asked, axes=brief_space(asked)))))


@pytest.fixture(scope="module")
def report(found: Findings) -> Report:
    return report_of(found)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return html(report)


@pytest.fixture(scope="module")
def piped() -> Findings:
    """A small plan and a run of it that was a tenth slower than predicted."""
    plan = plan_of(PIPED)
    return gather(brief(plan, run_of(plan, 1.1)))


def text_of(page: str) -> str:
    bare = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare)))


def rewritten(found: Findings, **changes: Any) -> str:
    """Return the page of findings of which some are others."""
    return html(report_of(replace(found, **changes)))


def test_the_page_answers_in_its_first_lines(found: Findings, page: str) -> None:
    text, p, bill, price = text_of(page), found.prediction, found.bill, found.question.price
    assert bill.usd is not None and price is not None
    for fact in (
        "Fits", shown(p.peak_memory_bytes, "bytes"), "79.6 GiB", "128 GPUs", shown(float(bill.usd.p50), "usd"),
        f"{bill.days.p50:.0f} days", f"P10 {bill.days.p10:.0f} days", f"P90 {bill.days.p90:.0f} days", f"as of {price.date}",
        shown(p.tokens_per_s, "tokens/s"), f"{p.mfu:.1%}".replace("%", " %"), found.plan.strategy.describe(),
        shown(p.step_time_s, "s"), "what binds", "compute, ",
    ):
        assert fact in text[:1700], fact


def test_the_sections_stand_in_order_and_each_has_its_answer_in_one_sentence(report: Report, page: str) -> None:
    assert [s.key for s in report.sections] == ["bill", "why", "alternatives", "scaling", "step", "risk", "evidence"]
    assert all(s.gist.endswith(".") and len(s.gist) < 300 for s in report.sections)
    places = [page.index(f'<h2 id="{s.key}">') for s in report.sections]
    assert places == sorted(places)


def exhibits(report: Report) -> list[Exhibit]:
    return [e for section in report.sections for e in section.exhibits]


def test_every_figure_has_its_table_beside_it(report: Report, page: str) -> None:
    drawn = [e for e in exhibits(report) if e.picture is not None]
    assert len(drawn) == 11 and page.count("<svg") == 11
    assert all(e.table is not None and e.table.rows for e in drawn)
    assert all(len(row) == len(e.table.head) for e in exhibits(report) if e.table for row in e.table.rows)


def test_the_page_shows_alternatives_reasons_and_sources(found: Findings, page: str) -> None:
    text, plan = text_of(page), found.plan
    for other in plan.runners_up:
        assert Strategy(**other["strategy"]).describe() in text
    for rule, count in plan.rejected.items():
        assert re.search(rf"{re.escape(rule)} +{count:,}", text)
    assert all(example["reason"] in text for example in plan.rejected_examples)
    assert all(digest in text for digest in plan.inputs.values())
    assert found.question.cluster.scale_out.source in text
    assumed = (*found.question.assumptions, *found.bill.assumptions)
    assert all(" ".join(line.replace("`", "").split()) in text for line in assumed)


def test_the_page_loads_nothing(page: str) -> None:
    """No element that fetches, no address that is not a link; and its own policy forbids all that a script could load."""
    assert not re.search(r"<(link|img|iframe|object|embed|video|audio|form|base)\b", page)
    assert not re.search(r"""\b(src|srcset|action|data)\s*=\s*["']""", page) and not re.search(r"@import|url\((?!#)", page)
    assert {a for a in re.findall(r'href="([^"]*)"', page) if not a.startswith("#")} == {"https://ui.perfetto.dev"}
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|importScripts|import\(|eval\(", page)
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\"" in page
    assert len(page) < 2_000_000


def test_ids_are_unique_and_every_reference_finds_its_id(page: str) -> None:
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) | set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_the_page_alone_is_replayed_to_the_same_bytes(piped: Findings, tmp_path: Path) -> None:
    """The plan in a page is the plan; the page that is made of it is the page, in another folder too."""
    plan = piped.plan
    first = write_page(plan, tmp_path / "a" / "plan.html")
    again = read_plan(first)
    assert (again.strategy, again.prediction, again.inputs, again.question) == (
        plan.strategy, plan.prediction, plan.inputs, plan.question)
    assert write_page(again, tmp_path / "again.html").read_bytes() == first.read_bytes()


def test_a_measured_profile_travels_in_the_page(tmp_path: Path, piped: Findings) -> None:
    pytest.importorskip("tests_support")
    from tests_support import tiny_profile

    profile = tiny_profile(tmp_path / "profile.csv")
    asked = ask(load_model("bytes-5m"), load_cluster("local", profile), tokens=1e6, cluster_text="local", seq_len=256,
                global_batch=8)
    strategy = Strategy(dp=2, micro_batch=4, num_microbatches=1, seq_len=256, precision="fp32", software=asked.software)
    plan = plan_from_prediction(asked, predict_replayed(asked, strategy)[0], profile)
    page = write_page(plan, tmp_path / "plan.html")
    profile.unlink()
    again = read_plan(page)
    assert again.prediction == plan.prediction and again.inputs == plan.inputs and again.profile is not None
    assert predict_replayed(again.question, again.strategy)[0].step_time_s == pytest.approx(plan.prediction["step_time_s"])
    assert "measured table" in text_of(page.read_text())


@pytest.mark.parametrize(("text", "said"), [
    ("<p>hello</p>", "holds no plan"), ('<pre id="plan">\nschema: other/1</pre>', "schema: is 'other/1'"),
])
def test_a_page_without_a_plan_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "plan.html"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_plan(path)


def test_markdown_says_the_same(report: Report, page: str) -> None:
    """Every sentence and every cell of the page stands in the Markdown; its tables have as many columns in each row."""
    text, md = text_of(page), markdown(report)
    for e in exhibits(report):
        for cell in [c for row in (e.table.rows if e.table else ()) for c in row]:
            assert " ".join(cell.split()).replace("<", "&lt;").replace("|", "\\|") in md, cell
            assert " ".join(cell.replace("`", "").split()) in text, cell
    for block in re.findall(r"(?:^\|.*\n)+", md, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert md.startswith("# llama-3-8b on 16 x DGX H100") and "schema: headway.plan/1" in md


@pytest.mark.parametrize("width", [60, 80])
def test_the_summary_fits_one_screen(width: int, found: Findings, piped: Findings) -> None:
    for made in (found, replace(piped, edited="a very long reason " * 9)):
        text = summary(made, Path("plan.yaml"), width)
        lines = text.splitlines()
        assert len(lines) <= (23 if width == 80 else 30) and max(map(len, lines)) <= width
        for key in (s.key for s in report_of(made).sections):
            assert any(line.startswith(key) for line in lines), key
        assert "FITS: " in text and made.plan.strategy.describe()[:40] in text and "headway report plan.yaml" in text


def test_a_screen_needs_nothing_that_is_searched_or_simulated(found: Findings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made in well under a second, of the same figures as the page."""
    for name in ("searched", "simulate_runs", "what_if"):
        monkeypatch.setattr(f"reports.page.findings.{name}", None)
    known = brief(found.plan)
    assert summary(known) == summary(replace(known)) and verdict(known).line == verdict(found).line
    assert known.bill.as_dict() == found.bill.as_dict()


def test_formulas_come_to_what_they_say(found: Findings) -> None:
    """Each formula's numbers, worked out, are the figure that stands behind the equals sign."""
    worked = {}
    for name, _, numbers in formulas(found):
        left, right = numbers.split(" = ")
        worked[name] = eval(left.replace(" x ", " * "), {"__builtins__": {}})
        assert worked[name] == pytest.approx(float(right), rel=2e-5), name
    assert worked["days, with failures"] == pytest.approx(float(found.bill.days.p50), rel=1e-4)
    assert worked["peak memory, bytes"] == pytest.approx(found.prediction.peak_memory_bytes, rel=1e-4)


def test_the_counts_of_the_curve_hold_the_plan_itself_and_rise(found: Findings) -> None:
    assert [p.num_gpus for p in found.points] == [32, 64, 128, 256]
    own = found.own.sized.prediction
    assert own is not None and own.strategy == found.plan.strategy
    rates = [p.sized.prediction.tokens_per_s for p in found.points if p.sized.prediction]
    assert rates == sorted(rates)
    assert all(rate <= rates[0] * p.num_gpus / 32 * 1.01 for rate, p in zip(rates, found.points, strict=True))
    assert {p.sized.prediction.strategy.global_batch for p in found.points if p.sized.prediction} == {512}


def test_the_matmuls_of_a_step_do_its_model_flop(found: Findings) -> None:
    """6 FLOP for each weight of a linear map and token; none is faster than its roofline."""
    rows, model, s = matmuls(found.question, found.plan.strategy), found.question.model, found.plan.strategy
    hidden, ffn, kv, vocab = 4096, 14336, 1024, 128256
    weights = 32 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn) + vocab * hidden
    assert rows["flop"].sum() == pytest.approx(6 * weights * s.micro_batch * s.seq_len, rel=1e-9)
    accelerator = found.question.cluster.accelerator
    roof = np.minimum(accelerator.peak_flop_per_s["bf16"], rows["flop_per_byte"] * accelerator.memory_bytes_per_s)
    assert (rows["flop_per_s"] <= roof * (1 + 1e-9)).all() and model.num_layers == 32


def test_the_nearest_published_run_of_a_published_run_is_like_it(found: Findings) -> None:
    near = found.near
    assert len(near) == 5 and all(o.measured_s and o.source for o in near)
    own, strategy = (found.question, found.plan.strategy), found.plan.strategy
    assert distance(own, own) == 0
    larger = replace(found.question, cluster=load_cluster("dgx-h100:64")), strategy
    assert distance(own, larger) == pytest.approx(0.5 * np.log(4.0)) == distance(larger, own)
    large = ask(load_model("llama-3.1-405b"), load_cluster("dgx-h100:512"), tokens=1e12)
    assert all("405b" in o.model or "340b" in o.model or "175b" in o.model for o in nearest(large, strategy)[:2])


def test_names_are_escaped(piped: Findings) -> None:
    plan, bad = piped.plan, "<script>alert(1)</script>"
    named = replace(plan, question=replace(plan.question, model=replace(plan.question.model, name=bad)))
    for text in (rewritten(piped, plan=named, run=None), markdown(report_of(replace(piped, plan=named, run=None)))):
        assert bad not in text.split("schema: headway")[0] and "alert(1)" in text
    assert "torch &lt;script&gt;" not in text and "&lt;script&gt;" in rewritten(piped)


def test_the_page_says_when_no_price_is_known_and_when_nothing_fits() -> None:
    strategy = replace(PLAIN, zero=0)
    asked = replace(ask(load_model("llama-3-70b"), load_cluster("dgx-h100"), tokens=1e9, seq_len=1024,
                        global_batch=int(strategy.global_batch)), price=None)
    plan = plan_from_prediction(asked, predict_replayed(asked, strategy)[0], None)
    known = brief(plan)
    report = report_of(gather(known))
    text = text_of(html(report))
    assert "Does not fit" in text and "no price known" in text and "missing" in text
    assert "has no run to simulate" in text and "DOES NOT FIT" in summary(known)


def test_a_plan_whose_strategy_was_edited_is_predicted_anew_and_said_so(tmp_path: Path, piped: Findings) -> None:
    path = write_plan(plan_of(PIPED), tmp_path / "plan.yaml")
    path.write_text(path.read_text().replace("recompute: none", "recompute: full", 1))
    plan = read_plan(path)
    prediction, edited = current_prediction(plan)
    assert edited is not None and prediction.strategy == plan.strategy
    assert prediction.step_time_s > plan.prediction["step_time_s"]
    assert "edited after its prediction was made" in rewritten(piped, edited=edited)
    assert "edited after its prediction was made" not in rewritten(piped)


@pytest.mark.parametrize("damage", [{"days": None}, {"breakdown_s": 3}, {"strategy": 1}])
def test_a_damaged_prediction_is_refused_with_the_name_of_the_field(damage: dict[str, Any]) -> None:
    plan = plan_of(PIPED)
    with pytest.raises(BadInput, match=f"prediction.{next(iter(damage))}"):
        render_page(replace(plan, prediction=plan.prediction | damage))


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="a file stands where a folder is needed"):
        write_page(plan_of(PIPED), tmp_path / "file" / "plan.html")
    with pytest.raises(BadInput, match=r"must end with \.html, \.htm, \.md"):
        write_page(plan_of(PIPED), tmp_path / "plan.pdf")


def test_the_page_of_a_run_shows_the_error_the_loss_the_drift_and_the_goodput(piped: Findings) -> None:
    plan, run = piped.plan, piped.run
    assert run is not None
    report = report_of(piped)
    assert [s.key for s in report.sections][-2:] == ["measured", "evidence"]
    text = text_of(html(report))
    assert "Predicted against measured" in text and "-9.1 %" in text and "0 of 4 measured steps lie between" in text
    assert drift(run) == 0.0
    slower = replace(run, step_times_s=(*run.step_times_s[:4], *(1.5 * t for t in run.step_times_s[4:])))
    assert drift(slower) == pytest.approx(0.5)
    spent = Goodput(training_s=6.0, data_s=1.0, checkpoint_s=0.0, wasted_s=2.0, restart_s=0.5, start_s=0.5)
    told = text_of(rewritten(piped, spent=spent))
    assert "goodput 60.0 %" in told and "wasted steps 2 s 20.0 %" in told and "Goodput By the journal" not in text
    bare = replace(run, timeline=run.timeline[run.timeline["op"] == "step"])
    assert "Parts of the step" in text and "Parts of the step" not in rewritten(piped, run=bare)
    far = text_of(rewritten(piped, run=run_of(plan, 4.0)))
    assert "-75.0 %" in far and "Predicted against measured" not in text_of(rewritten(piped, run=None))


def invoke(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        headway.main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_the_command_writes_pages_markdown_traces_and_one_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(plan_of(PIPED), tmp_path / "plan.yaml")
    assert invoke("report", plan, "--trace", tmp_path / "t.json") == 0
    page = tmp_path / "plan.html"
    assert 'href="t.json"' in page.read_text() and json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    capsys.readouterr()
    # from the page alone
    plan.unlink()
    assert invoke("report", page, "--summary") == 0
    *lines, then, also = capsys.readouterr().out.splitlines()
    assert then == f"next         headway report {page}" and "whatif" in also
    assert len(lines) <= 21 and "gpt2" in lines[0] and not (tmp_path / "plan-again.html").exists()
    assert invoke("report", page, "-o", tmp_path / "plan.md", "--json") == 0
    assert json.loads(capsys.readouterr().out)["summary"] == lines and (tmp_path / "plan.md").read_text().startswith("# gpt2")
    assert invoke("report", page, "-o", page) == 2 and "give another name" in capsys.readouterr().err
    assert invoke("report", page, "-o", tmp_path / "x.pdf") == 2 and "must end with" in capsys.readouterr().err


PROBE = """<script>addEventListener("load", () => { const wide = [...document.querySelectorAll("body *")].filter((e) =>
  !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + e.className);
  const svg = document.querySelector("#gantt svg.moving"), count = () => svg.querySelectorAll("text").length;
  const before = svg.innerHTML;
  const zoom = document.querySelector(".buttons button"); zoom.click(); const after = svg.innerHTML;
  document.body.innerHTML = "<p>PROBE " + JSON.stringify({ wide, width: innerWidth, page: document.documentElement.scrollWidth,
  moved: before !== after, bars: count() > 4 }) + "</p>"; });</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_the_page_in_a_browser(page: str, tmp_path: Path) -> None:
    """At 500 pixels, the narrowest of a headless browser, nothing is wider than the page; the step can be zoomed."""
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"{PROBE}</body>"))
    out = subprocess.run(["chromium", "--headless", "--no-sandbox", "--window-size=500,900", "--dump-dom", path.as_uri()],
                         capture_output=True, text=True, timeout=120, check=False).stdout
    probe = re.search(r"PROBE (\{.*?\})</p>", out)
    assert probe is not None, out[-500:]
    seen = json.loads(unescape(probe[1]))
    assert seen["wide"] == [] and seen["page"] <= seen["width"] and seen["moved"] and seen["bars"]
