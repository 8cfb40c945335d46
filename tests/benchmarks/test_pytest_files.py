"""The files for pytest-benchmark: each runs, carries what a reader needs, and times nothing that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench.items.own import KINDS

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2]
FILES = sorted(p.name for p in (ROOT / "benchmarks").glob("bench_*.py"))
#: What takes seconds to compile has its turn outside the tests.
SHORT = ("--shapes", "tiny", "--device", "cpu", "-k", "not compile and not flex", "-p", "no:cacheprovider")
QUICK = ("--benchmark-min-rounds", "1", "--benchmark-max-time", "0.001", "--benchmark-calibration-precision", "1")


def run(folder: Path, *arguments: str, plugin: str = "") -> tuple[int, str, list[dict[str, Any]], dict[str, Any]]:
    """Exit code, output, what was timed, and the whole JSON file. plugin: Python that runs before collection."""
    (folder / "plugin_of_test.py").write_text(plugin)
    file = folder / "result.json"
    command = [sys.executable, "-m", "pytest", "-rA", *SHORT, *QUICK, "-p", "plugin_of_test", "--benchmark-json", file]
    # As started by hand: pytest-benchmark times nothing in what it takes for a worker of xdist.
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [*map(str, command), *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    found = json.loads(file.read_text()) if file.is_file() and file.stat().st_size else {"benchmarks": []}
    return done.returncode, done.stdout + done.stderr, found["benchmarks"], found


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What each file timed, in one run of all of them."""
    code, output, timed, found = run(tmp_path_factory.mktemp("run"), *(f"benchmarks/{name}" for name in FILES))
    assert code == 0, output
    assert found["environment"]["cpu"] and found["environment"]["packages"]["torch"]
    return {name: [b for b in timed if b["fullname"].startswith(f"benchmarks/{name}::")] for name in FILES}


def test_there_is_a_file_for_each_op() -> None:
    assert set(FILES) == {f"bench_{op}.py" for op in (*KINDS, "overhead")}


def test_the_overhead_of_a_call(everything: dict[str, list[dict[str, Any]]]) -> None:
    infos = [b["extra_info"] for b in everything["bench_overhead.py"]]
    assert {(i["op"], i["mode"]) for i in infos} == {
        (op, mode) for op in ("attention", "softmax", "ffn") for mode in ("forward", "forward+backward")
    }
    assert all(i["ratio"] > 0.0 for i in infos)


@pytest.mark.parametrize("op", KINDS)
def test_the_file_of_an_op(op: str, everything: dict[str, list[dict[str, Any]]]) -> None:
    timed = everything[f"bench_{op}.py"]
    infos = [b["extra_info"] for b in timed]
    assert {i["op"] for i in infos} == {op}
    for info in infos:
        assert info["dtype"] in ("float32", "bfloat16") and info["mode"] in ("forward", "backward", "both")
        assert info["unit"] in ("TFLOP/s", "GB/s", "us") and info["result"] > 0.0
        assert 0.0 <= info["error"] < 1.5e-2
    items = {i["item"] for i in infos}
    for item in items:
        assert any(i["provider"].startswith("tilewright ") for i in infos if i["item"] == item)
    others = {i["provider"] for i in infos if not i["provider"].startswith("tilewright ")}
    assert others, "no peer was timed"


SPOILED = """
import tilewright.bench.items.softmax as items
from tilewright.bench import single

right, build = items.softmax, single.build
items.softmax = lambda *a, **k: 2 * right(*a, **k)

def counted(item, bench):
    print(f"built {item.name}")
    return build(item, bench)

single.build = counted
"""


def test_a_wrong_result_fails_and_is_not_timed_and_inputs_are_shared(tmp_path: Path) -> None:
    code, output, timed, _ = run(tmp_path, "benchmarks/bench_softmax.py", "-s", plugin=SPOILED)
    assert code == 1
    providers = {b["extra_info"]["provider"] for b in timed}
    assert "eager" in providers
    assert not any(p.startswith("tilewright ") for p in providers)
    assert "wrong: its error against float64 is" in output
    built = [line for line in output.splitlines() if "built softmax" in line]
    assert len(built) == 4, "the inputs of a call were made more than once"


MISSING = """
import dataclasses
import tilewright.bench.items.softmax as items
from tilewright.bench.peers import Refused, softmax

def refused(shape, device):
    raise Refused("not this call")

def missing(shape, device):
    raise ModuleNotFoundError("No module named 'liger'")

softmax.PEERS = items.PEERS = (
    dataclasses.replace(items.PEERS[0], name="refuses", make=refused),
    dataclasses.replace(items.PEERS[0], name="is missing", make=missing),
)
"""


def test_who_refuses_or_is_missing_is_skipped_with_the_reason(tmp_path: Path) -> None:
    code, output, timed, _ = run(tmp_path, "benchmarks/bench_softmax.py", plugin=MISSING)
    assert code == 0, output
    assert "refused: not this call" in output
    assert "missing: ModuleNotFoundError: No module named 'liger'" in output
    assert {b["extra_info"]["provider"].split()[0] for b in timed} == {"tilewright"}
