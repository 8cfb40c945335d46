"""PyTorch's own same-dtype implementation of every op: what the gate holds a kernel's errors against.

Scaled dot-product attention, softmax and linear + activation + linear, as a torch user would write them. What torch has
no op for (softcap, sinks, our dropout mask, a differentiable lse) is the same math in eager torch operations of that
dtype. Everything here is differentiable through torch's autograd.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..catalog import canonical_call
from ..ops.attention import AttentionCall
from ..ops.ffn import FfnCall
from ..ops.kvcache_attention import KvcacheAttentionCall
from ..ops.softmax import SoftmaxCall, causal_shift
from ..ops.varlen_attention import VarlenAttentionCall
from ..reference import ffn
from ..reference.attention import attend


def run_baseline(op: str, arguments: dict[str, Any], output_gradients: tuple[str, ...]) -> dict[str, Tensor]:
    """The op's public outputs, by name. Draws dropout's random numbers from torch's generator as the op does."""
    call, _ = canonical_call(op, **arguments)
    if isinstance(call, SoftmaxCall):
        return {"y": _softmax(call, log=op == "log_softmax")}
    if isinstance(call, FfnCall):
        out = ffn.forward(call, compute_dtype=call.x.dtype)[0]
        return {"out": out.view(*arguments["x"].shape[:-1], call.w_out.shape[0])}
    if isinstance(call, AttentionCall):
        out, lse = _dense(call, "lse" in output_gradients)
    elif isinstance(call, VarlenAttentionCall):
        out, lse = _varlen(call, "lse" in output_gradients)
    else:
        out, lse = _kvcache(call)
    if arguments.get("layout") == "bshd":
        out = out.transpose(1, 2)
    return {"out": out, "lse": lse} if arguments.get("return_lse") else {"out": out}


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall | VarlenAttentionCall | KvcacheAttentionCall,
    *,
    mask: Tensor | None,
    alibi_slopes: Tensor | None,
    lse_gradient: bool,
    first_plane: int = 0,
) -> tuple[Tensor, Tensor]:
    """Dense attention: SDPA where it can express the call, the same math in eager operations elsewhere."""
    rng, dropout_p = (None, 0.0) if isinstance(call, KvcacheAttentionCall) else (call.rng, call.dropout_p)

    def eager(compute_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        return attend(
            q,
            k,
            v,
            mask=mask,
            alibi_slopes=alibi_slopes,
            sinks=call.sinks,
            causal=call.causal,
            window_left=call.window_left,
            window_right=call.window_right,
            softcap=call.softcap,
            scale=call.scale,
            rng=rng,
            dropout_p=dropout_p,
            first_plane=first_plane,
            compute_dtype=compute_dtype,
        )

    if lse_gradient:
        return eager(q.dtype)
    with torch.no_grad():
        # torch's fused kernels keep the log-sum-exp in float32, whatever the inputs are.
        lse = eager(None)[1]
    # A scale of 0 makes NaN of causally excluded pairs there.
    inexpressible = call.softcap > 0.0 or call.sinks is not None or rng is not None or call.scale == 0.0
    if inexpressible or 0 in q.shape or 0 in k.shape:
        return eager(q.dtype)[0], lse
    only_causal = call.window_left < 0 and call.window_right < 0 and mask is None and alibi_slopes is None
    is_causal = only_causal and call.causal is not None and (call.causal == "top_left" or q.shape[2] == k.shape[2])
    bias = None if is_causal else _attention_mask(q, k, call, mask, alibi_slopes)
    gqa = q.shape[1] != k.shape[1]
    # SDPA multiplies q and k by the square root of the scale each, which makes NaN of a negative one.
    q, scale = (-q, -call.scale) if call.scale < 0.0 else (q, call.scale)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=is_causal, scale=scale, enable_gqa=gqa)
    return out, lse


def _attention_mask(q: Tensor, k: Tensor, call: Any, mask: Tensor | None, alibi_slopes: Tensor | None) -> Tensor | None:
    """Causal bound, window, ALiBi and mask as the one attn_mask that SDPA takes: bool, or float of q's dtype."""
    seqlen_q, seqlen_k = q.shape[2], k.shape[2]
    shift = 0 if call.causal == "top_left" else seqlen_k - seqlen_q
    distance = torch.arange(seqlen_q, device=q.device)[:, None] + shift - torch.arange(seqlen_k, device=q.device)
    keep = torch.ones_like(distance, dtype=torch.bool)
    if call.causal is not None:
        keep &= distance >= 0
    if call.window_left >= 0:
        keep &= distance <= call.window_left
    if call.window_right >= 0:
        keep &= distance >= -call.window_right
    bias = None if alibi_slopes is None else -alibi_slopes[:, :, None, None] * distance.abs()
    if mask is not None and mask.dtype == torch.bool:
        keep = keep & mask
    elif mask is not None:
        bias = mask if bias is None else bias + mask
    if bias is not None:
        return bias.to(q.dtype).masked_fill(~keep, -torch.inf)
    return None if bool(keep.all()) else keep


