"""The demo's first step."""

from __future__ import annotations

import time

from . import FAILED, PASSED, Outcome

#: One built-in case in this many is run, to keep a demo short. No list that cases are made of is a multiple of it.
EVERY = 7

#: Failures that are printed in full.
SHOWN = 5


def verify_step(seed: int) -> Outcome:
    from ..cli.console import print_table
    from ..cli.verify import repeat_command, run_cases
    from ..registry import backends
    from ..verify.cases import CASES
    from ..verify.report import COLUMNS, failure_lines, summary_rows, to_json

    available = [name for name, reason in backends().items() if reason is None]
    chosen = CASES[seed % EVERY :: EVERY]
    start = time.perf_counter()
    records = run_cases([(case, seed) for case in chosen], available)
    seconds = time.perf_counter() - start
    print_table(COLUMNS, summary_rows(records), "distance from float64, beside PyTorch's own on the same inputs")
    failed = [r for r in records if r.status == "failed"]
    for r in failed[:SHOWN]:
        print("\n".join(failure_lines(r, repeat_command(r, False, (), (), seed))))
    if len(failed) > SHOWN:
        print(f"... and {len(failed) - SHOWN} more; tilewright verify shows all")
    names = ", ".join(available)
    summary = f"{len(chosen)} of {len(CASES)} cases on {names}: {len(failed)} failed ({seconds:.0f} s)"
    return Outcome(FAILED if failed else PASSED, summary, to_json(records, seconds=seconds))
