"""flash_attn_varlen_func, its paged keys and flash_attn.bert_padding, against float64 math sequence by sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from flash_attn_reference import assert_near, assert_same_gradients, attend
from torch import Tensor

from tilewright.integrations import flash_attn as fa
from tilewright.integrations.bert_padding import (
    index_first_axis,
    index_put_first_axis,
    pad_input,
    unpad_input,
    unpad_input_for_concatenated_sequences,
)

H, HKV, D = 4, 2, 12
LENGTHS_Q, LENGTHS_K = [3, 0, 5, 1], [7, 4, 0, 6]


def r(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape).requires_grad_(grad)


def boundaries(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def packed(grad: bool = False) -> list[Tensor]:
    return [
        r(sum(LENGTHS_Q), H, D, grad=grad),
        r(sum(LENGTHS_K), HKV, D, grad=grad),
        r(sum(LENGTHS_K), HKV, D, grad=grad),
    ]


SIZES = (boundaries(LENGTHS_Q), boundaries(LENGTHS_K), max(LENGTHS_Q), max(LENGTHS_K))


def expected_of(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(total_q, H, Dv), (H, total_q). kept: one (H, Sq, Sk) for each sequence."""
    kept, slopes = options.pop("kept", None), options.pop("alibi_slopes", None)
    results = []
    for b, ((q0, q1), (k0, k1)) in enumerate(zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True)):
        kept_b = None if kept is None else kept[b, :, : q1 - q0, : k1 - k0]
        of_b = slopes if slopes is None or slopes.dim() == 1 else slopes[b]
        results.append(attend(q[q0:q1], k[k0:k1], v[k0:k1], kept=kept_b, alibi_slopes=of_b, **options))
    return torch.cat([out for out, _ in results]), torch.cat([lse for _, lse in results], 1)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (2, 1), "softcap": 2.0},
    "alibi": {"alibi_slopes": torch.rand(4, H, generator=torch.manual_seed(1)), "causal": True},
    "scale": {"softmax_scale": 0.3},
}


@pytest.mark.parametrize("case", CASES)
def test_output_lse_and_gradients(case: str) -> None:
    inputs, options = packed(grad=True), CASES[case]
    out, lse, probabilities = fa.flash_attn_varlen_func(*inputs, *SIZES, **options, return_attn_probs=True)
    expected, expected_lse = expected_of(*inputs, *SIZES[:2], **options)
    assert_near(out, expected, "out", scale=4)
    assert lse.shape == (H, sum(LENGTHS_Q)) and probabilities.numel() == 0
    assert_near(lse, expected_lse, "softmax_lse", scale=4)
    assert_same_gradients(
        lambda: fa.flash_attn_varlen_func(*inputs, *SIZES, **options),
        lambda: expected_of(*inputs, *SIZES[:2], **options)[0],
        inputs,
    )


def test_dropout_follows_what_s_dmask_says() -> None:
    inputs = packed()
    out, _, dropped = fa.flash_attn_varlen_func(*inputs, *SIZES, 0.4, causal=True, return_attn_probs=True)
    assert dropped.shape == (4, H, max(LENGTHS_Q), max(LENGTHS_K)) and (dropped < 0).any()
    assert dropped[1].count_nonzero() == 0, "sequence 1 has no queries, yet S_dmask has probabilities of it"
    expected, _ = expected_of(*inputs, *SIZES[:2], causal=True, kept=dropped >= 0, dropout_p=0.4)
    assert_near(out, expected, "out", scale=4)


def test_packed_forms_are_the_plain_one() -> None:
    q, k, v = r(9, H, D), r(9, H, D), r(9, H, D)
    cu, longest = boundaries([4, 5]), 5
    plain = fa.flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, causal=True)
    of_qkv = fa.flash_attn_varlen_qkvpacked_func(torch.stack((q, k, v), 1), cu, longest, causal=True)
    of_kv = fa.flash_attn_varlen_kvpacked_func(q, torch.stack((k, v), 1), cu, cu, longest, longest, causal=True)
    assert torch.equal(of_qkv, plain) and torch.equal(of_kv, plain)
    assert_near(plain, expected_of(q, k, v, cu, cu, causal=True)[0], "out", scale=4)


