"""``tilewright bench``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tilewright.bench.items import all_items
from tilewright.bench.peers import all_peers
from tilewright.bench.summary import read
from tilewright.cli import bench as command
from tilewright.registry import unavailable

from .conftest import Run

BACKEND = "cpu" if unavailable("cpu") is None else "reference"
OURS = f"tilewright {BACKEND}"
SOFTMAX = [i.name for i in all_items("tiny", ("softmax",)) if i.facts["op"] == "softmax"]


def times(seconds: float) -> dict[str, Any]:
    return {"p50": seconds, "p20": seconds, "p80": seconds, "samples": 3, "values": [seconds] * 3}


def timed(item: str, provider: str, seconds: float) -> dict[str, Any]:
    found = {"item": item, "provider": provider, "status": "timed", "unit": "GB/s", "op": "softmax", "mode": "forward"}
    facts = {"dtype": "float32", "label": "1 × 2", "scene": "tiny", "error": 1e-7, "limit": 1e-5, "peak_bytes": 0}
    return {**found, **facts, "result": 1e-9 / seconds, "device": times(seconds), "wall": times(seconds)}


class FakeSession:
    """Answers made-up rows; a row of None is where somebody presses Ctrl-C."""

    def __init__(self, rows: list[list[dict[str, Any]] | None]) -> None:
        self.settings = {"device": "cpu", "shapes": "tiny", "backends": [BACKEND]}
        self.rows: list[dict[str, Any]] = []
        self.show, self._rows = None, rows

    def environment(self) -> dict[str, Any]:
        return {"cpu": "a CPU", "peers": {"eager": torch.__version__}, "packages": {}, "date": "2000-01-01T00:00:00"}

    def measure_all(self, names: list[str], excluded: Any) -> Iterator[list[dict[str, Any]]]:
        for rows in self._rows:
            if rows is None:
                raise KeyboardInterrupt
            self.rows += rows
            yield rows

    def close(self) -> None:
        pass


def given(monkeypatch: pytest.MonkeyPatch, *rows: list[dict[str, Any]] | None) -> None:
    monkeypatch.setattr(command, "open_session", lambda settings, log, budget: FakeSession(list(rows)))


def test_the_calls_and_the_peers_are_listed(run: Run) -> None:
    result = run("bench", "--list", "--shapes", "tiny", "--device", "cpu")
    assert result.code == 0
    for item in all_items("tiny"):
        assert item.name in result.out
    for peers in all_peers().values():
        for peer in peers:
            assert peer.name in result.out
    some = run("bench", "--list", "--shapes", "tiny", "--device", "cpu", "--op", "softmax", "--case", "*bfloat16*")
    assert "attention" not in some.out.split("peer")[0]


def test_a_run_leaves_the_report_and_its_figures(run: Run, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy.json"
    options = ["--shapes", "tiny", "--device", "cpu", "--op", "softmax", "--case", SOFTMAX[0], "--peer", "eager"]
    result = run("bench", *options, "--seconds", "0", "--output", str(out), "--json", str(copy))
    assert result.code == 0, result.err
    found = read(out / "results.json")
    assert found == read(copy)
    assert found.complete
    assert {(r["item"], r["provider"]) for r in found.rows if r["item"] == SOFTMAX[0]} == {
        (SOFTMAX[0], OURS),
        (SOFTMAX[0], "eager"),
    }
    assert {r["status"] for r in found.rows} == {"timed"}
    assert all("of_roofline" in r for r in found.rows if r["item"] == SOFTMAX[0])
    assert SOFTMAX[0] in result.out
    assert "1 faster" in result.out or "1 even" in result.out or "1 slower" in result.out
    for name in ("report.html", "results.csv"):
        assert (out / name).stat().st_size > 0
    assert list(out.glob("*.png"))


def test_a_call_of_ones_own(run: Run, tmp_path: Path) -> None:
    call = "attention:heads=2,seqlen=9,head_dim=8,causal"
    options = ["--device", "cpu", "--shapes", "tiny", "--op", "softmax", "--case", "attention:*", "--peer", "none"]
    result = run("bench", "--shape", call, *options, "--seconds", "0", "--output", str(tmp_path))
    assert result.code == 0, result.err
    items = {r["item"] for r in read(tmp_path / "results.json").rows}
    assert f"{call} forward" in items


def test_ctrl_c_keeps_what_was_measured(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, [timed("call 0", OURS, 1e-3), timed("call 0", "eager", 2e-3)], None)
    result = run("bench", "--device", "cpu", "--output", str(tmp_path))
    assert result.code == 130
    assert "interrupted" in result.err
    found = read(tmp_path / "results.json")
    assert (len(found.rows), found.complete) == (2, False)
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("status", ["wrong", "crashed", "raised"])
def test_a_kernel_of_ours_that_fails_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    failed = {
        "item": "call 0",
        "provider": OURS,
        "status": status,
        "reason": "it is off",
        "unit": "GB/s",
        "op": "softmax",
    }
    given(monkeypatch, [failed, timed("call 0", "eager", 2e-3)])
    result = run("bench", "--device", "cpu", "--output", str(tmp_path))
    assert result.code == 1
    assert "it is off" in result.out
    given(monkeypatch, [timed("call 0", OURS, 1e-3), {**failed, "provider": "eager"}])  # a peer may
    assert run("bench", "--device", "cpu", "--output", str(tmp_path)).code == 0


def test_what_the_time_leaves_out_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = {"item": "call 1", "provider": "all", "status": "not reached", "reason": "the benchmark's time was over"}
    given(monkeypatch, [timed("call 0", OURS, 1e-3)], [rest])
    result = run("bench", "--device", "cpu", "--output", str(tmp_path))
    assert "1 calls were left out" in result.err
    assert not read(tmp_path / "results.json").complete


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--op", "matmul"], "--op matmul: choose one of attention"),
        (["--shapes", "huge"], "--shapes huge: choose one of gpu"),
        (["--dtype", "int8"], "--dtype int8: choose one of"),
        (["--case", "nothing*"], "no call matches 'nothing*'"),
        (["--peer", "cudnn"], "--peer cudnn: choose one of eager"),
        (["--backend", "gpu"], "--backend"),
        (["--shape", "softmax:rows=1"], "width must be given"),
        (["--compare", "a.json", "b.json", "--base", "main"], "give one of them"),
    ],
)
def test_a_mistake_is_named(run: Run, options: list[str], told: str) -> None:
    begun = time.perf_counter()
    result = run("bench", "--device", "cpu", *options)
    assert (result.code, told in result.err) == (2, True), result.err
    assert time.perf_counter() - begun < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run: Run) -> None:
    result = run("bench", "--device", "cuda")
    assert (result.code, "no CUDA device" in result.err) == (1, True)
