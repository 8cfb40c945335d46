"""The dropout masks of csrc/common/philox.h in torch integer arithmetic: the same bits on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops._dropout import dropout_threshold

_M32 = 0xFFFFFFFF


def _round(c: list[Tensor], k0: Tensor, k1: Tensor) -> list[Tensor]:
    # 32 x 32 bit products wrap in int64; shifting and masking still gives the exact high and low halves.
    p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
    return [((p1 >> 32) & _M32) ^ c[1] ^ k0, p1 & _M32, ((p0 >> 32) & _M32) ^ c[3] ^ k1, p0 & _M32]


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011). ``seed`` int64 scalar; counters int64 holding 32-bit values,
    broadcast."""
    c = list(torch.broadcast_tensors(*counter))
    k0, k1 = seed & _M32, (seed >> 32) & _M32
    for _ in range(10):
        c = _round(c, k0, k1)
        k0, k1 = (k0 + 0x9E3779B9) & _M32, (k1 + 0xBB67AE85) & _M32
    return c[0], c[1], c[2], c[3]


def keep_mask(rng: Tensor, planes: Tensor, rows: Tensor, columns: int, p: float) -> Tensor:
    """Which elements dropout keeps: bool, of shape broadcast(planes, rows) + (columns,).

    planes and rows are int64 and broadcast together; rng is (seed, offset), int64.
    """
    groups = torch.arange(-(-columns // 4), device=rng.device)
    lanes = philox(rng[0], (groups, rows.unsqueeze(-1), planes.unsqueeze(-1), rng[1] & _M32))
    bits = torch.stack(lanes, dim=-1).flatten(-2)[..., :columns]
    return bits >= dropout_threshold(p)
