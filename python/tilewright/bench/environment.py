"""What a report has to say about the machine and the software it ran on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ..registry import backends, unavailable

#: Packages whose version matters to a result.
PACKAGES = ("tilewright", "torch", "triton", "transformers", "numpy")


def cpu_name() -> str:
    """The processor's own name, or the architecture's where the system does not tell."""
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system has these names
        return None


def cache_bytes() -> int:
    """Of the CPU's largest cache; 64 MB where the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        digits = file.read_text().strip().removesuffix("K")
        sizes += [int(digits) * 1024] * digits.isdigit()
    return max(sizes, default=64 * 2**20)


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions() -> dict[str, str | None]:
    """Installed versions; None for what is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def instruction_sets() -> dict[str, Any] | None:
    """Of the CPU module: "used", "available" (built, and this CPU has them) and its compiler; None without it."""
    if unavailable("cpu") is not None:
        return None
    from ..backends.cpu import kernels

    module = kernels()
    return {"used": module.isa(), "available": list(module.available_isas()), "compiler": module.compiler}


def cuda_kernels() -> dict[str, str] | None:
    """Of the CUDA module: "targets" that it was compiled for and its "cuda_version"; None without it."""
    from ..backends.cuda import built_for

    return built_for()


def commit() -> str | None:
    """The commit of the checkout that this package runs from, "+changes" if it was edited; None outside one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return None
    if done.returncode != 0:
        return None
    return done.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def gpus() -> list[str]:
    return (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )


def nvidia_smi(*fields: str) -> dict[str, str]:
    """What it says of the first GPU, by field; nothing where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found = [v.strip() for v in done.stdout.split(",")] if done.returncode == 0 else []
    return {field: value for field, value in zip(fields, found, strict=False) if value}


def gpu_driver() -> str | None:
    """The version of the GPU's driver; None where nothing tells."""
    return nvidia_smi("driver_version").get("driver_version")


def tuned_table() -> dict[str, Any]:
    """The user's own launch configurations: "path" (None without such a file), and in words their "state" here."""
    from ..triton_kernels import user_table

    path = user_table.path_in_force()
    if path is None:
        off = os.environ.get(user_table.VARIABLE) == "off"
        return {"path": None, "state": f"{user_table.VARIABLE}=off" if off else "none"}
    reason = unavailable("triton")
    if reason is not None:
        return {"path": str(path), "state": "not used: the triton backend is not available"}
    from ..triton_kernels import launch

    device = torch.device("cpu" if launch.INTERPRETED else "cuda")
    try:
        count = launch.user_entries(device)
    except user_table.TableError as error:
        return {"path": str(path), "state": f"not usable: {error}"}
    return {"path": str(path), "state": f"{count} entries in force for {launch.device_name(device)}"}


def environment() -> dict[str, Any]:
    """The block that every JSON report carries."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpus_usable": usable_cpus(),
        "memory_bytes": memory_bytes(),
        "gpus": gpus(),
        "gpu_driver": gpu_driver() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": package_versions(),
        "torch_threads": torch.get_num_threads(),
        "instruction_sets": instruction_sets(),
        "cuda_kernels": cuda_kernels(),
        "backends": backends(),
        "tuned_table": tuned_table(),
        "commit": commit(),
    }
