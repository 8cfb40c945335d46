"""The CUDA kernels, on the GPU where there is one, and in the emulator elsewhere.

Tensors that a test makes without naming a device are where the kernels run.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tilewright import registry
from tilewright.backends import cuda


def _forget() -> None:
    for cached in (cuda.emulated, cuda.unavailable, cuda.kernels, registry.unavailable, registry.find):
        cached.cache_clear()


@functools.cache
def compiled() -> dict[str, tuple[int, int, int]]:
    """What nvcc made of each kernel: registers, the most threads, static shared memory."""
    found: dict[str, tuple[int, int, int]] = {}
    for file in Path(__file__).with_name("machine_code").glob("*.json"):
        for kernels in json.loads(file.read_text())["rows"].values():
            for name, row in kernels.items():
                registers, threads, shared = found.get(name, (0, 1024, 48 * 1024))
                found[name] = (
                    max(registers, row["registers"]), min(threads, row["threads"]), min(shared, row["shared"]),
                )  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available():
        monkeypatch.setenv(cuda.EMULATE, "1")
    _forget()
    emulated = cuda.emulated() and cuda.unavailable() is None
    if emulated:
        cuda.kernels().set_compiled(compiled())
    torch.set_default_device("cuda" if torch.cuda.is_available() else None)
    yield
    if emulated:
        kernels = importlib.import_module("tilewright._cuda_emulated")
        kernels.watch()
        kernels.set_seed(0)
        kernels.set_compiled({})
    torch.set_default_device(None)
    _forget()
