"""What the CUDA kernels compile to: the committed tables against limits, and the module that was built against them.

The tables are machine_code/<source>.json; `python csrc/cuda/machine_code.py` builds the module and writes them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "machine_code"
WRITE = "write the tables again: python csrc/cuda/machine_code.py (docs/cuda.md)"

_spec = importlib.util.spec_from_file_location("cuda_machine_code", ROOT / "csrc" / "cuda" / "machine_code.py")
assert _spec is not None and _spec.loader is not None
machine_code: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = machine_code
_spec.loader.exec_module(machine_code)

STEMS: list[str] = machine_code.stems()
#: Instances in a source, for one architecture.
INSTANCES = 40
#: Sources whose kernels multiply matrices, and the beginnings of the names of those kernels that do not.
MATRIX_SOURCES = ("attention", "kvcache_attention", "varlen_attention", "ffn")
WITHOUT_PRODUCTS = ("attention_merge", "attention_sink_gradient", "kvcache_append", "ffn_drop", "ffn_sum")
#: Kernels whose operands come another way: straight from global memory, or float32's columns, number by number.
WITHOUT_COPIES = ("ffn_few_rows",)
WITHOUT_LDSM = ("ffn_few_rows", "ffn_product<float, 128, (Layout)2>", "ffn_product<float, 64, (Layout)2>")
#: Kernels that may use local memory, with the instructions that do: of the forward, and of the backward those that have
#: more than BACKWARD_SPILLS. float32's operands come in three parts.
SPILLS = {
    "attention_forward<float, 128, true>": 6,
    "attention_forward<float, 256, true>": 34,
    "attention_decode<float, 256>": 2,
}
#: Kernels of the backward may use it a little, since larger tiles repay it.
BACKWARD_SPILLS = 25


def table(stem: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{stem}.json").read_text())
    return found


def rows() -> Iterator[tuple[str, str, str, dict[str, int]]]:
    for stem in STEMS:
        for architecture, kernels in table(stem)["rows"].items():
            for name, row in kernels.items():
                yield stem, architecture, name, row


def test_every_source_has_a_table() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.json")) == STEMS, WRITE


@pytest.mark.parametrize("stem", STEMS)
def test_the_table_is_of_these_sources(stem: str) -> None:
    found = table(stem)
    assert found["fingerprint"] == machine_code.fingerprint(stem), f"{stem} changed, or what it includes; {WRITE}"
    assert sorted(found["rows"]) == ["sm_80", "sm_90"]
    assert len({tuple(kernels) for kernels in found["rows"].values()}) == 1, "every kernel is for every architecture"


def test_the_budget_of_instances() -> None:
    counts = {stem: max(map(len, table(stem)["rows"].values())) for stem in STEMS}
    above = {stem: count for stem, count in counts.items() if count > INSTANCES}
    assert not above, f"more than {INSTANCES} kernels in a source compile for too long: split {above} (docs/cuda.md)"


def test_limits_of_registers_and_local_memory() -> None:
    wrong = []
    for stem, architecture, name, row in rows():
        used = row["stores"] + row["loads"]
        allowed = SPILLS.get(name, BACKWARD_SPILLS if "backward" in stem or "gradient" in stem else 0)
        if row["registers"] > 255 or used > allowed or (row["stack"] and not used):
            wrong.append(f"{architecture} {name}: {row}, of which {allowed} instructions may use local memory")
    assert not wrong, "smaller tiles are needed for\n" + "\n".join(wrong)


def test_the_list_of_exceptions_is_as_short_as_it_can_be() -> None:
    used = {name for _, _, name, row in rows() if row["stores"] + row["loads"]}
    assert not set(SPILLS) - used, "these do not use local memory any more"


def test_products_are_of_tensor_cores_and_their_operands_come_by_the_instructions_for_them() -> None:
    wrong, seen = [], 0
    for stem, architecture, name, row in rows():
        if stem.startswith(MATRIX_SOURCES) and not name.startswith(WITHOUT_PRODUCTS):
            seen += 1
            wanted = ["HMMA"]
            wanted += [] if name.startswith(WITHOUT_LDSM) else ["LDSM"]
            wanted += [] if name.startswith(WITHOUT_COPIES) else ["LDGSTS"]
            missing = [word for word in wanted if not row[word]]
            if missing:
                wrong.append(f"{architecture} {name} has no {', '.join(missing)}")
    assert seen and not wrong, "\n".join(wrong)


def test_the_module_is_what_is_listed() -> None:
    module = pytest.importorskip(
        "tilewright._cuda", reason="the CUDA module was left out of this build", exc_type=ImportError
    )
    targets = {target.rstrip("af") for target in module.targets().split() if target.startswith("sm_")}
    architectures = tuple(a for a in machine_code.ARCHITECTURES if f"sm_{a.rstrip('af')}" in targets)
    if not architectures:
        pytest.skip(f"the module was built for {module.targets()}, of which there are no tables")
    try:
        compiler, found = machine_code.read_module(Path(module.__file__), architectures)
    except machine_code.Unreadable as reason:
        pytest.skip(f"its machine code cannot be read: {reason}")
    expected = {stem: table(stem) for stem in STEMS}
    others = {stem: t["nvcc"] for stem, t in expected.items() if t["nvcc"] != compiler}
    if others:
        pytest.skip(f"the module was built by nvcc {compiler}, which compiles differently than that of {others}")
    for stem, t in expected.items():
        listed = {a: kernels for a, kernels in t["rows"].items() if a in found[stem]}
        assert found[stem] == listed, f"{stem}: {WRITE}"
    assert set(found) == set(expected), WRITE


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("void tw::gpu::(anonymous namespace)::sum_kernel<tw::Half, 8, false>(tw::gpu::Launch)", "sum<Half, 8, false>"),
        ("tw::gpu::(anonymous namespace)::zero_kernel(float*, int)", "zero"),
        ("void tw::(anonymous namespace)::f_kernel<tw::Pair<int, (tw::Kind)2> >(tw::A)", "f<Pair<int, (Kind)2> >"),
    ],
)
def test_names_are_short(demangled: str, short: str) -> None:
    assert machine_code.short_name(demangled) == short


def test_a_fingerprint_is_of_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cuda"
    folder.mkdir()
    monkeypatch.setattr(machine_code, "HERE", folder)
    header, flags = folder / "one.h", folder / "CMakeLists.txt"

    def of(source: str, included: str = "int y;", options: str = "options(-O3)") -> str:
        (folder / "one.cu").write_text(f'#include "one.h"\n{source}')
        header.write_text(included)
        flags.write_text(options)
        found: str = machine_code.fingerprint("one")
        return found

    first = of("int x = 1;")
    assert of("int x  =\n 1;  // a comment\n/* and\n another */", "int y;//", "options(-O3)  # why") == first
    assert of("int x = 2;") != first
    assert of("int x = 1;", "int z;") != first
    assert of("int x = 1;", options="options(-O2)") != first
    assert of('auto s = "// 1";') != of('auto s = "// 2";')
