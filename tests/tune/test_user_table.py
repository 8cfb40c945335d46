"""The user's own launch configurations: which file, what is in force, and one clear error for what cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tilewright as tw
from tilewright.triton_kernels import launch, user_table
from tilewright.triton_kernels.softmax_table import WIDEST
from tilewright.triton_kernels.user_table import TableError

Install = Callable[..., Path]


def entry(**changes: Any) -> dict[str, Any]:
    """Of softmax rows of 65 to 128 columns."""
    return {
        "kernel": "softmax_forward",
        "key": "128",
        "blocks": {"ROWS": 2, "COLUMNS": 128},
        "num_warps": 2,
        "num_stages": 1,
        **changes,
    }


def test_an_entry_is_in_force_for_exactly_its_kernel_and_key(install: Install, device: torch.device) -> None:
    builtin = {k: launch.config("softmax_forward", k, device) for k in ("64", "128", "across 128")}
    backward = launch.config("softmax_backward", "128", device)
    install(entry())
    assert launch.config("softmax_forward", "128", device) == launch.Config({"ROWS": 2, "COLUMNS": 128}, 2, 1)
    assert builtin["128"] != launch.config("softmax_forward", "128", device)
    for other in ("64", "across 128"):
        assert launch.config("softmax_forward", other, device) == builtin[other]
    assert launch.config("softmax_backward", "128", device) == backward
    assert launch.table_config(launch.architecture(device), "softmax_forward", "128") == builtin["128"]
    x = torch.randn(7, 100, device=device)
    torch.testing.assert_close(tw.softmax(x, backend="triton"), torch.softmax(x, -1))


@pytest.mark.parametrize("section", [{"gpu": "another"}, {"triton": "1.0.0"}])
def test_a_table_for_another_gpu_or_triton_is_not_used(
    section: dict[str, str], install: Install, device: torch.device
) -> None:
    builtin = launch.config("softmax_forward", "128", device)
    install(entry(), entry(kernel="of another version"), **section)
    assert launch.config("softmax_forward", "128", device) == builtin
    assert launch.user_entries(device) == 0


MALFORMED = [
    ("{", "not JSON"),
    ([], '"format": 1'),
    ({"format": 2, "devices": []}, '"format": 1'),
    ({"format": 1}, '"devices" is not a list'),
    ({"format": 1, "devices": [3]}, "devices[0]: it is not an object"),
    ({"format": 1, "devices": [{"gpu": 1}]}, '"gpu" is not a text'),
    ({"format": 1, "devices": [{"gpu": "a", "triton": "b"}]}, '"entries" is not a list'),
]
MALFORMED_ENTRIES = [
    (entry(kernel=3), 'entries[0]: "kernel" is not a text'),
    (entry(blocks=[1]), '"blocks"'),
    (entry(blocks={"ROWS": 2.0, "COLUMNS": 128}), '"blocks"'),
    (entry(num_warps=3), '"num_warps" is 3'),
    (entry(num_stages=0), '"num_stages" is 0'),
]
UNKNOWN = [
    (entry(kernel="softmax_sideways"), "no kernel of this name; there are attention_forward"),
    (entry(key="100"), "no such key; there are '1', '2'"),
    (entry(blocks={"ROWS": 2}), "blocks are ROWS instead of ROWS, COLUMNS"),
    (entry(blocks={"ROWS": 2, "COLUMNS": 64}), "COLUMNS is 64, and has to be 128"),
    (entry(blocks={"ROWS": 3, "COLUMNS": 128}), "ROWS is 3, and has to be a power of two"),
]


def check_error(path: Path, words: str, device: torch.device) -> None:
    with pytest.raises(TableError) as caught:
        launch.config("softmax_forward", "64", device)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "TILEWRIGHT_TUNED=off" in message
    with pytest.raises(ValueError, match=r"tuned\.json"):  # the same for whoever calls an op
        tw.softmax(torch.randn(2, 50, device=device), backend="triton")


@pytest.mark.parametrize(("content", "words"), MALFORMED)
def test_a_malformed_file_is_one_clear_error(content: Any, words: str, install: Install, device: torch.device) -> None:
    check_error(install(content=content), words, device)


@pytest.mark.parametrize(("wrong", "words"), MALFORMED_ENTRIES + UNKNOWN)
def test_a_wrong_entry_is_one_clear_error(
    wrong: dict[str, Any], words: str, install: Install, device: torch.device
) -> None:
    check_error(install(wrong), words, device)


def test_the_same_entry_twice_is_an_error(install: Install, device: torch.device) -> None:
    check_error(install(entry(), entry(num_warps=4)), "there twice", device)


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install, device: torch.device) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TILEWRIGHT_TUNED", "")
    assert user_table.default_path() == tmp_path / "config" / "tilewright" / "tuned.json"
    assert user_table.path_in_force() is None, "a default file that is not there is no table"
    user_table.default_path().parent.mkdir(parents=True)
    user_table.default_path().write_text("{}")
    assert user_table.path_in_force() == user_table.default_path()
    monkeypatch.setenv("TILEWRIGHT_TUNED", "off")
    assert user_table.path_in_force() is None
    monkeypatch.setenv("TILEWRIGHT_TUNED", str(tmp_path / "missing" / "tuned.json"))
    check_error(tmp_path / "missing" / "tuned.json", "cannot be read: No such file", device)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert user_table.default_path() == Path.home() / ".config" / "tilewright" / "tuned.json"


def test_writing_replaces_what_is_new_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "tuned.json"
    user_table.write(path, {"gpu": "a", "triton": "3", "driver": "1", "entries": [entry(), entry(key="64")]})
    user_table.write(path, {"gpu": "b", "triton": "3", "entries": [entry(num_warps=8)]})
    user_table.write(path, {"gpu": "a", "triton": "3", "driver": "2", "entries": [entry(num_warps=4)]})
    assert user_table.entries(path, "a", "3") == {
        ("softmax_forward", "64"): ({"ROWS": 2, "COLUMNS": 128}, 2, 1),
        ("softmax_forward", "128"): ({"ROWS": 2, "COLUMNS": 128}, 4, 1),
    }
    assert user_table.entries(path, "b", "3")["softmax_forward", "128"][1] == 8
    assert [s.get("driver") for s in json.loads(path.read_text())["devices"]] == [None, "2"]
    assert [p.name for p in path.parent.iterdir()] == ["tuned.json"], "a temporary file was left behind"


def test_a_malformed_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    path.write_text("mine")
    with pytest.raises(TableError, match="not JSON"):
        user_table.write(path, {"gpu": "a", "triton": "3", "entries": []})
    assert path.read_text() == "mine"


@pytest.mark.parametrize("chip", launch.ARCHITECTURES)
def test_every_built_in_entry_is_one_that_a_user_may_have(chip: str) -> None:
    for table in launch.TABLES.values():
        for kernel, rows in table[chip].items():
            for key, (blocks, _, _) in rows.items():
                assert launch._problem(chip, kernel, key, blocks) is None
    assert set(launch.FIXED) == set(WIDEST)
