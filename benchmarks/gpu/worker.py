"""The child's side of a worker: the benchmark's items, and verification cases, one request at a time."""

from __future__ import annotations

from typing import Any

from tilewright.bench import worker
from tilewright.bench.worker import Send


def serve() -> None:
    worker.serve(HANDLERS)


def _cases(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from tilewright.verify.cases import CASES

    return {"cases": [c.id for c in CASES if not c.id.endswith("/float64")]}


def _case(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from tilewright.verify.report import finite

    return {"record": finite(_run_case(request["case"], request["backend"]).to_json())}


def _run_case(name: str, backend: str) -> Any:
    from tilewright.verify.cases import CASES
    from tilewright.verify.run import run_case

    return run_case(next(c for c in CASES if c.id == name), [backend])[0]


def _outputs(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """What a backend returns on a case, into a file."""
    import torch

    from tilewright.verify.cases import CASES
    from tilewright.verify.run import results

    found = results(next(c for c in CASES if c.id == request["case"]), request["backend"])
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


def _reruns(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """How many of a call's results are not the first one's, bit by bit."""
    import torch

    from tilewright.bench.measure import Bench

    torch.manual_seed(0)
    bench = Bench(**request["bench"])
    function = worker.find_item(request["item"], bench).build(bench).providers[request["provider"]]()

    def tensors() -> tuple[torch.Tensor, ...]:
        result = function()
        return result if isinstance(result, tuple) else (result,)

    first, different = tensors(), 0
    for _ in range(request["times"]):
        different += not all(torch.equal(a, b) for a, b in zip(first, tensors(), strict=True))
    return {"different": different}


def run_cases(names: list[str], backend: str) -> int:
    """All in this process, one line each, for a tool that watches it. Answers how many did not pass."""
    failed = 0
    for name in names:
        record = _run_case(name, backend)
        print(f"case {name} {record.status} {'; '.join(record.problems)}", flush=True)
        failed += record.status != "passed"
    return failed


HANDLERS: dict[str, worker.Handler] = {
    **worker.HANDLERS,
    "cases": _cases,
    "case": _case,
    "outputs": _outputs,
    "distance": _distance,
    "reruns": _reruns,
}
