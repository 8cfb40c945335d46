"""Builds a compiled module of ``csrc/`` with CMake and Ninja: for setup.py at installation, and for the emulator where
it is first used. It needs nothing but the standard library, since setup.py loads it by its path.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = ("cmake", "ninja")
#: What a file of an extension module of this Python ends in: it names the ABI and the platform.
SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX")


class BuildError(Exception):
    """Why a module is not built, in words."""


def environment() -> dict[str, str]:
    """The environment with this Python's scripts first on PATH: cmake and ninja are there even if not activated."""
    return {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}


def missing_tools() -> list[str]:
    """What is needed to build a module and is not here: a clause for each."""
    path = environment()["PATH"]
    missing = [f"{tool} was not found" for tool in TOOLS if shutil.which(tool, path=path) is None]
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(c, path=path) for c in compilers):
        missing.append(f"no C++ compiler was found (looked for {', '.join(compilers)})")
    if importlib.util.find_spec("pybind11") is None:
        missing.append("pybind11 was not found")
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        missing.append(f"the headers of this Python were not found (looked for {header})")
    return missing


def run(command: Sequence[str], env: dict[str, str], show: Callable[[str], object]) -> None:
    """Run a build step, and show its output line by line; if it fails, the first line that names an error says why."""
    lines: list[str] = []
    with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            show(line)
            lines.append(line.strip())
    if process.returncode != 0:
        errors = (line for line in lines if "error" in line.lower())
        raise BuildError(f"the build failed: {next(errors, lines[-1] if lines else f'exit code {process.returncode}')}")


def build(source: Path, folder: Path, target: str, options: Sequence[str], show: Callable[[str], object]) -> Path:
    """The module ``target`` of csrc/, which is ``source``, built in ``folder``: what is there already is not compiled
    again."""
    missing = missing_tools()
    if missing:
        raise BuildError(", and ".join(missing))
    env = environment()
    configure = ["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    # Named each time: pip's build environments live in a new folder every time, and the cached paths would be stale.
    ninja = shutil.which("ninja", path=env["PATH"])
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run([*configure, *options], env, show)
    run(["cmake", "--build", str(folder), "--target", target], env, show)
    return folder / f"{target}{SUFFIX}"
