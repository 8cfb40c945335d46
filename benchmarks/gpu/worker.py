"""The child's side of a worker: one request at a time, of which most are about this package's kernels on the GPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewright.bench import worker
from tilewright.bench.worker import Send

from .run import CACHE_LOG, REHEARSAL


def prepare() -> None:
    """Of every process that runs kernels."""
    if REHEARSAL in os.environ:
        from .rehearsal import begin

        begin()
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    from .cache import INDEX, watch

    watch(folder.parent / CACHE_LOG, folder / INDEX)


def serve() -> None:
    prepare()
    worker.serve(HANDLERS)


def serve_compiling() -> None:
    """For `make gpu-kit`."""
    from .precompile import precompile

    worker.serve({"precompile": lambda request, send: precompile(request)})


def _facts(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """What the import stage tells the others; whether torch sees a GPU is asked in any case."""
    import torch

    import tilewright
    from tilewright import emulator
    from tilewright.bench.environment import environment
    from tilewright.bench.peers import all_peers
    from tilewright.registry import backends
    from tilewright.verify.cases import CASES

    peers = {p.name: p.version() for of in all_peers().values() for p in of}
    found = backends()
    return {
        "environment": {**environment(), "peers": peers},
        "origin": tilewright.__file__,
        "device_seen": torch.cuda.is_available(),
        "reasons": {b: found[b] for b in request["backends"]},
        "emulator": emulator.installed(),
        "cases": [c.id for c in CASES if not c.id.endswith("/float64")],
        "kernels": kernels(),
    }


def kernels() -> list[str]:
    """The names of the Triton kernels, as a GPU sees them, and of the functions that they are made of."""
    import importlib
    import pkgutil

    from triton.runtime.jit import JITFunction

    from tilewright import triton_kernels

    names = set()
    for module in pkgutil.walk_packages(triton_kernels.__path__, f"{triton_kernels.__name__}."):
        found = vars(importlib.import_module(module.name)).values()
        names |= {f.__name__ for f in found if isinstance(f, JITFunction) and f.__module__ == module.name}
    return sorted(names)


def _case(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from tilewright.verify.report import finite

    return {"record": finite(_run_case(request["case"], request["backend"]).to_json())}


def _run_case(name: str, backend: str) -> Any:
    from tilewright.verify.cases import find_case
    from tilewright.verify.run import run_case

    return run_case(find_case(name), [backend])[0]


def _outputs(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """What a backend returns on a case, into a file."""
    import torch

    from tilewright.verify.cases import find_case
    from tilewright.verify.run import results

    found = results(find_case(request["case"]), request["backend"])
    torch.save({n: t.cpu() for n, t in found.items()}, request["to"])
    return {"written": sorted(found)}


def _distance(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """Between the tensors in two files: within what rounding each of them makes of it?"""
    import torch

    from tilewright.bench import exact

    first, second = (torch.load(file) for file in request["files"])
    if first.keys() != second.keys():
        return {"status": "failed", "reason": f"{sorted(first)} and {sorted(second)} are different outputs"}
    distances, equal, wrong = {}, {}, []
    for name, a in first.items():
        b = second[name]
        # Two roundings of nearly the same number are a last place apart; float32's sums are of many terms each, in the
        # tensor cores' order or another.
        limit = torch.finfo(a.dtype).eps * (8 if a.dtype == torch.float32 else 1)
        numbers = a.isfinite()
        distances[name] = exact.distance([a[numbers]], [b[numbers].double()]) if bool(numbers.any()) else 0.0
        equal[name] = float((a == b).double().mean()) if a.numel() else 1.0
        if not distances[name] <= limit or not torch.equal(a[~numbers].nan_to_num(7.0), b[~numbers].nan_to_num(7.0)):
            wrong.append(f"{name} is {distances[name]:.2g} apart, above {limit:.2g}")
    reason = "; ".join(wrong)
    return {"status": "failed" if wrong else "passed", "reason": reason, "distance": distances, "equal": equal}


def _check(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from .calls import check

    return check(request)


def _candidate(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from .trials import trial

    return trial(request)


def run_cases(backend: str, names: Sequence[str]) -> int:
    """All in this process, one line each, for a tool that watches it. Answers how many did not pass."""
    prepare()
    failed = 0
    for name in names:
        record = _run_case(name, backend)
        print(f"case {name} {record.status} {'; '.join(record.problems)}", flush=True)
        failed += record.status != "passed"
    return failed


def profile(words: Sequence[str]) -> None:
    """Calls in this process, ITEM=BACKEND each, for a profiler that watches it."""
    prepare()
    from .counters import profiled_calls

    profiled_calls(words)


HANDLERS: dict[str, worker.Handler] = {
    **worker.HANDLERS,
    "facts": _facts,
    "case": _case,
    "outputs": _outputs,
    "distance": _distance,
    "check": _check,
    "candidate": _candidate,
}
