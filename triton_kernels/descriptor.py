"""Descriptors for TMA, the engine that copies tiles on Hopper and later: made on the host, passed with the launch."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import architecture


def has_tma(device: torch.device) -> bool:
    return architecture(device) != "sm_80"


def describable(t: Tensor) -> bool:
    """Whether TMA can read boxes of ``t``: its address and all rows start at multiples of 16 bytes, elements of a row
    are neighbours, and nothing is repeated by a stride of 0."""
    size = t.element_size()
    return (
        t.numel() > 0
        and t.data_ptr() % 16 == 0
        and t.stride(-1) == 1
        and all(n == 1 or (s > 0 and s * size % 16 == 0) for n, s in zip(t.shape[:-1], t.stride()[:-1], strict=True))
    )


def describe(t: Tensor, block: tuple[int, ...]) -> TensorDescriptor:
    """``t``, to be read or written in boxes of ``block`` elements."""
    shape, strides = [*t.shape], [*t.stride()]
    if 1 in shape:
        # The stride of a dimension with one element is never used, but has to be a multiple of 16 bytes.
        strides = [s if n > 1 else 16 for n, s in zip(shape, strides, strict=True)]
        strides[-1] = 1
    # Without its constructor, which takes twice as long: it checks again what the caller had to check.
    made = object.__new__(TensorDescriptor)
    made.base, made.shape, made.strides, made.block_shape, made.padding = t, shape, strides, [*block], "zero"
    return made
