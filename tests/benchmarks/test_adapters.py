"""The files for other projects' benchmarks, in small stand-ins of those projects' interfaces."""

from __future__ import annotations

import argparse
import enum
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import tilewright
from tilewright.bench.items import softmax as softmax_items
from tilewright.bench.single import NotMeasured, backends_on

FOLDER = Path(__file__).parents[2] / "benchmarks" / "adapters"


def load(name: str, file: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mode(enum.Enum):
    FWD, BWD, FWD_BWD, FWD_NO_GRAD = "fwd", "bwd", "fwd_bwd", "fwd_no_grad"


class BenchmarkOperator:
    """Of tritonbench: inputs are counted, then each registered benchmark makes a function of each."""

    registered: ClassVar[dict[str, dict[str, Any]]]
    metrics: ClassVar[list[str]]

    def __init__(self, tb_args: argparse.Namespace, extra_args: list[str] | None = None) -> None:
        self.device, self.mode = tb_args.device, Mode(tb_args.mode)
        self.count = sum(1 for _ in self.get_input_iter())

    def run(self) -> dict[tuple[str, str], Any]:
        """By call and benchmark: its metrics, or "not supported"."""
        found: dict[tuple[str, str], Any] = {}
        for inputs in self.get_input_iter():
            assert all(callable(i) for i in inputs)
            for name in self.registered:
                key = (self.get_x_val(inputs), name)
                try:
                    function = getattr(self, name)(*inputs)
                except NotImplementedError:
                    found[key] = "not supported"
                    continue
                if self.mode is Mode.FWD_BWD:
                    function()
                if self.mode in (Mode.BWD, Mode.FWD_BWD):
                    self.get_bwd_fn(function)()
                function._name = name  # as tritonbench does
                metrics = types.SimpleNamespace(latency=2.0)
                found[key] = {m: getattr(self, m)(function, inputs, metrics) for m in self.metrics}
        return found


@pytest.fixture
def tritonbench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Of an op the adapter's Operator, and what it has registered."""

    def operator(op: str) -> Any:
        class Base(BenchmarkOperator):
            registered: ClassVar[dict[str, dict[str, Any]]] = {}
            metrics: ClassVar[list[str]] = []

        def register_benchmark(func_name: str, **options: Any) -> Callable[[Any], Any]:
            Base.registered[func_name] = options
            return lambda function: function

        def register_metric() -> Callable[[Any], Any]:
            return lambda function: Base.metrics.append(function.__name__) or function

        def register_x_val(label: str) -> Callable[[Any], Any]:
            return lambda function: function

        interface = types.ModuleType("tritonbench.utils.triton_op")
        for found in (register_benchmark, register_metric, register_x_val, Mode):
            setattr(interface, found.__name__, found)
        interface.BenchmarkOperator = Base  # type: ignore[attr-defined]
        for name in ("tritonbench", "tritonbench.utils"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, "tritonbench.utils.triton_op", interface)
        return load(f"tritonbench.operators.tilewright_{op}", "tritonbench_operator.py").Operator

    return operator


def arguments(mode: str) -> argparse.Namespace:
    return argparse.Namespace(device="cpu", mode=mode)


OURS = f"tilewright_{backends_on('cpu')[0]}"


@pytest.mark.parametrize(
    ("op", "mode", "metric"),
    [("attention", "fwd_bwd", "flops"), ("softmax", "bwd", "gbps"), ("ffn", "fwd_no_grad", "flops")],
)
def test_tritonbench_runs_an_op(tritonbench: Callable[[str], Any], op: str, mode: str, metric: str) -> None:
    operator = tritonbench(op)
    for slow in ("compile", "flex"):
        operator.registered.pop(slow, None)
    assert [n for n, o in operator.registered.items() if o["baseline"]] == ["eager"]
    made = operator(arguments(mode), ["--shapes", "tiny"])
    found = made.run()
    calls = {call for call, _ in found}
    word = {"fwd_bwd": "both", "bwd": "backward", "fwd_no_grad": "forward"}[mode]
    assert len(calls) == made.count >= 2
    assert all(word in call for call in calls)
    for call in calls:
        for name in (OURS, "eager"):
            assert 0.0 <= found[call, name]["error"] < 1.5e-2
    assert any(found[call, OURS][metric] > 0.0 for call in calls)
    assert "not supported" in found.values()  # what exists on a GPU alone


def test_tritonbench_gets_no_function_of_a_wrong_kernel(
    tritonbench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = softmax_items.softmax
    monkeypatch.setattr(softmax_items, "softmax", lambda *a, **k: 2 * right(*a, **k))
    made = tritonbench("softmax")(arguments("fwd"), ["--shapes", "tiny"])
    (call,) = next(made.get_input_iter())
    with pytest.raises(NotMeasured, match="wrong: its error against float64"):
        getattr(made, OURS)(call)


class Benchmark:
    """Of Hugging Face's kernels."""

    seed: int | None = None
    device = "cpu"

    def __init__(self) -> None:
        self.kernel: Any = None
        self.out: Any = None

    def setup(self) -> None:
        raise AssertionError("each workload has its own")


@pytest.fixture
def kernels_file(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    interface = types.ModuleType("kernels.benchmark")
    interface.Benchmark = Benchmark  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kernels", types.ModuleType("kernels"))
    monkeypatch.setitem(sys.modules, "kernels.benchmark", interface)
    return load("benchmark_module", "benchmark_tilewright.py")


def outcomes(module: types.ModuleType, kernel: Any) -> dict[str, bool]:
    """As ``kernels benchmark`` finds classes and workloads, and compares; with smaller sizes."""
    found = {}
    for of in vars(module).values():
        if not (isinstance(of, type) and issubclass(of, Benchmark) and of.__module__ == "benchmark_module"):
            continue
        for method in dir(of):
            if not method.startswith("benchmark_"):
                continue
            made, workload = of(), method.removeprefix("benchmark_")
            made.kernel = kernel
            torch.manual_seed(made.seed or 0)
            getattr(made, f"setup_{workload}", made.setup)()
            getattr(made, method)()
            reference = getattr(made, f"verify_{workload}")()
            found[f"{of.__name__}.{workload}"] = torch.allclose(made.out, reference, atol=1e-2)
    return found


WORKLOADS = {"TilewrightAttention": "ATTENTION", "TilewrightSoftmax": "SOFTMAX", "TilewrightFfn": "FFN"}


def test_every_workload_of_the_kernels_file_matches(kernels_file: types.ModuleType) -> None:
    found = outcomes(kernels_file, tilewright)
    expected = {f"{c}.{w}" for c, sizes in WORKLOADS.items() for w in getattr(kernels_file, sizes)}
    assert found == dict.fromkeys(expected, True)


def test_the_kernels_file_sees_zeros(kernels_file: types.ModuleType) -> None:
    zeros = types.SimpleNamespace(
        attention=lambda q, k, v, causal: torch.zeros_like(q),
        softmax=torch.zeros_like,
        ffn=lambda x, w_in, w_out, activation: torch.zeros_like(x),
    )
    found = outcomes(kernels_file, zeros)
    assert found and not any(found.values())
