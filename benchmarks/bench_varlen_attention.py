"""varlen_attention: each call of ``tilewright bench`` on every backend and every peer, timed by pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.bench.single import Call

OP = "varlen_attention"


def test_varlen_attention(call: Call, provider: str, time_it: Callable[[Call, str], None]) -> None:
    time_it(call, provider)
