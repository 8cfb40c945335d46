"""Nsight Compute's counters of five calls: which unit limits each kernel, and how near it is to that unit's limit."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import report
from .run import Outcome, Run

#: Items of the set gpu-first, each on one backend; and what a rehearsal has instead.
CALLS = (
    "attention forward d128 causal S4096=triton",
    "attention forward d128 causal S4096=cuda",
    "attention backward d128 causal S4096=triton",
    "ffn forward 768/3072 gelu_tanh rows 32768=triton",
    "softmax forward 16384=triton",
)
TINY = ("softmax forward 100 float32=triton", "softmax forward 100 float32=cuda")

#: Groups of counters: together they need few replays of a kernel.
SECTIONS = (
    "SpeedOfLight", "LaunchStats", "Occupancy", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats",
)  # fmt: skip

#: Of these, what the table shows, by the profiler's names.
SHOWN = {
    "us": "Duration",
    "SM %": "Compute (SM) Throughput",
    "memory %": "Memory Throughput",
    "DRAM %": "DRAM Throughput",
    "L2 hit %": "L2 Hit Rate",
    "occupancy %": "Achieved Occupancy",
    "registers": "Registers Per Thread",
    "warp cycles per issue": "Warp Cycles Per Issued Instruction",
}


def counters(run: Run) -> Outcome:
    program = profiler()
    if program is None:
        return Outcome("not run", "ncu was not found (looked on PATH, in /usr/local/cuda*/bin and /opt/nvidia)")
    output = run.work / "counters.csv"
    output.unlink(missing_ok=True)
    code = run.program(
        "counters-ncu.log",
        # The clocks stay as they are: other stages measure at the same ones, and fixing them needs rights.
        *(program, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "details"),
        *(word for section in SECTIONS for word in ("--section", section)),
        *("--log-file", str(output), "--target-processes", "all"),
        *(run.python, str(Path(__file__).parent), "--profile", *run.some(TINY if run.rehearsal else CALLS)),
    )
    text = output.read_text(errors="replace") if output.exists() else ""
    kernels = parsed(text)
    if not kernels:
        said = text.strip().splitlines()[-1:] or [run.tail("counters-ncu.log")]
        return Outcome("failed", "ncu reported no kernel", [f"ncu ended with {code}: {said[0][:300]}"])
    if run.rehearsal:
        kernels = [{"kernel": k["kernel"], "metrics": dict.fromkeys(k["metrics"], "rehearsed")} for k in kernels]
    status = "passed" if code == 0 else "partial" if code is None else "failed"
    problems = [] if code in (0, None) else [f"ncu ended with {code}: {run.tail('counters-ncu.log')}"]
    return Outcome(status, f"{len(kernels)} kernels", problems, {"kernels": kernels, "tables": [table(kernels)]})


def profiler() -> str | None:
    folders = [*Path("/usr/local").glob("cuda*/bin/ncu"), *Path("/opt/nvidia/nsight-compute").glob("*/ncu")]
    return shutil.which("ncu") or next((str(f) for f in sorted(folders, reverse=True)), None)


def parsed(text: str) -> list[dict[str, Any]]:
    """A launch each: its "kernel", and "metrics", by name, with their units. Two sections have some names for different
    things: the second is then part of the name."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    launches: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(lines[start:]):
        if row.get("Metric Name"):
            launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "metrics": {}})
            name, section = row["Metric Name"], row.get("Section Name")
            name = f"{name} ({section})" if name in launch["metrics"] else name
            launch["metrics"][name] = f"{row['Metric Value']} {row.get('Metric Unit') or ''}".strip()
    return list(launches.values())


def table(kernels: Sequence[dict[str, Any]]) -> str:
    lines = [
        (k["kernel"].split("(")[0][-40:], *(k["metrics"].get(name, "").rstrip(" %") for name in SHOWN.values()))
        for k in kernels[:12]
    ]
    return report.table(("kernel", *SHOWN), lines)


def profiled_calls(words: Sequence[str]) -> None:
    """In the process that the profiler watches: each call once, when it is warm. One that fails is named, and the
    others go on."""
    import traceback

    from tilewright.bench.measure import OURS, Bench, build
    from tilewright.bench.worker import find_item

    from .device import Gpu, device

    at = device()
    for word in words:
        name, _, backend = word.rpartition("=")
        bench = Bench(at.name, (backend,), "gpu-first" if isinstance(at, Gpu) else "tiny")
        try:
            function = build(find_item(name, bench), bench).providers[OURS + backend]()
            function()
            with at.profiled():
                function()
        except Exception:
            traceback.print_exc()
        print(f"called {word}", flush=True)
