"""Builds the compiled modules with CMake and Ninja. Everything else about the package is in pyproject.toml.

A module that cannot be built is left out with one warning, and the install succeeds: the other backends do not need it.
TILEWRIGHT_CPU=0 leaves the CPU module out, TILEWRIGHT_CPU=1 makes its failure an error; TILEWRIGHT_CUDA_EMULATED is the
same for the emulator that runs the CUDA kernels on any machine.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
TARGETS = {"cpu": "tilewright._cpu", "cuda_emulated": "tilewright._cuda_emulated"}
REMAINING = "the triton and reference backends work without it"


class LeftOut(Exception):
    """Why a target is not built, in words."""


def requested(target: str) -> bool | None:
    """TILEWRIGHT_<TARGET>: 1 must be built, 0 must not, unset is built if it can be."""
    name = f"TILEWRIGHT_{target.upper()}"
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{name}={value!r}: accepted are 0 (leave it out), 1 (fail if it cannot be built) and unset")
    return None if value == "" else value == "1"


def run_shown(command: list[str], env: dict[str, str]) -> None:
    """Run a build step with its output shown; when it fails, the first line that names an error is the reason."""
    lines: list[str] = []
    with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            lines.append(line.strip())
    sys.stdout.flush()
    if process.returncode != 0:
        errors = (line for line in lines if "error" in line.lower())
        raise LeftOut(f"the build failed: {next(errors, lines[-1] if lines else f'exit code {process.returncode}')}")


def build_environment() -> dict[str, str]:
    """The environment with this Python's scripts first on PATH: cmake and ninja are there even if not activated."""
    return {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}


def cmake_build(target: str) -> Path:
    """Build one module in its own folder, which is kept, so that the next build compiles only what changed."""
    env = build_environment()
    for tool in ("cmake", "ninja"):
        if shutil.which(tool, path=env["PATH"]) is None:
            raise LeftOut(f"{tool} was not found")
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(shutil.which(c, path=env["PATH"]) for c in compilers):
        raise LeftOut(f"no C++ compiler was found (looked for {', '.join(compilers)})")
    folder = ROOT / "build" / f"{target}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    configure = ["cmake", "-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    # Named each time: pip's build environments live in a new folder every time, and the cached paths would be stale.
    configure += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=env['PATH'])}",
    ]
    run_shown(configure, env)
    run_shown(["cmake", "--build", str(folder), "--target", f"_{target}"], env)
    return folder / f"_{target}{sysconfig.get_config_var('EXT_SUFFIX')}"


class CMakeBuild(build_ext):
    def run(self) -> None:
        missing: dict[str, str] = {}
        for target, module in TARGETS.items():
            wanted = requested(target)
            try:
                if wanted is False:
                    raise LeftOut(f"TILEWRIGHT_{target.upper()}=0 was set when the package was built")
                self.place(cmake_build(target), Path(self.get_ext_fullpath(module)))
            except LeftOut as reason:
                if wanted:
                    raise SystemExit(f"tilewright: TILEWRIGHT_{target.upper()}=1, but {reason}") from None
                Path(self.get_ext_fullpath(module)).unlink(missing_ok=True)  # an earlier build's must not slip in
                print(f"tilewright: warning: {module} is left out: {reason}; {REMAINING}", file=sys.stderr)
                missing[target] = str(reason)
        self.extensions = [e for e in self.extensions if not any(e.name == TARGETS[t] for t in missing)]
        package = Path(self.get_ext_fullpath("tilewright._cpu")).parent
        package.mkdir(parents=True, exist_ok=True)
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
