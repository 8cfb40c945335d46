"""``tilewright bench``."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import UserError, fancy, print_table, user_errors
from .options import JsonFile, check_choice

if TYPE_CHECKING:
    from ..bench.measure import Item
    from ..bench.session import Session
    from ..bench.summary import Result, Row


def bench(
    op: Annotated[
        list[str] | None,
        typer.Option(
            help="Only attention, varlen_attention, kvcache_attention, softmax, ffn, growth (of time and memory with "
            "size), overhead (of a call) or end_to_end (GPT-2). May be repeated."
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(metavar="SET", help="cpu, cpu-long, gpu-first, gpu, gpu-long or tiny. Default: by the device."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CALL",
            help="A call of your own, such as attention:batch=2,heads=12,seqlen=1000,head_dim=64,causal,both; then "
            "only such calls, unless --op or --shapes is given too. May be repeated.",
        ),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only this dtype. May be repeated.")] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only calls whose name matches, such as '*causal*'. May be repeated."),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this backend of tilewright. May be repeated. Default: all here.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="Only this peer, such as 'eager' or 'sdpa flash'; 'none' for none. May be repeated."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where it is.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Of timing, for each call.")] = 2.0,
    budget: Annotated[float, typer.Option(min=1.0, help="Seconds after which calls are left out.")] = 3600.0,
    output: Annotated[
        Path, typer.Option(help="Folder of report.html, the charts, results.json and results.csv.")
    ] = Path("bench-output"),
    list_: Annotated[bool, typer.Option("--list", help="List the calls and the peers instead.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="BEFORE AFTER", help="Compare two result files instead; exits 1 on a regression."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="REV", help="Build this commit too, and measure it and this one in turns; exits 1 on a regression."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0.0, help="Of --compare and --base: slower by so many percent.")
    ] = 5.0,
    json: JsonFile = None,
) -> None:
    """Measure the kernels beside every other implementation that is installed, on this GPU or CPU.

    Each implementation's result is held against float64 first, and one that is wrong is not timed. Times are medians of
    samples taken in turns; shares are of a matrix product and a copy of the same run. One that refuses a call, crashes,
    hangs or runs out of memory is a line with its reason. Ctrl-C keeps what was measured. Exits 1 if a kernel of
    tilewright was wrong or failed.
    """
    if compare is not None:
        if base is not None:
            raise UserError("--compare and --base: give one of them")
        from .bench_compare import compare_files

        raise typer.Exit(compare_files(*compare, threshold / 100, json))
    from ..bench.items import all_items

    settings = _settings(device, shapes, shape, backend, peer, seconds)
    ops = _ops(op, bool(shape) and shapes is None)
    if base is not None:
        from .bench_compare import compare_with_base

        raise typer.Exit(compare_with_base(base, settings, ops, dtype, case, threshold / 100, json, budget))
    items = choose(all_items(settings["shapes"], ops, tuple(settings["calls"])), dtype, case)
    if list_:
        _list(items)
        return
    with user_errors(OSError, exit_code=1):
        output.mkdir(parents=True, exist_ok=True)
    session = open_session(settings, output / "worker.log", budget)
    try:
        result = _measure(session, [i.name for i in items], budget)
    finally:
        session.close()
    _write(result, output, json)
    if any(r["status"] not in ("timed", "not reached", "refused") for r in result.rows if _counts(r)):
        raise typer.Exit(1)
    if not result.complete:
        raise typer.Exit(130)


def _counts(row: Row) -> bool:
    from ..bench.summary import is_ours

    return is_ours(row) or row["provider"] == "all"


def _ops(wanted: list[str] | None, only_own: bool) -> tuple[str, ...]:
    from ..bench.items import OPS

    for name in wanted or []:
        check_choice("--op", name, tuple(OPS))
    return tuple(wanted or (() if only_own else OPS))


def _settings(
    device: str | None,
    shapes: str | None,
    calls: list[str] | None,
    backends: list[str] | None,
    peers: list[str] | None,
    seconds: float,
) -> dict[str, Any]:
    """Of measure.Bench, checked."""
    import torch

    from ..bench.items import SETS, own
    from ..bench.measure import OURS
    from ..bench.peers import all_peers
    from ..bench.single import backends_on, default_shapes
    from ..config import check_backend
    from ..registry import home, unavailable

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_choice("--device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; --device cpu measures the CPU's kernels", 1)
    if shapes is not None:
        check_choice("--shapes", shapes, SETS)
    with user_errors(ValueError):
        for text in calls or []:
            own.parse(text)
        for name in backends or []:
            check_backend(name, "--backend")
    for name in backends or []:
        if (reason := unavailable(name)) is not None:
            raise UserError(f"--backend {name} cannot be used here: {reason}", 1)
        if home(name) != device:
            raise UserError(f"--backend {name} works on {home(name)} tensors, and {device} is measured; see --device")
    chosen = list(backends or backends_on(device))
    known = dict.fromkeys(p.name for of_op in all_peers().values() for p in of_op if device in p.devices)
    for name in peers or []:
        check_choice("--peer", name, (*known, "none"))
    providers = [] if not peers else [*(OURS + b for b in chosen), *(p for p in peers if p != "none"), "torch"]
    return {
        "device": device,
        "backends": chosen,
        "shapes": shapes or default_shapes(device),
        "seconds": seconds,
        "providers": providers,
        "calls": list(calls or []),
    }


def open_session(settings: dict[str, Any], log: Path, budget: float) -> Session:
    from ..bench.process import Worker
    from ..bench.session import Session

    def worker(extra: dict[str, str]) -> Worker:
        command = [sys.executable, "-m", "tilewright.bench.worker"]
        return Worker(command, log, {**os.environ, **extra}, Path.cwd())

    return Session(worker, settings, time.monotonic() + budget, lambda done, of, what: None)


def choose(items: Sequence[Item], dtypes: list[str] | None, patterns: list[str] | None) -> list[Item]:
    """Those that the options leave, with the rooflines that they are held against."""
    from ..bench.summary import is_roofline
    from .options import parse_dtype

    for name in dtypes or []:
        parse_dtype(name)

    def wanted(item: Item) -> bool:
        of_dtype = not dtypes or item.facts["dtype"] in dtypes
        return of_dtype and (not patterns or any(fnmatchcase(item.name, p) for p in patterns))

    rooflines = [i for i in items if is_roofline(i.name)]
    found = [i for i in items if not is_roofline(i.name) and wanted(i)]
    if not found:
        raise UserError(f"no call matches {' '.join([*(dtypes or []), *(patterns or [])])!r}; --list shows their names")
    return [*rooflines, *found]


def _list(items: Sequence[Item]) -> None:
    from ..bench.peers import all_peers

    rows = [(i.name, i.facts.get("label", ""), i.facts.get("scene", "")) for i in items]
    print_table(("call", "sizes", "from"), rows, "what is measured")
    print()
    versions = {p.name: p.version() for peers in all_peers().values() for p in peers}
    print_table(("peer", "version"), [(p, v or "not installed") for p, v in versions.items()], "beside what")


def _measure(session: Session, names: list[str], budget: float) -> Result:
    """Ctrl-C ends it early, and what was measured is kept."""
    from ..bench.session import add_rooflines, compilers
    from ..bench.summary import Result
    from .bench_board import board

    complete = True
    environment = session.environment()
    with board(len(names)) as show:
        session.show = show.doing
        try:
            excluded = {}
            if session.settings["device"] != "cpu":
                excluded = session.compile_all(names, time.monotonic() + 0.4 * budget, compilers())
            for found in session.measure_all(names, excluded):
                add_rooflines(session.rows)
                show.rows(found)
        except KeyboardInterrupt:
            complete = False
    complete = complete and not any(r["status"] == "not reached" for r in session.rows)
    return Result(environment, repeat_command(sys.argv), session.settings, add_rooflines(session.rows), complete)


def repeat_command(argv: Sequence[str]) -> str:
    return shlex.join(["tilewright", *argv[1:]])


def _write(result: Result, output: Path, json: Path | None) -> None:
    from ..bench.report import draw_charts, write_csv, write_html
    from ..bench.summary import write
    from .bench_board import print_result

    if not any(r["status"] == "timed" for r in result.rows):
        print("nothing was measured" if not result.complete else "nothing could be measured")
    print_result(result)
    with user_errors(OSError, exit_code=1):
        for path in filter(None, (output / "results.json", json)):
            write(result, path)
        write_csv(result, output / "results.csv")
        write_html(result, output / "report.html")
        try:
            charts = len(draw_charts(result, output))
        except ImportError as missing:
            print(f"no charts: {missing}")
            charts = 0
    pictures = f", {charts} charts" if charts else ""
    print(f"\n{output / 'report.html'} is the report; results.json and results.csv{pictures} beside it")
    if not result.complete:
        left = sum(r["status"] == "not reached" for r in result.rows)
        reason = f"{left} calls were left out when the time was over (--budget)" if left else "interrupted"
        print(f"incomplete: {reason}", file=sys.stderr)
    if fancy() and not result.complete:
        print("what was measured before is in the files")
