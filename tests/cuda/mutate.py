"""Breaks the CUDA kernels on purpose, one place at a time, and shows what notices: ``python tests/cuda/mutate.py``.

Each mutant is compiled into an emulated module of its own and runs a few of the built-in cases. What caught it is a
fault that the emulator reports, or the gate on the result. The outcome is written to mutants.json, and to the table in
docs/emulator.md; a test checks that the list and the sources still fit, and that nothing escaped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("mutants.json")
PAGE = ROOT / "docs" / "emulator.md"
MARKS = ("<!-- mutants -->", "<!-- end of mutants -->")


RUN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tilewright._cuda_emulated", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
import fnmatch, torch
torch.set_num_threads(1)
from tilewright.catalog import OPS
from tilewright.verify.cases import select_cases
from tilewright.verify.run import run_case
found = 0
for case in select_cases(list(OPS)):
    if case.dtype == torch.float64 or not any(fnmatch.fnmatch(case.id, p) for p in sys.argv[2:]):
        continue
    found += 1
    for record in run_case(case, ["cuda"]):
        if record.status != "passed":
            print(case.id, "|", " ".join(map(str, record.problems)).replace("\\n", " "))
            sys.exit(1)
assert found, "no such case"
"""


def mutate(mutant: Mutant, folder: Path) -> str:
    """Writes the mutant into a copy of csrc/; returns what was there."""
    path = folder / "cuda" / mutant.file
    text = path.read_text()
    count = text.count(mutant.before)
    if count != 1:
        raise SystemExit(f"{mutant.what}: in {mutant.file} there are {count} places to change, not one")
    path.write_text(text.replace(mutant.before, mutant.after))
    return text


def judge(module: Path, mutant: Mutant) -> tuple[str, str] | None:
    """What caught it, a fault of the emulator or "gate", and where; None if nothing did."""
    environment = {**os.environ, "TILEWRIGHT_CUDA_EMULATE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(module), *mutant.cases],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    if done.returncode == 0:
        return None
    line = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-300:]
    case, _, problem = line.partition(" | ")
    fault = re.search(r"\b((?:global|shared|copy|launch)-[a-z-]+|divergence|deadlock) in ", problem)
    if fault is None and not re.search(r"error .* > |not finite|NaN|differ", problem):
        raise SystemExit(f"{mutant.what}: failed in a way that is no catch: {line}")
    return (fault[1] if fault else "gate"), case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose description contains this; other results stay")
    only = parser.parse_args().only
    chosen = [m for m in MUTANTS if only in m.what]
    rows = {row["what"]: row for row in json.loads(RESULTS.read_text())}
    with tempfile.TemporaryDirectory() as temporary:
        source, build = Path(temporary, "csrc"), Path(temporary, "build")
        shutil.copytree(ROOT / "csrc", source)
        tools = {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])}

        def make() -> Path:
            command = ["cmake", "--build", str(build), "--target", "_cuda_emulated"]
            subprocess.run(command, check=True, env=tools, stdout=subprocess.DEVNULL)
            return build / f"_cuda_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"

        configure = [
            "cmake",
            "-S",
            str(source),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(configure, check=True, env=tools, stdout=subprocess.DEVNULL)
        module = make()
        for mutant in chosen:
            caught = judge(module, Mutant("as it is", "", "", "", mutant.cases))
            if caught is not None:
                raise SystemExit(f"{mutant.what}: its cases fail without it: {caught}")
        for number, mutant in enumerate(chosen, 1):
            text = mutate(mutant, source)
            caught = judge(make(), mutant)
            (source / "cuda" / mutant.file).write_text(text)
            print(
                f"{number}/{len(chosen)} {mutant.what}: {'NOT CAUGHT' if caught is None else ' in '.join(caught)}",
                flush=True,
            )
            by, case = caught or ("nothing", "")
            rows[mutant.what] = {"what": mutant.what, "file": mutant.file, "by": by, "case": case}
    found = [rows[m.what] for m in MUTANTS if m.what in rows]
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    PAGE.write_text(before + table(found) + rest.partition(MARKS[1])[2])
    return int(any(row["by"] == "nothing" for row in found))


def table(rows: list[dict[str, str]]) -> str:
    """For the page, with its marks."""
    lines = [f"| {row['what']} | `{row['file']}` | {row['by']} |" for row in rows]
    head = "| what is broken | where | caught by |\n| --- | --- | --- |\n"
    return f"{MARKS[0]}\n{head}" + "\n".join(lines) + f"\n{MARKS[1]}"


if __name__ == "__main__":
    sys.exit(main())
