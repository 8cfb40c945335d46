"""The tables of what every CUDA kernel compiles to: ``python csrc/cuda/machine_code.py`` builds the module and writes
them.

One file per source, tests/cuda/machine_code/<source>.json: for each architecture and each kernel in the module, the
most threads of a block, registers and stack bytes of a thread, static shared memory (on sm_90 the system's 1024 bytes
are part of it), instructions that store to and load from local memory (spills, or arrays that are no registers), and
instructions that multiply matrices (HMMA), load them from shared memory (LDSM) and copy to it (LDGSTS). It needs no
GPU. Tests hold the tables against limits, the module against the tables, and launches in the emulator as well.

It stands with the sources, since a table is of sources: it tells whether they have changed. Nothing of it is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "tests" / "cuda" / "machine_code"

#: What the tables are of.
ARCHITECTURES = ("80", "90a")
COUNTED = {"stores": "STL", "loads": "LDL", "HMMA": "HMMA", "LDSM": "LDSM", "LDGSTS": "LDGSTS"}

Row = dict[str, int]
#: By source, architecture ("sm_80") and kernel.
Tables = dict[str, dict[str, dict[str, Row]]]


class Unreadable(Exception):
    """Why a module's machine code cannot be read, in words."""


def stems() -> list[str]:
    """The sources that have kernels; some only launch what others have."""
    return sorted(file.stem for file in HERE.glob("*.cu") if "TW_KERNEL" in file.read_text())


def sources(stem: str) -> list[Path]:
    """The file, and all that it includes of ours, directly or not."""
    found: dict[Path, None] = {}
    todo = [HERE / f"{stem}.cu"]
    while todo:
        file = todo.pop()
        found[file] = None
        for name in re.findall(r'^#include ["<](.+?)[">]', file.read_text(), re.MULTILINE):
            paths = ((folder / name).resolve() for folder in (file.parent, HERE))
            path = next((p for p in paths if p.is_file()), None)
            if path is not None and path not in found:
                todo.append(path)
    return sorted(found)


def code_of(text: str, comment: str) -> str:
    """Without comments and layout. comment: an expression for one; what is in quotes is none."""
    kept = re.sub(rf'("(?:\\.|[^"\\\n])*")|{comment}', lambda m: m[1] or " ", text, flags=re.DOTALL)
    return " ".join(kept.split())


def fingerprint(stem: str) -> str:
    """Of a source with what it includes and how it is compiled, as far as it is code."""
    digest = hashlib.sha256(code_of((HERE / "CMakeLists.txt").read_text(), r"#[^\n]*").encode())
    for file in sources(stem):
        code = code_of(file.read_text(), r"//[^\n]*|/[*].*?[*]/")
        digest.update(f"\n{file.relative_to(HERE.parent)}\n{code}".encode())
    return digest.hexdigest()


def built_module() -> Path | None:
    """The module of this Python's tilewright, or None if it was left out."""
    spec = importlib.util.find_spec("tilewright._cuda")
    return None if spec is None or spec.origin is None else Path(spec.origin)


def find_tool(name: str) -> str:
    """On PATH, in the toolkit, or of Triton, which brings them."""
    triton = importlib.util.find_spec("triton")
    folders = [Path(os.environ["CUDA_HOME"], "bin")] if os.environ.get("CUDA_HOME") else []
    folders += [Path("/usr/local/cuda/bin")]
    if triton is not None and triton.origin is not None:
        folders += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"]
    found = shutil.which(name) or next(filter(None, (shutil.which(str(f / name)) for f in folders)), None)
    if found is None:
        raise Unreadable(f"{name} was not found (looked on PATH and in {', '.join(map(str, folders))})")
    return found


