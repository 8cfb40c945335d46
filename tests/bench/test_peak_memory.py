"""The most memory that a call needs, on the CPU."""

from __future__ import annotations

import pytest
import torch

from tilewright.bench import memory

MEGABYTE = 2**20


def blocks() -> list[torch.Tensor]:
    return [torch.ones(MEGABYTE // 4) for _ in range(64)]


@pytest.mark.skipif(not memory._can_reset(), reason="the system's high-water mark cannot be reset")
def test_memory_that_was_free_before_counts_as_well() -> None:
    """The C library hands out blocks that it has kept."""
    with memory._every_block_from_the_system():
        pass  # from here on blocks of a megabyte are of the library's own
    kept = blocks()
    last = torch.ones(MEGABYTE // 4)  # keeps what lies below it from going back at once
    del kept
    found = memory.peak_bytes(lambda: blocks() and None, "cpu")
    assert found is not None
    assert found >= 60 * MEGABYTE
    assert found <= 80 * MEGABYTE
    del last


@pytest.mark.skipif(not memory._can_reset(), reason="the system's high-water mark cannot be reset")
def test_what_is_kept_between_calls_does_not_count() -> None:
    held: list[torch.Tensor] = []

    def call() -> None:
        if not held:
            held.extend(blocks())
        torch.ones(8 * MEGABYTE // 4)

    found = memory.peak_bytes(call, "cpu")
    assert found is not None
    assert 7 * MEGABYTE <= found <= 16 * MEGABYTE
