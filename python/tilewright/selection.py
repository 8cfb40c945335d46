"""Products of the attention matrix in which an excluded pair, or one of weight 0, has no part: not 0 times a value,
which is NaN for an infinity, but nothing. In either direction, so that this holds for derivatives of every order and
mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def scores(a: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """(..., I, D), (..., J, D) -> (..., I, J): a b^T, and 0 where ``keep`` (..., I, J) is False."""
    found = _CompiledScores if torch.compiler.is_compiling() else _Scores
    return found.apply(a, b, keep)  # type: ignore[no-untyped-call, no-any-return]


def weighted(w: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """(..., I, J), (..., J, D) -> (..., I, D): w b, of the pairs (i, j) where ``keep`` is True."""
    found = _CompiledWeighted if torch.compiler.is_compiling() else _Weighted
    return found.apply(w, b, keep)  # type: ignore[no-untyped-call, no-any-return]


class _CompiledProduct(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _CompiledScores(_CompiledProduct):
    @staticmethod
    def forward(a: Tensor, b: Tensor, keep: Tensor) -> Tensor:
        return (a @ b.mT).masked_fill(~keep, 0.0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b, keep = ctx.saved_tensors
        want_a, want_b, _ = ctx.needs_input_grad
        return weighted(g, b, keep) if want_a else None, weighted(g.mT, a, keep.mT) if want_b else None, None


class _CompiledWeighted(_CompiledProduct):
    @staticmethod
    def forward(w: Tensor, b: Tensor, keep: Tensor) -> Tensor:
        w = w.masked_fill(~keep, 0.0)
        if _known_finite(b):
            return w @ b
        plus, minus = b == torch.inf, b == -torch.inf
        up = _any(w > 0, plus) | _any(w < 0, minus)
        down = _any(w > 0, minus) | _any(w < 0, plus)
        neither = _any(w != 0, b.isnan())
        out = w @ b.masked_fill(~b.isfinite(), 0.0)
        return torch.where(
            neither | (up & down), torch.nan, torch.where(up, torch.inf, torch.where(down, -torch.inf, out))
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        w, b, keep = ctx.saved_tensors
        want_w, want_b, _ = ctx.needs_input_grad
        return scores(g, b, keep) if want_w else None, weighted(w.mT, g, keep.mT) if want_b else None, None


class _Eager:
    """What torch.compile takes no Function with: forward mode, and a rule for vmap."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)


class _Scores(_Eager, _CompiledScores):
    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        a, b, keep = ctx.saved_tensors
        return _sum(None if da is None else scores(da, b, keep), None if db is None else scores(a, db, keep))


class _Weighted(_Eager, _CompiledWeighted):
    @staticmethod
    def jvp(ctx: Any, dw: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        w, b, keep = ctx.saved_tensors
        return _sum(None if dw is None else weighted(dw, b, keep), None if db is None else weighted(w, db, keep))


def _any(pairs: Tensor, elements: Tensor) -> Tensor:
    """(..., I, J), (..., J, D), bool -> (..., I, D): whether some j has both."""
    return pairs.float() @ elements.float() > 0


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor:
    if first is None or second is None:
        found = second if first is None else first
        assert found is not None
        return found
    return first + second


def _known_finite(t: Tensor) -> bool:
    if torch.compiler.is_compiling() or (t.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False  # where nothing waits for an answer
    try:
        return bool(t.isfinite().all())
    except RuntimeError:  # in a batch of torch.vmap's there is no single answer
        return False
