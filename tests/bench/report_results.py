"""Small made-up results for the tests of reports."""

from __future__ import annotations

import random
from typing import Any

from tilewright.bench.summary import Result

Row = dict[str, Any]

ENVIRONMENT = {
    "date": "2026-01-02T03:04:05+00:00",
    "cpu": "Some CPU",
    "gpus": ["Some GPU"],
    "driver": "570.1",
    "packages": {"tilewright": "1.2.3", "torch": "2.11"},
    "peers": {"eager": "2.11", "compile": None},
    "torch_threads": 4,
    "memory_bytes": 2**34,
    "commit": "0123456789abcdef+changes",
}


def timed(item: str, provider: str, seconds: float, noise: float = 0.01, **facts: Any) -> Row:
    draw = random.Random(ascii((item, provider)))
    values = [seconds * (1 + noise * draw.uniform(-1, 1)) for _ in range(15)]
    device = {"p50": seconds, "p20": 0.9 * seconds, "p80": 1.1 * seconds, "samples": 15, "values": values}
    wall = {**device, "p50": 2 * seconds}
    shown = {"op": "softmax", "mode": "forward", "dtype": "float32", "scene": "logits", "label": f"size of {item}"}
    checked = {"status": "timed", "error": 1e-7, "limit": 1e-5, "peak_bytes": 3 * 2**20}
    row = {"item": item, "provider": provider, "unit": "GB/s", **shown, **checked, "device": device, "wall": wall}
    return {**row, "result": 1e-3 / seconds, "of_roofline": 1e-4 / seconds, **facts}


def untimed(item: str, provider: str, status: str, reason: str, **facts: Any) -> Row:
    shown = {"op": "softmax", "mode": "forward", "dtype": "float32", "scene": "logits", "label": f"size of {item}"}
    return {"item": item, "provider": provider, "unit": "GB/s", **shown, "status": status, "reason": reason, **facts}


def result(rows: list[Row], complete: bool = True, **environment: Any) -> Result:
    found = {**ENVIRONMENT, **environment}
    return Result(found, "tilewright bench --device cuda --op softmax", {"device": "cuda"}, rows, complete)


def growth(op: str = "attention", axis: str = "sequence length") -> list[Row]:
    """Ours grows with the square of the size and eager with its cube; memory with its first power and its square."""
    rows = []
    for size in (128, 256, 512, 1024):
        facts = {"op": op, "curve": axis, "size": size, "unit": "TFLOP/s", "scene": "growth"}
        item = f"{op} at {size}"
        rows += [
            timed(item, "tilewright triton", 1e-7 * size**2, 0, peak_bytes=2**14 * size, **facts),
            timed(item, "eager", 2e-9 * size**3, 0, peak_bytes=2**9 * size**2, **facts),
        ]
    return rows


#: Of every kind that a run makes: faster, slower, even, alone, ours without a time, a fault, growth and what failed.
EVERYTHING = [
    timed("roofline copy", "torch", 1e-4, op="roofline"),
    timed("a", "tilewright triton", 1e-3),
    timed("a", "tilewright cuda", 3e-3),
    timed("a", "eager", 2e-3),
    untimed("a", "compile", "raised", "RuntimeError: it does not compile"),
    timed("b", "tilewright triton", 2e-3),
    timed("b", "eager", 1e-3),
    untimed("b", "compile", "refused", "it has no backward"),
    timed("c", "tilewright triton", 1e-3, 0.3),
    timed("c", "eager", 1e-3, 0.3),
    timed("d", "tilewright triton", 5e-5, fault="200% of the roofline: the measurement is wrong"),
    untimed("d", "eager", "out of memory", "OutOfMemoryError: 80 GiB"),
    untimed("e", "tilewright triton", "wrong", "its error against float64 is 0.3", error=None, limit=1e-5),
    timed("e", "eager", 1e-3),
    timed(
        "overhead softmax", "tilewright triton", 5e-6, op="overhead", by="wall", unit="us", result=10.0, label="tiny"
    ),
    timed("overhead softmax", "eager", 6e-6, op="overhead", by="wall", unit="us", result=12.0, label="tiny"),
    *growth(),
]

#: Interrupted: nothing of the last item but that it was not reached, beside what had crashed before.
NOT_REACHED = [
    {"item": "z", "provider": "all", "status": "not reached", "reason": "the benchmark's time was over"},
    {"item": "z", "provider": "flex", "status": "crashed", "reason": "while compiling: SIGSEGV"},
]

#: Results that a report has to survive.
ODD = {
    "everything": EVERYTHING,
    "one call": [timed("a", "tilewright cpu", 1e-3), timed("a", "eager", 1e-3)],
    "no peers": [timed("a", "tilewright cpu", 1e-3), timed("b", "tilewright cpu", 2e-3)],
    "no times": [untimed("a", "tilewright cpu", "refused", "no"), untimed("a", "eager", "missing", "not installed")],
    "nothing of ours": [timed("a", "eager", 1e-3)],
    "no rows": [],
    "not reached": [*EVERYTHING, *NOT_REACHED],
    "only not reached": NOT_REACHED,
    "a whole call raised": [{"item": "a", "provider": "all", "status": "raised", "reason": "ValueError: no"}],
    "far apart": [timed("a", "tilewright cpu", 1e-6), timed("a", "eager", 1.0), timed("a", "compile", 30.0)],
    "no roofline": [{k: v for k, v in r.items() if k != "of_roofline"} for r in EVERYTHING],
    "no memory": [{**r, "peak_bytes": None} for r in EVERYTHING],
    "little memory": [{**r, "peak_bytes": 0} for r in EVERYTHING],
}