def _dense(call: AttentionCall, lse_gradient: bool) -> tuple[Tensor, Tensor]:
    return _attend(
        call.q, call.k, call.v, call, mask=call.mask, alibi_slopes=call.alibi_slopes, lse_gradient=lse_gradient
    )


def _of_sequence(mask: Tensor | None, b: int, seqlen_q: int, seqlen_k: int) -> Tensor | None:
    if mask is None:
        return None
    mask = mask[b : b + 1] if mask.shape[0] > 1 else mask
    return mask[:, :, : seqlen_q if mask.shape[2] > 1 else 1, : seqlen_k if mask.shape[3] > 1 else 1]


def _varlen(call: VarlenAttentionCall, lse_gradient: bool) -> tuple[Tensor, Tensor]:
    """Sequence by sequence."""
    heads = call.q.shape[1]
    bounds_q, bounds_k = call.cu_seqlens_q.tolist(), call.cu_seqlens_k.tolist()
    outs, lses = [call.q[:0, :, :1].expand(0, heads, call.v.shape[2])], []
    for b in range(len(bounds_q) - 1):
        rows_q, rows_k = slice(*bounds_q[b : b + 2]), slice(*bounds_k[b : b + 2])
        q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (call.q[rows_q], call.k[rows_k], call.v[rows_k]))
        out, lse = _attend(
            q,
            k,
            v,
            call,
            mask=_of_sequence(call.mask, b, q.shape[2], k.shape[2]),
            alibi_slopes=None if call.alibi_slopes is None else call.alibi_slopes[b : b + 1],
            lse_gradient=lse_gradient,
            first_plane=b * heads,
        )
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs), torch.cat(lses, 1) if lses else call.q.new_empty((heads, 0))


def _kvcache(call: KvcacheAttentionCall) -> tuple[Tensor, Tensor]:
    """Append, gather each sequence's keys, attend. The caches are the caller's copies."""
    outs, lses = [], []
    for b, length in enumerate(call.cache_seqlens.tolist()):
        caches = []
        for cache, new in ((call.k_cache, call.k), (call.v_cache, call.v)):
            held = _held(call, cache, b)[:, :length]
            caches.append(held if new is None else torch.cat([held, new[b]], 1))
        q, k, v = call.q[b : b + 1], caches[0].unsqueeze(0), caches[1].unsqueeze(0)
        out, lse = _attend(
            q,
            k,
            v,
            call,
            mask=_of_sequence(call.mask, b, q.shape[2], k.shape[2]),
            alibi_slopes=None if call.alibi_slopes is None else call.alibi_slopes[b : b + 1],
            lse_gradient=False,
        )
        outs.append(out)
        lses.append(lse)
    if not outs:
        return call.q.new_empty((*call.q.shape[:3], call.v_cache.shape[3])), call.q.new_empty(call.q.shape[:3])
    return torch.cat(outs), torch.cat(lses)


def _held(call: KvcacheAttentionCall, cache: Tensor, b: int) -> Tensor:
    """(Hkv, capacity, D): everything the cache holds for sequence ``b``, in the order of positions."""
    if call.block_table is None:
        return cache[b]
    pages = cache[call.block_table[b].long().clamp(0, max(cache.shape[0] - 1, 0))]  # (max_pages, Hkv, page_size, D)
    return pages.transpose(0, 1).flatten(1, 2)


def _softmax(call: SoftmaxCall, log: bool) -> Tensor:
    x = call.x if call.scale == 1.0 else call.x * call.scale
    keep: Tensor | None = None
    if call.causal is not None:
        keep = torch.ones(call.x.shape[-2:], dtype=torch.bool, device=call.x.device).tril(causal_shift(call))
    if call.mask is not None and call.mask.dtype == torch.bool:
        keep = call.mask if keep is None else keep & call.mask
    elif call.mask is not None:
        x = x + call.mask.to(x.dtype)
    if keep is not None:
        x = x.masked_fill(~keep, -torch.inf)
    if x.numel() == 0:
        return x
    # torch gives NaN for a row that is excluded entirely; the contract gives 0, or -inf for the logarithm.
    dim = call.dim if x.dim() else 0
    empty = (x == -torch.inf).all(dim, keepdim=True) if x.dim() else x == -torch.inf
    x = x.masked_fill(empty, 0.0)
    y = torch.log_softmax(x, dim) if log else torch.softmax(x, dim)
    return y.masked_fill(empty, -torch.inf if log else 0.0)
