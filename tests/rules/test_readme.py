"""What the README shows is what was measured, and its code runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_opens_with_the_two_commands() -> None:
    commands = re.search(r"```\n(.*?)```", README, re.S)
    assert commands is not None
    assert [line.split()[:2] for line in commands.group(1).splitlines()] == [["make", "demo"], ["make", "test"]]


@pytest.fixture(scope="module")
def readme() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import readme
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return readme


def test_the_table_is_the_result_files(readme: Any) -> None:
    assert readme.rewritten(README, readme.newest()) == README, "run: python benchmarks/readme.py"
    for device in readme.newest():
        assert (readme.IMAGES / readme.PICTURES[device]).is_file(), "run: python benchmarks/readme.py"
    assert readme.BEGIN in README
    assert readme.END in README


def result(device: str, seconds: float) -> dict[str, Any]:
    """Of a benchmark of one call."""

    def row(provider: str, p50: float) -> dict[str, Any]:
        times = {"p50": p50, "p20": p50, "p80": p50, "samples": 3, "values": [p50] * 3}
        facts = {"op": "softmax", "mode": "both", "dtype": "float32", "label": "2 × 8", "scene": "logits"}
        made = {"item": "a", "provider": provider, "status": "timed", "device": times, "wall": times, "error": 2e-8}
        return {**made, **facts, "unit": "GB/s", "result": 1.0, "of_roofline": 0.25}

    environment = {"cpu": "A CPU", "cpus_usable": 3, "gpus": ["A GPU"], "torch_threads": 2, "date": "2026-01-02T03:04"}
    environment["packages"] = {"torch": "2.x", "triton": "3.x"}
    rows = [row("tilewright cpu", seconds), row("eager", 1e-3)]
    return {"environment": environment, "command": "tilewright bench", "settings": {"device": device}, "rows": rows}


def write(folder: Path, name: str, device: str, seconds: float) -> Path:
    (folder / name).write_text(json.dumps(result(device, seconds)))
    return folder / name


def test_the_newest_result_of_each_device_is_shown(readme: Any, tmp_path: Path) -> None:
    write(tmp_path, "2026-01-01-bench-a.json", "cpu", 9e-3)
    newer = write(tmp_path, "2026-01-02-bench-a.json", "cpu", 2e-3)
    (tmp_path / "2026-01-03-transformers-a.json").write_text("{}")
    assert readme.newest(tmp_path) == {"cpu": newer}
    gpu = write(tmp_path, "2026-01-01-bench-b.json", "cuda", 0.25e-3)
    assert readme.newest(tmp_path) == {"cpu": newer, "cuda": gpu}
    before = f"above\n{readme.BEGIN}\nstale figures\n{readme.END}\nbelow\n"
    after = readme.rewritten(before, readme.newest(tmp_path))
    assert after.startswith(f"above\n{readme.BEGIN}\n\n") and after.endswith(f"{readme.END}\nbelow\n")
    assert "stale" not in after
    line = "| softmax | logits: 2 × 8 | float32 | both | 2 ms | eager 1 ms | **0.50** [0.50, 0.50] | 25% | 2.0e-08 |"
    assert line in after.splitlines()
    assert "**4.00**" in after and "A CPU, 3 cores, torch 2.x on 2 threads" in after and "A GPU, torch 2.x" in after
    assert "docs/images/gpu.png" in after and "docs/images/cpu.png" not in after
    assert readme.rewritten(after, readme.newest(tmp_path)) == after


def test_without_a_result_the_block_stays(readme: Any, tmp_path: Path) -> None:
    assert readme.newest(tmp_path) == {}
    assert readme.rewritten(README, {}) == README


def test_the_picture_is_of_the_device(readme: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = write(tmp_path, "2026-01-02-bench-a.json", "cuda", 2e-3)
    picture = readme.draw_picture(readme.read(file), tmp_path)
    assert picture == tmp_path / "gpu.png"
    assert picture.stat().st_size > 10_000


def test_the_code_runs(tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"
