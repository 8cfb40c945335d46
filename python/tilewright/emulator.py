"""The emulator of CUDA kernels, the compiled module ``_cuda_emulated``: in the installation, or built from the sources
that lie in it where it is first used. Few users need it, and building it would be a sixth of everybody's installation.

What is built is kept in the user's cache, ``$XDG_CACHE_HOME/tilewright`` or ``~/.cache/tilewright``, by a hash of the
sources, the Python and the compiler; later processes only load it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from . import cmake
from .build_info import missing_reason

TARGET, NAME = "cuda_emulated", "tilewright._cuda_emulated"
#: Where an installation has the sources.
SOURCES = Path(__file__).with_name("csrc")
#: Of a processor of 2024; two of them share the work evenly.
PROCESSOR_SECONDS = 40
FIRST_USE = "the emulator is built where it is first used"
INSTALL = "pip install 'tilewright[emulator]' brings all but the compiler and Python's headers"


def load() -> ModuleType:
    """The module, which is built first if need be; ImportError says in words why there is none."""
    if NAME in sys.modules or installed():
        return importlib.import_module(NAME)
    reason = unbuildable()
    if reason is not None:
        raise ImportError(reason)
    file = cached()
    if not file.is_file():
        try:
            _build(file)
        except cmake.BuildError as error:
            raise ImportError(f"the emulator could not be built: {error}; all of it is in {_log(file)}") from None
        except OSError as error:
            raise ImportError(f"the emulator could not be built in {file.parent}: {error}") from None
    return _import(file)


def state() -> str:
    """Where the module is, or what would become of a first use, in words. Builds nothing."""
    if installed():
        return "in this installation"
    reason = unbuildable()
    if reason is not None:
        return f"none: {reason}"
    return f"built in {cached().parent}" if cached().is_file() else "built where it is first used"


def installed() -> bool:
    return importlib.util.find_spec(NAME) is not None


def unbuildable() -> str | None:
    """Why a first use cannot build the module, in words, or None if it can."""
    reason = missing_reason(TARGET)
    if reason is not None:
        return reason
    if not SOURCES.is_dir():
        return f"this installation has neither {NAME} nor its sources"
    try:
        if cached().is_file():
            return None
    except RuntimeError as error:  # of a user without a home
        return f"{FIRST_USE}, but {error}; XDG_CACHE_HOME can name the folder to keep it in"
    missing = cmake.missing_tools()
    return f"{FIRST_USE}, but {', and '.join(missing)}; {INSTALL}" if missing else None


def cached() -> Path:
    """The file that a first use leaves."""
    digest = hashlib.sha256()
    for file in sorted(SOURCES.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(SOURCES)}\n".encode() + file.read_bytes())
    for part in (cmake.SUFFIX, os.environ.get("CXX", ""), os.environ.get("CXXFLAGS", "")):
        digest.update(f"\n{part}".encode())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "tilewright", f"emulator-{digest.hexdigest()[:16]}", f"_{TARGET}{cmake.SUFFIX}")


def _log(file: Path) -> Path:
    return file.with_name("build.log")


def _build(file: Path) -> None:
    """Processes that start together build once: the others wait. The file appears when it is complete."""
    from filelock import FileLock

    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if file.is_file():
            return
        takes = f"about {PROCESSOR_SECONDS} seconds of processor time, on {os.cpu_count() or 1} processors"
        print(f"tilewright: building the emulator of CUDA kernels in {folder}, once: {takes}", file=sys.stderr)
        work = folder / "build"
        shutil.rmtree(work, ignore_errors=True)  # of a build that was interrupted
        with _log(file).open("w", encoding="utf-8") as log:
            built = cmake.build(SOURCES, work, f"_{TARGET}", ["-DTILEWRIGHT_CPU=OFF"], log.write)
        os.replace(built, file)
        shutil.rmtree(work, ignore_errors=True)


def _import(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise
    return module
