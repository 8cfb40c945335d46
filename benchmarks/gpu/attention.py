"""Attention and decoding beside torch's backends, FlexAttention and compiled plain math."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tilewright as tw

from .measure import Bench, Built, Item, distance, of_mode

SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def items(shapes: str) -> Iterator[Item]:
    """Of B * S = 16k tokens. The first ones are those that targets are set for."""
    if shapes == "tiny":
        sizes = [(16, 2, 2, 32), (16, 4, 2, 64)]
        tokens = 64
    else:
        tokens = 16384
        sizes = [(128, 16, 16, s) for s in (4096, 16384)]
        sizes += [(128, 16, 16, 1024), (128, 32, 8, 4096), (64, 32, 32, 4096), (256, 8, 8, 4096)]
        sizes += [(128, 32, 8, 1024), (128, 32, 8, 16384)]
        sizes += [(d, 2048 // d, 2048 // d, s) for d in (64, 256) for s in (16384, 1024)]
    for head_dim, heads, heads_kv, seqlen in sizes:
        for causal in (False, True):
            for mode in ("forward", "backward"):
                yield _item(mode, causal, tokens // seqlen, heads, heads_kv, seqlen, head_dim)


def name(mode: str, causal: bool, heads: int, heads_kv: int, seqlen: int, head_dim: int) -> str:
    gqa = f" gqa {heads}/{heads_kv}" if heads != heads_kv else ""
    return f"attention {mode} d{head_dim} {'causal' if causal else 'full'} S{seqlen}{gqa}"


def _item(mode: str, causal: bool, batch: int, heads: int, heads_kv: int, seqlen: int, head_dim: int) -> Item:
    flops = 4.0 * batch * heads * seqlen * seqlen * head_dim * (0.5 if causal else 1.0)
    sizes = {"batch": batch, "heads": heads, "heads_kv": heads_kv, "seqlen": seqlen, "head_dim": head_dim}
    build = functools.partial(_build, mode=mode, causal=causal, **sizes)
    return Item(
        name(mode, causal, heads, heads_kv, seqlen, head_dim),
        "TFLOP/s",
        build,
        flops * (1.0 if mode == "forward" else 2.5),
        facts={"op": "attention", "mode": mode, "causal": causal, "dtype": "bfloat16", **sizes},
    )


def _build(
    bench: Bench, mode: str, causal: bool, batch: int, heads: int, heads_kv: int, seqlen: int, head_dim: int
) -> Built:
    q, dout = (bench.normal(batch, heads, seqlen, head_dim) for _ in range(2))
    k, v = (bench.normal(batch, heads_kv, seqlen, head_dim) for _ in range(2))
    # The first and the last key head, with the query heads of each.
    sample = [(0, 0), (batch - 1, heads_kv - 1)]
    group = heads // heads_kv

    @functools.cache
    def expected() -> list[Tensor]:
        found = [_float64(q, k, v, dout, b, h, group, causal, mode == "backward") for b, h in sample]
        return [t for one in found for t in one]

    def error(result: Any) -> float:
        tensors = result if isinstance(result, tuple) else (result,)
        parts = []
        for b, h in sample:
            heads_of = (slice(h * group, (h + 1) * group), h, h)
            parts += [t[b, index] for t, index in zip(tensors, heads_of, strict=False)]
        return distance(parts, expected())

    ours = bench.ours(tw.attention, causal="top_left" if causal else None)
    makers = {**ours, **forwards(bench, causal, seqlen, seqlen, group)}
    return Built({n: of_mode(mode, make, (q, k, v), dout) for n, make in makers.items()}, error)


def forwards(bench: Bench, causal: bool, seqlen_q: int, seqlen_k: int, group: int) -> dict[str, Callable[[], Forward]]:
    """Each peer's attention, made when it is asked for."""

    def sdpa(backend: SDPBackend) -> Forward:
        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=group > 1)

        return forward

    def flex() -> Forward:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = None
        if causal:
            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, seqlen_q, seqlen_k, device=bench.device)
        compiled: Any = torch.compile(flex_attention, dynamic=False)
        return functools.partial(compiled, block_mask=mask, enable_gqa=group > 1)

    def math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            keep = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~keep, -torch.inf)
        return torch.softmax(scores, -1) @ v

    peers: dict[str, Callable[[], Forward]] = {n: functools.partial(sdpa, b) for n, b in SDPA.items()}
    peers["flex"] = flex
    peers["compile"] = lambda: torch.compile(math, dynamic=False)
    return peers


def _float64(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, b: int, h: int, group: int, causal: bool, backward: bool
) -> list[Tensor]:
    """out of the query heads of key head (b, h); or dq of them, dk and dv. Head by head: S x S is large in float64."""
    keys, values, scale = k[b, h].double(), v[b, h].double(), q.shape[-1] ** -0.5
    outs, dqs, dk, dv = [], [], torch.zeros_like(keys), torch.zeros_like(values)
    for i in range(h * group, (h + 1) * group):
        rows = q[b, i].double()
        weights = rows @ keys.T * scale
        if causal:
            weights.masked_fill_(torch.ones_like(weights, dtype=torch.bool).triu_(1), -torch.inf)
        weights = torch.softmax(weights, -1)
        out = weights @ values
        outs.append(out)
        if backward:
            upstream = dout[b, i].double()
            dv += weights.T @ upstream
            ds = weights * (upstream @ values.T - (upstream * out).sum(-1, keepdim=True)) * scale
            dqs.append(ds @ keys)
            dk += ds.T @ rows
    return [torch.stack(dqs), dk, dv] if backward else [torch.stack(outs)]
