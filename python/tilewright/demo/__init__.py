"""``tilewright demo``: verify, train, compare, measure, on this machine and in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cli.console import UserError, write_json

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass
class Outcome:
    """How a step ended. status: PASSED, FAILED or NOT_RUN; summary: one line; report: for the JSON file."""

    status: str
    summary: str
    report: dict[str, Any] = field(default_factory=dict)


def run(output: Path, seconds_to_train: float, seed: int) -> int:
    """Run the steps and return the exit code: 1 if one failed, 3 if none failed but one could not run, else 0."""
    from ..bench.environment import environment
    from .compare import compare_step
    from .measure import measure_step
    from .train import train_step
    from .verify import verify_step

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {error}", 1) from error
    start = time.perf_counter()
    model_folder = output / "model"
    steps: dict[str, Callable[[], Outcome]] = {
        "verify": lambda: verify_step(seed),
        "train": lambda: train_step(model_folder, seconds_to_train, seed),
        "compare": lambda: compare_step(model_folder),
        "measure": lambda: measure_step(output),
    }
    outcomes: dict[str, Outcome] = {}
    for number, (name, step) in enumerate(steps.items(), 1):
        print(f"\n[{number}/{len(steps)}] {_TITLES[name]}")
        outcomes[name] = step()
        print(outcomes[name].summary)
    seconds = time.perf_counter() - start
    report = {name: {"status": o.status, "summary": o.summary, **o.report} for name, o in outcomes.items()}
    write_json(output / "demo.json", {"environment": environment(), "seconds": seconds, **report})
    print(f"\nSummary ({seconds:.0f} s; figures in {output / 'demo.json'})")
    for name, outcome in outcomes.items():
        print(f"  {outcome.status:8} {name:8} {outcome.summary.splitlines()[0]}")
    print(
        "\nNext:"
        f"\n  tilewright generate {model_folder} --prompt 'import ' --temperature 0.8   more from your model"
        "\n  tilewright verify                                  every case on every kernel that works here"
        "\n  tilewright explain attention --dtype bfloat16      which kernel would serve a call, and why"
    )
    statuses = {o.status for o in outcomes.values()}
    return 1 if FAILED in statuses else 3 if NOT_RUN in statuses else 0


_TITLES = {
    "verify": "Verifying every kernel that this machine can run against float64 reference math",
    "train": "Training a small GPT on the Python standard library's sources, on tilewright's kernels",
    "compare": "Loading the checkpoint into tilewright and into transformers: greedy tokens side by side",
    "measure": "Measuring beside PyTorch on this machine",
}
