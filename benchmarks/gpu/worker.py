"""The child's side of a worker: verification cases and benchmark items, one request at a time."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

Send = Callable[[dict[str, Any]], None]


def serve() -> None:
    """Answer requests until standard input ends. What libraries print goes to the log, which is standard error."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = HANDLERS[request["do"]](request, send)
        except Exception as error:  # whatever went wrong is the answer; the log has the rest
            traceback.print_exc()
            result = {"raised": in_words(error)}
        broken = _device_broken()
        send({**result, "done": True, "exiting": broken is not None, **({"device": broken} if broken else {})})
        if broken:
            return


def in_words(error: BaseException) -> str:
    """One line, of which the first sentences matter."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _device_broken() -> str | None:
    """After an illegal access every further call on the device fails: the process is then of no more use."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return in_words(error)
    return None


def _environment(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from tilewright.bench.environment import environment

    return {"environment": environment()}


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

    from . import measure

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
        distances[name] = measure.distance([a[numbers]], [b[numbers].double()]) if bool(numbers.any()) else 0.0
        equal[name] = float((a == b).double().mean()) if a.numel() else 1.0
        if not distances[name] <= limit or not torch.equal(a[~numbers].nan_to_num(7.0), b[~numbers].nan_to_num(7.0)):
            wrong.append(f"{name} is {distances[name]:.2g} apart, above {limit:.2g}")
    reason = "; ".join(wrong)
    return {"status": "failed" if wrong else "passed", "reason": reason, "distance": distances, "equal": equal}


def _reruns(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """How many of a call's results are not the first one's, bit by bit."""
    import torch

    from . import items, measure

    torch.manual_seed(0)
    bench = measure.Bench(**request["bench"])
    item = next(i for i in items.all_items(bench.shapes) if i.name == request["item"])
    function = item.build(bench).providers[request["provider"]]()

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


def _items(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from . import items

    return {"items": [i.name for i in items.all_items(request["shapes"])]}


def _item(request: dict[str, Any], send: Send) -> dict[str, Any]:
    from . import items, measure

    bench = measure.Bench(**request["bench"])
    item = next(i for i in items.all_items(bench.shapes) if i.name == request["item"])
    return {"rows": measure.run_item(item, bench, request["without"], send)}


HANDLERS: dict[str, Callable[..., dict[str, Any]]] = {
    "environment": _environment,
    "cases": _cases,
    "case": _case,
    "outputs": _outputs,
    "distance": _distance,
    "reruns": _reruns,
    "items": _items,
    "item": _item,
}
