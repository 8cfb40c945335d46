"""replace_sdpa: which calls it reaches, what it hands to torch and why, and what it counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as imported_early
from torch.overrides import TorchFunctionMode

import tilewright as tw
from tilewright.config import BACKENDS
from tilewright.integrations.replace_sdpa import replace_sdpa

Q, K, V = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 7, 7))
WIDE = torch.randn(1, 1, 3, 300)


class Watch(TorchFunctionMode):
    """Outside the block: sees what the block hands to torch."""

    def __init__(self) -> None:
        self.attentions = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attentions += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def test_serves_names_imported_early_and_counts() -> None:
    expected = imported_early(Q, K, V)
    with Watch() as torchs, replace_sdpa() as sdpa:
        torch.testing.assert_close(imported_early(Q, K, V), expected)
        torch.testing.assert_close(F.scaled_dot_product_attention(query=Q, key=K, value=V), expected)
    imported_early(Q, K, V)
    assert (sdpa.served, dict(sdpa.refused), torchs.attentions) == (2, {}, 0)
    assert str(sdpa) == "scaled_dot_product_attention: 2 calls served by tilewright, 0 by torch"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backend_argument_is_obeyed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.ops import _op

    asked: list[str] = []
    select = _op.select
    monkeypatch.setattr(
        _op, "select", lambda op, call, requested: asked.append(requested) or select(op, call, requested)
    )
    with replace_sdpa(backend):
        imported_early(Q, K, V)
    assert asked == [backend]


def test_unknown_backend_raises() -> None:
    with pytest.raises(ValueError, match="backend='gpu' is not a backend; choose one of " + repr(BACKENDS[0])):
        replace_sdpa("gpu")


class Own(Tensor):
    """A subclass that says for itself what attention is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.full((2, 3, 5, 8), 3.0)
        return super().__torch_function__(func, types, args, kwargs)


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.randn(2, 3, 8), torch.randn(2, 4, 8)], layout=torch.strided)


def jagged() -> Tensor:
    rows = torch.nested.nested_tensor([torch.randn(3, 2, 8), torch.randn(4, 2, 8)], layout=torch.jagged)
    return rows.transpose(1, 2)


def wrapped() -> Tensor:
    """Of a class that holds other tensors and follows torch's dispatcher, as DTensor does."""
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8))


def on_meta() -> Tensor:
    return torch.randn(1, 2, 3, 8, device="meta")


REFUSED: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "head dim": (lambda: (WIDE, WIDE, WIDE), "query has head dim 300; accepted are 1 to 256"),
    "mask dtype": (lambda: (Q.half(), K.half(), V.half(), Q.new_ones(5, 7)), "attn_mask has dtype torch.float64"),
    "complex": (lambda: (Q + 0j, K + 0j, V + 0j), "query has dtype torch.complex128"),
    "nested": (lambda: (nested(),) * 3, "query has layout nested"),
    "jagged": (lambda: (jagged(),) * 3, "a NestedTensor has an attention of its own"),
    "wrapper": (lambda: (wrapped(),) * 3, "a TwoTensor has an attention of its own"),
    "no kernels": (lambda: (on_meta(),) * 3, "tilewright has no kernels for meta"),
    "subclass": (lambda: (Q.as_subclass(Own), K, V), "a Own has an attention of its own"),
}
TORCH_RAISES = ("mask dtype", "complex")


@pytest.mark.parametrize("case", [c for c in REFUSED if c not in TORCH_RAISES])
def test_refused_calls_go_to_torch_with_the_reason(case: str) -> None:
    make, reason = REFUSED[case]
    args = make()
    expected = imported_early(*args)
    with replace_sdpa() as sdpa:
        found = imported_early(*args)
    assert type(found) is type(expected)
    if case in ("head dim", "subclass"):  # the others cannot be compared
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert sdpa.served == 0
    assert [reason in said for said in sdpa.refused.elements()] == [True], f"{reason!r} is not why: {sdpa}"
    assert f"  1 x {next(iter(sdpa.refused))}" in str(sdpa)


@pytest.mark.parametrize("case", REFUSED)
def test_with_a_backend_asked_for_nothing_goes_to_torch(case: str) -> None:
    make, reason = REFUSED[case]
    args = make()
    if case == "no kernels":
        reason = "backend 'cpu' cannot serve this attention call: its tensors are on meta"
    with (
        Watch() as torchs,
        replace_sdpa("cpu") as sdpa,
        pytest.raises((ValueError, TypeError, tw.BackendError)) as error,
    ):
        imported_early(*args)
    assert reason in str(error.value)
    assert (sdpa.served, dict(sdpa.refused), torchs.attentions) == (0, {}, 0)


@pytest.mark.parametrize("how", ["use_backend", "environment"])
def test_a_backend_of_the_context_counts_as_asked_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setattr("tilewright.config._from_environment", "reference")
        with replace_sdpa(), pytest.raises(ValueError, match="head dim 300"):
            imported_early(WIDE, WIDE, WIDE)
    else:
        with tw.use_backend("reference"), replace_sdpa(), pytest.raises(ValueError, match="head dim 300"):
            imported_early(WIDE, WIDE, WIDE)


