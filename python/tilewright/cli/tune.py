"""``tilewright tune``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import UserError, print_table, progress_bar, user_errors, write_json
from .options import JsonFile, check_choice

if TYPE_CHECKING:
    from ..tune.search import Result

#: What --list shows where there is no GPU to ask.
LISTED = "sm_90"


def tune(
    op: Annotated[list[str] | None, typer.Option(help="Only attention, softmax or ffn. May be repeated.")] = None,
    kernel: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this kernel of the tables. May be repeated.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Only this key of the tables. May be repeated.")
    ] = None,
    budget: Annotated[float, typer.Option(metavar="SECONDS", min=1.0, help="Stop after about so long.")] = 900.0,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The table to write. Default: the one that is used.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and write no table.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List kernels, keys and configurations in force.")] = False,
    json: JsonFile = None,
) -> None:
    """Measure launch configurations of the Triton kernels on this GPU, and keep the faster ones in your own table.

    Each candidate is compared with the configuration in force: first its results, then its time, in turns. Later runs
    of tilewright use the table on the same GPU with the same Triton; no other command measures anything. Exits 1 if
    there is no GPU, and if a kernel failed.
    """
    with user_errors(ImportError, exit_code=1):
        from ..triton_kernels import launch, user_table
        from ..triton_kernels.user_table import TableError
        from ..tune.search import Search, describe, pairs
        from ..tune.workloads import Maker

    import torch

    from ..backends.triton import unavailable
    from ..bench.device import DeviceTimer

    here = unavailable() is None and not launch.INTERPRETED
    device = torch.device("cuda", torch.cuda.current_device()) if here else None
    chip = launch.architecture(device) if device is not None else LISTED
    for name in op or []:
        check_choice("--op", name, tuple(launch.TABLES))
    for name in kernel or []:
        check_choice("--kernel", name, tuple(k for t in launch.TABLES.values() for k in t[chip]))
    chosen = pairs(chip, op or [], kernel or [], key or [])
    if not chosen:
        raise UserError("no kernel has such a key; tilewright tune --list shows them")
    if list_:
        if device is None:
            print(f"no GPU here: the built-in table of {chip}\n")
        with user_errors(TableError, exit_code=1):
            found = [launch.config(*p, device) if device is not None else launch.table_config(chip, *p) for p in chosen]
        print_table(("kernel", "key", "configuration"), [(*p, describe(c)) for p, c in zip(chosen, found, strict=True)])
        return
    if device is None:
        raise UserError(f"tune measures on a GPU: {_why_not()}", 1)
    path = output or user_table.path_in_force() or user_table.default_path()
    search = Search(Maker(device), DeviceTimer(device), deadline=time.monotonic() + budget)
    with user_errors(TableError, exit_code=1):
        launch.user_entries(device)
        if path.exists():
            user_table.read(path)  # before an hour of measuring rather than after it
    results = run_all(chosen, search, None if dry_run else path)
    report(results, None if dry_run else path)
    if json is not None:
        from ..bench.environment import environment
        from ..tune.table import to_json

        write_json(json, {"environment": environment(), "results": [to_json(r) for r in results]})
    if any(r.status == "failed" for r in results):
        raise typer.Exit(1)


def _why_not() -> str:
    import torch

    from ..backends.triton import unavailable

    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    return unavailable() or "TRITON_INTERPRET is set, and the interpreter's time says nothing about a GPU's"


def run_all(chosen: list[tuple[str, str]], search: Any, path: Path | None) -> list[Result]:
    """Tune one after the other; what was found is in the file at once, so that an interruption loses little."""
    from ..triton_kernels import user_table
    from ..tune.search import DeviceLost, tune
    from ..tune.table import section

    results: list[Result] = []
    with progress_bar("tuning", len(chosen)) as progress:
        for done, (kernel, key) in enumerate(chosen):
            progress(done, f"{kernel} {key}")
            with user_errors(DeviceLost, OSError, exit_code=1):
                results.append(tune(kernel, key, search))
                if path is not None and results[-1].status == "tuned":
                    user_table.write(path, section(results[-1:], search.maker.device))
    return results


def report(results: list[Result], path: Path | None) -> None:
    from ..bench.timing import milliseconds
    from ..tune.search import describe

    rows = []
    for r in results:
        times = gain = ""
        if r.before_seconds is not None and r.after_seconds is not None:
            times = f"{milliseconds(r.before_seconds)} -> {milliseconds(r.after_seconds)}"
            gain = f"{r.before_seconds / r.after_seconds:.2f}x"
        changed = describe(r.after) if r.after != r.before else ""
        rows.append((r.kernel, r.key, r.status, describe(r.before), changed, times, gain, str(len(r.trials))))
    print_table(("kernel", "key", "status", "before", "after", "time", "gain", "tried"), rows, "launch configurations")
    for r in results:
        if r.reason:
            print(f"{r.kernel} {r.key}: {r.reason}")
    tuned = sum(r.status == "tuned" for r in results)
    where = f"; written to {path}" if path is not None and tuned else ""
    print(f"\n{tuned} of {len(results)} are faster with another configuration{where}")
