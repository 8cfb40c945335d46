"""ffn: each call of ``tilewright bench`` on every backend and every peer, timed by pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.bench.single import Call

OP = "ffn"


def test_ffn(call: Call, provider: str, time_it: Callable[[Call, str], None]) -> None:
    time_it(call, provider)
