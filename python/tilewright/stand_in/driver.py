"""Triton's driver for NVIDIA, over the stand-in for NVIDIA's library."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.nvidia import driver as nvidia

from .. import chips
from ..chips import Chip

#: A chip for each of the kernels' tables. sm_80's has as little shared memory as the smallest chips that take it (8.6).
CHIPS = {
    "sm_80": Chip("stand-in for sm_80", (8, 0), 108, 99 * 1024),
    "sm_90": Chip("stand-in for sm_90", (9, 0), 132, 227 * 1024),
    "sm_100": Chip("stand-in for sm_100", (10, 0), 148, 227 * 1024),
}


class Launch(NamedTuple):
    """shared_bytes: None where the kernel was not compiled."""

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    shared_bytes: int | None


#: Every launch since activate(), in order.
launches: list[Launch] = []


def activate(architecture: str) -> Chip:
    """Put the stand-in in the place of the GPU's driver, or of a stand-in for another chip, and answer the chip.

    Raises ValueError for an unknown architecture, and RuntimeError where kernels run in Triton's interpreter or where
    no C compiler is found.
    """
    if architecture not in CHIPS:
        raise ValueError(f"architecture={architecture!r} is not one of {', '.join(CHIPS)}")
    from ..triton_kernels.launch import INTERPRETED, forget_configurations

    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: in Triton's interpreter nothing is compiled or launched")
    chips.stand_in = chip = CHIPS[architecture]
    chips.chip_of.cache_clear()
    forget_configurations()
    library().stand_in_configure(*chip.capability, chip.multiprocessors, chip.shared_bytes)
    triton.runtime.driver.set_active(StandInDriver(architecture))
    return chip


@functools.cache
def _folder() -> Any:
    """The library's, as long as this process runs."""
    return tempfile.TemporaryDirectory(prefix="tilewright-stand-in-")


@functools.cache
def library() -> ctypes.CDLL:
    """Compiled, and loaded as libcuda.so.1: what is linked against that name then finds this one."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("no C compiler was found (looked for cc, gcc, clang); launching through Triton needs one")
    file = Path(_folder().name) / "libcuda.so.1"
    source, include = Path(__file__).with_name("libcuda.c"), Path(nvidia.dirname) / "include"
    command = [compiler, "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{include}", "-o", file, source]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the stand-in for libcuda.so.1 does not compile: {done.stderr.strip()[:500]}")
    triton.knobs.nvidia.libcuda_path = _folder().name
    loaded = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    loaded.stand_in_refuses.restype = ctypes.c_char_p
    return loaded


def refuses(grid: tuple[int, int, int], threads: int) -> str | None:
    """Why the chip would not launch such a grid, in words, or None."""
    if any(not 0 <= n < 2**32 for n in grid):
        return f"a grid of {' x '.join(map(str, grid))}"
    found = library().stand_in_refuses(*grid, threads)
    return None if found is None else str(found.decode())


class Launcher(nvidia.CudaLauncher):  # type: ignore[misc]
    """Triton's launcher; what it launches is listed."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self._what = (metadata.name, metadata.num_warps, metadata.shared)

    def __call__(self, x: int, y: int, z: int, *others: Any) -> None:
        super().__call__(x, y, z, *others)
        name, warps, shared = self._what
        launches.append(Launch(name, (x, y, z), warps, shared))


class StandInDriver(nvidia.CudaDriver):  # type: ignore[misc]
    """A device for each chip, by its number in CHIPS: kernels keep what they compiled for each. Their tensors are
    torch's on the CPU."""

    def __init__(self, architecture: str) -> None:  # without torch.cuda, which the original asks
        number, capability = list(CHIPS).index(architecture), CHIPS[architecture].capability
        self.utils = nvidia.CudaUtils()
        self.launcher_cls = Launcher
        self.get_device_capability = lambda _device: capability
        self.get_current_device = lambda: number
        self.set_current_device = lambda _device: None
        self.get_current_stream = lambda _device: 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    @staticmethod
    def is_active() -> bool:
        return True
