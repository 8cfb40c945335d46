"""Triton's cache: what workers ask it for, packing what a kit needs of it, and unpacking that elsewhere.

A compiled kernel lies in a folder that is named by a hash of everything it depends on: Triton's own files, the kernel's
source, the arguments' types, the options, the environment and ptxas. So does the C module that launches it, by its
source and the platform. Loading needs of the first a cubin and its metadata, with a file that lists where they lie, and
of the second the module.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import sysconfig
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import triton
from triton.backends.nvidia import driver as nvidia
from triton.runtime.build import platform_key
from triton.runtime.cache import _base32, triton_key

from .run import MARK

#: In a packed cache: the parts of every kernel's key; and the folder of launchers. A launcher is unpacked under the key
#: of its source on that machine, since Triton's name for a platform changes with the tools that are installed.
INDEX, LAUNCHERS = "index.json", "launchers"
_SOURCE = "launcher.c"


def parts(src: Any, metadata: dict[str, Any]) -> dict[str, str]:
    """What a kernel's key is made of, in words that can be compared."""
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.backends.nvidia.compiler import CUDAOptions
    from triton.compiler import make_backend

    options = {n: metadata[n] for n in CUDAOptions.__dataclass_fields__ if n != "extern_libs" and n in metadata}
    return {
        "Triton's own files": hashlib.sha256(triton_key().encode()).hexdigest()[:16],
        "ptxas and chip": make_backend(triton.runtime.driver.active.get_current_target()).hash(),
        "environment": str(sorted(get_cache_invalidating_env_vars().items())),
        "options": str(sorted((n, _plain(v)) for n, v in options.items())),
        "kernel's source": src.fn.cache_key[:16],
        "types": str([v for _, v in sorted(src.signature.items())]),
        "alignment": str(sorted(src.attrs.items())),
        "constants": str(sorted((k, str(v)) for k, v in src.constants.items())),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def watch(log: Path, index: Path | None = None) -> None:
    """From here on, a line in the log for each kernel that this process asks Triton's cache for: its stage, its folder
    ("key"), whether it was there ("hit") and if not, "why": how its key differs from the nearest in the index of an
    unpacked kit. Without an index, every line has the "parts" of its key instead, and launchers have lines as well."""
    stage = os.environ.get(MARK, "-").split("-", 1)[1]

    def write(line: dict[str, Any]) -> None:
        with log.open("a") as out:
            out.write(json.dumps({"stage": stage, **line}) + "\n")

    def asked(src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        line = {"kernel": src.fn.__name__, "key": _base32(metadata["hash"]), "hit": cache_hit}
        if index is None:
            line["parts"] = parts(src, metadata)
        elif not cache_hit:
            line["why"] = difference(src.fn.__name__, parts(src, metadata), index)
        write(line)

    triton.knobs.compilation.listener = asked
    if index is None:
        _keep_launchers(write)


def _keep_launchers(write: Any) -> None:
    """A launcher's source, beside the module in Triton's cache: it can then be found on another platform."""
    compile_module = nvidia.compile_module_from_src

    def compiled(src: str, name: str, **folders: Any) -> Any:
        module = compile_module(src=src, name=name, **folders)
        key = _launcher_key(src)
        (Path(triton.knobs.cache.dir) / key / _SOURCE).write_text(src)
        write({"launcher": key, "name": name})
        return module

    nvidia.compile_module_from_src = compiled


def _launcher_key(source: str) -> str:
    """As triton.runtime.build has it."""
    return _base32(hashlib.sha256((source + platform_key()).encode()).hexdigest())


def difference(kernel: str, found: dict[str, str], index: Path) -> str:
    """How a key differs from the nearest one of the same kernel in the index, in words; "" without an index."""
    if not index.exists():
        return ""
    known = [entry["parts"] for entry in json.loads(index.read_text()).values() if entry["kernel"] == kernel]
    if not known:
        return f"{kernel}: the kit has no kernel of this name"
    nearest = min(known, key=lambda other: sum(other[n] != found[n] for n in found))
    apart = [f"{n}: here {_cut(found[n], nearest[n])}" for n in found if found[n] != nearest[n]]
    return f"{kernel}: {'; '.join(apart) or 'a key of the same parts, whose files are missing'}"


def _cut(here: str, there: str) -> str:
    """Two texts from where they differ."""
    same = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    start = max(0, same - 10)
    return f"{here[start : start + 70]!r}, in the kit {there[start : start + 70]!r}"


def pack(cache: Path, events: Iterable[dict[str, Any]], archive: Path) -> tuple[int, int]:
    """What the events (lines of watch) name, and no more. Answers the number of kernels and of launchers."""
    events = list(events)
    kernels = {e["key"]: {"kernel": e["kernel"], "parts": e["parts"]} for e in events if "key" in e}
    launchers = {e["launcher"]: e["name"] for e in events if "launcher" in e}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    # Of one kernel after another: what is alike lies together, and a compressor finds it.
    ordered = sorted(kernels, key=lambda key: (kernels[key]["kernel"], kernels[key]["parts"]["constants"]))
    with lzma.open(archive, "wb", preset=9) as out, tarfile.open(fileobj=out, mode="w|") as tar:
        _add(tar, INDEX, json.dumps({key: kernels[key] for key in ordered}).encode())
        for key in ordered:
            for file in sorted((cache / key).iterdir()):
                if file.suffix in (".json", ".cubin") and not file.name.startswith("__grp__"):
                    _add(tar, f"{key}/{file.name}", file.read_bytes())
        for key, name in launchers.items():
            _add(tar, f"{LAUNCHERS}/{key}/{name}.c", (cache / key / _SOURCE).read_bytes())
            _add(tar, f"{LAUNCHERS}/{key}/{name}{suffix}", (cache / key / f"{name}{suffix}").read_bytes())
    return len(kernels), len(launchers)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def unpack(archive: Path, cache: Path) -> tuple[int, int]:
    """Into the folder that Triton uses. Answers the number of kernels and of launchers."""
    cache.mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, str]] = {}
    launchers: dict[str, dict[str, bytes]] = {}
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            folder, _, name = member.name.rpartition("/")
            if folder.startswith(LAUNCHERS):
                launchers.setdefault(folder, {})[name] = content.read()
                continue
            file = cache / member.name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content.read())
            if folder:
                groups.setdefault(folder, {})[name] = str(file)
    for folder, files in groups.items():
        # Triton's own list of where a kernel's files lie, by whole paths.
        metadata = next(name for name in files if name.endswith(".json"))
        (cache / folder / f"__grp__{metadata}").write_text(json.dumps({"child_paths": files}))
    for files in launchers.values():
        source = next(content for name, content in files.items() if name.endswith(".c"))
        folder = cache / _launcher_key(source.decode())
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if not name.endswith(".c"):
                (folder / name).write_bytes(content)
    return len(groups), len(launchers)
