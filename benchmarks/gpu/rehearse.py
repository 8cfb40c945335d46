"""`make gpu-rehearsal`: both calls from end to end without a GPU, with the kit, in a fresh environment of the Python
that it is for. Triton's kernels come from the kit's cache and are launched through a stand-in for the driver, CUDA C++
runs in the emulator, and NVIDIA's programs have stand-ins."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import kit, make_kit, pythons
from .run import ROOT

CALLS = ("contact", "measure")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu rehearse", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-rehearsal", help="folder of everything")
    parser.add_argument("--kit", type=Path, help=f"folder of the kit, which is made first (default: {kit.KIT})")
    parser.add_argument("--python", help=f"a Python {pythons.PYTHON}")
    parser.add_argument("--small", action="store_true", help="with a kit of its own for the sample, made in a minute")
    parser.add_argument("--current", action="store_true", help="small, with this Python and its torch")
    parser.add_argument("--sample", type=int, default=12, metavar="N", help="of every list only N")
    given = parser.parse_args(arguments)
    if not given.current:
        try:
            given.python = given.python or pythons.environment() or pythons.python_312()
        except RuntimeError as error:
            print(f"{error}: the current Python serves instead", flush=True)
            given.current = True
    small = given.small or given.current
    if given.kit is None:
        given.kit = given.work / "small-kit" if small else kit.KIT
    made = ["--kit", str(given.kit), *(["--current"] if given.current else ["--python", given.python])]
    if small:
        made += ["--small", "--sample", str(given.sample), "--work", str(given.work / "kit-work")]
    if given.current:
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"Python {version} and its torch stand in for {pythons.PYTHON} and torch {pythons.TORCH}", flush=True)
    if make_kit.main(made) != 0:
        return 1
    python = fresh_environment(make_kit.describe_python(given.kit), given.work / "python")
    failed = []
    for call in CALLS:
        words = ["--rehearse", "--sample", str(given.sample), "--kit", str(given.kit), "--out", str(given.work / "out")]
        command = [python, str(Path(__file__).parent), call, *words, "--work", str(given.work / "work")]
        print(f"$ {' '.join(command)}", flush=True)
        if subprocess.run(command, check=False, cwd=given.work).returncode != 0:
            failed.append(call)
    print(f"the rehearsal of {' and '.join(failed)} failed" if failed else "the rehearsals passed", flush=True)
    return int(bool(failed))


def fresh_environment(base: str, folder: Path) -> str:
    """An environment with what ``base`` has installed, but neither the package nor the checkout."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    place = "import sysconfig; print(sysconfig.get_path('purelib'))"
    source, target = (
        Path(subprocess.run([p, "-c", place], capture_output=True, text=True, check=True).stdout.strip())
        for p in (base, python)
    )
    # What a .pth file names is searched, but .pth files in there, of editable installs for instance, are not read.
    (target / "packages.pth").write_text(f"{source}\n")
    return python
