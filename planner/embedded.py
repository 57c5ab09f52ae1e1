"""Plans inside pages: a page holds its plan's file as text, so that the page alone can be replayed."""

from __future__ import annotations

import hashlib
import re
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

from profiles import files
from profiles.files import BadInput

PAGES = (".html", ".htm")


def is_page(path: Path) -> bool:
    """Return whether a file is named as a page."""
    return path.suffix.lower() in PAGES


def embedded(page: str, key: str) -> str | None:
    """Return the text that stands in a page's `<pre id="key">`, or None where there is none."""
    match = re.search(rf'<pre id="{key}">(.*?)</pre>', page, flags=re.DOTALL)
    # a line feed behind the tag is no part of the text
    return None if match is None else unescape(match[1].removeprefix("\n"))


def plan_in_page(path: Path) -> dict[str, Any]:
    """Return the plan file in a page; a measured profile that stands there too is laid where the plan can name it."""
    page = files.read_text(path)
    text = embedded(page, "plan")
    if text is None:
        raise BadInput(f"{path}: holds no plan; a page that `headway report` or `headway plan` wrote is needed")
    plan = files.parse_mapping(text, str(path))
    profile, question = embedded(page, "profile"), plan.get("question")
    if profile is not None and isinstance(question, dict) and question.get("profile"):
        question["profile"] = str(_laid_out(profile, Path(str(question["profile"])).name))
    return plan


def _laid_out(profile: str, name: str) -> Path:
    """Return a file with a profile's text, in the machine's folder of temporary files; the same text is the same file."""
    folder = Path(tempfile.gettempdir()) / "headway" / hashlib.sha256(profile.encode()).hexdigest()[:16]
    return files.write_text(folder / name, profile)
