"""The table of what every kernel compiles to: ``python -m tilewright.stand_in.machine_code`` writes it.

One file per op, tests/triton/machine_code/<op>.json: for each architecture, and each kernel that the calls of calls.py
launch there, registers and stack bytes of a thread, instructions that spill, bytes of shared memory, matrix
instructions and TMA instructions. It needs no GPU. A test holds the table against limits, and the kernels against it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import triton

from .. import triton_kernels
from ..triton_kernels.math import INTERPRETED
from .calls import CALLS
from .cubin import compile_instance
from .driver import CHIPS, activate
from .front_end import Instance, front_end_only, instances

#: A kernel's name in the table, where it is not the function's.
NAMES = {
    "in_kernel": "ffn_in", "out_kernel": "ffn_out", "in_parts_kernel": "ffn_in_parts", "product_kernel": "ffn_product",
    "out_parts_kernel": "ffn_out_parts", "hidden_gradient_kernel": "ffn_hidden_gradient", "drop_kernel": "ffn_drop",
}  # fmt: skip

Rows = dict[str, dict[str, dict[str, Any]]]


def sources(op: str) -> list[Path]:
    """The files that an op's machine code depends on."""
    here, kernels = Path(__file__).parent, Path(str(triton_kernels.__file__)).parent
    shared = ["math.py", *(["activations.py"] if op == "ffn" else [])]
    return [*sorted(kernels.glob(f"{op}*.py")), *(kernels / name for name in shared), here / "calls.py"]


def fingerprint(op: str) -> str:
    """Of the op's sources, as far as they are code: comments, docstrings and layout do not count."""
    digest = hashlib.sha256()
    for file in sources(op):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if (
                isinstance(body, list)
                and body
                and isinstance(body[0], ast.Expr)
                and isinstance(body[0].value, ast.Constant)
            ):
                node.body = body[1:]  # type: ignore[attr-defined]
        digest.update(f"{file.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def described(instance: Instance) -> str:
    """Its configuration."""
    sizes = {n: v for n, v in instance.constants_by_name.items() if type(v) is int and n not in ("BLOCK_D", "BLOCK_DV")}
    blocks = " ".join(f"{name}={size}" for name, size in sizes.items())
    return f"{blocks} warps={instance.options.num_warps} stages={instance.options.num_stages}"


def _name(instance: Instance, call: str) -> str:
    kernel = NAMES.get(instance.kernel.__name__, instance.kernel.__name__)
    constants = instance.constants_by_name
    if constants.get("CACHE"):
        kernel = "attention_decode"
    if constants.get("GATED"):
        kernel += "_gated"
    phase = f" phase {constants['PHASE']}" if "PHASE" in constants else ""
    return f"{kernel} {call}{phase}" + (" TMA" if constants.get("TMA") else "")


@functools.cache
def listed(op: str, architecture: str) -> dict[str, Instance]:
    """By name, every kernel that the op's calls launch on a chip; one that several launch is listed with the first."""
    activate(architecture)
    front_end_only(lower=False)
    found: dict[str, Instance] = {}
    for call, run in CALLS[op](architecture):
        instances.clear()
        run()
        for instance in instances:
            name = _name(instance, call)
            # The products of a backward are one kernel with several layouts.
            while name in found:
                name += "'"
            found[name] = instance
    return found


def compile_named(op: str, architecture: str, name: str) -> dict[str, Any]:
    """A row of the table."""
    instance = listed(op, architecture)[name]
    activate(architecture)
    code = compile_instance(instance)
    return {
        "config": described(instance),
        "registers": code.registers,
        "stack": code.stack,
        "spills": code.spills,
        "shared": code.shared,
        "matrix": code.matrix,
        "tma": code.tma,
    }


def build(op: str, processes: int) -> Rows:
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    todo = [(op, architecture, name) for architecture in CHIPS for name in listed(op, architecture)]
    rows: Rows = {architecture: {} for architecture in CHIPS}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProcessPoolExecutor(processes) as pool, Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(op, total=len(todo))
        running = {pool.submit(compile_named, *job): job for job in todo}
        for done in as_completed(running):
            _op, architecture, name = running[done]
            rows[architecture][name] = done.result()
            progress.advance(task)
    return {a: {name: rows[a][name] for _op, b, name in todo if b == a} for a in CHIPS}


def write(op: str, rows: Rows, folder: Path) -> Path:
    """One instance a line, so that a change shows as the lines that it changes."""
    lines = []
    for architecture, found in rows.items():
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
        lines.append(f" {json.dumps(architecture)}: {{\n{inner}\n }}")
    head = f'"triton": {json.dumps(triton.__version__)},\n"fingerprint": {json.dumps(fingerprint(op))},\n"rows": '
    path = folder / f"{op}.json"
    path.write_text("{\n" + head + "{\n" + ",\n".join(lines) + "\n}\n}\n")
    return path


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tilewright.stand_in.machine_code", description=__doc__)
    parser.add_argument("--op", action="append", choices=sorted(CALLS), help="only this op; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("tests/triton/machine_code"), help="where the tables are")
    parser.add_argument("--processes", type=int, default=2, help="compilations at a time (default: 2)")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: in Triton's interpreter nothing is compiled")
    if not chosen.folder.is_dir():
        parser.error(f"--folder: {chosen.folder} is not a folder; run this in the root of a checkout")
    for op in chosen.op or CALLS:
        print(write(op, build(op, chosen.processes), chosen.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
