"""How the loops of attention's kernels read keys and values: by TMA, as they lie, or from an aligned copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tilewright.backends.triton_attention import _streamed, _widths


def read(t: Tensor, rows: int = 64, **options: bool) -> tuple[Tensor, bool, bool]:
    """What is read in the place of t, whether by TMA, and whether columns past its end have to be left out."""
    found = _streamed(t, t, rows, _widths(t.shape[-1], t.shape[-1]), False, **options)
    return found.tensors[0], found.boxes[0] is not None, found.checks[0]


def test_aligned_rows_are_read_where_they_lie() -> None:
    for t, checked in ((torch.randn(1, 2, 64, 128).half(), False), (torch.randn(1, 2, 64, 112).half(), True)):
        assert read(t) == (t, False, checked)
    assert read(torch.randn(1, 2, 64, 100))[2], "every element of float32 can be copied by itself"


def test_tma_reads_what_is_large_and_aligned() -> None:
    large = torch.randn(1, 2, 128, 72).half()
    assert read(large)[:2] == (large, True)  # 144 bytes: a multiple of 16, though not of 16 elements
    assert read(large, tma=False)[1] is False


@pytest.mark.parametrize("head_dim", [100, 50, 33, 128])
def test_rows_that_are_not_aligned_are_read_from_a_padded_copy(head_dim: int) -> None:
    """At head dim 100 the kernel spilled 226 instructions, since loads of two bytes cannot be asynchronous."""
    t = torch.randn(2, 3, 70, head_dim + 1).half()[..., 1:]  # no row begins at a multiple of 16 bytes
    copy, by_tma, checked = read(t)
    width = 128 if head_dim > 64 else 64
    assert copy is not t and copy.shape == (2, 3, 70, width) and not by_tma and not checked
    assert torch.equal(copy[..., :head_dim], t)
    assert not copy[..., head_dim:].any(), "what is past a row's end counts in products, and has to be 0"
    assert copy.data_ptr() % 16 == 0 and all(n % 16 == 0 for n in copy.stride()[:-1])
