"""ffn: every kernel of the registry beside PyTorch's own, forward and forward+backward."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import measure, parameters

from tilewright.bench.workloads import Workload


@pytest.mark.parametrize(("workload", "mode", "provider"), parameters("ffn"))
def test_ffn(benchmark: Any, workload: Workload, mode: str, provider: str) -> None:
    measure(benchmark, workload, mode, provider)
