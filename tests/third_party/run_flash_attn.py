"""FlashAttention 2's own tests, run against tilewright installed as ``flash_attn``.

The test file belongs to flash-attn and is not kept here: fetch tests/test_flash_attn.py of a 2.8 release and give its
path. It needs einops. The file is changed where it must be, and only there: see CHANGES. Its hundreds of thousands of
parameter combinations are thinned to a seeded sample for each test. The outcome is printed, and written as JSON.

    python tests/third_party/run_flash_attn.py test_flash_attn.py --sample 24

The exit status is 0 when every failure is one that EXPECTED explains.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

#: What is replaced in the text of the test file, and why.
CHANGES = [
    (r'torch\.cuda\.get_device_capability\("cuda"\)', "(8, 0)", "asked of a GPU; (8, 0) leaves no gradient untested"),
    (r'torch\.cuda\.get_device_properties\("cuda"\)\.total_memory', "2**40", "asked of a GPU"),
    (r'"cuda"', '"{device}"', "the device of all tensors"),
    (
        r"\Z",
        "\n\ndef normalize_flash_attn_S(attn, *args, **kwargs):\n    return attn\n",
        "flash-attn's S_dmask is not normalized; ours is, so there is nothing to normalize before the comparison",
    ),
]

#: Failures that are known, by test and a pattern in the error: the reason.
EXPECTED = [
    (
        "test_flash_attn_varlen_paged_kv_num_splits",
        r"_flash_attn_varlen_forward",
        "calls a private function of flash-attn, whose arguments are those of its C++ extension",
    ),
    (
        "test_flash_attn_generator_arg_must_be_none",
        r"flash_attn_gpu",
        "calls flash-attn's C++ extension itself",
    ),
    (
        "test_flash_attn_kvcache_paged_block_table_bounds",
        r"ValueError: cache_seqlens\[0\]=\d+ with \d new positions does not fit",
        "the call is refused as the test wants, but by a ValueError that names cache_seqlens, not by a RuntimeError",
    ),
]


class Run:
    """The pytest plugin: thins the parameters, and notes what became of each test."""

    def __init__(self, sample: int, seed: int, longest: int) -> None:
        self.sample, self.seed, self.longest = sample, seed, longest
        self.combinations: dict[str, int] = {}
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.failures: dict[tuple[str, str], list[str]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, name: str, obj: Any) -> None:
        if name.startswith("test_") and hasattr(obj, "pytestmark"):
            obj.pytestmark = self.thinned(name, obj.pytestmark)

    def thinned(self, name: str, marks: list[Any]) -> list[Any]:
        """The marks, with one joint parametrize of a sample in place of the product of all."""
        axes = [mark for mark in marks if mark.name == "parametrize"]
        names = [n.strip() for mark in axes for n in mark.args[0].split(",")]
        total = 1
        for mark in axes:
            total *= len(mark.args[1])
        self.combinations[name] = total
        draw = random.Random(f"{self.seed} {name}")
        chosen: dict[str, tuple[Any, ...]] = {}
        choices = itertools.product(*(mark.args[1] for mark in axes)) if total <= 20 * self.sample else None
        pool = list(choices) if choices is not None else None
        if pool is not None:
            draw.shuffle(pool)
        for attempt in range(1000 * self.sample):
            if len(chosen) == self.sample or (pool is not None and attempt >= len(pool)):
                break
            picked = pool[attempt] if pool is not None else [draw.choice(mark.args[1]) for mark in axes]
            values = [v for mark, p in zip(axes, picked, strict=True) for v in (p if "," in mark.args[0] else (p,))]
            lengths = [v for n, v in zip(names, values, strict=True) if n.startswith("seqlen") and type(v) is int]
            if max(lengths, default=0) <= self.longest:
                chosen[repr(values)] = tuple(values)
        rest = [mark for mark in marks if mark.name != "parametrize"]
        return [*rest, pytest.mark.parametrize(",".join(names), list(chosen.values())).mark] if axes else rest

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.split("::")[-1]
            test = name.split("[")[0]
            self.outcomes[test][report.outcome] += 1
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                self.failures[test, crash.message if crash else str(report.longrepr)].append(name)

    def reasons(self) -> list[dict[str, Any]]:
        found: dict[tuple[str, str | None], list[str]] = defaultdict(list)
        for (test, error), names in self.failures.items():
            why = next((why for where, what, why in EXPECTED if where == test and re.search(what, error)), None)
            found[test, why or error.splitlines()[0][:200]] += names
        known = {why for _, _, why in EXPECTED}
        return [
            {"test": test, "reason": why, "explained": why in known, "count": len(names), "cases": sorted(names)[:5]}
            for (test, why), names in sorted(found.items(), key=str)
        ]


def changed(text: str, device: str) -> str:
    for pattern, replacement, _ in CHANGES:
        text, count = re.subn(pattern, lambda _, new=replacement: new.replace("{device}", device), text, count=0)
        if count == 0:
            raise SystemExit(f"{pattern!r} is not in the test file: is it tests/test_flash_attn.py of flash-attn 2.8?")
    return text


def table(run: Run) -> str:
    lines = [f"{'test':<50} {'of':>8} {'passed':>7} {'failed':>7} {'skipped':>7}"]
    for test, counts in run.outcomes.items():
        numbers = (run.combinations.get(test, 1), counts["passed"], counts["failed"], counts["skipped"])
        lines.append(f"{test:<50} {numbers[0]:>8} {numbers[1]:>7} {numbers[2]:>7} {numbers[3]:>7}")
    lines += [f"{r['count']} x {r['test']}: {r['reason']}" for r in run.reasons()]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="flash-attn's tests/test_flash_attn.py")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backend", default="cpu", choices=("cpu", "cuda", "triton", "reference"))
    parser.add_argument("--sample", type=int, default=24, help="combinations of parameters for each test")
    parser.add_argument("--longest", type=int, default=512, help="leave out combinations with longer sequences")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="pytest's -k")
    parser.add_argument("--json", type=Path, default=HERE / "flash_attn.json")
    given = parser.parse_args(arguments)
    if not given.path.is_file():
        parser.error(f"{given.path} is not there; fetch tests/test_flash_attn.py of flash-attn 2.8")

    # Both are read when tilewright is imported.
    os.environ["TILEWRIGHT_BACKEND"] = given.backend
    if given.device == "cpu" and given.backend == "cuda":
        os.environ["TILEWRIGHT_CUDA_EMULATE"] = "1"
    if given.device == "cpu" and given.backend == "triton":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    import tilewright
    from tilewright.integrations.flash_attn import install_as_flash_attn

    text = given.path.read_text()
    run = Run(given.sample, given.seed, given.longest)
    start = time.time()
    with tempfile.TemporaryDirectory() as folder, install_as_flash_attn(transformers=False):
        interface = sys.modules["flash_attn.flash_attn_interface"]
        # What the file imports of flash-attn's inside; only functions that CHANGES replaces use them.
        interface.__dict__.update(_get_block_size_n=None, USE_TRITON_ROCM=False)
        copy = Path(folder) / "test_flash_attn.py"
        copy.write_text(changed(text, given.device))
        options = [str(copy), "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-c", os.devnull]
        pytest.main([*options, "--rootdir", folder, *(["-k", given.only] if given.only else [])], plugins=[run])
    print(table(run))
    reasons = run.reasons()
    record = {
        "file": {"name": "tests/test_flash_attn.py", "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "changes": [why for _, _, why in CHANGES],
        "command": {k: v for k, v in vars(given).items() if k not in ("path", "json")},
        "environment": {
            "tilewright": tilewright.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        },
        "seconds": round(time.time() - start),
        "tests": {t: {"combinations": run.combinations.get(t, 1), **dict(c)} for t, c in run.outcomes.items()},
        "failures": reasons,
    }
    given.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if run.outcomes and all(reason["explained"] for reason in reasons) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
