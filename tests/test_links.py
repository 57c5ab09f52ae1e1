"""Links between documents lead to files that are there, and to headings that stand in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)")
pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documents are not part of the wheel")


def links(page: Path) -> list[str]:
    """Return where a page's links lead, but those out of the repository."""
    return [link for link in LINK.findall(CODE.sub("", page.read_text())) if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """Return what a Markdown page's headings are called in links (GitHub: lower case, no marks, - for a space)."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, heading = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not heading or heading in anchors(target.read_text()), link


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    found = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert {p for p in (ROOT / "docs").rglob("*.md") if p != index} - found == set(), "docs/README.md lacks a line for it"
    assert "docs/README.md" in links(ROOT / "README.md")


def test_anchors_are_made_as_github_makes_them() -> None:
    assert anchors("# A b\n```\n# no\n```\n## Keys of `--json`\n### 3. One, two") == {"a-b", "keys-of---json", "3-one-two"}
