"""Ahead-of-time compilation, without a GPU, and what the machine code says: registers, spills, shared memory, and the
instructions that multiply matrices and copy tiles."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton

from .launch import ARCHITECTURES, Config


class Instance(NamedTuple):
    """One kernel as it would be launched.

    arguments: the type of every argument that is not a constant, as Triton writes it ("*bf16", "*fp32", "i32", "i64",
    "fp32"; "*bf16:16" for an address, "i32:16" for a number, that is a multiple of 16). constants: the others' values;
    those of the configuration's blocks are added.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    config: Config


class MachineCode(NamedTuple):
    """Of one kernel: registers and stack bytes per thread, shared memory bytes; how many instructions spill, how many
    of each kind multiply matrices, and how many copy tiles by TMA."""

    registers: int
    stack: int
    spills: int
    shared: int
    matrix: dict[str, int]
    tma: int


#: mma.sync (Ampere), wgmma (Hopper), tcgen05.mma (Blackwell) in the machine's own words.
_MATRIX = re.compile(r"\b(HMMA|HGMMA|UTC[A-Z]*MMA)\b")


def compile_instance(instance: Instance, architecture: str) -> MachineCode:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = instance.kernel.arg_names
    constants = {**instance.constants, **instance.config.blocks}
    missing = [n for n in names if n not in constants and n not in instance.arguments]
    if missing:
        raise ValueError(f"{instance.name}: neither a type nor a value is given for {', '.join(missing)}")
    types = {n: instance.arguments[n].split(":") for n in names if n not in constants}
    signature = {n: "constexpr" if n in constants else types[n][0] for n in names}
    multiples = {(names.index(n),): [["tt.divisibility", int(t[1])]] for n, t in types.items() if len(t) > 1}
    source = ASTSource(
        fn=instance.kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs=multiples,
    )
    options = {"num_warps": instance.config.num_warps, "num_stages": instance.config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", ARCHITECTURES[architecture], 32), options=options)
    return read_cubin(compiled.asm["cubin"], compiled.metadata.shared)


def read_cubin(cubin: bytes, shared: int) -> MachineCode:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = _run(tools / "cuobjdump", "-res-usage", file)
        code = _run(tools / "nvdisasm", "-c", file)
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    matrix: dict[str, int] = {}
    for instruction in _MATRIX.findall(code):
        matrix[instruction] = matrix.get(instruction, 0) + 1
    spills = len(re.findall(r"\b(?:STL|LDL)\b", code))
    tma = len(re.findall(r"\bUTMA(?:LDG|STG)\b", code))
    return MachineCode(found["REG"], found["STACK"], spills, shared, matrix, tma)


def _run(tool: Path, *arguments: object) -> str:
    done = subprocess.run([str(tool), *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout
