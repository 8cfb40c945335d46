"""For each kernel and key of the tables, a call that launches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..ops.attention import attention
from ..ops.ffn import ffn
from ..ops.kvcache_attention import kvcache_attention
from ..ops.softmax import softmax

Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Workload:
    """timed: the calls that are measured. checked: calls with further options, which a configuration must serve too."""

    timed: Run
    checked: Run


@dataclass(frozen=True)
class Maker:
    """Makes a workload's tensors.

    tiny: as small as the interpreter wants them. aligned: rows begin at multiples of 16 bytes, without which some
    kernels are asked for with another key.
    """

    device: torch.device
    tiny: bool = False
    aligned: bool = True

    def normal(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        if self.aligned:
            return torch.randn(shape, dtype=dtype, device=self.device).mul_(scale)
        padded = torch.randn((*shape[:-1], shape[-1] + 1), dtype=dtype, device=self.device).mul_(scale)
        return padded[..., : shape[-1]]

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


def workload(kernel: str, key: str, maker: Maker) -> Workload | str:
    """The calls for ``kernel`` with ``key``, or why there are none, in words."""
    if kernel not in WORKLOADS:
        return "python/tilewright/tune/workloads.py has no call that launches it"
    return WORKLOADS[kernel](kernel, key, maker)


def _train(out: Tensor, leaves: tuple[Tensor, ...]) -> Run:
    """The gradients of ``leaves``: the backward by itself, again and again."""
    upstream = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, upstream, retain_graph=True)


def _all(*runs: Run) -> Run:
    return lambda: tuple(t for run in runs for t in run())


#: By what a key says of options (attention_table.LOADS): those of the calls that are measured, and those that a
#: configuration has to serve too. "all" is of a table with one key for all.
_LOADS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": ((), ("softcap",)),
    "some": (("mask",), ("mask", "softcap", "window")),
    "many": (("mask", "alibi_slopes", "softcap", "window"), ("mask", "alibi_slopes", "softcap", "window", "dropout_p")),
    "all": ((), ("mask", "alibi_slopes", "softcap", "window", "dropout_p")),
}


def _attention(kernel: str, key: str, maker: Maker) -> Workload | str:
    """Full and causal, since one configuration serves both. The key: see attention_table.table_key."""
    size, width, *more = key.split(",") if key else ("2", "128", "all")
    load = more[0] if more else ""
    dtype, head_dim = torch.bfloat16 if size == "2" else torch.float32, int(width)
    least, most = _LOADS[load]
    if head_dim == 256 and load == "":  # a configuration for no option at all
        most = ()
    if maker.tiny:
        head_dim = min(head_dim, 16)
    if kernel == "attention_decode":
        return _decode(dtype, head_dim, least, most, maker)
    masked = kernel == "attention_backward_mask"
    if masked:
        least, most = (tuple(dict.fromkeys(("mask", *names))) for names in (least, most))
    seqlen = maker.size(1024 if masked else 4096, 70 if kernel == "attention_forward" else 40)
    batch = maker.size((4096 if size == "4" or masked else 16384) // seqlen, 1)
    heads = maker.size(max(1, 2048 // head_dim), 2)
    leaves = tuple(maker.normal(batch, heads, seqlen, head_dim, dtype=dtype) for _ in range(3))
    given = _options(dtype, seqlen, seqlen, heads, maker)
    forward = kernel == "attention_forward"
    if not forward:
        leaves = tuple(t.requires_grad_() for t in leaves)
        given["mask"].requires_grad_(masked)

    def call(names: tuple[str, ...], causal: str | None = None) -> Run:
        options = {n: given[n] for n in names}

        def run() -> tuple[Tensor, ...]:
            torch.manual_seed(1)  # what dropout drops is the same each time
            out = attention(*leaves, **options, causal=causal, backend="triton")
            assert isinstance(out, Tensor)
            return (out,)

        if forward:
            return run
        return _train(run()[0], (*leaves, options["mask"]) if masked else leaves)

    return Workload(_all(call(least), call(least, "top_left")), _all(call(most), call(most, "bottom_right")))


def _options(dtype: torch.dtype, seqlen_q: int, seqlen_k: int, heads: int, maker: Maker) -> dict[str, Any]:
    """The arguments that _LOADS names."""
    return {
        "mask": maker.normal(1, 1, seqlen_q, seqlen_k, dtype=dtype),
        "alibi_slopes": torch.linspace(0.1, 0.5, heads, device=maker.device),
        "softcap": 20.0,
        "window": (seqlen_k // 2, None),
        "dropout_p": 0.2,
    }


def _decode(dtype: torch.dtype, head_dim: int, least: tuple[str, ...], most: tuple[str, ...], maker: Maker) -> Workload:
    batch, heads, heads_kv, keys = (32, 32, 8, 4096) if not maker.tiny else (2, 4, 2, 300)
    q = maker.normal(batch, heads, 1, head_dim, dtype=dtype)
    caches = [maker.normal(batch, heads_kv, keys, head_dim, dtype=dtype) for _ in range(2)]
    lengths = torch.full((batch,), keys, dtype=torch.int32, device=maker.device)
    given = _options(dtype, 1, keys, heads, maker)

    def call(names: tuple[str, ...]) -> Run:
        options = {n: given[n] for n in names if n != "dropout_p"}

        def run() -> tuple[Tensor, ...]:
            out = kvcache_attention(q, *caches, cache_seqlens=lengths, **options, backend="triton")
            assert isinstance(out, Tensor)
            return (out,)

        return run

    return Workload(call(least), call(most))


def _softmax(kernel: str, key: str, maker: Maker) -> Workload | str:
    """128 MB of rows of the key's width; float32 and options have to work as well."""
    from ..triton_kernels.softmax_table import WIDEST

    across = key.startswith("across")
    digits = key.removeprefix("across").strip()
    backward = "backward" in kernel
    name = kernel.removesuffix("_looped")
    columns = int(digits) if digits else 2 * WIDEST[name][across]
    rows = max(1, maker.size(2**26, 2048) // columns)
    shape, dim = ((columns, rows), 0) if across else ((rows, columns), 1)

    def call(dtype: torch.dtype, **options: Any) -> Run:
        x = maker.normal(*shape, dtype=dtype).requires_grad_(backward)

        def run() -> tuple[Tensor, ...]:
            return (softmax(x, dim, **options, backend="triton"),)

        return _train(run()[0], (x,)) if backward else run

    mask = torch.rand(shape, device=maker.device) < 0.8
    return Workload(call(torch.bfloat16), call(torch.float32, mask=mask, scale=0.5))


#: Rows, features and hidden width that make a kernel of few rows launch: whole products, and those whose sums programs
#: share; for the interpreter, behind it, the same.
_FEW = {
    "ffn_in_parts": ((8, 4096, 1024), (3, 150, 41)),
    "ffn_product": ((8, 4096, 1024), (3, 150, 41)),
    "ffn_out_parts": ((8, 1024, 4096), (3, 40, 150)),
}
_FEW_WHOLE = ((8, 4096, 14336), (3, 130, 136))
_MANY = ((8192, 1024, 4096), (40, 40, 72))
_MANY_FLOAT32 = ((2048, 1024, 4096), (40, 40, 72))


def _ffn(kernel: str, key: str, maker: Maker) -> Workload | str:
    few = key.startswith("small") or kernel.endswith("_parts")
    dtype = torch.float32 if "fp32" in key else torch.bfloat16
    many = _MANY_FLOAT32 if dtype == torch.float32 else _MANY
    rows, features, hidden = (_FEW.get(kernel, _FEW_WHOLE) if few else many)[maker.tiny]
    gated = kernel.endswith("gated")
    backward = "gradient" in kernel or kernel == "ffn_drop" or (kernel == "ffn_product" and not few)
    inner = 2 * hidden if gated else hidden
    x = maker.normal(rows, features, dtype=dtype)
    w_in = maker.normal(inner, features, dtype=dtype, scale=features**-0.5)
    w_out = maker.normal(features, hidden, dtype=dtype, scale=hidden**-0.5)
    biases = {"b_in": maker.normal(inner, dtype=dtype), "b_out": maker.normal(features, dtype=dtype)}
    leaves: tuple[Tensor, ...] = (x, w_in, w_out)
    if backward:
        leaves = tuple(t.requires_grad_() for t in (*leaves, *biases.values()))
    activation = "swiglu" if gated else "gelu_tanh"

    def call(**options: Any) -> Run:
        given = {"activation": activation, **(biases if backward else {}), **options, "backend": "triton"}

        def run() -> tuple[Tensor, ...]:
            torch.manual_seed(1)  # what dropout drops is the same each time
            return (ffn(x, w_in, w_out, **given),)

        return _train(run()[0], leaves) if backward else run

    everything = call(**biases, residual=maker.normal(rows, features, dtype=dtype), dropout_p=0.2)
    return Workload(everything if kernel == "ffn_drop" else call(), everything)


def keys(kernel: str, own: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those that the kernel is really asked for with. own: of its entries; known: of its op's.

    An entry for every other key is tuned for each of those by itself: what is fast for one may not run for another.
    """
    if kernel.startswith("softmax"):  # a row of one element lies as it would if it were not across
        return [k for k in own if k != "across 1"]
    if kernel == "ffn_drop":
        return list(own)
    if kernel == "attention_backward_mask":  # a mask is an option by itself
        return [k for k in known if k.count(",") == 2]
    return [k for k in known if k and (k.startswith("small") or not kernel.endswith("_parts"))]


WORKLOADS: dict[str, Callable[[str, str, Maker], Workload | str]] = {
    **dict.fromkeys(
        (
            "attention_forward",
            "attention_decode",
            "attention_backward_rows",
            "attention_backward_keys",
            "attention_backward_mask",
        ),
        _attention,
    ),
    **dict.fromkeys(
        ("softmax_forward", "softmax_backward", "softmax_forward_looped", "softmax_backward_looped"), _softmax
    ),
    **dict.fromkeys(
        (
            "ffn_in",
            "ffn_in_gated",
            "ffn_out",
            "ffn_product",
            "ffn_hidden_gradient",
            "ffn_hidden_gradient_gated",
            "ffn_in_parts",
            "ffn_out_parts",
            "ffn_drop",
        ),
        _ffn,
    ),
}
