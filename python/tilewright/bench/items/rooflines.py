"""What the machine can do at most, measured in the same run: a matrix product in each dtype, a copy, and a read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .. import exact
from ..environment import cache_bytes
from ..measure import Bench, Built, Item
from ..timing import interleave

#: What the names of rooflines begin with.
ROOFLINE = "roofline"
GEMM, COPY, READ = f"{ROOFLINE} gemm", f"{ROOFLINE} copy", f"{ROOFLINE} read"

#: By the set of shapes: the product's size, the copy's bytes (None: by the CPU's caches), and the dtypes.
#: A CPU without instructions for bfloat16 multiplies it as float32, so that float32's product is the roof of both.
SIZES: dict[str, tuple[int, int | None, tuple[str, ...]]] = {
    "gpu-first": (8192, 2**31, ("bfloat16",)),
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
    count = _copied_bytes() if copied is None else copied
    facts = {"op": "roofline", "mode": "forward", "label": "copy", "bytes": 2 * count}
    yield Item(COPY, "GB/s", functools.partial(_copy, count=count), 2.0 * count, cold=True, facts=facts)
    if not shapes.startswith("cpu"):  # whose items take turns with their own roofs
        facts = {"op": "roofline", "mode": "forward", "dtype": "bfloat16", "label": "read", "bytes": count}
        yield Item(READ, "GB/s", functools.partial(_read, count=count), float(count), cold=True, facts=facts)


#: The size of the product that a CPU's items are timed in turns with: it takes milliseconds, like most of them, since
#: what disturbs a machine now and then hits long samples more often. 1024 was 2 to 5% slower than 768 on a Zen 4.
TURNS_SIZE = 768

#: Bytes that a CPU copies to show its memory's speed, and at most for an item that moves more: the longer a read, the
#: nearer it comes to the limit (30.2 GB/s for 256 MB and 31.2 for 2 GB, on a Xeon of 2024).
USUALLY_COPIED, MOST_COPIED = 256 * 2**20, 2**30

#: Of the matrix that is read: 1024 to 65536 columns are within 4%, and 20% faster than a sum, on a Xeon of 2024.
READ_WIDTH = 16384


def functions(unit: str, work: float, dtype: str) -> dict[str, tuple[Callable[[], torch.Tensor], float]]:
    """On a CPU: the product for an item of this dtype in "TFLOP/s"; for one in "GB/s" of so much work a copy, and since
    many calls read much and write little, which is faster on some processors, a product of a matrix and a vector. With
    the operations of each, or the bytes that it reads and writes."""
    if unit == "GB/s":
        return _movers(_copied_bytes(work))
    return {"product": (_product(TURNS_SIZE, _fastest(dtype)), 2.0 * TURNS_SIZE**3)}


@functools.lru_cache(1)
def _movers(count: int) -> dict[str, tuple[Callable[[], torch.Tensor], float]]:
    source = torch.zeros(count // 4)
    target, matrix, vector = torch.empty_like(source), source.view(-1, READ_WIDTH), torch.zeros(READ_WIDTH)
    return {"copy": (lambda: target.copy_(source), 2.0 * count), "read": (lambda: matrix @ vector, 1.0 * count)}


def _product(size: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return lambda: a @ b


@functools.cache
def _fastest(dtype: str) -> torch.dtype:
    """16-bit numbers can be multiplied as float32; without instructions for them their own product may take a hundred
    times as long."""
    own: torch.dtype = getattr(torch, dtype)
    choices = list(dict.fromkeys((torch.float32, own)))
    timings = interleave({str(d): _product(256, d) for d in choices}, 0.0, 3)
    return min(choices, key=lambda d: timings[str(d)].p50)


def _copied_bytes(work: float = 0.0) -> int:
    """More than the caches hold, or as much as shows the memory's speed: they are overwritten before each sample, and
    some virtual machines are told of a cache of 480 MB (there 64 MB to 2 GB were copied at the same 26 GB/s). For an
    item of so many bytes no less than that."""
    count = max(min(4 * cache_bytes(), USUALLY_COPIED), min(int(work), MOST_COPIED))
    return max(1, count // (4 * READ_WIDTH)) * 4 * READ_WIDTH  # whole rows of the matrix that is read


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


def _read(bench: Bench, count: int) -> Built:
    """Sums of rows, as a product with ones or as a reduction: whichever reads faster is the roof."""
    rows = bench.normal(max(1, count // (2 * READ_WIDTH)), min(READ_WIDTH, count // 2))
    ones = torch.ones(rows.shape[1], dtype=rows.dtype, device=rows.device)
    some = slice(0, min(len(rows), 256))

    def error(result: Any) -> float:
        return exact.distance([result[some]], [rows[some].double().sum(1)])

    return Built({"product": lambda: lambda: rows @ ones, "sum": lambda: lambda: rows.sum(1)}, error)
