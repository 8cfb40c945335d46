"""Every test starts from the same random state and without a backend chosen by the environment."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch

# Inductor's cache of compiled graphs does not see that an op's outputs have changed.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="tilewright-inductor-")


@pytest.fixture(autouse=True)
def _fixed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.config._from_environment", "")
    torch.manual_seed(0)
