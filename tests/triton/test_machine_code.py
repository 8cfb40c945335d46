"""What the Triton kernels compile to, ahead of time: the committed table against limits, the kernels against the table.

The table is machine_code/<op>.json, written by `python -m tilewright.stand_in.machine_code`, which takes a while.
Here a few kernels are compiled again, in a process of their own: in this one Triton may be an interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import triton

from tilewright.stand_in import CHIPS, machine_code
from tilewright.stand_in.calls import CALLS

FOLDER = Path(__file__).parent / "machine_code"
WRITE = "write the table again: python -m tilewright.stand_in.machine_code --op {}"
OPS = sorted(CALLS)

#: What multiplies matrices of 16-bit types in large tiles.
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}
#: Kernels of the backward may spill a little, since larger tiles repay it.
BACKWARD = ("attention_backward", "softmax_backward", "ffn_hidden_gradient", "ffn_drop")
BACKWARD_SPILLS = 100
#: Of the forward of attention a few numbers that all threads share, at most six registers: which kernels do is
#: another question with every line of the source, and a smaller tile would cost more.
ATTENTION_SPILLS, ATTENTION_STACK = 16, 24

#: Compiled here: of each kind of kernel one, on the architecture that has most that is special.
SAMPLE = (
    ("attention", "sm_90", "attention_forward 2,128 causal TMA"),
    ("attention", "sm_90", "attention_backward_rows 2,64 TMA"),
    ("attention", "sm_90", "attention_backward_keys 2,64 TMA"),
    ("attention", "sm_80", "attention_decode 2,64 paged packed split"),
    ("softmax", "sm_90", "softmax_forward 4096 bf16"),
    ("softmax", "sm_100", "softmax_backward_looped 32768 bf16 phase 0"),
    ("ffn", "sm_80", "ffn_out half plain"),
)


def table(op: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{op}.json").read_text())
    return found


def in_a_compiling_process(code: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("op", OPS)
def test_the_table_is_of_these_sources(op: str) -> None:
    assert table(op)["fingerprint"] == machine_code.fingerprint(op), f"{op}'s kernels changed; {WRITE.format(op)}"


def test_every_kernel_as_launched_is_listed_with_its_configuration() -> None:
    code = (
        "import json; from tilewright.stand_in import machine_code as m; "
        "print(json.dumps({o: {a: {n: m.described(i) for n, i in m.listed(o, a).items()} for a in m.CHIPS} "
        "for o in m.CALLS}))"
    )
    for op, expected in in_a_compiling_process(code).items():
        found = {a: {name: row["config"] for name, row in rows.items()} for a, rows in table(op)["rows"].items()}
        assert found == expected, WRITE.format(op)


@pytest.mark.parametrize("op", OPS)
def test_limits(op: str) -> None:
    wrong = []
    for architecture, rows in table(op)["rows"].items():
        for name, row in rows.items():
            backward = name.startswith(BACKWARD)
            allowed = BACKWARD_SPILLS if backward else ATTENTION_SPILLS if op == "attention" else 0
            large = not backward and row["stack"] > ATTENTION_STACK
            if row["spills"] > allowed or large or (row["stack"] and not row["spills"]):
                wrong.append(
                    f"{architecture} {name}: {row['spills']} instructions spill, {row['stack']} bytes of stack"
                )
            if row["shared"] > CHIPS[architecture].shared_bytes:
                wrong.append(f"{architecture} {name}: {row['shared']} bytes of shared memory")
    assert not wrong, "smaller tiles, or fewer stages, are needed for\n" + "\n".join(wrong)


def test_large_tiles_of_half_precision_are_multiplied_by_the_chip_s_own_instructions() -> None:
    keys = [
        f"attention_backward_keys 2,{width} {option}" for width in (64, 128) for option in ("TMA", "causal", "softcap")
    ]
    for op, kernels in (
        ("attention", ("attention_forward 2,", "attention_backward_rows 2,64", "attention_backward_rows 2,128", *keys)),
        ("ffn", ("ffn_in half", "ffn_in_gated half", "ffn_out half", "ffn_product half", "ffn_hidden_gradient half")),
    ):
        for architecture, rows in table(op)["rows"].items():
            # Products of few rows take the narrowest tile that there is.
            chosen = {n: row for n, row in rows.items() if n.startswith(kernels) and " small" not in n}
            assert len(chosen) >= len(kernels), f"{architecture} lists too few of {kernels}"
            without = [name for name, row in chosen.items() if not row["matrix"].get(MATRIX[architecture])]
            assert not without, f"on {architecture} these do not use {MATRIX[architecture]}: {without}"


def test_tma_is_used_where_a_kernel_was_asked_to() -> None:
    for op in ("attention", "ffn"):
        for architecture, rows in table(op)["rows"].items():
            asked = {name: row for name, row in rows.items() if "tma" in name.lower()}
            assert bool(asked) == (architecture != "sm_80"), f"{op} on {architecture}: {len(asked)} kernels use TMA"
            without = [name for name, row in asked.items() if not row["tma"]]
            assert not without, f"{op} on {architecture}: no TMA instruction in {without}"


@pytest.mark.skipif(
    table("attention")["triton"] != triton.__version__,
    reason=f"the table is of Triton {table('attention')['triton']}, another version compiles differently",
)
def test_a_sample_compiles_to_what_is_listed() -> None:
    code = (
        "import json; from tilewright.stand_in import machine_code as m; "
        f"print(json.dumps([m.compile_named(*job) for job in {SAMPLE!r}]))"
    )
    for (op, architecture, name), row in zip(SAMPLE, in_a_compiling_process(code), strict=True):
        assert row == table(op)["rows"][architecture][name], f"{architecture} {name}: {WRITE.format(op)}"
