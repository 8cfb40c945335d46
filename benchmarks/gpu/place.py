"""Putting the package in place, into a folder of its own: the machine's Python is left as it is. It needs nothing but
Python."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path

from . import kit
from .run import ROOT, Outcome, Run, process

#: A build on the machine may take so long; it is no part of the call's own time.
SECONDS_TO_BUILD = 240.0

#: Of the compiled modules the one that runs on a GPU: the others would take as long again.
BUILT = {"TILEWRIGHT_CUDA": "1", "TILEWRIGHT_CPU": "0", "TILEWRIGHT_CUDA_EMULATED": "0"}


def site(run: Run) -> Path:
    return run.work / "site"


def from_kit(run: Run, sources: str) -> Outcome:
    """The kit's wheels, unpacked; or why not."""
    folder = run.kit or kit.KIT
    reason = kit.unfit(folder, sources)
    if reason is not None:
        return Outcome("failed", reason)
    shutil.rmtree(site(run), ignore_errors=True)
    peers = [p for p in sorted((folder / kit.PEERS).glob("*.whl")) if _fits(p)]
    for wheel in (folder / kit.describe(folder)["wheel"], *peers):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site(run))
    beside = f", beside {', '.join('-'.join(p.name.split('-')[:2]) for p in peers)}" if peers else ""
    return Outcome("passed", f"from the kit{beside}", data={"kit": kit.describe(folder)})


def _fits(wheel: Path) -> bool:
    """By its name, name-version-python-abi-platform: for this Python, or for every one."""
    python = wheel.stem.split("-")[-3]
    return "py3" in python.split(".") or f"cpython-{python[2:]}-" in kit.python_tag()


def by_building(run: Run, because: str) -> Outcome:
    """The package with the CUDA module for the GPU that is here, compiled from the checkout."""
    shutil.rmtree(site(run), ignore_errors=True)
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-build-isolation", "--no-deps")
    command = [run.python, *pip, "--target", str(site(run)), str(ROOT)]
    code = process.run_logged(command, run.work / "build.log", SECONDS_TO_BUILD, {**os.environ, **BUILT}, ROOT)
    if code == 0:
        return Outcome("passed", f"built here, since {because}")
    ended = f"stopped at its limit of {SECONDS_TO_BUILD:.0f} s" if code is None else f"exit code {code}"
    return Outcome("failed", f"{because}, and building it here ended: {ended}: {why_it_failed(run.work / 'build.log')}")


def why_it_failed(log: Path) -> str:
    """Of a failed build, the first line that names an error which is not pip's own."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [n for n in lines if re.search(r"\berror: |No module", n) and "subprocess" not in n]
    return errors[0][:300] if errors else (lines or ["it printed nothing"])[-1][:300]
