"""A peer that crashes, hangs, runs out of memory or returns NaN is one row, and the rest is complete."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilewright.bench import session as sessions
from tilewright.bench.process import Worker
from tilewright.bench.session import Session
from tilewright.registry import unavailable

FAULTY = Path(__file__).with_name("faulty_worker.py")
BACKEND = "cpu" if unavailable("cpu") is None else "reference"


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(sessions, "SECONDS_AN_ITEM", 20.0)  # until one that hangs is given up

    def worker(extra: dict[str, str]) -> Worker:
        return Worker([sys.executable, str(FAULTY)], tmp_path / "log", {**os.environ, **extra}, tmp_path)

    # Nobody who compiles is asked: on a busy machine that takes as long as a hang may.
    providers = ["crashes", "hangs", "out_of_memory", "nan", "raises", "absent", f"tilewright {BACKEND}", "eager"]
    settings = {"device": "cpu", "backends": [BACKEND], "shapes": "tiny", "seconds": 0.0, "providers": providers}
    made = Session(worker, settings, time.monotonic() + 300, lambda done, of, what: None)
    yield made
    made.close()


def test_every_fault_is_one_row(session: Session) -> None:
    names = ["softmax forward 100 float32", "softmax forward 8"]
    excluded = {"softmax forward 8": {"hangs": {"status": "hung", "reason": "before"}}}  # once is enough
    for _ in session.measure_all(names, excluded):
        pass
    for name in names:
        found = {r["provider"]: r for r in session.rows if r["item"] == name}
        status = {p: r["status"] for p, r in found.items()}
        assert status["crashes"] == "crashed"
        assert "SIGSEGV" in found["crashes"]["reason"]
        assert status["hangs"] == "hung"
        assert status["out_of_memory"] in ("out of memory", "raised")
        assert "memory" in found["out_of_memory"]["reason"]
        assert (status["nan"], found["nan"]["error"]) == ("wrong", None)
        assert "no kernel image" in found["raises"]["reason"]
        assert (status["absent"], "a_package_that_nobody_has" in found["absent"]["reason"]) == ("missing", True)
        assert status[f"tilewright {BACKEND}"] == status["eager"] == "timed"
        assert len(found) == len([r for r in session.rows if r["item"] == name])
