"""softmax at fixed bytes over widths, beside torch, torch.compile, and Liger's and QuACK's where they are installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import tilewright as tw

from .measure import Bench, Built, Item, distance, of_mode

WIDTHS = (256, 1024, 4096, 16384, 32768, 65536, 131072, 262144)
#: Of x, so that the forward moves 512 MB.
BYTES = 256 * 2**20


def items(shapes: str) -> Iterator[Item]:
    for mode in ("forward", "backward"):
        for width in (8, 100) if shapes == "tiny" else WIDTHS:
            yield _item(mode, 16 if shapes == "tiny" else BYTES // (2 * width), width)


def _item(mode: str, rows: int, width: int) -> Item:
    moved = 2.0 * rows * width * (2 if mode == "forward" else 3)
    facts = {"op": "softmax", "mode": mode, "dtype": "bfloat16", "rows": rows, "width": width, "bytes": moved}
    build = functools.partial(_build, mode=mode, rows=rows, width=width)
    return Item(f"softmax {mode} {width}", "GB/s", build, moved, cold=True, facts=facts)


def _build(bench: Bench, mode: str, rows: int, width: int) -> Built:
    x, dy = bench.normal(rows, width, scale=2.0), bench.normal(rows, width)

    def error(result: Any) -> float:
        """In slices of rows: all of it in float64 would be several times the tensors measured."""
        found = result[0] if isinstance(result, tuple) else result
        step = max(1, rows // 8)
        worst = 0.0
        for i in range(0, rows, step):
            y = torch.softmax(x[i : i + step].double(), -1)
            if mode == "backward":
                dy_i = dy[i : i + step].double()
                y = y * (dy_i - (y * dy_i).sum(-1, keepdim=True))
            d = distance([found[i : i + step]], [y])
            if not d <= worst:
                worst = d
        return worst

    def plain(x: Tensor) -> Tensor:
        return torch.softmax(x, -1)

    def liger() -> Callable[[Tensor], Tensor]:
        from liger_kernel.ops.softmax import LigerSoftmaxFunction

        apply: Callable[[Tensor], Tensor] = LigerSoftmaxFunction.apply
        return apply

    def quack() -> Callable[[Tensor], Tensor]:
        from quack.softmax import softmax

        function: Callable[[Tensor], Tensor] = softmax
        return function

    makers: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        **bench.ours(tw.softmax),
        "torch": lambda: plain,
        "compile": lambda: torch.compile(plain, dynamic=False),
        "liger": liger,
        "quack": quack,
    }
    return Built({n: of_mode(mode, make, (x,), dy) for n, make in makers.items()}, error)
