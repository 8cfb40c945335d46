"""Builds the compiled modules with CMake and Ninja. Everything else about the package is in pyproject.toml.

A module that cannot be built is left out with one warning, and the install succeeds: the other backends do not need it.
TILEWRIGHT_CPU=0 leaves the CPU module out, TILEWRIGHT_CPU=1 makes its failure an error; TILEWRIGHT_CUDA is the same for
the module of CUDA kernels, and TILEWRIGHT_CUDA_EMULATED for the emulator that runs them on any machine. Unset, editable
installs build the emulator; others get its sources, and build it where it is first used (tilewright/emulator.py).
TILEWRIGHT_CUDA_ARCHS="80;90a" says what the CUDA kernels are compiled for: docs/cuda.md.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TARGETS = {"cpu": "tilewright._cpu", "cuda_emulated": "tilewright._cuda_emulated", "cuda": "tilewright._cuda"}
#: What CUDA kernels are compiled for where there is no GPU to ask, and the oldest that they are written for.
DEFAULT_ARCHITECTURES, OLDEST_ARCHITECTURE = ["80", "90a"], 80
REMAINING = "the triton and reference backends work without it"
#: Not built at installation but by the package where it is first used, from the sources that lie in this folder of it.
FIRST_USE, SOURCES = "cuda_emulated", "csrc"


# By its path: the package itself is not installed yet, and importing it takes torch.
_spec = importlib.util.spec_from_file_location("tilewright_cmake", ROOT / "python" / "tilewright" / "cmake.py")
assert _spec is not None and _spec.loader is not None
cmake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cmake)
BuildError = cmake.BuildError


def requested(target: str) -> bool | None:
    """TILEWRIGHT_<TARGET>: 1 must be built, 0 must not, unset is built if it can be."""
    name = f"TILEWRIGHT_{target.upper()}"
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name}={value!r}: accepted are 0 (leave it out), 1 (fail if it cannot be built) and unset")
    return None if value == "" else value == "1"


def requested_architectures() -> list[str]:
    """TILEWRIGHT_CUDA_ARCHS as a list, which is empty if it is unset."""
    value = os.environ.get("TILEWRIGHT_CUDA_ARCHS", "")
    names = [name.strip() for name in re.split("[;,]", value)] if value else []
    for name in names:
        if not re.fullmatch(r"\d{2,3}[af]?", name) or int(name.rstrip("af")) < OLDEST_ARCHITECTURE:
            raise SystemExit(
                f"TILEWRIGHT_CUDA_ARCHS={value!r}: {name!r} is no architecture that the CUDA kernels are written "
                f"for; accepted are unset and numbers from {OLDEST_ARCHITECTURE} on, with an a or f if wanted: '80;90a'"
            )
    return list(dict.fromkeys(names))


def find_nvcc(path: str) -> str:
    named, home = os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME")
    if named:
        candidates = [named]
    else:
        candidates = [*([str(Path(home, "bin", "nvcc"))] if home else []), "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, (shutil.which(c, path=path) for c in candidates)), None)
    if found is None:
        raise BuildError(f"nvcc was not found (looked for {', '.join(candidates)})")
    return found


def gpu_architectures() -> list[str]:
    """Those of this machine's GPUs; none without nvidia-smi, or if it does not answer."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    numbers = sorted({int(major + minor) for major, minor in re.findall(r"^\s*(\d+)\.(\d)\s*$", answer, re.MULTILINE)})
    # The a is for what only Hopper has.
    return ["90a" if n == 90 else str(n) for n in numbers if n >= OLDEST_ARCHITECTURE]


