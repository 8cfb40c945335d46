"""Our attention inside torch.nn's transformer layers, built in or put in afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tilewright.nn import MultiheadAttention, replace_attention

N, L, E, H = 2, 6, 8, 2
PADDING = torch.tensor([[0] * 6, [0] * 4 + [1] * 2]).bool()


def encoder(**options: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoder(layer, 2, **options)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every forward of ours, which torch's inference kernels would bypass."""
    calls: list[str] = []
    forward = MultiheadAttention.forward

    def noting(self: MultiheadAttention, *args: Tensor, **options: Tensor) -> tuple[Tensor, Tensor | None]:
        calls.append("forward")
        return forward(self, *args, **options)

    monkeypatch.setattr(MultiheadAttention, "forward", noting)
    return calls


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("training", [True, False])
def test_a_replaced_encoder_computes_the_same_with_our_kernels(training: bool, called: list[str]) -> None:
    model = encoder().train(training)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
    x = torch.randn(N, L, E, dtype=torch.float64)
    arguments = {"src_key_padding_mask": PADDING}
    with torch.set_grad_enabled(training):
        expected = model(x, **arguments)
        before = {name: id(p) for name, p in model.named_parameters()}
        with replace_attention(model) as replaced:
            assert replaced.names == ["layers.0.self_attn", "layers.1.self_attn"]
            out = model(x, **arguments)
            assert len(called) == 2, "torch's inference kernel ran in our place"
            assert before == {name: id(p) for name, p in model.named_parameters()}
            assert len(copy.deepcopy(model)(x, **arguments)) == N and len(called) == 4
    real = ~PADDING  # torch's inference path gives 0 at padding
    torch.testing.assert_close(out[real], expected[real])
    assert type(model.layers[0].self_attn) is nn.MultiheadAttention
    assert model.use_nested_tensor and not model.layers[0].self_attn._forward_pre_hooks, "undo left something behind"
    replaced.undo()


def test_built_into_an_encoder_layer_it_is_not_bypassed(called: list[str]) -> None:
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True, dtype=torch.float64).eval()
    x = torch.randn(N, L, E, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x, src_mask=causal, is_causal=True)
        ours = MultiheadAttention(E, H, batch_first=True, dtype=torch.float64)
        ours.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = ours.eval()
        torch.testing.assert_close(layer(x, src_mask=causal, is_causal=True), expected)
        stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        stack(x, src_key_padding_mask=PADDING)
    assert len(called) == 3


def test_decoder_layer_and_whole_transformer(called: list[str]) -> None:
    model = nn.Transformer(E, H, 1, 1, 16, batch_first=True, dtype=torch.float64).eval()
    x, y = torch.randn(N, L, E, dtype=torch.float64), torch.randn(N, L - 1, E, dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(L - 1, dtype=torch.float64)
    expected = model(x, y, tgt_mask=causal, tgt_is_causal=True)
    replace_attention(model)
    torch.testing.assert_close(model(x, y, tgt_mask=causal, tgt_is_causal=True), expected)
    assert len(called) == 3


def test_compiles_into_one_graph_inside_a_layer() -> None:
    layer = nn.TransformerEncoderLayer(E, H, 16, batch_first=True, dropout=0.0, dtype=torch.float64)
    replace_attention(layer)
    x = torch.randn(N, L, E, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, src_key_padding_mask=PADDING), layer(x, src_key_padding_mask=PADDING))


def test_what_cannot_be_replaced_changes_nothing() -> None:
    with pytest.raises(TypeError, match="model must be a torch"):
        replace_attention([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model has no torch"):
        replace_attention(nn.Linear(2, 2))
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.MultiheadAttention(512, 1))
    with pytest.raises(ValueError, match="1: embed_dim / num_heads = 512"):
        replace_attention(model)
    assert type(model[0]) is nn.MultiheadAttention


def test_a_forward_of_its_own_would_go_on_being_called() -> None:
    model = encoder()
    attention = model.layers[1].self_attn
    attention.forward = attention.forward
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn has a forward of its own"):
        replace_attention(model)
    assert type(model.layers[0].self_attn) is type(attention) is nn.MultiheadAttention
