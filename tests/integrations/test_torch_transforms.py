"""torch.func and torch.autograd over every op: vmap, forward mode, Jacobians, Hessians, derivatives of any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tilewright as tw

DOUBLE = torch.float64
B, H, HKV, S, D = 2, 4, 2, 3, 4


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE)


CU = torch.tensor([0, 2, 5], dtype=torch.int32)

#: Each op as a function of the tensors that it is differentiated for.
DIFFERENTIABLE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "attention": (
        lambda q, k, v, mask, sinks: tw.attention(q, k, v, mask=mask, sinks=sinks, causal="bottom_right", softcap=3.0),
        (r(1, H, S, D), r(1, HKV, S, D), r(1, HKV, S, 2), r(H, S, S), r(H)),
    ),
    "attention and lse": (
        lambda q, k: tw.attention(q, k, k, mask=torch.eye(S, dtype=torch.bool), return_lse=True),
        (r(1, 2, S, D), r(1, 1, S, D)),
    ),
    "attention, bshd": (lambda q: tw.attention(q, q, q, layout="bshd", window=(1, 0)), (r(1, S, 2, D),)),
    "sdpa": (lambda q, k: tw.scaled_dot_product_attention(q, k, k, is_causal=True), (r(2, S, D), r(2, 2, D))),
    "varlen_attention": (
        lambda q, k, v: tw.varlen_attention(q, k, v, CU, CU, 3, 3, causal="top_left"),
        (r(5, 2, D), r(5, 1, D), r(5, 1, D)),
    ),
    "softmax": (lambda x, mask: tw.softmax(x, mask=mask, scale=0.7, causal="top_left"), (r(2, 3, 4), r(3, 4))),
    "log_softmax": (lambda x: tw.log_softmax(x, dim=0), (r(3, 2),)),
    "ffn": (
        lambda x, a, b, c, e, y: tw.ffn(x, a, b, b_in=c, b_out=e, residual=y, activation="swiglu"),
        (r(2, 3), r(8, 3), r(3, 4), r(8), r(3), r(2, 3)),
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_and_batched_gradients(name: str) -> None:
    function, inputs = DIFFERENTIABLE[name]
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(
        function,
        leaves,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_double_backward(name: str) -> None:
    function, inputs = DIFFERENTIABLE[name]
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def ours(q: Tensor, k: Tensor) -> Tensor:
    return tw.scaled_dot_product_attention(q, k, k, is_causal=True).sin()


def torchs(q: Tensor, k: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused kernels have neither forward mode nor double backward
        return F.scaled_dot_product_attention(q, k, k, is_causal=True).sin()


def total(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: function(*args).sum()


Transform = Callable[[Callable[..., Tensor], Tensor, Tensor], Any]
TRANSFORMS: dict[str, Transform] = {
    "grad": lambda f, q, k: torch.func.grad(total(f), argnums=(0, 1))(q, k),
    "grad of grad": lambda f, q, k: torch.func.grad(total(torch.func.grad(total(f))))(q, k),
    "jvp": lambda f, q, k: torch.func.jvp(f, (q, k), (q.cos(), k.cos())),
    "linearize": lambda f, q, k: torch.func.linearize(f, q, k)[1](q.cos(), k.cos()),
    "jacrev": lambda f, q, k: torch.func.jacrev(f, argnums=1)(q, k),
    "jacfwd": lambda f, q, k: torch.func.jacfwd(f, argnums=1)(q, k),
    "hessian": lambda f, q, k: torch.func.hessian(total(f), argnums=(0, 1))(q, k),
    "reverse over forward": lambda f, q, k: torch.func.jacrev(torch.func.jacfwd(total(f)))(q, k),
    "per-sample gradients": lambda f, q, k: torch.vmap(torch.func.grad(total(f)), (0, None))(torch.stack([q, k]), k),
    "vmap of both": lambda f, q, k: torch.vmap(f)(torch.stack([q, k]), torch.stack([k, q])),
    "vmap of keys alone": lambda f, q, k: torch.vmap(f, (None, 1), 2)(q, torch.stack([k, q], 1)),
    "vmap of vmap": lambda f, q, k: torch.vmap(torch.vmap(f, (0, None)), (None, 0))(q[:, None], torch.stack([k, q])),
    "vmap in chunks": lambda f, q, k: torch.vmap(f, (0, None), chunk_size=2)(torch.stack([q, k, q]), k),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Attempted to insert a get_attr")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_agree_with_torchs_attention(name: str) -> None:
    q, k = r(2, S, D), r(2, S, D)
    torch.testing.assert_close(TRANSFORMS[name](ours, q, k), TRANSFORMS[name](torchs, q, k))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_vmap_over_every_argument_is_the_stack_of_single_calls(name: str) -> None:
    function, inputs = DIFFERENTIABLE[name]
    doubled = tuple(torch.stack([t, t.cos()], -1) for t in inputs)
    singles = [function(*(t.select(-1, i) for t in doubled)) for i in range(2)]
    if isinstance(singles[0], Tensor):
        expected: Any = torch.stack(singles)
    else:
        expected = tuple(torch.stack(column) for column in zip(*singles, strict=True))
    torch.testing.assert_close(torch.vmap(function, -1)(*doubled), expected)


def test_vmap_over_a_mask_and_over_nothing() -> None:
    q, masks = r(1, 2, S, D), torch.rand(4, S, S) > 0.5
    found = torch.vmap(lambda mask: tw.attention(q, q, q, mask=mask))(masks)
    torch.testing.assert_close(found, torch.stack([tw.attention(q, q, q, mask=mask) for mask in masks]))
    assert torch.vmap(tw.softmax)(r(0, 3, 4)).shape == (0, 3, 4)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_vmap_runs_on_the_backend_asked_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.ops import _op

    asked, select = [], _op.select
    monkeypatch.setattr(_op, "select", lambda op, call, name: asked.append(name) or select(op, call, name))
    torch.vmap(lambda x: tw.softmax(x, backend=backend))(r(2, 3, 4))
    with tw.use_backend(backend):
        torch.vmap(tw.softmax)(r(2, 3, 4))
    assert asked == [backend] * 4


def test_dropout_under_vmap_follows_randomness() -> None:
    x = torch.ones(2, 1, 1, 2, 64)
    keys = torch.ones(1, 1, 64, 64)

    def drop(q: Tensor) -> Tensor:
        return tw.attention(q, keys, torch.eye(64)[None, None], dropout_p=0.5)

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(drop)(x)
    first, second = torch.vmap(drop, randomness="different")(x)
    assert not torch.equal(first, second)
    first, second = torch.vmap(drop, randomness="same")(x)
    assert torch.equal(first, second)


def test_derivatives_through_dropout_use_one_mask() -> None:
    q = r(1, 1, S, D)

    def drop(t: Tensor) -> Tensor:
        torch.manual_seed(3)
        return tw.attention(t, q, q, dropout_p=0.5)

    along = torch.func.jvp(drop, (q,), (q.cos(),))[1].sum()
    torch.testing.assert_close((torch.func.grad(total(drop))(q) * q.cos()).sum(), along)


def test_a_tangent_is_never_dropped() -> None:
    lengths = torch.tensor([2], dtype=torch.int32)
    cache = torch.randn(1, 1, 4, 4)
    with forward_ad.dual_level():
        q = forward_ad.make_dual(torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4))
        assert forward_ad.unpack_dual(tw.softmax(q)).tangent is not None
        with pytest.raises(ValueError, match="kvcache_attention has no derivatives, and an argument carries a tangent"):
            tw.kvcache_attention(q, cache, cache.clone(), cache_seqlens=lengths)
        tw.kvcache_attention(forward_ad.unpack_dual(q).primal, cache, cache.clone(), cache_seqlens=lengths)
