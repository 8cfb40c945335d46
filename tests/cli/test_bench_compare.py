"""``tilewright bench --compare`` and ``--base``: what is printed, the file, and the exit codes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tilewright.bench import base as module
from tilewright.bench.base import Base
from tilewright.bench.summary import FORM
from tilewright.cli import bench_compare
from tilewright.cli.console import UserError

OURS = "tilewright cpu"


def write(path: Path, factor: float = 1.0, device: str = "cpu", **environment: Any) -> Path:
    """Two calls of a millisecond, one of them times the factor, beside one peer."""
    draw = random.Random(str(path.name))
    rows = []
    for item, of_ours in (("softmax", factor), ("ffn", 1.0)):
        for provider, times in ((OURS, of_ours), ("eager", 1.0)):
            values = [1e-3 * times * draw.lognormvariate(0, 0.02) for _ in range(30)]
            facts = {"unit": "GB/s", "op": item, "error": 1e-7, "limit": 1e-5}
            rows.append({"item": item, "provider": provider, "status": "timed", "device": {"values": values}, **facts})
    found = {"form": FORM, "environment": {"commit": "c" * 40, "date": "2026-11-25T10:00:00", **environment}}
    path.write_text(json.dumps({**found, "command": "", "settings": {"device": device}, "rows": rows}))
    return path


def test_a_regression_comes_first_and_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "a.json"), write(tmp_path / "b.json", 1.2)
    out = tmp_path / "out.json"
    assert bench_compare.compare_files(*files, 0.05, out) == 1
    lines = capsys.readouterr().out.splitlines()
    table = lines.index(next(line for line in lines if line.startswith("call ")))
    assert lines[table + 1].startswith("softmax  cpu") and lines[table + 1].endswith("slower")
    assert lines[table + 2].startswith("ffn ") and lines[table + 2].endswith("no change shown")
    assert lines[-1] == "1 regression at a threshold of 5%: 1 slower, 1 no change shown"
    assert "ccccccccc, 2026-11-25" in lines[0]
    found = json.loads(out.read_text())
    assert [c["verdict"] for c in found["changes"]] == ["slower", "no change shown"]
    assert found["changes"][0]["judged"]["low"] > 1.05 and found["changes"][0]["against_peers"]["value"] > 1.15
    assert [p["provider"] for p in found["peers"]] == ["eager", "eager"]
    assert found["before"]["environment"]["commit"] == "c" * 40 and found["threshold"] == 0.05


@pytest.mark.parametrize(("factor", "threshold"), [(1.0, 0.05), (0.8, 0.05), (1.2, 0.25)])
def test_anything_else_is_exit_code_0(
    factor: float, threshold: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "a.json"), write(tmp_path / "b.json", factor)
    assert bench_compare.compare_files(*files, threshold, None) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"0 regressions at a threshold of {100 * threshold:.0f}%")
    assert ("1 faster" in last) == (factor == 0.8)


def test_another_machine_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write(tmp_path / "a.json", cpu="one"), write(tmp_path / "b.json", cpu="another")
    assert bench_compare.compare_files(*files, 0.05, None) == 0
    assert "warning: processor: before one, after another" in capsys.readouterr().err


def test_a_wrong_file_is_one_clear_line(tmp_path: Path) -> None:
    right = write(tmp_path / "a.json")
    texts = {
        "text": "not JSON",
        "list": "[1]",
        "other": '{"environment": {}}',
        "newer": json.dumps({**json.loads(right.read_text()), "form": FORM + 1}),
        "damaged": json.dumps({**json.loads(right.read_text()), "rows": [{"item": "softmax", "provider": OURS}]}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    write(tmp_path / "gpu", device="cuda")
    for name in (*texts, "missing", "gpu"):
        with pytest.raises(UserError) as caught:
            bench_compare.compare_files(right, tmp_path / name, 0.05, None)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
        assert name == "gpu" or str(tmp_path / name) in str(caught.value), name


SETTINGS = {"device": "cpu", "backends": ["reference"], "shapes": "tiny", "seconds": 0.01, "providers": [], "calls": []}


def with_base(rev: str, pattern: str = "softmax forward 100 float32", out: Path | None = None) -> int:
    return bench_compare.compare_with_base(rev, dict(SETTINGS), ("softmax",), None, [pattern], 0.05, out)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    """In the place of a build: the package that runs, with a worker of its own."""
    import os
    import sys

    from tilewright.bench.process import Worker

    class Same(Base):
        def worker(self, log: Path, env: dict[str, str]) -> Worker:
            command = [sys.executable, "-c", "from tilewright.bench.rounds_worker import serve; serve()"]
            return Worker(command, log, {**os.environ, **env}, tmp_path)

    base = Same("d" * 40, tmp_path / "site", tmp_path / "build.log")
    monkeypatch.setattr(module, "checkout", lambda: tmp_path)
    monkeypatch.setattr(module, "resolve", lambda root, rev: base.commit)
    monkeypatch.setattr(module, "prepare", lambda root, rev, targets, show: base)
    return base


def test_a_commit_beside_this_one(prepared: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    code = with_base("v1", out=out)
    captured = capsys.readouterr()
    assert "before: v1, commit ddddddddd" in captured.out, captured.err
    found = json.loads(out.read_text())
    (change,) = found["changes"]
    assert change["item"] == "softmax forward 100 float32" and change["provider"] == "tilewright reference"
    assert change["plain"] is not None and change["against_peers"] is None
    assert code == (change["verdict"] == "slower")
    assert found["before"]["environment"]["commit"] == "d" * 40


def test_wrong_words_are_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: object) -> None:
        raise AssertionError("it was built")

    monkeypatch.setattr(module, "prepare", unexpected)
    monkeypatch.setattr(module, "checkout", lambda: Path(__file__).parents[2])
    with pytest.raises(UserError, match="no call matches 'nothing'"):
        with_base("HEAD", "nothing")
    monkeypatch.setattr(module, "resolve", lambda root, rev: (_ for _ in ()).throw(module.BaseError("no commit")))
    with pytest.raises(UserError, match="--base HEAD: no commit") as caught:
        with_base("HEAD")
    assert caught.value.exit_code == 1


def test_ctrl_c_keeps_what_was_measured(
    prepared: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tilewright.bench import rounds

    measure = rounds.measure_in_turns

    def interrupted(*arguments: Any) -> Iterator[Any]:
        yield from measure(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "measure_in_turns", interrupted)
    assert with_base("v1") in (1, 130)
    captured = capsys.readouterr()
    assert "softmax forward 100 float32" in captured.out and "after is incomplete" in captured.err
