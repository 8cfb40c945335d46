"""Rotary embeddings with flash_attn.layers.rotary's interface, against pair-by-pair rotation in float64."""

from __future__ import annotations

import pytest
import torch
from flash_attn_reference import assert_near, assert_same_gradients, rotate_positions
from torch import Tensor

from tilewright.integrations.rotary import (
    RotaryEmbedding,
    apply_rotary_emb,
    apply_rotary_emb_kv_,
    apply_rotary_emb_qkv_,
)

B, S, H, D = 2, 5, 3, 12


def tables(positions: int = 20, rotary_dim: int = 8) -> tuple[Tensor, Tensor]:
    angles = torch.rand(positions, rotary_dim // 2) * 6
    return angles.cos(), angles.sin()


def expected_of(x: Tensor, cos: Tensor, sin: Tensor, offsets: list[int], interleaved: bool) -> Tensor:
    steps = torch.arange(x.shape[1])
    return torch.stack([rotate_positions(x[b], cos, sin, steps + n, interleaved) for b, n in enumerate(offsets)])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("offsets", [0, 3, [4, 1]])
def test_padded_batch_and_gradient(offsets: int | list[int], interleaved: bool) -> None:
    x, (cos, sin) = torch.randn(B, S, H, D, requires_grad=True), tables()
    given = torch.tensor(offsets) if isinstance(offsets, list) else offsets
    listed = offsets if isinstance(offsets, list) else [offsets] * B
    out = apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=given)
    assert_near(out, expected_of(x, cos, sin, listed, interleaved), "out")
    assert_same_gradients(
        lambda: apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=given),
        lambda: expected_of(x, cos, sin, listed, interleaved),
        [x],
    )


@pytest.mark.parametrize("offsets", [2, [3, 0, 5]])
def test_packed_sequences(offsets: int | list[int]) -> None:
    x, (cos, sin), bounds = torch.randn(9, H, D), tables(), [0, 4, 4, 9]
    given = torch.tensor(offsets).int() if isinstance(offsets, list) else offsets
    out = apply_rotary_emb(x, cos, sin, seqlen_offsets=given, cu_seqlens=torch.tensor(bounds).int(), max_seqlen=5)
    for b in range(3):
        rows, first = slice(bounds[b], bounds[b + 1]), offsets[b] if isinstance(offsets, list) else offsets
        positions = torch.arange(bounds[b + 1] - bounds[b]) + first
        assert_near(out[rows], rotate_positions(x[rows], cos, sin, positions, False), f"sequence {b}")


def test_inplace_writes_x_and_nothing_else() -> None:
    x, (cos, sin) = torch.randn(B, S, 2 * H, D), tables()
    before, view = x.clone(), x[:, :, ::2]
    assert apply_rotary_emb(view, cos, sin, inplace=True) is view
    assert torch.equal(view, apply_rotary_emb(before[:, :, ::2], cos, sin))
    assert torch.equal(x[:, :, 1::2], before[:, :, 1::2])


def test_inplace_has_a_gradient() -> None:
    leaf, (cos, sin) = torch.randn(B, S, 3, H, D, requires_grad=True), tables()
    turned = apply_rotary_emb_qkv_(leaf * 1.0, cos, sin)
    plain = torch.stack([apply_rotary_emb(leaf[:, :, 0], cos, sin), apply_rotary_emb(leaf[:, :, 1], cos, sin)], 2)
    plain = torch.cat((plain, leaf[:, :, 2:]), 2)
    assert torch.equal(turned, plain)
    g = torch.randn_like(leaf)
    torch.testing.assert_close(torch.autograd.grad(turned, leaf, g), torch.autograd.grad(plain, leaf, g))


def test_half_precision_is_rounded_once() -> None:
    x, (cos, sin) = torch.randn(B, S, H, D).bfloat16(), [t.bfloat16() for t in tables()]
    assert torch.equal(apply_rotary_emb(x, cos, sin), expected_of(x, cos, sin, [0, 0], False).float().bfloat16()), (
        "the result is not the float32 one, rounded"
    )


def test_packed_query_key_value_forms() -> None:
    (cos, sin), (cos_k, sin_k) = tables(), tables()
    grouped = torch.randn(B, S, 4 + 2 * 2, D)
    before = grouped.clone()
    apply_rotary_emb_qkv_(grouped, cos, sin, cos_k, sin_k, seqlen_offsets=1, num_heads_q=4)
    assert torch.equal(grouped[:, :, :4], apply_rotary_emb(before[:, :, :4], cos, sin, seqlen_offsets=1))
    assert torch.equal(grouped[:, :, 4:6], apply_rotary_emb(before[:, :, 4:6], cos_k, sin_k, seqlen_offsets=1))
    assert torch.equal(grouped[:, :, 6:], before[:, :, 6:])
    kv = torch.randn(B, S, 2, H, D)
    before = kv.clone()
    apply_rotary_emb_kv_(kv, cos, sin, True)
    assert torch.equal(kv[:, :, 0], apply_rotary_emb(before[:, :, 0], cos, sin, True))
    assert torch.equal(kv[:, :, 1], before[:, :, 1])


