"""tilewright.nn.MultiheadAttention against torch.nn.MultiheadAttention: parameters, values, weights, gradients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tilewright.nn import MultiheadAttention

N, L, S, E, H = 2, 5, 7, 12, 3
PADDING = torch.tensor([[0] * 5 + [1] * 2, [1] + [0] * 6]).bool()
SELF_PADDING = PADDING[:, :L]
CAUSAL = torch.ones(L, L).triu(1).bool()
CAUSAL_CROSS = torch.ones(L, S).triu(S - L + 1).bool()
PER_HEAD = torch.rand(N * H, L, S) > 0.7


def r(*sizes: int) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64)


def added(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)


SELF, CROSS, SAME_KV = "self", "cross", "one tensor for key and value"

#: name: constructor's options, what the inputs are, forward's options.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "self": ({}, SELF, {}),
    "cross": ({}, CROSS, {}),
    "keys are values": ({}, SAME_KV, {}),
    "no bias": ({"bias": False}, SELF, {}),
    "no bias, cross": ({"bias": False}, SAME_KV, {}),
    "kdim, vdim": ({"kdim": 6, "vdim": 4}, CROSS, {}),
    "kdim, no bias": ({"kdim": 6, "bias": False}, CROSS, {}),
    "padding": ({}, CROSS, {"key_padding_mask": PADDING}),
    "padding, float": ({}, CROSS, {"key_padding_mask": added(PADDING)}),
    "mask 2-D": ({}, CROSS, {"attn_mask": torch.rand(L, S) > 0.7}),
    "mask 2-D, float": ({}, CROSS, {"attn_mask": r(L, S)}),
    "mask 3-D": ({}, CROSS, {"attn_mask": PER_HEAD}),
    "mask 3-D, float": ({}, CROSS, {"attn_mask": r(N * H, L, S)}),
    "both, bool": (
        {},
        CROSS,
        {"attn_mask": PER_HEAD & ~PADDING[:, :1].repeat(H, 1)[:, None], "key_padding_mask": PADDING},
    ),
    "both, float": ({}, CROSS, {"attn_mask": r(L, S), "key_padding_mask": added(PADDING)}),
    "both, mixed": ({}, CROSS, {"attn_mask": r(L, S), "key_padding_mask": PADDING}),
    "causal": ({}, SELF, {"attn_mask": CAUSAL, "is_causal": True}),
    "causal, padding": (
        {},
        SELF,
        {"attn_mask": CAUSAL, "is_causal": True, "key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0] * 5]).bool()},
    ),
    "bias_kv": ({"add_bias_kv": True}, CROSS, {}),
    "bias_kv, masks": ({"add_bias_kv": True}, CROSS, {"attn_mask": PER_HEAD, "key_padding_mask": PADDING}),
    "zero_attn": ({"add_zero_attn": True}, CROSS, {"attn_mask": r(L, S), "key_padding_mask": added(PADDING)}),
    "bias_kv, zero_attn": ({"add_bias_kv": True, "add_zero_attn": True}, SELF, {"key_padding_mask": SELF_PADDING}),
    "one head": ({"num_heads": 1}, SELF, {}),
}


def make(cls: type[nn.Module], **options: Any) -> Any:
    torch.manual_seed(1)
    module = cls(**{"embed_dim": E, "num_heads": H, "dtype": torch.float64, **options})
    for p in module.parameters():  # fresh biases are zero, which would hide a mix-up
        p.data.add_(torch.randn_like(p), alpha=0.1)
    return module


def inputs(kind: str, options: dict[str, Any], batch_first: bool) -> list[Tensor]:
    torch.manual_seed(2)
    query = r(N, L, E)
    key = query if kind == SELF else r(N, S, options.get("kdim", E))
    value = key if kind != CROSS else r(N, S, options.get("vdim", E))
    tensors = {
        id(t): (t if batch_first else t.transpose(0, 1).contiguous()).requires_grad_() for t in (query, key, value)
    }
    return [tensors[id(t)] for t in (query, key, value)]


def evaluate(module: nn.Module, tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """Output, weights, and the gradients of a sum over both of inputs, parameters and a float mask."""
    options = dict(options)
    leaves = list({id(t): t for t in tensors}.values()) + list(module.parameters())
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options["attn_mask"] = mask.clone().requires_grad_()
        leaves.append(options["attn_mask"])
    results = [t for t in module(*tensors, **options) if t is not None]
    total = sum((t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in results)
    return results + [g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_values_weights_and_gradients_are_torchs(case: str, batch_first: bool, weights: dict[str, bool]) -> None:
    options, kind, arguments = CASES[case]
    theirs, ours = (
        evaluate(
            make(cls, batch_first=batch_first, **options),
            inputs(kind, options, batch_first),
            {**arguments, **weights},
        )
        for cls in (nn.MultiheadAttention, MultiheadAttention)
    )
    assert len(ours) == len(theirs)
    for mine, torchs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("need_weights", [True, False])
def test_one_sequence_without_a_batch(need_weights: bool) -> None:
    options = {"key_padding_mask": PADDING[0], "attn_mask": torch.rand(H, L, S) > 0.9, "need_weights": need_weights}
    query, key, value = r(L, E), r(S, E), r(S, E)
    for batch_first in (True, False):
        pair = [
            make(c, batch_first=batch_first)(query, key, value, **options)
            for c in (nn.MultiheadAttention, MultiheadAttention)
        ]
        for torchs, mine in zip(*pair, strict=True):
            torch.testing.assert_close(mine, torchs)


def test_a_bound_given_as_a_hint_does_not_hide_an_appended_key() -> None:
    # torch drops the mask for the hint here, and its causal bound then hides the appended key from all queries.
    module, x = make(MultiheadAttention, batch_first=True, add_bias_kv=True), r(N, L, E)
    with_hint = module(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False)[0]
    torch.testing.assert_close(with_hint, module(x, x, x, attn_mask=CAUSAL)[0])


def test_a_query_that_sees_nothing_gives_the_output_bias() -> None:
    module, x = make(MultiheadAttention, batch_first=True), r(N, L, E).requires_grad_()
    nothing = torch.zeros(L, L, dtype=torch.bool)
    nothing[2] = True
    for need_weights in (True, False):
        out, weights = module(x, x, x, attn_mask=nothing, need_weights=need_weights)
        torch.testing.assert_close(out[:, 2], module.out_proj.bias.expand(N, E))
        assert weights is None or (weights[:, 2] == 0).all()
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


def test_parameters_are_torchs_for_the_same_seed_and_load_both_ways() -> None:
    for options in ({}, {"bias": False}, {"kdim": 6}, {"add_bias_kv": True}):
        pair = []
        for cls in (nn.MultiheadAttention, MultiheadAttention):
            torch.manual_seed(3)
            pair.append(cls(E, H, **options))
        theirs, ours = (module.state_dict() for module in pair)
        assert list(theirs) == list(ours)
        for name in theirs:
            assert torch.equal(theirs[name], ours[name]), name
        pair[0].load_state_dict(ours)
        pair[1].load_state_dict(theirs)


def test_dropout_of_weights_is_torchs_and_only_in_training() -> None:
    x = r(N, L, E)
    results = []
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        module = make(cls, dropout=0.4, batch_first=True)
        torch.manual_seed(4)
        results.append(module(x, x, x, average_attn_weights=False))
    for torchs, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs)
    assert (results[1][1] == 0).any()
    fused = module(x, x, x, need_weights=False)[0]
    assert not torch.equal(fused, module(x, x, x, need_weights=False)[0]), "training without dropout"
    module.eval()
    torch.testing.assert_close(module(x, x, x, need_weights=False)[0], module(x, x, x)[0])


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast(dtype: torch.dtype, need_weights: bool) -> None:
    exact, x = make(MultiheadAttention, batch_first=True), r(N, L, E)
    mask = r(L, L)
    expected = exact(x, x, x, attn_mask=mask)[0]
    module = copy.deepcopy(exact).to(dtype)
    half = x.to(dtype)
    low = module(half, half, half, attn_mask=mask.to(dtype), need_weights=need_weights)
    with torch.autocast("cpu", dtype):
        single, narrow = exact.float(), x.float()
        mixed = single(narrow, narrow, narrow, attn_mask=mask.float(), need_weights=need_weights)
        masked = single(half, half, half, attn_mask=mask.to(dtype), need_weights=need_weights)
    for out, weights in (low, mixed, masked):
        assert out.dtype == dtype
        assert (out - expected).abs().max() < 8 * torch.finfo(dtype).eps * expected.abs().max()
        assert weights is None or weights.dtype == (dtype if out is low[0] else torch.float32)


@pytest.mark.parametrize("need_weights", [True, False])
def test_compiles_into_one_graph(need_weights: bool) -> None:
    module, x = make(MultiheadAttention, batch_first=True), r(N, L, E)
    options = {"key_padding_mask": SELF_PADDING, "attn_mask": CAUSAL, "need_weights": need_weights, "is_causal": True}
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, x, **options), module(x, x, x, **options))


def test_copies_and_pickles() -> None:
    module, x = make(MultiheadAttention), r(L, N, E)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(x, x, x), module(x, x, x), rtol=0, atol=0)


def test_a_bias_of_another_type_is_taken() -> None:
    module, x = make(MultiheadAttention, batch_first=True), r(N, L, E)
    module.in_proj_bias.data.copy_(module.in_proj_bias.half())
    expected = module(x, x, x)[0]
    module.in_proj_bias = nn.Parameter(module.in_proj_bias.half())
    torch.testing.assert_close(module(x, x, x)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("holds", [float("nan"), float("inf")])
def test_a_padded_position_has_no_part_whatever_it_holds(holds: float, need_weights: bool, compiled: bool) -> None:
    """Of what is computed where there is no padding, in values, weights and gradients."""
    module = make(MultiheadAttention, batch_first=True)
    called = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    queries, found = r(N, L, E), []
    clean = r(N, S, E)
    for keys in (clean, clean.masked_fill(PADDING[..., None], holds)):
        leaves = [queries.clone().requires_grad_(), keys.requires_grad_()]
        out, weights = called(
            leaves[0],
            leaves[1],
            leaves[1],
            key_padding_mask=PADDING,
            attn_mask=added(CAUSAL_CROSS),
            need_weights=need_weights,
        )
        loss = out.square().sum() + (weights.square().sum() if need_weights else 0.0)
        found.append([out, *torch.autograd.grad(loss, leaves), *([weights] if need_weights else [])])
    torch.testing.assert_close(found[1], found[0])
