"""Pythons that a kit is made with and rehearsed in: what the machine has that it is for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from .run import ROOT

#: What the machine has: its Python, and what decides over compiled kernels and their launchers.
PYTHON, TORCH, TRITON = "3.12", "2.11.0", "3.6.0"

#: Where everything is kept that a kit is made with; in it an environment with those, and what was installed there.
WORK = ROOT / "build" / "gpu-kit-work"
ENVIRONMENT, STAMP = f"python{PYTHON}", "installed.json"

#: Beside torch and Triton, what building the package and importing it takes. numpy: of Triton's and torch's own.
NEEDED = ("numpy<2.4", "setuptools>=77", "wheel", "cmake", "ninja", "pybind11", "rich", "typer", "safetensors")


def wanted_packages() -> list[str]:
    return [f"torch=={TORCH}", f"triton=={TRITON}", *NEEDED]


def environment(work: Path = WORK) -> str | None:
    """The Python that an earlier kit was made with, if it still has what is wanted."""
    stamp = work / ENVIRONMENT / STAMP
    if stamp.exists() and json.loads(stamp.read_text()) == wanted_packages():
        return str(work / ENVIRONMENT / "bin" / "python")
    return None


def python_312() -> str:
    """On PATH, or of pyenv's."""
    name = f"python{PYTHON}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (shutil.which(name), *sorted(map(str, pyenv.glob(f"{PYTHON}.*/bin/{name}")), reverse=True)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    raise RuntimeError(f"no {name} was found (looked on PATH and in {pyenv}); name one with --python")


def versions(python: str) -> dict[str, str | None]:
    """Of torch, without what it was built for, and of Triton."""
    code = (
        "import importlib.metadata as m, json\n"
        "def v(n):\n"
        "  try: return m.version(n).split('+')[0]\n"
        "  except m.PackageNotFoundError: return None\n"
        "print(json.dumps({n: v(n) for n in ('torch', 'triton')}))"
    )
    return dict(json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout))


def tag_of(python: str) -> str:
    folder = str(Path(__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {folder!r}); from gpu import kit; print(kit.python_tag())"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
