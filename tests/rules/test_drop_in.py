"""Every snippet of docs/drop-in.md runs, by itself, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text()
SNIPPETS = dict(re.findall(r"^## (.*?)\n(?:(?!^## ).*\n)*?```python\n((?:.*\n)*?)```", PAGE, re.M))


def test_every_section_has_one() -> None:
    assert list(SNIPPETS) == re.findall(r"^## (.*)$", PAGE, re.M)


@pytest.mark.parametrize("title", SNIPPETS)
def test_the_snippet_runs(title: str, tmp_path: Path) -> None:
    code = SNIPPETS[title]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docs/drop-in.md, {title}:\n{done.stderr}"


def test_its_links_lead_somewhere() -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^## (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == anchors
