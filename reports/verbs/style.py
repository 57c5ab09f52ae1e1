"""How every verb is made and shown: plain help with examples, names to complete, one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, SI numbers, nothing else.")]


def verb_app(**about: Any) -> typer.Typer:
    """Return an empty app in the style of the command line."""
    return typer.Typer(**({"add_completion": False} | about), rich_markup_mode=None, pretty_exceptions_enable=False)


def examples(*commands: str) -> str:
    """Return the end of a help text: commands that a person may try, each on its line."""
    return "\b\nExamples:\n" + "\n".join(f"  headway {command}" for command in commands)


def names_of(kind: str) -> Callable[[str], list[str]]:
    """Return a function that completes names of the catalogue; what is imported is imported when it is called."""

    def complete(incomplete: str) -> list[str]:
        from profiles.files import catalog_names

        return [name for name in catalog_names(kind) if name.startswith(incomplete)]

    return complete


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object; numbers that are not finite are an error, as JSON has none."""
    print(json.dumps(data, indent=2, allow_nan=False))
