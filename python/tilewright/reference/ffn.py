"""The feed-forward block, as it is defined. Any floating dtype, differentiable to any order."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops._checks import accumulator
from ..ops._dropout import dropout_scale
from ..ops.ffn import GATED, FfnCall
from .philox import keep_mask

_ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
_GATE = {"reglu": "relu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", "swiglu": "silu"}


def forward(call: FfnCall, compute_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype or accumulator(call.x.dtype)

    def cast(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(dtype)

    pre = F.linear(call.x.to(dtype), call.w_in.to(dtype), cast(call.b_in))
    if call.activation in GATED:
        gate, up = pre.chunk(2, dim=-1)
        hidden = _ACT[_GATE[call.activation]](gate) * up
    else:
        hidden = _ACT[call.activation](pre)
    out = F.linear(hidden, call.w_out.to(dtype), cast(call.b_out))
    if call.rng is not None:
        rows = torch.arange(out.shape[0], device=out.device)
        kept = keep_mask(call.rng, rows >> 32, rows & 0xFFFFFFFF, out.shape[1], call.dropout_p)
        out = out * kept * dropout_scale(call.dropout_p)
    if call.residual is not None:
        out = out + call.residual.to(dtype)
    kept_pre = pre.to(call.x.dtype) if call.save_pre else pre.new_empty((0, 0), dtype=call.x.dtype)
    return out.to(call.x.dtype), kept_pre
