"""The feed-forward block beside the chain that a torch user writes, and that chain compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright as tw

from .measure import Bench, Built, Item, distance, of_mode

#: Up to this many rows the weights are what is read, and the memory is the roof.
FEW_ROWS = 16


def items(shapes: str) -> Iterator[Item]:
    gpt, llama = (768, 3072, "gelu_tanh"), (4096, 14336, "swiglu")
    if shapes == "tiny":
        gpt, llama = (16, 32, "gelu_tanh"), (16, 24, "swiglu")
    many, some = (32, 24) if shapes == "tiny" else (32768, 4096)
    for mode in ("forward", "backward"):
        yield _item(mode, many, *gpt)
    for rows in (1,) if shapes == "tiny" else (1, 4, 16):
        yield _item("forward", rows, *llama)
    for mode in ("forward", "backward"):
        yield _item(mode, some, *llama)


def _item(mode: str, rows: int, features: int, hidden: int, activation: str) -> Item:
    inner = 2 * hidden if activation == "swiglu" else hidden
    few = rows <= FEW_ROWS
    weights = features * (inner + hidden)
    flops = 2.0 * rows * weights * (1 if mode == "forward" else 2)
    moved = 2.0 * (weights + 2 * rows * features)
    sizes = {"rows": rows, "features": features, "hidden": hidden, "activation": activation}
    return Item(
        f"ffn {mode} {features}/{hidden} {activation} rows {rows}",
        "GB/s" if few else "TFLOP/s",
        functools.partial(_build, mode=mode, **sizes),
        moved if few else flops,
        cold=few,
        facts={"op": "ffn", "mode": mode, "dtype": "bfloat16", **sizes},
    )


def _chain(activation: str, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    inner = F.linear(x, w_in)
    if activation == "swiglu":
        gate, up = inner.chunk(2, -1)
        return F.linear(F.silu(gate) * up, w_out)
    return F.linear(F.gelu(inner, approximate="tanh"), w_out)


def _build(bench: Bench, mode: str, rows: int, features: int, hidden: int, activation: str) -> Built:
    inner = 2 * hidden if activation == "swiglu" else hidden
    x, dout = bench.normal(rows, features), bench.normal(rows, features)
    w_in = bench.normal(inner, features, scale=features**-0.5)
    w_out = bench.normal(features, hidden, scale=hidden**-0.5)
    chain = functools.partial(_chain, activation)

    @functools.cache
    def expected() -> list[Tensor]:
        wide = [t.double().requires_grad_(mode == "backward") for t in (x, w_in, w_out)]
        out = chain(*wide)
        return list(torch.autograd.grad(out, wide, dout.double())) if mode == "backward" else [out]

    def error(result: Any) -> float:
        return distance(result if isinstance(result, tuple) else (result,), expected())

    makers: dict[str, Callable[[], Callable[..., Tensor]]] = {
        **bench.ours(tw.ffn, activation=activation),
        "torch": lambda: chain,
        "compile": lambda: torch.compile(chain, dynamic=False),
    }
    return Built({n: of_mode(mode, make, (x, w_in, w_out), dout) for n, make in makers.items()}, error)
