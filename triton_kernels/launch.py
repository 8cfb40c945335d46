"""Launch configurations: a fixed table per chip, and the user's own table where there is one.

A configuration is chosen by the kernel's name and a short key of what changes its shape (head dim, bytes per element,
...), never by a sequence length, and never by measuring behind the user's back: ``tilewright tune`` measures and writes
a table of the user's own, which then comes before the built-in one.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

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
_ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


def architecture(device: torch.device) -> str:
    """The table that serves ``device``: "interpreter", or the newest architecture that the chip can run."""
    return "interpreter" if INTERPRETED else _of_capability(torch.cuda.get_device_capability(device))


@functools.cache
def _of_capability(capability: tuple[int, int]) -> str:
    number = 10 * capability[0] + capability[1]
    fitting = [a for a in _ARCHITECTURES if int(a[3:]) <= number]
    return fitting[-1] if fitting else _ARCHITECTURES[0]


def user_table_path() -> Path:
    """Where ``tilewright tune`` writes: TILEWRIGHT_TUNED, or tilewright/tuned.json in the user's cache folder."""
    named = os.environ.get("TILEWRIGHT_TUNED")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilewright" / "tuned.json"


@functools.cache
def _user_table() -> dict[str, Any]:
    """{device name: {kernel: {key: [blocks, num_warps, num_stages]}}}; empty where there is none."""
    path = user_table_path()
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text())["configurations"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a table that `tilewright tune` wrote ({error}); delete or rewrite it"
        ) from error
    return dict(table)


@functools.cache
def config(kernel: str, key: str, device: torch.device) -> Config:
    """The configuration of ``kernel`` for ``key`` on ``device``."""
    if not INTERPRETED:
        own = _user_table().get(torch.cuda.get_device_name(device), {}).get(kernel, {}).get(key)
        if own is not None:
            return Config(*own)
    return table_config(architecture(device), kernel, key)


def table_config(architecture: str, kernel: str, key: str) -> Config:
    """The built-in table's entry for ``key``, or its entry "" for every other key."""
    rows = next(t[architecture][kernel] for t in _TABLES if kernel in t[architecture])
    return Config(*(rows[key] if key in rows else rows[""]))


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
