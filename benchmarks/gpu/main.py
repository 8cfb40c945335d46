"""The stages one after the other, one JSON file, and a short table last."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tilewright.bench.environment import nvidia_smi

from . import report
from .agree import agree
from .bench import bench
from .run import Outcome, Run, slug
from .sanitize import sanitize
from .stages import build, run_tests, verify

#: Each with its weight: a stage may take so much of the time that is left for it and those after it.
STAGES: dict[str, tuple[Callable[[Run, float], Outcome], float]] = {
    "build": (build, 150.0),
    "test": (run_tests, 100.0),
    "verify": (verify, 110.0),
    "sanitize": (sanitize, 60.0),
    "agree": (agree, 40.0),
    "bench": (bench, 240.0),
}


def run_stages(run: Run, names: list[str], stages: dict[str, Any] = STAGES) -> dict[str, Outcome]:
    """What came of each. Whatever happens in one, the others go on."""
    outcomes: dict[str, Outcome] = {}
    for name in names:
        function, weight = stages[name]
        of = sum(stages[n][1] for n in names[names.index(name) :])
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.monotonic()
        (run.out / f"{name}.log").unlink(missing_ok=True)
        if start >= run.deadline:
            outcomes[name] = Outcome("failed", "no time was left for it")
            continue
        try:
            outcome = function(run, weight / of * (run.deadline - start))
        except Exception as error:
            with (run.out / f"{name}.log").open("a") as log:
                log.write(traceback.format_exc())
            outcome = Outcome("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        outcome.seconds = time.monotonic() - start
        outcomes[name] = outcome
        print(f"{name}: {outcome.status} {outcome.reason[:300]}", file=sys.stderr, flush=True)
    return outcomes


def no_gpu() -> str | None:
    """Why nothing can be measured here, in words."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported by {sys.executable}: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device on this machine"
    return None


def gpu_facts(rehearsal: bool) -> dict[str, Any]:
    import torch

    if rehearsal:
        return {"name": "none: a rehearsal on the CPU"}
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
    return facts | nvidia_smi("driver_version", "clocks.sm", "clocks.mem", "power.limit", "temperature.gpu")


def write(run: Run, gpu: dict[str, Any], outcomes: dict[str, Outcome], started: str) -> Path:
    worker = run.worker("build.log")
    try:
        answer = worker.ask({"do": "environment"}, 60.0)
    finally:
        worker.close()
    environment = answer.result.get("environment") or {"missing": answer.result.get("raised") or answer.reason}
    name = "rehearsal-not-a-measurement" if run.rehearsal else f"{started[:10]}-{slug(gpu['name'])}"
    file = run.out / f"{name}.json"
    content = {
        "rehearsal": run.rehearsal,
        "date": started,
        "gpu": gpu,
        "environment": environment,
        "stages": {n: {"status": o.status, "reason": o.reason, "seconds": o.seconds} for n, o in outcomes.items()},
        **{n: o.data for n, o in outcomes.items()},
    }
    if "bench" in outcomes and not run.rehearsal:
        rows = outcomes["bench"].data.get("rows", [])
        keys = ("target", "measured", "verdict")
        content["targets"] = [dict(zip(keys, t, strict=True)) for t in report.targets(rows)]
        write_report(run, {**environment, "gpu": gpu}, rows, f"{started[:10]}-bench-{slug(gpu['name'])}.json")
    file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return file


def write_report(run: Run, environment: dict[str, Any], rows: list[dict[str, Any]], name: str) -> None:
    """The benchmark's part as ``tilewright bench`` leaves it: a result file, the page, the table and the charts."""
    from tilewright.bench.report import draw_charts, write_csv, write_html
    from tilewright.bench.summary import Result, write

    settings = {"device": run.device, "backends": list(run.backends), "shapes": "gpu-long" if run.long else "gpu"}
    complete = not any(r["status"] == "not reached" for r in rows)
    result = Result(environment, "make gpu LONG=1" if run.long else "make gpu", settings, rows, complete)
    write(result, run.out / name)
    write_csv(result, run.out / "results.csv")
    write_html(result, run.out / "report.html")
    with contextlib.suppress(ImportError):  # matplotlib is an extra, and the page does without the charts' files
        draw_charts(result, run.out)


def show(run: Run, gpu: dict[str, Any], outcomes: dict[str, Outcome], file: Path) -> None:
    rows = outcomes["bench"].data.get("rows", []) if "bench" in outcomes else []
    if rows:
        measured = report.measured_table(rows)
        (run.out / "table.txt").write_text(measured + "\n")
        print(f"\n{measured}")
        if not run.rehearsal:
            print(f"\n{report.table(('target', 'measured', ''), report.targets(rows))}")
    print(f"\n{report.stage_table(outcomes)}")
    print(f"{'REHEARSAL, no measurement: ' if run.rehearsal else ''}{gpu['name']}: {file}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument(
        "--stages", nargs="*", default=[], choices=list(STAGES), help="only these; all if none is named"
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the result and the logs")
    parser.add_argument("--long", action="store_true", help="every shape of the benchmark, and growth curves")
    parser.add_argument("--seconds", type=float, help="for everything; 570, or with --long 5400")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes: measures nothing")
    given = parser.parse_args(arguments)
    reason = None if given.rehearse else no_gpu()
    if reason is not None:
        print(f"make gpu needs a GPU: {reason}", file=sys.stderr)
        return 1
    names = [n for n in STAGES if n in given.stages or not given.stages]
    given.out.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    seconds = given.seconds or (5400.0 if given.long else 570.0)
    run = Run(given.out.resolve(), sys.executable, time.monotonic() + seconds, given.rehearse, given.long)
    if given.rehearse:
        run.backends = ("cpu",)
    gpu = gpu_facts(given.rehearse)
    outcomes = run_stages(run, names)
    file = write(run, gpu, outcomes, started)
    show(run, gpu, outcomes, file)
    return int(any(o.status == "failed" for o in outcomes.values()))