@pytest.mark.parametrize("case", TORCH_RAISES)
def test_what_torch_refuses_too_raises_torchs_error_because_of_ours(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(RuntimeError) as torchs:
        imported_early(*make())
    with replace_sdpa() as sdpa, pytest.raises(RuntimeError) as error:
        imported_early(*make())
    assert (type(error.value), str(error.value)) == (type(torchs.value), str(torchs.value))
    assert reason in str(error.value.__cause__)
    assert (sdpa.served, dict(sdpa.refused)) == (0, {}), "a call that nobody serves is no call handed to torch"


def test_an_error_inside_the_kernel_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setattr("tilewright.integrations.sdpa.run", broken)
    with replace_sdpa(), pytest.raises(ValueError, match="a bug"):
        imported_early(Q, K, V)


def test_without_kernels_torch_is_preferred_to_reference_math(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.dispatch.AUTOMATIC", {"cpu": ("reference",)})
    with replace_sdpa() as sdpa:
        imported_early(Q, K, V)
    assert sdpa.served == 0
    assert list(sdpa.refused) == ["no kernel can serve this call: tilewright has no kernels for cpu"]


def test_nesting_reentry_and_exceptions() -> None:
    outer, inner = replace_sdpa(), replace_sdpa()

    def nest() -> None:
        with outer:
            with inner, outer:
                imported_early(Q, K, V)
            with inner:
                imported_early(Q, K, V)
                imported_early(WIDE, WIDE, WIDE)
            imported_early(Q, K, V)
            raise KeyError

    with pytest.raises(KeyError):
        nest()
    imported_early(Q, K, V)
    assert (outer.served, outer.refused.total()) == (2, 1), "what the inner block hands on, the outer one decides"
    assert (inner.served, inner.refused.total()) == (1, 1)


def test_decorates_functions_and_generators() -> None:
    sdpa = replace_sdpa()

    @sdpa
    def call() -> Tensor:
        """Doc."""
        return imported_early(Q, K, V)

    @sdpa
    def generate() -> Iterator[Tensor]:
        for _ in range(2):
            yield imported_early(Q, K, V)

    call()
    assert (call.__doc__, sdpa.served) == ("Doc.", 1)
    for _ in generate():
        imported_early(Q, K, V)  # outside: the generator waits
    assert sdpa.served == 3

    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match="cannot decorate the coroutine function"):
        sdpa(coroutine)


def test_holds_for_one_thread_and_counts_in_several() -> None:
    def work(sdpa: replace_sdpa | None) -> None:
        for _ in range(50):
            if sdpa is None:
                imported_early(Q, K, V)
            else:
                with sdpa:
                    imported_early(Q, K, V)

    with replace_sdpa() as sdpa:
        threads = [threading.Thread(target=work, args=(s,)) for s in (None, sdpa, sdpa)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sdpa.served == 100


BACKWARDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "Tensor.backward": lambda loss, x: loss.backward(),
    "autograd.backward": lambda loss, x: torch.autograd.backward([loss], inputs=[x]),
    "autograd.grad": lambda loss, x: setattr(x, "grad", torch.autograd.grad(loss, x)[0]),
}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", BACKWARDS)
def test_backward_started_inside_recomputes_inside(how: str, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    if how != "Tensor.backward" and reentrant:
        return  # torch itself allows reentrant checkpoints with the plain call only
    x = Q.clone().requires_grad_()
    with replace_sdpa() as sdpa:
        BACKWARDS[how](checkpoint(lambda t: imported_early(t, K, V), x, use_reentrant=reentrant).sum(), x)
    assert sdpa.served == 2
    (expected,) = torch.autograd.grad(imported_early(x, K, V).sum(), x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("variant", ["causal_upper_left", "causal_lower_right"])
def test_causal_bias_selects_its_alignment(variant: str) -> None:
    from torch.nn.attention import bias

    mask = getattr(bias, variant)(5, 7)
    expected = imported_early(Q, K, V, mask._materialize())
    with replace_sdpa("cpu"):
        torch.testing.assert_close(imported_early(Q, K, V, mask), expected)
    with pytest.raises(ValueError, match=r"a CausalBias of 5 by 7 positions; it must be \(7, 7\)"):
        tw.scaled_dot_product_attention(K, K, V, mask)


def test_explain_says_what_would_serve_and_what_has_served() -> None:
    from tilewright.integrations import replace_sdpa as module

    before = module._process.served
    with replace_sdpa():
        imported_early(Q, K, V)
    served = tw.explain("scaled_dot_product_attention", Q, K, V, is_causal=True)
    assert served.chosen == "cpu"
    assert f"in this process, scaled_dot_product_attention: {before + 1} calls served" in str(served)
    refused = tw.explain("scaled_dot_product_attention", WIDE, WIDE, WIDE)
    assert refused.chosen == "torch"
    assert "runs on torch (tilewright refuses it: ValueError: query has head dim 300" in str(refused)
    assert tw.explain("scaled_dot_product_attention", on_meta(), on_meta(), on_meta()).chosen == "torch"
    assert tw.explain("scaled_dot_product_attention", Q, K, V, backend="reference").chosen == "reference"
    with pytest.raises(ValueError, match="head dim 300"):
        tw.explain("scaled_dot_product_attention", WIDE, WIDE, WIDE, backend="cpu")
