"""How well the ratios of several results repeat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from repeat import main


def result(folder: Path, name: str, ours: dict[str, float], peer: float = 2e-3) -> str:
    def row(item: str, provider: str, seconds: float) -> dict[str, Any]:
        times = {"values": [seconds] * 9}
        return {"item": item, "op": "softmax", "provider": provider, "status": "timed", "unit": "us", "device": times}

    rows = [row(i, p, s) for i, seconds in ours.items() for p, s in (("tilewright cpu", seconds), ("eager", peer))]
    file = folder / name
    file.write_text(json.dumps({"environment": {}, "command": "", "settings": {}, "rows": rows}))
    return str(file)


def test_ratios_apart_are_told_by_op_and_by_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = result(tmp_path, "a.json", {"x": 1e-3, "y": 1e-3, "only here": 1e-3})
    second = result(tmp_path, "b.json", {"x": 1e-3, "y": 1.21e-3})
    assert main([first, second]) == 0
    said = capsys.readouterr().out
    assert "softmax: geometric means 2.000, 1.818, 10.0% apart" in said
    assert "files 1 and 2: calls 10.5% apart in the median, 21% at most; 50% of 2 within 5%" in said


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = result(tmp_path, "a.json", {"x": 1e-3}), result(tmp_path, "b.json", {"y": 1e-3})
    assert main([a, b]) == 2
    assert "no ratio of a call in common" in capsys.readouterr().err
    assert main([a, str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main([a]) == 2
