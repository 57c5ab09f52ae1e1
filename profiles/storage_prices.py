"""What keeping bytes costs, by kind of storage, with date and source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from profiles import files
from profiles.files import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class StoragePrice:
    """Dollars for a gigabyte (1e9 bytes) kept a month, on which storage, as of when."""

    name: str
    title: str
    usd_per_gb_month: float
    date: str
    source: str


class _PriceFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    title: str
    usd_per_gb_month: Annotated[float, Field(ge=0)]
    date: str
    source: str


class _StoragePricesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    default: str
    prices: list[_PriceFile]


@cache
def _catalog() -> _StoragePricesFile:
    return files.validate(_StoragePricesFile, files.catalog_mapping("", "storage_prices"), "storage_prices.yaml")


def storage_price(name: str | None = None) -> StoragePrice:
    """Return a price of storage by name, or the catalogue's default."""
    wanted = name or _catalog().default
    for row in _catalog().prices:
        if row.name == wanted:
            return StoragePrice(**row.model_dump())
    raise BadInput(f"storage price: {wanted!r} is not known; known are {', '.join(row.name for row in _catalog().prices)}")
