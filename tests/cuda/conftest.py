"""The CUDA kernels, on the GPU where there is one, and in the emulator elsewhere.

Tensors that a test makes without naming a device are where the kernels run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tilewright import registry
from tilewright.backends import cuda


def _forget() -> None:
    for cached in (cuda.emulated, cuda.unavailable, cuda.kernels, registry.unavailable, registry.find):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available():
        monkeypatch.setenv(cuda.EMULATE, "1")
    _forget()
    torch.set_default_device("cuda" if torch.cuda.is_available() else None)
    yield
    torch.set_default_device(None)
    _forget()
