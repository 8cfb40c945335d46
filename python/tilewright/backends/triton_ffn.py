"""ffn on Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops._dropout import dropout_scale, dropout_threshold
from ..ops.ffn import OP, FfnCall
from ..registry import Implementation
from ..triton_kernels import ffn, ffn_backward, keys
from ..triton_kernels.ffn_product import product
from .triton import on_device, unsupported

keys.settle()


def _dropout(call: FfnCall) -> ffn.Dropout | None:
    if call.rng is None:
        return None
    return ffn.Dropout(call.rng, dropout_threshold(call.dropout_p), dropout_scale(call.dropout_p))


def _forward(call: FfnCall) -> tuple[Tensor, ...]:
    out, pre = OP.allocate(call)
    hidden = call.x.new_empty((call.x.shape[0], call.w_out.shape[1]))
    with on_device(call.x):
        ffn.first_product(
            call.x, call.w_in, call.b_in, call.activation, pre=pre if call.save_pre else None, hidden=hidden
        )
        ffn.second_product(hidden, call.w_out, call.b_out, call.residual, _dropout(call), out)
    return out, pre


def _backward(
    call: FfnCall, outputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    assert grads[0] is not None
    with on_device(call.x):
        return _gradients(call, outputs[1], grads[0], wanted)


def _gradients(call: FfnCall, pre: Tensor, dout: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    want_x, want_w_in, want_w_out, want_b_in, want_b_out = wanted
    dx = dw_in = dw_out = db_in = None
    dz = ffn_backward.dropped(dout, _dropout(call))
    db_out = dz.sum(0, dtype=torch.float32).to(dout.dtype) if want_b_out else None
    if want_x or want_w_in or want_w_out or want_b_in:
        if not call.save_pre:
            pre = call.x.new_empty((call.x.shape[0], call.w_in.shape[0]))
            ffn.first_product(call.x, call.w_in, call.b_in, call.activation, pre=pre, hidden=None)
        dpre, hidden, sums = ffn_backward.hidden_gradient(
            dz, call.w_out, pre, call.activation, want_hidden=want_w_out, want_sums=want_b_in
        )
        dx = product(dpre, call.w_in) if want_x else None
        dw_in = product(dpre.t(), call.x) if want_w_in else None
        dw_out = product(dz.t(), hidden) if hidden is not None else None
        db_in = sums.to(dout.dtype) if sums is not None else None
    return dx, dw_in, dw_out, db_in, db_out


FFN = Implementation(_forward, _backward, unsupported)
