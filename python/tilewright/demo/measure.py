"""The demo's fourth step."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

from . import FAILED, NOT_RUN, PASSED, Outcome

SECONDS_EACH = 2.0


def measure_step(output: Path) -> Outcome:
    """Median times beside torch's, A B A B, after verification of the very calls that are measured."""
    from ..bench.timing import interleave
    from ..bench.workloads import MODES, check, functions, workloads
    from ..cli.console import print_table, progress_bar
    from ..registry import backends

    backend = next(name for name in ("cpu", "reference") if backends()[name] is None)
    rows: list[dict[str, Any]] = []
    problems = []
    chosen = list(workloads())
    with progress_bar("measuring", len(chosen) * len(MODES)) as progress:
        for number, workload in enumerate(chosen):
            progress(number * len(MODES), f"{workload.label}, {workload.dtype}: checking")
            problem = check(workload, backend)
            if problem is not None:
                problems.append(f"{workload.label}, {workload.dtype}: {problem}")
                continue
            for i, mode in enumerate(MODES):
                progress(number * len(MODES) + i, f"{workload.label}, {workload.dtype}: {mode}")
                times = interleave(functions(workload, backend, mode), SECONDS_EACH)
                rows.append(
                    {
                        "label": workload.label,
                        "op": workload.case.op,
                        "dtype": workload.dtype,
                        "mode": mode,
                        "speedup": times["torch"].p50 / times["tilewright"].p50,
                        **{name: dataclasses.asdict(t) for name, t in times.items()},
                    }
                )
    columns = ("call", "dtype", "mode", "tilewright", "torch", "speedup")
    print_table(columns, [_row(r) for r in rows], f"median time of one call, backend {backend}")
    for problem in problems:
        print(f"not measured, since it is wrong: {problem}")
    report = {"backend": backend, "rows": rows, "problems": problems}
    if problems:
        return Outcome(FAILED, f"{len(problems)} calls failed verification and were not measured", report)
    mean = math.exp(sum(math.log(r["speedup"]) for r in rows) / len(rows))
    slower = sum(r["speedup"] < 1.0 for r in rows)
    summary = f"{mean:.2f} times torch's speed (geometric mean of {len(rows)} measurements, {slower} of them slower)"
    if importlib.util.find_spec("matplotlib") is None:
        return Outcome(NOT_RUN, f"{summary}; no chart without matplotlib: pip install 'tilewright[bench]'", report)
    from ..bench.environment import cpu_name
    from .chart import draw

    draw(rows, f"tilewright ({backend}) beside PyTorch, {cpu_name()}", output / "speedup.png")
    return Outcome(PASSED, f"{summary}; chart in {output / 'speedup.png'}", report)


def _row(r: dict[str, Any]) -> tuple[str, ...]:
    from ..bench.timing import milliseconds

    ours, theirs = (milliseconds(r[name]["p50"]) for name in ("tilewright", "torch"))
    return (r["label"], r["dtype"], r["mode"], ours, theirs, f"{r['speedup']:.2f}x")
