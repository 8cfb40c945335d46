"""Attention, varlen_attention and kvcache_attention on Triton kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..ops._checks import unit_last_stride
from ..ops._dropout import dropout_scale, dropout_threshold
from ..ops.attention import OP as ATTENTION_OP
from ..ops.attention import AttentionCall
from ..ops.kvcache_attention import MAX_SPLITS, KvcacheAttentionCall, capacity
from ..ops.kvcache_attention import OP as KVCACHE_OP
from ..ops.varlen_attention import OP as VARLEN_OP
from ..ops.varlen_attention import VarlenAttentionCall
from ..registry import Implementation
from ..triton_kernels import attention, attention_backward, attention_decode, attention_mask_gradient, keys
from ..triton_kernels.launch import grid
from ..triton_kernels.math import LOG2E
from .triton import on_device, unsupported
from .triton_attention_call import (
    aligned,
    batched,
    boxes_of,
    bytes_of,
    chosen_config,
    features,
    hand_over,
    in_rows,
    logit_unit,
    packed_rows_first,
    padded_widths,
    room_for,
    strides_of,
)

keys.settle()

#: Up to this many rows (queries times the heads of a group) are packed into one block and their keys split.
DECODE_ROWS = 64
#: Programs that splitting aims at, and the fewest keys that a part is worth.
SPLIT_PROGRAMS, KEYS_PER_SPLIT = 256, 256
#: Parts that are merged at a time: with 256 columns of values, as many as registers hold.
MERGED_AT_A_TIME = 16
#: Head dims up to this many have an exact delta: see attention_backward. At 1 the mean error of dQ was up to 2.8 times
#: torch's without.
NARROW = 8


def _run_forward(
    call: Any,
    strides: Callable[[Tensor], tuple[int, ...]],
    qkv: tuple[Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor | None],
    *,
    batch: int,
    heads: int,
    heads_kv: int,
    seqlen_q: int,
    seqlen_k: int,
    splits: int = 1,
    rng: Tensor | None = None,
    dropout_p: float = 0.0,
    cu_seqlens: tuple[Tensor | None, Tensor | None] = (None, None),
    lengths_k: Tensor | None = None,
    table: Tensor | None = None,
    page_size: int = 1,
) -> None:
    """strides(t): (batch, head, row) of q, k, v, lse or their likes."""
    q, k, v = qkv
    out, lse, stats = outputs
    if out.numel() == 0:
        return
    group, varlen = heads // heads_kv, cu_seqlens[0] is not None
    # Few rows: the heads of a group share their keys, and the keys are split.
    decode = seqlen_q * group <= DECODE_ROWS and stats is None
    result = out
    # Few rows read keys once, which is what a copy of them would cost; those of a cache stay where they are.
    if not decode and lengths_k is None:
        q, k, v, out = aligned(q), aligned(k), aligned(v), room_for(out)
    widths = padded_widths(q.shape[-1], v.shape[-1])
    packed = decode and group > 1
    chosen = chosen_config("attention_decode" if decode else "attention_forward", call, widths)
    rows = seqlen_q * group if packed else seqlen_q
    planes = batch * (heads_kv if packed else heads)
    blocks = triton.cdiv(rows, chosen.blocks["BLOCK_M"])
    if decode and splits == 0:
        splits = min(triton.cdiv(SPLIT_PROGRAMS, blocks * planes), seqlen_k // KEYS_PER_SPLIT)
    most = min(MAX_SPLITS, triton.cdiv(seqlen_k, chosen.blocks["BLOCK_N"]))
    splits = max(1, min(splits, most)) if decode else 1
    rows_padded = blocks * chosen.blocks["BLOCK_M"]
    parts = (
        q.new_empty((planes * splits * rows_padded * (v.shape[-1] + 2),), dtype=torch.float32) if splits > 1 else None
    )
    mask = bytes_of(call.mask)
    boxes = (None, None)
    if not decode and lengths_k is None:
        boxes = boxes_of(k, v, chosen.blocks["BLOCK_N"], widths, varlen)
    attention.attention_forward[grid(blocks * planes, splits)](
        q, k, v, *boxes, out, lse, stats, mask, call.alibi_slopes, call.sinks, rng, *cu_seqlens,
        lengths_k, table, parts,
        *strides(q), *strides(k), *strides(v), *strides(out), *strides(lse),
        *((0, 0) if stats is None else in_rows(strides, stats)),
        *strides_of(mask, 4), *strides_of(call.alibi_slopes, 2),
        0 if table is None else table.stride(0),
        heads, group, seqlen_q, seqlen_k, q.shape[0], k.shape[0],
        page_size=page_size, pages=k.shape[0], splits=splits, threshold=dropout_threshold(dropout_p),
        dropout_scale=dropout_scale(dropout_p),
        HAS_SINKS=call.sinks is not None, HAS_DROPOUT=rng is not None, VARLEN=varlen,
        CACHE=lengths_k is not None, PAGED=table is not None, PACKED=packed, SPLIT=splits > 1,
        HAS_STATS=stats is not None, TMA=boxes[0] is not None, **features(call), **widths, **chosen.options,
    )  # fmt: skip
    if splits > 1:
        attention_decode.merge[grid(seqlen_q * batch * heads)](
            parts, out, lse, call.sinks, *strides(out), *strides(lse), heads, group, seqlen_q, out.shape[-1], splits,
            rows_padded, logit_unit(call), HAS_SINKS=call.sinks is not None, PACKED=packed, BLOCK_DV=widths["BLOCK_DV"],
            BLOCK_SPLITS=MERGED_AT_A_TIME,
        )  # fmt: skip
    hand_over(out, result)


def _attention_forward(call: AttentionCall) -> tuple[Tensor, ...]:
    out, lse, stats = ATTENTION_OP.allocate(call)
    batch, heads, seqlen_q, _ = call.q.shape
    _run_forward(
        call,
        batched,
        (call.q, call.k, call.v),
        (out, lse, stats if call.keep_stats else None),
        batch=batch,
        heads=heads,
        heads_kv=call.k.shape[1],
        seqlen_q=seqlen_q,
        seqlen_k=call.k.shape[2],
        splits=0,
        rng=call.rng,
        dropout_p=call.dropout_p,
    )
    return out, lse, stats


def _varlen_forward(call: VarlenAttentionCall) -> tuple[Tensor, ...]:
    out, lse, stats = VARLEN_OP.allocate(call)
    _run_forward(
        call,
        packed_rows_first,
        (call.q, call.k, call.v),
        (out, lse, stats if call.keep_stats else None),
        batch=call.cu_seqlens_q.shape[0] - 1,
        heads=call.q.shape[1],
        heads_kv=call.k.shape[1],
        seqlen_q=call.max_seqlen_q,
        seqlen_k=call.max_seqlen_k,
        rng=call.rng,
        dropout_p=call.dropout_p,
        cu_seqlens=(call.cu_seqlens_q, call.cu_seqlens_k),
    )
    return out, lse, stats


def _kvcache_forward(call: KvcacheAttentionCall) -> tuple[Tensor, ...]:
    out, lse = KVCACHE_OP.allocate(call)
    lengths = call.cache_seqlens
    caches = (call.k_cache, call.v_cache)
    page_size = call.k_cache.shape[2] if call.block_table is not None else 1
    # Of no pages at all nothing can be read or written, whatever a table names.
    longest = capacity(call) if call.k_cache.shape[0] > 0 else 0
    if call.k is not None and call.v is not None and call.k.numel() + call.v.numel() > 0:
        lengths = lengths + call.k.shape[2]
        if longest > 0:
            _append(call, lengths, longest, page_size)
    batch, heads, seqlen_q, _ = call.q.shape
    _run_forward(
        call,
        batched,
        (call.q, *caches),
        (out, lse, None),
        batch=batch,
        heads=heads,
        heads_kv=call.k_cache.shape[1],
        seqlen_q=seqlen_q,
        seqlen_k=longest,
        splits=call.num_splits,
        lengths_k=lengths,
        table=call.block_table,
        page_size=page_size,
    )
    return out, lse


def _append(call: KvcacheAttentionCall, lengths: Tensor, longest: int, page_size: int) -> None:
    assert call.k is not None
    assert call.v is not None
    widths = padded_widths(call.k.shape[-1], call.v.shape[-1])
    batch, heads_kv, new, _ = call.k.shape
    block = min(triton.next_power_of_2(new), 16)
    attention_decode.append[grid(triton.cdiv(new, block) * batch * heads_kv)](
        call.k, call.v, call.k_cache, call.v_cache, lengths, call.block_table,
        *call.k_cache.stride()[:3], *call.v_cache.stride()[:3], *call.k.stride()[:3], *call.v.stride()[:3],
        0 if call.block_table is None else call.block_table.stride(0),
        heads_kv, new, call.k.shape[-1], call.v.shape[-1], longest, page_size, call.k_cache.shape[0],
        PAGED=call.block_table is not None, BLOCK_D=widths["BLOCK_D"], BLOCK_DV=widths["BLOCK_DV"], BLOCK_S=block,
    )  # fmt: skip


def _run_backward(
    call: Any,
    op: Any,
    strides: Any,
    outputs: tuple[Tensor, ...],
    grads: tuple[Tensor | None, ...],
    wanted: Sequence[bool],
    *,
    batch: int,
    heads: int,
    heads_kv: int,
    seqlen_q: int,
    seqlen_k: int,
    cu_seqlens: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor | None, ...]:
    """strides(t): (batch, head, row) of q, k, v, lse or their likes."""
    q, k, v = call.q, call.k, call.v
    out, lse, stats = outputs
    dout, dlse = grads[0], grads[1] if len(grads) > 1 else None
    dout = torch.zeros_like(out) if dout is None else unit_last_stride(dout)
    gradients = [op.gradient_like(call, n) if want else None for n, want in zip(("q", "k", "v"), wanted, strict=False)]
    if out.numel() == 0:
        found = (*(None if t is None else t.zero_() for t in gradients), None, None)
        return tuple(
            torch.zeros_like(getattr(call, n)) if want and f is None else f
            for n, f, want in zip(op.differentiable, found, wanted, strict=True)
        )
    q, k, v, out, dout = (aligned(t) for t in (q, k, v, out, dout))
    dq, dk, dv = (None if t is None else room_for(t) for t in gradients)
    widths, mask, terms = padded_widths(q.shape[-1], v.shape[-1]), bytes_of(call.mask), lse.new_empty((*lse.shape, 4))
    shared = {
        "threshold": dropout_threshold(call.dropout_p),
        "dropout_scale": dropout_scale(call.dropout_p),
        "HAS_DROPOUT": call.rng is not None,
        "VARLEN": cu_seqlens[0] is not None,
        **features(call),
        **widths,
    }
    options = (*strides_of(mask, 4), *strides_of(call.alibi_slopes, 2))
    sizes = (seqlen_q, seqlen_k, q.shape[0], k.shape[0])
    varlen = cu_seqlens[0] is not None
    chosen = chosen_config("attention_backward_rows", call, widths)
    boxes = boxes_of(k, v, chosen.blocks["BLOCK_N"], widths, varlen)
    blocks = triton.cdiv(seqlen_q, chosen.blocks["BLOCK_M"])
    attention_backward.attention_backward_rows[grid(blocks * batch * heads)](
        q, k, v, *boxes, out, dout, dlse, stats, terms, dq, mask, call.alibi_slopes, call.rng, *cu_seqlens,
        *strides(q), *strides(k), *strides(v), *strides(out), *strides(dout),
        *((0, 0, 0) if dq is None else strides(dq)),
        *((0, 0, 0) if dlse is None else strides(dlse)), *in_rows(strides, stats), *in_rows(strides, terms),
        *options, heads, heads // heads_kv, *sizes,
        HAS_DLSE=dlse is not None, WANT_DQ=dq is not None, EXACT=call.q.shape[-1] <= NARROW, TMA=boxes[0] is not None,
        **shared, **chosen.options,
    )  # fmt: skip
    if (dk is not None or dv is not None) and seqlen_k > 0:
        chosen = chosen_config("attention_backward_keys", call, widths)
        boxes = boxes_of(q, dout, chosen.blocks["BLOCK_M"], widths, varlen)
        blocks = triton.cdiv(seqlen_k, chosen.blocks["BLOCK_N"])
        attention_backward.attention_backward_keys[grid(blocks * batch * heads_kv)](
            q, k, v, *boxes, dout, terms, dk, dv, mask, call.alibi_slopes, call.rng, *cu_seqlens,
            *strides(q), *strides(k), *strides(v), *strides(dout),
            *((0, 0, 0) if dk is None else strides(dk)), *((0, 0, 0) if dv is None else strides(dv)),
            *in_rows(strides, terms), *options, heads, heads // heads_kv, *sizes,
            WANT_DK=dk is not None, WANT_DV=dv is not None, TMA=boxes[0] is not None, **shared, **chosen.options,
        )  # fmt: skip
    for written, t in zip((dq, dk, dv), gradients, strict=True):
        hand_over(written, t)
    dq, dk, dv = gradients
    dmask = dsinks = None
    if wanted[3]:
        assert mask is not None
        dmask = torch.empty(mask.shape, dtype=torch.float32, device=mask.device)
        del shared["MASK"]
        chosen = chosen_config("attention_backward_mask", call, widths)
        mb, mh, mq, mk = mask.shape
        tiles = triton.cdiv(mk, chosen.blocks["BLOCK_N"]) * triton.cdiv(mq, chosen.blocks["BLOCK_M"])
        attention_mask_gradient.attention_backward_mask[grid(tiles * mb * mh)](
            q, k, v, dout, terms, dmask, mask, call.alibi_slopes, call.rng, *cu_seqlens,
            *strides(q), *strides(k), *strides(v), *strides(dout), *in_rows(strides, terms), *options,
            batch, heads, heads // heads_kv, mh, mq, mk, *sizes,
            ALL_BATCHES=mb == 1 and batch > 1, ALL_HEADS=mh == 1 and heads > 1,
            ALL_QUERIES=mq == 1, ALL_KEYS=mk == 1, **shared, **chosen.options,
        )  # fmt: skip
        dmask = dmask.to(call.mask.dtype)
    if wanted[4]:
        dsinks = _sink_gradient(call, terms)
    return dq, dk, dv, dmask, dsinks


def _sink_gradient(call: Any, terms: Tensor) -> Tensor:
    """dsink_h = -sum over its rows of exp(sink - lse) delta, from (..., H, S, 4): maximum, 1 / sum and delta."""
    top, inverse, delta = terms[..., :3].unbind(-1)
    sinks = call.sinks.float()[:, None]
    above = sinks - top * logit_unit(call)
    # Far above all keys the sink has everything, and 1 / sum may be 0; and where there are none (top is +inf).
    everything = (above > 80.0) | (top == torch.inf)
    # Where a sink is far above, 1 / sum is as small as this is large: both by the forward's exponential, whose rounding
    # of the exponent then goes out.
    weights = torch.where(everything, 1.0, torch.exp2(above * LOG2E.value) * inverse).masked_fill(
        sinks == -torch.inf, 0.0
    )
    total = (weights * delta).sum(-1)
    return -(total.sum(0) if total.dim() == 2 else total).to(call.sinks.dtype)


def _attention_backward(call: AttentionCall, outputs: Any, grads: Any, wanted: Any) -> tuple[Tensor | None, ...]:
    batch, heads, seqlen_q, _ = call.q.shape
    _, heads_kv, seqlen_k, _ = call.k.shape
    return _run_backward(
        call,
        ATTENTION_OP,
        batched,
        outputs,
        grads,
        wanted,
        batch=batch,
        heads=heads,
        heads_kv=heads_kv,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
    )


def _varlen_backward(call: VarlenAttentionCall, outputs: Any, grads: Any, wanted: Any) -> tuple[Tensor | None, ...]:
    return _run_backward(
        call,
        VARLEN_OP,
        packed_rows_first,
        outputs,
        grads,
        wanted,
        batch=call.cu_seqlens_q.shape[0] - 1,
        heads=call.q.shape[1],
        heads_kv=call.k.shape[1],
        seqlen_q=call.max_seqlen_q,
        seqlen_k=call.max_seqlen_k,
        cu_seqlens=(call.cu_seqlens_q, call.cu_seqlens_k),
    )


def _on_device(run: Callable[..., Any]) -> Callable[..., Any]:
    def launch(call: Any, *others: Any) -> Any:
        with on_device(call.q):
            return run(call, *others)

    return launch


ATTENTION = Implementation(_on_device(_attention_forward), _on_device(_attention_backward), unsupported)
VARLEN_ATTENTION = Implementation(_on_device(_varlen_forward), _on_device(_varlen_backward), unsupported)
KVCACHE_ATTENTION = Implementation(_on_device(_kvcache_forward), None, unsupported)
