"""The attention kernels in Triton's interpreter (on the GPU where there is one), against the same cases and gates."""

from __future__ import annotations

import pytest
import torch

import tilewright as tw
from tilewright.backends import triton_attention_call
from tilewright.verify.case import Case
from tilewright.verify.cases import attention, select_cases, varlen_attention
from tilewright.verify.run import run_case

OPS = ("attention", "varlen_attention", "kvcache_attention")

#: Each option once, in one of three dtypes: the interpreter takes a second for a case. `tilewright verify` runs all.
FEATURES = (
    "attention/causal_top_left_70x130/float32",
    "attention/causal_bottom_right_2x90/float16",
    "attention/everything/bfloat16",
    "attention/dropout_everything/float32",
    "attention/gqa/float16",
    "attention/head_dim_50_3/bfloat16",
    "attention/head_dim_256_17/float32",
    "attention/large_logits_negative/float32",
    "attention/layout_bshd/float16",
    "attention/length_100x1/float32",
    "attention/lse_gradient/bfloat16",
    "attention/mask_bool_bhqk_rows/float16",
    "attention/mask_float_1111/float32",
    "attention/mask_float_b11k/bfloat16",
    "attention/mask_float_11qk_min/float32",
    "attention/memory_strided/float16",
    "attention/scale_zero/bfloat16",
    "attention/sinks_window_longer_keys/float32",
    "attention/empty_keys_sinks/float16",
    "attention/empty_batch/float32",
    "varlen_attention/everything/float32",
    "varlen_attention/ones/bfloat16",
    "varlen_attention/window_both/float16",
    "varlen_attention/dropout_everything/float16",
)


def _cases() -> list[Case]:
    chosen = [c for c in select_cases(list(OPS)) if c.id in FEATURES]
    assert len(chosen) == len(FEATURES), set(FEATURES) - {c.id for c in chosen}
    caches = [c for c in select_cases(["kvcache_attention"]) if c.dtype != torch.float64][::24]
    return chosen + caches


@pytest.mark.parametrize("case", _cases(), ids=lambda c: c.id)
def test_cases_pass(case: Case) -> None:
    (record,) = run_case(case, ["triton"])
    assert record.status == "passed", record.problems


#: Long enough for tiles to be copied by TMA (a GPU's are larger), with tails, and in layouts that it can read.
N = 600 if torch.cuda.is_available() else 140
LONG = (
    attention.case("gqa", torch.bfloat16, batch=1, heads=2, heads_kv=1, seqlen_q=N, seqlen_k=N, memory="fused"),
    attention.case("window", torch.float16, batch=2, heads=1, seqlen_q=N + 10, seqlen_k=N, window=(40, 10)),
    varlen_attention.case("packed", torch.bfloat16, heads=2, lengths_q=[7, N], lengths_k=[N, 60], head_dim=24),
)


def _described(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The boxes that a run of ``case``, forward and backward, copies by TMA."""
    boxes: list[tuple[int, ...]] = []
    describe = triton_attention_call.describe

    def spy(t: torch.Tensor, block: tuple[int, ...]) -> object:
        boxes.append(block)
        return describe(t, block)

    monkeypatch.setattr(triton_attention_call, "describe", spy)
    (record,) = run_case(case, ["triton"])
    assert record.status == "passed", record.problems
    return boxes


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="TMA begins with Hopper"
)
@pytest.mark.parametrize("case", LONG, ids=lambda c: f"{c.op}/{c.name}")
def test_long_sequences_are_copied_by_tma(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = _described(case, monkeypatch)
    # K and V for the forward and for dQ, Q and dO for dK and dV, as often as a case is run.
    assert boxes, "nothing was copied by TMA"
    assert len(boxes) % 6 == 0, boxes


def test_rows_that_tma_cannot_read_are_copied_to_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 20 elements do not all begin at multiples of 16 bytes."""
    sizes = {"batch": 1, "heads": 1, "seqlen_q": N, "seqlen_k": N, "head_dim": 20}
    assert _described(attention.case("odd", torch.bfloat16, **sizes), monkeypatch)


def test_float32_is_loaded_by_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are split into parts on the way."""
    sizes = {"batch": 1, "heads": 1, "seqlen_q": N, "seqlen_k": N, "head_dim": 32}
    assert not _described(attention.case("float32", torch.float32, **sizes), monkeypatch)


@pytest.fixture
def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(1, 2, 150, 16), torch.randn(1, 1, 200, 16), torch.randn(1, 1, 200, 8)


def test_gradients_are_equal_over_reruns(qkv: tuple[torch.Tensor, ...]) -> None:
    tensors = [t.requires_grad_() for t in qkv]
    first, second = (
        torch.autograd.grad(tw.attention(*tensors, causal="bottom_right", backend="triton").sum(), tensors)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("splits", [1, 2, 3])
def test_a_fixed_number_of_splits_does_not_depend_on_the_batch(splits: int) -> None:
    q, k, v = torch.randn(3, 4, 1, 16), torch.randn(3, 2, 300, 16), torch.randn(3, 2, 300, 16)
    lengths = torch.tensor([300, 17, 129], dtype=torch.int32)
    options = {"num_splits": splits, "backend": "triton"}
    whole = tw.kvcache_attention(q, k, v, cache_seqlens=lengths, **options)
    for b in range(3):
        alone = tw.kvcache_attention(
            q[b : b + 1], k[b : b + 1], v[b : b + 1], cache_seqlens=lengths[b : b + 1], **options
        )
        assert torch.equal(whole[b : b + 1], alone)
    expected = tw.kvcache_attention(q, k, v, cache_seqlens=lengths, backend="reference")
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


def test_float64_is_refused() -> None:
    q = torch.randn(1, 1, 2, 8, dtype=torch.float64)
    with pytest.raises(tw.BackendError, match="float64"):
        tw.attention(q, q, q, backend="triton")
