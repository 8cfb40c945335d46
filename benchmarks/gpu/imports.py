"""The first stage: everything that the others need is there, and says what it is; and Triton's cache is unpacked."""

from __future__ import annotations

from typing import Any

from . import kit
from .run import Outcome, Run, why


def imports(run: Run) -> Outcome:
    """data: the environment; the ids of the verification cases and the names of the Triton kernels, for other stages;
    "unusable" if this package, as it was put in place, is what cannot be used."""
    worker = run.worker("import.log")
    try:
        answer = worker.ask({"do": "facts", "backends": run.backends}, run.left())
    finally:
        worker.close()
    if "environment" not in answer.result:
        return Outcome("failed", f"the package cannot be imported: {why(answer)}", data={"unusable": True})
    facts = answer.result
    versions = facts["environment"]["packages"]
    told = f"tilewright {versions['tilewright']}, torch {versions['torch']}, triton {versions['triton']}"
    unusable = [f"{b}: {reason}" for b, reason in facts["reasons"].items() if reason is not None]
    if unusable:
        facts["unusable"] = facts["device_seen"]
        return Outcome("failed", f"{told}; {'; '.join(unusable)}", data=facts)
    targets = (facts["environment"]["cuda_kernels"] or {}).get("targets", "nothing")
    return Outcome("passed", f"{told}; CUDA kernels for {targets}; {facts['origin']}", data=facts)


def unpack(run: Run) -> Outcome:
    """Into the folder that Triton is told to use."""
    assert run.kit is not None
    archive = run.kit / kit.CACHE
    if not archive.exists():
        return Outcome("not run", f"there is no {archive}: every Triton kernel is compiled here")
    from .cache import unpack as into

    kernels, launchers = into(archive, run.cache)
    return Outcome("passed", f"{kernels} kernels and {launchers} launchers")


def facts(run: Run) -> dict[str, Any]:
    """Of the import stage."""
    found = run.saved("import")
    if found is None or "cases" not in found.data:
        raise RuntimeError("the package could not be imported: see the stage import")
    return found.data
