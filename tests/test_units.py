"""Text and quantities: round trips, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.files import BadInput
from profiles.units import UNITS, parse, show


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("80 GiB", "bytes", 80 * 2**30), ("80 GB", "bytes", 80e9), ("400 Gb/s", "bytes_per_s", 50e9),
        ("450 GB/s", "bytes_per_s", 450e9), ("989.4 TFLOP/s", "flop_per_s", 989.4e12), ("15T", "count", 15e12),
        ("1_000_000", "count", 1e6), ("30d", "s", 30 * 86400.0), ("3.7 us", "s", 3.7e-6), ("10.2 kW", "w", 10200.0),
        ("2.95 USD/h", "usd_per_hour", 2.95), ("1e3 ms", "s", 1.0),
    ],
)
def test_parse(text: str, dimension: str, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("dimension", [d for d in UNITS if d != "count"])
def test_a_bare_number_is_refused_where_a_unit_is_needed(dimension: str) -> None:
    with pytest.raises(BadInput, match=r"memory: '80' is a bare number; the unit is needed; write it like"):
        parse("80", dimension, "memory")


@pytest.mark.parametrize("text", ["80 Gib/s", "many", "", "-5 GB", "nan GB", "inf GB", "5 gb", True, None, [1]])
def test_refused(text: object) -> None:
    with pytest.raises(BadInput, match=r"^memory: "):
        parse(text, "bytes", "memory")


@given(st.floats(1e-9, 1e17), st.sampled_from(list(UNITS)))
def test_what_is_shown_is_read_back(value: float, dimension: str) -> None:
    assert parse(show(value, dimension, digits=12).replace(",", ""), dimension) == pytest.approx(value, rel=1e-6, abs=1e-12)
