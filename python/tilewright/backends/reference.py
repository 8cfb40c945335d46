"""The reference math as a backend: plain torch, any device, differentiable to any order.

Its forward runs without recording; its backward differentiates the forward once more. With ``create_graph`` that
backward is itself differentiable, which is how every other backend offers second derivatives too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..ops._checks import batching_gradients, transforming
from ..ops._op import Op
from ..ops.attention import OP as ATTENTION_OP
from ..ops.ffn import OP as FFN_OP
from ..ops.varlen_attention import OP as VARLEN_OP
from ..reference import attention, ffn, kvcache_attention, softmax, varlen_attention
from ..registry import Implementation


def unavailable() -> str | None:
    return None


def _supports_all(call: Any) -> str | None:
    return None


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd on, also inside an operator's implementation, where the dispatcher has switched its recording off."""
    key = torch._C.DispatchKey
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for recording in (key.AutogradFunctionality, key.AutogradOther, key.ADInplaceOrView):
        excluded = excluded.remove(recording)
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded), torch.enable_grad():
        yield


def _in_memory_order(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient if gradient.stride() == like.stride() else like.copy_(gradient)


def _pull_back(
    op: Op, forward: Callable[[Any], tuple[Tensor, ...]], call: Any, grads: tuple[Tensor | None, ...], fields: list[str]
) -> tuple[Tensor | None, ...]:
    """The gradients by functorch's own means: inside its transforms autograd.grad sees the innermost one only."""
    known = [i for i, g in enumerate(grads) if g is not None]

    def outputs(inputs: dict[str, Tensor]) -> list[Tensor]:
        results = forward(call._replace(**inputs))
        return [results[i] for i in known]

    pull = torch.func.vjp(outputs, {name: getattr(call, name) for name in fields})[1]
    (by_field,) = pull([grads[i] for i in known])
    return tuple(by_field.get(name) for name in op.differentiable)


def _by_autograd(op: Op, forward: Callable[[Any], tuple[Tensor, ...]]) -> Implementation:
    def backward(
        call: Any, outputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], wanted: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        fields = [name for name, want in zip(op.differentiable, wanted, strict=True) if want]
        if transforming():
            return _pull_back(op, forward, call, grads, fields)
        higher_order = torch.is_grad_enabled()
        with _recording():
            # A view of each input, so that the graph below is separate and yet, for a higher order, hangs on the
            # caller's.
            inputs = {f: getattr(call, f) for f in fields}
            inputs = {
                f: t.view_as(t) if higher_order and t.requires_grad else t.detach().requires_grad_()
                for f, t in inputs.items()
            }
            results = forward(call._replace(**inputs))
            pairs = [(r, g) for r, g in zip(results, grads, strict=False) if g is not None and r.requires_grad]
            computed = torch.autograd.grad(
                [r for r, _ in pairs],
                list(inputs.values()),
                [g for _, g in pairs],
                create_graph=higher_order,
                allow_unused=True,
                materialize_grads=True,
            )
        if not higher_order and not batching_gradients():
            computed = tuple(
                _in_memory_order(g, op.gradient_like(call, f)) for f, g in zip(fields, computed, strict=True)
            )
        by_field = dict(zip(fields, computed, strict=True))
        return tuple(by_field.get(name) for name in op.differentiable)

    return Implementation(forward=torch.no_grad()(forward), backward=backward, unsupported=_supports_all)


ATTENTION = _by_autograd(ATTENTION_OP, attention.forward)
VARLEN_ATTENTION = _by_autograd(VARLEN_OP, varlen_attention.forward)
KVCACHE_ATTENTION = Implementation(kvcache_attention.forward, None, _supports_all)
FFN = _by_autograd(FFN_OP, ffn.forward)
SOFTMAX = Implementation(softmax.forward, softmax.backward, _supports_all)
LOG_SOFTMAX = Implementation(softmax.log_forward, softmax.log_backward, _supports_all)
