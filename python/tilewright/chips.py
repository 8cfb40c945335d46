"""The GPU that a call's tensors are on: what kernels, tables and the choice of a backend ask of it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch


class Chip(NamedTuple):
    """name: the product's. capability: compute capability. shared_bytes: of shared memory, for a block that opts in."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int


#: Takes the place of every device's, for CPU tensors on which nothing is computed: see tilewright.stand_in.
stand_in: Chip | None = None


@functools.cache
def chip_of(device: torch.device) -> Chip:
    if stand_in is not None:
        return stand_in
    found: Any = torch.cuda.get_device_properties(device)  # whose stub lacks a field
    return Chip(
        found.name, (found.major, found.minor), found.multi_processor_count, found.shared_memory_per_block_optin
    )
