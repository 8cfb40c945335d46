"""What `make gpu-kit` leaves in one folder for a machine with a GPU and no network, and whether it fits there."""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .run import ROOT

KIT = ROOT / "build" / "gpu-kit"
#: In the folder, beside the wheel: what it holds and what it was made from; Triton's cache; wheels of other packages.
DESCRIPTION, CACHE, PEERS = "kit.json", "triton-cache.tar.xz", "peers"

#: What the package is built from; and the lists of what the two calls launch.
SOURCES, LISTS = ("setup.py", "pyproject.toml", "csrc", "python", "triton_kernels"), ("benchmarks/gpu",)
_BUILT = {".so", ".pyc", ".pyd"}


def python_tag() -> str:
    """Of interpreters that can load each other's compiled modules."""
    return f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"


def digest(names: Sequence[str] = SOURCES, root: Path = ROOT) -> str:
    """Of files and folders of the checkout: by default all that the package and its kernels are made from."""
    digest = hashlib.sha256()
    for name in names:
        files = [root / name] if (root / name).is_file() else (root / name).rglob("*")
        for file in sorted(f for f in files if f.is_file()):
            if file.suffix in _BUILT or file.name == "_build_info.py" or ".egg-info" in str(file):
                continue
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def describe(kit: Path) -> dict[str, Any]:
    """kit.json; ValueError in words where there is none."""
    try:
        found: dict[str, Any] = json.loads((kit / DESCRIPTION).read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no kit in {kit} (`make gpu-kit` makes one)") from None
    return found


def unfit(kit: Path, sources: str) -> str | None:
    """Why its wheel is not what this Python wants of this checkout, or None."""
    try:
        found = describe(kit)
    except ValueError as error:
        return str(error)
    if found["python"] != python_tag():
        return f"the kit is for {found['python']}, and this is {python_tag()}"
    if found["sources"] != sources:
        return "the kit was made from other sources than this checkout's"
    return None if (kit / found["wheel"]).exists() else f"the kit lacks {found['wheel']}"
