"""Triton's cache as a kit carries it: what loading needs and no more, found on another machine; a miss is explained."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from gpu import cache

PARTS = {
    "Triton's own files": "a", "ptxas and chip": "cuda-90", "environment": "[]", "options": "w4 s2",
    "kernel's source": "1", "types": "*bf16", "alignment": "[]", "constants": "BLOCK 64",
}  # fmt: skip
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


def filled(folder: Path) -> list[dict[str, Any]]:
    """Triton's folder with two kernels, a launcher, and what nobody asked for; and the log of what was asked for."""
    files = {
        "K1": ["one.cubin", "one.json", "__grp__one.json", "one.ptx", "one.llir"],
        "K2": ["two.cubin", "two.json", "__grp__two.json"],
        "STALE": ["old.cubin", "old.json"],
        "L": [f"__triton_launcher{SUFFIX}", "launcher.c"],
    }
    for name, of in files.items():
        (folder / name).mkdir(parents=True)
        for file in of:
            (folder / name / file).write_text(f"{name} {file}")
    kernels = [{"kernel": n, "key": k, "hit": False, "parts": PARTS} for n, k in (("one", "K1"), ("two", "K2"))]
    return [*kernels, kernels[0], {"launcher": "L", "name": "__triton_launcher"}]


def test_a_kit_holds_what_loading_needs_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = filled(tmp_path / "there")
    archive = tmp_path / "cache.tar.xz"
    assert cache.pack(tmp_path / "there", iter(events), archive) == (2, 1)
    # There the system has no `file` command, say, from which Python tells how programs are linked.
    monkeypatch.setattr(cache, "platform_key", lambda: "x86_64,Linux,64bit,")
    here = tmp_path / "here"
    assert cache.unpack(archive, here) == (2, 1)
    launcher = cache._launcher_key("L launcher.c")
    found = {str(f.relative_to(here)) for f in here.rglob("*") if f.is_file()}
    kernels = {f"{k}/{file}" for k, n in (("K1", "one"), ("K2", "two")) for file in (f"{n}.cubin", f"{n}.json")}
    lists = {"K1/__grp__one.json", "K2/__grp__two.json"}
    assert found == kernels | lists | {f"{launcher}/__triton_launcher{SUFFIX}", cache.INDEX}
    paths = json.loads((here / "K1" / "__grp__one.json").read_text())["child_paths"]
    assert paths == {name: str(here / "K1" / name) for name in ("one.cubin", "one.json")}, "where they lie now"


def test_a_miss_is_explained_by_what_differs(tmp_path: Path) -> None:
    index = tmp_path / cache.INDEX
    assert cache.difference("one", PARTS, index) == "", "without a kit there is nothing to explain"
    other = {**PARTS, "kernel's source": "2", "constants": "BLOCK 128"}
    entries = {"K1": {"kernel": "one", "parts": PARTS}, "K2": {"kernel": "one", "parts": other}}
    index.write_text(json.dumps(entries))
    assert cache.difference("one", {**PARTS, "ptxas and chip": "13.1-90"}, index) == (
        "one: ptxas and chip: here '13.1-90', in the kit 'cuda-90'"
    )
    assert "constants: here 'BLOCK 32', in the kit 'BLOCK 64'" in cache.difference(
        "one", {**PARTS, "constants": "BLOCK 32"}, index
    )
    assert cache.difference("three", PARTS, index) == "three: the kit has no kernel of this name"
    assert "files are missing" in cache.difference("one", PARTS, index)
