"""Bars of how many times faster each call is, with the times that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bench.markdown import time_text
from ..bench.summary import Summary

_COLORS = {"float32": "#3b6fb6", "bfloat16": "#e08a3c", "float16": "#5a9f68"}


def draw(summaries: Sequence[Summary], title: str, path: Path) -> None:
    """One bar for each call that has a lead, over the fastest other implementation; the line is its 95% interval."""
    import matplotlib

    matplotlib.use("Agg")  # a file, not a window
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    figure, axis = plt.subplots(figsize=(11.5, 1.6 + 0.42 * len(summaries)))
    leads = [s.lead for s in summaries if s.lead is not None]
    shortest, longest = min(r.low for r in leads), max(r.high for r in leads)
    labels = []
    for y, s in enumerate(summaries):
        of = s.facts
        scene = of.get("scene", "")
        labels.append(f"{of['op']} {of['mode']}, {scene}\n{of['label']}" if scene else f"{of['op']}\n{of['label']}")
        if s.lead is None or s.ours is None or s.peer is None:
            axis.text(1.0, y, " no other implementation", va="center", fontsize=8.5, color="#333333")
            continue
        lead = s.lead
        axis.barh(y, lead.value - 1.0, 0.7, left=1.0, color=_COLORS[of["dtype"]])
        axis.plot([lead.low, lead.high], [y, y], color="#333333", linewidth=1.2)
        text = f"{lead.value:.2f}×  ({time_text(s.ours)}, {s.peer['provider']} {time_text(s.peer)})"
        axis.text(1.04 * max(lead.high, 1.0), y, text, va="center", fontsize=8.5, color="#333333")
    axis.axvline(1.0, color="#333333", linewidth=1, linestyle="--")
    # Logarithmic, from equality: twice as slow is as long as twice as fast, and no bar is lost beside a large one.
    axis.set_xscale("log")
    axis.set_xlim(min(0.8, shortest / 1.1), max(2.0, longest) * 5.0)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if shortest / 1.2 <= t <= max(2.0, longest) * 1.5]
    axis.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("speed relative to the fastest other implementation (dashed line: equal)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_yticks(range(len(labels)), labels, fontsize=8.5)
    axis.invert_yaxis()
    axis.set_title(title, fontsize=12)
    dtypes = dict.fromkeys(s.facts["dtype"] for s in summaries)
    axis.legend(handles=[Patch(color=_COLORS[d], label=d) for d in dtypes], loc="lower right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
