"""Every test starts from the same random state and without a backend chosen by the environment."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEWRIGHT_BACKEND", raising=False)
    torch.manual_seed(0)
