"""Both calls from end to end, without a GPU: a kit is made, unpacked in a fresh environment, and the very commands run
that a GPU machine gets. It covers the lines of every stage and worker, Triton's compiler, cache and launchers, and the
emulator, in the Python and torch that a kit is for where `make gpu-python` has prepared them, else in this one's. What
it does not cover: a GPU, its driver and tools; and the whole kit (`make gpu-rehearsal` has that)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from gpu import pythons
from gpu.stages import CALLS

pytest.importorskip("triton")
pytest.importorskip("tilewright._cuda_emulated", reason="this build has no emulator", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
CURRENT = (
    f"Python {'.'.join(map(str, sys.version_info[:2]))} and its torch stand in for {pythons.PYTHON} and torch "
    f"{pythons.TORCH}"
)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the results, and all that was printed."""
    folder = tmp_path_factory.mktemp("rehearsal")
    python = pythons.environment()
    if python is None:
        warnings.warn(f"{CURRENT}; `make gpu-python` prepares those", stacklevel=1)
    served = ["--current"] if python is None else ["--python", python]
    words = ["rehearse", "--small", *served, "--sample", "1", "--work", str(folder)]
    env = {n: v for n, v in os.environ.items() if n not in ("TRITON_INTERPRET", "PYTHONPATH")}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=folder)
    print(done.stdout[-12000:], done.stderr[-3000:])
    assert done.returncode == 0, "a stage failed: the captured output above names it"
    return folder / "out", done.stdout


def result(out: Path, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"rehearsal-not-a-measurement-{kind}.json").read_text())
    return found


def test_every_stage_passes_and_every_kernel_comes_from_the_kit(rehearsed: Any) -> None:
    out, printed = rehearsed
    assert (CURRENT in printed) == (pythons.environment() is None)
    for call, kind in (("contact", "contact"), ("measure", "bench")):
        found = result(out, kind)
        assert {n: s["status"] for n, s in found["stages"].items()} == dict.fromkeys(
            ["place", *(s.name for s in CALLS[call].stages)], "passed"
        )
        assert found["complete"] is True and f"{call} on a rehearsal without a GPU: ALL PASSED" in printed
        for name, stage in found["stages"].items():
            assert not stage["problems"], f"{name}: {stage['problems']}"
            asked = re.search(r"(\d+) kernels found, (\d+) compiled here", stage["reason"])
            if name in ("smoke", "triton", "checks", "memcheck", "calls", "compiled", "candidates", "counters"):
                assert asked and int(asked[1]) > 0 and int(asked[2]) == 0, f"{name}: {stage['reason']}"


def test_nothing_that_it_leaves_looks_like_a_measurement(rehearsed: Any) -> None:
    from tilewright.bench.summary import read

    out, printed = rehearsed
    files = sorted(f.name for f in out.iterdir())
    assert len(files) == 6 and all(name.startswith("rehearsal-not-a-measurement-") for name in files), files
    with pytest.raises(ValueError, match="measures nothing"):
        read(out / "rehearsal-not-a-measurement-bench.json")
    found = result(out, "bench")
    assert found["rehearsal"] is True and found["rows"]
    for row in found["rows"]:
        assert row["status"] != "timed" and not {"result", "device", "wall", "of_roofline", "peak_bytes"} & row.keys()
    assert all("seconds" not in trial for trial in found["candidates"]["trials"])
    assert all(set(k["metrics"].values()) == {"rehearsed"} for k in found["counters"]["kernels"])
    for name in files:
        if name.endswith(".txt"):
            assert (out / name).read_text().startswith("REHEARSAL, not a measurement")
    assert printed.count("REHEARSAL, not a measurement") == 2


def test_the_logs_come_back_in_one_archive(rehearsed: Any) -> None:
    out, _ = rehearsed
    with tarfile.open(out / "rehearsal-not-a-measurement-contact.tar.gz") as archive:
        names = archive.getnames()
    assert {"smoke.log", "checks.log", "memcheck-cuda.log", "racecheck-cuda.log"} <= set(names), names
    assert all((out / f).stat().st_size < 16 * 2**20 for f in os.listdir(out))
