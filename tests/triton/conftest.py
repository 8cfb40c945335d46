"""Where there is a GPU, tensors that a test makes without naming a device are on it: Triton kernels run there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    torch.set_default_device("cuda" if torch.cuda.is_available() else None)
    yield
    torch.set_default_device(None)
