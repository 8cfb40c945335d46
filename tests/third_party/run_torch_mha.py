"""PyTorch's own tests of MultiheadAttention, run with tilewright.nn.MultiheadAttention in the place of torch's.

The test file belongs to PyTorch and is not kept here: fetch test/nn/test_multihead_attention.py of the release that is
installed and give its path. It needs expecttest. Nothing in it is changed: the class is replaced under every name that
torch has for it. Each test is run with torch's class first. The outcome is printed, and written as JSON.

    python tests/third_party/run_torch_mha.py test_multihead_attention.py

The exit status is 0 when every test that passes with torch's class passes with ours, or fails as EXPECTED explains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

#: Failures that are known, by test and a pattern in the error: the reason.
EXPECTED = [
    (
        r"test_multihead_attn_(fast_path_)?invalid_shape$",
        r"ValueError: (key|value) has shape",
        "the call is refused as the test wants, by a ValueError in our words, not by torch's AssertionError",
    ),
    (
        r"test_multihead_attn_nested_tensor_outside_fast_path$",
        r"TypeError: query is a nested tensor",
        "nested tensors are refused",
    ),
    (
        r"test_multihead_self_attn_two_masks_fast_path_mock",
        r"False is not true",
        "demands that torch's own inference kernel is called",
    ),
]


class Run:
    """The pytest plugin: what became of each test, and how often it called our module."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.calls: dict[str, int] = {}
        self.current = ""

    def pytest_runtest_setup(self, item: Any) -> None:
        self.current = item.name

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.split("::")[-1]
            self.outcomes[name] = report.outcome
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                self.errors[name] = crash.message if crash else str(report.longrepr)

    def count(self) -> None:
        self.calls[self.current] = self.calls.get(self.current, 0) + 1


def substitute(run: Run) -> None:
    """Our class under all of torch's names, counting its calls."""
    import torch

    from tilewright.nn import MultiheadAttention

    forward = MultiheadAttention.forward

    def counting(self: Any, *args: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling():  # a compiled call would count once, in the trace, and break it
            run.count()
        return forward(self, *args, **options)

    MultiheadAttention.forward = counting  # type: ignore[method-assign]
    original = MultiheadAttention.__base__
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.nn") and getattr(module, "MultiheadAttention", None) is original:
            module.MultiheadAttention = MultiheadAttention  # type: ignore[attr-defined]


def run_once(path: Path) -> Run:
    run = Run()
    if os.environ.get("TILEWRIGHT_TORCH_MHA") == "ours":
        substitute(run)
    options = [str(path), "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-c", os.devnull]
    pytest.main([*options, "--rootdir", str(path.parent)], plugins=[run])
    return run


def in_process(path: Path, which: str) -> dict[str, Any]:
    """torch's names are replaced in a process of its own; the results come back as JSON."""
    import subprocess
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, str(path), "--json", file.name, "--inside"]
        subprocess.run(command, env={**os.environ, "TILEWRIGHT_TORCH_MHA": which}, check=True)
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
    return found


def judge(torchs: dict[str, Any], ours: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each test."""
    tests = []
    for name, outcome in ours["outcomes"].items():
        error = ours["errors"].get(name)
        why = error and next(
            (w for where, what, w in EXPECTED if re.match(where, name) and re.search(what, error)), None
        )
        entry = {"test": name, "torch": torchs["outcomes"].get(name), "tilewright": outcome}
        entry |= {"calls": ours["calls"].get(name, 0)}
        if error:
            entry |= {"reason": why or error.splitlines()[0][:200], "explained": why is not None}
        tests.append(entry)
    return tests


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="PyTorch's test/nn/test_multihead_attention.py")
    parser.add_argument("--json", type=Path, default=HERE / "torch_mha.json")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not given.path.is_file():
        parser.error(f"{given.path} is not there; fetch test/nn/test_multihead_attention.py of PyTorch")
    if given.inside:
        run = run_once(given.path.resolve())
        given.json.write_text(json.dumps({"outcomes": run.outcomes, "errors": run.errors, "calls": run.calls}))
        return 0
    import torch

    import tilewright

    torchs, ours = (in_process(given.path, which) for which in ("torch", "ours"))
    tests = judge(torchs, ours)
    counts = {
        who: {outcome: list(found["outcomes"].values()).count(outcome) for outcome in ("passed", "failed", "skipped")}
        for who, found in (("torch", torchs), ("tilewright", ours))
    }
    print(f"{'test':<80} {'torch':>7} {'tilewright':>10} {'calls':>6}")
    for t in tests:
        print(f"{t['test']:<80} {t['torch']!s:>7} {t['tilewright']:>10} {t['calls']:>6}  {t.get('reason', '')}")
    print(counts)
    record = {
        "file": {
            "name": "test/nn/test_multihead_attention.py",
            "sha256": hashlib.sha256(given.path.read_bytes()).hexdigest(),
        },
        "environment": {
            "tilewright": tilewright.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "counts": counts,
        "tests": tests,
    }
    given.json.write_text(json.dumps(record, indent=2) + "\n")
    worse = [t for t in tests if t["tilewright"] == "failed" and t["torch"] != "failed" and not t["explained"]]
    return 1 if worse or not tests else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
