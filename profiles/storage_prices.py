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


class StoragePriceFile(BaseModel):
    """What keeping bytes costs on one storage."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(description="as on the command line")
    title: str = Field(description="as it is shown")
    usd_per_gb_month: Annotated[float, Field(ge=0, description="dollars for 1e9 bytes kept a month")]
    date: str = Field(description="as of when")
    source: str = Field(description="where it was read")


class StoragePricesFile(BaseModel):
    """The catalogue's prices of storage."""

    model_config = ConfigDict(extra="forbid")
    default: str = Field(description="the name that is taken where nobody says")
    prices: list[StoragePriceFile]


@cache
def _catalog() -> StoragePricesFile:
    return files.validate(StoragePricesFile, files.catalog_mapping("", "storage_prices"), "storage_prices.yaml")


def storage_price(name: str | None = None) -> StoragePrice:
    """Return a price of storage by name, or the catalogue's default."""
    wanted = name or _catalog().default
    for row in _catalog().prices:
        if row.name == wanted:
            return StoragePrice(**row.model_dump())
    raise BadInput(f"storage price: {wanted!r} is not known; known are {', '.join(row.name for row in _catalog().prices)}")
