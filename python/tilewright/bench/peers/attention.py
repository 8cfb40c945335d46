"""Attention of torch (plain, its fused kernels, compiled, FlexAttention), FlashAttention, xformers and ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..shapes import Attention
from . import Peer, Refused

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


def keep_mask(shape: Attention, device: str) -> Tensor | None:
    """(1 or B, 1, 1 or S, S), True where a pair counts; None where all do."""
    keep = None
    if shape.causal or shape.window is not None:
        i, j = torch.arange(shape.seqlen, device=device)[:, None], torch.arange(shape.seqlen, device=device)
        keep = j <= i if shape.causal else torch.ones_like(j <= i)
        if shape.window is not None:
            keep = keep & (j >= i - shape.window)
        keep = keep[None, None]
    if shape.lengths is not None:
        inside = torch.arange(shape.seqlen, device=device) < torch.tensor(shape.lengths, device=device)[:, None]
        keep = inside[:, None, None] if keep is None else keep & inside[:, None, None]
    return keep


def _eager(shape: Attention, device: str) -> Forward:
    keep, group = keep_mask(shape, device), shape.heads // shape.heads_kv

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if keep is not None:
            scores = scores.masked_fill(~keep, -torch.inf)
        return torch.softmax(scores, -1) @ v

    return attention


def _compiled(shape: Attention, device: str) -> Forward:
    made: Forward = torch.compile(_eager(shape, device), dynamic=False)
    return made


def _sdpa(backend: SDPBackend, shape: Attention, device: str) -> Forward:
    only_causal = shape.causal and shape.window is None and shape.lengths is None
    mask = None if only_causal else keep_mask(shape, device)
    options: dict[str, Any] = {"attn_mask": mask, "is_causal": only_causal}
    options["enable_gqa"] = shape.heads != shape.heads_kv

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attention


def _flex(shape: Attention, device: str) -> Forward:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    conditions: list[Callable[..., Tensor]] = []
    if shape.causal:
        conditions.append(lambda b, h, i, j: i >= j)
    if shape.window is not None:
        conditions.append(lambda b, h, i, j: i - j <= shape.window)
    if shape.lengths is not None:
        lengths = torch.tensor(shape.lengths, device=device)
        conditions.append(lambda b, h, i, j: j < lengths[b])
    mask = None
    if conditions:

        def keep(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return functools.reduce(torch.logical_and, (c(b, h, i, j) for c in conditions))

        batch = shape.batch if shape.lengths is not None else None
        mask = create_block_mask(keep, batch, None, shape.seqlen, shape.seqlen, device=device)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=mask, enable_gqa=shape.heads != shape.heads_kv)


def _flash(version: int, shape: Attention, device: str) -> Forward:
    if shape.lengths is not None:
        raise Refused("flash-attn takes no mask; sequences of different lengths are packed (varlen_attention)")
    if shape.dtype == "float32":
        raise Refused("flash-attn takes float16 and bfloat16")
    function = flash_attn_functions(version)[0]
    left = -1 if shape.window is None else shape.window
    options: dict[str, Any] = {"causal": shape.causal}
    if shape.window is not None:
        options["window_size"] = (left, 0 if shape.causal else -1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **options)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result.transpose(1, 2)

    return attention


def flash_attn_functions(version: int) -> tuple[Any, Any]:
    """(dense, varlen) of FlashAttention 2, 3 or 4."""
    if version == 2:
        from flash_attn import flash_attn_func, flash_attn_varlen_func
    elif version == 3:
        from flash_attn_interface import flash_attn_func, flash_attn_varlen_func
    else:
        from flash_attn.cute import flash_attn_func, flash_attn_varlen_func
    return flash_attn_func, flash_attn_varlen_func


def _xformers(shape: Attention, device: str) -> Forward:
    from xformers.ops import LowerTriangularMask, fmha, memory_efficient_attention

    if shape.lengths is not None or (shape.window is not None and not shape.causal):
        raise Refused("measured with causal masks and windows only")
    bias: Any = LowerTriangularMask() if shape.causal else None
    if shape.window is not None:
        bias = fmha.attn_bias.LocalAttentionFromBottomRightMask(window_left=shape.window, window_right=0)
    group = shape.heads // shape.heads_kv

    def rows(t: Tensor, repeat: bool) -> Tensor:
        t = t.transpose(1, 2)
        if group == 1:
            return t
        batch, seqlen, heads, width = t.shape
        return (
            t[:, :, :, None].expand(batch, seqlen, heads, group, width)
            if repeat
            else t.view(batch, seqlen, heads // group, group, width)
        )

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = memory_efficient_attention(rows(q, False), rows(k, True), rows(v, True), attn_bias=bias)
        return out.flatten(2, 3).transpose(1, 2) if group > 1 else out.transpose(1, 2)

    return attention


def _onnxruntime(shape: Attention, device: str) -> Forward:
    from .onnx import attention_session

    if shape.dtype != "float32" or shape.heads != shape.heads_kv or shape.window is not None or shape.lengths:
        raise Refused("measured as its MultiHeadAttention: float32, as many heads of k and v, no window, no padding")
    return attention_session(shape)


PEERS = (
    Peer("eager", ("torch",), _eager),
    Peer("sdpa flash", ("torch",), functools.partial(_sdpa, SDPBackend.FLASH_ATTENTION)),
    Peer("sdpa cudnn", ("torch",), functools.partial(_sdpa, SDPBackend.CUDNN_ATTENTION), ("cuda",)),
    Peer("sdpa efficient", ("torch",), functools.partial(_sdpa, SDPBackend.EFFICIENT_ATTENTION), ("cuda",)),
    Peer("sdpa math", ("torch",), functools.partial(_sdpa, SDPBackend.MATH)),
    Peer("compile", ("torch",), _compiled),
    # On a CPU torch has no backward of it.
    Peer("flex", ("torch",), _flex),
    Peer("flash-attn 2", ("flash-attn",), functools.partial(_flash, 2), ("cuda",)),
    Peer("flash-attn 3", ("flash-attn-3", "flash_attn_3"), functools.partial(_flash, 3), ("cuda",)),
    Peer("flash-attn 4", ("flash-attn-4",), functools.partial(_flash, 4), ("cuda",)),
    Peer("xformers", ("xformers",), _xformers, ("cuda",)),
    Peer("onnxruntime", ("onnxruntime",), _onnxruntime, ("cpu",), backward=False),
)
