"""Every test starts from the same random state and without a backend chosen by the environment."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.config._from_environment", "")
    torch.manual_seed(0)
