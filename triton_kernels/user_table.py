"""The user's own launch configurations: one JSON file, written by ``tilewright tune``.

    {"format": 1, "devices": [{"gpu": "...", "triton": "...", ..., "entries": [
        {"kernel": "...", "key": "...", "blocks": {"BLOCK_M": 128, ...}, "num_warps": 8, "num_stages": 3, ...}]}]}

What it holds for another GPU or another version of Triton is not used. What cannot be understood is an error, since a
table that is skipped in silence would be a slow kernel in silence.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: Names the file; "off" leaves every file alone.
VARIABLE = "TILEWRIGHT_TUNED"
FORMAT = 1

Entry = tuple[dict[str, int], int, int]


class TableError(ValueError):
    """The user's table cannot be used: which file, why, and what to do about it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"{path}: {problem}. Mend or delete this table of launch configurations (`tilewright tune` makes a new "
            f"one), or set {VARIABLE}=off"
        )


def default_path() -> Path:
    """Where the table lies if nothing else is said."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(folder) / "tilewright" / "tuned.json"


def path_in_force() -> Path | None:
    """The file to read: the one that TILEWRIGHT_TUNED names, which must be there, or the default one if it is there."""
    named = os.environ.get(VARIABLE, "")
    if named == "off":
        return None
    if named:
        return Path(named).expanduser()
    return default_path() if default_path().exists() else None


def read(path: Path) -> list[dict[str, Any]]:
    """The file's sections, one for each GPU and version of Triton, checked for their form."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(path, f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TableError(path, f"it is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TableError(path, f'it has no "format": {FORMAT}, the only one that this version knows')
    sections = content.get("devices")
    if not isinstance(sections, list):
        raise TableError(path, '"devices" is not a list')
    for number, section in enumerate(sections):
        problem = _section_problem(section)
        if problem:
            raise TableError(path, f"devices[{number}]: {problem}")
    return sections


def _section_problem(section: Any) -> str | None:
    if not isinstance(section, dict):
        return "it is not an object"
    for name in ("gpu", "triton"):
        if not isinstance(section.get(name), str):
            return f'"{name}" is not a text'
    if not isinstance(section.get("entries"), list):
        return '"entries" is not a list'
    for number, entry in enumerate(section["entries"]):
        problem = _entry_problem(entry)
        if problem:
            return f"entries[{number}]: {problem}"
    return None


def _entry_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "it is not an object"
    for name in ("kernel", "key"):
        if not isinstance(entry.get(name), str):
            return f'"{name}" is not a text'
    blocks = entry.get("blocks")
    if not isinstance(blocks, dict) or not all(type(v) is int and v >= 0 for v in blocks.values()):
        return '"blocks" is not an object of whole numbers'
    if type(entry.get("num_warps")) is not int or entry["num_warps"] not in (1, 2, 4, 8, 16, 32):
        return f'"num_warps" is {entry.get("num_warps")!r}, not 1, 2, 4, 8, 16 or 32'
    if type(entry.get("num_stages")) is not int or not 1 <= entry["num_stages"] <= 16:
        return f'"num_stages" is {entry.get("num_stages")!r}, not a whole number from 1 to 16'
    return None


def entries(path: Path, gpu: str, triton: str) -> dict[tuple[str, str], Entry]:
    """What the file holds for this GPU and version of Triton, by kernel and key."""
    found: dict[tuple[str, str], Entry] = {}
    for section in read(path):
        if (section["gpu"], section["triton"]) != (gpu, triton):
            continue
        for e in section["entries"]:
            if (e["kernel"], e["key"]) in found:
                raise TableError(path, f"{e['kernel']} with key {e['key']!r} is there twice for {gpu}")
            found[e["kernel"], e["key"]] = (e["blocks"], e["num_warps"], e["num_stages"])
    return found


def write(path: Path, section: dict[str, Any]) -> None:
    """Put the section's entries into the file, in place of those of the same GPU, Triton, kernel and key.

    The file is replaced as a whole: a reader sees the old one or the new one.
    """
    sections = read(path) if path.exists() else []
    same = [s for s in sections if (s["gpu"], s["triton"]) == (section["gpu"], section["triton"])]
    new = {(e["kernel"], e["key"]) for e in section["entries"]}
    kept = [e for s in same for e in s["entries"] if (e["kernel"], e["key"]) not in new]
    merged = {**section, "entries": sorted([*kept, *section["entries"]], key=lambda e: (e["kernel"], e["key"]))}
    content = {"format": FORMAT, "devices": [*(s for s in sections if s not in same), merged]}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
