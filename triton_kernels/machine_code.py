"""The table of what every kernel compiles to: ``python -m tilewright.triton_kernels.machine_code`` writes it.

One file per op, tests/triton/machine_code/<op>.json: for each architecture, and each kernel as it would be launched
there, registers and stack bytes of a thread, instructions that spill, bytes of shared memory, matrix instructions and
TMA instructions. It needs no GPU. A test holds the table against limits, and the kernels against the table.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import triton

from . import attention_instances, ffn, softmax
from .compile import Instance, compile_instance
from .launch import ARCHITECTURES, Config
from .math import INTERPRETED

OPS = {"attention": attention_instances.instances, "softmax": softmax.instances, "ffn": ffn.instances}

Rows = dict[str, dict[str, dict[str, Any]]]


def sources(op: str) -> list[Path]:
    """The files that an op's machine code depends on."""
    here = Path(__file__).parent
    shared = ["math.py", "compile.py", *(["activations.py"] if op == "ffn" else [])]
    return [*sorted(here.glob(f"{op}*.py")), *(here / name for name in shared)]


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


def described(config: Config) -> str:
    blocks = " ".join(f"{name}={size}" for name, size in config.blocks.items())
    return f"{blocks} warps={config.num_warps} stages={config.num_stages}"


def compiled(instance: Instance, architecture: str) -> dict[str, Any]:
    """A row of the table."""
    code = compile_instance(instance, architecture)
    return {
        "config": described(instance.config),
        "registers": code.registers,
        "stack": code.stack,
        "spills": code.spills,
        "shared": code.shared,
        "matrix": code.matrix,
        "tma": code.tma,
    }


def compile_named(op: str, architecture: str, name: str) -> dict[str, Any]:
    (instance,) = (i for i in OPS[op](architecture) if i.name == name)
    return compiled(instance, architecture)


def jobs(op: str) -> Iterator[tuple[str, str, str]]:
    """(op, architecture, name) of every instance."""
    for architecture in ARCHITECTURES:
        names = [instance.name for instance in OPS[op](architecture)]
        if len(set(names)) < len(names):
            raise ValueError(f"two instances of {op} on {architecture} have the same name")
        yield from ((op, architecture, name) for name in names)


def build(op: str, processes: int) -> Rows:
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    todo = list(jobs(op))
    rows: Rows = {architecture: {} for architecture in ARCHITECTURES}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProcessPoolExecutor(processes) as pool, Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(op, total=len(todo))
        running = {pool.submit(compile_named, *job): job for job in todo}
        for done in as_completed(running):
            _op, architecture, name = running[done]
            rows[architecture][name] = done.result()
            progress.advance(task)
    return {a: {name: rows[a][name] for _op, b, name in todo if b == a} for a in ARCHITECTURES}


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
    parser = argparse.ArgumentParser(prog="python -m tilewright.triton_kernels.machine_code", description=__doc__)
    parser.add_argument("--op", action="append", choices=sorted(OPS), help="only this op; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("tests/triton/machine_code"), help="where the tables are")
    parser.add_argument("--processes", type=int, default=2, help="compilations at a time (default: 2)")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: in Triton's interpreter nothing is compiled")
    if not chosen.folder.is_dir():
        parser.error(f"--folder: {chosen.folder} is not a folder; run this in the root of a checkout")
    for op in chosen.op or OPS:
        print(write(op, build(op, chosen.processes), chosen.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
