"""How attention's kernels see rows that do not begin and end at multiples of 16 elements."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from tilewright.backends.triton_attention_call import ALIGNED, aligned, hand_over, room_for


def test_aligned_rows_are_read_where_they_lie() -> None:
    for t in (torch.randn(1, 2, 64, 128).half(), torch.randn(2, 64, 3, 80).transpose(1, 2), torch.randn(1, 1, 1, 16)):
        assert aligned(t) is t and room_for(t) is t


@pytest.mark.parametrize("head_dim", [100, 72, 33, 128, 1])
def test_others_are_read_from_a_padded_copy(head_dim: int) -> None:
    """Loads of two bytes cannot be asynchronous, and take an address each: at head dim 100 the kernel spilled."""
    t = torch.randn(2, 3, 70, head_dim + 1).half()[..., 1:]  # no row begins at a multiple of 16 bytes
    copy = aligned(t)
    assert copy is not t and copy.shape[:-1] == t.shape[:-1] and copy.shape[-1] % ALIGNED == 0
    assert copy.shape[-1] - head_dim < ALIGNED, "more columns than needed are read"
    assert torch.equal(copy[..., :head_dim], t)
    assert not copy[..., head_dim:].any(), "what is past a row's end counts in products, and has to be 0"
    assert copy.data_ptr() % 16 == 0 and all(n % ALIGNED == 0 for n in copy.stride()[:-1])


def test_what_is_written_is_handed_over() -> None:
    t = torch.full((2, 3, 50), -1.0)
    room = room_for(t)
    assert room is not t and room.shape == (2, 3, 64)
    room.copy_(torch.arange(64.0))
    hand_over(room, t)
    assert torch.equal(t, torch.arange(50.0).expand(2, 3, 50))
    hand_over(None, None)
