"""Registration with torch.library: opcheck, and compiled code that gives what eager code gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.catalog import OPS, canonical_call

B, H, HKV, S, D = 2, 4, 2, 6, 8


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def arguments(name: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of each op with many of its features, gradients required where there are any."""
    cu = torch.tensor([0, 2, 6], dtype=torch.int32)
    if name == "attention":
        options = {
            "mask": leaf(1, H, S, S),
            "causal": "bottom_right",
            "sinks": leaf(H),
            "softcap": 5.0,
            "dropout_p": 0.3,
        }
        return (leaf(B, H, S, D), leaf(B, HKV, S, D), leaf(B, HKV, S, 5)), options
    if name == "varlen_attention":
        return (leaf(6, H, D), leaf(6, HKV, D), leaf(6, HKV, D), cu, cu.clone(), 4, 4), {
            "sinks": leaf(H),
            "window": (2, None),
        }
    if name == "kvcache_attention":
        lengths = torch.tensor([3, 4], dtype=torch.int32)
        new = {"k": torch.randn(B, HKV, 1, D), "v": torch.randn(B, HKV, 1, D), "cache_seqlens": lengths}
        return (torch.randn(B, H, 1, D), torch.randn(B, HKV, S, D), torch.randn(B, HKV, S, D)), new
    if name in ("softmax", "log_softmax"):
        return (leaf(B, S, 7),), {"mask": leaf(S, 7), "scale": 0.5, "causal": "bottom_right"}
    options = {"b_in": leaf(24), "b_out": leaf(D), "residual": leaf(3, D), "activation": "swiglu", "dropout_p": 0.2}
    return (leaf(3, D), leaf(24, D), leaf(D, 12)), options


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    args, kwargs = arguments(name)
    call, _ = canonical_call(name, *args, **kwargs)
    torch.library.opcheck(OPS[name][0].operator, (*call, ""))


@pytest.mark.parametrize("name", [name for name, (op, _) in OPS.items() if op.differentiable])
def test_opcheck_of_the_backward(name: str) -> None:
    op = OPS[name][0]
    args, kwargs = arguments(name)
    with torch.no_grad():
        call, _ = canonical_call(name, *args, **kwargs)
        call = type(call)(*(t.detach() if isinstance(t, torch.Tensor) else t for t in call))
        outputs = op.run_forward(call, "")
        grads = [
            torch.randn_like(o) if n not in op.intermediates else None for n, o in zip(op.outputs, outputs, strict=True)
        ]
        saved = [outputs[0] if f == "x" and f not in op.saved else v for f, v in zip(call._fields, call, strict=True)]
        wanted = [getattr(call, f) is not None for f in op.differentiable]
        torch.library.opcheck(op.backward_operator, (*grads, *outputs, *saved, wanted, ""))


def run(function: Callable[..., Any], name: str) -> list[torch.Tensor]:
    """Outputs and gradients of ``function`` on the op's arguments, made from the same seed every time."""
    torch.manual_seed(1)
    args, kwargs = arguments(name)
    leaves = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor) and t.requires_grad]
    torch.manual_seed(2)
    out = function(*args, **kwargs)
    if leaves:
        (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    caches = [t.detach() for t in args if isinstance(t, torch.Tensor)]
    return [out.detach(), *caches, *(t.grad for t in leaves if t.grad is not None)]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_compiles_without_graph_breaks(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    function = OPS[name][1]
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    # Dropout draws through a compiled generator call, which need not give eager's numbers.
    for eager, traced in zip(run(function, name), run(compiled, name), strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", [name for name, (op, _) in OPS.items() if op.differentiable])
def test_gradients_lie_as_compiled_code_was_told(name: str, backend: str) -> None:
    """Of inputs whose dimensions stand in another order in memory, or overlap."""
    op = OPS[name][0]
    args, kwargs = arguments(name)
    with torch.no_grad():
        call, _ = canonical_call(name, *args, **kwargs)
    for change in (lambda t: t.mT.contiguous().mT, lambda t: t[..., :1, :].expand(t.shape)):
        changed = {f: getattr(call, f) for f in op.differentiable if isinstance(getattr(call, f), torch.Tensor)}
        changed = {f: change(t.detach()) if t.dim() > 1 else t for f, t in changed.items()}
        changed = {f: t.contiguous() if f in op.rows and t.stride(-1) != 1 else t for f, t in changed.items()}
        given = call._replace(**changed)
        outputs = op.run_forward(given, backend)
        grads = [
            torch.randn(o.shape) if i < len(outputs) - len(op.intermediates) else None for i, o in enumerate(outputs)
        ]
        wanted = [isinstance(getattr(given, f), torch.Tensor) for f in op.differentiable]
        found = op.backward_operator(*grads, *outputs, *given, wanted, backend)
        for field, gradient in zip(op.differentiable, found, strict=True):
            if gradient.numel():
                assert gradient.stride() == op.gradient_like(given, field).stride(), f"{name}: {field} on {backend}"


def test_compiled_code_obeys_use_backend() -> None:
    compiled = torch.compile(lambda x: tw.softmax(x), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled(x), torch.softmax(x, -1))
    with tw.use_backend("cuda"), pytest.raises(tw.BackendError, match="backend 'cuda' cannot serve"):
        compiled(x)


def test_compiles_with_inductor() -> None:
    def block(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor) -> torch.Tensor:
        q = x.view(2, 6, 2, 4).transpose(1, 2)
        a = tw.attention(q, q, q, causal="top_left").transpose(1, 2).reshape(2, 6, 8)
        return tw.ffn(torch.relu(a), w_in, w_out, residual=x)

    inputs = [leaf(2, 6, 8), leaf(16, 8), leaf(8, 16)]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True)
    expected = torch.autograd.grad(block(*inputs).sum(), inputs)
    found = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e)


def test_half_precision_autocast() -> None:
    q = leaf(B, H, S, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tw.attention(q, q, q).dtype == torch.bfloat16
        assert tw.ffn(leaf(3, D), leaf(16, D), leaf(D, 16)).dtype == torch.bfloat16
        assert tw.softmax(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.float32
    tw.attention(q, q, q).sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


def test_fake_tensors_and_dispatch_modes_see_one_operator() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    with FakeTensorMode():
        out = tw.attention(torch.empty(B, S, H, D), torch.empty(B, S, HKV, D), torch.empty(B, S, HKV, D), layout="bshd")
        assert tuple(out.shape) == (B, S, H, D)
        assert out.is_contiguous()

    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        tw.softmax(torch.randn(3, 4))
    assert "tilewright.softmax.default" in seen


def test_functorch_grad() -> None:
    x = torch.randn(3, 4)
    found = torch.func.grad(lambda t: (tw.softmax(t) * torch.arange(4.0)).sum())(x)
    expected = torch.func.grad(lambda t: (torch.softmax(t, -1) * torch.arange(4.0)).sum())(x)
    torch.testing.assert_close(found, expected)
