"""What a call costs the host: inputs so small that the kernels take next to no time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.attention import attention
from ...ops.ffn import ffn
from ...ops.kvcache_attention import kvcache_attention
from ...ops.softmax import softmax
from .. import exact
from ..measure import Bench, Built, Item, of_mode
from ..peers.ffn import chain

_CACHED = [(1, 2, 1, 16), (1, 2, 32, 16), (1, 2, 32, 16)]
OPS: tuple[tuple[str, list[Any], Callable[..., Any], Callable[..., Any]], ...] = (
    ("attention", [(1, 2, 16, 16)] * 3, attention, F.scaled_dot_product_attention),
    ("kvcache_attention", _CACHED, kvcache_attention, F.scaled_dot_product_attention),
    ("softmax", [(16, 64)], softmax, functools.partial(torch.softmax, dim=-1)),
    ("ffn", [(16, 32), (64, 32), (32, 64)], ffn, functools.partial(chain, "gelu_tanh")),
)


def items(shapes: str) -> Iterator[Item]:
    dtype = "float32" if shapes.startswith("cpu") else "bfloat16"
    for op, sizes, ours, theirs in OPS:
        facts = {
            "op": "overhead",
            "mode": "forward",
            "dtype": dtype,
            "label": f"{op}, {sizes[0]}",
            "scene": "tiny call",
        }
        build = functools.partial(_build, sizes=sizes, ours=ours, theirs=theirs, dtype=dtype)
        yield Item(f"overhead {op}", "us", build, by="wall", facts=facts)


def _build(
    bench: Bench, sizes: list[tuple[int, ...]], ours: Callable[..., Any], theirs: Callable[..., Tensor], dtype: str
) -> Built:
    tensors = [bench.normal(*s, dtype=dtype) for s in sizes]
    expected = theirs(*(t.double() for t in tensors))
    made = {**bench.ours(ours), "eager": lambda: theirs}
    providers = {n: of_mode("forward", make, tuple(tensors), expected) for n, make in made.items()}
    return Built(providers, lambda result: exact.distance([result], [expected]))
