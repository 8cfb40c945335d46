"""One weight under two names: the token embedding that is the output layer too. A checkpoint holds either, or both."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

EMBEDDING, OUTPUT = "wte.weight", "lm_head.weight"


def complete(tensors: MutableMapping[str, Any], prefix: str = "") -> None:
    """Put the weight under both names where it is under one."""
    embedding, output = prefix + EMBEDDING, prefix + OUTPUT
    if embedding in tensors:
        tensors.setdefault(output, tensors[embedding])
    elif output in tensors:
        tensors[embedding] = tensors[output]


def why_not_one(tensors: Mapping[str, Any], prefix: str = "") -> str | None:
    """Why what is under the two names cannot be one weight, or None."""
    embedding, output = prefix + EMBEDDING, prefix + OUTPUT
    if embedding not in tensors or output not in tensors or _same(tensors[embedding], tensors[output]):
        return None
    return (
        f"tie_word_embeddings is true, but {output} differs from {embedding}; set it to false in the configuration "
        "(config.json) to keep both"
    )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether they hold the same numbers, where they hold any (on the meta device they do not); NaN is as NaN."""
    if a is b or a.shape != b.shape or a.is_meta or b.is_meta:
        return a.shape == b.shape
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.detach().to(dtype), b.detach().to(a.device, dtype)
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
