"""Files are written whole or not at all; what people write is checked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiles import files
from profiles.files import BadInput


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = files.write_text(tmp_path / "a.txt", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        files.write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not YAML at line"), ("- 1\n- 2", "holds list, a mapping"), ("a: b: c", "not YAML"), ("\ta: 1", "not YAML")],
)
def test_malformed_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        files.read_mapping(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        files.read_text(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="is a folder"):
        files.read_text(tmp_path)
    with pytest.raises(BadInput, match="is a folder"):
        files.write_text(tmp_path, "x")
    (tmp_path / "f").write_text("")
    with pytest.raises(BadInput, match="a file stands where a folder is needed"):
        files.make_folder(tmp_path / "f")


def test_unknown_catalogue_name_names_those_that_are_near() -> None:
    with pytest.raises(BadInput, match=r"model: 'llama-9' is neither in the catalogue nor a file; did you mean .*llama-"):
        files.catalog_mapping("models", "llama-9")
