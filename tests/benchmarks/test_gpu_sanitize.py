"""What ``make gpu`` makes of compute-sanitizer's words."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gpu import sanitize
from gpu.run import Run

LINES = "\n".join(f"case {name} passed " for name in sanitize.WATCHED)
CLEAN = {
    "memcheck": "========= ERROR SUMMARY: 0 errors",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
    "synccheck": "========= ERROR SUMMARY: 0 errors",
}
FOUND = {
    "memcheck": "========= Invalid __global__ read of size 2\n========= ERROR SUMMARY: 3 errors",
    "racecheck": "========= Error: Race reported between Read access at 0x1 and Write access\n"
    "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)",
    "synccheck": "========= Barrier error detected. Divergent thread(s) in block\n========= ERROR SUMMARY: 1 error",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, sys.executable, time.monotonic() + 60)


@pytest.mark.parametrize("tool", CLEAN)
@pytest.mark.parametrize(
    ("text", "code", "status"),
    [
        (f"{LINES}\nclean", 0, "passed"),
        (f"{LINES}\nfound", 99, "failed"),
        (f"{LINES}\nfound", 0, "failed"),
        ("case a/b/c passed\nclean", 0, "failed"),
        (f"{LINES}\ncase a/b/c failed \nclean", 1, "failed"),
        (LINES, 0, "failed"),
        ("Error: Device not supported", 1, "failed"),
        ("case a/b/c passed \n", None, "partial"),
        ("", None, "failed"),
    ],
    ids=["clean", "found", "code 0", "cases missing", "case failed", "no summary", "refused", "stopped", "nothing"],
)
def test_what_the_tool_says(tool: str, text: str, code: int | None, status: str) -> None:
    text = text.replace("clean", CLEAN[tool]).replace("found", FOUND[tool])
    assert sanitize.watched(tool, text, code, "the last line").status == status


def test_the_watched_cases_exist() -> None:
    from tilewright.catalog import OPS
    from tilewright.verify.cases import CASES

    assert set(sanitize.WATCHED) <= {c.id for c in CASES}
    assert {name.split("/")[0] for name in sanitize.WATCHED} == set(OPS)


def test_each_backend_is_watched_by_its_tools(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that finds something fails the stage, and is named first."""
    seen = []

    def program(self: Run, log: str, seconds: float, *words: str, **options: Any) -> int:
        tool, backend = words[words.index("--tool") + 1], words[words.index("--cases") + 1]
        seen.append((backend, tool))
        bad = (backend, tool) == ("cuda", "racecheck")
        (self.out / log).write_text(f"{LINES}\n{FOUND[tool] if bad else CLEAN[tool]}")
        return 99 if bad else 0

    monkeypatch.setattr(Run, "program", program)
    monkeypatch.setattr(sanitize, "sanitizer", lambda: "/usr/bin/compute-sanitizer")
    outcome = sanitize.sanitize(run, 5.0)
    assert sorted(seen) == [("cuda", "memcheck"), ("cuda", "racecheck"), ("cuda", "synccheck"), ("triton", "memcheck")]
    assert outcome.status == "failed" and outcome.reason.startswith("cuda racecheck: 1 errors")
    assert outcome.data["triton memcheck"]["passed"] == len(sanitize.WATCHED)


def test_without_the_tool_the_result_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "sanitizer", lambda: None)
    outcome = sanitize.sanitize(run, 1.0)
    assert outcome.status == "not run" and "compute-sanitizer was not found" in outcome.reason
