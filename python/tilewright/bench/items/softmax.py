"""softmax over widths, at fixed bytes: a row may be narrow or wider than any block of threads."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...ops.softmax import softmax
from .. import exact
from ..measure import Bench, Built, Item, providers_of
from ..peers.softmax import PEERS
from ..shapes import Softmax

WIDTHS = (256, 1024, 4096, 16384, 32768, 65536, 131072, 262144)
#: Of x on a GPU, so that the forward moves 512 MB; on a CPU, where that is more than its caches hold as well.
GPU_BYTES, CPU_BYTES = 256 * 2**20, 8 * 2**20

#: Tensors of x's size that are read or written.
MOVED = {"forward": 2, "backward": 3, "both": 5}


def item(mode: str, shape: Softmax, curve: str = "") -> Item:
    size = torch.empty(0, dtype=getattr(torch, shape.dtype)).element_size()
    moved = float(size * shape.rows * shape.width * MOVED[mode])
    facts = {"op": "softmax", "mode": mode, "label": shape.label, "bytes": moved, **shape.facts()}
    if curve:
        facts.update(curve=curve, size=shape.width)
    name = f"softmax {mode} {shape.name}" + (f" ({curve})" if curve else "")
    return Item(name, "GB/s", functools.partial(_build, mode=mode, shape=shape), moved, cold=True, facts=facts)


def items(shapes: str) -> Iterator[Item]:
    for mode, shape in SETS[shapes]():
        yield item(mode, shape)


def _build(bench: Bench, mode: str, shape: Softmax) -> Built:
    x = bench.normal(shape.rows, shape.width, scale=2.0, dtype=shape.dtype)
    dy = bench.normal(shape.rows, shape.width, dtype=shape.dtype)

    def error(result: Any) -> float:
        found = result[0] if isinstance(result, tuple) else result
        return exact.softmax_distance(x, None if mode == "forward" else dy, found)

    return Built(providers_of(bench, shape, mode, bench.ours(softmax), PEERS, (x,), dy), error)


Calls = Iterator[tuple[str, Softmax]]


def _of_bytes(widths: tuple[int, ...], dtype: str, bytes_of_x: int, *modes: str) -> Calls:
    size = 4 if dtype == "float32" else 2
    for mode in modes:
        for width in widths:
            yield mode, Softmax("logits" if width >= 32768 else "attention", dtype, bytes_of_x // (size * width), width)


def _gpu_first() -> Calls:
    yield from _of_bytes((1024, 16384, 131072), "bfloat16", GPU_BYTES, "forward")
    yield from _of_bytes((16384,), "bfloat16", GPU_BYTES, "backward")


def _gpu() -> Calls:
    yield from _of_bytes(WIDTHS, "bfloat16", GPU_BYTES, "forward", "backward")


def _gpu_long() -> Calls:
    yield from _of_bytes((64, 512, 2048, 8192, *WIDTHS), "bfloat16", GPU_BYTES, "forward", "backward")
    yield from _of_bytes((64, *WIDTHS, 50257, 128256, 1000), "float32", GPU_BYTES, "forward", "backward")


def _cpu() -> Calls:
    yield from _of_bytes((64, 1000, 4096, 50257, 262144), "float32", CPU_BYTES, "forward")
    yield from _of_bytes((64, 4096, 262144), "bfloat16", CPU_BYTES, "forward")
    yield from _of_bytes((1000, 50257), "float32", CPU_BYTES, "both")
    yield from _of_bytes((4096,), "bfloat16", CPU_BYTES, "both")


def _cpu_long() -> Calls:
    for dtype in ("float32", "bfloat16"):
        yield from _of_bytes((64, 128, 512, 1000, 50257, *WIDTHS), dtype, 4 * CPU_BYTES, "forward", "both")


def _tiny() -> Calls:
    for mode in MOVED:
        yield mode, Softmax("tiny", "float32", 16, 100)
    yield "forward", Softmax("tiny", "bfloat16", 16, 8)


SETS = {
    "gpu-first": _gpu_first,
    "gpu": _gpu,
    "gpu-long": _gpu_long,
    "cpu": _cpu,
    "cpu-long": _cpu_long,
    "tiny": _tiny,
}
