"""Launch configurations: a fixed table per chip.

A configuration is chosen by the kernel's name and a short key of what changes its shape (head dim, bytes per element,
...), never by a sequence length, and never by measuring behind the user's back.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from . import attention_table, ffn_table, softmax_table
from .math import INTERPRETED


class Config(NamedTuple):
    """Block sizes by the names of the kernel's constants, warps, and stages of its software pipeline."""

    blocks: dict[str, int]
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """As keyword arguments of a launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


_TABLES = (attention_table.TABLE, softmax_table.TABLE, ffn_table.TABLE)

#: Chips with a table of their own, by compute capability; others take the nearest lower one's.
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}


def architecture(device: torch.device) -> str:
    """The table that serves ``device``: "interpreter", or the newest architecture that the chip can run."""
    if INTERPRETED:
        return "interpreter"
    major, minor = torch.cuda.get_device_capability(device)
    fitting = [name for name, capability in ARCHITECTURES.items() if capability <= 10 * major + minor]
    return fitting[-1] if fitting else "sm_80"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """What work is cut into pieces for; in the interpreter a number with which small tensors are cut as well."""
    return 4 if INTERPRETED else int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def config(kernel: str, key: str, device: torch.device) -> Config:
    """The configuration of ``kernel`` for ``key`` on ``device``."""
    return table_config(architecture(device), kernel, key)


def table_config(architecture: str, kernel: str, key: str) -> Config:
    """The table's entry for ``key``, or its entry "" for every other key."""
    rows = next(t[architecture][kernel] for t in _TABLES if kernel in t[architecture])
    return Config(*(rows[key] if key in rows else rows[""]))
