"""The feed-forward blocks of GPT-2 and Llama, from one row to 32k."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...ops.ffn import ffn
from .. import exact
from ..measure import Bench, Built, Item, providers_of
from ..peers.ffn import PEERS, chain
from ..shapes import Ffn

#: Up to this many rows the weights are what is read, and the memory is the roof.
FEW_ROWS = 16

#: How many times the forward's products a mode has.
WORK = {"forward": 1.0, "backward": 2.0, "both": 3.0}

GPT2, LLAMA = (768, 3072, "gelu_tanh"), (4096, 14336, "swiglu")


def item(mode: str, shape: Ffn, curve: str = "") -> Item:
    few = shape.rows <= FEW_ROWS and mode == "forward"
    size = torch.empty(0, dtype=getattr(torch, shape.dtype)).element_size()
    work = size * (shape.weights + 2.0 * shape.rows * shape.features) if few else 2.0 * shape.rows * shape.weights
    facts = {"op": "ffn", "mode": mode, "label": shape.label, **shape.facts()}
    if curve:
        facts.update(curve=curve, size=shape.rows)
    name = f"ffn {mode} {shape.name}" + (f" ({curve})" if curve else "")
    build = functools.partial(_build, mode=mode, shape=shape)
    return Item(name, "GB/s" if few else "TFLOP/s", build, work * WORK[mode], cold=few, facts=facts)


def items(shapes: str) -> Iterator[Item]:
    for mode, shape in SETS[shapes]():
        yield item(mode, shape)


def _build(bench: Bench, mode: str, shape: Ffn) -> Built:
    inner = 2 * shape.hidden if shape.gated else shape.hidden
    x, dout = (bench.normal(shape.rows, shape.features, dtype=shape.dtype) for _ in range(2))
    w_in = bench.normal(inner, shape.features, scale=shape.features**-0.5, dtype=shape.dtype)
    w_out = bench.normal(shape.features, shape.hidden, scale=shape.hidden**-0.5, dtype=shape.dtype)
    tensors = [x, w_in, w_out]
    if shape.bias:
        tensors += [bench.normal(n, dtype=shape.dtype) for n in (inner, shape.features)]
    plain = functools.partial(chain, shape.activation)

    @functools.cache
    def expected() -> list[Tensor]:
        wide = [t.double().requires_grad_(mode != "forward") for t in tensors]
        out = plain(*wide)
        return [out] if mode == "forward" else list(torch.autograd.grad(out, wide, dout.double()))

    def error(result: Any) -> float:
        return exact.distance(result if isinstance(result, tuple) else (result,), expected())

    def ours(x: Tensor, w_in: Tensor, w_out: Tensor, b_in: Any = None, b_out: Any = None, *, backend: str) -> Tensor:
        return ffn(x, w_in, w_out, b_in=b_in, b_out=b_out, activation=shape.activation, backend=backend)

    return Built(providers_of(bench, shape, mode, bench.ours(ours), PEERS, tuple(tensors), dout), error)


Calls = Iterator[tuple[str, Ffn]]


def _gpu_first() -> Calls:
    for mode in ("forward", "backward"):
        yield mode, Ffn("GPT-2", "bfloat16", 32768, *GPT2)


def _gpu() -> Calls:
    for mode in ("forward", "backward"):
        yield mode, Ffn("GPT-2", "bfloat16", 32768, *GPT2)
    for rows in (1, 4, 16):
        yield "forward", Ffn("Llama-3 8B", "bfloat16", rows, *LLAMA)
    for mode in ("forward", "backward"):
        yield mode, Ffn("Llama-3 8B", "bfloat16", 4096, *LLAMA)


def _gpu_long() -> Calls:
    yield from _gpu()
    for mode in ("forward", "backward"):
        for rows in (1024, 8192, 32768):
            yield mode, Ffn("GPT-2", "bfloat16", rows, *GPT2, bias=True)
        yield mode, Ffn("GPT-2", "float32", 8192, *GPT2, bias=True)
        yield mode, Ffn("Llama-3 70B", "bfloat16", 4096, 8192, 28672, "swiglu")
        yield mode, Ffn("odd", "bfloat16", 4097, 770, 3001, "gelu_tanh", bias=True)
    for rows in (32, 128, 512):
        yield "forward", Ffn("Llama-3 8B", "bfloat16", rows, *LLAMA)


def _cpu() -> Calls:
    for dtype in ("float32", "bfloat16"):
        yield "forward", Ffn("GPT-2", dtype, 1, *GPT2, bias=True)
        yield "forward", Ffn("GPT-2", dtype, 128, *GPT2, bias=True)
    yield "forward", Ffn("Llama-3 8B", "float32", 1, *LLAMA)
    yield "forward", Ffn("odd", "float32", 37, 770, 1001, "gelu_tanh", bias=True)
    yield "both", Ffn("GPT-2", "float32", 128, *GPT2, bias=True)


def _cpu_long() -> Calls:
    for dtype in ("float32", "bfloat16"):
        for rows in (1, 8, 128, 1024):
            yield "forward", Ffn("GPT-2", dtype, rows, *GPT2, bias=True)
        yield "both", Ffn("GPT-2", dtype, 512, *GPT2, bias=True)
        yield "forward", Ffn("Llama-3 8B", dtype, 1, *LLAMA)
        yield "forward", Ffn("Llama-3 8B", dtype, 64, *LLAMA)
    yield "forward", Ffn("odd", "float32", 37, 770, 1001, "gelu_tanh", bias=True)


def _tiny() -> Calls:
    yield "forward", Ffn("tiny", "bfloat16", 1, 16, 24, "swiglu")
    yield "backward", Ffn("tiny", "float32", 24, 16, 24, "swiglu")
    yield "both", Ffn("tiny", "float32", 20, 16, 24, "gelu_tanh", bias=True)


SETS = {
    "gpu-first": _gpu_first,
    "gpu": _gpu,
    "gpu-long": _gpu_long,
    "cpu": _cpu,
    "cpu-long": _cpu_long,
    "tiny": _tiny,
}
