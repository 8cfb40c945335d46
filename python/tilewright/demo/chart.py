"""Speedups as bars, with the times that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bench.timing import milliseconds

_COLORS = {"float32": "#3b6fb6", "bfloat16": "#e08a3c", "float16": "#5a9f68", "float64": "#8a6bb8"}


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """One panel per mode, one bar per call and dtype. ``rows`` as the measuring step makes them."""
    import matplotlib

    matplotlib.use("Agg")  # a file, not a window
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    modes = list(dict.fromkeys(r["mode"] for r in rows))
    labels = list(dict.fromkeys(r["label"] for r in rows))
    dtypes = list(dict.fromkeys(r["dtype"] for r in rows))
    height = 0.8 / len(dtypes)
    figure, axes = plt.subplots(
        1, len(modes), figsize=(6.5 * len(modes), 1.4 + 0.95 * len(labels)), sharey=True, squeeze=False
    )
    shortest, longest = min(r["speedup"] for r in rows), max(r["speedup"] for r in rows)
    for axis, mode in zip(axes[0], modes, strict=True):
        for r in rows:
            if r["mode"] != mode:
                continue
            y = labels.index(r["label"]) + (dtypes.index(r["dtype"]) - (len(dtypes) - 1) / 2) * height
            axis.barh(y, r["speedup"] - 1.0, height * 0.9, left=1.0, color=_COLORS[r["dtype"]])
            ours, theirs = (milliseconds(r[name]["p50"]) for name in ("tilewright", "torch"))
            text = f" {r['speedup']:.2f}×  ({ours}, torch {theirs})"
            axis.text(max(r["speedup"], 1.0), y, text, va="center", fontsize=8.5, color="#333333")
        axis.axvline(1.0, color="#333333", linewidth=1, linestyle="--")
        axis.set_title(mode, fontsize=11)
        # Logarithmic, from equality: twice as slow is as long as twice as fast, and no bar is lost beside a large one.
        axis.set_xscale("log")
        axis.set_xlim(min(0.8, shortest / 1.1), max(2.0, longest) * 9.0)
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if shortest / 1.2 <= t <= max(2.0, longest) * 1.5]
        axis.set_xticks(ticks, [f"{t:g}×" for t in ticks])
        axis.minorticks_off()
        axis.set_xlabel("speed relative to PyTorch (dashed line: equal)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=13)
    handles = [Patch(color=_COLORS[d], label=d) for d in dtypes]
    figure.legend(handles=handles, loc="lower right", ncols=len(dtypes), frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 0.98))
    figure.savefig(path, dpi=150)
    plt.close(figure)
