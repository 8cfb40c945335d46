"""FlashAttention 2's functions, argument for argument, on our kernels.

The interface is that of the package flash-attn 2.8 (Dao, "FlashAttention-2", 2023): (batch, position, head, feature)
tensors, causal masks aligned to the bottom right, zeros for queries with nothing to attend to. More is served than
there: CPU tensors, float32 and float64, any head dim up to 256, values of another head dim, strided last dimensions,
dropout with softcap, a gradient through ``softmax_lse``.

:func:`install_as_flash_attn` makes code that imports ``flash_attn`` import these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import attention as dense
from ..ops import varlen_attention as varlen
from ..ops._checks import autocast
from .flash_attn_kvcache import flash_attn_with_kvcache
from .flash_attn_options import as_bool, as_int, attention_options, unpack
from .flash_attn_paged import attend_in_place, check_block_table, gather_pages, one_length
from .flash_attn_probs import dense_probabilities, no_probabilities, varlen_probabilities
from .install_flash_attn import Installation, install_as_flash_attn

__all__ = [
    "Installation",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "install_as_flash_attn",
]

#: The output, or with return_attn_probs (out, softmax_lse, S_dmask).
Result = Tensor | tuple[Tensor, Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_func``: softmax(softmax_scale * q @ k^T) @ v.

    Args:
        q: (B, Sq, H, D); float32, float16, bfloat16 or float64, D up to 256.
        k: (B, Sk, Hkv, D), v: (B, Sk, Hkv, Dv); H a multiple of Hkv.
        dropout_p: probability of dropping each attention weight; masks come from torch's generator.
        softmax_scale: 1 / sqrt(D) when None.
        causal: query i sees keys j <= i + Sk - Sq.
        window_size: (left, right), ints: query i sees keys within [i + Sk - Sq - left, i + Sk - Sq + right]; a negative
            side has no limit. With causal the right side counts as 0.
        softcap: if > 0, scores become softcap * tanh(scores / softcap).
        alibi_slopes: (H,) or (B, H), float; adds -slope * |i + Sk - Sq - j| to the scores. No gradient.
        deterministic: gradients are bitwise equal over reruns, also on backends where that costs speed.
        return_attn_probs: return (out, softmax_lse, S_dmask).

    Returns:
        out (B, Sq, H, Dv); 0 for a query with nothing to attend to. With return_attn_probs also softmax_lse (B, H, Sq),
        float32 (float64 for float64 inputs), the log of the softmax denominators, -inf for a query with nothing to
        attend to (the flash-attn kernels leave +inf); and S_dmask, empty when dropout_p is 0, as there, else
        (B, H, Sq, Sk): the probabilities, negative where dropout dropped them.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        BackendError: the backend chosen with ``tilewright.use_backend`` cannot serve the call.
    """
    options = attention_options(
        causal=causal, window_size=window_size, softcap=softcap, softmax_scale=softmax_scale, alibi_slopes=alibi_slopes
    )
    deterministic = as_bool("deterministic", deterministic)
    call = dense.prepare(q, k, v, dropout_p=dropout_p, layout="bshd", deterministic=deterministic, **options)
    out, lse = dense.OP(call, None)
    out = out.transpose(1, 2)
    if not as_bool("return_attn_probs", return_attn_probs):
        return out
    return out, lse, no_probabilities(call.q) if call.rng is None else dense_probabilities(call)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_qkvpacked_func``: :func:`flash_attn_func` of qkv (B, S, 3, H, D), which is not copied.

    The gradient of qkv is one tensor. Everything else is as in :func:`flash_attn_func`.
    """
    q, k, v = unpack("qkv", qkv, 5, 3, "(B, S, 3, H, D)")
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_kvpacked_func``: :func:`flash_attn_func` of q (B, Sq, H, D) and kv (B, Sk, 2, Hkv, D).

    kv is not copied, and its gradient is one tensor. Everything else is as in :func:`flash_attn_func`.
    """
    k, v = unpack("kv", kv, 5, 2, "(B, S, 2, Hkv, D)")
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Result:
    """``flash_attn.flash_attn_varlen_func``: :func:`flash_attn_func` over B sequences packed without padding.

    Args:
        q: (total_q, H, D), k: (total_k, Hkv, D), v: (total_k, Hkv, Dv); sequence b is rows cu_seqlens[b] to
            cu_seqlens[b + 1]. With block_table k and v are pages, (num_blocks, page_block_size, Hkv, D and Dv), of
            any page_block_size.
        cu_seqlens_q, cu_seqlens_k: (B + 1,) int32, from 0 to total_q and total_k. Sequences may be empty.
        max_seqlen_q, max_seqlen_k: at least the longest sequence; ints, or integer tensors of one element.
        block_table: (B, max_blocks) int32; key j of sequence b lies in page block_table[b, j // page_block_size].
            When every sequence has max_seqlen_q queries, and neither dropout nor a gradient is wanted, the pages are
            read where they are. Otherwise the keys and values in use are copied once, and the host waits for
            cu_seqlens_k; the gradient then is that of the pages.
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs: as in
            :func:`flash_attn_func`, each sequence with its own Sq and Sk.

    Returns:
        out (total_q, H, Dv); with return_attn_probs also softmax_lse (H, total_q) and S_dmask, empty or
        (B, H, max_seqlen_q, max_seqlen_k) by position within each sequence; as in :func:`flash_attn_func`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it. What cu_seqlens hold is checked on the CPU.
        BackendError: the backend chosen with ``tilewright.use_backend`` cannot serve the call.
    """
    options = attention_options(
        causal=causal, window_size=window_size, softcap=softcap, softmax_scale=softmax_scale, alibi_slopes=alibi_slopes
    )
    deterministic = as_bool("deterministic", deterministic)
    return_attn_probs = as_bool("return_attn_probs", return_attn_probs)
    max_seqlen_q, max_seqlen_k = as_int("max_seqlen_q", max_seqlen_q), as_int("max_seqlen_k", max_seqlen_k)
    if block_table is not None:
        q, k, v = autocast(q, k, v)  # type: ignore[assignment]
        check_block_table(block_table, q, k, v, cu_seqlens_q, cu_seqlens_k)
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        if dropout_p == 0.0 and not gradient and one_length(q, cu_seqlens_q, max_seqlen_q):
            out, lse = attend_in_place(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, block_table, options)
            return (out, lse, no_probabilities(q)) if return_attn_probs else out
        k, v = gather_pages(k, v, cu_seqlens_k, max_seqlen_k, block_table)
    call = varlen.prepare(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=dropout_p,
        deterministic=deterministic,
        **options,
    )
    out, lse = varlen.OP(call, None)
    if not return_attn_probs:
        return out
    return out, lse, no_probabilities(call.q) if call.rng is None else varlen_probabilities(call)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_varlen_qkvpacked_func``: :func:`flash_attn_varlen_func` of qkv (total, 3, H, D).

    cu_seqlens and max_seqlen are those of queries and keys alike. Everything else is as there.
    """
    q, k, v = unpack("qkv", qkv, 4, 3, "(total, 3, H, D)")
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Result:
    """``flash_attn.flash_attn_varlen_kvpacked_func``: :func:`flash_attn_varlen_func` of q and kv (total_k, 2, Hkv, D).

    Everything else is as there.
    """
    k, v = unpack("kv", kv, 4, 2, "(total_k, 2, Hkv, D)")
    return flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        deterministic,
        return_attn_probs,
    )