def test_rotary_embedding_keeps_what_matters() -> None:
    # Scores depend on the distance of positions alone, and the frequencies are RoFormer's.
    rotary = RotaryEmbedding(D, base=100.0)
    torch.testing.assert_close(rotary.inv_freq, torch.tensor([100.0 ** (-2 * i / D) for i in range(D // 2)]))
    qkv = torch.randn(1, 1, 3, H, D)
    scores = []
    for offset in (0, 7):
        q = rotary(qkv.clone(), seqlen_offset=offset + 4)[:, 0, 0]
        k = rotary(qkv.clone(), seqlen_offset=offset)[:, 0, 1]
        scores.append((q * k).sum(-1))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(scores[0], (qkv[:, 0, 0] * qkv[:, 0, 1]).sum(-1), atol=1e-2)


def test_rotary_embedding_of_queries_and_a_cache() -> None:
    rotary, offsets = RotaryEmbedding(8, interleaved=True), torch.tensor([3, 0])
    q, kv = torch.randn(B, S, H, D), torch.randn(B, S, 2, H, D)
    before = q.clone(), kv.clone()
    rotary(q, kv, seqlen_offset=offsets, max_seqlen=16)
    angles = torch.outer(torch.arange(16.0), 10000.0 ** (-torch.arange(0, 8, 2) / 8))
    cos, sin = angles.cos(), angles.sin()
    assert_near(q, expected_of(before[0], cos, sin, [3, 0], True), "q", scale=4)
    assert_near(kv[:, :, 0], expected_of(before[1][:, :, 0], cos, sin, [3, 0], True), "k", scale=4)
    assert torch.equal(kv[:, :, 1], before[1][:, :, 1])


def test_xpos_scales_keys_inversely() -> None:
    rotary = RotaryEmbedding(D, scale_base=4)
    qkv = torch.ones(1, 9, 3, 1, D)
    norms = rotary(qkv).unflatten(-1, (2, D // 2)).square().sum(-2).sqrt()[0, :, :2, 0] / 2**0.5
    torch.testing.assert_close(norms[:, 0] * norms[:, 1], torch.ones(9, D // 2))
    decay = (torch.arange(0, D, 2) + 0.4 * D) / (1.4 * D)
    torch.testing.assert_close(norms[:, 0], decay ** ((torch.arange(9)[:, None] - 4) / 4))


def test_half_models_have_float32_frequencies() -> None:
    rotary = RotaryEmbedding(D).bfloat16()
    x = torch.randn(1, 300, 3, H, D).bfloat16()
    found = rotary(x.clone())[:, :, 0]
    angles = torch.outer(torch.arange(300.0), 10000.0 ** (-torch.arange(0, D, 2) / D))
    assert torch.equal(found, apply_rotary_emb(x[:, :, 0], angles.cos().bfloat16(), angles.sin().bfloat16()))


def test_wrong_arguments_are_named() -> None:
    x, (cos, sin) = torch.randn(B, S, H, D), tables()
    for call, message in (
        (lambda: apply_rotary_emb(x[0], cos, sin), r"x has shape .* \(B, S, H, D\)"),
        (lambda: apply_rotary_emb(x, *tables(20, 14)), "rotary_dim at most the head dim of x, 12"),
        (lambda: apply_rotary_emb(x, cos, sin[:5]), "sin has shape"),
        (lambda: apply_rotary_emb(x, cos, sin, seqlen_offsets=17), "20 positions, but 17 to 21 are needed"),
        (lambda: apply_rotary_emb(x, cos, sin, seqlen_offsets=torch.tensor([1])), "seqlen_offsets is torch.int64"),
        (lambda: apply_rotary_emb_qkv_(x, cos, sin), "with num_heads_q=None"),
        (lambda: apply_rotary_emb_qkv_(x, cos, sin, num_heads_q=2), "with num_heads_q=2"),
        (lambda: apply_rotary_emb_kv_(x, cos, sin), r"kv has shape"),
        (lambda: RotaryEmbedding(D)(x, seqlen_offset=torch.tensor([1, 2])), "max_seqlen is None"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
