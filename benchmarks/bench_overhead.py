"""What a call costs in Python: a tiny op against a bare autograd.Function around the same kernel call.

The bare function is the least that a differentiable op in eager torch can cost: its kernel's parameters are filled in
beforehand and its outputs allocated, so that nothing is left but torch's own machinery and the call. The target is at
most twice that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tilewright as tw
from tilewright.backends import cpu
from tilewright.bench.timing import interleave

TARGET = 2.0

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no CPU kernels: {cpu.unavailable()}")


class _Recorder:
    """Stands in for the compiled module and keeps the parameters of each kernel call."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.calls: list[tuple[Callable[[Any], None], Any]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        if not name.endswith(("_forward", "_backward")):
            return found

        def record(params: Any) -> None:
            self.calls.append((found, params))
            found(params)

        return record


def _small(op: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The op and inputs so small that the kernel itself takes next to no time."""
    if op == "attention":
        return tw.attention, [torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3)]
    if op == "softmax":
        return tw.softmax, [torch.randn(4, 8, requires_grad=True)]
    return tw.ffn, [torch.randn(*shape, requires_grad=True) for shape in ((2, 8), (8, 8), (8, 8))]


def _bare(op: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[..., Tensor], list[Any]]:
    """The bare function, and what has to stay alive: the kernels' parameters are addresses."""
    function, inputs = _small(op)
    recorder = _Recorder(cpu.kernels())
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "kernels", lambda: recorder)
        out = function(*inputs)
        upstream = torch.randn_like(out)
        grads = torch.autograd.grad(out, inputs, upstream, retain_graph=True)
    (forward, forward_params), (backward, backward_params) = recorder.calls
    result = out.detach()

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            forward(forward_params)
            ctx.save_for_backward(*tensors, result)
            return result.view_as(result)

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
            _ = ctx.saved_tensors
            backward(backward_params)
            return grads

    return Bare.apply, [out, upstream, grads, inputs]


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("op", ["attention", "softmax", "ffn"])
def test_overhead(benchmark: Any, monkeypatch: pytest.MonkeyPatch, op: str, mode: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking threads would be most of the time
    try:
        function, inputs = _small(op)
        bare, alive = _bare(op, monkeypatch)
        upstream = torch.randn_like(function(*inputs))

        def call(f: Callable[..., Tensor]) -> Callable[[], object]:
            if mode == "forward":
                return lambda: f(*inputs)
            return lambda: torch.autograd.grad(f(*inputs), inputs, upstream)

        times = interleave({"tilewright": call(function), "bare": call(bare)}, seconds=2.0)
        ours, least = 1e6 * times["tilewright"].p50, 1e6 * times["bare"].p50
        verdict = "" if ours <= TARGET * least else f"  above the target of {TARGET}"
        print(f"\n{op} {mode}: {ours:.1f} us, bare autograd.Function {least:.1f} us, ratio {ours / least:.2f}{verdict}")
        benchmark.group = f"overhead of {op}, {mode}"
        benchmark.extra_info.update(op=op, mode=mode, bare_us=least, tilewright_us=ours, ratio=ours / least)
        benchmark.pedantic(call(function), rounds=200, iterations=10, warmup_rounds=5)
        del alive
    finally:
        torch.set_num_threads(threads)
