"""Another commit of the checkout, built beside it, so that both can be measured in turns.

The commit's kernels, operators and bindings are its own; what measures them is the benchmark of the running package, on
both sides. So nothing that was changed in a benchmark is taken for a change of a kernel, and a commit from before there
was one can be measured, as long as it has the ops.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .process import Worker, stop

#: Modules that setup.py builds, by the backend that needs them.
TARGETS = ("cpu", "cuda")

#: What else decides how they are compiled.
OPTIONS = ("CXX", "CXXFLAGS", "CUDACXX", "CUDA_HOME", "NVCC_APPEND_FLAGS", "TILEWRIGHT_CUDA_ARCHS")

#: (steps done, of so many, what is being done)
Show = Callable[[int, int, str], None]

#: Run by the worker of a package first in its path. An editable install would lend it the modules that it lacks.
_SERVE = """
import importlib.util, sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable___tilewright" not in getattr(f, "__module__", "")]
import tilewright
assert tilewright.__file__.startswith({site!r}), tilewright.__file__
spec = importlib.util.spec_from_file_location("tilewright.bench", {bench!r} + "/__init__.py")
sys.modules["tilewright.bench"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["tilewright.bench"])
from tilewright.bench.rounds_worker import serve
serve()
"""


class BaseError(Exception):
    """Why a commit cannot be compared with, in one line."""


@dataclass(frozen=True)
class Base:
    """A commit's package, built: site is the folder that "tilewright" lies in, log says how it was built."""

    commit: str
    site: Path
    log: Path

    def worker(self, log: Path, env: dict[str, str]) -> Worker:
        command = [sys.executable, "-c", _SERVE.format(site=str(self.site), bench=str(Path(__file__).parent))]
        path = os.pathsep.join(filter(None, [str(self.site), env.get("PYTHONPATH")]))
        return Worker(command, log, {**env, "PYTHONPATH": path}, self.site)


def checkout() -> Path:
    """The git checkout that the running package lies in."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "setup.py").is_file():
        raise BaseError("it needs tilewright installed from a git checkout (pip install -e .), where other commits are")
    return root


def resolve(root: Path, rev: str) -> str:
    """The full hash of a branch, tag or commit."""
    found = _git(root, "rev-parse", "--git-dir")
    if found.returncode != 0:  # such as a checkout that belongs to another user
        raise BaseError(" ".join(found.stderr.decode(errors="replace").split()))
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    if done.returncode != 0:
        raise BaseError(f"{rev!r} is no commit, branch or tag of {root}")
    return done.stdout.decode().strip()


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise BaseError("git was not found") from None


def targets_of(backends: Sequence[str]) -> tuple[str, ...]:
    """The modules that these backends need."""
    return tuple(t for t in TARGETS if t in backends)


def pip_install(source: Path, site: Path, env: dict[str, str], log: Path, show: Show) -> None:
    """Build and install as the running package was: with this Python, and with its build tools where they are here."""
    command = [sys.executable, "-m", "pip", "install", "--verbose", "--no-deps", "--no-input"]
    if all(importlib.util.find_spec(m) for m in ("setuptools", "cmake", "ninja", "pybind11")):
        command.append("--no-build-isolation")
    run_shown([*command, "--disable-pip-version-check", "--target", str(site), str(source)], env, log, show)


def run_shown(command: list[str], env: dict[str, str], log: Path, show: Show) -> None:
    """Keep all output in ``log``, and show the steps that Ninja counts. BaseError with the line that tells why."""
    lines: list[str] = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=log.parent, start_new_session=True
    )
    assert process.stdout is not None
    try:
        with log.open("w", encoding="utf-8") as kept:
            for line in io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace"):
                kept.write(line)
                lines.append(line.strip())
                step = re.match(r"\[(\d+)/(\d+)\] (.*)", lines[-1])
                if step is not None:
                    show(int(step[1]), int(step[2]), Path(step[3]).name)
        code = process.wait()
    finally:
        stop(process)
    if code != 0:
        raise BaseError(f"{telling_line(lines) or f'exit code {code}'}; all of it is in {log}")


def telling_line(lines: Sequence[str]) -> str:
    """What setup.py says at its end, else the first line of an error, else the last line."""
    said = [line for line in lines if line.startswith("tilewright: ") and "warning" not in line]
    errors = [line for line in lines if "error" in line.lower() and "subprocess-exited-with-error" not in line]
    return (said[-1:] or errors[:1] or [line for line in lines if line][-1:] or [""])[0]


Build = Callable[[Path, Path, dict[str, str], Path, Show], None]


def prepare(root: Path, rev: str, targets: Sequence[str], show: Show, build: Build = pip_install) -> Base:
    """The commit's package from the checkout's build/base, where it is built once for each choice of options."""
    commit = resolve(root, rev)
    env = {**os.environ, "TILEWRIGHT_CUDA_EMULATED": "0"}
    for target in TARGETS:
        env[f"TILEWRIGHT_{target.upper()}"] = "1" if target in targets else "0"
    options = [sys.version, list(targets), {n: env.get(n) for n in OPTIONS}]
    key = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:8]
    folder = root / "build" / "base" / f"{commit[:12]}-{key}"
    base = Base(commit, folder / "site", folder / "build.log")
    if base.site.is_dir():
        return base
    source, unfinished = folder / "source", folder / "unfinished"
    for left in (source, unfinished):  # by an interruption
        shutil.rmtree(left, ignore_errors=True)
    source.mkdir(parents=True)
    archive = _git(root, "archive", "--format=zip", commit)
    if archive.returncode != 0:
        raise BaseError(f"git archive {commit[:12]}: {archive.stderr.decode(errors='replace').strip()}")
    zipfile.ZipFile(io.BytesIO(archive.stdout)).extractall(source)
    build(source, unfinished, env, base.log, show)
    if not (unfinished / "tilewright" / "__init__.py").is_file():
        raise BaseError(f"{rev} has no package tilewright")
    os.replace(unfinished, base.site)
    shutil.rmtree(source)
    return base


def newer_sources(root: Path, targets: Sequence[str]) -> list[str]:
    """In words, the built modules of the checkout that are older than a source: it would be measured as it was."""
    sources = [f for f in (root / "csrc").rglob("*") if f.is_file()]
    found = []
    for target in targets:
        for module in (root / "python" / "tilewright").glob(f"_{target}.*"):
            newest = max(sources, key=lambda f: f.stat().st_mtime)
            if module.suffix == ".so" and newest.stat().st_mtime > module.stat().st_mtime:
                name = newest.relative_to(root)
                found.append(f"{name} is newer than {module.name}: if it was edited, build with pip install -e . first")
    return found
