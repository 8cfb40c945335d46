"""Every test starts from the same random state and without a backend chosen by the environment."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

# Inductor's cache of compiled graphs does not see that an op's outputs have changed.
_inductor = tempfile.TemporaryDirectory(prefix="tilewright-inductor-")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = _inductor.name

# Without a GPU Triton kernels run in Triton's interpreter. That is decided when they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Launch configurations that somebody has tuned on this machine are no part of what is tested.
os.environ["TILEWRIGHT_TUNED"] = "off"


@pytest.fixture(autouse=True)
def _fixed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.config._from_environment", "")
    torch.manual_seed(0)
