"""What `--json` prints, held to the models of which docs/json.md is made."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pydantic import ValidationError
from tests_support import differences

from reports.formats.answers import ANSWERS

MEND = "what is printed is not what reports/formats/answers/ says (mend that, then run scripts/docs docs/json.md)"


def strict(text: str) -> dict[str, Any]:
    """Return the one object in a text; NaN, Infinity, a key twice, or anything beside it is an error."""
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), f"a key stands twice: {[k for k, _ in pairs]}"
        return dict(pairs)

    data = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    assert isinstance(data, dict)
    return data


def faults_of(text: str, name: str) -> list[str]:
    """Return where an answer differs from what docs/json.md says: keys on one side only, other types."""
    kind = ANSWERS[name]
    try:
        read = kind.model_validate_json(text)
    except ValidationError as e:
        return [f"{name}: {'.'.join(map(str, f['loc']))}: {f['msg']}" for f in e.errors()]
    return [f"{name}{d}" for d in differences(json.loads(text), read.model_dump(mode="json", exclude_unset=True), 0)]


def answered(text: str, name: str) -> dict[str, Any]:
    """Return the one object that was printed, after its keys were held to those of an answer."""
    data, faults = strict(text), faults_of(text, name)
    assert not faults, f"{MEND}: {faults[:5]}"
    return data


def answered_by(verb: str, data: dict[str, Any]) -> None:
    """Assert that what a verb prints is one of its answers."""
    text = json.dumps(data, allow_nan=False)
    faults = [faults_of(text, name) for name in ANSWERS if name.split()[0] == verb]
    assert not all(faults), f"{MEND}: {min(faults, key=len)}"
