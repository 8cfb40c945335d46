"""The README's tables and pictures, from committed result files: ``python benchmarks/readme.py``.

A result file is what ``tilewright bench --json benchmarks/results/<date>-bench-<machine>.json`` writes; the newest of a
CPU and the newest of a GPU are shown, as far as there are any. Every figure of the README's measured block comes from
them, and a test compares the two. Without such a file the block stays as it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tilewright.bench.markdown import LEGEND, choose, device, table, totals, where
from tilewright.bench.summary import Result, read, summarize

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- measured: benchmarks/readme.py writes this -->", "<!-- end of measured -->"

#: What the picture of a device is called; the README shows the CPU's above the block, and others inside it.
PICTURES = {"cpu": "cpu.png", "cuda": "gpu.png"}


def newest(folder: Path = RESULTS) -> dict[str, Path]:
    """Of each device measured, "cpu" first, the result file with the latest date in its name."""
    found = {device(read(file)): file for file in sorted(folder.glob("*-bench-*.json"))}
    return {d: found[d] for d in PICTURES if d in found}


def section(file: Path, result: Result) -> str:
    summaries = summarize(result.rows)
    source = f"[{file.name}](benchmarks/results/{file.name})"
    picture = PICTURES[device(result)]
    shown = [] if picture == "cpu.png" else [f"![speed relative to the fastest other](docs/images/{picture})", ""]
    return "\n".join(
        [
            *shown,
            *table(choose(summaries)),
            "",
            totals(summaries),
            "",
            f"{where(result)} ({source}, `{result.command}`).",
        ]
    )


def block(files: dict[str, Path]) -> str:
    sections = [section(file, read(file)) for file in files.values()]
    rule = (
        "The tables show one call of each scene by a fixed rule (`choose` in `python/tilewright/bench/markdown.py`), "
        "not by its result."
    )
    return "\n\n".join([BEGIN, *sections, f"{LEGEND} {rule}", END])


def rewritten(readme: str, files: dict[str, Path]) -> str:
    if not files:
        return readme
    before, rest = readme.split(BEGIN)
    return before + block(files) + rest.split(END)[1]


def draw_picture(result: Result, folder: Path = IMAGES) -> Path:
    from tilewright.demo.chart import draw

    path = folder / PICTURES[device(result)]
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(choose(summarize(result.rows)), f"tilewright beside the fastest other implementation\n{where(result)}", path)
    return path


def main() -> int:
    files = newest()
    if not files:
        print(f"{RESULTS.relative_to(ROOT)} holds no *-bench-*.json: nothing was changed", file=sys.stderr)
        return 1
    for file in files.values():
        print(f"{draw_picture(read(file)).relative_to(ROOT)} drawn from {file.relative_to(ROOT)}")
    README.write_text(rewritten(README.read_text(encoding="utf-8"), files), encoding="utf-8")
    print("README.md written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