def cuda_architectures(nvcc: str) -> list[str]:
    """What is asked for, else what the GPUs here are, else the default."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout
    known = set(re.findall(r"sm_(\d+)", listed))
    if not known:
        raise BuildError(f"{nvcc} does not say what it compiles for (nvcc --list-gpu-code)")
    asked = requested_architectures()
    unknown = [a for a in asked if a.rstrip("af") not in known]
    if unknown:
        names = ", ".join(sorted(known, key=int))
        raise SystemExit(f"TILEWRIGHT_CUDA_ARCHS: {nvcc} does not know {', '.join(unknown)}; it compiles for {names}")
    gpus = gpu_architectures()
    found = [a for a in gpus if a.rstrip("af") in known]
    # A GPU newer than this nvcc runs PTX, which comes with every plain architecture.
    if found and len(found) < len(gpus) and all(a[-1] in "af" for a in found):
        found.insert(0, str(OLDEST_ARCHITECTURE))
    return asked or found or [a for a in DEFAULT_ARCHITECTURES if a.rstrip("af") in known]


def options_of(target: str, env: dict[str, str], development: bool) -> list[str]:
    """What CMake needs to know besides the target's name."""
    if target == "cpu":
        return [f"-DTILEWRIGHT_CPU_TILES={'ON' if development else 'OFF'}"]
    if target == "cuda_emulated":
        return ["-DTILEWRIGHT_CPU=OFF"]
    nvcc = find_nvcc(env["PATH"])
    architectures = ";".join(cuda_architectures(nvcc))
    return [
        "-DTILEWRIGHT_CPU=OFF",
        "-DTILEWRIGHT_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DTILEWRIGHT_CUDA_ARCHS={architectures}",
    ]


def build(target: str, development: bool) -> Path:
    """Build one module in its own folder, which is kept, so that the next build compiles only what changed.

    development: with what only tests use.
    """
    folder = ROOT / "build" / f"{target}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    options = options_of(target, cmake.environment(), development)
    return cmake.build(ROOT / "csrc", folder, f"_{target}", options, sys.stdout.write)


class CMakeBuild(build_ext):
    def run(self) -> None:
        missing: dict[str, str] = {}
        requests = {target: requested(target) for target in TARGETS}
        requested_architectures()  # a mistake in a variable is said before anything is compiled
        development = self.editable_mode or self.inplace
        package = Path(self.get_ext_fullpath("tilewright._cpu")).parent
        package.mkdir(parents=True, exist_ok=True)
        built = set()
        shutil.rmtree(package / SOURCES, ignore_errors=True)
        for target, module in TARGETS.items():
            wanted, destination = requests[target], Path(self.get_ext_fullpath(module))
            try:
                if wanted is False:
                    raise BuildError(f"TILEWRIGHT_{target.upper()}=0 was set when the package was built")
                if target == FIRST_USE and wanted is None and not development:
                    shutil.copytree(ROOT / "csrc", package / SOURCES, ignore=shutil.ignore_patterns("cpu", "*.py"))
                    print(f"tilewright: {module} is built where it is first used (TILEWRIGHT_{target.upper()}=1: now)")
                else:
                    self.place(build(target, development), destination)
                    built.add(module)
            except BuildError as reason:
                if wanted:
                    raise SystemExit(f"tilewright: TILEWRIGHT_{target.upper()}=1, but {reason}") from None
                print(f"tilewright: warning: {module} is left out: {reason}; {REMAINING}", file=sys.stderr)
                missing[target] = str(reason)
            if module not in built:
                destination.unlink(missing_ok=True)  # an earlier build's must not slip in
        self.extensions = [e for e in self.extensions if e.name in built]
        (package / "_build_info.py").write_text(
            '"""Written by setup.py: the targets that this installation lacks, and why."""\n\n'
            f"MISSING: dict[str, str] = {missing!r}\n"
        )

    @staticmethod
    def place(built: Path, destination: Path) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a running process may have the old file mapped.
        temporary = destination.with_suffix(".new")
        shutil.copyfile(built, temporary)
        os.replace(temporary, destination)


setup(
    packages=[*find_packages("python"), "tilewright.triton_kernels"],
    ext_modules=[Extension(module, sources=[]) for module in TARGETS.values()],
    cmdclass={"build_ext": CMakeBuild},
)
