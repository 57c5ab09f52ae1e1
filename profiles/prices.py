"""Prices of accelerator-hours: what the catalogue knows, each with its provider, term, date and source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import Field

from profiles import files
from profiles.accelerators import Accelerator, Strict, mean_of
from profiles.hardware import Price
from profiles.units import parse


class PriceRow(Strict):
    """What a provider asks for an accelerator-hour, on one term."""

    accelerator: str = Field(description="a name of the catalogue")
    provider: str
    sku: str = Field(description="what the provider calls it")
    term: str = Field(description="on-demand, reserved-1y, spot, ...")
    price: str = Field(description="of an accelerator-hour, like '2.95 USD/h'")
    date: str = Field(description="as of when")
    source: str = Field(description="where it was read")
    confidence: str = Field(description="read, or how it was worked out")
    default: bool = Field(default=False, description="taken where nobody says; one for each accelerator")


class PricesFile(Strict):
    """The catalogue's prices."""

    prices: list[PriceRow]


@cache
def prices() -> list[dict[str, Any]]:
    """Return the catalogue's price rows."""
    file = files.validate(PricesFile, files.catalog_mapping("", "prices"), "prices.yaml")
    return [row.model_dump(exclude_defaults=True) for row in file.prices]


def offers(accelerator: Accelerator) -> tuple[Price, ...]:
    """Return what the catalogue knows of an accelerator's prices; of a pool's, the lowest of each kind on terms that all
    have."""
    if accelerator.parts:
        by_kind = [by_term(sorted(offers(kind), key=lambda p: p.usd_per_gpu_hour)) for kind in accelerator.kinds]
        return joint_prices(by_kind, [num for _, num in accelerator.parts])
    return tuple(_price(row) for row in prices() if row["accelerator"] == accelerator.name)


def default_price(accelerator: Accelerator) -> Price | None:
    """Return the catalogue's default price of an accelerator, or None where none is known; of a pool the mean of its kinds."""
    if accelerator.parts:
        known = [(default_price(kind), num) for kind, num in accelerator.parts]
        found = [(price, num) for price, num in known if price is not None]
        return mean_price(found) if len(found) == len(known) else None
    return next((_price(row) for row in prices() if row["accelerator"] == accelerator.name and row.get("default")), None)


def by_term(known: Sequence[Price]) -> dict[str, Price]:
    """Return the first price of each term."""
    found: dict[str, Price] = {}
    for price in known:
        found.setdefault(price.term, price)
    return found


def joint_prices(by_kind: Sequence[Mapping[str, Price]], counts: Sequence[int]) -> tuple[Price, ...]:
    """Return the mean price of accelerators, so many of each kind, on every term that all kinds have."""
    return tuple(mean_price([(known[term], num) for known, num in zip(by_kind, counts, strict=True)])
                 for term in by_kind[0] if all(term in known for known in by_kind))


def mean_price(parts: Sequence[tuple[Price, int]]) -> Price:
    """Return what an accelerator-hour costs on the average over so many at each price."""
    def joined(words: Sequence[str]) -> str:
        return " + ".join(dict.fromkeys(words))

    each = [price for price, _ in parts]
    return Price(
        usd_per_gpu_hour=mean_of([(price.usd_per_gpu_hour, num) for price, num in parts]),
        term=joined([price.term for price in each]), date=joined([price.date for price in each]),
        provider=joined([f"{num} x {price.provider} at {price.usd_per_gpu_hour:g}" for price, num in parts]),
        source=joined([price.source for price in each]),
    )


def _price(row: Mapping[str, Any]) -> Price:
    return Price(
        usd_per_gpu_hour=parse(row["price"], "usd_per_hour", "price"), term=row["term"],
        provider=f"{row['provider']} {row['sku']}".strip(), date=str(row["date"]), source=row["source"],
    )
