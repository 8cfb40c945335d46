"""A stand-in for a GPU: Triton's own front end, compiler and launchers run as on a GPU, on CPU tensors, over a driver
library of ours (libcuda.c), which checks every launch and every descriptor against the chip's limits. It computes
nothing: outputs are uninitialised memory.

    from tilewright import stand_in
    stand_in.activate("sm_90")               # for the rest of the process
    tw.attention(q, k, v, backend="triton")  # compiled for Hopper, and launched
    stand_in.launches                        # what was launched, and how

It serves tests of the launch path, fills Triton's cache before a GPU is at hand, and times the Python of a launch.
"""

from __future__ import annotations

from .driver import CHIPS, Launch, activate, launches

__all__ = ["CHIPS", "Launch", "activate", "launches"]
