"""The attention function that transformers models call under ``attn_implementation="tilewright"``."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..ops.attention import attention
from ..ops.varlen_attention import varlen_attention
from .transformers_mask import KEY_MASK_DTYPE, KeyMask
from .transformers_mask import attention_mask as make_mask

NAME = "tilewright"

#: In an implementation's name these make transformers take it for its own, and never call our functions or our masks.
RESERVED = ("eager", "sdpa", "flash", "flex_attention", "paged", "/", "|", ":", "@")

#: Arguments of some models' attention that change the result and are not served. A model that hands over anything else
#: (position_ids, layer_idx, ...) hands it over for other implementations' sake.
REFUSED = {
    "sinks": "logits per query and position that join the softmax; served are logits per head, s_aux",
    "block_indices": "which blocks of keys each query sees",
    "block_table": "a paged cache (continuous batching)",
}


def register(name: str = NAME) -> None:
    """Make ``attn_implementation=name`` mean tilewright's attention, in ``from_pretrained``, ``from_config`` and
    ``model.set_attn_implementation``; before or after a model is built, and as often as you like.

    Raises:
        TypeError, ValueError: the name is no name, or transformers or someone else gives it another meaning.
        ImportError: transformers is not installed.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    taken = next((word for word in RESERVED if word in name), None)
    if taken is not None or not name:
        raise ValueError(f"name={name!r} must not be empty or contain {', '.join(map(repr, RESERVED))}")
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError("transformers 5.0 or later is needed: pip install 'tilewright[transformers]'") from error
    for interface, ours in ((AttentionInterface, attention_forward), (AttentionMaskInterface, make_mask)):
        if interface()._global_mapping.get(name, ours) is not ours:
            raise ValueError(f"name={name!r} is already registered with transformers by someone else")
    # Without a mask function of this name transformers would pass no mask at all: padding would be attended to.
    AttentionInterface.register(name, attention_forward)
    AttentionMaskInterface.register(name, make_mask)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    deterministic: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers' ``AttentionInterface`` calls.

    Args:
        module: the attention layer; its is_causal counts where the argument is None.
        query: (B, H, S, D), key: (B, Hkv, T, D), value: (B, Hkv, T, Dv); keys and values un-repeated.
        attention_mask: a key mask of :mod:`.transformers_mask`; or bool (True attends) or float (added), broadcastable
            to (B, H, S, T), which then says all: is_causal and sliding_window are part of it. None: all keys, but for
            is_causal and sliding_window.
        dropout: probability of dropping an attention weight; models give 0 outside training.
        scaling: factor on the scores; 1 / sqrt(D) if None.
        is_causal: queries are the last S of T positions, and see none after their own.
        sliding_window: tokens that a query sees, itself included; without is_causal on either side.
        softcap: scores become softcap * tanh(scores / softcap). s_aux: (H,), attention sinks.
        position_bias: (B or 1, H, S, T), added to the scores; gets a gradient.
        deterministic: bitwise equal gradients over reruns, as under torch.use_deterministic_algorithms.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: bounds of sequences packed into a batch of one. A full
            attention_mask, which transformers makes where position_ids show the packing, goes before them.

    Returns:
        (B, S, H, Dv), contiguous, and None: the attention weights are never in memory.

    Raises:
        ValueError: an argument that changes the result is not served, or attention weights are asked for.
    """
    _refuse(kwargs)
    if query.shape[0] == 1 and key.shape[0] > 1:  # learned queries, the same for the whole batch
        query = query.expand(key.shape[0], -1, -1, -1)
    if s_aux is not None and s_aux.dtype != query.dtype:
        s_aux = s_aux.float()
    options: dict[str, Any] = {
        "softcap": softcap or 0.0,
        "sinks": s_aux,
        "dropout_p": dropout,
        "scale": scaling,
        "deterministic": bool(deterministic) or torch.are_deterministic_algorithms_enabled(),
    }
    mask: Tensor | None
    if attention_mask is not None and attention_mask.dtype != KEY_MASK_DTYPE:
        mask = _with_bias(position_bias, attention_mask, query)
        return _laid_out(attention(query, key, value, mask=mask, **options)), None
    if attention_mask is None:
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        # Never top-left: one query, or a few after a cache, are the last positions.
        mask, causal, window = None, "bottom_right" if is_causal else None, sliding_window
    else:
        if attention_mask.shape[-1] != key.shape[2]:
            raise ValueError(f"attention_mask was made for {attention_mask.shape[-1]} keys, but key has {key.shape[2]}")
        mask, causal, window = KeyMask.unpack(attention_mask)
    options["causal"] = causal
    options["window"] = None if window is None else (window - 1, None if causal else window - 1)
    if cu_seq_lens_q is None and cu_seq_lens_k is None:
        mask = _with_bias(position_bias, mask, query)
        return _laid_out(attention(query, key, value, mask=mask, **options)), None
    if mask is not None or position_bias is not None:
        given = "attention_mask with padding" if mask is not None else "position_bias"
        raise ValueError(f"{given} was given with cu_seq_lens_q; packed sequences take neither")
    bounds = (cu_seq_lens_q, cu_seq_lens_k), (max_length_q, max_length_k)
    return _laid_out(_packed(query, key, value, *bounds, options)), None


def _laid_out(out: Any) -> Tensor:
    laid_out: Tensor = out.transpose(1, 2).contiguous()
    return laid_out


def _with_bias(bias: Tensor | None, mask: Tensor | None, query: Tensor) -> Tensor | None:
    """One mask that adds the bias and excludes what ``mask`` excludes, in a dtype that the kernels add."""
    if bias is None:
        joined = mask
    elif mask is None:
        joined = bias
    elif mask.dtype == torch.bool:
        joined = bias.masked_fill(~mask, -torch.inf)
    else:
        joined = bias + mask
    if joined is not None and joined.is_floating_point() and joined.dtype not in (torch.float32, query.dtype):
        joined = joined.to(query.dtype)
    return joined


def _packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: tuple[Tensor | None, Tensor | None],
    max_lengths: tuple[int | None, int | None],
    options: dict[str, Any],
) -> Any:
    cu_seq_lens_q, cu_seq_lens_k = cu_seq_lens
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise ValueError("one of cu_seq_lens_q and cu_seq_lens_k was given; packed sequences need both")
    if query.shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q was given with a batch of {query.shape[0]}; sequences are packed into one row")
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    bounds = (cu_seq_lens_q.to(torch.int32), cu_seq_lens_k.to(torch.int32))
    longest_q, longest_k = (t.shape[2] if n is None else int(n) for t, n in zip((query, key), max_lengths, strict=True))
    out: Any = varlen_attention(q, k, v, bounds[0], bounds[1], longest_q, longest_k, **options)
    return out.transpose(0, 1).unsqueeze(0)


def _refuse(kwargs: dict[str, Any]) -> None:
    for name, what in REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"the model's attention passes {name} ({what}), which tilewright does not serve")
    if kwargs.get("output_attentions") or _weights_are_collected():
        raise ValueError(
            "output_attentions=True asks for attention weights, which fused attention never has in memory; for a model "
            "that returns them call model.set_attn_implementation('eager')"
        )


@functools.cache
def _collector() -> Any:
    """transformers' record of what the running forward is to return besides its output."""
    try:
        from transformers.utils import output_capturing
    except ImportError:  # releases before it hand output_attentions to the attention function
        return None
    return getattr(output_capturing, "_active_collector", None)


def _weights_are_collected() -> bool:
    # Most models do not hand output_attentions on; a None for weights would end as an empty tuple of them.
    if torch.compiler.is_compiling():
        return False
    collector = _collector()
    collected = (collector.get() if collector is not None else None) or ()
    return any(name.endswith("attentions") for name in collected)
