"""flash_attn_func and the packed forms against FlashAttention 2's documented semantics in float64."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from flash_attn_reference import assert_near, assert_same_gradients, attend_batch
from torch import Tensor

import tilewright as tw
from tilewright.integrations import flash_attn as fa

B, SQ, SK, H, HKV, D = 2, 5, 9, 4, 2, 12


def r(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_(grad)


def qkv(sq: int = SQ, sk: int = SK, dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    return [r(B, sq, H, D, dtype=dtype, grad=grad)] + [r(B, sk, HKV, D, dtype=dtype, grad=grad) for _ in range(2)]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (2, 1)},
    "left alone": {"window_size": (3, -1)},
    "right alone": {"window_size": (-1, 0)},
    "causal ignores the right side": {"causal": True, "window_size": (2, 3)},
    "scale": {"softmax_scale": 0.7},
    "softcap": {"softcap": 1.5, "causal": True},
    "softcap below 0 is off": {"softcap": -1.0},
    "alibi of heads": {"alibi_slopes": torch.tensor([0.5, 0.1, 0.9, 0.3])},
    "alibi of batch and heads": {"alibi_slopes": torch.rand(B, H, generator=torch.manual_seed(1)), "causal": True},
}


@pytest.mark.parametrize("lengths", [(SQ, SK), (SK, SQ), (1, SK), (SQ, SQ)])
@pytest.mark.parametrize("case", CASES)
def test_output_lse_and_gradients(case: str, lengths: tuple[int, int]) -> None:
    inputs, options = qkv(*lengths, grad=True), CASES[case]
    out, lse, probabilities = fa.flash_attn_func(*inputs, **options, return_attn_probs=True)
    expected, expected_lse = attend_batch(*inputs, **options)
    assert_near(out, expected, "out", scale=4)
    assert_near(lse, expected_lse, "softmax_lse", scale=4)
    assert probabilities.numel() == 0 and lse.dtype == torch.float32
    assert_same_gradients(
        lambda: fa.flash_attn_func(*inputs, **options), lambda: attend_batch(*inputs, **options)[0], inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype(dtype: torch.dtype) -> None:
    inputs = qkv(dtype=dtype)
    out, lse, _ = fa.flash_attn_func(*inputs, causal=True, return_attn_probs=True)
    assert out.dtype == dtype and lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near(out, attend_batch(*inputs, causal=True)[0], "out")


@pytest.mark.parametrize(
    ("sq", "sk", "mask"),
    [(2, 5, ["11110", "11111"]), (5, 2, ["00", "00", "00", "10", "11"])],
    ids=["2 queries, 5 keys", "5 queries, 2 keys"],
)
def test_causal_masks_of_flash_attentions_docstring(sq: int, sk: int, mask: list[str]) -> None:
    # Equal scores and one-hot values: the output is the mask, each row divided by its sum.
    q, k = torch.zeros(1, sq, 1, sk), torch.zeros(1, sk, 1, sk)
    out, lse, _ = fa.flash_attn_func(q, k, torch.eye(sk)[None, :, None], causal=True, return_attn_probs=True)
    expected = torch.tensor([[float(c) for c in row] for row in mask])
    torch.testing.assert_close(out[0, :, 0], expected / expected.sum(-1, keepdim=True).clamp(min=1))
    torch.testing.assert_close(lse[0, 0], expected.sum(-1).log())


def test_strided_views_and_other_value_dim() -> None:
    q, k, v = qkv()
    q_view = torch.stack((q, -q), -1)[..., 0]
    k_view = k.transpose(1, 2).contiguous().transpose(1, 2)
    v = r(B, SK, HKV, 7)
    assert not q_view.is_contiguous() and not k_view.is_contiguous()
    out = fa.flash_attn_func(q_view, k_view, v)
    assert_near(out, attend_batch(q, k, v)[0], "out")


def test_packed_forms_are_the_plain_one() -> None:
    packed, q, kv = r(B, SQ, 3, H, D, grad=True), r(B, SQ, H, D, grad=True), r(B, SK, 2, HKV, D, grad=True)
    assert_same_gradients(
        lambda: fa.flash_attn_qkvpacked_func(packed, causal=True),
        lambda: attend_batch(*packed.unbind(2), causal=True)[0],
        [packed],
    )
    assert_same_gradients(
        lambda: fa.flash_attn_kvpacked_func(q, kv, window_size=(2, 2)),
        lambda: attend_batch(q, *kv.unbind(2), window_size=(2, 2))[0],
        [q, kv],
    )


def test_window_of_tensors_is_read() -> None:
    inputs = qkv()
    found = fa.flash_attn_func(*inputs, window_size=torch.tensor([2, 1]))  # as flash-attn's own tests pass it
    assert torch.equal(found, fa.flash_attn_func(*inputs, window_size=(2, 1)))


def test_dropout_follows_what_s_dmask_says() -> None:
    q, k, v = qkv(sk=300, grad=True)  # more keys than one pass over one-hot values holds
    out, lse, dropped = fa.flash_attn_func(q, k, v, 0.3, causal=True, return_attn_probs=True)
    plain, plain_lse = attend_batch(q, k, v, causal=True)
    kept = dropped >= 0
    assert dropped.shape == (B, H, SQ, 300)
    assert abs((~kept).sum() / (dropped != 0).sum() - 0.3) < 0.03, "the share of what is dropped is not dropout_p"
    assert_near(lse, plain_lse, "softmax_lse", scale=4)
    assert_near(dropped.abs().sum(-1), torch.ones(B, H, SQ).double(), "the sum of the probabilities", scale=4)
    expected = attend_batch(q, k, v, causal=True, kept=kept, dropout_p=0.3)[0]
    assert_near(out, expected, "out")
    assert (expected - plain).abs().max() > 0.01
    cotangent = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, (q, k, v), cotangent.to(o.dtype)) for o in (out, expected))
    for a, b in zip(found, wanted, strict=True):
        assert_near(a, b.double(), "gradient", scale=4)


def test_seeds_repeat_dropout() -> None:
    inputs = qkv()
    first, again = (torch.manual_seed(7) and fa.flash_attn_func(*inputs, 0.5) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("probabilities", [False, True])
def test_compiles_as_one_graph(probabilities: bool) -> None:
    inputs = qkv(grad=True)

    def step(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return fa.flash_attn_func(q, k, v, causal=True, window_size=(3, 0), return_attn_probs=probabilities)

    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    out = found[0] if probabilities else found
    assert_near(out, attend_batch(*inputs, causal=True, window_size=(3, 0))[0], "compiled out")
    out.sum().backward()
    assert inputs[0].grad is not None


def test_compiles_with_dropout_and_probabilities() -> None:
    inputs = qkv()
    step = torch.compile(fa.flash_attn_func, fullgraph=True, backend="aot_eager")
    out, _, dropped = step(*inputs, 0.3, return_attn_probs=True)
    assert_near(out, attend_batch(*inputs, kept=dropped >= 0, dropout_p=0.3)[0], "compiled out")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_runs_on_the_backend_of_the_context(backend: str) -> None:
    inputs = qkv()
    with tw.use_backend(backend):
        assert_near(fa.flash_attn_func(*inputs, causal=True), attend_batch(*inputs, causal=True)[0], "out")


_OPTIONS = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
_LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")

#: flash-attn 2.8's signatures: the names without defaults, then the names with theirs, in order.
SIGNATURES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "flash_attn_func": (("q", "k", "v"), _OPTIONS),
    "flash_attn_qkvpacked_func": (("qkv",), _OPTIONS),
    "flash_attn_kvpacked_func": (("q", "kv"), _OPTIONS),
    "flash_attn_varlen_func": (("q", "k", "v", *_LENGTHS), {**_OPTIONS, "block_table": None}),
    "flash_attn_varlen_qkvpacked_func": (("qkv", "cu_seqlens", "max_seqlen"), _OPTIONS),
    "flash_attn_varlen_kvpacked_func": (("q", "kv", *_LENGTHS), _OPTIONS),
    "flash_attn_with_kvcache": (
        ("q", "k_cache", "v_cache"),
        {
            **dict.fromkeys(("k", "v", "rotary_cos", "rotary_sin", "cache_seqlens", "cache_batch_idx")),
            "cache_leftpad": None,
            "block_table": None,
            "softmax_scale": None,
            "causal": False,
            "window_size": (-1, -1),
            "softcap": 0.0,
            "rotary_interleaved": True,
            "alibi_slopes": None,
            "num_splits": 0,
            "return_softmax_lse": False,
        },
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature_is_flash_attentions(name: str) -> None:
    required, defaults = SIGNATURES[name]
    parameters = inspect.signature(getattr(fa, name)).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    found = [(p.name, p.default) for p in parameters]
    assert found == [*((n, inspect.Parameter.empty) for n in required), *defaults.items()]


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"q": r(SQ, H, D)}, ValueError, r"q has shape .*\(B, S, H, D\)"),
    "dtype of k": ({"k": r(B, SK, HKV, D).half()}, TypeError, "k has dtype"),
    "heads": ({"q": r(B, SQ, 3, D)}, ValueError, "3 heads"),
    "head dim": ({"q": r(B, SQ, H, 300), "k": r(B, SK, HKV, 300)}, ValueError, "head dim 300"),
    "batch": ({"q": r(3, SQ, H, D)}, ValueError, "batch size"),
    "causal": ({"causal": "top_left"}, TypeError, "causal must be a bool"),
    "window of None": ({"window_size": None}, TypeError, "window_size=None"),
    "window of floats": ({"window_size": (1.0, 0)}, TypeError, r"window_size\[0\] must be an int, got float"),
    "dropout": ({"dropout_p": 1.5}, ValueError, "dropout_p=1.5"),
    "softcap": ({"softcap": "a"}, TypeError, "softcap must be a number"),
    "scale": ({"softmax_scale": float("nan")}, ValueError, "softmax_scale=nan"),
    "alibi": ({"alibi_slopes": torch.ones(3)}, ValueError, r"alibi_slopes of shape \(3,\)"),
    "deterministic": ({"deterministic": 1}, TypeError, "deterministic must be a bool"),
    "return_attn_probs": ({"return_attn_probs": None}, TypeError, "return_attn_probs must be a bool"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(case: str) -> None:
    given, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        fa.flash_attn_func(**{**dict(zip("qkv", qkv(), strict=True)), **given})


def test_wrong_packed_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"qkv has shape .* must be \(B, S, 3, H, D\)"):
        fa.flash_attn_qkvpacked_func(r(B, SQ, 2, H, D))
    with pytest.raises(ValueError, match=r"kv has shape .* must be \(B, S, 2, Hkv, D\)"):
        fa.flash_attn_kvpacked_func(r(B, SQ, H, D), r(B, SK, 3, H, D))
    with pytest.raises(TypeError, match="qkv must be a torch"):
        fa.flash_attn_qkvpacked_func([1])
