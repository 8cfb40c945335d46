"""The attention masks of transformers models, as flags and one row of keys wherever these say everything.

transformers asks for masks once per forward, and hands them to every layer's attention. The usual answer is a bool
tensor (B, 1, S, T): memory and time that grow with the square of the sequence, which also hides from a kernel that half
of it is causal. :func:`attention_mask` answers a *key mask* for causal attention, with or without a sliding window: one
row per sequence that says which keys are padding. What it cannot say (packed sequences, overlays, chunks) comes as
the usual bool mask, made by transformers itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: A key mask travels through a model as a tensor, which moves between devices and passes through torch.compile and
#: checkpoints as any other. No mask of a model or user has this dtype, so it cannot be taken for something else.
KEY_MASK_DTYPE = torch.uint16


class KeyMask(NamedTuple):
    """keys: bool (B, 1, 1, T), True where a key may be seen, or None for all; window: tokens, itself included, or None.

    As a tensor: (B, 1 for bottom-right or 2 for top-left, 1 + window or 1, T). The two dimensions that are numbers have
    stride 0 and take no memory.
    """

    keys: Tensor | None
    causal: str
    window: int | None

    def pack(self, batch: int, length: int, device: Any) -> Tensor:
        rows = torch.ones((1, 1, 1, 1), dtype=KEY_MASK_DTYPE, device=device)
        if self.keys is not None:
            rows = self.keys.to(KEY_MASK_DTYPE)
        packed: Tensor = rows.expand(batch, 2 if self.causal == "top_left" else 1, 1 + (self.window or 0), length)
        return packed

    @staticmethod
    def unpack(mask: Tensor) -> KeyMask:
        # Stride 0 is one number for all keys, a 1. After a copy that lost the stride a row of ones says the same.
        keys = None if mask.stride(-1) == 0 else mask[:, :1, :1].to(torch.bool)
        return KeyMask(keys, "top_left" if mask.shape[1] == 2 else "bottom_right", mask.shape[2] - 1 or None)


def attention_mask(
    *,
    batch_size: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_length: int | None = None,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    cache_position: Tensor | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """What transformers' ``AttentionMaskInterface`` calls; its arguments are transformers'.

    Args:
        mask_function: (batch, head, query, key) -> whether it attends; read only where flags do not say it.
        q_length, q_offset: the queries stand at positions q_offset to q_offset + q_length - 1; the first releases of
            transformers 5 give cache_position, (q_length,), in their place.
        kv_length, kv_offset: the keys stand at positions kv_offset to kv_offset + kv_length - 1. A static cache also
            counts keys that are not written yet.
        attention_mask: (B, total) bool, False at padding.
        local_size: the sliding window or the chunk, in tokens.
        allow_is_causal_skip: the mask is causal, with local_size at most, and its reader knows that from a flag.
        allow_is_bidirectional_skip: the same for a mask that excludes padding, with local_size at most.

    Returns:
        None (all keys are seen), a key mask (:class:`KeyMask`), or bool (B, 1, q_length, kv_length), True attends.
    """
    if cache_position is not None:
        q_length, q_offset = cache_position.shape[0], cache_position[0]
    assert q_length is not None, "transformers gives q_length or cache_position"
    # A config with chunks may mean them by local_size; they are counted from position 0, a window from each query.
    chunked = getattr(config, "attention_chunk_size", None) is not None
    span = kv_length + kv_offset if chunked else kv_length
    window = local_size if local_size is not None and span > local_size else None
    keys = _visible(attention_mask, kv_length, kv_offset)
    device = kwargs.get("device", "cpu" if attention_mask is None else attention_mask.device)

    if allow_is_causal_skip:
        causal = _alignment(q_length, q_offset, kv_length, kv_offset)
        # A few queries' own rows are smaller than a windowed key mask would be if a copy gave its window memory.
        if causal is not None and (window is None or (not chunked and q_length > window)):
            reached = q_length if causal == "top_left" else kv_length
            if keys is not None and _is_known(keys) and bool(keys[..., :reached].all()):
                keys = None
            return KeyMask(keys, causal, window).pack(batch_size, kv_length, device)
    elif allow_is_bidirectional_skip and window is None:
        if keys is None or (_is_known(keys) and bool(keys.all())):
            return None
        return keys.expand(batch_size, 1, q_length, kv_length)

    from transformers.masking_utils import sdpa_mask

    places: dict[str, Any] = {"q_length": q_length, "q_offset": q_offset}
    if cache_position is not None:
        places = {"cache_position": cache_position}
    full: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        kv_length=kv_length,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        **places,
        **kwargs,
    )
    return full


def _visible(padding: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """(B, 1, 1, kv_length) of the (B, total) padding mask. Keys after its end are not written yet."""
    if padding is None:
        return None
    missing = kv_offset + kv_length - padding.shape[-1]
    if missing > 0:
        padding = torch.nn.functional.pad(padding, (0, missing))
    return padding[:, None, None, kv_offset : kv_offset + kv_length]


def _alignment(q_length: int, q_offset: int | Tensor, kv_length: int, kv_offset: int) -> str | None:
    """The causal alignment in which query i of all sees the keys up to its own position, or None if neither does."""
    if isinstance(q_offset, Tensor):  # a static cache counts in a tensor, so that compiled code need not read it
        if not _is_known(q_offset):
            return None
        q_offset = int(q_offset)
    shift = q_offset - kv_offset
    if shift == kv_length - q_length:
        return "bottom_right"
    return "top_left" if shift == 0 else None


def _is_known(t: Tensor) -> bool:
    """False where a tensor's contents do not exist or may change: while code is traced, compiled or exported."""
    return type(t) is Tensor and not torch.compiler.is_compiling() and torch._C._get_tracing_state() is None
