"""Dropout's random state: two integers from which every backend computes the same mask (csrc/common/philox.h)."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_rng(p: float, device: torch.device) -> Tensor | None:
    """(seed, offset), int64, drawn from torch's generator of ``device``: torch.manual_seed reproduces the mask.

    A tensor rather than two numbers, so that drawing needs no host synchronisation and works inside compiled graphs.
    None when nothing is dropped.
    """
    return torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, device=device) if p > 0.0 else None


def dropout_threshold(p: float) -> int:
    """An element is kept when its 32 random bits are at least this. Python's twin of philox.h."""
    return min(int(p * 4294967296.0), 4294967295)


def dropout_scale(p: float) -> float:
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0