def _run(*command: object, cwd: Path | None = None, text: str | None = None) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, input=text)
    except FileNotFoundError as error:
        raise Unreadable(str(error)) from None
    if done.returncode != 0:
        raise Unreadable(f"{' '.join(words)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def short_name(demangled: str) -> str:
    """Of "void ns::(anonymous namespace)::softmax_kernel<ns::Half, 8>(Args)": softmax<Half, 8>."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", demangled).removeprefix("void ")
    depth = 0
    for at, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            name = name[:at]
            break
    return name.replace("_kernel", "", 1)


def read_cubin(cubin: Path) -> tuple[str, dict[str, Row]] | None:
    """Its source's stem, which is part of the names of what is in anonymous namespaces, and the rows by kernel; None if
    the source has no kernels."""
    usage = re.findall(r"Function (\S+):\s+(.*)", _run(find_tool("cuobjdump"), "-res-usage", cubin))
    if not usage:
        return None
    # Without data-flow analysis, which would only cost time.
    parts = re.split(r"^\.text\.(\S+):$", _run(find_tool("nvdisasm"), "-ndf", "-c", cubin), flags=re.MULTILINE)
    code = dict(zip(parts[1::2], parts[2::2], strict=True))
    parts = re.split(r"^\.nv\.info\.(\S+)$", _run(find_tool("cuobjdump"), "-elf", cubin), flags=re.MULTILINE)
    information = dict(zip(parts[1::2], parts[2::2], strict=True))
    names = _run(find_tool("c++filt"), text="\n".join(mangled for mangled, _ in usage)).splitlines()
    rows: dict[str, Row] = {}
    found: set[str] = set()
    for (mangled, line), demangled in zip(usage, names, strict=True):
        anonymous = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_", mangled)
        if anonymous is None:
            raise Unreadable(f"{demangled} is not in an anonymous namespace, as kernels have to be")
        found.add(anonymous[1])
        numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED):(\d+)", line)}
        counts = {key: len(re.findall(rf"\b{word}\b", code[mangled])) for key, word in COUNTED.items()}
        threads = re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+(0x[0-9a-f]+)", information[mangled])
        if threads is None:
            raise Unreadable(f"{demangled} has no launch bound, which TW_KERNEL gives it")
        row = {"threads": int(threads[1], 16), "registers": numbers["REG"], "stack": numbers["STACK"]}
        row |= {"shared": numbers["SHARED"], **counts}
        name = short_name(demangled)
        if name in rows:
            raise Unreadable(f"two kernels of {anonymous[1]}.cu are called {name}")
        rows[name] = row
    if len(found) != 1:
        raise Unreadable(f"{cubin.name} has kernels of {len(found)} sources: {', '.join(sorted(found))}")
    return found.pop(), {name: rows[name] for name in sorted(rows)}


def read_module(module: Path, architectures: tuple[str, ...] = ARCHITECTURES) -> tuple[str, Tables]:
    """The version of the compiler, such as "13.0.88", and the tables."""
    tables: Tables = {}
    with tempfile.TemporaryDirectory() as folder:
        _run(find_tool("cuobjdump"), "-xelf", "all", module, cwd=Path(folder))
        # The letter of sm_90a is in some versions' names of files, and not in others'.
        wanted = {re.sub(r"\D", "", a) for a in architectures}
        files = {f: re.search(r"\.sm_(\d+)\w*\.cubin$", f.name) for f in sorted(Path(folder).glob("*.cubin"))}
        chosen = {f: f"sm_{match[1]}" for f, match in files.items() if match is not None and match[1] in wanted}
        versions = {v.decode() for f in chosen for v in re.findall(rb"release [\d.]+, V([\d.]+)", f.read_bytes())}
        if len(versions) != 1:
            raise Unreadable(
                f"{module} has machine code of {len(versions)} compilers for {' and '.join(architectures)}"
            )
        with ThreadPoolExecutor(2) as pool:
            for architecture, found in zip(chosen.values(), pool.map(read_cubin, chosen), strict=True):
                if found is not None:
                    stem, rows = found
                    tables.setdefault(stem, {})[architecture] = rows
    return versions.pop(), tables


def write(stem: str, compiler: str, rows: dict[str, dict[str, Row]], folder: Path = FOLDER) -> Path:
    """One kernel a line, so that a change shows as the lines that it changes."""
    lines = []
    for architecture, found in sorted(rows.items()):
        inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in found.items())
        lines.append(f" {json.dumps(architecture)}: {{\n{inner}\n }}")
    head = f'"nvcc": {json.dumps(compiler)},\n"fingerprint": {json.dumps(fingerprint(stem))},\n"rows": '
    path = folder / f"{stem}.json"
    path.write_text("{\n" + head + "{\n" + ",\n".join(lines) + "\n}\n}\n")
    return path


def build() -> Path:
    """As an editable install does, for the architectures of the tables; only what has changed is compiled."""
    options = {"TILEWRIGHT_CUDA": "1", "TILEWRIGHT_CUDA_ARCHS": ";".join(ARCHITECTURES)}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **options}, check=False)
    if done.returncode != 0:
        raise Unreadable("the module could not be built")
    return ROOT / "python" / "tilewright" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python csrc/cuda/machine_code.py", description=__doc__)
    parser.parse_args()
    try:
        compiler, tables = read_module(build())
    except Unreadable as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        if old.stem not in tables:
            old.unlink()
    for stem, rows in tables.items():
        print(write(stem, compiler, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
