"""The README's table and picture, from a committed result file: ``python benchmarks/readme.py``.

With ``--measure`` the file is measured first, as ``tilewright demo`` does it: the calls verified, then timed in turns
with PyTorch's. Every figure in the README comes from that file, and a test compares the two.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from run import RESULTS, result_file

from tilewright.bench.environment import environment
from tilewright.bench.timing import milliseconds

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "cpu.png"
BEGIN, END = "<!-- measured: benchmarks/readme.py writes this -->", "<!-- end of measured -->"


def newest_results() -> Path:
    found = sorted(RESULTS.glob("*-calls-*.json"))
    if not found:
        raise SystemExit("benchmarks/results/ holds no *-calls-*.json yet: run with --measure")
    return found[-1]


def measure() -> Path:
    from tilewright.demo.measure import measure_step

    with tempfile.TemporaryDirectory() as folder:
        outcome = measure_step(Path(folder))
    report = {"environment": environment(), **outcome.report}
    if report["problems"]:
        raise SystemExit("not written: " + "; ".join(report["problems"]))
    file = result_file("calls-")
    file.write_text(json.dumps(report, indent=1) + "\n")
    return file


def table(file: Path) -> str:
    """Markdown between the two marks, with where it comes from."""
    report = json.loads(file.read_text())
    where = report["environment"]
    versions = where["packages"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in report["rows"]:
        ours, torchs = milliseconds(row["tilewright"]["p50"]), milliseconds(row["torch"]["p50"])
        cell = f"{ours}, torch {torchs}: **{row['speedup']:.2f}x**"
        cells.setdefault((row["label"], row["dtype"]), {})[row["mode"]] = cell
    modes = list(dict.fromkeys(row["mode"] for row in report["rows"]))
    lines = [
        f"| call | dtype | {' | '.join(modes)} |",
        "|---|---|" + "---|" * len(modes),
        *(
            f"| {re.sub(' +', ' ', label)} | {dtype} | {' | '.join(found.get(m, '') for m in modes)} |"
            for (label, dtype), found in cells.items()
        ),
    ]
    note = (
        f"{where['cpu']}, {where['cpus_usable']} cores, torch {versions['torch']} on {where['torch_threads']} threads, "
        f"{where['date'][:10]}: median times of calls taken in turns "
        f"([{file.name}](benchmarks/results/{file.name}); `tilewright demo` measures yours)."
    )
    return "\n".join([BEGIN, "", *lines, "", note, "", END])


def rewritten(readme: str, file: Path) -> str:
    before, rest = readme.split(BEGIN)
    return before + table(file) + rest.split(END)[1]


def draw_picture(file: Path) -> None:
    from tilewright.demo.chart import draw

    report: dict[str, Any] = json.loads(file.read_text())
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw(report["rows"], f"tilewright ({report['backend']}) beside PyTorch, {report['environment']['cpu']}", PICTURE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure on this machine first")
    file = measure() if parser.parse_args().measure else newest_results()
    draw_picture(file)
    README.write_text(rewritten(README.read_text(), file))
    print(f"README.md and {PICTURE.relative_to(ROOT)} written from {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
