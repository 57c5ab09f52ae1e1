"""Software as people write it: one list of fields, every word of a choice, and files that cannot be."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from profiles.files import BadInput
from simulator.software import REPEATED, STATED, TORCH, Software, load_software, software_from
from simulator.strategy import OFFLOAD

PLAIN = {"framework": "Mine", "year": 2025, "kernels": "fused", "attention": "flash2", "source": "read in its code"}
CHOICES = {
    "kernels": ("eager", "fused"), "attention": ("flash1", "flash2", "flash3", "unfused"),
    "expert_kernels": ("loop", "grouped", "fused"), "graphs": ("none", "router", "dense", "all"),
    "selective": ("attention", "pointwise", "alternate"), "layer_split": ("even", "late", "cost"),
    "repeats": ("", *REPEATED, ",".join(REPEATED)), "offloads": ("", *OFFLOAD[1:], ",".join(OFFLOAD[1:])),
    "offloads_with": ("states", "gradients", "weights"), "offload_overlap": ("none", "parts", "backward"),
}
NAMES = ("name", "framework", "source")


def written(folder: Path, **changes: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (PLAIN | changes).items() if v is not None}))
    return str(path)


def test_a_file_says_what_it_must_and_the_rest_is_the_engines(tmp_path: Path) -> None:
    assert load_software(written(tmp_path)) == Software(name="mine", **PLAIN)
    for field in STATED:
        with pytest.raises(BadInput, match=rf"mine\.yaml: {field}: is missing$"):
            load_software(written(tmp_path, **{field: None}))


def test_each_word_of_a_choice_and_no_other(tmp_path: Path) -> None:
    """Every text field that is no name is a choice, and its docstring names the words."""
    assert set(CHOICES) | set(NAMES) == {f.name for f in fields(Software) if isinstance(f.default, str)}
    for field, words in CHOICES.items():
        for word in words:
            assert getattr(load_software(written(tmp_path, **{field: word})), field) == word
            assert field in ("repeats", "offloads") or re.search(rf"\b{word}\b", Software.__doc__ or ""), (field, word)
        for wrong in ("fastest", 3):
            with pytest.raises(BadInput, match=rf"mine\.yaml: {field}: .*\(is {wrong!r}\)$"):
                load_software(written(tmp_path, **{field: wrong}))


def test_numbers_cannot_be_negative_or_endless(tmp_path: Path) -> None:
    numbers = [f.name for f in fields(Software) if isinstance(f.default, float)]
    assert len(numbers) > 10
    for field in numbers:
        assert getattr(load_software(written(tmp_path, **{field: 3})), field) == 3.0
        for wrong in (-1, float("inf"), float("nan"), "much"):
            with pytest.raises(BadInput, match=rf"mine\.yaml: {field}: "):
                load_software(written(tmp_path, **{field: wrong}))


def test_every_field_is_documented() -> None:
    for field in fields(Software):
        assert f"`{field.name}`" in (Software.__doc__ or ""), field.name


def test_a_plan_may_state_some_fields_or_all() -> None:
    assert software_from({}, "plan") == Software(name="given")
    assert software_from({"grad_bytes": 2, "name": "mine"}, "plan") == Software(name="mine", grad_bytes=2.0)
    assert software_from(asdict(TORCH), "plan") == TORCH
    assert software_from("megatron-lm-2024", "plan") == load_software("megatron-lm-2024")
    for data, message in (
        ({"speed": 1}, r"^plan: software\.speed: is not known; known are .*kernels"),
        ({"precisions": {}}, r"^plan: software\.precisions: is not known"),
        ({"kernels": "slow"}, r"^plan: software: kernels: Input should be 'eager' or 'fused' \(is 'slow'\)$"),
        (3, r"^plan: software: must be a catalogue name or a mapping \(is 3\)$"),
    ):
        with pytest.raises(BadInput, match=message):
            software_from(data, "plan")


def test_a_precision_differs_where_a_file_says_so(tmp_path: Path) -> None:
    path = written(tmp_path, precisions={"mxfp8": {"graphs": "all", "grad_bytes": 2}}, grad_bytes=4)
    assert (load_software(path).graphs, load_software(path).grad_bytes) == ("none", 4.0)
    assert (load_software(path, "mxfp8").graphs, load_software(path, "mxfp8").grad_bytes) == ("all", 2.0)
    assert load_software(path, "bf16") == load_software(path)
    for precisions, message in (
        ({"mxfp8": {"speed": 1}}, r"mine\.yaml: precisions\.mxfp8\.speed: is not known"),
        ({"mxfp8": {"graphs": "some"}}, r"mine\.yaml: precisions\.mxfp8: graphs: Input should be"),
        ({"mxfp8": "all"}, r"mine\.yaml: precisions: must say for a precision which fields differ"),
        ([1], r"mine\.yaml: precisions: must say"),
    ):
        with pytest.raises(BadInput, match=message):
            load_software(written(tmp_path, precisions=precisions), "mxfp8")


def test_software_is_a_value() -> None:
    with pytest.raises(FrozenInstanceError):
        TORCH.year = 2020  # type: ignore[misc]
    assert not hasattr(TORCH, "__dict__")
    assert hash(TORCH) == hash(Software())
