"""What `tilewright tune` tries: the configurations one step away from one, and from the best of those again.

The steps are by the names of the blocks, so that a table may change without this file.
"""

from __future__ import annotations

from collections.abc import Iterator

from .launch import FIXED, Config

#: Other values of blocks that are no sizes of tiles.
_CHOICES = {"GROUP_M": (4, 8, 16), "PROGRAMS": (0, 1, 2), "PIECES": (1, 2, 4)}

#: The least and the most of a tile's sizes: a matrix instruction takes 16 at least, and element-wise kernels less.
_LIMITS = {"BLOCK": (16, 256), "ROWS": (1, 1024), "COLUMNS": (64, 32768)}

_MOST_WARPS, _MOST_STAGES = 32, 7


def neighbours(kernel: str, config: Config) -> Iterator[Config]:
    """Each differs from ``config`` in one block, the warps or the pipeline's stages."""
    for name, value in config.blocks.items():
        if name not in FIXED.get(kernel, ()):
            for other in _other_values(name, value):
                yield config._replace(blocks={**config.blocks, name: other})
    for warps in (config.num_warps // 2, config.num_warps * 2):
        if 1 <= warps <= _MOST_WARPS:
            yield config._replace(num_warps=warps)
    if config.num_stages > 1 or "BLOCK_K" in config.blocks or kernel.startswith("attention"):  # those that loop
        for stages in (config.num_stages - 1, config.num_stages + 1):
            if 1 <= stages <= _MOST_STAGES:
                yield config._replace(num_stages=stages)


def _other_values(name: str, value: int) -> list[int]:
    if name in _CHOICES:
        return [v for v in _CHOICES[name] if v != value]
    limits = next((pair for start, pair in _LIMITS.items() if name.startswith(start)), None)
    if limits is None:
        return []
    low, high = min(limits[0], value), max(limits[1], value)
    return [v for v in (value // 2, value * 2) if low <= v <= high]
