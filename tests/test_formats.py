"""The page of file formats is what the schemas say, and its examples are read as the tool reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from planner.plan import PlanFile, StrategyFile, read_plan
from profiles.families import load_model, num_params
from profiles.units import UNITS, parse
from reports.formats import formats_page
from reports.formats.examples import LONGEST, Example, examples
from reports.formats.page import ABOUT, KINDS
from reports.formats.schema import field_tables, meanings
from simulator.software import TORCH, SoftwareFile

PAGE = Path(__file__).resolve().parent.parent / "docs" / "formats.md"
ALL = [(title, example) for title, some in examples().items() for example in some]


class Part(BaseModel):
    """A part, as people write it. More words."""

    size: str = Field(description="like '3 GB'")


class Whole(BaseModel):
    """A whole.

    `ratio`: how much of it; `names`, `words`: what it is called. No field is told here.
    """

    part: Part
    ratio: float = Field(default=0.5, gt=0, le=1)
    count: int = Field(default=2, gt=0)
    names: list[str] = []
    words: dict[str, Part] | None = None
    on: bool = True


@pytest.mark.skipif(not PAGE.parent.exists(), reason="the documents are not part of the wheel")
def test_the_page_is_what_the_schemas_say() -> None:
    assert PAGE.read_text() == formats_page(), "stale; run scripts/docs docs/formats.md"


def test_tables_tell_type_bounds_default_and_meaning() -> None:
    assert list(field_tables(Whole, set())) == [
        "| field | what it is | default | meaning |", "|---|---|---|---|",
        "| `part` | [part](#part) | needed |  |",
        "| `ratio` | number, above 0, at most 1 | 0.5 | how much of it |",
        "| `count` | whole number, at least 1 | 2 |  |",
        "| `names` | list of text | – | what it is called. No field is told here |",
        "| `words` | mapping to [part](#part) | – | what it is called. No field is told here |",
        "| `on` | true or false | true |  |",
        "", "### Part", "", "A part, as people write it.", "",
        "| field | what it is | default | meaning |", "|---|---|---|---|", "| `size` | text | needed | like '3 GB' |",
    ]
    assert "### Part" not in list(field_tables(Whole, {"Part"}))


@pytest.mark.parametrize(("title", "example"), ALL, ids=[f"{title}: {e.file}" for title, e in ALL])
def test_an_example_is_read_as_the_tool_reads_it(title: str, example: Example, tmp_path: Path) -> None:
    path = tmp_path / Path(example.file).name
    path.write_text(example.text)
    assert example.read(path)
    assert len(example.text.splitlines()) <= LONGEST, "the page shows a part of it only"


def test_every_format_has_an_example_and_words() -> None:
    assert list(ABOUT) == list(examples())
    assert set(KINDS) <= set(ABOUT)


def test_headings_are_unique_and_links_within_the_page_lead_to_them() -> None:
    page = formats_page()
    headings = [h.lower().replace(" ", "-").replace("`", "") for h in re.findall(r"^##+ (.*)$", page, flags=re.MULTILINE)]
    assert len(headings) == len(set(headings))
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= set(headings)


def test_every_field_that_people_set_has_a_meaning() -> None:
    said = meanings(SoftwareFile.__doc__ or "")
    assert [name for name in SoftwareFile.model_fields if not said.get(name)] == []
    for kind in (StrategyFile, PlanFile):
        told = {name for name, field in kind.model_fields.items() if field.description}
        assert set(kind.model_fields) - told <= {"schema_"}


def test_quantities_in_meanings_are_quantities() -> None:
    shown = re.findall(r"like '(\d[^']*)'", formats_page())
    assert len(shown) > 15
    for text in (t for t in shown if "-" not in t):
        assert any(_is(text, dimension) for dimension in UNITS), text


def _is(text: str, dimension: str) -> bool:
    try:
        return parse(text, dimension) > 0
    except ValueError:
        return False


def test_a_plan_without_software_is_of_our_engine(tmp_path: Path) -> None:
    (example,) = examples()["Plan"]
    (tmp_path / "plan.yaml").write_text(example.text)
    plan = read_plan(tmp_path / "plan.yaml")
    assert plan.strategy.software == TORCH and plan.strategy.global_batch == 512


def test_a_model_file_spells_out_its_layers(tmp_path: Path) -> None:
    (example,) = examples()["Model"]
    path = tmp_path / "tiny.yaml"
    path.write_text(example.text)
    model = load_model(str(path))
    attention = 1024 * 64 * (16 + 4 + 4 + 16)
    by_hand = 2 * 32000 * 1024 + 1024 + 8 * (attention + 2 * 1024) + 4 * 3 * 1024 * 4096 + 4 * (8 * 3 * 1024 * 2048 + 8 * 1024)
    assert num_params(model) == by_hand
    path.write_text(example.text.replace("pattern", "order"))
    with pytest.raises(ValueError, match=r"tiny.yaml.*order: is not a field"):
        load_model(str(path))
