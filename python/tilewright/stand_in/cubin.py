"""What the machine code of a launched kernel says: registers, spills, shared memory, and the instructions that multiply
matrices and copy tiles."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.compiler import ASTSource

from .front_end import Instance


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


def compile_instance(instance: Instance) -> MachineCode:
    """For the chip that activate() named last."""
    source = ASTSource(instance.kernel, instance.signature, instance.constants, instance.attributes)
    options = {"num_warps": instance.options.num_warps, "num_stages": instance.options.num_stages}
    target = triton.runtime.driver.active.get_current_target()
    compiled = triton.compile(source, target=target, options=options)
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
