"""A tensor is more than its address. Of states that a tensor may be in, each is made plain, or refused in words that
name the argument; for every tensor of every op, by the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tilewright as tw
from tilewright.catalog import OPS, canonical_call
from tilewright.integrations.flash_attn import flash_attn_with_kvcache
from tilewright.verify import layouts
from tilewright.verify.case import Case, Maker
from tilewright.verify.substitute import covering

BACKENDS = ("cpu", "reference")

REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([t[:1], t[:1]]),
    "jagged": lambda t: torch.nested.nested_tensor([t.reshape(-1, 1)[:2], t.reshape(-1, 1)[:1]], layout=torch.jagged),
    "mkldnn": lambda t: t.float().to_mkldnn(),
    "quantised": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8),
    "complex": lambda t: torch.complex(t.float(), t.float()),
    "meta": lambda t: t.to("meta"),
}


def _calls(op: str) -> list[tuple[Case, dict[str, Any], str]]:
    """Every tensor argument of an op, in a call that has it."""
    found = []
    for case in covering(op, torch.float32):
        arguments = case.make(Maker(0, case.dtype))
        found += [(case, arguments, n) for n, t in arguments.items() if isinstance(t, Tensor)]
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_states_that_hide_memory_are_made_plain(op: str, backend: str) -> None:
    for case in covering(op, torch.float32):
        assert list(layouts.problems(case, backend)) == []


@pytest.mark.parametrize("state", REFUSED)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.filterwarnings("ignore:.*prototype stage", "ignore:.*deprecated")
def test_what_has_no_strides_is_refused_by_name(op: str, state: str) -> None:
    for _case, arguments, name in _calls(op):
        if not arguments[name].is_floating_point() and state in ("mkldnn", "quantised", "complex"):
            continue
        with pytest.raises((TypeError, ValueError), match=_named(op, name, state, arguments)):
            OPS[op][1](**{**arguments, name: REFUSED[state](arguments[name])})


def _named(op: str, name: str, state: str, arguments: dict[str, Any]) -> str:
    """The argument's name; of the first one, what disagrees with it may be named instead."""
    return r"\b(" + "|".join(arguments) + r")\b" if name == next(iter(arguments)) else rf"\b{name}\b"


@pytest.mark.parametrize("op", OPS)
def test_on_the_meta_device_alone_shapes_come_out(op: str) -> None:
    case = covering(op, torch.float32)[0]
    arguments = case.make(Maker(0, case.dtype))
    meta = {n: t.to("meta") if isinstance(t, Tensor) else t for n, t in arguments.items()}
    out, plain = (r if isinstance(r, Tensor) else r[0] for r in (OPS[op][1](**meta), OPS[op][1](**arguments)))
    assert out.device.type == "meta"
    assert out.shape == plain.shape
    assert out.stride() == plain.stride()


@pytest.mark.parametrize("op", OPS)
def test_memory_that_is_gone_is_refused(op: str) -> None:
    for _case, arguments, name in _calls(op):
        gone = arguments[name].clone()
        gone.untyped_storage().resize_(0)
        # Where a view of it is to be made, torch itself says so.
        with pytest.raises(
            (ValueError, RuntimeError),
            match=rf"{name} of shape .* has no memory; its storage has 0 bytes|out of bounds for storage of size 0",
        ) as raised:
            OPS[op][1](**{**arguments, name: gone})
        del raised  # its frames hold the tensor, which cannot be printed


def test_functional_tensors_stay_functional() -> None:
    x = torch.randn(3, 8)
    y = tw.softmax(torch._to_functional_tensor(x))
    assert torch._is_functional_tensor(y)
    assert torch.equal(torch._from_functional_tensor(y), tw.softmax(x))


def test_what_a_transform_left_behind_is_made_plain_or_refused() -> None:
    x = torch.randn(2, 3)
    left: list[Tensor] = []
    torch.vmap(lambda t: left.append(t) or t * 1)(x)
    with pytest.raises(ValueError, match=r"softmax: x is of torch\.vmap's"):
        tw.softmax(left[0])
    torch.func.grad(lambda t: left.append(t) or t.sum())(x)
    assert torch.equal(tw.softmax(left[1]), tw.softmax(x))


@pytest.mark.parametrize("op", ["attention", "varlen_attention"])
def test_gradients_have_memory_of_their_own(op: str) -> None:
    frames = torch.randn(4, 2, 11).unfold(2, 9, 1) if op == "attention" else torch.randn(6, 19).unfold(1, 9, 5)
    other = torch.randn(frames.shape)
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    rest = () if op == "attention" else (bounds, bounds, 4, 4)
    for position in range(3):
        found = []
        for given in (frames.detach(), frames.clone()):
            qkv = [other, other, other]
            qkv[position] = given.requires_grad_()
            OPS[op][1](*qkv, *rest).square().sum().backward()
            assert given.grad is not None
            found.append(given.grad)
        torch.testing.assert_close(*found)


def test_a_tensor_saved_and_then_written_is_noticed() -> None:
    q, new = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)
    for name in ("k_cache", "v_cache"):
        caches = {n: torch.randn(1, 2, 6, 8) for n in ("k_cache", "v_cache")}
        weight = torch.ones(8, requires_grad=True)
        y = (caches[name] * weight).sum()
        tw.kvcache_attention(q, **caches, k=new, v=new, cache_seqlens=3)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()
    kept = torch.randn(1, 2, 6, 8)
    version = kept._version
    tw.kvcache_attention(q, kept, kept)  # which writes nothing
    assert kept._version == version


def test_every_way_to_a_cache_counts_its_writes() -> None:
    q, new = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)
    call, _ = canonical_call("kvcache_attention", q, new, new, k=new, v=new, cache_seqlens=0)
    operator = OPS["kvcache_attention"][0].operator
    turned = [t.transpose(1, 2) for t in (q, new, new)]
    lengths = torch.tensor([3], dtype=torch.int32)
    pages = {"block_table": torch.tensor([[0]], dtype=torch.int32)}
    ways: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "the operator": lambda k, v: operator(*call._replace(k_cache=k, v_cache=v, cache_seqlens=lengths + 1), ""),
        "compiled": lambda k, v: _append_compiled(q, k, v, new),
        "flash_attn's": lambda k, v: flash_attn_with_kvcache(
            turned[0], k.transpose(1, 2), v.transpose(1, 2), turned[1], turned[2], cache_seqlens=lengths
        ),
        "pages": lambda k, v: tw.kvcache_attention(q, k, v, k=new, v=new, cache_seqlens=lengths, **pages),
        "under no_grad": lambda k, v: torch.no_grad()(tw.kvcache_attention)(q, k, v, k=new, v=new, cache_seqlens=3),
    }
    for name, append in ways.items():
        caches = [torch.zeros(1, 2, 6, 8) for _ in range(2)]
        before = [t._version for t in caches]
        append(*caches)
        assert all(t.any() for t in caches), f"{name} wrote nothing"
        assert all(t._version > b for t, b in zip(caches, before, strict=True)), f"{name} does not count its writes"


def _append_compiled(q: Tensor, k: Tensor, v: Tensor, new: Tensor) -> Tensor:
    function = torch.compile(tw.kvcache_attention, backend="aot_eager")
    return function(q, k, v, k=new, v=new, cache_seqlens=3)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (torch.randn(1, 1, 6, 8).expand(1, 2, 6, 8), "share one place in memory"),
        (torch.randn(1, 2, 13).unfold(2, 8, 1), "share one place in memory"),
        (torch._neg_view(torch.randn(1, 2, 6, 8)), "no elements to be updated in place"),
        (torch._efficientzerotensor((1, 2, 6, 8)), "no elements to be updated in place"),
    ],
)
def test_a_cache_that_cannot_be_written_is_refused_only_when_it_is(cache: Tensor, words: str) -> None:
    q, new = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8)
    good = torch.randn(1, 2, 6, 8)
    with pytest.raises(ValueError, match=f"v_cache .*{words}"):
        tw.kvcache_attention(q, good.clone(), cache, k=new, v=new, cache_seqlens=3)
    plain = torch.zeros(cache.shape) + cache
    torch.testing.assert_close(tw.kvcache_attention(q, good, cache), tw.kvcache_attention(q, good, plain))
