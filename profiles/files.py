"""Reading what people write, and writing without loss."""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)
FEW = 12
"""Names that a line may list."""


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as a number, as YAML 1.2 does (section 10.3.2); PyYAML reads it as text."""


_Loader.yaml_implicit_resolvers = {**yaml.SafeLoader.yaml_implicit_resolvers}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class BadInput(ValueError):
    """A mistake in what a person typed or wrote: one line that names the field, the value and the mend."""


def read_text(path: str | Path) -> str:
    """Return the text of a file; a missing or unreadable one is a `BadInput`."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder, a file is needed") from None
    except PermissionError:
        raise BadInput(f"{path}: not readable") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: is not UTF-8 text") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file."""
    return parse_mapping(read_text(path), str(path))


def parse_mapping(text: str, origin: str) -> dict[str, Any]:
    """Return the mapping in YAML or JSON text; `origin` is named in errors."""
    try:
        data = json.loads(text) if origin.endswith(".json") else yaml.load(text, _Loader)
    except json.JSONDecodeError as e:
        raise BadInput(f"{origin}: not JSON at line {e.lineno}: {e.msg}") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise BadInput(f"{origin}: not YAML{where}: {getattr(e, 'problem', None) or 'malformed'}") from None
    if not isinstance(data, dict):
        raise BadInput(f"{origin}: holds {type(data).__name__}, a mapping of fields is needed")
    return data


def validate(model: type[T], data: dict[str, Any], origin: str) -> T:
    """Check a mapping against a pydantic model; the first fault becomes one line."""
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise _bad_input(e, origin) from None


def _bad_input(e: ValidationError, origin: str) -> BadInput:
    first = e.errors()[0]
    field = ".".join(str(p) for p in first["loc"]) or "(file)"
    value = first.get("input")
    shown = "" if first["type"] == "missing" or isinstance(value, dict) else f" (is {value!r})"
    message = "is missing" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return BadInput(f"{origin}: {field}: {message}{shown}")


def write_text(path: str | Path, text: str) -> Path:
    """Write a file whole or not at all: to a temporary name beside it, then renamed."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write bytes whole or not at all: to a temporary name beside the target, then renamed."""
    path = check_target(path)
    with whole(path) as file:
        file.write(data)
    return path


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file under a temporary name beside a target (of `check_target`) that it replaces when all is written."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_target(path: str | Path) -> Path:
    """Return where a file will be written (through links), if it can be: in a folder, not over a folder or a device."""
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path
    if path.is_dir():
        raise BadInput(f"{path}: is a folder, a file name is needed")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path}: is no regular file; give the name of one")
    make_folder(path.parent)
    return path


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents, and check that files can be made in it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadInput(f"{path}: a file stands where a folder is needed") from None
    except OSError as e:
        raise BadInput(f"{path}: cannot make this folder ({e.strerror})") from None
    try:
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as e:
        raise BadInput(f"{path}: cannot write in this folder ({e.strerror})") from None


def catalog_names(kind: str) -> list[str]:
    """Return the names of the catalogue's files of a kind ('models', 'accelerators', 'clusters')."""
    folder = resources.files("profiles").joinpath("catalog", *([kind] if kind else []))
    return sorted(f.name.rsplit(".", 1)[0] for f in folder.iterdir() if f.name.endswith((".yaml", ".json", ".csv")))


def catalog_path(name: str) -> Path:
    """Return where a file of the catalogue lies."""
    return Path(str(resources.files("profiles").joinpath("catalog", name)))


def catalog_mapping(kind: str, name: str) -> dict[str, Any]:
    """Return the catalogue's file of that kind and name; for an unknown name, what may have been meant is named."""
    # a copy of one's own is some hundred times quicker than reading the text again
    return copy.deepcopy(_read_catalog(kind, name))


@cache
def _read_catalog(kind: str, name: str) -> dict[str, Any]:
    folder = resources.files("profiles").joinpath("catalog", *([kind] if kind else []))
    for suffix in (".yaml", ".json"):
        file = folder / f"{name}{suffix}"
        if "/" not in name and file.is_file():
            return parse_mapping(file.read_text(encoding="utf-8"), f"{kind}/{name}{suffix}")
    raise BadInput(f"{kind.removesuffix('s')}: {name!r} is neither in the catalogue nor a file; {meant(name, kind)}")


def meant(name: str, kind: str) -> str:
    """Return what a name that is not in the catalogue may have meant: the nearest ones, or all if they are few."""
    names = catalog_names(kind)
    if near := difflib.get_close_matches(name.lower(), names, n=3):
        return f"did you mean {' or '.join(near)}?"
    return f"it has {', '.join(names)}" if len(names) <= FEW else f"`headway catalog {kind}` lists them"
