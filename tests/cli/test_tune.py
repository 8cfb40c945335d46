"""``tilewright tune``: what it lists, refuses and writes; the search itself is in tests/tune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tilewright.registry import unavailable

from .conftest import Run

pytestmark = pytest.mark.skipif(unavailable("triton") is not None, reason=str(unavailable("triton")))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@NO_GPU
def test_without_a_gpu_it_says_so(run: Run, tmp_path: Path) -> None:
    result = run("tune", "--output", str(tmp_path / "tuned.json"))
    assert result.code == 1 and not (tmp_path / "tuned.json").exists()
    assert result.err == "error: tune measures on a GPU: torch sees no CUDA device here\n"


def test_list_shows_kernels_keys_and_configurations(run: Run) -> None:
    result = run("tune", "--list", "--op", "softmax", "--key", "128", "--key", "")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines() if line.startswith("softmax")]
    assert [line[0] for line in lines] == [
        "softmax_forward",
        "softmax_backward",
        "softmax_forward_looped",
        "softmax_backward_looped",
    ]
    assert lines[0][1] == "128" and "columns128" in lines[0]
    assert "attention" not in result.out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--op", "nonsense"], "attention, softmax, ffn"),
        (["--kernel", "nonsense"], "attention_forward"),
        (["--key", "nonsense"], "--list"),
        (["--budget", "0"], "--budget"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], names: str) -> None:
    result = run("tune", *arguments)
    assert result.code == 2 and names in result.err


def test_what_was_tuned_is_written_at_once_and_reported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tilewright.cli import tune as command
    from tilewright.triton_kernels import user_table
    from tilewright.triton_kernels.launch import Config
    from tilewright.tune import search
    from tilewright.tune.workloads import Maker

    path = tmp_path / "folder" / "tuned.json"
    before, after = Config({"ROWS": 1, "COLUMNS": 64}, 4, 1), Config({"ROWS": 4, "COLUMNS": 64}, 4, 1)

    def tune(kernel: str, key: str, options: search.Search) -> search.Result:
        if key == "64":
            return search.Result(kernel, key, before, after, "tuned", "", 2e-3, 1e-3)
        assert path.exists(), "an interruption here would have lost what was found"
        return search.Result(kernel, key, before, before, "not launched", "no call launches it")

    monkeypatch.setattr(search, "tune", tune)
    monkeypatch.setattr("tilewright.tune.table.gpu_driver", lambda: "580.1")
    settings = search.Search(Maker(torch.device("cuda" if torch.cuda.is_available() else "cpu")), timer=None)  # type: ignore[arg-type]
    results = command.run_all([("softmax_forward", "64"), ("softmax_forward", "32")], settings, path)
    command.report(results, path)
    printed = capsys.readouterr().out
    assert "2 ms -> 1 ms" in printed and "2.00x" in printed and "softmax_forward 32: no call launches it" in printed
    assert f"1 of 2 are faster with another configuration; written to {path}" in printed
    (section,) = user_table.read(path)
    assert section["driver"] == "580.1" and section["entries"][0]["before"]["blocks"] == before.blocks


def test_info_says_which_table_is_in_force(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilewright.triton_kernels import launch

    file, table = tmp_path / "info.json", tmp_path / "tuned.json"

    def state() -> dict[str, str]:
        launch.forget_configurations()
        result = run("info", "--json", str(file))
        found: dict[str, str] = json.loads(file.read_text())["tuned_table"]
        assert found["state"] in result.out
        return found

    assert state() == {"path": None, "state": "TILEWRIGHT_TUNED=off"}
    monkeypatch.setenv("TILEWRIGHT_TUNED", str(table))
    table.write_text('{"format": 1, "devices": []}')
    assert state()["path"] == str(table) and state()["state"].startswith("0 entries in force for ")
    table.write_text("broken")
    assert "not usable" in state()["state"] and "not JSON" in state()["state"]
    monkeypatch.undo()
    launch.forget_configurations()
