"""The example of docs/emulator.md, by the command that stands there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "emulator.md").read_text()


def run(folder: Path, option: str = "") -> str:
    found = re.search(r"```\n(c\+\+ .*?)```", PAGE, re.S)
    assert found, "docs/emulator.md has no command for the example any more"
    command = found[1].replace("-o example && ./example", f"{option} -o {folder}/example && {folder}/example")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_prints_the_sum_of_each_row(tmp_path: Path) -> None:
    assert run(tmp_path).split() == [str(sum(range(128 * i, 128 * i + 128))) for i in range(3)]


def shape(text: str) -> str:
    """Which pair of accesses is noticed first depends on the C++ library's shuffle."""
    return re.sub(r"\d+", "0", text)


def test_without_its_barrier_prints_the_report_of_the_page(tmp_path: Path) -> None:
    report = run(tmp_path, "-DWITHOUT_BARRIER")
    assert report.startswith("shared-race in row_sums"), report
    assert shape(report) in shape(PAGE), f"docs/emulator.md shows another report than {report}"
