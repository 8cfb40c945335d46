"""What the machine can do at most, measured in the same run: a matrix product in each dtype, and a copy."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from .. import exact
from ..environment import cache_bytes
from ..measure import Bench, Built, Item

GEMM, COPY = "roofline gemm", "roofline copy"

#: By the set of shapes: the product's size, the copy's bytes (None: eight times what the caches hold), and the dtypes.
#: A CPU without instructions for bfloat16 multiplies it as float32, so that float32's product is the roof of both.
SIZES: dict[str, tuple[int, int | None, tuple[str, ...]]] = {
    "gpu": (8192, 2**31, ("bfloat16",)),
    "gpu-long": (8192, 2**31, ("bfloat16", "float16", "float32")),
    "cpu": (1536, None, ("float32", "bfloat16")),
    "cpu-long": (3072, None, ("float32", "bfloat16")),
    "tiny": (64, 2**16, ("bfloat16",)),
}


def items(shapes: str) -> Iterator[Item]:
    size, copied, dtypes = SIZES[shapes]
    for dtype in dtypes:
        facts = {"op": "roofline", "mode": "forward", "dtype": dtype, "label": f"{size}³ product", "size": size}
        name = GEMM if dtype == dtypes[0] else f"{GEMM} {dtype}"
        yield Item(name, "TFLOP/s", functools.partial(_gemm, size=size, dtype=dtype), 2.0 * size**3, facts=facts)
    count = 8 * cache_bytes() if copied is None else copied
    facts = {"op": "roofline", "mode": "forward", "label": "copy", "bytes": 2 * count}
    yield Item(COPY, "GB/s", functools.partial(_copy, count=count), 2.0 * count, cold=True, facts=facts)


def _gemm(bench: Bench, size: int, dtype: str) -> Built:
    a, b = bench.normal(size, size, dtype=dtype), bench.normal(size, size, dtype=dtype)
    rows = slice(0, min(size, 256))
    # On a GPU float32's roof is that of tensor cores: kernels may use them and still be exact to float32.
    fastest = bench.device != "cpu" and dtype == "float32"

    def product() -> torch.Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = before or fastest
        try:
            return a @ b
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def error(result: Any) -> float:
        found = exact.distance([result[rows]], [a[rows].double() @ b.double()])
        return 0.0 if fastest and found < 1e-3 else found

    return Built({"torch": lambda: product if fastest else lambda: a @ b}, error)


def _copy(bench: Bench, count: int) -> Built:
    source = torch.randint(0, 256, (count,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)

    def error(result: Any) -> float:
        return 0.0 if torch.equal(result, source) else 1.0

    return Built({"torch": lambda: lambda: target.copy_(source)}, error)
