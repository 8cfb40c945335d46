"""PyTorch's own tests of scaled_dot_product_attention, run inside tilewright.replace_sdpa().

The test file belongs to PyTorch and is not kept here: fetch test/test_transformers.py of the release that is installed
and give its path. It needs expecttest. Nothing in it is changed. Each test is run without us first. The outcome is
printed, and written as JSON with the number of calls that tilewright served and the reasons for those it did not.

    python tests/third_party/run_torch_sdpa.py test_transformers.py [--backend cpu] [-k EXPRESSION]

The tests compare a kernel with torch's math, which they ask for with sdpa_kernel(MATH); those calls stay torch's, so
that our kernels are compared with something else. The exit status is 0 when every test that passes without us passes
with us, or fails as EXPECTED explains.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from run_torch_mha import Run

import tilewright
from tilewright.integrations.replace_sdpa import replace_sdpa

HERE = Path(__file__).parent

#: Failures that are known, by test and a pattern in the error: the reason.
EXPECTED: list[tuple[str, str, str]] = []

#: With a backend asked for, a refused call raises in our words where the test wants torch's.
EXPECTED_WITH_BACKEND = [
    (r"test_invalid_inputs_", r"(TypeError|ValueError): ", "refused as the test wants, by our exception, not torch's"),
    (r"test_is_causal_and_mask_fails", r"were both given", "refused as the test wants, in our words, not torch's"),
]


def math_alone() -> bool:
    fused = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled())
    return torch.backends.cuda.math_sdp_enabled() and not any(fused)


class ReplaceTested(replace_sdpa):
    """Leaves the calls that a test compares with to torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and math_alone():
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


class Inside(Run):
    """Each test's body inside a block of its own."""

    def __init__(self, replaced: bool, backend: str | None) -> None:
        super().__init__()
        self.replaced, self.backend = replaced, backend
        self.refused: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        torch.manual_seed(0)
        block = ReplaceTested(self.backend) if self.replaced else contextlib.nullcontext()
        with block:
            result = yield
        if isinstance(block, ReplaceTested):
            self.calls[item.name] = block.served
            self.refused += block.refused
        return result


def run_once(path: Path, expression: str, inside: Inside) -> Inside:
    options = [str(path), "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-c", "/dev/null"]
    pytest.main([*options, "--rootdir", str(path.parent), "-k", expression], plugins=[inside])
    return inside


def judge(torchs: Run, ours: Run, expected: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """One entry for each test whose outcome is another with us than without."""
    differences = []
    for name, outcome in ours.outcomes.items():
        if outcome != torchs.outcomes.get(name):
            error = ours.errors.get(name, "")
            why = next((w for where, what, w in expected if re.search(where, name) and re.search(what, error)), None)
            difference = {"test": name, "torch": torchs.outcomes.get(name), "tilewright": outcome}
            differences.append(difference | {"reason": why or error[:300], "explained": why is not None})
    return differences


def count(run: Run) -> dict[str, int]:
    return {outcome: list(run.outcomes.values()).count(outcome) for outcome in ("passed", "failed", "skipped")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="PyTorch's test/test_transformers.py")
    parser.add_argument("--backend", help="ask for this backend, so that nothing goes to torch")
    parser.add_argument("-k", dest="expression", default="CPU or cpu", help="pytest's choice of tests")
    parser.add_argument("--note", help="what to record of the file, such as its version")
    parser.add_argument("--json", type=Path, default=HERE / "torch_sdpa.json")
    given = parser.parse_args(arguments)
    if not given.path.is_file():
        parser.error(f"{given.path} is not there; fetch test/test_transformers.py of PyTorch {torch.__version__}")
    torchs = run_once(given.path, given.expression, Inside(False, None))
    ours = run_once(given.path, given.expression, Inside(True, given.backend))
    differences = judge(torchs, ours, EXPECTED_WITH_BACKEND if given.backend else EXPECTED)
    for d in differences:
        print(f"{d['test']}: {d['torch']} with torch, {d['tilewright']} with tilewright: {d['reason']}")
    record = {
        "file": {
            "name": given.path.name,
            "sha256": hashlib.sha256(given.path.read_bytes()).hexdigest(),
            "note": given.note,
        },
        "environment": {
            "tilewright": tilewright.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "backend": given.backend,
        "expression": given.expression,
        "torch": count(torchs),
        "tilewright": count(ours),
        "served": sum(ours.calls.values()),
        "tests_that_called_tilewright": sum(n > 0 for n in ours.calls.values()),
        "refused": dict(ours.refused),
        "differences": differences,
    }
    print(json.dumps({k: v for k, v in record.items() if k not in ("file", "environment", "differences")}, indent=2))
    given.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if ours.outcomes and all(d["explained"] or d["tilewright"] != "failed" for d in differences) else 1


if __name__ == "__main__":
    raise SystemExit(main())
