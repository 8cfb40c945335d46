"""Wrong implementations, each derived from the reference, that verification must catch.

``install`` puts one into the registry as the op's "triton" row, which no kernel occupies on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tilewright import registry
from tilewright.catalog import OPS
from tilewright.registry import Implementation

BACKEND = "triton"
Outputs = tuple[Tensor, ...]


def install(monkeypatch: pytest.MonkeyPatch, op: str, implementation: Implementation) -> None:
    real, real_unavailable = registry.find, registry.unavailable
    monkeypatch.setattr(registry, "unavailable", lambda b: None if b == BACKEND else real_unavailable(b))
    monkeypatch.setattr(registry, "home", lambda b: "cpu")  # also on a machine with a GPU: the reference runs anywhere
    monkeypatch.setattr(registry, "find", lambda o, b: implementation if (o, b) == (op, BACKEND) else real(o, b))


def honest(op: str) -> Implementation:
    found = registry.find(op, "reference")
    assert isinstance(found, Implementation)
    return found


def with_forward(op: str, change: Callable[[Any, Outputs], Outputs]) -> Implementation:
    """The reference, with its outputs changed."""
    base = honest(op)
    return replace(base, forward=lambda call: change(call, base.forward(call)))


def with_call(op: str, change: Callable[[Any], Any]) -> Implementation:
    """The reference on another call than the one that was made, forward and backward."""
    base = honest(op)
    backward = base.backward
    return replace(
        base,
        forward=lambda call: base.forward(change(call)),
        backward=None if backward is None else lambda call, *rest: backward(change(call), *rest),
    )


def with_backward(op: str, change: Callable[[list[Tensor | None]], None]) -> Implementation:
    """The reference, with its gradients changed."""
    base = honest(op)
    assert base.backward is not None
    reference = base.backward

    def backward(call: Any, outputs: Outputs, grads: Outputs, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        found = list(reference(call, outputs, grads, wanted))
        change(found)
        return tuple(found)

    return replace(base, backward=backward)


def zeros(op: str) -> Implementation:
    return with_forward(op, lambda call, out: tuple(torch.zeros_like(t) for t in out))


def cached(op: str) -> Implementation:
    """Remembers its first answer for each shape."""
    memory: dict[Any, Outputs] = {}
    return with_forward(op, lambda call, out: tuple(t.clone() for t in memory.setdefault(call[0].shape, out)))


def reused_buffer(op: str) -> Implementation:
    """Right, but every call writes its answer into the same memory."""
    memory: dict[Any, Outputs] = {}

    def change(call: Any, out: Outputs) -> Outputs:
        kept = memory.setdefault(call[0].shape, out)
        return tuple(k.copy_(t) for k, t in zip(kept, out, strict=True))

    return with_forward(op, change)


def _partly_written(op: str, write: Callable[[Tensor, Tensor], None]) -> Implementation:
    """Allocates as the contract says, and leaves some of the first output as it was allocated."""

    def change(call: Any, out: Outputs) -> Outputs:
        fresh = OPS[op][0].allocate(call)
        for i, (f, t) in enumerate(zip(fresh, out, strict=True)):
            if i == 0:
                write(f, t)
            else:
                f.copy_(t)
        return fresh

    return with_forward(op, change)


def dropped_tail_rows(op: str) -> Implementation:
    return _partly_written(op, lambda f, t: f[..., :-1, :].copy_(t[..., :-1, :]))


def unwritten_column(op: str) -> Implementation:
    return _partly_written(op, lambda f, t: f[..., 1:].copy_(t[..., 1:]))


def mutates_input(op: str) -> Implementation:
    def change(call: Any, out: Outputs) -> Outputs:
        with torch.no_grad():
            call[0].view(-1)[:1].neg_() if call[0].is_contiguous() else call[0][(0,) * call[0].dim()].neg_()
        return out

    return with_forward(op, change)


def writes_past_input(op: str) -> Implementation:
    def change(call: Any, out: Outputs) -> Outputs:
        x = call[0]
        end = x.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
        x.detach().as_strided((1,), (1,), end).fill_(0.0)
        return out

    return with_forward(op, change)


def reads_past_keys(op: str) -> Implementation:
    """Attends to one position behind the last key, with no weight: harmless only while that memory holds a number."""

    def change(call: Any, out: Outputs) -> Outputs:
        v = call.v
        end = v.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(v.shape, v.stride(), strict=True))
        return (out[0] + 0.0 * v.detach().as_strided((1,), (1,), end), *out[1:])

    return with_forward(op, change)


def nan_in_one_row(op: str) -> Implementation:
    def change(call: Any, out: Outputs) -> Outputs:
        broken = out[0].clone(memory_format=torch.preserve_format)
        broken[..., -1, :1] = torch.nan
        return (broken, *out[1:])

    return with_forward(op, change)


def wrong_strides(op: str) -> Implementation:
    return with_forward(op, lambda call, out: (out[0].mT.contiguous().mT, *out[1:]))


def wrong_dtype(op: str) -> Implementation:
    return with_forward(op, lambda call, out: (out[0].double(), *out[1:]))


def less_precise(op: str) -> Implementation:
    """float32 rounded to bfloat16 on the way out."""
    return with_forward(op, lambda call, out: (out[0].bfloat16().to(out[0].dtype), *out[1:]))


def raises(op: str) -> Implementation:
    def change(call: Any, out: Outputs) -> Outputs:
        raise RuntimeError("launch failed")

    return with_forward(op, change)


def missing_gradient(op: str) -> Implementation:
    return with_backward(op, lambda found: found.__setitem__(0, None))


def scaled_gradient(op: str) -> Implementation:
    return with_backward(op, lambda found: found.__setitem__(1, None if found[1] is None else found[1] * 1.001))
