"""Every item of the benchmark, the most wanted first: what time does not allow is missing from the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tilewright as tw

from . import attention, decode, ffn, softmax
from .measure import Bench, Built, Item, distance

GEMM, COPY = "roofline gemm", "roofline copy"


def all_items(shapes: str) -> list[Item]:
    rows_of_attention = list(attention.items(shapes))
    rows_of_softmax = list(softmax.items(shapes))
    rows_of_ffn = list(ffn.items(shapes))
    aimed = [*rows_of_attention[:8], *rows_of_softmax[: len(rows_of_softmax) // 2], *rows_of_ffn[:2]]
    aimed += [*decode.items(shapes), *_overheads()]
    rest = [i for i in (*rows_of_ffn, *rows_of_softmax, *rows_of_attention) if i.name not in {a.name for a in aimed}]
    return [*_rooflines(shapes), *aimed, *rest]


def _rooflines(shapes: str) -> list[Item]:
    size, copied = (64, 2**16) if shapes == "tiny" else (8192, 2**31)

    def gemm(bench: Bench) -> Built:
        a, b = bench.normal(size, size), bench.normal(size, size)
        rows = slice(0, min(size, 256))

        def error(result: Any) -> float:
            return distance([result[rows]], [a[rows].double() @ b.double()])

        return Built({"torch": lambda: lambda: a @ b}, error)

    def copy(bench: Bench) -> Built:
        source = torch.randint(0, 256, (copied,), dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)

        def error(result: Any) -> float:
            return 0.0 if torch.equal(result, source) else 1.0

        return Built({"torch": lambda: lambda: target.copy_(source)}, error)

    return [
        Item(GEMM, "TFLOP/s", gemm, 2.0 * size**3, facts={"op": "roofline", "dtype": "bfloat16", "size": size}),
        Item(COPY, "GB/s", copy, 2.0 * copied, cold=True, facts={"op": "roofline", "bytes": 2 * copied}),
    ]


def _chain(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w_in), approximate="tanh"), w_out)


def _overheads() -> list[Item]:
    """What a call costs the host: inputs so small that the kernels take next to no time."""
    cached = [(1, 2, 1, 16), (1, 2, 32, 16), (1, 2, 32, 16)]
    ops: list[tuple[str, list[tuple[int, ...]], Callable[..., Any], Callable[..., Tensor]]] = [
        ("attention", [(1, 2, 16, 16)] * 3, tw.attention, F.scaled_dot_product_attention),
        ("kvcache_attention", cached, tw.kvcache_attention, F.scaled_dot_product_attention),
        ("softmax", [(16, 64)], tw.softmax, lambda x: torch.softmax(x, -1)),
        ("ffn", [(16, 32), (64, 32), (32, 64)], tw.ffn, _chain),
    ]
    return [_overhead(*op) for op in ops]


def _overhead(op: str, shapes: list[tuple[int, ...]], ours: Callable[..., Any], theirs: Callable[..., Tensor]) -> Item:
    def build(bench: Bench) -> Built:
        tensors = [bench.normal(*shape) for shape in shapes]
        expected = theirs(*(t.double() for t in tensors))
        providers = {
            **{n: (lambda make=make: functools.partial(make(), *tensors)) for n, make in bench.ours(ours).items()},
            "torch": lambda: lambda: theirs(*tensors),
        }
        return Built(providers, lambda result: distance([result], [expected]))

    return Item(f"overhead {op}", "us", build, by="wall", facts={"op": op, "mode": "forward", "dtype": "bfloat16"})
