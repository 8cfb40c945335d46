"""Calls of more planes (sequences times heads, or rows) than a grid's second dimension has programs, 65,535. Windowed
vision models have that many."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.attention import attention
from ..ops.ffn import ffn
from ..ops.kvcache_attention import kvcache_attention
from ..ops.softmax import log_softmax, softmax
from ..ops.varlen_attention import varlen_attention

#: More than a grid's second and third dimension have.
PLANES = 70_000


@dataclass(frozen=True)
class Call:
    """tensors: the arguments that are floating-point numbers. function: of a backend and those.
    gradients: whether it has a backward."""

    name: str
    tensors: tuple[Tensor, ...]
    function: Callable[..., Tensor]
    gradients: bool = True

    def run(self, backend: str, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
        """The output and the tensors' gradients, on copies of the tensors in this dtype."""
        leaves = tuple(t.detach().to(dtype or t.dtype, copy=True).requires_grad_(self.gradients) for t in self.tensors)
        out = self.function(backend, *leaves)
        if not self.gradients:
            return (out,)
        upstream = torch.arange(out.numel(), dtype=torch.float64, device=out.device).cos().to(out.dtype)
        gradients = torch.autograd.grad(out, leaves, upstream.view_as(out))
        return (out.detach(), *gradients)


def calls(planes: int = PLANES, device: torch.device | str = "cpu") -> list[Call]:
    """Every op; of attention also the gradient of a mask with a plane for each, and caches that are appended to."""

    drawn = torch.randn(10_007, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu")

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The same numbers again and again, a prime number of them: drawing so many would take longer than the call."""
        count = math.prod(shape)
        return drawn.to(device, dtype).repeat(-(-count // len(drawn)))[:count].view(shape)

    n = planes
    qkv = tuple(normal(n, 1, 2, 16) for _ in range(3))
    mask = normal(n, 1, 2, 2, dtype=torch.float32)
    packed = tuple(normal(2 * n, 1, 16) for _ in range(3))
    bounds = torch.arange(0, 2 * n + 1, 2, dtype=torch.int32, device=device)
    cached = (normal(n, 1, 1, 16), *(normal(n, 1, 128, 16) for _ in range(2)), *(normal(n, 1, 1, 16) for _ in range(2)))
    lengths = torch.full((n,), 100, dtype=torch.int32, device=device)
    appended = (normal(1, 1, 1, 16), *(normal(1, 1, 2 * n, 16) for _ in range(2)), *(normal(1, 1, n, 16) for _ in "kv"))

    def varlen(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(q, k, v, bounds, bounds, 2, 2, backend=backend)  # type: ignore[return-value]

    def cache(backend: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"k": k, "v": v, "cache_seqlens": lengths, "num_splits": 3}
        return kvcache_attention(q, k_cache, v_cache, **options, backend=backend)  # type: ignore[arg-type,return-value]

    def append(backend: str, q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"k": k, "v": v, "cache_seqlens": n, "num_splits": n}
        return kvcache_attention(q, k_cache, v_cache, **options, backend=backend)  # type: ignore[arg-type,return-value]

    rows, weights = normal(n, 3), (normal(24, 16), normal(16, 24))
    return [
        Call("attention", qkv, lambda backend, q, k, v: attention(q, k, v, backend=backend)),  # type: ignore[arg-type,return-value]
        Call(
            "mask gradient",
            (*qkv, mask),
            lambda backend, q, k, v, mask: attention(q, k, v, mask=mask, backend=backend),  # type: ignore[arg-type,return-value]
        ),
        Call("varlen_attention", packed, varlen),
        Call("kvcache_attention", cached, cache, gradients=False),
        Call("many new positions", appended, append, gradients=False),
        Call("softmax", (rows,), lambda backend, x: softmax(x, backend=backend)),
        Call("softmax across", (normal(n, 3, 2),), lambda backend, x: softmax(x, 1, backend=backend)),
        Call("log_softmax", (rows,), lambda backend, x: log_softmax(x, backend=backend)),
        Call("ffn", (normal(n, 16), *weights), lambda backend, x, a, b: ffn(x, a, b, backend=backend)),
    ]
