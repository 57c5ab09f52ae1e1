"""Writing an export: one file under a name of one's own, or all of them into a folder."""

from __future__ import annotations

from pathlib import Path

from executor.exports.export import Export
from profiles.files import BadInput, check_target, make_folder, write_text


def write_export(export: Export, out: str | Path) -> list[Path]:
    """Write an export's files, each whole or not at all, and return where; a single file may have a name of its own."""
    out = Path(out)
    names = list(export.files)
    if len(names) == 1 and not out.is_dir() and (out.suffix or out.exists()):
        return [write_text(out, export.files[names[0]])]
    if out.is_file():
        raise BadInput(f"out: {out} is a file, and {' and '.join(names)} need a folder")
    make_folder(out)
    targets = [check_target(out / name) for name in names]
    return [write_text(path, export.files[name]) for path, name in zip(targets, names, strict=True)]