def test_longest_lengths_may_be_tensors() -> None:
    inputs = packed()
    longest = [cu.diff().max() for cu in SIZES[:2]]
    found = fa.flash_attn_varlen_func(*inputs, *SIZES[:2], *longest)
    assert torch.equal(found, fa.flash_attn_varlen_func(*inputs, *SIZES))


def test_compiles_as_one_graph() -> None:
    inputs = packed(grad=True)

    def step(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return fa.flash_attn_varlen_func(q, k, v, *SIZES, causal=True)

    out = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    assert_near(out, expected_of(*inputs, *SIZES[:2], causal=True)[0], "compiled out", scale=4)
    out.sum().backward()
    assert inputs[0].grad is not None


def pages_of(packed_rows: Tensor, lengths: list[int], page_size: int, table: Tensor) -> Tensor:
    """The rows of each sequence, laid into the pages that ``table`` gives it; everything else is NaN."""
    pages = torch.full((int(table.max()) + 2, page_size, *packed_rows.shape[1:]), torch.nan)
    start = 0
    for b, length in enumerate(lengths):
        for j in range(length):
            pages[table[b, j // page_size], j % page_size] = packed_rows[start + j].detach()
        start += length
    return pages


TABLE = torch.tensor([[5, 2, 7], [0, 3, 8], [9, 6, 4], [1, 10, 11]], dtype=torch.int32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths_q", [LENGTHS_Q, [1, 1, 1, 1], [2, 2, 2, 2]], ids=["mixed", "decode", "even"])
def test_paged_keys(lengths_q: list[int], case: str) -> None:
    q, k, v = r(sum(lengths_q), H, D), *packed()[1:]
    cu_q, options = boundaries(lengths_q), CASES[case]
    pages = [pages_of(t, LENGTHS_K, 3, TABLE) for t in (k, v)]
    out, lse, probabilities = fa.flash_attn_varlen_func(
        q, *pages, cu_q, SIZES[1], max(lengths_q), SIZES[3], **options, block_table=TABLE, return_attn_probs=True
    )
    expected, expected_lse = expected_of(q, k, v, cu_q, SIZES[1], **options)
    assert_near(out, expected, "out", scale=4)
    assert_near(lse, expected_lse, "softmax_lse", scale=4)
    assert probabilities.numel() == 0


@pytest.mark.parametrize("lengths_q", [LENGTHS_Q, [2, 2, 2, 2]], ids=["mixed", "even"])
def test_paged_keys_have_gradients(lengths_q: list[int]) -> None:
    q, k, v = r(sum(lengths_q), H, D), *packed()[1:]
    cu_q, longest = boundaries(lengths_q), max(lengths_q)
    pages = [pages_of(t, LENGTHS_K, 3, TABLE).nan_to_num(0.0).requires_grad_() for t in (k, v)]

    def rows(t: Tensor) -> Tensor:
        return torch.cat([t[TABLE[b].long()].flatten(0, 1)[:n] for b, n in enumerate(LENGTHS_K)])

    assert_same_gradients(
        lambda: fa.flash_attn_varlen_func(q, *pages, cu_q, SIZES[1], longest, SIZES[3], causal=True, block_table=TABLE),
        lambda: expected_of(q, rows(pages[0]), rows(pages[1]), cu_q, SIZES[1], causal=True)[0],
        pages,
    )


def test_paged_keys_with_dropout() -> None:
    q, k, v = r(4, H, D), *packed()[1:]
    pages = [pages_of(t, LENGTHS_K, 3, TABLE) for t in (k, v)]
    sizes = (boundaries([1] * 4), SIZES[1], 1, SIZES[3])
    out, _, dropped = fa.flash_attn_varlen_func(q, *pages, *sizes, 0.4, block_table=TABLE, return_attn_probs=True)
    assert (dropped < 0).any()
    assert_near(out, expected_of(q, k, v, *sizes[:2], kept=dropped >= 0, dropout_p=0.4)[0], "out", scale=4)


def wrong_calls() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    pages = r(12, 3, HKV, D)
    paged = {"k": pages, "v": pages, "block_table": TABLE}
    far, few = TABLE.clone(), TABLE[:, :2].contiguous()
    far[0, 1] = 12
    decode = {"q": r(4, H, D), "cu_seqlens_q": boundaries([1] * 4), "max_seqlen_q": 1}
    return {
        "int64 boundaries": ({"cu_seqlens_q": SIZES[0].long()}, TypeError, "cu_seqlens_q has dtype"),
        "rows left over": ({"q": r(20, H, D)}, ValueError, "cu_seqlens_q runs from 0 to 9; it must run from 0 to 20"),
        "too short": ({"max_seqlen_q": 4}, ValueError, "max_seqlen_q=4"),
        "float length": ({"max_seqlen_k": 7.0}, TypeError, "max_seqlen_k must be an int, got float"),
        "int64 table": ({**paged, "block_table": TABLE.long()}, TypeError, "block_table must be an int32"),
        "table of another batch": ({**paged, "block_table": TABLE[:2]}, ValueError, r"block_table of shape \(2, 3\)"),
        "packed keys with a table": ({"block_table": TABLE}, ValueError, "k has shape .* page_block_size"),
        "page out of range": ({**paged, "block_table": far}, ValueError, r"block_table\[0\] names page 12"),
        "page out of range, decode": ({**paged, **decode, "block_table": far}, ValueError, r"names page 12"),
        "too few pages": ({**paged, "block_table": few}, ValueError, "length 7, but a row of block_table reaches 6"),
        "uneven decode": (
            {**paged, **decode, "cu_seqlens_q": boundaries([2, 0, 1, 1])},
            ValueError,
            "max_seqlen_q=1 but cu_seqlens_q holds a sequence of length 2",
        ),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_wrong_arguments_are_named(case: str) -> None:
    given, error, message = wrong_calls()[case]
    names = ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    with pytest.raises(error, match=message):
        fa.flash_attn_varlen_func(**{**dict(zip(names, (*packed(), *SIZES), strict=True)), **given})


MASK = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]])


def test_unpad_and_pad() -> None:
    x = r(3, 4, H, D, grad=True)
    rows, indices, cu_seqlens, longest, used = unpad_input(x, MASK.bool())
    assert indices.tolist() == [0, 1, 5, 6, 7] and cu_seqlens.tolist() == [0, 2, 5, 5] and longest == 3
    assert used.tolist() == [2, 3, 0] and cu_seqlens.dtype == used.dtype == torch.int32
    assert torch.equal(rows, x.flatten(0, 1)[indices])
    back = pad_input(rows, indices, 3, 4)
    assert torch.equal(back, x * MASK[..., None, None])
    back.sum().backward()
    assert torch.equal(x.grad, MASK[..., None, None].expand_as(x).float())
    # transformers pads with int32 indices.
    assert torch.equal(pad_input(rows, indices.int(), 3, 4), back)


def test_unpad_keeps_unused_rows_apart() -> None:
    unused = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    rows, indices, cu_seqlens, longest, used = unpad_input(r(3, 4, 2), MASK, unused)
    assert indices.tolist() == [0, 1, 2, 4, 5, 6, 7] and cu_seqlens.tolist() == [0, 3, 7, 7]
    assert longest == 4 and used.tolist() == [2, 3, 0] and rows.shape == (7, 2)
    with pytest.raises(ValueError, match=r"attention_mask of shape \(3, 4\) must be"):
        unpad_input(r(3, 5, 2), MASK)


def test_unpad_concatenated_sequences() -> None:
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])  # flash-attn's example
    rows, indices, cu_seqlens, longest = unpad_input_for_concatenated_sequences(r(3, 6, 2), lengths)
    assert cu_seqlens.tolist() == [0, 2, 5, 8, 10, 16] and longest == 6 and rows.shape == (16, 2)
    assert indices.tolist() == [*range(5), *range(6, 11), *range(12, 18)]


def test_index_functions_are_inverse() -> None:
    x, indices = r(6, 3), torch.tensor([4, 0, 5])
    assert torch.equal(index_first_axis(x, indices), x[indices])
    put = index_put_first_axis(x[indices], indices, 6)
    assert torch.equal(put[indices], x[indices]) and put[[1, 2, 3]].count_nonzero() == 0
