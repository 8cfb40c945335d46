"""What the benchmark files share: a group per call, and the environment in the JSON file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tilewright.bench.environment import environment
from tilewright.bench.workloads import MODES, Workload, check, functions, workloads
from tilewright.registry import TABLE, unavailable


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["environment"] = environment()


def kernels_of(op: str) -> list[str]:
    """The backends that have a kernel of this op and work on the CPU of this machine. The reference is not one."""
    usable = [b for b in TABLE[op] if b not in ("reference", "cuda", "triton")]
    return [b for b in usable if unavailable(b) is None]


def parameters(op: str) -> list[Any]:
    """(workload, mode, provider) for every kernel of the op and for torch."""
    return [
        pytest.param(w, mode, provider, id=f"{w.case.name}-{w.label.split('  ')[0]}-{w.dtype}-{mode}-{provider}")
        for w in workloads()
        if w.case.op == op
        for mode in MODES
        for provider in (*kernels_of(op), "torch")
    ]


def measure(benchmark: Any, workload: Workload, mode: str, provider: str) -> None:
    """Verify, then time."""
    backend = "cpu" if provider == "torch" else provider
    if provider != "torch":
        problem = check(workload, provider)
        assert problem is None, problem
    name = "torch" if provider == "torch" else "tilewright"
    function = functions(workload, backend, mode)[name]
    benchmark.group = f"{workload.label}, {workload.dtype}, {mode}"
    benchmark.extra_info.update(op=workload.case.op, dtype=workload.dtype, mode=mode, provider=provider)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    function()
    benchmark(function)
