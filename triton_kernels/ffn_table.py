"""Launch configurations of ffn.py: {architecture: {kernel: {key: (blocks, num_warps, num_stages)}}}.

Key "" is every key that is not listed. Where a row comes from stands above it.
"""

from __future__ import annotations

TABLE: dict[str, dict[str, dict[str, tuple[dict[str, int], int, int]]]] = {
    # The interpreter runs a program's operations one numpy call after another, so blocks are large there, and yet small
    # enough that tests see several of them.
    "interpreter": {},
    # Not measured: chosen from published configurations of kernels of the same kind, and checked for registers, spills
    # and shared memory in the machine code only.
    "sm_80": {},
    "sm_90": {},
    "sm_100": {},
}
