"""``tilewright info``."""

from __future__ import annotations

from typing import Any

from .console import print_table, write_json
from .options import JsonFile


def info(json: JsonFile = None) -> None:
    """Show this machine, the versions in use, and which backends work here (with the reason where one does not)."""

    from .. import emulator
    from ..bench.environment import environment
    from ..build_info import missing_reason
    from ..config import ENVIRONMENT_VARIABLE, requested_backend
    from ..registry import TABLE

    found = environment()
    found["build"] = {target: missing_reason(target) for target in ("cpu", "cuda")}
    found["cuda_emulator"] = emulator.state()
    found["backend_requested"] = requested_backend(None) or None
    found["ops"] = {op: list(rows) for op, rows in TABLE.items()}
    print_table(("", ""), _machine_rows(found), "machine")
    print()
    rows = [
        (name, "available" if reason is None else f"not available: {reason}")
        for name, reason in found["backends"].items()
    ]
    print_table(("backend", "state"), rows, "backends")
    print()
    print_table(("op", "has kernels for"), [(op, ", ".join(names)) for op, names in found["ops"].items()], "ops")
    if found["backend_requested"]:
        print(f"\n{ENVIRONMENT_VARIABLE}={found['backend_requested']}: every op runs on it or raises")
    if json is not None:
        write_json(json, found)


def _machine_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    isas, memory, cuda = found["instruction_sets"], found["memory_bytes"], found["cuda_kernels"]
    rows = [
        ("system", found["system"]),
        ("cpu", f"{found['cpu']}, {found['cpus_usable']} usable"),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("gpus", ", ".join(found["gpus"]) or "none"),
        *([("driver", found["gpu_driver"])] if found["gpu_driver"] else []),
        ("cpu kernels", "none" if isas is None else f"using {isas['used']} of {', '.join(isas['available'])}"),
        ("compiled by", "-" if isas is None else isas["compiler"]),
        ("cuda kernels", "none" if cuda is None else f"for {cuda['targets']}, by CUDA {cuda['cuda_version']}"),
        ("cuda emulator", found["cuda_emulator"]),
        ("threads", f"{found['torch_threads']} (torch.set_num_threads)"),
        ("tuned table", ": ".join(filter(None, (found["tuned_table"]["path"], found["tuned_table"]["state"])))),
        ("python", found["python"]),
    ]
    return rows + [(name, version or "not installed") for name, version in found["packages"].items()]
