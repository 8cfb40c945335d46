"""What catches a kernel that leaves elements unwritten, or that reads or writes where it should not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import registry


def overwrite(blocks: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for block, value in zip(blocks, values, strict=True):
        block.copy_(value)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN included."""
    return torch.equal(*(t.reshape(-1).contiguous().view(torch.uint8) for t in (a, b)))


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """The same numbers, and NaN in the same places."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def poisoned() -> Iterator[None]:
    """Everything that torch or a kernel's scratch memory hands out inside is filled with NaN."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # a module that acts as an object
    fill = deterministic.fill_uninitialized_memory
    cpu = None
    if registry.unavailable("cpu") is None:
        from ..backends.cpu import kernels

        cpu = kernels()
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    if cpu is not None:
        cpu.poison_scratch(True)
    try:
        yield
    finally:
        if cpu is not None:
            cpu.poison_scratch(False)
        deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
