"""What a call costs in Python: a tiny op against a plain autograd.Function around the same kernel calls.

The plain function is what somebody would write who wanted nothing but the kernel: it allocates the outputs and the
gradients, fills in the kernel's parameters, calls it and saves what the backward needs. It checks nothing, has no
options and one backend. The target is at most twice its time. (``tilewright bench --op overhead`` compares such calls
with PyTorch's own ops instead, which have no Python function around them.)
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
from tilewright.catalog import OPS, canonical_call

TARGET = 2.0

pytestmark = pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no CPU kernels: {cpu.unavailable()}")


def _small(op: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The op and inputs so small that the kernel itself takes next to no time."""
    if op == "attention":
        return tw.attention, [torch.randn(1, 1, 4, 8, requires_grad=True) for _ in range(3)]
    if op == "softmax":
        return tw.softmax, [torch.randn(4, 8, requires_grad=True)]
    return tw.ffn, [torch.randn(*shape, requires_grad=True) for shape in ((2, 8), (8, 8), (8, 8))]


def _plain(op: str) -> Callable[..., Tensor]:
    """The plain function for the same inputs."""
    implementation = {"attention": cpu.ATTENTION, "softmax": cpu.SOFTMAX, "ffn": cpu.FFN}[op]
    inputs = _small(op)[1]
    call, _ = canonical_call(op, *inputs)
    fields = call._fields[: len(inputs)]
    wanted = tuple(f in fields for f in OPS[op][0].differentiable)

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            outputs = implementation.forward(type(call)(*tensors, *call[len(tensors) :]))
            ctx.save_for_backward(*tensors, *outputs)
            return outputs[0]

        @staticmethod
        def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            tensors, outputs = saved[: len(inputs)], saved[len(inputs) :]
            filled = type(call)(*tensors, *call[len(inputs) :])
            return implementation.backward(filled, outputs, upstream, wanted)[: len(inputs)]

    return Plain.apply


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("op", ["attention", "softmax", "ffn"])
def test_overhead(benchmark: Any, request: pytest.FixtureRequest, op: str, mode: str) -> None:
    seconds = 0.1 if request.config.getoption("--shapes") == "tiny" else 2.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # waking threads would be most of the time
    try:
        function, inputs = _small(op)
        plain = _plain(op)
        upstream = torch.randn_like(function(*inputs))

        def call(f: Callable[..., Tensor]) -> Callable[[], object]:
            if mode == "forward":
                return lambda: f(*inputs)
            return lambda: torch.autograd.grad(f(*inputs), inputs, upstream)

        times = interleave({"tilewright": call(function), "plain": call(plain)}, seconds=seconds)
        ours, least = 1e6 * times["tilewright"].p50, 1e6 * times["plain"].p50
        verdict = "" if ours <= TARGET * least else f"  above the target of {TARGET}"
        print(
            f"\n{op} {mode}: {ours:.1f} us, plain autograd.Function {least:.1f} us, ratio {ours / least:.2f}{verdict}"
        )
        benchmark.group = f"overhead of {op}, {mode}"
        benchmark.extra_info.update(op=op, mode=mode, plain_us=least, tilewright_us=ours, ratio=ours / least)
        benchmark.pedantic(call(function), rounds=200, iterations=10, warmup_rounds=5)
    finally:
        torch.set_num_threads(threads)
