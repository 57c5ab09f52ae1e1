"""The page in a real browser, Chromium without a window: sliders move numbers, the plan comes down, nothing complains."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from served import ask, serving

from planner.plan import read_plan

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
WAIT_MS = 180_000


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Any, int]]:
    """Return a browser and the port of a server."""
    from playwright.sync_api import sync_playwright

    with serving() as port, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser, port
        browser.close()


@pytest.fixture
def page(served: tuple[Any, int]) -> Iterator[Any]:
    """Return the page with its first answer; what the browser complains of fails the test."""
    browser, port = served
    made = browser.new_page(viewport={"width": 390, "height": 844})
    made.set_default_timeout(WAIT_MS)
    said: list[str] = []
    # of a question that is refused Chromium writes a line of its own
    made.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") and "of 422" not in m.text else None)
    made.on("pageerror", lambda error: said.append(str(error)))
    elsewhere: list[str] = []
    here = (f"http://127.0.0.1:{port}/", "blob:")
    made.on("request", lambda r: None if r.url.startswith(here) else elsewhere.append(r.url))
    made.on("response", lambda r: made.answers.append(r) if r.url.endswith("/api/answer") and r.ok else None)
    made.answers = []
    made.goto(f"http://127.0.0.1:{port}/")
    settled(made)
    yield made
    made.close()
    assert (said, elsewhere) == ([], [])


def settled(page: Any) -> dict[str, Any]:
    """Return the newest answer, when it is on the page with its figures."""
    page.wait_for_selector("#answer[aria-busy=false]")
    return dict(page.answers[-1].json())


def after(page: Any, act: Any) -> dict[str, Any]:
    """Return the answer that an act brings."""
    act()
    return settled(page)


def test_sliders_change_what_the_server_says(page: Any, served: tuple[Any, int]) -> None:
    """Keys on a slider change figures to those that the endpoint gives."""
    shown = page.inner_text("#verdict")
    page.focus("#tokens-slider")
    answer = after(page, lambda: page.keyboard.press("ArrowRight"))
    assert page.input_value("#tokens") == "2T" == page.get_attribute("#tokens-slider", "aria-valuetext")
    same = ask(served[1], "/api/answer", {"model": "llama-3-8b", "cluster": "dgx-h100", "gpus": 64, "tokens": "2T"}).json
    assert answer["prediction"] == same["prediction"] and answer["bill"] == same["bill"]
    assert page.inner_text("#verdict") != shown and f"{same['bill']['days']['p50']:.1f} days" in page.inner_text("#verdict")
    before = page.inner_html("#time"), page.inner_html("#memory")
    page.focus("#seq_len-slider")
    after(page, lambda: page.keyboard.press("Home"))
    assert (page.inner_html("#time"), page.inner_html("#memory")) != before
    page.wait_for_selector("#sizes[aria-busy=false] svg")
    assert page.locator("#sizes tr").count() == 6


def test_another_model_and_cluster_and_a_mistake(page: Any) -> None:
    after(page, lambda: page.select_option("#cluster", "dgx-1-v100"))
    assert page.input_value("#precision") == "fp16" and page.input_value("#network") != "400 Gb/s"
    answer = after(page, lambda: page.select_option("#model", "gpt2"))
    assert page.input_value("#seq_len") == "1024" and "gpt2 dgx-1-v100:8" in answer["command"]
    kept = page.inner_text("#verdict")
    with page.expect_response("**/api/answer"):
        page.fill("#gpus", "0")
    page.wait_for_function("() => document.querySelector('#wrong').textContent.includes('gpus:')")
    assert page.get_attribute("#gpus", "aria-invalid") == "true" and page.inner_text("#verdict") == kept
    assert page.inner_text("#short") == page.inner_text("#wrong")
    after(page, lambda: page.fill("#gpus", "8"))
    assert page.inner_text("#wrong") == "" and page.get_attribute("#gpus", "aria-invalid") == "false"


def test_the_newest_answer_wins(page: Any) -> None:
    """An older question whose answer comes later changes nothing."""
    held: list[Any] = []

    def late(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/api/answer", late)
    page.focus("#tokens-slider")
    with page.expect_request("**/api/answer"):
        page.keyboard.press("ArrowRight")
    newest = after(page, lambda: page.keyboard.press("ArrowRight"))
    assert newest["command"].endswith("--tokens 5T") and page.inner_text("#command") == newest["command"]
    verdict = page.inner_text("#verdict")
    # the page has given it up: there may be nobody to send it to
    with suppress(Exception):
        held[0].continue_()
    page.wait_for_selector("#sizes[aria-busy=false]")
    assert page.inner_text("#command") == newest["command"] and page.inner_text("#verdict") == verdict


def test_the_plan_comes_down(page: Any, tmp_path: Path) -> None:
    after(page, lambda: page.select_option("#model", "gpt2"))
    after(page, lambda: page.fill("#gpus", "1"))
    after(page, lambda: page.fill("#tokens", "1B"))
    with page.expect_download() as coming:
        page.click("#download")
    assert coming.value.suggested_filename == "plan.yaml"
    coming.value.save_as(tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml").question.cluster.num_gpus == 1
    assert "gpt2" in page.inner_text("#command") and page.locator("#files a").count() == 1


def test_a_config_of_ones_own(page: Any, tmp_path: Path) -> None:
    from profiles.files import catalog_mapping

    (tmp_path / "mine.json").write_text(json.dumps(catalog_mapping("models", "gpt2")["config"]))
    answer = after(page, lambda: page.set_input_files("#config", tmp_path / "mine.json"))
    assert page.input_value("#model") == "mine.json" and answer["command"].startswith("headway plan mine.json ")


def test_everybody_can_use_it(page: Any) -> None:
    """Every control has a name, is reached by Tab, shows its focus; nothing is cut off on a phone."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    names = page.evaluate("""[...document.querySelectorAll('input, select, button, progress')].map(
        e => e.getAttribute('aria-label') || [...(e.labels || [])].map(l => l.textContent).join('') || e.textContent.trim())""")
    assert all(names), names
    assert page.evaluate("[...document.querySelectorAll('figure > svg')].every(s => s.getAttribute('aria-label'))")
    live = page.evaluate("[...document.querySelectorAll('output')].map(o => o.getAttribute('aria-live'))")
    assert set(live) == {"polite"} and page.get_attribute("#wrong", "role") == "alert"
    wanted = page.evaluate("[...document.querySelectorAll('form :is(input, select), #download')].map(e => e.id)")
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(len(wanted) + 12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert width == "3px" or reached[-1] == "", (reached[-1], width)
    assert [i for i in dict.fromkeys(reached) if i in wanted] == wanted
    assert contrasts(page) == []
    page.emulate_media(color_scheme="dark")
    assert contrasts(page) == []


def contrasts(page: Any) -> list[str]:
    """Return the texts whose contrast is under 4.5 (WCAG 2.2, 1.4.3)."""
    found: list[str] = page.evaluate("""() => {
        const parts = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
        const light = (c) => { const [r, g, b] = parts(c).map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor, p = parts(c);
            if (p.length === 3 || p[3] > 0) return c; } return 'rgb(255, 255, 255)'; };
        const poor = [];
        for (const e of document.querySelectorAll('body *:not(svg *)')) {
            const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
            if (!own || !e.checkVisibility()) continue;
            const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
            if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(e.tagName + ': ' + e.textContent.trim().slice(0, 40));
        }
        return poor;
    }""")
    return found
