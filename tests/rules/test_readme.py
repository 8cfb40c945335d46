"""What the README shows is what was measured, and its code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_opens_with_the_two_commands() -> None:
    commands = re.search(r"```\n(.*?)```", README, re.S)
    assert commands is not None
    assert [line.split()[:2] for line in commands.group(1).splitlines()] == [["make", "demo"], ["make", "test"]]


def test_the_table_is_the_result_files() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import readme
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    assert readme.rewritten(README, readme.newest_results()) == README, "run: python benchmarks/readme.py"
    assert readme.PICTURE.is_file()


def test_the_code_runs(tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", README, re.S):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"
