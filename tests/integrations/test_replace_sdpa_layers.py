"""replace_sdpa under torch.compile and torch.export, and in torch's own attention layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as imported_early

import tilewright as tw
from tilewright.integrations.replace_sdpa import replace_sdpa

Q = torch.randn(2, 3, 5, 8)
WIDE = torch.randn(1, 1, 3, 300)
X = torch.randn(2, 5, 8)
PADDED = torch.tensor([[False] * 4 + [True], [False] * 3 + [True] * 2])


def attend(q: Tensor) -> Tensor:
    return imported_early(q, q, q, is_causal=True).sin()


@pytest.fixture(autouse=True)
def _compile_afresh() -> None:
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    result: Callable[..., Any] = torch.compile(function, fullgraph=True, backend="aot_eager", **options)
    return result


def test_compiled_inside_counts_once_per_trace() -> None:
    with replace_sdpa() as first:
        run = compiled(attend)
        for _ in range(3):
            torch.testing.assert_close(run(Q), attend(Q))
    assert first.served == 1 + 3, "one trace, and three eager calls of the comparison"
    with replace_sdpa() as second:
        run(Q)
    assert second.served == 0, "another block does not make torch.compile trace again"


def test_compiled_outside_is_traced_again_inside() -> None:
    graphs: list[str] = []

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(module.graph))
        return module

    run = torch.compile(attend, fullgraph=True, backend=look)
    run(Q)
    with replace_sdpa() as sdpa:
        run(Q)
    run(Q)
    assert sdpa.served == 1
    assert ["tilewright.attention" in graph for graph in graphs] == [False, True]


def test_block_inside_compiled_code() -> None:
    sdpa = replace_sdpa()

    def inside(q: Tensor) -> Tensor:
        with sdpa:
            return attend(q)

    torch.testing.assert_close(compiled(inside)(Q), attend(Q))
    assert sdpa.served == 1


def test_compiled_refusals_go_to_torch_and_requests_raise() -> None:
    with replace_sdpa() as sdpa:
        torch.testing.assert_close(compiled(attend)(WIDE), attend(WIDE))
    assert set(sdpa.refused) == {"query has head dim 300; accepted are 1 to 256"}
    torch._dynamo.reset()
    with replace_sdpa("cpu"), pytest.raises(Exception, match="query has head dim 300"):
        compiled(attend)(WIDE)


def test_compiled_gradients_with_dynamic_lengths() -> None:
    run, results = compiled(attend, dynamic=True), []
    served = []
    with replace_sdpa() as sdpa:
        for length in (5, 6, 9):
            x = torch.randn(1, 2, length, 8, requires_grad=True)
            (found,) = torch.autograd.grad(run(x).sum(), x)
            results.append((x, found))
            served.append(sdpa.served)
    assert served[0] > 0 and served[1:] == served[:1] * 2, f"{served}: another length must not be another trace"
    for x, found in results:
        torch.testing.assert_close(found, torch.autograd.grad(attend(x).sum(), x)[0])


@pytest.mark.parametrize("strict", [False, True])
def test_export_keeps_one_node_and_exported_programs_are_served(strict: bool) -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return attend(q)

    with replace_sdpa() as sdpa:
        ours = torch.export.export(Attend(), (Q,), strict=strict)
    assert sdpa.served in (1, 2), "strict export traces twice"
    assert str(ours.graph).count("tilewright.attention") == 1
    torch.testing.assert_close(ours.module()(Q), attend(Q))
    torchs = torch.export.export(Attend(), (Q,), strict=strict)
    with replace_sdpa() as sdpa:
        torch.testing.assert_close(torchs.module()(Q), attend(Q))
    assert sdpa.served == 2, "the exported program's call, and the comparison's"


def multi_head(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], int]] = {
    "self-attention": (multi_head, lambda m: m(X, X, X, need_weights=False)[0], 1),
    "padding": (multi_head, lambda m: m(X, X, X, key_padding_mask=PADDED, need_weights=False)[0], 1),
    "cross, bias_kv, zero_attn": (
        lambda: multi_head(kdim=6, vdim=7, add_bias_kv=True, add_zero_attn=True),
        lambda m: m(X, X[..., :6], X[..., 1:], need_weights=False)[0],
        1,
    ),
    "encoder": (encoder, lambda m: m(X), 2),
    "encoder, padding": (encoder, lambda m: m(X, src_key_padding_mask=PADDED)[:, :3], 2),
    "decoder": (
        lambda: nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True),
        lambda m: m(X, X, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5), tgt_is_causal=True),
        2,
    ),
}


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("case", LAYERS)
def test_torchs_layers_are_served(case: str, mode: str) -> None:
    make, call, count = LAYERS[case]
    module = make().train(mode == "train")
    with torch.inference_mode(mode == "inference"):
        expected = call(module)
        with replace_sdpa("cpu") as sdpa:
            torch.testing.assert_close(call(module), expected)
    assert sdpa.served == count


@pytest.mark.parametrize("case", ["self-attention", "encoder"])
def test_torchs_layers_are_served_under_compile(case: str) -> None:
    make, call, count = LAYERS[case]
    module = make().eval()
    expected = call(module)
    with replace_sdpa("cpu") as sdpa:
        torch.testing.assert_close(compiled(call)(module), expected)
    assert sdpa.served == count


def test_without_the_fast_path_compiled_layers_are_served_in_inference_too() -> None:
    module = encoder().eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), replace_sdpa() as sdpa:
            compiled(module)(X)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert sdpa.served == 2


def test_layers_inside_another_mode_are_served() -> None:
    module = multi_head()
    with torch.device("cpu"), replace_sdpa() as sdpa:
        module(X, X, X, need_weights=False)
    with replace_sdpa() as outer, torch.device("cpu"):
        module(X, X, X, need_weights=False)
    assert (sdpa.served, outer.served) == (1, 1)


def test_attention_with_weights_is_reported() -> None:
    module = multi_head()
    with replace_sdpa() as sdpa:
        module(X, X, X)
    assert (sdpa.served, sdpa.refused.total()) == (0, 1)
    assert "pass need_weights=False" in str(sdpa)
    with replace_sdpa("cpu"), pytest.raises(TypeError, match="pass need_weights=False"):
        module(X, X, X)


def test_fused_layers_called_by_hand_are_reported() -> None:
    module = multi_head().eval()
    weights = (module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias)
    with torch.no_grad(), replace_sdpa() as sdpa:
        torch._native_multi_head_attention(X, X, X, 8, 2, *weights, need_weights=False)
    assert list(sdpa.refused) == ["torch._native_multi_head_attention has its attention fused in"]


def test_autocast_vmap_and_a_mask_with_a_gradient() -> None:
    mask = torch.randn(5, 5, requires_grad=True)
    batched = torch.randn(4, 2, 3, 5, 8)
    with replace_sdpa("cpu") as sdpa:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert imported_early(Q, Q, Q).dtype == torch.bfloat16
        (found,) = torch.autograd.grad(imported_early(Q, Q, Q, mask).sin().sum(), mask)
        mapped = torch.vmap(attend)(batched)
    assert sdpa.served == 3
    torch.testing.assert_close(found, torch.autograd.grad(imported_early(Q, Q, Q, mask).sin().sum(), mask)[0])
    torch.testing.assert_close(mapped, torch.vmap(attend)(batched))
    assert tw.scaled_dot_product_attention(Q, Q, Q).dtype == torch.float32
