"""Taking padding out of batches and putting it back: the functions of ``flash_attn.bert_padding``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops._checks import shape

__all__ = [
    "index_first_axis",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """``flash_attn.bert_padding.index_first_axis``: rows ``indices`` (n,) of input (rows, ...). Differentiable."""
    if not isinstance(input, Tensor) or input.dim() < 2:
        raise ValueError(f"input must be a torch.Tensor of 2 or more dimensions, got {_given(input)}")
    return input.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """``flash_attn.bert_padding.index_put_first_axis``: values (n, ...) at ``indices`` of zeros (first_axis_dim, ...).

    Differentiable with respect to values.
    """
    out = values.new_zeros(first_axis_dim, *values.shape[1:])
    return out.index_copy(0, indices.long(), values)


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """``flash_attn.bert_padding.unpad_input``: the rows of a padded batch that a mask keeps, packed.

    Args:
        hidden_states: (B, S, ...).
        attention_mask: (B, S), bool or int, 1 where a token counts.
        unused_mask: (B, S), bool or int, 1 where a row is kept without counting as used.

    Returns:
        rows (n, ...); indices (n,) int64 of these rows in the flattened batch; cu_seqlens (B + 1,) int32; the longest
        sequence, an int (on a GPU the host waits for it); seqused (B,) int32, what attention_mask counts.

    Raises:
        ValueError: the shapes do not fit.
    """
    for name, mask in (("attention_mask", attention_mask), ("unused_mask", unused_mask)):
        if mask is not None and tuple(mask.shape) != tuple(hidden_states.shape[:2]):
            raise ValueError(f"{name} of shape {shape(mask)} must be (B, S) of hidden_states, {shape(hidden_states)}")
    kept = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths, used = kept.sum(-1, dtype=torch.int32), attention_mask.sum(-1, dtype=torch.int32)
    indices, cu_seqlens, longest = _layout(kept, lengths)
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest, used


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """``flash_attn.bert_padding.unpad_input_for_concatenated_sequences``: several sequences in a row of the batch.

    Args:
        hidden_states: (B, S, ...).
        attention_mask_in_length: (B, S), int: the lengths of the sequences that lie one after another at the beginning
            of each row, then zeros.

    Returns:
        rows, indices, cu_seqlens with one boundary for each sequence, and the longest length; as :func:`unpad_input`.
    """
    if tuple(attention_mask_in_length.shape) != tuple(hidden_states.shape[:2]):
        raise ValueError(
            f"attention_mask_in_length of shape {shape(attention_mask_in_length)} must be (B, S) of hidden_states, "
            f"{shape(hidden_states)}"
        )
    positions = torch.arange(hidden_states.shape[1], device=attention_mask_in_length.device)
    kept = positions < attention_mask_in_length.sum(-1, keepdim=True)
    lengths = attention_mask_in_length[attention_mask_in_length != 0]
    indices, cu_seqlens, longest = _layout(kept, lengths)
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, cu_seqlens, longest


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """``flash_attn.bert_padding.pad_input``, the inverse of :func:`unpad_input`: (n, ...) to (batch, seqlen, ...).

    Rows that ``indices`` (n,) do not name are 0. Differentiable.
    """
    padded: Tensor = index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(0, (batch, seqlen))
    return padded


def _layout(kept: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, int]:
    longest = int(lengths.max()) if lengths.numel() > 0 else 0
    return kept.flatten().nonzero().flatten(), F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), longest


def _given(value: object) -> str:
    return f"shape {shape(value)}" if isinstance(value, Tensor) else type(value).__name__
