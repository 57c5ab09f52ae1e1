"""From a type that is read out of a file to tables: its fields, what they hold, whether they are needed, what they mean.

Types and bounds are those of the JSON schema that pydantic makes; meanings are the fields' descriptions, or what the
docstring of their class says behind their names (`field`: meaning).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

Schema = Mapping[str, Any]
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping"}
NAMES = re.compile(r"((?:`\w+`(?:, )?)+): ")
HEAD = ("| field | what it is | default | meaning |", "|---|---|---|---|")
ANSWER_HEAD = ("| key | what it is | there | meaning |", "|---|---|---|---|")


def field_tables(kind: Any, seen: set[str], *, answer: bool = False, told: Collection[str] = ()) -> Iterator[str]:
    """Yield the lines of the table of a type, then those of the types in it, but of those that were `seen` before.

    Of an `answer`, which Headway writes, they say whether a key is always there; fields that are `told` elsewhere are left out.
    """
    schema = TypeAdapter(kind).json_schema(by_alias=True)
    known = schema.get("$defs", {})
    schema["properties"] = {name: field for name, field in schema.get("properties", {}).items() if name not in told}
    yield from _table(schema, answer)
    waiting = list(_references(schema))
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        yield from ("", f"### {spoken(name)}", "", _first_sentence(known[name]), "", *_table(known[name], answer))
        waiting += list(_references(known[name]))


def meanings(docstring: str) -> dict[str, str]:
    """Return what a docstring says of each name that stands in it as `name`: meaning."""
    found: dict[str, str] = {}
    for paragraph in docstring.split("\n\n"):
        text = re.sub(r"\s+", " ", paragraph)
        heads = list(NAMES.finditer(text))
        for i, head in enumerate(heads):
            end = heads[i + 1].start() if i + 1 < len(heads) else len(text)
            said = text[head.end() : end].strip().rstrip(".;,")
            found |= dict.fromkeys(re.findall(r"`(\w+)`", head[1]), said)
    return found


def spoken(name: str) -> str:
    """Return the name of a class as a heading: FatTreeFile is a 'Fat tree'."""
    words = re.findall(r"[A-Z][a-z0-9]*", name.removesuffix("File"))
    return " ".join(words).capitalize()


def _first_sentence(schema: Schema) -> str:
    text = re.sub(r"\s+", " ", schema.get("description", ""))
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0]


def _table(schema: Schema, answer: bool) -> Iterator[str]:
    yield from ANSWER_HEAD if answer else HEAD
    said = meanings(schema.get("description", ""))
    for name, field in schema.get("properties", {}).items():
        is_there = name in schema.get("required", ())
        default = "needed" if is_there else _shown(field.get("default"))
        meaning = field.get("description") or said.get(name, "")
        there = ("sometimes" if field.get("default", 0) in (None, []) else "always") if answer else default
        null = " or null" if answer and is_there and {"type": "null"} in field.get("anyOf", ()) else ""
        yield f"| `{name}` | {_words(field)}{null} | {there} | {_escaped(meaning)} |"


def _shown(default: Any) -> str:
    if default is None or default in ("", [], {}):
        return "–"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def _words(field: Schema) -> str:
    """Return what a field holds, in people's words."""
    if "$ref" in field:
        name = spoken(field["$ref"].rpartition("/")[2])
        return f"[{name.lower()}](#{name.lower().replace(' ', '-')})"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    if choices := field.get("anyOf", field.get("oneOf")):
        return " or ".join(dict.fromkeys(_words(c) for c in choices if c.get("type") != "null"))
    if field.get("type") == "array":
        if "prefixItems" in field:
            return "list of " + ", ".join(_words(item) for item in field["prefixItems"])
        least = f", at least {field['minItems']}" if "minItems" in field else ""
        return f"list of {_words(field['items'])}{least}" if field.get("items") else "list"
    if field.get("type") == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"mapping to {_words(field['additionalProperties'])}"
    return WORDS.get(field.get("type", ""), "text or mapping") + _bounds(field)


def _bounds(field: Schema) -> str:
    whole = field.get("type") == "integer"
    least, above = field.get("minimum"), field.get("exclusiveMinimum")
    most, below = field.get("maximum"), field.get("exclusiveMaximum")
    words = [f"at least {above + 1 if whole else least:g}"] if whole and above is not None else []
    words += [f"above {above:g}"] if above is not None and not whole else []
    words += [f"at least {least:g}"] if least is not None else []
    words += [f"at most {most:g}"] if most is not None else []
    words += [f"below {below:g}"] if below is not None else []
    return ", " + ", ".join(words) if words else ""


def _references(schema: Any) -> Iterator[str]:
    """Yield the names of the types in a schema, in their order."""
    for key, value in schema.items():
        if key == "$ref":
            yield value.rpartition("/")[2]
        elif isinstance(value, dict) and key != "$defs":
            yield from _references(value)
        elif isinstance(value, list):
            for item in value:
                yield from _references(item) if isinstance(item, dict) else ()


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
