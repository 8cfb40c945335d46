"""``tilewright verify``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from .console import UserError, print_table, progress_bar, user_errors, write_json
from .options import JsonFile, check_choice, parse_dtype

if TYPE_CHECKING:
    import torch

    from ..verify.case import Case
    from ..verify.record import Record


def verify(
    op: Annotated[list[str] | None, typer.Option(help="Only this op. May be repeated.")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="Only this backend. May be repeated. Default: all that work here.")
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Only this dtype. May be repeated.")] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Only cases whose name matches, such as 'mask_*'. May be repeated."),
    ] = None,
    fuzz: Annotated[int, typer.Option(metavar="N", min=0, help="Instead of the built-in cases, N random ones.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the inputs; of random cases, the first of N seeds.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="List the cases instead of running them.")] = False,
    json: JsonFile = None,
) -> None:
    """Compare every kernel that works here with float64 reference math, beside PyTorch's own error on the same inputs.

    Each line shows the output or gradient that came closest to its limit. Exits 1 if any case failed.
    """
    from ..catalog import OPS

    ops = [check_choice("--op", name, tuple(OPS)) for name in op or []]
    dtypes = [parse_dtype(name) for name in dtype or []]
    cases = _fuzz_cases(fuzz, seed, ops, dtypes, case) if fuzz else _built_in_cases(ops, dtypes, case, seed)
    if list_:
        for chosen, _ in cases:
            print(chosen.id)
        return
    backends = _backends(backend)
    start = time.perf_counter()
    records = run_cases(cases, backends)
    _report(records, bool(fuzz), ops, dtype or [], {c.id: s for c, s in cases}, time.perf_counter() - start)
    if json is not None:
        from ..bench.environment import environment
        from ..verify.report import to_json

        write_json(json, to_json(records, seed=seed, fuzz=fuzz, environment=environment()))
    if any(r.status == "failed" for r in records):
        raise typer.Exit(1)


def run_cases(cases: list[tuple[Case, int]], backends: list[str]) -> list[Record]:
    from ..verify.run import run_case

    records = []
    with progress_bar("verifying", len(cases)) as progress:
        for done, (chosen, seed) in enumerate(cases):
            progress(done, chosen.id)
            records += run_case(chosen, backends, seed)
    return records


def _built_in_cases(
    ops: list[str], dtypes: list[torch.dtype], patterns: list[str] | None, seed: int
) -> list[tuple[Case, int]]:
    from ..verify.cases import select_cases

    found = select_cases(ops, dtypes, patterns or ())
    if not found:
        raise UserError(f"no case matches {' '.join(patterns or ops)!r}; tilewright verify --list shows their names")
    return [(c, seed) for c in found]


def _fuzz_cases(
    count: int, seed: int, ops: list[str], dtypes: list[torch.dtype], patterns: list[str] | None
) -> list[tuple[Case, int]]:
    from ..catalog import OPS
    from ..verify.case import DTYPES
    from ..verify.fuzz import fuzz_case

    if patterns:
        raise UserError("--case picks built-in cases and --fuzz makes random ones; give one of them")
    chosen_ops, chosen_dtypes = ops or list(OPS), dtypes or list(DTYPES.values())
    return [(fuzz_case(s, chosen_ops, chosen_dtypes), s) for s in range(seed, seed + count)]


def _backends(wanted: list[str] | None) -> list[str]:
    from ..config import check_backend
    from ..registry import backends

    available = backends()
    if not wanted:
        return [name for name, reason in available.items() if reason is None]
    for name in wanted:
        with user_errors(ValueError):
            check_backend(name, "--backend")
        if available[name] is not None:
            raise UserError(f"--backend {name} cannot be used here: {available[name]}", 1)
    return wanted


def _report(
    records: list[Record], fuzz: bool, ops: Iterable[str], dtypes: Iterable[str], seeds: dict[str, int], seconds: float
) -> None:
    from ..verify.report import COLUMNS, failure_lines, summary_rows

    print_table(COLUMNS, summary_rows(records), "distance from float64, beside PyTorch's own")
    failed = [r for r in records if r.status == "failed"]
    for r in failed:
        print()
        for line in failure_lines(r, repeat_command(r, fuzz, ops, dtypes, seeds[r.case.id])):
            print(line)
    refusals = sorted({(r.backend, r.case.op, r.problems[0]) for r in records if r.status == "refused"})
    for name, op, reason in refusals:
        print(f"refused: {name} {op}: {reason}")
    passed = sum(r.status == "passed" for r in records)
    print(f"\n{passed} passed, {len(failed)} failed, {len(records) - passed - len(failed)} refused in {seconds:.1f} s")


def repeat_command(record: Record, fuzz: bool, ops: Iterable[str], dtypes: Iterable[str], seed: int) -> str:
    """A random case depends on which ops and dtypes it could choose from; a built-in one is named."""
    from ..verify.case import DTYPE_NAMES

    words = ["tilewright", "verify", "--backend", record.backend]
    if fuzz:
        words += [w for name in ops for w in ("--op", name)] + [w for name in dtypes for w in ("--dtype", name)]
        words += ["--fuzz", "1"]
    else:
        words += ["--op", record.case.op, "--dtype", DTYPE_NAMES[record.case.dtype], "--case", record.case.name]
    return shlex.join([*words, "--seed", str(seed)])
