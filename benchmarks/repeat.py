"""How well the report's ratios repeat: ``python benchmarks/repeat.py A.json B.json ...``.

The files are results of the same code on one machine; a ratio is tilewright's speed over the fastest other's of a run.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from tilewright.bench.stats import geometric_mean
from tilewright.bench.summary import Summary, median, read, summarize


def leads(results: Sequence[Sequence[Summary]]) -> dict[str, list[float]]:
    """By call, its ratio in each result; only calls that have one in all of them."""
    by_call = [{s.item: s.lead.value for s in summaries if s.lead is not None} for summaries in results]
    return {item: [ratios[item] for ratios in by_call] for item in by_call[0] if all(item in r for r in by_call)}


def report(results: Sequence[Sequence[Summary]]) -> str:
    found = leads(results)
    if not found:
        raise ValueError("the results have no ratio of a call in common")
    ops = {s.item: str(s.facts["op"]) for s in results[0]}
    lines = []
    for op in [*dict.fromkeys(ops[item] for item in found), "all"]:
        of_op = [ratios for item, ratios in found.items() if op in ("all", ops[item])]
        means = [geometric_mean(column) for column in zip(*of_op, strict=True)]
        each = ", ".join(f"{m:.3f}" for m in means)
        lines.append(f"{op}: geometric means {each}, {max(means) / min(means) - 1:.1%} apart")
    for a, b in itertools.combinations(range(len(results)), 2):
        apart = sorted(max(r[a], r[b]) / min(r[a], r[b]) - 1 for r in found.values())
        within = sum(d <= 0.05 for d in apart) / len(apart)
        between = f"files {a + 1} and {b + 1}: calls {median(apart):.1%} apart in the median, {apart[-1]:.0%} at most"
        lines.append(f"{between}; {within:.0%} of {len(apart)} within 5%")
    return "\n".join(lines)


def main(files: list[str]) -> int:
    if len(files) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(report([summarize(read(Path(f)).rows) for f in files]))
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
